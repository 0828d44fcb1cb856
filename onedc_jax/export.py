"""The decoder's network as a file that runs without this package: jax alone is needed.

It is a ZIP archive of four members, none of them compressed further:

    about.json     what it is, and the inputs that the program takes
    program        from `jax.export`: StableHLO for a list of platforms
    weights.npz    the program's first argument, arrays "0", "1", …, as a list
    run.py         how to call it, as a script that runs it

so that a dozen lines, `load` below, run it anywhere. What makes y_hat of a stream's bytes is not in
it: that is `Codec.decode_latents`.
"""

import inspect
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export
import numpy as np

import onedc_jax
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.stream import MAX_RATE, TOKEN_PIXELS
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.pixels import to_uint8
from onedc_jax.models.winograd import on_cpu

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_RUN = '''\
"""Makes an image of latents; jax and flatbuffers are all that it needs.

    unzip decode.zip run.py
    python run.py decode.zip latents.npz image.npy

The program takes, in this order and as about.json lists them under "inputs",

    y_hat       float32 [1, H/16, W/16, C], what the entropy coder found
    z_indices   int32 [1, H/64, W/64], the tokens
    rate        float32 [1] in [0, 1], of a model with a quality knob only: its place / {max_rate}

where H and W are the height and width that it was made for, rounded up to multiples of 64. It
returns the image, uint8 [1, H, W, 3], which has to be cropped to the picture's size. A file's
latents come from its bytes where onedc_jax is installed, and its model is:

    header, latents = onedc_jax.load(MODEL).decode_latents(open("photo.onedc", "rb").read())
    np.savez(
        "latents.npz",
        y_hat=latents.y_hat[None],
        z_indices=latents.z_indices[None],
        rate=np.float32([(latents.rate or 0) / {max_rate}]),
        size=[header.height, header.width],
    )

Latents of a smaller picture are made as large as the program's: their last row and column are
repeated. The network takes what it sees there for a part of the picture, so that this changes a
little near it. A program of the right size makes the picture that `onedc decode` makes, up to
1024x1024 pixels: larger ones are decoded in windows there, and differ a little.
"""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np


{load}

def fitted(x, shape):
    """An array as large as the program's."""
    return np.pad(x, [(0, size - has) for size, has in zip(shape, x.shape)], mode="edge")


if __name__ == "__main__":
    archive, source, target = sys.argv[1:]
    inputs = json.loads(zipfile.ZipFile(archive).read("about.json"))["inputs"]
    given = np.load(source)
    height, width = given["size"]
    image = load(archive)(*(fitted(given[name], shape) for name, (_, shape) in inputs.items()))
    np.save(target, image[0, :height, :width])
'''


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

    y_hat, z_indices, place = codec.networks.latents((rows, columns))
    inputs = {"y_hat": y_hat, "z_indices": z_indices} | ({"rate": place} if place else {})
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
        members.writestr("run.py", _RUN.format(load=inspect.getsource(load), max_rate=MAX_RATE))
    return archive.getvalue()


# These lines are in every archive, and use nothing of this package.
def load(path: str | Path) -> Callable:
    """The program of an archive, with its weights on the device: latents -> image."""
    with zipfile.ZipFile(path) as members:
        program = jax.export.deserialize(bytearray(members.read("program")))
        arrays = np.load(io.BytesIO(members.read("weights.npz")))
    weights = jax.device_put([arrays[str(i)] for i in range(len(arrays))])
    run = jax.jit(program.call)
    return lambda *latents: np.asarray(run(weights, *latents))
