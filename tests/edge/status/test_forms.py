"""Forms of other pages, frames of other sites, and hosts of other names are refused."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.store.record import Step
from tests.edge.status.site import PAGES, SEEN, Site, Visit, visiting


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


def test_a_form_that_does_not_arrive_ends_its_request(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds; a caller that leaves before is no fault of the page."""
    monkeypatch.setattr("edge.status.login.BODY_S", 0.2)
    url = visit.client.base_url
    head = (
        f"POST /login HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
        f"Origin: {str(url).rstrip('/')}\r\nContent-Length: 100\r\n\r\nx="
    )
    with capture_logs() as lines:
        for leaves in (True, False):
            with socket.create_connection((url.host, url.port), 20.0) as caller:
                caller.sendall(head.encode())
                if not leaves:
                    assert b" 408 " in caller.recv(1000).splitlines()[0]
    assert [line for line in lines if line["log_level"] == "error"] == []


def test_an_odd_origin_or_path_is_refused(site: Site, visit: Visit) -> None:
    with capture_logs() as lines:
        assert visit.post("/login", origin="http://[").status_code == 403
        path = f"/study/{site.add('a')}/slice/axial/{5000 * '9'}"
        assert visit.get(path).status_code == 404
    assert lines == []


def test_get_and_head_change_nothing(site: Site, visit: Visit) -> None:
    """No file and no row but that of a view: no page, and no address that is for forms."""
    key = site.add("a", report=SEEN)
    site.add("bad", step=Step.QUARANTINED, report=None, reason={"kind": "NotCt"})
    visit.log_in()

    def everything() -> dict[str, int]:
        top = site.root
        files = (Path(at, name) for at, _, names in os.walk(top) for name in names)
        return {str(p): p.stat().st_mtime_ns for p in files if not p.name.endswith("-shm")}

    with site.store():  # as the agent has it open
        paths = [path.replace(f"{0:032x}", key) for path in PAGES]
        for _ in range(2):
            before = everything()
            for path in (*paths, f"/requeue?study={key}", "/deliveries/resend", "/logout"):
                for ask in (visit.client.get, visit.client.head):
                    assert ask(path, follow_redirects=False).status_code in (200, 404, 405)
        assert everything() == before  # at the second time nothing is seen for the first time
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
