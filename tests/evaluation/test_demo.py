"""The demonstration: two processes, one study, one answer."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from structlog.testing import capture_logs
from typer.testing import CliRunner

from edge.agent import run_agent
from edge.outcome import Job
from edge.pipeline import Reading
from edge.settings import EdgeSettings
from evaluation import demo
from evaluation.demo import ExitStatus, Programs, exit_status, main, run_demo
from evaluation.demo_folder import DemoFolder
from evaluation.demo_progress import Phases
from evaluation.demo_result import Result, findings_table, matches, missed
from evaluation.errors import MissingData, ServiceFailed
from imaging.phantom.phantom import Phantom, PhantomSpec
from imaging.volume import Geometry, Nodule, Volume

AGENT = Path(__file__).with_name("scripted_agent.py")
SPEC = PhantomSpec(seed=1, spacing_mm=(5.0, 3.0, 3.0))

CLOUD = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("pid", os.getpid(), flush=True)
    ready = sys.argv[sys.argv.index("--ready-file") + 1]
    with open(ready + ".part", "w") as file:
        file.write("127.0.0.1:4711")
    os.replace(ready + ".part", ready)
    time.sleep(600)
"""
IDLE_EDGE = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("pid", os.getpid(), "watching", flush=True)
    time.sleep(600)
"""


def _python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code), *arguments)


def _agent(marks: list[list[float]]) -> tuple[str, ...]:
    return (sys.executable, str(AGENT), json.dumps(marks))


def _run(folder: DemoFolder, programs: Programs, own: Path | None) -> Result:
    phases = Phases(Console(file=io.StringIO()))
    with folder.fresh(own, keep=True):
        return run_demo(folder, programs, phases, own=own)


def _wait(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass within a minute")


def _pid(log: Path) -> int:
    return int(log.read_text().split()[1])


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def phantom() -> Phantom:
    """A coarse chest of three ellipsoids, which takes no time to draw, with three nodules."""
    z, y, x = np.meshgrid(*(np.arange(-n / 2, n / 2) for n in SPEC.shape), indexing="ij")
    hu = np.where((x / 55) ** 2 + (y / 40) ** 2 < 1, 40, -1000)
    for side in (-23, 23):
        inside = (z / 26) ** 2 + (y / 28) ** 2 + ((x - side) / 19) ** 2 < 1
        hu[inside] = -850
    volume = Volume(hu.astype(np.int16), Geometry(SPEC.spacing_mm, (-180.0, -180.0, -150.0)))
    places = ((70.0, 0.0, 0.0), (-70.0, 0.0, 0.0), (-70.0, 0.0, 60.0))
    nodules = tuple(Nodule(place, 12.0, "solid round") for place in places)
    return Phantom(volume, nodules, np.zeros(SPEC.shape, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> DemoFolder:
    """Where the demonstration works."""
    return DemoFolder(tmp_path / "demo")


@pytest.fixture
def slice_of_nothing(tmp_path: Path) -> Path:
    """A study of one file that is no DICOM."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "slice.dcm").write_text("no pixels here")
    return own


