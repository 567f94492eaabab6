"""How samples reach a method: minibatches or rounds in chunks, or all of them in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np

from jtssm.divergence import Guard, Outcome
from jtssm.protocol import Info, Method
from jtssm.sharding import batch_sharding, num_splits

CHUNK = 50  # most steps a dispatch
CHUNK_SAMPLES = 2**14  # most samples a dispatch, unless one step takes more


class Minibatches:
    """Epochs of a method that takes minibatches: chunks of steps, each one dispatch.

    What does not fill a last minibatch is left out of an epoch; a round of local steps instead goes on
    with the first samples of the next epoch.
    """

    def __init__(
        self, method: Method, x: np.ndarray, y: np.ndarray, rng: np.random.Generator, epochs: int
    ):
        self.x, self.y, self.rng = x, y, rng
        self.shape: tuple[int, ...] = method.batch_shape or ()
        self.size = prod(self.shape)
        self.straddles = len(self.shape) > 1
        self.left = np.zeros(0, int)  # samples of this epoch for a round that ends in the next
        if not self.steps(epochs):
            over = f" times {epochs} epochs" if self.straddles else ""
            raise ValueError(
                f"train: expected at least {self.size} samples, one step of {method.name}; got "
                f"{len(x)}{over}"
            )
        self.sharding = batch_sharding(method, stacked=True)

    def steps(self, epochs: int) -> int:
        """Steps that so many epochs make."""
        if self.straddles:
            return epochs * len(self.x) // self.size
        return epochs * (len(self.x) // self.size)

    def _order(self, epochs: int) -> np.ndarray:
        """[steps, samples of a step]: every epoch in a new order."""
        orders = [self.rng.permutation(len(self.x)) for _ in range(epochs)]
        if not self.straddles:
            used = self.steps(1) * self.size
            return np.concatenate([order[:used] for order in orders]).reshape(-1, self.size)
        order = np.concatenate([self.left, *orders])
        used = len(order) // self.size * self.size
        self.left = order[used:]
        return order[:used].reshape(-1, self.size)

    def order(self) -> dict[str, Any]:
        """What decides the order of samples from here on; JSON holds it."""
        return {"rng": self.rng.bit_generator.state, "left": self.left.tolist()}

    def go_to(self, order: Mapping[str, Any]) -> None:
        """Go on with the order of samples as it was."""
        self.rng.bit_generator.state = order["rng"]
        self.left = np.asarray(order["left"], int)

    def seen(self, num: int) -> np.ndarray:
        """Up to so many samples x, the same every time."""
        return self.x[np.random.default_rng(0).permutation(len(self.x))[:num]]

    def draw(self, epochs: int) -> list[np.ndarray]:
        """Chunks of steps on every sample `epochs` times, each time in a new order."""
        order = self._order(epochs)
        if not len(order):  # the next round is not full yet
            return []
        most = max(1, min(CHUNK, CHUNK_SAMPLES // self.size))
        return np.array_split(order, -(-len(order) // most))

    def run(self, guard: Guard, state: Any, chunks: Sequence[np.ndarray]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        chunk = self._chunk(chunks[0]) if chunks else ()
        for following in [*chunks[1:], None][: len(chunks)]:
            after = guard.dispatch(state, *chunk)
            # the next chunk is gathered on the host while the device works
            ahead = None if following is None else self._chunk(following)
            outcome = guard.judge(state, after, *chunk)
            yield outcome
            if outcome.divergence is not None:
                return
            state, chunk = outcome.state, ahead or ()

    def _chunk(self, rows: np.ndarray) -> tuple:
        shape = (len(rows), *self.shape)
        arrays = [a[rows.ravel()].reshape(*shape, *a.shape[1:]) for a in (self.x, self.y)]
        return _put(arrays, self.sharding)


class Resident:
    """Epochs of a method that keeps all samples in place: each is one step on all of them."""

    def __init__(
        self, method: Method, x: np.ndarray, y: np.ndarray, rng: np.random.Generator, epochs: int
    ):
        size, what = method.parts.batch_size, "batch_size"
        if size is None:
            size, what = num_splits(method), "pc"
        kept = len(x) - len(x) % size
        if 0 < kept < len(x):
            warnings.warn(
                f"train: {len(x) - kept} of {len(x)} samples are left out: {method.name} needs a "
                f"multiple of {what}={size}",
                UserWarning,
                stacklevel=4,
            )
        if method.parts.batch_size is not None:  # strata are drawn once; otherwise order is nothing
            order = rng.permutation(len(x))[: kept or None]
            x, y = x[order], y[order]
        self.x, self.y = x[: kept or None], y[: kept or None]
        self.chunk = _put((self.x[None], self.y[None]), batch_sharding(method, stacked=True))

    def steps(self, epochs: int) -> int:
        """An epoch is a step."""
        return epochs

    def order(self) -> dict[str, Any]:
        """Samples stay where they are."""
        return {}

    def go_to(self, order: Mapping[str, Any]) -> None:
        """Samples stay where they are."""

    def seen(self, num: int) -> np.ndarray:
        """Up to so many samples x, the same every time."""
        return self.x[np.random.default_rng(0).permutation(len(self.x))[:num]]

    def draw(self, epochs: int) -> list[int]:
        """That many steps on all samples, in one dispatch."""
        return [epochs]

    def run(self, guard: Guard, state: Any, chunks: Sequence[int]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        x, y = self.chunk
        for times in chunks:
            outcome = guard.judge(state, guard.dispatch(state, x, y, times), x, y)
            yield outcome
            if outcome.divergence is not None:
                return
            state = outcome.state


def _put(arrays: Sequence[np.ndarray], sharding: Any) -> tuple:
    """Arrays on the mesh, or on the default device."""
    return tuple(jax.device_put(a, sharding) for a in arrays)


def means(infos: Info) -> dict[str, float]:
    """Means over steps, each weighted by the samples it measured."""
    count = max(float(infos.samples.sum()), 1.0)
    means = {name: float((a * infos.samples).sum() / count) for name, a in infos._asdict().items()}
    return means | {"samples": float(infos.samples.sum())}


def joined(infos: Sequence[Info]) -> Info:
    """Infos of some steps, one after the other; of none where there are none."""
    empty = Info(*np.zeros((len(Info._fields), 0)))
    return jax.tree.map(lambda *a: np.concatenate(a), *infos) if infos else empty
