"""The options of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import jtssm
from jtssm import data, solvers
from jtssm.nn.architectures import ARCHITECTURES
from jtssm.nn.norm import NORMALISATIONS
from jtssm.sharding.cost.machines import MACHINES
from jtssm.sharding.distributed import LOST_AFTER
from jtssm.sharding.mesh import AXES
from jtssm.train import history

OPTIMIZERS = ("adam", "adamw", "adagrad", "lion", "nadam", "radam", "rmsprop", "sgd")
RATES = ("warmup-cosine", "constant")
NETS = ("mlp", "convnet")


def parser(runs: Mapping[str, Callable]) -> argparse.ArgumentParser:
    """The parser of all commands; runs: what each of them does."""
    top = argparse.ArgumentParser(prog="jtssm", description=jtssm.__doc__)
    top.add_argument("--version", action="version", version=jtssm.__version__)
    commands = top.add_subparsers(required=True, metavar="command")
    _train_parser(commands, runs["train"])
    demo = commands.add_parser("demo", help="2 subnetworks against Adam on the embedded digits")
    demo.add_argument("--epochs", type=int, default=30)
    _out_arguments(demo)
    demo.set_defaults(run=runs["demo"])
    commands.add_parser("methods", help="the training methods").set_defaults(run=runs["methods"])
    show = commands.add_parser("data", help="the data sets: which are there, how to get the others")
    show.add_argument("--data-dir")
    show.set_defaults(run=runs["data"])
    _plan_parser(commands, runs["plan"])
    _sweep_parser(commands, runs["sweep"])
    measure = commands.add_parser("calibrate", help="measure these devices, write a machine file")
    measure.add_argument("file", type=Path, help="of the machine, e.g. here.json")
    measure.add_argument("--devices", type=int, help="virtual devices of a CPU")
    measure.set_defaults(run=runs["calibrate"])
    return top


def _plan_parser(commands, run: Callable) -> None:
    plan = commands.add_parser("plan", help="the fastest mesh by the cost model, and its Python")
    plan.set_defaults(run=run)
    _shape_arguments(plan)
    plan.add_argument("--runners-up", type=int, default=4, help="how many other meshes to show")


def _sweep_parser(commands, run: Callable) -> None:
    sweep = commands.add_parser("sweep", help="every mesh shape: predicted, counted and measured")
    sweep.set_defaults(run=run)
    _shape_arguments(sweep)
    add = sweep.add_argument
    add("--no-count", dest="count", action="store_false", help="predict only: nothing is compiled")
    add("--measure", action="store_true", help="run each shape on the present devices, too")
    add("--compile", help="also for TPUs that need not be there, e.g. tpu-v5e:4x4 (needs libtpu)")
    add("--resume", action="store_true", help="go on with the sweep that stands in --out")
    _out_arguments(sweep)


def _shape_arguments(command) -> None:
    """What a network and a machine are."""
    add = command.add_argument
    add("--net", default="mlp", help="one of: " + ", ".join(sorted(ARCHITECTURES)))
    add("--widths", type=_integers, help="instead, of a perceptron: inputs, hidden..., outputs")
    add("--devices", type=int, required=True, help="how many; all are used")
    add("--batch", type=int, required=True, help="samples of a step, of all devices together")
    add("--machine", required=True, help="one of: " + ", ".join(MACHINES) + "; or a machine file")
    add("--method", default="sgd", help="one of: " + ", ".join(solvers.METHODS))
    add("--optimizer", default="adam", help="one of: " + ", ".join(OPTIMIZERS))
    add(
        "--subnets",
        type=int,
        help="of gsadmm, gsam, ist; default: as many as the subnet axis is long",
    )
    add("--cuts", type=_integers, help="first layers of the subnetworks after the first, e.g. 2,3")
    add("--local-steps", type=int, help="of ist, local_sgd, ensemble: steps a round; default: 20")
    add("--schedule", help="of gsadmm, gsam, one of: streaming, stored")
    add("--sweeps", type=int, help="of gsadmm, gsam")
    add(
        "--samples",
        type=int,
        help="that a method keeps which takes no minibatches (pdadmm, stored)",
    )
    add(
        "--memory-limit",
        type=float,
        help="bytes a device may hold; default: the machine's capacity",
    )
    add(
        "--overlap",
        type=float,
        default=0.0,
        help="share of the products' time that hides gradients' sums",
    )


def _train_parser(commands, run: Callable) -> None:
    train = commands.add_parser("train", help="train a perceptron or a small convolutional network")
    train.set_defaults(run=run)
    add = train.add_argument
    add("--method", default="gsadmm", help="one of: " + ", ".join(solvers.METHODS))
    add("--data", default="digits", help="one of: " + ", ".join(data.SOURCES))
    add("--data-dir", help="folder that holds one folder a data set; default: JTSSM_DATA")
    add("--size", type=int, help="zoom images to SIZE x SIZE; default: mlp, MNIST family: 14")
    add("--net", default=NETS[0], help="one of: " + ", ".join(NETS))
    add("--hidden", type=_integers, help="hidden widths; default: mlp: 512,512,512, convnet: 128")
    add("--channels", type=_integers, help="of convnet's convolutions; default: 16,32")
    add("--subnets", type=int, help="number of subnetworks")
    add("--cuts", type=_integers, help="first layers of the subnetworks after the first, e.g. 2,3")
    add("--mesh", type=_mesh, help="e.g. subnet=2,pc=2; default: one device")
    _process_arguments(train)
    add("--forms", type=_forms, help="how layers are split over pr: auto, or a form a layer")
    add("--epochs", type=int, default=10, help="of pdadmm: iterations over all samples")
    add("--evaluate-every", type=int, default=1, help="epochs between two lines of the history")
    add("--batch-size", type=int, default=110, help="samples a gradient sees; of a worker, if any")
    add("--optimizer", default="adam", help="one of: " + ", ".join(OPTIMIZERS))
    add("--learning-rate", type=float, default=1e-3)
    add("--rates", default=RATES[0], help="how the learning rate runs: one of " + ", ".join(RATES))
    add("--normalisation", help="of every layer, one of: " + ", ".join(NORMALISATIONS))
    add("--dropout", type=float, default=0.0, help="of every hidden layer, while training")
    add("--workers", type=int, help="of local_sgd: whole networks that are averaged")
    add("--members", type=int, help="of ensemble: networks that never talk")
    add("--local-steps", type=int, help="of ist, local_sgd, ensemble: steps a round; default: 20")
    add("--deal", help="of ist, one of: stratified, uniform (on one device)")
    add(
        "--scale",
        type=float,
        help="of ist: what unnormalised layers take of a dealt input is scaled by",
    )
    add("--rho", type=float)
    add("--alpha", type=float)
    add("--eta", type=float)
    add("--schedule", help="one of: streaming, stored")
    add("--sweeps", type=int)
    add("--order", help="of gsam's stored sweep, one of: sequential, parallel")
    add("--weight-steps", type=int)
    add("--delay-power", type=float, help="updates fall with (1 + delay)^-power; default: 1")
    add("--nu", type=float, help="of pdadmm, as the following: weight of its quadratic terms")
    add("--steps", help="one of: damped, gradient, exact")
    add("--damping", type=float, help="of the damped W-step")
    add("--t0", type=float, help="first step length of gradient steps; default: exact line search")
    add("--weight-decay", type=float)
    add("--grid", type=int, choices=(8, 16), help="bits that p and q are rounded to")
    add("--float-q", action="store_true", default=None, help="round p alone")
    add("--shallow", type=int, help="train that many hidden layers first, then insert the others")
    add("--precision", help="of the products, e.g. highest")
    add("--compute-dtype", help="what layers compute in, e.g. bfloat16; state stays float32")
    add("--seed", type=int, default=0)
    add("--checkpoint", type=Path, help="folder of checkpoints; the same command goes on from them")
    add(
        "--every", type=int, help="steps between two checkpoints; default: each line of the history"
    )
    add("--resume", type=int, help="go on from that checkpoint; default: the newest")
    add(
        "--on-divergence",
        default="stop",
        help="one of: stop, halve (smaller steps from a line before)",
    )
    add("--halvings", type=int, default=5, help="of --on-divergence halve: at most so many")
    add("--history", choices=history.FORMATS, default="csv", help="format of the history")
    _out_arguments(train)


def _process_arguments(command) -> None:
    """Where several processes share the mesh; each is started with the same command."""
    add = command.add_argument
    add(
        "--coordinator",
        help="host:port of process 0, with the next two: a run of several processes",
    )
    add("--num-processes", type=int, help="how many there are; the mesh is over the devices of all")
    add("--process-id", type=int, help="which of them this is, from 0")
    add("--distributed", action="store_true", help="instead: as jax finds them (SLURM, Cloud TPU)")
    add(
        "--lost-after",
        type=int,
        default=LOST_AFTER,
        help="seconds until a dead process ends the others",
    )


def _out_arguments(command) -> None:
    command.add_argument("--out", type=Path, default=Path("run"), help="folder for the results")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier run there")


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _forms(text: str) -> str | list[str]:
    return text if text == "auto" else text.split(",")


def _mesh(text: str) -> dict[str, int]:
    pairs = (part.split("=") for part in text.split(","))
    try:
        sizes = {name: int(size) for name, size in pairs}
    except ValueError:
        sizes = {"": 0}
    if not set(sizes) <= set(AXES) or min(sizes.values()) < 1:
        raise argparse.ArgumentTypeError(
            f"expected sizes of subnet, pr and pc, e.g. subnet=2,pc=2; got {text!r}"
        )
    return sizes
