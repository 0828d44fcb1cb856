"""Released tensor names and files <-> parameter trees."""

import json
import shutil
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
from reference import GOLDEN, draw
from safetensors.numpy import save_file

from onedc_jax import weights
from onedc_jax.convert import RELEASED
from onedc_jax.errors import ModelError
from onedc_jax.models import onedc

NAMES = ["mix.0.weight", "mix.0.bias", "norm.weight", "to_out.0.weight"]


def tree(**leaves):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        leaves,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.fixture
def shapes():
    return tree(
        mix_0={"kernel": (3, 3, 2, 5), "bias": (5,)},
        norm={"scale": (4,)},
        to_out_0={"kernel": (4, 6)},
    )


@pytest.fixture
def tensors():
    torch_shapes = [(5, 2, 3, 3), (5,), (4,), (6, 4)]
    return {name: draw(name, shape) for name, shape in zip(NAMES, torch_shapes, strict=True)}


@pytest.fixture(scope="module")
def released_model():
    return onedc.param_shapes(onedc.build(RELEASED))


@pytest.mark.parametrize(
    "part, file, rename",
    [
        ("codec", "codec", weights.codec_name),
        ("generator", "unet", weights.generator_name),
        ("vae", "vae", weights.plain_name),
    ],
)
def test_parameters_are_the_released_tensors(released_model, part, file, rename):
    released = json.loads((GOLDEN / f"full/{file}.keys.json").read_text())
    wanted = list(weights.wanted(released_model[part], rename).values())
    assert len(wanted) == len(released)
    assert {name: list(shape) for name, shape in wanted} == released


def test_fill_turns_kernels_around(shapes, tensors):
    params = weights.fill(shapes, tensors, weights.plain_name)
    assert params["mix_0"]["kernel"][2, 0, 1, 4] == tensors["mix.0.weight"][4, 1, 2, 0]
    np.testing.assert_array_equal(params["to_out_0"]["kernel"], tensors["to_out.0.weight"].T)
    np.testing.assert_array_equal(params["norm"]["scale"], tensors["norm.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_fill_names_a_missing_tensor(shapes, tensors, name):
    del tensors[name]
    with pytest.raises(ModelError, match=f"{name} is missing"):
        weights.fill(shapes, tensors, weights.plain_name)


def test_fill_names_an_unexpected_tensor(shapes, tensors):
    tensors["other.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ModelError, match=r"other\.weight is unexpected"):
        weights.fill(shapes, tensors, weights.plain_name)


def test_fill_ignores_what_it_is_told_to(shapes, tensors):
    tensors["position_ids"] = np.arange(3)
    weights.fill(shapes, tensors, weights.plain_name, ignore=r"position_ids$")


def test_fill_names_a_tensor_of_another_shape(shapes, tensors):
    tensors["mix.0.weight"] = tensors["mix.0.weight"].transpose(1, 0, 2, 3)
    message = r"mix\.0\.weight has shape \[2, 5, 3, 3\], expected \[5, 2, 3, 3\]"
    with pytest.raises(ModelError, match=message):
        weights.fill(shapes, tensors, weights.plain_name)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.bool_])
def test_fill_refuses_what_is_no_floating_point(shapes, tensors, kind):
    tensors["mix.0.weight"] = tensors["mix.0.weight"].astype(kind)
    message = rf"mix\.0\.weight holds {np.dtype(kind)}, expected floating point"
    with pytest.raises(ModelError, match=message):
        weights.fill(shapes, tensors, weights.plain_name)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_fill_refuses_what_is_not_finite_in_float32(shapes, tensors, value):
    tensors["norm.weight"] = np.array([1.0, 1.0, value, 1.0])
    readers = {name: partial(np.array, tensor) for name, tensor in tensors.items()}
    with pytest.raises(ModelError, match=r"^file: tensor norm\.weight holds numbers.* not finite"):
        weights.fill(shapes, weights.Tensors("file", readers), weights.plain_name)


def test_fill_refuses_to_use_a_tensor_twice(shapes, tensors):
    with pytest.raises(ModelError, match="more than one parameter"):
        weights.fill(shapes, tensors, lambda path: "norm.weight")


@pytest.mark.parametrize("suffix", ["query", "to_q"])
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1, 1)])
def test_fill_knows_the_old_forms_of_attention(suffix, shape):
    weight = draw("weight", shape)
    params = weights.fill(
        tree(mid={"to_q": {"kernel": (4, 4)}}), {f"mid.{suffix}.weight": weight}, weights.plain_name
    )
    np.testing.assert_array_equal(params["mid"]["to_q"]["kernel"], weight.reshape(4, 4).T)


