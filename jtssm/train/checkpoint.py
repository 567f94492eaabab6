"""Checkpoints of `fit`: what a run needs to go on, in a folder that orbax writes.

A checkpoint holds the state as it lies on the mesh (no device or host gathers it) and a document: where
the run stands, its history, what it is (`jtssm.train.fingerprint`) and a checksum of every array. orbax
reads an array straight onto another mesh; rows that are packed otherwise there pass through the host.
Checkpoints bear the number of steps done, or the next number where steps are done again.
"""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
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
from jtssm.sharding.mesh import AXES, axis_size
from jtssm.sharding.placement import place
from jtssm.sharding.placement.on_host import gathered
from jtssm.train.divergence import Divergence
from jtssm.train.fingerprint import checksums, differences, is_key
from jtssm.train.position import Checkpoint, Position, Sound
from jtssm.train.record import Document, plain

FORMAT = 3


class Folder:
    """The checkpoints of a run.

    Args:
      path: made if it is not there.
      keep: how many of the newest stay.
      run: the fingerprint of the run that wants them.

    Raises:
      ImportError: orbax is not installed.  ValueError: an address, such as gs://bucket/run.
      OSError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, keep: int, run: Document):
        self._orbax = need_orbax()
        if re.match(r"\w\w+:/", str(path)):  # as a path a folder "gs:" where the program runs
            raise ValueError(
                f"checkpoint: expected a folder of a file system, e.g. '/mnt/bucket/run' where a bucket "
                f"is mounted; got {str(path)!r}"
            )
        self.path, self.run = Path(path).absolute(), run
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"there is room")
        except OSError as error:
            raise OSError(
                f"checkpoint: expected a folder that can be written; got {self.path}: {error}"
            ) from error
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = self._orbax.CheckpointManager(self.path, options=options)

    def steps(self) -> list[int]:
        """The checkpoints there are, the newest last."""
        return sorted(self._manager.all_steps())

    def save(self, checkpoint: Checkpoint, method: Method) -> None:
        """Write in the background; what went wrong with the one before is raised here.

        Raises:
          OSError: it could not be written.
        """
        number = max([checkpoint.position.steps, *(n + 1 for n in self.steps())])
        trees = [checkpoint.state]
        apart = checkpoint.sound is not None and checkpoint.sound.state is not checkpoint.state
        if checkpoint.sound is not None and apart:
            trees.append(checkpoint.sound.state)
        arrays = _arrays(trees)
        document = {
            "format": FORMAT,
            "versions": {"jax": jax.__version__},
            "run": self.run,
            "layout": _layout(method),
            "position": checkpoint.position.document(),
            "sound": checkpoint.sound and checkpoint.sound.position.document(),
            "apart": apart,
            **{name: getattr(checkpoint, name) for name in ("history", "odd", "stopped")},
            "halvings": [tuple(halving) for halving in checkpoint.halvings],
            "checksums": checksums(list(arrays.values())),
        }
        text, orbax = json.dumps(document, default=plain), self._orbax
        with self._writing(number):
            self._manager.save(
                number,
                args=orbax.args.Composite(
                    arrays=orbax.args.PyTreeSave(arrays),
                    run=orbax.args.JsonSave({"text": text, "crc32": zlib.crc32(text.encode())}),
                ),
            )

    def wait(self) -> None:
        """Until everything is written.

        Raises:
          OSError: it could not be.
        """
        with self._writing(max(self.steps(), default=0)):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Let the background work end; errors were raised by `wait`, or another one is on its way."""
        try:
            self._manager.close()
        except Exception:
            self._manager = None

    def load(self, method: Method, state: Tree, step: int | None) -> Checkpoint | None:
        """The newest checkpoint, or that of a step, on the method's mesh; None: there is none.

        Args:
          state: shapes of the unplaced state.

        Raises:
          ValueError: there is no such step, it is damaged, or of another run.
        """
        steps = self.steps()
        if step is not None:
            _check_resume(step, steps, self.path)
        elif not steps:
            return None
        step = steps[-1] if step is None else step
        with self._reading(step):
            document = self._document(step)
        differs = differences(document["run"], json.loads(json.dumps(self.run)))
        if differs:
            raise ValueError(
                f"checkpoint: expected an empty folder or one of the same run; got {self.path}, whose "
                f"step {step} is of another: {differs}"
            )
        with self._reading(step):
            trees = self._trees(step, document, method, state)
        return _checkpoint(document, trees)

    def _document(self, step: int) -> Document:
        kept = self._manager.restore(
            step, args=self._orbax.args.Composite(run=self._orbax.args.JsonRestore())
        ).run
        if zlib.crc32(kept["text"].encode()) != kept["crc32"]:
            raise ValueError("its document has another checksum")
        document = json.loads(kept["text"])
        if document["format"] != FORMAT:
            raise ValueError(f"it has format {document['format']}, this jtssm reads {FORMAT}")
        return document

    def _trees(self, step: int, document: Document, method: Method, state: Tree) -> list[Tree]:
        wanted, saved = method.spread(state), _placed_as(document["layout"], method, state)
        alike = _alike(saved, wanted)
        trees = [wanted if alike else saved] * (1 + document["apart"])
        leaves, treedef = jax.tree.flatten(trees)
        mesh = method.mesh
        found = self._leaves(step, leaves, mesh, on_host=not alike or mesh is None)
        seen = checksums([a for a in found if a.size])
        if seen != document["checksums"]:
            wrong = sum(a != b for a, b in zip(seen, document["checksums"], strict=True))
            raise ValueError(f"{wrong} of {len(seen)} arrays have another checksum")
        trees = jax.tree.unflatten(treedef, found)
        if mesh is None:
            return jax.tree.map(jnp.asarray, [gathered(tree) for tree in trees])
        return trees if alike else [method.spread(gathered(tree)) for tree in trees]

    def _leaves(
        self, step: int, shapes: list[jax.ShapeDtypeStruct], mesh: Mesh | None, on_host: bool
    ) -> list[Array | np.ndarray]:
        """The arrays of a step; those without numbers were not written."""
        orbax = self._orbax

        def how(a: jax.ShapeDtypeStruct) -> Any:  # orbax's RestoreArgs
            if on_host and not is_key(a):
                return orbax.RestoreArgs(restore_type=np.ndarray)
            to = _whole(mesh) if on_host else a.sharding  # numpy has no keys
            return orbax.ArrayRestoreArgs(sharding=to, global_shape=a.shape, dtype=a.dtype)

        wanted = {_name(i): a for i, a in enumerate(shapes) if a.size}
        restore = orbax.args.PyTreeRestore(
            item=dict.fromkeys(wanted, 0),
            restore_args={name: how(a) for name, a in wanted.items()},
        )
        found = self._manager.restore(step, args=orbax.args.Composite(arrays=restore)).arrays
        return [
            found[_name(i)] if a.size else np.zeros(a.shape, a.dtype) for i, a in enumerate(shapes)
        ]

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore have many
            raise OSError(
                f"checkpoint: could not be written to {self.path}, at step {step} or the one before: "
                f"{_line(error)}; the state is in this error's attribute result.state"
            ) from error

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            before = [n for n in self.steps() if n < step]
            offer = (
                f"the one before it is gone on from with resume={before[-1]}"
                if before
                else "there is none before it: name another folder"
            )
            raise ValueError(
                f"checkpoint: step {step} in {self.path} is damaged ({_line(error)}); {offer}"
            ) from error


