import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge.folders import AlreadyRunning
from evaluation.errors import ServiceFailed
from imaging.volume import Nodule
from tools import demo
from tools.demo import Programs, main, run_demo, second_readings, truth_table

EDGE = (sys.executable, str(Path(__file__).parents[1] / "evaluation" / "scripted_screen.py"), "[]")

TRAINING_ONLY = ("torch", "matplotlib", "scipy", "sklearn", "tomli_w", "onnxscript", "pytest")

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
    import os, sys, time
    print("pid", os.getpid(), file=sys.stderr, flush=True)
    time.sleep(600)
"""


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code))


def _pids(out: Path) -> list[int]:
    """The processes that told theirs in a whole line of their logs."""
    logs = (path.read_text() for path in out.glob("*.log"))
    return [int(pid) for log in logs for pid in re.findall(r"^pid (\d+)\n", log)]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def slice_of_nothing(tmp_path: Path) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    (own / "slice.dcm").write_text("no pixels here")
    return own


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    return folder


@pytest.mark.long
def test_the_default_shows_whole_lungs_and_a_nodule_that_the_second_reading_decides(
    tmp_path: Path,
) -> None:
    """Both real programs; nothing is printed that is wider than 100 columns."""
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "tools.demo", "--out", str(out)]
    environment = os.environ | {"OVERREAD_EDGE_CLOUD__ADDRESS": "off"}  # reaches neither of them
    said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert max(len(line) for line in lines if str(out) not in line) <= 100
    assert f"seed {demo.SEED}{demo.CHOSEN}" in said.stderr
    folder = out / "reports" / f"phantom-{demo.SEED}"
    report = json.loads((folder / "report.json").read_text())
    unsure = [c for c in report["candidates"] if c["route"] == "escalate"]
    decided = [f for f in report["findings"] if f["decided_by"] == "cloud"]
    assert 0 < len(decided) <= len(unsure)
    assert report["limitations"] == []
    assert report["guarantee"]["given"]
    for finding in decided:
        number = finding["number"]
        assert (
            f"finding {number}  decided by the cloud: edge {finding['edge_score']:.2f}"
            in said.stdout
        )
        cells = [[cell.strip() for cell in line.split("│")] for line in lines]
        assert any(row[4:5] == [str(number)] and row[6:7] == ["cloud"] for row in cells)
    assert "5 of 5 nodules of the phantom found, 0 false positives" in said.stdout
    assert "to the cloud and back" in said.stdout
    assert (folder / "report.html").is_file()
    assert (folder / "overview.jpg").is_file()


@pytest.mark.long
def test_study_that_cannot_be_read_is_refused_with_a_reason(
    out: Path, slice_of_nothing: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(out, Programs(_python(CLOUD), EDGE), own=slice_of_nothing) == 4
    assert "This study was not read: UnreadableFile" in capfd.readouterr().out
    assert [path.name for path in slice_of_nothing.iterdir()] == ["slice.dcm"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("cloud", "edge", "message"),
    [
        (CLOUD.replace("time.sleep(600)", "sys.exit(4)"), EDGE,
         "cloud ended with exit status 4 before its time"),
        (CLOUD, _python("import sys; sys.exit('DamagedArtifact: screening-int8')"),
         r"edge could not(.|\n)*Damaged(.|\n)*git checkout"),
        (CLOUD, _python("import os; os.abort()"), "edge ended with signal 6"),
    ],
    ids=["cloud ends", "edge fails", "edge dies"],
)  # fmt: skip
def test_a_program_that_ends_too_early_takes_the_other_with_it(
    out: Path, slice_of_nothing: Path, cloud: str, edge: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ServiceFailed, match=message):
        run_demo(out, Programs(_python(cloud), edge), own=slice_of_nothing)
    assert not any(map(_is_running, _pids(out)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 1)]
)
def test_signal_leaves_no_process_behind(
    out: Path, slice_of_nothing: Path, number: int, status: int
) -> None:
    programs = f"demo.Programs = lambda: Programs({_python(CLOUD)!r}, {_python(IDLE_EDGE)!r})"
    # a background job of a shell ignores Ctrl-C, and so would what it starts
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from tools import demo; Programs = demo.Programs; {programs}; demo.main()"
    options = ["--input", str(slice_of_nothing), "--out", str(out)]
    command = [sys.executable, "-c", code, *options]
    until = time.monotonic() + 60
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while len(pids := _pids(out)) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode in (status, 130 if number == signal.SIGINT else status)
    assert not any(_is_running(pid) for pid in pids)


def test_input_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    said = CliRunner().invoke(demo.app, ["--input", str(tmp_path / "none")])
    assert said.exit_code == 2
    assert "--input" in said.output


def test_folder_of_something_else_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    said = capsys.readouterr().err
    assert said.startswith(f"MissingData: {tmp_path}: is not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    with demo._held(tmp_path / "demo"), pytest.raises(AlreadyRunning):
        CliRunner().invoke(demo.app, ["--out", str(tmp_path / "demo")], catch_exceptions=False)


def test_demo_needs_nothing_that_make_demo_does_not_install() -> None:
    """Libraries that use one of these where it is there must do without it."""
    code = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING_ONLY!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
import tools.demo, imaging.volume_files, overread
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_each_nodule_has_the_nearest_finding_or_why_it_was_missed() -> None:
    """One among the possible findings is shown, and not counted as found."""
    places = (0.0, 8.0, 50.0, 100.0, 150.0, 200.0)
    truth = [Nodule((x, 0.0, 0.0), 20.0, "solid") for x in places]

    def listed(number: int, x: float) -> dict[str, Any]:
        return {"number": number, "centre_mm": [x, 0.0, 0.0], "decided_by": "cloud"}

    def candidate(x: float, score: float, route: str) -> dict[str, Any]:
        return {"centre_mm": [x, 0.0, 0.0], "score": score, "route": route}

    report = {
        "findings": [listed(1, 7.0), listed(2, 1.0), listed(3, 400.0)],
        "possible_findings": [listed(4, 51.0), listed(5, 500.0)],
        "candidates": [candidate(100.0, 0.05, "dismiss"), candidate(150.0, 0.4, "escalate")],
    }
    table = truth_table(report, truth)
    assert table.title == "2 of 6 nodules of the phantom found, 1 false positive"
    assert [row[3:] for row in table.cells] == [
        ["2", "1.0", "cloud"],
        ["1", "1.0", "cloud"],
        ["4?", "1.0", "cloud"],
        ["[red]missed[/]", "-", "edge, dismissed at 0.05"],
        ["[red]missed[/]", "-", "cloud, dismissed at 0.40"],
        ["[red]missed[/]", "-", "not proposed"],
    ]


def test_the_way_to_the_cloud_is_shown_for_each_finding_that_it_decided() -> None:
    verdict = {"probability": 0.96, "compute_s": 0.027}
    scores = {"edge_score": 0.51, "probability": 0.69}
    undecided = {"number": 2, "route": "escalate", "decided_by": "cloud", "verdict": verdict}
    report = {
        "findings": [{"number": 1, "route": "report", "verdict": verdict}, undecided | scores],
        "candidates": [{"route": route} for route in ("report", "escalate", "escalate", "dismiss")],
        "ledger": [{"stage": "escalate", "took_s": 0.1014}],
    }
    way, finding = second_readings(report)
    assert "101 ms; candidates that the edge was unsure of: 2, reported: 1" in way
    assert finding == (
        "[bold]finding 2[/]  decided by the cloud: edge 0.51 (unsure), cloud 0.96 (read in 27 ms), "
        "together 0.69"
    )
