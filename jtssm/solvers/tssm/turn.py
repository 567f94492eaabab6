"""A piece's turn on a minibatch in flight; the updates stand in `jtssm.solvers.tssm.streaming`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype, floats_of, merge, num_samples, partition
from jtssm.protocol.branching import one_trip_in, where_live
from jtssm.protocol.exchange import Exchange
from jtssm.solvers.microbatches import microbatch
from jtssm.solvers.pieces import Pieces, Weights, training
from jtssm.solvers.quantise import UNROUNDED, Crossing, restored, rounded
from jtssm.solvers.tssm.ahead import Recipe, copied_cheaply
from jtssm.solvers.tssm.residuals import Traced, traced
from jtssm.solvers.tssm.rules import Kept, Rule
from jtssm.solvers.tssm.updates import Penalties, scaled, squared
from jtssm.solvers.weighing import weighed

Gradient = tuple[list[Tree], Tree]  # g_W; the loss, for an optimizer that wants it, else ()
Seen = tuple[Array, ...]  # sums over a minibatch: loss, number right, samples; then squares
Linearised = tuple[
    Tree, Seen, tuple[list[Tree], Tree], Array
]  # f_l, seen, (g_W, g_p), what is minimised


def delay(num: int, l: int, s: int) -> int:
    """Ticks between the entry of a minibatch and the turn of piece l of `num` on it in sweep s."""
    return 2 * (num - 1) - l + 2 * s


class Turn(NamedTuple):
    """What all pieces share within one tick; `take` is the work of one of them."""

    rule: Rule
    pieces: Pieces
    exchange: Exchange
    x: Tree  # [b, ...] the microbatch that enters
    y: Array  # [b, ...] labels of the microbatch that reaches the last piece for the first time
    live: Array  # of the microbatches in flight, see `State`
    tick: Array
    penalties: Penalties
    pace: Array  # of the steps of W
    sweeps: int
    samples: int  # of a minibatch, all devices together
    key: Array | None  # of dropout
    recipe: Recipe = Recipe()
    crossing: Crossing = UNROUNDED  # what f and v are rounded to

    def take(
        self,
        s: int,
        l: int,
        weights: Weights,
        forward: tuple[Tree, ...],
        backward: tuple[Tree, ...],
        waiting: Tree,
        kept: tuple[Kept, ...],
        *made: tuple,
    ) -> tuple[Gradient, Tree, tuple[Tree, ...], tuple[Tree, ...], tuple[Kept, ...], Seen]:
        """Sweep s of the tick of piece l (both from 0), before its weights change; first a forward pass.

        What awaits its turn stays as it arrived, rounded or not; or what its gradients need of it.

        made: f_l, v and `Kept` of the sweeps before, each one a sweep, which this one's are put to.
        """
        first, last = l == 0, l == self.pieces.num - 1
        arrived = self.x if first else forward[0]
        ahead, behind, keep = made or ((), (), ())
        entry, traced = () if last else arrived, None
        if s == 0:
            start = fresh = self.came(l, arrived)
            if not last:
                f, entry, traced = self._pass(l, weights, fresh, arrived)
                ahead = (self._sent(f),)
                start = fresh if traced else self.came(l, waiting)
            origin, e = start, jax.tree.map(jnp.zeros_like, floats_of(start))
            was = Kept(start, e, e if self.rule.dual else (), self.y)
        else:
            was = kept[s - 1]
            origin = was.x if first else self.came(l, forward[s])
        v_next = None if last else restored(self.crossing.backward, backward[s], self._dtype)
        left = None if traced is None else (traced, waiting)
        gradient, f, v, now, seen = self.sweep(l, s, weights, origin, was, v_next, left)
        if s + 1 < self.sweeps:
            ahead += () if last else (self._sent(f),)
            keep += (now,)
        behind += () if first else (rounded(self.crossing.backward, v),)
        return gradient, entry, ahead, behind, keep, seen

    def _pass(
        self, l: int, weights: Weights, p: Tree, arrived: Tree
    ) -> tuple[Tree, Tree, Traced | None]:
        """(f_l of the microbatch p that comes in, what of it awaits the turn, and the program that left
        that; None: it awaits as it arrived)."""
        entered = self.tick - l
        h, once = self._steps(l, entered), copied_cheaply(self.pieces, l, num_samples(p))
        if self.recipe.recompute:
            run = lambda params: self._forward(l, params, p, entered)
            return self.recipe.fresh(weights, h, run, once), arrived, None
        traced = self.traced(l, weights.params, p, entered)
        run = lambda params: traced.forward(self._own(params), floats_of(p))
        f, rest, entry = self.recipe.fresh(weights, h, run, once)
        return merge(f, rest), entry, traced

    def traced(self, l: int, params: list[Tree], p: Tree, entered: Array) -> Traced:
        """The program of piece l's forward pass, and of what its gradients need."""
        given, _ = partition(p)
        doubled = self._replace(samples=2 * self.samples)
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), p)
        return traced(
            self._run(l, p, entered),
            doubled._run(l, twice, entered),
            l > 0,
            self._own(params),
            given,
            num_samples(p),
        )

    def awaits(self, l: int, params: list[Tree], p: Tree) -> Tree:
        """What of the microbatch p waits at piece l for its turn, where nothing runs forward twice."""
        return self.traced(l, params, p, self.tick).forward(self._own(params), floats_of(p))[-1]

    def _own(self, params: list[Tree]) -> list[Tree]:
        """The parameters as a gradient is to be taken of them."""
        return self.exchange.samples.apart(params) if self.sums_once else params

    def _run(
        self, l: int, p: Tree, entered: Array
    ) -> Callable[[list[Tree], Tree], tuple[Tree, Tree]]:
        """(params, floats of p) -> (floats of f_l, its other leaves)."""
        _, others = partition(p)  # integers and booleans have no gradient
        return lambda params, given: partition(
            self._forward(l, params, merge(given, others), entered)
        )

    def _sent(self, f: Tree) -> Tree:
        """f_l as it goes to the next piece."""
        return rounded(self.crossing.forward, f)

    def came(self, l: int, sent: Tree) -> Tree:
        """The f_{l-1} that was sent; of the first piece the data, which nobody has rounded."""
        return sent if l == 0 else restored(self.crossing.forward, sent, self._dtype)

    @property
    def _dtype(self) -> np.dtype:
        """Of the variables."""
        return jnp.result_type(self.penalties.alpha)

    def sweep(
        self,
        l: int,
        s: int,
        weights: Weights,
        origin: Tree,
        was: Kept,
        v_next: Tree,
        left: tuple[Traced, Tree] | None = None,
    ) -> tuple[Gradient, Tree, Tree, Kept, Seen]:
        """Turn of piece l in sweep s on a microbatch whose f_{l-1} is `origin`.

        left: what its forward pass has left for the gradients; then f_l is () and of `origin` the shapes
        alone are read.
        """
        total = self._total(l, s)
        p = origin if l == 0 else _shifted(origin, was.e)
        entered = self.tick - delay(self.pieces.num, l, s)

        def run(params: list[Tree]) -> Linearised:
            if left is None:
                return self._linearised(l, params, p, was.y, v_next, entered, total)
            own, g_f = self._own(params), scaled(v_next, -self.penalties.alpha)
            gradients = left[0].pull(own, left[1], g_f)
            return (), *self._towards(v_next, gradients)

        steps, once = self._steps(l, entered), copied_cheaply(self.pieces, l, num_samples(p))
        f, seen, (g_W, g_p), own = self.recipe.back(weights, steps, run, once)
        # what the piece minimises, the mean over the whole minibatch
        wants = self.pieces.wants_loss(l)
        told = own if self.sums_once else self.exchange.samples.sum(own)
        loss = told / self.samples if wants else ()
        if l == 0:
            e, u, v = (), (), ()
            # a single piece has no boundary, and nothing to sum
            several = self.pieces.num > 1
            residuals = (jnp.zeros((), float_dtype(p)),) * (several * len(self.rule.shows))
        else:
            e, u, v, residuals = self.rule.boundary(was, g_p, self.penalties)
        live = self._live(l, s)
        seen = jax.tree.map(lambda a: jnp.where(live, a, 0), (*seen, *residuals))
        now = Kept(() if l else p, e, u, was.y if v_next is None else ())
        return (g_W, loss), f, v, now, seen

    def descend(self, l: int, weights: Weights, *gradients: Gradient) -> Weights:
        """The step of piece l that a minibatch causes.

        gradients: of the minibatch; or of its last microbatch, and the sum of those before.
        """

        def step(weights: Weights, gradient: Gradient) -> tuple[Weights, list[Tree]]:
            g_W, loss = gradient
            # divided here, where it is read anyway
            g_W = jax.tree.map(lambda g: g / self.samples, g_W)
            return self.pieces.step(l, weights, g_W, self.pace, loss)

        gradient = gradients[0] if len(gradients) == 1 else _added(*gradients)
        return self.recipe.descend(self.pieces, l, weights, gradient, step, self.tick)

    def add(self, l: int, summed: Gradient, gradient: Gradient) -> Gradient:
        """The gradient of a microbatch of which more follow, added to its minibatch's."""
        first = (self.tick - delay(self.pieces.num, l, 0)) % self.recipe.microbatches == 0
        return jax.tree.map(lambda a, g: jnp.where(first, g, a + g), summed, gradient)

    def total(self, closes: Array, l: int, summed: Gradient, gradient: Gradient) -> tuple[Gradient]:
        """The gradient of the minibatch, all devices together, where its last microbatch closes it."""

        def over_all(*given: Gradient) -> Gradient:
            with one_trip_in(self.recipe.microbatches):
                return self.exchange.samples.sum(_added(*given))

        return (where_live(closes[l], over_all, summed, gradient),)

    @property
    def sums_once(self) -> bool:
        """Whether gradients are of the samples here until the last of a minibatch."""
        return self.recipe.microbatches > 1

    def lives(self, s: int) -> Array:
        """[n] for which pieces a microbatch that entered comes to its turn in sweep s."""
        return jnp.stack([self._live(l, s) for l in range(self.pieces.num)])

    def closes(self, s: int) -> Array:
        """[n] for which pieces it is the last of its minibatch."""
        entered = [self.tick - delay(self.pieces.num, l, s) for l in range(self.pieces.num)]
        return self._last_of_minibatch(jnp.stack(entered))

    def _live(self, l: int, s: int) -> Array:
        return self._entered(self.tick - delay(self.pieces.num, l, s))

    def _entered(self, ticks: Array) -> Array:
        """Whether a microbatch entered at each of those ticks, none of them longer ago than `live` is."""
        live = self.live[ticks % self.live.size]
        return live if self.pieces.loss.weight is None else live > 0

    def _total(self, l: int, s: int) -> Array | None:
        """The weights of all samples of the minibatch that piece l meets in sweep s; None: of a loss
        without."""
        entered = self.tick - delay(self.pieces.num, l, s)
        return None if self.pieces.loss.weight is None else self.live[entered % self.live.size]

    def _last_of_minibatch(self, entered: Array) -> Array:
        parts = self.recipe.microbatches
        return entered % parts == parts - 1

    def _steps(self, l: int, entered: Array) -> Array | None:
        """How often piece l steps between its forward pass on the microbatch that entered then and its
        turn on it; None: it predicts nothing."""
        if not self.recipe.steps(self.pieces, l):
            return None
        before = entered - jnp.arange(1, 2 * (self.pieces.num - 1 - l) + 1)
        return jnp.sum(self._entered(before) & self._last_of_minibatch(before))

    def _forward(self, l: int, params: list[Tree], p: Tree, entered: Array) -> Tree:
        """f_l at p, of the microbatch that entered at that tick: whenever it runs, it draws the same as
        its samples would in the whole minibatch."""
        parts = self.recipe.microbatches
        key = None if self.key is None else jax.random.fold_in(self.key, entered // parts)
        ids = self.exchange.samples.own(jnp.arange(self.samples))
        ids = microbatch(ids, parts, entered % parts)
        products = lambda i, here: training(self.exchange.layers.products(i, here), key, i, ids)
        return self.pieces.forward(self.exchange, l, params, p, products)

    def _linearised(
        self,
        l: int,
        params: list[Tree],
        p: Tree,
        y: Tree,
        v_next: Tree,  # None: of the last piece
        entered: Array,
        total: Array | None,
    ) -> Linearised:
        """f_l at p, what is seen of the loss there, (g_W, g_p), and what the piece minimises: R or
        (alpha/2)|q - f|^2 of the samples here."""
        given, _ = partition(p)
        work = self._run(l, p, entered)
        params = self._own(params)
        joined = lambda params: (
            params if self.sums_once else self.pieces.joined(self.exchange, l, params)
        )
        run = lambda params, given: work(joined(params), given)
        if l == 0:  # the data has no gradient: leave its product out
            f, vjp, rest = jax.vjp(lambda params: run(params, given), params, has_aux=True)
        else:
            f, vjp, rest = jax.vjp(run, params, given, has_aux=True)
        if v_next is not None:
            found = vjp(scaled(v_next, -self.penalties.alpha))
            return merge(f, rest), *self._towards(v_next, found)
        weighing = weighed(self.pieces.loss, y, self.samples, total)
        (own, seen), g_f = jax.value_and_grad(weighing.scaled, has_aux=True)(f)
        return f, tuple(seen), _both(vjp(g_f)), own

    def _towards(
        self, v_next: Tree, gradients: tuple[Tree, ...]
    ) -> tuple[Seen, tuple[list[Tree], Tree], Array]:
        """What `_linearised` gives behind f_l, of a piece that has a next one."""
        square = squared(v_next)
        zero = jnp.zeros((), self._dtype)
        return (zero, zero, zero), _both(gradients), self.penalties.alpha / 2 * square


def _added(a: Gradient, b: Gradient) -> Gradient:
    return jax.tree.map(jnp.add, a, b)


def _both(gradients: tuple[Tree, ...]) -> tuple[list[Tree], Tree]:
    """(g_W, g_p), which is () of the first piece."""
    g_W, *g_p = gradients
    return g_W, g_p[0] if g_p else ()


def _shifted(origin: Tree, e: Tree) -> Tree:
    """p = f + e: its floats differ from f's, all else is the same."""
    floats, rest = partition(origin)
    return merge(jax.tree.map(jnp.add, floats, e), rest)
