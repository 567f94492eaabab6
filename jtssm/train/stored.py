"""The arrays of a checkpoint, as orbax writes and reads them: each by its path in the state."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from jtssm.arrays import Array, Tree
from jtssm.protocol.method import Method
from jtssm.protocol.stages import StageProgram
from jtssm.sharding.mesh import AXES
from jtssm.sharding.placement import place
from jtssm.sharding.placement.on_host import gathered
from jtssm.sharding.slots import Slots
from jtssm.train.checksums import checksums, is_key
from jtssm.train.document import EMPTY_LAST
from jtssm.train.record import Document

STATES = {
    "state": "",
    "sound": "sound: ",
}  # of a checkpoint, and what their arrays' names begin with


class Stored:
    """A folder of numbered steps that orbax keeps; nothing else may stand in it.

    Raises:
      ImportError: orbax is not installed.
    """

    def __init__(self, path: Path, keep: int | None):
        self._orbax = need_orbax()
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=keep is not None, read_only=keep is None
        )
        self._manager = self._orbax.CheckpointManager(path, options=options)

    def steps(self) -> list[int]:
        """Those there are, the newest last."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, arrays: Mapping[str, Array], document: Document) -> None:
        """Write in the background; what went wrong with the one before is raised here."""
        args = self._orbax.args
        parts = {"arrays": args.PyTreeSave(arrays), "run": args.JsonSave(document)}
        self._manager.save(step, args=args.Composite(**parts))

    def wait(self) -> None:
        """Until everything is written; what went wrong is raised here."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Let the background work end; errors were raised by `wait`, or another one is on its way."""
        try:
            self._manager.close()
        except Exception:
            self._manager = None

    def document(self, step: int) -> Any:
        """What was saved beside the arrays."""
        args = self._orbax.args
        return self._manager.restore(step, args=args.Composite(run=args.JsonRestore())).run

    def numbers(self, step: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some of the arrays, by name, in host memory."""
        return self._read(step, dict.fromkeys(names, self._orbax.RestoreArgs(np.ndarray)))

    def leaves(
        self,
        step: int,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        mesh: Mesh | None,
        on_host: bool,
    ) -> dict[str, Array | np.ndarray]:
        """Arrays by name, on the mesh as their shapes say or in host memory."""
        kinds = self._orbax

        def how(a: jax.ShapeDtypeStruct) -> Any:  # orbax's RestoreArgs
            if on_host and not is_key(a):
                return kinds.RestoreArgs(restore_type=np.ndarray)
            to = _whole(mesh) if on_host else a.sharding  # numpy has no keys
            return kinds.ArrayRestoreArgs(sharding=to, global_shape=a.shape, dtype=a.dtype)

        return self._read(step, {name: how(a) for name, a in shapes.items()})

    def _read(self, step: int, how: Mapping[str, Any]) -> dict[str, Any]:
        args = self._orbax.args
        restore = args.PyTreeRestore(
            item=dict.fromkeys(how, 0), restore_args=dict(how), partial_restore=True
        )
        return self._manager.restore(step, args=args.Composite(arrays=restore)).arrays


def names(tree: Tree) -> list[str]:
    """Of each array of a tree its path, e.g. weights.0.params.1.W; no two are alike."""
    found: dict[str, None] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        while name in found:
            name += "'"
        found[name] = None
    return list(found)


def arrays_of(states: Mapping[str, Tree]) -> dict[str, Array]:
    """The arrays of states by name, none that has no numbers."""
    named = {
        STATES[which] + name: a if isinstance(a, jax.Array) else jnp.asarray(a)
        for which, tree in states.items()
        for name, a in zip(names(tree), jax.tree.leaves(tree), strict=True)
    }
    return {name: a for name, a in named.items() if a.size}


def states_of(stored: Stored, step: int, document: Document, method: Method, state: Tree) -> dict:
    """The states of a checkpoint on the method's mesh; state: shapes of the unplaced state.

    Raises:
      ValueError: an array is not what was saved, or lies in slots that are filled otherwise now.
    """
    _check_slots(document, method)
    wanted, saved = method.spread(state), _placed_as(document["layout"], method, state)
    alike, mesh = _alike(saved, wanted), method.mesh
    tree = wanted if alike else saved
    which = ["state", "sound"] if document["apart"] else ["state"]
    shapes = {
        STATES[w] + n: a
        for w in which
        for n, a in zip(names(tree), jax.tree.leaves(tree), strict=True)
    }
    found = stored.leaves(
        step, {n: a for n, a in shapes.items() if a.size}, mesh, on_host=not alike or mesh is None
    )
    check(found, document["checksums"])
    blank = lambda a: np.zeros(a.shape, a.dtype)  # what has no numbers was not written
    leaves = iter([found[n] if a.size else blank(a) for n, a in shapes.items()])
    trees = [jax.tree.map(lambda _: next(leaves), tree) for _ in which]
    _, pr, _ = document["layout"]["mesh"] or (1, 1, 1)
    return dict(zip(which, [_laid_out(each, method, alike, pr) for each in trees], strict=True))


def _check_slots(document: Document, method: Method) -> None:
    """Arrays lie as on their mesh, a row a slot: which rows are empty is not told by their shapes.

    Raises:
      ValueError: those of the format before, on a mesh with empty slots.
    """
    mesh, program = document["layout"]["mesh"], method.program
    if document["format"] != EMPTY_LAST or mesh is None or not isinstance(program, StageProgram):
        return
    if Slots(program.stages.num, mesh[0]).empty:
        raise ValueError(
            f"it has format {EMPTY_LAST}, whose empty slots were the last ones, and lies on a mesh with "
            f"some, {program.stages.num} pieces on subnet = {mesh[0]}: take the jtssm that wrote it"
        )


def check(found: Mapping[str, Array | np.ndarray], there: Mapping[str, int]) -> None:
    """Arrays, by name, have the checksums that they had.

    Raises:
      ValueError: one has another.
    """
    seen = dict(zip(found, checksums(list(found.values())), strict=True))
    wrong = [name for name, number in seen.items() if there.get(name) != number]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(seen)} arrays have another checksum: {wrong[0]}")


def _laid_out(tree: Tree, method: Method, alike: bool, pr: int) -> Tree:
    """The tree on the method's mesh; pr: of the mesh it was saved from."""
    if method.mesh is None:
        return jax.tree.map(jnp.asarray, gathered(tree, pr))
    return tree if alike else method.spread(gathered(tree, pr))


def need_orbax() -> ModuleType:
    """orbax.checkpoint.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "checkpoint: expected orbax-checkpoint to be installed: pip install 'jtssm[checkpoint]'"
        ) from error
    return orbax.checkpoint


def _alike(saved: Tree, wanted: Tree) -> bool:
    """Whether two states hold the same arrays, wherever these lie."""
    pairs = zip(jax.tree.leaves(saved), jax.tree.leaves(wanted), strict=False)
    structure: Any = jax.tree.structure
    same = structure(saved) == structure(wanted)
    return same and all(a.shape == b.shape for a, b in pairs)


def _whole(mesh: Mesh | None) -> Sharding:
    """Of an array that lies whole on every device of a mesh, or on one."""
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, PartitionSpec())


def _placed_as(layout: Document, method: Method, state: Tree) -> Tree:
    """Shapes of a state as it lay on a mesh that need not be there."""
    if layout["mesh"] is None:
        return state
    mesh = AbstractMesh(tuple(layout["mesh"]), AXES, axis_types=(AxisType.Auto,) * 3)
    return place(method, cast(Mesh, mesh), forms=layout["forms"] or "auto").spread(state)


_before_ours = [sys.unraisablehook]


def _unraisable(found: Any) -> None:
    """A hook that is never freed: a thread of tensorstore's may call it while another takes it away."""
    if "Event loop is closed" not in str(found.exc_value):
        _before_ours[0](found)


@contextmanager
def quiet() -> Iterator[None]:
    """What orbax logs of its errors, tracebacks of hundreds of lines, is left out: they are raised.

    So is what tensorstore says when it tells an event loop that orbax has closed of its end.
    """
    log, others = logging.getLogger("absl"), lambda record: "orbax" not in record.pathname
    before = sys.unraisablehook
    if before is not _unraisable:
        _before_ours[0] = before
    log.addFilter(cast(Callable, others))
    sys.unraisablehook = _unraisable
    try:
        yield
    finally:
        log.removeFilter(cast(Callable, others))
        if sys.unraisablehook is _unraisable:
            sys.unraisablehook = before
