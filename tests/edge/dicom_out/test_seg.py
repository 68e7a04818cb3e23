"""Outlines on the pixels of source images: those that overlap, and those smaller than a slice."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import build_context

from edge.dicom_out import seg
from edge.dicom_out.deliver import open_target
from edge.dicom_out.seg import patches_of, segmentation
from edge.dicom_out.source import Source, planes_of, source_of
from edge.report.evidence import PlacedOutline, outlines_file, read_outlines
from imaging.dicom.source import read_source_headers
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Geometry, triple
from tests.dicom_peers import Pacs
from tests.edge.dicom_out.sites import pacs_at
from tests.edge.dicom_out.studies import DEVICE, finding, report_of, require_valid, write_study

Made = tuple[Source, Preprocessed, Callable[[tuple[float, float, float]], hd.seg.Segmentation]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The source images, the lung box, and what makes a segmentation of two outlines.

    The second outline lies at the share of the lung box that is given.
    """
    study = read_study(write_study(tmp_path_factory.mktemp("study")))
    box = preprocess(study.volume)
    assert study.headers is not None
    source = source_of(read_source_headers(study.headers()))
    first = finding(box, (0.4, 0.5, 0.2), 0.9, True)

    def make(at_zyx: tuple[float, float, float]) -> hd.seg.Segmentation:
        second = finding(box, at_zyx, 0.8, True)
        report = replace(report_of(study, box), findings=(first, second), possible=())
        outlines = read_outlines(outlines_file(report.numbered, box.geometry))
        return hd.seg.Segmentation.from_dataset(segmentation(report, source, DEVICE, outlines))

    return source, box, make


def voxels_of(made: hd.seg.Segmentation, segment: int) -> int:
    return int((made.get_volume(segment_numbers=[segment], combine_segments=True).array > 0).sum())


def test_outlines_that_overlap_are_whole(made: Made) -> None:
    apart, overlapping = (made[2](at) for at in ((0.4, 0.5, 0.8), (0.42, 0.5, 0.22)))
    assert voxels_of(overlapping, 1) == voxels_of(apart, 1)
    assert voxels_of(overlapping, 2) == pytest.approx(voxels_of(apart, 2), rel=0.1)
    assert overlapping.SegmentsOverlap == "YES"


def test_without_memory_a_shared_pixel_is_the_more_probable_one_s(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seg, "MAX_STACKED", 0)
    apart, overlapping = (made[2](at) for at in ((0.4, 0.5, 0.8), (0.42, 0.5, 0.22)))
    assert voxels_of(overlapping, 1) == voxels_of(apart, 1)
    assert 0 < voxels_of(overlapping, 2) < 0.9 * voxels_of(apart, 2)


@pytest.mark.parametrize("off_mm", [0.0, 0.9, 1.0])
def test_an_outline_smaller_than_a_pixel_has_one(made: Made, off_mm: float) -> None:
    """Also where it lies between two planes."""
    planes = planes_of(made[0])
    middle = planes[30].points_mm(np.array([40.2]), np.array([50.4]))[0, 0]
    origin = middle + off_mm * planes[30].normal
    geometry = Geometry((0.2, 0.2, 0.2), (origin[0], origin[1], origin[2]))
    (patch,) = patches_of(PlacedOutline(np.ones((1, 1, 1), bool), geometry), planes)
    assert (patch.row, patch.column, patch.mask.sum()) == (40, 50, 1)
    assert patch.plane in (30, 31)


def test_frames_need_not_come_in_the_order_of_space(made: Made) -> None:
    planes = planes_of(made[0])
    middle = planes[30].points_mm(np.array([40.0]), np.array([50.0]))[0, 0]
    geometry = Geometry((1.0, 1.0, 1.0), triple(middle))
    outline = PlacedOutline(np.ones((9, 9, 9), bool), geometry)
    pixels = [
        sum(int(patch.mask.sum()) for patch in patches_of(outline, listed, 729.0))
        for listed in (planes, [*planes[::2], *planes[1::2]])
    ]
    assert pixels[0] == pixels[1] > 20


def test_a_large_segmentation_is_deflated_and_is_sent_plain_where_that_is_not_taken(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is the same object; outlines in 2,000 slices took 30 MB."""
    plain = made[2]((0.4, 0.5, 0.8))
    assert plain.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    monkeypatch.setattr(seg, "MAX_PLAIN", 1000)
    large, file = made[2]((0.4, 0.5, 0.8)), tmp_path / "seg.dcm"
    large.save_as(file, enforce_file_format=True)
    assert file.stat().st_size < len(plain.PixelData) / 4
    for syntaxes in ([DeflatedExplicitVRLittleEndian], [ExplicitVRLittleEndian]):
        got = list[Dataset]()

        def keep(dataset: Dataset, got: list[Dataset] = got) -> int:
            got.append(dataset)
            return 0x0000

        contexts = [build_context(SegmentationStorage, syntaxes)]
        with Pacs(answer=keep).running(contexts=contexts) as pacs:
            sent = open_target(pacs_at(pacs.port)).send([file], lambda: False)
        assert sent.stored == ("seg.dcm",)
        assert [one.file_meta.TransferSyntaxUID for one in got] == syntaxes
        assert got[0].PixelData == plain.PixelData
        got[0].save_as(tmp_path / "got.dcm", enforce_file_format=True)
        if syntaxes == [ExplicitVRLittleEndian]:
            require_valid(tmp_path / "got.dcm")
