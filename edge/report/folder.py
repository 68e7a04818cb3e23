"""The folder of a report in the outbox belongs to exactly one study.

``mkdir`` decides between two agents, also where they run on two machines and share the outbox. An
empty file ``.study-KEY`` in the folder then names its study. It stays as long as the report does.
"""

from contextlib import suppress
from json import JSONDecodeError, loads
from pathlib import Path

from edge.access import make_folder
from edge.atomic_files import sync_folder

OWNER = ".study-"
OBJECTS = "dicom"
"""Name of the folder in a report's folder that has its objects."""


def objects_folder(out: Path, version: int) -> Path:
    """Return the folder with the objects of one version of the report in ``out``."""
    return out / OBJECTS / f"v{version}"


def take_folder(folder: Path, study_key: str) -> bool:
    """Make the folder for the report of this study; return whether it is this study's now.

    Raises:
        OSError: the outbox cannot be written.
    """
    while True:
        try:
            make_folder(folder, exist_ok=False)
        except FileExistsError:
            if owner := owner_of(folder):
                return owner == study_key
            try:  # an empty one is what a crash may leave here
                folder.rmdir()
            except OSError:
                return False
            continue
        # Another agent may remove the folder while it is empty: then the owner cannot be written.
        with suppress(FileNotFoundError):
            (folder / f"{OWNER}{study_key}").touch(mode=0o600, exist_ok=False)
            sync_folder(folder)
            sync_folder(folder.parent)
            return True


def release_folder(folder: Path, study_key: str) -> None:
    """Remove the folder unless another study owns it or something was written into it."""
    (folder / f"{OWNER}{study_key}").unlink(missing_ok=True)
    with suppress(OSError):  # it is another study's, or something lies in it
        folder.rmdir()


def owner_of(folder: Path) -> str:
    """Return the key of the study whose report the folder is for; empty if no file says it."""
    for path in folder.glob(f"{OWNER}*"):
        return path.name.removeprefix(OWNER)
    try:  # written by `screen`, or by an agent of an older version
        values = loads((folder / "report.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, JSONDecodeError, UnicodeDecodeError):
        return ""
    return str(values.get("study_key", "")) if isinstance(values, dict) else ""
