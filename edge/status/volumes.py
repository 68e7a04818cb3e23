"""The voxels of the studies that somebody looks at, as files that are mapped into memory.

A study is read again from its own files, in a child process with the limits of every reading, and
with a low priority. The voxels are then in ``state/viewer/KEY.npy``, the newest `KEPT` of them, and
go with the study. Nothing of them is needed: they may be deleted at any time. `outline_on` returns
which of them the outline of a finding covers.
"""

import base64
import json
import os
import shutil
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edge.access import make_folder, walk
from edge.atomic_files import remove, write_atomically
from edge.report.evidence import PlacedOutline
from edge.site import Site
from edge.status.state import SiteState
from edge.store.record import Record
from imaging.errors import StudyError
from imaging.isolation.reader import IsolatedReader, ReaderFailed, ReadLimits
from imaging.render import Plane
from imaging.volume import Geometry, HuArray, triple

KEPT = 3
"""Studies whose voxels are kept on the disk."""
HEADER_BYTES = 128
"""Of a .npy file of three dimensions (NEP 1, padded to 64 bytes)."""
FREE_BYTES = 1_000_000_000
"""Free room that the agent needs; a study is not opened below it."""
PATIENCE_S = 300.0
"""Longest time to open a study that is looked at: longer than for a report, as that goes first."""
_UNPACKED = 4  # times its files is the most that a compressed study takes

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Voxels:
    """A study that can be looked at: HU ``(z, y, x)``, its geometry, and the images' numbers."""

    hu: HuArray
    geometry: Geometry
    images: tuple[int | None, ...] = ()

    def slice(self, plane: Plane, index: int) -> HuArray:
        """Return one slice as it is displayed, int16 ``(rows, columns)``.

        The patient's head is up in the coronal and the sagittal plane.

        Raises:
            IndexError: there is no such slice.
        """
        normal = plane.axes[0]
        if not 0 <= index < self.hu.shape[normal]:
            raise IndexError(f"{plane.title} slice {index} of {self.hu.shape[normal]}")
        taken = np.moveaxis(self.hu, normal, 0)[index]
        return np.ascontiguousarray(taken if plane is Plane.AXIAL else taken[::-1])


@dataclass(frozen=True)
class Opened:
    """How far a study is: ``ready``, ``reading``, ``closed``, or ``failed`` with its reason."""

    state: str
    reason: str = ""


