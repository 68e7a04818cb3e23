"""What a caller over HTTP may do wrong, and how its site is known."""

import contextlib
import gzip
import json
import math
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.callers import Caller
from cloud.inference_protocol import rest
from cloud.inference_protocol.rest import decode_request
from process.http import unbindable
from protos.errors import InvalidRequest
from protos.messages import SITE_KEY
from tests.cloud.inference_protocol.calling import (
    BOTH,
    KINDS,
    DetailedReader,
    address_of,
    rois,
    tritonclient,
)
from tests.cloud.running import SHAPE, RunningCloud, connected, noted, run_cloud, until
from tests.pki import make_pki

VOXELS = bytes([51]) * 512
LENGTH = "Inference-Header-Content-Length"
PATH = "/v2/models/mean/infer"
INPUT = {"name": "ROI", "datatype": "UINT8", "shape": [1, *SHAPE]}


@contextlib.contextmanager
def http_cloud(**settings: Any) -> Iterator[tuple[RunningCloud, httpx.Client]]:
    with (
        run_cloud(DetailedReader(), **{"http_address": "127.0.0.1:0", **settings}) as cloud,
        httpx.Client(base_url=f"http://{cloud.server.http_address}", timeout=60) as client,
    ):
        yield cloud, client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with http_cloud(max_batch=2) as (_, client):
        yield client


