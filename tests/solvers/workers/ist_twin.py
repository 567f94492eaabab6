"""Independent subnet training as the paper writes it: ragged subnets cut out by index, one after the other."""

from functools import partial
from math import prod

import jax
import numpy as np
import optax

from jtssm import losses
from jtssm.nn.ops import PLAIN
from jtssm.solvers.workers.neurons import neurons, scaled
from jtssm.solvers.workers.parts import blocks_of, cuts_of


def owners(net, subnets, homes, key, round):
    """Of every cut, by its number: one sorted index array a subnet."""
    key = jax.random.fold_in(jax.random.fold_in(key, round), 0)
    found = {}
    for cut in cuts_of(blocks_of(net, subnets, homes)):
        places = np.asarray(cut.whole(cut.draw(jax.random.fold_in(key, cut.number))))
        neuron = np.cumsum(cut.inside.ravel()) - 1  # of a place
        inside = places < cut.homes * cut.places
        found[cut.number] = [np.sort(neuron[p[ok]]) for p, ok in zip(places, inside, strict=True)]
    return found


def index(part, name, shape, owned):
    """The numpy index of what a subnet owns of a parameter; owned: its neurons of every cut."""
    picks = []
    for role, n in zip(neurons(part.layer)[name], shape, strict=True):
        cut = {"in": part.before, "out": part.after}.get(role)
        mine = np.arange(n) if cut is None else owned[cut.number]
        if cut is not None and role == "in" and n != cut.width:  # pixels of a flattened image
            mine = (np.arange(n // cut.width)[:, None] * cut.width + mine).ravel()
        picks.append(mine)
    return np.ix_(*picks)


def indices(blocks, params, owned):
    """Of every parameter, one dict a layer."""
    return [
        {
            name + part.suffix: index(part, name, tree[name + part.suffix].shape, owned)
            for part in block.parts
            for name in neurons(part.layer)
        }
        for block, tree in zip(blocks, params, strict=True)
    ]


def forward(blocks, params, x, sizes, scale):
    """Outputs of a ragged subnet, whose inputs to an unnormalised layer are scaled."""

    def through(parts, tree, x):
        for part in parts:
            if scaled(part.layer) and part.before is not None:
                cut = part.before
                x = x * (cut.width / sizes[cut.number] if scale is None else scale)
            p = {name: tree[name + part.suffix] for name in neurons(part.layer)}
            x = part.layer.apply(p, x, PLAIN.to_train())
        return x

    for block, tree in zip(blocks, params, strict=True):
        y = through(block.path, tree, x)
        x = block.activation(y + through(block.shortcut, tree, x)) if block.activation else y
    return x


def train(blocks, optimizer, sizes, scale, params, state, x, y):
    """A subnet's local steps; x [R, b, ...]; sizes: (number of a cut, its neurons there)."""
    for xb, yb in zip(list(x), list(y), strict=True):
        loss = lambda p, xb=xb, yb=yb: (
            losses.cross_entropy().value(forward(blocks, p, xb, dict(sizes), scale), yb).mean()
        )
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def rounds(net, optimizer, params, key, xs, ys, homes, scale=None, carry=False):
    """The whole model after len(xs) rounds; xs[r]: [R, N, b, ...].

    carry: whether moments travel, of an optimizer whose state's first part is `scale_by_adam`'s.
    """
    trees = [jax.tree.map(np.array, params)]
    trees += [jax.tree.map(np.zeros_like, params) for _ in range(2 * carry)]
    steps, subnets = xs[0].shape[:2]
    blocks = blocks_of(net, subnets, homes)
    learn = jax.jit(partial(train, blocks, optimizer), static_argnums=(0, 1))
    for r, (x, y) in enumerate(zip(xs, ys, strict=True)):
        owned = owners(net, subnets, homes, key, r)
        old = jax.tree.map(np.copy, trees)
        sums = jax.tree.map(np.zeros_like, trees)
        for w in range(subnets):
            mine = {number: each[w] for number, each in owned.items()}
            at = indices(blocks, old[0], mine)
            sizes = tuple((number, len(each)) for number, each in mine.items())
            params, *moments = (
                [{n: a[ix[n]] for n, a in p.items()} for ix, p in zip(at, tree, strict=True)]
                for tree in old
            )
            state = optimizer.init(params)
            if carry:
                state = (optax.ScaleByAdamState(np.int32(r * steps), *moments), *state[1:])
            params, state = learn(sizes, scale, params, state, x[:, w], y[:, w])
            found = [params, *state[0][1:]] if carry else [params]
            for tree, total, new in zip(trees, sums, found, strict=True):
                put(tree, total, at, new, subnets)
    return trees[0]


def put(tree, total, at, new, subnets):
    """A subnet's arrays in their places in the whole; total: sums of those that no neuron owns."""
    for whole, added, ix, found in zip(tree, total, at, new, strict=True):
        for n, a in whole.items():
            if prod(a[ix[n]].shape) == a.size:  # nobody's: the mean
                added[n] += np.asarray(found[n]) / subnets
                a[...] = added[n]
            else:
                a[ix[n]] = found[n]
