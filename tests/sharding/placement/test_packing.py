"""Unequal trees in equal rows, and back."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtssm import sharding
from jtssm.sharding.mesh import AxisNames, axis_names
from jtssm.sharding.placement.on_host import gathered, lay_out, spread
from jtssm.sharding.placement.packing import layout_of
from jtssm.sharding.placement.rows import specs
from jtssm.sharding.placement.slotted import slotted
from jtssm.sharding.slots import Slots

NAMES = AxisNames("subnet", "pr", "pc")


def trees():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape)
    return [
        {"W": draw(3, 4), "b": draw(4), "count": np.int32(5)},
        {"W": draw(2, 4)},
        {"b": draw(8), "n": np.arange(3, dtype=np.int32)},
    ]


def test_every_tree_comes_back_from_its_row():
    layout = layout_of("weights", trees())
    assert layout.keys == ["float64", "int32"]
    assert (layout.size("float64"), layout.size("int32")) == (16, 3)
    for l, tree in enumerate(trees()):
        rows = layout.pack(l, tree)
        assert all(row.shape == (layout.size(key),) for key, row in rows.items())
        jax.tree.map(np.testing.assert_array_equal, layout.unpack(l, rows), tree)


@pytest.mark.parametrize("kind", ["samples", "line"])
def test_rows_of_samples_keep_the_samples_apart(kind):
    lead = {"samples": (5,), "line": (2, 5)}[kind]
    tree = (np.arange(np.prod(lead) * 6.0).reshape(*lead, 3, 2), np.ones((*lead, 4)))
    layout = layout_of(kind, [tree, ()])
    rows = layout.pack(0, tree)
    assert rows["float64"].shape == (*lead, 10)
    jax.tree.map(np.testing.assert_array_equal, layout.unpack(0, rows), tree)
    assert layout.unpack(1, rows) == ()
    if kind == "line":
        assert [layout.ticks(l) for l in (0, 1)] == [2, 0]


def test_weights_split_over_pr_lie_on_their_devices_and_are_joined_again():
    whole = trees()
    local = [
        {"W": np.zeros((3, 2)), "b": np.zeros(2), "count": np.int32(0)},
        {"W": np.zeros((2, 4))},
        {"b": np.zeros(4), "n": np.zeros(3, np.int32)},
    ]
    layout = layout_of("weights", whole, local, 2, Slots(3, 3))
    assert layout.keys == ["float64", "float64/pr", "int32"]
    assert tuple(specs(layout, NAMES).rows["float64/pr"]) == ("subnet", "pr")
    mesh = sharding.make_mesh(3, 2, 1)
    rows = lay_out(layout, whole, mesh, NAMES, 2)
    split = rows.rows["float64/pr"]
    assert split.shape == (3, 2, 8)
    assert split.sharding.shard_shape(split.shape) == (1, 1, 8)
    expected = np.concatenate([whole[0]["W"][:, 2:].ravel(), whole[0]["b"][2:]])
    np.testing.assert_array_equal(np.asarray(split)[0, 1], expected)
    jax.tree.map(np.testing.assert_array_equal, gathered(rows), tuple(whole))


def test_what_is_not_rows_is_only_fetched():
    state = {"a": jnp.arange(3), "key": jax.random.key(0)}
    got = gathered(state)
    assert isinstance(got["a"], np.ndarray)
    np.testing.assert_array_equal(
        jax.random.key_data(got["key"]), jax.random.key_data(state["key"])
    )


def test_layouts_move_with_the_messages():
    layout = layout_of("samples", [(np.zeros((5, 3)),), (np.zeros((5, 4)),), ()])
    assert [layout.moved(1).width(l, "float64") for l in range(3)] == [0, 3, 4]
    assert [layout.moved(-1).width(l, "float64") for l in range(3)] == [4, 0, 0]


def test_samples_and_lines_are_spread_and_come_back_from_padded_slots():
    mesh, names = sharding.make_mesh(subnet=2, pc=2), AxisNames("subnet", None, "pc")
    rng = np.random.default_rng(0)
    for kind, lead in (("samples", (4,)), ("line", (3, 4))):
        trees = [(rng.normal(size=(*lead, 2)),), (), (rng.normal(size=(*lead, 5)),)]
        layout = layout_of(kind, trees, slots=Slots(3, 2))
        # of lines each slot of a device has its own array: the first one none at all
        layout, key, slots = {
            "samples": (layout, "float64", 4),
            "line": (slotted(layout), "01/float64", 2),
        }[kind]
        rows = spread(layout, trees, mesh, names)
        assert list(rows.rows) == [key]
        array = rows.rows[key]
        assert array.shape == (slots, *lead, 5)
        expected = (slots // 2, *lead[:-1], 2, 5)
        assert array.sharding.shard_shape(array.shape) == expected
        if kind == "samples":  # the empty slot is the first
            assert not np.any(np.asarray(array)[0])
            np.testing.assert_array_equal(np.asarray(array)[1, ..., :2], trees[0][0])
        jax.tree.map(np.testing.assert_array_equal, gathered(rows), tuple(trees))


def numbers(layout):
    """So many a device holds in all arrays."""
    return sum(prod(layout.tail(key)) for key in layout.keys)


def test_weights_lie_leaf_by_leaf_in_no_more_than_the_longest_row_takes():
    rng = np.random.default_rng(2)
    draw = lambda *shapes: [
        {"W": rng.normal(size=shape), "b": rng.normal(size=shape[1])} for shape in shapes
    ]
    trees = [draw((9, 4), (4, 4), (4, 4)), draw((4, 4), (4, 4)), draw((4, 4), (4, 3))]
    layout = layout_of("weights", trees)
    leaves = slotted(layout._replace(slots=Slots(3, 3)))  # a device each
    for l, tree in enumerate(trees):
        rows = leaves.pack(l, tree)
        jax.tree.map(np.testing.assert_array_equal, leaves.unpack(l, rows), tree)
        # what lies alone is stored as it is: nothing is put together
        assert any(row is tree[0]["b"] for row in rows.values())
    # (4,) and (4, 4) are everywhere; then the largest goes with the largest
    assert [leaves.tail(key) for key in leaves.keys] == [(4,), (4, 4), (9, 4), (4, 4), (4,), (4,)]
    assert numbers(leaves) == layout.size("float64") == 80
    # of one device each leaf of every piece has its own array, in its own shape
    alone = slotted(layout)
    assert numbers(alone) == sum(a.size for a in jax.tree.leaves(trees))
    # of two devices the first has one piece, at its second slot, where the third is on the other
    pairs = slotted(layout._replace(slots=Slots(3, 2)))
    assert numbers(pairs) == 40 + 80
    for layout, subnet in ((leaves, 3), (alone, 1), (pairs, 2)):
        names = axis_names(sharding.make_mesh(subnet))
        rows = lay_out(layout, trees, sharding.make_mesh(subnet), names, 1)
        jax.tree.map(np.testing.assert_array_equal, gathered(rows), tuple(trees))


def test_rows_that_a_shorter_piece_shares_are_written_in_place():
    trees = [{"W": np.arange(6.0).reshape(2, 3)}, {"W": np.arange(4.0).reshape(2, 2)}]
    layout = slotted(layout_of("weights", trees, slots=Slots(2, 2)))
    (key,) = layout.keys
    assert layout.tail(key) == (2, 3)
    tree, base = jax.tree.map(jnp.asarray, trees[1]), jnp.full((2, 3), 7.0)
    row = layout.pack(1, tree, base={key: base})[key]
    # in whole lines of the array: what the last has more of it is nobody's
    np.testing.assert_array_equal(row, [[0, 1, 2], [3, 0, 0]])
    np.testing.assert_array_equal(layout.unpack(1, {key: row})["W"], trees[1]["W"])
    assert layout.joined(1, tree)[key].shape == (4,)
    assert layout.pack(0, trees[0])[key] is trees[0]["W"]
