"""Windows over images: all of an image once, and no seam where they meet."""

import numpy as np
import pytest

from onedc_jax.coding.windows import BLOCK, SHAPES, cover, cut, joined, paste, spans


@pytest.mark.parametrize("size, halo", [(16, 1), (32, 7)])
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
