"""The status page in a real browser; skipped where Chromium is not installed."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error

from edge.dicom_out.part import deliveries_panel
from edge.drift.compare import BASELINE, MIN_RECENT
from edge.drift.observe import put as put_drift
from edge.run import site_of
from edge.store.record import Step
from evaluation.errors import MissingProgram
from process.http import Listener, serving
from tests.edge.builders import put
from tests.edge.drift.test_compare import studies
from tests.edge.status.site import CT, OUTLINED, PASSWORD, SEEN, Site
from tests.page_views import VIEWS, faults_of
from tools.pictures import Browser, View, browser

PATIENCE_S = 120.0
pytestmark = pytest.mark.long
DESKTOP = View("desktop", 1280)


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    """One browser for all tests."""
    try:
        with browser() as one:
            yield one
    except MissingProgram as error:
        pytest.skip(str(error))


class Person:
    """Somebody at the browser."""

    def __init__(self, shown: Browser, url: str) -> None:
        self.page, self._url = shown.page, url
        shown.show(DESKTOP)

    def go(self, path: str) -> None:
        self.page.goto(f"{self._url}{path}")

    def log_in(self) -> None:
        """Through the form, as a person does."""
        self.go("/login")
        self.page.fill("#password", PASSWORD)
        self.run("document.querySelector('form').requestSubmit()")
        self.until("document.querySelector('#studies') !== null")

    def run(self, script: str) -> Any:
        return self.page.evaluate(f"() => {{ {script} }}")

    def see(self, expression: str) -> Any:
        """The value of an expression of the page."""
        return self.page.evaluate(f"() => ({expression})")

    def until(self, expression: str) -> None:
        """Wait until it holds."""
        self.wait(lambda: bool(self.see(expression)), expression)

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with suppress(Error):  # the page is being left
                if holds():
                    return
            time.sleep(0.05)
        raise AssertionError(f"{what} never held; {self.see('document.body.innerText')}")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A study that was read, one that was refused, one that waits, and one that arrives."""
    site = Site(tmp_path)
    site.add("read", key=f"{7:032x}", report=SEEN)
    reason = {"kind": "IncompleteSeries", "reason": "slice 12 is missing"}
    site.add("refused", key=f"{8:032x}", step=Step.QUARANTINED, report=None, reason=reason)
    site.add("waits", key=f"{9:032x}", step=Step.CLAIMED, report=None)
    put(site.folders.inbox, "arrives", done=False)
    with site.store() as store:
        for seen in (*studies(BASELINE, 0), *studies(MIN_RECENT, 1, uncertain=20.0)):
            put_drift(store.database, seen, "")
    return site


@pytest.fixture
def person(shown: Browser, site: Site) -> Iterator[Person]:
    site.give_up(f"{7:032x}", "the association was refused")
    app = site.app(panels=[deliveries_panel(site_of(site.with_target()))])
    with serving(app, Listener("127.0.0.1:0")) as bound:
        person = Person(shown, bound.url)
        person.log_in()
        yield person


def test_a_person_logs_in_and_sees_queue_and_studies(person: Person) -> None:
    text = person.see("document.body.innerText")
    for words in ("waits", "arrives", "slice 12 is missing", "Doe Jane", "the association was"):
        assert words in text
    person.until("[...document.images].every(i => i.complete)")


def test_the_page_keeps_itself_fresh(person: Person, site: Site) -> None:
    """Without being loaded again: a new study appears."""
    person.run("window.stays = true")
    put(site.folders.inbox, "later", done=False)
    person.until("document.body.innerText.includes('later')")
    assert person.see("window.stays")


@pytest.mark.parametrize(
    "path", ["/", "/drift", f"/study/{7:032x}", f"/study/{8:032x}", f"/study/{7:032x}/view"]
)
def test_nothing_overflows_and_every_contrast_is_enough(
    person: Person, shown: Browser, path: str
) -> None:
    """At 1280 and 390 pixels, light and dark, as in the report's page."""
    person.go(path)
    found = {}
    for view in VIEWS:
        found[view.name] = faults_of(shown, view)
    assert found == {view.name: [] for view in VIEWS}


def opened(person: Person, end: str = "") -> None:
    """Open the images of the study that was read."""
    person.go(f"/study/{7:032x}/view{end}")
    person.until("document.getElementById('message').hidden && shown !== null")


def state(person: Person) -> dict[str, Any]:
    """Plane, slice, window and marks that are shown, and a pixel in the middle."""
    script = """
    const middle = shown && [Math.floor(shown.columns / 2), Math.floor(shown.rows / 2)];
    const grey = middle && source.getContext('2d').getImageData(...middle, 1, 1).data[0];
    return {plane: view.plane, at: view.at[view.plane], level: view.level, width: view.width,
      grey, hu: shown && shown.hu[middle[1] * shown.columns + middle[0]],
      rows: shown && shown.rows, label: document.getElementById('number').textContent,
      marks: [...overlay.querySelectorAll('g')].map(g => g.dataset.number)};"""
    found: dict[str, Any] = person.run(script)
    return found


def shows(person: Person, **expected: object) -> None:
    """Wait until the viewer shows it."""

    def holds() -> bool:
        now = state(person)
        return all(now[name] == value for name, value in expected.items())

    person.wait(holds, str(expected))


