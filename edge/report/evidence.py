"""What is kept beside a report, so that DICOM objects can be made when the study's files are gone.

``source.json.gz`` has the headers of the images that were read, ``outlines.npz`` the outlines of
findings and possible findings. They are written before ``report.json``, and go with the report.
An older version keeps its own: ``report.v1.source.json.gz``. A volume file has no headers, so its
report gets no DICOM objects.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from edge.findings import BoolArray, Finding
from imaging.volume import FloatArray, Geometry, triple

OBJECTS = "dicom"
"""Name of the folder in a report's folder that has its objects."""
SOURCE = "source.json.gz"
OUTLINES = "outlines.npz"

_VERSION = re.compile(r"v[0-9]+|\.v[0-9]+\.part")
_OBJECT = re.compile(
    r"\.?(sr|seg|report|capture-(overview|[0-9]{2,}))\.dcm(\.part)?|skipped\.json|\.sent-.*"
)
EvidenceFiles = Mapping[str, bytes]
"""File name to content; an empty content means that there is no such file."""
NO_EVIDENCE: EvidenceFiles = {}


@dataclass(frozen=True, eq=False)
class PlacedOutline:
    """The outline of a finding: voxels bool ``(z, y, x)``, and their position in the patient."""

    mask: BoolArray
    geometry: Geometry

    def on(
        self, geometry: Geometry, shape: tuple[int, ...]
    ) -> tuple[tuple[int, int, int], BoolArray] | None:
        """Return its voxels in another volume: the first ``(z, y, x)`` and a mask; None for none.

        They are those that the outline, interpolated linearly, covers most, as many as give its
        volume.
        """
        corners = np.array(list(product(*((-0.5, side - 0.5) for side in self.mask.shape))))
        index = geometry.to_index(self.geometry.to_world(corners))
        first = np.maximum(np.floor(index.min(0)), 0).astype(int)
        last = np.minimum(np.ceil(index.max(0)) + 1, shape).astype(int)
        if (first >= last).any():
            return None
        ranges = (np.arange(a, b, dtype=np.float64) for a, b in zip(first, last, strict=True))
        voxels = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)
        covered = interpolated(self.mask, self.geometry.to_index(geometry.to_world(voxels)))
        share = np.prod(self.geometry.spacing_mm) / np.prod(geometry.spacing_mm)
        count = max(round(float(self.mask.sum() * share)), 1)
        inside = covered > 0
        inside.flat[np.argsort(-covered, axis=None, kind="stable")[count:]] = False
        if not inside.any():
            return None
        used = np.argwhere(inside)
        low, high = used.min(0), used.max(0) + 1
        z, y, x = (int(value) for value in first + low)
        return (z, y, x), inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def of_version(name: str, version: int) -> str:
    """Return the name under which a file of the newest report is kept for an older version."""
    return f"report.v{version}.{name.removeprefix('report.')}"


def objects_folder(out: Path, version: int) -> Path:
    """Return the folder with the objects of one version of the report in ``out``."""
    return out / OBJECTS / f"v{version}"


def beside(out: Path) -> list[Path]:
    """Return the files in the folder of a report that are for DICOM objects, or are such objects.

    Only what has one of our names counts: the folder may hold files that are not ours.
    """
    places = [place for place in (out / OBJECTS).glob("*") if _VERSION.fullmatch(place.name)]
    objects = [file for place in places for file in place.glob("*") if _OBJECT.fullmatch(file.name)]
    return [*(path for path in (out / SOURCE, out / OUTLINES) if path.is_file()), *sorted(objects)]


def remove_evidence(out: Path) -> bool:
    """Remove these files, and the folders that they leave empty; return whether there were any.

    Raises:
        OSError: one cannot be removed.
    """
    files = beside(out)
    for file in files:
        file.unlink(missing_ok=True)
    folders = {file.parent for file in files} - {out}
    for folder in (*folders, *({out / OBJECTS} if folders else ())):
        with suppress(OSError):  # it holds something else
            folder.rmdir()
    return bool(files)


def evidence_files(out: Path) -> EvidenceFiles:
    """Read the files of a report that was written into another folder."""
    paths = (out / SOURCE, out / OUTLINES)
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in paths}


def outlines_file(numbered: Iterable[tuple[int, Finding]], box: Geometry) -> bytes:
    """Return the content of ``outlines.npz``, empty where no finding has an outline.

    ``numbered`` are findings and possible findings with their numbers, ``box`` is the geometry of
    the lung box.
    """
    arrays: dict[str, Any] = {}
    for number, finding in numbered:
        if finding.outline is None or not finding.outline.mask.any():
            continue
        inside = np.argwhere(finding.outline.mask)
        first, last = inside.min(0), inside.max(0) + 1
        cut = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        arrays[f"mask_{number}"] = finding.outline.mask[cut]
        arrays[f"start_{number}"] = first + finding.outline.start
    if not arrays:
        return b""
    arrays |= {
        "spacing_mm": np.array(box.spacing_mm),
        "origin_mm": np.array(box.origin_mm),
        "direction": np.asarray(box.direction, dtype=np.float64),
    }
    file = BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read_outlines(data: bytes) -> dict[int, PlacedOutline]:
    """Return the outlines by number of finding or possible finding.

    Raises:
        ValueError: the content is damaged.
    """
    if not data:
        return {}
    try:
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            box = Geometry(
                triple(arrays["spacing_mm"]), triple(arrays["origin_mm"]), arrays["direction"]
            )
            numbers = [int(n.removeprefix("mask_")) for n in arrays if n.startswith("mask_")]
            return {
                n: PlacedOutline(arrays[f"mask_{n}"], box.cropped(arrays[f"start_{n}"]))
                for n in numbers
            }
    except (KeyError, OSError, EOFError, TypeError, ValueError, BadZipFile) as error:
        raise ValueError(f"{OUTLINES} is damaged: {type(error).__name__}") from None


def interpolated(mask: BoolArray, index: FloatArray) -> FloatArray:
    """Interpolate linearly at fractional indices ``(..., 3)``; outside of the mask is 0."""
    padded = np.pad(mask.astype(np.float64), 2)
    at = np.clip(index + 2, 0, np.array(padded.shape) - 1.001)
    low = np.floor(at).astype(int)
    share = at - low
    value = np.zeros(index.shape[:-1])
    for corner in product((0, 1), repeat=3):
        weight = np.prod(np.where(corner, share, 1 - share), axis=-1)
        z, y, x = np.moveaxis(low + corner, -1, 0)
        value += weight * padded[z, y, x]
    return value
