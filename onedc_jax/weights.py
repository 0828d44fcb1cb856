"""Released weight files and our parameter trees: one naming rule, strict filling.

A parameter's path, e.g. "analysis/trans_coding_3/dw_in/kernel", names its tensor in the released
files, "enc.trans_coding.3.block.0.conv1.0.weight", by rules instead of a table. Tensors are as
PyTorch has them (convolutions OIHW, products [out, in]), parameters as JAX (HWIO, [in, out]);
tables, whose names end in "embedding", are the same in both.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax import torch_files
from onedc_jax.errors import ModelError
from onedc_jax.trees import named

# What a folder of weights may hold, in the order of preference.
_IN_A_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)

# Our name -> the released one, on whole components of "/" + path. Afterwards "name_N" becomes
# "name.N"; "@" stands for an underscore that stays one.
_CODEC_NAMES = (
    (r"^/analysis/", "/enc/"),
    (r"^/hyper_analysis/", "/hyper_enc/"),
    (r"^/hyper_synthesis/", "/hyper_dec/"),
    (r"^/adaptor/", "/semantic_adaptor/"),
    (r"^/synthesis/", "/dec/"),
    (r"^/prior/fusion_", "/y_prior_fusion_"),
    (r"^/prior/reduction/", "/y_spatial_prior_reduction/"),
    (r"^/prior/step_(\d+)/", r"/y_spatial_prior_adaptor@\1/"),
    (r"^/prior/spatial_", "/y_spatial_prior_"),
)
_GENERATOR_NAMES = ((r"^/unet/", "/"),)
_TEXT_NAMES = (
    (r"^/(token|position)_embedding/", r"/embeddings/\1_embedding/"),
    (r"^/layers_", "/encoder/layers_"),
    (r"^/", "/text_model/"),
)
_BLOCK_NAMES = (
    (r"/dw_in/", "/block_0/conv1_0/"),
    (r"/dw_conv/", "/block_0/depth_conv/"),
    (r"/dw_out/", "/block_0/conv2/"),
    (r"/dw_shortcut/", "/block_0/adaptor/"),
    (r"/ffn_in/", "/block_1/conv/"),
    (r"/ffn_out/", "/block_1/conv_out/"),
    (r"/(subpel_conv|upsample)/", r"/\1_0/"),
    (r"/linear(\d)/", r"/linear@\1/"),
    (r"/lora_a$", "/lora_A/default/weight"),
    (r"/lora_b$", "/lora_B/default/weight"),
    (r"/(kernel|scale|embedding)$", "/weight"),
)

# An attention's projections, now and in older files (the Stable Diffusion VAEs, for one).
_OLD_NAMES = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}


def codec_name(path: str) -> str:
    """The released codec file's tensor for a parameter below params["codec"].

    "prior/step_1/dw_in/kernel" -> "y_spatial_prior_adaptor_1.block.0.conv1.0.weight"
    """
    return _rename(path, _CODEC_NAMES)


def generator_name(path: str) -> str:
    """The released generator file's tensor for a parameter below params["generator"].

    "unet/mid_block/resnets_0/conv1/lora_a" -> "mid_block.resnets.0.conv1.lora_A.default.weight".
    A layer's own kernel is "conv1/kernel", or "conv1/base_layer/kernel" if it has such a LoRA.
    """
    return _rename(path, _GENERATOR_NAMES)


def plain_name(path: str) -> str:
    """The released tensor for a parameter of a VAE, of a VQGAN or of a module of `models.heads`.

    "encoder/mid_block/attentions_0/to_q/kernel" -> "encoder.mid_block.attentions.0.to_q.weight"
    """
    return _rename(path, ())


def clip_name(path: str) -> str:
    """The transformers CLIPTextModel tensor for a parameter of `models.clip.TextEncoder`.

    "layers_0/mlp/fc1/kernel" -> "text_model.encoder.layers.0.mlp.fc1.weight"
    """
    return _rename(path, _TEXT_NAMES)


def _rename(path: str, rules: tuple[tuple[str, str], ...]) -> str:
    path = "/" + path
    for pattern, name in rules + _BLOCK_NAMES:
        path = re.sub(pattern, name, path)
    path = re.sub(r"_(\d+)(?=/|$)", r"/\1", path)
    path = re.sub(r"_(\d+)_", r"/\1/", path)
    return path[1:].replace("/", ".").replace("@", "_")


def _old_name(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        name = name.replace(new, old)
    return name


class Tensors(Mapping[str, np.ndarray]):
    """Named tensors that are read from their file only when asked for; floats come as float32.

    `source`: the file or folder they are from, for messages. The file stays open (and what was read
    of it may stay in memory) as long as this lives.
    """

    def __init__(self, source: Path | str, readers: dict[str, Callable[[], np.ndarray]]):
        self.source = source
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._readers[name]()
        with np.errstate(over="ignore"):  # what becomes infinite is refused where it is used
            return array.astype(np.float32, copy=False) if _is_floating(array) else array

    def __contains__(self, name: object) -> bool:  # Mapping's would read the tensor
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __repr__(self) -> str:
        return f"{len(self)} tensors of {self.source}"


def read(path: str | Path) -> Tensors:
    """Opens a .safetensors file, a PyTorch .bin, .pt or .pth file, or a folder with one of them.

    A folder may hold a model in shards (model.safetensors.index.json) or be one of diffusers'
    (diffusion_pytorch_model.safetensors). PyTorch's files are read without it and without running
    code from them. Raises ModelError if there is no such file, or it is unreadable.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _IN_A_FOLDER if (path / name).is_file()]
        if not found:
            raise ModelError(
                f"{path}: no weights in this folder; expected one of {', '.join(_IN_A_FOLDER)}"
            )
        path = found[0]
    return _read_shards(path) if path.name.endswith(".index.json") else _read_file(path)


