"""`compute_dtype`: layers compute in bfloat16; state, sums and losses stay what the samples are."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh

import jtssm
from jtssm import checks, data, sharding, solvers
from jtssm.nn import images
from jtssm.nn.norm import find
from jtssm.nn.ops import PLAIN
from jtssm.planning.trials import traced_bytes
from jtssm.sharding import cost
from jtssm.sharding.cost import demand, memory

NET = jtssm.mlp([24, 32, 48, 32, 8])
NORMED = jtssm.mlp([24, 32, 48, 8], normalisation="running")
IMAGES = images.convnet((16, 16, 3), 8, channels=(4, 8), hidden=(16,), normalisation="layer")
KEY = jax.random.key(0)


def batch(dtype, rate=1e-2):
    return {"optimizer": optax.sgd(rate), "batch_size": 16, "compute_dtype": dtype}


def rounds(dtype, rate=1e-2):
    return {"optimizer": optax.sgd(rate), "batch_size": 8, "local_steps": 2, "compute_dtype": dtype}


METHODS = {
    "sgd": lambda d: solvers.sgd(IMAGES, **batch(d)),
    "gsadmm": lambda d: solvers.gsadmm(
        NET, subnets=3, schedule=solvers.Streaming(sweeps=2), **batch(d)
    ),
    "gsadmm, stored": lambda d: solvers.gsadmm(NET, subnets=2, schedule="stored", **batch(d)),
    "gsam": lambda d: solvers.gsam(NET, subnets=2, **batch(d)),
    "ist": lambda d: solvers.ist(jtssm.mlp([24, 30, 45, 8]), subnets=4, **rounds(d)),
    "local_sgd": lambda d: solvers.local_sgd(NORMED, workers=2, **rounds(d)),
    "ensemble": lambda d: solvers.ensemble(NET, members=2, **rounds(d)),
}


def samples(method, dtype=np.float32, num=32):
    """(x, y) of one step, and all of them in one row."""
    rng, shape = np.random.default_rng(0), method.network.shapes[0]
    lead = method.batch_shape or (num,)
    x = rng.normal(size=(*lead, *shape)).astype(dtype)
    y = rng.integers(0, 8, lead).astype(np.int32)
    return (x, y), (x.reshape(-1, *shape), y.reshape(-1))


def product_dtypes(jaxpr):
    """The dtypes that products and convolutions of a jaxpr are given and give."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found |= {str(v.aval.dtype) for v in (*equation.invars, *equation.outvars)}
        for inner in jaxprs_in_params(equation.params):
            found |= product_dtypes(inner)
    return found


def float_dtypes(tree):
    return {str(a.dtype) for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in METHODS), ("sgd", None), ("ist", None)]
)
def test_products_are_in_the_compute_dtype_and_all_else_is_float32(name, dtype):
    method = METHODS[name](dtype)
    given, flat = samples(method)
    state = method.init(KEY, *flat)
    expected = {dtype or "float32"}
    assert product_dtypes(jax.make_jaxpr(method.step)(state, *given).jaxpr) == expected
    assert product_dtypes(jax.make_jaxpr(method.predict)(state, flat[0]).jaxpr) == expected
    assert product_dtypes(jax.make_jaxpr(method.drain)(state).jaxpr) <= expected
    after, info = jax.eval_shape(method.step, state, *given)
    outputs = jax.eval_shape(method.predict, state, flat[0])
    estimated = jax.eval_shape(method.estimate, state, flat[0])
    assert float_dtypes((state, after, info, outputs, estimated)) == {"float32"}


ON_MESH = {
    "sgd": (METHODS["sgd"], (1, 2, 2), ["domain"] * 4 + ["model", "row"]),
    "sgd in every form": (
        lambda d: solvers.sgd(NET, **batch(d)),
        (1, 2, 4),
        ["gathered", "model", "row", "batch"],
    ),
    "sgd, means over pr and pc": (
        lambda d: solvers.sgd(NORMED, **batch(d)),
        (1, 2, 2),
        ["batch", "model", "scattered"],
    ),
    "gsadmm": (
        lambda d: solvers.gsadmm(NET, subnets=4, microbatches=1, **batch(d, 0.1)),
        (2, 2, 2),
        ["model", "row"] * 2,
    ),
    "gsam, stored": (
        lambda d: solvers.gsam(NET, subnets=2, schedule="stored", **batch(d)),
        (2, 1, 2),
        "auto",
    ),
    "ist": (METHODS["ist"], (2, 1, 2), "auto"),
    "ensemble": (METHODS["ensemble"], (2, 2, 2), "auto"),
}
SHORT = (
    ("sgd in every form", "float32"),
    ("sgd in every form", "bfloat16"),
    ("gsadmm", "float32"),
)


