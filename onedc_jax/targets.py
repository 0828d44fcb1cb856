"""Accelerators that are not at hand, to compile for: what a program needs there, and what it holds.

XLA's compilers run on any machine. That for TPUs comes with `pip install "jax[tpu]"`, that for
NVIDIA GPUs with `pip install "jax[cuda12]"`. What would be chosen by trying on a GPU, as algorithms
of convolutions, is left to the compiler's rules.
"""

import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from onedc_jax.errors import OneDCError, one_line


class _GPU(NamedTuple):
    """What XLA wants to know of a GPU, by its names; memory in bytes."""

    core_count: int
    fpus_per_core: int
    threads_per_core_limit: int
    clock_rate_ghz: float
    shared_memory_per_core: int
    shared_memory_per_block_optin: int
    l2_cache_size: int
    memory_bandwidth: int  # a second
    device_memory_size: int
    cuda_compute_capability: str


_T4 = _GPU(40, 64, 1024, 1.59, 65536, 65536, 4 << 20, 320064 * 10**6, 15828320256, "7.5")
_A100 = _GPU(108, 64, 2048, 1.41, 167936, 166912, 40 << 20, 2039040 * 10**6, 85100068864, "8.0")
_H100 = _GPU(132, 128, 2048, 1.98, 233472, 232448, 50 << 20, 3352320 * 10**6, 84942979072, "9.0")
_H200 = _H100._replace(memory_bandwidth=4800 * 10**9, device_memory_size=151397597184)
_GPUS = dict(t4=_T4, a100=_A100, h100=_H100, h200=_H200)

# What all of these have, and the libraries that programs are to be for.
_OF_ALL = """
    threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152
    block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
    registers_per_core_limit: 65536  registers_per_block_limit: 65536
"""
_LIBRARIES = """
    platform_name: "CUDA"
    dnn_version_info { major: 9  minor: 8 }  runtime_version { major: 12  minor: 9 }
"""

# With these libtpu can be loaded where there is no TPU: it asks nobody, and locks nothing.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}

HELP = f"{', '.join(_GPUS)}, or a slice of TPUs such as v5e:4x8"


def target_devices(target: str, count: int = 1) -> list[jax.Device]:
    """Devices to compile for, by a `target` as in HELP; nothing can run on them.

    Of GPUs there are `count`, in one machine; a slice of TPUs has as many as it says. Raises
    OneDCError for a target that there is not, or whose compiler is not installed.
    """
    if target in _GPUS:
        where, package = _machine(target, count), "jax[cuda12]"
    elif re.fullmatch(r"v\d+[a-z]*:\d+(x\d+)+", target):
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)
        where, package = dict(platform="tpu", topology_name=target), "jax[tpu]"
    else:
        raise OneDCError(f"{target}: no such target; choose {HELP}")
    try:
        return list(topologies.get_topology_desc(**where).devices)
    except jax.errors.JaxRuntimeError as error:
        raise OneDCError(f"{target}: {one_line(error)}") from error
    except (NotImplementedError, RuntimeError) as error:
        raise OneDCError(f'{target}: its compiler is missing; pip install "{package}"') from error


def shapes_on(device: jax.Device, tree: Any) -> Any:
    """Shapes and dtypes of a tree, as of arrays on a device: what they are lowered to is for it."""
    there = jax.sharding.SingleDeviceSharding(device)
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
    return jax.tree.map(shape, tree)


def _machine(name: str, count: int) -> dict[str, str]:
    """So many of a GPU, as the arguments of `get_topology_desc`."""
    facts = _GPUS[name]._asdict()
    major, minor = facts.pop("cuda_compute_capability").split(".")
    numbers = "  ".join(f"{field}: {value}" for field, value in facts.items())
    capability = f"cuda_compute_capability {{ major: {major}  minor: {minor} }}"
    config = (
        f"gpu_device_info {{ {capability}  {numbers}  {_OF_ALL} }} {_LIBRARIES}"
        f'device_description_str: "NVIDIA {name.upper()}"'
    )
    return dict(platform="cuda", target_config=config, topology=f"1x1x{count}")
