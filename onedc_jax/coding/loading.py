"""From a model folder to a codec."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onedc_jax import kept
from onedc_jax.checkpoint import built, check_tree, is_sealed, load_model, read_config, resolve
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.networks import Networks
from onedc_jax.coding.path import FloatPath, IntegerPath
from onedc_jax.coding.programs import Programs
from onedc_jax.errors import ModelError
from onedc_jax.models import integer
from onedc_jax.models.folding import fold, folded
from onedc_jax.models.onedc import PARTS, OneDC, build, param_shapes


def load(name_or_path: str | Path = "tiny", arithmetic: str = "integer") -> Codec:
    """A codec from an embedded preset's name or the path of a model directory or training run.

    Its streams are exact on every device if the model has integers (`onedc quantize` makes them).
    A model without, or any with `arithmetic` "float", takes float32 on the CPU instead: its streams
    are for one kind of machine, and for research.

    Raises ModelError, in one line, where there is no model or its weights do not fit its
    configuration.
    """
    if arithmetic not in ("integer", "float"):
        raise ValueError(f'arithmetic must be "integer" or "float", not {arithmetic!r}')
    path = resolve(name_or_path)
    ready = lambda: _weights(path, arithmetic)
    weights = kept.of_folder(f"{arithmetic}-weights", path, ready)
    return _codec(str(name_or_path), _model(path), *weights)


def assembled(name: str, config: Mapping[str, Any], params: Any, programs: Programs) -> Codec:
    """The codec that `load` would make of a folder with this configuration and these parameters.

    Its programs are taken from `programs`, which codecs of one configuration may share.
    """
    model, networks = build(config), dict(params)
    entropy = networks.pop("entropy", None)
    codec = _codec(name, model, _ready(model, networks), entropy)
    networks, path = (replace(part, programs=programs) for part in (codec.networks, codec.path))
    return replace(codec, networks=networks, path=path)


def _codec(name: str, model: OneDC, params: Any, entropy: Any | None) -> Codec:
    """A codec of what `_ready` made; without the integers `entropy` in floating point."""
    model = folded(model)
    path = FloatPath.of(model, params) if entropy is None else IntegerPath.of(entropy)
    return Codec(name, Networks.of(model, params, jax.local_devices()[0]), path)


def _model(path: Path) -> OneDC:
    try:
        return build(read_config(path))
    except TypeError as error:
        raise ModelError(
            f"{path / 'model.json'}: not a configuration of this version ({error})"
        ) from error


def _weights(path: Path, arithmetic: str) -> tuple[Any, Any]:
    """The folder's parameters as `_ready` makes them, and its integers or None, if they fit.

    Integers that are not to be used are left out unasked: they may be those to be made anew.
    """
    model, params = _model(path), load_model(path)[1]
    missing = set(PARTS) - set(params)
    if missing:
        raise ModelError(f"{path}: not a whole codec, it lacks {', '.join(sorted(missing))}")
    networks = {name: part for name, part in params.items() if name != "entropy"}
    if not is_sealed(path, params):
        where = str(path / "model.json")
        check_tree(networks, built(where, lambda: param_shapes(model)))
    entropy = params.get("entropy") if arithmetic == "integer" else None
    if entropy is not None:
        integer.check(entropy, networks["codec"])
    return _ready(model, networks), entropy


def _ready(model: OneDC, networks: Mapping[str, Any]) -> Any:
    """Parameters in float32, for `folded(model)`."""
    return fold(model, jax.tree.map(lambda x: np.asarray(x, np.float32), networks))
