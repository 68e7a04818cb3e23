"""``overread-edge doctor``: each thing that is wrong is named, with what to do."""

import errno
import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from edge.database import FullDisk
from edge.doctor import RESERVE_BYTES
from edge.folders import exclusive
from edge.run import site_of
from edge.store.repair import open_or_replace
from evaluation.world import settings_in
from models.runtime.signatures import make_keys
from tests.edge.agent.test_adopt import empty, noise, work
from tests.edge.builders import nothing, put_all
from tests.edge.fake_cloud import FakeCloud, free_port, mutual_tls
from tests.edge.running_agent import command, database, sql
from tests.pki import make_pki


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which the agent has read, refused and left pending."""
    (tmp_path / "inbox").mkdir(mode=0o700)
    put_all(tmp_path / "inbox", a="x", b="bad", c="pending")
    work(tmp_path)
    return tmp_path


def doctor(root: Path, *more: str) -> dict[str, list[tuple[str, str]]]:
    """Level and text of the results by what was checked; the exit status says if any is wrong."""
    result = command(root, "doctor", "--json", lines=more)
    found: list[dict[str, Any]] = json.loads(result.stdout)
    checked: dict[str, list[tuple[str, str]]] = {}
    for one in found:
        checked.setdefault(one["what"], []).append((one["level"], one["text"]))
    assert result.exit_code == bool(wrong(checked))
    return checked


def wrong(checked: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [(what, t) for what, results in checked.items() for lvl, t in results if lvl == "WRONG"]


def test_nothing_is_wrong_on_a_sound_machine(root: Path) -> None:
    checked = doctor(root)
    assert wrong(checked) == []
    assert checked["agent"] == [("note", "does not run")]
    assert checked["cloud"] == [("note", "not set: no second reading")]
    assert checked["receiving"][0][0] == "note"
    assert checked["studies"] == [("note", "1 are refused: overread-edge queue shows why")]
    assert [level for level, _ in checked["trail"]] == ["ok"]
    assert "records in 1 files are sound; the last is " in checked["trail"][0][1]
    assert checked["model"][1][1].startswith("models.keys is not set")
    assert checked["model"][0][0] == "ok"
    assert "screening-int8" in checked["model"][0][1]


def test_nothing_is_wrong_before_the_first_start(tmp_path: Path) -> None:
    assert wrong(doctor(tmp_path)) == []
    assert not (tmp_path / "state").exists()


def test_a_full_disk_is_named_and_how_much_to_free(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says only that input or output failed."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    no_room = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    usage = Mock(free=0)
    monkeypatch.setattr("edge.database.shutil.disk_usage", lambda _folder: usage)
    monkeypatch.setattr("edge.checks.tempfile.TemporaryFile", Mock(side_effect=no_room))
    monkeypatch.setattr("edge.database.sqlite3.connect", Mock(side_effect=error))
    says = f"{root / 'state'}: the disk is full (0.0 MB free), make at least 100 MB free"
    found = wrong(doctor(root))
    assert ("state_dir", says) in found
    assert ("database", says) in found
    site = site_of(settings_in(root))
    with pytest.raises(FullDisk, match="make at least 100 MB free"):
        open_or_replace(site.database, site.schema, nothing)


def test_people_get_a_line_for_each_check(root: Path) -> None:
    line, *_ = command(root, "doctor").stdout.splitlines()
    assert line.split() == ["ok", "settings", "from", str(root / "edge.toml")]


def lose_pending(root: Path) -> None:
    sql(database(root), "DELETE FROM pending")


def block_outbox(root: Path) -> None:
    shutil.rmtree(root / "outbox")
    (root / "outbox").write_text("mine")


def cut_trail(root: Path) -> None:
    (file,) = (root / "state" / "trail").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[4:]))


SPOILED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "state": (lambda root: (root / "state").chmod(0o755), "access", "state can be read by others"),
    "inbox": (lambda root: (root / "inbox").chmod(0o777), "access", "open to every user"),
    "report": (lambda root: (root / "outbox" / "a").chmod(0o755),
               "access", "1 reports can be read by every user"),
    "noise": (lambda root: noise(database(root)),
              "database", "not a database: restart the agent, which sets what is"),
    "empty": (lambda root: empty(database(root)),
              "studies", "3 studies in the folders have no row"),
    "pending": (lose_pending, "reports", "requeue c"),
    "outbox": (block_outbox, "outbox", "Not a directory"),
    "folders": (lambda root: shutil.rmtree(root / "state" / "work"),
                "studies", "work missing: start the agent, which makes it"),
    "trail": (cut_trail, "trail", "jsonl, line 4"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "what", "said"), SPOILED.values(), ids=SPOILED.keys())
def test_what_is_wrong_is_named(
    root: Path, spoil: Callable[[Path], object], what: str, said: str
) -> None:
    spoil(root)
    assert [text for one, text in wrong(doctor(root)) if one == what and said in text] != []


def test_a_full_disk_is_told_before_it_is_full(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pending reads may grow to their limit, and studies and reports need room beside them."""
    free = Mock(free=RESERVE_BYTES + 2_000_000_000 - 1)
    monkeypatch.setattr("edge.doctor.shutil.disk_usage", lambda _path: free)
    ((_, text),) = wrong(doctor(root))
    assert text.startswith("3.0 GB free for state_dir, expected 3.0 GB; make room")
    assert wrong(doctor(root, "pending.max_mb = 1000.0")) == []


