"""Batches that are dicts, as loaders give them: {"image": ..., "label": ...}, or of any keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtssm import checks
from jtssm.arrays import Tree

KEYS = ("image", "label")  # of the x and the y of a dict, as tensorflow-datasets and datasets say
PLACES = ("get_state", "set_state", "set_epoch")


def as_pair(given: Any) -> Any:
    """A dict with an image and a label as the pair (x, y); anything else as it is."""
    if isinstance(given, Mapping) and all(key in given for key in KEYS):
        return tuple(given[key] for key in KEYS)
    return given


def pairs(batches: Iterable[Mapping], x: str | Sequence[str], y: str) -> Pairs:
    """Batches that are dicts as the pairs (x, y) that `fit` and `evaluate` take.

    Dicts of {"image", "label"} they take as they are.

    Args:
      batches: an iterable of dicts of arrays [samples, ...].
      x: the key of the samples; or several, of a network that takes a tree: then x is a dict of them.
      y: the key of the targets.

    Returns:
      An iterable: one that starts anew where `batches` does, with the place in the stream (`get_state`,
      `set_state`, `set_epoch`) where `batches` and its iterator have it.

    Raises:
      ValueError: bad keys; while it is read, a batch without them.

    Examples:
      >>> import numpy as np
      >>> from jtssm import data
      >>> batches = [{"tokens": np.zeros((8, 16), int), "next": np.zeros((8, 16), int), "id": 3}]
      >>> [(x.shape, y.shape) for x, y in data.pairs(batches, x="tokens", y="next")]
      [((8, 16), (8, 16))]
    """
    return Pairs(batches, x if isinstance(x, str) else tuple(x), y)


class Pairs:
    """See `pairs`."""

    def __init__(self, batches: Iterable[Mapping], x: str | tuple[str, ...], y: str):
        keys = [x] if isinstance(x, str) else [*x]
        for name, key in [("x", key) for key in keys] + [("y", y)]:
            if not isinstance(key, str) or not key:
                raise ValueError(f"{name}: expected a key, e.g. 'image'; got {checks.shown(key)}")
        if not keys or isinstance(batches, (Mapping, str)) or not isinstance(batches, Iterable):
            raise ValueError(
                f"batches: expected an iterable of dicts and at least one key; got "
                f"{checks.shown(batches)}"
            )
        self.batches, self.x, self.y = batches, x, y

    def __iter__(self) -> Pairs:
        opened = iter(self.batches)
        return self if opened is self.batches else Pairs(opened, self.x, self.y)

    def __next__(self) -> tuple[Tree, Any]:
        batch = next(self.batches)  # type: ignore[call-overload]
        keys = [self.x] if isinstance(self.x, str) else [*self.x]
        if not isinstance(batch, Mapping) or any(key not in batch for key in (*keys, self.y)):
            got = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"batches: expected dicts with {[*keys, self.y]}; got {got}")
        x = batch[self.x] if isinstance(self.x, str) else {key: batch[key] for key in keys}
        return x, batch[self.y]

    def __getattr__(self, name: str) -> Any:
        """What tells the place in the stream, where the batches have it."""
        if name in PLACES:
            return getattr(self.batches, name)
        raise AttributeError(name)
