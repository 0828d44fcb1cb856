"""The input pipeline: what batch k holds, whoever asks for it and whenever."""

import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onedc_jax.data import ImageFolder, RandomCrops, SourceCrops, batches
from onedc_jax.data.examples import share
from onedc_jax.errors import OneDCError

# A mixture as the paper's, at a sixteenth of its size.
MIXTURE = dict(
    source_crop=64,
    views=(
        dict(resize=32, chance=0.2),
        dict(crop=32, chance=0.5),
        dict(crop=64, chance=0.3, batch=0.5),
    ),
    batch_size=8,
)


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
        path.with_suffix(".txt").write_text(f"photograph {n}\n")
    return root


def take_whole(folder, n, **options):
    options = {"seed": 1, "batch_size": 4, "crop": 32} | options
    it = batches(folder, **options)
    taken = list(islice(it, n))
    it.close()
    return taken


def take(folder, n, **options):
    return np.stack([batch["image"] for batch in take_whole(folder, n, **options)])


def letters(caption):
    return np.frombuffer(caption.encode().ljust(77), np.uint8).astype(np.int32)


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


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "options", [{"batch_size": 8, "crops_per_image": 2}, MIXTURE], ids=["crops", "mixture"]
)
def test_processes_hold_consecutive_rows_of_the_same_batch(folder, options, count):
    whole = take_whole(folder, 6, start=3, **options)
    parts = [take_whole(folder, 6, start=3, shard=(n, count), **options) for n in range(count)]
    for batch, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        together = np.concatenate([piece["image"] for piece in pieces])
        np.testing.assert_array_equal(together, batch["image"])


def test_a_mixture_has_its_shapes_and_resumes(folder):
    whole = take_whole(folder, 24, **MIXTURE)
    shapes = {batch["image"].shape for batch in whole}
    assert shapes == {(8, 32, 32, 3), (4, 64, 64, 3)}
    for batch, again in zip(whole[9:], take_whole(folder, 15, start=9, **MIXTURE), strict=True):
        np.testing.assert_array_equal(batch["image"], again["image"])


def test_a_smaller_batch_moves_no_other_step(folder):
    """The images of a step are those that it has without any mixture."""
    options = dict(batch_size=8, tokenize=letters)
    mixture = take_whole(folder, 12, **MIXTURE | options)
    plain = take_whole(folder, 12, crop=16, **options)
    assert len({len(batch["caption"]) for batch in mixture}) == 2
    for batch, other in zip(mixture, plain, strict=True):
        rows = len(batch["caption"])
        np.testing.assert_array_equal(batch["caption"], other["caption"][:rows])


def test_captions_come_with_each_crop(folder):
    batch = take_whole(folder, 1, tokenize=letters, crops_per_image=2)[0]["caption"]
    assert batch.shape == (4, 77) and batch.dtype == np.int32
    texts = [bytes(row.astype(np.uint8)).decode().strip() for row in batch]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert all(text.startswith("photograph ") for text in texts)


def test_several_crops_of_an_image(folder):
    flat = take(folder, 2, crop=16, crops_per_image=2).reshape(8, -1)
    assert len(np.unique(flat, axis=0)) == 8


def test_worker_processes_change_nothing(folder):
    np.testing.assert_array_equal(take(folder, 3, workers=1), take(folder, 3))


def test_the_cache_changes_nothing(folder):
    source = ImageFolder(folder, cache_gib=15_000 / 2**30)  # room for a few images, not for all
    np.testing.assert_array_equal(take(source, 6), take(folder, 6))
    assert 0 < len(source._cache) < 12
    assert not pickle.loads(pickle.dumps(source))._cache


@pytest.mark.parametrize("shape", [(40, 90), (32, 32), (20, 50), (1, 1), (1, 300)])
@pytest.mark.parametrize(
    "view",
    [
        RandomCrops(32, count=4),
        SourceCrops(32, side=64, source=64, count=4),
        SourceCrops(32, side=32, source=64, count=4),
    ],
    ids=["scaled", "reduced", "cropped"],
)
def test_any_image_fills_a_crop(view, shape):
    crops = view(np.full((*shape, 3), 77, np.uint8), np.random.default_rng(0))
    assert crops.shape == (4, 32, 32, 3)
    assert np.all(crops == 77)


