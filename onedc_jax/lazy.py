"""Names of a package that are looked up when they are first asked for.

So importing it does not import all that its names need.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable, Callable]:
    """A package's `__getattr__` and `__dir__`, of names by the modules that they are found in."""
    namespace = vars(sys.modules[package])

    def get(name: str):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = value = getattr(import_module(homes[name]), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *homes})

    return get, names
