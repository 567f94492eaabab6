"""Cases of a parametrised test: those of `make test`, and the others, which are slow."""

from collections.abc import Collection
from typing import Any

import pytest


def few_of(cases: Collection[Any], few: Collection[Any]) -> list[Any]:
    """All cases, marked slow but for the few; a case of several values is a tuple."""
    assert all(case in cases for case in few)
    values = lambda case: case if isinstance(case, tuple) else (case,)
    slow = pytest.mark.slow
    return [pytest.param(*values(c), marks=[] if c in few else slow) for c in cases]
