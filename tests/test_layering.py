"""The house's plan: who may import whom, and how long a file may be."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("onedc_jax/**/*.py"))

# Room -> what of ours it may import. A file belongs to the first room that fits; one that fits
# none fails, until it is given its place here.
ROOMS = {
    "onedc_jax.lazy": [],
    "onedc_jax.errors": [],
    # leaves: of ours, only errors (and what reads an image)
    "onedc_jax.trees": [],
    "onedc_jax.sizes": [],
    "onedc_jax.damage": [],
    "onedc_jax.images": ["damage", "errors", "sizes"],
    "onedc_jax.data": ["lazy"],
    "onedc_jax.data.*": ["errors", "images", "folders", "data.*"],
    "onedc_jax.log": ["errors"],
    "onedc_jax.metrics": [],
    "onedc_jax.sharding": ["errors"],
    "onedc_jax.compilation": [],
    "onedc_jax.targets": ["errors"],
    "onedc_jax.folders": ["errors"],
    "onedc_jax.torch_files": ["errors"],
    "onedc_jax.weights": ["errors", "trees", "torch_files"],
    "onedc_jax.captions": ["errors"],
    "onedc_jax.distributed": ["errors"],
    # what the network is
    "onedc_jax.models.attention": ["sharding"],
    "onedc_jax.models.layers": ["models.attention"],
    "onedc_jax.models.onedc": ["models.*"],
    "onedc_jax.models.dists": ["errors", "models.*", "torch_files"],
    "onedc_jax.models.*": ["errors", "trees", "models.*"],
    # models on disk
    "onedc_jax.checkpoint": ["errors", "trees"],
    "onedc_jax.convert": ["errors", "models.*", "weights", "checkpoint"],
    "onedc_jax.convert_parts": [
        *("errors", "models.*", "weights", "checkpoint", "convert", "captions"),
    ],
    "onedc_jax.quantization": ["errors", "models.*"],
    # integers and bytes; only the codec knows a network
    "onedc_jax.kept": ["folders", "images"],
    "onedc_jax.coding.codec": ["errors", "models.*", "coding.*"],
    "onedc_jax.coding.loading": ["errors", "models.*", "checkpoint", "kept", "coding.*"],
    "onedc_jax.coding.programs": ["kept"],
    "onedc_jax.coding.networks": ["trees", "models.*", "coding.programs", "coding.windows"],
    "onedc_jax.coding.path": [
        *("models.*", "checkpoint"),
        *("coding.tables", "coding.entropy", "coding.stream", "coding.windows"),
        "coding.programs",
    ],
    "onedc_jax.coding.refinement": [
        *("models.*", "coding.tables", "coding.entropy", "coding.windows"),
        *("coding.networks", "coding.path"),
    ],
    "onedc_jax.coding.proof": ["models.*", "coding.entropy", "coding.path"],
    "onedc_jax.coding.*": ["errors", "sizes", "coding.tables", "coding.stream"],
    # how it is learned
    "onedc_jax.training.loop": [
        *("errors", "models.*", "training.*"),
        *("captions", "data", "distributed", "log", "sharding", "evaluation.checkpoints"),
    ],
    "onedc_jax.training.programs": ["training.state", "sharding", "distributed"],
    "onedc_jax.training.saving": [
        *("errors", "trees", "images", "training.state", "checkpoint", "distributed"),
    ],
    "onedc_jax.training.*": [
        *("errors", "trees", "models.*", "training.*", "checkpoint", "sharding"),
    ],
    # how good it is
    "onedc_jax.evaluation.distances": ["errors", "metrics", "models.*"],
    "onedc_jax.evaluation.distributions": ["errors", "models.*", "checkpoint"],
    "onedc_jax.evaluation.codecs": ["errors", "checkpoint", "coding.loading"],
    "onedc_jax.evaluation.rate": ["errors"],
    "onedc_jax.evaluation.plots": ["errors", "evaluation.rate"],
    "onedc_jax.evaluation.checkpoints": ["errors", "metrics", "coding.*", "evaluation.*"],
    "onedc_jax.evaluation.*": [
        *("errors", "images", "folders", "log", "metrics", "evaluation.*"),
    ],
    # what people use
    "onedc_jax.transcode": ["errors", "images", "coding.stream"],
    "onedc_jax.export": ["models.*", "coding.codec", "coding.stream"],
    "onedc_jax.cli": ["*"],
    "onedc_jax.cli.*": ["*"],
    "onedc_jax": ["lazy"],
}

# These load fast: nothing heavy where a module begins.
LIGHT = {
    "onedc_jax": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli.common": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli.evaluation": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli.export": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli.files": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli.models": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.cli.quantize": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.folders": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.errors": ("jax", "flax", "numpy", "PIL", "orbax"),
    "onedc_jax.compilation": ("jax", "flax"),
    "onedc_jax.captions": ("jax", "flax", "orbax", "tokenizers"),
    "onedc_jax.transcode": ("jax", "flax", "orbax"),
    "onedc_jax.images": ("jax", "flax", "orbax"),
    "onedc_jax.data": ("jax", "flax", "grain", "numpy", "PIL", "orbax"),
    "onedc_jax.data.sources": ("jax", "flax", "grain", "pyarrow", "tensorflow_datasets"),
    "onedc_jax.data.tables": ("jax", "flax", "grain", "pyarrow", "tensorflow_datasets"),
    "onedc_jax.data.tfds": ("jax", "flax", "grain", "pyarrow", "tensorflow_datasets"),
    "onedc_jax.coding.tables": ("jax", "flax", "orbax"),
    "onedc_jax.coding.entropy": ("jax", "flax", "orbax"),
    "onedc_jax.coding.stream": ("jax", "flax", "orbax"),
}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imports(name: str, everywhere: bool = True) -> set[str]:
    """The modules that a module imports: in all of it, or only where it is loaded."""
    tree = ast.parse(MODULES[name].read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def ours(name: str) -> set[str]:
    return {other for other in imports(name) if other.split(".")[0] == "onedc_jax"}


def room_of(name: str) -> str | None:
    return next((room for room in ROOMS if fnmatch(name, room)), None)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    room = room_of(name)
    assert room or MODULES[name].read_text() == "", f"{name} has no place in the plan above"
    # Of the package itself anyone may ask for its version.
    for other in ours(name) - {"onedc_jax"}:
        allowed = any(fnmatch(other, f"onedc_jax.{pattern}") for pattern in ROOMS[room])
        assert allowed, f"{name} must not import {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_may_import_it_does(room):
    used = {other for name in MODULES if room_of(name) == room for other in ours(name)}
    for pattern in ROOMS[room]:
        assert any(fnmatch(other, f"onedc_jax.{pattern}") for other in used), pattern


def test_no_module_imports_itself_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done or name not in MODULES:
            return
        path.append(name)
        for other in sorted(ours(name)):
            visit(other)
        done.add(path.pop())

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("name", MODULES)
def test_the_package_imports_no_launcher_and_no_configuration(name):
    roots = {other.split(".")[0] for other in imports(name)}
    assert not roots & {"launch", "configs", "tests", "notebooks"}


@pytest.mark.parametrize("name", LIGHT)
def test_what_must_load_fast_imports_nothing_heavy(name):
    assert not {other.split(".")[0] for other in imports(name, everywhere=False)} & {*LIGHT[name]}


@pytest.mark.parametrize("folder", ["onedc_jax", "launch", "configs", "tests"])
def test_no_file_is_longer_than_400_lines(folder):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).glob("**/*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 400} == {}
