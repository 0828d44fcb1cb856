"""The exported decoder, in a process that has no model code."""

import re
import runpy
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from pictures import photo

import onedc_jax
from onedc_jax import cli, export
from onedc_jax.coding.loading import load
from onedc_jax.coding.networks import Networks

RUN = """
import runpy, sys
sys.modules["onedc_jax"] = sys.modules["flax"] = None  # importing them fails
sys.argv = ["run.py", "decode.zip", "latents.npz", "image.npy"]
runpy.run_path("run.py", run_name="__main__")
"""


def test_jax_alone_runs_it_as_its_script_says(tmp_path, tiny_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["export", str(tiny_model), "--size", "128x64", "--out", "decode.zip"]
    assert cli.main(command) == 0
    assert "decodes 128x64 on cpu, cuda, rocm, tpu" in capsys.readouterr().out
    codec = load(tiny_model)
    data = codec.encode(photo(60, 120))
    (tmp_path / "photo.onedc").write_bytes(data)
    zipfile.ZipFile("decode.zip").extract("run.py")
    _, latents, _ = re.split(r"(?ms)^(    header, .*?^    \)$)", Path("run.py").read_text())
    exec(textwrap.dedent(latents), dict(onedc_jax=onedc_jax, np=np, MODEL=tiny_model))
    subprocess.run([sys.executable, "-c", RUN], check=True, timeout=300)
    found, wanted = np.load("image.npy").astype(int), codec.decode(data)
    assert found.shape == wanted.shape == (60, 120, 3)
    assert np.abs(found - wanted).max() <= 1
    fitted = runpy.run_path("run.py")["fitted"](np.arange(2)[None], [1, 4])
    np.testing.assert_array_equal(fitted, [[0, 1, 1, 1]])


def test_weights_in_bfloat16_are_exported_too(tmp_path, tiny_model):
    codec = load(tiny_model)
    networks = Networks.of(codec.model, codec.params, jax.devices("cpu")[0], "bfloat16")
    file = tmp_path / "decode.zip"
    file.write_bytes(export.export(replace(codec, networks=networks), 64, 64, ["cpu"]))
    latents = codec.decode_latents(codec.encode(photo(64, 64)))[1]
    found = export.load(file)(latents.y_hat[None], latents.z_indices[None])[0]
    assert np.abs(found.astype(int) - codec.reconstruct(latents)).mean() < 2


def test_what_cannot_be_exported_is_said(tmp_path, capsys):
    out = str(tmp_path / "x.zip")
    assert (
        cli.main(["export", "tiny", "--size", "64x64", "--out", out, "--platforms", "abacus"]) == 2
    )
    assert "abacus" in capsys.readouterr().err
    assert cli.main(["export", "tiny", "--size", "65535x65535", "--out", out]) == 2
    assert "65535x65535" in capsys.readouterr().err
