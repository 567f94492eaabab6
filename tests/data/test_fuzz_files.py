"""Damaged files: a reader gives back whole data, or a ValueError that names the file."""

import gzip
import io
import json
import pickle
import re
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jtssm import data
from jtssm.data import archives, cifar
from jtssm.sharding.cost import machine_files
from jtssm.sharding.cost.machine_table import MACHINES
from jtssm.sharding.cost.machines import Machine
from tests.data.test_data import cifar_batches, tarred, write_cifar, write_mnist

CI = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIDE = 6  # of the images: small files, so that a flipped bit often lies in a header


def idx(content: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + content.ndim}I", 0x800 + content.ndim, *content.shape)
    return header + content.tobytes()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (4, SIDE, SIDE), np.uint8), np.array([0, 9, 3, 3], np.uint8)
SPOKEN = {
    "x": np.linspace(-80, 0, 3 * 4096).reshape(3, 4096).astype(np.float16),
    "y": np.array([4, 0, 9]),
    "index": np.array([1, 7, 30]),
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one kind of damage, of those that disks, downloads and people do."""
    a, where = bytearray(content or b"?"), lambda: int(rng.integers(len(content or b"?")))
    noise = lambda: rng.bytes(int(rng.integers(1, 9)))
    head = int(rng.integers(min(len(a), 40)))
    kind = rng.integers(9)
    if kind == 0:
        a[where()] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        a[head] ^= 1 << int(rng.integers(8))  # in the header
    elif kind == 2:
        del a[where() :]
    elif kind == 3:
        a += noise()
    elif kind == 4:
        a[head : head + 4] = b"\xff\xff\xff\xff"  # a huge size
    elif kind == 5:
        a[head : head + 4] = bytes(4)
    elif kind == 6:
        start = where()
        del a[start : start + int(rng.integers(1, 99))]
    elif kind == 7:
        start = where()
        a[start:start] = noise()
    else:
        a[:] = rng.bytes(int(rng.integers(200)))
    return bytes(a)


def damaged(content: bytes, number: int) -> bytes:
    """Number 0 is whole; the others are damaged once or twice."""
    rng = np.random.default_rng(number)
    for _ in range(min(number, 1 + number % 2)):
        content = mutated(content, rng)
    return content


def read(path: Path, load):
    """What a reader makes of a file; None after the error that names it."""
    try:
        return load()
    except ValueError as error:
        message = str(error)
    assert re.match(rf"{re.escape(str(path))}.*: expected .*got", message, re.DOTALL), message
    return None


def idx_file(path: Path, number: int, packed: bool) -> bool:
    """Whether a damaged IDX file was read; then it is what its bytes say."""
    whole = idx((IMAGES, LABELS)[number % 2])
    inside = damaged(whole, number) if number % 3 else whole
    content = gzip.compress(inside, mtime=0) if packed else inside
    path.write_bytes(content if number % 3 or number == 0 else damaged(content, number))
    found = read(path, lambda: data.read_idx(path, (3, 1)[number % 2]))
    if found is not None and number % 3:
        assert found.tobytes() == inside[-found.size :]
    return found is not None


def spoken_file(folder: Path, number: int) -> bool:
    """Whether a damaged npz file was read; then all its samples were dealt out."""
    path = folder / "spoken_digits.npz"
    path.write_bytes(damaged(npz(**SPOKEN), number))
    splits = read(path, lambda: data.load("spoken-digits", data_dir=folder))
    if splits is not None:
        assert sum(len(s.y) for s in splits) == 3
        assert all(np.isfinite(s.x).all() and s.x.dtype == np.float32 for s in splits)
    return splits is not None


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files_are_named(tmp_path, packed):
    right = [idx_file(tmp_path / "file", number, packed) for number in range(350)]
    assert right[0]
    assert 15 < sum(right) < 250, (
        "damage to the pixels of a plain file cannot be seen, to others it is"
    )


def test_damaged_npz_files_are_named(tmp_path):
    right = [spoken_file(tmp_path, number) for number in range(300)]
    assert right[0]
    assert sum(right) < 60


@pytest.mark.slow
def test_ten_thousand_more_damaged_files_are_named(tmp_path):
    for number in range(1000, 6000):
        idx_file(tmp_path / "file", number, packed=number % 4 > 1)
        spoken_file(tmp_path, number)


def test_damaged_cifar_archives_are_named(tmp_path):
    path = write_cifar(tmp_path, gzip.compress(tarred(cifar_batches())))
    whole = path.read_bytes()
    for number in range(100):
        inside = damaged(gzip.decompress(whole), number)
        path.write_bytes(gzip.compress(inside, 1) if number % 2 else damaged(whole, number))
        splits = read(path, lambda: data.load("cifar-10", data_dir=tmp_path))
        assert splits is None or all(s.x.shape[1:] == (32, 32, 3) for s in splits)


@contextmanager
def little_memory():
    """No more than 4 MiB are taken at any time, numpy's arrays included."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "shape", [(2**32 - 1,) * 3, (2**31, 2**31, 4), (2**30, 1, 1), (5, 6, 7), (0, 6, 6)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_huge_declared_sizes_take_no_memory(tmp_path, shape, packed):
    path = tmp_path / "file"
    # 2^31 x 2^31 x 4 numbers are none, for one who counts in 64 bits
    content = struct.pack(">4I", 0x803, *shape) + bytes(0 if 4 in shape else 100)
    path.write_bytes(gzip.compress(content) if packed else content)
    with little_memory(), pytest.raises(ValueError, match=f"^{path}: expected .*got"):
        data.read_idx(path, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_that_unpacks_to_more_than_it_should_is_named(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(cifar, "MOST", 2**20)
    path = write_cifar(tmp_path, gzip.compress(bytes(2**27)) if packed else bytes(2**23))
    with (
        little_memory(),
        pytest.raises(ValueError, match=f"^{path}: expected at most 1048576 bytes.*got"),
    ):
        data.load("cifar-10", data_dir=tmp_path)


def npy(shape, descr="<f4", body=b"") -> bytes:
    """An .npy member that says it has a shape."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    "member",
    [
        npy((10**12, 4096)),
        npy((2**62, 4)),  # 2^64 numbers: none, for one who counts in 64 bits
        npy((-1, 4096), body=bytes(16)),
        npy((10**12,), descr="|V0"),
        npy((3, 4096), descr="|O", body=bytes(99)),
        npy("(" * 500 + ")" * 500),
        b"\x93NUMPY\x03\x00",
        b"",
    ],
)
def test_an_npz_member_that_says_more_than_it_holds_is_named(tmp_path, member):
    path = tmp_path / "spoken_digits.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
    with (
        little_memory(),
        pytest.raises(ValueError, match=f"^{path}: expected a spoken digits archive .*got"),
    ):
        data.load("spoken-digits", data_dir=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": np.zeros((3, 4095))},
        {"x": np.zeros((3, 64, 64))},
        {"x": np.zeros(())},
        {"x": np.zeros((0, 4096))},
        {"x": np.full((3, 4096), np.nan)},
        {"x": np.full((3, 4096), "a")},
        {"x": np.zeros((3, 4096), complex)},
        {"y": np.array([0, -1, 2])},
        {"y": np.array([0, 1, 10])},
        {"y": np.array([0.5, 1, 2])},
        {"y": np.zeros((3, 1), int)},
        {"index": np.array(["a", "b", "c"])},
        {"index": np.zeros((3, 3), int)},
        {"index": np.zeros(2, int)},
        {"y": np.array(0)},
    ],
)
def test_an_npz_archive_of_other_arrays_is_named(tmp_path, changes):
    path = tmp_path / "spoken_digits.npz"
    path.write_bytes(npz(**{**SPOKEN, **changes}))
    assert read(path, lambda: data.load("spoken-digits", data_dir=tmp_path)) is None


class Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("how", ["npz", "npz member", "pickle", "gzipped pickle"])
def test_nothing_in_a_data_file_is_ever_unpickled(tmp_path, how):
    trace = tmp_path / "trace"
    payload = pickle.dumps(Touch(trace))
    pickle.loads(payload)
    assert trace.exists(), "the payload works"
    trace.unlink()
    path = tmp_path / "spoken_digits.npz"
    if how == "npz":
        path.write_bytes(npz(**{**SPOKEN, "x": np.array([Touch(trace)], object)}))
    elif how == "npz member":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", payload)
    else:
        path.write_bytes(payload if how == "pickle" else gzip.compress(payload))
    assert read(path, lambda: data.load("spoken-digits", data_dir=tmp_path)) is None
    write_mnist(tmp_path / "mnist")
    image = tmp_path / "mnist" / data.MNIST_FILES[0]
    image.write_bytes(path.read_bytes())
    assert read(image, lambda: data.load("mnist", data_dir=tmp_path)) is None
    assert not trace.exists()


def test_whole_arrays_come_back_as_numpy_wrote_them(tmp_path):
    path = tmp_path / "file.npz"
    path.write_bytes(npz(a=np.asfortranarray(IMAGES[0]), b=LABELS.astype(">i4")))
    a, b = archives.arrays(path, ("a", "b"), "two arrays")
    np.testing.assert_array_equal(a, IMAGES[0])
    np.testing.assert_array_equal(b, LABELS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def machine_from(path: Path) -> Machine | None:
    """The machine that a file describes, which can be written again; None after an error that names it."""
    found = read(path, lambda: machine_files.find_machine(path))
    if found is not None:
        machine_files.write_machine(found, path)
        assert machine_files.find_machine(path) == found
    return found


@CI
@given(field=st.sampled_from([*machine_files.FIELDS, "colour", ""]), value=JSON)
def test_a_machine_file_with_a_wrong_field_is_named(tmp_path, field, value):
    path = tmp_path / "machine.json"
    machine_files.write_machine(MACHINES["host"], path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    machine_from(path)


@CI
@given(content=JSON.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_a_machine_file_of_anything_is_named(tmp_path, content):
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    assert machine_from(path) is None


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"\xff", b'{"name": 1e999}'])
def test_machine_files_that_parsers_choke_on_are_named(tmp_path, content):
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    assert machine_from(path) is None


def test_damaged_machine_files_are_named(tmp_path):
    path = tmp_path / "machine.json"
    machine_files.write_machine(MACHINES["host"], path)
    whole = path.read_bytes()
    right = 0
    for number in range(200):
        path.write_bytes(damaged(whole, number))
        right += machine_from(path) is not None
    assert 0 < right < 120
