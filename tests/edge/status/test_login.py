"""Passwords, sessions, and the limit on failed attempts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import BadSettings
from edge.status.login import (
    ATTEMPTS,
    MOST_SESSIONS,
    SESSION_S,
    WITHIN_S,
    Door,
    Password,
    Sessions,
    network_of,
)
from tests.edge.builders import HandClock
from tests.edge.status.site import HASH, PASSWORD


def test_a_file_holds_the_password_or_its_hash(tmp_path: Path) -> None:
    plain, hashed = tmp_path / "plain", tmp_path / "hashed"
    plain.write_text(f"{PASSWORD}\n")
    hashed.write_text(f"{HASH.line}\n")
    for file in (plain, hashed):
        assert Password.load(file).matches(PASSWORD)
        assert not Password.load(file).matches(f"{PASSWORD} ")
    assert PASSWORD not in hashed.read_text()


@pytest.mark.parametrize(
    "content",
    ["", "\n", "one\ntwo", "scrypt:16384:8:1:AAAA", "scrypt:999999:8:1:AAAA:AAAA", "x" * 2000,
     "scrypt:15:8:1:AAAA:AAAA"],
)  # fmt: skip
def test_a_damaged_password_file_stops_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "password").write_text(content)
    with pytest.raises(BadSettings, match="status_password_file = "):
        Password.load(tmp_path / "password")


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="No such file"):
        Password.load(tmp_path / "none")


def test_a_session_ends_by_itself_and_by_logging_out(clock: HandClock) -> None:
    door = Door(HASH, clock=clock)
    session, wait_s = door.log_in(PASSWORD, "10.0.0.1")
    assert session
    assert wait_s == 0
    visitor = door.visitor(session, "")
    assert visitor is not None
    assert visitor.by_password
    clock.sleep(SESSION_S - 1)
    assert door.visitor(session, "") == visitor
    clock.sleep(2)
    assert door.visitor(session, "") is None
    again, _ = door.log_in(PASSWORD, "10.0.0.1")
    door.log_out(again)
    assert door.visitor(again, "") is None


def test_sessions_are_bounded(clock: HandClock) -> None:
    sessions = Sessions(clock)
    tokens = [sessions.begin("a") for _ in range(MOST_SESSIONS + 1)]
    assert sessions.visitor(tokens[0]) is None
    assert sessions.visitor(tokens[1]) is not None
    assert sessions.visitor(tokens[-1]) is not None


def test_after_some_failed_attempts_an_address_waits(clock: HandClock) -> None:
    """Even the right password is not tried then; another address may log in."""
    door = Door(HASH, clock=clock)
    for _ in range(ATTEMPTS):
        assert door.log_in("wrong", "10.0.0.1")[0] == ""
    assert door.log_in(PASSWORD, "10.0.0.1") == ("", WITHIN_S)
    assert door.log_in(PASSWORD, "10.0.0.2")[0]
    clock.sleep(WITHIN_S + 1)
    assert door.log_in(PASSWORD, "10.0.0.1")[0]


def test_a_network_of_ipv6_is_one_address() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::2") != network_of("2001:db8:1::1")
    assert network_of("10.0.0.1") != network_of("10.0.0.2")


def test_a_certificate_opens_without_password_where_it_may() -> None:
    assert Door(HASH, by_certificate=True).visitor("", "Dr. Who") is not None
    assert Door(HASH).visitor("", "Dr. Who") is None
    assert Door(None, by_certificate=True).visitor("", "") is None


def test_without_password_and_certificates_everyone_comes_in() -> None:
    visitor = Door(None).visitor("", "")
    assert visitor is not None
    assert not visitor.by_password
