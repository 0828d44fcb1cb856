"""The test vectors of format version 1 decode to what they always decoded to.

Never change or remove one: whoever holds a file of this version must be able to read it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import reader
from streams import digest, levels

from onedc_jax.coding import entropy, stream

FOLDER = Path(__file__).parent / "golden" / "streams"
VECTORS = json.loads((FOLDER / "index.json").read_text())


def load(vector: dict) -> tuple[bytes, list[np.ndarray]]:
    data = (FOLDER / f"{vector['name']}.onedc").read_bytes()
    return data, [levels(step, count) for step, count in enumerate(vector["counts"])]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_decodes_to_its_digests(vector):
    data, indices = load(vector)
    content = stream.unpack(data)
    header = content.header
    assert vector["version"] == header.version == 1
    for field in ("width", "height", "fingerprint", "arithmetic", "rate"):
        assert getattr(header, field) == vector[field]
    assert digest(content.z) == vector["z"]
    assert list(stream.inspect(data).step_bytes) == vector["step_bytes"]
    decoder = entropy.SymbolDecoder(content.y, content.words)
    assert [digest(decoder.decode(step)) for step in indices] == vector["symbols"]
    decoder.finish()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_cut_behind_a_step_decodes_up_to_it(vector):
    data, indices = load(vector)
    info = stream.inspect(data)
    for steps in range(stream.STEPS + 1):
        end = info.header_bytes + info.z_bytes + sum(info.step_bytes[:steps])
        content = stream.unpack(data[:end], allow_truncated=True)
        assert content.header == info.header and len(content.words) >= steps
        decoder = entropy.SymbolDecoder(content.y, content.words)
        decoded = [digest(decoder.decode(step)) for step in indices[:steps]]
        assert decoded == vector["symbols"][:steps]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_is_what_the_encoder_writes(vector):
    data, indices = load(vector)
    content = stream.unpack(data)
    decoder = entropy.SymbolDecoder(content.y, content.words)
    steps = [(decoder.decode(step), step) for step in indices]
    assert stream.pack(content.header, content.z, *entropy.encode_steps(steps)) == data


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_reader_made_from_the_page_reads_the_same(vector):
    data, indices = load(vector)
    content, whole = stream.unpack(data), reader.read(data)
    for field in ("width", "height", "fingerprint", "arithmetic", "rate"):
        assert getattr(whole, field) == vector[field]
    assert whole.z == content.z.reshape(-1).tolist()
    assert whole.step_bytes == vector["step_bytes"] and whole.y == content.y
    symbols, words = reader.read_symbols(whole.y, [step.tolist() for step in indices])
    assert tuple(words) == content.words
    assert [digest(np.array(values)) for values in symbols] == vector["symbols"]
