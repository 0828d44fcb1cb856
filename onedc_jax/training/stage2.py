"""Stage 2: the generator learns to make natural images, by distribution matching in latent space.

The codec stays as it is: what a stream holds does not change. Two players take turns: the generator
at some steps, the guidance (fake score and classifier, see `dmd`) after it at every step.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from onedc_jax.checkpoint import check_tree, load_model, read_config, resolve
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.heads import RealismHead
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.lpips import load_lpips
from onedc_jax.models.onedc import BLOCK, PARTS, OneDC, build, param_shapes
from onedc_jax.models.pixels import from_uint8
from onedc_jax.training import dmd, losses
from onedc_jax.training.optimizer import make_optimizer
from onedc_jax.training.scores import Scores
from onedc_jax.training.sources import check_scale
from onedc_jax.training.state import (
    Stage,
    TrainState,
    check_adapted,
    gradient_update,
    init_state,
    measured,
    merge,
    partition,
)


def make(config) -> Stage:
    """The stage of a configuration such as configs/stage2.py's.

    The state's `params` and `opt_state` are {"generator": .., "guidance": {"fake", "realism"}},
    each player with an optimizer of its own; `ema` is that of the generator alone.
    """
    path, dtype = config.init.model, config.dtype
    settings = read_config(resolve(path)) if path else config.model.to_dict()
    missing = [part for part in PARTS if part not in settings]
    if missing:
        raise ModelError(f"{path}: not a whole codec, it lacks {', '.join(missing)}")
    computed = dict(dtype=dtype, remat=config.remat)
    model = build(settings, **computed)
    scores = Scores(
        config.teacher.to_dict(),
        config.init.teacher,
        config.init.text,
        seed=config.seed,
        **computed,
    )
    _check_latents(config, model, scores)
    guidance = dmd.Guidance(
        scores.unet, RealismHead(**config.realism, dtype=dtype), config.guidance_scale
    )
    rare = -(-config.steps // config.generator_every)  # updates of the generator
    optimizers = dict(generator=make_optimizer(config, rare), guidance=make_optimizer(config))

    def init() -> tuple[TrainState, dict]:
        params, integers = _model_params(model, path, config.seed)
        trainable, frozen = partition({"generator": params.pop("generator")}, config.trainable)
        fake, score = scores.init(config.frozen_dtype)  # the fake score starts as the real one
        middle = jax.ShapeDtypeStruct((1, 8, 8, scores.unet.middle_width), jnp.float32)
        realism = random_params(shapes_of(guidance.head, middle), config.seed)
        guided = dict(fake=fake, realism=realism)
        parts = dict(
            generator=init_state(trainable["generator"], optimizers["generator"], config.ema),
            guidance=init_state(guided, optimizers["guidance"]),
        )
        state = TrainState(
            jnp.zeros((), jnp.int32),
            {name: part.params for name, part in parts.items()},
            {name: part.opt_state for name, part in parts.items()},
            dict(generator=parts["generator"].ema) if config.ema else None,
        )
        return state, dict(
            model=params | frozen,
            integers=integers,
            scores=score,
            lpips=load_perceptual(config.lpips.net, config.init.lpips),
        )

    def generate(generator, frozen, image, rate, origin=None, key=None) -> dict:
        """The training pass; what is not used of it is not computed, once compiled."""
        params, key = {"params": _whole(generator, frozen)}, key if config.sampled else None
        return model.apply(params, image, rate, origin=origin, key=key)

    def draws(key, shape) -> list[dmd.Draw]:
        """The five of a step: for distribution matching and the generator's classifier; for the
        fake score, the classifier on real latents and the classifier on generated ones."""
        ranges = [config.matching_steps] + 4 * [config.steps_of_noise]
        keys = jax.random.split(key, len(ranges))
        return [dmd.draw(k, shape, *range) for k, range in zip(keys, ranges, strict=True)]

    def generator_loss(generator, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        draw_key, shift_key, rate_key, origin_key, latent_key = jax.random.split(key, 5)
        rate, origin = losses.spread(rate_key, len(image)), losses.origins(origin_key, len(image))
        out = generate(generator, frozen, image, rate, origin, latent_key)
        terms = guidance.generator_terms(
            out["x0"],
            frozen["scores"]["real"],
            frozen["players"]["guidance"],
            *scores.context(frozen["scores"], batch),
            draws(draw_key, out["x0"].shape)[:2],
        )
        terms |= pixels(frozen, image, out["decoded"], shift_key)
        total = config.matching * terms["dm"] + config.adversarial * terms["adversarial"]
        total += config.pixel * (terms["l1"] + terms["lpips"])
        return total, terms | dict(generator_loss=total)

    def guidance_loss(players, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        draw_key, rate_key, origin_key, latent_key = jax.random.split(key, 4)
        rate, origin = losses.spread(rate_key, len(image)), losses.origins(origin_key, len(image))
        generator = frozen["players"]["generator"]
        out = generate(generator, frozen, image, rate, origin, latent_key)
        context, _ = scores.context(frozen["scores"], batch)
        terms = guidance.guidance_terms(
            out["x0"], out["latent"], players, context, draws(draw_key, out["x0"].shape)[2:]
        )
        total = terms["denoising"] + config.realism_weight * terms["realism"]
        return total, terms | dict(guidance_loss=total)

    def pixels(frozen, image, decoded, key) -> dict:
        return dict(
            l1=losses.l1(decoded, image),
            lpips=losses.perceptual(key, frozen["lpips"], decoded, image, **config.lpips),
            psnr=losses.psnr(decoded, image),
        )

    def restored(players, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        rate_key, shift_key = jax.random.split(key)
        rate = losses.spread(rate_key, len(image))
        out = generate(players["generator"], frozen, image, rate)
        return None, pixels(frozen, image, out["decoded"], shift_key)

    def panel(state, frozen, batch):
        image = from_uint8(batch["image"])
        rate = jnp.linspace(0.0, 1.0, len(image))
        out = generate(state.averaged["generator"], frozen, image, rate)
        return dict(original=image, decoded=out["image"])

    def export(state, frozen):
        return _whole(state.averaged["generator"], frozen) | frozen["integers"]

    def update(name: str, loss: Callable, **options) -> Callable:
        options |= dict(accumulate=config.accumulate)
        return of_player(name, gradient_update(loss, optimizers[name], **options))

    updates = dict(
        generator=update("generator", generator_loss, ema=config.ema, advance=0),
        guidance=update("guidance", guidance_loss),
    )
    due = lambda step, name: name == "guidance" or step % config.generator_every == 0
    return Stage(
        init=init,
        updates=updates,
        panel=panel,
        export=export,
        model=settings,
        due=due,
        measure=measured(restored, config.accumulate),
        block=BLOCK,
        check=partial(_check_begun, config, model, scores),
    )


def of_player(name: str, update: Callable) -> Callable:
    """An update of one player's part of the state, as one of the whole state.

    The loss finds the other players' parameters in frozen["players"].
    """

    def update_part(state: TrainState, frozen: dict, batch: dict, key: jax.Array):
        others = {other: params for other, params in state.params.items() if other != name}
        average = None if state.ema is None else state.ema.get(name)
        part = TrainState(state.step, state.params[name], state.opt_state[name], average)
        part, metrics = update(part, frozen | dict(players=others), batch, key)
        metrics[f"{name}_grad_norm"] = metrics.pop("grad_norm")
        ema = state.ema if part.ema is None else state.ema | {name: part.ema}
        params = state.params | {name: part.params}
        opt_state = state.opt_state | {name: part.opt_state}
        return TrainState(part.step, params, opt_state, ema), metrics

    return update_part


def load_perceptual(net: str, path: str) -> dict:
    """The parameters of LPIPS: of a model folder that was converted, or of the package's files."""
    if not path:
        return load_lpips(net)
    settings, params = load_model(resolve(path))
    found = settings.get("lpips", {}).get("net")
    if found != net:
        raise ModelError(f"{path}: holds LPIPS weights of {found}, config.lpips.net is {net}")
    return params["lpips"]


