"""Fetching a model over real gRPC: whole, broken off, damaged, unsigned, and killed anywhere."""

import hashlib
import lzma
import os
import signal
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge.audit import Event
from edge.errors import BadSettings
from edge.folders import exclusive
from edge.models.fetch import ModelStep, fetch
from edge.models.folder import FetchFailed, RefusedModel, UpdatesOff
from edge.run import site_of
from edge.settings.core import load_settings
from edge.trail.verify import verify
from models.runtime.package import MAX_MODEL, read_package
from protos import overread_pb2 as pb
from protos.errors import NothingOffered
from tests.cloud.running import RunningCloud, run_cloud
from tests.edge.models.signed import (
    NAME,
    SMALL,
    Edge,
    Signed,
    edge,
    offering,
    refitted,
    responses_of,
    sending,
    signed,
)
from tests.edge.running_agent import PATIENCE_S, PROCESSES

CHUNK = 64 * 1024
Change = Callable[[pb.ModelOffer], None]


@pytest.fixture(scope="module")
def honest(hospital: Signed) -> Iterator[RunningCloud]:
    with offering(hospital) as cloud:
        yield cloud


@pytest.fixture
def site(hospital: Signed, honest: RunningCloud, tmp_path: Path) -> Edge:
    """An edge that has fetched nothing yet."""
    return edge(tmp_path, honest.address, hospital.key)


@pytest.fixture(scope="module")
def sent(honest: RunningCloud) -> list[pb.GetModelResponse]:
    """All that it sends."""
    return responses_of(honest)


def events(site: Edge) -> list[str]:
    return [one.event for one in site.trail()]


def assert_nothing_is_left(site: Edge) -> None:
    """No file of a refused model is there, and none of it is in shadow."""
    assert [one.name for one in site.models.rglob("*") if one.name != ".lock"] == []
    with site.store() as store:
        assert store.choice().shadow is None
        assert store.packages() == []


def assert_refused(site: Edge, sent: list[pb.GetModelResponse], says: str) -> None:
    """What is sent is refused for this reason, and nothing of it is left."""
    with sending(sent) as address, pytest.raises(RefusedModel, match=says):
        fetch(site.at(address), user="a")
    assert_nothing_is_left(site)


def test_a_model_comes_whole_byte_for_byte_and_is_in_shadow(hospital: Signed, site: Edge) -> None:
    steps = list[tuple[ModelStep, bool]]()
    found = fetch(site.site, user="anna", on_step=lambda *step: steps.append(step))
    again = fetch(site.site, user="anna")
    assert found.new
    assert (again.new, again.bytes, again.version) == (False, 0, found.version)
    folder = site.models / found.version
    for name in ("screening-int8.onnx", "manifest.toml", "manifest.sig"):
        assert (folder / name).read_bytes() == (hospital.folder / name).read_bytes()
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    with site.store() as store:
        (package,) = store.packages()
    assert (site.choice.shadow, package.version) == (found.version,) * 2
    assert package.engine
    assert steps == list(product(ModelStep, (False, True)))
    records = site.trail()
    assert [one.event for one in records] == [Event.MODEL_FETCHED, Event.MODEL_SHADOWED]
    assert records[0].fields["sha256"] == read_package(NAME, hospital.folder).model.sha256
    assert records[0].fields["user"] == "anna"
    assert records[0].fields["signed_by"].startswith("hospital (")


def test_a_newer_model_takes_the_place_of_the_one_in_shadow(hospital: Signed, site: Edge) -> None:
    """The one that nobody needs any more is removed."""
    with offering(hospital, SMALL) as cloud:
        small = fetch(site.at(cloud.address), user="a").version
    assert (site.models / small / f"{SMALL}.onnx").is_file()
    new = fetch(site.site, user="a").version
    assert [one.name for one in site.models.iterdir() if one.is_dir()] == [new]
    with site.store() as store:
        assert [one.version for one in store.packages()] == [new]


