"""A folder in which jax keeps compiled programs, for as long as a run lasts.

jax writes a program there after compiling it, and other processes read it instead of compiling: on the
same devices, with the same versions and flags (jax's own documentation: persistent compilation cache).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jtssm import checks
from jtssm.train.checkpoint import local

# jax's own are a second and, on some file systems, a size: a small model's programs would not be kept
LIMITS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def check_cache(folder: str | Path | None) -> Path | None:
    """The folder, made if it is not there.

    Raises:
      ValueError: no folder of this machine.
      OSError: it cannot be made.
    """
    if folder is None:
        return None
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise ValueError(
            f"compilation_cache: expected a folder, e.g. 'run/compiled', or None; got "
            f"{checks.shown(folder)}"
        )
    path = local(folder, "compilation_cache")
    if path.exists() and not path.is_dir():
        raise ValueError(f"compilation_cache: expected a folder; got {str(folder)!r}, a file")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Whatever is compiled inside is read from the folder, or written there; None: as jax is set."""
    if folder is None:
        yield
        return
    ways = {"jax_compilation_cache_dir": str(folder), **LIMITS}
    before = {name: getattr(jax.config, name) for name in ways}
    _set(ways)
    try:
        yield
    finally:
        _set(before)


def _set(ways: dict[str, object]) -> None:
    for name, value in ways.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax opens a cache once, wherever it was then
