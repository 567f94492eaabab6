"""Bytes counted from the trace: by hand, and equal to those of the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType

from jtssm.protocol.branching import one_trip_in
from jtssm.sharding.count.jaxpr import count_bytes
from jtssm.sharding.count.routes import Route, ring_bytes
from jtssm.sharding.mesh import make_mesh

P = jax.P
EVERY = P(("a", "b", "c"))
X = jax.ShapeDtypeStruct((64, 8), np.float32)  # 8 x 8 on a device: 256 bytes
KEPT = 4 * 8 * 8


def mesh():
    return jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)


def mapped(fn, in_specs=EVERY, **options):
    return jax.shard_map(
        fn, mesh=mesh(), in_specs=in_specs, out_specs=EVERY, check_vma=False, **options
    )


def gradient(fn):
    return jax.grad(lambda x: (fn(x) ** 2).sum())


def both(fn, *args):
    """Bytes by route, the same from the trace and the compiled program."""
    traced = count_bytes(fn, *args)
    assert traced == count_bytes(fn, *args, compiled=True, mesh=mesh())
    return {(route.collective, "".join(route.axes)): num for route, num in traced.items()}


def sent(fn, *args):
    """What each device hands in over all routes."""
    return [sum(counts.values()) for counts in count_bytes(fn, *args, by_device=True)]


def total(x):
    return x + lax.psum(x, "b")


def gathered(x):
    return x + lax.all_gather(x, "b", tiled=True)[:8]


def swapped(x):
    return lax.all_to_all(x, "b", 0, 1, tiled=True)


def scattered(x):
    return lax.psum_scatter(x, "b", tiled=True)


def shifted(x):
    return x + lax.ppermute(x, "a", [(0, 1)])


FORWARD = {
    "all_reduce": (total, {("all_reduce", "b"): KEPT}),
    "all_gather": (gathered, {("all_gather", "b"): KEPT}),
    "reduce_scatter": (scattered, {("reduce_scatter", "b"): KEPT}),
    "all_to_all": (swapped, {("all_to_all", "b"): KEPT}),
    "permute": (shifted, {("permute", "a"): KEPT}),
    "greatest": (lambda x: x + lax.pmax(x, ("a", "c")), {("all_reduce", "ac"): KEPT}),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_collective_counts_what_a_device_hands_in(name):
    fn, expected = FORWARD[name]
    assert both(mapped(fn), X) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all_reduce", {("all_reduce", "b"): 2 * KEPT}),
        ("all_gather", {("all_gather", "b"): KEPT, ("reduce_scatter", "b"): 2 * KEPT}),
        ("reduce_scatter", {("reduce_scatter", "b"): KEPT, ("all_gather", "b"): KEPT // 2}),
        ("all_to_all", {("all_to_all", "b"): 2 * KEPT}),
        ("permute", {("permute", "a"): KEPT}),  # one end sends forward, the other back
    ],
)
def test_a_gradient_counts_the_transposed_collectives(name, expected):
    fn, _ = FORWARD[name]
    assert both(gradient(mapped(lambda x: jnp.sin(fn(x)))), X) == expected


def test_the_gradient_of_replicated_weights_is_one_sum():
    """Invariant outputs and weights, with replication tracked."""

    def loss(w, x):
        local = lambda w, x: lax.pmean((jnp.tanh(x @ w) ** 2).mean(), ("a", "b"))
        specs = (P(), P(("a", "b")))
        return jax.shard_map(local, mesh=mesh(), in_specs=specs, out_specs=P())(w, x)

    w = jax.ShapeDtypeStruct((8, 8), np.float32)
    assert both(jax.value_and_grad(loss), w, X) == {("all_reduce", "ab"): 4 + 4 * 64}


def mixture(x):
    """Nested scans, a switch of different branches, loops over collectives along several axes."""
    which = jnp.asarray(np.array([1, 0]))[lax.axis_index("a")]

    def inner(x, _):
        return jnp.sin(x) + lax.psum(x, "c"), lax.pmax(lax.stop_gradient(x.sum()), ("a", "b"))

    @jax.checkpoint
    def outer(x, _):
        x, tops = lax.scan(inner, x, None, length=3)
        return jnp.tanh(gathered(x)) * tops.sum() + shifted(x), None

    x = lax.switch(which, [total, lambda x: gathered(x)[:4].repeat(2, axis=0)], x)
    x, _ = lax.scan(outer, x, None, length=2)
    return swapped(scattered(jnp.exp(x)))


def test_trace_and_program_agree_on_a_mixture():
    run = mapped(mixture)
    assert both(run, X) == {
        # of the switch the sum: as much as the gather, and ties go by the name
        ("all_reduce", "b"): KEPT,
        ("all_reduce", "c"): 6 * KEPT,
        ("all_reduce", "ab"): 6 * 4,
        ("permute", "a"): 2 * KEPT,
        ("all_gather", "b"): 2 * KEPT,
        ("reduce_scatter", "b"): KEPT,
        ("all_to_all", "b"): KEPT // 2,
    }
    assert both(gradient(run), X) == {
        ("all_reduce", "b"): KEPT,  # of the switch forward, the sum
        ("all_reduce", "c"): 3 * 6 * KEPT,  # forward, again, transposed
        ("all_reduce", "ab"): 2 * 6 * 4,
        ("permute", "a"): 2 * KEPT,  # forward from one end, back from the other
        ("all_gather", "b"): 2 * 2 * KEPT + KEPT // 2,  # loop and its repetition; of the scatter
        ("reduce_scatter", "b"): KEPT + 2 * 2 * KEPT + 2 * KEPT,  # of the switch back, the gather's
        ("all_to_all", "b"): KEPT,
    }


def test_what_a_checkpoint_does_again_counts_again():
    """The CPU's compiler merges the repeated gather with the first one."""
    run = gradient(mapped(jax.checkpoint(lambda x: jnp.tanh(gathered(x)))))
    counts = count_bytes(run, X)
    assert counts[Route("all_gather", ("b",))] == 2 * KEPT


