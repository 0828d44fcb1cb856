"""Codecs that are other programs: here Python itself, copying a file."""

import json
import shlex
import sys
import time

import numpy as np
import pytest
from pictures import pictures

from onedc_jax.errors import OneDCError
from onedc_jax.evaluation.external import read_external

PYTHON = shlex.quote(sys.executable)
COPY = f"{PYTHON} -c 'import shutil, sys; shutil.copy(*sys.argv[1:3])' {{input}} {{output}}"


def external(tmp_path, **fields):
    """The codec of a file with these fields."""
    fields = {"name": "copy", "encode": COPY + " {quality}", "decode": COPY} | fields
    file = tmp_path / "codec.toml"
    file.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items() if value)
    )
    return read_external(file)


def test_two_commands_make_a_codec(tmp_path):
    codec = external(tmp_path, qualities=[1, 2.5, "high"], suffix=".png", timeout=20)
    image = pictures(1, 9, 7)[0][0]
    data = codec.encode(image, "high")
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(codec.decode(data), image)
    assert codec.qualities == (1, 2.5, "high") and codec.suffix == ".png"


def test_no_shell_reads_the_command(tmp_path):
    program = "import sys; open(sys.argv[2], 'w').write(sys.argv[3])"
    wall = f'{PYTHON} -c "{program}" {{input}} {{output}}'
    codec = external(tmp_path, encode=wall + " '$HOME; {quality}'", qualities=["`ls` $(ls)", "b"])
    assert codec.encode(pictures(1, 9, 7)[0][0], "`ls` $(ls)") == b"$HOME; `ls` $(ls)"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; print(1); sys.exit('a reason')", "failed with code 1: a reason"),
        ("pass", "wrote no output: it said nothing"),
    ],
)
def test_a_program_that_fails_is_named(tmp_path, program, message):
    command = f'{PYTHON} -c "{program}" {{input}} {{output}}'
    codec = external(tmp_path, encode=command)
    with pytest.raises(OneDCError, match=f"^copy: .*{message}"):
        codec.encode(pictures(1, 9, 7)[0][0], None)


def test_a_program_that_hangs_is_stopped(tmp_path):
    sleep = f"{PYTHON} -c 'import time; time.sleep(60)' {{input}} {{output}}"
    codec = external(tmp_path, encode=sleep, timeout=0.2)
    start = time.monotonic()
    with pytest.raises(OneDCError, match=r"took more than 0\.2 s"):
        codec.encode(pictures(1, 9, 7)[0][0], None)
    assert time.monotonic() - start < 30


def test_what_is_no_image_is_not_taken_for_one(tmp_path):
    codec = external(tmp_path)
    with pytest.raises(OneDCError, match="not a PNG"):
        codec.decode(b"nothing")


def test_another_command_is_another_version(tmp_path):
    versions = {
        external(tmp_path).version,
        external(tmp_path, decode=COPY + " --other").version,
        external(tmp_path, version="2").version,
    }
    assert len(versions) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, 'name = "..." is missing'),
        ({"decode": "cp {input} there"}, "decode: the command does not name {output}"),
        ({"encode": COPY, "qualities": [1, 2]}, "encode: the command does not name {quality}"),
        ({"encode": "no-such-program {input} {output}"}, "no-such-program: no such program"),
        ({"encode": "'cp {input} {output}"}, "encode: No closing quotation"),
        ({"qualities": [1, 1]}, "no list of different values"),
        ({"timeout": -1}, "timeout must be"),
        ({"suffix": "/x"}, "suffix must be"),
        ({"quality": 3}, "quality: no such key"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path, fields, message):
    with pytest.raises(OneDCError, match="codec.toml: .*" + message.replace("{", r"\{")):
        external(tmp_path, **fields)


def test_what_is_no_toml_is_refused(tmp_path):
    (tmp_path / "codec.toml").write_text("name: x")
    with pytest.raises(OneDCError, match="not TOML"):
        read_external(tmp_path / "codec.toml")
