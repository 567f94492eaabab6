"""The document of a checkpoint: where a run stands and what it is, as JSON holds it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from types import NoneType
from typing import Any

import jax

from jtssm.protocol.method import Method
from jtssm.sharding.mesh import axis_size
from jtssm.train.divergence import Divergence
from jtssm.train.position import Checkpoint, Position, Sound
from jtssm.train.record import Document, plain

FORMAT = 5
EMPTY_LAST = 4  # read, too: where a mesh has empty slots, these were the last ones
NUMBER = (int, float)
POSITION: dict[str, Any] = {
    "start": int,
    "end": int,
    "chunks": int,
    "steps": int,
    "lines": int,
    "order": dict,
    "infos": bool,
    "seconds": NUMBER,
}
FIELDS: dict[str, Any] = {
    "versions": dict,
    "cores": int,
    "run": dict,
    "begun": (int, NoneType),
    "layout": {"mesh": (list, NoneType), "forms": (list, NoneType)},
    "position": POSITION,
    "sound": (dict, NoneType),
    "apart": bool,
    "journal": {"history": list, "infos": list},
    "odd": int,
    "stopped": int,
    "halvings": list,
    "checksums": dict,
    "weights": (list, NoneType),
}


def written(checkpoint: Checkpoint, method: Method, **more: Any) -> Document:
    """The document of a checkpoint with its crc32; more: the fields that others know."""
    sound = checkpoint.sound
    document = {
        "format": FORMAT,
        "versions": {"jax": jax.__version__},
        "cores": cores(),
        "layout": _layout(method),
        "position": checkpoint.position.document(),
        "sound": sound and sound.position.document(),
        "apart": sound is not None and sound.state is not checkpoint.state,
        "odd": checkpoint.odd,
        "stopped": checkpoint.stopped,
        "halvings": [tuple(halving) for halving in checkpoint.halvings],
        **more,
    }
    text = json.dumps(document, default=plain)
    return {"text": text, "crc32": zlib.crc32(text.encode())}


def read(kept: Any) -> Document:
    """The document that `written` gave.

    Raises:
      ValueError: it is damaged, of another format, or has fields of other types.
    """
    _check("", kept, {"text": str, "crc32": int})
    if zlib.crc32(kept["text"].encode()) != kept["crc32"]:
        raise ValueError("its document has another checksum")
    document = json.loads(kept["text"])
    _check("", document, {"format": int})
    check_format(document["format"])
    _check("", document, FIELDS)
    if document["sound"] is not None:
        _check("sound.", document["sound"], POSITION)
    return document


def check_format(there: object) -> None:
    """Raises ValueError: checkpoints of a format that is not read."""
    if there not in (EMPTY_LAST, FORMAT):
        raise ValueError(f"it has format {there}, this jtssm reads {EMPTY_LAST} and {FORMAT}")


def checkpoint_of(
    document: Document, trees: Mapping[str, Any], history: list, infos: Any
) -> Checkpoint:
    """What `written` was given.

    Args:
      trees: its states, `state` and, where that is another, `sound`.
      history, infos: from its journal.
    """
    sound = document["sound"]
    return Checkpoint(
        trees["state"],
        Position.of(document["position"], infos),
        sound and Sound(trees.get("sound", trees["state"]), Position.of(sound, ())),
        history,
        tuple(Divergence(*halving) for halving in document["halvings"]),
        document["odd"],
        document["stopped"],
    )


def check_order(there: Document, like: Document) -> None:
    """What is said of the order of samples is as a feed says it.

    Raises:
      ValueError: other fields, or other types.
    """
    _check("checkpoint: order.", there, {name: type(value) for name, value in like.items()})


def cores() -> int:
    """How many cores this process may use, among which XLA divides its work on CPUs."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _layout(method: Method) -> Document:
    """How a method's state lies: the sizes of its mesh and the forms of its layers."""
    at = method.placement
    sizes = None if at is None else [axis_size(at.mesh, name) for name in at.axes]
    return {"mesh": sizes, "forms": method.forms and list(method.forms)}


def _check(where: str, document: Any, fields: Mapping[str, Any]) -> None:
    """Every field is there, of its type."""
    if not isinstance(document, dict):
        raise ValueError(
            f"{where or 'its document'}: expected a dict; got {type(document).__name__}"
        )
    for name, kind in fields.items():
        value = document.get(name)
        if isinstance(kind, Mapping):
            _check(f"{where}{name}.", value, kind)
            continue
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds or name not in document:
            expected = " or ".join(each.__name__ for each in kinds)
            raise ValueError(f"{where}{name}: expected {expected}; got {type(value).__name__}")
