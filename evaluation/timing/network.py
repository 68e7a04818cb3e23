"""``overread-eval network``: the time of one pass of artifacts on engines, in turn, A B A B.

With ``--parts`` the second reader is compared whole and in parts, through the cloud's own stages.
Measured are the throughput at saturation, the time of a batch then, and the time of a batch that is
alone. The cloud's default of ``stages`` follows from it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from cloud.settings import CloudSettings
from cloud.workers import WorkerStage
from evaluation.result import Bar, Result, Table
from evaluation.run import command, each
from imaging.volume import UInt8Array
from models.runtime.artifacts import Artifact, find
from models.runtime.second_reader import SecondReader
from models.runtime.session import AUTO, Session, chosen_engine, open_session
from models.runtime.stages import open_staged

PUBLISHED = 3.2
"""Times the throughput of one stage, which a published system claims for several."""


def bars(result: Result) -> Iterator[Bar]:
    """Yield the throughput of parts that work at once."""
    for one in result["parts"]:
        if one["stages"] > 1:
            what = f"throughput of stages (published), {one['name']}"
            yield Bar(what, one["throughput_ratio"], PUBLISHED, "{:.2f} times", least=True)


@command(
    Table("passes", {
        "artifact": "artifact", "engine": "engine", "median_ms": ("median ms", "{:.1f}"),
        "p95_ms": ("p95 ms", "{:.1f}"), "ratio_to_first": ("ratio", "{:.2f}"),
    }, title="{batch} x {shape} voxels"),
    Table("parts", {
        "name": "stages", "rois_per_s": ("ROIs a second", "{:.1f}"),
        "throughput_ratio": ("of one stage", "{:.2f} times"),
        "busy_ms": ("a batch in a full pipeline, ms", "{:.0f}"),
        "busy_ratio": ("of one stage", "{:.2f} times"), "alone_ms": ("a batch alone, ms", "{:.0f}"),
        "alone_ratio": ("of one stage", "{:.2f} times"),
    }, title="Whole and in parts, batches of {batch}"),
    "{cpu}, {cores} cores",
    bars=bars,
)  # fmt: skip
def network(
    model: Annotated[
        list[str] | None, typer.Option(help="Artifact, or ARTIFACT:stored; may be repeated.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine; may be repeated.")] = None,
    parts: Annotated[
        list[int] | None, typer.Option(min=2, help="Number of parts; may be repeated.")
    ] = None,
    shape: Annotated[str, typer.Option(help="Voxels z,y,x of the lung box.")] = "256,224,320",
    batch: Annotated[int, typer.Option(min=1, help="Lung boxes or ROIs of a pass.")] = 1,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a round, of parts.")] = 12,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: one for each core.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 20,
) -> dict[str, Any]:
    """Time of one pass of artifacts on engines, or of the second reader whole and in parts."""
    if parts:
        name, on = (model or [_second()])[0], (engine or [AUTO])[0]
        rows = _in_parts(name, parts, on, threads, batch, batches, repeat)
        return {"model": name, "batch": batch, "rounds": repeat, "batches": batches,
                "shape": None, "passes": [], "parts": rows}  # fmt: skip
    box = _box_shape(shape)
    sessions = [
        open_session(_named(name), engine=on, threads=threads)
        for name in model or ["screening-int8"]
        for on in engine or ["auto"]
    ]
    found = passes(sessions, box, each(range(repeat), "rounds"), batch=batch)
    return {"threads": sessions[0].threads, "shape": shape, "batch": batch, "rounds": repeat,
            "passes": found, "parts": []}  # fmt: skip


def passes(
    sessions: Sequence[Session],
    shape: tuple[int, int, int],
    rounds: Iterable[int],
    *,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time one pass of each in every round, in turn, after two that do not count.

    Returns times in ms, and the ratio to the first: the median over the rounds.
    """
    inputs = [_input(session.artifact, shape, batch) for session in sessions]
    for session, voxels in zip(sessions, inputs, strict=True):
        for _ in range(2):
            session.run(voxels)
    times_s: list[list[float]] = [[] for _ in sessions]
    for _ in rounds:
        for session, voxels, took_s in zip(sessions, inputs, times_s, strict=True):
            began = clock()
            session.run(voxels)
            took_s.append(clock() - began)
    return [
        {
            "artifact": session.artifact.name,
            "engine": session.engine,
            "median_ms": float(np.median(took_s)) * 1e3,
            "p95_ms": float(np.quantile(took_s, 0.95)) * 1e3,
            "ratio_to_first": _ratio(took_s, times_s[0]),
        }
        for session, took_s in zip(sessions, times_s, strict=True)
    ]


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """Return the median ratio, taken round by round."""
    return float(np.median(np.divide(these, those)))


