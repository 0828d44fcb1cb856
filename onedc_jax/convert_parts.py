"""Weights that others released -> model folders that training or evaluation starts from."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax import captions, checkpoint, weights
from onedc_jax.convert import cast, check_stated, check_target, fill, read_config
from onedc_jax.errors import ModelError
from onedc_jax.models.clip import TextEncoder
from onedc_jax.models.inception import Inception
from onedc_jax.models.init import shapes_of
from onedc_jax.models.lpips import LPIPS
from onedc_jax.models.onedc import OneDC, hashable
from onedc_jax.models.unet import UNet
from onedc_jax.models.vae import VAE
from onedc_jax.models.vqgan import VQGAN


class Part(NamedTuple):
    """A network that comes as a file of its own."""

    subfolder: str  # where a diffusion pipeline keeps it
    shapes: Callable[[dict, weights.Tensors], Any]  # fields, tensors -> the parameters' shapes
    rename: Callable[[str], str]  # a parameter's path -> its tensor's name
    ignore: str | None = None  # tensors that are no parameters
    fields: Mapping[str, Any] = {}  # the released network's, where they are not the defaults
    beside: Mapping[str, Any] = {}  # the configuration of the rest of its folder
    stated: Callable[[dict], Mapping] = lambda fields: {}  # what `check_stated` expects
    # tensors, the file of heads -> the tensors that the parameters come from
    prepare: Callable[[weights.Tensors, Any], weights.Tensors] = lambda tensors, heads: tensors


def _shapes(module: type, fields: Mapping[str, Any], *inputs) -> Any:
    return shapes_of(module(**hashable(fields)), *inputs)


def _unet(fields: Mapping[str, Any], tensors: weights.Tensors) -> Any:
    """The width of its context is no field: what makes keys of it has that many columns."""
    keys = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    shape = tensors[keys].shape if keys in tensors else (1, TextEncoder.width)
    if len(shape) < 2:
        raise ModelError(f"{tensors.source}: tensor {keys} has shape {list(shape)}, no matrix's")
    channels = fields.get("out_channels", UNet.out_channels)
    x, context = jnp.zeros((1, 8, 8, channels)), jnp.zeros((1, 1, shape[1]))
    return _shapes(UNet, fields, x, jnp.zeros(1, int), context)


def _unet_stated(fields: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Stable Diffusion 1.5's, whose heads are called by what a head has in other networks."""
    return {
        ("config.json", "attention_head_dim"): fields.get("heads", UNet.heads),
        ("config.json", "cross_attention_dim"): TextEncoder.width,
        ("../scheduler/scheduler_config.json", "prediction_type"): "epsilon",
    }


def _with_heads(vgg: weights.Tensors, file: str | Path | None) -> weights.Tensors:
    """VGG's tensors without its classifier's, together with LPIPS's."""
    if file is None:
        raise ModelError("lpips: give the file with the weights of its layers too (--heads FILE)")
    heads = weights.read(file)
    for name in heads:
        if not re.fullmatch(r"lin\d+\.model\.1\.weight", name):
            raise ModelError(f"{file}: tensor {name} is unexpected")
    kept = [name for name in vgg if not name.startswith("classifier.")]
    # One weight for each channel, as a 1×1 convolution to one.
    return weights.Tensors(
        f"{vgg.source} with {file}",
        {name: partial(vgg.__getitem__, name) for name in kept}
        | {name: lambda name=name: heads[name].reshape(-1) for name in heads},
    )


def _lpips_name(path: str) -> str:
    """The released tensor for a parameter of `LPIPS`: "head_3" -> "lin3.model.1.weight"."""
    head = re.fullmatch(r"head_(\d+)", path)
    return f"lin{head[1]}.model.1.weight" if head else weights.plain_name(path)


# Tensors of Inception that its features do not depend on, or that become part of others.
_FOLDED = re.compile(r"^fc\.|\.bn\.(weight|running_mean|running_var|num_batches_tracked)$")


def _without_norms(network: weights.Tensors) -> weights.Tensors:
    """Inception's convolutions with the batch norms behind them, under the names they had.

    γ(Wx - μ)/√(σ² + 0.001) + β is a convolution with a bias again, computed here in float64. The
    classifier is left out.
    """

    def tensor(name: str) -> np.ndarray:
        if name not in network:
            raise ModelError(f"{network.source}: tensor {name} is missing")
        return weights.floating(network, name).astype(np.float64)

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

    classes = len(np.atleast_1d(tensor("fc.weight")))
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


_IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
_IDS = jax.ShapeDtypeStruct((1, 1), jnp.int32)

# By what the network is in its model folder.
PARTS = {
    "unet": Part(
        "unet",
        _unet,
        lambda path: weights.generator_name(f"unet/{path}"),
        beside={"text": {}},  # it listens to captions, through CLIP ViT-L/14
        stated=_unet_stated,
    ),
    "vae": Part(
        "vae",
        lambda fields, _: _shapes(VAE, fields, _IMAGE, jax.random.key(0)),
        weights.plain_name,
        stated=lambda fields: {("config.json", "scaling_factor"): OneDC.latent_scale},
    ),
    "text": Part(
        "text_encoder",
        lambda fields, _: _shapes(TextEncoder, fields, _IDS),
        weights.clip_name,
        ignore=r"\.position_ids$",
    ),
    "tokenizer": Part(
        "vqvae", lambda fields, _: _shapes(VQGAN, fields, _IMAGE), weights.plain_name
    ),
    "lpips": Part(
        "",
        lambda fields, _: _shapes(LPIPS, fields, _IMAGE, _IMAGE),
        _lpips_name,
        fields={"net": "vgg"},
        prepare=_with_heads,
    ),
    "inception": Part(
        "",
        lambda fields, _: _shapes(Inception, fields, _IMAGE),
        lambda path: (
            path.replace("/", ".").replace(".kernel", ".conv.weight").replace(".bias", ".bn.bias")
        ),
        prepare=lambda tensors, heads: _without_norms(tensors),
    ),
}


def convert_part(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    heads: str | Path | None = None,
    tokenizer: str | Path | None = None,
    fields: Mapping[str, Any] | str | Path | None = None,
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
    of the network, or a JSON file with them, by default of the released size. `dtype`, one of
    `convert.DTYPES`, is how the weights are stored.

    Raises ModelError as `convert.convert` does, also of the U-Net's config.json and its pipeline's
    scheduler, and if a file is missing.
    """
    if kind not in PARTS:
        raise ModelError(f"{kind}: no such part; expected one of {', '.join(PARTS)}")
    check_target(out, dtype)
    part, source = PARTS[kind], Path(source)
    if (source / part.subfolder).is_dir():
        source = source / part.subfolder
    words = None
    if kind == "text":
        words = _tokenizer_of(source, tokenizer)
        captions.load_tokenizer(words)  # what cannot be read is told before the long part
    where, fields = read_config(fields, part.fields)
    check_stated(source, part.stated(fields))
    tensors = part.prepare(weights.read(source), heads)
    shapes = checkpoint.built(where, lambda: part.shapes(fields, tensors))
    params = cast(fill(kind, shapes, tensors, part.rename, ignore=part.ignore), dtype)
    copied = {f"tokenizer/{name}": words / name for name in captions.FILES} if words else {}
    checkpoint.save_model(out, {kind: fields} | part.beside, {kind: params}, copied=copied)


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
