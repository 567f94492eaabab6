"""Dealing the neurons of a network to N subnets: who gets which, and their weights there and back.

A layer's M neurons lie in H homes of ceil(M / H) places each (the last place of some stays empty). A
deal shuffles every home and hands each of the N subnets floor or ceil of 1 / N of its neurons: subnet w
has ceil(ceil(M / H) / N) places for each home's. With H = N this is the stratified deal, whose shapes
are static on a mesh; with H = 1 the uniform one. Empty places hold zeros in a subnet and are dropped on
the way back; the neurons of a subnet differ by at most one.

A parameter is stored by homes along one of its dimensions: [H, places, ...]. That is the dimension of
the layer's own neurons where they are dealt, else of its inputs; a parameter with neither is shared.
A subnet keeps that dimension in front while it trains: then a deal copies whole rows, and products take
a turned matrix for free, where turning it at every deal cost a sixth of a round (benchmarks.ist_speed).
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtssm.arrays import AnyArray, Array
from jtssm.protocol.workers import Meeting


class Cut(NamedTuple):
    """The neurons between two layers, and how they are dealt."""

    number: int  # of the layer whose neurons they are, blocks counted by their layers
    width: int  # M
    homes: int  # H
    subnets: int  # N

    @property
    def places(self) -> int:
        """Of a home: ceil(M / H)."""
        return -(-self.width // self.homes)

    @property
    def share(self) -> int:
        """Places a subnet has for the neurons of one home."""
        return -(-self.places // self.subnets)

    @property
    def slots(self) -> int:
        """Places a subnet has for all of them."""
        return self.homes * self.share

    @property
    def even(self) -> bool:
        """Whether no place stays empty."""
        return self.slots * self.subnets == self.width

    @property
    def held(self) -> np.ndarray:
        """[H]: neurons of each home."""
        return self.width // self.homes + (np.arange(self.homes) < self.width % self.homes)

    @property
    def dealt(self) -> np.ndarray:
        """[H, N]: how many neurons each home deals to each subnet; what is left over goes round."""
        over = self.held % self.subnets
        first = np.concatenate([[0], np.cumsum(over)[:-1]])
        turn = (np.arange(self.subnets)[None, :] - first[:, None]) % self.subnets
        return self.held[:, None] // self.subnets + (turn < over[:, None])

    @property
    def taken(self) -> np.ndarray:
        """[N, slots]: which places of a subnet hold a neuron."""
        full = np.arange(self.share) < self.dealt[..., None]
        return full.swapaxes(0, 1).reshape(self.subnets, self.slots)

    @property
    def inside(self) -> np.ndarray:
        """[H, places]: which places of the homes hold a neuron."""
        return np.arange(self.places) < self.held[:, None]

    def draw(self, key: Array) -> Array:
        """A deal [H, N, share]: the place in home d of subnet w's slot j for it; empty: `places`."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.homes))
        chance = jax.vmap(lambda k: jax.random.uniform(k, (self.places,)))(keys)
        order = jnp.argsort(jnp.where(self.inside, chance, 2.0), axis=1)  # empty places come last
        if self.even:
            return order.reshape(self.homes, self.subnets, self.share)
        first = np.cumsum(self.dealt, axis=1) - self.dealt
        slot = np.arange(self.share) + first[..., None]
        full = np.arange(self.share) < self.dealt[..., None]
        picked = jnp.take_along_axis(order[:, None, :], np.where(full, slot, 0), axis=2)
        return jnp.where(full, picked, self.places)

    def whole(self, deal: Array) -> Array:
        """A deal [H, N, share] as places among those of all homes, [N, slots]; empty: out of range."""
        start = np.arange(self.homes)[:, None, None] * self.places
        empty = self.homes * self.places
        places = jnp.where(deal < self.places, deal + start, empty)
        return places.swapaxes(0, 1).reshape(self.subnets, self.slots)


