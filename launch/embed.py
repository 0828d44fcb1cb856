"""Makes a trained model one of the package's presets: python launch/embed.py RUN NAME.

The weights are rounded to bfloat16, which halves them; encoder and decoder use the rounded ones.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax import checkpoint
from onedc_jax.errors import OneDCError

PRESETS = Path(checkpoint.__file__).parent / "presets"


def main(source: Path, name: str) -> None:
    config, params = checkpoint.load_model(checkpoint.resolve(source))
    integers = params.pop("entropy", None)  # made for these weights; they stay as they are
    params = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), params)
    count = sum(x.size for x in jax.tree.leaves(params))
    params |= {} if integers is None else {"entropy": integers}
    checkpoint.save_model(PRESETS / name, config, params, overwrite=True)
    size = sum(path.stat().st_size for path in (PRESETS / name).rglob("*") if path.is_file())
    print(f"{PRESETS / name}: {count / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="RUN", help="a training run or model folder")
    parser.add_argument("name", metavar="NAME", help="of the preset, e.g. tiny")
    arguments = parser.parse_args()
    try:
        main(arguments.source, arguments.name)
    except OneDCError as error:
        sys.exit(f"embed: {error}")
