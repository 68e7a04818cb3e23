"""`overread-models probe`: every way to run the networks on this machine, measured and compared.

Each way runs in a process of its own, in turn with onnxruntime on the artifact that was named:
A B A B. Numbers are compared with onnxruntime without fusion, decisions with those of FP32 where it
is installed.
"""

import json
import math
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from models.probe.child import BOX
from models.runtime import choice, hardware
from models.runtime.artifacts import WEIGHTS, Artifact, every, find
from models.runtime.choice import REFERENCE, Way
from models.runtime.contract import require_fit
from models.runtime.detection import STRIDE, find_peaks, sigmoid
from models.runtime.engines import Outputs
from models.runtime.errors import EngineUnavailable, ModelError, ModelFailed
from models.runtime.providers import absent
from models.runtime.screener import MIN_LOGIT, size_prior
from models.runtime.session import open_session

MODELS = ("screening-int8", "hybrid-int8")
ROUNDS, MAX_S, HANGS_S = 30, 8.0, 900.0
"""Passes of each way, the time after which there are no more, and after which it is ended."""

Decision = tuple[float, ...]
"""Whether it is a finding or a nodule, and where."""


def ways(artifact: Artifact, engines: Sequence[str], cores: int) -> Iterator[Way]:
    """Yield the ways to run an artifact, its reference first."""
    yield Way(REFERENCE, cores, fused=False)
    counts = sorted({cores, *(2**n for n in range(10) if 2**n < cores)})
    for engine in engines:
        on_cpu = ":" not in engine
        for threads in counts if on_cpu else [cores]:
            yield Way(engine, threads)
            if artifact.half and engine == "openvino" and hardware.has_bf16():
                yield Way(engine, threads, half=True)
        if artifact.kind == "hybrid" and on_cpu:
            yield from (Way(engine, cores, stages=count) for count in (2, 3))


