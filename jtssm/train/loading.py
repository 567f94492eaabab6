"""The weights of a checkpoint, without the method that trained them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jtssm.arrays import Tree
from jtssm.sharding.agreement import check_all_ask
from jtssm.train import document as documents
from jtssm.train.checkpoint import STEPS, check_folder, local
from jtssm.train.recipes import made, named
from jtssm.train.stored import Stored, check, quiet
from jtssm.train.written import is_written, read_params


def load_params(folder: str | Path, step: int | None = None) -> list[Tree]:
    """The network's parameters from a folder of checkpoints (`jtssm.fit(checkpoint=folder)`), or saved.

    Neither the method nor the mesh that trained them is needed, and a run may go on in the folder
    meanwhile. `network.apply(params, x)` and `fit(params=params)` take them.

    Args:
      folder: of the checkpoints; or that `Result.save` or `jtssm train` wrote, or its params.npz.
      step: which of them; None: the newest.

    Returns:
      One tree a layer, of dicts and lists (a NamedTuple comes as a dict) of numpy arrays, as in
      `Result.params`; with minibatches in flight (streaming schedules), as they are amid those.

    Raises:
      ValueError: no such checkpoint, a damaged one, or one of a method whose `params` computes more than
        other shapes of its state's arrays.
      ImportError: orbax-checkpoint is not installed.

    Examples:
      >>> import tempfile, jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> x, y = synthetic.separable(0, 100, 4, 3)
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.adam(1e-2), batch_size=50)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = jtssm.fit(method, (x, y), epochs=1, key=jax.random.key(0), checkpoint=folder)
      ...     params = jtssm.load_params(folder)
      >>> bool((params[1]["W"] == result.params[1]["W"]).all())
      True
    """
    check_all_ask("load_params")
    path = local(folder)
    if is_written(path):
        return _written(path, step)
    check_folder(path)
    if not (path / STEPS).is_dir():
        raise ValueError(f"folder: expected one with checkpoints; got {path}")
    with quiet():
        stored = Stored(path / STEPS, keep=None)
        try:
            return _params(stored, path, step)
        finally:
            stored.close()


def _written(path: Path, step: int | None) -> list[Tree]:
    """Of `Result.save`: there is but one."""
    if step is not None:
        raise ValueError(f"step: expected None with saved weights, {path}; got {step!r}")
    return read_params(path)


def _params(stored: Stored, path: Path, step: int | None) -> list[Tree]:
    steps = stored.steps()
    if not steps or (step is not None and step not in steps):
        raise ValueError(f"step: expected one of {steps}, the steps in {path}; got {step!r}")
    step = steps[-1] if step is None else step
    try:
        document = documents.read(stored.document(step))
        trees = document["weights"]
        found = {} if trees is None else _arrays(stored, step, document, trees)
    except Exception as error:  # orbax and tensorstore have many
        line = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise ValueError(f"folder: step {step} in {path} is damaged ({line})") from error
    if trees is None:
        raise ValueError(
            f"folder: expected checkpoints of a method whose parameters are its state's arrays; got "
            f"{path}, of {document['run'].get('method')}, which computes them"
        )
    return [made(tree, found.__getitem__) for tree in trees]


def _arrays(stored: Stored, step: int, document: dict, trees: list) -> dict[str, np.ndarray]:
    """The arrays that the parameters are made of, which are what was saved."""
    names = sorted(set().union(*map(named, trees)))
    found = stored.numbers(step, [name for name in names if name in document["checksums"]])
    check(found, document["checksums"])
    return found
