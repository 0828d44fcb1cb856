"""The decoder's network as a file that runs without this package: jax alone is needed.

It is a ZIP archive of three members, none of them compressed further:

    about.json     what it is, and the inputs that the program takes
    program        from `jax.export`: StableHLO for a list of platforms
    weights.npz    the program's first argument, arrays "0", "1", …, as a list

so that a dozen lines, `load` below, run it anywhere. What makes y_hat of a stream's bytes is not in
it: that is `Codec.decode_latents`.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import onedc_jax
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.stream import TOKEN_PIXELS
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.pixels import to_uint8
from onedc_jax.models.winograd import on_cpu

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(codec: Codec, width: int, height: int, platforms: Sequence[str] = PLATFORMS) -> bytes:
    """The archive for images of one size, in pixels, on any of `platforms`.

    The program takes (weights, y_hat float32 [1, H/16, W/16, C], tokens int32 [1, H/64, W/64]) and,
    of a model with a quality knob, its place float32 [1] in [0, 1]; H and W are rounded up to
    multiples of 64. It returns uint8 [1, H, W, 3]. All is float32, but kernels of a decoder that
    was loaded on another device than a CPU have been rounded to bfloat16.
    """
    rows, columns = (-(-side // TOKEN_PIXELS) for side in (height, width))
    # NumPy's files know no bfloat16.
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), codec.params)
    leaves, tree = jax.tree.flatten(params)

    def decode(weights, *latents):
        params = {"params": jax.tree.unflatten(tree, weights)}
        with on_cpu():
            image = codec.model.apply(params, *latents, method=OneDC.reconstruct)
        return to_uint8(image)

    inputs = {
        "y_hat": jax.ShapeDtypeStruct(
            (1, 4 * rows, 4 * columns, codec.model.codec.channels), jnp.float32
        ),
        "z_indices": jax.ShapeDtypeStruct((1, rows, columns), jnp.int32),
    }
    if codec.has_knob:
        inputs["rate"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    program = jax.export.export(jax.jit(decode), platforms=platforms)(shapes, *inputs.values())
    about = {
        "made_by": f"onedc_jax {onedc_jax.__version__}, jax {jax.__version__}",
        "model": codec.name,
        "fingerprint": f"{codec.path.fingerprint:04x}",
        "width": width,
        "height": height,
        "platforms": list(platforms),
        "inputs": {name: [str(x.dtype), list(x.shape)] for name, x in inputs.items()},
    }
    weights = io.BytesIO()
    np.savez(weights, **{str(i): leaf for i, leaf in enumerate(leaves)})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("about.json", json.dumps(about, indent=2))
        members.writestr("program", program.serialize())
        members.writestr("weights.npz", weights.getvalue())
    return archive.getvalue()


def load(path: str | Path) -> Callable:
    """The program of an archive with its weights on the device: latents as `export` says -> image.

    Copy these lines to run it without this package.
    """
    with zipfile.ZipFile(path) as members:
        program = jax.export.deserialize(bytearray(members.read("program")))
        arrays = np.load(io.BytesIO(members.read("weights.npz")))
    weights = jax.device_put([arrays[str(i)] for i in range(len(arrays))])
    run = jax.jit(program.call)
    return lambda *latents: np.asarray(run(weights, *latents))
