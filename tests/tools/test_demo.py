import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge.folders import AlreadyRunning
from evaluation import phantoms
from evaluation.errors import ServiceFailed
from imaging.phantom.phantom import Phantom, PhantomSpec
from imaging.volume import Geometry, Nodule, Volume
from tests.models.test_main import failure
from tools import demo
from tools.demo import Programs, main, matches, run_demo, second_readings, truth_table

EDGE = Path(__file__).parents[1] / "evaluation" / "scripted_screen.py"

SPEC = PhantomSpec(seed=1, spacing_mm=(5.0, 3.0, 3.0))

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

TAKEN = """
    import socket, sys
    from cloud.__main__ import main
    held = socket.create_server(("127.0.0.1", 0))
    sys.argv[sys.argv.index("127.0.0.1:0")] = f"127.0.0.1:{held.getsockname()[1]}"
    sys.argv.insert(1, "serve")
    main()
"""

IDLE_EDGE = """
    import os, sys, time
    print("pid", os.getpid(), file=sys.stderr, flush=True)
    time.sleep(600)
"""


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code))


def _edge(*proposed: tuple[Sequence[float], float]) -> tuple[str, ...]:
    return (sys.executable, str(EDGE), json.dumps(proposed))


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
def phantom(monkeypatch: pytest.MonkeyPatch) -> Phantom:
    """A coarse chest of three ellipsoids, which takes no time to draw, with three nodules."""
    z, y, x = np.meshgrid(*(np.arange(-n / 2, n / 2) for n in SPEC.shape), indexing="ij")
    hu = np.where((x / 55) ** 2 + (y / 40) ** 2 < 1, 40, -1000)
    for side in (-23, 23):
        inside = (z / 26) ** 2 + (y / 28) ** 2 + ((x - side) / 19) ** 2 < 1
        hu[inside] = -850
    volume = Volume(hu.astype(np.int16), Geometry(SPEC.spacing_mm, (-180.0, -180.0, -150.0)))
    places = ((70.0, 0.0, 0.0), (-70.0, 0.0, 0.0), (-70.0, 0.0, 60.0))
    nodules = tuple(Nodule(place, 12.0, "solid round") for place in places)
    drawn = Phantom(volume, nodules, np.zeros(SPEC.shape, np.uint8))
    monkeypatch.setattr(demo, "whole_chest", lambda _seed: SPEC)
    monkeypatch.setattr(phantoms, "make_phantom", lambda _spec, _told: drawn)
    return drawn


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
    assert "5 of 5 nodules of the phantom found, 2 false positives" in said.stdout
    assert "to the cloud and back" in said.stdout
    assert (folder / "report.html").is_file()
    assert (folder / "overview.jpg").is_file()


@pytest.mark.long
def test_phantom_is_compared_with_its_truth(
    out: Path, phantom: Phantom, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = (list(nodule.centre_mm) for nodule in phantom.nodules)
    beside = [first[0], first[1], first[2] + 30.0]
    edge = _edge((beside, 0.97), (first, 0.95), (second, 0.05))
    assert run_demo(out, Programs(_python(CLOUD), edge)) == 3  # nobody reads a second time
    said = capfd.readouterr()
    lines = [[cell.strip() for cell in line.split("│")] for line in said.out.splitlines()]
    assert "2 findings of 3 candidates" in said.out
    assert "1 of 3 nodules of the phantom found, 1 false positive" in said.out
    assert ["", "1", "12.0", "solid round", "2", "0.0", "edge", ""] in lines
    assert ["", "2", "12.0", "solid round", "missed", "-", "edge, dismissed at 0.05", ""] in lines
    assert ["", "3", "12.0", "solid round", "missed", "-", "not proposed", ""] in lines
    assert (out / "reports" / "phantom-1" / "report.html").is_file()
    (cloud,) = _pids(out)
    assert not _is_running(cloud)


@pytest.mark.long
def test_study_that_cannot_be_read_is_refused_with_a_reason(
    out: Path, slice_of_nothing: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(out, Programs(_python(CLOUD), _edge()), own=slice_of_nothing) == 4
    assert "Refused: UnreadableFile" in capfd.readouterr().out
    assert [path.name for path in slice_of_nothing.iterdir()] == ["slice.dcm"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("cloud", "edge", "message"),
    [
        (TAKEN, _edge(), r"cloud ended(.|\n)*What to do: the port is taken"),
        (CLOUD.replace("time.sleep(600)", "sys.exit(4)"), _edge(),
         "cloud ended with exit status 4 before its time"),
        (CLOUD, _python("import sys; sys.exit('DamagedArtifact: screening-int8')"),
         r"edge could not(.|\n)*Damaged(.|\n)*git checkout"),
        (CLOUD, _python("import os; os.abort()"), "edge ended with signal 6"),
    ],
    ids=["port taken", "cloud ends", "edge fails", "edge dies"],
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
    said = failure(main, ["--out", str(tmp_path)], monkeypatch, capsys)
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


def test_nearest_of_two_nodules_is_hit() -> None:
    pair = (Nodule((0.0, 0.0, 0.0), 20.0), Nodule((8.0, 0.0, 0.0), 20.0))
    findings: list[dict[str, Any]] = [{"centre_mm": [x, 0.0, 0.0]} for x in (7.0, 1.0, 18.0)]
    assert matches(findings, pair) == [1, 0, None]


def test_a_nodule_among_the_possible_findings_is_shown_and_not_counted_as_found() -> None:
    truth = [Nodule((float(x), 0.0, 0.0), 10.0, "solid") for x in (0, 50, 100)]

    def listed(number: int, x: float) -> dict[str, Any]:
        return {"number": number, "centre_mm": [x, 0.0, 0.0], "decided_by": "cloud"}

    report = {
        "findings": [listed(1, 0.0), listed(2, 200.0)],
        "possible_findings": [listed(3, 51.0), listed(4, 300.0)],
        "candidates": [],
    }
    table = truth_table(report, truth)
    assert table.title == "1 of 3 nodules of the phantom found, 1 false positive"
    assert [row[3] for row in table.cells] == ["1", "3?", "[red]missed[/]"]


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
