import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evaluation import phantoms
from evaluation.errors import MissingData
from evaluation.phantoms import prepare
from imaging.phantom.phantom import Phantom, PhantomSpec, make_phantom
from imaging.read import read_study

SPEC = PhantomSpec(seed=11, spacing_mm=(5.0, 3.0, 3.0), nodule_count=2, diameter_mm=(8.0, 20.0))


def test_a_phantom_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom, made = make_phantom(SPEC), list[PhantomSpec]()

    def counted(spec: PhantomSpec, _progress: object) -> Phantom:
        made.append(spec)
        return phantom

    monkeypatch.setattr(phantoms, "make_phantom", counted)
    (first,) = prepare([SPEC], tmp_path)
    assert first.nodules == phantom.nodules
    assert read_study(first.folder).volume.hu.ndim == 3
    assert prepare([SPEC], tmp_path) == [first]
    assert made == [SPEC]
    other = PhantomSpec(seed=11, spacing_mm=(5.0, 3.0, 3.0), nodule_count=1)
    prepare([other], tmp_path)
    assert made == [SPEC, other]


def test_a_folder_that_is_no_phantom_is_not_cleared(tmp_path: Path) -> None:
    own = tmp_path / "phantom-11" / "thesis.txt"
    own.parent.mkdir()
    own.write_text("three years of work")
    with pytest.raises(MissingData, match="phantom-11: is no phantom"):
        prepare([SPEC], tmp_path)
    assert own.read_text() == "three years of work"


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
    (made,) = prepare([SPEC], tmp_path)
    assert read_study(made.folder).volume.hu.ndim == 3


def test_two_processes_share_one_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom, made = make_phantom(SPEC), list[PhantomSpec]()

    def counted(spec: PhantomSpec, _progress: object) -> Phantom:
        made.append(spec)
        time.sleep(0.2)
        return phantom

    monkeypatch.setattr(phantoms, "make_phantom", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: prepare([SPEC], tmp_path), range(2))
    assert one == other
    assert made == [SPEC]
