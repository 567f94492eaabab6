"""A language model of flax modules: bytes of text that every CPython carries, trained whole and cut.

The text is `pydoc_data.topics`, the topics of Python's own documentation (PSF licence): no download. A
decoder-only transformer predicts each next byte; all methods start from the same weights, on one device
and on meshes subnet x pr x pc of 8 virtual ones.

Run: python -m examples.language_model
Or:  python -m examples.language_model --write bytes.npz
     jtssm train sgd --net examples.language_model:network --data bytes.npz --batch-size 16 --epochs 1
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jtssm
from jtssm import losses, nn, sharding, solvers

LENGTH, WIDTH, HEADS, BLOCKS, BYTES = 32, 32, 2, 2, 128
BATCH, STEPS, HELD_OUT = 16, 50, 256
METHODS = ("sgd", "gsadmm, n = 2", "gsadmm, n = 4", "local_sgd")
MESHES = {  # subnet x pr x pc
    "sgd": ((1, 1, 8), (1, 2, 2), (1, 8, 1)),
    "gsadmm, n = 2": ((2, 1, 2), (2, 2, 2)),
    "gsadmm, n = 4": ((4, 1, 2),),
    "local_sgd": ((2, 1, 2),),
}
FORM = "gathered"  # of every layer over pr: a device stores its part of each parameter


class Bits(NamedTuple):
    """Bits a byte."""

    steps: list[float]  # of the minibatch of each step
    held_out: float  # of the composed network


class Embed(linen.Module):
    """Bytes and their places as vectors."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        places = self.param("places", linen.initializers.normal(0.02), (LENGTH, WIDTH))
        return linen.Embed(BYTES, WIDTH)(x.astype(jnp.int32)) + places[None]


class Block(linen.Module):
    """Attention to what came before, then a perceptron, both beside the identity."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = linen.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + linen.MultiHeadDotProductAttention(HEADS)(linen.LayerNorm()(x), mask=mask)
        h = linen.gelu(linen.Dense(4 * WIDTH)(linen.LayerNorm()(x)))
        return x + linen.Dense(WIDTH)(h)


class Head(linen.Module):
    """Scores of the next byte."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(BYTES)(linen.LayerNorm()(x))


def samples() -> tuple[np.ndarray, np.ndarray]:
    """(bytes [n, LENGTH], the bytes after them), other characters left out."""
    text = "".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    rows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return rows[:, :-1], rows[:, 1:]


def write(path: Path) -> None:
    """The samples as `jtssm train --data` takes them, the last HELD_OUT as x_test and y_test."""
    x, y = (a.astype(np.uint8) for a in samples())
    train, held = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    np.savez_compressed(path, x=x[train], y=y[train], x_test=x[held], y_test=y[held])


def network() -> nn.Network:
    """The model as layers of jtssm, which it can be cut between."""
    return nn.from_linen(
        [Embed(), *(Block() for _ in range(BLOCKS)), Head()], np.zeros((1, LENGTH), int)
    )


