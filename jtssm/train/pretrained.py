"""Whether a run estimates the statistics that layers keep: not those that it was given, unless asked."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.nn.adapted import fresh
from jtssm.nn.network import Network


def estimates(net: Network, params: Sequence[Tree] | None, estimate: bool | None) -> bool:
    """Whether they are estimated before each evaluation.

    Args:
      params: weights that the run starts from; None: those of the network.
      estimate: what the user says; None: yes, but for statistics that came with weights, which is told
        by a UserWarning.

    Raises:
      ValueError: something else; None, where some layers come with statistics and others do not.
    """
    if not net.estimated or estimate is not None:
        return net.estimated and checks.flag("estimate", estimate)
    given = _given(net, params)
    if not any(given.values()):
        return True
    if new := [i for i, came in given.items() if not came]:
        raise ValueError(
            f"estimate: expected True or False, as of the layers whose statistics training moves "
            f"{sorted(given.keys() - set(new))} come with some, and {new} have none yet; got None. To "
            f"keep those alone freeze them (use_running_average=True) and say True"
        )
    checks.warn(
        "estimate: the statistics of normalisation that came with the weights are kept, although "
        "training takes those of its minibatches; estimate=True estimates them anew on training "
        "samples, estimate=False says that they are to be kept"
    )
    return False


def _given(net: Network, params: Sequence[Tree] | None) -> dict[int, bool]:
    """Of the layers whose statistics training moves: whether they come with those of other samples."""
    shapes = net.parameter_shapes()
    moving = [i for i, p in enumerate(shapes) if jax.tree.leaves(net.layers[i].moving(p))]
    if params is None:
        return {i: net.layers[i].pretrained for i in moving}
    return {i: not fresh(net.layers[i].moving(params[i])) for i in moving}
