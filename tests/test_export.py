"""The exported decoder, in a process that has no model code."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from pictures import photo

from onedc_jax import cli, export
from onedc_jax.coding.loading import load
from onedc_jax.coding.networks import Networks

ROOT = Path(__file__).parent.parent

RUN = """
import sys
sys.modules["onedc_jax.models"] = None  # importing it fails
sys.modules["onedc_jax.coding"] = None
sys.modules["flax"] = None
source = open(sys.argv[1]).read()
source = source[source.index("def load(") :]
names = {}
exec("import io, zipfile, jax, jax.export, numpy as np\\n"
     "from collections.abc import Callable\\nfrom pathlib import Path\\n" + source, names)
latents = names["np"].load(sys.argv[3])
image = names["load"](sys.argv[2])(latents["y_hat"], latents["z_indices"])
names["np"].save(sys.argv[4], image)
"""


def test_jax_alone_runs_it(tmp_path, tiny_model, capsys):
    file = tmp_path / "decode.zip"
    command = ["export", str(tiny_model), "--size", "128x64", "--out", str(file)]
    assert cli.main(command) == 0
    assert "decodes 128x64 on cpu, cuda, rocm, tpu" in capsys.readouterr().out
    codec = load(tiny_model)
    latents = codec.encode_latents(photo(64, 128))
    given, made = tmp_path / "latents.npz", tmp_path / "image.npy"
    np.savez(given, y_hat=latents.y_hat[None], z_indices=latents.z_indices[None])
    source = ROOT / "onedc_jax" / "export.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", RUN, source, file, given, made],
        check=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
    )
    found, wanted = np.load(made)[0].astype(int), codec.reconstruct(latents).astype(int)
    assert found.shape == wanted.shape == (64, 128, 3)
    assert np.abs(found - wanted).max() <= 1


def test_weights_in_bfloat16_are_exported_too(tmp_path, tiny_model):
    codec = load(tiny_model)
    networks = Networks.of(codec.model, codec.params, jax.devices("cpu")[0], "bfloat16")
    file = tmp_path / "decode.zip"
    file.write_bytes(export.export(replace(codec, networks=networks), 64, 64, ["cpu"]))
    latents = codec.encode_latents(photo(64, 64))
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