def trained(name, dtype, steps, sample_dtype):
    """How far a few steps move the parameters: on one device, on a mesh."""
    build, sizes, forms = ON_MESH[name]
    method = build(dtype)
    (x, y), flat = samples(method, sample_dtype)
    found = []
    for m in (method, sharding.place(method, sharding.make_mesh(*sizes), forms=forms)):
        state, step = m.init(KEY, *flat), jax.jit(m.step)
        before = m.params(state)
        for _ in range(steps):
            state, _ = step(state, x, y)
        moved = jax.tree.map(lambda a, b: np.ravel(a - b), m.params(state), before)
        found.append(np.concatenate(jax.tree.leaves(moved)))
    return found


def gap(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(*case, marks=[] if case in SHORT else pytest.mark.slow)
        for case in product(ON_MESH, ("float32", "bfloat16"))
    ],
)
def test_on_a_mesh_the_numbers_are_those_of_one_device_within_the_rounding(name, dtype):
    """float32 layers with a float64 state: 1e-5 of what four steps move. bfloat16, whose unit of rounding
    is 2^-8: 5 %. Were it less than 1e-12, nothing would have been rounded."""
    least, most, sample_dtype = {
        "float32": (1e-12, 1e-5, np.float64),
        "bfloat16": (1e-5, 0.05, np.float32),
    }[dtype]
    moved, on_mesh = trained(name, dtype, 4, sample_dtype)
    assert moved.dtype == on_mesh.dtype == sample_dtype
    assert least < gap(on_mesh, moved) < most


@pytest.mark.parametrize("name", ON_MESH)
def test_what_layers_send_is_counted_in_the_compute_dtype(name):
    """Of the traced program: a CPU's compiler sends float32 in its place."""
    build, sizes, forms = ON_MESH[name]
    method, plain, mesh = build("bfloat16"), build(None), sharding.make_mesh(*sizes)
    given = {"forms": forms, "samples": 32 if method.resident else None}
    with jax.enable_x64(False):
        placed, state, xy = memory.placed_step(method, sizes, forms, given["samples"], mesh)
        expected = cost.step_bytes(method, mesh, **given)
        assert traced_bytes(placed.step, state, *xy) == expected
    whole = cost.step_bytes(plain, mesh, **given)
    assert sum(expected.values()) <= sum(whole.values())
    assert (expected == whole) == (sizes[1] == 1 or name == "ensemble")


def test_bytes_of_a_pair_of_layers_by_hand():
    """model and row: one sum of the outputs in bfloat16; gradients over pc in float32."""
    net, mesh = jtssm.mlp([16, 32, 8]), sharding.make_mesh(1, 2, 4)
    method = solvers.sgd(net, **batch("bfloat16"))
    found = cost.step_bytes(method, mesh, forms=["model", "row"])
    Route = sharding.Route
    assert found == {
        Route("all_reduce", ("pr",)): 2 * 4 * 8,
        Route("all_reduce", ("pc",)): 4 * (16 * 16 + 16 + 16 * 8 + 8) + 4 * 2,
    }


def test_auto_moves_the_fewest_bytes_where_gradients_weigh_twice():
    net, mesh = jtssm.mlp([64, 16, 8]), AbstractMesh((4, 2), ("pr", "pc"))
    found = {}
    for dtype in (None, "bfloat16"):
        method = solvers.sgd(net, **(batch(dtype) | {"batch_size": 104}))
        tried = {}
        for forms in product(("batch", "gathered", "model", "scattered", "row"), repeat=2):
            moved = cost.step_bytes(method, mesh, forms=list(forms))
            tried[forms] = sharding.ring_bytes(moved, mesh.shape)
        found[dtype] = demand.method_forms(method, (1, 4, 2), "auto", None)
        assert tried[found[dtype]] == min(tried.values())
    # a gathered weight goes in bfloat16, a whole one's gradient over pr in float32
    assert found == {None: ("model", "batch"), "bfloat16": ("model", "gathered")}


def test_statistics_are_taken_in_float32():
    """Of numbers with a mean of 100 and a deviation of 1, bfloat16 would leave two digits at most."""
    z = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4000, 3)), jnp.bfloat16)
    norm, exact = find("running"), np.asarray(z, np.float64)
    params = norm.init(3, True, jnp.float32)
    found = norm.estimate(params, z, PLAIN)
    assert found["mean"].dtype == found["var"].dtype == jnp.float32
    np.testing.assert_allclose(found["mean"], exact.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], exact.var(axis=0), rtol=1e-4)
    out = norm.apply(found, z, PLAIN)
    assert out.dtype == jnp.bfloat16
    expected = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=0.005, atol=1e-3)


