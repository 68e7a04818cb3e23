import threading
from pathlib import Path

import pytest

from evaluation.errors import MissingData
from evaluation.timing.latency import as_dict, repeat_study, scheduler_delay_s, this_machine
from tests.evaluation.scripted_screen import scripted_pipeline


def test_every_stage_is_timed(shared_data: Path, tmp_path: Path) -> None:
    slab = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0003"
    reports = repeat_study(scripted_pipeline([]), slab, tmp_path, range(2))
    said = as_dict(slab, reports)
    assert (said["repeats"], said["findings"]) == (2, 0)
    assert list(said["stages"])[-1] == "total"
    stages = [times["median_s"] for name, times in said["stages"].items() if name != "total"]
    assert said["stages"]["total"]["median_s"] == pytest.approx(sum(stages), rel=0.5)
    assert said["stages"]["read"]["p95_s"] >= said["stages"]["read"]["median_s"]


def test_unreadable_study_has_no_latency(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingData, match="empty"):
        repeat_study(scripted_pipeline([]), tmp_path / "empty", tmp_path / "out", range(1))


def test_machine_is_named_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Example CPU @ 2 GHz\n")
    assert this_machine(cpuinfo)["cpu"] == "Example CPU @ 2 GHz"
    assert this_machine(tmp_path / "none")["cpu"] != ""
    assert this_machine()["cores"] >= 1


def test_the_scheduler_delay_is_the_second_number(tmp_path: Path) -> None:
    """Without a file there is none; the kernel's own count never falls."""
    file = tmp_path / str(threading.get_native_id()) / "schedstat"
    file.parent.mkdir()
    file.write_text("900 1500000000 7\n")
    assert scheduler_delay_s(tmp_path) == 1.5
    assert scheduler_delay_s(tmp_path / "without") == 0.0
    first = scheduler_delay_s()
    assert 0.0 <= first <= scheduler_delay_s()
