"""Which engine runs an artifact fastest here, among those that run it correctly.

Every engine reads the artifact and answers one fixed input. `onnxruntime` on the CPU is the
reference; an engine whose answer differs by more than the precision allows is left out. What
was found is kept for the machine, the engines' versions and the artifact.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.runtime import hardware
from models.runtime.artifacts import Artifact
from models.runtime.engines import LAYOUT, Outputs, start
from models.runtime.errors import EngineUnavailable

REFERENCE = "onnxruntime"

TOLERANCE = {"fp32": 1e-3, "int8": 0.05, "int4": 0.05}
"""Largest difference allowed, root mean square, as a share of the reference's spread."""

_log = logging.getLogger(__name__)


def fastest(
    artifact: Artifact,
    sample: npt.NDArray[np.uint8],
    threads: int,
    cache: Path | None,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The name of the fastest correct engine, from ``cache`` where it was found before.

    Raises:
        EngineUnavailable: not even the reference runs the artifact.
    """
    key = f"{artifact.sha256}|{threads}|{hardware.fingerprint()}|{LAYOUT}"
    known = _load(cache)
    if key in known:
        return known[key]
    times = _measure(artifact, sample, threads, clock)
    best = min(times, key=lambda name: times[name])
    _log.info("engine chosen for %s: %s of %s", artifact.name, best, times)
    _store(cache, known | {key: best})
    return best


def _measure(
    artifact: Artifact, sample: npt.NDArray[np.uint8], threads: int, clock: Callable[[], float]
) -> dict[str, float]:
    truth, slowest = _time(REFERENCE, artifact, sample, threads, clock)
    times = {REFERENCE: slowest}
    for engine in hardware.engines():
        if engine == REFERENCE:
            continue
        try:
            answer, took_s = _time(engine, artifact, sample, threads, clock)
        except EngineUnavailable as error:
            _log.info("engine left out: %s", error)
            continue
        difference = _difference(answer, truth)
        if difference <= TOLERANCE[artifact.precision]:
            times[engine] = took_s
        else:
            _log.warning("engine %s left out: differs by %.3f of the spread", engine, difference)
    return times


def _time(
    engine: str,
    artifact: Artifact,
    sample: npt.NDArray[np.uint8],
    threads: int,
    clock: Callable[[], float],
) -> tuple[Outputs, float]:
    run = start(engine, artifact.content(), threads, half=artifact.half)
    try:
        answer = run(sample)
        took = []
        for _ in range(3):
            began = clock()
            run(sample)
            took.append(clock() - began)
    except Exception as error:  # an engine's own errors have no common class
        raise EngineUnavailable(f"{engine} failed on the probe: {error}") from error
    return answer, float(np.median(took))


def _difference(answer: Outputs, truth: Outputs) -> float:
    """The largest root mean square difference of an output, as a share of its spread.

    A spread below 1 counts as 1: outputs are logits and logarithms, and less is no difference.
    """
    shares = [
        float(np.sqrt(np.mean((a - t) ** 2)) / max(float(np.std(t)), 1.0))
        for a, t in zip(answer, truth, strict=True)
    ]
    return max(shares) if np.isfinite(shares).all() else float("inf")


def _load(cache: Path | None) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _store(cache: Path | None, known: dict[str, str]) -> None:
    if cache is None:
        return
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        os.replace(partial, cache)
    except OSError as error:
        _log.warning("the choice of engine could not be kept in %s: %s", cache, error)
