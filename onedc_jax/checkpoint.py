"""Models on disk: a folder with `model.json`, the configuration, and `params/`, the weights.

The configuration travels with the weights, so that a path alone loads a model.
Orbax writes and reads the weights, and `params.sfv` lists what it wrote with checksums: of some
damage Orbax makes other weights, of some an endless complaint.
"""

import hashlib
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onedc_jax.errors import ModelError, one_line
from onedc_jax.trees import named

FORMAT = 1  # of the folder; a reader refuses any other
# The keys of model.json that are no configuration; "checksum" was written for some days only.
HEAD = {"format", "fingerprint", "seal", "checksum"}
_SUMS = "params.sfv"  # as `cksfv` reads it

_PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """The names of the models that come with this package."""
    return sorted(path.parent.name for path in _PRESETS.glob("*/model.json"))


def preset_path(name: str) -> Path:
    """The folder of an embedded model; ModelError if there is none of this name."""
    if name not in presets():
        raise ModelError(f"{name}: no such preset; there is {', '.join(presets()) or 'none'}")
    return _PRESETS / name


def resolve(name_or_path: str | Path) -> Path:
    """The model folder that is meant: a preset's name, a model folder, or a training run's workdir.

    A preset's name wins over a folder of the same name; write ./NAME for the folder.
    """
    if str(name_or_path) in presets():
        return preset_path(str(name_or_path))
    path = Path(name_or_path)
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            return folder
    reason = "no model.json in this folder" if path.is_dir() else "no such model folder"
    raise ModelError(f"{path}: {reason}; the presets are: {', '.join(presets()) or 'none'}")


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """ModelError if `path` exists and may not be replaced; worth asking before a long job.

    Even with `overwrite`, what is no model folder is never replaced.
    """
    path = Path(path)
    if path.exists() and not (overwrite and (path / "model.json").is_file()):
        raise ModelError(f"{path}: exists already; remove it or choose another name")


