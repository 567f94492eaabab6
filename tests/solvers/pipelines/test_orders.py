"""The schedules of a pipeline, played through without a network."""

import pytest

from jtssm.solvers.pipelines.orders import ORDERS, Order, order_of


def played(order):
    """(piece, "f" or "b", microbatch) -> tick, and the most that each piece keeps at a time.

    A line holds what was stored as many ticks ago as it is long (`protocol.exchange.Ring`): here it is
    asked for what piece l must have at its turn backward.
    """
    done, most = {}, [0] * order.num
    lines = [[None] * order.kept(l) for l in range(order.num)]
    for phase in order.phases():
        for t in range(phase.first, phase.first + phase.ticks):
            for l, line in enumerate(lines):
                ahead, behind = order.ahead(l, t), order.behind(l, t)
                found = line[order.place(phase, t) % len(line)] if line else None
                if phase.forward and order.lives(ahead):
                    assert done.setdefault((l, "f", ahead), t) == t
                    if line:
                        line[t % len(line)] = ahead
                if phase.backward and order.lives(behind):
                    assert order.works_behind(phase, l)
                    assert not line or found == behind
                    assert done.setdefault((l, "b", behind), t) == t
                ran = [(l, k, m) for (piece, k, m) in done if piece == l]
                most[l] = max(most[l], sum(k == "f" for _, k, _ in ran) * 2 - len(ran))
    return done, most


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(("num", "each"), [(1, 3), (2, 1), (2, 5), (3, 4), (4, 2), (5, 12)])
def test_every_microbatch_passes_every_piece_once_each_way_in_turn(name, num, each):
    order = Order(name, num, each)
    done, most = played(order)
    assert len(done) == 2 * num * each
    for m in range(each):
        forward = [done[l, "f", m] for l in range(num)]
        backward = [done[l, "b", m] for l in reversed(range(num))]
        assert forward == list(range(forward[0], forward[0] + num))  # a boundary a tick
        assert backward == list(range(backward[0], backward[0] + num))
        assert backward[0] >= forward[-1]
    ticks = [sum(p.ticks for p in order.phases() if getattr(p, k)) for k in ("forward", "backward")]
    assert ticks == [each + num - 1] * 2  # n - 1 of M + n - 1 are waited for
    assert all(a <= order.kept(l) for l, a in enumerate(most) if l > 0)
    left = [order.left_out(l) for l in range(num)]
    assert left == [num - 1] * (num - 1) + [0 if name == "1f1b" else num - 1]


def test_what_is_kept_does_not_grow_with_the_microbatches_but_of_gpipe():
    few, many = ([Order(name, 4, 32).kept(l) for l in range(4)] for name in ORDERS)
    assert few == [0, 4, 2, 0]
    assert many == [0, 32, 32, 32]


def test_the_number_of_microbatches_divides_the_batch_and_hides_two_thirds():
    assert order_of("1f1b", 4, None, 128).microbatches == 8
    assert order_of("1f1b", 3, None, 110).microbatches == 10
    assert order_of("gpipe", 8, None, 12).microbatches == 12
    assert order_of("gpipe", 1, None, 12).microbatches == 1
