"""``overread-eval fuzz``: hostile data for the real agent, at each of its doors.

``--door files`` are files and folders in the inbox, and the memory that large and hostile ones
take; ``dicom`` and ``http`` are associations and requests. Status 1 if a bar is not met.
"""

import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.hostile.files import LARGE, fuzz_files, reading_memory
from evaluation.hostile.senders import senders
from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.result import Bar, Result, Table
from evaluation.run import Seed, command
from imaging.dicom.arrival import files_of
from imaging.phantom.phantom import PhantomSpec

HOSTILE_STUDIES, BY_AGENT = 5000, 700
"""Hostile studies, and those of them that the agent gets."""

READ_BAR_S, GROWTH_BAR_MB = 60.0, 200.0
LARGE_MB, HOSTILE_MB = 1200, 4096
"""Limits of memory: of all processes for the large study; of each for the others."""

SMALL = PhantomSpec(
    seed=2, spacing_mm=(5.0, 2.5, 2.5), size_mm=(210.0, 340.0, 340.0),
    nodule_count=1, diameter_mm=(15.0, 20.0),
)  # fmt: skip
"""A chest of 42 small slices, for the sound series between hostile senders."""


class Door(StrEnum):
    """Where hostile data comes in."""

    FILES = "files"
    DICOM = "dicom"
    HTTP = "http"


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required at each door that was tried."""
    if files := result.get("files"):
        untyped = len(files["untyped"]) + len(files["unanswered"])
        shown = f"{untyped} of {files['studies']}"
        yield Bar("hostile files and folders without a typed answer", untyped, 0, shown=shown)
        opened, leaks = files["files_read_outside"], len(files["leaks"])
        outside = None if opened is None else len(opened) + leaks
        shown = "not seen" if outside is None else ""
        yield Bar("files read outside of the inbox by hostile studies", outside, 0, shown=shown)
        lost = files["sound_studies"] - files["sound_studies_read"]
        yield Bar("sound studies lost among hostile ones", lost, 0)
        longest_s = files["longest_read_s"]
        yield Bar("longest reading of a hostile study", longest_s, READ_BAR_S, "{:.1f} s")
    for name, one in result.get("memory", {}).items():
        most = max(one["program_peak_mb"], one["child_peak_mb"])
        most, bar = (one["together_peak_mb"], LARGE_MB) if name == LARGE else (most, HOSTILE_MB)
        shown = f"{most} MB ({one['outcome']})"
        yield Bar(f"peak memory, {name}", most, bar, "{} MB", shown=shown)
    if sent := result.get("senders"):
        lost, count = sent["sound_series"] - sent["reported"], sent["sound_series"]
        what = "sound series lost among hostile senders, C-STORE and STOW-RS"
        yield Bar(what, lost, 0, shown=f"{lost} of {count}")
        what = f"growth of the agent's memory under {sent['senders']} of them"
        yield Bar(what, sent["growth_mb"], GROWTH_BAR_MB, "{:.0f} MB")
        yield Bar("files that are left half received", sent["left_on_their_way"], 0)


def _outcomes(result: Result) -> Iterator[dict[str, Any]]:
    for kind, found in result.get("files", {}).get("outcomes", {}).items():
        refused = {name: n for name, n in sorted(found.items()) if name != "read"}
        words = ", ".join(f"{n} {name}" for name, n in refused.items())
        yield {"kind": kind, "number": sum(found.values()), "read": found.get("read", 0),
               "refused": words}  # fmt: skip


OUTCOMES = Table(
    "outcomes",
    {"kind": "studies", "number": "number", "read": "read", "refused": "refused"},
    _outcomes,
    "Hostile studies; {cores} cores of {cpu}",
)
MEMORY = Table(
    "memory",
    {
        "study": "study", "mb": "MB", "outcome": "outcome", "seconds": "s",
        "program_peak_mb": "program MB", "child_peak_mb": "child MB",
        "together_peak_mb": "together MB",
    },
    lambda result: [{"study": name, **one} for name, one in result.get("memory", {}).items()],
    "Memory of reading",
)  # fmt: skip
SENDERS = Table(
    "senders",
    {"kind": "hostile senders", "number": "number", "answered": "answered"},
    lambda result: [
        {"kind": kind, "number": number, "answered": result["senders"]["answered"][kind]}
        for kind, number in result.get("senders", {}).get("hostile", {}).items()
    ],
    "Hostile senders",
)


@command(OUTCOMES, MEMORY, SENDERS, bars=bars, strict=True)
def fuzz(
    door: Annotated[
        list[Door] | None, typer.Option(help="Door that is tried; all if omitted.")
    ] = None,
    count: Annotated[int, typer.Option("--senders", min=1, help="Hostile senders.")] = 2000,
    seed: Seed = 1,
) -> dict[str, Any]:
    """Hostile files, associations and requests: untyped errors, hangs, leaks, memory, losses."""
    doors = door or list(Door)
    whole, small = prepare([whole_chest(1), SMALL], STUDIES)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="overread-fuzz-") as folder:
        root = Path(folder)
        for name in ("files", "memory", "senders"):
            (root / name).mkdir()
        if Door.FILES in doors:
            result["files"] = fuzz_files(
                root / "files", whole.folder, HOSTILE_STUDIES, BY_AGENT, seed
            )
            result["memory"] = reading_memory(root / "memory", whole.folder)
        if others := [one.value for one in doors if one is not Door.FILES]:
            sound = files_of(small.folder)
            result["senders"] = senders(root / "senders", sound, count, seed, others)
    return result
