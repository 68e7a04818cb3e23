"""The folders of the agent."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge.access import close_folder, make_folder, warn_if_open
from edge.settings import EdgeSettings
from edge.trail.store import FOLDER

DATABASE = "spool.sqlite3"
"""Name of the database in the state folder."""
RECEIVED = ".received.json"
"""Hidden file in the folder of a series that was received: who sent it, and when."""


@dataclass(frozen=True)
class AgentFolders:
    """The folders of one agent, all below the three that are configured.

    By study key, ``work`` has the claimed studies until they are done, ``done`` those whose report
    is in the outbox, and ``quarantine`` the rejected ones, each with its ``reason.json``. ``trail``
    has the files of the audit trail.
    """

    inbox: Path
    outbox: Path
    state: Path
    work: Path
    done: Path
    quarantine: Path
    trail: Path

    @classmethod
    def of(cls, settings: EdgeSettings) -> "AgentFolders":
        """Take the folders from the settings, as absolute paths."""
        state = settings.state_dir.absolute()
        within = (state, state / "work", state / "done", state / "quarantine", state / FOLDER)
        return cls(settings.inbox.absolute(), settings.outbox.absolute(), *within)

    @property
    def viewer(self) -> Path:
        """The folder with voxels of studies that are looked at on the status page."""
        return self.state / "viewer"

    def make(self) -> None:
        """Create the folders that are missing, and close the agent's own to other users.

        The inbox is left as it is: its sender may be another user. A study that may not be moved
        out of it waits.

        Raises:
            OSError: a folder cannot be made, or one of the agent's own may not be written.
        """
        own = (self.state, self.work, self.done, self.quarantine, self.trail)
        for folder in (self.inbox, self.outbox, *own):
            make_folder(folder)
        for folder in own:
            close_folder(folder, group=True)
        close_folder(self.outbox, group=False)
        warn_if_open(self.inbox)
        for folder in (self.outbox, *own):
            _require_writable(folder)


def _require_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, str(folder)) from error
    except OSError:  # a full disk, say, for which the main loop waits
        pass
