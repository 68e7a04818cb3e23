"""The store of received instances: nothing is acknowledged that is not durable and sound."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pydicom import Dataset
from structlog.testing import capture_logs

from edge.agent.inbox import inspect_entry
from edge.dicom_in import received as module
from edge.dicom_in.identity import Reason, Refused, identify
from edge.dicom_in.incoming import Expected, Sender, Source
from edge.dicom_in.received import ReceivedStore, ReceiveMetrics
from edge.telemetry import EdgeTelemetry
from tests.edge.builders import Box
from tests.edge.dicom_in.senders import (
    IMAGES,
    changed,
    file_of,
    on_their_way,
    received,
    settings_in,
)
from tests.edge.dicom_in.senders import names as files_of
from tests.imaging.small_ct import SmallCt

SOURCE = Source("dicom", "SCANNER", "OVERREAD", "10.1.2.3")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def store(inbox: Path) -> ReceivedStore:
    return store_in(inbox)


def store_in(inbox: Path, free: Callable[[Path], int] = lambda _: 10**12) -> ReceivedStore:
    settings, metrics = settings_in(inbox.parent).receive, ReceiveMetrics(EdgeTelemetry())
    return ReceivedStore(inbox, settings, metrics, free_bytes=free)


def put(store: ReceivedStore, image: Dataset | bytes, sender: Sender | None = None) -> None:
    incoming = store.begin()
    content = image if isinstance(image, bytes) else file_of(image)
    for at in range(0, len(content), 1000):
        incoming.write(content[at : at + 1000])
    store.keep(incoming, Expected(), sender or Sender(SOURCE))


def refusal(store: ReceivedStore, *how: object) -> Reason:
    with pytest.raises(Refused) as refused:
        put(store, *how)  # type: ignore[arg-type]
    return refused.value.reason


@pytest.mark.parametrize(
    ("changes", "folders"),
    [
        ([{"SeriesInstanceUID": "1.2.3"}], 1),
        ([{"StudyInstanceUID": "1.2.3"}], 2),
        ([{"PatientID": "P2"}], 2),
        ([{"PatientID": "P1 "}], 1),
        # some scanners leave it empty in single images
        ([{"PatientID": ""}], 1),
        ([{"PatientID": ""}, {}, {"PatientID": ""}], 1),
    ],
)
def test_a_study_of_a_patient_has_a_folder(
    inbox: Path, store: ReceivedStore, changes: list[dict[str, str]], folders: int
) -> None:
    """Of two patients whose studies have one UID by mistake none is mixed with the other."""
    several = [{}, *changes, {}] if len(changes) == 1 else changes
    for image, attributes in zip(IMAGES[: len(several)], several, strict=True):
        put(store, changed(image, **attributes))
    assert len(received(inbox)) == folders


@pytest.mark.parametrize("what", ["series", "study"])
def test_a_folder_that_is_removed_is_made_again_and_its_instances_are_stored_again(
    inbox: Path, store: ReceivedStore, what: str
) -> None:
    """A series is removed where a study is requeued: it has other folders."""
    for _ in range(2):
        for image in IMAGES[:2]:
            put(store, image)
        assert list(received(inbox).values()) == [files_of(IMAGES[:2])]
        (folder,) = inbox.glob("*/*")
        assert (folder / ".received.json").exists()
        shutil.rmtree(folder if what == "series" else folder.parent)


def test_the_sidecar_says_who_sent_the_series_and_is_no_file_of_the_study(
    inbox: Path, store: ReceivedStore
) -> None:
    put(store, IMAGES[0])
    put(store, changed(IMAGES[1], SeriesInstanceUID="1.2.3"), Sender(replace(SOURCE, caller="B")))
    (name,) = received(inbox)
    other = json.loads((inbox / name / "1.2.3" / ".received.json").read_text())
    assert other["calling_ae"] == "B"
    sidecar = inbox / name / IMAGES[0].SeriesInstanceUID / ".received.json"
    values = json.loads(sidecar.read_text())
    assert datetime.fromisoformat(values.pop("first")) <= datetime.now(UTC)
    assert list(values) == ["way", "calling_ae", "called_ae", "peer"]
    assert Source(*values.values()) == SOURCE
    before = inspect_entry(inbox, name, set(os.listdir(inbox))).fingerprint
    sidecar.write_text("{}")
    assert inspect_entry(inbox, name, set(os.listdir(inbox))).fingerprint == before


def test_the_inbox_sees_the_series_and_nothing_that_is_on_its_way(
    inbox: Path, store: ReceivedStore
) -> None:
    box = Box(inbox)
    put(store, IMAGES[0])
    half = store.begin()
    half.write(b"half")
    assert box.names() == []
    box.clock.sleep(6.0)
    assert box.names() == list(received(inbox))
    half.discard()


def test_the_same_instance_again_is_success_without_a_second_file(
    inbox: Path, store: ReceivedStore
) -> None:
    """Also after a restart, or with other file meta information; other data are refused."""
    put(store, IMAGES[0])
    other_meta = changed(IMAGES[0], preamble=b"\1" * 128)
    (file,) = inbox.glob("*/*/*.dcm")
    before = file.stat()
    for again in (store, store_in(inbox)):
        put(again, IMAGES[0])
        put(again, other_meta)
        assert refusal(again, changed(IMAGES[0], KVP=99)) is Reason.CONFLICT
        assert [*inbox.glob("*/*/*.dcm")] == [file]
        assert file.stat().st_ino == before.st_ino
        assert on_their_way(inbox) == []


def test_the_log_says_how_many_images_of_a_sender_were_stored_already(store: ReceivedStore) -> None:
    with capture_logs() as logs:
        for sender in (Sender(SOURCE), Sender(SOURCE)):
            for image in IMAGES:
                put(store, image, sender)
            store.released(sender, complete=True)
            store.released(sender, complete=False)  # the association has ended
    (said,) = logs
    assert said["event"] == "images received again, stored already"
    assert (said["images"], said["caller"]) == (len(IMAGES), SOURCE.caller)


@pytest.mark.parametrize("moment", ["open", "rename"])
def test_a_folder_that_is_claimed_at_any_moment_loses_no_instance(
    tmp_path: Path, inbox: Path, store: ReceivedStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    put(store, IMAGES[0])
    (name,) = received(inbox)
    real, claims = module._rename_into, [lambda: (inbox / name).rename(tmp_path / "claimed")]

    def rename_into(*how: Any) -> int:
        if moment == "open" and claims:
            claims.pop()()
        descriptor = real(*how)
        if claims:
            claims.pop()()
        return descriptor

    monkeypatch.setattr(module, "_rename_into", rename_into)
    put(store, IMAGES[1])
    assert set(files_of(IMAGES[:2])) <= {path.name for path in tmp_path.rglob("*.dcm")}


def test_a_study_with_too_many_instances_is_refused(
    inbox: Path, store: ReceivedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_INSTANCES", 3)
    for image in IMAGES[:3]:
        put(store, image)
    assert refusal(store, IMAGES[3]) is Reason.TOO_MANY
    put(store, IMAGES[0])
    assert refusal(store_in(inbox), IMAGES[3]) is Reason.TOO_MANY


def test_an_instance_that_comes_while_the_disk_fills_up_is_dropped(inbox: Path) -> None:
    free = [2_000_000]
    store = store_in(inbox, lambda _: free[0])
    incoming = store.begin()
    incoming.write(bytes(4 << 20))
    free[0] = 900_000
    incoming.write(bytes(4 << 20))
    assert on_their_way(inbox) == []
    with pytest.raises(Refused, match="less than 1 MB are free") as refused:
        store.keep(incoming, Expected(), Sender(SOURCE))
    assert refused.value.reason is Reason.NO_ROOM


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize(("of", "call"), [(os, "fsync"), (Path, "rename")])
def test_an_instance_that_cannot_be_written_is_refused(
    inbox: Path,
    store: ReceivedStore,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    of: object,
    call: str,
) -> None:
    error = OSError(number, os.strerror(number))
    with monkeypatch.context() as patch:
        patch.setattr(of, call, Mock(side_effect=error))
        expected = Reason.FAULT if number == errno.EIO else Reason.NO_ROOM
        assert refusal(store, IMAGES[0]) is expected
    assert on_their_way(inbox) == []
    assert all(files == [] for files in received(inbox).values())
    put(store, IMAGES[0])
    assert list(received(inbox).values()) == [files_of(IMAGES[:1])]


def test_what_a_crash_left_is_removed_at_the_next_start(inbox: Path, store: ReceivedStore) -> None:
    half = inbox / ".receiving" / "0.part"
    half.write_bytes(b"half")
    assert on_their_way(inbox) == [half.name]
    put(store, IMAGES[0])
    empty = inbox / "1.2.3-00000000" / "1.2.4"
    empty.mkdir(parents=True)
    (empty / ".received.json").write_text("{}")
    store_in(inbox)
    assert on_their_way(inbox) == []
    assert list(received(inbox).values()) == [files_of(IMAGES[:1])]


def test_folders_within_folders_do_not_keep_the_store_from_starting(inbox: Path) -> None:
    subprocess.run(["mkdir", "-p", inbox / "d" / "/".join("d" * 1100)], check=True)
    store_in(inbox)
    assert (inbox / "d").is_dir()
    subprocess.run(["rm", "-r", inbox / "d"], check=True)  # pytest would not get to the end of it


def test_a_stopping_store_begins_nothing_and_keeps_what_is_whole(
    inbox: Path, store: ReceivedStore
) -> None:
    incoming = store.begin()
    incoming.write(file_of(IMAGES[0]))
    store.stop()
    store.keep(incoming, Expected(), Sender(SOURCE))
    assert refusal(store, IMAGES[1]) is Reason.STOPPING
    assert list(received(inbox).values()) == [files_of(IMAGES[:1])]


def marked(inbox: Path) -> bool:
    (name,) = received(inbox)
    return inspect_entry(inbox, name, set(os.listdir(inbox))).marked


def test_a_release_marks_what_one_sender_sent_alone(inbox: Path, store: ReceivedStore) -> None:
    """An instance after the mark takes it back."""
    sender = Sender(SOURCE)
    for image in IMAGES[:2]:
        put(store, image, sender)
    assert not marked(inbox)
    store.released(sender, complete=True)
    assert marked(inbox)
    put(store, IMAGES[2])
    assert not marked(inbox)


@pytest.mark.parametrize("why", ["shared", "refused", "restarted"])
def test_a_release_marks_nothing_that_may_lack_something(
    inbox: Path, store: ReceivedStore, why: str
) -> None:
    """Another sender shares it, an instance was refused, or it began before the start."""
    sender, other = Sender(SOURCE), Sender(SOURCE)
    put(store, IMAGES[0], sender)
    if why == "refused":
        assert refusal(store, b"no DICOM", sender) is Reason.UNREADABLE
    later = store_in(inbox) if why == "restarted" else store
    if why != "refused":
        put(later, IMAGES[1], other if why == "shared" else sender)
    later.released(sender, complete=True)
    later.released(other, complete=True)
    assert not marked(inbox)


def test_a_deflated_data_set_is_inflated_no_further_than_needed(
    store: ReceivedStore, inbox: Path
) -> None:
    image = SmallCt().images()[0]
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    image.PixelData = bytes(64 << 20)
    content = file_of(image)
    assert len(content) < 1 << 20
    put(store, content)
    (file,) = inbox.glob("*/*/*.dcm")
    assert identify(file).series == image.SeriesInstanceUID
