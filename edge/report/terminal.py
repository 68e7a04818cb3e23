"""Print a report on a terminal: both lists of findings, the ledger, and the progress before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Timer

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.status import Status
from rich.table import Table

from edge.clinical.brock import REFERENCE
from edge.clinical.lung_rads import STANDARD
from edge.findings import SMALL_MM, Finding
from edge.report.model import NOT_A_DEVICE, Report
from edge.report.wording import counted

PROGRESS_AFTER_S = 2.0
DISCLAIMER = f"[dim]{NOT_A_DEVICE}[/]"


def render_report(report: Report) -> RenderableType:
    """Return all that a person at the terminal needs of one study, but where its report is."""
    if not report.was_read:
        why = report.rejection
        text = f"{why.reason}\n{why.file}" if why else report.second_reading_reason
        title = f"Refused: {why.kind}" if why else "Not read"
        return Group(Panel(escape(text), title=title), DISCLAIMER)
    return Group(
        f"[bold]{escape(report.result)}[/]",
        *(f"- {escape(step)}" for step in report.next_steps),
        *(f"[bold yellow]limitation[/]  {escape(x.text)}" for x in report.limitations),
        _findings_table(report),
        *([_possible_table(report)] if report.possible else []),
        *(
            f"findings {', '.join(map(str, group))} lie in one consolidation"
            for group in report.groups
        ),
        *(f"[bold]{n}[/]  {_where(report, n, f)}{escape(f.reason)}" for n, f in report.listed),
        "",
        _ledger_table(report),
        f"[bold]second reading[/]  {_second_reading(report)}",
        *(f"[bold]{role} model[/]  {escape(model)}" for role, model in report.models.items()),
        *_clinical(report),
        f"[bold]rule[/]  {escape(report.rule.name)}",
        *(f"[bold]not read[/]  {escape(series)}" for series in report.other_series),
        f"[bold]guarantee[/]  {escape(report.guarantee.text)}",
        *([f"[bold]audit[/]  {escape(report.audit.text)}"] if report.audit else []),
        DISCLAIMER,
    )


def _clinical(report: Report) -> Iterator[str]:
    """Yield the suggested category, and the probability of cancer of each finding."""
    if suggested := report.lung_rads:
        reasons = escape(" ".join(suggested.reasons))
        yield f"[bold]{STANDARD}[/]  suggested: {suggested.text}. {reasons}"
    if told := [f"{n}: {brock.probability:.1%}" for n, brock in report.brock.items()]:
        unknown = dict.fromkeys(text for brock in report.brock.values() for text in brock.unknown)
        without = f"; unknown: {', '.join(unknown)} ({REFERENCE})" if unknown else ""
        yield f"[bold]Brock probability of cancer[/]  {', '.join(told)}{escape(without)}"
    if report.clinical.problem:
        yield f"[bold]not used[/]  {report.clinical.source}: {escape(report.clinical.problem)}"


def _second_reading(report: Report) -> str:
    ended = report.second_reading_title.removeprefix("Second reading ").lower()
    return f"{ended}: {escape(report.second_reading_reason)}"


def _where(report: Report, number: int, finding: Finding) -> str:
    location, apart = report.locations.get(number), finding.disagreement
    return (f"{location.text}: " if location else "") + (
        apart and f"the readers disagree, {apart}; "
    )


def _findings_table(report: Report) -> Table:
    caption = f"{len(report.dismissed)} dismissed on the edge, highest score "
    caption += f"{report.highest_dismissed_score:.3f}"
    found = counted(len(report.findings), "finding")
    title = f"{found} of {counted(len(report.decisions), 'candidate')}"
    return _table(report.numbered, title, caption)


def _possible_table(report: Report) -> Table:
    title = counted(len(report.possible), "possible finding")
    caption = "below the threshold of findings; most are not nodules"
    return _table(report.numbered_possible, title, caption)


def _table(numbered: Sequence[tuple[int, Finding]], title: str, caption: str) -> Table:
    if any(finding.small for _, finding in numbered):
        caption += f"\n* below {SMALL_MM:g} mm"
    table = Table(title=title, caption=caption)
    for heading in ("#", "x, y, z mm (LPS)", "mm", "probability", "edge", "cloud"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("decided by")
    for number, finding in numbered:
        x, y, z = finding.centre_mm
        table.add_row(
            str(number),
            f"{x:.1f}, {y:.1f}, {z:.1f}",
            f"{finding.diameter_mm:.1f}{'*' if finding.small else ''}",
            f"{finding.probability:.2f}",
            f"{finding.edge_score:.2f}",
            f"{finding.verdict.probability:.2f}" if finding.verdict else "-",
            finding.decided_by.value,
        )
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
