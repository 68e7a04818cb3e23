"""``overread-eval receive-fuzz``: hostile associations and requests for a real agent.

After every few of them a sound series is sent, which must be acknowledged and reported. Status 1 if
one was not, or if the agent ended. Its memory, threads and open files are measured.
"""

import json
import multiprocessing
import os
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import typer
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread

from edge.assemble import build_pipeline
from edge.escalation.client import NoSecondReader
from edge.job import Job
from edge.pipeline import StudyResult, read_and_report
from edge.run import run_agent
from edge.settings.core import EdgeSettings
from edge.store.pending import PersistPending
from evaluation.common.cli import Json, each
from evaluation.common.processes import free_ports, listens
from evaluation.errors import ServiceFailed
from evaluation.recovery.agent import PIPELINE, GivenScores, logging_below, settings_in, the_box
from evaluation.recovery.check import PATIENCE_S, wait
from evaluation.robustness.senders import (
    BY_DICOM,
    BY_HTTP,
    IMAGES,
    Endpoint,
    Recording,
    attack,
    post,
    small_series,
    store,
)
from imaging.volume import Geometry, Study, Volume

SOUND_EVERY = 20
"""Hostile senders between two sound ones."""


def _serve(root: Path, ports: dict[str, int]) -> None:
    """Run the agent with a quick reader until SIGTERM."""

    def read(source: Path) -> Study:
        return Study(Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3"), source)

    def read_study(job: Job, persist: PersistPending) -> StudyResult:
        pipeline = build_pipeline(PIPELINE, GivenScores((0.95,)), NoSecondReader())
        quick = replace(pipeline, read=read, preprocess=the_box, persist_pending=persist)
        return read_and_report(quick, job)

    with logging_below(root):
        run_agent(_settings(root, ports), read=read_study, stop=threading.Event())


def _settings(root: Path, ports: dict[str, int]) -> EdgeSettings:
    return settings_in(
        root,
        quiet_s=1.0,
        poll_s=0.1,
        metrics_address=f"127.0.0.1:{ports['metrics']}",
        receive__min_free_mb=1,
        receive__max_instance_mb=2,
        receive__dicom__address=f"127.0.0.1:{ports['dicom']}",
        receive__timeout_s=5.0,
        receive__stow__address=f"127.0.0.1:{ports['stow']}",
    )


@contextmanager
def _agent(root: Path) -> Iterator[tuple[BaseProcess, dict[str, int]]]:
    ports = dict(zip(("dicom", "stow", "metrics"), free_ports(3), strict=True))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(root, ports))
    process.start()
    try:
        if not wait(lambda: listens(ports["stow"]), process):
            raise ServiceFailed(f"the agent ended with {process.exitcode} at its start")
        yield process, ports
    finally:
        process.terminate()
        process.join(PATIENCE_S)
        process.kill()


def _metrics(ports: dict[str, int]) -> str | None:
    try:
        url = f"http://127.0.0.1:{ports['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def _size(process: BaseProcess) -> dict[str, int]:
    """Return resident memory in kB, threads and open files of the agent."""
    folder = Path("/proc") / str(process.pid)
    lines = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    files = len(os.listdir(folder / "fd"))
    return {
        "rss_kb": int(lines["VmRSS"].split()[0]),
        "threads": int(lines["Threads"]),
        "files": files,
    }


def receive_fuzz(root: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Send hostile and sound data in turn; return what became of it."""
    chance, kinds, answered = Random(seed), Counter[str](), Counter[str]()
    sent, acknowledged, sizes = 0, 0, list[dict[str, int]]()
    root.mkdir(parents=True, exist_ok=True)
    with _agent(root) as (process, ports):
        dicom: Endpoint = ("127.0.0.1", ports["dicom"])
        http: Endpoint = ("127.0.0.1", ports["stow"])
        recording = Recording.of(dicom, small_series(root / "recorded", 0))
        for number in each(range(rounds), "senders"):
            attacks = BY_DICOM if chance.random() < 0.7 else BY_HTTP
            kind = chance.choice(sorted(attacks))
            where = dicom if attacks is BY_DICOM else http
            kinds[kind] += 1
            answered[kind] += attack(where, attacks[kind](recording, chance), chance)
            if (number + 1) % SOUND_EVERY == 0 or number + 1 == rounds:
                if not process.is_alive():
                    raise ServiceFailed(f"the agent ended with {process.exitcode}")
                images = small_series(root / "sent" / str(number), number + 1)
                send = store if sent % 2 == 0 else post
                ways = {store: dicom, post: http}
                acknowledged += send(ways[send], images) == IMAGES
                sent += 1
                sizes.append(_size(process))
        reported = _wait_for_reports(root, process)
        metrics = _metrics(ports) or ""
        sizes.append(_size(process))
        left = os.listdir(root / "inbox" / ".receiving")
    return {
        "rounds": rounds,
        "seed": seed,
        "hostile": dict(sorted(kinds.items())),
        "answered": dict(sorted(answered.items())),
        "sound_series": sent,
        "acknowledged": acknowledged,
        "reported": reported,
        "refusals": _refusals(metrics),
        "left_on_their_way": len(left),
        "first": sizes[0],
        "last": sizes[-1],
        "exit_status": process.exitcode,
    }


def _wait_for_reports(root: Path, process: BaseProcess) -> int:
    """Wait until the agent is idle; return how many of the sound series have their report."""

    def found() -> set[str]:
        return {path.name for path in (root / "state" / "done").glob("*/*/*.dcm")}

    expected = [
        {f"{dcmread(file).SOPInstanceUID}.dcm" for file in folder.iterdir()}
        for folder in (root / "sent").iterdir()
    ]
    wait(lambda: all(one <= found() for one in expected), process)
    return sum(one <= found() for one in expected)


def _refusals(metrics: str) -> dict[str, int]:
    """Return the counts of refusals by their labels."""
    found = {}
    for family in text_string_to_metric_families(metrics):
        if family.name.startswith("overread_edge_refused"):
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    what = family.name.removeprefix("overread_edge_refused_")
                    found[f"{what}: {', '.join(sample.labels.values())}"] = int(sample.value)
    return dict(sorted(found.items()))


def receive_fuzz_command(
    rounds: Annotated[int, typer.Option(min=1, help="Hostile senders.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what they send.")] = 1,
    as_json: Json = False,
) -> None:
    """Hostile DICOM and HTTP senders: counts refusals, sound series lost, and memory."""
    with tempfile.TemporaryDirectory() as folder:
        result = receive_fuzz(Path(folder) / "site", rounds, seed)
    sound = (
        result["acknowledged"] == result["reported"] == result["sound_series"]
        and result["left_on_their_way"] == 0
        and result["exit_status"] == 0
    )
    result["sound"] = sound
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo("\n".join(f"{key:18} {value}" for key, value in result.items()))
    raise typer.Exit(0 if sound else 1)
