"""What a layer is handed from outside: products of weights, windows of images, means.

On one device these are plain functions (`PLAIN`); a grid hands in its own versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import cast, float_dtype, floating

PRODUCT = "product"  # what a product of tokens is called, for who keeps it of a forward pass


class Window(NamedTuple):
    """What an output pixel of an image [h, w, c] sees: size x size pixels, every `stride` pixels."""

    size: int
    stride: int = 1
    padding: str = (
        "VALID"  # or "SAME": ceil(h / stride) outputs, the odd pixel of padding at the end
    )

    def outputs(self, n: int) -> int:
        """Output pixels along a side of n; below 1 where the window is larger than the image."""
        over = self.size - 1 if self.padding == "VALID" else 0
        return -(-(n - over) // self.stride)

    def pads(self, n: int) -> tuple[int, int]:
        """Pixels of padding before and after a side of n."""
        if self.padding == "VALID":
            return 0, 0
        total = max(0, (self.outputs(n) - 1) * self.stride + self.size - n)
        return total // 2, total - total // 2


def plain_windowed(fn: Callable[..., Array], x: Array, window: Window, fill: float) -> Array:
    """fn(x, padding of the height, of the width) for x [b, h, w, c] on one device."""
    del fill  # what fn itself pads with
    return fn(x, window.pads(x.shape[1]), window.pads(x.shape[2]))


def plain_convolved(
    x: Array, W: Array, window: Window, pads: tuple[tuple[int, int], ...], groups: int
) -> Array:
    """x [b, h, w, i] convolved with W [size, size, i / groups, o] -> [b, h', w', o]."""
    return lax.conv_general_dilated(
        x,
        W,
        (window.stride,) * 2,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _over_samples(a: Array) -> Array:
    return a.mean(axis=tuple(range(a.ndim - 1)))


def _over_neurons(a: Array) -> Array:
    return a.mean(axis=tuple(range(1, a.ndim)), keepdims=True)


def _drawn(draw: Callable[[Array, tuple[int, ...]], Array], keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: draw(key, x.shape[1:]))(keys)


def plain_dense(x: Array, W: Array, b: Array | None) -> Array:
    """x W + b on one device: x [samples, ..., inputs], W [inputs, outputs], b [outputs]."""
    return biased(_product(x, W), b)


def _product(x: Array, W: Array) -> Array:
    """x W as a product of matrices, also in the gradient of W.

    XLA for CPUs first transposes arrays of which it sums over several dimensions: the gradient of a
    transformer took twice as long. x is what its gradient keeps, not the matrix of its rows: samples are
    then known by their dimension (`jtssm.solvers.tssm.residuals`).
    """
    if x.ndim == 2:
        return x @ W
    *lead, inputs = x.shape  # by their numbers: there may be no samples
    flat = lambda x, W: (x.reshape(prod(lead), inputs) @ W).reshape(*lead, W.shape[1])
    return checkpoint_name(jax.checkpoint(flat, prevent_cse=False)(x, W), PRODUCT)


def biased(z: Array, b: Array | None) -> Array:
    """z [..., outputs] + b [outputs]; None: z."""
    return z if b is None else z + beside(b, z)


def beside(a: Array, z: Array) -> Array:
    """a [width] with as many dimensions as z [b, ..., width]."""
    return a.reshape((1,) * (z.ndim - 1) + (-1,))


def varying(x: Tree, axes: Sequence[str]) -> Tree:
    """x marked as differing along the axes, so that no gradient is summed over them unasked."""

    def mark(a: Array) -> Array:
        missing = tuple(n for n in axes if n not in jax.typeof(a).manual_axis_type.varying)
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(lambda a: mark(jnp.asarray(a)), x)


class Mode(NamedTuple):
    """Whether a layer trains, and what it draws from then."""

    training: bool = False  # statistics come from the minibatch, and dropout drops
    keys: Callable[[], Array] | None = None  # () -> one key a sample, the same on any mesh


def _same(a: Tree) -> Tree:
    return a


def _cast(a: Array, dtype: DTypeLike) -> Array:
    return a.astype(dtype)


class Hops(NamedTuple):
    """How parameters and samples come to where a layer works, and what it gives goes from there.

    A network calls them around its layers (`jtssm.nn.network.run_layers`); no layer does.
    """

    weights: Callable[[Tree], Tree] = _same  # parameters -> the same, as the layer's work uses them
    enter: Callable[[Tree], Tree] = _same  # what the layer before left -> x as the layer takes it
    leave: Callable[[Tree], Tree] = _same  # what the layer gives -> what it leaves behind
    # (a parameter, dtype) -> it in that dtype; devices sum its gradient in its own dtype
    narrowed: Callable[[Array, DTypeLike], Array] = _cast
    whole: Callable[[Tree], Tree] = _same  # parameters as they are stored -> whole ones
    # (parameters, x) -> outputs, which calls `whole` -> the same, as devices are to do it
    again: Callable[[Callable[[Tree, Array], Array]], Callable[[Tree, Array], Array]] = lambda f: f


class Products(NamedTuple):
    """The operations that a layer calls; a grid hands in its own versions."""

    # (x [b, ..., i], W [i, o], b [o] or None) -> [b, ..., o]
    dense: Callable[[Array, Array, Array | None], Array] = plain_dense
    # as `dense`, of columns that `dense` gave within the same layer: the second product of a pair
    second: Callable[[Array, Array, Array | None], Array] = plain_dense
    # (x [b, h, w, i], W, window, pads, groups) -> [b, h', w', o], pads of height and width
    convolved: Callable[..., Array] = plain_convolved
    # (fn, x [b, h, w, c], window, fill) -> fn(rows, pads of height, of width) for the rows that the
    # outputs here see; fill: what stands for pixels outside the image
    windowed: Callable[[Callable[..., Array], Array, Window, float], Array] = plain_windowed
    # [b, ..., width] -> [width]: mean over the samples (and pixels), those on other devices too
    over_samples: Callable[[Array], Array] = _over_samples
    # [b, ..., width] -> [b, 1, ...]: mean over the neurons of the layer, those on other devices too
    over_neurons: Callable[[Array], Array] = _over_neurons
    # (draw, keys [b], x [b, ...]) -> draw(key, shape of a whole sample) of each sample, as x lies here
    drawn: Callable[[Callable[[Array, tuple[int, ...]], Array], Array, Array], Array] = _drawn
    sample_axes: tuple[str, ...] = ()  # mesh axes that split the samples as this layer has them
    mode: Mode = Mode()
    hops: Hops = Hops()

    def to_train(self, keys: Callable[[], Array] | None = None) -> Products:
        """The same for a layer that trains; keys: as in `Mode`."""
        return self._replace(mode=Mode(True, keys))


PLAIN = Products()


# Mixed precision: layers compute in a `compute_dtype`, a narrow one such as bfloat16. Parameters and
# samples are cast on entry and outputs back at the end, so that gradients come back, by the transpose of
# these casts, in the dtype of the parameters. None: nothing is cast.


def narrowed(
    params: Tree, uncast: Sequence[str], dtype: DTypeLike | None, products: Products
) -> Tree:
    """A layer's parameters in the dtype it computes in, but for those named in `uncast`."""
    if dtype is None:
        return params
    narrow = lambda a: products.hops.narrowed(a, dtype) if floating(a) else a
    if not uncast:
        return jax.tree.map(narrow, params)
    return {n: a if n in uncast else jax.tree.map(narrow, a) for n, a in params.items()}


def entering(x: Tree, dtype: DTypeLike | None) -> Tree:
    """Samples with their floats in the dtype that a layer computes in."""
    return x if dtype is None else cast(x, dtype)


def widened(outputs: Tree, dtype: DTypeLike | None, *like: Tree) -> Tree:
    """Outputs back in the dtype of the floating arrays in `like`, where layers compute in `dtype`."""
    return outputs if dtype is None else cast(outputs, float_dtype(like))


def in_full(z: Array) -> Array:
    """z in float32 or wider: statistics are taken in it, whatever a layer computes in."""
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))