def test_the_viewer_scrolls_by_keys_wheel_and_slider(person: Person) -> None:
    """Each slice of the phantom has its number as the value in its middle."""
    opened(person)
    shows(person, plane="axial", at=12, hu=12, label="image 13, slice 13 of 24")
    for key, at in (("ArrowUp", 13), ("PageDown", 3), ("Home", 0), ("ArrowDown", 0), ("End", 23)):
        person.page.keyboard.press(key)
        shows(person, at=at, hu=at)
    person.page.mouse.move(400, 400)
    person.page.mouse.wheel(0, 120)
    shows(person, at=20, hu=20)
    person.run("slider.value = 5; slider.dispatchEvent(new Event('input'))")
    shows(person, at=5, hu=5, label="image 6, slice 6 of 24")


def test_the_window_changes_by_presets_keys_and_dragging(person: Person) -> None:
    opened(person)
    shows(person, level=-600, width=1500, hu=12)
    assert state(person)["grey"] == round(255 * (12 + 600 + 750) / 1500 - 0.5)
    person.page.keyboard.press("2")
    shows(person, level=40, width=350, grey=round(255 * (12 - 40 + 175) / 350 - 0.5))
    person.page.keyboard.press("3")
    shows(person, level=400, width=1800)
    person.page.keyboard.press("ArrowRight")
    shows(person, level=420)
    person.page.mouse.move(300, 300)
    person.page.mouse.down()
    person.page.mouse.move(350, 320)
    person.page.mouse.up()
    shows(person, level=460, width=2000)


def test_the_planes_and_a_jump_to_a_finding(person: Person) -> None:
    """Circles with numbers appear in the slices that a finding reaches, and only there."""
    opened(person)
    shows(person, at=12, marks=[])
    person.run("document.querySelector('.entry[data-number=\"1\"]').click()")
    shows(person, at=6, marks=["1"])
    circle = "document.querySelector('#overlay g[data-number=\"1\"] circle')"
    box = "canvas.getBoundingClientRect()"
    x, y = (person.see(f"{circle}.getAttribute('{name}') / {box}.{side}")
            for name, side in (("cx", "width"), ("cy", "height")))  # fmt: skip
    assert (x, y) == pytest.approx((12.5 / 32, 20.5 / 32), abs=0.01)
    person.page.keyboard.press("c")
    shows(person, plane="coronal", at=20, rows=CT.count, marks=["1"])
    assert person.see(f"{circle}.getAttribute('cy') / {box}.height") == pytest.approx(
        (CT.count - 1 - 6 + 0.5) / CT.count, abs=0.01
    )
    person.page.keyboard.press("n")
    shows(person, plane="coronal", at=10, marks=["2"])
    person.page.keyboard.press("s")
    shows(person, plane="sagittal", at=22, marks=["2"])
    assert person.see("document.querySelector('#overlay g').classList.contains('possible')")
    person.page.keyboard.press("m")
    person.until("document.getElementById('overlay').classList.contains('off')")


def test_an_outline_is_drawn_where_there_is_one_and_hidden_with_the_marks(
    person: Person, site: Site
) -> None:
    """In all planes, in the slices that it reaches; a possible finding without one has a circle."""
    site.add("outlined", key=f"{6:032x}", report=OUTLINED)
    person.go(f"/study/{6:032x}/view#1")
    person.until("document.getElementById('message').hidden && shown !== null")
    shows(person, plane="axial", at=6, marks=["1"])
    box = """(() => {
        const path = document.querySelector('#overlay g[data-number="1"] path').getBBox();
        const all = canvas.getBoundingClientRect();
        return [path.x / all.width, path.y / all.height, path.width / all.width,
                path.height / all.height];
    })()"""

    def lies_at(*expected: float) -> None:  # the marks are drawn after the slice
        person.wait(lambda: person.see(box) == pytest.approx(expected, abs=0.004), str(expected))

    lies_at(10 / 32, 18 / 32, 5 / 32, 5 / 32)
    assert person.see("document.querySelector('#overlay circle')") is None
    person.page.keyboard.press("c")
    shows(person, plane="coronal", at=20, marks=["1"])
    high = (CT.count - 8) / CT.count
    lies_at(10 / 32, high, 5 / 32, 3 / CT.count)
    person.page.keyboard.press("s")
    shows(person, plane="sagittal", at=12, marks=["1"])
    lies_at(18 / 32, high, 5 / 32, 3 / CT.count)
    person.page.keyboard.press("a")
    for at, marks in ((7, ["1"]), (8, [])):  # a circle of 12 mm would reach slice 8
        person.page.keyboard.press("ArrowUp")
        shows(person, at=at, marks=marks)
    person.page.keyboard.press("n")
    shows(person, at=15, marks=["2"])
    assert "edge 0.45" in person.see("document.querySelector('[aria-current=true]').innerText")
    assert person.see("document.querySelector('#overlay g circle') !== null")
    visible = "getComputedStyle(overlay).display !== 'none'"
    assert person.see(visible)
    person.run("document.getElementById('marks').click()")
    assert not person.see(visible)
    person.run("document.getElementById('marks').click()")
    assert person.see(visible)


def test_one_finger_scrolls(person: Person, shown: Browser) -> None:
    opened(person)
    shows(person, at=12)
    for kind, y in (("touchStart", 400), ("touchMove", 340), ("touchEnd", None)):
        points = [] if y is None else [{"x": 300, "y": y}]
        shown.devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    shows(person, at=22)


def test_a_study_whose_images_were_removed_says_so(person: Person, site: Site) -> None:
    (site.folders.done / f"{7:032x}").rename(site.root / "elsewhere")
    person.go(f"/study/{7:032x}/view")
    person.until("document.getElementById('message').innerText.includes('were removed')")
