"""The schedules of gsADMM and gsAM as data, checked where they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from jtssm import checks
from jtssm.nn.cuts import Passes
from jtssm.nn.network import Network
from jtssm.solvers.quantise import Crossing, grid_of
from jtssm.solvers.tssm.ahead import Recipe

ROWS = 4  # samples that a microbatch keeps by default
MOST_SWEEPS = 1000  # they stand one after the other in the compiled program
ORDERS = ("sequential", "parallel")


@dataclass(frozen=True)
class Streaming:
    """Minibatches flow through the subnetworks; see `jtssm.solvers.tssm.streaming`.

    Subnetworks take their turns on a minibatch from the last to the first.

    Args:
      sweeps: ADMM sweeps a minibatch.
      delay_power: updates of subnetwork l are scaled by (1 + delay)^-delay_power, delay =
        `delays(n, M)[l - 1]` steps; 0: not scaled. None: 0 with M >= 2(n - 1) microbatches, 1 with fewer.

    Raises:
      ValueError: no number of sweeps, a negative power.
    """

    sweeps: int = 1
    delay_power: float | None = None

    def __post_init__(self) -> None:
        _keep(self, "sweeps", _sweeps(self.sweeps))
        if self.delay_power is not None:
            _keep(self, "delay_power", checks.not_negative(delay_power=self.delay_power)[0])

    @property
    def passes(self) -> Passes:
        """How often a step runs through a layer."""
        return Passes(self.sweeps + 1, self.sweeps, self.sweeps, self.sweeps)


@dataclass(frozen=True)
class Stored:
    """The paper's: variables of every sample are kept (resident: `step` takes all samples).

    Args:
      sweeps: ADMM sweeps a step.
      weight_steps: minibatch steps of W a sweep; the paper's 1, None: one epoch.
      order: of gsAM. "sequential" (None): the sweep l = 2 .. n as the paper prints it; "parallel":
        all l from the previous iteration's p.

    Raises:
      ValueError: no number of sweeps or of steps, an unknown order.
    """

    sweeps: int = 1
    weight_steps: int | None = None
    # of one constructor alone, which the command line reads as well
    order: str | None = field(default=None, metadata={"only": "gsam"})

    def __post_init__(self) -> None:
        _keep(self, "sweeps", _sweeps(self.sweeps))
        if self.weight_steps is not None:
            _keep(self, "weight_steps", checks.count(weight_steps=self.weight_steps)[0])
        if self.order is not None:
            checks.one_of("order", self.order, ORDERS)

    @property
    def passes(self) -> Passes:
        """How often an epoch's W-steps run through a layer; what comes to them is nearly alike."""
        return Passes(1, 1, 1, 1)


SCHEDULES: dict[str, type[Streaming] | type[Stored]] = {"streaming": Streaming, "stored": Stored}


