"""Two reading processes in turn: while one has a study, the other may read the next one ahead."""

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from imaging.isolation.reader import IsolatedReader, ReadLimits, identity
from imaging.preprocess import Preprocessed
from imaging.selection import SelectSeries
from imaging.volume import Study, Volume


class ReadersInTurn:
    """Reads one study after another, as `IsolatedReader` does; used by one thread, in a ``with``.

    Args:
        series, selects: as every `read` will ask.
    """

    def __init__(self, limits: ReadLimits, series: str = "", *, selects: bool = False) -> None:
        self._now, self._next = IsolatedReader(limits), IsolatedReader(limits)
        self._series, self._selects = series, selects
        self._held = ExitStack()
        self._begun: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        for reader in (self._now, self._next):
            self._held.enter_context(reader)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def peak_mb(self) -> float:
        """Peak memory in MiB of the last child that ended, of the two the larger."""
        return max(self._now.peak_mb, self._next.peak_mb)

    def begin(self, path: Path, settled_s: float) -> None:
        """Read ahead what arrives in a folder: the next study, unless that was begun already.

        A study that ended its process is not begun again.
        """
        if (begun := identity(path)) != self._begun:
            self._next.begin(path, self._series, selects=self._selects, settled_s=settled_s)
            self._begun = begun

    def has_begun(self, path: Path) -> bool:
        """Return whether the study in a folder, which may have been moved, is being read ahead."""
        return self._next.has_begun(path)

    def read(self, path: Path, series: str = "", select: SelectSeries | None = None) -> Study:
        """Read a study, from where it was begun; the rest as `IsolatedReader.read`."""
        if self._next.has_begun(path):
            self._now, self._next = self._next, self._now
        if self._begun == identity(path):
            self._begun = None  # another folder may get its number
        return self._now.read(path, series, select)

    def preprocess(self, volume: Volume, source: Path) -> Preprocessed:
        """Return the lung box of the study that was read last, as `IsolatedReader.preprocess`."""
        return self._now.preprocess(volume, source)
