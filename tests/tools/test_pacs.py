"""A real archive, Orthanc: studies go to the agent as a scanner sends them, results come back.

Real series of several scanners, where the data is there; else phantoms.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from evaluation.world import Cloud, free_ports
from imaging.dicom.arrival import files_of
from tools.pacs import (
    EXPECTED,
    REMEDY,
    Site,
    describe,
    is_installed,
    measurement_groups,
    save,
    site,
    study_uid_of,
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not is_installed(), reason=f"needs Orthanc. {REMEDY}"),
]

SERIES = ("qin_lsc_0088", "lungfcp_01_0001", "cmb_crc_01068")


def scanned(site: Site, study: Path) -> None:
    """Send a study by dcmtk's storescu where it is installed: a sender that we did not write."""
    if shutil.which("storescu") is None:
        site.send(study)
        return
    images = [str(file) for file in files_of(study)]
    syntax = str(dcmread(images[0], stop_before_pixels=True).file_meta.TransferSyntaxUID)
    propose = {"1.2.840.10008.1.2.4.70": "-xs", "1.2.840.10008.1.2.4.80": "-xt",
               "1.2.840.10008.1.2.4.81": "-xu"}.get(syntax, "-xe")  # fmt: skip
    command = ["storescu", propose, "-aet", "SCANNER", "-aec", "OVERREAD", "127.0.0.1"]
    subprocess.run([*command, str(site.agent.port), *images], check=True, capture_output=True)


def of(objects: Sequence[Dataset], modality: str) -> list[Dataset]:
    found = [one for one in objects if one.Modality == modality]
    return sorted(found, key=lambda one: int(one.InstanceNumber))


def centres(report: Dataset) -> np.ndarray:
    """The points of the measurement groups, LPS mm."""
    points = [
        item.GraphicData
        for group in measurement_groups(report)
        for item in group.ContentSequence
        if item.ValueType == "SCOORD3D"
    ]
    return np.array(points, dtype=float).reshape(-1, 3)


def test_results_of_real_series_come_back_from_the_archive(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By C-STORE and by DICOMweb; an amendment follows and names its predecessor.

    The first study comes while the cloud is away: its report is provisional, and amended when the
    cloud is there.
    """
    monkeypatch.setattr("tools.pacs.ANSWER_S", 900.0)
    (port,) = free_ports(1)
    cloud = Cloud(tmp_path)
    cloud.address = f"127.0.0.1:{port}"
    try:
        with site(tmp_path, cloud.address, deadline_s=6.0) as running:
            studies = [shared_data / "ct" / name for name in SERIES]
            first = study_uid_of(studies[0])
            scanned(running, studies[0])
            found = running.results(first, lambda all_: len(of(all_, "SR")) == 1)
            assert of(found, "SR")[0].CompletionFlag == "PARTIAL"
            cloud.start()
            cloud.wait()
            for study in studies[1:]:
                scanned(running, study)
            for study in studies:
                uid, source = study_uid_of(study), dcmread(files_of(study)[0])
                found = running.results(uid, is_final)
                assert {one.Modality for one in found} >= EXPECTED
                for item in found:
                    assert item.PatientID == source.PatientID
                    assert item.StudyInstanceUID == source.StudyInstanceUID
                    assert item.SeriesInstanceUID != source.SeriesInstanceUID
                newest = of(found, "SR")[-1]
                box = np.array([dcmread(f).ImagePositionPatient for f in files_of(study)])
                heights = centres(newest)[:, 2]
                assert len(heights)
                assert (heights > box[:, 2].min() - 5).all()
                assert (heights < box[:, 2].max() + 5).all()
                assert describe([newest]).endswith("complete")
            before, *_, after = of(running.find(first), "SR")
            (named,) = after.PredecessorDocumentsSequence
            (series,) = named.ReferencedSeriesSequence
            (document,) = series.ReferencedSOPSequence
            assert named.StudyInstanceUID == first
            chain = {one.SOPInstanceUID for one in of(running.find(first), "SR")}
            assert document.ReferencedSOPInstanceUID in chain - {after.SOPInstanceUID}
            assert before.SOPInstanceUID in chain
            files = save(running.find(first), tmp_path / "saved")
            assert {file.suffix for file in files} == {".dcm", ".png", ".pdf"}
    finally:
        cloud.stop()


def is_final(objects: Sequence[Dataset]) -> bool:
    """Whether the newest report is final, and its other results have come."""
    reports = of(objects, "SR")
    final = bool(reports) and reports[-1].CompletionFlag == "COMPLETE"
    return final and {one.Modality for one in objects} >= EXPECTED
