"""The same job on every file of a folder: which become which, failures, several at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onedc_jax import folders
from onedc_jax.cli import main
from onedc_jax.errors import ImageError, ModelError


def names(*files: str) -> list[str]:
    found = folders.targets([Path("in", file) for file in files], Path("in"), Path("out"), ".onedc")
    return [path.relative_to("out").as_posix() for path in found]


def test_subfolders_are_kept():
    assert names("a.jpg", "b/a.jpg", "b/c.d.png") == ["a.onedc", "b/a.onedc", "b/c.d.onedc"]


def test_files_that_would_meet_keep_their_full_names():
    assert names("a.jpg", "a.png", "b.png") == ["a.jpg.onedc", "a.png.onedc", "b.onedc"]
    assert names("A.jpg", "a.png") == ["A.jpg.onedc", "a.png.onedc"]
    assert names("a.jpg", "a.jpg.png", "a.png") == [
        *("a.jpg.onedc", "a.jpg.png.onedc", "a.png.onedc"),
    ]


def test_files_are_found_sorted_in_all_subfolders_but_hidden_ones(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/notes.txt", ".hidden.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = folders.find(tmp_path, (".png", ".jpg"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/c.png", "b.JPG"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").touch()
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "b.png").touch()
    (tmp_path / "photos" / "link").symlink_to("../elsewhere")
    (tmp_path / "photos" / "a" / "circle").symlink_to("..")
    (tmp_path / "photos" / "a" / "above").symlink_to(tmp_path)
    found = folders.find(tmp_path / "photos", (".png",))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        *("photos/a/b.png", "photos/link/b.png"),
    ]


def test_a_folder_that_cannot_be_read_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    locked, scandir = tmp_path / "locked", os.scandir
    locked.mkdir()

    def refusing(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError) as error:
        folders.find(tmp_path, (".png",))
    assert folders.explain(error.value) == f"{locked}: Permission denied"
    assert main(["encode", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"onedc: {locked}: Permission denied" and "no .png" in said[1]


def test_what_a_name_tells_a_terminal_is_not_passed_on(tmp_path, capsys):
    strange = tmp_path / "a\x1b[31m.png"
    strange.touch()
    assert main(["encode", str(tmp_path)]) == 1
    assert main(["info", str(strange)]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and err.count(r"a\x1b[31m.png: ") == 2


def test_a_file_in_the_place_of_a_folder_is_called_so(tmp_path):
    (tmp_path / "a").touch()
    said = []
    jobs = [(Path("a", "b.jpg"), tmp_path / "a" / "b.onedc")]
    assert folders.for_each(jobs, print, said.append) == ([], 1)
    assert said == [f"a/b.jpg: {tmp_path}/a: is a file; a folder is needed"]


def test_a_job_goes_on_past_a_bad_file_but_not_past_a_bad_model(tmp_path):
    def work(file, _):
        if file.name == "bad":
            raise ImageError("no image")
        if file.name == "hopeless":
            raise ModelError("no model")
        return file.name

    jobs = [(Path(name), tmp_path / "new" / name) for name in ("bad", "good", "hopeless")]
    said = []
    assert folders.for_each(jobs[:2], work, said.append) == (["good"], 1)
    assert said == ["bad: no image"]
    with pytest.raises(ModelError):
        folders.for_each(jobs, work, said.append)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    said = []
    jobs = [(tmp_path / "pipe.png", tmp_path / "pipe.onedc")]
    assert folders.for_each(jobs, lambda file, _: file.read_bytes(), said.append) == ([], 1)
    assert said == [f"{tmp_path}/pipe.png: a pipe or device, of which reading may never end"]


def test_several_are_at_work_and_what_they_make_stays_in_order(tmp_path):
    both = threading.Barrier(2, timeout=20)

    def work(file, _):
        both.wait()  # for another worker
        time.sleep(0.1 * (file.name == "a"))
        return file.name

    jobs = [(Path(name), tmp_path / name) for name in "abcd"]
    assert folders.for_each(jobs, work, print, workers=2) == (list("abcd"), 0)


def test_a_job_that_ends_early_tells_those_at_work(tmp_path):
    stop, begun = threading.Event(), threading.Event()

    def work(file, _):
        if file.name == "bad":
            assert begun.wait(20)
            raise ModelError("no model")
        begun.set()
        assert stop.wait(20)

    jobs = [(Path(name), tmp_path / name) for name in ("bad", "long")]
    with pytest.raises(ModelError):
        folders.for_each(jobs, work, print, 2, stop)


ENDLESS = """
import signal, threading, time
from pathlib import Path
from onedc_jax import folders
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
handed_out = threading.Event()
def jobs():
    yield Path("a"), Path("a")
    handed_out.set()
def work(*_):
    handed_out.wait()
    print("begun", flush=True)
    time.sleep(60)
folders.for_each(jobs(), work, lambda text: print(text, flush=True))
"""


def test_the_first_interrupt_is_answered_and_the_second_obeyed():
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again stops at once" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


def test_what_links_lead_to_is_neither_read_and_written_nor_written_twice(tmp_path, capsys):
    photos, small = tmp_path / "photos", tmp_path / "small"
    photos.mkdir()
    small.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (photos / name).write_bytes(b"dear")
    (small / "a.onedc").symlink_to(photos / "b.png")
    (small / "b.onedc").symlink_to(small / "c.onedc")
    assert main(["encode", str(photos), str(small), "--overwrite"]) == 1
    out, err = capsys.readouterr()
    assert "a.onedc: a link to one of the files that are read" in err
    assert "c.onedc: by a link the same file as another output" in err
    assert out == "0 encoded, 3 failed\n" and (photos / "b.png").read_bytes() == b"dear"


def test_what_is_there_can_be_left_so_that_a_run_goes_on(tmp_path, capsys):
    for name in ("a.png", "b.png", "a.onedc"):
        (tmp_path / name).write_bytes(b"dear")
    assert main(["encode", str(tmp_path), "--skip-existing"]) == 1
    out, err = capsys.readouterr()
    assert out == "0 encoded, 1 failed, 1 there already\n"
    assert err.count("\n") == 1 and "b.png: not a PNG" in err
    assert (tmp_path / "a.onedc").read_bytes() == b"dear"
