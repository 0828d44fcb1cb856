"""convert and convert-part: models from what others released."""

import argparse

from onedc_jax.cli.common import command, path, quiet

_CONVERT = """\
Turns released PyTorch weights (safetensors or .bin) into a model folder for --model. Every tensor
must find its place and every parameter its tensor."""

_CONVERT_EXAMPLES = """\
example:
  onedc convert --codec model_1.safetensors --generator model.safetensors --vae sd21/vae --out big
  onedc encode photo.jpg --model big

`onedc convert-part` converts one network that training starts from: a diffusion U-Net, a VAE, a
text encoder, a tokenizer, LPIPS, and the network of FID."""

_CONVERT_PART = """\
Turns one network that others released (safetensors, .bin or .pth) into a model folder for training
to start from, or for evaluation. Every tensor must find its place and every parameter its tensor.

KIND, and who takes what becomes of it:
  unet       Stable Diffusion 1.5's U-Net              stage 2  --config.init.teacher
             DMD2's one-step generator                 stage 1  --config.init.unet
  vae        Stable Diffusion 2.1's                    stage 1  --config.init.vae
  text       CLIP's text encoder, with its tokenizer   stage 2  --config.init.text
  tokenizer  MaskGIT's VQGAN                           stage 1  --config.distillation.tokenizer
  lpips      torchvision's VGG16 (with --heads)        stage 2  --config.init.lpips
  inception  FID's, pt_inception-2015-12-05            eval     --inception"""

_CONVERT_PART_EXAMPLES = """\
examples:
  onedc convert-part unet sd15 --out models/sd15
  onedc convert-part lpips vgg16.pth --heads lpips/vgg.pth --out models/lpips"""


def add(commands) -> None:
    """Adds the subcommands."""

    def stored_type(child):
        child.add_argument(
            "--dtype",
            choices=("float32", "bfloat16"),
            default="float32",
            help="the type that weights are stored in (default: %(default)s)",
        )

    child = command(
        commands, "convert", _convert, "released weights to a model", _CONVERT, _CONVERT_EXAMPLES
    )
    for name, metavar, help in (
        ("--codec", "FILE", "the codec's tensors"),
        ("--generator", "FILE", "the one-step U-Net's tensors"),
        ("--vae", "DIR", "the VAE's folder or file"),
        ("--out", "CKPT", "the model folder to make"),
    ):
        child.add_argument(name, type=path, required=True, metavar=metavar, help=help)
    child.add_argument(
        "--config", type=path, metavar="JSON", help="the model's widths, if not the released ones"
    )
    child.add_argument(
        "--merge-lora", action="store_true", help="add the low-rank updates to their base weights"
    )
    stored_type(child)

    help = "one released network to train from"
    child = command(
        commands, "convert-part", _convert_part, help, _CONVERT_PART, _CONVERT_PART_EXAMPLES
    )
    kinds = ("unet", "vae", "text", "tokenizer", "lpips", "inception")
    child.add_argument("kind", choices=kinds, metavar="KIND", help="what it is, see above")
    child.add_argument(
        "source", type=path, metavar="SOURCE", help="a file, its folder or that of a pipeline"
    )
    for name, metavar, help in (
        ("--out", "DIR", "the model folder to make"),
        ("--heads", "FILE", "lpips: the weights of its layers"),
        ("--tokenizer", "DIR", "text: vocab.json and merges.txt, if not beside the source"),
        ("--config", "JSON", "the network's widths, if not the released ones"),
    ):
        child.add_argument(name, type=path, required=name == "--out", metavar=metavar, help=help)
    stored_type(child)


def _convert(arguments: argparse.Namespace) -> int:
    quiet()
    from onedc_jax.convert import convert

    convert(
        arguments.codec,
        arguments.generator,
        arguments.vae,
        arguments.out,
        config=arguments.config,
        merge_lora=arguments.merge_lora,
        dtype=arguments.dtype,
    )
    print(f"{arguments.out}: use it with --model {arguments.out}")
    return 0


def _convert_part(arguments: argparse.Namespace) -> int:
    quiet()
    from onedc_jax.convert_parts import convert_part

    convert_part(
        arguments.kind,
        arguments.source,
        arguments.out,
        heads=arguments.heads,
        tokenizer=arguments.tokenizer,
        fields=arguments.config,
        dtype=arguments.dtype,
    )
    purpose = "evaluation to use" if arguments.kind == "inception" else "training to start from"
    print(f"{arguments.out}: the {arguments.kind}, for {purpose}")
    return 0
