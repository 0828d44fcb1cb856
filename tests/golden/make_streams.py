"""Makes streams/: test vectors of format version 1. They are frozen: this is how they were made.

    python tests/golden/make_streams.py NEW_FOLDER

Their symbols were drawn at random, their levels follow from a formula, so that they depend on no
model.
"""

import json
import sys
from pathlib import Path

import numpy as np

from onedc_jax.coding import entropy, stream, tables

sys.path.insert(0, str(Path(__file__).parent.parent))

from streams import digest, levels


def main(folder: Path) -> None:
    """Writes the streams, and index.json: what each holds."""
    integer, single = stream.Arithmetic.INTEGER, stream.Arithmetic.FLOAT32_CPU
    rng = np.random.default_rng(20505)
    index = []
    for name, header, counts, coded in (
        ("pixel", stream.Header(1, 1, 0, single), (16, 16, 16, 16), 0),
        ("tall", stream.Header(100, 300, 0x1234, integer), (300, 300, 300, 300), 4),
        ("photo", stream.Header(768, 512, 0xBEEF, integer), (9216,) * 4, 4),
        ("rate", stream.Header(333, 500, 0xFFFF, integer, rate=200), (400,) * 4, 4),
        ("two-steps", stream.Header(65, 64, 0x0001, integer), (64, 64, 64, 64), 2),
        ("escapes", stream.Header(16384, 1, 0x8000, integer), (512, 0, 1, 512), 4),
    ):
        z = rng.integers(0, 2**14, header.z_shape)
        scales = tables.load().thresholds
        symbols = []
        for step, count in enumerate(counts):
            outliers = 300 if name == "escapes" else rng.choice([1, 1, 1, 5], count)
            drawn = np.rint(rng.normal(size=count) * scales[levels(step, count)] * outliers)
            drawn = np.clip(drawn, -32767, 32767).astype(np.int32)
            symbols.append(drawn if step < coded else np.zeros_like(drawn))
        steps = [(values, levels(step, len(values))) for step, values in enumerate(symbols)]
        data = stream.pack(header, z, *entropy.encode_steps(steps))
        (folder / f"{name}.onedc").write_bytes(data)
        index.append(
            {
                "name": name,
                "version": header.version,
                "width": header.width,
                "height": header.height,
                "fingerprint": header.fingerprint,
                "arithmetic": int(header.arithmetic),
                "rate": header.rate,
                "z": digest(z),
                "counts": counts,
                "step_bytes": stream.inspect(data).step_bytes,
                "symbols": [digest(values) for values in symbols],
            }
        )
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
