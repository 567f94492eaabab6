"""Independent subnet training: the neurons of a network dealt out to subnets, and dealt again.

The whole model is (W_1, ..., W_L) with hidden layers of M_1, ..., M_{L-1} neurons. Repeat:

    1. deal        every hidden layer's neurons are shuffled and cut into N shares, one a subnet w:
                   I_w^1, ..., I_w^{L-1}; inputs and outputs are never cut
    2. pull        subnet w takes W_l[I_w^{l-1}, I_w^l], with the normalisation and bias of I_w^l
    3. train       R steps of an optimizer on minibatches of its own, nothing is sent
    4. push        the whole model gets every owned weight back in its place; what nobody owned keeps its
                   value; what all subnets share (the output layer's bias) becomes the subnets' mean

Source: Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine, "Distributed Learning of Deep Neural Networks
using Independent Subnet Training", arXiv 1910.02120, PVLDB 15(8) 2022.

Departs from the paper:
  - A deal is stratified by default (`jtssm.solvers.workers.deal`): every neuron is as likely in any
    subnet, but a subnet takes the same number from each N-th of a layer: shapes are static on a mesh.
  - Widths that N does not divide are dealt as evenly as they go, with empty places.
  - Layers with biases: a bias goes with its neuron, the output layer's is averaged (as GIST does).
  - Without normalisation, a subnet's inputs to a layer are scaled by M / |I_w| (N where it divides), so
    that their sum has the whole layer's mean over deals; the paper normalises instead, and so can a user.
  - Each subnet sees its own minibatches (the released code gives all the same), and all R steps reach
    the whole model (the released code loses the last one, or the tail of an epoch).
  - Any optax optimizer; its state starts anew at each deal (as GIST does), its schedules run on; or its
    moments travel with their weights (`carry`).
  - Channels of convolutions are dealt as neurons are, also those within residual blocks, whose inputs and
    outputs stay whole (ResIST deals whole blocks instead).
"""

from __future__ import annotations

from functools import partial

import optax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.nn.network import Network
from jtssm.protocol import sample_checks
from jtssm.protocol.arguments import documented
from jtssm.protocol.declared import Declared, Run
from jtssm.protocol.method import Method
from jtssm.protocol.optimizers import accumulates
from jtssm.protocol.settings import recorded
from jtssm.protocol.workers import Model, WorkerProgram
from jtssm.solvers.pieces import precisely
from jtssm.solvers.workers.dealt_forward import forward_of_subnet
from jtssm.solvers.workers.dealt_model import DealtModel
from jtssm.solvers.workers.local_steps import local
from jtssm.solvers.workers.moments import check_carried
from jtssm.solvers.workers.parts import blocks_of, subnet_of

DEALS = ("stratified", "uniform")
CARRIES = ("fresh", "moments")


@recorded()
@documented()
def ist(
    net: Network,
    *,
    subnets: int,
    optimizer: optax.GradientTransformation,
    local_steps: int,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    deal: str = "stratified",
    scale: float | None = None,
    carry: str = "fresh",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """Independent subnet training: neurons dealt to subnets that train alone, and dealt again.

    A step is a round: it takes x [R, N, b, ...] and y [R, N, b], minibatch [r, w] for local step r of
    subnet w. On a mesh subnets lie along "subnet", which must divide N, a subnet's minibatch along "pc".

    Args:
      net: layers that can be dealt (dense, convolutions without groups, bottlenecks, normalised or not,
        pools, dropout), with one hidden layer at least.
      subnets: N, how many there are, at most the width of every hidden layer. Where N^2 does not divide
        a width M, a subnet computes, holds and sends N ceil(ceil(M / N) / N) places instead of M / N
        neurons.
      optimizer: an optax optimizer. Its schedules count all local steps.
        It sees matrices with a hidden layer's own neurons first, W as [outputs, inputs]: only what
        depends on that order (the scale of muon) is not as in `sgd`.
      local_steps: R, steps of a subnet between two deals; all of them reach the whole model.
      batch_size: samples that one gradient of one subnet sees; a round takes R N batch_size.
      deal: "stratified", or "uniform" (any share of a layer is as likely; on one device only).
      scale: of what a layer without normalisation takes from a dealt one; None: M over the number of the
        subnet's neurons, 1.0: nothing.
      carry: "fresh": an optimizer's state starts anew at each deal; "moments": what it keeps of each
        parameter is dealt, travels and comes back as the parameter does, of what all share as a mean,
        and its counts run on. A deal then moves as much again for each moment (Adam: three times).

    Raises:
      ValueError: bad arguments, a layer that cannot be dealt or is narrower than N; from `init`, bad
        samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> ways = {"optimizer": optax.adam(1e-2), "local_steps": 2, "batch_size": 10}
      >>> method = solvers.ist(net, subnets=2, **ways)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x.reshape(2, 2, 10, 4), y.reshape(2, 2, 10))
      >>> method.predict(state, x).shape
      (40, 3)
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    sample_checks.one_array(net, "ist")
    (subnets,) = checks.count(subnets=subnets)
    checks.one_of("deal", deal, DEALS)
    checks.one_of("carry", carry, CARRIES)
    if scale is not None:
        (scale,) = checks.positive(scale=scale)
    homes = subnets if deal == "stratified" else 1
    blocks = blocks_of(net, subnets, homes)
    forward = partial(forward_of_subnet, blocks)
    trainer = local(
        net, optimizer, loss, local_steps, batch_size, precision, compute_dtype, forward
    )
    if accumulates(trainer.optimizer, net.parameter_shapes()):
        raise ValueError(
            "optimizer: expected one that updates at every step, since its state starts anew at each "
            "deal; got optax.MultiSteps, whose sums would be lost: use a larger batch_size"
        )
    shapes = net.parameter_shapes()
    carried = check_carried(trainer.optimizer, shapes) if carry == "moments" else 0
    plan = [block.plan() for block in blocks]
    model = DealtModel(net, blocks, plan, trainer, scale, carried)
    run = Run(batch_size, local_steps, local_steps, local_steps, first=False)
    trained = subnet_of(net, blocks)
    return WorkerProgram(
        name="ist",
        stages=trainer.stages,
        batch=trainer.batch(subnets),
        declared=Declared(
            moves=model.moves,
            work=lambda l, samples: (run,),
            sums=2 if trainer.loss.weight is None else 3,
            weighings=lambda samples: local_steps,
            statistics=lambda: trained.statistics,
        ),
        kinds={
            **dict.fromkeys(("homes", "moment_homes"), ("subnet",)),
            **dict.fromkeys(("shared", "moment_shared", "round", "key", "pace"), ()),
        },
        model=Model(net.init, model.lay_out, model.start, model.params, homes),
        step=precisely(precision, model.step),
        forward=precisely(precision, model.forward),
        estimate=precisely(precision, model.estimate),
        weight_fields=("homes", "shared", "moment_homes", "moment_shared"),
        deals=True,
        trained=trained,
    ).on_one_device()
