"""Every object is without an error for dicom-validator, which reads the DICOM standard itself.

The standard comes from dicom.nema.org, where it may be reached or where a folder has it:
``DICOM_STANDARD=DIR`` names one that ``validate_iods --standard-path DIR`` has filled. Without it,
the tables of modules and attributes that highdicom ships stand in: they have types, but neither
conditions, nor values, nor functional groups.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_description, tag_for_keyword

from edge.dicom_out.objects import make_objects
from tests.edge.dicom_out.studies import DEVICE, KINDS, write_reported, write_study

validator = pytest.importorskip("dicom_validator.validator.iod_validator")
dicom_info = pytest.importorskip("dicom_validator.validator.dicom_info")

FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)
CONTENT = "sr-document-content"
"""The module whose attributes depend on the type of each content item: on conditions."""


def _id(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"


def _known(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """The attributes of a module as dicom-validator has them, by tag, nested in sequences."""
    found: dict[str, Any] = {}
    for one in sorted(attributes, key=lambda one: len(one["path"])):
        if any(tag_for_keyword(word) is None for word in (*one["path"], one["keyword"])):
            continue  # it is retired
        place = found
        for keyword in one["path"]:
            place = place.setdefault(_id(keyword), {"name": keyword, "type": "3"})
            place = place.setdefault("items", {})
        name = dictionary_description(one["keyword"])
        place.setdefault(_id(one["keyword"]), {}).update(name=name, type=one["type"])
    return found


def _table(name: str) -> dict[str, Any]:
    text = (files("highdicom") / "_standard" / f"{name}.json").read_text()
    return dict(json.loads(text))


@cache
def tables_of_highdicom() -> Any:
    """The modules of the standard without conditions and values."""
    classes, iods = _table("sop_class_iod_map"), _table("iod_module_map")
    modules = {key: _known(one) for key, one in _table("module_attribute_map").items()}
    known = {
        uid: {
            "title": iod,
            "modules": {one["key"]: {"ref": one["key"], "use": one["usage"]} for one in iods[iod]},
            "group_macros": {},
        }
        for uid, iod in classes.items()
    }
    return dicom_info.DicomInfo({}, known, modules)


def standard(folder: Path) -> Any:
    """The newest edition of the standard in a folder."""
    from dicom_validator.spec_reader.edition_reader import EditionReader

    return EditionReader(folder).dicom_info_for_edition("local")


class Silent:
    """Says nothing: results are looked at."""

    def handle_validation_start(self, _result: Any) -> None: ...

    def handle_validation_result(self, _result: Any) -> None: ...


def errors_of(dataset: Dataset, info: Any, *, conditions: bool) -> list[str]:
    result = validator.IODValidator(dataset, info, error_handler=Silent()).validate()
    return [
        f"{module}: {tag} {error.code.name}"
        for module, errors in (result.module_errors or {}).items()
        for tag, error in errors.items()
        if conditions or not (module == CONTENT or set(tag.parents or ()) & set(FUNCTIONAL_GROUPS))
    ]


@pytest.fixture(scope="module", params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp(request.param)
    write_reported(write_study(folder / "study", request.param), folder / "report")
    return list(make_objects(folder / "report", DEVICE).files)


def test_every_object_is_valid_by_the_standard(objects: list[Path]) -> None:
    if "DICOM_STANDARD" not in os.environ:
        pytest.skip(
            "DICOM_STANDARD names no folder with an edition of the standard (dicom.nema.org)"
        )
    info = standard(Path(os.environ["DICOM_STANDARD"]))
    found = {file.name: errors_of(dcmread(file), info, conditions=True) for file in objects}
    assert not any(found.values()), found


def test_every_object_has_what_its_modules_require(objects: list[Path]) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    info = tables_of_highdicom()
    found = {file.name: errors_of(dcmread(file), info, conditions=False) for file in objects}
    assert len(found) == 7
    assert not any(found.values()), found


def test_an_attribute_that_is_missing_or_belongs_elsewhere_is_found(objects: list[Path]) -> None:
    (file,) = [one for one in objects if one.name == "report.dcm"]
    dataset = dcmread(file)
    del dataset.MIMETypeOfEncapsulatedDocument
    dataset.SliceThickness = 1
    found = errors_of(dataset, tables_of_highdicom(), conditions=False)
    assert len(found) == 2
