"""The tables are frozen: integers that add up, close to the Gaussians, equal to the file."""

import hashlib
import math

import numpy as np
import pytest

from onedc_jax.coding import tables

STEP = math.log(64 / 0.11) / 255


def scale(level: int) -> float:
    return math.exp(math.log(0.11) + level * STEP)


def test_building_again_gives_the_file():
    with np.load(tables._PATH) as file:
        stored = dict(file)
    built = tables.build()
    assert stored.keys() == built.keys()
    for name, array in built.items():
        assert array.dtype == stored[name].dtype, name
        np.testing.assert_array_equal(array, stored[name], err_msg=name)


def test_the_tables_are_those_of_version_1():
    digest = hashlib.sha256()
    for frequencies in tables.load().frequencies:
        digest.update(frequencies.astype("<u4").tobytes())
    digest.update(tables.load().thresholds.astype("<f4").tobytes())
    # Not to be updated: another digest means that streams written before cannot be read.
    assert digest.hexdigest() == "1eac5fe2df4a8d7d6324d9019dbcab6cd6163aee5f27c9f6d8f2f4c601d78ffa"


def test_frequencies_are_complete_distributions():
    loaded = tables.load()
    assert len(loaded.frequencies) == len(loaded.escape) == tables.LEVELS
    for escape, frequencies in zip(loaded.escape, loaded.frequencies, strict=True):
        assert frequencies.dtype == np.uint32
        assert len(frequencies) == escape + 1
        assert frequencies.sum(dtype=np.uint64) == 2**tables.PRECISION
        assert frequencies.min() >= 1


def test_frequencies_are_symmetric_and_fall_with_the_magnitude():
    for frequencies in tables.load().frequencies:
        negative, positive = frequencies[1:-1:2], frequencies[2:-1:2]
        np.testing.assert_array_equal(negative, positive)
        assert np.all(np.diff(positive.astype(np.int64)) <= 0)
        # 0 holds what the rounding of all the others left: flat tops may dip by that much.
        assert frequencies[0] >= positive[0] - 16


@pytest.mark.parametrize("level", [0, 1, 60, 128, 200, 255])
def test_frequencies_are_gaussian(level):
    frequencies = tables.load().frequencies[level]
    values = np.arange(len(frequencies[2:-1:2])) + 1
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / scale(level) / math.sqrt(2)))
    expected = (cdf(-values + 0.5) - cdf(-values - 0.5)) * 2**tables.PRECISION
    actual = frequencies[2:-1:2]
    large = expected >= 16
    assert np.all(np.abs(actual[large] - expected[large]) <= 0.5 + 1e-6)
    assert np.all(actual[~large] == 16)


def test_the_narrowest_table_is_nearly_free():
    bits_of_a_photo = -math.log2(tables.load().frequencies[0][0] / 2**24) * 768 * 512 / 2
    assert bits_of_a_photo < 4


def test_levels_follow_the_logarithm():
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(math.log(0.05), math.log(130), 20_000)).astype(np.float32)
    exact = (np.log(scales.astype(np.float64)) - math.log(0.11)) / STEP
    inside = np.abs(exact - np.round(exact)) > 1e-4  # at an edge the float32 threshold decides
    expected = np.clip(np.floor(exact), 0, 255)
    np.testing.assert_array_equal(tables.scale_index(scales)[inside], expected[inside])


def test_levels_begin_at_their_thresholds():
    thresholds = tables.load().thresholds
    assert thresholds.dtype == np.float32 and thresholds.shape == (256,)
    assert thresholds[0] == np.float32(0.11) and thresholds[255] == 64
    below = np.nextafter(thresholds, np.float32(0))
    np.testing.assert_array_equal(tables.scale_index(thresholds), np.arange(256))
    np.testing.assert_array_equal(tables.scale_index(below), np.maximum(np.arange(256) - 1, 0))


def test_any_float_has_a_level():
    scales = np.array([[np.nan, -np.inf, -3.0, 0.0], [1e-30, 0.1, 64.5, np.inf]], np.float32)
    np.testing.assert_array_equal(tables.scale_index(scales), [[0, 0, 0, 0], [0, 0, 255, 255]])