@pytest.mark.parametrize(
    ("then", "says"), [(grpc.StatusCode.UNAVAILABLE, "fetch again"), (None, "ended before")]
)
def test_a_transfer_that_broke_off_is_continued(
    then: grpc.StatusCode | None, says: str, site: Edge, sent: list[pb.GetModelResponse]
) -> None:
    total = sent[0].offer.bytes
    with sending(sent[:4], then) as address, pytest.raises(FetchFailed, match=says):
        fetch(site.at(address), user="a")
    assert events(site) == []
    assert fetch(site.site, user="a").bytes == total - 3 * CHUNK


def test_a_damaged_transfer_is_discarded_and_recorded(
    site: Edge, sent: list[pb.GetModelResponse]
) -> None:
    chunk = pb.ModelChunk(data=bytes(CHUNK))
    damaged = [sent[0], pb.GetModelResponse(chunk=chunk), *sent[2:]]
    assert_refused(site, damaged, "another hash than was offered")
    last = site.trail()[-1]
    assert last.event == Event.MODEL_REFUSED
    assert last.fields["version"] == sent[0].offer.version
    assert "another hash" in last.fields["reason"]


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (lzma.compress(b"another model"), "another hash than in the manifest"),
        (b"no xz at all", "cannot be unpacked"),
        (lzma.compress(b"x" * 1000)[:-30], "incomplete"),
        (lzma.compress(bytes(MAX_MODEL + 1)), "more than 67108864 bytes"),
    ],
)
def test_what_is_not_the_file_of_the_manifest_is_refused(
    packed: bytes, says: str, site: Edge, sent: list[pb.GetModelResponse]
) -> None:
    """The hash of what is sent is not signed: that of the file is."""
    offer = pb.ModelOffer.FromString(sent[0].offer.SerializeToString())
    offer.bytes, offer.sha256 = len(packed), hashlib.sha256(packed).digest()
    chunk = pb.ModelChunk(data=packed)
    responses = [pb.GetModelResponse(offer=offer), pb.GetModelResponse(chunk=chunk)]
    assert_refused(site, responses, says)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_has_the_name_of_a_version_and_is_no_folder_is_replaced(
    hospital: Signed, site: Edge, kind: str, tmp_path: Path
) -> None:
    place = site.models / read_package(NAME, hospital.folder).version
    place.parent.mkdir(exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        place.write_text("x")
    else:
        place.symlink_to(elsewhere)
    assert fetch(site.site, user="a").new
    assert place.is_dir()
    assert not place.is_symlink()
    assert list(elsewhere.iterdir()) == []


WRONG: list[tuple[Change, str]] = [
    (lambda offer: offer.__setattr__("bytes", 2**40), "expected at most"),
    (lambda offer: offer.__setattr__("bytes", 0), "expected at most"),
    (lambda offer: offer.__setattr__("sha256", b"x"), "a hash of 1"),
    (lambda offer: offer.__setattr__("manifest", b"x" * 300_000), "a manifest of more than"),
    (lambda offer: offer.__setattr__("version", "../../evil"), "is no version"),
    (lambda offer: offer.__setattr__("version", "another-version"), "offered was another"),
    (lambda offer: offer.__setattr__("name", "hybrid-int8"), "is of kind .hybrid."),
    (lambda offer: offer.__setattr__("manifest", offer.manifest + b" "), "UntrustedManifest"),
    (lambda offer: offer.__setattr__("signatures", b""), "UntrustedManifest"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_an_offer_that_is_wrong_is_refused_before_anything_is_stored(
    change: Change, says: str, site: Edge, sent: list[pb.GetModelResponse]
) -> None:
    copy = pb.GetModelResponse.FromString(sent[0].SerializeToString())
    change(copy.offer)
    assert_refused(site, [copy, *sent[1:]], says)
    assert events(site) == [Event.MODEL_REFUSED]


@pytest.mark.parametrize(
    ("chunk", "says"),
    [
        ({"offset": 9, "data": b"x"}, "1 bytes from 9 came"),
        ({"data": b""}, "0 bytes from 0"),
        ({"data": bytes(11)}, "11 bytes from 0 came, expected at most 10 from 0"),
        (None, "no offer first"),
    ],
)
def test_a_chunk_that_is_not_the_next_one_is_refused(
    chunk: dict[str, Any] | None, says: str, site: Edge, sent: list[pb.GetModelResponse]
) -> None:
    offer = pb.GetModelResponse.FromString(sent[0].SerializeToString())
    offer.offer.bytes = 10
    odd = [pb.GetModelResponse(chunk=pb.ModelChunk(**chunk or {}))]
    assert_refused(site, odd if chunk is None else [offer, *odd], says)


def test_without_keys_or_a_cloud_no_model_is_taken(hospital: Signed, tmp_path: Path) -> None:
    site = edge(tmp_path, "127.0.0.1:1", None)
    with pytest.raises(UpdatesOff, match=r"set models\.keys"):
        fetch(site.site, user="a")
    settings = load_settings(**site.settings.model_dump(exclude={"models", "cloud"}),
                             models__keys=(hospital.key,))  # fmt: skip
    with pytest.raises(UpdatesOff, match="set cloud"):
        fetch(site_of(settings), user="a")
    with pytest.raises(
        BadSettings, match=r"models\.fetch requires cloud\.address, and models\.keys"
    ):
        load_settings(models__fetch=True, cloud__address="127.0.0.1:1")


def test_a_cloud_without_a_model_and_no_cloud_at_all_are_said(site: Edge) -> None:
    with run_cloud() as cloud, pytest.raises(FetchFailed, match="offered_model") as caught:
        fetch(site.at(cloud.address), user="a")
    assert NothingOffered.words in str(caught.value)
    with pytest.raises(FetchFailed, match="cannot be reached"):
        fetch(site.at(cloud.address), user="a")


def test_one_process_fetches_at_a_time(site: Edge) -> None:
    site.models.mkdir()
    with exclusive(site.models / ".lock"), pytest.raises(FetchFailed, match="another fetch runs"):
        fetch(site.site, user="a")


def test_the_model_of_the_settings_is_not_fetched_again(tmp_path: Path) -> None:
    """Signed and offered as it is, it is what the edge has."""
    same = signed(tmp_path / "as-shipped", lambda text: text)
    with offering(same) as cloud:
        site = edge(tmp_path, cloud.address, same.key)
        found = fetch(site.site, user="a")
    assert (found.new, found.bytes) == (False, 0)


def test_a_model_that_no_engine_opens_is_refused(tmp_path: Path) -> None:
    """It is signed, and fails in a process of its own."""
    odd = signed(tmp_path / "odd", lambda text: refitted(text).replace("report = ", "rapport = "))
    with offering(odd) as cloud:
        site = edge(tmp_path, cloud.address, odd.key)
        with pytest.raises(RefusedModel, match="cannot be used here: UnfitModel"):
            fetch(site.site, user="a")
    assert_nothing_is_left(site)


def fetch_until(site: Edge, crash: tuple[ModelStep, bool]) -> None:
    """Fetch in this process, which kills itself at a step."""

    def on_step(step: ModelStep, durable: bool) -> None:
        if (step, durable) == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    fetch(site.site, user="a", on_step=on_step)


@pytest.mark.long
def test_a_fetch_that_is_killed_at_any_step_is_continued(hospital: Signed, site: Edge) -> None:
    """Never is there half a file under its name, nor a record too many or too few."""
    for step, durable in product(ModelStep, (False, True)):
        process = PROCESSES.Process(target=fetch_until, args=(site, (step, durable)))
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL, (step, durable)
        for file in site.models.glob("*/*.onnx"):
            assert file.read_bytes() == (hospital.folder / file.name).read_bytes()
        with site.store() as store:
            known = store.packages()
        for package in known:
            assert (site.models / package.version / "screening-int8.onnx").is_file()
    assert not fetch(site.site, user="a").new
    assert events(site) == [Event.MODEL_FETCHED, Event.MODEL_SHADOWED]
    assert verify(site.folders.trail, site.site.database).broken is None
