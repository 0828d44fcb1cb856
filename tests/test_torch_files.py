"""PyTorch's files without PyTorch: its own ones (by golden/make_torch_files.py), and bad ones."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from reference import GOLDEN, draw

from onedc_jax.errors import ModelError
from onedc_jax.torch_files import readers

WHOLE = draw("whole", (3, 4))
EXPECTED = {
    "parameter": WHOLE,
    "turned": WHOLE.T,
    "part": WHOLE[1:, 2],
    "bfloat16": WHOLE.astype(ml_dtypes.bfloat16),
    "half": WHOLE.astype(np.float16),
    "double": WHOLE.astype(np.float64),
    "count": np.int64(7),
    "none": np.zeros((0, 3), np.float32),
}
FILES = ["zip.pt", "plain.pt"]


@pytest.mark.parametrize("file", FILES)
def test_every_kind_of_tensor_is_read(file):
    found = {name: read() for name, read in readers(GOLDEN / "torch" / file).items()}
    assert found.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("left", [0, 100, 0.5, 0.9, -1])
def test_a_cut_file_is_refused(tmp_path, file, left):
    data = (GOLDEN / "torch" / file).read_bytes()
    cut = tmp_path / file
    cut.write_bytes(data[: int(left * len(data)) if 0 < left < 1 else left])
    with pytest.raises(ModelError, match="not a readable PyTorch weight file"):
        readers(cut)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_an_error_of_ours_or_none(tmp_path, file):
    data = np.frombuffer((GOLDEN / "torch" / file).read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for n in range(300):
        bad = data.copy()
        bad[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
        path = tmp_path / f"{n}.pt"
        path.write_bytes(bad.tobytes())
        try:
            for read in readers(path).values():
                read()
        except ModelError:
            pass


class Evil:
    def __reduce__(self):
        return print, ("run",)


def saved(path, tree):
    """A file in PyTorch's zip format, of any tree."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(tree, protocol=2))
    return path


def test_code_is_not_run(tmp_path, capsys):
    with pytest.raises(ModelError, match="is no tensor"):
        readers(saved(tmp_path / "evil.pt", {"weight": Evil()}))
    assert capsys.readouterr().out == ""


def test_something_else_than_tensors_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not hold named tensors"):
        readers(saved(tmp_path / "list.pt", {"weight": [1, 2]}))


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path):
    with zipfile.ZipFile(GOLDEN / "torch" / "zip.pt") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    shape = b"K\x03K\x04\x86"  # (3, 4) -> (3, 99)
    assert shape in files[name]
    files[name] = files[name].replace(shape, b"K\x03K\x63\x86")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match="outside of its storage"):
        readers(tmp_path / "bad.pt")
