"""A method in words: what it is, and what a step of it sends and holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import jax
import numpy as np

from jtssm.arrays import Tree
from jtssm.protocol.axes import AXES
from jtssm.protocol.declared import Move
from jtssm.protocol.device_memory import held

if TYPE_CHECKING:
    from jtssm.protocol.method import Method
    from jtssm.protocol.program import Program

UNITS = ("B", "kB", "MB", "GB", "TB")


def line(method: Method) -> str:
    """What it was made with, what it trains, and where."""
    network = str(method.network).split(":")[0].lower()
    called = method.name if method.settings is None else repr(method.settings)
    return f"{called}\n  of a {network}, {_place(method)}"


def text(method: Method, samples: int | None = None) -> str:
    """Layers and parameters, cuts, what a step sends, what a device holds.

    samples: that a resident method keeps; without them it is not said what depends on their number.
    """
    called = method.name if method.settings is None else repr(method.settings)
    told = [called, str(method.network), *_cuts(method.program), f"{_place(method)}:"]
    taken = samples if method.resident else int(np.prod(method.batch_shape or ()))
    if taken is None:
        return "\n".join([*told, "  a step takes all samples: summary(samples=...) says the rest"])
    sent = Counter(map(_sent, method.moves(taken)))
    where = "on a mesh it would send" if method.placement is None else "it sends"
    told += [*_forms(method), f"  a step takes {taken} samples; {where}"]
    told += [f"    {words}{f', of {n} alike' if n > 1 else ''}" for words, n in sent.items()]
    return "\n".join([*told, *_holdings(method, taken)])


def _place(method: Method) -> str:
    at = method.placement
    if at is None:
        return "on one device"
    size = lambda ours: int(np.prod([at.mesh.shape[name] for name in at.axes.present(ours)]))
    sizes = {ours: size(ours) for ours in AXES if size(ours) > 1}
    shape = " x ".join(f"{ours}={n}" for ours, n in sizes.items())
    return f"on a mesh of {shape or 'one device'}"


def _forms(method: Method) -> list[str]:
    """How layers are split over pr, which costs what their forms send beside what is declared."""
    split = [form for form in method.forms or () if form != "batch"]
    return [f"  forms of its layers: {', '.join(method.forms or ())}"] if split else []


def _cuts(program: Program) -> list[str]:
    """The pieces, where there are several."""
    stages = program.stages
    if stages.num == 1:
        return []
    pieces = stages.by_piece(stages.network.parameter_shapes())
    sizes = [f"{sum(a.size for a in jax.tree.leaves(piece)):,}" for piece in pieces]
    cuts = ", ".join(map(str, stages.cuts))
    return [f"cut before layer {cuts}: {', '.join(sizes)} parameters"]


def _sent(move: Move) -> str:
    """One of the messages of a step."""
    ends = "" if move.source == move.target else f" from piece {move.source} to {move.target}"
    times = "once" if move.times == 1 else f"{move.times} times"
    shape = " x ".join(map(str, move.shape))
    return f"{move.what}, {shape}, along {move.axis}{ends} ({move.collective}), {times}"


def _holdings(method: Method, samples: int) -> list[str]:
    """What a device holds between steps, of float32 samples."""
    program = method.program
    x, y = program.samples_like((samples,))
    state: Tree = jax.eval_shape(program.on_one_device().init, jax.random.key(0), x, y)
    state = method.spread(state)
    fields = {name: held(getattr(state, name)) for name in state._fields}
    weights = sum(fields.pop(name) for name in program.weight_fields)
    return [
        f"  a device holds {_size(weights)} of weights and optimizer's state, "
        f"{_size(sum(fields.values()))} of other variables"
    ]


def _size(number: int) -> str:
    """Bytes with three digits."""
    size, unit = float(number), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {UNITS[unit]}"
