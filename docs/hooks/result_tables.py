"""Tables of results, drawn from benchmarks/results/*.json: no number of them is copied by hand.

A table is a function of the JSON named before its colon; `TABLES` has them by the name that stands in
a marker. Only the standard library: the numbers were made long before.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TABLES: dict[str, Callable[[], str]] = {}


def load(name: str) -> dict[str, Any]:
    """A result by the name of its file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def draws(name: str, source: str) -> Callable:
    """Enters a function of a result among the tables, once there is such a result."""

    def enter(table: Callable[[dict], str]) -> Callable:
        if (RESULTS / f"{source}.json").exists():
            TABLES[name] = lambda: table(load(source))
        return table

    return enter


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in markdown."""
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    head = list(head)
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def accuracy(value: float) -> str:
    """0.98356 -> .9836"""
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0") else text


def extent(values: list[float], show: Callable[[float], str] = accuracy) -> str:
    """Smallest to largest; a dash for one value."""
    return f"{show(min(values))} – {show(max(values))}" if len(values) > 1 else "–"


def seeds_of(values: list[float]) -> str:
    """Their mean, and in brackets from the smallest to the largest."""
    return f"{accuracy(mean(values))} ({extent(values)})"


def points(value: float, baseline: float) -> str:
    """How far behind a baseline, in points."""
    return f"{100 * (baseline - value):.2f}"


def quartiles(found: dict, scale: float, digits: int) -> str:
    """The quartiles of a measurement."""
    return extent(found["quartiles"], lambda a: f"{scale * a:.{digits}f}")


def agreement(value: float | None) -> str:
    """Of ranks; a dash where all are predicted alike."""
    return "–" if value is None else f"{value:.2f}"


def about(name: str) -> str:
    """Command, date, commit, versions and device of a result, in a sentence."""
    found = load(name)
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if k != "jaxlib")
    seeds = f"; seeds {', '.join(map(str, found['seeds']))}" if "seeds" in found else ""
    return (
        f"Command, on {found['date']}: `{found['command']}` (commit {found['commit'][:9]}; {versions}; "
        f"{found['device']}, {found['cores']} cores{seeds}; {duration(name).lower()}). "
        f"[{name}.json](/results/{name}.json)"
    )


def duration(name: str) -> str:
    """How long a benchmark takes, as its docstring says."""
    text = " ".join(docstring(written_by(name)).split("\n\n")[-1].split())
    return re.split(r"[;.]", text)[0]


def written_by(name: str) -> Path:
    """The benchmark that wrote a result, by its command."""
    module = re.search(r"-m benchmarks\.(\w+)", load(name)["command"])
    assert module is not None, name
    return ROOT / "benchmarks" / f"{module[1]}.py"


def docstring(path: Path) -> str:
    """The docstring of a module that is not imported."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def reproduce() -> str:
    """Every result: question, command, date, time, device."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        name, found = path.stem, load(path.stem)
        text = docstring(written_by(name))
        data = "MNIST" if "JTSSM_DATA" in text else "–"
        data += " and spoken digits" if name == "ist_tradeoff" else ""
        data = "spoken digits" if name == "ist_speakers" else data
        command = found["command"].replace("|", "\\|")
        rows.append(
            (
                f"[{name}](/results/{name}.json)",
                text.split("\n")[0],
                f"`{command}`",
                data,
                duration(name),
                found["date"],
                found["device"],
            )
        )
    return markdown(("result", "question", "command", "data", "time", "date", "device"), rows)


TABLES["reproduce"] = reproduce


def readme() -> str:
    """The one table of the README."""
    head = ("network", "method", "test accuracy", "baseline", "its accuracy", "behind, points")
    return markdown(head, [*_readme_tssm(), *_readme_users(), *_readme_pdadmm(), *_readme_ist()])


TABLES["readme"] = readme


def _against(network: str, method: str, value: float, baseline: str, its: float) -> tuple:
    shown = accuracy(value), baseline, accuracy(its), points(value, its)
    return (network, method, *shown)


def _readme_tssm():
    found = load("tssm_tradeoff")["results"]
    mean_of = lambda name: mean(found[name]["test_accuracy"])
    end = _end(found)
    names = [f"gsADMM streaming, n = {n}" for n in (2, 5, 10)] + ["gsADMM stored, n = 2"]
    for name in names:
        yield _against("perceptron, 9 × 512", name, mean_of(name), end, mean_of(end))


def _end(found: dict) -> str:
    """The best line of the trade-off that is not cut."""
    ends = [name for name, line in found.items() if line["subnets"] == 1]
    return max(ends, key=lambda name: mean(found[name]["test_accuracy"]))


USERS = {  # networks of flax modules
    "residual": "24 residual blocks, 5 000 images",
    "transformer": "transformer, 5 000 images",
}


def _readme_users():
    found = load("users_networks")["results"]
    for kind, network in USERS.items():
        if f"{kind}, adam, n = 1" not in found:  # not run anew
            continue
        ends = {name: f"{kind}, {name}, n = 1" for name in ("adam", "nadam")}
        its = {name: mean(found[line]["test_accuracy"]) for name, line in ends.items()}
        best = max(its, key=lambda name: its[name])
        title = {"adam": "Adam end to end", "nadam": "NAdam end to end"}[best]
        for n in (2, 3, 4):
            # of several M the one that was best on held-out images
            tried = [
                own for way, own in found.items() if way.startswith(f"{kind}, nadam, n = {n},")
            ]
            if tried:
                own = max(tried, key=lambda own: mean(own["valid_accuracy"]))
                value = mean(own["test_accuracy"])
                yield _against(network, f"gsADMM streaming, n = {n}", value, title, its[best])


def _readme_pdadmm():
    found = load("pdadmm_accuracy")
    value, adam = found["reported"]["deep"], found["Adam, minibatch"]
    yield _against(
        "perceptron, 9 × 500",
        "pdADMM, 100 + 100 iterations",
        value["test_accuracy"],
        "Adam, minibatches",
        adam["test_accuracy"],
    )


def _readme_ist():
    found = load("ist_tradeoff")["results"]
    for n in (2, 4, 8):
        ist, local = (
            mean(found[f"mnist, 2 hidden, {kind}, N = {n}"]["test_accuracy"])
            for kind in ("IST", "local SGD")
        )
        yield _against("perceptron, 2 × 512", f"IST, N = {n}", ist, f"local SGD, N = {n}", local)


@draws("tssm_tradeoff", "tssm_tradeoff")
def tssm_tradeoff(found: dict) -> str:
    """Accuracy at every n."""
    end = mean(found["results"][_end(found["results"])]["test_accuracy"])
    rows = []
    for name, line in found["results"].items():
        seen = line["test_accuracy"]
        method, n = name.partition(", n = ")[0], line["subnets"]
        behind = points(mean(seen), end) if n > 1 else "–"
        coupling, seeds = f"{line.get('coupling', 0):.2g}", len(seen)
        rows.append((method, n, accuracy(mean(seen)), extent(seen), seeds, behind, coupling))
    head = (
        "method",
        "n",
        "test accuracy",
        "range",
        "seeds",
        "behind the best end, points",
        "coupling",
    )
    return markdown(head, rows)


@draws("tssm_duals", "tssm_duals")
def tssm_duals(found: dict) -> str:
    """What rho, sweeps and duals buy."""
    lines = found["results"].values()
    (end,) = (mean(line["test_accuracy"]) for line in lines if line["subnets"] == 1)
    rows = [
        (
            line["line"],
            f"{line['rate']:g}",
            accuracy(mean(line["test_accuracy"])),
            extent(line["test_accuracy"]),
            points(mean(line["test_accuracy"]), end) if line["subnets"] > 1 else "–",
            f"{line['products']:.1f}",
        )
        for line in lines
    ]
    return markdown(("", "rate", "test accuracy", "range", "behind, points", "products"), rows)


@draws("rounded_boundaries", "rounded_boundaries")
def rounded_boundaries(found: dict) -> str:
    """Accuracy of rounded boundaries beside the float's."""
    rows, floats = [], {}
    for line in found["results"].values():
        task, n, grid = line["run"]
        unit = "accuracy" if task == "MNIST" else "bits a byte"
        whole = floats.setdefault((task, n), line["bytes"])
        size = (
            line["bytes"] if grid == "floats" else f"{line['bytes']} ({line['bytes'] / whole:.3f})"
        )
        seen = accuracy(line["mean"]), extent(line["held_out"])
        rows.append((f"{task}, {unit}", n, grid, *seen, size))
    head = ("network", "n", "boundaries", "held out", "range", "bytes a step (share)")
    return markdown(head, rows)


