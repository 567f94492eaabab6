"""Rows and the host: trees given there, laid out on the mesh, and a placed state gathered there."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jtssm.arrays import AnyArray, Array, Tree
from jtssm.protocol.exchange import Kind
from jtssm.sharding.agreement import check_all_ask
from jtssm.sharding.layers.stored import FLAT, WHOLE, in_a_row, out_of_a_row
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.flat import Flat, is_flat
from jtssm.sharding.placement.packing import Leaf
from jtssm.sharding.placement.rows import AnyLayout, Rows, dtype_of, is_rows, specs
from jtssm.sharding.placement.slotted import Slotted


def lay_out(
    layout: AnyLayout, trees: Sequence[Tree], mesh: Mesh, names: AxisNames, pr: int
) -> Rows:
    """Weights given on the host as rows [slots, ...] on the mesh; each device gets its own part only.

    Of sums over pc, "partial_gradients", the first device of pc gets all, the others zeros.
    """
    placed, blank = specs(layout, names), jax.tree.map(np.zeros_like, list(trees))

    def array(key: str) -> Array:
        copies = _copies(layout, names, mesh)
        lead = (layout.num_rows, (pr if key.endswith("/pr") else 1) * copies)
        shape = (*lead, *layout.tail(key))

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # only of an array that nothing splits
            rows, ranks = (range(*s.indices(d)) for s, d in zip(index, lead, strict=False))
            pieces = [layout.piece(key, row) for row in rows]

            def row(l: int | None, rank: int) -> np.ndarray:
                given = blank if rank % copies else trees
                return _host_row(layout, l, given, rank // copies, pr, key)

            return np.asarray([[row(l, rank) for rank in ranks] for l in pieces])

        return jax.make_array_from_callback(shape, NamedSharding(mesh, placed.rows[key]), shard)

    return Rows({key: array(key) for key in layout.keys}, layout)


def spread(layout: AnyLayout, trees: Sequence[Tree], mesh: Mesh, names: AxisNames) -> Rows:
    """Trees of kind "samples" or "line" given on the host as rows on the mesh."""
    host = jax.tree.map(np.asarray, list(trees))
    placed = shapes(layout, host, mesh, names, 1)
    whole = {key: np.zeros(a.shape, a.dtype) for key, a in placed.rows.items()}
    for l, tree in enumerate(host):
        for key, row in layout.pack(l, tree, np).items():
            part: tuple[int | slice, ...] = (layout.row(l), *(slice(n) for n in row.shape))
            whole[key][part] = row

    def array(key: str, like: jax.ShapeDtypeStruct) -> Array:
        return jax.make_array_from_callback(like.shape, like.sharding, lambda i: whole[key][i])

    return Rows({key: array(key, a) for key, a in placed.rows.items()}, layout)


def shapes(layout: AnyLayout, trees: Sequence[Tree], mesh: Mesh, names: AxisNames, pr: int) -> Rows:
    """The rows on the mesh as shapes with shardings; trees: shapes of the whole leaves."""
    placed, leaves = specs(layout, names), jax.tree.leaves(list(trees))

    def array(key: str) -> jax.ShapeDtypeStruct:
        if layout.kind.trained:
            parts = pr if key.endswith("/pr") else 1
            lead: tuple[int, ...] = (parts * _copies(layout, names, mesh),)
        elif isinstance(layout, Slotted):
            lead = (layout.slot_ticks(key), leaves[0].shape[1])
        else:
            lead = leaves[0].shape[:1]
        shape = (layout.num_rows, *lead, *layout.tail(key))
        sharding = NamedSharding(mesh, placed.rows[key])
        return jax.ShapeDtypeStruct(shape, dtype_of(key), sharding=sharding)

    return Rows({key: array(key) for key in layout.keys}, layout)


def _copies(layout: AnyLayout, names: AxisNames, mesh: Mesh) -> int:
    """How many devices along pc have numbers of their own of what is like weights."""
    if layout.kind is not Kind.PARTIAL_GRADIENTS:
        return 1
    return prod(mesh.shape[name] for name in names.present("pc"))


def _host_row(
    layout: AnyLayout, piece: int | None, trees: Sequence[Tree], rank: int, pr: int, key: str
) -> np.ndarray:
    blank = np.zeros(layout.tail(key), dtype_of(key))
    if piece is None:
        return blank

    def part(leaf: Leaf, a: AnyArray) -> np.ndarray:
        a = np.asarray(a)
        if leaf.split == FLAT:
            return np.split(in_a_row(a, pr), pr)[rank]
        return a if leaf.split == WHOLE else np.split(a, pr, axis=leaf.split)[rank]

    pairs = zip(layout.leaves[piece], jax.tree.leaves(trees[piece]), strict=True)
    return np.asarray(layout.pack(piece, [part(*pair) for pair in pairs], np).get(key, blank))


def gathered(state: Tree, pr: int = 1) -> Tree:
    """A placed state as the method has it on one device: tuples of one tree a piece, in numpy.

    Every process must ask and gets the whole state in host memory; no device ever holds it. Of several
    processes, one array after the other passes through the devices whole.

    pr: of the mesh that the state was placed on, where its arrays are numpy's and do not tell.
    """

    def fetched(a: Rows | Flat | AnyArray) -> Tree:
        if isinstance(a, Flat):
            return out_of_a_row(_numbers(a.row), a.shape)
        return _trees(a, pr) if isinstance(a, Rows) else _on_host(a)

    return jax.tree.map(fetched, state, is_leaf=lambda a: is_rows(a) or is_flat(a))


def _trees(packed: Rows, pr: int) -> tuple[Tree, ...]:
    layout = packed.layout
    rows = {key: _numbers(a) for key, a in packed.rows.items()}
    if layout.kind is Kind.PARTIAL_GRADIENTS:
        rows = {key: _over_pc(a, _parts(key, packed.rows[key], pr)) for key, a in rows.items()}
    return tuple(_tree(layout, l, rows) for l in range(len(layout.leaves)))


def _tree(layout: AnyLayout, piece: int, rows: dict[str, np.ndarray]) -> Tree:
    row, own = layout.row(piece), {key: rows[key] for key in layout.keys_of(piece)}
    if not layout.kind.trained:
        return layout.unpack(piece, {key: a[row] for key, a in own.items()})
    pr = max((a.shape[1] for a in own.values()), default=1)
    ranks = [
        layout.unpack(piece, {key: a[row, min(r, a.shape[1] - 1)] for key, a in own.items()})
        for r in range(pr)
    ]
    columns = zip(layout.leaves[piece], *map(jax.tree.leaves, ranks), strict=True)
    return jax.tree.unflatten(layout.treedefs[piece], [_joined(*column) for column in columns])


def _over_pc(numbers: np.ndarray, pr: int) -> np.ndarray:
    """The sum over the devices of pc, [slots, pr, ...], of numbers [slots, pr pc, ...]."""
    return numbers.reshape(len(numbers), pr, -1, *numbers.shape[2:]).sum(axis=2)


def _parts(key: str, placed: Array | np.ndarray, pr: int) -> int:
    """Over how many devices of pr an array of partial gradients is split."""
    if not key.endswith("/pr"):
        return 1
    if isinstance(placed, np.ndarray):
        return pr
    assert isinstance(placed.sharding, NamedSharding)
    axes = placed.sharding.spec[1]
    return placed.sharding.mesh.shape[axes if isinstance(axes, str) else axes[0]]


def _joined(leaf: Leaf, *parts: np.ndarray) -> np.ndarray:
    """A leaf from what each device of pr holds of it."""
    if leaf.split == FLAT:
        return out_of_a_row(np.concatenate(parts), leaf.whole)
    return parts[0] if leaf.split == WHOLE else np.concatenate(parts, axis=leaf.split)


def _on_host(a: Array | np.ndarray) -> Array | np.ndarray:
    """Numbers in numpy; of keys, which numpy does not have, an array of this process alone."""
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        numbers = jnp.asarray(_numbers(jax.random.key_data(a)))
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(a))
    return _numbers(a)


def _numbers(a: Array | np.ndarray) -> np.ndarray:
    if not isinstance(a, jax.Array):
        return a
    if not a.is_fully_addressable and not a.is_fully_replicated:
        check_all_ask("gathered")
        return multihost_utils.process_allgather(a, tiled=True)
    return np.asarray(a)
