"""Images through bytes: what the decoder holds is what the encoder held."""

import copy
import pickle
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import MICRO_MODEL
from pictures import photo
from PIL import Image

import onedc_jax
from onedc_jax import quantization
from onedc_jax.checkpoint import save_model
from onedc_jax.coding import proof, stream
from onedc_jax.coding.entropy import SymbolDecoder, encode_steps
from onedc_jax.coding.loading import load
from onedc_jax.coding.path import IntegerPath
from onedc_jax.coding.programs import Programs
from onedc_jax.evaluation.checkpoints import Coded
from onedc_jax.models.init import random_params
from onedc_jax.models.onedc import build, param_shapes
from onedc_jax.models.pixels import from_uint8


@pytest.fixture(scope="module")
def codec(tiny_model):
    return load(tiny_model)


@pytest.mark.parametrize("height, width", [(1, 1), (63, 65), (64, 64), (333, 500)])
def test_bytes_give_back_the_latents_and_the_size(codec, height, width):
    image = photo(height, width)
    data = codec.encode(image)
    y, z_indices = codec.analyse(image)
    header, got = codec.decode_latents(data)
    np.testing.assert_array_equal(got.z_indices, z_indices)
    np.testing.assert_array_equal(got.y_hat, codec.quantise(y, z_indices, None)[1])
    assert (header.height, header.width) == (height, width)
    restored = codec.decode(data)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    assert restored.flags["C_CONTIGUOUS"] and restored.flags["WRITEABLE"]


def test_encoding_is_deterministic(codec, tiny_model):
    image = photo(63, 65)
    assert codec.encode(image) == codec.encode(image) == load(tiny_model).encode(image)


def test_a_codec_says_in_a_line_what_it_is(codec):
    """And is equal to itself alone: arrays are not to be compared."""
    other = replace(codec, name="other")
    assert repr(other) == f"Codec('other', fingerprint {codec.path.fingerprint:04x}, float32_cpu)"
    assert {codec, codec, other} == {other, codec} and codec != other
    exact = IntegerPath.of(proof.case("narrow").entropy)
    for part in (codec.networks, codec.path, exact):
        assert len(repr(part)) < 5000 and part != replace(part)


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_copy_makes_the_same_bytes(codec, copied):
    assert copied(codec).encode(photo(64, 64)) == codec.encode(photo(64, 64))


def test_a_model_in_training_is_compiled_once(tmp_path, monkeypatch):
    """At the next checkpoint nothing is made ready: it differs by its parameters alone."""
    Image.fromarray(photo(64, 64)).save(tmp_path / "photo.png")
    measure, shapes = Coded(tmp_path, 1, ("psnr",)), param_shapes(build(MICRO_MODEL))
    first, second = (random_params(shapes, seed=seed) for seed in (0, 1))
    found = measure(MICRO_MODEL, first)
    monkeypatch.setattr("onedc_jax.coding.programs.ready", None)
    monkeypatch.setattr(jax, "jit", None)
    assert measure(MICRO_MODEL, second) != found


def test_values_beyond_every_table_survive(codec):
    """y far from its mean is escaped, not clipped; what is no number does no harm."""
    path = codec.path
    y, z_indices = (x.copy() for x in codec.analyse(photo(64, 64)))
    y[0, 0, :3], y[1, 1, 0] = (20000.0, -20000.0, 1e9), np.nan
    steps, y_hat = path.quantise(y, z_indices)
    decoder = SymbolDecoder(*encode_steps(steps))
    np.testing.assert_array_equal(path.dequantise(decoder.decode, z_indices), y_hat)
    decoder.finish()
    assert np.abs(y_hat[0, 0, :2] - y[0, 0, :2]).max() <= 0.5
    assert np.isfinite(y_hat).all()


def test_a_stream_of_another_model_is_refused(codec):
    data = bytearray(codec.encode(photo(64, 64)))
    data[2] ^= 1
    data[-4:] = stream._checksum(bytes(data[:-4]))
    with pytest.raises(onedc_jax.StreamError, match="another model"):
        codec.decode(bytes(data))


