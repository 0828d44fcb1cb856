"""Several processes as one: how they find each other, and how they fail and stop together."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping

from onedc_jax.errors import OneDCError


def initialize(
    coordinator: str = "", processes: int = 0, process: int = -1, *, tpu_vms: bool = False
) -> None:
    """Joins the processes of a job; call it before anything touches a device.

    With `coordinator` ("host:port"), this is process number `process` of `processes`. Without it, a
    job that SLURM or GKE has spread over several processes is found from the environment; with
    `tpu_vms`, a slice of Cloud TPU VMs, of which only their metadata server tells. Anything else
    stays a single process. Raises OneDCError for flags that do not go together, and where there is
    no such slice.
    """
    import jax

    if tpu_vms and (coordinator or processes or process >= 0):
        raise OneDCError("--tpu_vms finds the other processes: leave out --coordinator and numbers")
    if coordinator:
        if not 0 <= process < processes:
            raise OneDCError(
                f"--process={process} of --processes={processes}: with --coordinator give both, "
                "and number the processes from 0"
            )
        if not coordinator.rpartition(":")[2].isdecimal():
            raise OneDCError(f"--coordinator={coordinator}: HOST:PORT is wanted")
        # Or a process that SLURM has started would take one of its GPUs only.
        alone = dict(cluster_detection_method="deactivate")
        jax.distributed.initialize(coordinator, processes, process, **alone)
    elif processes or process >= 0:
        raise OneDCError("--processes and --process need --coordinator=HOST:PORT")
    elif tpu_vms:
        _join_tpu_vms()
    elif is_cluster(os.environ):
        jax.distributed.initialize()
        if _has_node(os.environ):
            for platform in ("cuda", "rocm"):
                jax.config.update(f"jax_{platform}_visible_devices", "all")


def _join_tpu_vms() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError, OSError) as error:
        raise OneDCError(f"--tpu_vms: no slice of Cloud TPU VMs is found here ({error})") from error


def meet(place: str, patience: int = 3600) -> None:
    """Waits for all processes, so many seconds at most; each `place` is for one meeting.

    For before a collective: on CPUs that waits half a minute only for a process that has other
    things to do.
    """
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=place, timeout_ms=1000 * patience)


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one process among several of a job."""
    tasks = environment.get("SLURM_NTASKS", "1")
    # A shell inside an allocation has SLURM_NTASKS too, but only srun's tasks have a step.
    slurm = "SLURM_STEP_ID" in environment and tasks.isdigit() and int(tasks) > 1
    slice_hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return slurm or "," in slice_hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def _has_node(environment: Mapping[str, str]) -> bool:
    """Whether SLURM has given this process a node of its own, and nobody has named its GPUs.

    Of several on a node jax has each take one GPU, and of one too.
    """
    tasks, nodes = (environment.get(f"SLURM_{name}") for name in ("NTASKS", "STEP_NUM_NODES"))
    names = ("LOCAL_DEVICE_IDS", "CUDA_VISIBLE_DEVICES", "ROCM_VISIBLE_DEVICES")
    named = any(f"JAX_{name}" in environment for name in names)
    return tasks is not None and tasks == nodes and not named


@contextlib.contextmanager
def failing_together(place: str) -> Iterator[None]:
    """What fails in here on one process fails on all: or they would wait for it until they give up.

    For what some processes do alone; what waits for others in here must give up before `meet` does.
    Each `place` is for one meeting.
    """
    import jax
    from jax.experimental import multihost_utils

    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        meet(place)
        failed = multihost_utils.process_allgather(failure is not None)
        if failure is None and failed.any():
            failure = OneDCError(f"{place}: process {failed.argmax()} has failed")
    if failure is not None:
        raise failure


class Preemption:
    """Notices SIGTERM, the notice that this machine will be taken away, and Ctrl-C.

    with Preemption() as preemption:
        ...
        if preemption.reached(step): save and leave

    All processes of a job see it at the same step. Of several, Ctrl-C ends one; a single one it
    ends when it is given again.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> "Preemption":
        import jax

        self._alone = jax.process_count() == 1
        self._noticed = False
        if self._alone:  # with several, jax's own service has the signal and agrees on a step
            self._before = {n: signal.signal(n, self._notice) for n in self._SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        if self._alone:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _notice(self, number: int, _) -> None:
        self._noticed = True
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            print("\nstops after this step; Ctrl-C again stops at once", file=sys.stderr)

    def reached(self, step: int) -> bool:
        if self._alone:
            return self._noticed
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
