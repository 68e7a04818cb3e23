"""Times of one study stage by stage, and how long the machine delayed the measured thread.

The *scheduler delay* is the time for which a thread could have run but waited for a processor.
Linux counts it for each thread (`schedstat`, the second number). It tells a slow program from a
busy machine. Only the calling thread counts, and what a hypervisor takes is not seen. Where the
system has no such count the delay is 0.
"""

import os
import platform
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Report
from evaluation.accuracy.reports import ledger_s, stage_times
from evaluation.errors import MissingData
from imaging.volume import FloatArray


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the CPU's model, the cores that this process may use, and the operating system."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": named[0] if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
    }


def percentiles_ms(times_s: Sequence[float] | FloatArray) -> dict[str, float]:
    """Return percentiles of times in seconds, by key (``p50_ms``, ...) in milliseconds."""
    return {f"p{q}_ms": 1000 * float(np.percentile(times_s, q)) for q in (50, 95, 99)}


def repeat_study(line: Pipeline, study: Path, out: Path, rounds: Iterable[int]) -> list[Report]:
    """Read `study` once for each of `rounds` and return the reports.

    Raises:
        MissingData: the study cannot be read; there is nothing to time.
    """
    reports = []
    for _ in rounds:
        report = read_and_report(line, Job(study, out)).report
        if report.rejection is not None:
            raise MissingData(study, f"{report.rejection.kind}: {report.rejection.reason}")
        reports.append(report)
    return reports


def as_dict(study: Path, reports: list[Report]) -> dict[str, Any]:
    """Return the times by stage and in total, with this machine and the models."""
    last = reports[-1]
    return {
        "study": str(study),
        "repeats": len(reports),
        **this_machine(),
        "models": last.models,
        "second_reading": sorted({report.second_reading.value for report in reports}),
        "candidates": len(last.decisions),
        "findings": len(last.findings),
        "stages": stage_times([ledger_s(report) for report in reports]),
    }


def scheduler_delay_s(threads: Path = Path("/proc/self/task")) -> float:
    """Return the scheduler delay of this thread since it began; 0 where none is counted."""
    try:
        text = (threads / str(threading.get_native_id()) / "schedstat").read_text()
        return int(text.split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
