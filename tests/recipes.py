"""The recipes of configs/, made small enough to run in a test.

Also a file for the launcher: python launch/train.py --config=tests/recipes.py:stage1
"""

import runpy
from pathlib import Path

from conftest import MICRO_MODEL

ROOT = Path(__file__).parent.parent


def recipe_file(name: str):
    """The function of configs/NAME.py; the folder is no package."""
    path = ROOT / "configs" / f"{name}.py"
    return runpy.run_path(str(path))["get_config"]


def recipe(name: str, **changes):
    """A recipe at :tiny, with the micro model, few steps and the sample photographs."""
    config = recipe_file(name)("tiny")
    with config.unlocked():
        config.model = {part: MICRO_MODEL[part] for part in MICRO_MODEL if part in config.model}
    photographs = ROOT / "examples"
    config.data.root = config.data.validation = str(photographs)
    config.data.crop, config.data.keep = 64, {}
    config.batch_size, config.data.crops_per_image, config.panel_images = 2, 1, 1
    config.steps, config.checkpoint_every, config.log_every, config.warmup = 4, 2, 1, 1
    config.validation_batches, config.best = 0, ""  # a program more to compile
    config.muon = 0.0  # as is its orthogonalisation of each kernel
    config.update_from_flattened_dict(changes)
    return config


def get_config(name: str):
    """What the launcher calls."""
    return recipe(name)
