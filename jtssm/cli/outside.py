"""Methods from outside the package, named as package.module:function."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from jtssm import checks, solvers


def known(word: str) -> str:
    """The name of a method; one given as package.module:function is registered by its own name.

    Modules are also looked for in the folder at hand.

    Raises:
      ValueError: no such module or function, or a name that another method bears.
    """
    if ":" not in word:
        return word
    module, _, function = word.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        constructor = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"method: expected package.module:function, e.g. examples.diloco:diloco; got "
            f"{checks.shown(word)}: {error}"
        ) from error
    solvers.register(function, constructor)
    return function
