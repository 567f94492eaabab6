"""Slow, literal twins of gsADMM's and gsAM's schedules, written from the equations and not from the library."""

from itertools import islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np


def run(net, params, p):
    """The layers of `params` (a list of (index, parameters)) applied to p."""
    from jtssm.nn.ops import PLAIN

    for i, layer in params:
        p = net.layers[i].apply(layer, p, PLAIN)
    return p


class Pieces:
    """Weights and optimizer states of n pieces, as plain lists."""

    def __init__(self, net, params, starts, optimizers, loss):
        self.net, self.loss = net, loss
        self.layers = [list(range(a, b)) for a, b in pairwise(starts)]
        self.W = [[params[i] for i in layers] for layers in self.layers]
        self.optimizers = optimizers if isinstance(optimizers, list) else [optimizers] * self.num
        self.states = [o.init(W) for o, W in zip(self.optimizers, self.W, strict=True)]

    @property
    def num(self):
        return len(self.W)

    def f(self, l, W, p):
        return run(self.net, list(zip(self.layers[l], W, strict=True)), p)

    def R(self, W, p, y):
        return self.loss.value(self.f(self.num - 1, W, p), y).sum()

    def descend(self, l, gradient):
        updates, self.states[l] = self.optimizers[l].update(gradient, self.states[l], self.W[l])
        self.W[l] = jax.tree.map(jnp.add, self.W[l], updates)

    def params(self):
        return [layer for W in self.W for layer in W]


def delayed_gradient(pieces, batches):
    """Back-propagation through pieces that each lag behind: no ADMM in it.

    At every tick piece l passes a fresh minibatch on, and takes the gradient of an older one at its
    present weights from the cotangent that piece l + 1 sent at the tick before.
    """
    n = pieces.num
    waiting = [{} for _ in range(n)]  # piece -> minibatch -> input
    cotangents = [{} for _ in range(n)]  # piece -> minibatch -> gradient at its output
    arrived = {}  # piece, minibatch -> input
    for tick in range(len(batches) + 2 * (n - 1)):
        sent, results = {}, {}
        for l in range(n):
            b = tick - l
            if 0 <= b < len(batches):
                p = batches[b][0] if l == 0 else arrived[l, b]
                waiting[l][b] = p
                if l < n - 1:
                    sent[l + 1, b] = pieces.f(l, pieces.W[l], p)
        for l in range(n):
            b = tick - 2 * (n - 1) + l
            if not 0 <= b < len(batches):
                continue
            x, y = waiting[l].pop(b), batches[b][1]
            if l == n - 1:
                g_W, g_p = jax.grad(pieces.R, (0, 1))(pieces.W[l], x, y)
            else:
                _, vjp = jax.vjp(lambda W, p, l=l: pieces.f(l, W, p), pieces.W[l], x)
                g_W, g_p = vjp(cotangents[l].pop(b))
            results[l] = jax.tree.map(lambda g, samples=y.size: g / samples, g_W)
            if l:
                sent["back", l - 1, b] = g_p
        for l, gradient in results.items():
            pieces.descend(l, gradient)
        for key, value in sent.items():
            if key[0] == "back":
                cotangents[key[1]][key[2]] = value
            else:
                arrived[key] = value
    return pieces.params()


def predicted(pieces, batches, microbatches, prediction):
    """Each microbatch forward and backward at the weights that the recipe says, one step in M; no pieces lag.

    U is the last update of a piece; it comes in, and stays, in `pieces.updates`.
    """
    n, M = pieces.num, microbatches
    old = getattr(pieces, "updates", [jax.tree.map(jnp.zeros_like, W) for W in pieces.W])
    versions = [[(W, U)] for W, U in zip(pieces.W, old, strict=True)]

    @jax.jit
    def gradients(ahead, behind, x, y):
        taken = [x]
        for l in range(n - 1):
            taken.append(pieces.f(l, ahead[l], taken[-1]))
        g, g_p = jax.grad(pieces.R, (0, 1))(behind[-1], taken[-1], y)
        found = [g]
        for l in reversed(range(n - 1)):
            _, vjp = jax.vjp(lambda W, p, l=l: pieces.f(l, W, p), behind[l], taken[l])
            g, g_p = vjp(g_p)
            found.insert(0, g)
        return found

    summed = []
    for j in range(len(batches) * M):
        ahead, behind, s = [], [], j // M
        for l in range(n):
            d = max(j - 2 * (n - 1 - l), 0) // M
            guess = jax.tree.map(lambda a, u, h=s - d: a + prediction * h * u, *versions[l][d])
            ahead.append(guess)
            behind.append(guess if prediction else versions[l][s][0])
        found = gradients(ahead, behind, *(a[j % M :: M] for a in batches[s]))
        summed = jax.tree.map(jnp.add, summed, found) if j % M else found
        if j % M == M - 1:
            for l in range(n):
                before = pieces.W[l]
                pieces.descend(l, jax.tree.map(lambda g: g / len(batches[0][1]), summed[l]))
                U = jax.tree.map(jnp.subtract, pieces.W[l], before)
                versions[l].append((pieces.W[l], U))
    pieces.updates = [each[-1][1] for each in versions]


def as_it_is(a):
    return a


