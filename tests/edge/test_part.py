"""The part of `docs/parts.md`, in an agent that runs."""

import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

import edge.run
from edge.run import PARTS, run_agent
from edge.settings.core import EdgeSettings
from evaluation.world import settings_in
from tests.edge.builders import put_all
from tests.edge.running_agent import quick_read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parts.md"


class Settings(EdgeSettings):
    webhook: str = ""


def test_the_part_of_the_page_posts_each_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs its own file, a setting, and a word in `edge.run`; a call that fails comes again."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), made)
    monkeypatch.setattr(edge.run, "PARTS", (*PARTS[:-1], made["WebhookPart"], PARTS[-1]))
    lines, stop = list[str](), Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            lines.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(503 if len(lines) == 1 else 200)
            self.end_headers()
            if len(lines) > 2:
                stop.set()

        def log_message(self, *_: object) -> None:
            pass

    put_all(tmp_path / "inbox", a="x", b="x", c="bad")
    values = settings_in(tmp_path).model_dump()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        values["webhook"] = f"http://127.0.0.1:{server.server_port}"
        run_agent(Settings(**values), read=quick_read, stop=stop)
        server.shutdown()
        thread.join()
    keys = {path.name for path in (tmp_path / "state" / "done").iterdir()}
    assert {line.split()[0] for line in lines} == keys
    assert [line.split()[1] for line in lines] == ["1", "1", "1"]