def test_damage_is_refused_or_harmless(codec):
    image = photo(64, 64)
    data, rng = codec.encode(image), np.random.default_rng(0)
    for cut in (0, 1, 5, len(data) // 2, len(data) - 1):
        with pytest.raises(onedc_jax.StreamError):
            codec.decode(data[:cut])
    for _ in range(50):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with pytest.raises(onedc_jax.StreamError):
            codec.decode(bytes(broken))


def test_fewer_steps_are_the_beginning_of_the_same_picture(codec):
    """And a file cut behind a step decodes to what encoding up to that step gives."""
    image = photo(64, 64)
    data = codec.encode(image)
    info = stream.inspect(data)
    start = info.header_bytes + info.z_bytes
    for steps in range(stream.STEPS + 1):
        short = codec.encode(image, steps=steps)
        held = codec.decode_latents(short)[1]
        cut = data[: start + sum(info.step_bytes[:steps])]
        got = codec.decode_latents(cut, allow_truncated=True)[1]
        np.testing.assert_array_equal(got.z_indices, held.z_indices)
        np.testing.assert_array_equal(got.y_hat, held.y_hat)
        np.testing.assert_array_equal(codec.decode(cut, allow_truncated=True), codec.decode(short))
    assert short == data


def test_of_z_alone_the_decoder_holds_the_means_of_the_network(codec):
    image = photo(64, 64)
    data = codec.encode(image, steps=0)
    assert stream.inspect(data).y_bytes == 0
    _, held = codec.decode_latents(data)
    expected = jax.jit(codec.model.apply)(
        {"params": codec.params}, from_uint8(image[None]), None, np.array([True])
    )
    np.testing.assert_array_equal(held.z_indices, expected["z_indices"][0])
    np.testing.assert_allclose(held.y_hat, expected["y_hat"][0], rtol=1e-4, atol=1e-4)


def test_what_is_asked_for_and_cannot_be_is_refused(codec):
    for ask, words in (
        (lambda: codec.encode(photo(64, 64), steps=5), "steps must be 0 to 4"),
        (lambda: codec.encode(photo(64, 64), steps=2.0), "steps must be a whole number"),
        (lambda: codec.with_effort(-1), "effort must be 0 or more"),
        (lambda: codec.with_effort(1.5), "effort must be a whole number"),
        (lambda: codec.encode_within(photo(64, 64), np.nan), "size must be a whole number"),
        (lambda: codec.encode_near(photo(64, 64), "1 kB"), "size must be a whole number"),
        (lambda: stream.rate_of(101), "quality must be 0 to 100"),
        (lambda: codec.encode(None), "expected pixels uint8"),
        (lambda: codec.encode([[[0.5] * 3]]), "expected pixels uint8"),
        (lambda: codec.encode([[0], [0, 0]]), "expected pixels uint8 .* a ragged list"),
        (lambda: codec.decode("text"), "a stream is bytes, not str"),
    ):
        with pytest.raises(onedc_jax.OneDCError, match=words) as error:
            ask()
        assert "\n" not in str(error.value)


def test_whatever_holds_bytes_or_pixels_will_do(codec):
    image = photo(64, 64)
    data = codec.encode(image)
    assert codec.encode(Image.fromarray(image)) == data
    expected = codec.decode(data)
    for held in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        np.testing.assert_array_equal(codec.decode(held), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(arithmetic=1), "arithmetic integer"), (dict(rate=3), "a model of one rate")],
)
def test_a_stream_of_another_kind_is_refused(codec, change, message):
    content = stream.unpack(codec.encode(photo(64, 64)))
    header = replace(content.header, **change)
    data = stream.pack(header, content.z, content.y, content.words)
    with pytest.raises(onedc_jax.StreamError, match=message):
        codec.decode(data)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_pixels_of_a_wrong_kind_are_refused(codec, image):
    with pytest.raises(onedc_jax.ImageError):
        codec.encode(image)


@pytest.fixture
def no_programs_on_disk():
    """Every program that is asked for has to be compiled, and so can be counted."""
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.mark.slow
def test_a_folder_of_all_sizes_makes_few_programs(tmp_path, no_programs_on_disk):
    """Counted where jax compiles: at most eight a direction for images of 200 to 3000 pixels."""
    config = MICRO_MODEL | dict(codec=MICRO_MODEL["codec"] | dict(rates=3))
    save_model(tmp_path / "model", config, random_params(param_shapes(build(config)), seed=0))
    codec = load(tmp_path / "model")
    y, z_indices = codec.analyse(photo(64, 128))
    network = codec.model.codec, codec.params["codec"]
    entropy = quantization.calibrate(*network, z_indices[None], y[None])
    codec = replace(codec, networks=replace(codec.networks, programs=Programs()))
    codec = replace(codec, path=IntegerPath.of(entropy))
    sizes = np.random.default_rng(0).integers(200, 3001, (100, 2))
    images = [np.resize(photo(512, 768), (height, width, 3)) for height, width in sizes]
    shapes = {codec.networks.cover(*blocks)[0] for blocks in -(-sizes // 64)}
    assert len(shapes) > 1
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    count = lambda: compiled.count("/jax/core/compile/backend_compile_duration")
    streams = [codec.encode(image) for image in images]
    assert len(shapes) < count() <= 8
    compiled.clear()
    for image, data in zip(images, streams, strict=True):
        assert codec.decode(data).shape == image.shape
    # What makes y of tokens was compiled for encoding; windows share their norms' statistics.
    assert len(shapes) + 1 == count() <= 8
