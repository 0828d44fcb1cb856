"""FID and KID against torchmetrics, their network against torch-fidelity's, and their limits."""

import json

import jax
import numpy as np
import pytest
from features import KID, features, inception_tensor
from pictures import pictures
from reference import GOLDEN, relative_l2
from safetensors.numpy import save_file

from onedc_jax.checkpoint import save_model
from onedc_jax.convert_parts import convert_part
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.evaluation import distributions
from onedc_jax.evaluation.distributions import (
    Features,
    frechet_distance,
    kernel_distance,
    patches,
    squared_mmd,
)
from onedc_jax.models.inception import Inception
from onedc_jax.models.init import shapes_of

EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())  # by golden/make_metrics.py
NORM = ("weight", "bias", "running_mean", "running_var")


def test_fid_is_the_accepted_one():
    np.testing.assert_allclose(frechet_distance(*features()), EXPECTED["fid"], rtol=1e-8)


def test_fid_is_that_of_normal_distributions():
    """Where covariances commute, it is the distance of means and of standard deviations."""
    corners = np.array([[i, j] for i in (-1, 1) for j in (-1, 1)]) * np.sqrt(3 / 4)  # covariance I
    a, b = corners * [2, 3] + [1, 0], corners * [5, 1]
    assert frechet_distance(a, b) == pytest.approx(1 + (5 - 2) ** 2 + (3 - 1) ** 2)


def test_fid_of_fewer_features_than_dimensions_is_finite_and_zero_for_equal_sets():
    a, b = (x[:8] for x in features())
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_kid_is_the_accepted_one_over_the_same_subsets():
    np.testing.assert_allclose(kernel_distance(*features(), **KID), EXPECTED["kid"], rtol=1e-8)


def test_kid_of_few_features_takes_them_all():
    a, b = (x[:30] for x in features())
    mean, deviation = kernel_distance(a, b, subsets=3)
    assert mean == pytest.approx(squared_mmd(a, b)) and deviation == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, squared_mmd])
@pytest.mark.parametrize("shape", [(1, 24), (5, 23), (5,)])
def test_sets_that_cannot_be_compared_are_refused(distance, shape):
    with pytest.raises(OneDCError, match="compares sets"):
        distance(features()[0], np.zeros(shape))


@pytest.mark.parametrize(
    "height, width, corners",
    [
        (8, 12, [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8), (2, 2), (2, 6)]),  # as Kodak
        (5, 6, [(0, 0)]),
        (6, 6, [(0, 0), (2, 2)]),
        (3, 9, []),
    ],
)
def test_patches_are_of_two_grids(height, width, corners):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    expected = [image[i : i + 4, j : j + 4] for i, j in corners]
    np.testing.assert_array_equal(patches(image, 4), np.reshape(expected, (-1, 4, 4, 3)))


@pytest.fixture(scope="module")
def released():
    """The network as PyTorch has it, seeded: name -> tensor."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    shapes = shapes_of(Inception(), image)
    named = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        *layer, kind = (key.key for key in path)
        if kind == "kernel":
            height, width, inputs, outputs = leaf.shape
            name = ".".join(layer)
            named[f"{name}.conv.weight"] = outputs, inputs, height, width
            named |= {f"{name}.bn.{part}": (outputs,) for part in NORM}
    return {name: inception_tensor(name, shape) for name, shape in named.items()}


@pytest.fixture(scope="module")
def network(released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0)}
    save_file(released | counters, folder / "released.safetensors")
    convert_part("inception", folder / "released.safetensors", folder / "model")
    return Features(folder / "model")


def test_features_are_those_of_the_accepted_network(network):
    images, _ = pictures(*EXPECTED["sizes"]["inception"])
    found = network(images)
    assert found.shape == (2, 2048) and found.dtype == np.float32
    assert relative_l2(found[:, ::64], EXPECTED["inception"]) < 1e-4


def test_no_patches_have_no_features(network):
    assert network(np.zeros((0, 40, 56, 3), np.uint8)).shape == (0, 2048)


LAST = "Mixed_7c.branch_pool"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fc.weight": np.zeros((1000, 8))}, "knows 1000 classes"),
        ({"AuxLogits.fc.weight": np.zeros(3)}, r"AuxLogits\.fc\.weight is unexpected"),
        ({f"{LAST}.bn.running_var": None}, r"pool\.bn\.running_var is missing"),
        ({f"{LAST}.conv.weight": None}, r"pool\.conv\.weight is missing"),
        ({f"{LAST}.bn.bias": np.zeros(5)}, r"pool\.bn do not fit"),
        ({f"{LAST}.conv.weight": np.zeros((192, 7, 1, 1))}, r"pool\.conv\.weight has shape"),
    ],
)
def test_another_network_is_refused(tmp_path, released, change, message):
    few = {name: x for name, x in (released | change).items() if x is not None}
    save_file(few, tmp_path / "released.safetensors")
    with pytest.raises(ModelError, match=message):
        convert_part("inception", tmp_path / "released.safetensors", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_of_something_else_says_how_to_get_the_network(tmp_path):
    save_model(tmp_path / "model", {"lpips": {}}, {"lpips": {"head_0": np.ones(3, np.float32)}})
    with pytest.raises(ModelError, match="convert-part inception"):
        Features(tmp_path / "model")
    assert "convert-part inception" in distributions.HOW_TO_GET
