import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.pipeline import Pipeline
from edge.settings.core import EdgeSettings
from evaluation.errors import ServiceFailed
from evaluation.links.edge_worker import Opens, Studies, answers, edge_process
from evaluation.phantoms import Prepared
from imaging.errors import NoLung
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Nodule, Study, Volume
from models.runtime.detection import Candidate
from tests.evaluation.scripted_screen import scripted_pipeline

BOX = Preprocessed(np.full((48, 64, 64), 30, np.uint8), Geometry())
HIT, FALSE = (20.0, 20.0, 20.0), (40.0, 40.0, 30.0)


def command(**fields: Any) -> str:
    return json.dumps(fields)


def opener(line: Pipeline, read: list[Path], settings: list[EdgeSettings]) -> Opens:
    """Opens ``line`` with a first stage that records its folders, and without preprocessing."""

    def first(folder: Path) -> Study:
        read.append(folder)
        return Study(Volume(np.zeros((4, 4, 4), np.int16), Geometry()), folder)

    def second(_volume: Volume, folder: Path) -> Preprocessed:
        if folder.name == "refused":
            raise NoLung("there is no lung", folder)
        return BOX

    @contextmanager
    def opens(given: EdgeSettings) -> Iterator[Pipeline]:
        settings.append(given)
        yield replace(line, read=first, preprocess=second)

    return opens


def test_studies_from_memory_are_read_once(tmp_path: Path) -> None:
    read: list[Path] = []
    settings: list[EdgeSettings] = []
    line = scripted_pipeline([(HIT, 0.95), (FALSE, 0.92)])
    nodules = (Nodule(HIT, 8.0, "solid"), Nodule((5.0, 5.0, 5.0), 8.0, "solid"))
    studies = Studies([Prepared(tmp_path / name, nodules) for name in ("a", "b")])
    commands = [
        command(open={"deadline_s": 9.0, "cloud__address": "off"}),
        *(command(read=number, from_files=False) for number in range(3)),
        command(read=3, from_files=True),
        command(open={"deadline_s": 8.0}),
        command(read=0, from_files=False),
    ]
    said = list(answers(commands, studies, tmp_path / "out", opener(line, read, settings)))
    assert [folder.name for folder in read] == ["a", "b", "b"]
    assert [one.deadline_s for one in settings] == [9.0, 8.0]
    assert said[0] == {"opened": "scripted 1 (none)"}
    one = said[1]
    assert (one["lesions"], one["found"], one["false"]) == (2, 1, 1)
    assert (one["escalated"], one["answered"], one["refused"]) == (0, 0, "")
    assert one["scan_bytes"] == 2 * 4**3
    assert one["took_s"] > 0
    assert (tmp_path / "out" / "report.json").is_file()


def test_candidates_are_replayed(tmp_path: Path) -> None:
    line, seen = scripted_pipeline([(HIT, 0.95)]), list[Preprocessed]()
    screener = line.reader.screener

    class Counting:
        name, version, engine, settings = "counts", "1", "none", screener.settings

        def screen(self, box: Preprocessed) -> Sequence[Candidate]:
            seen.append(box)
            return screener.screen(box)

    line = replace(line, reader=replace(line.reader, screener=Counting()))
    studies = Studies([Prepared(tmp_path / "a", (Nodule(HIT, 8.0, "solid"),))])
    reads = (command(read=number, from_files=False) for number in range(3))
    commands = [command(open={}, replay=True), *reads]
    _, *said = answers(commands, studies, tmp_path / "out", opener(line, [], []))
    assert [one["found"] for one in said] == [1, 1, 1]
    assert len(seen) == 1
    assert set(said[0]["stages_s"]) >= {"screen", "escalate", "report"}


def test_a_refused_study_has_found_nothing(tmp_path: Path) -> None:
    line = scripted_pipeline([(HIT, 0.95)])
    studies = Studies([Prepared(tmp_path / "a", (Nodule(HIT, 8.0, "solid"),))])
    opens = opener(line, [], [])
    commands = [command(open={}), command(read=0, from_files=False)]
    next(iter(answers(commands, studies, tmp_path / "out", opens)))
    studies._prepared[0] = replace(studies.study(0), folder=tmp_path / "refused")
    *_, said = answers([command(open={}), command(read=0, from_files=True)], studies,
                       tmp_path / "out", opens)  # fmt: skip
    assert (said["lesions"], said["found"]) == (1, 0)
    assert said["refused"].startswith("NoLung")


def test_an_edge_answers_line_by_line_and_its_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    log, cache = tmp_path / "log", tmp_path / "cache"
    with edge_process(4, 7, cache, log, ("tests.evaluation.scripted_edge",)) as edge:
        assert edge.open(cloud__address="off") == f"4 7 {cache}"
        assert edge.read(2, from_files=True) == {"read": 2, "from_files": True}
        with pytest.raises(ServiceFailed, match=r"exit status 4\n.*thirteen is unlucky"):
            edge.read(13, from_files=False)
    assert cache.is_dir()
