"""Evaluation of a codec over files, with a codec that costs nothing."""

import json

import numpy as np
import pytest
from pictures import pictures
from PIL import Image

from onedc_jax import evaluate
from onedc_jax.errors import OneDCError


class Green:
    """A codec of one byte a pixel: it keeps the green channel."""

    name = "green"

    def encode(self, image: np.ndarray) -> bytes:
        return bytes(image.shape[:2]) + image[..., 1].tobytes()

    def decode(self, data: bytes) -> np.ndarray:
        green = np.frombuffer(data[2:], np.uint8).reshape(data[0], data[1], 1)
        return green.repeat(3, axis=2)


@pytest.fixture
def folder(tmp_path):
    for n, image in enumerate(pictures(2, 24, 20)[0]):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    return tmp_path


@pytest.fixture
def distances():
    return evaluate.Distances(nets=())


def test_rows_tell_the_price_and_the_distance(folder, distances):
    paths = [folder / "0.png", folder / "1.png"]
    targets = [folder / "out" / path.name for path in paths]
    rows = list(evaluate.evaluate(Green(), paths, distances, targets))
    for row, path, target in zip(rows, paths, targets, strict=True):
        assert row["bytes"] == 2 + 24 * 20
        assert row["bpp"] == pytest.approx(8 * 482 / 480)
        original, saved = (np.asarray(Image.open(p)) for p in (path, target))
        error = np.mean((original / 255 - saved / 255) ** 2)
        assert row["psnr"] == pytest.approx(-10 * np.log10(error), rel=1e-4)
        assert row["ms_ssim"] is None  # too small


def test_a_bad_file_is_a_row_too(folder, distances):
    rows = list(evaluate.evaluate(Green(), [folder / "broken.png", folder / "0.png"], distances))
    assert ["error" in row for row in rows] == [True, False]


def test_means_are_over_the_rows_that_have_a_value():
    rows = [{"psnr": 10.0, "ms_ssim": None}, {"psnr": 20.0, "ms_ssim": 0.5}, {"error": "x"}]
    assert evaluate.means(iter(rows)) == {"psnr": 15, "ms_ssim": 0.5}


def test_the_report_counts_failures_and_logs_rows(folder, tmp_path, monkeypatch, distances, capsys):
    monkeypatch.setattr(evaluate, "Distances", lambda: distances)
    out = tmp_path / "results.jsonl"
    assert evaluate.report(Green(), folder, out=out, limit=None, save_to=tmp_path / "new") == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"] for row in rows] == ["0.png", "1.png", "broken.png"]
    assert "mean" in capsys.readouterr().out


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(OneDCError, match="no images"):
        evaluate.report(Green(), tmp_path, out=None, limit=None, save_to=None)
