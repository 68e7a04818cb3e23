"""Studies prepared once and read many times: phantoms as DICOM, with their truth in JSON."""

import fcntl
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.atomic_files import write_atomically
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec, Progress, make_phantom, phantom_header
from imaging.volume import Nodule, triple
from models.runtime.errors import MissingData

STUDIES = Path("runs/studies")
"""Where the studies of the commands are."""


@dataclass(frozen=True)
class Prepared:
    """A DICOM folder, and the nodules as drawn."""

    folder: Path
    nodules: tuple[Nodule, ...] = ()


def whole_chest(seed: int) -> PhantomSpec:
    """Return a whole chest of 120 slices of 2.5 mm with five nodules that a reader should see."""
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
    """Make the phantoms of ``specs`` in sub-folders of ``cache``, unless they are there already.

    ``progress`` is called with the part done while a phantom is drawn. Processes that prepare at
    the same time wait for one another.

    Raises:
        MissingData: a folder with the name of a phantom is something else; it is not touched.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return [_prepared(spec, cache, progress) for spec in specs]


def _prepared(spec: PhantomSpec, cache: Path, progress: Progress | None) -> Prepared:
    folder, truth = cache / f"phantom-{spec.seed}", cache / f"phantom-{spec.seed}.json"
    described = json.loads(json.dumps(asdict(spec)))
    try:
        made: dict[str, Any] = json.loads(truth.read_text())
    except (OSError, ValueError):
        made = {}
    # the truth is written last: if it is there, and of this spec, the series is whole
    if made.get("spec") != described:
        if folder.exists() and not truth.exists():
            raise MissingData(folder, f"is no phantom: {truth.name} is not beside it: move it away")
        write_atomically(truth, b"{}")
        shutil.rmtree(folder, ignore_errors=True)
        phantom = make_phantom(spec, progress)
        write_series(phantom.volume, folder, header=phantom_header(spec), seed=spec.seed)
        made = {"spec": described, "nodules": [asdict(nodule) for nodule in phantom.nodules]}
        write_atomically(truth, json.dumps(made).encode())
    nodules = tuple(
        Nodule(triple(one["centre_mm"]), one["diameter_mm"], one["kind"]) for one in made["nodules"]
    )
    return Prepared(folder, nodules)
