"""pdADMM as the paper prints it, trial by trial, in numpy: slow, readable, nothing carried along."""

import numpy as np
from scipy import optimize


def squared(a):
    return float((a * a).sum())


class Twin:
    """Variables as lists; entry 0 of p is the data, q and u have one entry a boundary."""

    def __init__(self, params, x, y, f, slope, *, rho, nu, t0, weight_decay):
        self.W = [np.array(layer["W"]) for layer in params]
        self.b = [np.array(layer["b"]) for layer in params]
        self.slope = slope
        self.y, self.f, self.rho, self.nu, self.t0, self.decay = y, f, rho, nu, t0, weight_decay
        self.p, self.z = [x], []
        for l, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            self.z.append(self.p[-1] @ W + b)
            if l < len(self.W) - 1:
                self.p.append(f(self.z[-1]))
        self.q = [p.copy() for p in self.p[1:]]
        self.u = [np.zeros_like(q) for q in self.q]
        self.lengths = []  # (tau, theta) of the last iteration, one pair a layer

    def phi(self, l, p, W):
        """The part of L that p_l and W_l stand in."""
        value = self.nu / 2 * squared(self.z[l] - p @ W - self.b[l]) + self.decay / 2 * squared(W)
        if l:
            gap = p - self.q[l - 1]
            value += float((self.u[l - 1] * gap).sum()) + self.rho / 2 * squared(gap)
        return value

    def backtrack(self, at, value, g):
        """Double t from t0 until phi(at - g / t) is at most the quadratic model."""
        t, now = self.t0, value(at)
        for _ in range(100):
            moved = at - g / t
            step = moved - at
            if value(moved) <= now + float((g * step).sum()) + t / 2 * squared(step):
                return moved, t
            t *= 2
        raise AssertionError("no step length passed")

    def iteration(self):
        p, W, b, z, self.lengths = [self.p[0]], [], [], [], []
        for l in range(len(self.W)):
            p_l, tau = self.p[l], None
            if l:
                r = p_l @ self.W[l] + self.b[l] - self.z[l]
                g = self.nu * r @ self.W[l].T + self.u[l - 1] + self.rho * (p_l - self.q[l - 1])
                p_l, tau = self.backtrack(p_l, lambda a, l=l: self.phi(l, a, self.W[l]), g)
                p.append(p_l)
            r = p_l @ self.W[l] + self.b[l] - self.z[l]
            g = self.nu * p_l.T @ r + self.decay * self.W[l]
            W_l, theta = self.backtrack(self.W[l], lambda a, l=l, p_l=p_l: self.phi(l, p_l, a), g)
            b_l = (self.z[l] - p_l @ W_l).mean(axis=0)
            W.append(W_l)
            b.append(b_l)
            z.append(self.new_z(l, p_l @ W_l + b_l))
            self.lengths.append((tau, theta))
        self.p, self.W, self.b, self.z = p, W, b, z
        for l in range(len(self.q)):
            f = self.f(z[l])
            self.q[l] = (self.rho * p[l + 1] + self.u[l] + self.nu * f) / (self.rho + self.nu)
            self.u[l] = self.u[l] + self.rho * (p[l + 1] - self.q[l])

    def new_z(self, l, m):
        if l < len(self.W) - 1:
            return brute_force_z(self.f, self.slope, self.z[l], m, self.q[l])
        return np.stack([last_z(m_i, y_i, self.nu) for m_i, y_i in zip(m, self.y, strict=True)])


def brute_force_z(f, slope, z, m, q):
    """Entry by entry: every sign change of the derivative on a fine grid, and the kink at 0."""
    reach = 2 + np.abs(np.stack([z, m, q])).max()
    points = np.linspace(-reach, reach, 4002)  # 0 lies in the middle between two
    found = np.empty_like(z)
    for i in np.ndindex(z.shape):
        cost = lambda a, i=i: (a - m[i]) ** 2 + (q[i] - f(a)) ** 2 + (a - z[i]) ** 2
        rate = lambda a, i=i: 2 * a - m[i] - z[i] - (q[i] - f(a)) * slope(a)
        rates = rate(points)
        turns = np.flatnonzero((rates[:-1] < 0) & (rates[1:] >= 0))
        tries = [0.0] + [optimize.brentq(rate, points[k], points[k + 1], xtol=1e-14) for k in turns]
        found[i] = min(tries, key=cost)
    return found


def last_z(m, y, nu):
    """argmin of cross-entropy + nu/2 |z - m|^2 of one sample, by scipy's trust region method."""

    def s(z):
        e = np.exp(z - z.max())
        return e / e.sum()

    onehot = np.eye(len(m))[y]
    value = lambda z: np.log(np.exp(z - z.max()).sum()) + z.max() - z[y] + nu / 2 * squared(z - m)
    slope = lambda z: s(z) - onehot + nu * (z - m)
    curve = lambda z: np.diag(s(z)) - np.outer(s(z), s(z)) + nu * np.eye(len(m))
    z = optimize.minimize(value, m, jac=slope, hess=curve, method="trust-exact", tol=1e-9).x
    for _ in range(20):  # to rounding, once it is close
        z = z - np.linalg.solve(curve(z), slope(z))
    return z
