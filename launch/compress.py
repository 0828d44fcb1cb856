"""The same as `onedc encode`: python launch/compress.py INPUT [OUTPUT] [--model NAME_OR_PATH]."""

import sys

from onedc_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["encode", *sys.argv[1:]]))
