r"""pdADMM: every layer of a multilayer perceptron is updated in parallel, without back-propagation.

Wang, Chai, Cheng, Zhao: "Toward Model Parallelism for Deep Neural Network based on Gradient-free ADMM
Framework", arXiv 2009.02868 (ICDM 2020); with a convergence proof and rounded exchange (pdADMM-G-Q)
arXiv 2105.09837. Rows are samples; p_1 is the data, f_l the activation of layer l = 1 .. L. With
S = sum over l, the augmented Lagrangian of

    min  R(z_L; y) + (lambda/2) S |W_l|^2
         + (nu/2) [ S |z_l - p_l W_l - b_l|^2 + S_{l<L} |q_l - f_l(z_l)|^2 ]     s.t.  p_{l+1} = q_l

is L = this + S_{l<L} [ <u_l, p_{l+1} - q_l> + (rho/2) |p_{l+1} - q_l|^2 ]. With r = p W + b - z, one
iteration, each line for all l in parallel:

    p   <- p - g / tau,      g = nu r W^T + u_{l-1} + rho (p - q_{l-1})                     (l >= 2)
    W   <- W - g / theta,    g = nu p^T r + lambda W
    b   <- b - mean of r over the samples
    z_l <- argmin (nu/2) (|z - p W - b|^2 + |q_l - f_l(z)|^2 + |z - z_old|^2)                (l < L)
    z_L <- argmin R(z; y) + (nu/2) |z - p W - b|^2
    q_l <- (rho p_{l+1} + u_l + nu f_l(z_l)) / (rho + nu)                                     (l < L)
    u_l <- u_l + rho (p_{l+1} - q_l),   hence u_l = nu (q_l - f_l(z_l))                       (l < L)

For rho > 4 nu (activations with Lipschitz constant 1) L falls every iteration by at least

    S tau/2 |dp|^2 + theta/2 |dW|^2 + M nu/2 |db|^2 + C1 |dz|^2 + C2 |dq|^2 + nu/2 |dz_L|^2,

C1 = nu/2 - 2 nu^2/rho, C2 = rho/2 - 2 nu^2/rho - nu/2 (the decrease in
`Info.shown`); c_k, the least of it up to iteration k, is o(1/k).

Departs from the paper:
- tau and theta: the paper doubles a trial value until L does not exceed its quadratic model. Along
  the gradient that test is exactly tau >= c, with c = (nu |g W|^2 + rho |g|^2) / |g|^2 (theta >= nu
  |p g|^2 / |g|^2 + lambda): `steps="gradient", t0=...` ends at the same power of two without trials,
  `t0=None` takes c itself, the exact line search.
- steps="damped" (the default, ours): W, with b, minimises L + (theta/2) |dW|^2 with theta = damping *
  the mean eigenvalue of nu p^T p, a ridge regression; p by the exact line search. steps="exact": p
  and (W, b) are the exact minimisers of their blocks. In the bound |dr|^2 nu/2 then stands for b's.
- b: the exact minimiser. The paper prints a step of 1/nu on the summed gradient, which diverges.
- z_l: the better branch is chosen with the proximal term (the released code leaves it out); z_L is
  solved to rounding by damped Newton.
- rounded exchange: with `grid` the integers themselves cross the boundary. Where q is rounded too,
  both ends keep their own u, updated by the same numbers, and u = nu (q - f(z)) no longer holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import optax

from jtssm import checks, losses
from jtssm.nn.network import Network
from jtssm.protocol import sample_checks
from jtssm.protocol.arguments import documented
from jtssm.protocol.method import Method
from jtssm.protocol.settings import recorded
from jtssm.solvers.layerwise import activations
from jtssm.solvers.layerwise.growing import grow
from jtssm.solvers.layerwise.iteration import STEPS, Layered
from jtssm.solvers.layerwise.objective import lagrangian
from jtssm.solvers.layerwise.updates import (
    minimise_p,
    minimise_W,
    update_b,
    update_p,
    update_q,
    update_u,
    update_W,
    update_z,
    update_z_last,
)
from jtssm.solvers.layerwise.variables import Inbox, Numbers, State
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.quantise import Message, RoundingGrid, grid_of

__all__ = [
    "Inbox",
    "Message",
    "Numbers",
    "RoundingGrid",
    "State",
    "grow",
    "lagrangian",
    "minimise_W",
    "minimise_p",
    "pdadmm",
    "update_W",
    "update_b",
    "update_p",
    "update_q",
    "update_u",
    "update_z",
    "update_z_last",
]

# between what suits a shallow network (1000, 0.03) and a deep one from a random start (10, 1):
# benchmarks/results/pdadmm_accuracy.json
RHO, NU, DAMPING = 100.0, 0.3, 0.1


@recorded()
@documented()
def pdadmm(
    net: Network,
    *,
    rho: float = RHO,
    nu: float = NU,
    steps: str = "damped",
    damping: float | None = None,
    t0: float | None = None,
    weight_decay: float = 0.0,
    grid: int | Sequence[float] | None = None,
    float_q: bool = False,
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
) -> Method:
    """pdADMM: layers trained in parallel without gradients of the loss (see `solvers.layerwise`).

    All samples stay in place, and a step is an iteration over all of them. The numbers rho, nu,
    weight_decay, damping and t0 stand in the state as scalars (`state.numbers`): replace them there
    and nothing is compiled again.

    Args:
      net: dense layers of any widths; hidden activations jax.nn.relu, jax.nn.leaky_relu (or a
        functools.partial of it) or jax.numpy.tanh; none after the last.
      rho: penalty of p = q; above 4 nu the Lagrangian falls every iteration. The paper: rho = nu.
      nu: weight of |z - p W - b|^2 and of |q - f(z)|^2.
      steps: "damped": W by damped ridge regression, p by the exact line search; "gradient": both
        along the gradient, the paper's; "exact": exact minimisers of the blocks.
      damping: steps="damped" only: of the W-step; None: 0.1.
      t0: steps="gradient" only: first step length tried by the paper's doubling; None: exact line
        search.
      weight_decay: weight of |W|^2 / 2; the theory needs it above 0.
      grid: None: floats are exchanged. 8 or 16: p and q are rounded to 2^8 or 2^16 values between
        the least and the largest of each sample; a list of rising numbers: to the nearest of them.
      float_q: with a grid: round p alone (the constraint set of pdADMM-G-Q).
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss` with a prox.

    Raises:
      ValueError: bad arguments, a network it cannot train; from `init`, bad samples.

    Examples:
      >>> import jax, jtssm
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> method = solvers.pdadmm(net, rho=10.0, nu=0.1)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x, y)
      >>> bool(info.shown["decrease"] > 0)  # of the Lagrangian, at least
      True
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    sample_checks.one_array(net, "pdadmm")
    rho, nu = checks.positive(rho=rho, nu=nu)
    (weight_decay,) = checks.not_negative(weight_decay=weight_decay)
    checks.one_of("steps", steps, STEPS)
    checks.precision(precision)
    if checks.flag("float_q", float_q) and grid is None:
        raise ValueError("float_q: expected False without a grid; got True")
    found = losses.find(loss)
    if found.prox is None:
        raise ValueError(f"loss: expected one with a prox, e.g. 'cross_entropy'; got {found.name}")
    numbers = Numbers(rho, nu, weight_decay, _damping(steps, damping), _first_length(steps, t0))
    hidden = _hidden(net)
    num = len(net.layers)
    # updates of pdADMM have no state: the optimizer of a piece is one in name only
    pieces = Pieces(net, tuple(range(num + 1)), (optax.set_to_zero(),) * num, found)
    layers = Layered(pieces, hidden, steps, numbers, grid_of(grid), float_q)
    return layers.program(precision).on_one_device()


def _damping(steps: str, damping: float | None) -> float:
    """0 for the exact minimiser."""
    if steps == "damped":
        return checks.positive(damping=DAMPING if damping is None else damping)[0]
    if damping is not None:
        raise ValueError(
            f"damping: expected None with steps={steps!r}; got {checks.shown(damping)}"
        )
    return 0.0


def _first_length(steps: str, t0: float | None) -> float | None:
    if t0 is None:
        return None
    (t0,) = checks.positive(t0=t0)
    if steps != "gradient":
        raise ValueError(f"t0: expected None unless steps='gradient'; got {t0!r}")
    return t0


def _hidden(net: Network) -> tuple[activations.Activation, ...]:
    """The hidden layers' activations; the last layer must be dense without one."""
    *hidden, last = net.layers
    if not hidden:
        raise ValueError("net: expected at least two layers, e.g. mlp([64, 100, 10]); got one")
    if not activations.is_dense(last) or activations.activation(last) is not None:
        raise ValueError(
            f"net: expected a last layer that is dense, without activation; got {last.name!r}"
        )
    return tuple(activations.find(i, layer) for i, layer in enumerate(hidden))
