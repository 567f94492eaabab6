r"""TSSM: a network cut into n subnetworks that train in parallel, tied by p = q constraints.

Wang, Chai, Cheng, Zhao: "Tunable Subnetwork Splitting for Model-parallelism of Neural Network
Training", arXiv 2009.04053. Subnetwork l maps its input p_l to f_l(W_l, p_l); p_1 is the data. The
problem is

    min  R(W_n, p_n; y) + sum_{l<n} (alpha/2) |q_l - f_l(W_l, p_l)|^2   s.t.  p_{l+1} = q_l

and its augmented Lagrangian, summed over samples,

    L = R + sum_{l<n} [ (alpha/2) |q_l - f_l|^2 + <u_l, p_{l+1} - q_l> + (rho/2) |p_{l+1} - q_l|^2 ].

gsADMM, one iteration (all l in parallel):

    W_l     <- optimizer step on the minibatch mean of (alpha/2)|q_l - f_l|^2  (l < n) or R  (l = n)
    p_{l+1} <- p_{l+1} - eta dL/dp_{l+1}
    q_l     <- (alpha f_l + rho p_{l+1} + u_l) / (alpha + rho)
    u_l     <- u_l + rho (p_{l+1} - q_l)

gsAM eliminates q and u by q_l = p_{l+1}; its objective is L with q_l = p_{l+1} and u = 0. One
iteration: W as above with the target p_{l+1}, then

    p_l     <- p_l - eta [ g_l + alpha (p_l - f_{l-1}) ],   g_l the gradient of what follows p_l

Departs from the paper:
- Every term is a sum over samples, so that nothing depends on their number M. The paper's form (R
  and Omega means, penalties sums) is reached with rho = M rho_paper and eta = 1 / (M tau_2); u is
  then M u_paper.
- The schedule "streaming" is ours; see `jtssm.solvers.tssm.streaming`. "stored" is the paper's: see
  `jtssm.solvers.tssm.stored_gsadmm` (gsADMM) and `jtssm.solvers.tssm.stored_gsam` (gsAM).
- `delay_power` (streaming): updates of W_l are scaled by (1 + delay of l)^-delay_power, since steps
  that suit a fresh gradient diverge on an old one. The paper's updates: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtssm import checks, losses
from jtssm.arrays import Array
from jtssm.nn.cuts import cut
from jtssm.nn.network import Network
from jtssm.protocol.exchange import by_index
from jtssm.protocol.method import Method
from jtssm.protocol.stages import StageProgram
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.tssm import stored, stored_gsadmm, stored_gsam, streaming, turn
from jtssm.solvers.tssm.streaming import delays
from jtssm.solvers.tssm.updates import Penalties

SCHEDULES = ["streaming", "stored"]
DELAY_POWER = 1.0
MOST_SWEEPS = 1000  # they stand one after the other in the compiled program


def gsadmm(
    net: Network,
    *,
    optimizer: Any,
    batch_size: int,
    subnets: int | None = None,
    cuts: Sequence[int] | None = None,
    rho: float = 1.0,
    alpha: float = 1.0,
    eta: float | None = None,
    schedule: str = "streaming",
    sweeps: int = 1,
    weight_steps: int | None = None,
    delay_power: float | None = None,
    loss: str | losses.Loss = "cross_entropy",
    precision: Any = None,
    compute_dtype: Any = None,
) -> Method:
    """gsADMM of TSSM: n subnetworks trained in parallel (the module's docstring has the updates).

    rho, alpha and eta stand in the state as scalars: replace them there (`state.penalties`) and no
    step is compiled again.

    Args:
      net: the network; its layers are never cut themselves.
      optimizer: an optax optimizer for W, or a sequence of n, one a subnetwork.
      batch_size: samples a gradient sees, all devices together.
      subnets: n, from 1 (plain training, None) to the number of layers; cut by balanced cost.
      cuts: instead of subnets, the first layer of every subnetwork but the first.
      rho: penalty of p = q.
      alpha: weight of |q - f|^2.
      eta: step length of p. None: 1/alpha + 1/rho for one streaming sweep (q - f is then exactly
        the back-propagated gradient / -alpha), 1/(alpha + rho) otherwise.
      schedule: "streaming": minibatches flow through the subnetworks; "stored": p, q, u of every
        sample are kept (resident: `step` takes all samples).
      sweeps: ADMM sweeps a minibatch (streaming) or a step (stored).
      weight_steps: stored only: minibatch steps of W a sweep; the paper's 1, None: one epoch.
      delay_power: streaming only: updates of subnetwork l are scaled by (1 + delay)^-delay_power,
        delay = `delays(n)[l - 1]` minibatches; None: 1.0. 0: not scaled.
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.
      precision: of the products, a name `jax.default_matmul_precision` takes; None: jax's default.
      compute_dtype: "bfloat16": layers compute and send in it, while parameters, state (p, q, u), sums,
        losses and what crosses boundaries keep the dtype of the samples (normalisation's statistics:
        float32); None: that dtype throughout.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> method = solvers.gsadmm(net, subnets=3, optimizer=optax.adam(1e-2), batch_size=40)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x, y)
      >>> method.predict(state, x).shape
      (40, 3)
    """
    (rho,) = checks.positive(rho=rho)
    schedules = {"streaming": turn.GSADMM, "stored": stored_gsadmm.GSADMM}
    return _method(
        schedules, net, optimizer, batch_size, subnets, cuts, Penalties(rho, alpha, eta),
        schedule, sweeps, weight_steps, delay_power, loss, precision, compute_dtype,
    )  # fmt: skip


def gsam(
    net: Network,
    *,
    optimizer: Any,
    batch_size: int,
    subnets: int | None = None,
    cuts: Sequence[int] | None = None,
    alpha: float = 1.0,
    eta: float | None = None,
    schedule: str = "streaming",
    order: str | None = None,
    sweeps: int = 1,
    weight_steps: int | None = None,
    delay_power: float | None = None,
    loss: str | losses.Loss = "cross_entropy",
    precision: Any = None,
    compute_dtype: Any = None,
) -> Method:
    """gsAM of TSSM: as gsADMM without q and u, with less to store (the module's docstring).

    Args:
      net: the network; its layers are never cut themselves.
      optimizer: an optax optimizer for W, or a sequence of n, one a subnetwork.
      batch_size: samples a gradient sees, all devices together.
      subnets: n, from 1 (plain training, None) to the number of layers; cut by balanced cost.
      cuts: instead of subnets, the first layer of every subnetwork but the first.
      alpha: weight of |p - f|^2.
      eta: step length of p. None: 1/alpha for one streaming sweep (p - f is then exactly the
        back-propagated gradient / -alpha), 1/(2 alpha) otherwise.
      schedule: "streaming": minibatches flow through the subnetworks; "stored": p of every sample is
        kept (resident: `step` takes all samples).
      order: stored only. "sequential" (None): the sweep l = 2 .. n as the paper prints it;
        "parallel": all l from the previous iteration's p. In the streaming schedule subnetworks
        take their turns on a minibatch from the last to the first.
      sweeps: sweeps a minibatch (streaming) or a step (stored).
      weight_steps: stored only: minibatch steps of W a sweep; the paper's 1, None: one epoch.
      delay_power: streaming only: updates of subnetwork l are scaled by (1 + delay)^-delay_power,
        delay = `delays(n)[l - 1]` minibatches; None: 1.0. 0: not scaled.
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.
      precision: of the products, a name `jax.default_matmul_precision` takes; None: jax's default.
      compute_dtype: "bfloat16": layers compute and send in it, while parameters, state (p), sums,
        losses and what crosses boundaries keep the dtype of the samples (normalisation's statistics:
        float32); None: that dtype throughout.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> method = solvers.gsam(net, subnets=3, optimizer=optax.adam(1e-2), batch_size=40)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x, y)
      >>> method.predict(state, x).shape
      (40, 3)
    """
    if order is not None:
        checks.one_of("order", order, list(stored_gsam.ORDERS))
    checks.no_use_for(
        "order", order, "whose subnetworks take their turns from the last to the first",
        schedule="streaming", given=schedule,
    )  # fmt: skip
    schedules = {
        "streaming": turn.GSAM,
        "stored": stored_gsam.ORDERS[order or "sequential"],
    }
    return _method(
        schedules, net, optimizer, batch_size, subnets, cuts, Penalties(None, alpha, eta),
        schedule, sweeps, weight_steps, delay_power, loss, precision, compute_dtype,
    )  # fmt: skip


def _method(
    rules, net, optimizer, batch_size, subnets, cuts, penalties, schedule, sweeps, weight_steps,
    delay_power, loss, precision, compute_dtype,
) -> Method:  # fmt: skip
    """What gsADMM and gsAM have in common: the checks, the pieces, the schedule."""
    (alpha,) = checks.positive(alpha=penalties.alpha)
    penalties = penalties._replace(alpha=alpha)
    if penalties.eta is not None:
        penalties = penalties._replace(eta=checks.positive(eta=penalties.eta)[0])
    batch_size, sweeps = checks.count(batch_size=batch_size, sweeps=sweeps)
    if sweeps > MOST_SWEEPS:
        raise ValueError(
            f"sweeps: expected at most {MOST_SWEEPS}, each of which is compiled; got {sweeps}"
        )
    checks.one_of("schedule", schedule, SCHEDULES)
    checks.precision(precision)
    compute_dtype = checks.compute_dtype(compute_dtype)
    starts = cut(net, subnets, cuts)
    optimizers = checks.optimizers(optimizer, len(starts) - 1)
    checks.no_use_for(
        "delay_power",
        delay_power,
        "where no gradient is delayed",
        schedule="stored",
        given=schedule,
    )
    checks.no_use_for(
        "weight_steps", weight_steps, "whose subnetworks take one step a sweep",
        schedule="streaming", given=schedule,
    )  # fmt: skip
    if schedule == "stored":
        if weight_steps is not None:
            (weight_steps,) = checks.count(weight_steps=weight_steps)
        pieces = Pieces(net, starts, optimizers, losses.find(loss), compute_dtype)
        return stored.method(
            rules[schedule], pieces, batch_size, penalties, sweeps, precision, weight_steps
        )
    power = DELAY_POWER if delay_power is None else delay_power
    (power,) = checks.not_negative(delay_power=power)
    pieces = Pieces(net, starts, _slowed(optimizers, power), losses.find(loss), compute_dtype)
    return streaming.method(rules[schedule], pieces, batch_size, penalties, sweeps, precision)


def _slowed(optimizers: Sequence[Any], power: float) -> tuple:
    """The optimizers of n subnetworks, their updates scaled by (1 + delay)^-power."""

    def slow(optimizer: Any, scale: float) -> Any:
        def update(gradient, state, params=None):
            updates, state = optimizer.update(gradient, state, params)
            return jax.tree.map(lambda a: scale * a, updates), state

        # not optax.chain: the state stays what the user's optimizer makes it
        return optax.GradientTransformation(optimizer.init, update)

    scales = [(1 + delay) ** -power for delay in delays(len(optimizers))]
    return tuple(
        optimizer if scale == 1 else slow(optimizer, scale)
        for optimizer, scale in zip(optimizers, scales, strict=True)
    )


class Variables(NamedTuple):
    """The variables of L, one entry a subnetwork or boundary (l = 1 .. n - 1)."""

    W: Sequence[Any]  # n
    p: Sequence[Array]  # n: p[0] is the data
    q: Sequence[Array]  # n - 1
    u: Sequence[Array]  # n - 1


def variables(state: Any, x: Array) -> Variables:
    """The variables of L in an unplaced state of the stored schedule, for samples x [M, ...].

    Of gsAM: q_l = p_{l+1} and u = 0, with which L is its objective, whatever rho.
    """
    held = state.held
    p = [x, *(h.p for h in held[1:])]
    has_dual = state.penalties.rho is not None
    return Variables(
        W=[weights.params for weights in state.weights],
        p=p,
        q=[h.q for h in held[:-1]] if has_dual else p[1:],
        u=[h.u for h in held[1:]] if has_dual else [jnp.zeros_like(a) for a in p[1:]],
    )


def lagrangian(method: Method, v: Variables, y: Array, *, rho: Any, alpha: Any) -> Array:
    """L as the module's docstring writes it, a scalar; for tests and monitoring.

    Args:
      method: from `gsadmm` or `gsam`, unplaced.
      v: its variables; y: labels or targets [M, ...].  rho, alpha: the numbers of L.
    """
    program, n = method.program, len(v.W)
    if not isinstance(program, StageProgram):
        raise ValueError(f"method: expected one from gsadmm or gsam; got {method.name}")
    run = lambda l: program.forward(by_index(n), l, Weights(v.W[l], ()), v.p[l])
    total = method.loss.value(run(n - 1), y).sum()
    for l in range(n - 1):
        gap, miss = v.p[l + 1] - v.q[l], v.q[l] - run(l)
        total += alpha / 2 * jnp.sum(miss**2) + jnp.sum(v.u[l] * gap) + rho / 2 * jnp.sum(gap**2)
    return total
