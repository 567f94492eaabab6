"""pdADMM on a mesh: same iterates, two matrices a boundary, less memory, integers on the wire."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.sharding.count import hlo
from jtssm.solvers import layerwise
from tests.sharding.placement.test_pieces import assert_same, device_bytes

NET = jtssm.mlp([6, 8, 8, 8, 5, 4])
NUMBERS = {"rho": 2.0, "nu": 0.4, "weight_decay": 0.02}
OPTIONS = {
    "damped": {},
    "gradient, t0": {"steps": "gradient", "t0": 0.05},
    "exact": {"steps": "exact"},
    "8 bits": {"grid": 8},
    "values, p alone": {"grid": [i / 10 for i in range(-5, 90)], "float_q": True},
}


def samples(num=24, dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 6)).astype(dtype), rng.integers(0, 4, num).astype(np.int32)


def run(method, steps=12, dtype=np.float64):
    """The state after the steps in the one-device form, the infos of all of them, some outputs."""
    x, y = samples(dtype=dtype)
    state = method.init(jax.random.key(0), x, y)
    many = jax.jit(lambda s, x, y: jax.lax.scan(lambda s, _: method.step(s, x, y), s, length=steps))
    state, infos = many(state, x, y)
    return sharding.gathered(state), infos, np.asarray(method.predict(state, x))


@functools.cache
def unsharded(name):
    return run(solvers.pdadmm(NET, **NUMBERS, **OPTIONS[name]))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("damped", (2, 1, 2)),
        ("damped", (4, 1, 2)),
        pytest.param("gradient, t0", (5, 1, 1), marks=pytest.mark.slow),
        pytest.param("gradient, t0", (1, 1, 8), marks=pytest.mark.slow),
        pytest.param("exact", (2, 1, 2), marks=pytest.mark.slow),
        pytest.param("8 bits", (3, 1, 2), marks=pytest.mark.slow),
        pytest.param("values, p alone", (2, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_sharded_equals_unsharded_also_in_padded_slots(name, shape):
    """Five layers: 2 + 3, none + 1 + 2 + 2, one each, all on one device, 1 + 2 + 2."""
    method = solvers.pdadmm(NET, **NUMBERS, **OPTIONS[name])
    got = run(sharding.place(method, sharding.make_mesh(*shape)))
    assert_same(unsharded(name), got, atol=1e-10)


@pytest.mark.slow
def test_in_float32_too():
    method = solvers.pdadmm(NET, **NUMBERS, steps="gradient", precision="highest")
    expected = run(method, dtype=np.float32)
    got = run(sharding.place(method, sharding.make_mesh(3, 1, 2)), dtype=np.float32)
    assert_same(expected, got, atol=1e-4)


@pytest.mark.slow
def test_tanh_and_squared_error_on_a_mesh():
    net = jtssm.mlp([6, 8, 8, 4], jnp.tanh)
    method = solvers.pdadmm(net, **NUMBERS, loss="squared_error")
    x, _ = samples()
    y = np.random.default_rng(1).normal(size=(24, 4))
    states = []
    for m in (method, sharding.place(method, sharding.make_mesh(3, 1, 2))):
        state, step = m.init(jax.random.key(0), x, y), jax.jit(m.step)
        for _ in range(5):
            state, _ = step(state, x, y)
        states.append(sharding.gathered(state))
    assert_same(*states, atol=1e-10)


WIDE = jtssm.mlp([6, *[32] * 9, 4])


@functools.cache
def compiled(name, shape, num=32):
    """The step's program and the bytes a device holds of the weights and of the rest of the state."""
    placed = sharding.place(
        solvers.pdadmm(WIDE, **NUMBERS, **OPTIONS[name]), sharding.make_mesh(*shape)
    )
    x, y = samples(num, np.float32)
    state = placed.init(jax.random.key(0), x, y)
    program = jax.jit(placed.step, donate_argnums=0).lower(state, x, y).compile()
    return program, device_bytes(state.weights), device_bytes(state._replace(weights=()))


@pytest.mark.parametrize(
    "name", ["damped", "8 bits", pytest.param("values, p alone", marks=pytest.mark.slow)]
)
def test_what_crosses_a_boundary_is_what_is_declared(name):
    """Counted in the compiled program: two matrices, as the quantised integers where they are."""
    text = compiled(name, (5, 1, 1))[0].as_text()
    # 10 layers in 5 pairs: the boundaries after every second one lie between devices
    moves = solvers.pdadmm(WIDE, **NUMBERS, **OPTIONS[name]).moves(32)
    crossing = [m for m in moves if m.axis == "subnet" and max(m.source, m.target) % 2 == 0]
    size = lambda m: int(np.prod(m.shape)) * (m.itemsize or 4)
    assert hlo.permuted_bytes(text) == sum(size(m) for m in crossing)
    sent: dict[str, int] = {}
    for permute in hlo.permutes(text):
        sent[permute.dtype] = sent.get(permute.dtype, 0) + permute.bytes * len(permute.pairs)
    matrix = 4 * 32 * 32  # numbers over all boundaries
    expected = {
        "damped": {"f32": 2 * 4 * matrix},
        "8 bits": {"u8": 2 * matrix, "f32": 2 * 4 * (4 * 32 * 2)},
        "values, p alone": {"u8": matrix, "f32": 4 * matrix},
    }
    assert sent == expected[name]


