"""How the processes of a job find each other, and what each of them sees."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from onedc_jax.distributed import initialize
from onedc_jax.errors import OneDCError

ROOT = Path(__file__).parent.parent
LOOK = """
import sys, jax
from onedc_jax.distributed import initialize
initialize(*sys.argv[1:2], *map(int, sys.argv[2:]))
print(jax.process_count(), jax.config._read("jax_cuda_visible_devices"))
"""


def seen(nodes: int, named: bool) -> list[str]:
    """What two processes that SLURM has started see, on so many nodes, all of them this machine.

    They find each other by SLURM, or as they are `named`.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    job = dict(SLURM_JOB_ID="7", SLURM_STEP_ID="0", SLURM_STEP_NODELIST="localhost")
    job |= dict(SLURM_NTASKS="2", SLURM_STEP_NUM_NODES=str(nodes), JAX_COORDINATOR_PORT=str(port))
    job |= dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    tasks = []
    try:
        for task in range(2):
            own = dict(SLURM_PROCID=str(task), SLURM_LOCALID=str(task % (2 // nodes)))
            place = [f"localhost:{port}", "2", str(task)] if named else []
            command = [sys.executable, "-c", LOOK, *place]
            options = dict(env=os.environ | job | own, stdout=subprocess.PIPE, text=True)
            tasks.append(subprocess.Popen(command, **options))
        return [task.communicate(timeout=100)[0].strip() for task in tasks]
    finally:
        for task in tasks:
            task.kill()


@pytest.mark.parametrize(
    ("nodes", "named", "wanted"),
    [(2, False, ["2 all"] * 2), (2, True, ["2 all"] * 2), (1, False, ["2 0", "2 1"])],
)
def test_a_process_alone_on_its_node_has_all_gpus_and_others_one_each(nodes, named, wanted):
    assert seen(nodes, named) == wanted


def test_hosts_of_a_tpu_slice_are_asked_for_and_missed(monkeypatch):
    def nothing():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)
    with pytest.raises(OneDCError, match="--tpu_vms: no slice of Cloud TPU VMs is found here"):
        initialize(tpu_vms=True)
    initialize()  # nobody is asked
    with pytest.raises(OneDCError, match="--tpu_vms finds the other processes"):
        initialize("localhost:1234", 2, 0, tpu_vms=True)
