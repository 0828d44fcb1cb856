"""Writes the frequency tables of y again, from the formula: `python launch/make_tables.py`.

They are part of the stream format. Should the result ever differ from the file in the repository,
then every stream written before becomes unreadable.
"""

import os

import numpy as np
from absl import app, flags

import onedc_jax.coding
from onedc_jax.coding import tables

_OUT = flags.DEFINE_string(
    "out", os.path.join(os.path.dirname(onedc_jax.coding.__file__), "tables.npz"), "File to write."
)


def main(argv):
    del argv
    np.savez_compressed(_OUT.value, **tables.build())
    print(f"{_OUT.value}: {os.path.getsize(_OUT.value)} bytes")


if __name__ == "__main__":
    app.run(main)
