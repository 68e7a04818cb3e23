"""Objects that are sent to a real archive arrive there, and are found."""

from pathlib import Path

import pytest

from edge.dicom_out.deliver import open_target
from edge.dicom_out.exports import ExportStore
from edge.dicom_out.targets import uids_of
from tests.edge.dicom_out.sites import deliveries, pacs_at, uids, web_at
from tools.pacs import REMEDY, is_installed, orthanc


@pytest.mark.long
@pytest.mark.skipif(not is_installed(), reason=f"needs Orthanc. {REMEDY}")
def test_orthanc_gets_objects_by_c_store_and_by_stow_rs(tmp_path: Path) -> None:
    """Each way brings the objects of one study; sending again adds none."""
    with orthanc(tmp_path, DicomAlwaysAllowFind=True) as archive:
        by_dicom = pacs_at(archive.dicom_port, called_ae=archive.ae_title)
        by_web = web_at(archive.dicomweb_url)
        assert open_target(by_dicom).echo() == open_target(by_web).echo() == ""
        for target in (by_dicom, by_web):
            root = tmp_path / target.name
            root.mkdir()
            with deliveries(root, target) as site:
                key = site.report("a")
                site.run()
                assert site.steps(target.name) == ["sent"]
                for uid in uids(key, 1):
                    (found,) = archive.found(uid)
                    assert found["00080018"]["Value"] == [uid]
                places = {file.name: uids_of(file) for file in (root / "outbox").rglob("*.dcm")}
                assert open_target(target)._has(places) == {*places}
                nowhere = dict.fromkeys(places, ("1.2.3", "1.2.4", "1.2.5"))
                assert open_target(target)._has(nowhere) == set()
                before = archive.get("statistics")["CountInstances"]
                site.store.extension(ExportStore).resend(key, (1,), (target.name,))
                site.run()
                assert site.steps(target.name) == ["sent"]
                assert archive.get("statistics")["CountInstances"] == before
