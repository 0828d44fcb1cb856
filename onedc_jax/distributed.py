"""Several processes as one: how they find each other, and how they stop together."""

import os
import signal
import sys
from collections.abc import Mapping

from onedc_jax.errors import OneDCError


def initialize(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins the processes of a job; call it before anything touches a device.

    With `coordinator` ("host:port"), this is process number `process` of `processes`. Without it,
    a job that SLURM or a TPU slice has spread over several processes is found from the environment,
    and anything else stays a single process. Raises OneDCError for flags that do not go together.
    """
    import jax

    if coordinator:
        if not 0 <= process < processes:
            raise OneDCError(
                f"--process={process} of --processes={processes}: with --coordinator give both, "
                "and number the processes from 0"
            )
        if not coordinator.rpartition(":")[2].isdecimal():
            raise OneDCError(f"--coordinator={coordinator}: HOST:PORT is wanted")
        jax.distributed.initialize(coordinator, processes, process)
    elif processes or process >= 0:
        raise OneDCError("--processes and --process need --coordinator=HOST:PORT")
    elif is_cluster(os.environ):
        jax.distributed.initialize()


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
