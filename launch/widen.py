"""Gives y of a model that began as a transform more channels, to train on from there.

    python launch/widen.py runs/stage1 72 runs/wider
    python launch/train.py --config=configs/stage1.py:tiny --workdir=runs/second \\
        --config.model.codec.channels=72 --config.init.vae=runs/wider \\
        --config.init.codec=runs/wider --config.init.generator=runs/wider
"""

import argparse
import sys
from pathlib import Path

from onedc_jax import checkpoint
from onedc_jax.errors import OneDCError
from onedc_jax.training.widening import with_channels

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="RUN", help="a training run or model folder")
    parser.add_argument("channels", type=int, metavar="CHANNELS", help="a multiple of 4")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the wider model")
    parser.add_argument("--y-gain", type=float, default=3.3, help="as in its recipe")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        config, params = checkpoint.load_model(checkpoint.resolve(arguments.source))
        params.pop("entropy", None)  # of the narrower model
        options = dict(y_gain=arguments.y_gain, seed=arguments.seed)
        wider = with_channels(config, params, arguments.channels, **options)
        checkpoint.save_model(arguments.out, *wider)
    except OneDCError as error:
        sys.exit(f"widen: {error}")
