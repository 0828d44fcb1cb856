"""Integers made from a float network: close to it, kept with it, and its streams told apart."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import photo
from PIL import Image

import onedc_jax
from onedc_jax import checkpoint, quantization
from onedc_jax.cli import main
from onedc_jax.coding.entropy import encode_steps
from onedc_jax.coding.loading import load
from onedc_jax.coding.path import FloatPath, IntegerPath
from onedc_jax.coding.stream import Arithmetic, inspect
from onedc_jax.models import integer

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.fixture(scope="module")
def codec(tiny_model):
    return onedc_jax.load(tiny_model)


@pytest.fixture(scope="module")
def latents(codec):
    y, z_indices = codec.analyse(photo(64, 128))
    return z_indices, y


@pytest.fixture(scope="module")
def entropy(codec, latents):
    z_indices, y = latents
    network = codec.model.codec, codec.params["codec"]
    return quantization.calibrate(*network, z_indices[None], y[None])


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The model with integers, made by the command from two photos and a file that is none."""
    root = tmp_path_factory.mktemp("quantize")
    photos = root / "photos"
    photos.mkdir()
    for name, image in ("a.png", photo(64, 128)), ("b.png", photo(100, 150)[:, :140]):
        Image.fromarray(image).save(photos / name)
    (photos / "c.png").write_bytes(b"no image")
    shutil.copytree(tiny_model, root / "out")
    assert (
        main(["quantize", str(root / "out"), "--images", str(photos)]) == 1
    )  # one of three failed
    return root / "out"


def test_means_tables_and_bytes_are_near_those_of_the_floats(codec, latents, entropy):
    z_indices, y = latents
    exact, y_hat = IntegerPath.of(entropy).quantise(y, z_indices)
    rough, wanted = FloatPath.of(codec.model, codec.params).quantise(y, z_indices)
    assert np.mean(np.abs(y_hat - wanted) > 0.1) < 0.02  # a few y round the other way
    levels = lambda steps: np.concatenate([levels for _, levels in steps]).astype(int)
    assert np.mean(np.abs(levels(exact) - levels(rough)) > 2) < 0.02
    size, before = (len(encode_steps(steps)[0]) for steps in (exact, rough))
    assert abs(size - before) <= 0.01 * before + 4


def test_every_layers_inputs_are_watched(codec, latents, entropy):
    z_indices, y = latents
    look = partial(quantization.input_ranges, codec.model.codec)
    ranges = jax.eval_shape(look, codec.params["codec"], z_indices[None], y[None])
    wanted = {path: layer["kernel"].shape for path, layer in integer.layers(entropy)}
    inputs = lambda path, shape: shape[-1:] if path.endswith("/dw_conv") else shape[2:3]
    assert {path: x.shape for path, x in ranges.items()} == {
        path: inputs(path, shape) for path, shape in wanted.items()
    }


def test_a_larger_image_makes_ranges_wider_and_a_smaller_one_no_narrower(codec, latents, entropy):
    z_indices, y = latents
    calibration = quantization.Calibration(codec.model.codec, codec.params["codec"])
    shifts = []
    for scale in (10, 1):
        calibration.add(z_indices[None], scale * y[None])
        shifts.append(calibration.integers()["prior"]["step_1"]["dw_in"]["input"])
    channels = y.shape[-1]
    narrow = entropy["prior"]["step_1"]["dw_in"]["input"]
    np.testing.assert_array_less(narrow[:channels], shifts[0][:channels])
    np.testing.assert_array_less(shifts[0] - 1, shifts[1])


def test_weights_too_large_for_any_integers_are_refused(codec, latents):
    z_indices, y = latents
    huge = jax.tree.map(lambda x: 1e4 * x, codec.params["codec"])
    with pytest.raises(onedc_jax.ModelError, match="too large"):
        quantization.calibrate(codec.model.codec, huge, z_indices[None], y[None])


def test_streams_of_a_model_with_integers_are_exact_ones(folder):
    codec, image = onedc_jax.load(folder), photo(64, 128)
    data = codec.encode(image)
    header, latents = codec.decode_latents(data)
    assert header.arithmetic is Arithmetic.INTEGER
    held = codec.quantise(*codec.analyse(image), None)
    np.testing.assert_array_equal(latents.y_hat, held[1])
    assert codec.decode(data).shape == image.shape


def test_values_beyond_every_table_survive_in_integers(entropy, latents):
    z_indices, y = latents
    y = y.copy()
    y[0, 0, :3], y[1, 1, 0] = (20000.0, -20000.0, 1e9), np.nan
    steps, y_hat = IntegerPath.of(entropy).quantise(y, z_indices)
    pending = [symbols for symbols, _ in steps]
    read = lambda levels: pending.pop(0)
    np.testing.assert_array_equal(IntegerPath.of(entropy).dequantise(read, z_indices), y_hat)
    assert np.abs(y_hat[0, 0, :2] - y[0, 0, :2]).max() <= 0.5
    assert np.isfinite(y_hat).all()


def test_streams_of_the_other_arithmetic_are_refused(folder):
    exact, rough = onedc_jax.load(folder), onedc_jax.load(folder, "float")
    image = photo(64, 128)
    data = rough.encode(image)
    assert inspect(data).header.arithmetic is Arithmetic.FLOAT32_CPU
    with pytest.raises(onedc_jax.StreamError):
        exact.decode(data)
    with pytest.raises(onedc_jax.StreamError):
        rough.decode(exact.encode(image))


def test_the_fingerprint_is_of_the_integers(folder, entropy):
    _, params = checkpoint.load_model(folder)
    of = checkpoint.fingerprint
    brighter = params | {"codec": jax.tree.map(lambda x: x + 1, params["codec"])}
    assert of(brighter) == of(params)
    assert of(params | {"entropy": jax.tree.map(lambda x: x ^ 1, params["entropy"])}) != of(params)


def test_the_weights_stay_as_they_are(folder, tiny_model):
    _, before = checkpoint.load_model(tiny_model)
    _, after = checkpoint.load_model(folder)
    assert after.pop("entropy")["prior"]["reduction"]["kernel"].dtype == np.int16
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_integers_that_are_not_the_models_are_refused(folder, tmp_path):
    config, params = checkpoint.load_model(folder)
    wrong = jax.tree.map(jnp.zeros_like, params["entropy"])
    wrong["prior"]["fusion_1"]["dw_in"]["shift"] = np.full(32, 99, np.int32)
    checkpoint.save_model(tmp_path / "model", config, params | {"entropy": wrong})
    with pytest.raises(onedc_jax.ModelError, match="prior/fusion_1/dw_in"):
        onedc_jax.load(tmp_path / "model")
    assert not load(tmp_path / "model", "float").exact  # as `onedc quantize` makes them anew from


def test_the_command_needs_images_and_replaces_nothing_unasked(folder, tmp_path, capsys):
    base = ["quantize", str(folder), "--images"]
    assert main([*base, str(tmp_path / "none")]) == 2
    assert main([*base, str(tmp_path)]) == 2
    Image.fromarray(photo(64, 64)).save(tmp_path / "a.png")
    assert main([*base, str(tmp_path)]) == 2
    assert main([*base, str(tmp_path), "--out", str(folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "no such folder",
        "no image in it",
        "has integers already; --overwrite makes them anew",
        "exists already; --overwrite replaces it",
    ]
