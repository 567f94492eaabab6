"""Fetching: small data sets in the libraries' own format, written and read as the original files are."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from jtssm import cli, data
from jtssm.data import fetching
from jtssm.data.fetching import GREY, REMOTES, Part, Remote, digest

RNG = np.random.default_rng(0)


def part(remote, num, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, *remote.shape), np.uint8)
    labels = np.stack([rng.permutation(num) % classes for classes in remote.classes], 1)
    return Part(images, labels)


def small(monkeypatch, name, **changes):
    """The data set in small: 200 and 100 samples of it."""
    remote = REMOTES[name]._replace(samples=(200, 100), digests=None, equal=True, **changes)
    monkeypatch.setitem(REMOTES, name, remote)
    return remote, (part(remote, 200, 1), part(remote, 100, 2))


def as_tfds(monkeypatch, remote, parts):
    """tensorflow-datasets, with the part of its interface that is used."""

    def data_source(name, *, split, data_dir):
        assert name == remote.tfds
        keys = ("coarse_label", "label")[-len(remote.classes) :]
        images, labels = parts[("train", "test").index(split)]
        return [
            {"image": image, "id": b"x", **dict(zip(keys, told, strict=True))}
            for image, told in zip(images, labels, strict=True)
        ]

    module = ModuleType("tensorflow_datasets")
    module.data_source = data_source
    module.__spec__ = SimpleNamespace(name="tensorflow_datasets")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def as_hub(monkeypatch, remote, parts):
    """datasets, with the part of its interface that is used."""

    class Rows:
        def __init__(self, found):
            self.found = found

        def with_format(self, kind):
            assert kind == "numpy"
            return self

        def __len__(self):
            return len(self.found.images)

        def __getitem__(self, rows):
            image, *labels = remote.columns
            pictures = self.found.images[rows]
            grey = remote.shape[-1] == 1
            told = dict(zip(labels, self.found.labels[rows].T, strict=True))
            return {image: pictures[..., 0] if grey else pictures, **told}

    def load_dataset(name, *, split, cache_dir, verification_mode):
        assert (name, verification_mode) == (remote.hub, "all_checks")
        return Rows(parts[("train", "test").index(split)])

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    module.__spec__ = SimpleNamespace(name="datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)


LIBRARIES = {"tensorflow-datasets": as_tfds, "datasets": as_hub}
CASES = [
    (name, library)
    for name in REMOTES
    for library in LIBRARIES
    if library != "datasets" or REMOTES[name].hub is not None
]


@pytest.mark.parametrize(("name", "library"), CASES)
def test_what_is_fetched_is_read_as_the_original_files_to_the_pixel(
    monkeypatch, tmp_path, name, library
):
    remote, parts = small(monkeypatch, name)
    LIBRARIES[library](monkeypatch, remote, parts)
    assert data.get(name, data_dir=tmp_path, through=library) == tmp_path / name
    assert data.missing(name, tmp_path) == []
    splits = data.load(name, data_dir=tmp_path)
    train = [np.concatenate(both) for both in zip(splits.train, splits.valid, strict=True)]
    for (x, y), (images, labels) in zip((train, splits.test), parts, strict=True):
        np.testing.assert_array_equal(np.round(x * 255), images)
        np.testing.assert_array_equal(y, labels[:, -1])


def test_load_fetches_what_is_missing_where_it_is_told_to(monkeypatch, tmp_path):
    remote, parts = small(monkeypatch, "mnist")
    as_tfds(monkeypatch, remote, parts)
    with pytest.raises(FileNotFoundError, match="jtssm data get mnist"):
        data.load("mnist", data_dir=tmp_path)
    assert len(data.load("mnist", data_dir=tmp_path, download=True).test.y) == 100
    monkeypatch.setattr(fetching, "_fetched", None)  # is not asked again
    assert len(data.load("mnist", data_dir=tmp_path, download=True).test.y) == 100


def test_the_command_line_fetches(monkeypatch, tmp_path, capsys):
    remote, parts = small(monkeypatch, "cifar-10")
    as_hub(monkeypatch, remote, parts)
    told = ["data", "get", "cifar-10", "--data-dir", str(tmp_path), "--through", "datasets"]
    assert cli.main(told) == 0
    assert f"in {tmp_path}/cifar-10" in capsys.readouterr().out
    assert cli.main(["data", "--data-dir", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "jtssm data get" in table
    assert cli.main(["data", "get", "digits"]) == 2
    assert "expected one of" in capsys.readouterr().err


def test_a_fetched_file_that_changes_is_noticed(monkeypatch, tmp_path):
    """One bit of an image: every reader would take it."""
    remote, parts = small(monkeypatch, "mnist")
    as_tfds(monkeypatch, remote, parts)
    data.get("mnist", data_dir=tmp_path)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: expected .*SHA256SUMS.*got"):
        data.load("mnist", data_dir=tmp_path)
    (tmp_path / "mnist" / "SHA256SUMS").write_text("strange\n")
    with pytest.raises(ValueError, match="expected lines of a SHA-256 and a name"):
        data.load("mnist", data_dir=tmp_path)


def test_without_a_library_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"mnist: .*pip install 'jtssm\[fetch\]'.*mirror of yann"):
        data.get("mnist", data_dir=tmp_path)
    with pytest.raises(
        ImportError,
        match=r"kuzushiji-mnist: expected tensorflow-datasets to .*pip install tensorflow-datasets tensorflow",
    ):
        data.load("kuzushiji-mnist", data_dir=tmp_path, download=True)


def wrong_number(parts):
    return parts[0], Part(parts[1].images[1:], parts[1].labels[1:])


def wrong_label(parts):
    parts[0].labels[3] = 10
    return parts


def unequal(parts):
    labels = parts[0].labels
    labels[np.argmax(labels == 3)] = 4
    return parts


def floats(parts):
    return Part(parts[0].images / 255.0, parts[0].labels), parts[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_number, r"mnist: test: expected uint8 images .*\(100, 28, 28, 1\).*got .*\(99,"),
        (wrong_label, r"mnist: train: expected labels 0\.\.9; got 0\.\.10"),
        (unequal, r"mnist: train: expected 20 samples of each label; got 19 to 21"),
        (floats, r"mnist: train: expected uint8 images .*got float64"),
    ],
)
def test_what_came_is_held_against_the_data_set(monkeypatch, tmp_path, damage, message):
    remote, parts = small(monkeypatch, "mnist")
    as_tfds(monkeypatch, remote, damage(parts))
    with pytest.raises(ValueError, match=message):
        data.get("mnist", data_dir=tmp_path)
    assert not (tmp_path / "mnist").exists()


def test_a_digest_is_of_the_samples_in_any_order():
    remote = Remote("", None, (), GREY, (10,), (0, 0), lambda *_: {})
    one = part(remote, 30, 5)
    order = RNG.permutation(30)
    other = Part(one.images[order], one.labels[order])
    assert digest(one) == digest(other)
    twice = Part(one.images[[0, *range(29)]], one.labels[[0, *range(29)]])
    assert digest(twice) != digest(one)
    swapped = Part(one.images, np.roll(one.labels, 1, 0))
    assert digest(swapped) != digest(one)


def test_the_known_digest_is_that_of_the_original_files(data_dir):
    from jtssm.data.idx import MNIST_FILES, read_idx

    x, y = (read_idx(data_dir / "mnist" / MNIST_FILES[i], (3, 1)[i - 2]) for i in (2, 3))
    assert digest(Part(x[..., None], y[:, None])) == REMOTES["mnist"].digests[1]


def test_a_library_that_fails_is_told_with_another_way(monkeypatch, tmp_path):
    remote, parts = small(monkeypatch, "mnist")
    as_tfds(monkeypatch, remote, parts)
    monkeypatch.delattr(sys.modules["tensorflow_datasets"], "data_source")
    with pytest.raises(OSError, match=r"mnist: expected to fetch it .*AttributeError.*by hand"):
        data.get("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.get("imagenet"), "name: expected one of"),
        (lambda: data.get("spoken-digits"), "which can be fetched; got 'spoken-digits': Make it"),
        (lambda: data.get("kuzushiji-mnist", through="datasets"), "through: expected one of"),
    ],
)
def test_what_cannot_be_fetched_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
