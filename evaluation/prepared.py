"""Studies prepared once and read many times: phantoms as DICOM, with their truth beside them."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.durable import write_atomically
from evaluation.demo_study import demo_spec
from evaluation.phantoms import split_truth
from evaluation.truth import Lesion
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec, make_phantom, phantom_header
from imaging.volume import Nodule


@dataclass(frozen=True)
class Prepared:
    """A DICOM folder, the lesions that count, and those too small to."""

    folder: Path
    lesions: tuple[Lesion, ...]
    ignored: tuple[Lesion, ...]


def prepare(specs: Iterable[PhantomSpec], cache: Path) -> list[Prepared]:
    """The phantoms of ``specs`` in sub-folders of ``cache``; what lies there is not made again.

    Processes that ask for the same at the same time wait for one another.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return [_prepared(spec, cache) for spec in specs]


def prepared_specs(count: int, seed: int) -> list[PhantomSpec]:
    """Whole chests with five nodules each, of the seeds from ``seed`` on."""
    return [demo_spec(seed + number) for number in range(count)]


def _prepared(spec: PhantomSpec, cache: Path) -> Prepared:
    folder, truth = cache / f"phantom-{spec.seed}", cache / f"phantom-{spec.seed}.json"
    made = _read_truth(truth)
    # the truth is written last: where it is, and of this spec, the series is whole
    if made is None or made["spec"] != _told(spec):
        truth.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        phantom = make_phantom(spec)
        write_series(phantom.volume, folder, header=phantom_header(spec), seed=spec.seed)
        made = {"spec": _told(spec), "nodules": [asdict(nodule) for nodule in phantom.nodules]}
        write_atomically(truth, json.dumps(made).encode())
    lesions, ignored = split_truth([_nodule(entry) for entry in made["nodules"]])
    return Prepared(folder, lesions, ignored)


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
