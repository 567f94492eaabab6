"""What a run holds does not grow with its epochs, nor with those between two lines, and is the same bits."""

import itertools
import tracemalloc
from contextlib import contextmanager

import jax
import numpy as np
import optax
import pytest

from jtssm import solvers
from jtssm.protocol.info import Info
from jtssm.train import batches, record
from jtssm.train.position import Lines
from tests.train.short_runs import NET, X, Y, fit, sgd

LOCAL = solvers.local_sgd(NET, workers=2, local_steps=3, optimizer=optax.sgd(0.1), batch_size=5)


def feed(how, samples=120, epochs=10**9):
    rng = np.random.default_rng(0)
    return batches.Minibatches(how, X[:samples], Y[:samples], rng, epochs)


def taken(feed, chunks):
    """The samples of each of these chunks, by number."""
    feed._chunk = lambda rows: rows
    return [rows.tolist() for rows in feed._filled(chunks)]


def at_once(feed, epochs):
    """Chunks of orders that are all drawn before the first step, and what is left."""
    orders = [feed.rng.permutation(len(feed.x)) for _ in range(epochs)]
    size, left = feed.size, np.zeros(0, int)
    if feed.straddles:
        whole = np.concatenate([feed.left, *orders])
        used = len(whole) // size * size
        left, whole = whole[used:], whole[:used]
    else:
        whole = np.concatenate([order[: len(feed.x) // size * size] for order in orders])
    whole = whole.reshape(-1, size)
    most = max(1, min(batches.CHUNK, batches.CHUNK_SAMPLES // size))
    parts = np.array_split(whole, -(-len(whole) // most)) if len(whole) else []
    return [part.tolist() for part in parts], left.tolist()


@pytest.mark.parametrize("how", [sgd(), LOCAL], ids=["minibatches", "rounds"])
@pytest.mark.parametrize(("samples", "epochs"), [(120, 1), (113, 9), (31, 7), (30, 1), (20, 40)])
def test_orders_that_are_drawn_as_they_come_are_those_drawn_at_once(how, samples, epochs):
    """Twice in a row, and again from the second half of the chunks on, as a resumed run goes on."""
    ours, theirs = feed(how, samples), feed(how, samples)
    for _ in range(2):
        order = ours.order()
        wanted, left = at_once(theirs, epochs)
        theirs.left = np.array(left, int)
        for skipped in (len(wanted) // 2, len(wanted), 0):
            ours.go_to(order)
            assert taken(ours, ours.draw(epochs)[skipped:]) == wanted[skipped:]
            ours.left = ours.drawn.rest()
            assert ours.order() == theirs.order()


def test_lines_are_those_of_a_list_of_all():
    for every, last, start in itertools.product((1, 2, 3, 7, 100), (1, 6, 7), range(9)):
        listed = [*range(every, last, every), last]
        wanted = min((n for n in listed if n > start), default=start)
        assert Lines(every, last).after(start) == wanted


class Enough(Exception):
    """Ends a run."""


def end(*_):
    raise Enough


@contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", [sgd(), LOCAL], ids=["minibatches", "rounds"])
def test_a_billion_epochs_to_a_line_take_no_memory_before_they_are_done(how):
    """Orders of all of them took 960 bytes an epoch."""
    ours = feed(how)
    ours._chunk = lambda rows: rows
    with little_memory():
        chunks = ours.draw(10**9)
        assert [len(rows) for rows in itertools.islice(ours._filled(chunks), 3)] == [50] * 3
    assert len(chunks) == 10**9 * (120 // ours.size if how.name == "sgd" else 4) // 50


def test_a_billion_lines_take_no_memory_before_they_are_written():
    """A list of them took 45 bytes each."""
    with little_memory(), pytest.raises(Enough):
        fit(epochs=10**9, callbacks=[end])


def test_steps_of_a_resident_method_are_a_few_dispatches_where_they_are_very_many():
    how = solvers.pdadmm(NET)
    resident = batches.Resident(how, X, Y, np.random.default_rng(0), 1)
    assert [*resident.draw(7)] == [7]
    sizes = resident.draw(10**9)
    assert (len(sizes), sum(sizes), max(sizes) <= 2**16) == (15259, 10**9, True)


def infos(steps, rng, shown):
    samples = rng.integers(0, 3, steps).astype(np.float32)
    draw = lambda: np.where(samples > 0, rng.normal(size=steps), np.nan).astype(np.float32)
    return Info(draw(), draw(), samples, {name: draw() for name in shown})


@pytest.mark.parametrize("shown", [[], ["coupling"], ["decrease", "objective"]])
def test_a_few_steps_stand_for_very_many(shown, monkeypatch):
    """The same means, least decrease and first measured loss; folded again and again as well."""
    rng = np.random.default_rng(1)
    parts = [infos(50, rng, shown) for _ in range(40)]
    if "decrease" in shown:  # it is measured at every step
        parts = [p._replace(shown=p.shown | {"decrease": rng.normal(size=50)}) for p in parts]
    whole, held = record.joined(parts), record.joined([])
    for i, part in enumerate(parts):
        held = record.joined([held, part]) if i else part
        held = record.folded(held) if i % 3 == 1 else held
    few = record.folded(held)
    assert len(few.loss) <= 3
    wanted, got = record.means(whole), record.means(few)
    assert got.pop("samples") == wanted.pop("samples")
    np.testing.assert_allclose([*got.values()], [*wanted.values()], rtol=1e-5, atol=1e-7)
    assert record.certificate(few, []) == record.certificate(whole, [])
    first = lambda a: float(a.loss[a.samples > 0][0])
    assert first(few) == first(whole)


def test_a_run_whose_steps_are_folded_has_the_same_history(monkeypatch):
    plain = fit(epochs=4, evaluate_every=2)
    for module in ("jtssm.train.trainer.HELD", "jtssm.train.record.HELD"):
        monkeypatch.setattr(module, 3)
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 2)
    few = fit(epochs=4, evaluate_every=2)
    for a, b in zip(plain.history, few.history, strict=True):
        np.testing.assert_allclose(
            [b[n] for n in a if n != "seconds"], [a[n] for n in a if n != "seconds"], rtol=1e-12
        )
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), plain.params, few.params)
    assert all(jax.tree.leaves(equal))