def methods(net: nn.Network) -> dict[str, jtssm.Method]:
    """By the names of METHODS."""
    shared = {"optimizer": optax.adam(1e-3), "batch_size": BATCH, "loss": losses.cross_entropy()}
    local = shared | {"batch_size": BATCH // 2, "local_steps": 2, "workers": 2}
    return {
        "sgd": solvers.sgd(net, **shared),
        "gsadmm, n = 2": solvers.gsadmm(net, subnets=2, **shared),
        "gsadmm, n = 4": solvers.gsadmm(net, subnets=4, **shared),
        "local_sgd": solvers.local_sgd(net, **local),
    }


def placed(method: jtssm.Method, shape: Sequence[int]) -> jtssm.Method:
    """The method on a mesh subnet x pr x pc."""
    forms = [FORM] * len(method.network.layers) if shape[1] > 1 else "auto"
    return sharding.place(method, sharding.make_mesh(*shape), forms=forms)


def plain(net: nn.Network, params: list, x: np.ndarray, y: np.ndarray) -> list[float]:
    """Bits a byte of each of STEPS steps of plain flax and optax, from the same weights."""
    optimizer = optax.adam(1e-3)
    modules, params = zip(*net.modules(params), strict=True)

    def mean(params: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
        outputs = x
        for module, variables in zip(modules, params, strict=True):
            outputs = module.apply(variables, outputs)
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    @jax.jit
    def step(params: tuple, state: tuple, x: jax.Array, y: jax.Array) -> tuple:
        loss, gradient = jax.value_and_grad(mean)(params, x, y)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, bits = optimizer.init(params), []
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        params, state, loss = step(params, state, x[rows], y[rows])
        bits.append(float(loss) / math.log(2))
    return bits


def trained(method: jtssm.Method, params: list, x: np.ndarray, y: np.ndarray) -> Bits:
    """Bits a byte of a method, placed or not, that sees STEPS minibatches once."""
    state, step = method.init(jax.random.key(0), x[:BATCH], y[:BATCH], params), jax.jit(method.step)
    lead, size = method.batch_shape, math.prod(method.batch_shape)
    bits = []
    for i in range(STEPS * BATCH // size):
        rows = slice(i * size, (i + 1) * size)
        taken = (a[rows].reshape(*lead, LENGTH) for a in (x, y))
        state, info = step(state, *taken)
        bits.append(float(info.loss) / math.log(2))
    held_out = x[-HELD_OUT:], y[-HELD_OUT:]
    return Bits(bits, jtssm.evaluate(method, method.drain(state), held_out)["loss"] / math.log(2))


def resumed(
    method: jtssm.Method, params: list, x: np.ndarray, y: np.ndarray
) -> tuple[jtssm.Result, jtssm.Result]:
    """(a run of STEPS steps at a stretch, one that ended after half of them and went on)."""
    half = STEPS // 2 * BATCH
    given = {"key": jax.random.key(0), "params": params, "progress": False}
    whole = jtssm.fit(method, (x[:half], y[:half]), epochs=2, **given)
    with TemporaryDirectory() as folder:
        for epochs in (1, 2):
            rest = jtssm.fit(
                method, (x[:half], y[:half]), epochs=epochs, checkpoint=folder, **given
            )
    return whole, rest


def main(
    names: Collection[str] = METHODS, meshes: Mapping[str, Sequence[tuple[int, int, int]]] = MESHES
) -> dict[str, Bits]:
    """Bits a byte by method and mesh; "plain" is flax and optax alone."""
    (x, y), net = samples(), network()
    params = net.init(jax.random.key(0), jnp.float32)
    found = {"plain": Bits(plain(net, params, x, y), math.nan)}
    for name, method in methods(net).items():
        if name not in names:
            continue
        found[name] = trained(method, params, x, y)
        for shape in meshes.get(name, ()):
            where = f"{name} on {' x '.join(map(str, shape))}"
            found[where] = trained(placed(method, shape), params, x, y)
    return found


def show_resumed() -> None:
    """Whether a run that was broken off ends with the bits of one at a stretch."""
    (x, y), net = samples(), network()
    params = net.init(jax.random.key(0), jnp.float32)
    runs = resumed(methods(net)["gsadmm, n = 2"], params, x, y)
    pairs = zip(*(jax.tree.leaves(run.params) for run in runs), strict=True)
    print("gsadmm, n = 2, resumed: all bits equal", all((a == b).all() for a, b in pairs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path, help="write the samples to this npz file, no more")
    if path := parser.parse_args().write:
        write(path)
    else:
        jax.config.update("jax_num_cpu_devices", 8)
        for name, bits in main().items():
            print(f"{name:26} last {bits.steps[-1]:.4f}  held out {bits.held_out:.4f}")
        show_resumed()
