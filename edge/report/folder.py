"""The folder of a report belongs to one study: who may write there, and what may be replaced.

In the outbox of an agent ``mkdir`` decides between two agents, also where they run on two machines
and share the outbox. An empty file ``.study-KEY`` in the folder then names its study. It stays as
long as the report does. For the command line and for Python, no other study's report is removed
unasked; a command that is not told where to write takes a folder in the same way.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import structlog

from edge.access import make_folder
from edge.atomic_files import sync_folder
from edge.errors import MissingPath, UnfitFolder
from edge.job import Job
from edge.report.evidence import beside
from edge.report.model import Report
from edge.report.pictures import stray_pictures
from edge.report.serialize import NotAReport, read_report
from imaging.files import VOLUME_SUFFIXES
from imaging.volume import Study

log = structlog.get_logger()

OWNER = ".study-"


def report_names(name: str) -> Iterator[str]:
    """Propose a report's folder: the study's name without suffix, then with -2, -3, … after it."""
    suffix = next((s for s in VOLUME_SUFFIXES if name.lower().endswith(s)), "")
    stem = name[: len(name) - len(suffix)] or name
    stem = stem.encode("utf-8", "replace").decode()  # a name that is not UTF-8
    while len(stem.encode()) > 200:  # room for a number within the 255 bytes of a name
        stem = stem[:-1]
    yield stem
    yield from (f"{stem}-{number}" for number in count(2))


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
    return next((path.name.removeprefix(OWNER) for path in folder.glob(f"{OWNER}*")), "")


def require_readable(path: Path) -> None:
    """Refuse a study that does not exist or must not be read: there is nothing to report.

    Raises:
        MissingPath: the message names the path.
    """
    try:
        if path.is_dir():
            os.scandir(path).close()
        elif path.stat() and path.is_file():
            path.open("rb").close()
    except OSError as error:
        reason = f"{error.strerror}: check the path. Nothing was read or written"
        raise MissingPath(f"{path}: {reason}") from None


def require_separate(out: Path, source: Path) -> None:
    """Refuse an output folder that is a file, or that lies in the study's folder.

    Raises:
        UnfitFolder: the message names the folder.
    """
    place = Path(os.path.realpath(out))
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not existing.is_dir():
        raise UnfitFolder(f"{out}: {existing} is a file: choose another folder with --out")
    if place.is_relative_to(os.path.realpath(source)):
        reason = f"the report would lie among the files of the study {source}"
        raise UnfitFolder(f"{out}: {reason}: choose a folder outside it with --out")


def admission(*, overwrite: bool) -> Callable[[Job, Study | None], Job]:
    """Return the check of `edge.pipeline.Pipeline.admit`: may the report replace what is there?

    An older report of the same study may be replaced: it has the same series, or where one of the
    two states no UIDs, the same source. Any other needs ``overwrite``. Files that are not of a
    report are never replaced.
    """

    def admit(job: Job, study: Study | None) -> Job:
        why = _may_replace(job, study, overwrite=overwrite)
        if why:
            log.info("older report replaced", folder=str(job.out), why=why)
        return job

    return admit


@contextmanager
def folder_of_its_own(
    source: Path, *, overwrite: bool
) -> Iterator[Callable[[Job, Study | None], Job]]:
    """Yield an admission that gives a study a folder of its own in that of its job.

    It is the folder that holds an older report of the same study, else the first free name of
    `report_names`. With ``overwrite`` another study's report of the first name is replaced.
    """
    jobs, name = list[Job](), os.path.basename(os.path.abspath(source))

    def admit(job: Job, study: Study | None) -> Job:
        if not jobs:  # a study that fails later is admitted again, to be refused
            many = len(os.listdir(job.out)) + 1  # so that a name that is gone hides no later one
            known = [replace(job, out=job.out / one) for one in islice(report_names(name), many)]
            same = next((one for one in known if _holds_same(one, study)), None)
            if same or overwrite:
                jobs.append(admission(overwrite=overwrite)(same or known[0], study))
            else:
                free = (replace(job, out=job.out / one) for one in report_names(name))
                jobs.append(next(one for one in free if take_folder(one.out, job.study_key)))
        return jobs[0]

    try:
        yield admit
    finally:
        for job in jobs:
            release_folder(job.out, job.study_key)


def _holds_same(job: Job, study: Study | None) -> bool:
    with suppress(UnfitFolder, OSError):
        return bool(_may_replace(job, study, overwrite=False))
    return False


def _may_replace(job: Job, study: Study | None, *, overwrite: bool) -> str:
    """Return why the report in ``job.out`` may be replaced, empty where there is none.

    Raises:
        UnfitFolder: it may not.
    """
    if next(job.out.glob(f"{OWNER}*"), None):
        raise UnfitFolder(_advice(job.out, "belongs to the agent, which may amend its report"))
    report = job.out / "report.json"
    if not report.exists():
        paths = (job.out / "report.html", *stray_pictures(job.out), *beside(job.out))
        found = [str(path.relative_to(job.out)) for path in paths if path.exists()]
        if found and not overwrite:
            what = f"holds {', '.join(found)}, but no report.json of Overread"
            raise UnfitFolder(_advice(job.out, f"{what}: if they can go, add --overwrite"))
        return "overwrite" if found else ""
    try:
        older = read_report(report)
    except NotAReport as error:
        raise UnfitFolder(_advice(job.out, f"cannot be used: {error}")) from None
    if same := _same_study(older, job.source, study):
        return same
    if not overwrite:
        held = f"holds the report of another study ({older.source})"
        raise UnfitFolder(_advice(job.out, f"{held}: if it can go, add --overwrite"))
    return "overwrite"


def _same_study(older: Report, source: Path, study: Study | None) -> str:
    """Return why the older report is of the same study, empty where it is not."""
    known = older.header
    if study and study.header.study_uid and known.study_uid and older.series_uid:
        before = older.series_uid, known.study_uid, known.patient_id
        now = study.volume.series_uid, study.header.study_uid, study.header.patient_id
        return "same series" if before == now else ""
    # a volume file has no UIDs, and a refused study no series; an array has no path either
    same_path = source.exists() and os.path.realpath(older.source) == os.path.realpath(source)
    return "same source" if same_path else ""


def _advice(out: Path, reason: str) -> str:
    return f"{out} {reason}, or choose another folder with --out"
