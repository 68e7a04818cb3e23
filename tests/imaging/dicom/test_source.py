"""The headers that are kept of source images: complete, bounded, and without what is damaged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement

from imaging.dicom.source import read_source_headers
from imaging.dicom.study import refused_study
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt


def headers_of(folder: Path) -> bytes:
    study = read_study(folder)
    assert study.headers is not None
    return study.headers()


def test_each_image_keeps_its_own_values_feet_first(tmp_path: Path) -> None:
    images = SmallCt().images()
    SmallCt().write(tmp_path, images[::-1])
    kept = read_source_headers(headers_of(tmp_path))
    assert [one.SOPInstanceUID for one in kept] == [one.SOPInstanceUID for one in images]
    for header, image in zip(kept, images, strict=True):
        assert header.ImagePositionPatient == image.ImagePositionPatient
        assert (header.PatientID, header.StudyInstanceUID) == ("P1", "1.2.826.1")
        assert "PixelData" not in header


def test_what_all_images_share_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallCt(attributes={"StationName": "CT1"}).write(tmp_path)
    study, decoded, convert = read_study(tmp_path), list[str](), dataset.convert_raw_data_element

    def counted(raw: RawDataElement, *given: Any, **more: Any) -> DataElement:
        decoded.append(keyword_for_tag(raw.tag))
        return convert(raw, *given, **more)

    monkeypatch.setattr(dataset, "convert_raw_data_element", counted)
    assert study.headers is not None
    kept = read_source_headers(study.headers())
    assert decoded.count("StationName") == 1
    assert [one.StationName for one in kept] == ["CT1"] * len(kept)


def test_text_of_any_character_set_becomes_unicode(tmp_path: Path) -> None:
    name = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"
    attributes = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": name}
    SmallCt(attributes=attributes).write(tmp_path)
    assert str(read_source_headers(headers_of(tmp_path))[0].PatientName) == name


def test_what_is_long_private_or_damaged_is_left_out(tmp_path: Path) -> None:
    for file in SmallCt(attributes={"StudyDescription": "x", "PatientWeight": "70.5"}).write(
        tmp_path
    ):
        image = dcmread(file)
        image.add_new((0x0009, 0x0010), "LO", "PRIVATE")
        image.add_new((0x0009, 0x1001), "LO", "secret")
        image["StudyDescription"]._value = "y" * 5000
        image.save_as(file)
        file.write_bytes(file.read_bytes().replace(b"70.5", b"heav"))
    data = headers_of(tmp_path)
    kept = read_source_headers(data)[0]
    assert "StudyDescription" not in kept
    assert "PatientWeight" not in kept
    assert b"secret" not in gzip.decompress(data)


@pytest.mark.parametrize("damage", ["", "long", "damaged"])
def test_the_order_of_the_first_image_is_kept_without_what_is_long_or_damaged(
    damage: str, tmp_path: Path
) -> None:
    request = Dataset()
    request.RequestedProcedureID = "RP1"
    if damage == "long":
        request.add_new("RequestedProcedureComments", "LT", "y" * 5000)
    elif damage == "damaged":
        request.PatientWeight = "70.5"
    for file in SmallCt(attributes={"RequestAttributesSequence": [request]}).write(tmp_path):
        file.write_bytes(file.read_bytes().replace(b"70.5", b"heav"))
    first, *others = read_source_headers(headers_of(tmp_path))
    assert [e.keyword for e in first.RequestAttributesSequence[0]] == ["RequestedProcedureID"]
    assert all(one.RequestAttributesSequence == first.RequestAttributesSequence for one in others)


def nested(depth: int, *, undefined: bool) -> Dataset:
    item = Dataset()
    for _ in range(depth):
        outer = Dataset()
        outer.RequestedProcedureCodeSequence = [item]
        outer["RequestedProcedureCodeSequence"].is_undefined_length = undefined
        item = outer
    return item


@pytest.mark.parametrize(
    "order", [[Dataset() for _ in range(5000)], *([nested(90, undefined=u)] for u in (0, 1))]
)
def test_an_order_of_thousands_of_items_or_levels_is_cut(
    order: list[Dataset], tmp_path: Path
) -> None:
    """The headers could not be kept or read again."""
    SmallCt(attributes={"RequestAttributesSequence": order}).write(tmp_path)
    data = headers_of(tmp_path)
    assert len(data) < 2000
    assert gzip.decompress(data).count(b"SQ") < 20
    assert read_source_headers(data)[0].PatientID == "P1"


def test_a_thousand_images_take_little_room(tmp_path: Path) -> None:
    """An image keeps what differs from the first one alone."""
    SmallCt(count=60, spacing_mm=1.0).write(tmp_path)
    data = headers_of(tmp_path)
    assert len(data) < 60 * 100
    assert all(len(image) <= 4 for image in json.loads(gzip.decompress(data))["images"])


@pytest.mark.parametrize(
    ("attributes", "is_known"),
    [
        ({}, True),
        ({"PatientID": ""}, True),  # some scanners leave it empty in single images
        ({"PatientID": "P2"}, False),
        ({"StudyInstanceUID": "1.2.9"}, False),
        ({"StudyInstanceUID": "1.2.9", "Modality": "MR"}, False),
    ],
)
def test_a_refused_study_keeps_the_header_of_one_image_if_it_is_sure_whose_it_is(
    tmp_path: Path, attributes: dict[str, object], is_known: bool
) -> None:
    SmallCt(count=2).write(tmp_path / "a")
    SmallCt(count=2, series="2", attributes=attributes).write(tmp_path / "b")
    (tmp_path / "notes.txt").write_text("no image")
    study = refused_study(tmp_path)
    assert (study is not None) == is_known
    if study is not None:
        assert study.header.patient_id == "P1"
        assert study.headers is not None
        (kept,) = read_source_headers(study.headers())
        assert kept.PatientID == "P1"


def test_of_a_study_without_uid_the_patient_is_told_and_no_header_kept(tmp_path: Path) -> None:
    SmallCt(count=2, attributes={"StudyInstanceUID": ""}).write(tmp_path)
    study = refused_study(tmp_path)
    assert study is not None
    assert (study.header.patient_id, study.headers) == ("P1", None)


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", gzip.compress(b"[]"), gzip.compress(b"{}")],
    ids=["empty", "no gzip", "a list", "an empty object"],
)
def test_damaged_headers_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"headers|format"):
        read_source_headers(data)


def test_headers_beyond_the_limit_are_an_error(tmp_path: Path) -> None:
    SmallCt().write(tmp_path)
    with pytest.raises(ValueError, match="more than"):
        read_source_headers(headers_of(tmp_path), longest=100)