@contextmanager
def child(artifact: Artifact, way: Way, answer: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run one way in a process for the time of a ``with`` block; give what asks for a reply.

    See `models.probe.child`. It raises `ModelError` if the way cannot run, or crashed.
    """
    given = json.dumps([artifact.name, str(artifact.path.parent), asdict(way), str(answer)])
    command, pipe = [sys.executable, "-P", "-m", "models.probe.child", given], subprocess.PIPE
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, bufsize=0) as process,
    ):
        assert process.stdin
        assert process.stdout
        asks, replies = process.stdin, process.stdout

        def reply() -> dict[str, Any]:
            with suppress(OSError):  # it ended, as the reply will say
                asks.write(b"\n")
            if not (line := replies.readline()):
                code = process.wait()
                log.seek(0)
                said = log.read().decode(errors="replace").strip().rpartition("\n")[2]
                how = signal.Signals(-code).name if code < 0 else f"exit status {code}, {said}"
                raise ModelFailed(f"crashed: {how}")
            found: dict[str, Any] = json.loads(line)
            if "error" in found:
                raise EngineUnavailable(found["error"])
            return found

        timer = threading.Timer(HANGS_S, process.kill)
        timer.start()
        try:
            yield reply
        finally:
            timer.cancel()
            process.kill()


def run_probe(
    models: Sequence[str] = (),
    folder: Path = WEIGHTS,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Try every way to run these models in each precision that is installed; keep what was found.

    ``track`` is given the list of all ways, and shows the progress.

    Raises:
        UnknownArtifact: see `models.runtime.artifacts.find`.
        UnfitArtifact, DamagedArtifact: a model breaks the contract.
    """
    named = [find(name, folder) for name in models or MODELS]
    usual = {one.kind: one for one in reversed(named)}
    engines, cores = hardware.engines(), hardware.cores()
    plan = [(a, way) for one in named for a in _family(one) for way in ways(a, engines, cores)]
    for artifact in dict.fromkeys(one for one, _ in plan):
        require_fit(artifact, artifact.kind)  # before minutes of measuring
    rows: list[dict[str, Any]] = []
    truths: dict[str, Outputs] = {}
    tried: dict[Artifact, list[Way]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for artifact, given in track(plan):
            way, answer = _measured(artifact, given, usual[artifact.kind], Path(scratch))
            row: dict[str, Any] = {}
            truth = truths.setdefault(artifact.name, answer)  # the reference is the first
            if answer:
                if truth:
                    way = replace(way, difference=choice.difference(answer, truth))
                else:
                    way = replace(way, error="its reference crashed")
                if expected := truths[_family(artifact)[0].name]:
                    row["from_fp32"] = choice.difference(answer, expected)
                    pair = (_decisions(artifact, one) for one in (answer, expected))
                    row["same"], row["of"] = _agreement(*pair)
            # bfloat16 without AMX gains little for what it changes: it is measured, and not taken
            exact_enough = hardware.fast_bf16() or not way.half
            if way.fused and way.stages == 1 and exact_enough:
                tried.setdefault(artifact, []).append(way)
            rows.append({"artifact": artifact.name, **asdict(way), **row, "chosen": False})
    for artifact, found in tried.items():
        choice.remember(artifact, found)
        with suppress(EngineUnavailable):  # none is correct
            chosen = asdict(choice.choose(artifact))
            for row in rows:
                row["chosen"] |= row["artifact"] == artifact.name and chosen.items() <= row.items()
    for artifact in named:  # what was compiled here has displaced what they need at a start
        with suppress(ModelError):
            open_session(artifact)
    return {
        "cpu": hardware.cpu_name(), "cores": cores, "system": platform.platform(),
        "machine": hardware.fingerprint(), "date": datetime.now(UTC).date().isoformat(),
        "rounds": ROUNDS, "box": BOX, "rows": rows, "absent": [asdict(o) for o in absent(engines)],
    }  # fmt: skip


def _family(artifact: Artifact) -> list[Artifact]:
    """Return the installed artifacts that differ in precision only, FP32 first."""
    stem, known = artifact.name.rpartition("-")[0], every(artifact.path.parent)
    names = (f"{stem}-{precision}" for precision in choice.TOLERANCE)
    return [known[n] for n in names if n in known and known[n].path.exists()] or [artifact]


def _measured(artifact: Artifact, way: Way, usual: Artifact, scratch: Path) -> tuple[Way, Outputs]:
    """Return a way with what was measured of it, and its answer to the sample."""
    file, plain = scratch / "answer.npz", Way(REFERENCE, hardware.cores())
    try:
        with child(artifact, way, file) as own, child(usual, plain, scratch / "b.npz") as other:
            way = replace(way, **own(), probed=True)
            other()
            began, passes = time.monotonic(), []
            for number in range(ROUNDS + 1):
                # on a busy machine two passes count at least
                if number > 2 and time.monotonic() - began > MAX_S:
                    break
                passes.append((own(), other()))
    except ModelError as error:
        return replace(way, error=str(error), probed=True), ()
    # the first pass does not count: it allocates
    times = np.array([[one["ms"] for one in pair] for pair in passes[1:]])
    p50, p95 = (float(np.quantile(times[:, 0], q)) for q in (0.5, 0.95))
    ratio, peak_mb = float(np.median(times[:, 0] / times[:, 1])), passes[-1][0]["peak_mb"]
    with np.load(file) as stored:
        answer = tuple(stored[name] for name in stored.files)
    return replace(way, p50_ms=p50, p95_ms=p95, ratio=ratio, peak_mb=peak_mb), answer


def _agreement(ours: Sequence[Decision], theirs: Sequence[Decision]) -> tuple[int, int]:
    """Return how many decisions are the same within two cells, of how many."""
    left = list(ours)
    for kind, *at in theirs:
        near = [one for one in left if one[0] == kind and math.dist(one[1:], at) <= 2 * STRIDE]
        if near:
            left.remove(near[0])
    return len(ours) - len(left), max(len(ours), len(theirs))


def _decisions(artifact: Artifact, answer: Outputs) -> list[Decision]:
    """Return whether each region is a nodule; or which places are findings, or possible ones."""
    slope, intercept = artifact.settings["calibration"]
    if artifact.kind == "hybrid":
        chances = slope * answer[0][:, 0] + intercept
        return [(one >= 0, 100.0 * number) for number, one in enumerate(chances)]
    limits = artifact.settings.get("thresholds", {"possible": 0.5, "finding": 0.5})
    peaks = find_peaks(answer[0][0], least_logit=MIN_LOGIT, most=100, prior=size_prior)
    scores = sigmoid(slope * peaks.logit + intercept)
    found = zip(scores, peaks.index_zyx, strict=True)
    return [(s >= limits["finding"], *at) for s, at in found if s >= limits["possible"]]
