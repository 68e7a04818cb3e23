"""``overread-eval screenshots``: a report's page in a real browser, as pictures and as a PDF.

The page is shown at the width of a desktop and of a phone, light and dark, and printed. In each
view a script looks for content wider than its page, and for text of too little contrast.
Chromium is driven over WebDriver (https://www.w3.org/TR/webdriver2/), which runs scripts on a page
that forbids its own.
"""

import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.demo import SEED
from evaluation.errors import MissingData, MissingProgram, ServiceFailed

START_S = 60.0
ANSWER_S = 120.0

README_PX = (1000, 1500)
"""Width and height of the picture in README."""

PAGE_SCRIPT = """
const faults = [], side = arguments[0];
const name = e => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') +
  (e.classList.length ? '.' + [...e.classList].join('.') : '');
const clipped = e => { for (; e; e = e.parentElement)
  if (getComputedStyle(e).clipPath !== 'none') return true; return false; };
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = e => { for (; e; e = e.parentElement) {
  const colour = numbers(getComputedStyle(e).backgroundColor);
  if (colour.length < 4 || colour[3] > 0) return colour; } return [255, 255, 255]; };
if (document.documentElement.scrollWidth > side)
  faults.push(`the page is ${document.documentElement.scrollWidth} px wide, the window ${side} px`);
for (const e of document.body.querySelectorAll('*')) {
  if (e.closest('svg') || !e.checkVisibility() || clipped(e)) continue;
  const box = e.getBoundingClientRect();
  if (box.left < -0.5 || box.right > side + 0.5)
    faults.push(`${name(e)} reaches from ${box.left} to ${box.right} px`);
  if (e.clientWidth && e.scrollWidth > e.clientWidth + 1)
    faults.push(`${name(e)} holds ${e.scrollWidth} px in ${e.clientWidth} px`);
  if ([...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) {
    const [one, other] = [numbers(getComputedStyle(e).color), behind(e)].map(light);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) faults.push(`${name(e)} has a contrast of ${ratio.toFixed(1)}`);
  }
}
return [...new Set(faults)];
"""
"""Returns the faults of the page in a window of this many pixels: overflow, and contrast below 4.5
(WCAG 2.2, AA)."""


@dataclass(frozen=True)
class View:
    """A way to look at the page; ``width`` is in CSS pixels."""

    name: str
    width: int
    dark: bool = False
    phone: bool = False


VIEWS = (
    View("desktop", 1280),
    View("desktop_dark", 1280, dark=True),
    View("phone", 390, phone=True),
    View("phone_dark", 390, dark=True, phone=True),
)


class Browser:
    """A headless Chromium; ``port`` is that of its WebDriver on loopback."""

    def __init__(self, port: int) -> None:
        self._port = port
        # Chromium's own sandbox does not start for root
        arguments = ["--headless=new", "--hide-scrollbars", "--force-color-profile=srgb"]
        arguments += ["--disable-dev-shm-usage"]  # containers have little shared memory
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"
        self._width = 0

    def close(self) -> None:
        """End the browser."""
        self._call("DELETE", self._session)

    def open(self, page: Path) -> None:
        """Show a file."""
        self.go(page.resolve().as_uri())

    def go(self, url: str) -> None:
        """Show the page at an address."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *values: object) -> Any:
        """Run a script on the page, and return what it returns."""
        body = {"script": script, "args": list(values)}
        return self._call("POST", f"{self._session}/execute/sync", body)

    def show(self, view: View) -> None:
        """Change width, colours and kind of device."""
        self._width = view.width
        size = {"width": view.width, "height": 900, "deviceScaleFactor": 2 if view.phone else 1}
        self.command("Emulation.setDeviceMetricsOverride", **size, mobile=view.phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if view.dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def faults(self) -> list[str]:
        """Return what `PAGE_SCRIPT` finds."""
        return [str(fault) for fault in self.run(PAGE_SCRIPT, self._width)]

    def screenshot(self, height: int | None = None) -> bytes:
        """Return the page as PNG, from its top: the whole of it or ``height`` CSS pixels."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"]}
        shot = self.command(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
        )
        return b64decode(shot["data"])

    def printed(self) -> bytes:
        """Return the page as PDF, on A4."""
        a4 = {"paperWidth": 8.27, "paperHeight": 11.69}
        return b64decode(self.command("Page.printToPDF", **a4)["data"])

    def command(self, name: str, **params: object) -> Any:
        """Run a command of Chromium's DevTools protocol."""
        path = f"{self._session}/goog/cdp/execute"
        return self._call("POST", path, {"cmd": name, "params": params})

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())["value"]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise ServiceFailed(f"chromedriver does not answer {path}: {error}") from error
        finally:
            connection.close()
        if isinstance(answer, Mapping) and "error" in answer:
            raise ServiceFailed(f"chromedriver, {path}: {answer['error']}: {answer['message']}")
        return answer


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium and its driver; both have ended on return.

    Raises:
        MissingProgram: one of them is not installed.
        ServiceFailed: the driver does not start, or answers with an error.
    """
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        raise MissingProgram(
            "chromium and chromedriver", "apt-get install chromium chromium-driver"
        )
    with tempfile.TemporaryDirectory(prefix="overread-browser-") as folder:
        log = Path(folder, "chromedriver.log")
        environment = {**os.environ, "TMPDIR": folder}
        with (
            log.open("wb") as lines,
            subprocess.Popen(
                [driver, "--port=0"], stdout=lines, stderr=lines, env=environment
            ) as process,
        ):
            try:
                shown = Browser(_port(process, log))
                try:
                    yield shown
                finally:
                    shown.close()
            finally:
                process.terminate()


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    """Wait until the driver has said on which port it listens."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if said := re.search(r"successfully on port (\d+)", log.read_text("utf-8", "replace")):
            return int(said.group(1))
        time.sleep(0.05)
    raise ServiceFailed(f"chromedriver did not start: {log.read_text('utf-8', 'replace')[-500:]}")


def look(shown: Browser, page: Path, out: Path) -> dict[str, list[str]]:
    """Write a screenshot of each of `VIEWS` and the PDF into ``out``; return faults by view."""
    out.mkdir(parents=True, exist_ok=True)
    shown.open(page)
    faults = {}
    for view in VIEWS:
        shown.show(view)
        faults[view.name] = shown.faults()
        (out / f"{view.name}.png").write_bytes(shown.screenshot())
    (out / "printed.pdf").write_bytes(shown.printed())
    return faults


def screenshots_command(
    page: Annotated[Path, typer.Argument(help="Page of a report.", metavar="<path>")] = Path(
        f"demo/reports/phantom-{SEED}/report.html"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/screenshots"),
    readme: Annotated[
        Path | None, typer.Option(help="PNG of the page's top, as README has it.")
    ] = None,
) -> None:
    """Show a report's page in Chromium: desktop, phone, dark, and printed.

    It ends with status 1 if anything is wider than its page, or has too little contrast.
    """
    if not page.is_file():
        raise MissingData(page, "there is no such page; make demo writes the default one")
    with browser() as shown:
        found = look(shown, page, out)
        if readme is not None:
            shown.show(View("readme", README_PX[0]))
            readme.write_bytes(shown.screenshot(README_PX[1]))
    for name, faults in found.items():
        typer.echo(f"{name}: {'; '.join(faults) or 'nothing overflows, every contrast is enough'}")
    typer.echo(f"pictures and PDF: {out}")
    if any(found.values()):
        raise typer.Exit(1)
