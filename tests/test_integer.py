"""The integer path: the same numbers however, wherever and with whatever they are computed."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import integers as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onedc_jax.coding import path, proof, tables
from onedc_jax.errors import ModelError
from onedc_jax.models import integer, prior

pytestmark = pytest.mark.usefixtures("optimised")

LAUNCHER = Path(__file__).parent.parent / "launch" / "check_exact.py"


@pytest.fixture(scope="module")
def case():
    return proof.case("narrow")


@pytest.fixture(scope="module")
def found(case):
    return proof.predictions(*case)


def assert_same(found, wanted):
    for (mean, levels), (mean_, levels_) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mean, mean_)
        np.testing.assert_array_equal(levels, levels_)


def test_the_digest_is_that_of_every_device(found):
    assert proof.digest(found) == proof.stored()["narrow"]


def test_it_is_what_unbounded_integers_give(case, found):
    """int64 in NumPy: no sum overflows, float32 rounds none, and shifts round half up."""
    assert_same(found, reference.predictions(*case))


@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_overflows_at_the_extremes(case, sign):
    """Every weight and symbol at its bound and of one sign; the sums saturate all clipping."""
    kernel = lambda x: np.full_like(x, sign * np.abs(x).max())
    entropy = {
        part: reference.map_layers(lambda layer: layer | {"kernel": kernel(layer["kernel"])}, tree)
        for part, tree in case.entropy.items()
    }
    symbols = tuple(np.full_like(x, sign * 32767) for x in case.symbols)
    z_indices = np.full_like(case.z_indices, 16383 if sign > 0 else 0)
    integer.check(entropy, case.entropy)
    given = entropy, z_indices, symbols
    assert_same(proof.predictions(*given), reference.predictions(*given))


@pytest.mark.parametrize("count", [1, 8])
def test_the_batch_does_not_matter(case, found, count):
    images = np.arange(count) % 3
    symbols = tuple(x[images] for x in case.symbols)
    batch = proof.predictions(case.entropy, case.z_indices[images], symbols)
    for place, image in enumerate(images):
        assert proof.digest(batch, place) == proof.digest(found, image)


def test_operation_by_operation_it_is_the_same(case):
    y_hat = jnp.asarray(case.symbols[0][:1].repeat(4, -1) << 10, jnp.int32)
    given = integer.at_step(case.entropy, 2), y_hat, y_hat[..., ::-1], jnp.array([[2, 3]])
    compiled = jax.jit(integer.refine)(*given)
    with jax.disable_jit():
        np.testing.assert_array_equal(integer.refine(*given), compiled)


def test_in_an_array_that_is_larger_an_image_is_as_alone(case, found):
    """Beyond its end there are other tokens and symbols, of which it must not know."""
    z_indices = np.pad(case.z_indices, ((0, 0), (0, 1), (0, 2)), mode="reflect")
    ends = ((0, 0), (0, 4), (0, 8), (0, 0))
    symbols = tuple(np.pad(x, ends, mode="reflect") for x in case.symbols)
    larger = proof.predictions(case.entropy, z_indices, symbols, blocks=(2, 3))
    assert_same([(m[:, :8, :12], s[:, :8, :12]) for m, s in larger], found)


def test_far_from_its_edge_a_tile_is_as_the_whole(case):
    """Nothing reaches further than 7 tokens, so that y's first 2 columns see no edge at 8."""
    z_indices, symbols = proof.inputs(16, 1, 1, 11)
    whole = proof.predictions(case.entropy, z_indices, symbols)
    part = tuple(x[:, :, :32] for x in symbols)
    tile = proof.predictions(case.entropy, z_indices[:, :, :8], part)
    assert_same(
        [(m[:, :, :4], s[:, :, :4]) for m, s in tile],
        [(m[:, :, :4], s[:, :, :4]) for m, s in whole],
    )


def test_windows_give_the_integers_of_the_whole(case, monkeypatch):
    rng = np.random.default_rng(0)
    z_indices = rng.integers(0, 16384, (8, 24), np.int32)
    y = rng.normal(0, 3, (32, 96, case.symbols[0].shape[-1] * 4)).astype(np.float32)
    found = []
    for shapes in path._SHAPES, ((8, 8),):
        monkeypatch.setattr(path, "_SHAPES", shapes)
        coded, y_hat = path.IntegerPath.of(case.entropy).quantise(y, z_indices)
        found.append([*itertools.chain(*coded), y_hat])
    for whole, tiled in zip(*found, strict=True):
        np.testing.assert_array_equal(tiled, whole)


