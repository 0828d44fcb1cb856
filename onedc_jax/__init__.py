"""OneDC, an extreme image codec: a photo in, a small file out, the photo back.

In Python:

    codec = onedc_jax.load("tiny")     # an embedded preset, or the path of a checkpoint
    data = codec.encode(image)         # uint8 [H, W, 3] -> bytes
    image = codec.decode(data)         # bytes -> uint8 [H, W, 3]

Errors that a caller can mend are OneDCErrors (ValueErrors), and say in one line what is wrong.
"""

from onedc_jax import lazy

__version__ = "0.1.0"

# Looked up when first asked for, so that importing the package does not import jax.
_HOMES = {
    "load": "onedc_jax.coding.loading",
    "enable_compilation_cache": "onedc_jax.compilation",
    "OneDCError": "onedc_jax.errors",
    "StreamError": "onedc_jax.errors",
    "ModelError": "onedc_jax.errors",
    "ImageError": "onedc_jax.errors",
}
__all__ = ["__version__", *_HOMES]
__getattr__, __dir__ = lazy.attributes(__name__, _HOMES)
