"""Model folders: what is written is read, and what is damaged is refused in words."""

import json
import shutil
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from onedc_jax import checkpoint
from onedc_jax.errors import ModelError

CONFIG = {"codec": {"channels": 8, "widths": [1, 2]}, "latent_scale": 0.5}


@pytest.fixture
def params():
    return {
        "codec": {"conv_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
        "vae": {"bias": np.array([1.5, -2.0], ml_dtypes.bfloat16)},
    }


@pytest.fixture
def folder(tmp_path, params):
    checkpoint.save_model(tmp_path / "model", CONFIG, params)
    return tmp_path / "model"


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_model_comes_back_as_it_was(folder, params):
    config, loaded = checkpoint.load_model(folder)
    assert config == CONFIG
    same(loaded, params)


def test_jax_arrays_come_back_as_numpy_arrays(tmp_path, params):
    checkpoint.save_model(tmp_path / "model", CONFIG, jax.tree.map(jnp.asarray, params))
    _, loaded = checkpoint.load_model(tmp_path / "model")
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(loaded))
    same(loaded, params)


def test_nothing_but_the_model_is_left_behind(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.name for path in folder.iterdir()} == {"model.json", "params", "params.sfv"}


def test_a_folder_does_not_say_where_it_was_made(folder):
    place = str(folder.parent).encode()
    assert not [p for p in folder.rglob("*") if p.is_file() and place in p.read_bytes()]


def test_an_existing_model_is_kept(folder, params):
    with pytest.raises(ModelError, match="exists already"):
        checkpoint.save_model(folder, {}, params)
    assert checkpoint.load_model(folder)[0] == CONFIG


def test_an_existing_model_is_replaced_on_request(folder, params):
    checkpoint.save_model(folder, {}, params, overwrite=True)
    assert checkpoint.load_model(folder)[0] == {}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_is_no_model_is_never_replaced(tmp_path, params):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        checkpoint.save_model(tmp_path / "photos", CONFIG, params, overwrite=True)


def test_a_failed_write_leaves_the_old_model(folder):
    with pytest.raises(TypeError):
        checkpoint.save_model(folder, {"unwritable": object()}, {}, overwrite=True)
    assert checkpoint.load_model(folder)[0] == CONFIG
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def remove_params(folder):
    shutil.rmtree(folder / "params")


def empty_params(folder):
    for path in (folder / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def truncate_values(folder):
    largest = max((folder / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])


def invert_values(folder):
    """Of the same length: Orbax reads other weights."""
    largest = max((folder / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[:-20] + bytes(255 - x for x in data[-20:]))


def write_sums(data):
    return lambda folder: (folder / "params.sfv").write_bytes(data)


def write_json(text):
    return lambda folder: (folder / "model.json").write_text(text)


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "model.json: cannot be read"),
        (lambda folder: (folder / "model.json").unlink(), "model.json: cannot be read"),
        (write_json("{"), "not JSON"),
        (write_json("[]"), "not a JSON object"),
        (write_json("{}"), "format None"),
        (write_json(json.dumps({"format": 2})), "format 2"),
        (remove_params, r"params/.*: missing or damaged; copy the folder anew"),
        (empty_params, r"params/.*: missing or damaged; copy the folder anew"),
        (truncate_values, r"params/.*: missing or damaged; copy the folder anew"),
        (invert_values, r"params/.*: missing or damaged; copy the folder anew"),
        (write_sums(b"\xff\0"), "params.sfv: cannot be read"),
        (write_sums(b"?"), "missing or damaged"),
        (write_sums(b"params/\0 00"), "missing or damaged"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(folder, damage, message, capfd):
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        checkpoint.load_model(folder)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # as Orbax, of damaged files, leaves it not


def test_weights_of_folders_without_sums_are_refused_where_orbax_notices(folder):
    (folder / "params.sfv").unlink()  # as older folders have none
    checkpoint.load_model(folder)
    remove_params(folder)
    with pytest.raises(ModelError, match="params: missing or damaged"):
        checkpoint.load_model(folder)


def test_every_file_of_the_weights_has_its_crc(folder):
    lines = (folder / "params.sfv").read_text().splitlines()
    listed = dict(line.rsplit(" ", 1) for line in lines)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files - listed.keys() == {"model.json", "params.sfv"}
    for name, found in listed.items():
        assert int(found, 16) == zlib.crc32((folder / name).read_bytes())


def test_a_model_folder_and_its_parent_are_both_its_path(folder):
    assert checkpoint.resolve(folder) == folder
    assert checkpoint.resolve(folder.parent) == folder


@pytest.fixture
def preset(tmp_path, params, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PRESETS", tmp_path / "presets")
    checkpoint.save_model(tmp_path / "presets" / "little", CONFIG, params)
    return tmp_path / "presets" / "little"


def test_a_preset_is_found_by_its_name(preset):
    assert checkpoint.presets() == ["little"]
    assert checkpoint.resolve("little") == preset


@pytest.mark.parametrize("find", [checkpoint.resolve, checkpoint.preset_path])
def test_an_unknown_model_is_answered_with_the_presets(preset, find):
    with pytest.raises(ModelError, match=r"large.*little"):
        find("large")


def zeros(tree):
    return jax.tree.map(np.zeros, tree, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize(
    "has, message",
    [
        ({"a": {"b": (2, 3)}}, "a/c is missing"),
        ({"a": {"b": (3, 2), "c": (1,)}}, r"a/b has shape \[3, 2\].*asks for \[2, 3\]"),
        ({"a": {"b": (2, 3), "c": (1,)}, "d": (4,)}, "d is not part of the model"),
    ],
)
def test_check_tree_names_the_first_difference(has, message):
    with pytest.raises(ModelError, match=message):
        checkpoint.check_tree(zeros(has), zeros({"a": {"b": (2, 3), "c": (1,)}}))


def test_check_tree_accepts_what_fits(params):
    checkpoint.check_tree(params, jax.eval_shape(lambda: params))
