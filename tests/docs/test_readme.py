"""The README is one page, its links lead somewhere, and its code runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_it_is_one_page():
    assert 100 <= len(README.splitlines()) <= 150


def test_its_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert len(targets) > 10
    missing = [t for t in targets if not t.startswith("https://") and not (ROOT / t).exists()]
    assert missing == []


def test_its_code_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert 15 <= len([line for line in code.splitlines() if line.strip()]) <= 25
    lines = [line for line in code.splitlines() if "jax_num_cpu_devices" not in line]  # 8 are there
    exec("\n".join(lines).replace("epochs=30", "epochs=1"), {})
    valid, test = map(float, capsys.readouterr().out.split()[-2:])
    assert 0 < valid <= 1
    assert 0 < test <= 1
