"""Any other codec, by the two commands that run it: a small TOML file.

    name = "bpg"
    encode = "bpgenc -q {quality} -o {output} {input}"   # a PNG file to a compressed one
    decode = "bpgdec -o {output} {input}"                # and that to a PNG file
    qualities = [51, 45, 38, 30]
    suffix = ".bpg"       # of the compressed file; without it ".bin"
    version = "0.9.8"     # if it changes, all is coded again
    timeout = 600         # seconds a command may take; without it 600

The commands are run as they stand, by no shell.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onedc_jax import images
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation.codecs import Plain, Quality

_KEYS = {"name", "encode", "decode", "qualities", "suffix", "version", "timeout"}


@dataclass(frozen=True)
class External(Plain):
    """A codec that other programs are; each command a tuple of words with {places} in them."""

    encode_command: tuple[str, ...]
    decode_command: tuple[str, ...]
    timeout: float

    def encode(self, image: np.ndarray, quality: Quality) -> bytes:
        with tempfile.TemporaryDirectory(prefix="onedc-") as folder:
            source, target = Path(folder, "image.png"), Path(folder, "coded" + self.suffix)
            images.write(source, image)
            self._run(self.encode_command, source, target, quality)
            return target.read_bytes()

    def decode(self, data: bytes) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="onedc-") as folder:
            source, target = Path(folder, "coded" + self.suffix), Path(folder, "decoded.png")
            source.write_bytes(data)
            self._run(self.decode_command, source, target, None)
            return images.read(target)[0]

    def _run(self, command, source: Path, target: Path, quality: Quality) -> None:
        values = {"{input}": str(source), "{output}": str(target), "{quality}": str(quality)}
        words = list(command)
        for place, value in values.items():
            words = [word.replace(place, value) for word in words]
        code, said = _call(words, self.timeout, target.parent / "said")
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        if code is None:
            raise OneDCError(f"{self.name}: {words[0]} took more than {self.timeout:g} s")
        if code:
            raise OneDCError(f"{self.name}: {words[0]} failed with code {code}: {last[0]}")
        if not target.is_file() or not target.stat().st_size:
            raise OneDCError(f"{self.name}: {words[0]} wrote no output: {last[0]}")


def read_external(path: str | Path) -> External:
    """Reads such a TOML file. Raises OneDCError, in one line, for what is wrong with it."""
    try:
        fields = tomllib.loads(Path(path).read_text())
    except ValueError as error:
        raise OneDCError(f"{path}: not TOML ({error})") from error
    unknown = sorted(fields.keys() - _KEYS)
    if unknown:
        raise OneDCError(f"{path}: {unknown[0]}: no such key; there are {', '.join(sorted(_KEYS))}")
    for key in ("name", "encode", "decode"):
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            raise OneDCError(f'{path}: {key} = "..." is missing')
    qualities = fields.get("qualities", [None])
    if (
        not isinstance(qualities, list)
        or not qualities
        or len({*map(str, qualities)}) < len(qualities)
    ):
        raise OneDCError(f"{path}: qualities = [...] is no list of different values")
    timeout = fields.get("timeout", 600)
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0:
        raise OneDCError(f"{path}: timeout must be a number of seconds above 0")
    suffix = str(fields.get("suffix", ".bin"))
    if not suffix.startswith(".") or "/" in suffix or "\\" in suffix:
        raise OneDCError(f'{path}: suffix must be like ".bin"')
    wanted = ["{input}", "{output}"]
    commands = {
        "encode": _command(path, fields, "encode", wanted + ["{quality}"] * (len(qualities) > 1)),
        "decode": _command(path, fields, "decode", wanted),
    }
    known = "\n".join([fields["encode"], fields["decode"], str(fields.get("version", ""))])
    return External(
        name=fields["name"].strip(),
        version=hashlib.sha256(known.encode()).hexdigest()[:16],
        suffix=suffix,
        qualities=tuple(qualities),
        encode_command=commands["encode"],
        decode_command=commands["decode"],
        timeout=timeout,
    )


def _command(path, fields: dict, key: str, places: list[str]) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(fields[key]))
    except ValueError as error:
        raise OneDCError(f"{path}: {key}: {error}") from error
    for place in places:
        if not any(place in word for word in words):
            raise OneDCError(f"{path}: {key}: the command does not name {place}")
    if shutil.which(words[0]) is None:
        raise OneDCError(f"{path}: {key}: {words[0]}: no such program here")
    return words


def _call(words: list[str], timeout: float, output: Path) -> tuple[int | None, str]:
    """Runs a program: (its exit code, None where it was stopped; what it said).

    What it says goes to a file, since a pipe would be held open by whatever it leaves running; it
    and all that it started are stopped together.
    """
    with open(output, "wb") as file:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise OneDCError(f"{words[0]}: cannot be run ({error.strerror})") from error
        code = None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where the user interrupts
            if code is None:
                _stop(process)
    return code, output.read_text(errors="replace")


def _stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
