"""``python -m tools.demo``: one study through edge and cloud, as two real processes.

It starts ``overread-cloud serve`` on loopback, draws a phantom with known nodules (or takes a
study of your own), and has ``overread-edge screen`` read it. Then it reads ``report.json``, and
says which nodules were found, and by whom. Not a medical device.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console, Group

from edge.access import UMASK, make_folder
from edge.cli.output import ExitStatus
from edge.findings import Route
from edge.folders import exclusive
from evaluation.markdown import Rows
from evaluation.phantoms import prepare, whole_chest
from evaluation.run import run_program
from evaluation.world import START_S, Process, running
from imaging.volume import Nodule
from models.runtime.errors import MissingData
from process.text import printable

Json = Mapping[str, Any]

SEED = 24
CHOSEN = " (chosen: whole lungs, and a nodule that the second reading decides)"
"""Printed with `SEED`; nothing else of its phantom is tuned."""

DEADLINE_S = 30.0
"""Budget of the study: longer than the edge's default, for machines that do other work."""

WIDTH = 100
"""Largest number of columns printed."""

_MARK = ".overread-demo"
"""The lock in the demo's folder, which also shows that the folder is the demo's own."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Programs:
    """The commands of the two processes, without their arguments."""

    cloud: tuple[str, ...] = (sys.executable, "-m", "cloud", "serve")
    edge: tuple[str, ...] = (sys.executable, "-m", "edge", "screen")
    agent: tuple[str, ...] = (sys.executable, "-m", "edge", "run")


@app.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status, as of overread-edge screen: 0 the study was read; 1 something failed; "
    "3 the second reading is missing or partial; 4 the study was refused.",
)
def demo(
    own: Annotated[
        Path | None,
        typer.Option(
            "--input", exists=True, help="Study of your own: DICOM folder, NIfTI, NRRD or MHD."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report, logs and phantom.")] = Path("demo"),
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of the phantom; the default shows what the second reading decides."
        ),
    ] = SEED,
    pacs: Annotated[
        bool,
        typer.Option(
            "--pacs", help="Send the study to an agent, and its results to Orthanc and back."
        ),
    ] = False,
) -> None:
    """Read one chest CT with edge and cloud. Not a medical device."""
    with _held(out):
        run = run_pacs if pacs else run_demo
        raise typer.Exit(run(out, Programs(), own=own, seed=seed))


def run_demo(out: Path, programs: Programs, *, own: Path | None = None, seed: int = SEED) -> int:
    """Run both programs; return the exit status of ``overread-edge screen``.

    The report is left in ``out / "reports"``. Both processes have ended on return. ``own`` is a
    study of the user's, or None for a phantom.

    Raises:
        ServiceFailed: a process did not start, ended before its time, or not cleanly.
    """
    with _cloud(out, programs, "the cloud service") as cloud_at:
        study, nodules = (own, ()) if own is not None else _phantom(seed, out)
        report = out / "reports" / ("study" if own is not None else study.name)
        # the folder is the demo's own, with the report of an earlier demo in it
        options = f"--cloud {cloud_at} --deadline {DEADLINE_S:g} --overwrite --out"
        _say(f"overread-edge screen {study} {options} {report}")
        status = _screened((*programs.edge, str(study), *options.split(), str(report)), out)
        if status in (ExitStatus.DONE, ExitStatus.NO_SECOND_READING):
            made = json.loads((report / "report.json").read_text("utf-8"))
            truth = (truth_table(made, nodules), "") if nodules else ()
            shown = Group("", *truth, *second_readings(made))
            Console(width=_width()).print(shown, highlight=False)
    return status


def run_pacs(out: Path, programs: Programs, *, own: Path | None = None, seed: int = SEED) -> int:
    """Send a study to an agent by C-STORE, and show what comes back by way of Orthanc.

    The results are left in ``out / "pacs"``. All processes have ended on return.

    Raises:
        MissingProgram: there is no Orthanc.
        ServiceFailed: a process did not start, ended before its time, or a result did not come.
    """
    # imported here: highdicom and pynetdicom take as long as the demo's start
    from evaluation.receiving.sender import OVERREAD
    from tools import pacs

    with _cloud(out, programs, "cloud service, Orthanc and agent") as cloud_at:
        study, _ = (own, ()) if own is not None else _phantom(seed, out)
        with pacs.site(out, cloud_at, programs.agent, deadline_s=DEADLINE_S) as site:
            uid = pacs.study_uid_of(study)
            count = site.send(study)
            _say(f"{count} images sent by C-STORE to {OVERREAD}@127.0.0.1:{site.agent.port}")
            with _waiting("waiting for the results in the archive"):
                objects = site.results(uid, pacs.is_complete)
        files = pacs.save(objects, out / "pacs")
        Console(width=_width()).print(pacs.table(objects), highlight=False)
        _say(f"files: {', '.join(str(file) for file in files)}")
    return ExitStatus.DONE


@contextmanager
def _cloud(out: Path, programs: Programs, starting: str) -> Iterator[str]:
    """Run the cloud service with new logs, and yield its address.

    ``starting`` names for the user what is started.

    Raises:
        ServiceFailed: it did not start, ended before its time, or not cleanly.
    """
    logs = [out / "cloud.log", out / "edge.log"]
    for log in logs:
        log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="overread-demo-") as folder:
        address = Path(folder, "address")
        listen = ("--address", "127.0.0.1:0", "--ready-file", str(address))
        _say(f"starting {starting}; logs: {logs[0]}, {logs[1]}")
        with running("cloud", (*programs.cloud, *listen), logs[0]) as cloud:
            with _waiting("waiting for the cloud service"):
                cloud.wait_until(address.is_file, "serve", START_S)
            yield address.read_text()


def _screened(command: tuple[str, ...], out: Path) -> int:
    """Run the edge, show the tables that it prints, and return its exit status."""
    color = {"FORCE_COLOR": "1"} if Console().is_terminal else {}
    environment = {"COLUMNS": str(_width()), **color}
    log = out / "edge.log"
    with tempfile.TemporaryDirectory(prefix="overread-demo-") as folder:
        tables = Path(folder, "tables")
        edge = Process("edge", command, log, isolated=True, output=tables, environment=environment)
        with _waiting("reading the study"):
            status = edge.wait()
        sys.stdout.flush()
        sys.stdout.buffer.write(tables.read_bytes())
        sys.stdout.flush()
    if status in (ExitStatus.FAILED, ExitStatus.USAGE, ExitStatus.MISSING_PATH):
        raise edge.failed("could not read the study")
    return status


def _phantom(seed: int, out: Path) -> tuple[Path, tuple[Nodule, ...]]:
    """Return the DICOM folder of a phantom and its nodules; draw it unless an earlier demo did."""
    spec = whole_chest(seed)
    what = f"drawing a phantom of {spec.shape[0]} slices with {spec.nodule_count} nodules"
    _say(f"{what}, seed {seed}{CHOSEN if seed == SEED else ''}")
    with _waiting("drawing") as tell:
        (made,) = prepare([spec], out, lambda part, now: tell(f"drawing: {now}, {part:.0%}"))
    return made.folder, made.nodules


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Lock the demo's folder, which is created if necessary.

    Raises:
        MissingData: the folder has other contents.
        AlreadyRunning: another demo uses it.
    """
    if out.is_dir() and not (out / _MARK).is_file() and any(out.iterdir()):
        reason = "is not empty and not of an earlier demo: choose another with --out"
        raise MissingData(out, reason)
    make_folder(out)
    with exclusive(out / _MARK):
        yield


