"""The choice of how an artifact is run: the fastest engine that is correct.

Every engine reads the same regions of a synthetic chest. The reference is onnxruntime without
fusion: it computes quantised layers in float, so it is right on every processor. An engine is
excluded whose answer differs by more than the precision allows, or that may cut off sums of 8-bit
products. What was measured is kept for the machine, the engines' versions and the artifact.

A start measures each engine once; `overread-models probe` also measures other numbers of threads,
each way in a process of its own, and keeps it in the same file.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from imaging.volume import UInt8Array
from models.runtime import hardware
from models.runtime.artifacts import Artifact
from models.runtime.engines import LAYOUT, Outputs, start
from models.runtime.errors import EngineUnavailable
from models.runtime.overflow import overflowing

AUTO = "auto"

PROBE_CACHE = Path("~/.cache/overread/engines.json")

REFERENCE = "onnxruntime"

TOLERANCE = {"fp32": 1e-3, "int8": 0.05, "int4": 0.05}
"""Largest root mean square difference, as a share of the reference's standard deviation."""

PASSES = 3
"""Timed passes of each engine at a start."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """One way to run an artifact, and what was measured of it.

    Attributes:
        engine: one of `models.runtime.hardware.engines`.
        threads: of the engine.
        half: whether float layers run in bfloat16; see `Artifact.half`.
        fused: as of `models.runtime.engines.start`.
        stages: the parts that it is cut into, see `models.runtime.stages`.
        p50_ms: median time of one pass; ``p95_ms``: its 95th percentile.
        ratio: its time to that of the way that took turns with it; 0 if none did.
        peak_mb: the most memory of a process that runs nothing else; 0 if it was not measured.
        difference: from the reference, as `TOLERANCE`.
        overflow: the weights whose sums of 8-bit products may be cut off, see `cut_off`.
        error: why it does not run; empty if it does.
        probed: whether `overread-models probe` measured it.
    """

    engine: str
    threads: int
    half: bool = False
    fused: bool = True
    stages: int = 1
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    ratio: float = 0.0
    peak_mb: float = 0.0
    difference: float = 0.0
    overflow: str = ""
    error: str = ""
    probed: bool = False

    def wrong(self, precision: str) -> str:
        """Return why it must not run an artifact of that precision; empty if it may."""
        if self.error:
            return self.error
        if self.overflow:
            return f"may cut off sums of 8-bit products with {self.overflow}, without VNNI"
        if not self.difference <= TOLERANCE[precision]:  # NaN is not
            return f"differs by {self.difference:.3f} of the standard deviation"
        return ""


def choose(
    artifact: Artifact,
    engine: str = AUTO,
    threads: int = 0,
    cache: Path | None = PROBE_CACHE,
    device: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Way:
    """Return how to run an artifact on ``engine`` and ``device``: the fastest correct way.

    With ``threads`` 0 the number is that of the probe, or else every core. An engine that is named
    is taken as it is; if it would cut off sums, the log says so.

    Raises:
        EngineUnavailable: no engine runs it correctly, or ``engine`` not on that device.
    """
    (known, engines), count = recall(artifact, cache), threads or hardware.cores()
    among = _among(engine, device, engines)
    ways = [way for way in known if way.engine in among]
    fit = [way for way in ways if way.threads == count or (not threads and way.probed)]
    measured = {way.engine for way in fit if way.threads == count}
    if len(among) > 1 and not measured.issuperset(among):
        fit = _measured(artifact, among, count, clock)
        # times of a probe are of a larger input than those of a start: they are not compared
        stale = [way for way in ways if way.probed or way.threads == count]
        remember(artifact, [way for way in known if way not in stale] + fit, cache)
    right = [way for way in fit if not way.wrong(artifact.precision)]
    if right:
        return min(right, key=lambda way: (way.ratio, way.p50_ms))
    if len(among) > 1:
        wrong = {way.engine: way.wrong(artifact.precision) for way in fit}
        raise EngineUnavailable(f"{artifact.name}: no engine runs it correctly: {wrong}")
    half, overflow = artifact.half and hardware.fast_bf16(), cut_off(among[0], artifact.content())
    only = Way(among[0], count, half, overflow=overflow)
    if overflow:
        _log.warning("%s on %s: it %s", artifact.name, only.engine, only.wrong(artifact.precision))
    return only


def _among(engine: str, device: str, found: Sequence[str]) -> tuple[str, ...]:
    """Return the engines to choose from; all are those ``found`` before, if any."""
    if not device:  # to look for all loads each engine
        return tuple(found or hardware.engines()) if engine == AUTO else (engine,)
    among = hardware.engines_on(device)
    if engine != AUTO:
        among = tuple(one for one in among if one.partition(":")[0] == engine)
    if not among:
        raise EngineUnavailable(f"{engine} does not run on the device {device!r}")
    return among


def _measured(
    artifact: Artifact, among: Sequence[str], threads: int, clock: Callable[[], float]
) -> list[Way]:
    """Return each engine with its time and its difference from the reference."""
    content, voxels = artifact.content(), sample(artifact)
    try:
        truth = start(REFERENCE, content, threads, fused=False)(voxels)
    except Exception as error:  # an engine's own errors have no common class
        raise EngineUnavailable(f"{REFERENCE} failed on the sample: {error}") from error
    ways = []
    for engine in among:
        half = artifact.half and hardware.fast_bf16()
        way = Way(engine, threads, half, overflow=cut_off(engine, content))
        try:
            run = start(engine, content, threads, half=way.half)
            answer, took_s = run(voxels), []  # not timed: it allocates and compiles
            for _ in range(PASSES):
                began = clock()
                run(voxels)
                took_s.append(clock() - began)
            p50, p95 = (1e3 * float(np.quantile(took_s, q)) for q in (0.5, 0.95))
            way = replace(way, p50_ms=p50, p95_ms=p95, difference=difference(answer, truth))
        except Exception as error:  # an engine's own errors have no common class
            way = replace(way, error=f"{error}")
        if why := way.wrong(artifact.precision):
            _log.warning("engine %s excluded for %s: it %s", engine, artifact.name, why)
        ways.append(way)
    _log.info("engines measured for %s: %s", artifact.name, ways)
    return ways


def difference(answer: Outputs, truth: Outputs) -> float:
    """Return the largest root mean square difference of an output, as a share of its spread."""
    # a spread below 1 counts as 1: outputs are logits and logarithms
    shares = [
        float(np.sqrt(np.mean((a - t) ** 2)) / max(float(np.std(t)), 1.0))
        for a, t in zip(answer, truth, strict=True)
    ]
    return max(shares) if np.isfinite(shares).all() else float("inf")


def cut_off(engine: str, content: bytes) -> str:
    """Return the weights whose products an engine may cut off here; empty if there are none."""
    # onnxruntime has exact kernels for a file that can overflow
    risky = engine == "openvino" and hardware.adds_in_16_bits()
    return overflowing(content) if risky else ""


def sample(artifact: Artifact) -> UInt8Array:
    """Return a lung box, or eight regions of it, as input of a network ``(n, 1, z, y, x)``."""
    # a part of a synthetic chest (z, y, x) at 1 mm, and eight points in it
    with np.load(Path(__file__).with_name("phantom.npz")) as stored:
        box: UInt8Array = stored["box"]
        centres = stored["centres"]
    if artifact.kind == "screening":
        return box[None, None]
    sides = artifact.settings["roi_shape"]
    padded = np.pad(box, [(side // 2, side) for side in sides], mode="edge")
    regions = [
        padded[tuple(slice(a, a + n) for a, n in zip(c, sides, strict=True))] for c in centres
    ]
    return np.stack(regions)[:, None]


def recall(artifact: Artifact, cache: Path | None = PROBE_CACHE) -> tuple[list[Way], Sequence[str]]:
    """Return what is known of an artifact on this machine, and the engines that it had."""
    entry: Any = _load(cache)[1].get(_key(artifact))
    try:
        return [Way(**way) for way in entry["ways"]], tuple(entry["engines"])
    except (KeyError, TypeError):  # there is none, or it is damaged
        return [], ()


def remember(artifact: Artifact, ways: Sequence[Way], cache: Path | None = PROBE_CACHE) -> None:
    """Keep what was measured, with its artifact, machine, versions and date."""
    entry = {
        "artifact": f"{artifact.name} {artifact.version}",
        "machine": hardware.fingerprint(),
        "engines": hardware.engines(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ways": [asdict(way) for way in ways],
    }
    file, known = _load(cache)
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({**known, _key(artifact): entry}))
        os.replace(partial, file)
    except OSError as error:
        _log.warning("cannot keep the choice of engine in %s: %s", file, error)


def _key(artifact: Artifact) -> str:
    return f"{artifact.sha256}|{hardware.fingerprint()}|{LAYOUT}"


def _load(cache: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """Return the file, None without a home, and what is in it."""
    try:
        file = cache and cache.expanduser()
        found = json.loads(file.read_text()) if file else {}
    except RuntimeError:  # a system user without an entry and without HOME
        return None, {}
    except (OSError, ValueError):
        found = {}
    return file, found if isinstance(found, dict) else {}