def binary(tail: bytes = VOXELS, **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A request with voxels behind its JSON: body and headers."""
    given = {**INPUT, "parameters": {"binary_data_size": 512}, **fields}
    text = json.dumps({"inputs": [given]}).encode()
    return text + tail, {LENGTH: str(len(text))}


def plain(**fields: Any) -> tuple[bytes, dict[str, str]]:
    """A request that is all JSON."""
    return json.dumps({"inputs": [{**INPUT, "data": [51] * 512, **fields}]}).encode(), {}


def whole(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {}


def test_a_request_in_json_alone_is_answered_in_json(client: httpx.Client) -> None:
    body, headers = plain()
    answer = client.post(PATH, content=body, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    given = {one["name"]: one for one in answer.json()["outputs"]}
    assert given["PROBABILITY"] == {
        "name": "PROBABILITY", "datatype": "FP64", "shape": [1, 1], "data": [0.2]
    }  # fmt: skip
    assert given["TEXTURE"]["data"] == ["ground glass"]
    assert given["MASK"]["shape"] == [1, *SHAPE]


BAD = {
    "no JSON": (b"{", {}),
    "not UTF-8": (b'{"id": "\xff"}', {}),
    "deep": (b"[" * 4000, {}),
    "a list": whole([1]),
    "no inputs": whole({}),
    "two inputs": whole({"inputs": [{**INPUT, "data": [1] * 512}] * 2}),
    "many inputs": whole({"inputs": [{**INPUT, "data": []}] * 17}),
    "a lone surrogate": (b'{"id": "\\ud800", "inputs": []}', {}),
    "a parameter that is a list": whole({"inputs": [], "parameters": {"priority": [1]}}),
    "a priority that is a text": whole({**json.loads(plain()[0]), "parameters": {"priority": "1"}}),
    "a huge timeout": whole({**json.loads(plain()[0]), "parameters": {"timeout": 2**70}}),
    "a huge shape": plain(shape=[2**31 - 1] * 4),
    "a shape beyond 64 bits": plain(shape=[2**80, *SHAPE]),
    "many dimensions": plain(shape=[1] * 1000),
    "two negative sides": plain(shape=[1, -8, -8, 8]),
    "a side that is a fraction": plain(shape=[1.0, *SHAPE]),
    "no ROI": plain(shape=[0, *SHAPE], data=[]),
    "too little data": plain(data=[51] * 511),
    "a value above 255": plain(data=[256] * 512),
    "a fraction": plain(data=[0.5] * 512),
    "a whole number that is written as a fraction": plain(data=[51.0] * 512),
    "a text": plain(data=["a" * 1000, *[51] * 511]),
    "mixed lists": plain(data=[[51] * 256, 51]),
    "no data": plain(data=None),
    "a size too small": binary(parameters={"binary_data_size": 511}),
    "a size too large": binary(parameters={"binary_data_size": 513}),
    "a negative size": binary(parameters={"binary_data_size": -512}),
    "a size that is a text": binary(parameters={"binary_data_size": "512"}),
    "bytes that are no input's": binary(tail=VOXELS + b"x"),
    "data and bytes": binary(data=[51] * 512),
    "a header length beyond the body": (plain()[0], {LENGTH: "100000"}),
    "a header length that is a word": (plain()[0], {LENGTH: "all"}),
    "shared memory": plain(parameters={"shared_memory_region": "r"}),
    "classification": whole({
        **json.loads(plain()[0]),
        "outputs": [{"name": "TEXTURE", "parameters": {"classification": 1}}],
    }),
    "an encoding that is not known": (plain()[0], {"Content-Encoding": "br"}),
    "no gzip": (plain()[0], {"Content-Encoding": "gzip"}),
    "half of gzip": (gzip.compress(plain()[0])[:-9], {"Content-Encoding": "gzip"}),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_body_is_refused_and_the_next_request_answered(
    client: httpx.Client, what: str
) -> None:
    body, headers = BAD[what]
    answer = client.post(PATH, content=body, headers=headers)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert 5 < len(answer.json()["error"]) < 400
    body, headers = binary()
    assert client.post(PATH, content=body, headers=headers).json()["outputs"][0]["data"] == [0.2]


def test_a_body_beyond_the_limit_is_too_large_packed_or_not(client: httpx.Client) -> None:
    huge = b" " * 1_000_000
    packed: dict[str, str] = {"Content-Encoding": "gzip"}
    for body, headers in ((huge, {}), (gzip.compress(huge), packed)):
        answer = client.post(PATH, content=body, headers=headers)
        assert answer.status_code == 413
        assert "send at most 2 ROIs (max_batch) as binary data" in answer.json()["error"]


def test_a_body_whose_last_part_is_too_much_is_too_large(client: httpx.Client) -> None:
    for size in range(20_000, 400_000, 20_000):  # somewhere here a part of it is the last one
        answer = client.post(PATH, content=b" " * size)
        assert answer.status_code in (400, 413)
        assert list(answer.json()) == ["error"]


def test_a_refused_body_is_not_received_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "DISCARDED_BYTES", 100_000)
    with http_cloud() as (cloud, client):
        with connected(cloud.server.http_address) as sender, contextlib.suppress(ConnectionError):
            sender.sendall(head(10**12))
            while True:  # until the connection is closed
                sender.sendall(b"x" * 10_000)
        assert client.get("/v2/health/ready").status_code == 200


def test_a_path_that_is_not_served_has_an_error_too(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v2/models/mean/infer", 405),
        ("GET", "/v2/models/mean/versions/9/config", 404),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_an_early_refusal_says_its_class_and_when_to_try_again(client: httpx.Client) -> None:
    body = json.dumps({**json.loads(plain()[0]), "parameters": {"timeout": 1}})
    answer = client.post(PATH, content=body)
    assert answer.status_code == 429
    assert answer.headers["overread-error"] == "DeadlineUnmeetable"
    assert int(answer.headers["retry-after"]) >= 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
fields = st.sampled_from(["inputs", "outputs", "parameters", "id", "name", "shape", "data"])
requests = st.dictionaries(
    fields, json_values | st.lists(st.dictionaries(fields, json_values, max_size=4), max_size=3)
)


@given(
    requests.map(lambda one: json.dumps(one).encode()) | st.binary(),
    st.none() | st.text() | st.integers(0, 60).map(str),
)
def test_whatever_a_body_holds_it_is_a_request_or_invalid(body: bytes, length: str | None) -> None:
    with contextlib.suppress(InvalidRequest):
        decode_request(body, length)


def test_a_stall_does_not_refuse_requests_of_several_rois_for_ever() -> None:
    """One ROI is read as a probe, even if the others are refused: then the estimate falls."""
    given = {**INPUT, "shape": [2, *SHAPE], "parameters": {"binary_data_size": 1024}}
    text = json.dumps({"inputs": [given], "parameters": {"timeout": 2_000_000}}).encode()
    with http_cloud(max_batch=2) as (cloud, client):
        batcher = cloud.server.batcher
        for n in (1, 2) * 20:  # a stall counts as a few times what was expected
            batcher.timing.latency.observe(n, 60.0)
            batcher.timing.interval.observe(n, 60.0)
        expected_s = batcher.timing.latency.bound_s(1)
        batcher._last_batch_s = -math.inf  # nothing was read for long
        answer = client.post(PATH, content=text + 2 * VOXELS, headers={LENGTH: str(len(text))})
        assert answer.headers["overread-error"] == "DeadlineUnmeetable"
        until(lambda: cloud.taken == 1)
        until(lambda: batcher.timing.latency.bound_s(1) < expected_s)
        assert cloud.counts("rois", "outcome") == {"DeadlineUnmeetable": 2}


def test_a_fault_of_the_program_is_one_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its details are in the log alone, and it is counted by its class, as in a study."""
    body, headers = plain()
    with http_cloud() as (cloud, client):
        monkeypatch.setattr(cloud.server.batcher, "reserve", lambda *_, **_more: 1 / 0)
        answer = client.post(PATH, content=body, headers=headers)
        words = "an internal error; the log of the service has it"
        assert (answer.status_code, answer.json()) == (500, {"error": words})
        assert cloud.counts("rois", "outcome") == {"ZeroDivisionError": 1}


def test_a_body_that_does_not_come_frees_its_place() -> None:
    with http_cloud(idle_timeout_s=0.2) as (cloud, client):
        with connected(cloud.server.http_address) as slow:
            slow.sendall(head(9))
            until(lambda: cloud.count("open_requests") == 1)
            assert b"400 Bad Request" in slow.recv(1000)
            until(lambda: cloud.count("open_requests") == 0)
        assert client.get("/v2/health/ready").status_code == 200


def head(size: int) -> bytes:
    """The head of a request whose body has ``size`` bytes."""
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("host", "settings", "caller"),
    [
        ("127.0.0.1", {"trusted_proxies": ("*",)}, Caller("north", may_stat=True)),
        ("127.0.0.1", {"stat_sites": ("east",)}, Caller("127.0.0.1", may_stat=False)),
        # as gRPC writes it: otherwise a machine would have two shares
        ("[::1]", {}, Caller("[::1]", may_stat=True)),
    ],
)
def test_a_site_names_itself_only_where_it_may(
    host: str, settings: dict[str, Any], caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unbindable(host.strip("[]"), 0):
        pytest.skip("no IPv6 here")
    seen = noted(monkeypatch, "cloud.inference_protocol.rest.named_caller")
    body = json.dumps({**json.loads(plain()[0]), "parameters": {"priority": 1}})
    with http_cloud(http_address=f"{host}:0", **settings) as (cloud, client):
        assert client.post(PATH, content=body, headers={SITE_KEY: "north"}).status_code == 200
        assert cloud.count("demoted_streams_total") == (not caller.may_stat)
    assert seen == [caller]


def test_the_site_is_the_name_in_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tritonclient with a certificate; without one nobody is admitted."""
    here = "subjectAltName=IP:127.0.0.1"
    pki = make_pki(tmp_path, server=("CN=server", here), client=("CN=client", here))
    files = {"cert": pki / "server.pem", "key": pki / "server.key", "ca": pki / "ca.pem"}
    seen = noted(monkeypatch, "cloud.inference_protocol.rest.named_caller")
    with run_cloud(DetailedReader(), **BOTH, tls=files) as cloud:
        own = (pki / "ca.pem", pki / "client.key", pki / "client.pem")
        for kind in KINDS:
            with tritonclient(kind, address_of(cloud, kind), *own) as call:
                assert call("infer", rois=rois(51))["outputs"]["PROBABILITY"] == [[0.2]]
        unknown = ssl.create_default_context(cafile=pki / "ca.pem")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://{cloud.server.http_address}/v2", verify=unknown)
    assert [one.site for one in seen] == ["client"]
