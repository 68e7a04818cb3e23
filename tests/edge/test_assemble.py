"""The pipeline as its settings put it together."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import structlog

from edge import assemble
from edge.assemble import open_pipeline
from edge.decide import Situation, decide
from edge.errors import BadSettings
from edge.escalation.client import Escalator, NoSecondReader
from edge.escalation.rois import cut_rois
from edge.link.channel import open_channel
from edge.link.estimate import LinkEstimate
from edge.link.link import Link
from edge.replay import EVENT
from edge.settings.core import EdgeSettings, load_settings
from imaging.dicom.writer import write_series
from imaging.errors import TooLarge
from imaging.preprocess import preprocess
from protos.deadline import Deadline
from tests.edge.builders import SHAPE, THRESHOLDS, FixedScreener, box, plan_of
from tests.edge.fake_cloud import FakeCloud, mutual_tls, read
from tests.evaluation.plain_chest import chest
from tests.pki import make_pki


@pytest.fixture(autouse=True)
def _fixed_screener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "open_configured", lambda *_, **__: FixedScreener(()))


def test_the_log_records_every_decision() -> None:
    situation = Situation((), THRESHOLDS, LinkEstimate(), 1.0, roi_bytes=48**3, max_rois=64)
    with open_pipeline(load_settings()) as pipeline, structlog.testing.capture_logs() as logs:
        assert pipeline.decide(situation, "key") == decide(situation)
    assert [log["event"] for log in logs] == [EVENT]


def test_studies_are_read_in_a_child_process_with_the_limits_of_the_settings(
    tmp_path: Path,
) -> None:
    write_series(chest(), tmp_path / "chest")
    large = tmp_path / "large.nii.gz"
    sitk.WriteImage(sitk.Image(512, 512, 1600, sitk.sitkInt16), str(large), useCompression=True)
    with open_pipeline(load_settings(read_memory_mb=500)) as pipeline:
        with pytest.raises(TooLarge):
            pipeline.read(large)
        study = pipeline.read(tmp_path / "chest")
        assert study.volume.hu.size == 0  # it stays in the child
        box = pipeline.preprocess(study.volume, tmp_path / "chest")
    np.testing.assert_array_equal(box.voxels, preprocess(chest()).voxels)


def test_the_fallback_answers_for_a_cloud_that_is_down() -> None:
    with FakeCloud() as gone:
        pass
    with FakeCloud() as other:
        settings = load_settings(cloud__address=gone.address, cloud__fallback=other.address)
        with open_pipeline(settings) as pipeline:
            rois = cut_rois(plan_of(0.4), box(), SHAPE)
            came = pipeline.second_reader.read_rois(rois, Deadline.after(60.0), "key")
    assert (list(came.verdicts), came.reason) == ([0], "")


def test_a_fallback_without_a_cloud_is_logged() -> None:
    settings = load_settings(cloud__fallback="localhost:50051")
    with structlog.testing.capture_logs() as logs, open_pipeline(settings) as pipeline:
        assert isinstance(pipeline.second_reader, NoSecondReader)
    assert [log["event"] for log in logs] == ["cloud.fallback has no effect without cloud.address"]


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    names = {name: (f"CN={name}", "subjectAltName=IP:127.0.0.1") for name in ("service", "edge")}
    return make_pki(tmp_path, **names)


def test_an_edge_without_a_certificate_gets_no_verdict(pki: Path) -> None:
    with FakeCloud(credentials=mutual_tls(pki)) as cloud:
        for settings in (load_settings(), load_settings(cloud__tls__ca=pki / "ca.pem")):
            with open_channel(cloud.address, settings) as channel:
                second = Escalator(channel, Link(), load_settings(reserve_s=0.1))
                came = read(second, 0.5, budget_s=1.0)
            assert came.verdicts == {}
            assert came.reason.startswith(("the cloud cannot be reached", "the time ran out"))


def settings_with(pki: Path, key: str = "edge", **more: object) -> EdgeSettings:
    """Of an edge with a certificate, for a cloud that is not asked."""
    files = {"ca": pki / "ca.pem", "cert": pki / "edge.pem", "key": pki / f"{key}.key"}
    return load_settings(cloud__address="localhost:1", cloud__tls=files, **more)


def test_the_log_names_the_mistake_with_tls_at_the_start(pki: Path) -> None:
    """And so does the report of a study: gRPC says "Socket closed"."""
    with FakeCloud(credentials=mutual_tls(pki)) as cloud:
        ca = {"cloud__tls__ca": pki / "ca.pem"}
        settings = load_settings(cloud__address=cloud.address, deadline_s=600.0, **ca)
        with structlog.testing.capture_logs() as logs, open_pipeline(settings) as pipeline:
            reason = pipeline.second_reader.estimate().reason
    mistake = (
        f"the service at {cloud.address} requires a client certificate: set cloud.tls.cert and"
        " cloud.tls.key"
    )
    assert reason == f"the cloud cannot be reached ({mistake})"
    down = next(log for log in logs if log["event"] == "cloud is down")
    assert (down["log_level"], down["cloud"], down["reason"]) == ("warning", cloud.address, mistake)


def test_a_wrong_pair_stops_the_start(pki: Path) -> None:
    with pytest.raises(BadSettings, match=r"service\.key cannot be used together"):
        open_pipeline(settings_with(pki, key="service")).__enter__()


def test_a_certificate_that_expires_soon_is_logged(pki: Path) -> None:
    settings = settings_with(pki, cloud__health_check_s=0.0)
    with structlog.testing.capture_logs() as logs, open_pipeline(settings):
        pass
    soon = [log["reason"] for log in logs if log["event"] == "a certificate expires soon"]
    assert [reason.split(" expires on ")[0] for reason in soon] == [
        f"cloud.tls.ca = {pki / 'ca.pem'}",
        f"cloud.tls.cert = {pki / 'edge.pem'}",
    ]
