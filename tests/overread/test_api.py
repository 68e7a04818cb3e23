"""The Python interface: accepted input, results and errors."""

import doctest
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

import overread
from edge.errors import EdgeError, UnfitFolder
from imaging.dicom.writer import write_series
from imaging.errors import SeriesNotFound
from imaging.phantom.phantom import Phantom, PhantomSpec
from imaging.volume import Nodule
from models.runtime.artifacts import WEIGHTS
from models.runtime.errors import ModelError
from tests.conftest import Draw
from tests.imaging.small_ct import SmallCt
from tests.overread.test_report import image_of

ROOT = Path(__file__).resolve().parents[2]
SPEC = PhantomSpec(
    seed=4, spacing_mm=(2.5, 1.0, 1.0), size_mm=(280.0, 320.0, 320.0), nodule_count=2,
    diameter_mm=(14.0, 20.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def phantom(drawn: Draw) -> Phantom:
    return drawn(SPEC)


@pytest.fixture(scope="module")
def ct(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "ct"
    write_series(phantom.volume, folder, seed=SPEC.seed)
    return folder


@pytest.fixture(scope="module")
def screener() -> Iterator[overread.Screener]:
    with overread.Screener() as screener:
        yield screener


def _found(report: overread.Report, nodules: tuple[Nodule, ...]) -> int:
    return sum(any(n.hit_by(f.centre_mm) for f in report.findings) for n in nodules)


def test_a_path_may_be_a_str_and_gives_a_report(ct: Path, phantom: Phantom) -> None:
    report = overread.screen(str(ct))
    assert _found(report, phantom.nodules) == len(phantom.nodules)
    assert report.status.value == "final"
    assert [entry.stage for entry in report.ledger][:3] == ["read", "preprocess", "screen"]


def test_the_report_is_written_only_where_a_folder_is_given(
    ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overread.screen(ct)
    assert list(tmp_path.iterdir()) == []
    overread.screen(ct, out=tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_example_of_the_readme_runs(
    ct: Path, phantom: Phantom, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints a line for each finding of the folder `ct`."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(ct.parent)
    exec(example[1], {})
    assert len(capsys.readouterr().out.splitlines()) >= len(phantom.nodules)


def test_only_what_is_promised_is_shown() -> None:
    assert dir(overread) == sorted(overread.__all__)
    assert all(hasattr(overread, name) for name in overread.__all__)
    found: dict[str, object] = {}
    exec("from overread import *", found)
    assert found.keys() - {"__builtins__"} == set(overread.__all__)


@pytest.mark.parametrize("name", [n for n in overread.__all__ if n != "__version__"])
def test_each_public_name_has_an_example_that_runs(
    name: str, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the folder `ct`; nothing else needs to be imported."""
    monkeypatch.chdir(ct.parent)
    finder, told = doctest.DocTestFinder(recurse=False), list[str]()
    (found,) = finder.find(getattr(overread, name), name, globs={"overread": overread})
    assert found.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(found, out=told.append).failed == 0, "".join(told)


def test_the_one_screening_network_of_a_folder_reads(ct: Path, tmp_path: Path) -> None:
    """Of several, the one of the settings."""
    manifest = (WEIGHTS / "manifest.toml").read_text()
    small = manifest[manifest.index("[screening-small-int8]") :]
    others = re.search(r"\n(?=\[(?!screening-small-int8))", small)
    for name, text in (("one", small[: others.start()] if others else small), ("many", manifest)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.toml").write_text(text)
        for file in ("screening-small-int8.onnx", "screening-int8.onnx"):
            (tmp_path / name / file).symlink_to(WEIGHTS / file)
    readers = [
        overread.screen(ct, model=tmp_path / name).models["edge"] for name in ("one", "many")
    ]
    assert [reader.split()[0] for reader in readers] == ["screening-small-int8", "screening-int8"]
    with pytest.raises(ModelError, match=r"cannot read the manifest .*none/manifest\.toml"):
        overread.screen(ct, model=tmp_path / "none")


def test_a_missing_path_writes_nothing(ct: Path, tmp_path: Path) -> None:
    overread.screen(ct, out=tmp_path / "report")
    before = (tmp_path / "report" / "report.json").read_bytes()
    for out in ("report", "new"):
        with pytest.raises(overread.StudyError, match="does not exist"):
            overread.screen(f"{ct}-", out=tmp_path / out)
    assert (tmp_path / "report" / "report.json").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_finding_has_image_side_and_zone(ct: Path, phantom: Phantom) -> None:
    report = overread.screen(ct)
    for nodule in phantom.nodules:
        finding = next(f for f in report.findings if nodule.hit_by(f.centre_mm))
        location = report.location_of(finding)
        assert location is not None
        assert location.side == ("left" if nodule.centre_mm[0] > 0 else "right")
        z = round(float(phantom.volume.geometry.to_index(finding.centre_mm)[0]))
        assert location.image.number == z + 1


def test_another_study_s_report_is_replaced_only_with_overwrite(
    ct: Path, phantom: Phantom, tmp_path: Path
) -> None:
    """Arrays are never taken for the same study: nothing tells them apart."""
    array, spacing_mm = phantom.volume.hu, phantom.volume.geometry.spacing_mm
    overread.screen(ct, out=tmp_path / "report")
    overread.screen(ct, out=tmp_path / "report")
    before = (tmp_path / "report" / "report.json").read_bytes()
    with pytest.raises(UnfitFolder, match="holds the report of another study"):
        overread.screen(array, spacing_mm=spacing_mm, out=tmp_path / "report")
    assert (tmp_path / "report" / "report.json").read_bytes() == before
    for overwrite in (True, True):
        overread.screen(array, spacing_mm=spacing_mm, out=tmp_path / "report", overwrite=overwrite)
    with pytest.raises(UnfitFolder):
        overread.screen(array, spacing_mm=spacing_mm, out=tmp_path / "report")
    with pytest.raises(UnfitFolder, match="outside"):
        overread.screen(ct, out=ct / "report")


@pytest.mark.parametrize("kind", ["int16", "int64", "float32", "float64", ">f4"])
def test_an_array_of_any_numbers_gives_the_findings_of_its_file(
    kind: str, ct: Path, screener: overread.Screener
) -> None:
    study = overread.read_study(ct)
    array = study.volume.hu.astype(kind)
    of_array = screener.screen(array, spacing_mm=study.volume.geometry.spacing_mm)
    of_file = screener.screen(ct)
    assert [f.probability for f in of_array.findings] == [f.probability for f in of_file.findings]


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(
    source: str, ct: Path, screener: overread.Screener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ct)
    for read in (
        screener.screen,
        overread.read_study,
        lambda path: next(screener.screen_folder(path)),
    ):
        with pytest.raises(overread.StudyError, match="the path is empty"):
            read(source)
    with pytest.raises(UnfitFolder, match="out is empty"):
        screener.screen(ct, out=source)


@pytest.mark.parametrize(
    "options", [{"deadline_s": -1}, {"cloud": "nowhere"}, {"out": __file__}, {"out": ""}]
)
def test_arguments_are_checked_before_the_study_is_read(options: dict[str, Any]) -> None:
    """The study would be refused too."""
    with pytest.raises(EdgeError):
        overread.screen("missing", **options)


def test_a_screener_reads_many_and_is_closed_at_the_end(phantom: Phantom, ct: Path) -> None:
    with overread.Screener() as screener:
        assert [_found(screener.screen(ct), phantom.nodules) for _ in range(2)] == [2, 2]
    screener.close()
    with pytest.raises(ValueError, match="the screener is closed"):
        screener.screen(ct)


def test_a_folder_of_studies_gives_each_its_report_or_its_error(
    phantom: Phantom, ct: Path, screener: overread.Screener, tmp_path: Path
) -> None:
    """What is no study is ignored, and an error does not end the others."""
    many = tmp_path / "many"
    (many / "b-empty").mkdir(parents=True)
    (many / "a").symlink_to(ct)
    (many / "c.nii.gz").write_bytes(b"damaged")
    (many / "d.zip").write_bytes(b"PK")
    SimpleITK.WriteImage(image_of(phantom.volume), many / "e.nrrd")
    for name in ("notes.txt", "table.csv", ".hidden"):
        (many / name).write_text("no study")
    found = list(screener.screen_folder(many, out=tmp_path / "reports"))
    assert [(one.source.name, one.number, one.count) for one in found] == [
        (name, n, 5) for n, name in enumerate(("a", "b-empty", "c.nii.gz", "d.zip", "e.nrrd"), 1)
    ]
    reports = [one.report for one in found if one.report and not one.error]
    assert [_found(report, phantom.nodules) for report in reports] == [2, 2]
    errors = [str(one.error) for one in found if isinstance(one.error, overread.StudyError)]
    for error, reason in zip(errors, ("it is empty", "damaged", "is an archive"), strict=True):
        assert reason in error
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {"a", "e.nrrd"}


def test_a_folder_of_images_is_one_study(ct: Path, screener: overread.Screener) -> None:
    (one,) = screener.screen_folder(ct)
    assert one.report
    with pytest.raises(overread.StudyError, match="is no folder of studies"):
        next(screener.screen_folder(ct / "missing"))
    with pytest.raises(UnfitFolder):
        next(screener.screen_folder(ct, out=ct / "reports"))


def test_a_series_is_chosen_by_hand(tmp_path: Path) -> None:
    for number in ("1", "2"):
        SmallCt(series=number, description=f"chest {number}").write(tmp_path / number)
    for number in ("1", "2"):
        study = overread.read_study(tmp_path, series=f"chest {number}")
        assert study.volume.series_uid == f"1.2.826.0.1.{number}"
    with pytest.raises(SeriesNotFound):
        overread.screen(tmp_path, series="chest 3")
    with pytest.raises(overread.UnsupportedArray, match="an array is one series"):
        overread.screen(_array(), spacing_mm=(1, 1, 1), series="1")


def _array(kind: str = "int16", shape: tuple[int, ...] = (4, 4, 4)) -> npt.NDArray[np.generic]:
    return np.zeros(shape, kind)


@pytest.mark.parametrize(
    ("array", "spacing_mm", "says"),
    [
        (_array("bool"), (1, 1, 1), "expected HU as integers or floats, got bool"),
        (_array("complex64"), (1, 1, 1), "got complex64"),
        (_array(shape=(4, 4)), (1, 1, 1), r"of shape \(z, y, x\), got shape \(4, 4\)"),
        (_array(shape=(0, 4, 4)), (1, 1, 1), "the array is empty"),
        (_array(), (1, 1), r"three numbers \(z, y, x\) in mm, got \(1, 1\)"),
        (_array(), (1, 1, 0), "expected spacing_mm above 0"),
        *[
            (_array(), odd, "expected spacing_mm as three numbers")
            for odd in ("123", b"123", {1, 2, 3}, {1: 1, 2: 2, 3: 3}, (1, 1), (1, 1, 1j), 10**400)
        ],
        (_array(), (1, 1, 10**400), "expected spacing_mm as three numbers"),
        (_array(), None, "spacing_mm is missing"),
        ([[1]], (1, 1, 1), "spacing_mm is for arrays"),
        ([[1]], None, "expected a path, a NumPy array or a SimpleITK image, got list"),
        (SimpleITK.Image(4, 4, SimpleITK.sitkInt16), None, r"\(z, y, x\), got shape \(4, 4\)"),
        (SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorInt16), None, "got shape"),
        ("ct", (1, 1, 1), "spacing_mm is for arrays"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_ct_is_refused_with_what_is_expected(
    array: object, spacing_mm: object, says: str
) -> None:
    with pytest.raises(overread.UnsupportedArray, match=says):
        overread.screen(array, spacing_mm=spacing_mm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "spacing_mm"),
    [
        (np.full((200, 64, 64), np.nan, np.float32), (1.0, 1.0, 1.0)),
        (_array(shape=(200, 64, 64)), (1.0, 1.0, 1.0)),
        (np.linspace(-1e6, 1e6, 64**3).reshape(64, 64, 64), (4.0, 4.0, 4.0)),
    ],
)
def test_a_volume_that_is_no_chest_is_refused_as_a_file_would_be(
    array: npt.NDArray[Any], spacing_mm: tuple[float, float, float], screener: overread.Screener
) -> None:
    with pytest.raises(overread.StudyError, match=r"^array: "):
        screener.screen(array, spacing_mm=spacing_mm)


def _imported_from(folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.append({str(ROOT)!r}); import overread; print(overread.screen)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["models", "process"])
def test_import_says_why_not_beside_a_package_of_the_same_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    said = _imported_from(tmp_path).stderr
    assert f"Python finds {tmp_path / name / '__init__.py'} first" in said
    assert "Rename that folder or file" in said


def test_a_plain_folder_of_the_same_name_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.pt").touch()
    assert _imported_from(tmp_path).returncode == 0
