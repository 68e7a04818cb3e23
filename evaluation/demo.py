"""``python -m evaluation.demo``: one study through edge and cloud, as two real processes.

It starts both on loopback, puts a phantom or a person's own study into the agent's inbox, waits
for the report, shows it, and stops both. It knows of them what an operator knows: their commands,
their files and their logs. Not a medical device.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from edge.errors import EdgeError
from evaluation.demo_folder import DemoFolder
from evaluation.demo_progress import Phases
from evaluation.demo_result import Result, render_result
from evaluation.demo_study import deliver_copy, deliver_phantom, demo_spec, require_study
from evaluation.errors import EvaluationError
from evaluation.processes import Process, running
from imaging.phantom.phantom import make_phantom
from imaging.volume import Nodule

DEADLINE_S = 30.0
"""Of the study: more than the agent's own default, for machines that do other work meanwhile."""

START_S = 180.0
"""What each process has to start in; the first start on a machine compares the engines."""

REPORT_S = 300.0
"""Patience with the report of an own study, which may be large; the deadline is far below."""

SEED = 7
WATCHING = "watching"
"""What the agent logs when it has opened its models and looks at the inbox."""

_PLAIN_WIDTH = 112

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ExitStatus(IntEnum):
    """What the exit status tells."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    NO_SECOND_READING = 3


@dataclass(frozen=True)
class Programs:
    """The commands of the two processes, without their arguments."""

    cloud: tuple[str, ...] = (sys.executable, "-m", "cloud", "serve")
    edge: tuple[str, ...] = (sys.executable, "-m", "edge", "run")


@app.command(
    epilog="Exit status: 0 the study was read; 1 something failed; 2 the study was refused; 3 the "
    "second reading is missing or partial."
)
def demo(
    own: Annotated[
        Path | None,
        typer.Option(
            "--input", exists=True, help="Own DICOM folder, NIfTI, NRRD or MHD; it is copied."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for reports and logs.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the phantom.")] = SEED,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the copy of the study and the agent's state too.")
    ] = False,
) -> None:
    """Reads one chest CT with the edge agent and the cloud service. Not a medical device."""
    folder = DemoFolder(out.absolute())
    with folder.fresh(own, keep=keep):
        result = run_demo(folder, Programs(), Phases(Console(stderr=True)), own=own, seed=seed)
        console = Console()
        shown = console if console.is_terminal else Console(width=_PLAIN_WIDTH)
        shown.print(render_result(result), highlight=False, crop=False)
    raise typer.Exit(exit_status(result))


def run_demo(
    folder: DemoFolder,
    programs: Programs,
    phases: Phases,
    *,
    own: Path | None = None,
    seed: int = SEED,
) -> Result:
    """The result of one study; both processes have ended, cleanly, when it is returned.

    Args:
        folder: fresh.
        programs: the two commands.
        phases: shows what goes on.
        own: a person's own study, or None for a phantom.
        seed: of the phantom.

    Raises:
        ServiceFailed: a process did not start, ended before its time, or not cleanly.
        MissingData: the person's own is no study, or cannot be copied.
    """
    if own is not None:
        require_study(own)
    with _services(folder, programs, phases) as edge:
        truth = _deliver(own, seed, folder, phases)
        with phases.phase("waiting for the reading"):
            edge.wait_until(lambda: any(_reports(folder)), "report the study", REPORT_S)
    return Result.of(next(_reports(folder)), truth)


def exit_status(result: Result) -> ExitStatus:
    """The exit status that tells what became of the study, as that of ``overread-edge screen``."""
    if result.refused is not None:
        return ExitStatus.FAILED if result.refused["internal"] else ExitStatus.REFUSED
    unread = result.report["second_reading"] in ("missing", "partial")
    return ExitStatus.NO_SECOND_READING if unread else ExitStatus.DONE


@contextmanager
def _services(folder: DemoFolder, programs: Programs, phases: Phases) -> Iterator[Process]:
    """The edge agent, watching its inbox, with the cloud service behind it."""
    listen = ("--address", "127.0.0.1:0", "--ready-file", str(folder.address))
    with running("cloud", (*programs.cloud, *listen), folder.log("cloud")) as cloud:
        with phases.phase("starting the cloud service"):
            cloud.wait_until(folder.address.is_file, "serve", START_S)
        folder.configure(folder.address.read_text().strip(), DEADLINE_S)
        config = ("--config", str(folder.config))
        with running("edge", (*programs.edge, *config), folder.log("edge")) as edge:
            with phases.phase("starting the edge agent"):
                edge.wait_until(partial(_watches, folder.log("edge")), "start", START_S)
            yield edge
            with phases.phase("stopping both"):
                edge.stop()
                cloud.stop()


def _watches(log: Path) -> bool:
    return WATCHING in log.read_text(errors="replace")


def _deliver(
    own: Path | None, seed: int, folder: DemoFolder, phases: Phases
) -> tuple[Nodule, ...] | None:
    """Put the study into the inbox; its nodules, where they are known."""
    if own is not None:
        with phases.phase("copying the study into the inbox") as told:
            deliver_copy(own, folder.inbox, told)
        return None
    spec = demo_spec(seed)
    with phases.phase(f"drawing a phantom of {spec.shape[0]} slices, seed {seed}") as told:
        phantom = make_phantom(spec, lambda part, _what: told(part))
    with phases.phase("writing its slices into the inbox") as told:
        deliver_phantom(phantom, spec, folder.inbox, told)
    return phantom.nodules


def _reports(folder: DemoFolder) -> Iterator[Path]:
    """The report of the one study there is, once it is there; it comes last, and whole."""
    return folder.reports.glob("*/report.json")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does: both processes are stopped on the way out."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """The command; what goes wrong ends with a line that says what and why."""
    try:
        with _ended_by_signals():
            app()
    except (EvaluationError, EdgeError, OSError) as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(ExitStatus.FAILED) from error


if __name__ == "__main__":
    main()
