"""Traces: the conditions of a link between edge and cloud over time.

A trace is a CSV file. Each line holds from its time until the next: ``time`` in seconds,
``latency_ms`` (round trip, half of it each way), ``jitter_ms`` (largest additional delay each
way), ``up_kbit`` and ``down_kbit`` a second (edge to cloud and back; 0 is without limit), and
``state``. A last line of state ``repeat`` restarts the trace; without it the last line holds to
the end. The shipped traces in ``evaluation/links/traces`` are made up, not recorded.
"""

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from evaluation.accuracy.data import read_table
from evaluation.errors import BadTable, MissingData

SHIPPED = Path(__file__).resolve().parent / "traces"


class State(Enum):
    """The effect on connections and bytes.

    ``UP`` carries them. ``STALL`` holds bytes back until it ends. ``RESET`` resets every
    connection; a new one is accepted and reset at once, as by a load balancer without a server.
    ``HALF_OPEN`` carries bytes to the cloud and none back. ``BLACK_HOLE`` accepts connections and
    swallows bytes both ways. A connection that has lost bytes is reset when the state ends.
    """

    UP = "up"
    STALL = "stall"
    RESET = "reset"
    HALF_OPEN = "half-open"
    BLACK_HOLE = "black-hole"


@dataclass(frozen=True)
class Conditions:
    """A link at one moment; units as in the file."""

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    up_kbit: float = 0.0
    down_kbit: float = 0.0
    state: State = State.UP


@dataclass(frozen=True)
class Trace:
    """Conditions by the time from which they hold; ``repeat_s`` is 0 if the last ones stay."""

    name: str
    times_s: tuple[float, ...]
    conditions: tuple[Conditions, ...]
    repeat_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.times_s or len(self.times_s) != len(self.conditions) or self.times_s[0] != 0:
            raise ValueError(f"{self.name}: times {self.times_s} do not begin at 0, one a line")
        ends = (*self.times_s[1:], *([self.repeat_s] if self.repeat_s else []))
        if any(later <= sooner for sooner, later in zip(self.times_s, ends, strict=False)):
            raise ValueError(f"{self.name}: times {self.times_s} do not rise")

    def at(self, time_s: float) -> Conditions:
        """Return the conditions ``time_s`` seconds after the trace began."""
        within = time_s % self.repeat_s if self.repeat_s else time_s
        return self.conditions[max(0, bisect_right(self.times_s, within) - 1)]


def steady(conditions: Conditions, name: str = "steady") -> Trace:
    """Return a trace that never changes."""
    return Trace(name, (0.0,), (conditions,))


def shipped_names() -> list[str]:
    """Return the names of the shipped traces."""
    return sorted(path.stem for path in SHIPPED.glob("*.csv"))


def find_trace(name: str) -> Trace:
    """Return the shipped trace of that name, or the trace in the file of that path.

    Raises:
        MissingData: there is neither.
        BadTable: the file is not a trace.
    """
    file = SHIPPED / f"{name}.csv" if name in shipped_names() else Path(name)
    if not file.is_file():
        raise MissingData(file, f"no such trace; shipped: {', '.join(shipped_names())}")
    return read_trace(file)


def read_trace(path: Path) -> Trace:
    """Read the trace of a CSV file.

    Raises:
        BadTable: the file cannot be read, a value is invalid, or its times do not rise from 0.
    """
    names = ("latency_ms", "jitter_ms", "up_kbit", "down_kbit")
    table = read_table(path, ("time", *names, "state"))
    times, states = list(map(float, table.numbers("time"))), table.text("state")
    repeats = bool(table.rows) and states[-1] == "repeat"
    if repeats and times[-1] <= 0:
        raise BadTable(path, "the repeat must come after time 0", table.lines[-1])
    try:
        conditions = []
        for line in range(len(table) - repeats):
            values = [float(table.numbers(name)[line]) for name in names]
            if min(values) < 0:
                raise BadTable(path, f"{values}: values must not be below 0", table.lines[line])
            state = State(states[line])
            conditions.append(Conditions(**dict(zip(names, values, strict=True)), state=state))
        repeat_s = times.pop() if repeats else 0.0
        return Trace(path.stem, tuple(times), tuple(conditions), repeat_s)
    except ValueError as error:
        raise BadTable(path, str(error)) from error
