"""The diffusion model that stage 2 learns from, and the captions that it listens to."""

from typing import Any

import jax
import jax.numpy as jnp

from onedc_jax.checkpoint import check_tree, load_model, read_config, resolve
from onedc_jax.errors import ModelError
from onedc_jax.models.clip import TextEncoder, empty_caption
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.onedc import hashable
from onedc_jax.models.score import context_width
from onedc_jax.models.unet import UNet
from onedc_jax.training.sources import cast

Array = jax.Array


class Scores:
    """The real score's U-Net and the text encoder, if it has one.

    `teacher` and `text` are model folders. The teacher's is {"unet": fields, "text": fields} with
    the parameters {"unet", "text"}: without "text" it was trained without captions and looks at a
    context of zeros. The text encoder's parameters may be in `text` instead. With no teacher its
    configuration is `settings` and its parameters are random.
    """

    def __init__(
        self, settings: dict, teacher: str, text: str, *, seed: int, dtype: str, remat: str
    ):
        self._teacher, self._text_from, self._seed = teacher, text, seed
        settings = read_config(resolve(teacher)) if teacher else settings
        if "unet" not in settings:
            raise ModelError(f"{teacher}: no diffusion model, it has no 'unet'")
        self.unet = UNet(**hashable(settings["unet"]) | dict(dtype=dtype, remat=remat))
        self.text = None
        if settings.get("text") is not None:
            self.text = TextEncoder(**settings["text"] | dict(dtype=dtype))

    def init(self, frozen_dtype: str) -> tuple[Any, dict[str, Any]]:
        """The U-Net's parameters, float32, and what is frozen, in `frozen_dtype`.

        That is {"real": the U-Net's parameters, "text": the encoder's}. Raises ModelError where a
        folder's parameters do not fit its configuration.
        """
        loaded = load_model(resolve(self._teacher))[1] if self._teacher else {}
        real = loaded.get("unet")
        if real is None:
            width = self.text.width if self.text else TextEncoder.width
            real = random_params(self._unet_shapes(width), self._seed)
        try:
            check_tree(real, self._unet_shapes(context_width(real)))
        except (ModelError, KeyError) as error:
            raise ModelError(f"{self._teacher}: {error}") from error
        real, frozen = cast(real, "float32"), dict(real=cast(real, frozen_dtype))
        if self.text is None:
            return real, frozen
        text = self._text_params(loaded)
        if self.text.width != context_width(real):
            raise ModelError(
                f"{self._teacher}: looks at text features of width {context_width(real)}, the text "
                f"encoder makes {self.text.width}"
            )
        return real, frozen | dict(text=cast(text, frozen_dtype))

    def context(self, frozen: dict, batch: dict) -> tuple[Array, Array | None]:
        """What the U-Nets look at, [B, N, D], and the context of no caption, [1, N, D].

        `batch` may hold "caption", int [B, N]. Without, or where the U-Net knows no captions, all
        have the context of no caption, and the second is None: there is nothing to be guided by.
        """
        empty = jnp.zeros((1, 1, context_width(frozen["real"])))
        if self.text is not None:
            features = lambda ids: self.text.apply({"params": frozen["text"]}, ids)[0]
            # Anew at each step: what is frozen is what folders hold, the same on any machine.
            empty = features(self._no_caption())
            if "caption" in batch:
                return features(batch["caption"]), empty
        return jnp.broadcast_to(empty, (len(batch["image"]), *empty.shape[1:])), None

    def _no_caption(self) -> Array:
        return empty_caption(self.text.vocabulary, self.text.length)[None]

    def _unet_shapes(self, width: int) -> dict:
        x = jax.ShapeDtypeStruct((1, 8, 8, self.unet.out_channels), jnp.float32)
        context = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        return shapes_of(self.unet, x, t, context)

    def _text_params(self, loaded: dict) -> dict:
        shapes = shapes_of(self.text, self._no_caption())
        path = self._teacher
        if "text" in loaded:
            params = loaded["text"]
        elif self._text_from:
            path = self._text_from
            _, loaded = load_model(resolve(path))
            if "text" not in loaded:
                raise ModelError(f"{path}: no text encoder, only {', '.join(sorted(loaded))}")
            params = loaded["text"]
        elif self._teacher:
            raise ModelError(
                f"{path}: learned with captions; give its text encoder too (--config.init.text=DIR)"
            )
        else:
            return random_params(shapes, self._seed)
        try:
            check_tree(params, shapes)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return params
