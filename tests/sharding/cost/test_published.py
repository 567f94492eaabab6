"""The published cost model: each equation by hand, and the paper's figures out of it."""

from itertools import product
from math import sqrt

import numpy as np
import pytest

from benchmarks import published_figures
from benchmarks.published_figures import FIGURES, HALOS_6
from jtssm.sharding import cost
from jtssm.sharding.cost import published
from jtssm.sharding.cost.published import ALEXNET, Layer, Link

LINK = Link(1000.0, 1.0)  # thousands are messages, the rest words
CONV = Layer("conv", 5 * 3 * 3 * 3, 8 * 6 * 3, 4 * 5 * 3, (8, 6, 3), (4, 5, 3), (5, 3))
DENSE = Layer("dense", 60 * 8, 60, 8)
NET = (CONV, DENSE)

# total and communication, seconds an epoch, read off the paper's Figure 7, by P and Pr
FIGURE_7 = {
    8: {1: (319.2, 38.7), 2: (300.8, 21.4), 4: (295.4, 15.9), 8: (301.9, 22.4)},
    32: {
        1: (130.1, 43.1),
        2: (109.5, 22.8),
        4: (100.2, 13.5),
        8: (97.7, 11.0),
        16: (101.0, 14.3),
        32: (111.7, 24.6),
    },
    128: {
        1: (80.1, 44.2),
        2: (58.8, 23.1),
        4: (48.5, 12.8),
        8: (44.0, 8.1),
        16: (42.8, 6.9),
        32: (44.4, 8.5),
        64: (49.7, 13.8),
        128: (61.0, 25.3),
    },
    512: {
        1: (66.9, 44.5),
        2: (45.5, 23.3),
        4: (35.0, 12.7),
        8: (29.7, 7.5),
        16: (27.5, 5.3),
        32: (26.9, 4.7),
        64: (27.6, 5.5),
        128: (30.3, 8.1),
    },
}


def test_alexnet_has_the_sizes_that_reproduce_the_bars():
    assert [layer.weights for layer in ALEXNET] == [
        34_848,
        307_200,
        884_736,
        663_552,
        442_368,
        37_748_736,
        16_777_216,
        4_096_000,
    ]
    assert [layer.d_out for layer in ALEXNET] == [
        290_400,
        186_624,
        64_896,
        64_896,
        43_264,
        4096,
        4096,
        1000,
    ]


def test_a_gather_on_three_processes_takes_two_rounds_and_a_reduction_twice_that():
    assert published.gather_seconds(9, 3, LINK) == 2006
    assert published.reduce_seconds(9, 3, LINK) == 4012


def test_each_equation_by_hand():
    """Messages of conv (d 60, |W| 135, halo 36 words of X and 15 of dY a sample) and dense (8, 480)."""
    model = 3 * (2000 + 3 / 4 * 4 * 60) + 3 * (2000 + 3 / 4 * 4 * 8)
    assert published.model_seconds(NET, 4, 4, LINK) == model == 12_612
    conv = 2 * (3000 + 7 / 8 * 135)
    assert published.batch_seconds(NET, 8, LINK) == conv + 2 * (3000 + 7 / 8 * 480) == 13_076.25
    assert published.redistribution_seconds(8, 4, 4, LINK) == 2000 + 3 / 4 * 4 * 8
    assert published.domain_seconds([CONV], 4, 8, LINK) == 1144 + 1060 + conv == 8440.25
    dense = 3 * (1000 + 1 / 2 * 2 * 8) + 2 * (2000 + 3 / 4 * 240)
    both = 3 * (1000 + 1 / 2 * 2 * 60) + 2 * (2000 + 3 / 4 * 67.5) + dense
    assert published.grid_seconds(NET, 8, 2, 4, LINK) == both == 14_665.25
    mixed = (1000 + 2 * 36) + (1000 + 2 * 15) + conv + dense
    assert published.mixed_seconds(NET, ["domain", "model"], 8, 2, 4, LINK) == mixed == 15_722.25


