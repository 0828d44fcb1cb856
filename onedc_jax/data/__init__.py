"""Photographs in, training batches out.

A source is examples by number, `open_source("photos/")[7]`, whatever they are stored in; `batches`
makes of it what a training step takes, and `python -m onedc_jax.data` packs one into few files.
"""

from onedc_jax import lazy

# Looked up when first asked for: the pipeline imports grain, and that jax.
_HOMES = {
    "ArrayRecords": "onedc_jax.data.sources",
    "Example": "onedc_jax.data.examples",
    "ImageFolder": "onedc_jax.data.sources",
    "RandomCrops": "onedc_jax.data.views",
    "Source": "onedc_jax.data.examples",
    "SourceCrops": "onedc_jax.data.views",
    "Tables": "onedc_jax.data.tables",
    "TfdsImages": "onedc_jax.data.tfds",
    "batches": "onedc_jax.data.pipeline",
    "check_divides": "onedc_jax.data.pipeline",
    "make_views": "onedc_jax.data.views",
    "open_source": "onedc_jax.data.sources",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy.attributes(__name__, _HOMES)
