"""Shows docstrings as help() shows them; an extension of griffe, which reads the code for mkdocstrings.

Texts of arguments that constructors share are added by a decorator (`jtssm.protocol.arguments`), which
who reads the code alone does not see.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe

DECORATOR = "documented"


class Completed(griffe.Extension):
    """Puts the whole docstring in the place of the one that the decorator completes."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Griffe calls this for every function it has read."""
        if func.docstring is not None and any(DECORATOR in str(d.value) for d in func.decorators):
            made = getattr(importlib.import_module(func.module.path), func.name)
            func.docstring.value = inspect.getdoc(made) or ""
