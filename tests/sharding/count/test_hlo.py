"""Collectives are read from a compiled program's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh

from jtssm.sharding.count import hlo
from jtssm.sharding.count.routes import Route
from jtssm.sharding.mesh import make_mesh

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
        ("mesh['r'=2,'c'=2], device_ids=([2,2]T(1,0)) {'c'}", ((0, 2), (1, 3))),
        ("mesh['r'=2,'c'=2], device_ids=(0,3,1,2) {'c'}", ((0, 3), (1, 2))),
        ("mesh['r'=2,'c'=2] {}", ((0,), (1,), (2,), (3,))),
        ("mesh['r'=4] {'r':(1)2}", ((0, 2), (1, 3))),
        ("mesh['r'=4] {'r':(2)2}", ((0, 1), (2, 3))),
        ("mesh['r'=4] {'r':(2)2,'r':(1)2}", ((0, 2, 1, 3),)),
    ],
)
def test_groups_are_read_in_every_spelling(spelled, groups):
    (found,) = hlo.collectives(program("all-reduce", "4,2", spelled))
    assert found == hlo.Collective("all_reduce", 32, groups, 1)
    assert found.moves == (len(groups) < 4)


def test_a_gather_counts_what_one_device_hands_in_and_a_scatter_too():
    (gather,) = hlo.collectives(program("all-gather", "8", "{{0,1},{2,3}}"))
    (scatter,) = hlo.collectives(program("reduce-scatter", "8", "{{0,1},{2,3}}"))
    assert (gather.bytes, scatter.bytes) == (16, 64)
    (alone,) = hlo.collectives(program("all-reduce", "8", "{{0},{1}}"))
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
    found = hlo.collectives(text)
    assert sorted((c.kind, c.bytes, c.times) for c in found) == [
        ("all_gather", 8, 1),
        ("all_reduce", 8, 15),
    ]


MESH = AbstractMesh((2, 2, 2), ("a", "b", "c"))
GROUPS = {
    "{{0,1},{2,3},{4,5},{6,7}}": ("c",),
    "[4,2]<=[4,2]": ("c",),
    "[4,2]<=[2,2,2]T(0,2,1)": ("b",),
    "{{0,4},{1,5},{2,6},{3,7}}": ("a",),
    "{{5,1,4,0},{2,3,6,7}}": ("a", "c"),
    "mesh['a'=2,'b'=2,'c'=2] {'a','b'}": ("a", "b"),
    "[1,8]<=[8]": ("a", "b", "c"),
    "{}": ("a", "b", "c"),
    "{{0,3},{1,2},{4,7},{5,6}}": ("other",),
    "{{0},{1},{2},{3},{4},{5},{6},{7}}": None,
}


def entry(*lines):
    """A program of these lines alone."""
    return "\n".join(["ENTRY %main (x: f32[4]) -> f32[4] {", *("  " + line for line in lines), "}"])


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_are_the_axes_they_run_along(groups):
    line = f"%r = f32[4,2]{{1,0}} all-reduce(%x), replica_groups={groups}, to_apply=%add"
    axes = GROUPS[groups]
    assert hlo.moved(entry(line), MESH) == ({Route("all_reduce", axes): 32} if axes else {})


@pytest.mark.parametrize(
    ("line", "kind", "num"),
    [
        ("f32[4,2]{1,0} all-reduce-start(%x)", "all_reduce", 32),
        ("(f32[4]{0}, bf16[3]{0}) all-reduce(%x, %y)", "all_reduce", 22),
        ("f32[4]{0} all-gather(%x)", "all_gather", 8),
        ("(f32[2]{0:T(2,1)S(1)}, f32[4]{0}) all-gather-start(%x)", "all_gather", 8),
        ("((f32[2], f32[6]), (f32[4], f32[12])) all-gather-start(%x, %y)", "all_gather", 32),
        ("f32[2]{0} reduce-scatter(%x)", "reduce_scatter", 16),
        ("((f32[4]{0}), f32[2]{0}, u32[]) reduce-scatter-start(%x)", "reduce_scatter", 16),
        ("((c64[2,2]{1,0}), c64[2,2]{1,0}) all-to-all-start(%x)", "all_to_all", 32),
        ("(f32[2]{0}, f32[2]{0}) all-to-all(%x, %y)", "all_to_all", 16),
        ("pred[5]{0} all-gather(%x)", "all_gather", 2),
        ("f8e4m3fn[6]{0} all-reduce(%x)", "all_reduce", 6),
    ],
)
def test_what_one_device_hands_in_is_read_from_every_form(line, kind, num):
    text = entry(f"%r = {line}, channel_id=1, replica_groups=[4,2]<=[8], dimensions={{0}}")
    assert hlo.moved(text, MESH) == {Route(kind, ("c",)): num}


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("f32[4]{0} collective-permute(%x), source_target_pairs={{0,4},{1,5}}", {("a",): 16}),
        (
            "(f32[4], f32[4], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{3,0}}",
            {("b", "c"): 16},
        ),
        (
            "((f32[4], s8[3]), (f32[4], s8[3])) collective-permute-start(%x, %y), source_target_pairs={{0,1}}",
            {("c",): 19},
        ),
        ("f32[4]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}", {}),
    ],
)
def test_a_permute_runs_along_the_axes_its_pairs_differ_in(line, moved):
    expected = {Route("permute", axes): num for axes, num in moved.items()}
    assert hlo.moved(entry(f"%r = {line}, channel_id=1"), MESH) == expected


BODIES = """
%wrapped (p: f32[4]) -> f32[2] {
  ROOT %rs = f32[2]{0} reduce-scatter(%p), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
}

