"""``overread-eval status-pictures``: the status page and its viewer, as pictures for the documents.

A real agent and a real cloud read a synthetic chest, and a copy of it that lacks a slice, which is
refused. A browser then looks at the agent's page.
"""

import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from edge.run import run_agent, site_of
from edge.settings.core import EdgeSettings, load_settings
from edge.status.state import SiteState
from evaluation.common.phantoms import prepare, whole_chest
from evaluation.common.processes import cloud_service, free_ports
from evaluation.demo import DEADLINE_S, SEED
from evaluation.errors import ServiceFailed
from evaluation.screenshots import Browser, View, browser

PATIENCE_S = 900.0
COLOURS = 256
"""Of a picture; more are not seen, and the file is a third as large."""
PAGE = View("page", 1180)
VIEWER_PX = (1180, 720)


def status_pictures_command(
    out: Annotated[Path, typer.Option(help="Folder for status.png and viewer.png.")] = Path("docs"),
    cache: Annotated[Path, typer.Option(help="Folder for the phantom.")] = Path("demo"),
) -> None:
    """Read a phantom with agent and cloud, and draw the status page and the viewer."""
    (made,) = prepare([whole_chest(SEED)], cache)
    with (
        tempfile.TemporaryDirectory(prefix="overread-status-") as folder,
        cloud_service() as cloud,
        browser() as shown,
    ):
        settings = _settings(Path(folder), free_ports(1)[0], cloud)
        _put(made.folder, settings.inbox)
        with _agent(settings) as state:
            _wait(lambda: _is_idle(state), "the agent did not finish its studies")
            _draw(shown, f"http://{settings.page.address}", state, out)
    typer.echo(f"pictures: {out / 'status.png'}, {out / 'viewer.png'}")


def _settings(folder: Path, port: int, cloud: str) -> EdgeSettings:
    return load_settings(
        inbox=folder / "inbox",
        outbox=folder / "outbox",
        state_dir=folder / "state",
        deadline_s=DEADLINE_S,
        cloud__address=cloud,
        page__address=f"127.0.0.1:{port}",
    )


def _put(study: Path, inbox: Path) -> None:
    """Put the study into the inbox, and a copy that lacks a slice in its middle."""
    for name, without in ((study.name, None), ("incomplete-export", 40)):
        shutil.copytree(study, inbox / name)
        if without is not None:
            sorted((inbox / name).glob("*.dcm"))[without].unlink()
        (inbox / name / ".done").touch()


@contextmanager
def _agent(settings: EdgeSettings) -> Iterator[SiteState]:
    """Run an agent for the time of the context."""
    stop, faults = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            run_agent(settings, stop=stop)
        except BaseException as error:  # it is raised where the agent is waited for
            faults.append(error)

    thread = threading.Thread(target=work, name="agent")
    thread.start()
    try:
        yield SiteState(site_of(settings))
    finally:
        stop.set()
        thread.join()
        for fault in faults:
            raise fault


def _is_idle(state: SiteState) -> bool:
    try:
        left = [*state.arriving(), *state.unfinished(), *state.pending()]
        return not left and bool(state.latest(1)) and bool(state.refused())
    except sqlite3.Error:  # the agent has not made its database yet
        return False


def _draw(shown: Browser, url: str, state: SiteState, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shown.show(PAGE)
    shown.go(url)
    _wait(lambda: bool(shown.run("return [...document.images].every(i => i.complete)")), "pictures")
    _save(shown.screenshot(), out / "status.png")
    (study,) = state.latest(1)
    shown.show(View("viewer", VIEWER_PX[0]))
    size = {"width": VIEWER_PX[0], "height": VIEWER_PX[1], "deviceScaleFactor": 1, "mobile": False}
    shown.command("Emulation.setDeviceMetricsOverride", **size)
    shown.go(f"{url}/study/{study.key}/view#1")
    _wait(lambda: bool(shown.run("return document.getElementById('message').hidden")), "no images")
    time.sleep(1.0)  # the slice, and its neighbours
    _save(shown.screenshot(VIEWER_PX[1]), out / "viewer.png")


def _save(png: bytes, path: Path) -> None:
    with Image.open(BytesIO(png)) as picture:
        picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _wait(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise ServiceFailed(what)
        time.sleep(0.2)