def need_orbax() -> ModuleType:
    """The package that writes checkpoints.

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


def _check_resume(step: int, steps: Sequence[int], path: Path) -> None:
    if step not in steps:
        raise ValueError(
            f"resume: expected one of {list(steps)}, the steps in {path}; got {step!r}"
        )


def _line(error: Exception) -> str:
    """An error's first line, which names its kind."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]


def _name(i: int) -> str:
    return f"{i:05d}"


def _arrays(trees: Sequence[Tree]) -> dict[str, Array]:
    """The arrays of trees by number, none that has no numbers."""
    leaves = enumerate(jax.tree.leaves(list(trees)))
    arrays = {_name(i): a if isinstance(a, jax.Array) else jnp.asarray(a) for i, a in leaves}
    return {name: a for name, a in arrays.items() if a.size}


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


def _layout(method: Method) -> Document:
    """How a method's state lies: the sizes of its mesh and the forms of its layers."""
    at = method.placement
    sizes = None if at is None else [axis_size(at.mesh, name) for name in at.axes]
    return {"mesh": sizes, "forms": method.forms and list(method.forms)}


def _placed_as(layout: Document, method: Method, state: Tree) -> Tree:
    """Shapes of a state as it lay on a mesh that need not be there."""
    if layout["mesh"] is None:
        return state
    mesh = AbstractMesh(tuple(layout["mesh"]), AXES, axis_types=(AxisType.Auto,) * 3)
    return place(method, cast(Mesh, mesh), forms=layout["forms"] or "auto").spread(state)


def _checkpoint(document: Document, trees: Sequence[Tree]) -> Checkpoint:
    sound = document["sound"] and Sound(trees[-1], Position.of(document["sound"]))
    return Checkpoint(
        trees[0],
        Position.of(document["position"]),
        sound,
        document["history"],
        tuple(Divergence(*halving) for halving in document["halvings"]),
        document["odd"],
        document["stopped"],
    )