def find(schedule: str | Streaming | Stored) -> Streaming | Stored:
    """A schedule by its name, with its defaults, or the schedule itself.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(schedule, (Streaming, Stored)):
        return schedule
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(
            f"schedule: expected one of {sorted(SCHEDULES)}, a solvers.Streaming(...) or a "
            f"solvers.Stored(...); got {checks.shown(schedule)}"
        )
    return SCHEDULES[schedule]()


def check_for(constructor: str, schedule: Streaming | Stored) -> None:
    """A schedule asks for nothing that is another constructor's alone.

    Raises:
      ValueError: it does.
    """
    for each in fields(schedule):
        only, value = each.metadata.get("only", constructor), getattr(schedule, each.name)
        if only != constructor and value is not None:
            raise ValueError(
                f"{each.name}: expected None with {constructor}, it is {only}'s alone; got {value!r}"
            )


def recipe(
    schedule: Streaming | Stored,
    net: Network,
    num: int,
    batch_size: int,
    microbatches: int | None,
    prediction: float | None,
    recompute: bool,
) -> Recipe:
    """How a minibatch of so many samples runs through `num` subnetworks.

    Raises:
      ValueError: what a schedule does not do, or microbatches that are not all of one size.
    """
    if microbatches is not None:
        (microbatches,) = checks.count(microbatches=microbatches)
    if prediction is not None:
        (prediction,) = checks.not_negative(prediction=prediction)
    recompute = checks.flag("recompute", recompute)
    if not isinstance(schedule, Streaming) or schedule.sweeps > 1:
        return _whole(schedule, microbatches, prediction, recompute)
    if microbatches is None:
        own = any(each.over == "samples" for layer in net.layers for each in layer.statistics)
        microbatches = _enough(num, batch_size, statistics=bool(own or net.estimated))
    if batch_size % microbatches:
        below = min(microbatches, batch_size)
        near = range(below, max(below - 10_000, 0), -1)
        fits = next((m for m in near if batch_size % m == 0), 1)
        raise ValueError(
            f"microbatches: expected a number that divides batch_size={batch_size}, such as {fits}; "
            f"got {microbatches}"
        )
    if prediction is None:
        prediction = float(microbatches >= 2 * (num - 1))
    if not (recompute or prediction or num == 1):
        raise ValueError(
            "recompute: expected True with prediction=0, whose turns take gradients at other weights "
            "than the forward pass saw; got False: use prediction=1.0"
        )
    return Recipe(microbatches, prediction, recompute)


def _whole(
    schedule: Streaming | Stored,
    microbatches: int | None,
    prediction: float | None,
    recompute: bool,
) -> Recipe:
    """Whole minibatches, of which nothing is predicted or kept: what several sweeps and "stored" do."""
    which = "several sweeps" if isinstance(schedule, Streaming) else "schedule='stored'"
    if microbatches not in {None, 1}:
        raise ValueError(f"microbatches: expected None or 1 with {which}; got {microbatches!r}")
    if prediction:
        raise ValueError(f"prediction: expected None or 0 with {which}; got {prediction!r}")
    if not recompute:
        raise ValueError(f"recompute: expected True with {which}; got False")
    return Recipe()


def _enough(num: int, batch_size: int, *, statistics: bool) -> int:
    """The fewest microbatches that divide batch_size and make gradients one step old at most, and a third
    of them at most, where each keeps `ROWS` samples; where such would have none, as many as go.

    statistics: whether layers take any of a microbatch: those want samples, two at least.
    """
    if num == 1:
        return 1
    most, wanted = max(batch_size // (2 if statistics else 1), 1), 2 * (num - 1)
    more = None if statistics else _dividing(batch_size, 3 * wanted, batch_size // ROWS)
    found = more or _dividing(batch_size, wanted, most)
    return found or next(m for m in range(min(most, wanted), 0, -1) if batch_size % m == 0)


def _dividing(batch_size: int, wanted: int, most: int) -> int | None:
    """The least divisor from `wanted` on, of those near it."""
    near = range(wanted, min(most, 100 * wanted) + 1)
    return next((m for m in near if batch_size % m == 0), None)


def delay_power(schedule: Streaming, recipe: Recipe, num: int) -> float:
    """What updates are scaled by, as `Streaming` says."""
    if schedule.delay_power is not None:
        return schedule.delay_power
    return float(recipe.microbatches < 2 * (num - 1))


def _sweeps(sweeps: int) -> int:
    (sweeps,) = checks.count(sweeps=sweeps)
    if sweeps > MOST_SWEEPS:
        raise ValueError(
            f"sweeps: expected at most {MOST_SWEEPS}, each of which is compiled; got {sweeps}"
        )
    return sweeps


def _keep(schedule: Streaming | Stored, name: str, value: int | float) -> None:
    """Set a checked number of a frozen record while it is made."""
    object.__setattr__(schedule, name, value)


def crossing(grid: int | Sequence[float] | None, schedule: Streaming | Stored) -> Crossing:
    """The grids of a method's boundaries.

    Raises:
      ValueError: a grid that there is none of, or of a schedule that exchanges floats.
    """
    if grid is not None and isinstance(schedule, Stored):
        raise ValueError(
            f"grid: expected None with schedule='stored', which exchanges floats; got "
            f"{checks.shown(grid)}; use schedule='streaming'"
        )
    return Crossing.of(grid_of(grid))