class Volumes:
    """Opens studies, one at a time in a thread, and keeps the voxels of the last ones."""

    def __init__(self, site: Site) -> None:
        self._site, self._folder = SiteState(site), site.folders.viewer
        self._limits = ReadLimits(site.settings.read_memory_mb, PATIENCE_S)
        self._lock = threading.Lock()
        self._reading: str | None = None
        self._failed: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._reader: IsolatedReader | None = None
        self._closed = False

    def close(self) -> None:
        """End the reading of a study that is being opened; nobody waits for it any more."""
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
        self.wait()

    def wait(self) -> None:
        """Wait for the study that is being opened."""
        if self._thread is not None:
            self._thread.join()

    def opening(self, study: Record) -> Opened:
        """Return how far a study is."""
        if self._site.source(study) is None:
            forget_voxels(self._folder, study.id)
            return Opened("failed", "The images of this study were removed from this machine.")
        with self._lock:
            if self._reading == study.id:
                return Opened("reading")
            if reason := self._failed.get(study.id):
                return Opened("failed", reason)
        return Opened("closed" if self.voxels(study) is None else "ready")

    def open(self, study: Record, series: str) -> Opened:
        """Begin to read a study, unless it can be looked at already; return how far it is.

        ``series`` is that of the report: a UID, or the name of a volume file.
        """
        now = self.opening(study)
        with self._lock:
            if now.state in ("ready", "reading"):
                return now
            if self._reading is not None:
                return Opened("failed", "Another study is being opened. Try again in a moment.")
            if self._site.source(study) is None:
                return now
            self._failed.pop(study.id, None)
            self._reading = study.id
            self._thread = threading.Thread(
                target=self._read, args=(study, series), name="viewer", daemon=True
            )
            self._thread.start()
        return Opened("reading")

    def voxels(self, study: Record) -> Voxels | None:
        """Return the voxels of a study that was opened; None if it was not, or changed since."""
        data, about = self._paths(study.id)
        try:
            told = json.loads(about.read_bytes())
            if told["updated"] != study.updated:
                return None
            hu = np.load(data, mmap_mode="r", allow_pickle=False)
            geometry = Geometry(
                triple(told["spacing_mm"]), triple(told["origin_mm"]), np.array(told["direction"])
            )
            os.utime(about)  # it is the last one that somebody looked at
            return Voxels(hu, geometry, tuple(told["images"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self, study: Record, series: str) -> None:
        """Read one study in the thread of its own; whatever happens, the reason can be shown."""
        reason = ""
        try:
            self._fill(study, series)
        except StudyError as error:
            reason = f"The images cannot be read: {error.reason}"
        except OSError as error:
            reason = f"The images cannot be read now: {error.strerror}."
        except MemoryError:
            reason = "The machine has no memory left for this study now."
        except (ReaderFailed, ValueError):
            log.exception("study cannot be looked at", study_key=study.id)
            reason = "A fault of this program. The agent's log has the details."
        self._reader = None
        with self._lock:
            self._reading = None
            if reason:
                self._failed[study.id] = reason
                while len(self._failed) > 50:
                    self._failed.pop(next(iter(self._failed)))
        if reason:
            forget_voxels(self._folder, study.id)

    def _fill(self, study: Record, series: str) -> None:
        source = self._site.source(study)
        if source is None:
            raise FileNotFoundError(2, "they were removed")
        make_folder(self._folder)
        self._make_room(study.id)
        needed = FREE_BYTES + _UNPACKED * _bytes(source)
        if (free := shutil.disk_usage(self._folder).free) < needed:
            said = f"too little room on the disk: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB"
            raise OSError(28, f"{said} needed")
        data, about = self._paths(study.id)
        part = data.with_suffix(".part")
        remove(part)
        with open(part, "w+b", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
            file.write(bytes(HEADER_BYTES))
            file.flush()
            with IsolatedReader(self._limits) as reader:
                self._reader = reader
                if self._closed:
                    raise MemoryError("the agent is being stopped")
                copy = os.fdopen(os.dup(file.fileno()), "r+b", buffering=0)
                read = reader.read_whole(source, copy, series)  # which closes the copy
            shape = read.volume.shape
            about_data: dict[str, Any] = {"descr": "<i2", "fortran_order": False, "shape": shape}
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, about_data)
            if file.tell() != HEADER_BYTES:
                raise ValueError(f"a header of {file.tell()} bytes for {shape}")
        told = {
            "updated": study.updated,
            "spacing_mm": read.volume.geometry.spacing_mm,
            "origin_mm": read.volume.geometry.origin_mm,
            "direction": read.volume.geometry.direction.tolist(),
            "images": [image.number for image in read.images],
        }
        part.replace(data)
        write_atomically(about, json.dumps(told).encode())

    def _make_room(self, key: str) -> None:
        """Remove the voxels that nobody has looked at for the longest time, and what is left over.

        Studies whose files are gone go first.
        """
        seen = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        rows = [self._site.study(path.stem) for path in seen if path.stem != key]
        there = [row.id for row in rows if row is not None and self._site.source(row) is not None]
        stay = there[1 - KEPT :]
        for path in self._folder.iterdir():
            if path.stem not in stay or path.suffix == ".part":
                remove(path)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self._folder / f"{key}.npy", self._folder / f"{key}.json"


def outline_on(
    outline: PlacedOutline, geometry: Geometry, shape: tuple[int, ...]
) -> dict[str, Any] | None:
    """Return the voxels ``(z, y, x)`` of an outline in a volume, None where it has none.

    ``start`` and ``shape`` are the box that holds them, ``bits`` its voxels in base64, eight a
    byte, the first in the highest bit.
    """
    found = outline.on(geometry, shape)
    if found is None:
        return None
    start, inside = found
    return {
        "start": list(start),
        "shape": inside.shape,
        "bits": base64.b64encode(np.packbits(inside).tobytes()).decode(),
    }


def forget_voxels(viewer: Path, key: str) -> None:
    """Remove the voxels of one study, if there are any; a map that is open stays readable."""
    for suffix in (".json", ".npy", ".part"):
        with suppress(OSError):
            (viewer / f"{key}{suffix}").unlink(missing_ok=True)


def _bytes(source: Path) -> int:
    if source.is_file():
        return source.stat().st_size
    inside = (entry.stat(follow_symlinks=False) for entry in walk(source))
    return sum(status.st_size for status in inside if stat.S_ISREG(status.st_mode))