def test_one_process_sends_nothing():
    assert published.model_seconds(NET, 4, 1) == published.batch_seconds(NET, 1) == 0
    assert published.domain_seconds([CONV], 4, 1) == published.grid_seconds(NET, 4, 1, 1) == 0
    assert published.mixed_seconds(NET, ["domain", "model"], 4, 1, 1) == 0
    assert published.redistribution_seconds(8, 4, 1) == 0


def test_the_integrated_equations_hold_the_pure_ones():
    batch, model = published.batch_seconds(ALEXNET, 16), published.model_seconds(ALEXNET, 32, 16)
    np.testing.assert_allclose(published.grid_seconds(ALEXNET, 32, 1, 16), batch, rtol=1e-12)
    np.testing.assert_allclose(published.grid_seconds(ALEXNET, 32, 16, 1), model, rtol=1e-12)
    mixed = published.mixed_seconds(ALEXNET, ["model"] * 8, 32, 4, 4)
    np.testing.assert_allclose(mixed, published.grid_seconds(ALEXNET, 32, 4, 4), rtol=1e-12)
    domain = published.mixed_seconds(ALEXNET[:5], ["domain"] * 5, 32, 16, 1)
    np.testing.assert_allclose(domain, published.domain_seconds(ALEXNET[:5], 32, 16), rtol=1e-12)


def test_a_one_by_one_convolution_has_no_halo_and_a_one_by_three_half_of_it():
    assert published.halo_seconds([CONV._replace(window=(1, 1))], 4, LINK) == 0
    assert published.halo_seconds([CONV._replace(window=(1, 3))], 4, LINK) == 1060


def cheaper_forms(layers, batch, pr, pc):
    """The form of each layer that makes (9) smallest; "model" where both cost the same."""
    cost = lambda layer, form: published.mixed_seconds([layer], [form], batch, pr, pc)
    fits = lambda layer: published.FORMS if layer.window else published.FORMS[:1]
    return [min(fits(layer), key=lambda form: cost(layer, form)) for layer in layers]


def closed_form_pr(layers, batch, processes):
    """sqrt(2 P sum |W| / (3 B sum d)): the real Pr at which (8) without latency is smallest.

    Derived from (8), not printed. It may lie outside 1..P; the best then is the nearer end.
    """
    weights = sum(layer.weights for layer in layers)
    return sqrt(2 * processes * weights / (3 * batch * sum(layer.d_out for layer in layers)))


@pytest.mark.parametrize("grid", [(2, 64), (16, 32), (64, 8), (512, 1)])
def test_the_cheaper_forms_are_the_best_of_all_mixtures(grid):
    convolutions, dense = ALEXNET[2:5], ALEXNET[6:]
    layers = (*convolutions, *dense)
    mixtures = [(*m, "model", "model") for m in product(published.FORMS, repeat=3)]
    cost = {m: published.mixed_seconds(layers, m, 2048, *grid) for m in mixtures}
    got = cheaper_forms(layers, 2048, *grid)
    assert tuple(got) == min(cost, key=cost.get) == (*["domain"] * 3, "model", "model")


def test_a_split_by_batch_alone_leaves_every_layer_in_model_form():
    assert cheaper_forms(ALEXNET, 2048, 1, 512) == ["model"] * 8


