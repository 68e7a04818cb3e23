"""The choice of an engine for an artifact: the fastest correct one.

Every engine answers one fixed input. `onnxruntime` on the CPU is the reference; an engine whose
answer differs by more than the precision allows is excluded. The choice is cached for the machine,
the engines' versions and the artifact.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.runtime import hardware
from models.runtime.artifacts import Artifact
from models.runtime.engines import LAYOUT, Outputs, start
from models.runtime.errors import EngineUnavailable

AUTO = "auto"

PROBE_CACHE = Path("~/.cache/overread/engines.json")

REFERENCE = "onnxruntime"

TOLERANCE = {"fp32": 1e-3, "int8": 0.05, "int4": 0.05}
"""Largest root mean square difference, as a share of the reference's standard deviation."""

_log = logging.getLogger(__name__)


def chosen_engine(
    artifact: Artifact,
    engine: str,
    threads: int = 0,
    probe_cache: Path | None = PROBE_CACHE,
    device: str = "",
) -> str:
    """Return ``engine`` on ``device``, for ``auto`` the fastest correct one.

    Raises:
        EngineUnavailable: as `open_session`; also if the engine does not run on that device.
    """
    among = hardware.engines_on(device) if device else ()
    if engine != AUTO and among:
        among = tuple(one for one in among if one.partition(":")[0] == engine)
    if device and not among:
        raise EngineUnavailable(f"{engine} does not run on the device {device!r}")
    if engine != AUTO or len(among) == 1:
        return among[0] if among else engine
    try:
        cache = probe_cache and probe_cache.expanduser()
    except RuntimeError:  # a system user without an entry and without HOME
        cache = None
    count = threads or hardware.cores()
    return fastest(artifact, probe_input(artifact), count, cache, among=among)


def probe_input(artifact: Artifact) -> npt.NDArray[np.uint8]:
    """Return a fixed input that is neither empty nor noise: smooth shapes over the whole range."""
    side = 96 if artifact.kind == "screening" else int(artifact.settings["roi_shape"][0])
    z, y, x = np.meshgrid(*([np.linspace(0, 6, side)] * 3), indexing="ij")
    shapes = np.sin(2 * z + y) * np.cos(3 * y - x) + np.sin(x * z / 2)
    grey = np.asarray(np.clip(shapes * 64 + 128, 0, 255).astype(np.uint8))
    pair = np.stack([grey, grey[::-1].copy()])[:, None]
    return pair if artifact.kind == "screening" else np.concatenate([pair] * 4)


def fastest(
    artifact: Artifact,
    sample: npt.NDArray[np.uint8],
    threads: int,
    cache: Path | None,
    clock: Callable[[], float] = time.perf_counter,
    *,
    among: Sequence[str] = (),
) -> str:
    """Return the name of the fastest correct engine, from ``cache`` if it is known.

    Only those ``among`` are tried, if any are named.

    Raises:
        EngineUnavailable: not even the reference runs the artifact.
    """
    key = f"{artifact.sha256}|{threads}|{hardware.fingerprint()}|{LAYOUT}{'|'.join(['', *among])}"
    known = _load(cache)
    if key in known:
        return known[key]

    def timed(engine: str) -> tuple[Outputs, float]:
        run = start(engine, artifact.content(), threads, half=artifact.half)
        try:
            answer, took = run(sample), []
            # the first run is not timed: it allocates and compiles
            for _ in range(3):
                began = clock()
                run(sample)
                took.append(clock() - began)
        except Exception as error:  # an engine's own errors have no common class
            raise EngineUnavailable(f"{engine} failed on the probe: {error}") from error
        return answer, float(np.median(took))

    times = _measure(timed, among or hardware.engines(), TOLERANCE[artifact.precision])
    best = min(times, key=lambda name: times[name])
    _log.info("engine chosen for %s: %s of %s", artifact.name, best, times)
    _store(cache, known | {key: best})
    return best


def _measure(
    timed: Callable[[str], tuple[Outputs, float]], engines: Sequence[str], tolerance: float
) -> dict[str, float]:
    """Return the time of the reference, and of each engine that answers as it does."""
    truth, reference_s = timed(REFERENCE)
    times = {REFERENCE: reference_s}
    for engine in engines:
        if engine == REFERENCE:
            continue
        try:
            answer, took_s = timed(engine)
        except EngineUnavailable as error:
            _log.info("engine excluded: %s", error)
            continue
        difference = _difference(answer, truth)
        if difference <= tolerance:
            times[engine] = took_s
        else:
            _log.warning(
                "engine %s excluded: differs by %.3f of the standard deviation", engine, difference
            )
    return times


def _difference(answer: Outputs, truth: Outputs) -> float:
    """Return the largest root mean square difference of an output, as a share of its spread."""
    # a spread below 1 counts as 1: outputs are logits and logarithms
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
        _log.warning("cannot cache the choice of engine in %s: %s", cache, error)
