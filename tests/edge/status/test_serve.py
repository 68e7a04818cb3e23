"""The status page of an agent that runs, and the settings that keep it closed."""

import re
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from edge.audit import Event
from edge.checks import Checked, Level
from edge.doctor import examine
from edge.errors import BadSettings
from edge.folders import DATABASE
from edge.run import PARTS, site_of
from edge.settings.core import EdgeSettings, load_settings
from edge.status.users import hash_of
from edge.store.pending import PendingStep
from edge.store.record import Step
from edge.trail.records import records_after
from edge.trail.verify import verify
from evaluation.world import settings_in
from tests.edge.builders import put, put_all
from tests.edge.running_agent import work_off


def test_the_page_is_there_while_the_agent_reads(tmp_path: Path) -> None:
    """It shows the study that is being read, and is gone when the agent has ended.

    Who has seen it is in the trail, which is sound.
    """
    put_all(tmp_path / "inbox", one="x", two="x")
    seen: list[str] = []
    with capture_logs() as lines:

        def look(step: Step | PendingStep, durable: bool) -> None:
            if step is Step.READING and durable:
                (url,) = [line["url"] for line in lines if line["event"] == "status page served"]
                seen.append(httpx.get(url, timeout=60).text)

        work_off(tmp_path, on_step=look, settings={"page__address": "127.0.0.1:0"})
    assert [re.findall(r"<tr><td data-label=\"Study\">(\w+)</td>", page) for page in seen] == [
        ["one", "two"],
        ["two"],
    ]
    assert ">reading</span>" in seen[0]
    (url,) = [line["url"] for line in lines if line["event"] == "status page served"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    trail = tmp_path / "state" / "trail"
    assert verify(trail, tmp_path / "state" / DATABASE).broken is None
    seen_by = [one.fields["user"] for one in records_after(trail, 0) if one.event == Event.VIEWED]
    assert seen_by == ["open to every user of this machine"]


def test_a_damaged_password_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("")
    put(tmp_path / "inbox", "one")
    given = {"page__address": "127.0.0.1:0", "page__password_file": tmp_path / "password"}
    with pytest.raises(BadSettings, match=r"page\.password_file"):
        work_off(tmp_path, settings=given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"page__address": "0.0.0.0:1"}, "^page: .* tls.cert is not set: names and pictures"),
        ({"page__address": "ct.example.org:1"}, "tls.cert is not set"),
        ({"page__address": "[::]:1", "page__password_file": "p"}, "tls.cert is not set"),
        (
            {"page__address": "0.0.0.0:1", "page__tls__cert": "c", "page__tls__key": "k"},
            "set password_file, tls.ca or proxies",
        ),
        ({"page__proxies": ("10.0.0.0/8",)}, "'10.0.0.0/8' is no IP address, and names in client"),
        ({"page__proxy_header": "X User"}, "name of a header"),
        ({"page__tls__cert": "c"}, "page.tls: cert and key must be set together"),
        ({"page__tls__ca": "c"}, "page.tls: ca requires cert and key"),
    ],
)
def test_a_page_for_other_machines_needs_tls_and_a_password(
    given: dict[str, object], expected: str
) -> None:
    with pytest.raises(BadSettings, match=expected):
        load_settings(**given)


def test_safe_settings_are_accepted() -> None:
    tls = {"page__tls__cert": "c", "page__tls__key": "k", "page__address": "0.0.0.0:1"}
    for given in ({"page__address": "[::1]:1"}, {**tls, "page__password_file": "p"},
                  {**tls, "page__tls__ca": "a"}):  # fmt: skip
        assert load_settings(**given).page.address == given["page__address"]


def status_of(settings: EdgeSettings) -> list[Checked]:
    return [one for one in examine(site_of(settings), PARTS) if one.what == "status"]


def test_doctor_says_how_the_page_is_protected(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, screening_model="none")
    assert [one.level for one in status_of(settings)] == [Level.OK]
    on = settings_in(tmp_path, screening_model="none", page__address="127.0.0.1:9466")
    note, where = status_of(on)
    assert note.level is Level.NOTE
    assert "every user of this machine sees names" in note.text
    assert where.text == "at 127.0.0.1:9466, no encryption, this machine alone"
    file = tmp_path / "password"
    closed = settings_in(
        tmp_path, screening_model="none", page__address="127.0.0.1:9466", page__password_file=file
    )
    assert status_of(closed)[0].level is Level.WRONG  # it is missing
    file.write_text(f"anna:reader:{hash_of('x')}")
    assert "nobody is an operator" in status_of(closed)[0].text
    file.write_text(f"operator:operator:{hash_of('x')}")
    file.chmod(0o644)
    assert "can be read by others" in status_of(closed)[0].text
    file.chmod(0o600)
    assert [one.level for one in status_of(closed)] == [Level.OK]
    proxied = settings_in(
        tmp_path, screening_model="none", page__address="127.0.0.1:9466",
        page__proxies=("127.0.0.1",),
    )  # fmt: skip
    nobody, forged, _ = status_of(proxied)
    assert "nobody is an operator" in nobody.text
    assert "may give any name" in forged.text
