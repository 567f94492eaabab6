"""Do networks of flax modules train when they are cut? A ResNet-like one and a transformer, n = 2, 3, 4.

The paper's ResNet-like network has 24 residual blocks; here each is two 3 x 3 convolutions of 8 channels
with `nnx.BatchNorm` (flax nnx modules, `jtssm.network.from_nnx`). The transformer classifier reads an
image as rows: 6 encoder blocks of width 64 with 4 heads (flax linen, `from_linen`). MNIST 14 x 14, the
first 5 000 training images, batch 100, Adam at 1e-3 (not tuned, the same for all), 6 epochs, one seed;
accuracy on the held-out last 5 000 training images, by the user's own modules without jtssm. gsADMM
streams with one sweep; n = 1 is `solvers.sgd`, end to end.

    JTSSM_DATA=FOLDER python -m benchmarks.users_networks [--smoke]

About 20 minutes on 2 cores. Last result: benchmarks/results/users_networks.json, in the README.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import jtssm
from benchmarks import record
from jtssm import data, network, solvers
from jtssm.network import Network

TRAINED, BATCH, EPOCHS, SUBNETS = 5_000, 100, 6, (2, 3, 4)


class Block(nnx.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        convolution = lambda: nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.first, self.second = convolution(), convolution()
        self.norms = nnx.List([nnx.BatchNorm(channels, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        h = nnx.relu(self.norms[0](self.first(x)))
        return nnx.relu(x + self.norms[1](self.second(h)))


class Pooled(nnx.Module):
    """A product of the mean pixel."""

    def __init__(self, channels: int, classes: int, rngs: nnx.Rngs):
        self.out = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(x.mean(axis=(1, 2)))


class Embedded(nn.Module):
    """Rows of an image as tokens, with what tells their places."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(self.width)(x.reshape(*x.shape[:2], -1))
        return x + self.param("places", nn.initializers.normal(0.02), x.shape[1:])[None]


class Encoder(nn.Module):
    """A transformer's block, normalised first."""

    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        return x + nn.Dense(width)(nn.gelu(nn.Dense(2 * width)(nn.LayerNorm()(x))))


class Classes(nn.Module):
    """A product of the mean token."""

    classes: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(self.classes)(nn.LayerNorm()(x).mean(axis=1))


def residual(shape: tuple[int, ...], blocks: int, channels: int) -> Network:
    """The ResNet-like network."""
    rngs = nnx.Rngs(0)
    first = nnx.Conv(shape[-1], channels, (3, 3), rngs=rngs)
    inner = [Block(channels, rngs) for _ in range(blocks)]
    modules = [first, nnx.relu, *inner, Pooled(channels, 10, rngs)]
    return network.from_nnx(modules, jnp.zeros((1, *shape)))


def transformer(shape: tuple[int, ...], blocks: int, width: int) -> Network:
    """The transformer classifier."""
    modules = [Embedded(width), *(Encoder(4) for _ in range(blocks)), Classes(10)]
    return network.from_linen(modules, jnp.zeros((1, *shape)))


def alone(modules: list[Any], x: Any) -> Any:
    """Outputs of trained modules as their libraries run them."""
    for module in modules:
        x = module[0].apply(module[1], x) if isinstance(module, tuple) else module(x)
    return x


def train(net: Network, subnets: int, splits: Any, epochs: int) -> dict[str, Any]:
    """Accuracy on held-out samples, by the modules alone."""
    shared: dict[str, Any] = {"optimizer": optax.adam(1e-3), "batch_size": BATCH}
    method = (
        solvers.gsadmm(net, subnets=subnets, **shared)
        if subnets > 1
        else solvers.sgd(net, **shared)
    )
    result = jtssm.fit(method, splits.train, epochs=epochs, key=jax.random.key(0))
    modules = result.module()
    for module in modules:
        if isinstance(module, nnx.Module):
            module.eval()
    run = jax.jit(lambda x: alone(modules, x))
    x, y = splits.valid
    found = np.concatenate([np.asarray(run(a)) for a in np.array_split(x, max(1, len(x) // 500))])
    return {
        "valid_accuracy": float((found.argmax(axis=1) == y).mean()),
        "cuts": list(method.parts.starts[1:-1]), "divergence": result.divergence is not None,
    }  # fmt: skip


def main() -> None:
    """Train every network at every n, show and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny networks on the embedded digits")
    smoke = parser.parse_args().smoke
    splits = data.load("digits") if smoke else data.load("mnist", size=14)
    kept = 400 if smoke else TRAINED
    splits = splits._replace(train=data.Split(*(a[:kept] for a in splits.train)))
    shape, size = splits.train.x.shape[1:], (1, 4) if smoke else (24, 8)
    nets = {
        "transformer": transformer(shape, *((1, 8) if smoke else (6, 64))),
        "residual": residual(shape, *size),
    }
    report: dict[str, Any] = {}
    for name, net in nets.items():
        for subnets in (1, 2) if smoke else (1, *SUBNETS):
            found = train(net, subnets, splits, 2 if smoke else EPOCHS)
            report[f"{name}, n = {subnets}"] = found
            print(f"{name}, n = {subnets}  held-out {found['valid_accuracy']:.4f}", flush=True)
            if not smoke:  # after every run, so that an interruption loses one at most
                record.write("users_networks", "benchmarks.users_networks", {"results": report})


if __name__ == "__main__":
    main()
