"""What every method promises, as checks to run on one of your own.

    from jtssm import testing

    def test_my_method_keeps_the_contract():
        testing.check_method(my_method(net, ...), x, y, mesh=sharding.make_mesh(subnet=2))

Each check raises an AssertionError that says what was promised. Samples should be float64
(`jax_enable_x64`): numbers are compared to 1e-9.
"""

from __future__ import annotations

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import cast, first, float_dtype
from jtssm.protocol import Info, Method, Move
from jtssm.protocol.axes import AXES
from jtssm.sharding.cost.bytes_moved import step_bytes
from jtssm.sharding.count.jaxpr import count_bytes
from jtssm.sharding.placement import place
from jtssm.train.loop import fit

KEY = 0
STEPS = 3


def check_method(
    method: Method, x: Tree, y: np.ndarray, *, mesh: Mesh | None = None, resume: bool = True
) -> None:
    """All of the contract.

    Args:
      method: unplaced.
      x: [samples, ...] for one step at least, or a tree of such, of one dtype of floats throughout.
      y: their labels or targets.
      mesh: with axes named subnet, pr and pc, for the checks of a placed method; None: they are left out.
      resume: whether a run from a checkpoint is checked too (needs orbax).

    Raises:
      AssertionError: a promise that the method does not keep.
    """
    check_init(method, x, y)
    check_step(method, x, y)
    check_predict(method, x, y)
    check_moves(method, len(y))
    if mesh is not None:
        check_placed(method, x, y, mesh)
        check_bytes(method, x, y, mesh)
    if resume:
        check_resumed(method, x, y)


def minibatch(method: Method, x: Tree, y: np.ndarray, i: int = 0) -> tuple[Tree, Array]:
    """What step i consumes: all samples of a resident method, else the next ones, round and round."""
    shape = method.batch_shape
    if shape is None:
        return jax.tree.map(jnp.asarray, (x, y))
    rows = (np.arange(np.prod(shape)) + i * np.prod(shape)) % len(y)
    one = lambda a: jnp.asarray(a[rows].reshape(*shape, *a.shape[1:]))
    return jax.tree.map(one, (x, y))


def check_init(method: Method, x: Tree, y: np.ndarray) -> None:
    """The same key draws the same parameters, another one others; given ones come back as they are."""
    one, two, other = (method.init(jax.random.key(k), x, y) for k in (KEY, KEY, KEY + 1))
    params = method.params(one)
    assert len(params) == len(method.network.layers), "params: expected one tree a layer"
    _equal(params, method.params(two), "init: the same key draws the same parameters")
    pairs = zip(_leaves(params), _leaves(method.params(other)), strict=True)
    assert any((a != b).any() for a, b in pairs), "init: another key draws other parameters"
    dtypes = {a.dtype for a in _leaves(params)}
    assert dtypes == {float_dtype(x)}, f"init: parameters have the dtype of x; got {dtypes}"
    given = method.params(method.init(jax.random.key(KEY + 1), x, y, params))
    _equal(given, params, "init: given parameters come back as they are")
    assert jnp.shape(one.pace) == (), "State: a scalar `pace`"
    assert one.pace == 1, "State: `pace` is 1 at the start"


def check_step(method: Method, x: Tree, y: np.ndarray) -> None:
    """A step is pure, keeps the state's structure, is traced once, and shows scalars."""
    traces: list[int] = []

    def counted(state: Tree, x: Tree, y: Array) -> tuple[Tree, Info]:
        traces.append(1)
        return method.step(state, x, y)

    step, state = jax.jit(counted), method.init(jax.random.key(KEY), x, y)
    before = [np.array(a) for a in _leaves(method.params(state))]
    new, info = step(state, *minibatch(method, x, y))
    assert _shapes(new) == _shapes(state), "step: the state keeps its structure, shapes and dtypes"
    _equal(before, _leaves(method.params(state)), "step: the old state is left alone")
    assert isinstance(info, Info), f"step: expected (State, Info); got {type(info).__name__}"
    assert all(jnp.shape(a) == () for a in jax.tree.leaves(info)), "Info: scalars"
    for i in range(1, STEPS):
        new, _ = step(new, *minibatch(method, x, y, i))
    assert len(traces) == 1, f"step: one trace serves all steps; got {len(traces)}"


def check_predict(method: Method, x: Tree, y: np.ndarray) -> None:
    """Outputs of the composed network, one a sample, the same whatever other samples are asked for.

    Of a network that takes means over the samples at hand the last is not asked.
    """
    state = method.init(jax.random.key(KEY), x, y)
    outputs = method.predict(state, x)
    expected = (len(y), *method.network.outputs)
    assert outputs.shape == expected, f"predict: expected {expected}; got {outputs.shape}"
    if not any(taken.over == "samples" for taken in method.network.statistics):
        _close(
            method.predict(state, first(x)),
            outputs[:1],
            "predict: a sample alone, and among others",
        )


def check_moves(method: Method, samples: int) -> None:
    """What a step sends is declared: `Move`s along axes that there are."""
    moves = method.moves(samples)
    assert all(isinstance(m, Move) and m.axis in AXES for m in moves), f"moves: got {moves}"


def check_placed(method: Method, x: Tree, y: np.ndarray, mesh: Mesh) -> None:
    """On a mesh the protocol and the numbers are the same."""
    placed = place(method, mesh)
    state, other = (each.init(jax.random.key(KEY), x, y) for each in (method, placed))
    step, placed_step = jax.jit(method.step), jax.jit(placed.step)
    for i in range(STEPS):
        given = minibatch(method, x, y, i)
        (state, info), (other, seen) = step(state, *given), placed_step(other, *given)
        _close(seen, info, f"step {i} on the mesh: the same Info")
    params = method.params(state)
    _close(placed.params(other), params, f"after {STEPS} steps on the mesh: the same parameters")
    outputs = placed.predict(placed.spread(other), x)
    _close(outputs, method.predict(state, x), "predict on the mesh: the same outputs")


def check_bytes(method: Method, x: Tree, y: np.ndarray, mesh: Mesh) -> None:
    """The bytes that a step of float32 samples hands to collectives are those that it declares."""
    placed = place(method, mesh)
    x = cast(x, np.float32)
    given = minibatch(method, x, y)
    state = placed.init(jax.random.key(KEY), x, y)
    counts = count_bytes(placed.step, state, *given, by_device=True)
    counted = max(counts, key=lambda count: sum(count.values()))
    declared = step_bytes(method, mesh, samples=len(y))
    assert counted == declared, f"moves: declared {declared}; the traced step has {counted}"


def check_resumed(method: Method, x: Tree, y: np.ndarray) -> None:
    """A run that goes on from a checkpoint comes to the same bits."""
    key, epochs = jax.random.key(KEY), 4
    with tempfile.TemporaryDirectory() as folder:
        fit(method, (x, y), epochs=2, key=key, checkpoint=folder, progress=False)
        resumed = fit(method, (x, y), epochs=epochs, key=key, checkpoint=folder, progress=False)
    whole = fit(method, (x, y), epochs=epochs, key=key, progress=False)
    _equal(resumed.params, whole.params, "fit: a resumed run comes to the same bits")


def _leaves(tree: Tree) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


def _shapes(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)


def _equal(got: Tree, expected: Tree, promise: str) -> None:
    for a, b in zip(_leaves(got), _leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=promise)


def _close(got: Tree, expected: Tree, promise: str) -> None:
    for a, b in zip(_leaves(got), _leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=promise)
