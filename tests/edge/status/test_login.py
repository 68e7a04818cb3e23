"""Nobody comes in without a login, and each login is audited."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.audit import Event
from edge.errors import BadSettings
from edge.status.login import (
    ATTEMPTS,
    ATTEMPTS_IN_ALL,
    ATTEMPTS_OF_ADDRESS,
    SESSION_S,
    WITHIN_S,
    Authenticator,
    LoginRefused,
    Session,
)
from edge.status.users import hash_of, is_password, load_users
from edge.store.steps import Step
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
    visiting,
)


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
    assert PASSWORD not in HASH
    for line in (PASSWORD, HASH, f"\ufeff{PASSWORD}"):  # some editors mark UTF-8
        file = tmp_path / "password"
        file.write_text(f"{line}\n")
        (account,) = load_users(file).values()
        assert is_password(PASSWORD, account.hash)
        assert not is_password(f"{PASSWORD} ", account.hash)


@pytest.mark.parametrize(
    "content",
    ["", "\n", "one\ntwo", "scrypt:16384:8:1:AAAA", "scrypt:999999:8:1:AAAA:AAAA",
     "scrypt:15:8:1:AAAA:AAAA", "scrypt:16384:8:1:A:AAAA", f"anna:operator:{PASSWORD}",
     f"anna:admin:{HASH}", f":reader:{HASH}", f"{HASH}\n{USERS}", None],
)  # fmt: skip
def test_a_damaged_or_missing_password_file_stops_the_start(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "password").write_text(content)
    with pytest.raises(BadSettings, match=r"page\.password_file = "):
        load_users(tmp_path / "password")


@pytest.mark.parametrize(
    ("third", "expected"),
    [
        (f"anna:reader:{HASH}", "line 3: the user anna is there twice"),
        (f"carl:reader:{HASH[:-5]}", "line 3: expected NAME:ROLE:HASH"),
        (f"carl:Reader:{HASH}", "line 3: expected NAME:ROLE:HASH"),
        (f"carl {HASH}", "line 3: expected NAME:ROLE:HASH"),
        ("carl:reader:", "line 3: expected NAME:ROLE:HASH"),
    ],
)
def test_a_damaged_line_of_a_user_is_named_without_its_hash(
    site: Site, third: str, expected: str
) -> None:
    with pytest.raises(BadSettings, match=expected) as refused:
        load_users(site.users(f"{USERS}{third}\n"))
    assert HASH[:-5] not in str(refused.value)


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
        assert "The user name or the password is wrong." in answer.text
    assert visit.log_in("wrong").status_code == 429
    answer = visit.log_in()
    assert answer.status_code == 429
    assert "Try again in 5 min" in answer.text
    assert visit.get("/").status_code == 303
    clock.sleep(WITHIN_S + 1)
    assert visit.log_in().status_code == 303
    failed = {"user": "operator", "peer": "127.0.0.1"}
    assert logins(site) == [
        *[{"outcome": "failure", "reason": "wrong password", **failed}] * ATTEMPTS,
        {"outcome": "success", "user": "operator", "peer": "127.0.0.1"},
    ]
    assert PASSWORD not in str(site.trail())


def test_failed_logins_are_limited_in_all(site: Site) -> None:
    """Another address may log in until there are too many of all, whatever the names."""
    door = site.authenticator(USERS)
    found = [status(door, f"name {n}", f"10.0.0.{n}") for n in range(ATTEMPTS_IN_ALL + 1)]
    assert found == [*[403] * (ATTEMPTS_IN_ALL - 1), 429, 429]


def test_wrong_passwords_of_one_user_stop_no_other_behind_the_same_proxy(site: Site) -> None:
    """A name that nobody has is answered, counted and hashed as any other."""
    door = site.authenticator(USERS)
    for name in ("anna", "nobody"):
        found = [status(door, name, "10.0.0.9") for _ in range(ATTEMPTS + 1)]
        assert found == [*[403] * (ATTEMPTS - 1), 429, 429]
    session: Session = {}
    door.log_in(session, "bert", PASSWORD, "10.0.0.9")
    assert session["name"] == "bert"
    door.log_in({}, "anna", PASSWORD, "10.0.0.10")
    found = [status(door, f"name {n}", "10.0.0.9") for n in range(1000)]
    assert found.count(403) == ATTEMPTS_OF_ADDRESS - 2 * ATTEMPTS - 1
    assert found[-1] == 429
    assert [
        (one["user"], one["reason"]) for one in logins(site) if one["outcome"] == "failure"
    ] == [
        *[("anna", "wrong password")] * ATTEMPTS,
        *[("unknown", "unknown user")] * (ATTEMPTS_OF_ADDRESS - ATTEMPTS),
    ]


def status(door: Authenticator, name: str, address: str) -> int:
    """How a login with a wrong password is refused."""
    with pytest.raises(LoginRefused) as refused:
        door.log_in({}, name, "wrong", address)
    return refused.value.status


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


@pytest.mark.parametrize(
    ("address", "certificate", "named", "expected"),
    [
        ("10.0.0.5", "", ["anna"], ("anna", "operator")),
        ("10.0.0.5", "", ["bert"], ("bert", "reader")),
        ("10.0.0.5", "", ["JÃ¼rgen"], ("Jürgen", "reader")),
        ("10.0.0.9", "proxy", ["anna"], ("anna", "operator")),
        ("10.0.0.9", "anna", ["bert"], ("anna", "operator")),
        ("10.0.0.9", "", ["anna"], None),
        ("10.0.0.9", "proxy", [], None),
        ("10.0.0.5", "", ["anna", "bert"], None),
        ("10.0.0.5", "", ["anna, bert"], ("anna, bert", "reader")),
        ("10.0.0.5", "", [" "], None),
        ("10.0.0.5", "", ["an\x85na"], None),
        ("10.0.0.5", "", ["x" * 65], None),
        ("::1", "", ["anna"], None),
    ],
)
def test_a_header_counts_from_the_proxy_alone(
    site: Site, address: str, certificate: str, named: list[str], expected: tuple[str, str] | None
) -> None:
    """By its address or its certificate; a proxy is no user itself."""
    door = site.authenticator(
        None, proxies=("10.0.0.5", "proxy"), operators=("anna", "proxy"), tls=CERTIFICATES
    )
    user = door.user({}, certificate, address, named)
    assert (user and (user.name, "operator" if user.is_operator else "reader")) == expected


def test_the_session_of_one_whom_the_proxy_named_is_worth_nothing_elsewhere(site: Site) -> None:
    """Nor for another one whom it names; each is a login."""
    door = site.authenticator(USERS, proxies=("10.0.0.5",))
    session: Session = {}
    for named in ("anna", "anna", "bert"):
        assert door.user(session, "", "10.0.0.5", [named]) is not None
    assert door.user(session, "", "10.0.0.9", ["bert"]) is None
    assert door.user(session, "", "10.0.0.5") is None
    assert [one["user"] for one in logins(site)] == ["anna", "bert"]


def test_the_proxy_s_header_reaches_the_page_and_none_does_without_a_proxy(site: Site) -> None:
    for proxies, expected in ((("127.0.0.1",), 200), (("10.0.0.5",), 403)):
        door = site.authenticator(None, proxies=proxies, proxy_header="Remote-User")
        with visiting(site.app(door)) as visit:
            assert visit.get("/", **{"remote-user": "anna"}).status_code == expected
            assert visit.get("/", **{"x-forwarded-user": "anna"}).status_code == 403


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


def test_a_certificate_takes_the_place_of_the_password_where_it_may(site: Site) -> None:
    assert site.authenticator().user({}, "anna", "10.0.0.9") is None
    door = site.authenticator(tls=CERTIFICATES)
    assert door.user({}, "", "10.0.0.9") is None
    user = door.user({}, "anna", "10.0.0.9")
    assert user is not None
    assert (user.name, user.by_password) == ("anna", False)


def test_a_user_with_a_certificate_is_audited_once_a_session(site: Site, clock: HandClock) -> None:
    """The session is worth nothing without the certificate, nor with another one."""
    door = site.authenticator(tls=CERTIFICATES, clock=clock)
    session: Session = {}
    for after_s in (0.0, SESSION_S - 1, 2.0):
        clock.sleep(after_s)
        assert door.user(session, "anna", "10.0.0.9") is not None
    assert logins(site) == [{"outcome": "success", "user": "anna", "peer": "10.0.0.9"}] * 2
    assert door.user(session, "", "10.0.0.9") is None
    other = door.user(session, "bert", "10.0.0.9")
    assert other is not None
    assert (other.name, len(logins(site))) == ("bert", 3)
