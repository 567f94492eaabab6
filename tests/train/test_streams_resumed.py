"""Checkpoints of runs on streams: another process goes on with the sample that would have come next."""

import numpy as np
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic
from jtssm.train.stream import Stream
from jtssm.train.stream_reader import Reader
from tests.train.killed import same
from tests.train.test_stream import BATCH, KEY, ROUND, X, Y, batches

NET = jtssm.mlp([4, 8, 3], dropout=0.1, normalisation="running")
METHODS = {
    "sgd": lambda: solvers.sgd(NET, **BATCH),
    "gsadmm": lambda: solvers.gsadmm(NET, subnets=2, **BATCH),
    "ist": lambda: solvers.ist(jtssm.mlp([4, 8, 3]), subnets=2, **ROUND),
    "local_sgd": lambda: solvers.local_sgd(jtssm.mlp([4, 8, 3]), workers=2, **ROUND),
}


class Shuffled:
    """Each pass in an order of its own, which its number decides."""

    def __init__(self):
        self.reads, self.epoch = [], None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(X))
        for i in range(0, len(X), 17):
            self.reads.append(i)
            yield X[order[i : i + 17]], Y[order[i : i + 17]]


def generator():
    return (batch for _ in range(40) for batch in batches(47))


def grain_pipeline():
    grain = pytest.importorskip("grain")
    pairs = list(zip(X, Y, strict=True))
    return grain.MapDataset.source(pairs).shuffle(seed=3).batch(26)


def endless_grain():
    grain = pytest.importorskip("grain")
    pairs = list(zip(X, Y, strict=True))
    endless = grain.MapDataset.source(pairs).shuffle(seed=3).repeat().batch(26)
    return iter(endless.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


STREAMS = {
    "list": (lambda: batches(33), None),
    "counted list": (lambda: batches(33), 5),
    "set_epoch": (Shuffled, None),
    "counted set_epoch": (Shuffled, 5),
    "generator": (generator, 4),
    "grain": (grain_pipeline, None),
    "endless grain": (endless_grain, 4),
}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr("jtssm.train.stream.CHUNK", 2)
    monkeypatch.setattr("jtssm.train.stream.SEEN", 50)


def fit(method, stream, steps, folder=None, **options):
    ways = {} if folder is None else {"checkpoint": folder, "every": 1}
    given = {"epochs": 4, "key": KEY, "steps_per_epoch": steps, "validation": (X[:20], Y[:20])}
    return jtssm.fit(method, stream, **given | ways | options)


def broken_off(method, stream, steps, folder, epoch):
    """A run that ends as the line of an epoch is due: its newest checkpoint lies before that."""

    def fail(line):
        if line.record["epoch"] == epoch:
            raise OSError("broken off")

    with pytest.raises(OSError, match="broken off"):
        fit(method, stream, steps, folder, callbacks=[fail])


CASES = [
    *(("sgd", stream) for stream in STREAMS),
    *(
        (method, stream)
        for method in ("gsadmm", "ist", "local_sgd")
        for stream in ("list", "generator")
    ),
    ("ist", "set_epoch"),
    ("ist", "grain"),
]
SOME = [("ist", "set_epoch"), ("sgd", "endless grain")]


@pytest.mark.parametrize(
    ("method", "stream"),
    [pytest.param(*case, marks=[] if case in SOME else [pytest.mark.slow]) for case in CASES],
)
def test_a_resumed_run_comes_to_the_same_bits(method, stream, tmp_path):
    make, steps = STREAMS[stream]
    whole = fit(METHODS[method](), make(), steps)
    for epoch in (2, 3):  # two breaks, each within an epoch
        broken_off(METHODS[method](), make(), steps, tmp_path, epoch)
    assert same(whole, fit(METHODS[method](), make(), steps, tmp_path))


@pytest.mark.parametrize(
    ("size", "stream", "keep"),
    [
        (20, "list", False),
        (20, "list", True),
        (40, "set_epoch", False),
        (40, "set_epoch", True),
        (300, "set_epoch", True),
    ],
)
def test_every_place_is_found_again(size, stream, keep):
    """After each `take`: fresh rows that stand there give what the old ones give; 300: over passes."""
    method, make = METHODS["sgd"](), STREAMS[stream][0]
    old = Reader(method, make(), counted=False, placed=True)
    for _ in range(9):
        old.take(1, size, keep)
        new = Reader(method, make(), counted=False, placed=True)
        new.go_to(old.place())
        assert new.place() == old.place()
        one, other = (rows.take(1, size, keep) for rows in (old, new))
        assert [a.tobytes() for a in one] == [a.tobytes() for a in other]
        assert (old.passes, old.ended) == (new.passes, new.ended)


def test_only_the_present_pass_is_read_again(tmp_path):
    broken_off(METHODS["sgd"](), Shuffled(), None, tmp_path, 3)
    stream = Shuffled()
    fit(METHODS["sgd"](), stream, None, tmp_path)
    # what statistics are taken of; then passes 3 and 4
    assert stream.reads == [0, 17, 34, *2 * list(range(0, len(X), 17))]


def test_grain_is_put_in_its_place_without_reading(tmp_path):
    pytest.importorskip("grain")
    broken_off(METHODS["sgd"](), endless_grain(), 4, tmp_path, 3)
    reads, stream = [], endless_grain()

    class Told:
        def __iter__(self):
            return self

        def __next__(self):
            reads.append(1)
            return next(stream)

        def __getattr__(self, name):
            return getattr(stream, name)

    fit(METHODS["sgd"](), Told(), 4, tmp_path)
    # 2 for statistics; of steps 1 to 16, of which 10 or more were done, batches of 26 for those of 20
    assert len(reads) <= 2 + 6


def test_another_stream_goes_on_with_a_warning(tmp_path):
    broken_off(METHODS["sgd"](), batches(33), None, tmp_path, 3)
    x, y = synthetic.separable(1, 130, 4, 3, np.float64)
    with pytest.warns(
        UserWarning, match="expected the batches that were read before the checkpoint"
    ):
        result = fit(METHODS["sgd"](), batches(33, x, y), None, tmp_path)
    assert [line["epoch"] for line in result.history] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"of another: train: a stream of .*float64\[4\].* there"):
        fit(METHODS["sgd"](), batches(33, x.astype(np.float32), y), None, tmp_path)
    with pytest.raises(ValueError, match=r"an epoch is 3 steps here"):
        fit(METHODS["sgd"](), batches(33), 3, tmp_path)


