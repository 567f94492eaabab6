"""The products of a layer whose weights are split over the "pr" axis of the mesh.

Forms of a layer: "batch" keeps its weights whole on every device; "model" splits them over pr.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jtssm.network import Layer, Network
from jtssm.protocol import PLAIN, Array, Products, Tree, plain_dense
from jtssm.sharding.collectives import gather_columns, mean

FORMS = ("batch", "model")


def model(axis: str | None) -> Products:
    """Dense product with W[I, J_pr], b[J_pr]: Y[B, J] is gathered from the columns' owners.

    Backward, dX is all-reduced over pr and dW stays where W is (integrated model and batch
    parallelism, the 1D model form).
    """

    def dense(x: Array, W: Array, b: Array | None) -> Array:
        return gather_columns(plain_dense(x, W, b), axis)

    return Products(dense)


def products(form: str, axis: str | None, samples: Sequence[str]) -> Products:
    """The products of a layer in the given form; samples: the axes that split a minibatch."""
    of_form = PLAIN if form == "batch" else model(axis)
    return of_form._replace(over_samples=lambda a: mean(a.mean(axis=0), samples))


def choose_forms(net: Network, params: Sequence[Tree], pr: int, forms: object) -> tuple[str, ...]:
    """One form a layer: "model" wherever pr divides the split dimensions, or as the user says.

    Raises:
      ValueError: an unknown form, one the layer does not have or pr does not divide, a list of the
        wrong length, or pr > 1 that would split no layer.
    """
    if pr == 1:
        return ("batch",) * len(net.layers)
    if forms == "auto":
        fits = [_fits(layer, p, pr) for layer, p in zip(net.layers, params, strict=True)]
        if not any(fits):
            raise ValueError(
                f"pr: expected a size that divides the width of some layer, one of "
                f"{[s[-1] for s in net.shapes[1:]]}; got {pr}"
            )
        return tuple("model" if fit else "batch" for fit in fits)
    if not isinstance(forms, (list, tuple)) or len(forms) != len(net.layers):
        raise ValueError(
            f"forms: expected 'auto' or a list of {len(net.layers)} forms out of {list(FORMS)}; "
            f"got {forms!r}"
        )
    for i, (form, layer, p) in enumerate(zip(forms, net.layers, params, strict=True)):
        if form != "batch" and not (form == "model" and _fits(layer, p, pr)):
            raise ValueError(
                f"forms[{i}]: expected 'batch', or 'model' where pr = {pr} divides the width of "
                f"{layer.name!r}; got {form!r}"
            )
    return tuple(forms)


def split_dimensions(layer: Layer, form: str) -> Tree | None:
    """For each parameter of the layer the dimension split over pr; None: all whole."""
    return None if form == "batch" else layer.splits[form]


def _fits(layer: Layer, params: Tree, pr: int) -> bool:
    if "model" not in layer.splits:
        return False
    fits = jax.tree.map(
        lambda a, dim: dim < 0 or a.shape[dim] % pr == 0, params, layer.splits["model"]
    )
    return all(jax.tree.leaves(fits))
