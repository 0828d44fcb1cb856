"""Notebooks run from top to bottom, and are kept without outputs."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pictures import photo
from PIL import Image

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def cells(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / name).read_text())["cells"]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_no_output_is_stored(path):
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells(path))


def test_rate_distortion_draws_from_results(tmp_path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("bjontegaard")
    pyplot.switch_backend("agg")
    rows = [
        {"image": "a", "digest": "1", "codec": codec, "version": "1", "quality": bpp, "bpp": bpp}
        | {"psnr": 30 + math.log(bpp), "lpips_vgg": 1 - bpp / 2}
        for codec, rates in (("tiny", [0.12]), ("avif", [0.1, 0.2, 0.4]), ("jpeg", [0.1, 0.3]))
        for bpp in rates
    ]
    (tmp_path / "report").mkdir()
    before = [row | {"psnr": 0} for row in rows] + [row | {"version": "0"} for row in rows]
    before += [{"image": "b", "error": "unreadable"}]
    lines = [json.dumps(row) for row in [*before, *rows]]
    (tmp_path / "report" / "results.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    space: dict = {}
    for cell in cells("rate_distortion.ipynb"):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    pyplot.close("all")
    printed = capsys.readouterr().out
    assert "1 images; tiny, avif, jpeg" in printed and "+0.0 %" in printed
    assert "avif needs 0.1" in printed
    assert space["rows"] == rows


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_an_address_is_asked_for_on_colab(path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("installs"))
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    source = next(cell["source"] for cell in cells(path) if cell["cell_type"] == "code")
    with pytest.raises(SystemExit, match=r"set SOURCE to .*git\+https"):
        exec("".join(source), {})


def test_decode_colab_shows_what_a_file_holds(tmp_path, monkeypatch, capsys, tiny_model):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(NOTEBOOKS)
    Image.fromarray(photo(100, 180)).save(tmp_path / "photo.png")
    changed = {"tiny": str(tiny_model), "": str(tmp_path / "photo.png")}
    space: dict = {}
    for cell in cells("decode_colab.ipynb"):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            for value, ours in changed.items():
                source = source.replace(f'= "{value}"  # @param', f"= {ours!r}  # @param")
            exec(source, space)
    pyplot.close("all")
    assert space["decoded"].shape == (100, 180, 3) and len(space["parts"]) == 5
    assert "psnr" in capsys.readouterr().out
    # The tokens reach the pixels of their place, and hardly those far from it.
    assert space["inside"] > space["change"].mean() > 0
