"""Text from outside, made safe for a terminal and for a line of a log.

A DICOM header, a file name or a peer's message may hold escape sequences. A terminal obeys them:
they rename its window, write over what stands there, or type for the user.
"""

import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Control characters of ASCII and Latin-1 apart from tab and line feed, line and paragraph
# separators, characters that turn the direction of writing, and halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Return the text with each character that a terminal would obey written as ``\x1b``."""
    return _UNSAFE.sub(lambda found: _escaped(found[0], "\\x{:02x}"), str(text))


def printable_line(text: object) -> str:
    """Return the text as `printable`, and on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """Return the JSON text with the same content, safe for a terminal."""
    return _UNSAFE.sub(lambda found: _escaped(found[0], "\\u{:04x}"), text)


def _escaped(character: str, short: str) -> str:
    code = ord(character)
    return short.format(code) if code < 256 else f"\\u{code:04x}"


class Printable:
    """What rich draws of ``content``, without any escape sequence but its own."""

    def __init__(self, *content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for part in self._content:
            for text, style, control in console.render(part, options):
                if control:  # rich's own: it moves the cursor of a progress bar
                    yield Segment(text, style, control)
                    continue
                if style is not None and style.link and style.link != printable_line(style.link):
                    style = style.update_link(None)
                yield Segment(printable(text), style)
