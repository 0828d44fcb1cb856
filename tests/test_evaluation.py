"""Rows of a report: measured once, kept, and found again."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from green import Distances, Failing, Green, Shrinking, distance
from pictures import photo, pictures
from PIL import Image

from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import baselines, results
from onedc_jax.evaluation.results import Folder
from onedc_jax.evaluation.run import measure, run

HEIGHT, WIDTH = 24, 20


@pytest.fixture
def folder(tmp_path):
    """A folder of two images."""
    path = tmp_path / "images"
    path.mkdir()
    for n, image in enumerate(pictures(2, HEIGHT, WIDTH)[0]):
        Image.fromarray(image).save(path / f"{n}.png")
    return path


def rows_of(codecs, images, out, limit=None) -> list[dict]:
    with Folder(out) as report:
        found = results.find([images], limit)
        return list(run(codecs, found, distance, Distances.names, report))


def test_a_row_tells_the_price_and_the_distance():
    image = pictures(1, HEIGHT, WIDTH)[0][0]
    row, data = measure(Green(), image, 64, distance)
    assert row["bytes"] == len(data) == 2 + HEIGHT * WIDTH + 3
    assert row["bpp"] == pytest.approx(8 * len(data) / (HEIGHT * WIDTH))
    assert row["psnr"] == distance(image, Green().decode(data))["psnr"]
    assert row["ms_ssim"] is None
    assert {"width", "height", "encode_s", "decode_s", "peak_mb"} <= row.keys()


def test_a_codec_that_returns_another_size_is_named():
    image = pictures(1, HEIGHT, WIDTH)[0][0]
    with pytest.raises(OneDCError, match=r"shrink: returned uint8 \[23, 20, 3\]"):
        measure(Shrinking("shrink"), image, 1, distance)


def test_what_is_there_is_not_coded_again(folder, tmp_path):
    out, codec = tmp_path / "out", Green()
    first = rows_of([codec], folder, out)
    assert len(first) == codec.coded == 6
    assert rows_of([codec], folder, out) == first and codec.coded == 6
    for row in first:
        assert (out / row["file"]).stat().st_size == row["bytes"]


def test_another_version_or_another_image_is_coded_anew(folder, tmp_path):
    out = tmp_path / "out"
    rows_of([Green()], folder, out)
    newer = Green(version="2")
    rows_of([newer], folder, out)
    assert newer.coded == 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "0.png")
    changed = Green()
    rows_of([changed], folder, out)
    assert changed.coded == 3


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"cut")])
def test_a_row_without_its_file_is_coded_again(folder, tmp_path, damage):
    out, codec = tmp_path / "out", Green(qualities=(1,))
    first = rows_of([codec], folder, out)
    damage(out / first[0]["file"])
    rows_of([codec], folder, out)
    assert codec.coded == 3


def test_a_new_metric_is_measured_on_the_files_that_are_there(folder, tmp_path):
    out, codec = tmp_path / "out", Green(qualities=(1,))
    first = rows_of([codec], folder, out)
    asked = []

    def more(a, b, names):
        asked.append(names)
        return {"new": float(np.abs(a - b.astype(float)).mean())}

    with Folder(out) as report:
        rows = run([codec], results.find([folder]), more, (*Distances.names, "new"), report)
        next(rows)  # and is cut off
    with Folder(out) as report:
        rows = list(run([codec], results.find([folder]), more, (*Distances.names, "new"), report))
    assert codec.coded == 2 and all(row.pop("new") > 0 for row in rows)
    assert rows == first and asked == [["new"], ["new"]]


def test_of_a_row_that_was_replaced_the_last_stays(folder, tmp_path):
    file = tmp_path / "out" / "results.jsonl"
    rows = rows_of([Green(qualities=(1,))], folder, tmp_path / "out")
    newer = rows[0] | {"psnr": 1.0}
    with open(file, "a") as lines:
        lines.write(json.dumps(newer) + "\n" + json.dumps(rows[1] | {"error": "x"}) + "\n")
    assert results.read(file) == [rows[1], newer]
    with Folder(tmp_path / "out"):
        assert [json.loads(line) for line in file.read_text().splitlines()] == [rows[1], newer]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems have no such names")
def test_a_name_that_is_not_utf_8_is_measured(folder, tmp_path):
    name = os.fsdecode(b"\xe9.png")
    (folder / "0.png").rename(folder / name)
    (folder / "1.png").write_bytes(b"none")
    first = rows_of([Green()], folder, tmp_path / "out")
    again = rows_of([mended := Green()], folder, tmp_path / "out")
    assert mended.coded == 0 and {row["image"] for row in again} == {"1.png", name}
    assert len(first) == len(again) == 4


def test_a_run_that_was_cut_off_goes_on(folder, tmp_path):
    out, codec = tmp_path / "out", Green()
    with Folder(out) as report:
        rows = run([codec], results.find([folder]), distance, Distances.names, report)
        next(rows), next(rows)
    with open(out / "results.jsonl", "a") as file:
        file.write('{"image": "1.p')
    assert len(rows_of([codec], folder, out)) == codec.coded == 6


def test_a_failure_is_a_row_and_is_tried_again(folder, tmp_path):
    Image.new("RGB", (40, 24)).save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"none")
    out = tmp_path / "out"
    rows = rows_of([Failing(), Green("good", qualities=(None,))], folder, out)
    errors = [(row["image"], row.get("codec")) for row in rows if "error" in row]
    assert errors == [("broken.png", None), *[("wide.png", "green")] * 3]
    assert len(rows) == 1 + 3 * 4
    mended = Green()
    again = rows_of([mended, Green("good", qualities=(None,))], folder, out)
    assert mended.coded == 3 and sum("error" in row for row in again) == 1


def test_numbers_that_json_lacks_come_back(folder, tmp_path):
    Image.new("RGB", (20, 24), (9, 9, 9)).save(folder / "0.png")
    first = rows_of([Green(qualities=(1,))], folder, tmp_path / "out", limit=1)
    again = rows_of([Green(qualities=(1,))], folder, tmp_path / "out", limit=1)
    assert float(first[0]["psnr"]) == float(again[0]["psnr"]) == np.inf


def test_a_folder_of_something_else_is_refused(tmp_path, folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.jsonl").write_text("{}\n")
    with pytest.raises(OneDCError, match="holds something else"):
        Folder(tmp_path / "mine")
    with pytest.raises(OneDCError, match="is a file"):
        Folder(folder / "0.png")
    with pytest.raises(OneDCError, match="lies in the folder of images"):
        Folder(folder / "out", [folder])
    assert not (folder / "out").exists() and len([*(tmp_path / "mine").iterdir()]) == 1


def test_a_damaged_line_is_named_and_nothing_is_lost(folder, tmp_path):
    rows_of([Green()], folder, tmp_path / "out")
    file = tmp_path / "out" / "results.jsonl"
    damaged = "not JSON\n" + file.read_text()
    file.write_text(damaged)
    with pytest.raises(OneDCError, match="line 1 is no JSON object"):
        Folder(tmp_path / "out")
    assert file.read_text() == damaged


def test_images_are_found_in_several_folders(tmp_path, folder):
    single = tmp_path / "single.png"
    Image.new("RGB", (8, 8)).save(single)
    names = [picture.name for picture in results.find([folder, single])]
    assert names == ["0.png", "1.png", "single.png"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.png").symlink_to(single)
    names = [picture.name for picture in results.find([folder, tmp_path / "more"])]
    assert names == ["0.png", "images/1.png", "more/1.png"]
    assert len(results.find([folder], limit=1)) == 1
    with pytest.raises(OneDCError, match="two images have this name"):
        results.find([folder, folder])
    (tmp_path / "empty").mkdir()
    with pytest.raises(OneDCError, match=r"no \.png"):
        results.find([tmp_path / "empty"])


def test_a_file_name_is_safe_and_one_text_s_own():
    assert results.slug("tiny") == "tiny"
    for text in ("a/b", "../x", "<b>", ".hidden", "a b", "é"):
        assert "/" not in results.slug(text) and not results.slug(text).startswith(".")
    assert len({results.slug(text) for text in ("a/b", "a_b", "a b")}) == 3


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_baseline_returns_the_image_from_fewer_bytes_at_a_lower_quality(name):
    found, missing = baselines.available([name])
    if not found:
        pytest.skip(missing[0])
    (codec,), image = found, photo(96, 160)
    files = [codec.encode(image, quality) for quality in codec.qualities]
    sizes = [len(file) for file in files]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    errors = [np.abs(codec.decode(file) - image.astype(int)).mean() for file in files]
    assert errors[-1] < errors[0]
    assert codec.encode(image, codec.qualities[3]) == files[3]


@pytest.mark.parametrize(("quality", "progressive"), [(1, False), (75, True)])
def test_jpeg_is_of_the_kind_that_is_shorter(quality, progressive):
    (codec,), _ = baselines.available(["jpeg"])
    file = codec.encode(photo(512, 768), quality)
    with Image.open(io.BytesIO(file)) as image:
        assert ("progressive" in image.info) == progressive


def test_a_baseline_says_what_it_cannot_hold():
    (codec,), _ = baselines.available(["webp"])
    with pytest.raises(OneDCError, match="webp: cannot hold this 16384x1 image"):
        codec.encode(np.zeros((1, 16384, 3), np.uint8), 0)


def test_a_missing_plugin_is_said_and_an_unknown_baseline_refused(monkeypatch):
    def missing():
        raise ImportError

    monkeypatch.setitem(baselines.BASELINES, "jpegxl", missing)
    found, lines = baselines.available(["jpegxl", "jpeg"])
    assert [codec.name for codec in found] == ["jpeg"]
    assert lines == ["without jpegxl: pip install imagecodecs"]
    with pytest.raises(OneDCError, match="bmp: no such baseline; there are jpeg"):
        baselines.available(["bmp"])


def test_every_line_is_json_on_its_own(folder, tmp_path):
    rows = rows_of([Green()], folder, tmp_path / "out")
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [row["file"] for row in rows]
