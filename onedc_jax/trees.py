"""Trees of parameters by the names of their leaves: "/"-joined, as in "codec/prior/conv/kernel"."""

from collections.abc import Callable
from typing import Any

import jax


def named(tree: Any) -> dict[str, Any]:
    """A tree's leaves by name, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of function(name, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(_name(path), x), tree)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
