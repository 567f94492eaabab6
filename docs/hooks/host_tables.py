"""Tables of `benchmarks.hosts`: two hosts, measured and predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from result_tables import agreement, draws, markdown, seeds_of

NONE = "none"  # the link of what runs on one host
PLAIN = "one host, SGD"
LINKS = {
    NONE: "one host",
    "free": "free link",
    "1gbit": "1 Gbit/s",
    "100mbit": "100 Mbit/s",
    "10mbit": "10 Mbit/s",
}
Row = dict
Cell = Callable[[Row], str]


def by_link(rows: Iterable[Row], cell: Cell, links: Sequence[str]) -> list[tuple]:
    """A line for each case, with a cell for each link on which it was run."""
    rows = list(rows)
    found = {(row["case"], row["link"]): row for row in rows}
    shown = lambda row: "–" if row is None else "**no end**" if "error" in row else cell(row)
    return [
        (case, *(shown(found.get((case, link))) for link in links))
        for case in dict.fromkeys(row["case"] for row in rows)
    ]


def sample(row: Row) -> str:
    """Microseconds a sample, and what they are times one host."""
    micro = 1e6 * row["step_seconds"]["median"] / row["samples"]
    return f"{micro:.0f}" + (f" ({row['ratio']:.2f})" if row["case"] != row["against"] else "")


def hosts_table(found: dict, network: str, against: str) -> str:
    """Microseconds a sample of a network's cases that are compared with the same one."""
    rows = [r for r in found["rows"] if (r["network"], r["against"]) == (network, against)]
    return markdown(("", *LINKS.values()), by_link(rows, sample, list(LINKS)))


for _network, _against in (
    ("mlp", PLAIN),
    ("transformer", PLAIN),
    ("language", PLAIN),
    ("classifier", PLAIN),
    ("layers", "one host, pdADMM"),
):
    draws(f"hosts_{_network}", "hosts")(
        lambda found, network=_network, against=_against: hosts_table(found, network, against)
    )


@draws("hosts_placing", "hosts")
def hosts_placing(found: dict) -> str:
    """What placing costs on a single device."""
    rows = [r for r in found["rows"] if "Adam," in r["case"] and "error" not in r]
    head = ("", "ms a step", "times", "of")
    milli = lambda r: f"{1e3 * r['step_seconds']['median']:.1f}"
    return markdown(head, [(r["case"], milli(r), f"{r['ratio']:.2f}", r["against"]) for r in rows])


@draws("hosts_bytes", "hosts")
def hosts_bytes(found: dict) -> str:
    """What crossed the link beside the formula, and measured seconds beside predicted ones."""
    rows = [r for r in found["rows"] if r["link"] != NONE]
    links, lines = list(LINKS)[1:], []
    for network in dict.fromkeys(r["network"] for r in rows):
        here = [r for r in rows if r["network"] == network]
        formula = {r["case"]: r.get("bytes_by_formula") for r in here}
        pairs = zip(*(by_link(here, cell, links) for cell in (crossed, foreseen)), strict=True)
        for (case, *shares), (_, *ratios) in pairs:
            sent = "–" if formula[case] is None else f"{formula[case] / 1e6:.3f}"
            lines.append((network, case, sent, *shares, *ratios))
    names = [LINKS[link] for link in links]
    head = [f"crossed / formula, {name}" for name in names]
    head += [f"measured / predicted, {name}" for name in names]
    return markdown(("network", "case", "formula, MB", *head), lines)


def crossed(row: Row) -> str:
    """Bytes that crossed over those of the formula."""
    formula = row["bytes_by_formula"]
    return f"{row['bytes_crossed'] / formula:.3f}" if formula else "–"


def foreseen(row: Row) -> str:
    """Measured over predicted seconds."""
    predicted = row["predicted_seconds"]
    return f"{row['step_seconds']['median'] / predicted:.2f}" if predicted else "–"


@draws("hosts_predicted", "hosts")
def hosts_predicted(found: dict) -> str:
    """How predictions rank the cases of a network, by the calibrated machine and by the fitted one."""

    def cells(a: dict) -> tuple[str, ...]:
        ratios = f"{a['least_ratio']:.2f} to {a['largest_ratio']:.2f}"
        return ratios, agreement(a["spearman"]), f"{a['planned_to_fastest']:.2f}"

    rows = [
        (name, *cells(a), *cells(found["fitted"][name])) for name, a in found["predicted"].items()
    ]
    head = ("measured / predicted", "rank agreement (Spearman)", "planned")
    return markdown(("network, link", *head, *(f"fitted: {name}" for name in head)), rows)