def nearest(values):
    """Rounds every entry to the nearest of some values."""
    values = np.asarray(values, float)
    return lambda a: values[np.abs(np.asarray(a)[..., None] - values).argmin(axis=-1)]


def spaced(bits):
    """Rounds every sample to 2^bits evenly spaced values from its least to its largest entry."""

    def rounded(a):
        a = np.asarray(a)
        return np.stack([nearest(np.linspace(row.min(), row.max(), 2**bits))(row) for row in a])

    return rounded


def streaming(pieces, batches, sweeps, rho, alpha, eta, forward=as_it_is, backward=as_it_is):
    """gsADMM minibatch by minibatch in absolute p, q, u, each turn at its tick; rho=None: gsAM.

    The boundary's variables move along with f_l whenever subnetwork l evaluates it anew. forward and
    backward: what becomes of f and of q - f on their way to the neighbour.
    """
    for _ in ticks(pieces, batches, sweeps, rho, alpha, eta, forward, backward):
        pass
    return pieces.params()


def ticks(pieces, batches, sweeps, rho, alpha, eta, forward=as_it_is, backward=as_it_is):
    """The same tick by tick; in between the weights of `pieces` may be set."""
    n, last = pieces.num, pieces.num - 1
    variables = [
        {} for _ in batches
    ]  # minibatch -> l -> [f, p, q, u] of the boundary after piece l
    turn = lambda b, l, s: b + 2 * (n - 1) - l + 2 * s
    fresh_f, shifts = {}, {}
    for tick in range(turn(len(batches) - 1, 0, sweeps - 1) + 1):
        moves, changes = {}, {}
        for b, (x, y) in enumerate(batches):
            for l in range(n):
                if tick == b + l and l < last:
                    p = x if l == 0 else fresh_f[b, l - 1]
                    moves[b, l] = forward(pieces.f(l, pieces.W[l], p))
                for s in range(sweeps):
                    if tick == turn(b, l, s):
                        changes[l, s] = (b, x, y)
        for l in range(n):
            for s in range(sweeps):
                if (l, s) not in changes:
                    continue
                b, x, y = changes[l, s]
                if l and s == 0:
                    f = fresh_f[b, l - 1]
                    variables[b][l - 1] = [f, f, f, jnp.zeros_like(f)]
                if l and s:  # subnetwork l - 1 evaluated f at its turn before: p and q move along
                    f, p, q, u = variables[b][l - 1]
                    new = shifts.pop((b, l - 1, s - 1))
                    variables[b][l - 1] = [new, p + new - f, q + new - f, u]
                ways = (forward, backward)
                _turn(pieces, variables[b], l, s, b, x, y, shifts, (rho, alpha, eta), ways)
        fresh_f |= moves
        yield


def rounds(crew, batches, steps, update, **ways):
    """Workers that each run a stream and meet: every `steps` ticks, and when nothing is in flight any more.

    crew: `Pieces` a worker, of equal weights.  batches: of each worker.
    update: (weights that all set out from, mean of what they came to) -> the new ones.
    """
    streams = [ticks(pieces, own, **ways) for pieces, own in zip(crew, batches, strict=True)]
    num, rounds = len(crew), len(batches[0]) // steps
    for left in [steps] * rounds + [None]:
        start = list(crew[0].W)
        for stream in streams:
            for _ in islice(stream, left):
                pass
        met = update(start, jax.tree.map(lambda *a: sum(a) / num, *(each.W for each in crew)))
        for each in crew:
            each.W = list(met)
    return crew[0].params()


def _turn(pieces, boundary, l, s, b, x, y, shifts, penalties, ways):
    (rho, alpha, eta), (forward, backward) = penalties, ways
    last = pieces.num - 1
    p_l = x if l == 0 else boundary[l - 1][1]
    f_now = pieces.f(l, pieces.W[l], p_l)
    if l < last:
        f, _, q, _ = boundary[l]
        target = f_now + backward(q - f)
        follows = lambda W, p: alpha / 2 * jnp.sum((target - pieces.f(l, W, p)) ** 2)
        shifts[b, l, s] = forward(f_now)
    else:
        follows = lambda W, p: pieces.R(W, p, y)
    if l and rho is None:
        f, p, _, u = boundary[l - 1]
        F = lambda p: follows(pieces.W[l], p) + alpha / 2 * jnp.sum((p - f) ** 2)
        p = p - eta * jax.grad(F)(p)
        boundary[l - 1] = [f, p, p, u]
    elif l:
        f, p, q, u = boundary[l - 1]
        L = lambda p, q, u: (
            follows(pieces.W[l], p)
            + jnp.sum(u * (p - q))
            + rho / 2 * jnp.sum((p - q) ** 2)
            + alpha / 2 * jnp.sum((q - f) ** 2)
        )
        p = p - eta * jax.grad(L, 0)(p, q, u)
        q = q - jax.grad(L, 1)(p, q, u) / (alpha + rho)  # Newton on a quadratic: its minimiser
        u = u + rho * jax.grad(L, 2)(p, q, u)
        boundary[l - 1] = [f, p, q, u]
    g_W = jax.grad(follows, 0)(pieces.W[l], p_l)
    pieces.descend(l, jax.tree.map(lambda g: g / len(y), g_W))
