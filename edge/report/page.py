"""Render ``report.html``, the page of a report for people.

The page needs no other file. Its text may come from an untrusted DICOM header, so it is escaped,
and the page forbids scripts.
"""

import os
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from string import ascii_letters, digits

from jinja2 import Environment, FileSystemBytecodeCache, PackageLoader, StrictUndefined, Template
from jinja2.bccache import Bucket

from edge.findings import READERS_MM
from edge.report.model import NOT_A_DEVICE, Report
from edge.report.view import view_of

PAGES = "~/.cache/overread/pages"
_NAMED = ("Patient", "Patient ID", "Study date")
"""What every printed page names."""


def render_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Render the page with its pictures, which are named as `draw_pictures` names them."""
    view = view_of(report)
    head = ", ".join(filter(None, [*(dict(view.study)[name] for name in _NAMED)])) or view.who
    return _template().render(
        report=report,
        view=view,
        images={name: b64encode(data).decode() for name, data in pictures.items()},
        disclaimer=NOT_A_DEVICE,
        readers_mm=READERS_MM,
        running_head=f"{head}, report version {report.version} of {report.created[:10]}",
        total_s=max(report.took_s, 1e-9),
    )


class _Compiled(FileSystemBytecodeCache):
    """The template as it was compiled, for the next start; without the folder it is compiled."""

    def load_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            Path(self.directory).mkdir(parents=True, exist_ok=True, mode=0o700)
            super().dump_bytecode(bucket)


@cache
def _template() -> Template:
    """Compile the page's template once: that takes longer than filling it."""
    environment = Environment(
        bytecode_cache=_Compiled(os.path.expanduser(PAGES)),
        loader=PackageLoader("edge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = _seconds
    environment.filters["css_string"] = _css_string
    return environment.get_template("report.html.j2")


def _css_string(text: str) -> str:
    """Escape text for a string in CSS: it may come from an untrusted header."""
    plain = frozenset(" ,.:-" + ascii_letters + digits)
    return "".join(c if c in plain else f"\\{ord(c):x} " for c in text)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