@draws("tssm_one_device", "tssm_speed")
def tssm_one_device(found: dict) -> str:
    """What a step costs on one device."""
    lines = found["one_device_by_precision"]["None"]
    own = lines["Adam end to end"]["product_flops"]
    rows = [
        (
            name,
            f"{1e3 * a['median']:.1f}",
            quartiles(a, 1e3, 1),
            f"{a['ratio_to_adam']:.2f}",
            f"{a['product_flops'] / own:.2f}",
            f"{a['product_share']:.2f}",
        )
        for name, a in lines.items()
    ]
    head = (
        "",
        "step, ms",
        "quartiles",
        "against Adam's",
        "products, against Adam's",
        "share of its own products",
    )
    return markdown(head, rows)


@draws("tssm_meshes", "tssm_speed")
def tssm_meshes(found: dict) -> str:
    """Steps a second and bytes over boundaries, by n and devices."""
    cells = {(a["subnets"], a["devices"]): a for a in found["meshes"]}
    devices = sorted({d for _, d in cells})

    def cell(n, d):
        seen = cells.get((n, d))
        if seen is None:
            return "–"
        sent = f" ({seen['boundary_bytes_a_step'] / 1e6:.2f} MB)" if d > 1 else ""
        return f"{seen['steps_a_second']:.0f}{sent}"

    rows = [(n, *(cell(n, d) for d in devices)) for n in sorted({n for n, _ in cells})]
    return markdown(("n", *(f"{d} device{'s' * (d > 1)}" for d in devices)), rows)


