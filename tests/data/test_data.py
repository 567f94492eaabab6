"""Data sets: splits, the original files, and what damaged ones get."""

import gzip
import io
import struct
import tarfile

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
    assert len(rows) == len({bytes(row) for row in train.x}) + len(
        {bytes(row) for row in valid.x}
    ) + len({bytes(row) for row in test.x})
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
        (damage_truncated_gzip, r"train-images.*expected a whole gzip file.*fetch it again"),
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


def cifar_batches(records=4):
    """Random records of the six batches, by the name in the archive."""
    rng = np.random.default_rng(0)
    batches = {}
    for name in data.CIFAR_BATCHES:
        labels = rng.integers(0, 10, (records, 1), np.uint8)
        pixels = rng.integers(0, 256, (records, 3072), np.uint8)
        batches[name] = np.concatenate([labels, pixels], axis=1)
    return batches


def tarred(contents, changed=lambda member: member):
    """A tar archive of the contents by name, led as the original by its folder and a text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        texts = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
        for name, content in {**texts, **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(bytes(content))
            member = changed(member)
            tar.addfile(member, io.BytesIO(bytes(content)))
    return buffer.getvalue()


def write_cifar(root, content):
    path = root / "cifar-10" / data.CIFAR_ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def unpack_cifar(root, batches):
    for name, content in batches.items():
        path = root / "cifar-10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(content))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)


def test_cifar_is_split_by_batch_and_position(tmp_path):
    batches = cifar_batches()
    write_cifar(tmp_path, gzip.compress(tarred(batches)))
    splits = data.load("cifar-10", data_dir=tmp_path)
    assert [s.x.shape for s in splits] == [(10, 32, 32, 3), (10, 32, 32, 3), (4, 32, 32, 3)]
    assert all(s.x.dtype == np.float32 and s.y.dtype == np.int32 for s in splits)
    labels = np.concatenate([records[:, 0] for records in batches.values()])
    np.testing.assert_array_equal(np.concatenate([s.y for s in splits]), labels)
    pixels = np.concatenate([records[:, 1:] for records in batches.values()])
    planes = np.concatenate([s.x for s in splits]).transpose(0, 3, 1, 2).reshape(24, 3072)
    np.testing.assert_array_equal(planes, pixels / np.float32(255))


def test_cifar_pixels_lie_at_their_row_column_and_colour(tmp_path):
    batches = cifar_batches()
    batches[data.CIFAR_BATCHES[0]][2] = 0
    record = batches[data.CIFAR_BATCHES[0]][2]
    record[0] = 7
    record[1 + 32 * 3 + 5] = 255  # red
    record[1 + 1024 + 32 * 30 + 1] = 51  # green
    record[1 + 2048 + 31] = 102  # blue
    write_cifar(tmp_path, gzip.compress(tarred(batches)))
    train = data.load("cifar-10", data_dir=tmp_path).train
    expected = np.zeros((32, 32, 3), np.float32)
    expected[3, 5, 0], expected[30, 1, 1], expected[0, 31, 2] = 1, 0.2, 0.4
    np.testing.assert_array_equal(train.x[2], expected)
    assert train.y[2] == 7


def test_cifar_is_held_out_from_the_end_of_the_last_training_batch(tmp_path):
    batches = cifar_batches(1)
    unpack_cifar(tmp_path, batches)
    train, valid, test = data.load("cifar-10", flat=True, data_dir=tmp_path)
    labels = [int(records[0, 0]) for records in batches.values()]
    assert [s.y.tolist() for s in (train, valid, test)] == [labels[:3], labels[3:5], labels[5:]]
    assert train.x.shape == (3, 3072)


def test_an_unpacked_cifar_archive_serves_as_well(tmp_path):
    batches = cifar_batches()
    packed = gzip.compress(tarred(dict(reversed(batches.items()))))
    write_cifar(tmp_path / "packed", packed)
    expected = data.load("cifar-10", data_dir=tmp_path / "packed")
    unpack_cifar(tmp_path / "loose", batches)
    assert data.missing("cifar-10", tmp_path / "loose") == []
    assert_same(data.load("cifar-10", data_dir=tmp_path / "loose"), expected)
    write_cifar(tmp_path / "tar", b"").with_suffix("").write_bytes(gzip.decompress(packed))
    (tmp_path / "tar" / "cifar-10" / data.CIFAR_ARCHIVE).unlink()
    assert_same(data.load("cifar-10", data_dir=tmp_path / "tar"), expected)


def test_reading_a_cifar_archive_writes_nothing(tmp_path):
    path = write_cifar(tmp_path, gzip.compress(tarred(cifar_batches())))
    data.load("cifar-10", data_dir=tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_the_archive_comes_before_a_part_of_what_it_holds(tmp_path):
    batches = cifar_batches()
    write_cifar(tmp_path, gzip.compress(tarred(batches)))
    unpack_cifar(tmp_path, {data.CIFAR_BATCHES[0]: b"cut off"})
    assert data.missing("cifar-10", tmp_path) == []
    assert len(data.load("cifar-10", data_dir=tmp_path).test.y) == 4


def test_missing_cifar_files_are_named_with_what_to_do(tmp_path):
    assert data.missing("cifar-10", tmp_path) == [tmp_path / "cifar-10" / data.CIFAR_ARCHIVE]
    with pytest.raises(FileNotFoundError, match=r"cifar-10-binary\.tar\.gz.*kriz.*JTSSM_DATA"):
        data.load("cifar-10", data_dir=tmp_path)
    batches = cifar_batches()
    del batches["cifar-10-batches-bin/data_batch_3.bin"]
    unpack_cifar(tmp_path, batches)
    assert [p.name for p in data.missing("cifar-10", tmp_path)] == ["data_batch_3.bin"]
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin: expected this file of cifar"):
        data.load("cifar-10", data_dir=tmp_path)


def test_cifar_is_among_the_sources():
    source = data.sources()["cifar-10"]
    assert source.files == ("cifar-10-binary.tar.gz",)
    assert "binary version" in source.obtain


def odd_header(**fields):
    """A tar header as tarfile writes it, of a member that tarfile does not read."""
    member = tarfile.TarInfo("odd")
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT if "type" in fields else tarfile.PAX_FORMAT)


WHOLE_TAR = r"tar\.gz: expected a whole tar archive; got .*: fetch it again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda tar: gzip.compress(tar)[:-20],
            r"tar\.gz: expected a whole gzip file; got .*: fetch it again",
        ),
        (
            lambda tar: gzip.compress(tar)[:5000] + bytes(50) + gzip.compress(tar)[5050:],
            r"tar\.gz: expected a whole gzip file; got .*: fetch it again",
        ),
        (lambda tar: gzip.compress(tar[:-20_000]), WHOLE_TAR),
        (lambda tar: gzip.compress(b"\xff" * len(tar)), WHOLE_TAR),
        (lambda tar: gzip.compress(tar[:100]), WHOLE_TAR),
        (lambda tar: b"<html>not found</html>", WHOLE_TAR),
        (lambda tar: b"", WHOLE_TAR),
        (lambda tar: odd_header(type=tarfile.XHDTYPE, size=1 << 70) + tar, WHOLE_TAR),
        (lambda tar: odd_header(pax_headers={"GNU.sparse.size": "many"}) + tar, WHOLE_TAR),
    ],
    ids=[
        "truncated gzip",
        "damaged gzip",
        "truncated tar",
        "no tar",
        "no header",
        "html",
        "empty",
        "endless header",
        "no number",
    ],
)
def test_a_damaged_cifar_archive_is_named(tmp_path, content, message):
    write_cifar(tmp_path, content(tarred(cifar_batches())))
    with pytest.raises(ValueError, match=message):
        data.load("cifar-10", data_dir=tmp_path)


@pytest.mark.parametrize("records", ["missing", "under another folder"])
def test_a_missing_member_is_named(tmp_path, records):
    batches = cifar_batches()
    content = batches.pop("cifar-10-batches-bin/data_batch_4.bin")
    if records == "under another folder":
        batches["elsewhere/cifar-10-batches-bin/data_batch_4.bin"] = content
    write_cifar(tmp_path, gzip.compress(tarred(batches)))
    message = r"tar\.gz.cifar-10-batches-bin.data_batch_4\.bin: expected this file in the archive; got none: fetch it again"
    with pytest.raises(ValueError, match=message):
        data.load("cifar-10", data_dir=tmp_path)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
    ids=["symbolic link", "hard link", "folder", "pipe", "sparse file"],
)
def test_a_member_that_is_no_regular_file_is_refused(tmp_path, kind):
    def changed(member):
        if member.name == "cifar-10-batches-bin/test_batch.bin":
            member.type, member.size = kind, 0
            member.linkname = "cifar-10-batches-bin/data_batch_1.bin"
        return member

    write_cifar(tmp_path, gzip.compress(tarred(cifar_batches(), changed)))
    message = r"test_batch\.bin: expected a regular file in the archive; got a member of type '.': fetch it again"
    with pytest.raises(ValueError, match=message):
        data.load("cifar-10", data_dir=tmp_path)


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 3072, 4 * 3073 - 1, 4 * 3074])
def test_a_batch_of_another_length_is_named(tmp_path, size, unpacked):
    batches = {**cifar_batches(), "cifar-10-batches-bin/data_batch_2.bin": bytes(size)}
    if unpacked:
        unpack_cifar(tmp_path, batches)
    else:
        write_cifar(tmp_path, gzip.compress(tarred(batches)))
    message = (
        rf"data_batch_2\.bin: expected .* records of 3073 bytes; got {size} bytes: fetch it again"
    )
    with pytest.raises(ValueError, match=message):
        data.load("cifar-10", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["data_batch_5.bin", "test_batch.bin"])
def test_a_label_above_nine_is_named(tmp_path, name):
    batches = cifar_batches()
    batches[f"cifar-10-batches-bin/{name}"][3, 0] = 10
    write_cifar(tmp_path, gzip.compress(tarred(batches)))
    message = rf"{name}: expected labels 0\.\.9; got 10: fetch it again"
    with pytest.raises(ValueError, match=message):
        data.load("cifar-10", data_dir=tmp_path)


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


def test_spoken_digits_are_split_by_speaker_too(tmp_path):
    path = tmp_path / "spoken_digits.npz"
    spoken(path, speaker=np.arange(20) % 4)
    parts = data.load("spoken-digits", data_dir=tmp_path, split="speakers")
    assert [len(s.y) for s in parts] == [10, 5, 5]
    np.testing.assert_array_equal(parts.test.y, np.arange(20)[3::4] % 10)
    np.testing.assert_array_equal(parts.valid.y, np.arange(20)[2::4] % 10)
    taken, own = (data.load("spoken-digits", data_dir=tmp_path, split=s) for s in ("takes", None))
    np.testing.assert_array_equal(taken.test.y, own.test.y)
    spoken(path, speaker=np.arange(20) % 2)
    with pytest.raises(ValueError, match=r"spoken_digits.npz: expected three speakers .*; got 2"):
        data.load("spoken-digits", data_dir=tmp_path, split="speakers")
    spoken(path)
    with pytest.raises(ValueError, match=r"expected .* y \[n\] and speaker \[n\]"):
        data.load("spoken-digits", data_dir=tmp_path, split="speakers")
    with pytest.raises(ValueError, match=r"split: expected one of .*'speakers'.*; got 'voices'"):
        data.load("spoken-digits", data_dir=tmp_path, split="voices")
    with pytest.raises(ValueError, match=r"split: expected None for digits; got 'speakers'"):
        data.load("digits", split="speakers")


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


def test_real_speakers_are_heard_in_one_part_each(data_dir):
    parts = data.load("spoken-digits", flat=True, data_dir=data_dir, split="speakers")
    assert [s.x.shape for s in parts] == [(2000, 4096), (500, 4096), (500, 4096)]
    assert [np.bincount(s.y).tolist() for s in parts] == [[n] * 10 for n in (200, 50, 50)]


def test_real_spoken_digits_have_their_own_split(data_dir):
    train, valid, test = data.load("spoken-digits", flat=True, data_dir=data_dir)
    assert [s.x.shape for s in (train, valid, test)] == [(2400, 4096), (300, 4096), (300, 4096)]
    assert train.x.min() >= 0
    assert train.x.max() <= 1
    assert np.bincount(test.y).tolist() == [30] * 10
