"""Traces: the conditions of a link between edge and cloud over time.

A trace is a CSV file. Each line holds from its time until the next: ``time`` in seconds,
``latency_ms`` (round trip, half of it each way), ``jitter_ms`` (largest additional delay each
way), ``up_kbit`` and ``down_kbit`` a second (edge to cloud and back; 0 is without limit), and
``state``. A last line of state ``repeat`` restarts the trace; without it the last line holds to
the end. The shipped traces in ``evaluation/links/traces`` are made up, not recorded.
"""

import csv
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

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

    def at(self, time_s: float) -> Conditions:
        """Return the conditions ``time_s`` seconds after the trace began."""
        within = time_s % self.repeat_s if self.repeat_s else time_s
        return self.conditions[max(0, bisect_right(self.times_s, within) - 1)]


def steady(conditions: Conditions, name: str = "steady") -> Trace:
    """Return a trace that never changes."""
    return Trace(name, (0.0,), (conditions,))


def shipped_traces() -> list[Trace]:
    """Return all shipped traces, by name."""
    return [read_trace(path.stem) for path in sorted(SHIPPED.glob("*.csv"))]


def read_trace(name: str) -> Trace:
    """Return the shipped trace of that name."""
    with (SHIPPED / f"{name}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    repeat_s = float(lines.pop()["time"]) if lines[-1]["state"] == "repeat" else 0.0
    keys = ("latency_ms", "jitter_ms", "up_kbit", "down_kbit")
    conditions = tuple(
        Conditions(**{key: float(line[key]) for key in keys}, state=State(line["state"]))
        for line in lines
    )
    return Trace(name, tuple(float(line["time"]) for line in lines), conditions, repeat_s)