KINDS = ("one device", "data parallel", "pipeline", "gsADMM")


def _modelled(found: dict, network: str) -> str:
    rows = [
        (machine, row["devices"], *_fastest(row["lines"]))
        for machine, networks in found.items()
        if isinstance(networks, dict) and network in networks
        for row in networks[network]
    ]
    return markdown(("machine", "devices", *KINDS), rows)


TABLES["tssm_modelled"] = lambda: _modelled(load("tssm_modelled"), "512 wide, batch 110")
TABLES["tssm_modelled_wide"] = lambda: _modelled(load("tssm_modelled"), "4096 wide, batch 1100")


def _fastest(lines: list[dict]) -> list[str]:
    """The fastest mesh of each kind."""
    of = lambda kind: [line for line in lines if line["kind"] == kind]
    best = {k: min(of(k), key=lambda a: a["step_seconds"], default=None) for k in KINDS}
    return [_modelled_cell(best[kind]) for kind in KINDS]


def _modelled_cell(line: dict | None) -> str:
    if line is None:
        return "–"
    parts = [f"{1e3 * line['step_seconds']:.3f} ms"]
    seconds = line.get("seconds_to_0.97")
    if seconds is not None:
        parts.append(f"{seconds:.2f} s")
    parts += [line["mesh"].replace("x", "×")] * (line["kind"] in ("pipeline", "gsADMM"))
    parts += [f"m = {line['microbatches']}"] * (line["microbatches"] is not None)
    return ", ".join(parts)


