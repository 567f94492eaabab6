"""A minibatch through the pieces of a pipeline: microbatches there and back, gradients added up."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype, floats_of, merge, partition, stacked, zeros
from jtssm.nn.ops import Products
from jtssm.protocol.branching import where_live
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.solvers.microbatches import microbatch
from jtssm.solvers.pieces import Pieces, Weights, training
from jtssm.solvers.pipelines.orders import Order, Phase
from jtssm.solvers.weighing import kept, weighed

Gradient = tuple[list[Tree], Tree]  # g_W; no scalar goes with it: ()


class Flight(NamedTuple):
    """What goes from tick to tick; `Carried` = one tree a piece."""

    gradient: Carried  # (g_W, ()) of the samples here, all microbatches so far
    sums: Carried  # loss, number right, and of a loss with weights theirs
    forward: Carried  # f_{l-1} [b, ...] that arrived
    backward: Carried  # gradient of f_l [b, ...] that arrived: of its floats
    inputs: Carried  # line [ticks, b, ...] of f_{l-1} of microbatches that are to run backward


class Minibatch(NamedTuple):
    """What all pieces share within a step."""

    pieces: Pieces
    exchange: Exchange
    order: Order
    samples: int  # of the minibatch, all devices together
    x: Tree  # [samples here, ...]
    y: Array  # [samples here, ...]
    total: Array | None  # weights of all samples together; None: of a loss without
    key: Array | None  # of dropout

    def run(self, weights: Carried) -> tuple[Carried, Carried]:
        """(the gradient of the mean loss, (g_W, ()) of each piece; sums): nothing stays in flight."""
        flight = self._empty(weights)
        for phase in self.order.phases():
            tick = lambda i, flight, phase=phase: self._tick(phase, weights, flight, i)
            flight = lax.fori_loop(phase.first, phase.first + phase.ticks, tick, flight)
        summed = lambda l, weights, g: (jax.tree.map(self.exchange.samples.sum, g),)
        (gradient,) = self.exchange.each(summed, weights, flight.gradient, kinds=("gradients",))
        return gradient, flight.sums

    def _empty(self, weights: Carried) -> Flight:
        """Nothing in flight."""
        pieces, last = self.pieces, self.pieces.num - 1
        here = self.samples // self.exchange.samples.num_splits // self.order.microbatches

        def of(l: int, weights: Weights) -> tuple[Tree, ...]:
            dtype = float_dtype((weights.params, self.x))
            blank = lambda at, *ticks: zeros(
                stacked(pieces.arriving(at), *ticks, here, dtype=dtype)
            )
            none = jax.tree.map(jnp.zeros_like, weights.params)
            sums = (jnp.zeros((), dtype),) * self._num_sums
            kept = self.order.kept(l)
            return (
                (self.exchange.samples.apart(none), ()),
                sums,
                blank(l) if l else (),
                floats_of(blank(l + 1)) if l < last else (),
                blank(l, kept) if kept else (),
            )

        kinds = ("partial_gradients", "sums", "samples", "samples", "line")
        return Flight(*self.exchange.each(of, weights, kinds=kinds))

    @property
    def _num_sums(self) -> int:
        return 2 if self.pieces.loss.weight is None else 3

    def _tick(self, phase: Phase, weights: Carried, flight: Flight, t: Array) -> Flight:
        """A microbatch forward, another backward, and what they leave to the neighbours."""
        exchange, ring = self.exchange, self.exchange.ring
        waiting = ring.recall(flight.inputs, self.order.place(phase, t))
        given = weights, flight.forward, flight.backward, waiting
        kinds: tuple[str, ...] = ("samples", "samples") if phase.forward else ()
        kinds += ("partial_gradients", "sums", "samples") if phase.backward else ()
        made = exchange.each(partial(self._turn, phase, t), *given, kinds=kinds)
        if phase.forward:
            f, entry = made[:2]
            flight = flight._replace(inputs=ring.store(flight.inputs, entry, t))
        if phase.backward:
            gradient, sums, g = made[-3:]
            flight = flight._replace(
                gradient=exchange.renew(
                    _added, flight.gradient, gradient, where=self._work_behind(t)
                ),
                sums=jax.tree.map(jnp.add, flight.sums, sums),
            )
        if phase.forward and phase.backward:
            forward, backward = exchange.swap(f, g)
            return flight._replace(forward=forward, backward=backward)
        if phase.forward:
            return flight._replace(forward=exchange.to_next(f))
        return flight._replace(backward=exchange.to_previous(g))

    def _work_behind(self, t: Array) -> Array:
        """[n] which pieces run a microbatch backward."""
        order = self.order
        return jnp.stack([order.lives(order.behind(l, t)) for l in range(order.num)])

    def _turn(
        self,
        phase: Phase,
        t: Array,
        l: int,
        weights: Weights,
        forward: Tree,
        backward: Tree,
        waiting: Tree,
    ) -> tuple[Tree, ...]:
        """What piece l (from 0) does in a tick."""
        made: tuple[Tree, ...] = ()
        if phase.forward:
            made = self._ahead(l, weights.params, forward, waiting, t)
        if phase.backward:
            # where none are kept, in the last piece, a microbatch turns round as it arrives
            came = waiting if self.order.kept(l) else forward
            made += self._behind(phase, l, weights.params, came, backward, t)
        return made

    def _ahead(
        self, l: int, params: list[Tree], arrived: Tree, waiting: Tree, t: Array
    ) -> tuple[Tree, Tree]:
        """(f_l, what the line keeps) of the microbatch that runs forward."""
        m = self.order.ahead(l, t)
        live = self.order.lives(m)
        keep = lambda new, old: jnp.where(live, new, old)
        entry = jax.tree.map(keep, arrived, waiting) if self.order.kept(l) else ()
        if l == self.pieces.num - 1:  # runs forward when it runs backward
            return (), entry
        f = lambda params, p: self._forward(l, params, p, m)
        return where_live(
            live, f, params, microbatch(self.x, self.order.microbatches, m) if l == 0 else arrived
        ), entry

    def _behind(
        self, phase: Phase, l: int, params: list[Tree], came: Tree, g_f: Tree, t: Array
    ) -> tuple[Gradient, tuple[Array, ...], Tree]:
        """((g_W, ()), sums, g_p) of the microbatch that runs backward."""
        m = self.order.behind(l, t)
        back = lambda params, p, g_f: self._backward(l, params, p, g_f, m)
        p = microbatch(self.x, self.order.microbatches, m) if l == 0 else came
        live = self.order.lives(m) if self.order.works_behind(phase, l) else False
        return where_live(live, back, params, p, g_f)

    def _backward(
        self, l: int, params: list[Tree], p: Tree, g_f: Tree, m: Array
    ) -> tuple[Gradient, tuple[Array, ...], Tree]:
        """f_l again at p, and the gradients that its own, or the loss, asks for."""
        given, others = partition(p)  # integers and booleans have no gradient
        own = self.exchange.samples.apart(params)

        def run(params: list[Tree], given: Tree) -> Tree:
            return floats_of(self._forward(l, params, merge(given, others), m))

        if l == 0:  # the data has no gradient: leave its product out
            f, vjp = jax.vjp(lambda params: run(params, given), own)
        else:
            f, vjp = jax.vjp(run, own, given)
        sums = (jnp.zeros((), float_dtype((params, p))),) * self._num_sums
        if l == self.pieces.num - 1:
            sums, g_f = self._of_loss(f, m)
        g_W, *g_p = vjp(g_f)
        return (g_W, ()), sums, g_p[0] if g_p else ()

    def _of_loss(self, f: Array, m: Array) -> tuple[tuple[Array, ...], Array]:
        """(sums, gradient of the minibatch's mean loss) at the outputs of a microbatch."""
        weighing = weighed(
            self.pieces.loss,
            microbatch(self.y, self.order.microbatches, m),
            self.samples,
            self.total,
        )

        def mean_loss(f: Array) -> tuple[Array, tuple[Array, ...]]:
            scaled, sums = weighing.scaled(f)
            return scaled / self.samples, kept(self.pieces.loss, sums)

        g_f, sums = jax.grad(mean_loss, has_aux=True)(f)
        return sums, g_f

    def _forward(self, l: int, params: list[Tree], p: Tree, m: Array) -> Tree:
        """f_l of a microbatch: whenever it runs, it draws the same, what sgd draws for its samples."""
        ids = self.exchange.samples.own(jnp.arange(self.samples))
        ids = microbatch(ids, self.order.microbatches, m)

        def products(i: int, here: int) -> Products:
            return training(self.exchange.layers.products(i, here), self.key, i, ids)

        return self.pieces.forward(self.exchange, l, params, p, products)


def _added(l: int, gradient: Gradient, more: Gradient) -> Gradient:
    return jax.tree.map(jnp.add, gradient, more)