def test_what_is_estimated_is_kept_unrounded_and_what_is_cast_is_rounded():
    method = solvers.sgd(NORMED, **batch("bfloat16"))
    _, (x, y) = samples(method)
    state = method.init(KEY, x, y)
    params = method.params(method.estimate(state, x))
    assert all(jnp.all(p["W"] == q["W"]) for p, q in zip(params, method.params(state), strict=True))
    rounded = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
    first = NORMED.layers[0]
    expected = first.estimate(params[0] | {"W": rounded(params[0]["W"])}, rounded(x), PLAIN)
    np.testing.assert_allclose(params[0]["mean"], expected["mean"], atol=2e-3)
    np.testing.assert_allclose(params[0]["var"], expected["var"], rtol=1e-2)
    assert jnp.any(params[0]["var"] != rounded(params[0]["var"]))


def test_a_users_modules_compute_in_bfloat16():
    """Parameters are cast, batch statistics are not; what a module promotes is cast again."""
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    wide = nnx.Linear(16, 16, dtype=jnp.float32, rngs=rngs)  # one that insists on float32
    modules = [
        nnx.Linear(24, 16, rngs=rngs),
        nnx.BatchNorm(16, rngs=rngs),
        wide,
        nnx.Linear(16, 8, rngs=rngs),
    ]
    net = jtssm.nn.interop.nnx.from_nnx(modules)
    method = solvers.sgd(net, **batch("bfloat16"))
    given, flat = samples(method)
    state = method.init(KEY, *flat)
    assert product_dtypes(jax.make_jaxpr(method.step)(state, *given).jaxpr) == {
        "bfloat16",
        "float32",
    }
    after, _ = method.step(state, *given)
    estimated = method.params(method.estimate(after, flat[0]))
    assert float_dtypes((after, estimated, method.predict(after, flat[0]))) == {"float32"}
    x = flat[0].astype(jnp.bfloat16)
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16), method.params(after)[0]["params"])
    z = x @ rounded["kernel"] + rounded["bias"][None, :]
    (mean,) = (
        a for p, a in jax.tree_util.tree_leaves_with_path(estimated[1]["state"]) if "mean" in str(p)
    )
    np.testing.assert_allclose(mean, z.astype(jnp.float32).mean(axis=0), atol=1e-5)


def test_tokens_are_not_rounded():
    """bfloat16 has no 257: two rows of an embedding that would be one."""
    table = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    look_up = lambda params, x: params["table"][x[:, 0]]
    net = jtssm.nn.interop.functions.layers(
        [({"table": table}, look_up)], jnp.zeros((1, 1), jnp.int32)
    )
    method = solvers.sgd(net, **batch("bfloat16"))
    x = np.array([[256], [257], [599]], np.int32)
    state = method.init(KEY, x, np.zeros(3, np.int32))
    np.testing.assert_array_equal(
        method.predict(state, x), np.asarray(jnp.asarray(table[x[:, 0]], jnp.bfloat16), np.float32)
    )


DIGITS = {
    "gsadmm": lambda net, d: solvers.gsadmm(
        net, subnets=2, optimizer=optax.adam(2e-3), batch_size=40, compute_dtype=d
    ),
    "ist": lambda net, d: solvers.ist(
        net, subnets=2, optimizer=optax.adam(2e-3), batch_size=20, local_steps=5, compute_dtype=d
    ),
    "sgd": lambda net, d: solvers.sgd(
        net, optimizer=optax.adam(2e-3), batch_size=40, compute_dtype=d
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "gsadmm" else pytest.mark.slow) for n in DIGITS]
)
def test_digits_are_learned_as_well_as_in_float32(name):
    """Within 1 % of accuracy on the 597 digits that are held out."""
    train, valid, test = data.load("digits", flat=True)
    held = np.concatenate([valid.x, test.x]), np.concatenate([valid.y, test.y])
    net, found = jtssm.mlp([64, 96, 96, 10]), []
    for dtype in (None, "bfloat16"):
        method = DIGITS[name](net, dtype)
        result = jtssm.fit(method, train, epochs=10, key=KEY, validation=held, evaluate_every=10)
        assert {str(a.dtype) for a in jax.tree.leaves(result.params)} == {"float32"}
        found.append(result.history[-1]["validation_accuracy"])
    assert min(found) > 0.92
    assert abs(found[0] - found[1]) < 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "float16",
            r"compute_dtype: expected None, 'bfloat16' or 'float32'; got 'float16': its small",
        ),
        (jnp.float16, "without loss scaling"),
        ("int8", r"compute_dtype: expected None, 'bfloat16' or 'float32'; got 'int8'$"),
        ("half a byte", r"compute_dtype: expected .*; got 'half a byte'$"),
        (3, r"compute_dtype: expected .*; got 3$"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_other_dtypes_are_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](given)


def test_a_dtype_and_its_name_are_the_same():
    assert checks.compute_dtype(jnp.bfloat16) == checks.compute_dtype("bfloat16") == jnp.bfloat16
    assert checks.compute_dtype(None) is None


def test_pdadmm_has_no_compute_dtype():
    with pytest.raises(TypeError, match="compute_dtype"):
        solvers.pdadmm(NET, compute_dtype="bfloat16")
