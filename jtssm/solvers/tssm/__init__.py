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
- The schedule "streaming" is ours; see `jtssm.solvers.tssm.streaming`, with `workers`
  `jtssm.solvers.tssm.rounds`. "stored" is the paper's: see
  `jtssm.solvers.tssm.stored_gsadmm` (gsADMM) and `jtssm.solvers.tssm.stored_gsam` (gsAM).
- `grid` (streaming): what crosses a boundary is rounded, and its integers cross.
- `delay_power` (streaming): updates of W_l are scaled by (1 + delay of l)^-delay_power, since steps
  that suit a fresh gradient diverge on an old one. The paper's updates: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import optax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.nn.cuts import cut
from jtssm.nn.network import Network
from jtssm.protocol import sample_checks
from jtssm.protocol.arguments import documented
from jtssm.protocol.method import Method
from jtssm.protocol.piece_optimizers import of_pieces
from jtssm.protocol.settings import recorded
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.quantise import Crossing
from jtssm.solvers.tssm import (
    rounds,
    rules,
    schedules,
    stored,
    stored_gsadmm,
    stored_gsam,
    streaming,
)
from jtssm.solvers.tssm.ahead import Recipe
from jtssm.solvers.tssm.crew import TEXTS as CREW
from jtssm.solvers.tssm.crew import Crew, crew_of
from jtssm.solvers.tssm.delayed import slowed
from jtssm.solvers.tssm.flow import Flow
from jtssm.solvers.tssm.schedules import Stored, Streaming
from jtssm.solvers.tssm.updates import Penalties

# one for all subnetworks, or one each
Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
Optimizers: TypeAlias = Optimizer | Sequence[Optimizer]
# of arguments that gsadmm and gsam share
TEXTS = {
    "net": "the network; its layers are never cut themselves.",
    "optimizer": (
        "an optax optimizer for W, or a sequence of n, one a subnetwork. It sees the layers of the "
        "whole network, the arrays of its subnetwork, and as `value` what that minimises; a norm is "
        "its subnetwork's: clipped at c, the network moves by up to sqrt(n) c (2 c for n = 4)."
    ),
    "batch_size": "samples a gradient sees, all devices together; with workers one worker's.",
    "subnets": "n, from 1 (plain training, None) to the number of layers; cut by `balance`.",
    "cuts": "instead of subnets, the first layer of every subnetwork but the first.",
    "balance": (
        'what is as equal as can be of n subnetworks: "forward", multiply-adds of a pass forward; '
        '"work", of a step, in which a streaming subnetwork that is not the last runs forward once '
        'more; "memory", parameters.'
    ),
    "schedule": (
        '"streaming": minibatches flow through the subnetworks; "stored": variables of every sample '
        "are kept (resident: `step` takes all samples); these with their defaults, or a "
        "`solvers.Streaming` or `solvers.Stored` with other settings."
    ),
    "grid": (
        "streaming only: what goes over a boundary is rounded, and crosses as integers of 8 or 16 bits. "
        "8 or 16: to 2^8 or 2^16 values between the least and the largest of each sample and array; "
        "a list of rising numbers: f to the nearest of them, q - f (gsAM: p - f) to such values of as "
        "many bits. None: floats are exchanged."
    ),
    "microbatches": (
        "streaming only: M, of which a minibatch of batch_size runs through the subnetworks; their "
        "gradients are summed before an optimizer steps, so that those of subnetwork l are "
        "ceil(2(n - l) / M) steps old at most. Batch normalisation is over a microbatch. None: the "
        "fewest from 6(n - 1) that divide batch_size, where each keeps 4 samples and no layer takes "
        "statistics of them, else from 2(n - 1); with several sweeps 1."
    ),
    "prediction": (
        "streaming only: c, with which a subnetwork runs forward, and takes its gradients, at W + c h U, "
        "h the steps that it takes in between and U its last update; two more trees of the size of the "
        "weights. None: 1 with M >= 2(n - 1), else 0 (gradients at the newest weights)."
    ),
    "recompute": (
        "streaming only: True: a subnetwork runs forward again when it takes its gradients; False: what "
        "these need waits in between, of the microbatches in flight, and no product is made twice. Needs "
        "prediction > 0 and, on a mesh, pr 1."
    ),
    **CREW,
}


