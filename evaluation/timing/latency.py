"""How long the line takes on this machine: one study again and again, stage by stage.

How long a thread was kept from running although it could have: the machine was too busy.

Linux counts for each thread the time that it stood in the queue of a processor (`schedstat`, the
second number). It tells a program that is slow from a machine that has no time for it. Only the
calling thread counts: what others waited may have delayed nothing. What a hypervisor takes is not
seen. Where there is no such count, nothing is said to have stalled.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Report
from evaluation.accuracy.reports import ledger_s, stage_times
from evaluation.errors import MissingData


@dataclass(frozen=True)
class Machine:
    """What the times were measured on."""

    cpu: str
    cores: int
    system: str


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """CPU model, cores that this process may use, and system."""
    return Machine(_cpu_model(cpuinfo), len(os.sched_getaffinity(0)), platform.platform())


def repeat_study(line: Pipeline, study: Path, out: Path, rounds: Iterable[int]) -> list[Report]:
    """The reports of `study`, read once for each of `rounds`.

    Raises:
        MissingData: the study cannot be read; there is nothing to time.
    """
    return [_read(line, study, out) for _ in rounds]


def as_dict(machine: Machine, study: Path, reports: list[Report]) -> dict[str, Any]:
    """Times by stage and in all, with what they were measured on."""
    last = reports[-1]
    return {
        "study": str(study),
        "repeats": len(reports),
        "cpu": machine.cpu,
        "cores": machine.cores,
        "system": machine.system,
        "models": last.models,
        "second_reading": sorted({report.second_reading.value for report in reports}),
        "candidates": len(last.decisions),
        "findings": len(last.findings),
        "stages": stage_times([ledger_s(report) for report in reports]),
    }


def _read(line: Pipeline, study: Path, out: Path) -> Report:
    report = read_and_report(line, Job(study, out)).report
    if report.rejection is not None:
        raise MissingData(study, f"{report.rejection.kind}: {report.rejection.reason}")
    return report


def _cpu_model(cpuinfo: Path) -> str:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


THREADS = Path("/proc/self/task")


@dataclass
class Stall:
    """``took_s``: how long the thread stood in the queue while it lasted."""

    took_s: float = 0.0


def queued_s(threads: Path = THREADS) -> float:
    """The seconds that this thread has stood in the queue since it began; 0 if none counts."""
    try:
        text = (threads / str(threading.get_native_id()) / "schedstat").read_text()
        return int(text.split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


@contextmanager
def stalled(threads: Path = THREADS) -> Iterator[Stall]:
    """Measures the stall of the calling thread while it lasts."""
    began_s, stall = queued_s(threads), Stall()
    yield stall
    stall.took_s = queued_s(threads) - began_s
