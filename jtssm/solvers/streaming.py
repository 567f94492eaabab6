r"""Minibatches in flight: at every tick all subnetworks work, on different minibatches.

Minibatch b enters at tick b. It runs forward, one subnetwork a tick, and reaches subnetwork n at
tick b + n - 1; sweep s runs backward from there, subnetwork l (from 1) taking its turn at tick
b + 2n - 1 - l + 2s. The turn of subnetwork l on a minibatch, with v_l = q_l - f_l sent by
subnetwork l + 1, p_l = f_{l-1} + e and u = u_{l-1} kept here while the minibatch is in flight:

    g_W, g_p <- gradients of (alpha/2)|q_l - f_l|^2 = (alpha/2)|v_l|^2 (l < n) or of R (l = n)
    W_l      <- optimizer(W_l, g_W / samples)
    e        <- e - eta (g_p + u + rho (e - v))         the p-step, v = u / alpha
    v        <- (rho e + u) / (alpha + rho)             the q-step of q_{l-1}
    u        <- u + rho (e - v)                         the dual step
    send v to l - 1, and f_l to l + 1 if another sweep follows

That is gsADMM; gsAM has q_l = p_{l+1} and no u, so that v = e and the p-step is

    e        <- e - eta (g_p + alpha e)

A first sweep starts from e = u = 0, that is p = q = f. A tick of a minibatch that never entered
(the first ones, and while draining) changes nothing.

Departs from the paper:
- p_{l+1} and q_l are counted from f_l: when W_l has moved while a minibatch was in flight, both move
  along with f_l (else the stale pair pulls W_l back to where it was).
- g_W and g_p are taken at the same W_l, which halves the products; the paper takes g_p after the
  W-step.
- Subnetworks take their turns on one minibatch from the last to the first, each with its
  neighbour's newest variables; the paper updates all of them from the previous iteration's.
- With one sweep u never acts, and with the default eta (1/alpha + 1/rho for gsADMM, 1/alpha for
  gsAM) v_l is -1/alpha times the back-propagated gradient: this *is* training with delayed
  gradients, those of subnetwork l being `delays(n)[l - 1]` = 2(n - l) minibatches old. gsADMM and
  gsAM are then the same method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.protocol import Array, Info, Method, as_method
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.updates import Penalties, squared, update_p, update_q, update_u


class Kept(NamedTuple):
    """What a subnetwork keeps of a minibatch between two sweeps: leaves [samples, ...]."""

    x: Any  # the data, in the first subnetwork; else ()
    e: Any  # p - f, () in the first subnetwork
    u: Any  # dual of p = q, () in the first subnetwork and in gsAM
    y: Any  # labels, in the last subnetwork; else ()


class Rule(NamedTuple):
    """How a piece renews the variables at its input: what tells gsADMM and gsAM apart."""

    name: str
    boundary: Callable  # (was: Kept, g_p, penalties) -> (e, u, v, squares of the three residuals)
    default_eta: Callable  # (penalties, sweeps) -> step length of p where none was given
    sends: str  # what goes backward
    dual: bool  # whether there is a u


def _gsadmm_boundary(was: Kept, g_p: Array, penalties: Penalties) -> tuple:
    """p-, q- and dual step; squares of p - q, rho (q - q before), q - f."""
    rho, alpha, eta = penalties
    v_was = was.u / alpha
    e = update_p(was.e, g_p, was.u, v_was, rho=rho, eta=eta)
    v = update_q(0.0, e, was.u, rho=rho, alpha=alpha)
    u = update_u(was.u, e, v, rho=rho)
    return e, u, v, (squared(e - v), squared(rho * (v - v_was)), squared(v))


def _gsam_boundary(was: Kept, g_p: Array, penalties: Penalties) -> tuple:
    """The p-step towards f; q = p, so that only the coupling p - f remains."""
    e = update_p(was.e, g_p, 0.0, 0.0, rho=penalties.alpha, eta=penalties.eta)
    zero = jnp.zeros((), e.dtype)
    return e, (), e, (zero, zero, squared(e))


def _gsadmm_eta(penalties: Penalties, sweeps: int) -> Any:
    rho, alpha, _ = penalties
    return 1 / alpha + 1 / rho if sweeps == 1 else 1 / (alpha + rho)


def _gsam_eta(penalties: Penalties, sweeps: int) -> Any:
    return 1 / penalties.alpha if sweeps == 1 else 1 / (2 * penalties.alpha)


GSADMM = Rule("gsadmm", _gsadmm_boundary, _gsadmm_eta, "q - f", dual=True)
GSAM = Rule("gsam", _gsam_boundary, _gsam_eta, "p - f", dual=False)


def delays(num: int) -> list[int]:
    """How many minibatches old the gradients of each of `num` subnetworks are: 2(n - l), l = 1 .. n.

    That is, how often the subnetwork steps between its forward pass on a minibatch and the step
    that this minibatch causes, in the first of its sweeps.
    """
    return [2 * (num - 1 - l) for l in range(num)]


class State(NamedTuple):
    """What the next tick needs; n pieces, b samples, K sweeps, `Carried` = one tree a piece."""

    weights: Any  # carried Weights
    forward: Any  # carried tuple of K arrays f_{l-1} [b, ...] that arrived; the first is fresh
    backward: Any  # carried tuple of K arrays v_l [b, ...] that arrived, one a sweep
    inputs: Any  # carried line [2(n - l), b, ...] of inputs that await their first sweep
    kept: Any  # carried line of K - 1 Kept, leaves [2, b, ...]
    labels: Array  # [n, b, ...] y of the minibatches on their way to the last piece
    live: Array  # [2(n - 1) + 2K - 1] which of the last minibatches really entered
    tick: Array  # [] int32
    penalties: Penalties  # scalars


def method(
    rule: Rule, pieces: Pieces, batch_size: int, penalties: Penalties, sweeps: int, precision: Any
) -> Method:
    """The streaming schedule; arguments are checked by `jtssm.solvers.tssm`."""

    tick = _tick(rule, pieces, sweeps)
    samples = dict.fromkeys(("forward", "backward"), "samples")
    lines = dict.fromkeys(("inputs", "kept"), "line")
    return as_method(
        pieces.parts(
            name=rule.name,
            kinds={"weights": "weights", **samples, **lines, "labels": (None, "pc")},
            init=_init(rule, pieces, batch_size, penalties, sweeps),
            step=lambda exchange, state, x, y: tick(exchange, state, x, y, True),
            drain=_drain(tick, pieces),
            moves=lambda samples: (
                *pieces.boundary_moves(samples, sweeps, forward="f", backward=rule.sends),
                *pieces.gradient_moves(sweeps),
            ),
            # all but the last piece run forward once more, on the minibatch that comes in
            passes=lambda l: (sweeps + (l < pieces.num - 1), sweeps),
            precision=precision,
            batch_size=batch_size,
            resident=False,
        )
    )


def _init(
    rule: Rule, pieces: Pieces, batch_size: int, penalties: Penalties, sweeps: int
) -> Callable:
    n = pieces.num

    def init(exchange, key, x, y, params):
        b = batch_size // exchange.num_splits

        def empty(l):
            def zeros(piece, *lead):
                here = 0 <= piece < n
                return jnp.zeros((*lead, b, *pieces.inputs(piece)), x.dtype) if here else ()

            inner, last = l > 0, l == n - 1
            own = zeros(l, 2)
            labels = jnp.zeros((2, b, *y.shape[1:]), y.dtype) if last else ()
            kept = (
                Kept((), own, own if rule.dual else (), labels)
                if inner
                else Kept(own, (), (), labels)
            )
            forward = tuple(zeros(l) for _ in range(sweeps)) if inner else ()
            backward = () if last else tuple(zeros(l + 1) for _ in range(sweeps))
            waiting = () if last else zeros(l, 2 * (n - 1 - l))
            return forward, backward, waiting, (kept,) * (sweeps - 1)

        weights = pieces.weights(exchange, key, x.dtype, params)
        forward, backward, inputs, kept = exchange.each(
            empty, kinds=("samples", "samples", "line", "line")
        )
        labels = jnp.zeros((n, b, *y.shape[1:]), y.dtype)
        live = jnp.zeros(2 * (n - 1) + 2 * sweeps - 1, bool)
        return State(
            weights, forward, backward, inputs, kept, labels, live, jnp.zeros((), jnp.int32),
            penalties.as_arrays(x.dtype),
        )  # fmt: skip

    return init


def _tick(rule: Rule, pieces: Pieces, sweeps: int) -> Callable:
    def tick(exchange, state, x, y, entering):
        t, n = state.tick, pieces.num
        samples = x.shape[0] * exchange.num_splits
        labels = state.labels.at[t % n].set(y)
        live = state.live.at[t % state.live.size].set(entering)
        penalties = state.penalties
        if penalties.eta is None:
            penalties = penalties._replace(eta=rule.default_eta(penalties, sweeps))
        turn = Turn(
            rule, pieces, exchange, x, labels[(t + 1) % n], live, t, penalties, sweeps, samples
        )  # fmt: skip
        weights, forward, backward, entry, kept, sums = exchange.each(
            turn.take,
            state.weights,
            state.forward,
            state.backward,
            exchange.recall(state.inputs, t),
            exchange.recall(state.kept, t),
            kinds=("weights", "samples", "samples", "samples", "samples", "sums"),
        )
        state = State(
            weights,
            exchange.to_next(forward),
            exchange.to_previous(backward),
            exchange.store(state.inputs, entry, t),
            exchange.store(state.kept, kept, t),
            labels,
            live,
            t + 1,
            state.penalties,
        )
        return state, _info(exchange.total(sums))

    return tick


class Turn(NamedTuple):
    """What all pieces share within one tick; `take` is the work of one of them."""

    rule: Rule
    pieces: Pieces
    exchange: Any
    x: Array  # [b, ...] the minibatch that enters
    y: Array  # [b, ...] labels of the minibatch that reaches the last piece for the first time
    live: Array
    tick: Array
    penalties: Penalties
    sweeps: int
    samples: int  # of a minibatch, all devices together

    def take(self, l: int, weights, forward, backward, waiting, kept) -> tuple:
        """The tick of piece l (from 0): a forward pass, then one turn in each sweep."""
        first, last = l == 0, l == self.pieces.num - 1
        fresh = self.x if first else forward[0]
        ahead = () if last else (self.pieces.forward(self.exchange, l, weights.params, fresh),)
        behind: tuple = ()
        keep: tuple = ()
        sums = None
        for s in range(self.sweeps):
            if s == 0:
                start = fresh if last else waiting
                origin, e = start, jnp.zeros_like(start)
                was = Kept(start, e, e if self.rule.dual else (), self.y)
            else:
                was = kept[s - 1]
                origin = was.x if first else forward[s]
            v_next = None if last else backward[s]
            weights, f, v, now, seen = self.sweep(l, s, weights, origin, was, v_next)
            sums = seen if sums is None else jax.tree.map(jnp.add, sums, seen)
            if s + 1 < self.sweeps:
                ahead += () if last else (f,)
                keep += (now,)
            behind += () if first else (v,)
        return weights, ahead, behind, () if last else fresh, keep, sums

    def sweep(self, l, s, weights, origin, was: Kept, v_next):
        """Turn of piece l in sweep s on a minibatch whose f_{l-1} is `origin`."""
        live = self.live[self._age(l, s)]
        p = origin if l == 0 else origin + was.e
        f, seen, pull = self._linearised(l, weights.params, p, was.y, v_next)
        g_W, g_p = pull()
        g_W = jax.tree.map(lambda g: g / self.samples, g_W)
        weights = self.pieces.descend(l, weights, g_W, live)
        if l == 0:
            e, u, v, residuals = (), (), (), (jnp.zeros((), p.dtype),) * 3
        else:
            e, u, v, residuals = self.rule.boundary(was, g_p, self.penalties)
        seen = jax.tree.map(lambda a: jnp.where(live, a, 0), (*seen, *residuals))
        now = Kept(() if l else p, e, u, was.y if v_next is None else ())
        return weights, f, v, now, seen

    def _age(self, l: int, s: int) -> Array:
        """Where `live` tells of the minibatch that piece l meets in sweep s."""
        age = 2 * (self.pieces.num - 1) - l + 2 * s
        return (self.tick - age) % self.live.size

    def _linearised(self, l, params, p, y, v_next):
        """f_l at p, what is seen of the loss there, and a function giving (g_W, g_p)."""
        run = lambda params, p: self.pieces.forward(self.exchange, l, params, p)
        if l == 0:  # the data has no gradient: leave its product out
            f, vjp = jax.vjp(lambda params: run(params, p), params)
        else:
            f, vjp = jax.vjp(run, params, p)
        complete = lambda gradients: gradients if l > 0 else (*gradients, ())
        if v_next is not None:
            zero = jnp.zeros((), p.dtype)
            return f, (zero, zero, zero), lambda: complete(vjp(-self.penalties.alpha * v_next))
        value = lambda f: self.pieces.loss.value(f, y).sum()
        loss, g_f = jax.value_and_grad(value)(f)
        seen = loss, self.pieces.loss.correct(f, y).sum(), jnp.full((), p.shape[0], p.dtype)
        return f, seen, lambda: complete(vjp(g_f))


def _info(totals) -> Info:
    loss, right, samples, *residuals = totals
    mean = 1 / jnp.maximum(samples, 1)
    primal, dual, coupling = (jnp.sqrt(r * mean) for r in residuals)
    return Info(loss * mean, right * mean, samples, primal, dual, coupling)


def _drain(tick: Callable, pieces: Pieces) -> Callable:
    def drain(exchange, state):
        x = jnp.zeros(
            (state.labels.shape[1], *pieces.network.shapes[0]), state.penalties.alpha.dtype
        )
        y = jnp.zeros_like(state.labels[0])
        rest = state.live.size - 1
        return lax.fori_loop(0, rest, lambda _, s: tick(exchange, s, x, y, False)[0], state)

    return drain
