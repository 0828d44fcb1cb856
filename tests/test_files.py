"""Files that appear whole or not at all."""

import pytest

from onedc_jax import images


def test_a_file_that_appears_while_writing_stays(tmp_path, monkeypatch):
    # The check beforehand sees nothing, as when another program is a moment faster.
    monkeypatch.setattr(images, "check_free", lambda path, overwrite: None)
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        images.atomic_write(path, b"new")
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [False, True])
def test_without_hard_links_files_are_written_and_kept_all_the_same(tmp_path, monkeypatch, there):
    def link(*_):
        raise PermissionError

    monkeypatch.setattr(images.os, "link", link)
    monkeypatch.setattr(images, "check_free", lambda path, overwrite: None)
    path = tmp_path / "a"
    if there:
        path.write_bytes(b"precious")
        with pytest.raises(FileExistsError):
            images.atomic_write(path, b"new")
    else:
        images.atomic_write(path, b"precious")
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, overwrite):
    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("replace", "link"):
        monkeypatch.setattr(images.os, name, fail)
    with pytest.raises(OSError, match="No space") as error:
        images.atomic_write(tmp_path / "a", b"data", overwrite)
    assert error.value.filename == str(tmp_path / "a") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, there):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to("folder/target")
    if there:
        target.write_bytes(b"precious")
        with pytest.raises(FileExistsError, match="link"):
            images.atomic_write(link, b"new")
        assert target.read_bytes() == b"precious"
    images.atomic_write(link, b"new", overwrite=there)
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_the_folder_that_a_link_leads_to_is_not_made(tmp_path):
    (tmp_path / "link").symlink_to("no/target")
    with pytest.raises(FileNotFoundError, match="no such folder") as error:
        images.atomic_write(tmp_path / "link", b"data")
    assert error.value.filename == str(tmp_path / "no")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder") as error:
        images.check_free(tmp_path / "no" / "a.png")
    assert error.value.filename == str(tmp_path / "no")


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    images.atomic_write(tmp_path / "a", b"data")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_is_no_file_is_never_replaced(tmp_path):
    with pytest.raises(FileExistsError, match="regular"):
        images.atomic_write(tmp_path, b"data", overwrite=True)