def test_an_adapted_layer_has_a_base_layer():
    layer = {"kernel": (1, 1, 2, 3), "bias": (3,), "lora_a": (1, 1, 2, 4), "lora_b": (1, 1, 4, 3)}
    shapes = tree(unet={"conv1": layer, "conv2": {"kernel": (2, 3)}})
    assert set(weights.wanted(shapes, weights.generator_name).values()) == {
        ("conv1.base_layer.weight", (3, 2, 1, 1)),
        ("conv1.base_layer.bias", (3,)),
        ("conv1.lora_A.default.weight", (4, 2, 1, 1)),
        ("conv1.lora_B.default.weight", (3, 4, 1, 1)),
        ("conv2.weight", (3, 2)),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_safetensors_are_read_as_float32(tmp_path, tensors, dtype):
    stored = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(stored, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        read = weights.read(source)
        assert set(read) == set(tensors)
        for name, tensor in read.items():
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, stored[name].astype(np.float32))


def test_a_type_that_numpy_has_not_is_named(tmp_path):
    info = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"eighths": info}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    tensors = weights.read(file)
    with pytest.raises(ModelError, match=r"model\.safetensors: tensor eighths holds F8_E4M3"):
        tensors["eighths"]


def test_integers_are_read_as_they_are(tmp_path):
    save_file({"ids": np.arange(3)}, tmp_path / "model.safetensors")
    assert weights.read(tmp_path)["ids"].dtype == np.int64


def test_shards_are_read_as_one(tmp_path, tensors):
    shard_of = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shard_of.values()):
        save_file({n: t for n, t in tensors.items() if shard_of[n] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    read = weights.read(tmp_path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


def test_a_shard_that_lacks_a_tensor_is_named(tmp_path, tensors):
    save_file(tensors, tmp_path / "part.safetensors")
    index = {"weight_map": dict.fromkeys([*tensors, "lost.weight"], "part.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"part\.safetensors: tensor lost\.weight is missing"):
        weights.read(tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_named(tmp_path, tensors):
    save_file(tensors | {"other.weight": np.ones(3)}, tmp_path / "part.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "part.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"part\.safetensors: tensor other\.weight is unexpected"):
        weights.read(tmp_path)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.pth"])
def test_pytorch_files_are_read_as_float32(tmp_path, name):
    shutil.copyfile(GOLDEN / "torch" / "zip.pt", tmp_path / name)
    tensors = weights.read(tmp_path / name)
    whole = tensors["parameter"]
    for half in ("half", "bfloat16"):
        assert tensors[half].dtype == np.float32
        np.testing.assert_allclose(tensors[half], whole, rtol=2**-8)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.safetensors", None, "no such weight file"),
        ("text.safetensors", b"hello, this is text", "not a readable safetensors file"),
        ("empty.safetensors", b"", "not a readable safetensors file"),
        ("photo.jpg", b"...", "not a weight file"),
        ("model.safetensors.index.json", b"[1, 2", "not a readable index"),
        ("model.safetensors.index.json", b'{"weight_map": 3}', "not a readable index"),
        ("a.index.json", b'{"weight_map": {"a": 5}}', "not a readable index"),
        ("a.index.json", b'{"weight_map": {"a": "a.index.json"}}', "not a weight file"),
        ("none.index.json", None, "no such weight file"),
        ("", None, "no weights in this folder"),
    ],
)
def test_what_is_no_weight_file_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        weights.read(path)
    assert "\n" not in str(error.value)
