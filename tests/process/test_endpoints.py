"""Metrics, healthz and readyz over real HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from process.endpoints import Pulse, serve


def get(address: str, path: str) -> tuple[int, Any]:
    """Status and content of a page: JSON, or text."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as page:
            status, body = page.status, page.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    return status, body.decode() if path == "/metrics" else json.loads(body)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
def test_the_port_is_bound_where_the_settings_say(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("needs IPv6 on this machine")
    registry = CollectorRegistry()
    Counter("studies", "Studies", registry=registry).inc()
    with serve(registry, host, 0, {}, {}) as address:
        port = address.rpartition(":")[2]
        asked = {"0.0.0.0": f"127.0.0.1:{port}", "::": f"[::1]:{port}"}.get(host, address)
        status, text = get(asked, "/metrics")
    assert (status, "studies_total 1.0" in text) == (200, True)


def test_checks_decide_the_status() -> None:
    problems = {"database": "", "inbox": ""}
    ready = {name: lambda name=name: problems[name] for name in problems}
    with serve(CollectorRegistry(), "127.0.0.1", 0, {"main loop": lambda: ""}, ready) as address:
        assert get(address, "/healthz") == (200, {"status": "ok", "checks": {"main loop": "ok"}})
        assert get(address, "/readyz")[0] == 200
        problems["inbox"] = "/inbox: Permission denied"
        assert get(address, "/readyz") == (
            503,
            {
                "status": "failed",
                "checks": {"database": "ok", "inbox": "/inbox: Permission denied"},
            },
        )
        assert get(address, "/healthz")[0] == 200
        assert get(address, "/other") == (404, {"pages": ["/metrics", "/healthz", "/readyz"]})


def test_a_check_that_fails_is_a_failed_check() -> None:
    def broken() -> str:
        raise KeyError("rows")

    with serve(CollectorRegistry(), "127.0.0.1", 0, {"main loop": broken}, {}) as address:
        status, body = get(address, "/healthz")
    assert (status, body["checks"]["main loop"]) == (503, "KeyError: 'rows'")


def test_a_loop_without_progress_is_told() -> None:
    now_s = [0.0]
    pulse = Pulse(30.0, lambda: now_s[0])
    now_s[0] = 30.0
    assert pulse.problem() == ""
    now_s[0] = 31.0
    assert pulse.problem() == "no progress for 31 s"
    pulse.beat()
    assert pulse.problem() == ""


def test_a_port_can_be_served_again_at_once() -> None:
    """A connection that was closed a moment ago does not hold it."""
    with serve(CollectorRegistry(), "127.0.0.1", 0, {}, {}) as address:
        assert get(address, "/healthz")[0] == 200
    port = int(address.rpartition(":")[2])
    for _ in range(5):
        with serve(CollectorRegistry(), "127.0.0.1", port, {}, {}) as again:
            assert get(again, "/healthz")[0] == 200


def test_a_taken_port_and_an_unknown_host_are_errors_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = serve(CollectorRegistry(), "127.0.0.1", other.getsockname()[1], {}, {})
        with pytest.raises(OSError, match="in use"), taken:
            pass
    unknown = serve(CollectorRegistry(), "no.invalid", 0, {}, {})
    with pytest.raises(socket.gaierror), unknown:
        pass
