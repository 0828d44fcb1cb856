import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import onedc_jax
from onedc_jax import cli, folders
from onedc_jax.coding import stream
from onedc_jax.coding.programs import ready
from onedc_jax.errors import ModelError


def onedc(capsys, *arguments) -> tuple[int, str, str]:
    """Runs a command line; returns its exit code, output and error output."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *arguments) -> str:
    """Runs a command line that must fail in one line; returns that line."""
    code, out, err = onedc(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("onedc: ") and err.count("\n") == 1
    return err


def picture(path: Path, width: int = 70, height: int = 50) -> Path:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([3 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    return picture(tmp_path / "photo.png")


@pytest.fixture
def compressed(tmp_path):
    """A sound container whose y is nonsense; it suffices for what needs no model."""
    header = stream.Header(width=70, height=50, fingerprint=0xBEEF)
    path = tmp_path / "photo.onedc"
    path.write_bytes(
        stream.pack(header, np.zeros(header.z_shape, np.int32), b"\x00" * 5, (2, 0, 0, 0))
    )
    return path


@pytest.fixture
def no_model(monkeypatch):
    """Makes sure that a command fails before it loads a model."""

    def load(_):
        raise AssertionError("a model was loaded")

    monkeypatch.setitem(vars(onedc_jax), "load", load)


# What is wrong with a command line is said before a model is loaded, and nothing is written.


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_a_missing_input_is_named(capsys, tmp_path, command):
    assert "nothing.x: No such file" in fails(capsys, command, tmp_path / "nothing.x")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x89PNG\r\n\x1a\n12345678"])
def test_what_is_no_image_is_not_encoded(capsys, tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert "a.png: " in fails(capsys, "encode", tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["decode", "info"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "version", "longer"])
def test_what_is_no_stream_is_not_decoded(capsys, compressed, command, damage):
    data = bytearray(compressed.read_bytes())
    if damage == "flipped":
        data[-6] ^= 4
    if damage == "version":
        data[1] = 0xF0
    changed = {"empty": b"", "text": b"hello\n", "cut": data[:9], "longer": bytes(data) + b"\n"}
    changed = changed.get(damage, bytes(data))
    compressed.write_bytes(changed)
    assert "photo.onedc: " in fails(capsys, command, compressed)
    assert list(compressed.parent.iterdir()) == [compressed]


@pytest.mark.usefixtures("no_model")
def test_an_existing_output_is_refused(capsys, photo, compressed):
    before = compressed.read_bytes()
    assert "photo.onedc: exists already; --overwrite" in fails(capsys, "encode", photo)
    assert compressed.read_bytes() == before
    assert "photo.png: exists already; --overwrite" in fails(capsys, "decode", compressed)


@pytest.mark.usefixtures("no_model")
def test_an_output_that_cannot_be_is_refused(capsys, photo, compressed):
    folder = photo.parent
    for arguments, message in (
        (("encode", photo, folder / "no" / "a.onedc"), "no: no such folder"),
        (("encode", photo, folder / "a.png", "--overwrite"), "name it a.onedc"),
        (("encode", photo, photo, "--overwrite"), "is the input itself"),
        (("decode", compressed, folder / "a.xyz"), "cannot write .xyz images"),
        (("encode", folder, photo), "photo.png: is a file"),
        (("encode", photo, f"{folder}/new/"), "new/: no such folder"),
        (("decode", compressed, f"{folder}/new/."), "new/.: no such folder"),
        (("encode", photo, "-"), "OUTPUT '-': the name of a file"),
        # argparse itself takes no OUTPUT here
        (("encode", photo, "--quality", 80, folder / "a.png"), "name it a.onedc"),
        (("decode", compressed, "--overwrite", folder / "a.xyz"), "cannot write .xyz images"),
        (("decode", compressed, "--overwrite", ""), "OUTPUT '': the name of a file"),
    ):
        assert message in fails(capsys, *arguments)
    assert sorted(folder.iterdir()) == [compressed, photo]


@pytest.mark.usefixtures("no_model")
def test_a_folder_without_images_is_refused(capsys, tmp_path):
    assert "no .png, .jpg" in fails(capsys, "encode", tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelError("two\nlines"), 2, "two lines"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: ..."), 2, "not enough memory"),
        (OSError(28, "No space left on device", "there"), 2, "there: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_inside_is_one_line_and_no_output(
    capsys, monkeypatch, photo, error, code, message
):
    def load(_):
        raise error

    monkeypatch.setitem(vars(onedc_jax), "load", load)
    found, out, err = onedc(capsys, "encode", photo)
    assert (found, out, err) == (code, "", err) and err.count("\n") == 1 and message in err
    assert list(photo.parent.iterdir()) == [photo]


def test_a_mistake_of_the_program_is_not_hidden(monkeypatch, photo):
    def load(_):
        raise KeyError("a bug")

    monkeypatch.setitem(vars(onedc_jax), "load", load)
    with pytest.raises(KeyError):
        cli.main(["encode", str(photo)])


# info


def test_info_tells_where_the_bytes_go(capsys, compressed):
    code, out, err = onedc(capsys, "info", compressed, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["width"], facts["height"], facts["fingerprint"]) == (70, 50, "beef")
    assert facts["y_bytes"] == 5 and facts["step_bytes"] == [5, 0, 0, 0]
    assert (facts["arithmetic"], facts["rate"], facts["cut"]) == ("float32_cpu", None, False)
    parts = sum(facts[f"{part}_bytes"] for part in ("header", "z", "y", "checksum"))
    assert parts == facts["bytes"] == compressed.stat().st_size
    assert facts["bpp"] == pytest.approx(8 * facts["bytes"] / (70 * 50), abs=1e-6)


def test_info_is_readable_without_json(capsys, compressed):
    _, out, _ = onedc(capsys, "info", compressed)
    for fact in ("70x50", "bpp", "beef", "version", "5 bytes"):
        assert fact in out


def test_info_says_that_a_file_is_cut(capsys, compressed):
    whole = compressed.read_bytes()
    compressed.write_bytes(whole[:-6])
    code, out, _ = onedc(capsys, "info", compressed)
    assert code == 0 and f"{len(whole) - 6} of {len(whole)} bytes; z and 0 of the 4 steps" in out
    facts = json.loads(onedc(capsys, "info", compressed, "--json")[1])
    assert facts["cut"] and (facts["bytes"], facts["whole_steps"]) == (len(whole) - 6, 0)


def test_info_tells_a_rate(capsys, compressed):
    header = stream.Header(64, 64, 1, stream.Arithmetic.INTEGER, rate=77)
    compressed.write_bytes(stream.pack(header, np.zeros((1, 1), np.int32)))
    out = onedc(capsys, "info", compressed)[1]
    assert "77" in out and "integer" in out and "steps" not in out


def test_info_goes_on_past_a_bad_file(capsys, tmp_path, compressed):
    (tmp_path / "bad").write_bytes(b"bad")
    code, out, err = onedc(capsys, "info", "--json", tmp_path / "bad", compressed)
    assert code == 2 and len(out.splitlines()) == len(err.splitlines()) == 1


def test_info_names_the_embedded_model(capsys, monkeypatch, tmp_path, compressed):
    (tmp_path / "presets" / "mine").mkdir(parents=True)
    (tmp_path / "presets" / "mine" / "model.json").write_text('{"fingerprint": 48879}')
    monkeypatch.setattr(cli.files, "_PRESETS", tmp_path / "presets")
    _, out, _ = onedc(capsys, "info", compressed, "--json")
    assert json.loads(out)["model"] == "mine"


# Names and outputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", ""], "argument INPUT: an empty name"),
        (["info", ""], "argument FILE: an empty name"),
        (["encode", "a", "--model", ""], "argument --model: an empty name"),
        (["quantize", "", "--images", "a"], "argument MODEL: an empty name"),
        (["export", "", "--size", "8x8", "--out", "a"], "argument MODEL: an empty name"),
        (["decode", "-"], "the standard input is /dev/stdin"),
        (["encode", "a", "--quality", "101"], "onedc encode: argument --quality: 101 is no number"),
        (["encode", "a", "--overwrite", "b", "c"], "onedc encode: unrecognized arguments: b c"),
        (["decode", "a", "--nope", "b"], "onedc decode: unrecognized arguments: --nope b"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_preset_is_not_quantized_in_its_place(capsys, monkeypatch, photo):
    monkeypatch.setattr("onedc_jax.coding.loading.load", None)
    arguments = "quantize", "tiny", "--images", photo.parent, "--overwrite"
    assert "name the --out" in fails(capsys, *arguments)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no such device")
def test_a_device_is_not_read_for_ever(capsys, monkeypatch):
    monkeypatch.setattr("onedc_jax.transcode._MAX_STREAM_BYTES", 99)
    assert "/dev/zero: too large" in fails(capsys, "info", "/dev/zero")


def test_a_terminal_is_told_once_that_programs_are_compiled(capsys, monkeypatch):
    codec = SimpleNamespace(replicas=lambda: [None])
    monkeypatch.setitem(vars(onedc_jax), "load", lambda _: codec)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.common.loader("any")()
    for step in range(2):
        ready(lambda x, step=step: x + step, "", np.float32(1))
    assert capsys.readouterr().err.count("onedc: compiling for this size, once (kept in /") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_outputs_are_no_failure(compressed, closed):
    command = f"{sys.executable} -m onedc_jax.cli info {compressed} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


# With a model


def test_a_photo_there_and_back(capsys, photo, tiny_model):
    code, _, err = onedc(capsys, "encode", photo, "--model", tiny_model)
    assert code == 0 and err == f"onedc: {tiny_model}: {cli.files._INEXACT}\n"
    compressed, restored = photo.with_suffix(".onedc"), photo.with_name("restored.bmp")
    code, out, err = onedc(capsys, "decode", compressed, restored, "--model", tiny_model)
    assert (code, err) == (0, "")
    assert out.startswith(f"{compressed} -> {restored}  70x50  {compressed.stat().st_size:,} bytes")
    codec = onedc_jax.load(tiny_model)
    with Image.open(restored) as image:
        assert image.format == "BMP"
        np.testing.assert_array_equal(image, codec.decode(compressed.read_bytes()))


def test_a_cut_file_is_decoded_only_where_that_is_asked_for(capsys, photo, tiny_model):
    assert onedc(capsys, "encode", photo, "--model", tiny_model)[0] == 0
    compressed, target = photo.with_suffix(".onedc"), photo.with_name("restored.png")
    data = compressed.read_bytes()
    compressed.write_bytes(data[:-9])
    arguments = ("decode", compressed, target, "--model", tiny_model)
    assert f"has {len(data) - 9} of {len(data)} bytes; --allow-trunc" in fails(capsys, *arguments)
    assert not target.exists()
    code, _, err = onedc(capsys, *arguments, "--allow-truncated")
    assert code == 0 and err.count("\n") == 1 and target.is_file()
    assert "1 of the 4 steps of y and the checksum" in err
    compressed.write_bytes(data[: stream.inspect(data).header_bytes + 1])
    assert "nothing of it" in fails(capsys, *arguments, "--allow-truncated", "--overwrite")


def test_a_file_of_tokens_alone(capsys, photo, tiny_model):
    code, out, _ = onedc(capsys, "encode", photo, "--z-only", "--model", tiny_model)
    assert code == 0 and "  tokens alone  " in out
    assert photo.with_suffix(".onedc").stat().st_size == 6 + 4 + 4


def test_what_is_too_little_is_said_of_the_file(capsys, photo, tiny_model):
    arguments = "encode", photo, "--max-bytes", 10, "--model", tiny_model
    assert f"onedc: {photo}: 10 bytes are too few" in onedc(capsys, *arguments)[2]


def test_a_folder_there_and_back(capsys, tmp_path, tiny_model):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "sub" / "b.jpg", 65, 63)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a jpeg")
    small, back = tmp_path / "small", tmp_path / "back"
    code, out, err = onedc(capsys, "encode", tmp_path / "in", small, "--model", tiny_model)
    assert code == 1 and out.startswith("2 encoded, 1 failed") and "bad.jpg: not a" in err
    files = folders.find(tmp_path, [".onedc"])
    assert files == [small / "a.onedc", small / "sub" / "b.onedc"]
    assert f"{sum(file.stat().st_size for file in files):,} bytes" in out

    code, out, err = onedc(capsys, "decode", small, back, "--model", tiny_model)
    assert (code, err) == (0, "") and out.startswith("2 decoded, 0 failed")
    with Image.open(back / "a.png") as a, Image.open(back / "sub" / "b.png") as b:
        assert (a.size, b.size) == ((70, 50), (65, 63))


def test_several_devices_make_the_same_files(capsys, tmp_path, tiny_model):
    for i in range(4):
        picture(tmp_path / "in" / f"{i}.png", 40 + 30 * i, 50)
    one, two = tmp_path / "one", tmp_path / "two"
    command = ["encode", tmp_path / "in", one, "--model", tiny_model]
    assert onedc(capsys, *command)[0] == 0
    command = [sys.executable, "-m", "onedc_jax.cli", *command[:2], two, *command[3:]]
    flags = "--xla_force_host_platform_device_count=2"
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, check=True, timeout=300)
    for file in one.iterdir():
        assert (two / file.name).read_bytes() == file.read_bytes()


def test_what_was_changed_in_reading_is_said(capsys, tmp_path, tiny_model):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    code, _, err = onedc(capsys, "encode", tmp_path / "a.png", "--model", tiny_model)
    assert code == 0
    assert err.endswith(f"onedc: {tmp_path / 'a.png'}: transparency composited on white\n")


def test_another_model_s_stream_is_refused(capsys, compressed, tiny_model):
    # No model has this fingerprint but for one chance in 65536.
    data = bytearray(compressed.read_bytes())
    data[1] &= ~0b1100  # arithmetic 0, as the model's
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "big")
    compressed.write_bytes(data)
    error = fails(capsys, "decode", compressed, "--model", tiny_model)
    assert "photo.onedc: the stream was made with another model" in error
    assert list(compressed.parent.iterdir()) == [compressed]


@pytest.mark.parametrize("model", ["no-such-name", "a/path"])
def test_an_unknown_model_is_named(capsys, photo, model):
    assert model in fails(capsys, "encode", photo, "--model", model)


# The command itself


def test_help_and_info_load_neither_jax_nor_numpy_for_nothing(compressed):
    program = f"""
import sys
from onedc_jax.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
assert not {{"jax", "numpy", "PIL"}} & sys.modules.keys()
main(["info", {str(compressed)!r}])
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.skipif(os.name != "posix", reason="pipes differ elsewhere")
def test_a_reader_that_leaves_is_no_error(compressed):
    command = [sys.executable, "-m", "onedc_jax.cli", "info", *[str(compressed)] * 500]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(shutil.which("onedc") is None, reason="the package is not installed")
def test_the_console_script_runs():
    result = subprocess.run(["onedc", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"onedc {onedc_jax.__version__}\n"
