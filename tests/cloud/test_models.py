"""Sending a model to the edges: an offer, its file, and what is refused."""

import hashlib
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from models.runtime.errors import UntrustedManifest
from protos import overread_pb2 as pb
from protos import overread_pb2_grpc
from protos.errors import Draining, NothingOffered, Overloaded, OverreadError, Unreachable
from tests.cloud.running import make_roi, make_stream, read, run_cloud, typed, until
from tests.edge.models.signed import NAME, Signed, offering, responses_of, signed


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return signed(tmp_path_factory.mktemp("hospital"))


def asked(cloud: Any, **request: Any) -> list[pb.GetModelResponse]:
    with cloud.stub() as stub, typed():
        return list(stub.GetModel(pb.GetModelRequest(**request), timeout=60))


def test_the_model_file_is_sent_in_xz_with_its_signed_manifest(hospital: Signed) -> None:
    with offering(hospital) as cloud:
        offer, *chunks = responses_of(cloud)
    assert offer.offer.manifest == (hospital.folder / "manifest.toml").read_bytes()
    assert offer.offer.signatures == (hospital.folder / "manifest.sig").read_bytes()
    packed = b""
    for chunk in chunks:
        assert chunk.chunk.offset == len(packed)
        assert len(chunk.chunk.data) <= 64 * 1024
        packed += chunk.chunk.data
    assert offer.offer.bytes == len(packed)
    assert offer.offer.sha256 == hashlib.sha256(packed).digest()
    file = hospital.folder / f"{NAME}.onnx"
    assert lzma.decompress(packed, lzma.FORMAT_XZ) == file.read_bytes()
    assert len(packed) < 0.9 * file.stat().st_size


def test_only_what_the_caller_lacks_is_sent(hospital: Signed) -> None:
    with offering(hospital) as cloud:
        whole = responses_of(cloud)
        offer = whole[0].offer
        parts = {offer.sha256: 100, b"x" * 32: 7}
        held = [pb.HeldModel(sha256=sha256, bytes=size) for sha256, size in parts.items()]
        rest = asked(cloud, kind=pb.MODEL_KIND_SCREENING, held=held)
        same = asked(cloud, kind=pb.MODEL_KIND_SCREENING, version=offer.version)
    assert sum(len(r.chunk.data) for r in rest) == offer.bytes - 100
    assert rest[1].chunk.offset == 100
    assert len(same) == 1
    assert not same[0].offer.manifest


def refusal(cloud: Any, **request: Any) -> OverreadError:
    with pytest.raises(OverreadError) as caught:
        asked(cloud, **request)
    return caught.value


def test_without_an_offer_and_for_other_kinds_the_error_says_what_to_do(hospital: Signed) -> None:
    with run_cloud() as cloud:
        error = refusal(cloud, kind=pb.MODEL_KIND_SCREENING)
    assert isinstance(error, NothingOffered)
    assert "offered_model" in error.reason
    with offering(hospital) as cloud:
        assert isinstance(refusal(cloud, kind=99), NothingOffered)


def test_a_few_transfers_at_a_time_and_none_while_the_cloud_stops(hospital: Signed) -> None:
    with offering(hospital, max_transfers=1) as cloud:
        transfers = cloud.server.service.models
        with transfers._counted():  # the model is small: a real one may end before the next begins
            assert isinstance(refusal(cloud, kind=pb.MODEL_KIND_SCREENING), Overloaded)
        assert len(asked(cloud, kind=pb.MODEL_KIND_SCREENING)) > 2
        assert transfers.open == 0
        cloud.drain()
        assert isinstance(refusal(cloud, kind=pb.MODEL_KIND_SCREENING), (Draining, Unreachable))


def test_a_caller_that_reads_nothing_loses_its_place(hospital: Signed) -> None:
    """It would not take an error: its call is abandoned."""
    window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    with (
        offering(hospital, max_transfers=1, transfer_timeout_s=0.2) as cloud,
        grpc.insecure_channel(cloud.address, options=window) as channel,
    ):
        request = pb.GetModelRequest(kind=pb.MODEL_KIND_SCREENING)
        silent = overread_pb2_grpc.OverreadStub(channel).GetModel(request, timeout=60)
        next(silent)
        until(lambda: cloud.server.service.models.open == 0)


def test_a_model_waits_for_inference_requests_too(
    hospital: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.models.PAUSE_S", 60.0)
    roi = {"name": "ROI", "datatype": "UINT8", "shape": [1, 16, 16, 16], "data": [51] * 16**3}
    small = offering(hospital, roi_shape=(16,) * 3, http_address="127.0.0.1:0")
    with small as cloud, ThreadPoolExecutor(1) as pool:
        cloud.reader.gate.clear()
        url = f"http://{cloud.server.http_address}/v2/models/mean/infer"
        answer = pool.submit(httpx.post, url, json={"inputs": [roi]}, timeout=30)
        until(lambda: cloud.taken == 1)
        with cloud.stub() as stub:
            sent = stub.GetModel(pb.GetModelRequest(kind=pb.MODEL_KIND_SCREENING), timeout=2)
            with pytest.raises(grpc.RpcError):
                list(sent)
            assert sent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        cloud.reader.gate.set()
        assert answer.result().status_code == 200


def test_verdicts_come_while_a_model_is_sent(hospital: Signed) -> None:
    with offering(hospital, roi_shape=(16,) * 3) as cloud, cloud.stub() as stub:
        slow = stub.GetModel(pb.GetModelRequest(kind=pb.MODEL_KIND_SCREENING), timeout=60)
        next(slow)
        answers = read(cloud, make_stream(make_roi(1), make_roi(2)))
        assert answers[-1].answered == 2
        assert sum(1 for _ in slow) > 2


def test_an_offer_that_no_edge_would_take_stops_the_start(tmp_path: Path) -> None:
    one = signed(tmp_path)
    (one.folder / "manifest.sig").unlink()
    with pytest.raises(UntrustedManifest, match="overread-models sign"), offering(one):
        pass
