"""Strict modes on, and the golden arrays of the reference (tests/golden) at hand."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
