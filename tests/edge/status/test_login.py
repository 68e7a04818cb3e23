"""Nobody comes in without a login, each login is audited, and no other page sends a form."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.audit import Event
from edge.errors import BadSettings
from edge.status.login import (
    ATTEMPTS,
    ATTEMPTS_IN_ALL,
    SESSION_S,
    WITHIN_S,
    LoginRefused,
    Password,
    Session,
)
from edge.store.steps import Step
from tests.edge.builders import HandClock
from tests.edge.status.site import HASH, PASSWORD, SEEN, Site, Visit, visiting


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def visit(site: Site, clock: HandClock) -> Iterator[Visit]:
    """The pages with a password; their clock moves by hand."""
    with visiting(site.app(site.authenticator(clock=clock))) as visit:
        yield visit


def logins(site: Site) -> list[dict[str, object]]:
    return [dict(record.fields) for record in site.trail() if record.event == Event.LOGIN]


def test_a_file_holds_the_password_or_its_hash(tmp_path: Path) -> None:
    assert PASSWORD not in HASH.line
    for line in (PASSWORD, HASH.line):
        file = tmp_path / "password"
        file.write_text(f"{line}\n")
        assert Password.load(file).matches(PASSWORD)
        assert not Password.load(file).matches(f"{PASSWORD} ")


@pytest.mark.parametrize(
    "content",
    ["", "\n", "one\ntwo", "scrypt:16384:8:1:AAAA", "scrypt:999999:8:1:AAAA:AAAA", "x" * 2000,
     "scrypt:15:8:1:AAAA:AAAA", "scrypt:16384:8:1:A:AAAA", None],
)  # fmt: skip
def test_a_damaged_or_missing_password_file_stops_the_start(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "password").write_text(content)
    with pytest.raises(BadSettings, match=r"page\.password_file = "):
        Password.load(tmp_path / "password")


PAGES = ("/", "/drift", f"/study/{0:032x}", f"/study/{0:032x}/view", f"/study/{0:032x}/volume",
         f"/study/{0:032x}/slice/axial/0", f"/study/{0:032x}/report/1",
         f"/study/{0:032x}/picture/overview.jpg", "/none")  # fmt: skip


def test_a_page_needs_a_login(visit: Visit) -> None:
    for path in PAGES:
        answer = visit.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/login?next=")
        assert visit.get(path, **{"sec-fetch-dest": "empty"}).status_code == 401, path


def test_the_password_opens_the_page_that_was_wanted(site: Site, visit: Visit) -> None:
    key = site.add("a")
    answer = visit.log_in(next=f"/study/{key}/view")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/study/{key}/view"
    assert visit.get("/").status_code == 200
    assert visit.get("/login").headers["location"] == "/"


@pytest.mark.parametrize(("secure", "name"), [(False, "overread="), (True, "__Host-overread=")])
def test_the_cookie_is_for_this_server_alone(site: Site, secure: bool, name: str) -> None:
    """No script reads it, no other page sends it, and with TLS it never goes unencrypted."""
    with visiting(site.app(secure=secure)) as visit:
        answer = visit.log_in()
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(name)
    words = cookie.lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/"} <= set(words)
    assert ("secure" in words) is secure
    assert ("strict-transport-security" in answer.headers) is secure
    assert PASSWORD not in cookie


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "https://evil.example/", "/\\evil", "/study/../../x", "/logout"]
)
def test_a_login_leads_to_pages_of_this_server_alone(visit: Visit, wanted: str) -> None:
    assert visit.log_in(next=wanted).headers["location"] == "/"


def test_logins_are_audited_and_after_some_that_failed_an_address_waits(
    site: Site, visit: Visit, clock: HandClock
) -> None:
    """Even the right password is not tried then."""
    for _ in range(ATTEMPTS - 1):
        answer = visit.log_in("wrong")
        assert answer.status_code == 403
        assert "This is not the password." in answer.text
    assert visit.log_in("wrong").status_code == 429
    answer = visit.log_in()
    assert answer.status_code == 429
    assert "Try again in 5 min" in answer.text
    assert visit.get("/").status_code == 303
    clock.sleep(WITHIN_S + 1)
    assert visit.log_in().status_code == 303
    failed = {"user": "unknown", "peer": "127.0.0.1"}
    assert logins(site) == [
        *[{"outcome": "failure", "reason": "wrong password", **failed}] * ATTEMPTS,
        {"outcome": "success", "user": "password, from 127.0.0.1", "peer": "127.0.0.1"},
    ]
    assert PASSWORD not in str(site.trail())


def test_failed_logins_are_limited_in_all(site: Site) -> None:
    """Another address may log in until there are too many of all."""
    door = site.authenticator(Password(b"salt", b"hash", (2, 8, 1)))

    def status(number: int) -> int:
        with pytest.raises(LoginRefused) as refused:
            door.log_in({}, "wrong", f"10.0.0.{number}")
        return refused.value.status

    found = [status(number) for number in range(ATTEMPTS_IN_ALL + 1)]
    assert found == [*[403] * (ATTEMPTS_IN_ALL - 1), 429, 429]


def test_a_session_ends_some_hours_after_its_login(visit: Visit, clock: HandClock) -> None:
    """However often it is used."""
    visit.log_in()
    clock.sleep(SESSION_S - 1)
    assert visit.get("/").status_code == 200
    clock.sleep(2)
    assert visit.get("/").status_code == 303


def test_logging_out_ends_the_session_and_each_copy_of_its_cookie(visit: Visit) -> None:
    visit.log_in()
    session = dict(visit.client.cookies)
    assert visit.post("/logout", {"token": visit.token()}).status_code == 303
    assert dict(visit.client.cookies) == {}
    visit.client.cookies.update(session)
    assert visit.get("/").status_code == 303


def test_a_session_of_an_earlier_start_is_none(site: Site, visit: Visit) -> None:
    visit.log_in()
    with visiting(site.app()) as later:
        later.client.cookies.update(dict(visit.client.cookies))
        assert later.get("/").status_code == 303


def test_a_login_that_cannot_be_audited_is_refused(site: Site, visit: Visit) -> None:
    with site.writing():
        answer = visit.log_in()
        assert answer.status_code == 503
        assert "Logins cannot be recorded now" in answer.text
        assert "set-cookie" not in answer.headers
        with pytest.raises(LoginRefused, match="cannot be recorded"):
            site.authenticator(by_certificate=True).user({}, "CN=anna", "10.0.0.9")
    assert visit.log_in().status_code == 303


def test_a_certificate_takes_the_place_of_the_password_where_it_may(site: Site) -> None:
    assert site.authenticator().user({}, "anna", "10.0.0.9") is None
    door = site.authenticator(by_certificate=True)
    assert door.user({}, "", "10.0.0.9") is None
    user = door.user({}, "anna", "10.0.0.9")
    assert user is not None
    assert (user.name, user.by_password) == ("anna", False)


def test_a_user_with_a_certificate_is_audited_once_a_session(site: Site, clock: HandClock) -> None:
    """The session is worth nothing without the certificate, nor with another one."""
    door = site.authenticator(by_certificate=True, clock=clock)
    session: Session = {}
    for after_s in (0.0, SESSION_S - 1, 2.0):
        clock.sleep(after_s)
        assert door.user(session, "anna", "10.0.0.9") is not None
    assert logins(site) == [{"outcome": "success", "user": "anna", "peer": "10.0.0.9"}] * 2
    assert door.user(session, "", "10.0.0.9") is None
    other = door.user(session, "bert", "10.0.0.9")
    assert other is not None
    assert (other.name, len(logins(site))) == ("bert", 3)


def test_a_form_needs_its_token_and_its_own_page(site: Site, visit: Visit) -> None:
    key = site.add("a", step=Step.QUARANTINED, report=None)
    visit.log_in()
    token = visit.token()
    fields = {"study": key, "token": token}
    assert visit.post("/requeue", {"study": key}).status_code == 403
    assert visit.post("/requeue", {**fields, "token": "x" * 64}).status_code == 403
    for origin in ("https://evil.example", "null", "", "http://localhost:9999"):
        assert visit.post("/requeue", fields, origin=origin).status_code == 403
    assert not (site.folders.inbox / "a").exists()
    assert visit.post("/requeue", fields).status_code == 303
    assert (site.folders.inbox / "a").exists()


def test_a_token_of_another_session_is_none(visit: Visit) -> None:
    visit.log_in()
    other = visit.token()
    visit.client.cookies.clear()
    assert visit.post("/requeue", {"token": visit.token("/login")}).status_code == 401
    visit.log_in()
    assert visit.post("/logout", {"token": other}).status_code == 403


def test_a_long_form_is_refused(visit: Visit) -> None:
    assert visit.post("/login", {"password": "x" * 20_000}).status_code == 413
    endless = visit.client.post("/login", content=iter([b"x"]), headers={"origin": str(
        visit.client.base_url).rstrip("/")})  # fmt: skip
    assert endless.status_code == 413  # it does not say how long it is


def test_get_and_head_change_nothing(site: Site, visit: Visit) -> None:
    """No file and no row: not by any page, and not by an address that is for forms."""
    key = site.add("a", report=SEEN)
    site.add("bad", step=Step.QUARANTINED, report=None, reason={"kind": "NotCt"})
    visit.log_in()

    def everything() -> dict[str, int]:
        top = site.root
        files = (Path(at, name) for at, _, names in os.walk(top) for name in names)
        return {str(p): p.stat().st_mtime_ns for p in files if not p.name.endswith("-shm")}

    with site.store():  # as the agent has it open
        before = everything()
        paths = [path.replace(f"{0:032x}", key) for path in PAGES]
        for path in (*paths, f"/requeue?study={key}", "/deliveries/resend", "/logout"):
            for ask in (visit.client.get, visit.client.head):
                assert ask(path, follow_redirects=False).status_code in (200, 404, 405)
        assert everything() == before
    assert visit.get("/").status_code == 200
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert visit.client.request(method, "/").status_code == 405


def test_every_answer_forbids_scripts_of_others_frames_and_caches(site: Site, visit: Visit) -> None:
    key = site.add("a")
    assert "frame-ancestors 'none'" in visit.get("/login").headers["content-security-policy"]
    visit.log_in()
    for path in ("/", "/none", f"/study/{key}/report/1", "/static/viewer.js", "/static/none"):
        headers = visit.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"].split("style-src")[0]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    report = visit.get(f"/study/{key}/report/1").headers["content-security-policy"]
    assert "sandbox" in report
    assert "script-src" not in report


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("127.0.0.1:9", 200), ("[::1]", 200)),
        *(("evil.example", 421), ("127.0.0.1.evil.example:80", 421)),
    ],
)
def test_an_open_page_is_for_names_of_this_machine(site: Site, host: str, status: int) -> None:
    """Otherwise a site whose name leads to 127.0.0.1 could read it in a browser (rebinding)."""
    with visiting(site.open_app()) as visit:
        assert visit.get("/", host=host).status_code == status


def test_a_fault_of_a_page_is_said_and_hides_its_details(site: Site) -> None:
    def broken() -> str:
        raise RuntimeError("secret")

    with visiting(site.open_app(problem=broken)) as visit:
        answer = visit.get("/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
