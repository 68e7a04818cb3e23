"""The part of `docs/parts.md`, in an agent that runs."""

import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

import edge.run
from edge.run import PARTS, run_agent
from edge.settings.core import EdgeSettings
from evaluation.world import settings_in
from tests.edge.builders import put
from tests.edge.running_agent import quick_read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parts.md"


class Settings(EdgeSettings):
    webhook: str = ""


@pytest.fixture
def posted() -> Any:
    """A web address, and what came there; the first call fails."""
    lines: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            lines.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(503 if len(lines) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", lines
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_part_of_the_page_posts_each_report(
    tmp_path: Path, posted: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs its own file, a setting, and a word in `edge.run`; a call that fails comes again."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), made)
    monkeypatch.setattr(edge.run, "PARTS", (*PARTS[:-1], made["WebhookPart"], PARTS[-1]))
    url, lines = posted
    for name in "ab":
        put(tmp_path / "inbox", name)
    values = settings_in(tmp_path).model_dump()
    stop = Event()

    def enough(work: Callable[..., bool]) -> Callable[..., bool]:
        def watched(part: Any, waiting: bool) -> bool:
            busy = work(part, waiting)
            if not busy and len(lines) > 2:
                stop.set()
            return busy

        return watched

    monkeypatch.setattr(made["WebhookPart"], "work", enough(made["WebhookPart"].work))
    run_agent(Settings(**{**values, "webhook": url}), read=quick_read, stop=stop)
    keys = {path.name for path in (tmp_path / "state" / "done").iterdir()}
    assert {line.split()[0] for line in lines} == keys
    assert sorted(line.split()[1] for line in lines) == ["1", "1", "1"]