@draws("pdadmm_accuracy", "pdadmm_accuracy")
def pdadmm_accuracy(found: dict) -> str:
    """pdADMM and Adam on MNIST."""
    lines = (
        ("pdADMM, one hidden layer", "100", found["reported"]["shallow"]),
        ("pdADMM, grown to nine", "100 + 100", found["reported"]["deep"]),
        ("Adam, full batch", "100", found["Adam, full batch"]),
        ("Adam, minibatches of 110", "10 epochs", found["Adam, minibatch"]),
    )
    shown = lambda a: (a["valid_accuracy"][-1], a["test_accuracy"], a["train_accuracy"])
    rows = [(name, count, *map(accuracy, shown(a))) for name, count, a in lines]
    return markdown(("", "iterations", "held-out", "test", "train"), rows)


@draws("pdadmm_settings", "pdadmm_accuracy")
def pdadmm_settings(found: dict) -> str:
    """What was tried for the shallow stage, and on the digits."""
    rows = [
        (name, accuracy(a["valid_accuracy"][-1]), accuracy(found["digits"][name]["test_accuracy"]))
        for name, a in found["shallow_stage"].items()
    ]
    return markdown(("steps", "shallow, MNIST", "digits"), rows)


@draws("pdadmm_deep", "pdadmm_accuracy")
def pdadmm_deep(found: dict) -> str:
    """What was tried for the deep stage."""
    rows = [(k, accuracy(a["valid_accuracy"][-1])) for k, a in found["deep_stage"].items()]
    return markdown(("deep stage", "held-out"), rows)


@draws("pdadmm_rounded", "pdadmm_accuracy")
def pdadmm_rounded(found: dict) -> str:
    """Rounded exchange."""
    rows = [
        (name, f"{a['bytes_of_float32']:.3f}", accuracy(a["valid_accuracy"][-1]))
        for name, a in found["rounded_exchange"].items()
    ]
    return markdown(("exchanged", "bytes, share of float32", "held-out accuracy"), rows)


@draws("pdadmm_devices", "pdadmm_devices")
def pdadmm_devices(found: dict) -> str:
    """Modelled milliseconds of an iteration, and gigabytes of a device."""
    machines = list(found["rows"][0]["seconds"])
    rows = [
        (
            row["method"],
            row["devices"],
            *(f"{1e3 * row['seconds'][name]:.0f}" for name in machines),
            f"{row['bytes'] / 1e9:.0f}",
        )
        for row in found["rows"]
        if row["devices"] in (1, 2, 5, 10, 19)
    ]
    rows.sort(key=lambda row: row[0])
    return markdown(("modelled", "devices", *(f"{n}, ms" for n in machines), "GB a device"), rows)


@draws("pdadmm_graph", "pdadmm_graph")
def pdadmm_graph(found: dict) -> str:
    """Perceptrons on a graph's features."""
    rows = [
        (
            name,
            "–" if a["bytes_of_float32"] is None else f"{a['bytes_of_float32']:.3f}",
            seeds_of(a["test"]),
        )
        for name, a in found["results"].items()
    ]
    return markdown(("trained by", "bytes, share of float32", "test accuracy"), rows)


TEN = "ten layers, "  # how their lines begin


@draws("pdadmm_training", "pdadmm_training")
def pdadmm_training(found: dict) -> str:
    """Ways to go through all samples."""
    rows = [
        (
            name,
            f"{a['setting']:g}",
            f"{a['products']:.2f}",
            accuracy(mean(a["train"])),
            seeds_of(a["test"]),
        )
        for name, a in found["results"].items()
        if not name.startswith(TEN)
    ]
    head = ("", "damping or rate", "products", "training accuracy", "test accuracy")
    return markdown(head, rows)


@draws("pdadmm_ten_layers", "pdadmm_training")
def pdadmm_ten_layers(found: dict) -> str:
    """Ten layers, grown from two or not."""
    before = lambda a: accuracy(mean(grown[0] for grown in a["valid_by_growth"]))
    rows = [
        (
            name.removeprefix(TEN),
            f"{a['setting']:g}",
            f"{a['products']:.2f}",
            before(a) if "valid_by_growth" in a else "–",
            accuracy(mean(a["valid"])),
            accuracy(mean(a["train"])),
            seeds_of(a["test"]),
        )
        for name, a in found["results"].items()
        if name.startswith(TEN)
    ]
    before_growth = "held-out accuracy before growth"
    head = ("", "nu or rate", "products", before_growth, "held-out", "training", "test accuracy")
    return markdown(head, rows)


