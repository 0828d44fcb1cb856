"""Single networks from released files -> model folders, at small size where there is one."""

import json

import jax
import numpy as np
import pytest
from reference import checkpoint as seeded
from reference import draw
from safetensors.numpy import save_file

from onedc_jax.captions import load_tokenizer
from onedc_jax.checkpoint import load_model
from onedc_jax.convert_parts import PARTS, convert_part
from onedc_jax.errors import ModelError

UNET = {"widths": [32, 64, 64, 64]}
TEXT = {"vocabulary": 512, "width": 96, "layers": 3, "heads": 4, "hidden": 192}


def unet_tensors():
    prefix = "real_unet."
    tensors = seeded("micro/guidance", "guidance.")
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A diffusion pipeline's folder: U-Net, VAE, text encoder and tokenizer, each in its place."""
    root = tmp_path_factory.mktemp("pipeline")
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        (root / name).mkdir()
    save_file(unet_tensors(), root / "unet" / "diffusion_pytorch_model.safetensors")
    vae = seeded("micro/vae", "vae.")
    save_file(vae, root / "vae" / "diffusion_pytorch_model.safetensors")
    text = seeded("micro/text_encoder", "text_encoder.")
    text["text_model.embeddings.position_ids"] = np.arange(77)[None]  # no parameter
    save_file(text, root / "text_encoder" / "model.safetensors")
    vocabulary = {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "a": 3}
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return root


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "kind, fields, tensors",
    [
        ("unet", UNET, unet_tensors),
        ("vae", {"widths": [32, 32, 64, 64]}, lambda: seeded("micro/vae", "vae.")),
        ("text", TEXT, lambda: seeded("micro/text_encoder", "text_encoder.")),
    ],
)
def test_parts_of_a_pipeline_are_found_and_whole(pipeline, tmp_path, kind, fields, tensors):
    convert_part(kind, pipeline, tmp_path / "model", fields=fields)
    config, params = load_model(tmp_path / "model")
    assert list(params) == [kind] and config[kind] == fields
    assert count(params) == count(tensors())


def test_a_diffusion_model_says_that_it_knows_captions(pipeline, tmp_path):
    convert_part("unet", pipeline / "unet", tmp_path / "model", fields=UNET, dtype="bfloat16")
    config, params = load_model(tmp_path / "model")
    assert config["text"] == {}
    kernel = params["unet"]["conv_in"]["kernel"]
    assert kernel.dtype == "bfloat16"
    weight = unet_tensors()["conv_in.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel.astype(np.float32), weight, rtol=2**-8)


def test_a_text_encoder_brings_its_tokenizer(pipeline, tmp_path):
    source = pipeline / "text_encoder" / "model.safetensors"
    convert_part("text", source, tmp_path / "model", fields=TEXT)
    assert list(load_tokenizer(tmp_path / "model")("A")[:3]) == [1, 0, 2]


def test_a_text_encoder_appears_with_its_tokenizer_or_not_at_all(pipeline, tmp_path, monkeypatch):
    def killed(*files):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_part("text", pipeline, tmp_path / "model", fields=TEXT)
    assert not list(tmp_path.iterdir())


def test_a_text_encoder_without_tokenizer_is_refused(pipeline, tmp_path):
    file = tmp_path / "deep" / "text_encoder" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes((pipeline / "text_encoder" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="--tokenizer DIR"):
        convert_part("text", file, tmp_path / "model", fields=TEXT)
    convert_part("text", file, tmp_path / "model", fields=TEXT, tokenizer=pipeline)
    assert (tmp_path / "model" / "tokenizer" / "vocab.json").is_file()


def test_the_tokenizer_of_images_is_whole(tmp_path):
    tensors = seeded("micro/tokenizer", "tokenizer.")
    save_file(tensors, tmp_path / "maskgit.safetensors")
    convert_part("tokenizer", tmp_path / "maskgit.safetensors", tmp_path / "model")
    _, params = load_model(tmp_path / "model")
    codes = params["tokenizer"]["quantize"]["embedding"]["embedding"]
    assert codes.shape == (1024, 256)
    assert count(params) == count(tensors)


@pytest.fixture
def perceptual(tmp_path):
    """VGG16 with its classifier, and the layers of LPIPS."""
    vgg = seeded("micro/vgg16", "vgg16.") | {"classifier.0.weight": np.ones((4, 4), np.float32)}
    save_file(vgg, tmp_path / "vgg16.safetensors")
    sizes = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": draw(f"{i}", (1, n, 1, 1)) for i, n in enumerate(sizes)}
    save_file(heads, tmp_path / "heads.safetensors")
    return tmp_path, heads


def test_lpips_is_put_together(perceptual):
    folder, heads = perceptual
    vgg, layers = folder / "vgg16.safetensors", folder / "heads.safetensors"
    convert_part("lpips", vgg, folder / "model", heads=layers)
    config, params = load_model(folder / "model")
    assert config == {"lpips": {"net": "vgg"}}
    head = params["lpips"]["head_3"]
    np.testing.assert_array_equal(head, heads["lin3.model.1.weight"].reshape(-1))
    with pytest.raises(ModelError, match="--heads FILE"):
        convert_part("lpips", vgg, folder / "other")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lin4.model.1.weight": None}, r"lin4\.model\.1\.weight is missing"),
        ({"lin5.model.1.weight": np.ones(4)}, r"lin5\.model\.1\.weight is unexpected"),
        ({"linear.model.1.weight": np.ones(4)}, r"linear\.model\.1\.weight is unexpected"),
    ],
)
def test_other_layers_of_lpips_are_named_as_their_file_does(perceptual, change, message):
    folder, heads = perceptual
    few = {name: x for name, x in (heads | change).items() if x is not None}
    save_file(few, folder / "heads.safetensors")
    vgg = folder / "vgg16.safetensors"
    with pytest.raises(ModelError, match=rf"heads\.safetensors: tensor {message}"):
        convert_part("lpips", vgg, folder / "model", heads=folder / "heads.safetensors")