@pytest.mark.parametrize("bits", [8, 16])
def test_rounded_p_and_q_move_a_quarter_or_half_of_the_float_bytes(bits):
    net = jtssm.mlp([196, *[500] * 3, 10])
    size = lambda m: int(np.prod(m.shape)) * (m.itemsize or 4)
    sent = lambda **options: sum(
        size(m) for m in solvers.pdadmm(net, **options).moves(100) if m.axis == "subnet"
    )
    share = sent(grid=bits) / sent()
    assert share == pytest.approx(bits / 32 + 8 / 2000)
    assert bits == 16 or share <= 0.26


def test_memory_a_device_falls_with_both_axes():
    """Arguments, results and temporaries of the compiled program."""
    used, weights, rest = {}, {}, {}
    for shape in ((1, 1, 1), (5, 1, 1), (4, 1, 2)):
        program, weights[shape], rest[shape] = compiled("damped", shape)
        memory = program.memory_analysis()
        used[shape] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        assert memory.alias_size_in_bytes == weights[shape] + rest[shape]  # donated
    whole = (1, 1, 1)
    assert weights[5, 1, 1] < 0.21 * weights[whole]
    assert rest[5, 1, 1] < 0.21 * rest[whole]
    assert weights[4, 1, 2] < 0.31 * weights[whole]  # 3 of 12 slots for 10 layers
    assert rest[4, 1, 2] < 0.16 * rest[whole]
    assert used[5, 1, 1] < 0.4 * used[whole]
    assert used[4, 1, 2] < 0.35 * used[whole]


def test_alike_layers_are_batched_and_devices_that_do_the_same_share_a_branch():
    method = solvers.pdadmm(WIDE, **NUMBERS)
    assert method.program.declared.alike == (0, *[1] * 8, 9)
    text = compiled("damped", (5, 1, 1))[0].as_text()
    branches = [len(b.split(",")) for b in re.findall(r"branch_computations=\{([^}]*)\}", text)]
    assert branches
    assert max(branches) == 3  # first and hidden; hidden, hidden; hidden and last
    x, y = samples(32, np.float32)
    counted = []
    for m in (method, sharding.place(method, sharding.make_mesh(subnet=1))):
        state = m.init(jax.random.key(0), x, y)
        counted.append(str(jax.make_jaxpr(m.step)(state, x, y)).count("dot_general["))
    hidden = (counted[0] - counted[1]) / 7  # products of one hidden layer: 8 became one batch
    assert hidden == 5


@pytest.mark.slow
def test_a_grown_state_goes_on_on_a_mesh():
    """Shallow on a mesh, gathered, grown, laid out on another mesh, trained on: as on one device."""
    shallow, deep = jtssm.mlp([6, 8, 4]), jtssm.mlp([6, 8, 8, 8, 4])
    method = solvers.pdadmm(shallow, **NUMBERS)
    x, y = samples()
    ends, objectives = [], []
    for meshes in ((None, None), (sharding.make_mesh(2, 1, 2), sharding.make_mesh(3, 1, 2))):
        first = jtssm.fit(method, (x, y), epochs=4, key=jax.random.key(0), mesh=meshes[0])
        grown, state = layerwise.grow(method, sharding.gathered(first.state), deep)
        second = jtssm.fit(
            grown, (x, y), epochs=5, key=jax.random.key(0), mesh=meshes[1], state=state
        )
        ends.append(sharding.gathered(second.state))
        objectives.append(second.history[-1]["objective"])
    assert_same(*ends, atol=1e-10)
    np.testing.assert_allclose(*objectives, atol=1e-12)


def test_layers_are_not_split_and_samples_must_fit():
    method = solvers.pdadmm(NET)
    with pytest.raises(
        ValueError, match=r"mesh: expected pr=1, pdadmm does not split layers; got 2"
    ):
        sharding.place(method, sharding.make_mesh(1, 2, 1))
    with pytest.raises(ValueError, match=r"'subnet' axis of at most 5.* got 8"):
        sharding.place(method, sharding.make_mesh(8))
    x, y = samples(25)
    placed = sharding.place(method, sharding.make_mesh(pc=4))
    with pytest.raises(ValueError, match=r"x: expected a multiple of 4 samples.* got 25"):
        placed.init(jax.random.key(0), x, y)
    with pytest.warns(
        UserWarning, match=r"1 of 25 samples are left out: pdadmm needs a multiple of pc=4"
    ):
        jtssm.fit(placed, (x, y), epochs=1, key=jax.random.key(0))
