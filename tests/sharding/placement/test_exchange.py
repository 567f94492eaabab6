"""The exchange on a mesh gives what it gives by index, for trees of several dtypes too."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.dtypes import float0

import jtssm
from jtssm import sharding
from jtssm.nn.ops import varying
from jtssm.protocol.exchange import by_index
from jtssm.sharding.count import hlo
from jtssm.sharding.count.routes import ring_bytes
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.exchange import by_collectives
from jtssm.sharding.placement.on_host import gathered
from jtssm.sharding.placement.rows import Rows
from jtssm.sharding.placement.switch import Place

NAMES = AxisNames("subnet", "pr", "pc")
BATCH, NUM = 4, 3
WIDTHS = [4, 6, 3, 5]  # of h, before and after each of the pieces
MESHES = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]  # of subnet and pc
DTYPES = {"h": jnp.float32, "ids": jnp.int32, "mask": jnp.bool_}


def matrices():
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for shape in pairwise(WIDTHS)]


def samples():
    rng = np.random.default_rng(0)
    return {
        "h": rng.normal(size=(BATCH, WIDTHS[0])).astype(np.float32),
        "ids": rng.integers(0, 2**30, (BATCH, 2)).astype(np.int32),  # float32 could not hold them
        "mask": rng.integers(0, 2, (BATCH, 2, 3)).astype(bool),
    }


def handed_on(l, p):
    """Leaves of other widths from every piece; the mask leaves some ids and some h out."""
    ids = jnp.concatenate([p["ids"] + l + 1, p["ids"][:, :1] ^ 5], axis=1)
    h = jnp.tanh(p["h"] @ matrices()[l]) * jnp.where(p["mask"][:, 0, :1], 1, jnp.float32(0.5))
    return {"h": h, "ids": ids, "mask": ~p["mask"][..., : 3 - l] & (ids[:, :2, None] % 3 > 0)}


def place(num, subnet, pc, alike=None):
    """Where `num` pieces of one layer live; of the network nothing is asked here."""
    net, starts = jtssm.mlp([2] * (num + 1)), tuple(range(num + 1))
    return Place(net, starts, ("batch",) * num, NAMES, (subnet, 1, pc), alike or starts[:-1])


def on_mesh(work, at, x):
    """work(exchange, x) -> a tuple of things carried, jitted; samples differ from piece to piece."""
    mesh, spec = sharding.make_mesh(*at.sizes), NAMES.spec
    exchange = by_collectives(at)
    seen = lambda x: work(exchange, varying(x, ("subnet", "pc")))
    mapped = jax.shard_map(seen, mesh=mesh, in_specs=spec("pc"), out_specs=spec("subnet", "pc"))
    return jax.jit(mapped), x


def assert_same(work, at, x):
    """Carried by carried, piece by piece; integers and booleans to the last bit."""
    mapped, x = on_mesh(work, at, x)
    got = mapped(x)
    expected = work(by_index(at.num), jax.tree.map(jnp.asarray, x))
    for one, other in zip(expected, got, strict=True):
        assert isinstance(other, Rows)
        assert_equal(one, gathered(other))
    return expected


def assert_equal(expected, got):
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("subnet", "pc"), MESHES)
def test_a_chain_hands_on_trees_of_floats_integers_and_booleans(subnet, pc):
    def work(exchange, x):
        own = lambda l: ({"shift": jnp.full((x["ids"].shape[0], 1), 7 * l, jnp.int32)},)
        (shifts,) = exchange.each(own, kinds=("samples",))

        def piece(l, shift, p):
            return handed_on(l, p | {"ids": p["ids"] + shift["shift"]})

        last, taken, given = exchange.chain(piece, shifts, x=x, keep=True)
        (alone,) = exchange.chain(piece, shifts, x=x)
        # what all devices have, as something that each piece has
        return *exchange.each(lambda l: (last, alone), kinds=("samples",) * 2), taken, given

    last, alone, taken, given = assert_same(work, place(NUM, subnet, pc), samples())
    assert {key: a.dtype for key, a in last[0].items()} == DTYPES
    assert [p["ids"].shape[1] for p in taken] == [2, 3, 4]
    assert [f["h"].shape[1] for f in given] == WIDTHS[1:]
    assert 0 < np.mean(given[1]["mask"]) < 1
    assert np.max(given[2]["ids"]) > 2**25
    assert_equal(last, alone)


@pytest.mark.parametrize(("subnet", "pc"), MESHES)
def test_neighbours_receive_what_was_sent_in_its_own_dtypes(subnet, pc):
    def work(exchange, x):
        def send(l):
            cut = jax.tree.map(lambda a: a[:, : 1 + l % 2], x)
            return ({"h": cut["h"] + l, "ids": cut["ids"] + l, "mask": cut["mask"] ^ (l == 1)},)

        (sent,) = exchange.each(send, kinds=("samples",))
        after, before = exchange.to_next(sent), exchange.to_previous(sent)

        def read(l, after, before):
            assert (after == ()) == (l == 0)
            assert (before == ()) == (l == NUM - 1)
            both = [tree for tree in (after, before) if tree]
            seen = sum(jnp.where(tree["mask"][:, 0], tree["ids"][:, :1], 0) for tree in both)
            return (seen,)

        return sent, after, before, *exchange.each(read, after, before, kinds=("samples",))

    *_, seen = assert_same(work, place(NUM, subnet, pc), samples())
    assert seen[1].dtype == jnp.int32
    assert np.any(seen[1])


@pytest.mark.parametrize("gloo", [False, True])
def test_both_neighbours_are_told_at_once(gloo):
    """Widths and dtypes differ each way; None, as of a message that no piece has, too."""

    def work(exchange, x):
        def send(l):
            ahead = {"h": x["h"] + l, "ids": x["ids"] * (l + 1), "mask": x["mask"] ^ (l == 1)}
            return ahead, {"h": -x["h"][:, : 1 + l], "mask": ~x["mask"]}

        return exchange.swap(*exchange.each(send, kinds=("samples",) * 2))

    at = place(NUM, 2, 2)._replace(gloo=gloo)
    assert_same(work, at, samples())
    mapped, x = on_mesh(work, at, samples())
    moved = sharding.count_bytes(mapped, x)
    assert {route.collective for route in moved} == {"all_reduce" if gloo else "permute"}
    sent = ring_bytes(moved, {"subnet": 2, "pr": 1, "pc": 2})
    # h and ids go together, the mask of bytes alone
    assert sent == BATCH // 2 * (4 * 4 + 4 * 2 + 6)
    assert str(jax.make_jaxpr(mapped)(x)).count("= psum_invariant[") == 2 * gloo


@pytest.mark.parametrize("main", ["uint8", "uint16", "float32"])
def test_codes_and_the_ends_of_their_grids_are_one_message(main):
    """Bits go into narrower numbers; between processes a message costs more than its bytes."""

    def work(exchange, x):
        def send(l):
            codes = (x["h"] * 40 + 128 + l).astype(main)
            ends = {"low": x["h"][:, :1] - l, "step": x["ids"][:, :1] + l}
            return {"codes": jnp.tile(codes, 9), **ends}, {
                "codes": codes[:, :3],
                "low": ends["low"],
            }

        return exchange.swap(*exchange.each(send, kinds=("samples",) * 2))

    at = place(NUM, 2, 1)._replace(gloo=True)
    assert_same(work, at, samples())
    mapped, x = on_mesh(work, at, samples())
    assert str(jax.make_jaxpr(mapped)(x)).count("= psum_invariant[") == 1
    sent = ring_bytes(sharding.count_bytes(mapped, x), {"subnet": 2, "pr": 1, "pc": 1})
    assert sent == BATCH * (36 * np.dtype(main).itemsize + 4 + 4)


@pytest.mark.parametrize(("subnet", "pc"), MESHES)
def test_lines_of_several_dtypes_give_back_what_they_were_given(subnet, pc):
    """Lines as long as the piece stands from the last one; the last has none."""
    ticks = [4, 2, 0]

    def work(exchange, x):
        def empty(l):
            zeros = lambda a: jnp.zeros((ticks[l], *a.shape), a.dtype)
            return (jax.tree.map(zeros, x) if ticks[l] else (),)

        (line,) = exchange.each(empty, kinds=("line",))
        recalled = []
        for tick in range(7):
            now = jnp.asarray(tick, jnp.int32)
            recalled.append(exchange.ring.recall(line, now))
            mark = lambda l, t=tick: (
                {
                    "h": x["h"] + t,
                    "ids": x["ids"] + 10 * t,
                    "mask": x["mask"] ^ (t % 2 == 1),
                }
                if ticks[l]
                else ()
            )
            (entry,) = exchange.each(lambda l, mark=mark: (mark(l),), kinds=("samples",))
            line = exchange.ring.store(line, entry, now)
        return tuple(recalled)

    recalled = assert_same(work, place(NUM, subnet, pc), samples())
    assert {key: a.dtype for key, a in recalled[6][0].items()} == DTYPES
    for l in (0, 1):
        np.testing.assert_array_equal(recalled[6][l]["ids"], samples()["ids"] + 10 * (6 - ticks[l]))


@pytest.mark.parametrize(("subnet", "pc"), [(1, 1), (2, 1), (3, 2)])
def test_gradients_pass_through_the_float_leaves_and_integers_have_none(subnet, pc):
    """Back-propagation by `each` and `to_previous`: what jax.grad of the whole network gives."""

    def work(exchange, x):
        _, taken, given = exchange.chain(handed_on, x=x, keep=True)

        def back(l, p, f, arrived):
            _, pull = jax.vjp(lambda p: handed_on(l, p), p)
            nothing = {key: np.zeros(f[key].shape, float0) for key in ("ids", "mask")}
            (found,) = pull({"h": arrived if l < NUM - 1 else 2 * f["h"]} | nothing)
            assert {found[key].dtype for key in nothing} == {np.dtype(float0)}
            return (found["h"],)

        start = lambda l, f: (jnp.zeros_like(f["h"]) if l < NUM - 1 else (),)
        (arrived,) = exchange.each(start, given, kinds=("samples",))
        for _ in range(NUM):
            (gradient,) = exchange.each(back, taken, given, arrived, kinds=("samples",))
            arrived = exchange.to_previous(gradient)
        return (gradient,)

    (gradient,) = assert_same(work, place(NUM, subnet, pc), samples())

    def whole(h):
        p = samples() | {"h": h}
        for l in range(NUM):
            p = handed_on(l, p)
        return jnp.sum(p["h"] ** 2)

    expected = jax.grad(whole)(samples()["h"])
    np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_a_boundary_is_crossed_by_its_own_bytes_of_each_dtype():
    def work(exchange, x):
        (_, taken, _) = exchange.chain(handed_on, x=x, keep=True)
        return (exchange.to_previous(taken),)

    mapped, x = on_mesh(work, place(NUM, 3, 1), samples())
    taken = [jax.eval_shape(lambda: samples())]
    for l in range(NUM - 1):
        taken.append(jax.eval_shape(lambda p, l=l: handed_on(l, p), taken[-1]))
    held = [sum(a.size * a.dtype.itemsize for a in p.values()) for p in taken[1:]]
    # each boundary by the chain forward, and by what was taken there backward
    assert hlo.permuted_bytes(mapped.lower(x).compile().as_text()) == 2 * sum(held)


def test_alike_pieces_are_batched_and_slots_without_a_piece_give_nothing():
    """Five pieces in pairs on four devices: the first has two slots to spare, the second one."""
    at = place(5, 4, 2, alike=(0, 1, 1, 1, 1))
    traced = []

    def work(exchange, x):
        def draw(l):
            return {"ids": x["ids"] * (l + 1), "h": x["h"] + l}, (
                jnp.sum(x["ids"] % 8),
                jnp.ones((), int),
            )

        held, (ids, pieces) = exchange.each(draw, kinds=("samples", "sums"))

        def double(l, tree):
            traced.append(l)
            return ({"ids": tree["ids"] * 2, "odd": tree["ids"] % 2 == 1},)

        (twice,) = exchange.each(double, held, kinds=("samples",), batched=True)
        totals = jnp.stack([exchange.samples.total(ids), exchange.samples.total(pieces)])
        show = lambda l: (jnp.broadcast_to(totals, (x["h"].shape[0], 2)),)
        return held, twice, *exchange.each(show, kinds=("samples",))

    mapped, x = on_mesh(work, at, samples())
    held, twice, totals = mapped(x)
    ids, seen = samples()["ids"], set(traced)
    assert seen == {0, 1}  # no other piece was traced: 2, 3 and 4 do what piece 1 does
    for l, tree in enumerate(gathered(twice)):
        np.testing.assert_array_equal(tree["ids"], 2 * (l + 1) * ids)
        np.testing.assert_array_equal(tree["odd"], (l + 1) * ids % 2 == 1)
    assert not np.any(np.asarray(held.rows["int32"])[:3])
    assert not np.any(np.asarray(twice.rows["bool"])[:3])
    np.testing.assert_array_equal(gathered(totals)[0][0], [5 * (ids % 8).sum(), 5 * 2])


@pytest.mark.parametrize(
    ("give", "kinds", "message"),
    [
        (
            lambda l, x: jax.vjp(lambda p: p["h"], x)[1](jnp.ones_like(x["h"])),
            ("samples",),
            "samples: expected leaves of numbers; got float0",
        ),
        (lambda l, x: (jnp.ones(()),), ("samples",), r"expected leaves \[samples, ...\]; got one"),
        (lambda l, x: (x["h"][0, 0],), ("line",), r"expected leaves \[ticks, samples, ...\]"),
        (lambda l, x: (jnp.ones(l + 1),), ("sums",), "sums: expected .*from every piece; got .* 1"),
        (lambda l, x: (x["h"],), ("weights",), "carried: expected weights, as weights are given"),
        (
            lambda l, x: (x["h"],),
            ("momenta",),
            "kind: expected one of 'weights', .*; got 'momenta'",
        ),
    ],
)
def test_what_no_switch_can_give_back_is_refused(give, kinds, message):
    def work(exchange, x):
        return exchange.each(lambda l: give(l, x), kinds=kinds)

    mapped, x = on_mesh(work, place(NUM, 3, 1), samples())
    with pytest.raises(ValueError, match=message):
        mapped(x)