@contextmanager
def _waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show a status line on a terminal; yield a function that changes it."""
    with Console(stderr=True).status(what) as status:
        yield status.update


def _say(line: str) -> None:
    """Print a line on standard error; standard output is for the results."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(printable(line), markup=False)


def _width() -> int:
    console = Console()
    return min(console.width, WIDTH) if console.is_terminal else WIDTH


def truth_table(report: Json, truth: Sequence[Nodule]) -> Rows:
    """Return a row for each nodule of the phantom: its finding, and who decided it.

    The number of a possible finding has a question mark.
    """
    findings = report["findings"]
    listed = [*findings, *report["possible_findings"]]
    hits = matches(listed, truth)
    found = len(set(hits[: len(findings)]) - {None})
    false = hits[: len(findings)].count(None)
    title = (
        f"{found} of {len(truth)} nodules of the phantom found, "
        f"{false} false positive{'s' if false != 1 else ''}"
    )
    rows = []
    for number, nodule in enumerate(truth):
        row = [number + 1, f"{nodule.diameter_mm:.1f}", nodule.kind]
        if number in hits:
            finding = listed[hits.index(number)]
            named = str(finding["number"]) + ("" if finding in findings else "?")
            off = f"{_distance_mm(finding['centre_mm'], nodule):.1f}"
            rows.append([*row, named, off, finding["decided_by"]])
        else:
            rows.append([*row, "[red]missed[/]", "-", _fate(report, nodule)])
    return Rows(("nodule", "mm", "type", "finding", "mm off", "decided by"), rows, title)