def test_with_other_processes_each_starts_its_batches_again():
    make = lambda: Stream(METHODS["sgd"](), sharding.ProcessBatches(batches(33)), 4, True)
    begun, order = make(), make().order()
    order = {**order, "steps": 4, "places": 2 * order["places"]}
    with pytest.warns(UserWarning, match="expected the 2 processes of the checkpoint; got 1"):
        begun.resume(order)
    assert begun.order()["places"] == make().order()["places"]


def pairs_of(seed):
    return synthetic.separable(seed, 130, 4, 3, np.float64)


def resumed(make, steps, old, new):
    """Where the reader of other data is put that a run on the old ones has left, after some steps."""
    method, counted = METHODS["sgd"](), steps is not None
    there = Reader(method, make(*old), counted=counted, placed=True)
    for _ in range(steps or 2):
        there.take(10, 13, False)  # of a pass that is an epoch, all of it: the place is between two
    Reader(method, make(*new), counted=counted, placed=True).go_to(there.place())


def end_changed(x, y):
    """The same data but for one number near the end."""
    x = x.copy()
    x[100, 0] += 1e-9
    return x, y


def grain_of(x, y):
    grain = pytest.importorskip("grain")
    pipe = grain.MapDataset.source(list(zip(x, y, strict=True))).shuffle(seed=3).repeat().batch(26)
    return iter(pipe.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


class Anew:
    """An iterable that is no list."""

    def __init__(self, *pair):
        self.pair = pair

    def __iter__(self):
        return iter(batches(33, *self.pair))


@pytest.mark.parametrize(
    ("make", "steps", "other"),
    [
        (lambda x, y: batches(33, x, y), None, pairs_of(1)),
        (lambda x, y: batches(33, x, y), None, end_changed(*pairs_of(0))),
        (Anew, None, pairs_of(1)),
        (grain_of, 4, pairs_of(1)),
        (lambda x, y: iter(batches(33, x, y)), 1, pairs_of(1)),
    ],
    ids=["list", "the end of a list", "iterable", "grain", "iterator"],
)
def test_other_data_are_noticed_between_passes_and_where_no_batch_is_read_again(make, steps, other):
    same = pairs_of(0)
    resumed(make, steps, same, same)
    with pytest.warns(UserWarning, match="expected the batches that were read before"):
        resumed(make, steps, same, other)
