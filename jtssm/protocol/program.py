"""A method written once: what every kind of program says of itself.

There are three kinds: of pieces that pass samples on (`jtssm.protocol.stages`), of a network trained
as one piece (`jtssm.protocol.whole`), of equal workers (`jtssm.protocol.workers`). Whoever needs to
know more than this of a kind asks by `functools.singledispatch`, and has an answer for each.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import DTypeLike

from jtssm.arrays import Shaped, Tree
from jtssm.losses import Loss
from jtssm.nn.boundary import Sample, stacked
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network
from jtssm.protocol import sample_checks
from jtssm.protocol.declared import Declared
from jtssm.protocol.method import Method, given_trees
from jtssm.protocol.settings import Settings


class Stages(NamedTuple):
    """A network cut into pieces, what trains each, and the loss after the last."""

    network: Network
    starts: tuple[int, ...]  # piece l holds the layers starts[l] .. starts[l + 1] - 1
    optimizers: tuple[optax.GradientTransformation, ...]  # one a piece
    loss: Loss
    # what the layers compute and send in; None: the dtype of the samples
    compute_dtype: np.dtype | None = None

    @property
    def num(self) -> int:
        """How many pieces there are: n."""
        return len(self.optimizers)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The first layer of every piece but the first."""
        return self.starts[1:-1]

    def inputs(self, l: int) -> Sample:
        """One sample of p_l, the input of piece l: its shape, or a `SampleTree`."""
        return self.network.shapes[self.starts[l]]

    def arriving(self, l: int) -> Tree:
        """The same as a tree of `jax.ShapeDtypeStruct`."""
        return self.network.boundaries[self.starts[l]]

    def layers(self, l: int) -> tuple[Layer, ...]:
        """Those of piece l."""
        return self.network.layers[self.starts[l] : self.starts[l + 1]]

    def given(self, params: Sequence[Tree], dtype: DTypeLike) -> tuple[list[Tree], ...]:
        """A warm start by pieces; see `jtssm.protocol.method.given_trees`."""
        return self.by_piece(given_trees(self.network.init, params, dtype))

    def by_piece(self, trees: Sequence[Tree]) -> tuple[list[Tree], ...]:
        """One tree a layer, as one list a piece."""
        return tuple(list(trees[a:b]) for a, b in pairwise(self.starts))


class Batch(NamedTuple):
    """The samples of a step."""

    size: int | None  # that a gradient sees: a worker's, else of all devices; None: all there are
    shape: tuple[int, ...] | None  # leading shape of what a step consumes; None: all samples
    axes: tuple[str | None, ...] = ("pc",)  # how those dimensions lie on the mesh
    resident: bool = False  # whether variables of every sample are kept: samples stay in place
    microbatches: int = 1  # M, of which each minibatch is divided into

    @property
    def workers(self) -> int | None:
        """N of rounds [R, N, b], whose workers have minibatches of their own; None: of other steps."""
        return self.shape[1] if self.shape is not None and len(self.shape) > 1 else None

    @property
    def rows(self) -> int | None:
        """Samples that run through the layers at a time: of a microbatch; None: all there are."""
        return None if self.size is None else self.size // self.microbatches

    @property
    def minibatch(self) -> int | None:
        """Samples that gradients see at a time, those of all workers; None: all there are."""
        return None if self.size is None else self.size * (self.workers or 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Program(abc.ABC):
    """A method, written once; `on_one_device` makes a `Method` of it, and so does `sharding.place`."""

    name: str
    stages: Stages
    batch: Batch
    declared: Declared
    # field of State -> "weights", "samples", "line" (see `jtssm.protocol.exchange`), or the mesh axes of
    # its arrays' first dimensions
    kinds: Mapping[str, str | tuple[str | None, ...]]
    settings: Settings | None = None  # what it was made with, of a constructor that is `recorded`

    def __post_init__(self) -> None:
        name = "batch_size" if self.batch.microbatches == 1 else "batch_size / microbatches"
        sample_checks.several(name, self.network, self.batch.rows)

    @abc.abstractmethod
    def on_one_device(self) -> Method:
        """The method on one device."""

    @abc.abstractmethod
    def check(self, x: Tree, y: Shaped, stage: str, weights: Tree = ()) -> None:
        """The front door of `init`, `step` and `fit`.

        Args:
          stage: "init"; "step": nothing but shapes and dtypes, against the weights too; "values": samples
            of any number.

        Raises:
          ValueError: samples that do not fit the network, the loss or the method.
        """

    @property
    @abc.abstractmethod
    def weight_fields(self) -> tuple[str, ...]:
        """The fields of State that hold parameters and what an optimizer keeps."""

    @property
    def takes_forms(self) -> bool:
        """Whether each layer has a form in which it is split over pr."""
        return True

    @property
    def open_ends(self) -> bool:
        """Whether the network's inputs may come, and its outputs stay, split over pr."""
        return False

    @property
    def copies_state(self) -> bool:
        """Whether a step on a mesh works on copies of the weights: packed in rows, or dealt."""
        return True

    @property
    def renews_optimizer(self) -> bool:
        """Whether an optimizer's state lives within a step alone."""
        return False

    @property
    def network(self) -> Network:
        """What is trained."""
        return self.stages.network

    @property
    def called(self) -> str:
        """Its name in messages: what some of its arguments make of it has other limits."""
        return f"{self.name} {self.declared.how}".strip()

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        return self.stages.loss

    def samples_like(self, lead: tuple[int, ...]) -> tuple[Tree, jax.ShapeDtypeStruct]:
        """Shapes of x and y [*lead, ...]: float32 or int32 samples, labels or targets of the loss.

        Of a loss that takes what it likes: labels if it takes them, else targets like outputs.
        """
        outputs, x = self.network.outputs, stacked(self.network.boundaries[0], *lead)
        if self.loss.labels is False or (self.loss.labels is None and not self._takes_labels()):
            return x, jax.ShapeDtypeStruct((*lead, *outputs), np.float32)
        return x, jax.ShapeDtypeStruct((*lead, *outputs[:-1]), np.int32)

    def _takes_labels(self) -> bool:
        """Whether the loss gives a number a sample, or one a position, for labels."""
        shape = (2, *self.network.shapes[-1])
        outputs = jax.ShapeDtypeStruct(shape, np.float32)
        y = jax.ShapeDtypeStruct(shape[:-1], np.int32)
        try:
            found = jax.eval_shape(self.loss.value, outputs, y).shape
        except Exception:  # whatever a function of the user's raises
            return False
        return found == shape[: len(found)]

    def identity(self) -> dict[str, Any]:
        """What tells this program from another, in words and numbers that JSON holds."""
        made = {} if self.settings is None else self.settings.document()["arguments"]
        return {
            "method": self.name,
            "arguments": made,
            "layers": [layer.name for layer in self.network.layers],
            "subnetworks": list(self.stages.starts),
            "loss": self.loss.name,
            "batch": list(self.batch.shape or [self.batch.size]),
        }
