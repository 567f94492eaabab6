"""Imports point down: eight folders and four modules, each with a rank; nothing else lies at the top."""

import ast
from pathlib import Path

import jtssm

ROOT = Path(jtssm.__file__).parent
RANKS = {
    "arrays": 0, "checks": 0, "plot": 0,
    "losses": 1, "nn": 2,
    "protocol": 3, "data": 3,
    "solvers": 4, "sharding": 4,
    "train": 5, "planning": 5,
    "cli": 6,
}  # fmt: skip
FLAT = {f.stem for f in ROOT.glob("*.py")} - set(RANKS)  # not moved yet


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


def test_imports_point_down_and_solvers_and_sharding_stay_apart():
    for name, path in modules().items():
        here = top(name)
        for target in imported(path):
            there = top(target)
            unmoved = {here, there} & FLAT
            assert unmoved or here == there or RANKS[there] < RANKS[here], (
                f"{name} imports {target}"
            )


def test_only_the_command_line_prints():
    for name, path in modules().items():
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        assert not prints or top(name) in {"cli", *FLAT}, f"{name} prints"


def test_no_module_bears_the_name_of_a_public_function():
    public = set(jtssm.__all__) | set(jtssm.solvers.__all__) | set(jtssm.sharding.__all__)
    files = {name.rsplit(".", 1)[-1] for name in modules()} - {"__init__"}
    assert not files & (public - {"data", "losses", "sharding", "solvers"})