@pytest.mark.parametrize(("layers", "batch", "processes"), [(ALEXNET, 2048, 512), (NET, 24, 360)])
def test_the_closed_form_is_the_minimum_over_real_pr(layers, batch, processes):
    """(8) without latency, written out for real Pr; it is the function's at whole grids."""
    d, weights = sum(layer.d_out for layer in layers), sum(layer.weights for layer in layers)
    words = lambda pr: (
        3 * (pr - 1) / pr * batch * d * pr / processes + 2 * (1 - pr / processes) * weights / pr
    )
    for pr in (processes // batch or 1, processes // 4, processes):
        pc = processes // pr
        if batch % pc == 0:
            seconds = published.grid_seconds(layers, batch, pr, pc, Link(0.0, 1.0))
            np.testing.assert_allclose(words(pr), seconds, rtol=1e-12)
    fine = np.geomspace(0.1, processes, 200_001)
    best = fine[np.argmin(words(fine))]
    np.testing.assert_allclose(closed_form_pr(layers, batch, processes), best, rtol=1e-3)


def test_the_closed_form_rounds_to_the_best_grid_of_equation_8():
    for processes in (8, 32, 128, 512):
        real = max(1.0, closed_form_pr(ALEXNET, 2048, processes))
        (pr, _), *_ = published_figures.simulated(6, processes)
        assert pr == 2 ** round(np.log2(real))


def test_the_fitted_compute_is_13_to_26_percent_above_one_node():
    fitted = published_figures.FITTED.items()
    more = [seconds / cost.KNL_EPOCHS[b] - 1 for b, seconds in fitted]
    assert 0.13 < min(more) < 0.14
    assert 0.25 < max(more) < 0.26
    assert published_figures.compute_seconds(2048, 8) == 2237 / 8
    assert (
        published_figures.compute_seconds(512, 4096) == 34_870 / 4096
    )  # less than a sample a process


def test_pure_batch_parallelism_by_hand():
    """P = 512: 586 steps an epoch, each an all-reduce of 61 million 4-byte words at 6 GiB/s."""
    step = 2 * (8 * 9 * 2e-6 + 511 / 512 * 60_954_656 * 4 / (6 * 2**30))
    total, communication = published_figures.bars(7, 512)[1, 512]
    np.testing.assert_allclose(communication, 1_200_000 / 2048 * step, rtol=1e-12)
    np.testing.assert_allclose(total, communication + 11_485 / 512, rtol=1e-12)


@pytest.mark.parametrize("processes", FIGURE_7)
def test_the_bars_of_figure_7(processes):
    """Communication within 5 %, totals within 2 %.

    The totals are no independent check: compute was fitted to these bars. Communication is one, of the
    formulas, the layers' sizes and the two constants of the network.
    """
    found = published_figures.bars(7, processes)
    for pr, (total, communication) in FIGURE_7[processes].items():
        bar = found[pr, processes // pr]
        np.testing.assert_allclose(bar.total, total, rtol=0.02)
        np.testing.assert_allclose(bar.communication, communication, rtol=0.05)


@pytest.mark.parametrize("figure", [7, 8, 9, 10])
def test_the_printed_grids_and_speedups(figure):
    """Totals within 0.1; those of communication, printed for Figure 7 alone, within 0.1 too."""
    for processes, (printed, got) in published_figures.compare(figure).items():
        assert got.grid == printed.grid, processes
        assert abs(got.speedup - printed.speedup) < 0.1
        if printed.communication is not None:
            assert abs(got.communication - printed.communication) < 0.1


def test_what_is_printed_stands_in_the_table():
    """The paper's numbers once more, by P: Pr, total speed-up (communication speed-up)."""
    short = {f: {p: (r.grid[0], *r[1:]) for p, r in FIGURES[f].printed.items()} for f in FIGURES}
    assert short[6] == {
        8: (1, 1.0, 1.0),
        32: (4, 1.1, 1.5),
        128: (8, 1.6, 2.8),
        512: (16, 2.1, 5.0),
    }
    assert short[7] == {
        8: (4, 1.1, 2.5),
        32: (8, 1.3, 3.9),
        128: (16, 1.9, 6.4),
        512: (32, 2.5, 9.7),
    }
    assert short[8] == {512: (4, 2.0, None)}
    assert short[9] == {2**e: (32, 2.5, None) for e in range(7, 14)}
    assert {p: r[:2] for p, r in short[10].items()} == {
        512: (64, 3.0),
        1024: (64, 2.8),
        2048: (128, 2.4),
        4096: (128, 2.0),
    }


def test_figure_6_does_not_follow_equation_8():
    """Printed: 4 x 8, 8 x 16 and 16 x 32, 2.1 (5.0) at P = 512. (8) gives other grids and less."""
    found = {p: got for p, (_, got) in published_figures.compare(6).items()}
    assert [got.grid for got in found.values()] == [(1, 8), (1, 32), (2, 64), (4, 128)]
    np.testing.assert_allclose(found[512][1:], (1.58, 2.24), atol=0.005)
    np.testing.assert_allclose(found[128][1:], (1.15, 1.32), atol=0.005)


def test_figure_6_follows_convolutions_with_halos_to_two_neighbours():
    """The domain terms of (9), each halo sent twice: an explanation of the print, not its text."""
    for printed, got in published_figures.compare(HALOS_6).values():
        assert got.grid == printed.grid
        assert abs(got.speedup - printed.speedup) < 0.06
        assert abs(got.communication - printed.communication) < 0.12
    once = published_figures.simulated(HALOS_6._replace(neighbours=1), 8)
    assert once.grid == (2, 4)  # printed: 1 x 8


def test_figure_10_does_not_follow_halos_added_to_the_rest():
    """(9) as it stands: the best Pr of two of the four is half the printed one, and all gain less."""
    found = published_figures.compare(FIGURES[10]._replace(hidden="nothing")).values()
    assert [got.grid[0] for _, got in found] == [32, 64, 64, 128]
    less = [printed.speedup - got.speedup for printed, got in found]
    np.testing.assert_allclose(less, (0.13, 0.22, 0.14, 0.13), atol=0.006)


def test_hiding_hides_no_more_than_the_compute():
    """Figure 8 is Figure 7 at P = 512 less the shorter of compute and the weights' all-reduce."""
    compute = 11_485 / 512
    open_, hidden = published_figures.bars(7, 512), published_figures.bars(8, 512)
    saved = {grid: open_[grid].total - hidden[grid].total for grid in open_}
    np.testing.assert_allclose([saved[1, 512], saved[2, 256]], compute, rtol=1e-12)
    dense = 2 * sum(published.gather_seconds(layer.weights / 32, 16) for layer in ALEXNET[5:])
    reduction = 1_200_000 / 2048 * (dense + published.batch_seconds(ALEXNET[:5], 512))
    np.testing.assert_allclose(saved[32, 16], reduction, rtol=1e-12)


def test_beyond_the_batch_limit_no_process_is_without_a_sample():
    assert published_figures.grids(512, 512)[0] == (1, 512)
    assert next(iter(published_figures.bars(10, 4096))) == (8, 512)
    assert len(published_figures.bars(10, 4096)) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: published_figures.bars(5, 8),
            r"figure: expected one of \[6, 7, 8, 9, 10\]; got 5",
        ),
        (
            lambda: published_figures.bars(7, 64),
            r"processes: expected one of \[8, 32, 128, 512\]; got 64",
        ),
        (
            lambda: published_figures.compare(FIGURES[7]._replace(convolutions="paired")),
            r"convolutions: expected one of \['batch', 'domain', 'model'\]; got 'paired'",
        ),
        (
            lambda: published_figures.bars(FIGURES[7]._replace(hidden="all"), 8),
            r"hidden: expected one of \['halos', 'nothing', 'reduction'\]; got 'all'",
        ),
        (lambda: published_figures.grids(2048, 12), r"processes: expected a power of two; got 12"),
        (lambda: published_figures.grids(100, 4), r"batch: expected a power of two; got 100"),
        (
            lambda: published_figures.compute_seconds(2048, 64),
            r"batch: expected one of \[1, 4, 16, 64, 256\] samples a process; got 32, 2048 on 64",
        ),
        (
            lambda: published.grid_seconds(NET, 8, 2, 3),
            r"pc: expected one of \[1, 2, 4, 8\], which divide 8 samples of a batch; got 3",
        ),
        (
            lambda: published.grid_seconds(NET, 8, 0, 4),
            r"pr: expected an integer of at least 1; got 0",
        ),
        (
            lambda: published.batch_seconds(NET, 2.5),
            r"p: expected an integer of at least 1; got 2.5",
        ),
        (
            lambda: published.domain_seconds(NET, 8, 4),
            r"layers: expected convolutions; got 'dense', a dense layer",
        ),
        (
            lambda: published.mixed_seconds(NET, ["domain"], 8, 2, 4),
            r"forms: expected 2, one a layer; got 1",
        ),
        (
            lambda: published.mixed_seconds(NET, ["batch", "model"], 8, 2, 4),
            r"forms: expected one of \['domain', 'model'\]; got 'batch'",
        ),
        (
            lambda: published.model_seconds(NET, 0, 4),
            r"batch: expected an integer of at least 1; got 0",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
