import json
import subprocess
from pathlib import Path

import pytest

from evaluation.errors import ServiceFailed
from evaluation.timing.latency import AGAINST, ROOT, Row, Tree, as_dict, latency, uncompressed
from imaging.read import read_study
from models.runtime import hardware
from models.runtime.errors import MissingData


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(ROOT, tmp_path)


def test_figures_of_a_row_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is taken round by round; a row with two limits needs one of them."""
    found = [({"cpu_s": now, "wall_s": 9.0}, {"cpu_s": 2.0, "wall_s": 9.0}) for now in (1.0, 1.2)]
    monkeypatch.setattr(hardware, "adds_in_16_bits", lambda: False)
    row = Row("read", "read", bar=0.5, without_vnni=0.6)
    assert as_dict(row, found)["ratio"] == pytest.approx(0.55)
    made = [as_dict(row, found), as_dict(Row("run", "agent", bar=0.5, most_s=9.0), found)]
    made.append(as_dict(Row("decode", "decode", measure="wall_s", bar=None), found))
    assert AGAINST.of({"against": made, "earlier_commit": "8e3c957"}).cells == [
        ["read, CPU", "1.100 (1.190)", "2.000 (2.000)", "2", "0.55", "at most 0.5", "no"],
        ["run, CPU", "1.100 (1.190)", "2.000 (2.000)", "2", "0.55",
         "at most 0.5 or 9 s of the clock", "yes"],
        ["decode", "9.000 (9.000)", "9.000 (9.000)", "2", "1.00", "-", "-"],
    ]  # fmt: skip
    monkeypatch.setattr(hardware, "adds_in_16_bits", lambda: True)
    assert as_dict(row, found)["required"] == "at most 0.6"


def test_steps_answer_with_their_seconds(shared_data: Path, tree: Tree) -> None:
    """What the program prints or logs is no answer."""
    slab = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0003"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    script = str(ROOT / "evaluation" / "timing" / "steps.py")
    with tree._start("-P", script, "off", **pipes) as process:
        told, _ = process.communicate(f"{json.dumps(['read', str(slab)])}\n" * 2)
    answers = [json.loads(line) for line in told.splitlines()]
    assert len(answers) == 2
    assert all(one["wall_s"] > 0 and one["cpu_s"] > 0 for one in answers)


def test_a_start_that_fails_ends_with_its_log(tree: Tree) -> None:
    with pytest.raises(ServiceFailed, match="No module named nowhere"):
        tree._ended("-m", "nowhere")
    with pytest.raises(ServiceFailed, match="No module named nowhere"):
        tree._ready(lambda: False, "-m", "nowhere")


def test_the_uncompressed_copy_has_the_same_voxels(shared_data: Path, tmp_path: Path) -> None:
    study = shared_data / "ct" / "lungfcp_01_0001"
    copy = uncompressed(study, tmp_path / "copy")
    assert (read_study(copy).volume.hu == read_study(study).volume.hu).all()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="no-such-commit"):
        latency.measure(tmp_path, "no-such-commit", 2)
    with pytest.raises(MissingData, match="expected a study"):
        uncompressed(tmp_path / "none", tmp_path / "copy")
