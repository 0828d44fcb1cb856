"""The same as `onedc decode`: python launch/decompress.py INPUT [OUTPUT] [--model NAME_OR_PATH]."""

import sys

from onedc_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["decode", *sys.argv[1:]]))