@recorded(schedule=schedules.find)
@documented(TEXTS)
def gsadmm(
    net: Network,
    *,
    optimizer: Optimizers,
    batch_size: int,
    subnets: int | None = None,
    cuts: Sequence[int] | None = None,
    balance: str = "forward",
    rho: float = 1.0,
    alpha: float = 1.0,
    eta: float | None = None,
    schedule: str | Streaming | Stored = "streaming",
    microbatches: int | None = None,
    prediction: float | None = None,
    recompute: bool = True,
    grid: int | Sequence[float] | None = None,
    workers: int | None = None,
    local_steps: int | None = None,
    outer_optimizer: Optimizers | None = None,
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """gsADMM of TSSM: n subnetworks trained in parallel (the module's docstring has the updates).

    rho, alpha and eta stand in the state as scalars: replace them there (`state.penalties`) and no
    step is compiled again.

    Args:
      rho: penalty of p = q.
      alpha: weight of |q - f|^2.
      eta: step length of p. None: 1/alpha + 1/rho for one streaming sweep (q - f is then exactly
        the back-propagated gradient / -alpha), 1/(alpha + rho) otherwise.

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
    penalties = Penalties(checks.positive(rho=rho)[0], *_numbers(alpha, eta))
    found = schedules.find(schedule)
    schedules.check_for("gsadmm", found)
    crossing = schedules.crossing(grid, found)
    starts = _starts(net, subnets, cuts, balance, found)
    (batch_size,) = checks.count(batch_size=batch_size)
    parts = microbatches, prediction, recompute
    recipe = schedules.recipe(found, net, len(starts) - 1, batch_size, *parts)
    pieces = _pieces(net, starts, optimizer, found, recipe, loss, compute_dtype)
    own = Rules(rules.GSADMM, stored_gsadmm.GSADMM)
    crew = crew_of(pieces, workers, local_steps, outer_optimizer)
    ways = recipe, crossing, crew
    return _method(found, own, pieces, batch_size, penalties, precision, *ways)


@recorded(schedule=schedules.find)
@documented(TEXTS)
def gsam(
    net: Network,
    *,
    optimizer: Optimizers,
    batch_size: int,
    subnets: int | None = None,
    cuts: Sequence[int] | None = None,
    balance: str = "forward",
    alpha: float = 1.0,
    eta: float | None = None,
    schedule: str | Streaming | Stored = "streaming",
    microbatches: int | None = None,
    prediction: float | None = None,
    recompute: bool = True,
    grid: int | Sequence[float] | None = None,
    workers: int | None = None,
    local_steps: int | None = None,
    outer_optimizer: Optimizers | None = None,
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """gsAM of TSSM: as gsADMM without q and u, with less to store (the module's docstring).

    Args:
      alpha: weight of |p - f|^2.
      eta: step length of p. None: 1/alpha for one streaming sweep (p - f is then exactly the
        back-propagated gradient / -alpha), 1/(2 alpha) otherwise.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> stored = solvers.Stored(weight_steps=1, order="parallel")
      >>> ways = {"optimizer": optax.adam(1e-2), "batch_size": 40, "schedule": stored}
      >>> method = solvers.gsam(net, subnets=3, **ways)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x, y)
      >>> method.predict(state, x).shape
      (40, 3)
    """
    penalties = Penalties(None, *_numbers(alpha, eta))
    found = schedules.find(schedule)
    crossing = schedules.crossing(grid, found)
    starts = _starts(net, subnets, cuts, balance, found)
    (batch_size,) = checks.count(batch_size=batch_size)
    parts = microbatches, prediction, recompute
    recipe = schedules.recipe(found, net, len(starts) - 1, batch_size, *parts)
    pieces = _pieces(net, starts, optimizer, found, recipe, loss, compute_dtype)
    order = found.order if isinstance(found, Stored) else None
    own = Rules(rules.GSAM, stored_gsam.ORDERS[order or "sequential"])
    crew = crew_of(pieces, workers, local_steps, outer_optimizer)
    ways = recipe, crossing, crew
    return _method(found, own, pieces, batch_size, penalties, precision, *ways)


class Rules(NamedTuple):
    """What tells gsADMM from gsAM, a rule a schedule."""

    streaming: rules.Rule
    stored: stored.StoredRule


def _numbers(alpha: float, eta: float | None) -> tuple[float, float | None]:
    """alpha and eta, checked."""
    (alpha,) = checks.positive(alpha=alpha)
    return alpha, None if eta is None else checks.positive(eta=eta)[0]


def _starts(
    net: Network,
    subnets: int | None,
    cuts: Sequence[int] | None,
    balance: str,
    schedule: Streaming | Stored,
) -> tuple[int, ...]:
    """Where the subnetworks begin, and the last one ends."""
    starts = cut(net, subnets, cuts, balance=balance, passes=schedule.passes)
    if isinstance(schedule, Stored):
        sample_checks.one_array(net, "schedule='stored'")
    sample_checks.floats_cross(net, starts, "gsadmm and gsam")
    return starts


def _pieces(
    net: Network,
    starts: tuple[int, ...],
    optimizer: Optimizers,
    schedule: Streaming | Stored,
    recipe: Recipe,
    loss: str | losses.Loss,
    compute_dtype: DTypeLike | None,
) -> Pieces:
    """The subnetworks and what trains each."""
    num = len(starts) - 1
    optimizers = checks.optimizers(optimizer, num)
    if isinstance(schedule, Streaming):
        power = schedules.delay_power(schedule, recipe, num)
        optimizers = slowed(optimizers, power, recipe.microbatches)
    each = of_pieces(optimizers, net, starts)
    return Pieces(net, starts, each, losses.find(loss), checks.compute_dtype(compute_dtype))


def _method(
    schedule: Streaming | Stored,
    own: Rules,
    pieces: Pieces,
    batch_size: int,
    penalties: Penalties,
    precision: str | None,
    recipe: Recipe,
    crossing: Crossing,
    crew: Crew | None,
) -> Method:
    """The method that works by the schedule's rule."""
    checks.precision(precision)
    sweeps = schedule.sweeps
    if isinstance(schedule, Streaming):
        flow = Flow(own.streaming, pieces, sweeps, batch_size, recipe, crossing, crew)
        if crew is None:
            return streaming.method(flow, penalties, precision)
        return rounds.method(flow, crew, penalties, precision)
    if crew is not None:
        raise ValueError(
            f"workers: expected None with schedule='stored', whose variables of every sample stay where "
            f"they are; got {crew.num}: use schedule='streaming'"
        )
    return stored.method(
        own.stored, pieces, batch_size, penalties, sweeps, precision, schedule.weight_steps
    )
