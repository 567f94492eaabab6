"""Collectives are read from a compiled program's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jtssm.sharding import counting, make_mesh

LINE = "  %r = f32[{shape}]{{0}} {kind}(%x), channel_id=1, replica_groups={groups}, to_apply=%add\n"


def program(kind, shape, groups):
    return "ENTRY %main (x: f32[4]) -> f32[4] {\n" + LINE.format(**locals()) + "}\n"


@pytest.mark.parametrize(
    ("spelled", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['r'=2,'c'=2] {'c'}", ((0, 1), (2, 3))),
        ("mesh['r'=2,'c'=2] {'r'}", ((0, 2), (1, 3))),
    ],
)
def test_groups_are_read_in_every_spelling(spelled, groups):
    (found,) = counting.collectives(program("all-reduce", "4,2", spelled))
    assert found == counting.Collective("all_reduce", 32, groups, 1)
    assert found.moves


def test_a_gather_counts_what_one_device_hands_in_and_a_scatter_too():
    (gather,) = counting.collectives(program("all-gather", "8", "{{0,1},{2,3}}"))
    (scatter,) = counting.collectives(program("reduce-scatter", "8", "{{0,1},{2,3}}"))
    assert (gather.bytes, scatter.bytes) == (16, 64)
    (alone,) = counting.collectives(program("all-reduce", "8", "{{0},{1}}"))
    assert not alone.moves


def test_loops_within_loops_multiply():
    mesh = make_mesh(4)

    mark = lambda x: lax.pcast(x, "subnet", to="varying")

    def work(x):
        inner = lambda i, x: mark(lax.psum(jnp.sin(x), "subnet"))
        outer = lambda i, x: lax.fori_loop(0, 5, inner, jnp.cos(x))
        return lax.all_gather(lax.fori_loop(0, 3, outer, x), "subnet")

    run = jax.shard_map(work, mesh=mesh, in_specs=jax.P("subnet"), out_specs=jax.P("subnet"))
    text = jax.jit(run).lower(np.zeros(8, np.float32)).compile().as_text()
    found = counting.collectives(text)
    assert sorted((c.kind, c.bytes, c.times) for c in found) == [
        ("all_gather", 8, 1), ("all_reduce", 8, 15),
    ]  # fmt: skip