def _read_file(path: Path) -> Tensors:
    if not path.is_file():
        raise ModelError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return Tensors(path, torch_files.readers(path))
    raise ModelError(f"{path}: not a weight file; expected .safetensors, .bin, .pt or .pth")


def _read_safetensors(path: Path) -> Tensors:
    try:
        import safetensors
    except ImportError as error:
        raise ModelError(f"{path}: reading it needs `pip install safetensors`") from error

    try:
        file = safetensors.safe_open(path, framework="numpy")
        names = list(file.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    return Tensors(path, {name: partial(_safe_tensor, path, file, name) for name in names})


def _safe_tensor(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except Exception as error:  # whatever the package meets on its way to a type of numpy's
        kind = file.get_slice(name).get_dtype()
        raise ModelError(
            f"{path}: tensor {name} holds {kind}, which cannot be read; store it as F16 or F32"
        ) from error


def _read_shards(index: Path) -> Tensors:
    try:
        shard_of = dict(json.loads(index.read_text())["weight_map"])
        files = {name: index.parent / name for name in sorted(set(shard_of.values()))}
    except FileNotFoundError as error:
        raise ModelError(f"{index}: no such weight file") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: not a readable index of weight files") from error
    shards = {name: _read_file(file) for name, file in files.items()}
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise ModelError(
                f"{index.parent / shard}: tensor {name} is missing, which {index.name} lists"
            )
    for shard, tensors in shards.items():
        for name in tensors:
            if shard_of.get(name) != shard:
                raise ModelError(
                    f"{index.parent / shard}: tensor {name} is unexpected, {index.name} does not "
                    "list it there"
                )
    readers = {name: partial(shards[shard].__getitem__, name) for name, shard in shard_of.items()}
    return Tensors(index.parent, readers)


def wanted(shapes: Any, rename: Callable[[str], str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensor that each parameter of a tree comes from: path -> (name, PyTorch's shape).

    Arguments as for `fill`.
    """
    leaves = named(shapes)

    def name(path: str) -> str:
        layer, _, leaf = path.rpartition("/")
        adapted = leaf in ("kernel", "bias") and f"{layer}/lora_a" in leaves
        return rename(f"{layer}/base_layer/{leaf}" if adapted else path)

    return {path: (name(path), _torch_shape(path, leaf.shape)) for path, leaf in leaves.items()}


def fill(
    shapes: Any,
    tensors: Mapping[str, np.ndarray],
    rename: Callable[[str], str],
    *,
    ignore: str | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> Any:
    """Released tensors as a tree of numpy arrays with the shapes and dtypes of `shapes`.

    `shapes`: a tree of anything with shape and dtype, as of `models.init.shapes_of`.
    `rename`: a parameter's path ("a/b/kernel") -> its tensor's name. Where a layer has a low-rank
    adaptation, its own kernel and bias are asked for as "a/b/base_layer/kernel".
    `ignore`: a regular expression of tensors that are no parameters and may be there or not.
    `progress`: wraps the list of parameters on the way, e.g. tqdm.tqdm.

    Strict: every tensor is used once and every parameter is filled, or ModelError names the tensor
    that is missing, unexpected, of another shape or no floating point, or that holds what is no
    finite number. Reads one tensor at a time.
    """
    where = getattr(tensors, "source", "weights")
    asked = wanted(shapes, rename)
    names = [name for name, _ in asked.values()]
    found = [name if name in tensors else _old_name(name) for name in names]
    missing = [name for name, there in zip(names, found, strict=True) if there not in tensors]
    if missing:
        raise ModelError(f"{where}: tensor {missing[0]} is missing{_and_more(missing)}")
    twice = [name for name, times in Counter(found).items() if times > 1]
    if twice:
        raise ModelError(f"{where}: tensor {twice[0]} is asked for by more than one parameter")
    known = set(found)
    extra = [n for n in tensors if n not in known and not (ignore and re.search(ignore, n))]
    if extra:
        raise ModelError(f"{where}: tensor {extra[0]} is unexpected{_and_more(extra)}")

    leaves, tree = jax.tree.flatten(shapes)
    filled = []
    for name, path, leaf in progress(list(zip(found, asked, leaves, strict=True))):
        array, (_, expected) = floating(tensors, name), asked[path]
        # What is a 1x1 convolution in one version of a network may be a matrix in another.
        if _without_1x1(array.shape) != _without_1x1(expected):
            shape = f"{list(array.shape)}, expected {list(expected)}"
            raise ModelError(f"{where}: tensor {name} has shape {shape}")
        array = array.reshape(expected)
        if array.ndim > 1 and not _is_table(path):
            array = array.transpose(*range(2, array.ndim), 1, 0)
        array = array.astype(leaf.dtype, order="C", copy=False)
        if not np.isfinite(array).all():
            raise ModelError(f"{where}: tensor {name} holds numbers that are not finite")
        filled.append(array)
    return jax.tree.unflatten(tree, filled)


def floating(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A tensor of a network; ModelError where it holds integers, which may be a quantised one's."""
    array = tensors[name]
    if not _is_floating(array):
        where = getattr(tensors, "source", "weights")
        raise ModelError(f"{where}: tensor {name} holds {array.dtype}, expected floating point")
    return array


def _is_floating(array: np.ndarray) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)  # numpy's would not know bfloat16


def _is_table(path: str) -> bool:
    return path.endswith("embedding")


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """HWIO -> OIHW, [in, out] -> [out, in]; vectors and tables stay what they are."""
    if len(shape) < 2 or _is_table(path):
        return tuple(shape)
    return (shape[-1], shape[-2], *shape[:-2])


def _without_1x1(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
