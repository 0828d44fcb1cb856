"""Windows over images: all of an image once, and no seam where they meet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onedc_jax.coding import networks
from onedc_jax.coding.windows import BLOCK, SHAPES, cover, cut, joined, paste, spans
from onedc_jax.models.layers import GroupNorm
from onedc_jax.models.padding import within


@pytest.mark.parametrize("size, halo", [(8, 1), (16, 1), (16, 3), (32, 3)])
def test_windows_answer_for_all_of_an_axis_and_see_enough_around_it(size, halo):
    for length in range(1, 300):
        found = spans(length, size, halo)
        assert [s.first for s in found] == [0, *(s.last for s in found[:-1])]
        assert found[-1].last == length
        for span in found:
            assert span.stop - span.start == min(size, length)
            assert span.start == 0 or span.first - span.start >= halo
            assert span.stop == length or span.stop - span.last >= halo
    assert len(spans(length, size, halo)) <= -(-length // (size - 2 * halo))


def test_the_smallest_array_that_holds_an_image():
    shapes = [cover(rows, columns, SHAPES, 1)[0] for rows, columns in
              [(1, 1), (8, 8), (8, 9), (9, 8), (9, 9), (3, 16), (17, 2)]]  # fmt: skip
    assert shapes == [(8, 8), (8, 8), (8, 12), (12, 8), (16, 16), (16, 16), (16, 16)]


@pytest.mark.parametrize("rows, columns", [(3, 5), (18, 40), (47, 16)])
def test_cut_and_pasted_a_map_is_itself(rows, columns):
    whole = np.random.default_rng(0).integers(0, 99, (4 * rows, 4 * columns, 2))
    shape, windows = cover(rows, columns, SHAPES, 1)
    copy = np.zeros_like(whole)
    for window in windows:
        part = cut(whole, window, shape, 4)
        assert part.shape == (1, 4 * shape[0], 4 * shape[1], 2)
        paste(copy, part[0], window, 4)
    np.testing.assert_array_equal(copy, whole)


def test_windows_that_agree_make_the_image_that_they_are_cut_from():
    image = np.random.default_rng(0).integers(0, 256, (18 * BLOCK, 33 * BLOCK, 3), np.uint8)
    shape, windows = cover(18, 33, SHAPES, 1)
    assert len(windows) == 6
    tile = lambda window: cut(image, window, shape, BLOCK)[0]
    np.testing.assert_array_equal(joined(windows, tile), image)


def test_where_windows_differ_one_fades_into_the_other():
    """Each window is of one grey: beside the step between two there is no edge."""
    windows = cover(30, 30, SHAPES, 1)[1]
    grey = {window: 40 * i for i, window in enumerate(windows)}
    image = joined(windows, lambda window: np.full((1024, 1024, 3), grey[window], np.uint8))
    steps = [np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1)]
    assert max(steps) <= 3
    assert (image[0, 0, 0], image[-1, -1, 0]) == (0, 120)


class Norms(nn.Module):
    """A norm over the whole image, twice; between them the image gets larger values."""

    @nn.compact
    def __call__(self, x):
        x = GroupNorm(2, name="first")(x)
        return GroupNorm(2, name="second")(jnp.exp(x))


def test_norms_of_all_windows_have_one_set_of_statistics():
    """With those that it had of all windows, a norm makes of each what it makes of the whole."""
    whole = np.random.default_rng(0).normal(size=(1, 2, 6, 4)).astype("f4")
    whole[:, :, 4:] += 3
    whole = jnp.asarray(whole)
    params = Norms().init(jax.random.key(0), whole)

    def run(x, statistics=None):
        seen, sizes = [], jnp.array([x.shape[1:3]])
        with within(sizes, x.shape[1:3], seen, statistics):
            return Norms().apply(params, x), seen

    windows = whole[:, :, :4], whole[:, :, 4:]
    own = [run(x)[1] for x in windows]
    statistics = networks._mean(own, [(2, 4), (2, 2)])
    wanted = run(whole)[1]
    for found, moment in zip(statistics[0], wanted[0], strict=True):
        np.testing.assert_allclose(found, moment, rtol=1e-5, atol=1e-6)
    together = np.concatenate([run(x, wanted)[0] for x in windows], axis=2)
    np.testing.assert_allclose(together, run(whole)[0], rtol=1e-4, atol=1e-5)
