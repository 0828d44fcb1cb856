"""`onedc eval` under another name.

python launch/evaluate.py --images DIR --out REPORT [--models A,B] [--baselines A,B] [--limit N]
"""

import sys

from onedc_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
