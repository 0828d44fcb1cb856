"""The scripts of launch/ that make models of models, and the one that plans."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from onedc_jax.checkpoint import load_model, save_model
from onedc_jax.errors import ModelError

LAUNCH = Path(__file__).parent.parent / "launch"
POINTS = np.array([[0.0], [1.0]], np.float32)
CODEC = dict(
    knob=dict.fromkeys(("gain", "inverse", "bias"), POINTS),
    synthesis=dict.fromkeys(("rate_in", "rate_out"), POINTS),
)


def script(name: str):
    return runpy.run_path(str(LAUNCH / f"{name}.py"))


def test_embedding_halves_weights_and_keeps_integers(tmp_path, capsys):
    params = dict(
        vae=dict(kernel=np.array([1.0, 1e-3], np.float32)),
        entropy=dict(kernel=np.array([300, -7], np.int16)),
    )
    save_model(tmp_path / "run" / "model", {}, params)
    main = script("embed")["main"]
    main.__globals__["PRESETS"] = tmp_path / "presets"
    main(tmp_path / "run", "small")
    _, found = load_model(tmp_path / "presets" / "small")
    np.testing.assert_array_equal(found["vae"]["kernel"], np.array([1.0, 1e-3], jnp.bfloat16))
    np.testing.assert_array_equal(found["entropy"]["kernel"], params["entropy"]["kernel"])
    assert found["entropy"]["kernel"].dtype == np.int16
    assert "0.00 M parameters" in capsys.readouterr().out


def test_stretching_makes_a_model_and_refuses_integers(tmp_path, capsys):
    main = script("stretch")["main"]
    save_model(tmp_path / "run", {}, dict(codec=CODEC))
    main(tmp_path / "run", 0.5, tmp_path / "longer")
    _, found = load_model(tmp_path / "longer")
    np.testing.assert_allclose(found["codec"]["knob"]["gain"][-1], 1.5)
    save_model(tmp_path / "exact", {}, dict(codec=CODEC, entropy=dict(a=np.ones(1))))
    with pytest.raises(ModelError, match="has integers"):
        main(tmp_path / "exact", 0.5, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert "by 0.5 of the step" in capsys.readouterr().out


def test_a_plan_has_a_line_for_each_update(capsys):
    script("plan")["plan"](toy.recipe(rare=2))
    printed = capsys.readouterr().out
    assert "toy on 1 × 1 devices" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["rare", "model"]
