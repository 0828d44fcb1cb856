"""From a model folder to a codec."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from onedc_jax import kept
from onedc_jax.checkpoint import check_tree, is_sealed, load_model, read_config, resolve
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.networks import Networks
from onedc_jax.coding.path import FloatPath, IntegerPath
from onedc_jax.errors import ModelError
from onedc_jax.models import integer
from onedc_jax.models.folding import fold, folded
from onedc_jax.models.onedc import OneDC, build, param_shapes


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
    try:
        model = build(read_config(path))
    except TypeError as error:
        raise ModelError(
            f"{path / 'model.json'}: not a configuration of this version ({error})"
        ) from error
    params, entropy = kept.of_folder("weights", path, lambda: _weights(path, model))
    model = folded(model)
    if arithmetic == "integer" and entropy is not None:
        entropy_path = IntegerPath.of(entropy)
    else:
        entropy_path = FloatPath.of(model, params)
    networks = Networks.of(model, params, jax.local_devices()[0])
    return Codec(str(name_or_path), networks, entropy_path)


def _shapes(path: Path, model: OneDC) -> Any:
    """`param_shapes`; ModelError where a changed configuration has none."""
    try:
        return param_shapes(model)
    except Exception as error:  # whatever layers that do not fit raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(f"{path / 'model.json'}: its layers do not fit ({reason})") from error


def _weights(path: Path, model: OneDC) -> tuple[Any, Any]:
    """The folder's parameters in float32, for `folded(model)`, and its integers or None."""
    params = load_model(path)[1]
    missing = {"vae", "codec", "generator"} - set(params)
    if missing:
        raise ModelError(f"{path}: not a whole codec, it lacks {', '.join(sorted(missing))}")
    sealed = is_sealed(path, params)
    entropy = params.pop("entropy", None)
    if not sealed:
        check_tree(params, _shapes(path, model))
    if entropy is not None:
        integer.check(entropy, params["codec"])
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    return fold(model, params), entropy
