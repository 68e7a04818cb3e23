"""A page in a real browser: the ways to look at it, and what is wrong with it."""

from pathlib import Path

from tools.pictures import Browser, View

PAGE_SCRIPT = """
side => {
const faults = [];
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
}
"""
"""Returns the faults of the page in a window of this many pixels: overflow, and contrast below 4.5
(WCAG 2.2, AA)."""


VIEWS = (
    View("desktop", 1280),
    View("desktop_dark", 1280, dark=True),
    View("phone", 390, phone=True),
    View("phone_dark", 390, dark=True, phone=True),
)


def faults_of(shown: Browser, view: View) -> list[str]:
    """Show the page in this view, and return what `PAGE_SCRIPT` finds."""
    shown.show(view)
    return [str(fault) for fault in shown.page.evaluate(PAGE_SCRIPT, view.width)]


def look(shown: Browser, page: Path, out: Path) -> dict[str, list[str]]:
    """Write a screenshot of each of `VIEWS` and the PDF into ``out``; return faults by view."""
    out.mkdir(parents=True, exist_ok=True)
    shown.page.goto(page.resolve().as_uri())
    faults = {}
    for view in VIEWS:
        faults[view.name] = faults_of(shown, view)
        (out / f"{view.name}.png").write_bytes(shown.screenshot())
    shown.page.pdf(format="A4", path=out / "printed.pdf")
    return faults
