"""Imports point down: eight folders and six modules, each with a rank; nothing else lies at the top."""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType

import jtssm

ROOT = Path(jtssm.__file__).parent
RANKS = {
    "arrays": 0,
    "checks": 0,
    "files": 0,
    "plot": 0,
    "losses": 1,
    "nn": 2,
    "protocol": 3,
    "data": 3,
    "solvers": 4,
    "sharding": 4,
    "train": 5,
    "planning": 5,
    "cli": 6,
    "testing": 6,
}


def top(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def modules() -> dict[str, Path]:
    files = [f for f in ROOT.rglob("*.py") if f != ROOT / "__init__.py"]
    return {".".join(("jtssm", *f.relative_to(ROOT).with_suffix("").parts)): f for f in files}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module == "jtssm":
                names |= {f"jtssm.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("jtssm.")}


def test_the_top_holds_eight_folders_and_six_modules_and_no_more():
    assert {top(name) for name in modules()} == set(RANKS)
    assert sum((ROOT / name).is_dir() for name in RANKS) == 8


def test_imports_point_down_and_solvers_and_sharding_stay_apart():
    for name, path in modules().items():
        here = top(name)
        for target in imported(path):
            there = top(target)
            assert here == there or RANKS[there] < RANKS[here], f"{name} imports {target}"


def test_only_the_command_line_prints():
    for name, path in modules().items():
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        assert not prints or top(name) == "cli", f"{name} prints"


def test_no_module_hides_a_function_that_its_package_hands_on():
    for name in modules():
        parent, _, last = name.removesuffix(".__init__").rpartition(".")
        found = getattr(importlib.import_module(parent), last, None)
        assert found is None or isinstance(found, ModuleType), f"{name} hides {parent}.{last}"


def test_no_module_is_named_like_one_of_the_standard_library():
    last = {name.removesuffix(".__init__").rpartition(".")[-1] for name in modules()}
    assert not last - {"__main__"} & sys.stdlib_module_names
