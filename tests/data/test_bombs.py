"""Archives that unpack to more than any data set has: errors by name, before memory is taken."""

import gzip
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import pytest

from jtssm import data
from jtssm.data import archives, cifar
from tests.data.test_data import cifar_batches, tarred, write_cifar
from tests.data.test_fuzz_files import little_memory, npy


def header(name, size=0, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content):
    return content + bytes(-len(content) % 512)


ZEROS = bytes(2**23)
LONG = padded(header("././@LongLink", 2**23, tarfile.GNUTYPE_LONGNAME) + ZEROS)
TARS = {
    "zeros": lambda tar: ZEROS,
    "zeros behind the files": lambda tar: tar + ZEROS,
    "a large file before ours": lambda tar: header("a", 2**23) + ZEROS + tar,
    "a large file of ours": lambda tar: header(data.CIFAR_BATCHES[0], 2**23) + ZEROS + tar,
    "a name of megabytes": lambda tar: LONG + tar,
    "names of names": lambda tar: header("././@LongLink", 9, b"L") * 9999 + tar,
    "very many files": lambda tar: b"".join(header(f"{i}") for i in range(1500)) + tar,
    "a file that says more than it holds": lambda tar: tar[:1024] + header("a", 2**62) + tar[1024:],
    "pax headers without end": lambda tar: header("x", 2**40, tarfile.XHDTYPE) + tar,
    "headers of headers": lambda tar: padded(header("g", 0, b"x")) * 3000 + tar,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", TARS)
def test_a_tar_archive_of_more_than_it_should_is_named(kind, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MOST", 2**20)
    content = TARS[kind](tarred(cifar_batches()))
    path = write_cifar(tmp_path, gzip.compress(content, 1) if packed else content)
    with little_memory(), pytest.raises(ValueError, match=rf"^{path}.*: expected .*got"):
        data.load("cifar-10", data_dir=tmp_path)


def sparse(path, head, size=2**40):
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def test_files_that_are_no_files_or_too_large_are_named(tmp_path):
    path = tmp_path / "images"
    idx = (0x803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (2**25, 4, 4))
    named = rf"^{path}: expected .*got"
    path.write_bytes(gzip.compress(idx + ZEROS))
    with little_memory():
        with pytest.raises(ValueError, match=named + r" a header that says \(33554432, 4, 4\)"):
            data.read_idx(path, 3)
        sparse(path, idx)
        with pytest.raises(ValueError, match=named + " 1099511627776"):
            data.read_idx(path, 3)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ValueError, match=named + " a pipe"):
            data.read_idx(path, 3)
        # in a data set's folder it is no file at all
        for name in data.MNIST_FILES:
            (tmp_path / "mnist").mkdir(exist_ok=True)
            os.mkfifo(tmp_path / "mnist" / name)
        with pytest.raises(FileNotFoundError, match=r"expected this file of mnist"):
            data.load("mnist", data_dir=tmp_path)
        (tmp_path / "cifar-10" / "cifar-10-batches-bin").mkdir(parents=True)
        for name in data.CIFAR_BATCHES:
            sparse(tmp_path / "cifar-10" / name, b"")
        with pytest.raises(ValueError, match=r"data_batch_1.bin: expected at most 268435456"):
            data.load("cifar-10", data_dir=tmp_path)


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_npz_archive_of_honest_sizes_that_are_too_large_is_named(tmp_path, method, monkeypatch):
    monkeypatch.setattr(archives, "MOST", 2**22)
    path = tmp_path / "spoken_digits.npz"
    body = bytes(2**23)
    small = {name: npy((2,), "<i4", bytes(8)) for name in ("y.npy", "index.npy")}
    zipped(path, {"x.npy": npy((2**9, 4096), "<f4", body), **small}, method)
    with little_memory(), pytest.raises(ValueError, match=rf"^{path}: expected .*got"):
        data.load("spoken-digits", data_dir=tmp_path)


@pytest.mark.slow
def test_bombs_are_named_where_3_gb_are_all_there_is(tmp_path):
    """20 GB of zeros in 20 MB, as gzip and as a tar archive, and a npz of 4 GB, in a process of 3 GB."""
    script = """
        import gzip, resource, sys, zipfile
        from pathlib import Path
        from jtssm import data
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
        root = Path(sys.argv[1])
        piece = gzip.compress(bytes(2**24), 9)
        for name, file in (("cifar-10", "cifar-10-binary.tar.gz"), ("mnist", "train-images-idx3-ubyte.gz")):
            (root / name).mkdir()
            (root / name / file).write_bytes(piece * 1280)
        for name in data.MNIST_FILES[1:]:
            (root / "mnist" / name).write_bytes(piece)
        with zipfile.ZipFile(root / "spoken_digits.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (262144, 4096), }"
            text += b" " * (-(len(text) + 11) % 64) + b"\\n"
            with archive.open("x.npy", "w", force_zip64=True) as file:
                file.write(b"\\x93NUMPY\\x01\\x00" + len(text).to_bytes(2, "little") + text)
                for _ in range(256):
                    file.write(bytes(2**24))
        for name in ("cifar-10", "mnist", "spoken-digits"):
            try:
                data.load(name, data_dir=root)
            except ValueError as error:
                print(name, "named" if str(root) in str(error) else error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.stdout.split("\n") == ["cifar-10 named", "mnist named", "spoken-digits named", ""]
    assert done.stderr == ""
