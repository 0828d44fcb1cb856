"""Tensors out of PyTorch's files without PyTorch, and without running anything from them.

A file is a pickle of a dictionary, in which each tensor says where in which storage it lies, and
the storages' bytes: in a zip archive (since PyTorch 1.6), or one after the other behind it.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from onedc_jax.errors import ModelError, one_line

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_Bytes = Callable[[], bytes]

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int  # elements


class _Tensor(NamedTuple):
    """Where a tensor lies: offset and strides count the storage's elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def readers(path: str | Path) -> dict[str, Callable[[], np.ndarray]]:
    """The tensors of a .pt, .pth or .bin file by name; each is read when its function is called.

    The file holds a dictionary of tensors, or one with such a dictionary as "state_dict". Raises
    ModelError if it is unreadable or holds anything else; a file that asks for code is refused.
    """
    path = Path(path)
    try:
        tree, locate = (_open_zip if zipfile.is_zipfile(path) else _open_plain)(path)
        tree = tree.get("state_dict", tree) if isinstance(tree, dict) else tree
        if not isinstance(tree, dict) or not all(isinstance(t, _Tensor) for t in tree.values()):
            raise ModelError(f"{path}: does not hold named tensors")
        return {name: partial(_read, path, t, locate(t.storage)) for name, t in tree.items()}
    except ModelError:
        raise
    except Exception as error:  # a broken pickle raises almost anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: not a readable PyTorch weight file ({one_line(error)})")


class _TensorsOnly(pickle.Unpickler):
    """Builds dictionaries of `_Tensor` and of plain values; asks for nothing by name but these."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor")

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, size, *view = saved
        if kind != "storage" or any(view) or size < 0:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        self.storages[key] = _Storage(key, np.dtype(_DTYPES[dtype]), size)
        return self.storages[key]


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> _Tensor:
    """What a tensor says of itself; one that reaches outside of its storage is refused."""
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise pickle.UnpicklingError("a tensor has no proper shape")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise pickle.UnpicklingError("a tensor reaches outside of its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_REBUILD = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_parameter": lambda tensor, *_: tensor,
}


def _open_zip(path: Path) -> tuple[Any, Callable[[_Storage], _Bytes]]:
    """What was pickled, and where to get the bytes of its storages."""
    archive = zipfile.ZipFile(path)
    pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise ValueError("a zip archive of something else")
    folder = pickled[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("written on a big-endian machine")
    with archive.open(pickled[0]) as file:
        tree = _TensorsOnly(file).load()

    def locate(storage: _Storage) -> _Bytes:
        name = f"{folder}data/{storage.key}"
        if archive.getinfo(name).file_size != storage.size * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} has another size")
        return partial(archive.read, name)

    return tree, locate


def _open_plain(path: Path) -> tuple[Any, Callable[[_Storage], _Bytes]]:
    """The same, of the older format."""
    with path.open("rb") as file:
        if [_TensorsOnly(file).load() for _ in range(2)] != [_MAGIC, _PROTOCOL]:
            raise ValueError("no file of PyTorch's")
        if not _TensorsOnly(file).load()["little_endian"]:
            raise ValueError("written on a big-endian machine")
        main = _TensorsOnly(file)
        tree = main.load()
        places = {}
        for key in _TensorsOnly(file).load():
            storage = main.storages[key]
            if file.read(8) != storage.size.to_bytes(8, "little"):
                raise ValueError(f"storage {key} has another size")
            places[key] = file.tell(), storage.size * storage.dtype.itemsize
            file.seek(sum(places[key]))
        if file.tell() > path.stat().st_size:
            raise ValueError("the file is cut short")
    return tree, lambda storage: partial(_part_of, path, *places[storage.key])


def _part_of(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _read(path: Path, tensor: _Tensor, data: _Bytes) -> np.ndarray:
    dtype = tensor.storage.dtype
    try:
        flat = np.frombuffer(data(), dtype, tensor.storage.size)[tensor.offset :]
        strides = [step * dtype.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()
    except Exception as error:  # a damaged archive shows only here
        raise _unreadable(path, error) from error
