"""The one writer of files: whole or not at all, through links, with the permissions that a file had."""

import os
import resource

import numpy as np
import pytest

from mirage_ros import files
from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_file, atomic_path, open_file, read_json, write_file, write_json


def _write(path, text):
    write_file(path, text)


def _fill(path, text):
    with atomic_file(path) as file:
        file.write(text.encode())


def _name(path, text):
    with atomic_path(path) as new:
        new.write_text(text)


WAYS = pytest.mark.parametrize("write", [_write, _fill, _name])


@WAYS
def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path, write):
    path = tmp_path / "a/b/c.txt"
    for text in ("old", "new"):
        write(path, text)
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


@WAYS
def test_a_link_is_written_through(tmp_path, write):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for text in ("dangling", "there"):
        write(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/file").read_text() == text
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["file"]


@WAYS
def test_a_replaced_file_keeps_its_permissions_and_a_new_one_follows_the_umask(tmp_path, write):
    before = os.umask(0o027)
    try:
        write(tmp_path / "new", "x")
    finally:
        os.umask(before)
    (tmp_path / "mine").write_text("x")
    (tmp_path / "mine").chmod(0o600)
    write(tmp_path / "mine", "y")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "mine")]
    assert modes == [0o640, 0o600]


@WAYS
def test_no_pipe_device_or_folder_is_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "folder", "link"):
        with pytest.raises((OSError, MirageError), match="no regular file"):
            write(tmp_path / name, "x")
        with pytest.raises(OSError, match="no regular file"):
            open_file(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("atomic", [atomic_file, atomic_path])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, atomic, nameless):
    if not nameless:  # as on file systems without such files
        monkeypatch.delattr(files.os, "O_TMPFILE")
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as new:
        (new.write if atomic is atomic_file else new.write_bytes)(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_file(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_json(path, {"a": 1})
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(MirageError, match="cannot be written.*free space"):
            write_file(path, np.zeros(5_000), b"end")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_parts_of_all_kinds_stand_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 3)
    values = np.arange(5, dtype=np.uint16)
    write_file(tmp_path / "file", "ä", b"xyz", values)
    assert (tmp_path / "file").read_bytes() == "ä".encode() + b"xyz" + values.tobytes()
