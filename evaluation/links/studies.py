"""Studies prepared once and read many times: phantoms as DICOM, with their truth beside them."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.atomic_files import write_atomically
from evaluation.accuracy.data import Lesion
from evaluation.accuracy.reports import split_truth
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec, Progress, make_phantom, phantom_header
from imaging.volume import Nodule


@dataclass(frozen=True)
class Prepared:
    """A DICOM folder, the lesions that count, those too small to, and the nodules as drawn."""

    folder: Path
    lesions: tuple[Lesion, ...]
    ignored: tuple[Lesion, ...]
    nodules: tuple[Nodule, ...] = ()


def whole_chest(seed: int) -> PhantomSpec:
    """A whole chest of 120 slices of 2.5 mm with five nodules that a reader should see."""
    return PhantomSpec(
        seed=seed,
        spacing_mm=(2.5, 0.75, 0.75),
        size_mm=(300.0, 360.0, 360.0),
        nodule_count=5,
        diameter_mm=(6.0, 25.0),
    )


def prepare(
    specs: Iterable[PhantomSpec], cache: Path, progress: Progress | None = None
) -> list[Prepared]:
    """The phantoms of ``specs`` in sub-folders of ``cache``; what lies there is not made again.

    ``progress`` is called while a phantom is drawn, with the part done.

    Processes that ask for the same at the same time wait for one another.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return [_prepared(spec, cache, progress) for spec in specs]


def prepared_specs(count: int, seed: int) -> list[PhantomSpec]:
    """Whole chests with five nodules each, of the seeds from ``seed`` on."""
    return [whole_chest(seed + number) for number in range(count)]


def _prepared(spec: PhantomSpec, cache: Path, progress: Progress | None) -> Prepared:
    folder, truth = cache / f"phantom-{spec.seed}", cache / f"phantom-{spec.seed}.json"
    made = _read_truth(truth)
    # the truth is written last: where it is, and of this spec, the series is whole
    if made is None or made["spec"] != _told(spec):
        truth.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        phantom = make_phantom(spec, progress)
        write_series(phantom.volume, folder, header=phantom_header(spec), seed=spec.seed)
        made = {"spec": _told(spec), "nodules": [asdict(nodule) for nodule in phantom.nodules]}
        write_atomically(truth, json.dumps(made).encode())
    nodules = tuple(_nodule(entry) for entry in made["nodules"])
    return Prepared(folder, *split_truth(nodules), nodules)


def _read_truth(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def _told(spec: PhantomSpec) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(spec))))


def _nodule(entry: dict[str, Any]) -> Nodule:
    x, y, z = entry["centre_mm"]
    return Nodule((x, y, z), entry["diameter_mm"], entry["kind"])
