"""What launchers with a recipe share: all that is wrong with their flags is said in one line."""

import re
import sys
from collections.abc import Callable

from absl import flags

from onedc_jax.cli.common import USER_ERROR


def parser(program: str, recipe: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """The `flags_parser` of `absl.app.run` for a program with the flag `recipe`."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            _ = recipe.value.stage  # where there is no recipe, it fails here
            return rest
        except AttributeError as error:  # the recipe is locked
            fail(program, f"the recipe has no key {error}".replace('"', ""))
        except SyntaxError as error:
            fail(program, f"{error.filename}: no recipe, line {error.lineno} ({error.msg})")
        except (flags.Error, OSError, ValueError) as error:  # a recipe's own words come last
            line = str(error).strip().splitlines()[-1].strip()
            if missing := re.search("No such file or directory: '(.*)'", line):
                line = f"{missing[1]}: no such recipe, e.g. configs/stage1.py:tiny"
            fail(program, line.removeprefix("ValueError: "))

    return parse


def fail(program: str, error: str) -> None:
    """Ends the program."""
    print(f"{program}: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)
