import sys

from onedc_jax.cli import main

sys.exit(main())
