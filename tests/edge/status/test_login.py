"""Nobody comes in without a login, and each login is audited."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from edge.audit import Event
from edge.errors import BadSettings
from edge.status.login import SESSION_S, Attempts, LoginRefused, Session
from edge.status.users import hash_of, is_password, load_users
from edge.store.record import Step
from tests.edge.builders import HandClock
from tests.edge.status.site import (
    CERTIFICATES,
    HASH,
    PAGES,
    PASSWORD,
    SEEN,
    USERS,
    Site,
    Visit,
    logins,
    visiting,
)


def test_a_file_holds_the_hash_of_each_password(tmp_path: Path) -> None:
    assert PASSWORD not in HASH
    file = tmp_path / "password"
    file.write_text(f"\ufeff{USERS}")  # some editors mark UTF-8
    account = load_users(file)["anna"]
    assert is_password(PASSWORD, account.hash)
    assert not is_password(f"{PASSWORD} ", account.hash)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        *((text, "is empty") for text in ("", "\n")),
        *((text, "line 1: expected NAME:ROLE:HASH") for text in
          (PASSWORD, HASH, "one\ntwo", f"anna:operator:{PASSWORD}", f"anna:admin:{HASH}",
           f":reader:{HASH}", "a:reader:scrypt:999999:8:1:AAAA:AAAA",
           "a:reader:scrypt:16384:8:1:A:AAAA")),
        (f"{USERS}anna:reader:{HASH}", "line 3: the user anna is there twice"),
        *((f"{USERS}{text}", "line 3: expected NAME:ROLE:HASH") for text in
          (HASH, f"carl:reader:{HASH[:-5]}", f"carl:Reader:{HASH}", f"carl {HASH}",
           "carl:reader:")),
    ],
)  # fmt: skip
def test_a_file_of_users_that_cannot_be_used_is_named_with_its_line_and_without_a_hash(
    tmp_path: Path, content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "password").write_text(content)
    with pytest.raises(BadSettings, match=rf"^page\.password_file = .*{expected}") as refused:
        load_users(tmp_path / "password")
    assert HASH[:-5] not in str(refused.value)
    assert PASSWORD not in str(refused.value)


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


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example/", "/\\evil", "/study/../../x", "/logout",
     "/studies/by-uid/", "/studies/by-uid/1/../..", "/studies/by-uid//evil.example",
     "/studies/by-uid/1\n"],
)  # fmt: skip
def test_a_login_leads_to_pages_of_this_server_alone(visit: Visit, wanted: str) -> None:
    assert visit.log_in(next=wanted).headers["location"] == "/"


def test_failed_logins_are_audited_and_refuse_nobody(site: Site, monkeypatch: Any) -> None:
    """No number of them does: of a name, of an address, or in all."""
    monkeypatch.setattr("edge.status.login.is_password", lambda text, _hash: text == PASSWORD)
    door = site.authenticator(USERS)
    for name in (*["anna"] * 60, *["nobody"] * 60, *(f"name {n}" for n in range(60))):
        for address in ("10.0.0.9", "2001:db8::1"):
            with pytest.raises(LoginRefused, match="is wrong") as refused:
                door.log_in({}, name, "wrong", address)
            assert refused.value.status == 403
    for name, address in (("anna", "10.0.0.9"), ("bert", "10.0.0.9"), ("anna", "10.0.0.10")):
        session: Session = {}
        door.log_in(session, name, PASSWORD, address)
        assert session["name"] == name
    found = logins(site)
    assert Counter((one["user"], one.get("reason"), one["peer"]) for one in found) == {
        **{(name, why, peer): count for peer in ("10.0.0.9", "2001:db8::1")
           for name, why, count in (("anna", "wrong password", 60),
                                    ("unknown", "unknown user", 120))},
        ("anna", None, "10.0.0.9"): 1, ("bert", None, "10.0.0.9"): 1,
        ("anna", None, "10.0.0.10"): 1,
    }  # fmt: skip
    assert PASSWORD not in str(site.trail())


class Caller:
    """Who waits for an answer to a login."""

    def __init__(self, address: str, name: str, *, gone: bool = False) -> None:
        self.scope, self.name, self._gone = {"caller": address}, name, gone

    async def is_disconnected(self) -> bool:
        return self._gone


@pytest.mark.parametrize(
    ("honest", "flood", "most_before"),
    [
        # another network: after two others and the one that is checked
        (Caller("10.0.0.7", "anna"), [f"10.0.0.{n % 2}" for n in range(60)], 3),
        (Caller("10.0.0.7", "anna"), [f"2001:db8::{n:x}" for n in range(60)], 2),
        # behind the same proxy: another name, or the one that is tried
        (Caller("10.0.0.1", "bert"), ["10.0.0.1"] * 60, 2),
        (Caller("10.0.0.1", "anna"), ["10.0.0.1"] * 60, 60),
    ],
)
def test_a_flood_of_wrong_passwords_delays_the_right_one_and_never_refuses_it(
    honest: Caller, flood: list[str], most_before: int, monkeypatch: Any
) -> None:
    """One password is checked at a time, whatever comes at once; who has left takes no turn."""
    monkeypatch.setattr("edge.status.login.FAILED_S", 0.0)
    order, at_once = list[str](), set[int]()
    open_now = 0

    def check(name: str, is_right: bool) -> None:
        nonlocal open_now
        open_now += 1
        at_once.add(open_now)
        order.append(name)
        open_now -= 1
        if not is_right:
            raise LoginRefused(403, "wrong")

    async def attempt(attempts: Attempts, caller: Caller, is_right: bool) -> Exception | None:
        request = cast("Request", caller)
        name = f"{caller.name} right" if is_right else caller.name
        try:
            await attempts.take(request, caller.name, partial(check, name, is_right))
        except (LoginRefused, ClientDisconnect) as error:
            return error
        return None

    async def everything() -> list[Exception | None]:
        attempts = Attempts()
        callers = [*(Caller(one, "anna") for one in flood), Caller(flood[0], "gone", gone=True)]
        tasks = [asyncio.create_task(attempt(attempts, one, False)) for one in callers]
        while not order:
            await asyncio.sleep(0)
        begun = len(order)
        assert await attempt(attempts, honest, True) is None
        assert order.index(f"{honest.name} right") - begun <= most_before
        return await asyncio.gather(*tasks)

    found = asyncio.run(everything())
    assert len(order) == len(flood) + 1
    assert at_once == {1}
    assert isinstance(found[-1], ClientDisconnect)
    assert [type(one) for one in found[:-1]] == [LoginRefused] * len(flood)


def test_a_wrong_password_holds_its_turn_and_another_page_is_answered(
    visit: Visit, monkeypatch: Any
) -> None:
    """While sixty wait for their turn, whoever is logged in sees the pages."""
    monkeypatch.setattr("edge.status.login.FAILED_S", 0.01)
    token = visit.token("/login")
    visit.log_in()
    form = {"token": token, "name": "operator", "password": "wrong"}
    with ThreadPoolExecutor(60) as pool, httpx.Client(base_url=visit.client.base_url) as other:
        origin = {"origin": str(visit.client.base_url).rstrip("/")}
        sent = [pool.submit(other.post, "/login", data=form, headers=origin, timeout=60.0)
                for _ in range(60)]  # fmt: skip
        assert visit.get("/").status_code == 200
        assert {one.result().status_code for one in sent} == {403}
        form["password"] = PASSWORD
        assert other.post("/login", data=form, headers=origin).status_code == 303


def test_who_is_removed_or_gets_another_role_or_password_sees_it_at_once(site: Site) -> None:
    """So does everyone while the file is damaged, and nobody has to log in again after it."""
    door = site.authenticator(USERS)
    of_anna: Session = {}
    of_bert: Session = {}
    door.log_in(of_anna, "anna", PASSWORD, "10.0.0.9")
    door.log_in(of_bert, "bert", PASSWORD, "10.0.0.9")

    def seen(session: Session) -> tuple[str, str] | None:
        user = door.user(session, "", "10.0.0.9")
        return user and (user.name, "operator" if user.is_operator else "reader")

    assert (seen(of_anna), seen(of_bert)) == (("anna", "operator"), ("bert", "reader"))
    site.users(
        USERS.replace("bert:reader", "bert:operator").replace("anna:operator", "anna:reader")
    )
    assert (seen(of_anna), seen(of_bert)) == (("anna", "reader"), ("bert", "operator"))
    site.users(f"{USERS}x")
    with pytest.raises(LoginRefused, match="cannot be read now"):
        seen(of_anna)
    site.users(USERS.splitlines()[0])
    assert (seen(of_anna), seen(of_bert)) == (("anna", "operator"), None)
    site.users(f"anna:operator:{hash_of(PASSWORD)}")
    assert seen(of_anna) is None


def test_a_reader_sees_no_button_and_changes_nothing(site: Site) -> None:
    """Each name may hold any letter."""
    odd = "<b>carl</b>"
    key = site.add("a", report=SEEN)
    refused = site.add("bad", step=Step.QUARANTINED, report=None, reason={"kind": "NotCt"})
    with visiting(site.app(site.authenticator(USERS.replace("bert", odd)))) as visit:
        visit.log_in(name=odd)
        text = visit.get("/").text
        assert "&lt;b&gt;carl&lt;/b&gt;, reader" in text
        assert "<b>carl" not in text
        assert "Read again" not in text
        form = {"token": visit.token(), "study": refused}
        for path in ("/requeue", "/models/promote", "/deliveries/resend", "/none"):
            answer = visit.post(path, form)
            assert answer.status_code == 403
            assert answer.text == f"Only an operator may do this. {odd} is a reader.\n"
            assert answer.headers["content-type"].startswith("text/plain")
        assert f'data-token="{form["token"]}"' in visit.get(f"/study/{key}/view").text
        opening = visit.post(f"/study/{key}/volume", **{"x-form-token": form["token"]})
        assert opening.json()["state"] == "reading"
        assert visit.post("/logout", form).status_code == 303
        visit.log_in(name="anna")
        assert "Read again" in visit.get("/").text
        form["token"] = visit.token()
        assert visit.post("/requeue", form).status_code == 303
    (record,) = [record for record in site.trail() if record.event == Event.REQUEUED]
    assert record.fields["user"] == "anna"


def test_a_login_ends_the_session_before_it(site: Site) -> None:
    """A form of the login page that a second tab still shows logs nobody in over another."""
    door = site.authenticator(USERS)
    session: Session = {}
    door.log_in(session, "anna", PASSWORD, "10.0.0.9")
    before = dict(session)
    door.log_in(session, "bert", PASSWORD, "10.0.0.9")
    assert door.user(before, "", "10.0.0.9") is None
    with visiting(site.app(door)) as visit:
        form = {"token": visit.token("/login"), "name": "bert", "password": PASSWORD}
        visit.log_in(name="anna")
        assert visit.post("/login", form).status_code == 403
        assert "bert" not in visit.get("/").text


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
            site.authenticator(tls=CERTIFICATES).user({}, "CN=anna", "10.0.0.9")
    assert visit.log_in().status_code == 303


def test_a_user_with_a_certificate_is_audited_once_a_session(site: Site, clock: HandClock) -> None:
    """It takes the place of the password where it may.

    The session is worth nothing without the certificate, nor with another one.
    """
    assert site.authenticator().user({}, "anna", "10.0.0.9") is None
    door = site.authenticator(tls=CERTIFICATES, clock=clock)
    session: Session = {}
    for after_s in (0.0, SESSION_S - 1, 2.0):
        clock.sleep(after_s)
        user = door.user(session, "anna", "10.0.0.9")
        assert user is not None
        assert (user.name, user.by_password) == ("anna", False)
    assert logins(site) == [{"outcome": "success", "user": "anna", "peer": "10.0.0.9"}] * 2
    assert door.user(session, "", "10.0.0.9") is None
    other = door.user(session, "bert", "10.0.0.9")
    assert other is not None
    assert (other.name, len(logins(site))) == ("bert", 3)
