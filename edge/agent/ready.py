"""Whether the agent can read the next study: its folders and its database."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from edge.database import BUSY_S


def folder_problem(folder: Path) -> str:
    """Return why nothing can be written to the folder; empty if it can.

    The file that is written to find out has no name, so that nobody takes it for a study.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


def database_problem(path: Path) -> str:
    """Return why the database does not answer; empty if it does."""
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return f"{path}: {error}"
    return ""
