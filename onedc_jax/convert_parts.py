"""Weights that others released -> model folders that training or evaluation starts from."""

import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from onedc_jax import captions, checkpoint, weights
from onedc_jax.convert import DTYPES
from onedc_jax.errors import ModelError
from onedc_jax.models.clip import TextEncoder
from onedc_jax.models.inception import Inception
from onedc_jax.models.lpips import LPIPS
from onedc_jax.models.onedc import hashable
from onedc_jax.models.unet import UNet
from onedc_jax.models.vae import VAE
from onedc_jax.models.vqgan import VQGAN


class Part(NamedTuple):
    """A network that comes as a file of its own."""

    subfolder: str  # where a diffusion pipeline keeps it
    shapes: Callable[[dict, Mapping], Any]  # fields, tensors -> the parameters' shapes
    rename: Callable[[str], str]  # a parameter's path -> its tensor's name
    ignore: str | None = None  # tensors that are no parameters


def _init(module: type, fields: Mapping[str, Any], *inputs) -> Any:
    return jax.eval_shape(module(**hashable(fields)).init, jax.random.key(0), *inputs)["params"]


def _unet(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Any:
    """The width of its context is no field: what makes keys of it has that many columns."""
    keys = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    context = tensors[keys].shape[1] if keys in tensors else TextEncoder.width
    channels = fields.get("out_channels", UNet.out_channels)
    x, time, context = jnp.zeros((1, 8, 8, channels)), jnp.zeros(1, int), jnp.zeros((1, 1, context))
    return _init(UNet, fields, x, time, context)


_IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
_IDS = jax.ShapeDtypeStruct((1, 1), jnp.int32)

# By what the network is in its model folder.
PARTS = {
    "unet": Part("unet", _unet, lambda path: weights.generator_name(f"unet/{path}")),
    "vae": Part(
        "vae", lambda fields, _: _init(VAE, fields, _IMAGE, jax.random.key(0)), weights.vae_name
    ),
    "text": Part(
        "text_encoder",
        lambda fields, _: _init(TextEncoder, fields, _IDS),
        weights.clip_name,
        r"\.position_ids$",
    ),
    "tokenizer": Part("vqvae", lambda fields, _: _init(VQGAN, fields, _IMAGE), weights.vqgan_name),
    "lpips": Part("", lambda fields, _: _init(LPIPS, fields, _IMAGE, _IMAGE), weights.head_name),
    "inception": Part(
        "",
        lambda fields, _: _init(Inception, fields, _IMAGE),
        lambda path: (
            path.replace("/", ".").replace(".kernel", ".conv.weight").replace(".bias", ".bn.bias")
        ),
    ),
}

# Tensors of Inception that its features do not depend on, or that become part of others.
_FOLDED = re.compile(r"^fc\.|\.bn\.(weight|running_mean|running_var|num_batches_tracked)$")

# What a folder's fields say; the rest is what modules default to.
_RELEASED = {"lpips": {"net": "vgg"}}


def convert_part(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    heads: str | Path | None = None,
    tokenizer: str | Path | None = None,
    fields: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Writes the model folder `out` with one network of other people's, to train from.

    `kind`, one of `PARTS`:
      "unet": a diffusers UNet2DConditionModel of Stable Diffusion 1.5's layout, such as that or
        DMD2's one-step generator.
      "vae": a diffusers AutoencoderKL, such as Stable Diffusion 2.1's.
      "text": a transformers CLIPTextModel. Its tokenizer's vocab.json and merges.txt come along,
        from the folder `tokenizer`, or from where a pipeline has them beside the text encoder.
      "tokenizer": MaskGIT's VQGAN, in PyTorch.
      "lpips": torchvision's VGG16, with the LPIPS 0.1 weights of its layers in the file `heads`.
      "inception": the Inception v3 of FID, in PyTorch (pt_inception-2015-12-05).

    `source` is whatever `weights.read` opens, or a diffusion pipeline's folder. `fields` are those
    of the network, by default of the released size. `dtype`, one of `convert.DTYPES`, is how the
    weights are stored.

    Raises ModelError if a tensor is missing, unexpected or of another shape, if a file is missing,
    or if `out` exists.
    """
    if kind not in PARTS:
        raise ModelError(f"{kind}: no such part; expected one of {', '.join(PARTS)}")
    if dtype not in DTYPES:
        raise ModelError(f"{dtype}: weights are stored as one of {', '.join(DTYPES)}")
    checkpoint.refuse_existing(out, overwrite=False)
    part, source = PARTS[kind], Path(source)
    if (source / part.subfolder).is_dir():
        source = source / part.subfolder
    words = None
    if kind == "text":
        words = _tokenizer_of(source, tokenizer)
        captions.load_tokenizer(words)  # what cannot be read is told before the long part
    tensors = weights.read(source)
    if kind == "lpips":
        tensors = _with_heads(tensors, heads)
    if kind == "inception":
        tensors = _without_norms(tensors)
    fields = dict(_RELEASED.get(kind, {}) if fields is None else fields)
    try:
        shapes = part.shapes(fields, tensors)
    except TypeError as error:
        raise ModelError(f"the network's configuration has an unknown field: {error}") from error
    progress = partial(tqdm, desc=kind, unit="tensor", disable=None)
    filled = weights.fill(shapes, tensors, part.rename, ignore=part.ignore, progress=progress)
    params = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), filled)
    config = {kind: fields}
    if kind == "unet":
        config["text"] = {}  # it listens to captions, through CLIP ViT-L/14
    checkpoint.save_model(out, config, {kind: params})
    if words:
        (Path(out) / "tokenizer").mkdir()
        for name in captions.FILES:
            shutil.copyfile(words / name, Path(out) / "tokenizer" / name)


def _tokenizer_of(source: Path, given: str | Path | None) -> Path:
    """The folder with the tokenizer's files: the given one, or one in or beside the source."""
    if given:
        return captions.find_files(given)
    folder = source if source.is_dir() else source.parent
    for place in (folder, folder.parent):
        try:
            return captions.find_files(place)
        except ModelError:
            continue
    raise ModelError(
        f"{folder}: no tokenizer in it or beside it; give the folder of "
        f"{' and '.join(captions.FILES)} (--tokenizer DIR)"
    )


def _with_heads(vgg: Mapping[str, np.ndarray], file: str | Path | None) -> dict[str, np.ndarray]:
    """VGG's tensors together with LPIPS's, named as the parameters of `LPIPS`."""
    if file is None:
        raise ModelError("lpips: give the file with the weights of its layers too (--heads FILE)")
    heads = weights.read(file)
    named = {}
    for name in heads:
        # One weight for each channel, as a 1×1 convolution to one: "lin0.model.1.weight".
        layer, _, rest = name.partition(".")
        if not layer.startswith("lin") or rest != "model.1.weight":
            raise ModelError(f"{file}: tensor {name} is unexpected")
        named[layer.replace("lin", "head.")] = heads[name].reshape(-1)
    return {name: vgg[name] for name in vgg if not name.startswith("classifier.")} | named


def _without_norms(network: weights.Tensors) -> weights.Tensors:
    """Inception's convolutions with the batch norms behind them, under the names they had.

    γ(Wx - μ)/√(σ² + 0.001) + β is a convolution with a bias again, computed here in float64. The
    classifier is left out.
    """

    def tensor(name: str) -> np.ndarray:
        if name not in network:
            raise ModelError(f"{network.source}: tensor {name} is missing")
        return network[name].astype(np.float64)

    def folded(name: str) -> np.ndarray:
        layer, part = name.rsplit(".", 2)[:2]
        kernel = tensor(f"{layer}.conv.weight")
        norm = [
            tensor(f"{layer}.bn.{x}") for x in ("weight", "bias", "running_mean", "running_var")
        ]
        if {x.shape for x in norm} != {kernel.shape[:1]}:
            raise ModelError(f"{network.source}: tensors {layer}.bn do not fit {layer}.conv")
        gamma, beta, mean, variance = norm
        scale = gamma / np.sqrt(variance + 1e-3)
        return beta - mean * scale if part == "bn" else kernel * scale.reshape(-1, 1, 1, 1)

    classes = len(tensor("fc.weight"))
    if classes != 1008:
        raise ModelError(
            f"{network.source}: this Inception knows {classes} classes, FID's knows 1008; give "
            "that of pt_inception-2015-12-05"
        )
    kept = [name for name in network if not _FOLDED.search(name)]
    return weights.Tensors(
        network.source,
        {
            name: partial(folded if name.endswith((".conv.weight", ".bn.bias")) else tensor, name)
            for name in kept
        },
    )
