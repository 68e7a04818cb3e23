"""The folder that a demonstration works in: where everything of it lies, and that it is its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.spool import exclusive
from evaluation.errors import MissingData

_MARK = ".overread-demo"
"""A lock, and the sign that the folder may be cleared: a demonstration made what is in it."""


@dataclass(frozen=True)
class DemoFolder:
    """The places below one folder, which is absolute."""

    root: Path

    @property
    def inbox(self) -> Path:
        """The agent's inbox."""
        return self.root / "inbox"

    @property
    def reports(self) -> Path:
        """The agent's outbox."""
        return self.root / "reports"

    @property
    def state(self) -> Path:
        """The agent's database and the study that it has taken."""
        return self.root / "state"

    @property
    def config(self) -> Path:
        """The agent's configuration."""
        return self.root / "edge.toml"

    @property
    def address(self) -> Path:
        """Where the cloud service writes its address when it serves."""
        return self.root / "cloud.address"

    def log(self, name: str) -> Path:
        """The log of the process of that name."""
        return self.root / f"{name}.log"

    @contextmanager
    def fresh(self, source: Path | None, *, keep: bool = False) -> Iterator[None]:
        """The folder without what an earlier demonstration left; held against a second one.

        Args:
            source: the person's own study, which must neither be cleared nor copied into itself.
            keep: leave the copy of the study and the agent's state there afterwards; without it
                only reports, logs and the configuration stay, whatever happens.

        Raises:
            MissingData: the folder holds something else, or the study.
            AlreadyRunning: another demonstration works in it.
        """
        self._require_own(source)
        self.root.mkdir(parents=True, exist_ok=True)
        with exclusive(self.root / _MARK):
            self._clear(self.reports, self.config, self.log("cloud"), self.log("edge"))
            self._tidy()
            self.inbox.mkdir()
            try:
                yield
            finally:
                if not keep:
                    self._tidy()

    def configure(self, cloud: str, deadline_s: float) -> None:
        """Write the agent's configuration, with the cloud at ``HOST:PORT``."""
        values = {
            "inbox": str(self.inbox),
            "outbox": str(self.reports),
            "state_dir": str(self.state),
            "cloud": cloud,
            "deadline_s": deadline_s,
            "poll_s": 0.1,
        }
        # a JSON string without escapes for letters is a TOML string
        lines = (f"{key} = {json.dumps(v, ensure_ascii=False)}\n" for key, v in values.items())
        self.config.write_text("".join(lines), encoding="utf-8")

    def _require_own(self, source: Path | None) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise MissingData(self.root, "is no folder: give another with --out")
        own = not self.root.is_dir() or (self.root / _MARK).is_file()
        if not own and any(self.root.iterdir()):
            reason = "is not empty, and no earlier demonstration made it: give another with --out"
            raise MissingData(self.root, reason)
        if source is not None:
            study, root = source.resolve(), self.root.resolve()
            if study == root or study in root.parents or root in study.parents:
                reason = f"lies in {root}, where the demonstration works, or the other way round"
                raise MissingData(source, f"{reason}: give another folder with --out")

    def _tidy(self) -> None:
        self._clear(self.inbox, self.state, self.address)

    def _clear(self, *paths: Path) -> None:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
