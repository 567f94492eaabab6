"""Data sets: splits, the original files, and what damaged ones get."""

import gzip
import struct

import numpy as np
import pytest
from scipy import ndimage

from jtssm import data


def write_mnist(folder, images=60, tests=20):
    """A small set in the MNIST format; returns the training images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = []
    for prefix, n in (("train", images), ("t10k", tests)):
        x, y = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n).astype(np.uint8)
        header = struct.pack(">4I", 0x803, n, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + x.tobytes()))
        header = struct.pack(">2I", 0x801, n)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + y.tobytes()))
        written.append((x, y))
    return written[0]


def test_digits_are_embedded_and_split_without_overlap():
    train, valid, test = data.load("digits", flat=True)
    assert [s.x.shape for s in (train, valid, test)] == [(1200, 64), (237, 64), (360, 64)]
    assert train.x.dtype == np.float32
    assert train.y.dtype == np.int32
    rows = {bytes(row) for s in (train, valid, test) for row in s.x}
    assert len(rows) == len({bytes(row) for row in train.x}) + len({bytes(row) for row in valid.x}) + len({bytes(row) for row in test.x})  # fmt: skip
    assert all(np.bincount(s.y, minlength=10).min() > 10 for s in (train, valid, test))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kuzushiji-mnist"])
def test_idx_files_are_read_to_the_pixel(tmp_path, name):
    x, y = write_mnist(tmp_path / name)
    train, valid, test = data.load(name, data_dir=tmp_path)
    assert (len(train.y), len(valid.y), len(test.y)) == (30, 30, 20)
    got = np.concatenate([train.x, valid.x])
    np.testing.assert_allclose(got[..., 0], x / 255, rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([train.y, valid.y]), y)


def test_unpacked_idx_files_serve_as_well(tmp_path):
    x, _ = write_mnist(tmp_path / "mnist")
    packed = tmp_path / "mnist" / data.MNIST_FILES[0]
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    np.testing.assert_allclose(
        data.load("mnist", data_dir=tmp_path).train.x[3, ..., 0], x[3] / 255, rtol=1e-6
    )


def test_images_are_zoomed_as_in_the_papers(tmp_path):
    x, _ = write_mnist(tmp_path / "mnist")
    train = data.load("mnist", size=14, flat=True, data_dir=tmp_path).train
    expected = ndimage.zoom(x[5] / 255, 0.5, order=1)
    np.testing.assert_allclose(train.x[5].reshape(14, 14), expected, atol=1e-6)


def test_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("JTSSM_DATA", str(tmp_path))
    assert data.missing("mnist") == []
    assert len(data.load("mnist").test.y) == 20
    assert [p.name for p in data.missing("fashion-mnist")] == list(data.MNIST_FILES)


def damage_truncated_gzip(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage_short(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def damage_swapped(path):
    path.write_bytes((path.parent / "train-labels-idx1-ubyte.gz").read_bytes())


def damage_emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated_gzip, r"train-images.*expected a whole gzip file.*fetch the file again"),
        (damage_short, r"train-images.*expected 47040 bytes for \(60, 28, 28\); got 47039"),
        (damage_swapped, r"train-images.*expected an IDX file of images.*00000801.*exchanged"),
        (damage_emptied, r"train-images.*expected an IDX file of images.*nothing"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected(tmp_path, damage, message):
    write_mnist(tmp_path / "mnist")
    damage(tmp_path / "mnist" / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=message):
        data.load("mnist", data_dir=tmp_path)


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path):
    folder = tmp_path / "mnist"
    write_mnist(folder)
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", 0x801, 59) + bytes(59)))
    with pytest.raises(ValueError, match=r"train-labels.*expected 60 labels.*got 59"):
        data.load("mnist", data_dir=tmp_path)
    path.write_bytes(gzip.compress(struct.pack(">2I", 0x801, 60) + bytes(59) + b"\x0b"))
    with pytest.raises(ValueError, match=r"train-labels.*expected labels 0\.\.9; got 11"):
        data.load("mnist", data_dir=tmp_path)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    write_mnist(tmp_path / "fashion-mnist")
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels.*zalandoresearch.*JTSSM_DATA"):
        data.load("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize("size", [0, 29, 14.0])
def test_a_size_that_does_not_fit_is_refused(tmp_path, size):
    write_mnist(tmp_path / "mnist")
    with pytest.raises(ValueError, match="size: expected"):
        data.load("mnist", size=size, data_dir=tmp_path)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"name: expected one of .*'mnist'.*got 'imagenet'"):
        data.load("imagenet")


def spoken(path, **changes):
    arrays = {
        "x": np.full((20, 4096), -40, np.float16),
        "y": np.arange(20) % 10,
        "index": np.arange(20),
    }
    np.savez(path, **{**arrays, **changes})


def test_spoken_digits_are_split_by_take(tmp_path):
    spoken(tmp_path / "spoken_digits.npz")
    train, valid, test = data.load("spoken-digits", data_dir=tmp_path)
    assert [len(s.y) for s in (train, valid, test)] == [10, 5, 5]
    assert train.x.shape == (10, 128, 32, 1)
    np.testing.assert_allclose(train.x, 0.5)
    np.testing.assert_array_equal(test.y, np.arange(5))


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "spoken_digits.npz"
    spoken(path, x=np.zeros((20, 7), np.float16))
    with pytest.raises(ValueError, match=r"spoken_digits.npz: expected.*\(20, 7\)"):
        data.load("spoken-digits", data_dir=tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"spoken_digits.npz: expected.*fetch it again"):
        data.load("spoken-digits", data_dir=tmp_path)


def test_real_mnist_has_its_known_counts(data_dir):
    train, valid, test = data.load("mnist", data_dir=data_dir)
    assert [len(s.y) for s in (train, valid, test)] == [55000, 5000, 10000]
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(float(train.x.mean()) - 0.1307) < 5e-4


def test_real_spoken_digits_have_their_own_split(data_dir):
    train, valid, test = data.load("spoken-digits", flat=True, data_dir=data_dir)
    assert [s.x.shape for s in (train, valid, test)] == [(2400, 4096), (300, 4096), (300, 4096)]
    assert train.x.min() >= 0
    assert train.x.max() <= 1
    assert np.bincount(test.y).tolist() == [30] * 10
