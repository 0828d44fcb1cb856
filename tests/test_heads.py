"""The heads of training: the reference's numbers, and who sees whom through the windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models.heads import RealismHead, SemanticHead, WindowAttention
from onedc_jax.models.init import shapes_of


def seeded(module, *args):
    """Normal parameters with a variance of 1 / fan-in."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    draw = lambda p: rng.standard_normal(p.shape, np.float32) / np.sqrt(np.prod(p.shape[:-1]))
    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("side", [8, 16])  # one window, and four
def test_logits_of_the_student_match_the_reference(side):
    arrays = golden("micro/token_predictor")
    tokens = arrays[f"sem_{side}"]
    head = SemanticHead(codes=64, width=128, heads=2)
    shapes = shapes_of(head, tokens)
    tensors = checkpoint("micro/token_predictor", "token_predictor.")
    params = weights.fill(shapes, tensors, weights.plain_name, ignore="_mask$")
    logits = jax.jit(head.apply)({"params": params}, tokens)
    assert relative_l2(logits, arrays[f"logits_{side}"]) < 1e-4


def test_logits_of_the_classifier_match_the_reference():
    arrays = golden("micro/teacher")
    middle = arrays["fake_bottleneck"]
    head = RealismHead()
    shapes = shapes_of(head, middle)
    tensors = checkpoint("micro/guidance", "guidance.")
    own = {name: value for name, value in tensors.items() if name.startswith("cls_pred_branch.")}
    params = weights.fill(shapes, own, weights.plain_name)
    assert relative_l2(jax.jit(head.apply)({"params": params}, middle), arrays["cls_logits"]) < 1e-4


def seen_by(module, x, row, column):
    """Which positions of x [1, H, W, C] the output at (row, column) depends on, bool [H, W]."""
    params = seeded(module, x)
    gradient = jax.jit(jax.grad(lambda x: module.apply(params, x)[0, row, column].sum()))(x)
    return np.any(np.asarray(gradient[0]) != 0, axis=-1)


@pytest.mark.parametrize(
    "shift, row, column, rows, columns",
    [
        (0, 5, 2, slice(4, 8), slice(0, 4)),
        (2, 4, 5, slice(2, 6), slice(2, 6)),
        (2, 7, 4, slice(6, 8), slice(2, 6)),  # half a window at the bottom, nothing of the top
        (2, 0, 7, slice(0, 2), slice(6, 8)),  # a quarter in the corner
    ],
)
def test_a_position_sees_its_window_and_nothing_else(shift, row, column, rows, columns):
    attend = WindowAttention(heads=2, window=4, shift=shift, positional=False, dtype=jnp.float32)
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 8), np.float32)
    expected = np.zeros((8, 8), bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(seen_by(attend, x, row, column), expected)


def test_maps_that_do_not_fit_are_refused():
    init = lambda head, side: jax.eval_shape(
        head.init, jax.random.key(0), jnp.zeros((1, side, 16, 64))
    )
    with pytest.raises(ValueError, match="multiples of 8 positions a side; got 12×16"):
        init(SemanticHead(), 12)
    with pytest.raises(ValueError, match="at least 8×8 positions; got 4×16"):
        init(RealismHead(), 4)
