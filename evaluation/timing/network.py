"""``overread-eval network``: the time of one pass of artifacts on engines, in turn, A B A B."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.run import Table, command, each
from models.runtime.artifacts import Artifact, find
from models.runtime.session import Session, open_session

BOX, ROUNDS = (256, 224, 320), 20
"""Voxels of the lung box, and the rounds that count."""


@command(
    Table("passes", {
        "artifact": "artifact", "engine": "engine", "median_ms": ("median ms", "{:.1f}"),
        "p95_ms": ("p95 ms", "{:.1f}"), "ratio_to_first": ("ratio", "{:.2f}"),
    }, title="{batch} x {shape} voxels"),
    "{cpu}, {cores} cores",
)  # fmt: skip
def network(
    model: Annotated[
        list[str] | None, typer.Option(help="Artifact, or ARTIFACT:stored; may be repeated.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Lung boxes or ROIs of a pass.")] = 1,
) -> dict[str, Any]:
    """Time of one pass of artifacts on engines."""
    sessions = [
        open_session(_named(name), engine=on)
        for name in model or ["screening-int8"]
        for on in engine or ["auto"]
    ]
    return {
        "threads": sessions[0].threads,
        "shape": ",".join(map(str, _shape(sessions[0].artifact, BOX))),
        "batch": batch,
        "rounds": ROUNDS,
        "passes": passes(sessions, BOX, each(range(ROUNDS), "rounds"), batch=batch),
    }


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
            "ratio_to_first": float(np.median(np.divide(took_s, times_s[0]))),
        }
        for session, took_s in zip(sessions, times_s, strict=True)
    ]


def _named(name: str) -> Artifact:
    """Return an artifact; ``NAME:stored`` as it is stored, with INT4 not laid out as INT8."""
    plain, _, form = name.partition(":")
    artifact = find(plain)
    return replace(artifact, name=name, expand=False) if form == "stored" else artifact


def _input(artifact: Artifact, shape: tuple[int, int, int], batch: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, 1, *_shape(artifact, shape)), dtype=np.uint8)


def _shape(artifact: Artifact, box: Sequence[int]) -> Sequence[int]:
    """Return what one pass reads ``(z, y, x)``: a hybrid reads an ROI, whatever the box is."""
    return artifact.settings["roi_shape"] if artifact.kind == "hybrid" else box