def test_whole_size_crops_are_the_images_own_pixels():
    image = np.arange(50 * 40 * 3, dtype=np.uint16).reshape(50, 40, 3).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3))[:, :, 0]
    crops = RandomCrops(32, count=8, scale=(1.0, 1.0))
    for crop in crops(image, np.random.default_rng(0)):
        flipped = crop[:, ::-1]
        assert any((windows == c).all((2, 3, 4)).any() for c in (crop, flipped))


def test_half_scale_crops_show_four_times_the_area():
    ramp = np.broadcast_to(np.arange(0, 240, 2, np.uint8)[:, None, None], (120, 120, 3))
    crop = RandomCrops(32, scale=(0.5, 0.5))(ramp, np.random.default_rng(0))[0]
    assert int(crop[-1, 0, 0]) - int(crop[0, 0, 0]) == pytest.approx(2 * 2 * 31, abs=2)


@pytest.mark.parametrize("side, seen", [(80, 80), (40, 40)])
def test_views_of_a_small_image_show_it_enlarged(side, seen):
    """40 rows of brightness 0, 6, ... fill a source of 80: half as many of them fill 40."""
    ramp = np.broadcast_to(np.arange(0, 240, 6, np.uint8)[:, None, None], (40, 90, 3))
    crop = SourceCrops(40, side, source=80)(ramp, np.random.default_rng(0))[0]
    assert int(crop[-3, 0, 0]) - int(crop[2, 0, 0]) == pytest.approx(35 * 6 * seen / 80, abs=4)


def test_unreadable_images_are_replaced_and_counted(folder, tmp_path):
    for n, path in enumerate(sorted(folder.rglob("*.*"))[:4]):
        data = path.read_bytes()
        (tmp_path / f"{n}{path.suffix}").write_bytes(data if n else data[: len(data) // 2])
    source = ImageFolder(tmp_path)
    np.testing.assert_array_equal(take(source, 4, batch_size=2), take(tmp_path, 4, batch_size=2))
    assert [Path(name).stem for name in source.unreadable] == ["0"]


def test_nothing_but_unreadable_images_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(OneDCError, match="unreadable"):
        take(tmp_path, 1)


def test_a_name_that_is_not_utf_8_has_its_share():
    assert 0 <= share(os.fsdecode(b"caf\xe9.png")) < 1
    assert share("café.png") == pytest.approx(0.2507873)  # the same for good


def test_files_are_weighed_by_pattern(folder):
    names = [path.parent.name for path in ImageFolder(folder, keep={"sea/*": 2}).paths]
    assert (names.count("sea"), names.count("hills")) == (12, 6)
    assert len(ImageFolder(folder, keep={"sea/*": 0})) == 6
    half = ImageFolder(folder, keep={"*.png": 1, "*": 0.5})
    assert 4 < len(half) < 12
    assert half.paths == ImageFolder(folder, keep={"*.png": 1, "*": 0.5}).paths


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3, "crops_per_image": 2},
        {"batch_size": 0},
        {"crop": None},
        {"scale": (1.0, 0.5)},
        MIXTURE | {"batch_size": 5},
        MIXTURE | {"shard": (0, 8)},
        MIXTURE | {"source_crop": 48},
        MIXTURE | {"views": (dict(resize=32, chance=0.4), dict(crop=32, chance=0.4))},
        MIXTURE | {"views": (dict(resize=32, crop=32),)},
        MIXTURE | {"views": (dict(crop=32, change=1.0),)},
    ],
)
def test_impossible_sizes_are_refused(folder, options):
    with pytest.raises(OneDCError):
        take(folder, 1, **options)


def test_a_batch_that_does_not_divide_names_both_numbers(folder):
    with pytest.raises(OneDCError, match=r"batch_size=2: .* 4 crops of .*\(crops_per_image\)"):
        take(folder, 1, batch_size=2, crops_per_image=4)


def test_folders_without_images_are_refused(folder, tmp_path):
    for root, options in ((tmp_path / "none", {}), (tmp_path, {}), (folder, {"keep": {"*": 0}})):
        with pytest.raises(OneDCError):
            ImageFolder(root, **options)
