"""The input pipeline: what batch k holds, whoever asks for it and whenever."""

import pickle
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from onedc_jax.data import ImageFolder, RandomCrops, batches
from onedc_jax.errors import OneDCError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve photographs of 40 to 60 pixels, in two folders and three formats."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(12):
        height, width = rng.integers(40, 60, 2)
        path = root / ("sea" if n % 2 else "hills") / f"{n:02d}.{('png', 'webp', 'jpg')[n % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return root


def take(folder, n, **options):
    options = {"seed": 1, "batch_size": 4, "crop": 32} | options
    it = batches(folder, **options)
    taken = [batch["image"] for batch in islice(it, n)]
    it.close()
    return np.stack(taken)


def test_batches_are_uint8_squares(folder):
    taken = take(folder, 2)
    assert taken.shape == (2, 4, 32, 32, 3) and taken.dtype == np.uint8


def test_a_batch_depends_on_seed_and_number_alone(folder):
    whole = take(folder, 7)
    np.testing.assert_array_equal(take(folder, 2, start=5, threads=1), whole[5:])
    assert not np.array_equal(take(folder, 1, seed=2)[0], whole[0])


def test_epochs_and_crops_differ(folder):
    flat = take(folder, 9, crop=16).reshape(36, -1)
    assert len(np.unique(flat, axis=0)) == 36


def test_processes_share_the_global_batch(folder):
    whole = take(folder, 3, start=2)
    parts = [take(folder, 3, start=2, shard=(n, 2)) for n in range(2)]
    np.testing.assert_array_equal(np.stack(parts, 2).reshape(whole.shape), whole)


def test_several_crops_of_an_image(folder):
    flat = take(folder, 2, crop=16, crops_per_image=2).reshape(8, -1)
    assert len(np.unique(flat, axis=0)) == 8


def test_worker_processes_change_nothing(folder):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    np.testing.assert_array_equal(take(folder, 3, workers=1), take(folder, 3))


def test_the_cache_changes_nothing(folder):
    source = ImageFolder(folder, cache_gib=15_000 / 2**30)  # room for a few images, not for all
    np.testing.assert_array_equal(take(source, 6), take(folder, 6))
    assert 0 < len(source._cache) < 12
    assert not pickle.loads(pickle.dumps(source))._cache


@pytest.mark.parametrize("shape", [(40, 90), (32, 32), (20, 50), (1, 1)])
def test_any_image_fills_a_crop(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    crops = RandomCrops(32, count=4).random_map(image, np.random.default_rng(0))
    assert crops.shape == (4, 32, 32, 3)
    assert np.all(crops == 77)


def test_whole_size_crops_are_the_images_own_pixels():
    image = np.arange(50 * 40 * 3, dtype=np.uint16).reshape(50, 40, 3).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3))[:, :, 0]
    crops = RandomCrops(32, count=8, scale=(1.0, 1.0))
    for crop in crops.random_map(image, np.random.default_rng(0)):
        flipped = crop[:, ::-1]
        assert any((windows == c).all((2, 3, 4)).any() for c in (crop, flipped))


def test_half_scale_crops_show_four_times_the_area():
    ramp = np.broadcast_to(np.arange(0, 240, 2, np.uint8)[:, None, None], (120, 120, 3))
    crop = RandomCrops(32, scale=(0.5, 0.5)).random_map(ramp, np.random.default_rng(0))[0]
    assert int(crop[-1, 0, 0]) - int(crop[0, 0, 0]) == pytest.approx(2 * 2 * 31, abs=2)


def test_unreadable_images_are_replaced_and_counted(folder, tmp_path):
    for n, path in enumerate(sorted(folder.rglob("*.*"))[:4]):
        data = path.read_bytes()
        (tmp_path / f"{n}{path.suffix}").write_bytes(data if n else data[: len(data) // 2])
    source = ImageFolder(tmp_path)
    np.testing.assert_array_equal(take(source, 4, batch_size=2), take(tmp_path, 4, batch_size=2))
    assert [path.stem for path in source.unreadable] == ["0"]


def test_nothing_but_unreadable_images_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(OneDCError, match="unreadable"):
        take(tmp_path, 1)


def test_files_are_weighed_by_pattern(folder):
    names = [path.parent.name for path in ImageFolder(folder, keep={"sea/*": 2}).paths]
    assert (names.count("sea"), names.count("hills")) == (12, 6)
    assert len(ImageFolder(folder, keep={"sea/*": 0})) == 6
    half = ImageFolder(folder, keep={"*.png": 1, "*": 0.5})
    assert 4 < len(half) < 12
    assert half.paths == ImageFolder(folder, keep={"*.png": 1, "*": 0.5}).paths


@pytest.mark.parametrize(
    "options", [{"batch_size": 3, "crops_per_image": 2}, {"batch_size": 0}, {"scale": (1.0, 0.5)}]
)
def test_impossible_sizes_are_refused(folder, options):
    with pytest.raises(OneDCError):
        take(folder, 1, **options)


def test_folders_without_images_are_refused(folder, tmp_path):
    for root, options in ((tmp_path / "none", {}), (tmp_path, {}), (folder, {"keep": {"*": 0}})):
        with pytest.raises(OneDCError):
            ImageFolder(root, **options)
