"""Layers on the grid give the numbers of one device, in every form."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jtssm
from jtssm import sharding, solvers
from jtssm.nn import images
from jtssm.nn.images import convolution, max_pool
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from jtssm.sharding.layers.halo import Halo
from tests.cases import few_of
from tests.sharding.layers.form_cases import FACTORS, FEW_GRIDS, GRIDS, Case, covering

MOMENTUM = optax.sgd(0.05, momentum=0.9)


def samples(net, num, dtype="float64"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, *net.shapes[0])).astype(dtype)
    return x, rng.integers(0, net.shapes[-1][-1], num).astype(np.int32)


def steps(method, start, x, y, num):
    """[(state, info)] after each step."""
    step, found, state = jax.jit(method.step), [], start
    for _ in range(num):
        state, info = step(state, x, y)
        found.append(jax.tree.map(np.asarray, (state.weights, info)))
    return found


def assert_same(net, shape, forms, batch, *, dtype="float64", optimizer=MOMENTUM, num=5, tol=None):
    """Loss, gradients (the first momentum) and all steps; tol: 1e-10, or 1e-5 in float32."""
    method = solvers.sgd(net, optimizer=optimizer, batch_size=batch, precision="highest")
    placed = sharding.place(method, sharding.make_mesh(*shape), forms=forms)
    x, y = samples(net, batch, dtype)
    state = method.init(jax.random.key(0), x, y)
    expected = steps(method, state, x, y, num)
    got = steps(placed, placed.spread(state), x, y, num)
    tol = tol or {"float64": 1e-10, "float32": 1e-5}[dtype]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=tol, rtol=tol), expected, got)
    return expected


PAIRS, TRIPLES = covering(FEW_GRIDS, 2), covering(GRIDS, 3)


def test_the_cases_are_few_and_cover_every_pair_or_triple():
    assert len(PAIRS) <= 30
    assert len(TRIPLES) <= 300  # of 12 * 6 * 4 * 3 * 2 * 2 * 2 * 2
    assert {(case.form, case.grid, case.kernel) for case in TRIPLES} == set(
        product(FACTORS["form"], GRIDS, FACTORS["kernel"])
    )


@pytest.mark.parametrize(
    "case", [*PAIRS, *(pytest.param(case, marks=pytest.mark.slow) for case in TRIPLES)], ids=str
)
def test_every_form_gives_the_numbers_of_one_device(case: Case):
    found = assert_same(case.network(), (1, *case.grid), case.forms(), case.batch, dtype=case.dtype)
    assert abs(found[0][1].loss - found[-1][1].loss) > 1e-4  # it trained


CHAINS = [
    ["model", "row", "model", "row"],
    ["scattered", "row", "batch", "row"],
    ["gathered", "model", "scattered", "batch"],
    ["row", "scattered", "model", "gathered"],
]


ON = [((1, 4, 2), 8), ((1, 2, 3), 3)]
CASES = [(forms, *on) for forms in CHAINS for on in ON]
FEW = [(forms, *ON[i % 2]) for i, forms in enumerate(CHAINS)]


@pytest.mark.parametrize(("forms", "shape", "batch"), few_of(CASES, FEW), ids=str)
def test_forms_follow_each_other(forms, shape, batch):
    assert_same(jtssm.mlp([8, 8, 12, 16, 8], jnp.tanh), shape, forms, batch)


def test_only_samples_are_split_where_pr_is_one():
    for pc in (3, 8):
        assert_same(images.convnet((9, 9, 1), 4, channels=(3,)), (1, 1, pc), "auto", 24)


POOLED = images.convnet((13, 9, 3), 8, channels=(4, 8), hidden=(16,), activation=jnp.tanh)


@pytest.mark.parametrize(
    ("forms", "shape", "batch"),
    [
        (["domain"] * 4 + ["model", "row"], (1, 2, 2), 4),
        (["domain", "batch", "scattered", "domain", "gathered", "row"], (1, 2, 1), 2),
        ("auto", (1, 4, 2), 8),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["domain"] * 4 + ["batch"] * 2, (1, 3, 2), 6),
                (["model", "model", "row", "domain", "row", "model"], (1, 2, 2), 2),
            )
        ),
    ],
    ids=str,
)
def test_images_change_their_layout_between_layers(forms, shape, batch):
    assert_same(POOLED, shape, forms, batch)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_pools_take_rows_of_their_neighbours(padding):
    net = sequence(
        [
            convolution(2, 3, 1, "SAME", jnp.tanh),
            max_pool(3, 2, padding),
            images.mean_pool(3, 1, padding),
            dense(3),
        ],
        (15, 7, 1),
    )
    assert_same(net, (1, 3, 2), ["domain"] * 3 + ["batch"], 6)


@pytest.mark.parametrize(("height", "size", "stride"), [(13, 11, 1), (14, 11, 1), (27, 17, 3)])
def test_windows_that_leave_fewer_rows_than_they_take(height, size, stride):
    """No output of the second slab sees its own rows alone."""
    tested = convolution(2, size, stride, "VALID", jnp.tanh)
    assert (
        Halo.of(tested.window, height, 2).inner[0] == Halo.of(tested.window, height, 2).outputs.room
    )
    net = sequence([tested, dense(3)], (height, size, 1))
    assert_same(net, (1, 2, 1), ["domain", "batch"], 2, num=2)


@pytest.mark.parametrize(
    ("groups", "pr"),
    [(2, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 2), (2, 2), (4, 4)))],
)
def test_groups_of_channels_are_split_with_them(groups, pr):
    net = sequence(
        [convolution(8, 1), convolution(8, 3, 1, "SAME", jnp.tanh, groups=groups), dense(4)],
        (5, 5, 2),
    )
    for form in ("model", "scattered", "gathered", "domain"):
        assert_same(net, (1, pr, 1), ["batch", form, "batch"], pr, num=2)


ROWS, COLUMNS = ["domain"] * 4 + ["model", "model", "row"], ["model"] * 6 + ["batch"]


@pytest.mark.parametrize(
    ("forms", "normalisation"),
    [
        (ROWS, "batch"),
        (COLUMNS, "running"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((ROWS, "layer"), (COLUMNS, "batch"), (ROWS, "running"), (COLUMNS, "layer"))
        ),
    ],
    ids=str,
)
def test_normalisation_and_dropout_are_the_same_in_every_layout(normalisation, forms):
    net = images.convnet(
        (13, 9, 3), 8, channels=(4, 8), hidden=(16,), normalisation=normalisation, dropout=0.4
    )
    assert_same(net, (1, 2, 2), forms, 4, tol=1e-9)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(0.05), optax.adam(1e-2)),
        pytest.param(optax.lamb(1e-2), marks=pytest.mark.slow),
        optax.contrib.muon(1e-2),
        optax.adafactor(1e-2),
        pytest.param(
            optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2), marks=pytest.mark.slow
        ),
    ],
    ids=["clip", "lamb", "muon", "adafactor", "adamw"],
)
def test_optimizers_see_the_whole_network(optimizer):
    net, forms = jtssm.mlp([8, 8, 16, 8, 8], jnp.tanh), ["model", "row", "gathered", "scattered"]
    assert_same(net, (1, 2, 4), forms, 8, optimizer=optimizer, tol=1e-9)


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_on_a_users_mesh_muon_too(kind):
    net = jtssm.mlp([8, 8, 16, 8], jnp.tanh)
    mesh = jax.make_mesh((4, 2), ("model", "data"), axis_types=(kind,) * 2)
    method = solvers.sgd(net, optimizer=optax.contrib.muon(1e-2), batch_size=8)
    placed = sharding.place(
        method, mesh, axes={"pr": "model", "pc": "data"}, forms=["model", "row", "gathered"]
    )
    x, y = samples(net, 8)
    expected = steps(method, method.init(jax.random.key(1), x, y), x, y, 3)
    got = steps(placed, placed.init(jax.random.key(1), x, y), x, y, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10), expected, got)


def test_weights_and_optimizer_states_are_split_and_come_back():
    net = jtssm.mlp([8, 16, 16, 8])
    method = solvers.sgd(net, optimizer=optax.adam(1e-2), batch_size=8)
    placed = sharding.place(method, sharding.make_mesh(1, 4, 2), forms=["model", "row", "gathered"])
    x, y = samples(net, 8)
    params = net.init(jax.random.key(3), jnp.float64)
    for state in (
        placed.init(jax.random.key(0), x, y, params),
        placed.spread(method.init(jax.random.key(0), x, y, params)),
        jax.jit(placed.step)(placed.init(jax.random.key(0), x, y, params), x, y)[0],
    ):
        ((weights, opt_state),) = state.weights
        for tree in (weights, opt_state[0].mu, opt_state[0].nu):
            shapes = [layer["W"].sharding.shard_shape(layer["W"].shape) for layer in tree]
            assert shapes == [(8, 4), (4, 16), (16, 2)]
    fresh = placed.init(jax.random.key(0), x, y, params)
    jax.tree.map(np.testing.assert_array_equal, placed.params(fresh), params)


def test_predict_takes_any_number_of_samples():
    method = solvers.sgd(POOLED, optimizer=MOMENTUM, batch_size=8)
    placed = sharding.place(
        method, sharding.make_mesh(1, 2, 2), forms=["domain"] * 4 + ["model", "batch"]
    )
    x, y = samples(POOLED, 8)
    states = [m.init(jax.random.key(0), x, y) for m in (method, placed)]
    for num in (1, 3, 4, 8):
        expected = jax.jit(method.predict)(states[0], x[:num])
        found = jax.jit(placed.predict)(states[1], x[:num])
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_rows_of_a_neighbour_do_not_hold_up_the_inner_rows():
    """In the program the largest convolution of a slab needs no permute, so that the two can overlap."""
    net = sequence(
        [convolution(2, 3, 1, "SAME"), convolution(2, 3, 1, "SAME"), dense(2)], (32, 8, 1)
    )
    method = solvers.sgd(net, optimizer=MOMENTUM, batch_size=2)
    placed = sharding.place(
        method, sharding.make_mesh(1, 2, 1), forms=["domain", "domain", "batch"]
    )
    x, y = samples(net, 2)
    state = placed.init(jax.random.key(0), x, y)
    jaxpr = jax.make_jaxpr(placed.predict)(state, x)
    (mapped,) = [e for e in jaxpr.eqns if e.primitive.name == "shard_map"]
    waits, heights = set(), {True: [], False: []}
    for eqn in mapped.params["jaxpr"].eqns:
        late = eqn.primitive.name == "ppermute" or any(
            id(v) in waits for v in eqn.invars if not hasattr(v, "val")
        )
        waits |= {id(v) for v in eqn.outvars} if late else set()
        if eqn.primitive.name == "conv_general_dilated":
            heights[late].append(eqn.outvars[0].aval.shape[1])
            waits -= {id(v) for v in eqn.outvars}  # the next layer starts anew
        if eqn.primitive.name == "concatenate":
            waits -= {id(v) for v in eqn.outvars} if 16 in eqn.outvars[0].aval.shape else set()
    assert sorted(heights[False]) == [14, 14]
    assert sorted(heights[True]) == [1, 1, 1, 1]


def test_slabs_and_halos_by_hand():
    halo = Halo.of(convolution(1, 5, 2, "SAME").window, 13, 3)  # outputs 7: 2, 2, 3; pads 2
    assert halo.rows.starts.tolist() == [0, 4, 8, 13]
    assert halo.first.tolist() == [-2, 2, 6]
    assert halo.last.tolist() == [5, 9, 15]
    assert (halo.above, halo.below) == (2, 1)
    assert not Halo.of(convolution(1, 11).window, 13, 3).fits


MISFITS = [
    (["batch"] * 5, 2, "forms: expected 'auto' or a list of 6"),
    (["batch"] * 5 + ["rows"], 2, r"forms\[5\]: expected one of .*'domain'.*; got 'rows'"),
    (["batch"] * 5 + ["domain"], 2, "takes no images"),
    (["batch"] * 5 + ["model"], 3, "pr = 3 does not divide its 8 outputs"),
    (["domain"] * 4 + ["batch"] * 2, 8, "leave a slab empty; pr = 6 fits"),
    (["batch", "scattered"] + ["batch"] * 4, 2, "has no such form"),
]


@pytest.mark.parametrize(("forms", "pr", "message"), MISFITS)
def test_forms_that_do_not_fit_are_refused_with_what_would(forms, pr, message):
    method = solvers.sgd(POOLED, optimizer=MOMENTUM, batch_size=8)
    with pytest.raises(ValueError, match=message):
        sharding.place(method, sharding.make_mesh(1, pr, 1), forms=forms)


def test_a_halo_wider_than_a_slab_is_refused():
    net = sequence([convolution(2, 11, 1, "SAME"), dense(2)], (13, 13, 1))
    method = solvers.sgd(net, optimizer=MOMENTUM, batch_size=8)
    with pytest.raises(ValueError, match="a halo wider than a slab; pr = 2 fits"):
        sharding.place(method, sharding.make_mesh(1, 4, 1), forms=["domain", "batch"])


def test_a_grid_that_splits_nothing_is_refused():
    method = solvers.sgd(jtssm.mlp([5, 7, 3]), optimizer=MOMENTUM, batch_size=2)
    with pytest.raises(ValueError, match="pr: expected a size that divides the 1 samples"):
        sharding.place(method, sharding.make_mesh(1, 4, 2))


def test_memory_a_device_falls_with_pr():
    """Read from memory_analysis(): weights and moments are a step's arguments; drawn in parts too."""
    net = jtssm.mlp([64, 256, 256, 256, 64])
    method = solvers.sgd(net, optimizer=optax.adam(1e-3), batch_size=8)
    x, y = np.zeros((8, 64), np.float32), np.zeros(8, np.int32)
    used = {}
    for pr in (1, 4):
        placed = sharding.place(method, sharding.make_mesh(1, pr, 1), forms=["model", "row"] * 2)
        state = placed.init(jax.random.key(0), x, y)
        programs = [
            jax.jit(placed.step).lower(state, x, y).compile(),
            jax.jit(lambda key, place=placed: place.init(key, x, y))
            .lower(jax.random.key(0))
            .compile(),
        ]
        step, init = (program.memory_analysis() for program in programs)
        drawn = init.output_size_in_bytes + init.temp_size_in_bytes
        used[pr] = step.argument_size_in_bytes, drawn
    for few, whole in zip(used[4], used[1], strict=True):
        assert few < 0.3 * whole
