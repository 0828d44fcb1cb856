"""Compiled programs kept from one run to the next."""

import os
from pathlib import Path


def enable_compilation_cache() -> Path | None:
    """Lets jax keep what it compiles in the user's cache folder; call it before the first jit.

    The folder is the one that jax has been given, as by $JAX_COMPILATION_CACHE_DIR, otherwise
    onedc_jax/xla below $XDG_CACHE_HOME or ~/.cache. Returns it, or None where none can be written
    (then every run compiles anew), or where it is a bucket, which is left to jax.
    """
    import jax

    # The networks are many middling functions: jax's default of one second would keep few of them.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    chosen = jax.config.jax_compilation_cache_dir or ""
    if "://" in chosen:
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(chosen or Path(base, "onedc_jax", "xla"))
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not os.access(folder, os.W_OK):
        return None
    if not chosen:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