def test_as_one_program_on_one_thread_with_fast_math_it_is_the_same():
    flags = [
        "--xla_cpu_enable_fast_math=true",
        "--xla_cpu_fast_math_honor_nans=false",
        "--xla_cpu_fast_math_honor_infs=false",
        "--xla_cpu_fast_math_honor_division=false",
        "--xla_cpu_fast_math_honor_functions=false",
        "--xla_cpu_multi_thread_eigen=false",
        "--xla_backend_optimization_level=1",
        "intra_op_parallelism_threads=1",
    ]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
    environment["PYTHONPATH"] = str(LAUNCHER.parent.parent)
    run = subprocess.run(
        [sys.executable, LAUNCHER, "--platform", "cpu", "--case", "narrow"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith("OK")


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_only_cpus_are_given_anything_that_could_round(case, platform):
    program = jax.jit(proof.predictions).trace(*case).lower(lowering_platforms=(platform,))
    assert "i8>" in program.as_text()
    assert not re.search(r"[x<](b?f|tf)\d+", program.as_text())


@pytest.mark.parametrize("product", [integer.product_in_float32, integer.product_in_int8])
@pytest.mark.parametrize("inputs", [7, 512, 1152])
def test_products_are_exact_at_the_bound(product, inputs):
    """The largest sums that `check` lets through, of equal and of mixed signs, as integers."""
    budget = (2**24 - 1) // integer.LIMIT
    kernel = np.full((inputs, 1), budget // min(inputs, integer.GROUP))
    kernel[:: integer.GROUP] += budget - kernel[: integer.GROUP].sum()
    kernel = np.clip(kernel, 0, integer.KERNEL)
    signs = np.where(np.arange(inputs) % 3, 1, -1)
    x = np.stack([np.full(inputs, integer.LIMIT), np.full(inputs, -integer.LIMIT)])
    x = np.concatenate([x, x * signs, x - np.sign(x) * (np.arange(inputs) % 2)])
    got = jax.jit(product)(jnp.asarray(x, jnp.int32), jnp.asarray(kernel, jnp.int16))
    np.testing.assert_array_equal(got, x @ kernel)


def test_both_products_agree_for_weights_of_any_size():
    rng = np.random.default_rng(0)
    x = rng.integers(-1023, 1024, (5, 3, 2, 40)).astype(np.int32)
    kernel = rng.integers(-16319, 16320, (40, 6)) // rng.integers(100, 2000, 6)
    wanted = x.astype(np.int64) @ kernel
    for product in (integer.product, integer.product_in_float32, integer.product_in_int8):
        np.testing.assert_array_equal(product(x, kernel.astype(np.int16)), wanted)


@pytest.mark.parametrize("shift", [-2, 0, 1, 7, 30])
def test_shifts_round_half_up(shift):
    x = np.array([-(2**27), -130, -129, -128, -65, -64, -63, -1, 0, 1, 63, 64, 65, 2**27])
    got = integer.rescale(jnp.asarray(x, jnp.int32)[:, None], jnp.full(1, shift))[:, 0]
    np.testing.assert_array_equal(got, np.floor(x / 2.0**shift + 0.5))


@pytest.mark.parametrize("slope", [41, 410])
def test_the_leaky_relu_is_near_its_slope_and_in_bounds(slope):
    x = np.array([-(2**29), -(2**26), -(10**6), -5000, -17, -1, 0, 5, 2**26, 2**29])
    got = integer.leaky_relu(jnp.asarray(x, jnp.int32), slope)
    bounded = np.clip(x, -(2**26), 2**26)
    np.testing.assert_allclose(got, np.where(x < 0, bounded * slope / 4096, bounded), atol=2)


def test_levels_are_those_of_the_tables():
    edges = np.ceil(tables.load().thresholds.astype(np.float64) * 4096).astype(np.int32)
    scales = np.concatenate([edges - 1, edges, edges + 1, [-(2**27), -1, 0, 2**24]])
    got = jax.jit(path.integer_levels)(jnp.asarray(scales, jnp.int32))
    np.testing.assert_array_equal(got, tables.scale_index((scales / 4096).astype(np.float32)))


def changed(case, layer, **arrays):
    """The case's integers with other arrays in one layer of the prior."""
    block, name = layer
    new = case.entropy["prior"][block][name] | arrays
    prior = case.entropy["prior"] | {block: case.entropy["prior"][block] | {name: new}}
    return case.entropy | {"prior": prior}


def test_integers_that_could_overflow_are_refused(case):
    bounds = {
        "ffn_out": dict(kernel=[257], bias=[2**30], shift=[31, -30]),
        "ffn_in": dict(input=[31, -3]),
        # At these shifts sums of int64 wrap to what would be within bounds.
        "dw_conv": dict(bias=[2**30], shift=[31, -13, -30, -31]),
    }
    for name, arrays in bounds.items():
        for kind, values in arrays.items():
            for value in values:
                new = np.full_like(case.entropy["prior"]["fusion_1"][name][kind], value)
                with pytest.raises(ModelError, match=f"fusion_1/{name}: integers too large"):
                    integer.check(changed(case, ("fusion_1", name), **{kind: new}), case.entropy)


def test_a_sum_that_would_wrap_as_it_is_shifted_is_refused(case):
    old = case.entropy["prior"]["fusion_1"]["dw_conv"]
    new = dict(kernel=np.full_like(old["kernel"], 32767), bias=np.zeros_like(old["bias"]))
    new |= dict(shift=np.full_like(old["shift"], -30))
    with pytest.raises(ModelError, match="fusion_1/dw_conv: integers too large"):
        integer.check(changed(case, ("fusion_1", "dw_conv"), **new), case.entropy)


def test_integers_of_another_network_are_refused(case):
    entropy = changed(case, ("fusion_1", "ffn_in"), bias=np.zeros(3, np.int32))
    with pytest.raises(ModelError, match="not the arrays"):
        integer.check(entropy, case.entropy)
    prior = {name: x for name, x in case.entropy["prior"].items() if name != "step_2"}
    with pytest.raises(ModelError, match="step_2"):
        integer.check(case.entropy | {"prior": prior}, case.entropy)


def test_where_jax_has_64_bits_a_step_s_values_keep_theirs():
    with jax.enable_x64(True):
        assert prior.gather(jnp.zeros((1, 2, 2, 8), jnp.int32), 0).dtype == jnp.int32
