"""What is kept from one run to the next is what would be made anew."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from onedc_jax import kept
from onedc_jax.coding import programs
from onedc_jax.compilation import enable_compilation_cache


@pytest.fixture
def cache(tmp_path):
    """An empty cache of jax's for one test."""
    before = jax.config.jax_compilation_cache_dir
    folder = tmp_path / "cache"
    folder.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a").write_bytes(b"abc")
    return folder


def made(source: Path, calls: list) -> dict:
    calls.append(source)
    return {"a": np.frombuffer((source / "a").read_bytes(), np.uint8), "none": None}


def test_a_folder_is_read_once_until_it_changes(cache, source):
    calls = []
    read = partial(kept.of_folder, "x", source, partial(made, source, calls))
    for _ in range(3):
        found = read()
        assert bytes(found["a"]) == b"abc" and found["none"] is None
    assert len(calls) == 1
    (source / "a").write_bytes(b"abd")
    assert bytes(read()["a"]) == b"abd" and len(calls) == 2
    (source / "b").touch()
    assert bytes(read()["a"]) == b"abd" and len(calls) == 3
    (elsewhere := source.with_name("elsewhere")).mkdir()
    (source / "link").symlink_to(elsewhere)
    read()
    (elsewhere / "c").write_bytes(b"behind a link")
    assert bytes(read()["a"]) == b"abd" and len(calls) == 4


def test_what_cannot_be_read_back_is_made_anew(cache, source):
    calls = []
    read = partial(kept.of_folder, "x", source, partial(made, source, calls))
    read()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    (place,) = (i for i in range(len(whole)) if whole[i : i + 3] == b"abc")
    flipped = whole[:place] + b"abd" + whole[place + 3 :]
    for damage in (b"", b"no pickle", whole[:-9], flipped):
        file.write_bytes(damage)
        assert bytes(read()["a"]) == b"abc"
    assert len(calls) == 5


def test_few_folders_and_no_large_ones_are_kept(cache, source, monkeypatch):
    for name in range(12):
        folder = source / str(name)
        folder.mkdir()
        kept.of_folder("x", folder, lambda: np.zeros(3))
    assert len(list(cache.iterdir())) == 8
    monkeypatch.setattr(kept, "_LARGEST", 1)
    kept.of_folder("y", source, lambda: np.zeros(3))
    assert not list(cache.glob("*y*"))


def test_a_cache_that_jax_has_been_given_stays(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "user"))
    assert enable_compilation_cache() == cache
    assert jax.config.jax_compilation_cache_dir == str(cache) and not any(cache.iterdir())
    jax.config.update("jax_compilation_cache_dir", None)
    own = enable_compilation_cache()
    assert own.is_relative_to(cache / "user") and jax.config.jax_compilation_cache_dir == str(own)


def test_a_bucket_is_no_folder(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = "gs://bucket/cache"
    jax.config.update("jax_compilation_cache_dir", address)
    assert enable_compilation_cache() is None and not Path("gs:").exists()
    Path(address).mkdir(parents=True)  # though one may be there by this name
    assert kept.file("x", "y") is None


def test_a_path_that_is_not_utf_8_has_a_place(cache):
    assert kept.file("x", "\udce9") != kept.file("x", "\udcea")


def test_programs_of_several_threads_leave_jax_its_settings(cache):
    """Each is kept from jax's cache while it is compiled, by a setting of the whole process."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first(x):
        first_in.set()
        assert second_in.wait(60)
        return x

    def second(x):
        second_in.set()
        assert first_out.wait(60)
        return x

    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(programs.ready, first, "", np.zeros(3, np.float32))
        assert first_in.wait(60)
        begun.add_done_callback(lambda _: first_out.set())
        programs.ready(second, "", np.zeros(3, np.float32))
        begun.result()
    assert getattr(jax.config, name) == before


def test_without_a_cache_nothing_is_kept(cache, source):
    jax.config.update("jax_compilation_cache_dir", None)
    calls = []
    for _ in range(2):
        kept.of_folder("x", source, partial(made, source, calls))
    assert len(calls) == 2 and not list(cache.iterdir())


def test_programs_differ_by_what_a_file_of_flags_holds(tmp_path, monkeypatch):
    flags = tmp_path / "flags"
    monkeypatch.setenv("XLA_FLAGS", str(flags))
    missing = programs._here()
    flags.write_text("--xla_cpu_enable_fast_math=false")
    first = programs._here()
    flags.write_text("--xla_cpu_enable_fast_math=true")
    assert len({missing, first, programs._here()}) == 3
