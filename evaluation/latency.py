"""How long the line takes on this machine: one study again and again, stage by stage."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.job import Job
from edge.pipeline import Line, read_and_report
from edge.report.model import Report
from evaluation.detect import ledger_s
from evaluation.errors import MissingData
from evaluation.findings import stage_times


@dataclass(frozen=True)
class Machine:
    """What the times were measured on."""

    cpu: str
    cores: int
    system: str


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """CPU model, cores that this process may use, and system."""
    return Machine(_cpu_model(cpuinfo), len(os.sched_getaffinity(0)), platform.platform())


def repeat_study(line: Line, study: Path, out: Path, rounds: Iterable[int]) -> list[Report]:
    """The reports of `study`, read once for each of `rounds`.

    Raises:
        MissingData: the study cannot be read; there is nothing to time.
    """
    return [_read(line, study, out) for _ in rounds]


def as_json(machine: Machine, study: Path, reports: list[Report]) -> dict[str, Any]:
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


def _read(line: Line, study: Path, out: Path) -> Report:
    report = read_and_report(line, Job(study, out)).report
    if report.rejection is not None:
        raise MissingData(study, f"{report.rejection.kind}: {report.rejection.reason}")
    return report


def _cpu_model(cpuinfo: Path) -> str:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
