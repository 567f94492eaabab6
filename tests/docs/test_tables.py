"""Tables of the docs show what the results say; markers that name nothing are refused."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def tables():
    """The hook, which is loaded from its folder as mkdocs does it."""
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    try:
        import tables
    finally:
        sys.path.pop(0)
    return tables


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def rows(table):
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.split("\n")]


def test_a_number_of_the_table_is_that_of_the_json(tables):
    seen = result("tssm_tradeoff")["results"]["gsADMM streaming, n = 5"]
    (row,) = [
        r
        for r in rows(tables.drawn("table", "tssm_tradeoff"))
        if r[:2] == ["gsADMM streaming", "5"]
    ]
    accuracies = seen["test_accuracy"]
    assert float(row[2]) == round(sum(accuracies) / 3, 4)
    assert row[3] == f"{min(accuracies):.4f} – {max(accuracies):.4f}".replace("0.", ".")
    assert row[4] == "3"


def test_bytes_of_a_grid_are_those_of_the_json(tables):
    seen = result("grid_bytes")["bytes"]["AlexNet, batch 256, 8 x 1"]
    (row,) = [
        r
        for r in rows(tables.drawn("table", "grid_bytes_8"))
        if r[:2] == ["AlexNet, batch 256", "8 × 1"]
    ]
    assert row[8] == f"**{seen['auto'] / 1e6:.2f}**"
    assert row[9] == f"{seen['xla'] / 1e6:.2f}"


def test_every_row_has_as_many_cells_as_the_head(tables):
    for name, draw in tables.result_tables.TABLES.items():
        lines = draw().split("\n")
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
        assert len(lines) > 2, name
        assert set(bars) == {bars[0]}, name


def test_every_result_is_in_some_page(tables):
    text = "".join(page.read_text() for page in PAGES)
    for name in tables.result_names():
        assert f"<!-- about: {name} -->" in text


def test_hosts_stand_by_link_with_what_they_are_times_one_host(tables):
    """Of a made-up result: two hosts that end on one link, and not on another."""
    row = {"network": "mlp", "against": "one host, SGD", "samples": 128, "bytes_by_formula": 2e6}
    row |= {"predicted_seconds": 0.05, "ratio": 1.0, "bytes_crossed": 0.0}
    timed = lambda seconds: {"step_seconds": {"median": seconds}}
    two = row | {"case": "grid", "bytes_crossed": 2.04e6}
    lines = [
        row | timed(0.064) | {"case": "one host, SGD", "link": "none"},
        two | timed(0.032) | {"link": "free", "ratio": 0.5},
        two | timed(0.128) | {"link": "100mbit", "ratio": 2.0},
        two | {"link": "10mbit", "ratio": None, "error": "no answer within 60 s"},
    ]
    host_tables = sys.modules["host_tables"]
    shown = rows(host_tables.hosts_table({"rows": lines}, "mlp", "one host, SGD"))[2:]
    assert shown == [
        ["one host, SGD", "500", "–", "–", "–", "–"],
        ["grid", "–", "250 (0.50)", "–", "1000 (2.00)", "**no end**"],
    ]
    (line,) = rows(host_tables.hosts_bytes({"rows": lines}))[2:]
    shares = ["1.020", "–", "1.020", "**no end**"]
    assert line == ["mlp", "grid", "2.000", *shares, "0.64", "–", "2.56", "**no end**"]


def test_about_says_command_date_and_versions(tables):
    seen, shown = result("ist_speed"), tables.drawn("about", "ist_speed")
    for part in (
        seen["command"],
        seen["date"],
        seen["commit"][:9],
        "jax " + seen["versions"]["jax"],
    ):
        assert part in shown


@pytest.mark.parametrize("kind", ["table", "about"])
def test_a_marker_that_names_nothing_is_refused(tables, kind):
    with pytest.raises(
        ValueError, match=rf"<!-- {kind}: nothing -->: expected one of .*got 'nothing'"
    ):
        tables.filled(f"before\n<!-- {kind}: nothing -->\n")


def test_tables_in_an_admonition_are_indented_and_links_lead_up(tables):
    shown = tables.filled(
        "<!-- table indented: pdadmm_deep -->\n[a](/results/a.json)", "methods/x.md"
    )
    *table, link = shown.split("\n")
    assert all(line.startswith("    |") for line in table)
    assert link == "[a](../results/a.json)"


def test_the_readme_shows_the_results_of_now(tables):
    text = (ROOT / "README.md").read_text()
    assert "<!-- table: readme -->" in text
    assert tables.refilled(text) == text
