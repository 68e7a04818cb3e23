"""``overread-eval stages``: the second reader whole and in parts on this machine.

All read the same batches through the cloud's own stages, in turn, A B C A B C. Measured are the
throughput at saturation, the time of a batch then, and the time of a batch that is alone. The
cloud's default of ``stages`` follows from it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from cloud.settings import CloudSettings
from cloud.workers import WorkerStage
from evaluation.common.cli import CloudModel, Json, each, show
from evaluation.common.tables import columns_table
from imaging.volume import UInt8Array
from models.runtime import hardware
from models.runtime.artifacts import find
from models.runtime.second_reader import SecondReader
from models.runtime.session import AUTO, chosen_engine, open_session
from models.runtime.stages import open_staged

_COLUMNS = {
    "name": ("", "{}"),
    "rois_per_s": ("ROIs a second", "{:.1f}"),
    "throughput_ratio": ("ratio", "{:.2f}"),
    "busy_ms": ("busy batch, ms", "{:.0f}"),
    "busy_ratio": ("ratio", "{:.2f}"),
    "alone_ms": ("alone, ms", "{:.0f}"),
    "alone_ratio": ("ratio", "{:.2f}"),
}


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


async def compare(
    entered: Sequence[Contestant], batch: UInt8Array, batches: int, rounds: int
) -> None:
    """Let every contestant read ``batches`` times ``batch`` in each round."""
    for contestant in entered:
        await _read(contestant.stage, batch, 2)
    for _ in each(range(rounds), "rounds"):
        for contestant in entered:
            _, (alone_s,) = await _read(contestant.stage, batch, 1)
            took_s, each_s = await _read(contestant.stage, batch, batches)
            contestant.alone_s.append(alone_s)
            contestant.busy_s.append(float(np.median(each_s)))
            contestant.per_s.append(batches * len(batch) / took_s)


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


def as_dict(entered: Sequence[Contestant]) -> dict[str, Any]:
    """Return the medians over the rounds, and ratios to the first, taken round by round."""
    first = entered[0]
    return {
        "contestants": [
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
    }


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return float(np.median(np.divide(these, those)))


async def _compare_and_close(
    entered: Sequence[Contestant], rois: UInt8Array, batches: int, rounds: int
) -> None:
    await compare(entered, rois, batches, rounds)
    for contestant in entered:
        await contestant.stage.close()


def stages_command(
    model: CloudModel = None,
    parts: Annotated[
        list[int] | None, typer.Option(min=2, help="Number of parts; may be repeated.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Inference engine, or auto.")] = AUTO,
    threads: Annotated[int, typer.Option(min=0, help="Threads in all; 0: one for each core.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="ROIs of a batch.")] = 4,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a round.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 5,
    as_json: Json = False,
) -> None:
    """The second reader whole and in parts, in turn, on this machine."""
    name = model or CloudSettings.model_fields["model"].default
    entered = _entered(name, engine, threads, parts or (2, 3))
    shape = (batch, *map(int, find(name).settings["roi_shape"]))
    rois = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    asyncio.run(_compare_and_close(entered, rois, batches, rounds))
    result = {
        "cpu": hardware.cpu_name(),
        "cores": hardware.cores(),
        "model": name,
        "batch": batch,
        "batches": batches,
        "rounds": rounds,
        **as_dict(entered),
    }
    title = f"{name}, batches of {batch}; {result['cpu']}"
    show(result, as_json, columns_table(_COLUMNS, result["contestants"], title))


def _entered(name: str, engine: str, threads: int, counts: Sequence[int]) -> list[Contestant]:
    """Open the artifact whole and in each number of parts, on the same engine."""
    with Console(stderr=True).status("cutting and opening"):
        chosen = chosen_engine(find(name), engine, threads)
        whole = SecondReader(open_session(find(name), engine=chosen, threads=threads))
        entered = [Contestant(f"whole on {whole.engine}", 1, WorkerStage(whole))]
        for count in counts:
            parts = open_staged(name, count, engine=chosen, threads=threads)
            title = f"{count} parts on {parts.engine}"
            entered.append(Contestant(title, count, WorkerStage(parts)))
    return entered
