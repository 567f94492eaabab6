"""Samples of one's own from an npz file."""

import io
import os
import zipfile

import numpy as np
import pytest

from jtssm.data import npz

X, Y = np.arange(12, dtype=np.uint8).reshape(4, 3), np.arange(4, dtype=np.int64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "own.npz"


def test_arrays_keep_their_numbers_and_dtypes(path):
    np.savez_compressed(path, x=X, y=Y, x_test=X[:1] + 0.5, y_test=Y[:1])
    found = npz.from_npz(path)
    assert list(found) == ["train", "test"]
    for a, wanted in zip(found["train"], (X, Y), strict=True):
        assert a.dtype == wanted.dtype
        np.testing.assert_array_equal(a, wanted)
    assert found["test"][0].dtype == np.float64
    assert found["test"][0][0, 0] == 0.5


def test_named_arrays_alone_are_read(path):
    np.savez(path, tokens=X, next=Y, text=np.array(["a", {}], object))
    found = npz.from_npz(
        str(path), {"x": "tokens", "y": "next", "x_valid": "tokens", "y_valid": "next"}
    )
    assert list(found) == ["train", "valid"]
    np.testing.assert_array_equal(found["valid"][1], Y)


@pytest.mark.parametrize(
    ("arrays", "names", "message"),
    [
        ({"x": X}, None, r"got no y among the arrays \['x'\]"),
        ({"x": X, "y": Y, "x_test": X}, None, "got no y_test among"),
        ({"x": X, "y": Y, "z": Y}, None, r"expected only x, y, x_valid, .*; got \['z'\] too"),
        ({"x": X, "y": Y}, {"x": "x", "y": "z"}, r"expected arrays \['z'\]; got \['x', 'y'\]"),
        ({"x": X, "y": Y}, {"x": "x", "label": "y"}, "names: expected one of"),
        ({"x": X, "y": Y}, {"x": "x"}, "got no y among"),
        ({"x": X, "y": Y[:3]}, None, "expected as many samples in x as in y; got 4 and 3"),
        ({"x": X[:0], "y": Y[:0]}, None, r"x: expected integers or floats, .*; got uint8 \(0, 3\)"),
        (
            {"x": np.float32(1), "y": Y},
            None,
            r"x: expected integers or floats, .*; got float32 \(\)",
        ),
        ({"x": X, "y": Y.astype(str)}, None, "y: expected integers or floats, "),
        ({"x": X + 1j, "y": Y}, None, "x: expected integers or floats, .*; got complex128"),
        ({"x": X.astype(">i4"), "y": Y}, None, "x: expected numbers in this machine's byte order"),
        ({"x": X, "y": np.array([{}] * 4)}, None, "y.npy of object .*write it again"),
    ],
)
def test_what_is_no_samples_is_refused(path, arrays, names, message):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        npz.from_npz(path, names)


def test_no_regular_file_is_refused_at_once(tmp_path, path):
    os.mkfifo(path)  # who opened it would wait
    for wrong in (path, tmp_path):
        with pytest.raises(ValueError, match="got no regular file"):
            npz.from_npz(wrong)
    with pytest.raises(FileNotFoundError, match="it is not there"):
        npz.from_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("x y")
    with pytest.raises(
        ValueError, match="expected an npz file of arrays of numbers; got BadZipFile"
    ):
        npz.from_npz(tmp_path / "text.npz")


def test_more_than_the_memory_is_refused_before_it_is_read(path, monkeypatch):
    np.savez(path, x=X, y=Y)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 16, "SC_PHYS_PAGES": 3}.get)
    with pytest.raises(
        ValueError, match=r"at most 48 bytes, this machine's memory; got \d+: write"
    ):
        npz.from_npz(path)


def test_a_header_that_says_more_than_there_is_takes_no_memory(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"0" * 64)
        archive.writestr("y.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"x.npy of float32 \(1099511627776,\) in"):
        npz.from_npz(path)
