"""The options of the commands: parsers that share them, one parser a method."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from jtssm import data, losses, solvers
from jtssm.cli import samples
from jtssm.cli.constructors import add_options, prose, summary, takes
from jtssm.cli.parsers import Parser, group, words
from jtssm.cli.readers import (
    either,
    forms,
    integer,
    integers,
    mesh,
    number,
    one_of,
    one_of_or_own,
    path,
    seed,
)
from jtssm.data.fetching import LIBRARIES, REMOTES
from jtssm.nn.architectures import ARCHITECTURES
from jtssm.nn.norm import NORMALISATIONS
from jtssm.planning.builders import LOCAL_STEPS, workers_argument
from jtssm.sharding.cost.machine_table import MACHINES
from jtssm.sharding.meeting import LOST_AFTER
from jtssm.train import history
from jtssm.train.checkpoint import ANYWAY

OPTIMIZERS = ("adam", "adamw", "adagrad", "lion", "nadam", "radam", "rmsprop", "sgd")
BATCH_SIZE = 110
RATES = ("warmup-cosine", "constant")
NETS = ("mlp", "convnet")
OWN_NET = "package.module:function, which returns yours"
DATA_DIR = "folder that holds one folder a data set; default: JTSSM_DATA"
METHOD_OF = {"train": "gsadmm", "plan": "sgd", "sweep": "sgd"}  # without a method
Command = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_train(commands: Commands, run: Command) -> None:
    """`jtssm train METHOD`."""
    methods = _with_methods(commands, "train", "train a network, one of your own too")
    whole = [_data(), _network(), _training(), _mesh()]
    last = [_processes(), _checkpoints(), _results()]
    for name, make in solvers.METHODS.items():
        own = Parser(add_help=False)
        workers = workers_argument(make)
        rounds = {} if workers is None else {"local_steps": LOCAL_STEPS}
        add_options(own, make, {**rounds, "batch_size": BATCH_SIZE})
        some = [_optimizer(RATES)] if takes(make, "optimizer") else []
        some += [_loss()] if takes(make, "loss") else []
        # workers keep their layers whole
        some += [_forms()] if workers is None else []
        some += [_shallow()] if make is solvers.pdadmm else []
        method = _add_method(methods, name, [own, *whole, *some, *last])
        method.set_defaults(run=run, forms=None, shallow=None, loss=None)


def add_plan(commands: Commands, run: Command) -> None:
    """`jtssm plan METHOD`."""
    shown, add = group("results")
    add("--runners-up", type=integer, default=4, help="how many other meshes to show; default: 4")
    _add_planned(
        commands, "plan", "the fastest mesh by the cost model, and its Python", run, [shown]
    )


def add_sweep(commands: Commands, run: Command) -> None:
    """`jtssm sweep METHOD`."""
    told = "every mesh shape: predicted, counted and measured"
    _add_planned(commands, "sweep", told, run, [_measures(), _results()])


def add_demo(commands: Commands, run: Command) -> None:
    """`jtssm demo`."""
    told = "2 subnetworks against Adam on the embedded digits"
    demo = commands.add_parser("demo", help=told, description=told, parents=[_results()])
    demo.add_argument("--epochs", type=integer, default=30, help="of each; default: 30")
    demo.set_defaults(run=run)


def add_data(commands: Commands, run: Command) -> None:
    """`jtssm data`."""
    told = "the data sets: which are there; jtssm data get NAME fetches one"
    shown = commands.add_parser("data", help=told, description=told)
    shown.add_argument("--data-dir", type=path, help=DATA_DIR)
    shown.set_defaults(run=run, action=None)
    told = "fetch one by a library that knows it"
    fetched = shown.add_subparsers(dest="action", metavar="get").add_parser(
        "get", help=told, description=told
    )
    fetched.add_argument("name", type=one_of(sorted(REMOTES)), help=f"{words(sorted(REMOTES))}")
    # what stands before `get` holds too
    fetched.add_argument("--data-dir", type=path, default=argparse.SUPPRESS, help=DATA_DIR)
    told = f"{words(LIBRARIES)}; default: the first that is installed"
    fetched.add_argument("--through", type=one_of(LIBRARIES), help=told)


def add_calibrate(commands: Commands, run: Command) -> None:
    """`jtssm calibrate`."""
    told = "measure these devices, write a machine file"
    measure = commands.add_parser("calibrate", help=told, description=told)
    measure.add_argument("file", type=path, help="of the machine, e.g. here.json")
    measure.add_argument("--devices", type=integer, help="virtual devices of a CPU; default: 1")
    told = f"also run plain steps of a network, and fit the machine to them: {OWN_NET}, or its name"
    measure.add_argument("--net", help=told)
    measure.add_argument("--batch", type=integer, help="samples of such a step, with --net")
    measure.set_defaults(run=run)


def _add_planned(
    commands: Commands, command: str, told: str, run: Command, own: list[Parser]
) -> None:
    """A command that asks the cost model about each method."""
    methods = _with_methods(commands, command, told)
    shared = [_architecture(), _machine()]
    for name, make in solvers.METHODS.items():
        workers = workers_argument(make)
        found = {workers or "subnets": "as many as the subnet axis is long"}
        found |= {} if workers is None else {"local_steps": str(LOCAL_STEPS)}
        its = Parser(add_help=False)
        add_options(its, make, {}, found, but="batch_size")
        some = [_optimizer()] if takes(make, "optimizer") else []
        some += [_loss()] if takes(make, "loss") else []
        method = _add_method(methods, name, [its, *shared, *some, *own])
        method.set_defaults(run=run, loss=None)


def _with_methods(commands: Commands, command: str, told: str) -> Commands:
    """A command that has one of its own for each method."""
    parser = commands.add_parser(
        command, help=told, description=f"{told}. Without a METHOD: {METHOD_OF[command]}."
    )
    return parser.add_subparsers(dest="method", required=True, metavar="METHOD")


def _add_method(methods: Commands, name: str, parents: list[Parser]) -> Parser:
    make = solvers.METHODS[name]
    return methods.add_parser(name, parents=parents, help=summary(make), description=prose(make))


def _data() -> Parser:
    shared, add = group("data")
    told = f"{words(data.SOURCES)}; or an npz file of yours; default: digits"
    add("--data", default="digits", help=told)
    told = "what the file calls x, y, x_valid, y_valid, x_test and y_test, e.g. x=tokens,y=next"
    add("--arrays", type=samples.names, help=f"{told}; default: so")
    add("--data-dir", type=path, help=DATA_DIR)
    add("--size", type=integer, help="zoom images to SIZE x SIZE; default: mlp, MNIST family: 14")
    return shared


def _network() -> Parser:
    shared, add = group("network")
    told = f"{words(NETS)}; or {OWN_NET}; default: {NETS[0]}"
    add("--net", type=one_of_or_own(NETS), default=NETS[0], help=told)
    add("--hidden", type=integers, help="hidden widths; default: mlp: 512,512,512, convnet: 128")
    add("--channels", type=integers, help="of convnet's convolutions; default: 16,32")
    add("--normalisation", help=f"of every layer, {words(NORMALISATIONS)}; default: none")
    add("--dropout", type=number, default=0.0, help="of hidden layers, while training; default: 0")
    return shared


def _training() -> Parser:
    shared, add = group("training")
    add(
        "--epochs",
        type=integer,
        default=10,
        help="passes over the samples; of pdadmm: iterations over all of them; default: 10",
    )
    add("--seed", type=seed, default=0, help="of weights, order and dropout; default: 0")
    add(
        "--on-divergence",
        default="stop",
        help="one of: stop, halve (smaller steps from a line before)",
    )
    add("--halvings", type=integer, default=5, help="of --on-divergence halve: at most; default: 5")
    return shared


def _optimizer(rates: Collection[str] = ()) -> Parser:
    """rates: where the optimizer is also told its step lengths."""
    shared, add = group("training")
    add(
        "--optimizer",
        type=one_of(OPTIMIZERS),
        default=OPTIMIZERS[0],
        help=f"of optax, {words(OPTIMIZERS)}; default: {OPTIMIZERS[0]}",
    )
    if rates:
        add("--learning-rate", type=number, default=1e-3, help="the highest; default: 0.001")
        add(
            "--rates",
            type=one_of(rates),
            default=RATES[0],
            help=f"how the learning rate runs, {words(rates)}; default: {RATES[0]}",
        )
    return shared


def _loss() -> Parser:
    shared, add = group("training")
    told = f"{words(losses.LOSSES)}; or package.module:function; default: cross_entropy"
    add("--loss", type=one_of_or_own(losses.LOSSES), help=told)
    return shared


def _shallow() -> Parser:
    shared, add = group("training")
    told = "train that many hidden layers first, then insert the others; default: all at once"
    add("--shallow", type=integer, help=told)
    return shared


def _mesh() -> Parser:
    shared, add = group("mesh")
    add("--mesh", type=mesh, help="e.g. subnet=2,pc=2; default: one device")
    return shared


def _forms() -> Parser:
    shared, add = group("mesh")
    add("--forms", type=forms, help="how layers are split over pr: auto, or a form a layer")
    return shared


def _processes() -> Parser:
    shared, add = group(
        "processes", "Several share the mesh; each is started with the same command."
    )
    add("--coordinator", help="host:port of process 0, with the next two: several processes")
    add("--num-processes", type=integer, help="how many; the mesh is over the devices of all")
    add("--process-id", type=integer, help="which of them this is, from 0")
    add("--distributed", action="store_true", help="instead: as jax finds them (SLURM, Cloud TPU)")
    add(
        "--lost-after",
        type=integer,
        default=LOST_AFTER,
        help=f"seconds until one that does not come, or dies, ends the others; default: {LOST_AFTER}",
    )
    return shared


def _checkpoints() -> Parser:
    shared, add = group("results")
    add(
        "--evaluate-every", type=integer, default=1, help="epochs a line of the history; default: 1"
    )
    add(
        "--history",
        type=one_of(history.FORMATS),
        default="csv",
        help=f"its format, {words(history.FORMATS)}; default: csv",
    )
    add("--checkpoint", type=path, help="folder of checkpoints; the same command goes on from them")
    add(
        "--every", type=integer, help="steps between checkpoints; default: each line of the history"
    )
    add(
        "--resume",
        type=either(integer, one_of([ANYWAY])),
        help="the checkpoint that the first start goes on from (the same command then goes on from what "
        f"it has written), or {ANYWAY!r}: from the newest of another run; default: the newest",
    )
    told = "folder of compiled programs, which the next run reads instead of compiling"
    add("--compilation-cache", type=path, help=told)
    return shared


def _results() -> Parser:
    shared, add = group("results")
    add("--out", type=path, default=Path("run"), help="folder for the results; default: run")
    add("--overwrite", action="store_true", help="replace an earlier run there")
    return shared


def _architecture() -> Parser:
    shared, add = group("network")
    add("--net", default="mlp", help=f"{words(sorted(ARCHITECTURES))}; or {OWN_NET}; default: mlp")
    add("--widths", type=integers, help="instead, of a perceptron: inputs, hidden..., outputs")
    add("--batch", type=integer, required=True, help="samples of a step, of all devices together")
    add("--samples", type=integer, help="that a method keeps without minibatches (pdadmm, stored)")
    return shared


def _machine() -> Parser:
    shared, add = group("machine")
    add("--devices", type=integer, required=True, help="how many; all are used")
    add("--machine", required=True, help=f"{words(MACHINES)}; or a machine file")
    add("--memory-limit", type=number, help="bytes a device may hold; default: all the machine's")
    add(
        "--overlap",
        type=number,
        default=0.0,
        help="share of the products' time that hides gradients' sums; default: 0",
    )
    return shared


def _measures() -> Parser:
    shared, add = group("results")
    add("--no-count", dest="count", action="store_false", help="predict only: nothing is compiled")
    add("--measure", action="store_true", help="run each shape on the present devices, too")
    add("--compile", help="also for TPUs that need not be there, e.g. tpu-v5e:4x4 (needs libtpu)")
    add("--resume", action="store_true", help="go on with the sweep that stands in --out")
    return shared
