"""Behind a proxy: cookies, paths, links and the users that it names."""

import re
from urllib.parse import quote

import pytest

from edge.dicom_out.part import deliveries_panel
from edge.run import site_of
from edge.status.login import Session
from edge.store.later_parts import uid_line
from edge.store.record import Step
from tests.edge.status.site import (
    CERTIFICATES,
    PASSWORD,
    REJECTED,
    SEEN,
    USERS,
    Site,
    logins,
    visiting,
)

BY_TLS, BELOW = {"x-forwarded-proto": "https"}, {"x-forwarded-prefix": "/a/overread"}


@pytest.mark.parametrize(
    ("told", "name", "path", "secure"),
    [
        ({}, "overread=", "/", False),
        (BY_TLS, "__Host-overread=", "/", True),
        ({"x-forwarded-proto": "http"}, "overread=", "/", False),
        (BELOW, "overread=", "/a/overread", False),
        ({"x-forwarded-prefix": "/a/overread/"}, "overread=", "/a/overread", False),
        ({**BY_TLS, **BELOW}, "__Secure-overread=", "/a/overread", True),
        *(({"x-forwarded-prefix": odd}, "overread=", "/", False)
          for odd in ("//evil.example", "https://evil.example", "/a//b", "/\\evil", "/a?b", "a",
                      "/a; domain=evil.example", "/")),
    ],
)  # fmt: skip
def test_the_cookie_is_for_this_server_alone(
    site: Site, told: dict[str, str], name: str, path: str, secure: bool
) -> None:
    """No script reads it, no other page sends it, and with TLS it never goes unencrypted.

    Also where the TLS is that of a proxy on this machine.
    """
    with visiting(site.app()) as visit:
        visit.client.headers.update(told)
        base = path.rstrip("/")
        assert visit.get("/study/1").headers["location"] == f"{base}/login?next=%2Fstudy%2F1"
        answer = visit.log_in()
        assert answer.headers["location"] == f"{base}/"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(name)
    words = cookie.lower().split("; ")
    assert {"httponly", "samesite=strict", f"path={path}"} <= set(words)
    assert ("secure" in words) is secure
    assert "strict-transport-security" not in answer.headers
    assert PASSWORD not in cookie


def test_with_tls_of_its_own_the_page_asks_for_it_for_a_year(site: Site) -> None:
    with visiting(site.app(secure=True)) as visit:
        assert "strict-transport-security" in visit.get("/login").headers


@pytest.mark.parametrize(
    ("peer", "proxies", "caller", "base"),
    [
        ("127.0.0.1", (), "10.9.9.9", "/a"),
        ("10.0.0.5", ("10.0.0.5",), "10.9.9.9", "/a"),
        ("10.0.0.6", ("10.0.0.5",), "10.0.0.6", ""),
    ],
)
def test_what_is_forwarded_counts_from_a_proxy_alone(
    site: Site, peer: str, proxies: tuple[str, ...], caller: str, base: str
) -> None:
    headers = {"x-forwarded-for": "1.2.3.4, 10.9.9.9", "x-forwarded-proto": "https",
               "x-forwarded-prefix": "/a"}  # fmt: skip
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "client": (peer, 9), "headers": raw, "path": "/x", "scheme": "http",
             "root_path": "", "state": {}}  # fmt: skip
    site.authenticator(USERS, proxies=proxies).follow(scope)
    assert (scope["caller"], scope["root_path"], scope["path"]) == (caller, base, f"{base}/x")
    assert scope["scheme"] == ("https" if base else "http")


def test_every_link_of_the_pages_stays_below_the_base_path(site: Site) -> None:
    key = site.add("a", report=SEEN)
    site.add("bad", step=Step.QUARANTINED, report=REJECTED, reason={"kind": "NotCt"})
    site.give_up(key, "refused")
    panels = [deliveries_panel(site_of(site.with_target()))]
    with visiting(site.app(panels=panels)) as visit:
        visit.client.headers.update(BELOW)
        for cookie in visit.log_in().cookies.jar:
            visit.client.cookies.set(cookie.name, str(cookie.value))  # the proxy's path is not here
        for path in ("/login", "/", "/drift", f"/study/{key}", f"/study/{key}/view", "/none"):
            text = visit.get(path).text
            links = re.findall(r'(?:href|src|action|data-base)="(/[^"]*)"', text)
            assert links or path == "/login"
            assert [one for one in links if not one.startswith("/a/overread")] == []
        assert visit.get("/static/status.css").status_code == 200
        form = {"token": visit.token(), "study": key, "target": "pacs"}
        answer = visit.post("/deliveries/resend", form)
        assert answer.headers["location"] == "/a/overread/?note=deliveries.resend"


def test_a_link_by_study_uid_leads_through_the_login_to_the_study(site: Site) -> None:
    """The browser sends its cookie only where a page of this server leads."""
    key = site.add("a")
    with site.store() as store:
        store.parts.add_series(key, [uid_line("1.2.3", "P 1", key)])
    link = "/studies/by-uid/1.2.3"
    with visiting(site.app()) as visit:
        login = f"/login?next={quote(link, safe='')}"
        assert visit.get(link).headers["location"] == login
        answer = visit.get(link, **{"sec-fetch-site": "cross-site"})
        assert f'<meta http-equiv="refresh" content="0; url={login}">' in answer.text
        assert visit.log_in(next=link).headers["location"] == link
        assert visit.get(login).headers["location"] == link
        assert visit.get(link).headers["location"] == f"/study/{key}"
        for other in ("1.2", "1.2.33", "1.2.3%0aP 1", "%25", "' OR 1=1"):
            assert visit.get(f"/studies/by-uid/{other}").status_code == 404, other


def test_of_several_studies_of_one_uid_the_link_leads_to_the_last_that_was_read(site: Site) -> None:
    steps = {"a": Step.DONE, "b": Step.DONE, "c": Step.QUARANTINED, "d": Step.CLAIMED}
    keys = {name: site.add(name, step=step) for name, step in steps.items()}
    with site.store() as store:
        for key in keys.values():
            store.parts.add_series(key, [uid_line("1.2.3", "", key)])
    with visiting(site.open_app()) as visit:
        found = visit.get("/studies/by-uid/1.2.3").headers["location"]
    assert found == f"/study/{keys['b']}"


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
