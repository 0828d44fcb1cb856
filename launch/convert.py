"""The same as `onedc convert`: python launch/convert.py --codec FILE ... --out CKPT."""

import sys

from onedc_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
