"""Which form each layer takes over "pr": the user's, or those that move least."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import jax
import numpy as np

from jtssm.arrays import Tree
from jtssm.checks import shown
from jtssm.nn.boundary import SampleTree
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network
from jtssm.protocol.declared import WORD
from jtssm.protocol.program import Program
from jtssm.sharding.layers.forms import FORMS, Grid
from jtssm.sharding.layers.halo import Halo
from jtssm.sharding.layers.questions import groups, mixes, pair, splits, window
from jtssm.sharding.layers.stored import SPLITS
from jtssm.sharding.layers.traffic import Pass, ring_numbers

# multiply-adds that an accelerator does while it sends a byte: 550 of an H100 over NVLink, 2 000 of a
# TPU v5e over one link (`jtssm.sharding.cost.machines`)
BALANCE = 1000
Cost = tuple[int, float]  # (multiply-adds repeated, numbers moved)
PASSES = 3  # of a layer in a step: forward, and for the gradients of weights and of inputs


def program_forms(
    program: Program, sizes: tuple[int, int, int], forms: str | Sequence[str]
) -> tuple[str, ...]:
    """One form for each layer of a program on subnet x pr x pc devices; none where layers take none.

    forms: "auto", or one a layer.

    Raises:
      ValueError: as `choose_forms`; forms for a program whose layers take none.
    """
    subnet, pr, pc = sizes
    if not program.takes_forms:
        if not isinstance(forms, str) or forms != "auto":
            raise ValueError(
                f"forms: expected 'auto', {program.name} splits no layer; got {shown(forms)}"
            )
        return ()
    stages, size = program.stages, program.batch.rows
    return choose_forms(
        stages.network,
        stages.starts,
        None if size is None else size // pc,
        pr,
        pc,
        forms,
        apart=subnet > 1,
        open_ends=program.open_ends,
        compute_dtype=stages.compute_dtype,
    )


def choose_forms(
    net: Network,
    starts: tuple[int, ...],
    samples: int | None,
    pr: int,
    pc: int,
    forms: str | Sequence[str],
    *,
    apart: bool,
    open_ends: bool,
    compute_dtype: np.dtype | None = None,
) -> tuple[str, ...]:
    """One form a layer.

    Args:
      net: the network.  starts: of its pieces, and the number of layers.
      samples: that each device of pc has of a minibatch; None: as many as ever pr divides.
      forms: "auto", or one a layer.
      apart, open_ends: `Grid.apart`, `Grid.open`.
      compute_dtype: what layers send, beside float32 gradients; None: float32 too.

    Raises:
      ValueError: forms that do not fit, or pr > 1 that would split no layer's work.
    """
    shapes = net.parameter_shapes()
    auto = isinstance(forms, str) and forms == "auto"
    if pr == 1 or not auto:
        batch = ["batch"] * len(net.layers)
        return check_forms(net, shapes, pr, batch if auto else forms)
    samples = pr if samples is None else samples
    grid = Grid(net, (), starts[:-1], "pr", pr, (), apart, open_ends)
    share = 1.0 if compute_dtype is None else compute_dtype.itemsize / WORD
    work = Pass(grid, shapes, samples, pc)
    found = _or_whole(work, least(work, share), share)
    if set(found) == {"batch"} and samples % pr:
        raise ValueError(
            f"pr: expected a size that divides the {samples} samples on a device of pc, the rows of "
            f"images, or the width of some layer, one of {_widths(net)}; got {pr}"
        )
    return found


def _widths(net: Network) -> list[int]:
    """Of what each layer gives, where it is one array."""
    return [s[-1] for s in net.shapes[1:] if not isinstance(s, SampleTree)]


def _or_whole(work: Pass, forms: tuple[str, ...], share: float) -> tuple[str, ...]:
    """The forms, or such that leave images that arrive whole as they are.

    Images whose height pr does not divide arrive whole on every device. To deal out their rows then saves
    work, and sends what the devices already had: not worth it where a saved byte takes fewer than BALANCE
    multiply-adds. XLA's partitioner repeats the work in any case.
    """
    grid, net = work.grid, work.grid.network
    rows = next((i for i, form in enumerate(forms) if form != "domain"), len(forms))
    whole = grid.open and grid._replace(forms=forms).arrives(work.samples) == "whole"
    other = least(work, share, whole=rows) if rows and whole else forms
    if set(other) <= {"batch", "gathered"}:
        return forms

    def moved(forms: tuple[str, ...]) -> float:
        sent = work._replace(grid=grid._replace(forms=forms)).sent()
        return WORD * ring_numbers(sent, grid.size, work.pc, share)

    adds = sum(net.cost(i) for i in range(rows))
    more = PASSES * work.samples * adds * (1 - 1 / grid.size)
    return other if more < BALANCE * (moved(forms) - moved(other)) else forms


def least(work: Pass, share: float = 1.0, whole: int = 0) -> tuple[str, ...]:
    """The forms that repeat least work on the devices of pr and, of those, move least (rings).

    Exact: a dynamic program over (layer, form), since what a layer moves depends on its form and its
    neighbours' alone.  share: as in `ring_numbers`.  whole: how many layers are to be "batch" at first.
    """
    net = work.grid.network
    have = [
        [f for f in FORMS if fits(net, i, work.params[i], f, work.grid.size)]
        for i in range(len(net.layers))
    ]
    have[:whole] = [["batch"]] * whole
    best: dict[str, tuple[Cost, tuple[str, ...]]]
    best = {f: (_cost(work, 0, [f], share, entry=True), (f,)) for f in have[0]}
    for i in range(len(net.layers) - 1):
        found: dict[str, tuple[Cost, tuple[str, ...]]] = {}
        for f, g in product(have[i], have[i + 1]):
            cost, forms = best[f]
            cost = _sum(cost, _cost(work, i, [f, g], share))
            if g not in found or cost < found[g][0]:
                found[g] = cost, (*forms, g)
        best = found
    last = len(net.layers) - 1
    ends = [(_sum(cost, _cost(work, last, [f], share)), forms) for f, (cost, forms) in best.items()]
    return min(ends, key=lambda end: end[0])[1]


def _sum(one: Cost, other: Cost) -> Cost:
    return one[0] + other[0], one[1] + other[1]


def _cost(work: Pass, i: int, forms: list[str], share: float, *, entry: bool = False) -> Cost:
    """(multiply-adds repeated, numbers moved) by layer i, up to the entry of the next if it is given.

    entry: only of the entry into layer i.
    """
    blank = ["batch"] * len(work.grid.network.layers)
    blank[i : i + len(forms)] = forms
    work = work._replace(grid=work.grid._replace(forms=tuple(blank)))
    if entry:
        return 0, ring_numbers(list(work.entry(i)), work.grid.size, work.pc, share)
    sent = list(work.own(i)) + (list(work.entry(i + 1)) if len(forms) > 1 else [])
    repeats = forms[0] in ("batch", "gathered") and not work.spread
    repeated = work.grid.network.cost(i) if repeats else 0
    return repeated, ring_numbers(sent, work.grid.size, work.pc, share)


def misfit(net: Network, i: int, params: Tree, form: str, pr: int) -> str:
    """Why layer i cannot have a form over pr devices; empty: it can."""
    layer, shape, out = net.layers[i], net.shapes[i], net.shapes[i + 1]
    if form in ("batch", "gathered"):
        return ""
    if isinstance(shape, SampleTree) or isinstance(out, SampleTree):
        return f"{layer.name!r} has no such form"
    if form == "domain":
        return _domain_misfit(layer, shape, pr)
    if SPLITS[form] not in splits(layer) or (form == "scattered" and not mixes(layer)):
        return f"{layer.name!r} has no such form"
    if form == "paired" and pair(layer) % pr:
        return f"pr = {pr} does not divide the {pair(layer)} units (heads or neurons) of its pair"
    if form == "row":
        widths, ends = [prod(shape) if len(out) == 1 else shape[-1]], "inputs"
    else:
        widths, ends = [] if form == "paired" else [out[-1]], "outputs"
    widths += _split_sizes(params, splits(layer)[SPLITS[form]])
    odd = [width for width in widths if width % pr]
    if odd:
        return f"pr = {pr} does not divide its {odd[0]} {ends}"
    if groups(layer) % pr and pr % groups(layer):
        return f"its {groups(layer)} groups do not fit pr = {pr}"
    return ""


def _split_sizes(params: Tree, split: Tree) -> list[int]:
    """How long the dimensions are that a form splits."""
    sizes = jax.tree.map(lambda a, d: a.shape[d] if d >= 0 else 0, params, split)
    return jax.tree.leaves(sizes)


def fits(net: Network, i: int, params: Tree, form: str, pr: int) -> bool:
    """Whether layer i can have a form over pr devices."""
    if form != "domain":
        return not misfit(net, i, params, form, pr)
    layer, shape = net.layers[i], net.shapes[i]  # without the reason, which takes a search
    seen = window(layer)
    if seen is None or isinstance(shape, SampleTree):
        return False
    return len(shape) == 3 and Halo.of(seen, shape[0], pr).fits


def _domain_misfit(layer: Layer, shape: Sequence[int], pr: int) -> str:
    seen = window(layer)
    if seen is None and len(layer.shape(tuple(shape))) == 3:
        return f"{layer.name!r} has no such form"
    if seen is None or len(shape) != 3:
        return f"{layer.name!r} takes no images, whose rows could be split"
    halo = Halo.of(seen, shape[0], pr)
    if halo.fits:
        return ""
    fit = max(n for n in range(1, pr) if Halo.of(seen, shape[0], n).fits)
    rows = min(shape[0], halo.outputs.height)
    if rows < pr:
        return f"{rows} rows over pr = {pr} leave a slab empty; pr = {fit} fits"
    return (
        f"a window of {seen.size} takes {max(halo.above, halo.below)} rows of a neighbour that "
        f"has {halo.rows.sizes.min()}: a halo wider than a slab; pr = {fit} fits"
    )


def check_forms(
    net: Network, params: Sequence[Tree], pr: int, forms: Sequence[str]
) -> tuple[str, ...]:
    """The user's forms, one a layer.

    Raises:
      ValueError: a list of the wrong length, an unknown form, or one that the layer cannot have.
    """
    if not isinstance(forms, (list, tuple)) or len(forms) != len(net.layers):
        raise ValueError(
            f"forms: expected 'auto' or a list of {len(net.layers)} forms out of {list(FORMS)}, one a "
            f"layer; got {shown(forms)}"
        )
    for i, form in enumerate(forms):
        if not isinstance(form, str) or form not in FORMS:
            raise ValueError(f"forms[{i}]: expected one of {list(FORMS)}; got {shown(form)}")
        if why := misfit(net, i, params[i], form, pr):
            fits = [f for f in FORMS if not misfit(net, i, params[i], f, pr)]
            raise ValueError(f"forms[{i}]: expected one of {fits}; got {form!r}: {why}")
    return tuple(forms) if pr > 1 else ("batch",) * len(net.layers)
