"""Unequal trees in equal rows, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtssm import sharding
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.on_host import gathered, lay_out, spread
from jtssm.sharding.placement.packing import layout_of, pack, specs, unpack

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
        rows = pack(layout, l, tree)
        assert all(row.shape == (layout.size(key),) for key, row in rows.items())
        jax.tree.map(np.testing.assert_array_equal, unpack(layout, l, rows), tree)


@pytest.mark.parametrize("kind", ["samples", "line"])
def test_rows_of_samples_keep_the_samples_apart(kind):
    lead = {"samples": (5,), "line": (2, 5)}[kind]
    tree = (np.arange(np.prod(lead) * 6.0).reshape(*lead, 3, 2), np.ones((*lead, 4)))
    layout = layout_of(kind, [tree, ()])
    rows = pack(layout, 0, tree)
    assert rows["float64"].shape == (*lead, 10)
    jax.tree.map(np.testing.assert_array_equal, unpack(layout, 0, rows), tree)
    assert unpack(layout, 1, rows) == ()
    if kind == "line":
        assert [layout.ticks(l) for l in (0, 1)] == [2, 0]


def test_weights_split_over_pr_lie_on_their_devices_and_are_joined_again():
    whole = trees()
    local = [
        {"W": np.zeros((3, 2)), "b": np.zeros(2), "count": np.int32(0)},
        {"W": np.zeros((2, 4))},
        {"b": np.zeros(4), "n": np.zeros(3, np.int32)},
    ]
    layout = layout_of("weights", whole, local, 2)
    assert layout.keys == ["float64", "float64/pr", "int32"]
    assert tuple(specs(layout, NAMES).rows["float64/pr"]) == ("subnet", "pr")
    mesh = sharding.make_mesh(3, 2, 1)
    rows = lay_out(layout, whole, mesh, NAMES, 2, slots=3)
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
        layout = layout_of(kind, trees)
        rows = spread(layout, trees, mesh, names, slots=4)
        array = rows.rows["float64"]
        assert array.shape == (4, *lead, 5)
        expected = (2, *lead[:-1], 2, 5)
        assert array.sharding.shard_shape(array.shape) == expected
        jax.tree.map(np.testing.assert_array_equal, gathered(rows), tuple(trees))