def _whole(generator: dict, frozen: dict) -> dict:
    """The model's parameters; `generator` are those of its own that are trained."""
    own = frozen["model"]
    return own | dict(generator=merge(generator, own["generator"]))


def _model_params(model: OneDC, path: str, seed: int) -> tuple[dict, dict]:
    """The parameters, and {"entropy": ..} with what `onedc quantize` made of them, or {}.

    Those integers stay true: nothing that they come from is trained here.
    """
    shapes = param_shapes(model)
    if not path:
        return random_params(shapes, seed), {}
    _, params = load_model(resolve(path))
    integers = {name: params.pop(name) for name in {"entropy"} & params.keys()}
    try:
        check_tree(params, shapes)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return params, integers


def _check_begun(config, model: OneDC, scores: Scores) -> list[str]:
    """`Stage.check`."""
    for name in ("model", "teacher"):
        if not config.init[name]:
            raise OneDCError(f"config.init.{name}: would be random; name a folder")
    remedy = f"convert {config.init.model} without --merge-lora, or choose what else trains"
    check_adapted(model, config.trainable, remedy)
    if config.data.captions and scores.text is None:
        return ["config.data.captions: the teacher knows no captions, nothing is guided"]
    wanted = scores.text is not None and not config.data.captions
    return ["no config.data.captions: guided by no captions"] * wanted


def _check_latents(config, model: OneDC, scores: Scores) -> None:
    """Raises OneDCError where the diffusion model, the codec's latents and the crops do not fit."""
    teacher = config.init.teacher or "config.teacher"
    channels = model.vae.latent_channels
    if scores.unet.out_channels != channels:
        raise ModelError(
            f"{teacher}: made for latents of {scores.unet.out_channels} channels, those of the "
            f"codec's VAE have {channels}"
        )
    check_scale(config.init.teacher, model.latent_scale)
    smallest = dmd.smallest_crop(len(scores.unet.widths))
    if config.data.crop < smallest:
        raise OneDCError(
            f"config.data.crop={config.data.crop}: the classifier of stage 2 needs {smallest} "
            f"pixels with a diffusion model of {len(scores.unet.widths)} levels"
        )
