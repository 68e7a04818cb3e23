"""Nothing from outside is obeyed by a terminal."""

import io
import json

import pytest
from rich.console import Console
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from process.text import Printable, printable, printable_json, printable_line

OWNED = "\x1b]0;owned\x07"
HOSTILE = [
    OWNED,
    "\x1b[2J\x1b[H",
    "\x9b2J",  # the same for a terminal that knows the 8-bit form
    "\r overwritten",
    "\b\b\b",
    "\x7f",
    "\u202egnp.exe",  # from here on the text runs from right to left
    "\u2066",
    "\ud800",
]


def obeyed(text: str) -> bool:
    """Whether a terminal would do anything with the text but show it."""
    return any(not one.isprintable() for one in text if one not in "\n\t ")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_is_left(text: str) -> None:
    assert obeyed(text)
    assert not obeyed(printable(text))


def test_ordinary_text_is_left_alone() -> None:
    text = "Müller^Zoë  Ω 肺 ≥ 6 mm\n\tend"
    assert printable(text) == text


def test_one_line_stays_one_line() -> None:
    assert printable_line("a\nb\tc\r") == r"a\nb\tc\x0d"


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_json_says_the_same_and_is_safe(text: str) -> None:
    made = printable_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert not obeyed(made)
    assert json.loads(made) == {text: [text]}


def drawn(shown: object) -> str:
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=200, color_system="truecolor").print(shown)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_tables_and_panels_show_no_escape_sequence_but_their_own(text: str) -> None:
    table = Table(f"head {text}", title=text)
    table.add_row(f"[bold]cell[/] {text}")
    shown = drawn(Printable(table, Panel(text, title=f"title {text}"), f"[red]{text}[/]"))
    assert "\x1b[1m" in shown  # rich's own, for bold text
    for own in ("\x1b[", "\n"):
        shown = shown.replace(own, "")
    assert not obeyed(shown)
    assert "owned" in shown or text != OWNED


def test_a_link_with_an_escape_sequence_is_no_link() -> None:
    """Rich writes the target of a link as it is."""
    bad, good = (Text("x", Style(link=f"file:///{name}")) for name in (OWNED, "a.png"))
    assert "owned" in drawn(bad)
    assert "owned" not in drawn(Printable(bad))
    assert "file:///a.png" in drawn(Printable(good))