def test_a_damaged_database_that_was_set_aside_is_a_note(root: Path) -> None:
    noise(database(root))
    work(root)
    checked = doctor(root)
    assert "was damaged and set aside" in checked["database"][0][1]


def test_who_signed_the_models_is_named(root: Path) -> None:
    _, public = make_keys(root, "hospital")
    ((what, text),) = wrong(doctor(root, f'models.keys = ["{public}"]'))
    assert what == "model"
    assert text.startswith("UntrustedManifest: ")
    assert str(public) in text


@pytest.mark.parametrize(
    ("lines", "what", "said"),
    [(['screening_model = "screening-int9"'], "model", "screening-int9"),
     (['cloud.address = "127.0.0.1:1"', 'cloud.tls.ca = "no.pem"'], "cloud", "no.pem")],
)  # fmt: skip
def test_a_file_of_the_settings_that_is_missing_is_named(
    root: Path, lines: list[str], what: str, said: str
) -> None:
    ((name, text),) = wrong(doctor(root, *lines))
    assert (name, said in text) == (what, True)


def test_each_of_several_addresses_is_asked(root: Path) -> None:
    """The agent uses those that answer, so only this shows that one is wrong."""
    absent = f"127.0.0.1:{free_port()}"
    with FakeCloud() as cloud:
        checked = doctor(root, f'cloud.address = "{cloud.address},{absent}"')
    (well, text), (wrong, reason) = checked["cloud"]
    assert (well, wrong) == ("ok", "WRONG")
    assert text.startswith(f"{cloud.address} answers")
    assert reason.startswith(f"{absent}: ")


def test_a_cloud_that_answers_is_well_and_a_mistake_with_tls_is_named(root: Path) -> None:
    """With mutual TLS; and without the edge's own certificate."""
    (root / "pki").mkdir()
    pki = make_pki(root / "pki", service=("CN=service", "subjectAltName=IP:127.0.0.1"))
    kinds = {"ca": "ca.pem", "cert": "service.pem", "key": "service.key"}
    files = [f'cloud.tls.{kind} = "{pki / name}"' for kind, name in kinds.items()]
    with FakeCloud(credentials=mutual_tls(pki)) as cloud:
        address = f'cloud.address = "{cloud.address}"'
        checked = doctor(root, address, *files)
        assert wrong(checked) == []
        assert checked["cloud"][-1][1].endswith("encryption: mutual TLS")
        checked = doctor(root, address, files[0])
    assert "requires a client certificate: set cloud.tls.cert and" in checked["cloud"][-1][1]


def test_it_changes_nothing(root: Path) -> None:
    def look() -> list[tuple[str, int, int]]:
        tops = ("outbox", "state/work", "state/done", "state/quarantine")
        found = [path for top in tops for path in (root / top).rglob("*")]
        return sorted((str(p), p.stat().st_mode, p.stat().st_mtime_ns) for p in found)

    before = look()
    doctor(root)
    assert look() == before
    assert os.listdir(root / "inbox") == [".overread.lock"]


def test_a_port_for_studies_that_is_taken_or_serves_nobody_is_wrong(root: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        address = f"0.0.0.0:{taken.getsockname()[1]}"
        found = wrong(doctor(root, f'receive.dicom.address = "{address}"'))
    assert f"receive.dicom.address = {address}: Address already in use" in found[0][1]
    peers = "receive.dicom.peers is empty: other machines are rejected; name who may send"
    assert ("receiving", peers) in found


def test_ports_for_studies_that_are_free_are_well(root: Path) -> None:
    more = (
        'receive.dicom.address = "127.0.0.1:0"',
        'receive.stow.address = "127.0.0.1:0"',
        'receive.dicom.peers = ["PACS"]',
        "receive.min_free_mb = 1",
    )
    checked = doctor(root, *more)
    assert wrong(checked) == []
    assert checked["receiving"] == [("ok", "127.0.0.1:0 is free")] * 2


def test_an_agent_that_does_not_listen_where_the_settings_say_is_wrong(root: Path) -> None:
    address, room = f"127.0.0.1:{free_port()}", "receive.min_free_mb = 1"
    with exclusive(root / "inbox" / ".overread.lock"), exclusive(root / "state" / ".overread.lock"):
        ((_, text),) = wrong(doctor(root, f'receive.stow.address = "{address}"', room))
    assert text == f"the agent that runs does not listen at {address}: restart it"
