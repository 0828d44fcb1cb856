"""Trains a stage: python launch/train.py --config=configs/stage1.py:tiny --workdir=runs/stage1

The same command again continues where the run stopped. Any value of the configuration can be
changed: --config.steps=1000 --config.data.root=photos/

Started by SLURM or GKE, it finds the other processes by itself; on hosts of a slice of Cloud TPU
VMs, give --tpu_vms. Elsewhere, name them: --coordinator=HOST:PORT --processes=N --process=I
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from onedc_jax.cli import recipes
from onedc_jax.compilation import enable_compilation_cache
from onedc_jax.distributed import initialize
from onedc_jax.errors import OneDCError
from onedc_jax.folders import explain
from onedc_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/stage1.py:tiny.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, pictures."
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, of several.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes the job has.")
_PROCESS = flags.DEFINE_integer("process", -1, "The number of this process, from 0.")
_TPU_VMS = flags.DEFINE_bool("tpu_vms", False, "One of the hosts of a slice of Cloud TPU VMs.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every rename
    enable_compilation_cache()
    try:
        place = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
        initialize(*place, tpu_vms=_TPU_VMS.value)
        train(_CONFIG.value, _WORKDIR.value)
    except (OneDCError, OSError) as error:
        recipes.fail("train", explain(error))
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=recipes.parser("train", _CONFIG))
