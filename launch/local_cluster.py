"""Runs a command as several processes on this machine, each with CPU devices of its own.

    python launch/local_cluster.py --processes 2 --devices 4 -- \\
        python launch/train.py --config=configs/stage1.py:tiny --workdir=runs/cluster

What a pod does, to try before a pod is at hand. Each process is told where the others are
(--coordinator, --processes, --process); the first one's output is shown, and the others' where they
fail. SIGTERM and Ctrl-C reach all of them.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4, help="CPU devices of each process")
    parser.add_argument("command", nargs="+", help="what each process runs, after --")
    arguments = parser.parse_args()
    if not shutil.which(arguments.command[0]):
        parser.exit(2, f"local_cluster: {arguments.command[0]}: no such command\n")
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={arguments.devices}",
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        place = [f"--coordinator=localhost:{_free_port()}", f"--processes={arguments.processes}"]
        running, logs = [], []
        for process in range(arguments.processes):
            log = files.enter_context(open(Path(folder, str(process)), "w+b")) if process else None
            command = [*arguments.command, *place, f"--process={process}"]
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            logs.append(log)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: [p.send_signal(n) for p in running])
        first, codes = _wait(running)
        for process, (code, log) in enumerate(zip(codes, logs, strict=True)):
            if log:
                log.seek(0)
                text = log.read().decode(errors="replace")
                if code:
                    print(f"process {process} ended with {code}:\n{text}", file=sys.stderr)
    return abs(first)


def _wait(running: list[subprocess.Popen]) -> tuple[int, list[int]]:
    """The first exit code that is not 0, or 0, and all, once all have ended.

    Where one fails, the others would wait for it forever, and are killed.
    """
    first = 0
    while any([process.poll() is None for process in running]):  # of all, at each turn
        first = first or next((p.returncode for p in running if p.returncode), 0)
        if first:
            for process in running:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in running]
    return first or next(filter(None, codes), 0), codes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
