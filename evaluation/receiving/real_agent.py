"""The agent as it is installed, without a cloud, which receives by C-STORE."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge.dicom_in.identity import Identity
from evaluation.common.processes import Process, free_ports, listens, running

START_S = 180.0
MB = 1_000_000


@dataclass(frozen=True)
class RealAgent:
    """A running agent; its folders are below ``folder``."""

    folder: Path
    port: int
    process: Process

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where it receives."""
        return "127.0.0.1", self.port

    @property
    def inbox(self) -> Path:
        """Its inbox."""
        return self.folder / "inbox"

    def report(self, study_uid: str, series_uid: str) -> Path:
        """Return where the report of a received series will be."""
        name = Identity(0, "", "", "", study_uid, series_uid).folder
        return self.folder / "outbox" / name / "report.json"


@contextmanager
def real_agent(folder: Path, log: Path, **settings: str | float | bool) -> Iterator[RealAgent]:
    """Run an agent for the time of the context.

    Raises:
        ServiceFailed: it did not start, or did not end cleanly.
    """
    (port,) = free_ports(1)
    values = {
        **{name: str(folder / name) for name in ("inbox", "outbox", "state_dir")},
        "receive__dicom__address": f"127.0.0.1:{port}",
        "receive__complete_at_end": True,
        "poll_s": 0.05,
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "edge.toml"
    lines = (f"{key.replace('__', '.')} = {json.dumps(value)}\n" for key, value in values.items())
    config.write_text("".join(lines))
    command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
    with running("edge", command, log) as process:
        process.wait_until(lambda: listens(port), "start", START_S)
        yield RealAgent(folder, port, process)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in megabytes; 0 if it has ended."""
    with suppress(OSError, StopIteration, IndexError):
        text = Path(f"/proc/{pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024 / MB
    return 0.0


def children_of(pid: int) -> list[int]:
    """Return all processes below a process."""
    found = list[int]()
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                found += [int(one) for one in text.split()]
    return [*found, *(one for child in found for one in children_of(child))]
