"""Lets a trained model's quality knob go on to higher rates: python launch/stretch.py RUN 0.4 OUT.

What the knob does at its last point goes on along the line from the last but one, by so many times
the step between these two. The networks see finer y than they were trained on: a little is enough.
"""

import argparse
import sys
from pathlib import Path

from onedc_jax import checkpoint
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.codec import stretched


def main(source: Path, steps: float, out: Path) -> None:
    config, params = checkpoint.load_model(checkpoint.resolve(source))
    if "entropy" in params:
        raise ModelError(f"{source}: has integers, made for its knob; stretch what they came from")
    params |= dict(codec=stretched(params["codec"], steps))
    checkpoint.save_model(out, config, params)
    print(f"{out}: the knob goes on by {steps:g} of the step between its last two points")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="RUN", help="a training run or model folder")
    parser.add_argument("steps", type=float, metavar="STEPS", help="e.g. 0.4")
    parser.add_argument("out", type=Path, metavar="OUT", help="the model folder to make")
    arguments = parser.parse_args()
    try:
        main(arguments.source, arguments.steps, arguments.out)
    except OneDCError as error:
        sys.exit(f"stretch: {error}")
