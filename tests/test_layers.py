"""Imports point down; a module without a place in the table is refused."""

import ast
from pathlib import Path

import jtssm

ROOT = Path(jtssm.__file__).parent
LEVELS = {
    "products": 0, "checks": 0, "device_memory": 0,
    "sample_checks": 1,
    "protocol": 2,
    "normalisation": 3, "losses": 3,
    "layer": 4,
    "modules": 5,
    "network": 6,
    "unpacking": 7,
    "images": 8, "workers": 8, "data": 8, "problems": 8,
    "solvers": 9, "sharding": 9, "residual": 9,
    "divergence": 10, "architectures": 10, "trials": 10, "fingerprints": 10, "signals": 10, "progress": 10,
    "feeding": 11, "positions": 11, "results": 11, "reading": 11,
    "checkpointing": 12, "sweeping": 12, "streams": 12,
    "running": 13,
    "loop": 14, "recording": 14, "plot": 14, "tables": 14,
    "arguments": 15,
    "building": 16, "shaping": 16,
    "cli": 17,
}  # fmt: skip
PACKAGES = {"modules", "solvers", "sharding"}


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


def test_every_module_has_a_place_in_the_table():
    assert {top(name) for name in modules()} == set(LEVELS)


def test_imports_point_down_and_solvers_and_sharding_stay_apart():
    for name, path in modules().items():
        here = top(name)
        for target in imported(path):
            there = top(target)
            inside = here == there and here in PACKAGES
            assert inside or LEVELS[there] < LEVELS[here], f"{name} imports {target}"


def test_only_the_rim_prints():
    for name, path in modules().items():
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        assert not prints or top(name) in ("cli", "shaping"), f"{name} prints"


def test_no_module_bears_the_name_of_a_public_function():
    public = set(jtssm.__all__) | set(jtssm.solvers.__all__) | set(jtssm.sharding.__all__)
    files = {name.rsplit(".", 1)[-1] for name in modules()} - {"__init__"}
    assert not files & (public - {"data", "losses", "sharding", "solvers"})
