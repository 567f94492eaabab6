"""What two hosts train: networks, and for each the methods and meshes that stand in its table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import optax

import jtssm
from benchmarks import users_networks
from examples import language_model
from jtssm import nn, solvers

Shape = tuple[int, int, int]  # subnet x pr x pc
PLAIN = "one host, SGD"  # what the others are compared with
ROUND = 20  # local steps
OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)
OPTIMIZERS = {
    "momentum": optax.sgd(1e-3, momentum=0.9),
    "adam": optax.adam(1e-4),
    "sgd": optax.sgd(1e-3),
}


class Case(NamedTuple):
    """A line of a table: a method on a mesh of one host or of two."""

    method: str  # in solvers.METHODS
    options: dict[str, Any] = {}
    mesh: Shape | None = None  # None: not placed
    optimizer: str | None = "momentum"  # of OPTIMIZERS; None: the method has none
    against: str = PLAIN  # the case whose seconds a sample it is compared with

    @property
    def hosts(self) -> int:
        """One device each."""
        return prod(self.mesh or ())


class Trained(NamedTuple):
    """A network, how many samples a gradient sees, and its cases by name."""

    network: Callable[[], nn.Network]
    batch: int  # of a resident method: all its samples
    cases: dict[str, Case]

    def method(self, name: str) -> jtssm.Method:
        """The method of a case, unplaced."""
        case = self.cases[name]
        build, given = solvers.METHODS[case.method], dict(case.options)
        if case.optimizer is not None:
            given |= {"optimizer": OPTIMIZERS[case.optimizer], "batch_size": self.batch}
        return build(self.network(), **given)


WHOLE = {"subnets": 2, "microbatches": 1}  # gsADMM with gradients two minibatches old
# two microbatches, predicted, nothing run twice
AHEAD = {"subnets": 2, "microbatches": 2, "recompute": False}
EVERY: dict[str, Case] = {  # of all but pdADMM's
    PLAIN: Case("sgd"),
    "one host, gsADMM, n = 2": Case("gsadmm", WHOLE),
    "data parallel": Case("sgd", {}, (1, 1, 2)),
    "gsADMM, n = 2": Case("gsadmm", WHOLE, (2, 1, 1)),
    "gsADMM, n = 2, 8 bits": Case("gsadmm", WHOLE | {"grid": 8}, (2, 1, 1)),
    "gsADMM, n = 2, cut by work": Case("gsadmm", WHOLE | {"balance": "work"}, (2, 1, 1)),
    "gsADMM, n = 2, cut by work, 8 bits": Case(
        "gsadmm", WHOLE | {"balance": "work", "grid": 8}, (2, 1, 1)
    ),
    "gsADMM, n = 2, predicted": Case("gsadmm", AHEAD, (2, 1, 1)),
    "gsADMM, n = 2, predicted, 8 bits": Case("gsadmm", AHEAD | {"grid": 8}, (2, 1, 1)),
    "pipeline, n = 2": Case("pipeline", {"subnets": 2}, (2, 1, 1)),
    "local SGD, R = 20": Case("local_sgd", {"workers": 2, "local_steps": ROUND}, (2, 1, 1)),
    "DiLoCo, R = 20": Case(
        "local_sgd", {"workers": 2, "local_steps": ROUND, "outer_optimizer": OUTER}, (2, 1, 1)
    ),
    "SGD, R = 20 local steps": Case("sgd", {"workers": 2, "local_steps": ROUND}, (1, 1, 2)),
}
# more microbatches: fewer of them have old gradients, for more and shorter messages
FINER = {
    f"gsADMM, n = 2, predicted, M = {m}": Case("gsadmm", AHEAD | {"microbatches": m}, (2, 1, 1))
    for m in (4, 8)
}
FINER["gsADMM, n = 2, predicted, M = 8, 8 bits"] = Case(
    "gsadmm", AHEAD | {"microbatches": 8, "grid": 8}, (2, 1, 1)
)
# of networks of tokens; all subnetworks have the same work where nothing runs forward twice
TOKENS = EVERY | FINER
DENSE: dict[str, Case] = {  # of dense layers, which are split and dealt
    "grid, pr = 2": Case("sgd", {}, (1, 2, 1)),
    "IST, R = 20": Case("ist", {"subnets": 2, "local_steps": ROUND}, (2, 1, 1)),
}


Way = tuple[str, dict[str, Any], Shape | None]  # a method, its options and a mesh


def ways(rounds: tuple[int, ...]) -> dict[str, Way]:
    """How a wide network is trained; IST in rounds of so many steps."""
    local = {"workers": 2, "local_steps": ROUND}
    return {
        "one host": ("sgd", {}, None),
        "data parallel": ("sgd", {}, (1, 1, 2)),
        "local SGD, R = 20": ("local_sgd", local, (2, 1, 1)),
        "DiLoCo, R = 20": ("local_sgd", local | {"outer_optimizer": OUTER}, (2, 1, 1)),
        **{f"IST, R = {r}": ("ist", {"subnets": 2, "local_steps": r}, (2, 1, 1)) for r in rounds},
    }


def wide(rounds: tuple[int, ...]) -> dict[str, Case]:
    """What a wide network is trained by: SGD, in rounds of so many steps where it is dealt, and Adam."""
    named = lambda name: PLAIN if name == "one host" else name
    found = {named(name): Case(*way, "sgd") for name, way in ways(rounds).items()}
    adam = {name: way for name, way in ways((ROUND,)).items() if "DiLoCo" not in name}
    return found | {f"{name}, Adam": Case(*way, "adam") for name, way in adam.items()}


def half() -> dict[str, Case]:
    """A network half as wide, on one host."""
    cases = wide(())
    return {name: cases[name] for name in (PLAIN, "one host, Adam")}


def dealt() -> dict[str, Case]:
    """What a wide network is trained by with Adam, in `benchmarks.ist_settings`."""
    found = ways((ROUND, 4 * ROUND))
    return {f"{name}, Adam": Case(*way, "adam", "one host, Adam") for name, way in found.items()}


def dealt_half() -> dict[str, Case]:
    """A network half as wide, on one host."""
    return {name: case for name, case in dealt().items() if name == case.against}


def placing(*cuts: int) -> dict[str, Case]:
    """What placing a method costs on a single device, for every n: against the same one unplaced."""
    found = {"one host, Adam": Case("sgd", optimizer="adam")}
    for n in cuts:
        apart, placed = f"one host, Adam, gsADMM, n = {n}", f"placed, Adam, gsADMM, n = {n}"
        ways = {"subnets": n, "microbatches": 1}
        found[apart] = Case("gsadmm", ways, optimizer="adam", against="one host, Adam")
        found[placed] = Case("gsadmm", ways, (1, 1, 1), "adam", apart)
    return found


def layered() -> dict[str, Case]:
    """pdADMM, which has a baseline of its own."""
    one = "one host, pdADMM"
    return {
        one: Case("pdadmm", optimizer=None, against=one),
        "pdADMM": Case("pdadmm", {}, (2, 1, 1), None, one),
        "pdADMM, 16 bits": Case("pdadmm", {"grid": 16}, (2, 1, 1), None, one),
        "pdADMM, 8 bits": Case("pdadmm", {"grid": 8}, (2, 1, 1), None, one),
    }


FULL = "one host, Adam, full batches"  # of all samples that pdADMM keeps


def layered_and_adam() -> dict[str, Case]:
    """pdADMM, and what trains on all samples at once on one host."""
    found = layered()
    against = next(iter(found))
    return found | {FULL: Case("sgd", optimizer="adam", against=against)}


def decoder() -> nn.Network:
    """Of bytes, that of benchmarks.cut_language_model."""
    ways = {"sequence": language_model.LENGTH, "vocabulary": language_model.BYTES}
    return nn.decoder(8, width=64, heads=4, **ways)


def classifier() -> nn.Network:
    """Of images whose rows are tokens, that of benchmarks.users_networks."""
    return users_networks.transformer((14, 14, 1), *users_networks.SIZES["transformer"])


NETWORKS = {
    "mlp": Trained(
        lambda: jtssm.mlp([784, *[1024] * 6, 10]), 128, EVERY | DENSE | placing(1, 2, 7)
    ),
    "layers": Trained(lambda: jtssm.mlp([784, *[512] * 8, 10]), 4096, layered()),
    "transformer": Trained(
        lambda: nn.transformer(8, width=256, heads=8, sequence=32, classes=10), 32, TOKENS
    ),
    "language": Trained(decoder, 64, TOKENS),
    "classifier": Trained(classifier, 128, TOKENS),
    # of benchmarks.ist_wide
    "wide": Trained(
        lambda: jtssm.mlp([196, 4096, 10], normalisation="batch"), 128, wide((5, 20, 80, 200))
    ),
    "half": Trained(lambda: jtssm.mlp([196, 2048, 10], normalisation="batch"), 128, half()),
    # of benchmarks.pdadmm_links
    "rounded": Trained(lambda: jtssm.mlp([196, *[300] * 4, 10]), 20_000, layered_and_adam()),
}
# of benchmarks.ist_settings: widths and batch
SETTINGS = {
    "deep": ((196, 4096, 4096, 10), 128),
    "spoken": ((4096, 4096, 10), 32),
    "baskets": ((4096, 1024, 32), 128),
}


def dealt_network(name: str, narrower: int = 1) -> nn.Network:
    """Of a setting, its hidden layers so many times narrower."""
    inputs, *hidden, outputs = SETTINGS[name][0]
    widths = [inputs, *(width // narrower for width in hidden), outputs]
    return jtssm.mlp(widths, normalisation="batch")


for _name, (_, _batch) in SETTINGS.items():
    NETWORKS[_name] = Trained(partial(dealt_network, _name), _batch, dealt())
    NETWORKS[f"{_name}-half"] = Trained(partial(dealt_network, _name, 2), _batch, dealt_half())
TABLE = ("mlp", "layers", "transformer", "language", "classifier")
SMOKE = {
    "smoke": Trained(
        lambda: jtssm.mlp([64, 256, 256, 8]), 128, {n: EVERY[n] for n in (PLAIN, "gsADMM, n = 2")}
    )
}
TITLES = {
    "mlp": "perceptron 784-6×1024-10, batch 128, SGD with momentum",
    "layers": "pdADMM, 9 layers of 512, 4 096 samples",
    "transformer": "transformer, 8 blocks of 256, batch 32 × 32 tokens",
    "wide": "perceptron 196-4096-10, batch normalisation, batch 128, SGD",
    "half": "the same, 2048 wide",
    "rounded": "pdADMM, 4 hidden layers of 300, 20 000 samples",
    "language": "decoder of bytes, 8 blocks of 64, batch 64 × 32 bytes",
    "classifier": "flax transformer, 6 blocks of 64, batch 128 × 14 rows of an image",
    **{
        name: f"perceptron {'-'.join(map(str, widths))}, batch normalisation, batch {batch}, Adam"
        for name, (widths, batch) in SETTINGS.items()
    },
    **{f"{name}-half": "the same, hidden layers half as wide" for name in SETTINGS},
}
