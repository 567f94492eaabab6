"""Independent subnet training as the paper writes it: ragged subnets cut out by index, one after the other."""

from functools import partial

import jax
import numpy as np
import optax

from jtssm import losses
from jtssm.nn.ops import PLAIN
from jtssm.solvers.workers import deal
from jtssm.solvers.workers.neurons import neurons, scaled


def owners(net, subnets, homes, key, round):
    """For the neurons after each layer: one sorted index array a subnet; None where nothing is dealt."""
    key = jax.random.fold_in(jax.random.fold_in(key, round), 0)
    found = []
    for cut in deal.cuts_of(net, subnets, homes):
        if cut is None:
            found.append(None)
            continue
        places = np.asarray(cut.whole(cut.draw(jax.random.fold_in(key, cut.after))))
        neuron = np.cumsum(cut.inside.ravel()) - 1  # of a place
        inside = places < cut.homes * cut.places
        found.append([neuron[p[ok]] for p, ok in zip(places, inside, strict=True)])
    return found


def index(layer, name, shape, ins, outs):
    """The numpy index of what a subnet owns of a parameter."""
    of = {"in": ins, "out": outs}
    picks = zip(neurons(layer)[name], shape, strict=True)
    return np.ix_(*(np.arange(n) if of[role] is None else of[role] for role, n in picks))


def forward(net, params, x, sizes, scale):
    """Outputs of a ragged subnet, whose inputs to an unnormalised layer are scaled."""
    for i, (layer, p) in enumerate(zip(net.layers, params, strict=True)):
        if scaled(layer) and sizes[i]:
            x = x * (net.shapes[i][0] / sizes[i] if scale is None else scale)
        x = layer.apply(p, x, PLAIN.to_train())
    return x


def train(net, optimizer, sizes, scale, params, x, y):
    """A subnet's local steps; x [R, b, ...]; sizes: neurons before each layer, 0 where all are there."""
    state = optimizer.init(params)
    for xb, yb in zip(list(x), list(y), strict=True):
        loss = lambda p, xb=xb, yb=yb: (
            losses.cross_entropy().value(forward(net, p, xb, sizes, scale), yb).mean()
        )
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def rounds(net, optimizer, params, key, xs, ys, homes, scale=None):
    """The whole model after len(xs) rounds; xs[r]: [R, N, b, ...]."""
    params = jax.tree.map(np.array, params)
    learn = jax.jit(partial(train, net, optimizer), static_argnums=(0, 1))
    for r, (x, y) in enumerate(zip(xs, ys, strict=True)):
        subnets = x.shape[1]
        owned = owners(net, subnets, homes, key, r)
        old = jax.tree.map(np.copy, params)
        shared = [
            [n for n in p if unowned(layer, n, owned[i], owned[i + 1])]
            for i, (layer, p) in enumerate(zip(net.layers, old, strict=True))
        ]
        mean = [dict.fromkeys(names, 0.0) for names in shared]
        for w in range(subnets):
            cuts = [o and o[w] for o in owned]
            at = [
                {n: index(layer, n, a.shape, cuts[i], cuts[i + 1]) for n, a in p.items()}
                for i, (layer, p) in enumerate(zip(net.layers, old, strict=True))
            ]
            sizes = tuple(0 if cut is None else len(cut) for cut in cuts)
            mine = [{n: a[ix[n]] for n, a in p.items()} for ix, p in zip(at, old, strict=True)]
            new = learn(sizes, scale, mine, x[:, w], y[:, w])
            for i, p in enumerate(params):
                for n in p:
                    if n in shared[i]:
                        mean[i][n] += np.asarray(new[i][n]) / subnets
                    else:
                        p[n][at[i][n]] = new[i][n]
        for p, own in zip(params, mean, strict=True):
            p |= own
    return params


def unowned(layer, name, ins, outs):
    """Whether no hidden neuron owns the parameter."""
    return all((outs if role == "out" else ins) is None for role in neurons(layer)[name])