def second_readings(report: Json) -> Iterator[str]:
    """Yield the time to the cloud and back, and what was decided there."""
    took_s = {entry["stage"]: entry["took_s"] for entry in report["ledger"]}["escalate"]
    unsure = [c for c in report["candidates"] if c["route"] == Route.ESCALATE.value]
    kept = [f for f in report["findings"] if f["route"] == Route.ESCALATE.value]
    yield (
        f"[bold]to the cloud and back[/]  {1000 * took_s:.0f} ms; candidates that the edge was "
        f"unsure of: {len(unsure)}, reported: {len(kept)}"
    )
    for finding in kept:
        if (verdict := finding["verdict"]) is not None:
            yield (
                f"[bold]finding {finding['number']}[/]  decided by the {finding['decided_by']}: "
                f"edge {finding['edge_score']:.2f} (unsure), cloud {verdict['probability']:.2f} "
                f"(read in {1000 * verdict['compute_s']:.0f} ms), together "
                f"{finding['probability']:.2f}"
            )


def matches(findings: Sequence[Json], truth: Sequence[Nodule]) -> list[int | None]:
    """Return for each finding the number of the nodule that it hits, the nearest of several."""
    found: list[int | None] = []
    for finding in findings:
        x, y, z = finding["centre_mm"]
        away = {n: _distance_mm((x, y, z), truth[n]) for n in range(len(truth))}
        hits = [n for n, nodule in enumerate(truth) if nodule.hit_by((x, y, z))]
        found.append(min(hits, key=away.__getitem__, default=None))
    return found


def _distance_mm(location: Sequence[float], nodule: Nodule) -> float:
    return float(np.linalg.norm(np.subtract(location, nodule.centre_mm)))


def _fate(report: Json, nodule: Nodule) -> str:
    """Return why a nodule was missed, from the edge's best candidate there."""
    proposed = [c for c in report["candidates"] if nodule.hit_by(tuple(c["centre_mm"]))]
    best = max(proposed, key=lambda c: c["score"], default=None)
    if best is None:
        return "not proposed"
    by = "edge, dismissed" if best["route"] == Route.DISMISS.value else "cloud, dismissed"
    return f"{by} at {best['score']:.2f}"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Exit on SIGTERM and SIGHUP as on Ctrl-C, so that both processes are stopped."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command; an error ends it with one line on standard error."""
    os.umask(UMASK)  # of the logs, which may name a patient's folder
    with _ended_by_signals():
        run_program(app)


if __name__ == "__main__":
    main()