def _second() -> str:
    return str(CloudSettings.model_fields["model"].default)


def _named(name: str) -> Artifact:
    """Return an artifact; ``NAME:stored`` as it is stored, with INT4 not laid out as INT8."""
    plain, _, form = name.partition(":")
    artifact = find(plain)
    return replace(artifact, name=name, expand=False) if form == "stored" else artifact


def _input(artifact: Artifact, shape: tuple[int, int, int], batch: int) -> np.ndarray:
    roi_or_box = artifact.settings["roi_shape"] if artifact.kind == "hybrid" else shape
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, 1, *map(int, roi_or_box)), dtype=np.uint8)


def _box_shape(text: str) -> tuple[int, int, int]:
    sides = [side.strip() for side in text.split(",")]
    if len(sides) != 3 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"invalid --shape {text!r}, expected z,y,x such as 256,224,320")
    z, y, x = map(int, sides)
    return z, y, x


@dataclass(frozen=True, eq=False)
class Contestant:
    """A way to run the model in ``stages`` that work at once, and its figures of each round.

    ``per_s`` are the ROIs a second at saturation, ``busy_s`` the median seconds of a batch then,
    from its entry, and ``alone_s`` the seconds of a batch that is alone.
    """

    name: str
    stages: int
    stage: WorkerStage
    per_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)


def _in_parts(
    name: str,
    counts: Sequence[int],
    engine: str,
    threads: int,
    batch: int,
    batches: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Return the figures of the artifact whole and in each number of parts, on one engine."""
    artifact = find(name)
    with Console(stderr=True).status("cutting and opening"):
        chosen = chosen_engine(artifact, engine, threads)
        whole = SecondReader(open_session(artifact, engine=chosen, threads=threads))
        entered = [Contestant(f"whole on {whole.engine}", 1, WorkerStage(whole))]
        for count in counts:
            parts = open_staged(name, count, engine=chosen, threads=threads)
            title = f"{count} parts on {parts.engine}"
            entered.append(Contestant(title, count, WorkerStage(parts)))
    shape = (batch, *map(int, artifact.settings["roi_shape"]))
    rois = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    asyncio.run(compare(entered, rois, batches, rounds))
    return contestant_rows(entered)


async def compare(
    entered: Sequence[Contestant], batch: UInt8Array, batches: int, rounds: int
) -> None:
    """Let every contestant read ``batches`` times ``batch`` in each round; then close them."""
    for contestant in entered:
        await _read(contestant.stage, batch, 2)
    for _ in each(range(rounds), "rounds"):
        for contestant in entered:
            _, (alone_s,) = await _read(contestant.stage, batch, 1)
            took_s, each_s = await _read(contestant.stage, batch, batches)
            contestant.alone_s.append(alone_s)
            contestant.busy_s.append(float(np.median(each_s)))
            contestant.per_s.append(batches * len(batch) / took_s)
    for contestant in entered:
        await contestant.stage.close()


async def _read(stage: WorkerStage, batch: UInt8Array, times: int) -> tuple[float, list[float]]:
    """Read ``batch`` ``times`` times, queued back to back; seconds in all, and of each."""
    began_s, each_s = time.perf_counter(), list[float]()

    async def run(entered_s: float) -> None:
        await stage.run(batch)
        each_s.append(time.perf_counter() - entered_s)

    async with asyncio.TaskGroup() as reading:
        for _ in range(times):
            await stage.enter()
            reading.create_task(run(time.perf_counter()))
    return time.perf_counter() - began_s, each_s


def contestant_rows(entered: Sequence[Contestant]) -> list[dict[str, Any]]:
    """Return the medians over the rounds, and ratios to the first, taken round by round."""
    first = entered[0]
    return [
        {
            "name": c.name,
            "stages": c.stages,
            "rois_per_s": float(np.median(c.per_s)),
            "throughput_ratio": _ratio(c.per_s, first.per_s),
            "busy_ms": float(np.median(c.busy_s)) * 1e3,
            "busy_ratio": _ratio(c.busy_s, first.busy_s),
            "alone_ms": float(np.median(c.alone_s)) * 1e3,
            "alone_ratio": _ratio(c.alone_s, first.alone_s),
        }
        for c in entered
    ]
