import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.pipeline import Pipeline
from edge.settings.core import EdgeSettings
from evaluation.links.edge_worker import Edge, Opens, scheduler_delay_s
from evaluation.phantoms import Prepared
from imaging.errors import NoLung
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Nodule, Study, Volume
from models.runtime.detection import Candidate
from tests.evaluation.scripted_screen import scripted_pipeline

BOX = Preprocessed(np.full((48, 64, 64), 30, np.uint8), Geometry())
HIT, FALSE = (20.0, 20.0, 20.0), (40.0, 40.0, 30.0)


def opener(line: Pipeline, read: list[Path], settings: list[EdgeSettings]) -> Opens:
    """Opens ``line`` with a first stage that records its folders, and without preprocessing."""

    def first(folder: Path) -> Study:
        read.append(folder)
        return Study(Volume(np.zeros((4, 4, 4), np.int16), Geometry()), folder)

    def second(_volume: Volume, folder: Path) -> Preprocessed:
        if read.count(folder) > 1 and folder.name == "refused":
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
    prepared = [Prepared(tmp_path / name, nodules) for name in ("a", "b")]
    edge = Edge(prepared, tmp_path, opener(line, read, settings))
    assert edge.open(deadline_s=9.0, cloud__address="off") == "scripted 1 (none)"
    one = edge.read(0, from_files=False)
    edge.read(3, from_files=True)
    edge.open(deadline_s=8.0)
    edge.read(0, from_files=False)
    edge.close()
    assert [folder.name for folder in read] == ["a", "b", "b"]
    assert [one.deadline_s for one in settings] == [9.0, 8.0]
    assert (one["lesions"], one["found"]) == (2, 1)
    assert (one["escalated"], one["answered"], one["refused"]) == (0, 0, None)
    assert one["took_s"] > 0


def test_candidates_are_replayed(tmp_path: Path) -> None:
    line, seen = scripted_pipeline([(HIT, 0.95)]), list[Preprocessed]()
    screener = line.reader.screener

    class Counting:
        name, version, engine, settings = "counts", "1", "none", screener.settings

        def screen(self, box: Preprocessed) -> Sequence[Candidate]:
            seen.append(box)
            return screener.screen(box)

    line = replace(line, reader=replace(line.reader, screener=Counting()))
    prepared = [Prepared(tmp_path / "a", (Nodule(HIT, 8.0, "solid"),))]
    edge = Edge(prepared, tmp_path, opener(line, [], []))
    edge.open(replay=True)
    told = [edge.read(number, from_files=False) for number in range(3)]
    edge.close()
    assert [one["found"] for one in told] == [1, 1, 1]
    assert len(seen) == 1
    assert set(told[0]["stages_s"]) >= {"screen", "escalate", "report"}


def test_a_refused_study_has_found_nothing(tmp_path: Path) -> None:
    line, nodules = scripted_pipeline([(HIT, 0.95)]), (Nodule(HIT, 8.0, "solid"),)
    edge = Edge([Prepared(tmp_path / "refused", nodules)], tmp_path, opener(line, [], []))
    edge.open()
    told = edge.read(0, from_files=True)
    edge.close()
    assert (told["lesions"], told["found"]) == (1, 0)
    assert told["refused"].startswith("NoLung")


def test_the_scheduler_delay_is_the_second_number(tmp_path: Path) -> None:
    """Without a file there is none; the kernel's own count never falls."""
    file = tmp_path / str(threading.get_native_id()) / "schedstat"
    file.parent.mkdir()
    file.write_text("900 1500000000 7\n")
    assert scheduler_delay_s(tmp_path) == 1.5
    assert scheduler_delay_s(tmp_path / "without") == 0.0
    first = scheduler_delay_s()
    assert 0.0 <= first <= scheduler_delay_s()
