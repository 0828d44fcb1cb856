"""Meshes and shardings, all by shape. Of the models only attention asks here."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onedc_jax.errors import OneDCError

AXES = ("data", "fsdp")
_BAND = 64  # a band of an image that devices share has whole blocks of so many rows


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A mesh data × fsdp over all devices; `data=-1` takes what is left over.

    Raises OneDCError if the two do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = (data if data > 0 else len(devices) // max(fsdp, 1), fsdp)
    if min(shape) < 1 or np.prod(shape) != len(devices):
        raise OneDCError(f"mesh data={data} × fsdp={fsdp} does not fit {len(devices)} devices")
    return Mesh(_laid_out(devices, *shape), AXES, axis_types=(AxisType.Auto,) * 2)


def _laid_out(devices: Sequence[jax.Device], data: int, fsdp: int) -> np.ndarray:
    """The devices as data × fsdp, those of a process side by side, along `fsdp` first.

    A process has whole images, which only its own devices can share. On a slice of TPUs the
    shortest ways alone would lead from host to host.
    """
    hosts = len({device.process_index for device in devices})
    of_a_host = len(devices) // hosts
    within = math.gcd(fsdp, of_a_host)
    across = fsdp // within
    inside, between = (of_a_host // within, within), (hosts // across, across)
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, process_is_granule=True)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where the parts of an array of a batch go: images [B, H, W, C], captions [B, N].

    The first axis is cut over all devices. A batch of fewer images than devices (large crops) is
    cut over `data`, and each image into bands of rows over `fsdp`, by devices of one process, which
    has whole images. Raises OneDCError where neither divides.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if shape[0] % (data * fsdp) == 0:
        return NamedSharding(mesh, P(AXES))
    if (own := mesh.local_mesh.shape["fsdp"]) < fsdp:
        raise OneDCError(
            f"a batch of {shape[0]} images is cut into bands over fsdp={fsdp} devices, of which a "
            f"process has {own}; choose a smaller config.mesh.fsdp or a larger config.batch_size"
        )
    if shape[0] % data == 0 and len(shape) == 4 and shape[1] % (fsdp * _BAND) == 0:
        return NamedSharding(mesh, P("data", "fsdp"))
    if shape[0] % data == 0 and len(shape) < 4:
        return NamedSharding(mesh, P("data"))
    raise OneDCError(
        f"a batch of {shape[0]} images does not divide over a mesh of {data} × {fsdp} devices; "
        "choose another config.batch_size or config.mesh"
    )


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


def attention_spec(batch: int, heads: int) -> P | None:
    """How attention's arrays [batch, positions, heads, channels] are cut on the mesh that is set.

    Never along the positions, of which a query sees all: where images are few and cut into bands,
    the heads are shared out instead. None where no such mesh is set.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not {*AXES} <= {*mesh.axis_names}:
        return None
    data, fsdp = (mesh.shape[axis] for axis in AXES)
    if batch % (data * fsdp) == 0:
        return P(AXES, None, None)
    divides = lambda axis, size, count: axis if size % count == 0 else None
    return P(divides("data", batch, data), None, divides("fsdp", heads, fsdp))


def gathered(tree):
    """The same arrays, whole on every device of the mesh that is set; unchanged without one.

    For weights where a loss uses them: what is stored cut over `fsdp` is put together there, and
    its gradient is cut again. Left alone, the partitioner may cut activations by channel instead
    and send them around at every layer.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), tree)