def test_phantom_is_read_and_compared_with_its_truth(
    folder: DemoFolder, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real agent reads the written series; hits, a false alarm and misses are told apart."""
    monkeypatch.setattr(demo, "demo_spec", lambda _seed: SPEC)
    monkeypatch.setattr(demo, "make_phantom", lambda _spec, _told: phantom)
    first, second, _ = (list(nodule.centre_mm) for nodule in phantom.nodules)
    beside = [first[0], first[1], first[2] + 30.0]
    marks = [[*beside, 0.97], [*first, 0.95], [*second, 0.05]]
    result = _run(folder, Programs(_python(CLOUD), _agent(marks)), None)
    assert result.refused is None
    assert exit_status(result) is ExitStatus.NO_SECOND_READING  # the scripted agent has no cloud
    assert result.truth == phantom.nodules
    findings = result.found
    assert matches(findings, phantom.nodules) == [None, 0]
    assert missed(findings, phantom.nodules) == [1, 2]
    assert [len(list(c.cells)) for c in findings_table(result).columns] == [4] * 9
    stages = [entry["stage"] for entry in result.report["ledger"]]
    assert stages[:4] == ["wait", "read", "preprocess", "screen"]
    assert result.folder == folder.reports / "phantom-1"
    assert (result.folder / "report.html").is_file()
    assert (result.folder / "overview.png").is_file()
    assert not _is_running(_pid(folder.log("cloud")))


def test_refused_study_has_a_typed_reason_and_status_two(
    folder: DemoFolder, slice_of_nothing: Path
) -> None:
    """The agent's own refusal comes back, and the person's folder is as it was."""
    programs = Programs(_python(CLOUD), _agent([]))
    result = _run(folder, programs, slice_of_nothing)
    assert result.refused is not None
    assert result.refused["kind"] == "UnreadableFile"
    assert "slice.dcm" in result.refused["file"]
    assert exit_status(result) is ExitStatus.REFUSED
    assert [path.name for path in slice_of_nothing.iterdir()] == ["slice.dcm"]


def test_edge_that_dies_at_its_start_takes_the_cloud_with_it(
    folder: DemoFolder, slice_of_nothing: Path
) -> None:
    """The error names the edge and shows its last words; the cloud is stopped."""
    dies = _python("import sys; sys.exit('DamagedArtifact: screening-int8')")
    with pytest.raises(ServiceFailed, match=r"edge ended with exit status 1(.|\n)*Damaged"):
        _run(folder, Programs(_python(CLOUD), dies), slice_of_nothing)
    assert not _is_running(_pid(folder.log("cloud")))


def test_edge_that_dies_at_its_work_is_told(folder: DemoFolder, slice_of_nothing: Path) -> None:
    """No report is waited for that no one will write."""
    dies = """
        import os, sys, time, tomllib
        print("watching", flush=True)
        inbox = tomllib.load(open(sys.argv[2], "rb"))["inbox"]
        while not os.path.exists(os.path.join(inbox, "study")):
            time.sleep(0.02)
        os.abort()
    """
    with pytest.raises(ServiceFailed, match="edge ended with signal 6"):
        _run(folder, Programs(_python(CLOUD), _python(dies)), slice_of_nothing)


def test_cloud_that_ends_by_itself_is_told(folder: DemoFolder, slice_of_nothing: Path) -> None:
    """A report came, but the demonstration of both processes failed all the same."""
    leaves = CLOUD.replace("time.sleep(600)", "sys.exit(4)")
    with pytest.raises(ServiceFailed, match="cloud ended with exit status 4"):
        _run(folder, Programs(_python(leaves), _agent([])), slice_of_nothing)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 1)]
)
def test_signal_leaves_no_process_behind(
    folder: DemoFolder, slice_of_nothing: Path, number: int, status: int
) -> None:
    """While it waits for a report, a signal ends it and both of its processes."""
    programs = f"demo.Programs = lambda: Programs({_python(CLOUD)!r}, {_python(IDLE_EDGE)!r})"
    code = f"from evaluation import demo; Programs = demo.Programs; {programs}; demo.main()"
    options = ["--input", str(slice_of_nothing), "--out", str(folder.root)]
    command = [sys.executable, "-c", code, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        _wait(lambda: (folder.inbox / "study").is_dir() or process.poll() is not None)
        pids = [_pid(folder.log(name)) for name in ("cloud", "edge")]
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode in (status, 130 if number == signal.SIGINT else status)
    assert not any(_is_running(pid) for pid in pids)


def test_agent_says_that_it_watches(tmp_path: Path) -> None:
    """The word that the demonstration waits for in the log is the one that the agent writes."""

    class Stopped:
        """A stop that comes right after the start."""

        def is_set(self) -> bool:
            return True

    def never(_job: Job) -> Reading:
        raise AssertionError("there is no study")

    places = {name: tmp_path / name for name in ("inbox", "outbox", "state_dir")}
    with capture_logs() as lines:
        run_agent(EdgeSettings(**places), line=never, stop=Stopped())  # type: ignore[arg-type] # only asked
    assert demo.WATCHING in [line["event"] for line in lines]


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ({"rejection": None, "second_reading": "complete"}, ExitStatus.DONE),
        ({"rejection": None, "second_reading": "partial"}, ExitStatus.NO_SECOND_READING),
        ({"rejection": None, "second_reading": "missing"}, ExitStatus.NO_SECOND_READING),
        ({"rejection": {"internal": False}, "second_reading": "missing"}, ExitStatus.REFUSED),
        ({"rejection": {"internal": True}, "second_reading": "missing"}, ExitStatus.FAILED),
    ],
)
def test_exit_status_tells_what_became_of_the_study(
    report: dict[str, object], status: ExitStatus
) -> None:
    """Read twice, not wholly so, refused, or failed by a fault of the agent."""
    assert exit_status(Result(Path("."), report, None)) is status


def test_input_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    """Nothing is started, and the message names the option."""
    said = CliRunner().invoke(demo.app, ["--input", str(tmp_path / "none")])
    assert said.exit_code == 2
    assert "--input" in said.output


def test_input_of_no_known_kind_is_refused_before_anything_starts(
    folder: DemoFolder, slice_of_nothing: Path
) -> None:
    """One slice is no study: the advice is to give its folder."""
    with pytest.raises(MissingData, match="give the folder"):
        _run(folder, Programs(("none",), ("none",)), slice_of_nothing / "slice.dcm")


def test_folder_of_something_else_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 and the reason, without a traceback."""
    (tmp_path / "thesis.txt").write_text("three years of work")
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"MissingData: {tmp_path}: is not empty")
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"
