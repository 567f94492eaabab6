"""Files are regular and of a sane size where they are read, and replaced whole, never through a link."""

import os
import socket

import pytest

from jtssm import files
from jtssm.planning import sweeps
from jtssm.sharding.cost import machine_files


def no_file(folder, kind):
    """Something that is no regular file of at most 1000 bytes."""
    path = folder / "odd.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "large":
        path.write_bytes(bytes(1001))
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif kind == "says 0 bytes":
        path.symlink_to("/proc/kallsyms")
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
    else:
        path.symlink_to(kind)
    return path


ODD = {
    "pipe": "expected a regular file; got a pipe",
    "link to a pipe": "expected a regular file; got a pipe",
    "folder": "expected a regular file; got a folder",
    "socket": "expected a regular file; got a socket",
    "/dev/zero": "expected a regular file; got a device",
    "/dev/null": "expected a regular file; got a device",
    "large": "expected at most 1000 bytes; got 1001",
    "sparse": "expected at most 1000 bytes; got 1099511627776",
    "says 0 bytes": "expected at most 1000 bytes; got more",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_of_a_sane_size_is_named_at_once(kind, tmp_path):
    path = no_file(tmp_path, kind)
    with pytest.raises(ValueError, match=f"^{path}: {ODD[kind]}"):
        files.content(path, 1000)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "sparse", "folder"])
def test_machine_files_and_records_of_sweeps_are_regular_files(kind, tmp_path):
    path = no_file(tmp_path, kind)
    expected = f"{path}: expected (a regular file|at most [0-9]+ bytes); got"
    with pytest.raises(ValueError, match=expected):
        machine_files.find_machine(path)
    with pytest.raises(ValueError, match=expected):
        sweeps._done(path, {})


def test_a_file_is_replaced_whole_and_a_link_by_a_file(tmp_path):
    elsewhere, path = tmp_path / "precious", tmp_path / "a.csv"
    elsewhere.write_text("precious")
    path.symlink_to(elsewhere)
    # left by a dead process of the same number
    (tmp_path / f".a.{os.getpid()}.new.csv").symlink_to(elsewhere)
    with files.replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "precious"
        assert new.suffix == ".csv"
    assert (path.read_text(), path.is_symlink()) == ("new", False)
    with pytest.raises(ValueError, match="a directory"), files.replacing(path) as new:
        raise ValueError(f"no room in {new}, which is not a directory")
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"), files.replacing(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "new"
    assert elsewhere.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "precious"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
