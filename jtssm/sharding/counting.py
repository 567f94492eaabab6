"""What moves, counted from the compiled program."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

_PERMUTE = re.compile(
    r"= \(?(?P<dtype>[a-z]+\d+)\[(?P<shape>[\d,]*)\][^=]*? collective-permute(?:-start)?\("
    r".*source_target_pairs=\{(?P<pairs>[\d,{} ]*)\}"
)


class Permute(NamedTuple):
    """A collective permute of a compiled program."""

    shape: tuple[int, ...]  # of what one device sends
    bytes: int  # of what one device sends
    dtype: str  # as the program writes it: f32, u8, ...
    pairs: tuple[tuple[int, int], ...]  # (source, target) positions in the mesh's list of devices


def permutes(hlo: str) -> list[Permute]:
    """The collective permutes in the text of a compiled program (`compiled.as_text()`).

    A permute in the body of a loop stands here once.
    """
    found = []
    for match in _PERMUTE.finditer(hlo):
        shape = tuple(int(d) for d in match["shape"].split(",") if d)
        width = int(re.sub(r"\D", "", match["dtype"])) // 8
        ends = [int(i) for i in re.findall(r"\d+", match["pairs"])]
        pairs = tuple(zip(ends[::2], ends[1::2], strict=True))
        found.append(Permute(shape, int(np.prod(shape)) * width, match["dtype"], pairs))
    return found


def permuted_bytes(hlo: str) -> int:
    """Bytes that all collective permutes of a program send together, over all pairs of devices."""
    return sum(p.bytes * len(p.pairs) for p in permutes(hlo))
