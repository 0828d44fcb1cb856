"""Meshes and shardings, all by shape: the models know nothing of them."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onedc_jax.errors import OneDCError

AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh data × fsdp over all devices; `data=-1` takes what is left over.

    Raises OneDCError if the two do not fit the number of devices.
    """
    devices = jax.devices()
    shape = (data if data > 0 else len(devices) // max(fsdp, 1), fsdp)
    if min(shape) < 1 or np.prod(shape) != len(devices):
        raise OneDCError(f"mesh data={data} × fsdp={fsdp} does not fit {len(devices)} devices")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over every device."""
    return NamedSharding(mesh, P(AXES))


def shard_by_shape(mesh: Mesh, tree, min_size: int = 2**16):
    """A sharding for each array: its largest divisible axis over `fsdp`, small ones replicated."""
    n = mesh.shape["fsdp"]

    def rule(x):
        axes = [i for i in range(x.ndim) if x.shape[i] % n == 0]
        if n == 1 or x.size < min_size or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, P(*[None] * axis, "fsdp"))

    return jax.tree.map(rule, tree)