@draws("pdadmm_speed", "pdadmm_speed")
def pdadmm_speed(found: dict) -> str:
    """What an iteration costs."""
    names = {
        "gradient": "gradient, exact line search",
        "gradient, t0": "gradient, the paper's doubling",
        "damped": "damped",
        "literal": "the paper's text, trial by trial",
    }
    rows = [
        (
            names[name],
            f"{a['median']:.2f}",
            quartiles(a, 1, 2),
            f"{a['product_flops'] / 1e9:.0f}",
            f"{a['to_products']:.2f}" if "to_products" in a else "–",
        )
        for name, a in found["None"].items()
    ]
    head = ("", "iteration, s", "quartiles", "product GFLOP", "against its own products alone")
    return markdown(head, rows)


IST_KINDS = {
    "IST": "IST",
    "local SGD": "local SGD",
    "data parallel": "data parallel",
    "dropout": "dropout 1 − 1/N",
    "narrow": "one narrow net",
    "ensemble": "ensemble",
}


@draws("ist_speakers", "ist_speakers")
@draws("ist_tradeoff", "ist_tradeoff")
def ist_tradeoff(found: dict) -> str:
    """IST, its baselines and its controls."""
    results = found["results"]
    rows = []
    for data, depth in dict.fromkeys((a["data"], a["depth"]) for a in results.values()):
        start = f"{data}, {depth} hidden"
        one = seeds_of(results[f"{start}, plain SGD, N = 1"]["test_accuracy"])
        rows.append((start, 1, f"{one}, plain SGD: all are the same", *[""] * 5))
        for n in (n for n in (2, 4, 8) if f"{start}, IST, N = {n}" in results):
            seen = (results[f"{start}, {kind}, N = {n}"]["test_accuracy"] for kind in IST_KINDS)
            rows.append((start, n, *map(seeds_of, seen)))
    return markdown(("data, hidden layers", "N", *IST_KINDS.values()), rows)


@draws("ist_normalisation", "ist_tradeoff")
def ist_normalisation(found: dict) -> str:
    """IST at N = 4 with other normalisations."""
    rows = []
    for kind in ("batch", "running", "layer", "none"):
        end = "" if kind == "batch" else f", {kind}"
        names = (f"mnist, {depth} hidden, IST, N = 4{end}" for depth in (1, 2))
        rows.append((kind, *(accuracy(mean(found["results"][n]["test_accuracy"])) for n in names)))
    return markdown(("normalisation", "one hidden layer", "two hidden layers"), rows)


@draws("ist_images", "ist_images")
def ist_images(found: dict) -> str:
    """Channels that are dealt, beside what else takes the same samples."""
    rows = [
        (
            name,
            f"{a['rate']:g}",
            seeds_of(a["test"]),
            "–" if a["bytes_a_round"] is None else f"{a['bytes_a_round'] / 1e3:.0f}",
        )
        for name, a in found["results"].items()
    ]
    return markdown(("network, method", "rate", "test accuracy", "kB sent a round"), rows)


@draws("ist_speed", "ist_speed")
def ist_speed(found: dict) -> str:
    """A round against its products, and the share of a deal."""
    rows = [
        (
            name,
            f"{a['round']['median']:.3f}",
            f"{a['products']['median']:.3f}",
            f"{a['against_products']:.2f}",
            f"{100 * a['deal_share']['median']:.1f} % ({quartiles(a['deal_share'], 100, 1)})",
        )
        for name, a in found["results"].items()
    ]
    head = (
        "inputs, normalisation",
        "round, s",
        "its products, s",
        "round / products",
        "deal / round (quartiles)",
    )
    return markdown(head, rows)


@draws("process_faults", "process_faults")
def process_faults(found: dict) -> str:
    """What the others do when a process or the network fails."""
    rows = [(row["fault"], *_fault_cells(row)) for row in found["faults"]]
    return markdown(("fault", "what the others do", "after, s", "how to go on"), rows)