class Dealt(NamedTuple):
    """How one parameter is stored and dealt.

    That of a layer which flattens images is seen as [pixels, channels, ...].
    """

    cuts: tuple[Cut | None, ...]  # of its dimensions; None: not dealt
    home: int  # the dimension stored by homes
    pixels: int = 1

    @property
    def cut(self) -> Cut:
        """Of the dimension stored by homes."""
        cut = self.cuts[self.home]
        assert cut is not None
        return cut

    @property
    def across(self) -> tuple[int, Cut] | None:
        """The other dimension that is dealt, if there is one."""
        others = [(d, c) for d, c in enumerate(self.cuts) if c is not None and d != self.home]
        return others[0] if others else None

    def store(self, xp: ModuleType, a: AnyArray) -> AnyArray:
        """The parameter by homes: [H, places, ...], every dealt dimension with its empty places."""
        a = a.reshape(self.seen(a.shape))
        for dimension, cut in enumerate(self.cuts):
            if cut is not None:
                a = _spaced(xp, a, dimension, cut)
        a = xp.moveaxis(a, self.home, 0)
        return a.reshape(self.cut.homes, -1, *a.shape[1:])

    def whole(self, a: AnyArray) -> AnyArray:
        """The parameter from its homes."""
        a = self._ordered(a.reshape(-1, *a.shape[2:]))
        for dimension, cut in enumerate(self.cuts):
            if cut is not None and cut.width != cut.homes * cut.places:
                a = a[(slice(None),) * dimension + (np.flatnonzero(cut.inside),)]
        return self._flat(a)

    def joined(self, a: AnyArray) -> AnyArray:
        """[homes, places, ...] -> the layer's own dimensions, empty places included."""
        return self.turned(a.reshape(-1, *a.shape[2:]))

    def turned(self, a: AnyArray) -> AnyArray:
        """[places, ...] -> the layer's own dimensions."""
        return self._flat(self._ordered(a))

    def in_subnet(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a parameter of this shape has in a subnet, with its empty places."""
        pairs = zip(self.seen(shape), self.cuts, strict=True)
        return self._merged(tuple(n if cut is None else cut.slots for n, cut in pairs))

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a parameter with its pixels in a dimension of their own."""
        return shape if self.pixels == 1 else (self.pixels, shape[0] // self.pixels, *shape[1:])

    def _merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `seen`."""
        return shape if self.pixels == 1 else (shape[0] * shape[1], *shape[2:])

    def _flat(self, a: AnyArray) -> AnyArray:
        return a.reshape(self._merged(a.shape))

    def _ordered(self, a: AnyArray) -> AnyArray:
        """[places, ...] -> the dimensions in the layer's order."""
        order = list(range(1, a.ndim))
        order.insert(self.home, 0)
        return a.transpose(order)

    def pull(self, meeting: Meeting, a: Array, deals: dict[Cut, Array]) -> Array:
        """From homes [homes here, places, ...] to the subnets here, [n, slots, ...]."""
        rows = self._rows(meeting, deals)
        sent = jax.vmap(lambda a, at: _take(a, at, self.cut.even))(a, rows)
        if self.across is not None:
            cut, axis = self.across[1], self._across_axis
            columns = cut.whole(deals[cut])
            pick = lambda a, at: _take(a, at, cut.even, axis - 1)
            sent = jax.vmap(jax.vmap(pick), (0, None))(sent, columns)
        arrived = meeting.to_workers(sent)
        return arrived.reshape(arrived.shape[0], -1, *arrived.shape[3:])

    def push(self, meeting: Meeting, a: Array, subnets: Array, deals: dict[Cut, Array]) -> Array:
        """The homes with what the subnets trained; weights that no subnet owns keep their value."""
        cut, rows = self.cut, self._rows(meeting, deals)
        sent = subnets.reshape(subnets.shape[0], cut.homes, cut.share, *subnets.shape[2:])
        arrived = meeting.to_homes(sent)
        if self.across is None and cut.even:  # every neuron has an owner: a permutation
            back = jnp.argsort(rows.reshape(rows.shape[0], -1), axis=1)
            arrived = arrived.reshape(*back.shape, *arrived.shape[3:])
            return jax.vmap(lambda a, at: _take(a, at, True))(arrived, back)
        if self.across is None:
            put = lambda a, at, new: a.at[at].set(new, mode="drop", unique_indices=True)
            return jax.vmap(put)(a, rows, arrived)
        columns = self.across[1].whole(deals[self.across[1]])
        return jax.vmap(self._set_block, (0, 0, None, 0))(a, rows, columns, arrived)

    def _set_block(self, a: Array, rows: Array, columns: Array, new: Array) -> Array:
        """One home's a [places, ...] with new [N, share, ...] in the given rows and columns."""
        axis = self._across_axis
        a, new = jnp.moveaxis(a, axis - 1, 1), jnp.moveaxis(new, axis, 2)
        at = (rows[:, :, None], columns[:, None, :])
        return jnp.moveaxis(a.at[at].set(new, mode="drop", unique_indices=True), 1, axis - 1)

    def _rows(self, meeting: Meeting, deals: dict[Cut, Array]) -> Array:
        """[homes here, N, share]"""
        return meeting.own_homes(deals[self.cut])

    @property
    def _across_axis(self) -> int:
        """Where the other dealt dimension stands behind [N, share, ...], counted from N = 0."""
        assert self.across is not None
        others = [d for d in range(len(self.cuts)) if d != self.home]
        return 2 + others.index(self.across[0])


def _take(a: Array, at: Array, even: bool, axis: int = 0) -> Array:
    mode = {"mode": "clip"} if even else {"mode": "fill", "fill_value": 0}
    return jnp.take(a, at, axis=axis, **mode)


def _spaced(xp: ModuleType, a: AnyArray, dimension: int, cut: Cut) -> AnyArray:
    """a with its width spread over the places of the homes."""
    if cut.width == cut.homes * cut.places:
        return a
    at = np.where(cut.inside, np.cumsum(cut.inside.ravel()).reshape(cut.inside.shape) - 1, 0)
    picked = xp.take(a, at.ravel(), axis=dimension)
    shape = [1] * a.ndim
    shape[dimension] = -1
    return xp.where(cut.inside.ravel().reshape(shape), picked, 0).astype(a.dtype)