@draws("hosts_floor", "hosts")
def hosts_floor(found: dict) -> str:
    """What the bytes of a boundary take at a link's rate, times a plain step on one host."""
    case = {"floats": "gsADMM, n = 2", "8 bits": "gsADMM, n = 2, 8 bits"}
    rates, lines = {"1gbit": 1.25e8, "100mbit": 1.25e7}, []
    rows = {(r["network"], r["case"], r["link"]): r for r in found["rows"] if "error" not in r}
    for network in dict.fromkeys(n for n, c, _ in rows if c == case["floats"]):
        one = rows[network, PLAIN, NONE]["step_seconds"]["median"]
        cells = [f"{1e3 * one:.1f}"]
        for name in case.values():
            for link, rate in rates.items():
                row = rows[network, name, link]
                bare = row["bytes_by_formula"] / rate / one
                cells.append(f"{bare:.2f} ({row['step_seconds']['median'] / one:.2f})")
        lines.append((network, *cells))
    head = ("network", "one host, ms", *(f"{what}, {LINKS[k]}" for what in case for k in rates))
    return markdown(head, lines)


@draws("hosts_within", "hosts")
def hosts_within(found: dict) -> str:
    """How many cases and links of a network are within a factor of 1.5 of what is predicted."""
    lines = []
    for network in dict.fromkeys(r["network"] for r in found["rows"]):
        here = [r for r in found["rows"] if r["network"] == network and r.get("fitted_seconds")]
        counts = (
            sum(within(r, key) for r in here) for key in ("predicted_seconds", "fitted_seconds")
        )
        lines.append((network, len(here), *counts))
    return markdown(
        ("network", "cases and links", "calibrated", "fitted to its plain steps"), lines
    )


def within(row: Row, key: str) -> bool:
    """Whether measured and predicted seconds are within a factor of 1.5 of each other."""
    ratio = row["step_seconds"]["median"] / row[key]
    return 1 / 1.5 <= ratio <= 1.5


def to_goal(own: dict) -> tuple[str, ...]:
    """Samples until a goal is reached, or how many runs did not, and seconds by link."""
    counts, times = own["samples"], own["seconds"]
    missed = sum(count is None for count in counts)
    shown = f"{missed} of {len(counts)} runs did not" if missed else f"{mean(counts):,.0f}"
    return (shown, *(f"{times[link]:.1f}" if link in times else "–" for link in LINKS))


@draws("time_to_accuracy", "time_to_accuracy")
def time_to_accuracy(found: dict) -> str:
    """Samples and seconds until a goal is reached."""
    rows = [
        (network, case, f"{own['rate']:g}", f"{mean(own['held_out']):.4g}", *to_goal(own))
        for network, of in found["networks"].items()
        for case, own in of["results"].items()
    ]
    head = ("network", "method", "rate", "at the end", "samples to the goal", *LINKS.values())
    return markdown(head, rows)


@draws("ist_wide", "ist_wide")
def ist_wide(found: dict) -> str:
    """Test accuracy, samples and seconds until a goal is reached, of a wide network."""
    rows = [
        (line, f"{own['rate']:g}", seeds_of(own["test"]), *to_goal(own))
        for line, own in found["results"].items()
    ]
    head = ("method", "rate", "test accuracy", "samples to the goal", *LINKS.values())
    return markdown(head, rows)


@draws("ist_settings", "ist_settings")
def ist_settings(found: dict) -> str:
    """The same of further settings."""
    rows = [
        (setting, line, f"{own['rate']:g}", seeds_of(own["test"]), *to_goal(own))
        for setting, each in found["results"].items()
        for line, own in each["lines"].items()
    ]
    head = ("setting", "method", "rate", "test accuracy", "samples to the goal", *LINKS.values())
    return markdown(head, rows)


@draws("pdadmm_links", "pdadmm_links")
def pdadmm_links(found: dict) -> str:
    """Accuracy, and seconds of an iteration on every link."""
    shown = lambda own, link: f"{own[link]:.2f}" if link in own else "–"
    rows = [
        (line, seeds_of(own["test"]), *(shown(own["seconds_an_iteration"], k) for k in LINKS))
        for line, own in found["results"].items()
    ]
    return markdown(("method", "test accuracy", *(f"s, {name}" for name in LINKS.values())), rows)


@draws("half_ticks", "half_ticks")
def half_ticks(found: dict) -> str:
    """Milliseconds a minibatch in ticks, in half ticks, and in ticks of half the samples."""
    keys = ("ticks", "half_ticks", "twice_as_many")
    rows = [
        (
            a["network"],
            a["microbatches"],
            f"{1e3 * a['ticks']:.1f}",
            *(f"{1e3 * a[k]:.1f} ({a[k] / a['ticks']:.2f})" for k in keys[1:]),
        )
        for a in found["rows"]
    ]
    head = ("network", "M", "ticks", "half ticks (times)", "twice as many microbatches (times)")
    return markdown(head, rows)


@draws("slow_links", "slow_links")
def slow_links(found: dict) -> str:
    """Modelled days, and what a host holds."""
    rows = [
        (
            row["hosts"],
            row["link"],
            row["way"],
            row["mesh"].replace("x", "×"),
            f"{row['days']:.2f}",
            f"{row['bytes_held'] / 1e9:.0f}",
        )
        for row in found["rows"]
    ]
    head = ("hosts", "link", "method", "subnet × pr × pc", "days, modelled", "GB a host, at most")
    return markdown(head, rows)