def _fault_cells(row: dict) -> tuple[str, str, str]:
    if row["outcome"] == "goes on":
        return "wait, and go on with the same numbers", "–", "nothing to do"
    if row["outcome"] == "hangs":
        return "**hang**", "–", "end them"
    who = sorted(row["says"])
    said = [
        f"process {i} ends with code {row['codes'][i]}: `{_in_a_cell(row['says'][i])}`" for i in who
    ]
    after = " and ".join(dict.fromkeys(f"{row['seconds'][i]:.0f}" for i in who))
    go_on = "mend it, start all again"
    if row.get("gone_on_from"):
        go_on = f"start again: went on from epoch {row['gone_on_from']} of its checkpoints"
    return "; ".join(said), after, go_on


def _in_a_cell(text: str) -> str:
    text = re.sub(r"[|`]", "'", text)
    return text if len(text) <= 120 else f"{text[:120]}..."


FORMS = ("batch", "gathered", "model", "scattered", "paired", "domain")


def _grid_bytes(devices: int) -> str:
    rows = []
    for name, seen in load("grid_bytes")["bytes"].items():
        network, grid = name.rsplit(", ", 1)
        pr, pc = map(int, grid.split(" x "))
        if pr * pc != devices:
            continue
        cells = [f"{seen[form] / 1e6:.2f}" if form in seen else "–" for form in FORMS]
        auto = f"**{seen['auto'] / 1e6:.2f}**"
        rows.append((network, f"{pr} × {pc}", *cells, auto, *_partitioned(seen)))
    return markdown(("network", "pr × pc", *FORMS, "auto", "XLA", "its work"), rows)


def _partitioned(seen: dict) -> tuple[str, str]:
    if seen.get("xla") is None:
        return "–", "–"
    return f"{seen['xla'] / 1e6:.2f}", f"{seen['xla_work']:.2f}"


for _devices in (8, 16, 64):
    TABLES[f"grid_bytes_{_devices}"] = lambda devices=_devices: _grid_bytes(devices)


@draws("grid_speed", "grid_speed")
def grid_speed(found: dict) -> str:
    """A placed step on one device over plain jax and optax."""
    steps = found["steps_a_dispatch"]
    rows = [
        (
            name,
            f"{1e3 * a['seconds']['plain']['median'] / steps:.2f}",
            f"{a['ratio']['sgd']:.2f}",
            f"{a['ratio']['placed']:.2f}",
            a["repeats"],
        )
        for name, a in found["results"].items()
    ]
    return markdown(("network", "plain jax and optax, ms", "sgd", "sgd, placed", "turns"), rows)


@draws("planner_published", "planner_paper")
def planner_published(found: dict) -> str:
    """The paper's grids and speed-ups, printed and simulated."""
    shown = lambda a: f"{a['grid'][0]} × {a['grid'][1]}, {a['speedup']:.2f}"
    rows = [
        (figure, processes, shown(a["printed"]), shown(a["simulated"]))
        for figure, lines in found["paper"].items()
        for processes, a in lines.items()
    ]
    return markdown(("figure", "P", "printed grid, speed-up", "simulated"), rows)


@draws("planner_paper", "planner_paper")
def planner_paper(found: dict) -> str:
    """The paper's best grids against those of this planner, under the paper's assumptions."""
    grid = lambda a: f"{a['grid'][0]} × {a['grid'][1]}"
    digits = lambda a: 2 if a["total"] < 10 else 1
    seconds = lambda a: "{total:.{d}f} ({communication:.{d}f})".format(d=digits(a), **a)
    rows = [
        (
            f"{figure}, P = {processes}",
            grid(a["paper"]),
            seconds(a["paper"]),
            grid(a["ours"]),
            seconds(a["ours"]),
            f"{a['faster']:.2f}",
        )
        for figure, lines in found["planned"].items()
        for processes, a in lines.items()
    ]
    head = (
        "case",
        "paper's best",
        "seconds an epoch (communication)",
        "ours",
        "seconds (communication)",
        "paper / ours",
    )
    return markdown(head, rows)


