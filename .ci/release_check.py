"""Whether this checkout can be released: `make release-check`.

    python .ci/release_check.py python3.11 python3.13

The version stands in the package, the changelog and the citation; wheel and sdist are built from it,
their metadata hold, the wheel has the package and nothing else; each is installed into fresh
environments, without extras and with [all], under each of the Pythons, and runs there from an empty
folder: a method
trained in Python, the commands, with [all] the demo. Nothing is published. Some ten minutes, mostly pip.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build", "twine")
TRAINED = """
import jax, jtssm, optax, sys
from jtssm import sharding, solvers
from jtssm.data import synthetic
jax.config.update("jax_num_cpu_devices", 2)
assert "site-packages" in jtssm.__file__, jtssm.__file__
x, y = synthetic.separable(0, 200, 4, 3)
net = jtssm.mlp([4, 16, 16, 3])
method = solvers.gsadmm(net, subnets=2, optimizer=optax.adam(1e-2), batch_size=50)
result = jtssm.fit(
    method, (x, y), epochs=30, key=jax.random.key(0), validation=(x, y), mesh=sharding.make_mesh(2)
)
accuracy = result.history[-1]["validation_accuracy"]
assert accuracy > 0.9, accuracy
print("jtssm", jtssm.__version__, "jax", jax.__version__, sys.version.split()[0], accuracy)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check all; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check that this checkout can be released.")
    parser.add_argument("pythons", nargs="+", help="interpreters, e.g. python3.11 python3.13")
    parser.add_argument("--quick", action="store_true", help="without environments: build alone")
    given = parser.parse_args(argv)
    version = stated_version()
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = built(Path(folder), given.pythons[0])
        check_contents(wheel, version)
        for python in [] if given.quick else given.pythons:
            for archive, extras in ((wheel, ""), (wheel, "[all]"), (sdist, "")):
                installed(Path(folder), python, archive, extras)
    print(f"release-check: jtssm {version} can be released")
    return 0


def stated_version() -> str:
    """The version, which the package, the changelog's first heading and the citation agree on.

    Raises:
      SystemExit: they do not.
    """
    patterns = {
        "jtssm/__init__.py": r'^__version__ = "([^"]+)"',
        "CHANGELOG.md": r"^## (?:Unreleased \()?([0-9][^) ]*)",
        "CITATION.cff": r"^version: (\S+)",
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        found[name] = match[1] if match else None
    if len({*found.values()}) != 1 or None in found.values():
        raise SystemExit(f"release-check: expected one version in {list(found)}; got {found}")
    return str(found["CHANGELOG.md"])


def built(folder: Path, python: str) -> tuple[Path, Path]:
    """Wheel and sdist, whose metadata hold."""
    tools = environment(folder / "tools", python)
    run([tools, "-m", "pip", "install", "--quiet", *TOOLS])
    run([tools, "-m", "build", "--outdir", folder / "dist", ROOT])
    (wheel,), (sdist,) = (list((folder / "dist").glob(f"*{end}")) for end in (".whl", ".tar.gz"))
    run([tools, "-m", "twine", "check", "--strict", wheel, sdist])
    return wheel, sdist


def check_contents(wheel: Path, version: str) -> None:
    """The wheel has every module of the package, its mark of types, and nothing else.

    Raises:
      SystemExit: otherwise.
    """
    tracked = subprocess.run(
        ["git", "ls-files", "jtssm"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = {*tracked.stdout.split()}
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    if there != wanted or "jtssm/py.typed" not in there or f"-{version}-" not in wheel.name:
        raise SystemExit(
            f"release-check: expected the files of jtssm/ in version {version}; got {wheel.name} with "
            f"{sorted(there - wanted)[:5]} too, without {sorted(wanted - there)[:5]}"
        )


def environment(folder: Path, python: str) -> Path:
    """A fresh environment; returns its Python."""
    run([python, "-m", "venv", folder])
    return folder / "bin" / "python"


def installed(folder: Path, python: str, archive: Path, extras: str) -> None:
    """Install into a fresh environment, and run from an empty folder."""
    print(f"release-check: {archive.name}{extras} under {python}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        own, empty = environment(Path(name) / "env", python), Path(name) / "empty"
        empty.mkdir()
        run([own, "-m", "pip", "install", "--quiet", f"{archive}{extras}"])
        run([own, "-c", TRAINED], cwd=empty)
        command = own.parent / "jtssm"
        for words in (["--version"], ["methods"], ["data"]):
            run([command, *words], cwd=empty, quiet=True)
        if extras:
            run([command, "demo", "--epochs", "2", "--out", "demo"], cwd=empty)
            missing = [
                n for n in ("result.json", "history.png") if not (empty / "demo" / n).exists()
            ]
            if missing:
                raise SystemExit(f"release-check: expected the demo to write {missing}; it did not")


def run(words: Sequence[str | Path], cwd: Path | None = None, quiet: bool = False) -> None:
    """Run a command.

    Raises:
      SystemExit: it failed.
    """
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=quiet, text=True, check=False)
    if done.returncode:
        told = f"\n{done.stdout}{done.stderr}" if quiet else ""
        raise SystemExit(f"release-check: {' '.join(map(str, words))[:200]} failed{told}")


if __name__ == "__main__":
    sys.exit(main())
