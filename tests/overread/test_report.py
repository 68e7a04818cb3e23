"""Findings in the voxels of the volume that the caller gave, and a report as values and rows."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

import overread
from edge.report.evidence import PlacedOutline
from edge.report.model import NOT_A_DEVICE
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import Phantom, PhantomSpec
from imaging.volume import FloatArray, Geometry, Grid, StudyHeader, Volume
from overread.report import in_volume
from tests.conftest import Draw
from tests.edge.report.reports import FINDING, REPORT

SPEC = PhantomSpec(
    seed=4, spacing_mm=(2.5, 1.0, 0.8), size_mm=(280.0, 320.0, 320.0), nodule_count=2,
    diameter_mm=(14.0, 20.0),
)  # fmt: skip


def turned(degrees: float) -> FloatArray:
    angle = np.deg2rad(degrees)
    return np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )


def image_of(volume: Volume, axes: tuple[int, int, int] = (0, 1, 2)) -> SimpleITK.Image:
    """The volume in another order of its axes ``(z, y, x)``; the last one is flipped then."""
    geometry, hu = volume.geometry, volume.hu.transpose(axes)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(hu))
    image.SetSpacing([geometry.spacing_mm[axis] for axis in axes[::-1]])
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction[:, [2 - axis for axis in axes[::-1]]].ravel().tolist())
    return image if axes == (0, 1, 2) else image[::-1]


@pytest.fixture(scope="module")
def phantom(drawn: Draw) -> Phantom:
    """An oblique volume with voxels of three different sides."""
    made = drawn(SPEC)
    old = made.volume.geometry
    geometry = Geometry(old.spacing_mm, (5.0, -7.0, 30.0), turned(7))
    nodules = tuple(
        replace(nodule, centre_mm=tuple(geometry.to_world(old.to_index(nodule.centre_mm)).tolist()))
        for nodule in made.nodules
    )
    return replace(made, volume=replace(made.volume, geometry=geometry), nodules=nodules)


@pytest.fixture(scope="module")
def screener() -> Iterator[overread.Screener]:
    with overread.Screener() as screener:
        yield screener


@pytest.mark.parametrize("form", ["array", "image", "nifti", "dicom"])
def test_indices_and_masks_are_in_the_volume_that_was_given(
    form: str, phantom: Phantom, screener: overread.Screener, tmp_path: Path
) -> None:
    """A nodule is found, and its mask lies on it, in the array that the caller has."""
    volume = phantom.volume
    image, file = image_of(volume, (1, 2, 0)), tmp_path / "ct.nii"
    centres_zyx = [volume.geometry.to_index(one.centre_mm) for one in phantom.nodules]
    if form == "array":
        array = volume.hu
        report = screener.screen(array, spacing_mm=volume.geometry.spacing_mm)
    elif form == "dicom":
        write_series(volume, tmp_path / "ct", seed=1)
        array = overread.read_study(tmp_path / "ct").volume.hu
        report = screener.screen(tmp_path / "ct")
    else:
        array = SimpleITK.GetArrayFromImage(image)
        SimpleITK.WriteImage(image, file)
        report = screener.screen(image if form == "image" else file)
        np.testing.assert_array_equal(nibabel.load(file).get_fdata().T, array)
        points = (
            image.TransformPhysicalPointToContinuousIndex(n.centre_mm) for n in phantom.nodules
        )
        centres_zyx = [np.array(point[::-1]) for point in points]
    assert report.grid.shape == array.shape
    for centre_zyx in centres_zyx:
        off = np.array([one.index_zyx for one in report.findings]) - centre_zyx
        away_mm = np.linalg.norm(off * report.grid.geometry.spacing_mm, axis=1)
        found = report.findings[int(away_mm.argmin())]
        assert away_mm.min() < 3
        mask = report.mask_of(found)
        assert mask.shape == array.shape
        volume_mm3 = mask.sum() * np.prod(report.grid.geometry.spacing_mm)
        assert volume_mm3 == pytest.approx(np.pi / 6 * found.diameter_mm**3, rel=0.02)
        assert np.median(array[mask]) > -650, "one of them is ground glass"
        assert np.abs(np.argwhere(mask).mean(0) - found.index_zyx).max() < 0.5
    for decision in report.decisions:
        candidate = decision.candidate
        at = report.grid.geometry.to_world(candidate.index_zyx)
        np.testing.assert_allclose(at, candidate.centre_mm, atol=1e-6)


@pytest.mark.parametrize("slice_mm", [0.7, 3.0, 30.0])
def test_an_outline_is_placed_in_the_voxels_of_the_volume(slice_mm: float) -> None:
    """It is made in the lung box; a nodule between thick slices has a voxel of the nearest."""
    ball = np.linalg.norm(np.indices((13, 13, 13)) - 6, axis=0) <= 5
    box = Geometry((1.0, 1.0, 1.0), (20.0, 30.0, 10.0))
    flipped = Geometry((slice_mm, 0.9, 0.6), (60.0, 10.0, 40.0), turned(10) @ np.diag([-1, 1, -1]))
    grid = Grid((60, 90, 120), flipped)
    centre_mm = (26.0, 36.0, 16.0)
    found = replace(FINDING, centre_mm=centre_mm, index_zyx=(6.0, 6.0, 6.0))
    report = in_volume(
        replace(REPORT, findings=(found,), possible=()), {1: PlacedOutline(ball, box)}, grid
    )
    (finding,) = report.findings
    assert finding.outline is not None
    mask = report.mask_of(finding)
    assert mask.sum() == finding.outline.mask.sum() > 0
    if slice_mm < 10:
        away_mm = np.linalg.norm(flipped.to_world(np.argwhere(mask)) - centre_mm, axis=-1)
        assert away_mm.max() < 6.2
        assert finding.outline.volume_mm3 == pytest.approx(float(ball.sum()), rel=0.01)
    np.testing.assert_allclose(flipped.to_world(finding.index_zyx), centre_mm)
    with pytest.raises(ValueError, match="not one of this report"):
        report.mask_of(found)


def page_shown(report: overread.Report) -> str:
    """The page in the frame; what stands before it tells the result too."""
    line, frame = report._repr_html_().split("<iframe ")
    found = re.fullmatch(r'sandbox style="[^"]*" srcdoc="([^"]*)"></iframe>', frame)
    assert found
    page = unescape(found[1])
    for text in (line, page):
        assert NOT_A_DEVICE in text
        assert report.result in unescape(text)
        assert not re.search(r"<script|<iframe|<img|(src|href)=.?(http|//)", text)
    return page


def test_a_notebook_shows_the_page_in_a_frame_without_scripts(
    phantom: Phantom, screener: overread.Screener, tmp_path: Path
) -> None:
    """With the same pictures as in a folder; what a header holds is text there."""
    spacing_mm = phantom.volume.geometry.spacing_mm
    report, written = (
        screener.screen(phantom.volume.hu, spacing_mm=spacing_mm, out=out)
        for out in (None, tmp_path / "out")
    )
    assert report.pictures == written.pictures
    assert {name: (tmp_path / "out" / name).read_bytes() for name in report.pictures} == {
        **report.pictures
    }
    page = page_shown(report)
    assert page.count("data:image/jpeg;base64,") == len(report.pictures) > len(report.findings)
    assert all(f"{one.diameter_mm:.1f} mm" in page for one in report.findings)
    assert len(page) < 1_000_000
    assert len(repr(report)) < 100_000
    hostile = "<script>a(\"1\")</script>'\"> </iframe><img src=x onerror='a()'>"
    named = StudyHeader(patient_name=hostile, series_description=hostile)
    page_shown(replace(report, result=hostile, header=named, series_uid=hostile))


def test_a_report_is_values_and_rows(
    phantom: Phantom, screener: overread.Screener, tmp_path: Path
) -> None:
    report = screener.screen(
        phantom.volume.hu, spacing_mm=phantom.volume.geometry.spacing_mm, out=tmp_path / "out"
    )
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    late = {"ledger", "took_s"}  # the file cannot have the time of its own writing
    assert {k: v for k, v in report.to_dict().items() if k not in late} == {
        k: v for k, v in stored.items() if k not in late
    }
    rows = report.to_table()
    assert len(rows) == len(report.listed)
    assert [row["is_finding"] for row in rows].count(True) == len(report.findings)
    assert len({tuple(row) for row in rows}) == 1, "the columns of all rows are the same"
    first, finding = rows[0], report.findings[0]
    assert first["number"] == 1
    assert first["is_outlined"] is False
    assert (first["z"], first["y"], first["x"]) == pytest.approx(finding.index_zyx, abs=0.01)
    assert (first["x_mm"], first["y_mm"]) == pytest.approx(finding.centre_mm[:2], abs=0.01)
    assert json.dumps(rows)
