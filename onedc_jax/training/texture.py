"""Texture in stage 1: DISTS between squares of pixels, and a critic of the same features.

LPIPS is content with textures that no photograph has. DISTS compares what VGG's features are on
the whole of a square; the critic learns, place by place, by what the features of a decoded one
still differ from those of the original.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from onedc_jax.models.dists import DISTS, load_dists
from onedc_jax.models.heads import Critic
from onedc_jax.models.init import random_params
from onedc_jax.models.pixels import to_unit
from onedc_jax.training import losses

Array = jax.Array


class Texture(NamedTuple):
    """The terms that a stage's config.texture asks for.

    Fields:
      crop, images: pixels a side of the squares, and of how many images of a batch.
      file: DISTS' weights, see `load_dists`.
      weight: of DISTS in the objective.
      critic: the same of the critic; at 0 there is none.
      width: channels of its layers.
      dtype: of the convolutions of VGG and critic.
    """

    crop: int
    images: int
    file: str
    weight: float
    critic: float
    width: int
    dtype: str

    def load(self) -> dict:
        """The parameters of DISTS, which do not train. Raises ModelError as `load_dists` does."""
        return load_dists(self.file)

    def init_critic(self, seed: int) -> dict:
        """The critic's first parameters."""
        key = jax.random.key(0)

        def init(x):
            image, *features = self._features(DISTS().init(key, x, x)["params"], x)
            return Critic(self.width).init(key, image, features)

        square = jax.ShapeDtypeStruct((1, self.crop, self.crop, 3), jnp.float32)
        return random_params(jax.eval_shape(init, square)["params"], seed)

    def __call__(
        self, critic: dict | None, frozen: dict, key: Array, decoded: Array, image: Array
    ) -> tuple[Array, dict[str, Array]]:
        """What all this adds to the objective, and its terms by name.

        Args:
          critic, frozen: parameters, of `init_critic` (None without one) and of `load`.
          decoded, image: float32 [B, S, S, 3] in [-1, 1].
        """
        squares = losses.sampled(key, self.images, self.crop, decoded, image)
        fake, real = (self._features(frozen, to_unit(x)) for x in squares)
        distance = DISTS().apply({"params": frozen}, fake, real, method=DISTS.compare)
        terms = dict(dists=distance.mean())
        total = self.weight * terms["dists"]
        if critic is not None:
            terms |= critic_terms(Critic(self.width, self.dtype), critic, fake, real)
            total += terms["critic"] + self.critic * terms["adversarial"]
        return total, terms

    def _features(self, params: dict, x: Array) -> list[Array]:
        """The picture x in [0, 1] and what VGG sees in it, see `DISTS.features`."""
        return DISTS(self.dtype).apply({"params": params}, x, method=DISTS.features)


def critic_terms(module: Critic, params: dict, fake: list[Array], real: list[Array]) -> dict:
    """The two players' losses in one pass: each has gradients for its own side alone.

    `critic` wants the original's logit to be 1 above that of the decoded one at the same place,
    `adversarial` no difference: least squares (Mao et al., 2017) of pairs (Jolicoeur-Martineau,
    2018), whose gradients stay bounded however sure the critic is. `fake` and `real` are the image
    and its features.
    """

    def above(params, fake):
        """How far the original is above the decoded one, stage by stage."""
        judge = lambda x: module.apply({"params": params}, x[0], x[1:])
        return [r - f for r, f in zip(judge(real), judge(fake), strict=True)]

    mean = lambda gaps: sum(gap.mean() for gap in gaps) / len(gaps)
    stop = jax.lax.stop_gradient
    learned, left = above(params, stop(fake)), above(stop(params), fake)
    return dict(
        critic=mean([jnp.square(gap - 1) for gap in learned]),
        adversarial=mean([jnp.square(gap) for gap in left]),
        told_apart=mean(learned),
    )