@draws("planner_measured", "planner_measured")
def planner_measured(found: dict) -> str:
    """How predicted seconds meet measured ones."""
    rows = [
        (
            name,
            len(a["shapes"]),
            f"{a['least_ratio']:.1f} to {a['largest_ratio']:.1f}",
            agreement(a["spearman"]),
            f"{a['planned_to_fastest']:.2f}",
            f"{a['slowest_to_fastest']:.2f}",
        )
        for name, a in found["results"].items()
    ]
    head = (
        "case",
        "shapes",
        "measured / predicted",
        "rank agreement (Spearman)",
        "planned",
        "spread",
    )
    return markdown(head, rows)


@draws("memory_held", "memory_held")
def memory_held(found: dict) -> str:
    """What a device holds on every mesh, by formula and compiled."""
    mega = lambda a: f"{a / 1e6:.3f}"
    rows = [
        (
            name,
            a["mesh"].replace("x", "×"),
            *(mega(a[k]) for k in ("arguments", "total", "compiled")),
        )
        for name, lines in found["results"].items()
        for a in lines
    ]
    head = ("case", "subnet × pr × pc", "given to a step, MB", "bound in all, MB", "compiled, MB")
    return markdown(head, rows)


@draws("users_networks_long", "users_networks_long")
@draws("users_networks", "users_networks")
def users_networks(found: dict) -> str:
    """flax networks end to end, and cut at every n."""
    ways = {"adam, n = 1": "end to end, Adam", "nadam, n = 1": "end to end, NAdam"}
    cut = [f"n = {n}, M = {M}" for n in (2, 3, 4) for M in (4, 10, 20)]
    ways |= {f"nadam, {way}": f"gsADMM, {way}, NAdam" for way in cut}
    rows = []
    for kind, network in USERS.items():
        every = {way: found["results"].get(f"{kind}, {way}") for way in ways}
        results = {way: own for way, own in every.items() if own}
        if not results:  # not run anew
            continue
        best = max(mean(results[f"{name}, n = 1"]["test_accuracy"]) for name in ("adam", "nadam"))
        for way, shown in ((way, ways[way]) for way in results):
            own = results[way]["test_accuracy"]
            held = mean(results[way]["valid_accuracy"])
            behind = points(mean(own), best)
            rate = f"{results[way]['rate']:g}"
            rows.append(
                (network, shown, rate, accuracy(held), accuracy(mean(own)), extent(own), behind)
            )
    head = (
        "network",
        "method",
        "rate",
        "held out",
        "test",
        "range",
        "points behind the best end to end",
    )
    return markdown(head, rows)


@draws("cut_language_model", "cut_language_model")
def cut_language_model(found: dict) -> str:
    """A decoder end to end, and cut at every n."""
    ways = {"adam, n = 1": "end to end, Adam", "nadam, n = 1": "end to end, NAdam"}
    whole = [own for way, own in found["results"].items() if way in ways]
    best = min(mean(own["test_bits"]) for own in whole)
    bits = lambda value: f"{value:.3f}"
    rows = []
    for way, own in found["results"].items():
        shown = ways.get(way, f"gsADMM, {way.removeprefix('nadam, ')}, NAdam")
        held, test = mean(own["valid_bits"]), own["test_bits"]
        behind = f"{mean(test) - best:+.3f}"
        row = (shown, f"{own['rate']:g}", bits(held), bits(mean(test)), extent(test, bits), behind)
        rows.append(row)
    head = ("method", "rate", "held out", "test", "range", "bits behind the best end to end")
    return markdown(head, rows)


@draws("compile_seconds", "compile_seconds")
def compile_seconds(found: dict) -> str:
    """Seconds until a step is compiled."""
    rows = [
        (name, *(f"{own[part]:.1f}" for part in ("start", "trace", "compile")))
        for name, own in found["results"].items()
    ]
    return markdown(("24 blocks", "state, s", "traced, s", "compiled, s"), rows)
