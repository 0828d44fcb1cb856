"""Released files -> a model folder, at small size."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from reference import checkpoint as seeded
from safetensors.numpy import save_file

from onedc_jax.checkpoint import HEAD, load_model
from onedc_jax.convert import check_stated, convert, read_config
from onedc_jax.errors import ModelError

CONFIG = {
    "vae": {"widths": [32, 32, 64, 64]},
    "codec": {
        "channels": 32,
        "internal": 64,
        "semantic": 96,
        "features": 64,
        "analysis_unet": {"widths": [64, 96, 96]},
    },
    "generator": {"unet": {"widths": [32, 64, 64, 64], "rank": 4}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The three released files, as the arguments of `convert`."""
    folder = tmp_path_factory.mktemp("released")
    codec, generator, vae = (folder / name for name in ("codec", "generator", "vae"))
    vae.mkdir()
    codec, generator = codec.with_suffix(".safetensors"), generator.with_suffix(".safetensors")
    save_file(seeded("micro/codec", "codec."), codec)
    save_file(seeded("micro/unet", "unet."), generator)
    save_file(seeded("micro/vae", "vae."), vae / "diffusion_pytorch_model.safetensors")
    return codec, generator, vae


def test_every_tensor_is_in_its_place(files, tmp_path):
    convert(*files, tmp_path / "model", config=CONFIG)
    config, params = load_model(tmp_path / "model")
    assert config == CONFIG
    kernel = params["generator"]["unet"]["conv_in"]["kernel"]
    weight = seeded("micro/unet", "unet.")["conv_in.weight"]
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 1, 0))
    count = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert count == {"codec": 6_768_071, "generator": 3_674_860, "vae": 1_399_879}


def test_merged_and_narrower_weights(files, tmp_path):
    convert(*files, tmp_path / "model", config=CONFIG, merge_lora=True, dtype="bfloat16")
    config, params = load_model(tmp_path / "model")
    assert config["generator"]["unet"] == CONFIG["generator"]["unet"] | {"rank": 0}
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}

    layer = params["generator"]["unet"]["mid_block"]["resnets_0"]["time_emb_proj"]
    assert set(layer) == {"kernel", "bias"}
    name = "mid_block.resnets.0.time_emb_proj"
    w, a, b = (
        seeded("micro/unet", "unet.")[f"{name}.{x}.weight"]
        for x in ("base_layer", "lora_A.default", "lora_B.default")
    )
    merged = (w + b @ a * (8 / 4)).T  # alpha 8, rank 4
    np.testing.assert_allclose(layer["kernel"].astype(np.float32), merged, rtol=2**-8, atol=1e-6)


def test_an_unreadable_file_is_named(files, tmp_path):
    codec, generator, _ = files
    with pytest.raises(ModelError, match="nowhere: no such weight file"):
        convert(codec, generator, tmp_path / "nowhere", tmp_path / "model", config=CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_configuration_is_named(files, tmp_path):
    with pytest.raises(ModelError, match=r"configuration.*'width'"):
        convert(*files, tmp_path / "model", config={"vae": {"width": [32]}})


@pytest.mark.parametrize(
    "config, message",
    [
        ({"foo": 1}, "unknown field 'foo'$"),
        ({"vae": None}, "layers do not fit"),
        ({"vae": {"widths": []}}, r"layers do not fit \(tuple index out of range"),
        ({"timestep": 1}, "unknown field 'timestep'$"),
    ],
)
def test_a_configuration_of_no_model_is_named_with_its_file(files, tmp_path, config, message):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}") as error:
        convert(*files, tmp_path / "model", config=file)
    assert "__init__" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_file_of_no_configuration_is_named(tmp_path, text):
    file = tmp_path / "config.json"
    if text:
        file.write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: (cannot be read|not)"):
        read_config(file, {})


def test_the_configuration_of_a_model_folder_serves_as_well(tmp_path):
    file = tmp_path / "model.json"
    file.write_text(json.dumps(dict.fromkeys(HEAD, 1) | CONFIG))
    assert read_config(file, {}) == (str(file), CONFIG)


def test_a_vae_of_another_scale_is_refused(files, tmp_path):
    *others, vae = files
    file = "diffusion_pytorch_model.safetensors"
    (tmp_path / file).symlink_to(vae / file)
    (tmp_path / "config.json").write_text('{"scaling_factor": 0.13025, "act_fn": "silu"}')
    with pytest.raises(ModelError, match=r"scaling_factor is 0\.13025, expected 0\.18215"):
        convert(*others, tmp_path, tmp_path / "model", config=CONFIG)
    check_stated(tmp_path, {("config.json", "scaling_factor"): 0.13025, ("none.json", "x"): 1})


def test_a_place_below_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    nowhere = 3 * [tmp_path / "nowhere"]
    with pytest.raises(ModelError, match=r"model: cannot be made, .*file is not a folder"):
        convert(*nowhere, tmp_path / "file" / "runs" / "model")


def test_an_existing_folder_is_kept(files, tmp_path):
    with pytest.raises(ModelError, match="exists already"):
        convert(*files, tmp_path)