%small (p: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
}

%large (p: f32[4]) -> f32[4] {
  %q = f32[8]{0} all-gather(%p), replica_groups=[4,2]<=[4,2], dimensions={0}
  ROOT %r = f32[6]{0} all-reduce(%q), replica_groups=[4,2]<=[8], to_apply=%add
}

"""


def test_an_asynchronous_call_counts_at_its_start():
    text = BODIES + entry(
        "%s = ((f32[4]), f32[2], u32[]) async-start(%x), calls=%wrapped",
        "%u = ((f32[4]), f32[2], u32[]) async-update(%s), calls=%wrapped",
        "%d = f32[2] async-done(%u), calls=%wrapped",
    )
    assert hlo.moved(text, MESH) == {Route("reduce_scatter", ("c",)): 16}
    assert [c.times for c in hlo.collectives(text)] == [1]


@pytest.mark.parametrize(
    "names",
    ["branch_computations={%small, %large}", "true_computation=%large, false_computation=%small"],
)
def test_of_a_conditional_the_branch_that_moves_most_counts(names):
    text = BODIES + entry(f"%c = f32[4] conditional(%i, %x, %x), {names}")
    assert hlo.moved(text, MESH) == {
        Route("all_gather", ("c",)): 16,
        Route("all_reduce", ("c",)): 24,
    }
    assert len(hlo.collectives(text)) == 3  # every branch


LOOP = """
%until (t: (s32[], f32[4])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(11)
  %t = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%i, %n), direction={direction}
}}

%turn (t: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %step = s32[]{{:T(128)}} constant(3)
  %t = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  %x = f32[4]{{0}} get-tuple-element(%t), index=1
  %add.1 = s32[]{{:T(128)}} add(%i, %step)
  %copy = s32[]{{:T(128)}} copy(%add.1)
  %r = f32[4]{{0}} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %out = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) tuple(%copy, %r)
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %zero = s32[]{{:T(128)}} constant(1)
  %copy.1 = s32[]{{:T(128)}} copy(%zero)
  %init = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) tuple(%copy.1, /*index=1*/%x)
  ROOT %w = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) while(%init), condition=%until, body=%turn{known}
}}
"""


def test_trips_are_read_from_the_counter_where_the_program_does_not_say():
    """As in TPU programs: 1, 4, 7, 10 are below 11."""
    text = LOOP.format(direction="LT", known="")
    assert hlo.moved(text, MESH) == {Route("all_reduce", ("c",)): 4 * 16}
    assert [c.times for c in hlo.collectives(text)] == [4]
    known = ', backend_config={"known_trip_count":{"n":"7"}}'
    text = LOOP.format(direction="NE", known=known)
    assert hlo.moved(text, MESH) == {Route("all_reduce", ("c",)): 7 * 16}


def test_a_loop_that_does_not_tell_its_trips_is_refused_if_it_moves_something():
    text = LOOP.format(direction="NE", known="")
    with pytest.raises(
        ValueError, match=r"hlo: expected a known number of trips.*: 16\} bytes a trip"
    ):
        hlo.moved(text, MESH)
    still = text.replace("replica_groups=[4,2]<=[8]", "replica_groups=[8,1]<=[8]")
    assert hlo.moved(still, MESH) == {}


def test_the_parts_of_a_collective_done_piece_by_piece_count_once():
    """As in TPU programs that overlap a gather with products."""
    part = "%g{k} = f32[8]{{0}} all-gather(%x), replica_groups=[4,2]<=[8], {chain}"
    chain = 'frontend_attributes={chain_id="0"}'
    lines = [part.format(k=k, chain=chain) for k in range(3)]
    text = entry(*lines, part.format(k=3, chain=chain.replace("0", "1")))
    assert hlo.moved(text, MESH) == {Route("all_gather", ("c",)): 2 * 16}


def test_a_mesh_of_another_size_is_refused():
    text = "HloModule jit_f, is_scheduled=true, num_partitions=4\n\n" + BODIES
    with pytest.raises(ValueError, match=r"mesh: expected the program's 4 devices; got .*'a': 2"):
        hlo.moved(text, MESH)


def test_code_that_the_partitioner_splits_is_counted_in_the_program():
    mesh = make_mesh(2, pc=4)
    place = lambda shape, *spec: jax.ShapeDtypeStruct(
        shape, np.float32, sharding=jax.NamedSharding(mesh, jax.P(*spec))
    )
    text = (
        jax.jit(lambda x, w: (x @ w).sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))
        .lower(place((8, 16), "pc", "subnet"), place((16, 4), "subnet"))
        .compile()
        .as_text()
    )
    moved = hlo.moved(text, mesh)
    assert {r.collective for r in moved} == {"all_reduce"}
    assert {axis for r in moved for axis in r.axes} == {"subnet", "pc"}