def save_model(
    path: str | Path,
    config: Mapping[str, Any],
    params: Any,
    *,
    copied: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model folder; it appears complete or not at all.

    Where it replaces another there is neither for a moment: who is killed then finds that one in a
    hidden folder beside it. `config`: plain and JSON-able, as `models.onedc.build` takes it.
    `params`: a tree of arrays, stored in the dtypes that they have. `copied`: files from elsewhere,
    by their places in the folder. Of several processes all call it; the first one writes. Raises
    ModelError if `path` exists, unless it is a model folder and `overwrite`.
    """
    from orbax.checkpoint import v1 as ocp

    refuse_existing(path, overwrite)
    path = Path(path).absolute()
    first = jax.process_index() == 0
    scratch = _scratch(path)
    try:
        new = scratch / "new"
        if first:
            new.mkdir(parents=True)
            head = {"format": FORMAT, "fingerprint": fingerprint(params)}
            head["seal"] = _seal(config, params)
            text = json.dumps(head | dict(config), indent=2) + "\n"
            (new / "model.json").write_text(text)
        context = ocp.Context()
        # Nobody changes the arrays meanwhile, so big models need not be copied first.
        context.memory.deepcopy_host_arrays = False
        with context:
            # Numpy arrays carry no device or mesh into the file, so that any machine can load it.
            ocp.save(new / "params", jax.device_get(params))
        if first:
            if (mark := new / "params" / "commit_success.txt").exists():
                mark.write_text("params\n")  # not where it was written, which is gone
            files = sorted(file for file in (new / "params").rglob("*") if file.is_file())
            lines = [f"{file.relative_to(new).as_posix()} {_crc32(file)}\n" for file in files]
            (new / _SUMS).write_text("".join(lines))
            for name, file in (copied or {}).items():
                (new / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, new / name)
            _replace(path, new, scratch / "old")
    finally:
        if first:
            shutil.rmtree(scratch)


def copy_model(source: Path, path: Path) -> None:
    """Copies a model folder; another in its place is replaced, and it appears whole or not at all.

    Raises ModelError as `save_model` with `overwrite`. To be called by one process.
    """
    refuse_existing(path, overwrite=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new = shutil.copytree(source, Path(scratch, "new"))
        _replace(path, new, Path(scratch, "old"))


def _replace(path: Path, new: Path, old: Path) -> None:
    """Puts the folder `new` where `path` is, and that, if it is there, where `old` is."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _scratch(path: Path) -> Path:
    """A new folder beside `path`, or one that several processes call the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if jax.process_count() == 1:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    scratch = path.with_name(f".{path.name}.partial")
    if jax.process_index() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    return scratch


def load_model(path: str | Path) -> tuple[dict[str, Any], Any]:
    """Reads a model folder: (configuration, tree of numpy arrays in the dtypes of the file).

    Raises ModelError if something is missing, broken or of another format.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    head, config = _read_head(path)
    _check_sums(path)
    try:
        params = ocp.load(path / "params")
    except Exception as error:  # Orbax raises many kinds, depending on what is broken
        raise ModelError(
            f"{path / 'params'}: missing or damaged ({type(error).__name__})"
        ) from error
    params = jax.tree.map(np.asarray, params)
    if head.get("fingerprint") != fingerprint(params):
        raise ModelError(f"{path}: its weights are not those that model.json was written for")
    return config, params


def is_sealed(path: str | Path, params: Any) -> bool:
    """Whether configuration and shapes are still those that `save_model` wrote together.

    Then they fit each other; otherwise ask `check_tree`, for which the model must be traced.
    """
    head, config = _read_head(Path(path))
    return head.get("seal") == _seal(config, params)


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a model folder, not its weights. Raises ModelError as `load_model`."""
    return _read_head(Path(path))[1]


def built(where: str, make: Callable[[], Any]) -> Any:
    """What `make` makes of the configuration `where`; ModelError where that makes no model."""
    try:
        return make()
    except ModelError:
        raise
    except Exception as error:  # whatever layers that do not fit raise
        unknown = re.search(r"unexpected keyword argument ('.*?')", str(error))
        if unknown:
            raise ModelError(f"{where}: unknown field {unknown[1]}") from error
        raise ModelError(f"{where}: its layers do not fit ({one_line(error)})") from error


def _read_head(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two parts of model.json: what this module says of the folder, and the configuration."""
    file = path / "model.json"
    config = read_object(file)
    if config.get("format") != FORMAT:
        raise ModelError(f"{file}: format {config.get('format')}, but this version reads {FORMAT}")
    head = {key: config.pop(key) for key in HEAD & config.keys()}
    return head, config


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError if there is none."""
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file}: not a JSON object")
    return found


def _check_sums(path: Path) -> None:
    """ModelError for the first file that is not as `save_model` left it; older folders pass."""
    try:
        lines = (path / _SUMS).read_text().splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / _SUMS}: cannot be read") from error
    for line in lines:
        name, _, wanted = line.rpartition(" ")
        try:
            whole = _crc32(path / name) == wanted
        except (OSError, ValueError):  # a name that cannot be one, of a damaged list
            whole = False
        if not whole:
            raise ModelError(f"{path / name}: missing or damaged; copy the folder anew")


def _crc32(file: Path) -> str:
    """CRC-32 of a file, in hexadecimal: some thousand million bytes a second, and no proof."""
    found = 0
    with file.open("rb") as stream:
        while data := stream.read(1 << 20):
            found = zlib.crc32(data, found)
    return f"{found:08X}"


def _seal(config: Mapping[str, Any], params: Any) -> str:
    """A digest of a configuration and of the paths and shapes of the weights that belong to it."""
    text = json.dumps([config, sorted(_shapes(params).items())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(params: Mapping[str, Any]) -> int | None:
    """16 bits of a digest of the weights that a stream's probabilities depend on.

    They are the integers of part "entropy", where there is one; otherwise the codec's
    hyper-synthesis, prior and knob, as float32; in the order of their paths. A stream carries it,
    so that another model refuses the stream. None for what is no whole codec (a VAE).
    """
    codec, parts = params.get("codec", {}), {"hyper_synthesis", "prior"}
    if "entropy" in params:
        entropy, kind = params["entropy"], lambda x: x.dtype.newbyteorder("<")
    elif codec.keys() >= parts:
        parts |= {"knob"} & codec.keys()
        entropy, kind = {name: codec[name] for name in parts}, lambda x: "<f4"
    else:
        return None
    digest = hashlib.sha256()
    for name, leaf in sorted(named(entropy).items()):
        values = np.asarray(leaf)
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.astype(kind(values)).tobytes())
    return int.from_bytes(digest.digest()[:2], "big")


def check_tree(params: Any, shapes: Any) -> None:
    """Compares a tree of arrays with the tree of shapes that a configuration asks for.

    Raises ModelError that names the first path at which they differ.
    """
    has, wants = _shapes(params), _shapes(shapes)
    for path, shape in wants.items():
        if path not in has:
            raise ModelError(f"parameter {path} is missing, the model's configuration asks for it")
        if has[path] != shape:
            shapes = f"{list(has[path])}, the configuration asks for {list(shape)}"
            raise ModelError(f"parameter {path} has shape {shapes}")
    extra = sorted(has.keys() - wants.keys())
    if extra:
        raise ModelError(f"parameter {extra[0]} is not part of the model as it is configured")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}
