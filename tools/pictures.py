"""``python -m tools.pictures`` draws the pictures of README and the pages, by a real browser.

A real agent and a real cloud read a synthetic chest, and another one that lacks a slice. The
pictures are of the report, of the agent's status page and of its viewer. README shows what the demo
prints of the same chest. ``make evaluate`` runs it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import CDPSession, FloatRect, Page, sync_playwright

from evaluation.claims import in_rows
from evaluation.errors import MissingProgram
from evaluation.pages import write_pages
from evaluation.phantoms import prepare, whole_chest
from evaluation.run import run_program
from evaluation.world import free_ports, running_agent, running_cloud
from tools.demo import DEADLINE_S, SEED

PATIENCE_S = 900.0
README_PX = (1000, 1500)
"""Width and height of the picture in README."""
VIEWER_PX = (1180, 720)
DRAWN = ("report.png", "status.png", "viewer.png")
"""Pictures of the documents; each has the texts ``result`` of the report, and ``models``."""
COLOURS = 256
"""Of a picture: the file is a third as large. The thin outlines of a report need more."""


@dataclass(frozen=True)
class View:
    """A way to look at the page; ``width`` is in CSS pixels."""

    name: str
    width: int
    dark: bool = False
    phone: bool = False
    height: int = 900


@dataclass(frozen=True)
class Browser:
    """A headless Chromium with one ``page``; ``devtools`` are for what playwright lacks."""

    page: Page
    devtools: CDPSession

    def show(self, view: View) -> None:
        """Change width, colours and kind of device."""
        size = {"width": view.width, "height": view.height}
        scale = {"deviceScaleFactor": 2 if view.phone else 1, "mobile": view.phone}
        self.devtools.send("Emulation.setDeviceMetricsOverride", {**size, **scale})
        self.page.emulate_media(media="screen", color_scheme="dark" if view.dark else "light")

    def screenshot(self, height: int | None = None) -> bytes:
        """Return the page as PNG, from its top: the whole of it or ``height`` CSS pixels."""
        whole: Any = self.devtools.send("Page.getLayoutMetrics")
        size = whole["cssContentSize"]
        clip = FloatRect(x=0, y=0, width=size["width"], height=height or size["height"])
        return self.page.screenshot(full_page=True, clip=clip)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium; it has ended on return.

    Raises:
        MissingProgram: it is not installed.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise MissingProgram("chromium", "apt-get install chromium")
    # containers have little shared memory
    arguments = ["--force-color-profile=srgb", "--disable-dev-shm-usage"]
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=arguments) as shown,
    ):
        context = shown.new_context(no_viewport=True)
        page = context.new_page()
        yield Browser(page, context.new_cdp_session(page))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def documents(
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs"),
    cache: Annotated[Path, typer.Option(help="Folder for the phantoms.")] = Path("runs"),
) -> None:
    """Read phantoms with agent and cloud, and draw report.png, status.png and viewer.png."""
    (port,) = free_ports(1)
    with (
        browser() as shown,
        tempfile.TemporaryDirectory(prefix="overread-pictures-") as work,
        running_cloud() as cloud,
    ):
        made, other = prepare([whole_chest(SEED), whole_chest(SEED + 1)], cache)
        folder, inbox = Path(work), Path(work, "inbox")
        names = [made.folder.name, "incomplete-export"]
        for study, name in zip((made, other), names, strict=True):
            shutil.copytree(study.folder, inbox / name)
        sorted((inbox / name).glob("*.dcm"))[40].unlink()
        for name in names:
            (inbox / name / ".done").touch()
        settings: dict[str, Any] = {
            "deadline_s": DEADLINE_S,
            "cloud__address": cloud.address,
            "page__address": f"127.0.0.1:{port}",
        }
        with running_agent(folder, folder / "log", **settings) as agent:
            reports = [folder / "outbox" / name / "report.json" for name in names]
            agent.process.wait_until(lambda: all(map(_is_last, reports)), "answer", PATIENCE_S)
            _draw(shown, f"http://127.0.0.1:{port}", reports[0], out)
    printed = {"command": "make demo", "printed": _printed_by_demo(cache)}
    (out / "results" / "demo.json").write_text(in_rows(printed))
    write_pages(out)
    typer.echo(f"pictures: {', '.join(str(out / name) for name in DRAWN)}")


def _printed_by_demo(cache: Path) -> str:
    """Return what the demo prints, without what follows its first table but two lines."""
    command = (sys.executable, "-m", "tools.demo", "--out", str(cache / "demo"))
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    end = next(number for number, line in enumerate(lines, 1) if line.startswith("└"))
    last = [line for line in lines if re.match("[Ss]econd reading|.* nodules of the phantom", line)]
    return "\n".join([*lines[:end], "…", *last])


def _is_last(report: Path) -> bool:
    return report.is_file() and json.loads(report.read_bytes())["status"] != "provisional"


def _draw(shown: Browser, url: str, report: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    values = json.loads(report.read_bytes())
    shown.show(View("readme", README_PX[0]))
    shown.page.goto(report.with_suffix(".html").as_uri())
    drawn = [shown.screenshot(README_PX[1])]
    shown.show(View("page", VIEWER_PX[0]))
    shown.page.goto(url)
    _wait(lambda: shown.page.evaluate("[...document.images].every(i => i.complete)"))
    drawn.append(shown.screenshot())
    shown.show(View("viewer", *VIEWER_PX[:1], height=VIEWER_PX[1]))
    shown.page.goto(f"{url}/study/{values['study_key']}/view#1")
    _wait(lambda: shown.page.evaluate("document.getElementById('message').hidden"))
    time.sleep(1.0)  # the slice, and its neighbours
    drawn.append(shown.screenshot(VIEWER_PX[1]))
    told = PngInfo()
    told.add_text("result", values["result"])
    told.add_text("models", ", ".join(values["models"].values()))
    for name, png in zip(DRAWN, drawn, strict=True):
        with Image.open(BytesIO(png)) as picture:
            plain = picture.convert("RGB")
            kept = plain if name == DRAWN[0] else plain.quantize(COLOURS)
            kept.save(out / name, optimize=True, pnginfo=told)


def _wait(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.2)


if __name__ == "__main__":
    run_program(app)
