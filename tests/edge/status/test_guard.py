"""Nobody comes in without a password, no other page sends a form, and GET changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.status.login import Door
from edge.store.steps import Step
from tests.edge.status.site import PASSWORD, SEEN, Site, Visit, visiting


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def visit(site: Site) -> Iterator[Visit]:
    with visiting(site.app()) as visit:
        yield visit


PAGES = ("/", "/drift", f"/study/{0:032x}", f"/study/{0:032x}/view", f"/study/{0:032x}/volume",
         f"/study/{0:032x}/slice/axial/0", f"/study/{0:032x}/report/1",
         f"/study/{0:032x}/picture/overview.jpg", "/none")  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_a_login(visit: Visit, path: str) -> None:
    answer = visit.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login?next=")
    assert visit.get(path, **{"sec-fetch-dest": "empty"}).status_code == 401


def test_the_password_opens_the_page_that_was_wanted(site: Site, visit: Visit) -> None:
    key = site.add("a")
    answer = visit.log_in(next=f"/study/{key}/view")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/study/{key}/view"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert visit.get("/").status_code == 200


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "https://evil.example/", "/\\evil", "/study/../../x", "/logout"]
)
def test_a_login_leads_to_pages_of_this_server_alone(visit: Visit, wanted: str) -> None:
    assert visit.log_in(next=wanted).headers["location"] == "/"


def test_a_wrong_password_is_refused_and_then_has_to_wait(visit: Visit) -> None:
    for _ in range(4):
        answer = visit.log_in("wrong")
        assert answer.status_code == 403
        assert "This is not the password." in answer.text
    assert visit.log_in("wrong").status_code == 429
    answer = visit.log_in(PASSWORD)
    assert answer.status_code == 429
    assert "Try again in 5 min" in answer.text
    assert visit.get("/").status_code == 303


def test_logging_out_ends_the_session(visit: Visit) -> None:
    visit.log_in()
    session = dict(visit.client.cookies)
    assert visit.post("/logout", {"token": visit.token()}).status_code == 303
    visit.client.cookies.update(session)
    assert visit.get("/").status_code == 303


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
    visit.log_in()
    assert visit.post("/logout", {"token": other}).status_code == 403


def test_a_form_without_a_session_is_refused_even_with_a_token(visit: Visit) -> None:
    assert visit.post("/requeue", {"token": visit.token("/login")}).status_code == 401


def test_a_long_form_is_refused(visit: Visit) -> None:
    assert visit.post("/login", {"password": "x" * 20_000}).status_code == 413


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
        for path in (*paths, f"/requeue?study={key}", "/resend", "/logout"):
            for ask in (visit.client.get, visit.client.head):
                assert ask(path, follow_redirects=False).status_code in (200, 404, 405)
        assert everything() == before
    assert visit.get("/").status_code == 200
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert visit.client.request(method, "/").status_code == 405


def test_every_answer_forbids_scripts_of_others_frames_and_caches(site: Site, visit: Visit) -> None:
    key = site.add("a")
    visit.log_in()
    for path in ("/", "/login", "/none", f"/study/{key}/report/1", "/static/viewer.js"):
        headers = visit.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"].split("style-src")[0]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    report = visit.get(f"/study/{key}/report/1").headers["content-security-policy"]
    assert "sandbox" in report
    assert "script-src" not in report


def test_an_open_page_is_for_names_of_this_machine(site: Site) -> None:
    """Otherwise a site whose name leads to 127.0.0.1 could read it in a browser (rebinding)."""
    app = site.app(Door(None))
    for host, status in (("localhost", 200), ("127.0.0.1:9", 200), ("[::1]", 200),
                         ("evil.example", 421), ("127.0.0.1.evil.example:80", 421)):  # fmt: skip
        with visiting(app) as visit:
            assert visit.get("/", host=host).status_code == status, host


def test_a_fault_of_a_page_is_said_and_hides_its_details(site: Site) -> None:
    def broken() -> str:
        raise RuntimeError("secret")

    with visiting(site.app(Door(None), alive=broken)) as visit:
        answer = visit.get("/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
