"""Metrics, healthz and readyz over real HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from process.endpoints import Checks, Pulse, serving_metrics


def get(address: str, path: str) -> tuple[int, Any]:
    """Status and content of a page: JSON, or text."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as page:
            status, body = page.status, page.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    return status, body.decode() if path == "/metrics" else json.loads(body)


@contextmanager
def serving(
    alive: Checks, ready: Checks, registry: CollectorRegistry | None = None
) -> Iterator[str]:
    with serving_metrics(registry or CollectorRegistry(), "127.0.0.1:0", alive, ready) as address:
        assert address is not None
        yield address


def test_metrics_are_served_where_they_have_an_address() -> None:
    registry = CollectorRegistry()
    Counter("studies", "Studies", registry=registry).inc()
    with serving({}, {}, registry) as address:
        status, text = get(address, "/metrics")
    assert (status, "studies_total 1.0" in text) == (200, True)
    with serving_metrics(registry, "", {}, {}) as off:
        assert off is None


def test_checks_decide_the_status() -> None:
    problems = {"database": "", "inbox": ""}
    ready = {name: lambda name=name: problems[name] for name in problems}
    with serving({"main loop": lambda: ""}, ready) as address:
        assert get(address, "/healthz") == (200, {"status": "ok", "checks": {"main loop": "ok"}})
        assert get(address, "/readyz")[0] == 200
        problems["inbox"] = "/inbox: Permission denied"
        checks = {"database": "ok", "inbox": "/inbox: Permission denied"}
        assert get(address, "/readyz") == (503, {"status": "failed", "checks": checks})
        assert get(address, "/healthz")[0] == 200
        assert get(address, "/other") == (404, {"pages": ["/metrics", "/healthz", "/readyz"]})


def test_a_check_that_fails_is_a_failed_check() -> None:
    def broken() -> str:
        raise KeyError("rows")

    with serving({"main loop": broken}, {}) as address:
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
