"""Print a report on a terminal: both lists of findings, the ledger, and the progress before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.status import Status
from rich.table import Table

from edge.report.model import NOT_A_DEVICE, Report
from edge.report.view import Listing, Row, Section, view_of
from edge.report.wording import counted

PROGRESS_AFTER_S = 2.0
DISCLAIMER = f"[dim]{NOT_A_DEVICE}[/]"


def render_report(report: Report) -> RenderableType:
    """Return all that a person at the terminal needs of one study, but where its report is."""
    view = view_of(report)
    if not report.was_read:
        (banner,) = view.banners
        return Group(Panel(escape("\n".join(banner.lines)), title=escape(banner.title)), DISCLAIMER)
    dismissed = (
        f"{len(report.dismissed)} of {counted(len(report.decisions), 'candidate')} dismissed"
    )
    caption = f"{dismissed} on the edge, highest score {report.highest_dismissed_score:.3f}"
    rows = [row for listing in view.lists for row in listing.rows]
    return Group(
        f"[bold]{escape(report.result)}[/]",
        *(f"- {escape(step)}" for step in report.next_steps),
        *(_said(banner, "bold yellow") for banner in view.banners),
        *(_table(one, "" if n else caption) for n, one in enumerate(view.lists)),
        *(f"[bold]{row.number}[/]  {escape(_reason(row))}" for row in rows),
        "",
        _ledger_table(report),
        *map(_said, view.sections.values()),
        f"[bold]Rule[/]  {escape(dict(view.origin)['Rule'])}",
        DISCLAIMER,
    )


def _said(part: Section, style: str = "bold") -> str:
    lines = escape("\n".join(part.lines))
    return f"[{style}]{escape(part.title)}[/]  {lines}"


def _reason(row: Row) -> str:
    apart = f"the readers disagree, {row.disagreement}; " if row.disagreement else ""
    return (row.place and f"{row.place}: ") + apart + row.reason


def _table(listing: Listing, caption: str) -> Table:
    """Return one of the lists; a star marks what is small."""
    marks = {row.small for row in listing.rows} - {""}
    notes = (caption, listing.note, *(f"* {mark}" for mark in marks))
    table = Table(title=listing.title, caption="\n".join(filter(None, notes)))
    for heading in ("#", "x, y, z mm (LPS)", "mm", "probability", "edge", "cloud"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("decided by")
    for row in listing.rows:
        size = row.diameter + ("*" if row.small else "")
        scores = row.probability, row.edge, row.cloud or "-"
        table.add_row(str(row.number), row.centre, size, *scores, row.decided_by)
    return table


def _ledger_table(report: Report) -> Table:
    table = Table(title=f"{report.took_s:.2f} s of {report.deadline_s:.2f} s")
    table.add_column("stage")
    table.add_column("budget s", justify="right")
    table.add_column("took s", justify="right")
    for entry in report.ledger:
        table.add_row(entry.stage, f"{entry.budget_s:.3f}", f"{entry.took_s:.3f}")
    return table


class Progress:
    """Shows the running stage on a terminal, once a study has taken `PROGRESS_AFTER_S`."""

    def __init__(self, console: Console) -> None:
        self._status = Status("starting", console=console)
        self._terminal = console.is_terminal

    def on_stage(self, stage: str) -> None:
        """Show the name of the stage that begins."""
        self._status.update(stage)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress inside the context; nothing where there is no terminal."""
        timer = Timer(PROGRESS_AFTER_S, self._status.start)
        if self._terminal:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._status.stop()
