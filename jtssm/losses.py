"""The loss at the last layer: its value for each sample, its prox, and the accuracy beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jtssm import checks
from jtssm.arrays import Array, Scalar


class Loss(NamedTuple):
    """A loss of outputs [samples, ..., k] against y: one number a sample, or one a position of it.

    What is minimised is the weighted mean, sum(value * weight) / sum(weight), over all samples of a
    minibatch, whichever devices they lie on; training and evaluation show the same mean.
    """

    name: str
    value: Callable[[Array, Array], Array]  # (outputs, y) -> [samples] or [samples, ...]
    correct: Callable[[Array, Array], Array]  # (outputs, y) -> the same shape, 1 where right
    # y are labels 0 .. k - 1, [samples, ...] as outputs but for the last axis; False: targets like
    # outputs; None: whatever `value` takes
    labels: bool | None
    # (start, m, y, nu) -> argmin_z value(z; y) + (nu / 2) |z - m|^2, all [samples, k]; None: unknown
    prox: Callable[[Array, Array, Array, Scalar], Array] | None = None
    weight: Callable[[Array], Array] | None = None  # y -> like value, at least 0; None: 1 each
    ignored: int | None = None  # a label that has no weight


class Metric(NamedTuple):
    """A number beside the loss: finish(weighted mean of value), with the weights of the loss."""

    value: Callable[[Array, Array], Array]  # (outputs, y) -> [samples] or [samples, ...]
    finish: Callable[[Array], Array] = lambda mean: mean


def _label_correct(outputs: Array, y: Array) -> Array:
    return (jnp.argmax(outputs, axis=-1) == y).astype(outputs.dtype)


NEWTON_STEPS = 100  # most steps of the prox of cross-entropy
Newton = tuple[Array, Array, int | Array]  # z, whether the last step was long, steps so far


def _cross_entropy_prox(start: Array, m: Array, y: Array, nu: Scalar) -> Array:
    """Damped Newton, all samples at once, until no step is longer than sqrt(eps).

    With s = softmax(z), D = s + nu, g = s - onehot + nu (z - m) the Hessian is D - s s^T, and

        H^-1 g = g / D + (s / D) (sum g s / D) / (sum nu s / D).

    Along a direction d the curvature grows at most as exp(t range(d)), so the step
    t = log(1 + range(d)) / range(d) never overshoots: the cost falls from any start.
    """
    target = jax.nn.one_hot(y, m.shape[-1], dtype=m.dtype)

    def newton(carry: Newton) -> Newton:
        z, _, i = carry
        s = jax.nn.softmax(z)
        sums = lambda a: a.sum(axis=-1, keepdims=True)
        others = sums(s * (1 - target))  # 1 - s at the label, without its cancellation
        g = jnp.where(target > 0, -others, s) + nu * (z - m)
        D = s + nu
        d = g / D + s / D * (sums(g * s / D) / sums(nu * s / D))
        reach = d.max(axis=-1, keepdims=True) - d.min(axis=-1, keepdims=True)
        t = jnp.where(reach > 0, jnp.log1p(reach) / jnp.where(reach > 0, reach, 1), 1)
        return z - t * d, jnp.any(reach > jnp.finfo(z.dtype).eps ** 0.5), i + 1

    going = lambda carry: carry[1] & (carry[2] < NEWTON_STEPS)
    first = jnp.any(start == start) & jnp.any(m == m)  # True, marked as varying where m is
    carry: Newton = start, first, 0
    return lax.while_loop(going, newton, carry)[0]


def cross_entropy(
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """Softmax cross-entropy of integer labels: [samples] for outputs [samples, k], or [samples, t, ...].

    Args:
      ignore_index: a label that counts nothing, e.g. -100 for padding; None: all labels count.
      label_smoothing: the share of the target that is spread evenly over all k classes.
      class_weights: [k] weight of each label in the mean.

    Raises:
      ValueError: a share outside [0, 1), weights that are negative or none of them above 0.

    Examples:
      >>> from jtssm import losses
      >>> losses.cross_entropy(ignore_index=-100).name
      'cross_entropy(ignore_index=-100)'
    """
    given: dict[str, object] = {}
    if ignore_index is not None:
        if not checks.is_integer(ignore_index):
            raise ValueError(
                f"ignore_index: expected None or an integer, e.g. -100; got {checks.shown(ignore_index)}"
            )
        given["ignore_index"] = ignore_index = int(ignore_index)
    smooth = checks.share("label_smoothing", label_smoothing, 0.1, whole=False)
    if smooth:
        given["label_smoothing"] = smooth
    table = None
    if class_weights is not None:
        table = _class_weights(class_weights)
        given["class_weights"] = table.tolist()

    def known(y: Array) -> Array:
        return y if ignore_index is None else jnp.where(y == ignore_index, 0, y)

    def value(outputs: Array, y: Array) -> Array:
        hard = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, known(y))
        if not smooth:
            return hard
        even = jax.nn.logsumexp(outputs, axis=-1) - outputs.mean(axis=-1)
        return (1 - smooth) * hard + smooth * even

    def weight(y: Array) -> Array:
        counts = (
            jnp.ones(jnp.shape(y), float) if ignore_index is None else 1.0 * (y != ignore_index)
        )
        return counts if table is None else counts * jnp.asarray(table)[known(y)]

    plain = ignore_index is None and table is None
    words = ", ".join(f"{name}={value}" for name, value in given.items())
    return Loss(
        f"cross_entropy({words})" if words else "cross_entropy",
        value,
        _label_correct,
        labels=True,
        prox=None if smooth else _cross_entropy_prox,
        weight=None if plain else weight,
        ignored=ignore_index,
    )


def _class_weights(given: Sequence[float]) -> np.ndarray:
    table = np.asarray(given, float)
    if table.ndim != 1 or not np.isfinite(table).all() or (table < 0).any() or not table.any():
        raise ValueError(
            f"class_weights: expected one number a class, none below 0, not all 0, e.g. [1.0, 2.0]; "
            f"got {checks.shown(given)}"
        )
    return table


def sigmoid_cross_entropy() -> Loss:
    """Of several labels at once: targets [samples, ..., k] of 0 and 1, the mean over the k labels.

    Right is the share of labels whose output has the right sign.
    """
    right = lambda outputs, y: ((outputs > 0) == (y > 0.5)).mean(axis=-1).astype(outputs.dtype)
    mean = lambda outputs, y: optax.losses.sigmoid_binary_cross_entropy(outputs, y).mean(axis=-1)
    return Loss("sigmoid_cross_entropy", mean, right, labels=False)


def squared_error() -> Loss:
    """|outputs - y|^2 / 2 over the last axis, of targets [samples, ..., k]."""
    return Loss(
        "squared_error",
        lambda outputs, y: optax.losses.squared_error(outputs, y).sum(axis=-1) / 2,
        lambda outputs, y: jnp.zeros(outputs.shape[:-1], outputs.dtype),
        labels=False,
        prox=lambda start, m, y, nu: (y + nu * m) / (1 + nu),
    )


def perplexity(*, ignore_index: int | None = None) -> Metric:
    """exp of the mean cross-entropy of labels."""
    return Metric(cross_entropy(ignore_index=ignore_index).value, jnp.exp)


LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": squared_error,
}


def find(loss: str | Loss | Callable[[Array, Array], Array]) -> Loss:
    """A loss by its name, the loss itself, or one of a function (outputs, y) -> one number a sample.

    Of a function "right" is the label with the largest output where y are such labels, else nothing.

    Raises:
      ValueError: an unknown name, something else.
    """
    if isinstance(loss, Loss):
        return loss
    for make in LOSSES.values():
        if loss is make:
            return make()
    if callable(loss) and _takes_two(loss):
        name = getattr(loss, "__qualname__", type(loss).__name__).split(".<locals>.")[-1]
        return Loss(name, loss, _labels_right, labels=None)
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(
            f"loss: expected one of {sorted(LOSSES)}, a function (outputs, y) -> one number a sample, or "
            f"a losses.Loss; got {checks.shown(loss)}"
        )
    return LOSSES[loss]()


def _takes_two(function: Callable) -> bool:
    """Whether a function, no class, can be called with outputs and y."""
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return not isinstance(function, type)


def _labels_right(outputs: Array, y: Array) -> Array:
    """Of labels as `_label_correct`; of anything else 0."""
    labels = jnp.issubdtype(jnp.result_type(y), jnp.integer) and y.shape == outputs.shape[:-1]
    return _label_correct(outputs, y) if labels else jnp.zeros(outputs.shape[:1], outputs.dtype)


class Sums(NamedTuple):
    """Sums over some samples, of which means are made: scalars."""

    loss: Array  # value * weight
    right: Array  # correct * weight
    weight: Array  # of a loss without weights the number of samples

    def means(self) -> tuple[Array, Array]:
        """(mean loss, share that is right); nan where nothing has weight."""
        return self.loss / self.weight, self.right / self.weight


def summed(loss: Loss, outputs: Array, y: Array) -> Sums:
    """Loss and right answers of the samples at hand, outputs [samples, ..., k]."""
    value, right = loss.value(outputs, y), loss.correct(outputs, y)
    if loss.weight is None:
        number = jnp.full((), value.shape[0], value.dtype)
    else:
        number = loss.weight(y).astype(value.dtype).sum()
    return Sums(total(loss, y, value), total(loss, y, right), number)


def total(loss: Loss, y: Array, a: Array) -> Array:
    """Sum of numbers [samples] or [samples, ...] times their weights.

    Without weights the numbers of a sample together count as one. What has no weight counts nothing, were
    it not finite.
    """
    if loss.weight is None:
        return a.sum() / (a.size // a.shape[0])
    weight = loss.weight(y).astype(a.dtype)
    if a.shape != weight.shape:  # one number a sample beside weights of its positions
        weight = weight.reshape(len(weight), -1).mean(axis=1)
    return (jnp.where(weight > 0, a, 0) * weight).sum()
