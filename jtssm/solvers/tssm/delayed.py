"""How old gradients are in the streaming schedule, and optimizers that step less for it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import optax

from jtssm.arrays import Array, Tree


def delays(num: int, microbatches: int = 1) -> list[int]:
    """How many steps old the gradients of each of `num` subnetworks are: ceil(2(n - l) / M), l = 1 .. n.

    That is, how often the subnetwork steps at most between its forward pass on a microbatch and the step
    that this microbatch causes, in the first of its sweeps.

    microbatches: M, of which each minibatch is divided into.
    """
    return [-(-2 * (num - 1 - l) // microbatches) for l in range(num)]


def slowed(
    optimizers: Sequence[optax.GradientTransformation], power: float, microbatches: int = 1
) -> tuple[optax.GradientTransformation, ...]:
    """The optimizers of n subnetworks, their updates scaled by (1 + delay)^-power."""

    def slow(optimizer: optax.GradientTransformation, scale: float) -> optax.GradientTransformation:
        whole = optax.with_extra_args_support(optimizer)

        def update(
            gradient: Tree, state: Tree, params: Tree = None, **more: Array
        ) -> tuple[Tree, Tree]:
            updates, state = whole.update(gradient, state, params, **more)
            return jax.tree.map(lambda a: scale * a, updates), state

        # not optax.chain: the state stays what the user's optimizer makes it
        return optax.GradientTransformationExtraArgs(optimizer.init, update)

    scales = [(1 + delay) ** -power for delay in delays(len(optimizers), microbatches)]
    return tuple(
        optimizer if scale == 1 else slow(optimizer, scale)
        for optimizer, scale in zip(optimizers, scales, strict=True)
    )