@pytest.mark.parametrize(
    "kind, file, key, value",
    [
        ("vae", "vae/config.json", "scaling_factor", 0.13025),
        ("unet", "unet/config.json", "attention_head_dim", [5, 10, 20, 20]),
        ("unet", "unet/config.json", "cross_attention_dim", 1024),
        ("unet", "scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
    ],
)
def test_what_a_pipeline_says_of_another_network_is_refused(tmp_path, kind, file, key, value):
    for folder in ("unet", "vae", "scheduler"):
        (tmp_path / folder).mkdir()
    accepted = {"scaling_factor": 0.18215, "attention_head_dim": 8, "cross_attention_dim": None}
    (tmp_path / file).write_text(json.dumps(accepted))
    with pytest.raises(ModelError, match="no weights in this folder"):
        convert_part(kind, tmp_path, tmp_path / "model")
    (tmp_path / file).write_text(json.dumps(accepted | {key: value}))
    with pytest.raises(ModelError, match=f"config.json: {key} is .*, expected "):
        convert_part(kind, tmp_path, tmp_path / "model")


def test_integers_are_no_inception(tmp_path):
    save_file({"fc.weight": np.zeros((1008, 1), np.int8)}, tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=r"fc\.weight holds int8"):
        convert_part("inception", tmp_path / "file.safetensors", tmp_path / "model")


def test_another_network_is_refused_tensor_by_tensor(pipeline, tmp_path):
    with pytest.raises(ModelError, match="is missing"):
        convert_part("unet", pipeline / "vae", tmp_path / "model", fields=UNET)
    with pytest.raises(ModelError, match=f"expected one of {', '.join(PARTS)}"):
        convert_part("codec", pipeline, tmp_path / "model")
    with pytest.raises(ModelError, match=r"unknown field 'width'$"):
        convert_part("unet", pipeline, tmp_path / "model", fields={"width": [32]})
    assert not list(tmp_path.iterdir())
    keys = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    save_file({keys: np.ones(4, np.float32)}, tmp_path / "flat.safetensors")
    with pytest.raises(ModelError, match=r"to_k\.weight has shape \[4\]"):
        convert_part("unet", tmp_path / "flat.safetensors", tmp_path / "model", fields=UNET)
