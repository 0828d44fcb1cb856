"""The embedded preset on a real photograph: small, within its rate, and like the photograph."""

import hashlib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import photo
from PIL import Image

import onedc_jax
from onedc_jax import checkpoint, metrics
from onedc_jax.coding import stream
from onedc_jax.coding.networks import Networks
from onedc_jax.coding.windows import BLOCK
from onedc_jax.models import prior
from onedc_jax.models.quantize import indices_to_codes

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.fixture(scope="module")
def codec():
    return onedc_jax.load("tiny")


def test_it_keeps_its_limits(codec):
    assert sum(x.size for x in jax.tree.leaves(codec.params)) <= 16e6
    folder = checkpoint.preset_path("tiny")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 32e6


def test_a_file_that_it_made_is_still_read(codec):
    """Were its integers others now, files that people have would be lost."""
    data = (Path(__file__).parent / "golden" / "streams" / "tiny.onedc").read_bytes()
    header, latents = codec.decode_latents(data)
    assert (header.width, header.height, header.rate) == (300, 250, 153)
    held = latents.z_indices.astype("<i4").tobytes() + latents.y_hat.astype("<f4").tobytes()
    expected = "a119f6a8d657d3b58c6be2754665ed56b3af9a419a8ceaf0967c2a2b5048168e"
    assert hashlib.sha256(held).hexdigest() == expected


def test_a_photograph_comes_back_in_its_colours(codec):
    image = photo(512, 768)
    data = codec.encode(image)
    restored = codec.decode(data)
    assert metrics.bpp(data, 512, 768) <= 0.2
    assert metrics.psnr(image[None], restored[None]).item() >= 19
    shift = restored.astype(float).mean((0, 1)) - image.astype(float).mean((0, 1))
    assert np.abs(shift).max() < 8


def test_its_knob_goes_from_coarse_to_fine(codec):
    image = photo(512, 768)
    files = [codec.encode(image, quality=quality) for quality in (0, 50, 100)]
    assert [len(data) for data in files] == sorted({len(data) for data in files})
    assert len(files[0]) < 0.4 * len(files[2])
    errors = [metrics.psnr(image[None], codec.decode(data)[None]).item() for data in files]
    assert errors == sorted(errors)
    assert len(codec.encode_within(image, 4000)) <= 4000


def test_windows_over_a_large_sky_leave_no_seam(codec):
    """Where two windows meet, pixels differ no more than where one window sees both sides.

    The photograph's own content and the model's blocks differ from line to line by more than a seam
    may: so each line is held to itself.
    """
    sky = Image.fromarray(photo(150, 768)).resize((1536, 640), Image.Resampling.BICUBIC)
    y, tokens = codec.analyse(np.asarray(sky))
    place = np.array([0.75], np.float32)
    y_hat = np.rint(codec.networks.gained(y, place))
    windows = codec.networks.cover(*tokens.shape)[1]
    assert len(windows) == 2
    left, meet = windows[1].columns[0], windows[1].columns.first
    whole = codec.networks.reconstruct(y_hat, tokens, place)
    columns = slice(left // 2, left // 2 + 16)  # one window, with the seam in its middle
    part = slice(4 * columns.start, 4 * columns.stop)
    alone = codec.networks.reconstruct(y_hat[:, part], tokens[:, columns], place, (0, left // 2))
    assert len(codec.networks.cover(tokens.shape[0], 16)[1]) == 1
    whole = whole[:, BLOCK * columns.start : BLOCK * columns.stop].astype(float)
    steps = [np.abs(np.diff(image.astype(float), axis=1)).mean((0, 2)) for image in (whole, alone)]
    seam = BLOCK * (meet - columns.start) - 1
    assert steps[0][seam] <= 1.02 * steps[1][seam]
    assert np.abs((whole - alone)[:, seam - 128 : seam + 128].mean((0, 1))).max() < 0.5


@pytest.mark.parametrize("quality", [0, 20, 100])
def test_bytes_are_within_one_percent_of_the_estimated_rate(codec, quality):
    """The estimate is that of training: the scales bounded below, as the tables are."""
    image = photo(512, 768)
    y, z_indices = codec.analyse(image)
    place = np.array([quality / 100], np.float32)

    def bits(model, y, z_indices):
        features, _ = model.codec.hyper_synthesis(indices_to_codes(z_indices))
        gain, _, bias = model.codec.at_rate(place)
        out = model.codec.prior(y * gain, features + bias)
        scales = jnp.maximum(out["scales"], prior.SCALE_MIN)
        return prior.estimated_bits(out["symbols"], scales).sum()

    run = jax.jit(lambda params, *x: codec.model.apply({"params": params}, *x, method=bits))
    estimate = float(run(codec.params, y[None], z_indices[None]))
    spent = 8 * stream.inspect(codec.encode(image, quality=quality)).y_bytes
    assert abs(spent - estimate) <= 0.01 * estimate + 32


def test_a_decoder_in_bfloat16_makes_nearly_the_same_of_the_same_stream(codec):
    image = photo(256, 384)
    networks = Networks.of(codec.model, codec.params, jax.devices("cpu")[0], "bfloat16")
    half = replace(codec, networks=networks)
    assert half.params["generator"]["unet"]["conv_out"]["kernel"].dtype == jnp.bfloat16
    data = codec.encode(image)
    assert half.encode(image) == data
    pictures = codec.decode(data), half.decode(data)
    assert 40 <= metrics.psnr(*(x[None] for x in pictures)).item() < 100