BRANCHES = [lambda x: x * 1, lambda x: x + lax.psum(x[:4], "b").sum(), gathered]
TABLE = np.array([2, 1])


def switch(index):
    return mapped(lambda x: lax.switch(index(), BRANCHES, x))


def test_of_a_switch_the_branch_that_moves_most_counts():
    run = switch(lambda: lax.axis_index("a"))
    assert both(run, X) == {("all_gather", "b"): KEPT}
    assert both(gradient(run), X) == {("all_gather", "b"): KEPT, ("reduce_scatter", "b"): 2 * KEPT}


def test_of_a_switch_on_a_constant_its_branch_counts():
    assert count_bytes(switch(lambda: jnp.asarray(TABLE)[1]), X) == {
        Route("all_reduce", ("b",)): KEPT // 2
    }


@pytest.mark.parametrize(
    ("index", "branches"),
    [
        (lambda: lax.axis_index("a"), [0, 0, 0, 0, 1, 1, 1, 1]),
        (lambda: jnp.asarray(TABLE)[lax.axis_index("c")], [2, 1] * 4),
        (lambda: lax.axis_index(("a", "c")), [0, 1, 0, 1, 2, 2, 2, 2]),
        (lambda: jnp.where(lax.axis_index("b") > 0, 2, 0), [0, 0, 2, 2] * 2),
        (lambda: jnp.clip(3 * lax.axis_index("c") - 1, 0, 9), [0, 2] * 4),
        (jax.jit(lambda: jnp.take(jnp.asarray(TABLE), lax.axis_index("a"))), [2] * 4 + [1] * 4),
    ],
)
def test_by_device_a_switch_counts_the_branch_the_device_takes(index, branches):
    moved = [0, KEPT // 2, KEPT]
    assert sent(switch(index), X) == [moved[b] for b in branches]
    within = mapped(
        lambda x: lax.scan(lambda x, _: (lax.switch(index(), BRANCHES, x), None), x, length=5)[0]
    )
    assert sent(within, X) == [5 * moved[b] for b in branches]


def test_by_device_an_index_may_come_in_as_an_argument():
    def run(x):
        fn = mapped(lambda x, i: lax.switch(i[0], BRANCHES, x), in_specs=(EVERY, P(("b", "c"))))
        return fn(x, jnp.arange(4))

    assert sent(run, X) == [0, KEPT // 2, KEPT, KEPT] * 2


def test_by_device_an_index_from_data_counts_the_largest_branch():
    run = mapped(lambda x: lax.switch(x[0, 0].astype(int), BRANCHES, x))
    assert sent(run, X) == [KEPT] * 8
    assert count_bytes(run, X) == {Route("all_gather", ("b",)): KEPT}


def test_by_device_the_ends_of_a_permute_differ():
    run = mapped(lambda x: shifted(x) + lax.ppermute(x[:2], "a", [(1, 0)]).sum())
    assert sent(run, X) == [KEPT] * 4 + [KEPT // 4] * 4
    assert both(run, X) == {("permute", "a"): KEPT}
    ring = mapped(lambda x: lax.ppermute(x, ("a", "c"), [(0, 3), (3, 0), (1, 1)]))
    assert both(ring, X) == {("permute", "ac"): KEPT}
    assert sent(ring, X) == [KEPT, 0, KEPT, 0, 0, KEPT, 0, KEPT]


def test_axes_of_size_one_move_nothing():
    thin = jax.make_mesh((4, 1), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    work = lambda x: lax.psum(x, ("a", "b")) + lax.psum(x, "b") + lax.ppermute(x, "b", [(0, 0)])
    run = jax.shard_map(work, mesh=thin, in_specs=P("a"), out_specs=P("a"), check_vma=False)
    expected = {Route("all_reduce", ("a",)): 4 * 16 * 8}
    assert count_bytes(run, X) == count_bytes(run, X, compiled=True, mesh=thin) == expected


def test_groups_of_one_device_move_nothing():
    alone = [[0], [1], [2], [3]]
    assert both(mapped(lambda x: lax.pmax(x, ("a", "b"), axis_index_groups=alone)), X) == {}


def test_dead_collectives_do_not_count():
    def work(x):
        lax.psum(x, "a")
        unread = lambda pair, _: ((jnp.sin(pair[0]), total(pair[1])), lax.pmax(x, "c"))
        (x, _), _ = lax.scan(unread, (x, x), length=3)
        return lax.fori_loop(0, 2, lambda i, x: (lax.psum(x, "c"), total(x))[1], x)

    assert both(jax.jit(mapped(work)), X) == {("all_reduce", "b"): 2 * KEPT}


def test_a_loop_of_unknown_trips_is_refused_only_if_it_moves_something():
    until = lambda step: mapped(lambda x: lax.while_loop(lambda x: x.sum() < 9, step, x))
    assert both(until(jnp.exp), X) == {}
    expected = "expected a known number of trips of each loop that moves something"
    for compiled in (False, True):
        with pytest.raises(ValueError, match=expected + r".*got a.* loop that moves .*256"):
            count_bytes(until(total), X, compiled=compiled, mesh=mesh())
    asking = lambda x: lax.while_loop(lambda x: lax.pmax(x, "a").sum() < 9, jnp.exp, x)
    with pytest.raises(ValueError, match=expected):
        count_bytes(mapped(asking), X)


def test_the_trips_of_a_loop_between_constants_are_known():
    def work(x, n):
        return lax.fori_loop(1, n, lambda i, x: total(x), x)

    run = jax.jit(lambda x: mapped(work, in_specs=(EVERY, P()))(x, jnp.array(4)))
    assert "while" in str(jax.make_jaxpr(run)(X))  # not a scan
    assert both(run, X) == {("all_reduce", "b"): 3 * KEPT}
    run = mapped(lambda x: work(x, 3 * lax.axis_index("c")))
    assert sent(run, X) == [0, 2 * KEPT] * 4
    with pytest.raises(ValueError, match="expected a known number of trips"):
        count_bytes(run, X)


def test_collectives_in_called_functions_count_once():
    @jax.custom_vjp
    def summed(x):
        return lax.psum(x, "b")

    summed.defvjp(lambda x: (summed(x), None), lambda _, g: (lax.psum(jnp.sin(g), "c"),))
    run = mapped(jax.jit(lambda x: jnp.cos(summed(x)) + jax.nn.relu(x)))
    assert both(run, X) == {("all_reduce", "b"): KEPT}
    assert both(gradient(run), X) == {("all_reduce", "b"): KEPT, ("all_reduce", "c"): KEPT}
    batched = jax.vmap(run)
    assert both(batched, jax.ShapeDtypeStruct((3, *X.shape), X.dtype)) == {
        ("all_reduce", "b"): 3 * KEPT
    }


def test_a_mesh_larger_than_the_machine_can_be_counted():
    large = AbstractMesh((64, 16), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    work = lambda x: lax.switch(lax.axis_index("a"), BRANCHES, x)
    run = jax.shard_map(work, mesh=large, in_specs=P("a"), out_specs=P("a"), check_vma=False)
    counts = count_bytes(run, jax.ShapeDtypeStruct((64 * 8, 8), np.float32), by_device=True)
    assert len(counts) == 1024
    assert [list(c.values()) for c in counts[::16]] == [[], [KEPT // 2]] + [[KEPT]] * 62


def test_on_rings_a_device_sends_what_its_group_asks_of_it():
    counted = {
        Route("all_gather", ("b",)): 100,
        Route("reduce_scatter", ("b",)): 100,
        Route("all_to_all", ("b",)): 100,
        Route("all_reduce", ("a", "b")): 160,
        Route("permute", ("a",)): 7,
    }
    shape = {"a": 2, "b": 4, "c": 3}
    assert ring_bytes(counted, shape) == 300 + 75 + 75 + 2 * 7 / 8 * 160 + 7
    assert ring_bytes({}, shape) == 0
    with pytest.raises(ValueError, match=r"mesh_shape: expected an axis for each.*got \{'a': 2\}"):
        ring_bytes(counted, {"a": 2})


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="expected a mesh and no by_device with compiled=True"):
        count_bytes(mapped(total), X, compiled=True)
    with pytest.raises(ValueError, match="expected a mesh and no by_device with compiled=True"):
        count_bytes(mapped(total), X, compiled=True, mesh=mesh(), by_device=True)
    with pytest.raises(ValueError, match="mesh: expected the mesh whose devices to list"):
        count_bytes(jnp.sin, X, by_device=True)
    assert count_bytes(jnp.sin, X, by_device=True, mesh=mesh()) == [{}] * 8
    with pytest.raises(ValueError, match="expected every shard_map on one mesh"):
        count_bytes(mapped(total), X, mesh=make_mesh(2))
    grouped = mapped(lambda x: lax.psum(x, ("a", "b"), axis_index_groups=[[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"without axis_index_groups; got .*psum"):
        count_bytes(grouped, X)


def test_what_is_named_as_done_in_one_trip_of_some_is_counted_so():
    """A conditional does not tell how often it is taken."""

    def summed(x, last, named):
        def over_c(x):
            with one_trip_in(3 if named else 1):
                return lax.psum(x, "c")

        return lax.cond(last, over_c, lambda x: x, x)

    def run(x, named):
        trip = lambda i, x: jnp.cos(summed(x, i % 3 == 2, named))
        return lax.fori_loop(0, 6, trip, x)

    assert both(mapped(lambda x: run(x, True)), X) == {("all_reduce", "c"): 2 * KEPT}
    assert both(mapped(lambda x: run(x, False)), X) == {("all_reduce", "c"): 6 * KEPT}
