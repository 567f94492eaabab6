"""A shallow start: train a shallow network, then insert identity layers before its last one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jtssm.arrays import Tree
from jtssm.nn.network import Network
from jtssm.protocol.method import Method
from jtssm.solvers.layerwise.activations import activation
from jtssm.solvers.layerwise.variables import Inbox, State
from jtssm.solvers.pieces import Weights


def grow(method: Method, state: State, net: Network) -> tuple[Method, State]:
    """The method on a deeper network, and its state, in which the new layers pass on what they get.

    Between the last hidden layer and the output stand new layers with W = I, b = 0, p = z = q =
    max(p_L, 0), r = 0 and u = 0: the composed network computes what it did, u = nu (q - f(z)) and r
    hold where they held, and the gap p - q of the old boundary stays at its two ends.

    Args:
      method: from `pdadmm`, unplaced.
      state: its state, unplaced (of a placed method: `sharding.gathered(state)`).
      net: the shallow network's layers with ReLU layers of the last hidden width inserted before
        the last, e.g. mlp([196, 500, 500, 500, 10]) for mlp([196, 500, 10]).

    Returns:
      The method with the same arguments on `net`, and its state.

    Raises:
      ValueError: `net` is not such a network, or the method is placed.
    """
    _check(method, net)
    assert method.settings is not None
    grown = method.settings.remade(net)
    more = len(net.layers) - len(state.weights)
    width = net.shapes[-2][0]
    P = jnp.maximum(state.p[-1], 0)
    zero = jnp.zeros_like(P)
    params = {"W": jnp.eye(width, dtype=P.dtype), "b": jnp.zeros(width, P.dtype)}
    inbox = state.inbox[-1]
    # the first new layer stands where the last one stood; after it p = q = P and u = 0
    after: Tree = Inbox(P, zero) if isinstance(inbox, Inbox) else ()
    inboxes = (*state.inbox, *([after] * more))

    def inserted(old: tuple[Tree, ...], new: Tree) -> tuple[Tree, ...]:
        return (*old[:-1], *([new] * more), old[-1])

    weights = inserted(state.weights, Weights([params], state.weights[-1].opt_state))
    fields: dict[str, Tree] = {"weights": weights, "inbox": inboxes}
    fields |= {name: inserted(getattr(state, name), P) for name in ("p", "z", "q")}
    fields |= {name: inserted(getattr(state, name), zero) for name in ("r", "u")}
    # each array its own buffer, so that the state can be donated
    return grown, jax.tree.map(lambda a: jnp.array(a, copy=True), state._replace(**fields))


def _check(method: Method, net: Network) -> None:
    if method.name != "pdadmm" or method.mesh is not None:
        raise ValueError("method: expected an unplaced one from solvers.pdadmm; got another")
    old = method.network
    hidden, width = len(old.layers) - 1, old.shapes[-2]
    inserted = net.layers[hidden:-1]
    same = net.shapes[: hidden + 1] == old.shapes[: hidden + 1] and net.shapes[-1] == old.shapes[-1]
    same &= all(shape == width for shape in net.shapes[hidden:-1])
    same &= [activation(layer) for layer in net.layers[:hidden]] == [
        activation(layer) for layer in old.layers[:-1]
    ]
    relu = all(activation(layer) is jax.nn.relu for layer in net.layers[hidden - 1 : -1])
    if len(inserted) < 1 or not same or not relu:
        raise ValueError(
            f"net: expected the layers of widths {[s[0] for s in old.shapes[:-1]]} with at least one "
            f"ReLU layer of width {width[0]} more before the output of {old.shapes[-1][0]}, after a "
            f"ReLU layer; got widths {[s[0] for s in net.shapes]}"
        )
