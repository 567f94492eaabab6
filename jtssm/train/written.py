"""What is left of a run that is over: its history, and its weights with how trees are made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtssm import files
from jtssm.arrays import Tree
from jtssm.data import archives
from jtssm.sharding.distributed import is_first
from jtssm.train.recipes import made, named, recipes
from jtssm.train.record import plain, without_nan

HISTORY, PARAMS = "history.jsonl", "params.npz"
LONGEST = 2**28  # bytes of the document beside the weights
EXPECTED = "weights that save_params or Result.save wrote"


def save_params(path: str | Path, params: Sequence[Tree]) -> None:
    """The network's parameters as an .npz of arrays named by layer and path, e.g. `[0]['W']`.

    Beside it a .json says how trees are made of them, for `jtssm.load_params`. Of several processes the
    first writes both; files that are there are replaced once all is written.
    """
    if not is_first():
        return
    leaves = jax.tree_util.tree_leaves_with_path(list(params))
    arrays: Any = {jax.tree_util.keystr(name): np.asarray(a) for name, a in leaves}
    names = jax.tree_util.tree_map_with_path(lambda name, _: jax.tree_util.keystr(name), [*params])
    dtypes = {name: str(a.dtype) for name, a in arrays.items()}
    document = {"trees": recipes(lambda trees: trees, [*params], names), "dtypes": dtypes}
    with files.replacing(Path(path).with_suffix(".npz")) as new:
        np.savez(new, **arrays)
    with files.replacing(Path(path).with_suffix(".json")) as new:
        new.write_text(json.dumps(document) + "\n")


def saved(
    history: Sequence[Mapping[str, float]],
    params: Sequence[Tree],
    folder: Path,
    overwrite: bool,
) -> None:
    """See `Result.save`."""
    names = (HISTORY, PARAMS, Path(PARAMS).with_suffix(".json").name)
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not overwrite:
        raise ValueError(
            f"folder: expected none of {', '.join(there)} in {folder}; got them: name another folder, or "
            f"overwrite=True"
        )
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    told = (json.dumps(without_nan(line), default=plain) for line in history)
    with files.replacing(folder / HISTORY) as new:
        new.write_text("".join(line + "\n" for line in told))
    save_params(folder / PARAMS, params)


def is_written(path: Path) -> bool:
    """Whether these are weights that `save_params` wrote: the npz, or a folder with params.npz."""
    return path.suffix == ".npz" or ((path / PARAMS).is_file() and _document(path).is_file())


def read_params(path: Path) -> list[Tree]:
    """The weights that `save_params` wrote.

    Args:
      path: the npz, beside which its json lies, or a folder with params.npz.

    Raises:
      ValueError: another file, or a damaged one.
    """
    npz, told = (path if path.suffix == ".npz" else path / PARAMS), _document(path)
    try:
        document = json.loads(files.content(told, LONGEST))
        trees, dtypes = document["trees"], document["dtypes"]
        names = sorted(set().union(*map(named, trees)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{told}: expected {EXPECTED}; got {type(error).__name__}: {error}"
        ) from error
    again = "save them again"
    found = archives.arrays(npz, names, EXPECTED, again, npz.stat().st_size * archives.INFLATION)
    arrays = {name: _as(a, dtypes[name]) for name, a in zip(names, found, strict=True)}
    return [made(tree, arrays.__getitem__) for tree in trees]


def _document(path: Path) -> Path:
    return (path if path.suffix == ".npz" else path / PARAMS).with_suffix(".json")


def _as(a: np.ndarray, dtype: str) -> np.ndarray:
    """An array in its dtype: numpy's files know no bfloat16, whose bytes they keep."""
    return a.view(jnp.dtype(dtype)) if a.dtype.kind == "V" else a
