"""Writes artifacts: the file under its name, and its entry in the manifest."""

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomli_w
from onnx import numpy_helper

from models.runtime.artifacts import WEIGHTS, every
from models.runtime.errors import DamagedArtifact, UnfitArtifact
from models.training.loop import commit
from models.training.run_folder import read_log, write_atomically

ATTRIBUTION = (
    "Trained on LIDC-IDRI (The Cancer Imaging Archive, CC BY 3.0, doi "
    "10.7937/K9/TCIA.2015.LO9QL9SX), with the marks of LUNA16 (CC BY 4.0) in cubes published by "
    "NODE21 (Apache-2.0), and on QIN LUNG CT and Lung-Fused-CT-Pathology (TCIA, CC BY 3.0)."
)

UNFITTED: dict[str, dict[str, Any]] = {
    "screening": {"calibration": [1.0, 0.0]},
    "hybrid": {"calibration": [1.0, 0.0], "outline": [0.0], "roi_shape": [48, 48, 48]},
}
"""The settings of an artifact before the first `overread-models fit`."""


def register(
    name: str,
    model: onnx.ModelProto,
    *,
    parent: str,
    method: str = "",
    runs: Sequence[Path] = (),
    folder: Path = WEIGHTS,
) -> None:
    """Save ``model`` as `name.onnx` and enter it in the manifest; its version is the file's hash.

    Kind and precision are those of the name (`KIND-PRECISION`), and the settings those that were
    fitted before. ``method`` says how it was made from ``parent``, and ``runs`` are
    the folders of the training runs that did it.

    Raises:
        UnfitArtifact: a weight is not finite.
        DamagedArtifact: the manifest or the log of a run is damaged.
    """
    kind, *_, precision = name.split("-")
    entries = _entries(folder)
    settings = entries[name].get("settings", {}) if name in entries else UNFITTED[kind]
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UnfitArtifact(f"{name}: {tensor.name} has values that are not finite")
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    training = {"commits": [commit()], **training_of(runs)}
    # nothing is written before all that may fail
    write_atomically(folder / f"{name}.onnx", lambda file: file.write(content))
    entries[name] = {
        "file": f"{name}.onnx",
        "sha256": digest,
        "version": digest[:12],
        "kind": kind,
        "precision": precision,
        "parent": parent,
        "method": method,
        "training": training,
        "licence": "Apache-2.0",
        "attribution": ATTRIBUTION,
        "settings": settings,
        "metrics": {},
    }
    _write(entries, folder)


def amend(name: str, part: str, values: dict[str, Any], folder: Path = WEIGHTS) -> None:
    """Set ``values`` in an entry's ``settings`` or ``metrics``; its other values stay."""
    entries = _entries(folder)
    entries[name][part] = {**entries[name].get(part, {}), **values}
    _write(entries, folder)


def training_of(runs: Sequence[Path]) -> dict[str, Any]:
    """Return what the logs of the runs in these folders tell, with those of starts and teachers.

    Steps and core-hours are sums; patients are the most of a run. It is empty if no folder has a
    log, as that of an artifact.
    """
    folders, logs = list(runs), list[list[dict[str, Any]]]()
    for folder in folders:
        if lines := read_log(folder):
            logs.append(lines)
            named = (*lines[-1].get("start", ()), *lines[-1].get("teachers", ()))
            earlier = {Path(one).parent for one in named}
            folders += sorted(earlier - set(folders))
    if not logs:
        return {}
    lines = [line for log in logs for line in log]
    if lacking := {"patients", "seed", "commit", "machine"}.difference(*lines):
        raise DamagedArtifact(f"{folders}: a log lacks {sorted(lacking)}, expected those of runs")
    return {
        "steps": sum(log[-1]["steps"] for log in logs),
        "core_hours": round(sum(log[-1]["core_hours"] for log in logs), 2),
        "patients": max(log[-1]["patients"] for log in logs),
        "seeds": sorted({log[-1]["seed"] for log in logs}),
        "commits": list(dict.fromkeys(line["commit"] for line in lines)),
        "machines": list(dict.fromkeys(line["machine"] for line in lines)),
    }


def method_of(runs: Sequence[Path]) -> str:
    """Return how these runs made their weights."""
    for last in (log[-1] for log in map(read_log, runs) if log):
        if last.get("teachers"):
            return f"distillation, {last['arm']}, teachers: {len(last['teachers'])}"
    return "training"


def _entries(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.toml"
    if path.exists():
        every.cache_clear()
        every(folder)  # its errors name what is damaged
    return tomllib.loads(path.read_text()) if path.exists() else {}


def _write(entries: dict[str, Any], folder: Path) -> None:
    write_atomically(folder / "manifest.toml", lambda file: tomli_w.dump(entries, file))
    every.cache_clear()
