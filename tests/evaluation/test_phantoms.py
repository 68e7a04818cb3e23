import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import phantoms
from evaluation.phantoms import prepare
from imaging.phantom.phantom import Phantom, PhantomSpec, make_phantom
from imaging.read import read_study
from models.runtime.errors import MissingData

SPEC = PhantomSpec(seed=11, spacing_mm=(5.0, 3.0, 3.0), nodule_count=2, diameter_mm=(8.0, 20.0))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[PhantomSpec]:
    """The phantoms that were drawn: one that was drawn before, whatever is asked for."""
    drawn, specs = make_phantom(SPEC), list[PhantomSpec]()

    def counted(spec: PhantomSpec, _progress: object) -> Phantom:
        specs.append(spec)
        time.sleep(0.2)
        return drawn

    monkeypatch.setattr(phantoms, "make_phantom", counted)
    return specs


def test_a_phantom_is_made_once(tmp_path: Path, made: list[PhantomSpec]) -> None:
    """Also by two processes at once; another of the same seed takes its place."""
    with ThreadPoolExecutor(2) as pool:
        one, again = pool.map(lambda _: prepare([SPEC], tmp_path), range(2))
    assert one == again == prepare([SPEC], tmp_path)
    assert made == [SPEC]
    assert len(one[0].nodules) == 2
    assert read_study(one[0].folder).volume.hu.ndim == 3
    other = replace(SPEC, nodule_count=1)
    prepare([other], tmp_path)
    assert made == [SPEC, other]


def test_a_folder_that_is_no_phantom_is_not_cleared(tmp_path: Path) -> None:
    own = tmp_path / "phantom-11" / "thesis.txt"
    own.parent.mkdir()
    own.write_text("three years of work")
    with pytest.raises(MissingData, match="phantom-11: is no phantom"):
        prepare([SPEC], tmp_path)
    assert own.read_text() == "three years of work"


@pytest.mark.usefixtures("made")
def test_a_phantom_whose_drawing_was_killed_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        (tmp_path / "phantom-11").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "write_series", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare([SPEC], tmp_path)
    (again,) = prepare([SPEC], tmp_path)
    assert read_study(again.folder).volume.hu.ndim == 3
