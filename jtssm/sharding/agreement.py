"""What several processes must have in common, and how an error of one becomes one of all.

With one process all of this costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from jtssm.sharding.distributed import largest, told_by_all

MOST = 300  # characters of a value in a message
KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, OSError, ImportError)
}
_alone: list[str] = []  # why what runs now runs in this process alone


def same_in_all(words: Mapping[str, Any]) -> None:
    """What each process says of its arguments is the same; all processes must ask.

    Args:
      words: name of an argument -> what JSON holds.

    Raises:
      ValueError: in every process: the arguments that differ, and their values.
    """
    said = [_flat(each) for each in told_by_all(words)]
    names = dict.fromkeys(name for each in said for name in each)
    differ = [name for name in names if any(each.get(name) != said[0].get(name) for each in said)]
    if differ:
        raise ValueError("; ".join(_told(n, [each.get(n) for each in said]) for n in differ[:5]))


def _flat(words: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a: b": 1}."""
    found: dict[str, Any] = {}
    for name, value in words.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}: ")
        else:
            found[f"{before}{name}"] = value
    return found


def _told(name: str, values: Sequence[Any]) -> str:
    """An argument that differs, with the processes that have each value."""
    kinds = list({repr(value): value for value in values}.values())
    have = [[p for p, value in enumerate(values) if value == kind] for kind in kinds]
    got = "; ".join(
        f"{_shown(kind)} in process{'es' * (len(p) > 1)} {', '.join(map(str, p))}"
        for kind, p in zip(kinds, have, strict=True)
    )
    return f"{name}: expected the same in every process; got {got}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def end_all(error: BaseException | None) -> None:
    """What one process raised ends all; every process must ask, with None where nothing is wrong.

    Raises:
      BaseException: this process's own error; else, if another has one, an error of its kind (ValueError,
        OSError, ImportError, of others RuntimeError) that says whose it is.
    """
    if not largest(error is not None):
        return
    said = told_by_all(None if error is None else [type(error).__name__, str(error)])
    if error is not None:
        raise error
    process, (kind, text) = next((p, a) for p, a in enumerate(said) if a is not None)
    raise KINDS.get(kind, RuntimeError)(f"process {process} raised {kind}: {text}")


@contextmanager
def ending_all() -> Iterator[None]:
    """What this block raises in one process it raises in all; it asks nothing of the others itself."""
    if jax.process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except BaseException as raised:
        error = raised
    end_all(error)


@contextmanager
def alone(why: str) -> Iterator[None]:
    """This block runs in some of the processes only: what all must ask is refused in it."""
    _alone.append(why)
    try:
        yield
    finally:
        _alone.pop()


def check_all_ask(what: str) -> None:
    """What all processes must ask is asked where all of them are.

    Raises:
      ValueError: in what runs in some of them only.
    """
    if _alone:
        raise ValueError(
            f"{what}: expected to be asked in every process, which it takes; got it asked in {_alone[-1]}"
        )
