"""A placed method of several processes: before anything is drawn they compare what they were given.

It is also where their devices are introduced to each other, so that a loop of one's own begins as `fit`
does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Tree, crc
from jtssm.nn.boundary import num_samples, of_arrays
from jtssm.nn.inputs import as_input
from jtssm.nn.network import Network, run_layers
from jtssm.nn.ops import PLAIN
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.sharding.agreement import ending_all, same_in_all
from jtssm.sharding.distributed import introduce
from jtssm.sharding.meeting import versions
from jtssm.sharding.traced import digest

PACKAGES = ("jax", "jaxlib", "numpy", "optax")
FLAGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")
MOST_DEVICES = 16  # that are named one by one

Words = dict[str, Any]  # name of an argument -> what JSON holds


def agreed(method: Method) -> Method:
    """The placed method whose `init` and `spread` begin together in all processes."""
    placement = method.placement
    if placement is None or isinstance(placement.mesh, AbstractMesh) or jax.process_count() == 1:
        return method

    def init(key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None = None) -> Tree:
        if not _is_traced((key, x, y, params)):
            introduce(placement.mesh)
            with ending_all():
                told = method_words(method) | _start_words(method, key, x, y, params)
            same_in_all(told)
        return method.init(key, x, y, params)

    def spread(state: Tree) -> Tree:
        if not _is_traced(state):
            introduce(placement.mesh)
        return placement.spread(state)

    return method._replace(init=init, placement=placement._replace(spread=spread))


def _is_traced(tree: Tree) -> bool:
    """Whether these are shapes, or arrays of a trace: nothing runs."""
    shapes = (jax.core.Tracer, jax.ShapeDtypeStruct)
    return any(isinstance(a, shapes) for a in jax.tree.leaves(tree))


def method_words(method: Method) -> Words:
    """What must be the same of a method in all processes, as JSON holds it.

    Optimizers, losses and networks are told by what they do (`jtssm.sharding.traced.digest`): numbers
    that only a closure holds count too.
    """
    return {
        "versions": versions(*PACKAGES),
        "jax.config": {name: getattr(jax.config, name) for name in FLAGS},
        "method": method.program.identity(),
        **_digests(method.program),
        "mesh": _mesh_words(method.mesh),
        "forms": None if method.forms is None else list(method.forms),
    }


@lru_cache(maxsize=4)  # `fit` asks, and so does `init` behind it
def _digests(program: Program) -> Words:
    """What the functions do that a method is made of."""
    network, stages, (x, y) = program.network, program.stages, program.samples_like((2,))
    outputs = jax.ShapeDtypeStruct((2, *network.outputs), np.float32)
    shapes, loss = network.parameter_shapes(), stages.loss
    of_loss = [_does(function, outputs, y) for function in (loss.value, loss.correct)]
    of_loss += [] if loss.weight is None else [_does(loss.weight, y)]
    closures = {} if program.settings is None else program.settings.closures()
    pieces = zip(stages.optimizers, pairwise(stages.starts), strict=True)
    return {
        "network": {
            "shapes": list(map(repr, network.shapes)),
            "start (digest)": _does(network.init, jax.random.key(0)),
            "layers (digest)": _does(network.apply, shapes, x),
            "training (digest)": _does(partial(_trained, network), shapes, x),
        },
        "loss (digest)": of_loss,
        "arguments (digest)": {name: _closure(a, shapes) for name, a in closures.items()},
        "optimizer (digest)": [_optimizer(a, shapes[first:after]) for a, (first, after) in pieces],
    }


def _trained(network: Network, params: Sequence[Tree], x: Tree) -> Tree:
    """What layers make of samples while training: with dropout."""
    train = PLAIN.to_train(lambda: jax.random.split(jax.random.key(0), num_samples(x)))
    return run_layers(network.layers, params, as_input(network, x), lambda i: train)


def _closure(value: Callable | optax.GradientTransformation, shapes: list[Tree]) -> int | str:
    if isinstance(value, optax.GradientTransformation):
        return _optimizer(value, shapes)
    return _does(value, jax.ShapeDtypeStruct((16,), np.float32))


def _optimizer(optimizer: optax.GradientTransformation, shapes: list[Tree]) -> int | str:
    whole = optax.with_extra_args_support(optimizer)

    def once(params: Tree) -> Tree:
        return whole.update(params, whole.init(params), params, value=np.float32(1))

    return _does(once, shapes)


def _does(function: Callable, *args: Tree) -> int | str:
    """A digest; of what cannot be traced so the kind of error: where it is used says what is wrong."""
    try:
        return digest(function, *args)
    except Exception as error:
        return type(error).__name__


def _mesh_words(mesh: Mesh | None) -> Words | None:
    if mesh is None:
        return None
    devices = [f"{d.id} of process {d.process_index}" for d in mesh.devices.flat]
    if len(devices) > MOST_DEVICES:
        devices = [f"{len(devices)} of checksum {zlib.crc32(repr(devices).encode())}"]
    sizes = {str(name): size for name, size in mesh.shape.items()}
    return {
        "axes": list(sizes),
        "sizes": sizes,
        "types": [str(kind) for kind in mesh.axis_types],
        "devices": devices,
    }


def _start_words(
    method: Method, key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None
) -> Words:
    """What a state begins with: of samples that it does not keep the shapes alone."""
    told = words if method.resident else shape
    return {
        "key": key_words(checks.key(key)),
        "x": list(map(told, arrays_of(x))),
        "y": list(map(told, arrays_of(y))),
        "params": tree_words(params),
    }


def key_words(key: Array) -> list:
    """A key's kind and numbers."""
    return [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()]


def arrays_of(x: Tree) -> list[Tree]:
    """Those of samples; lists of numbers are one."""
    return jax.tree.leaves(x) if of_arrays(x) else [x]


def shape(a: AnyArray) -> str:
    """dtype and shape of one sample."""
    return (
        f"{np.asarray(a).dtype if isinstance(a, (list, tuple)) else a.dtype}{list(np.shape(a)[1:])}"
    )


def words(a: AnyArray) -> str:
    """dtype, shape and a checksum of an array that each process has whole; of another no checksum."""
    if isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated):
        return f"{a.dtype}{list(a.shape)} on the mesh"
    if isinstance(a, jax.Array) and jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
        return str(key_words(a))
    array = np.asarray(a)
    return f"{array.dtype}{list(array.shape)} of checksum {crc(array)}"


def tree_words(tree: Tree) -> Words | None:
    """The arrays of a tree by their paths; None where there is none."""
    if tree is None:
        return None
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) or "it": words(a) for path, a in leaves}
