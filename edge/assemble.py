"""Build the pipeline from the settings: here the model and the channel to the cloud are opened."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from edge.budget import Budget
from edge.decide import decide
from edge.escalation.client import OnSending, SecondReader, open_second_reader
from edge.pipeline import Pipeline
from edge.reader import EdgeReader, Screening, open_configured
from edge.replay import decide_and_log
from edge.report.compose import Provenance
from edge.report.pictures import draw_pictures
from edge.report.write import write_report
from edge.rules.rule import Rules, load_rules
from edge.rules.selection import selection
from edge.selection import SELECTION_POLICY
from edge.settings.core import EdgeSettings
from imaging.errors import StudyError
from imaging.isolation.in_turn import ReadersInTurn
from imaging.isolation.reader import IsolatedReader, ReadLimits
from imaging.preprocess import preprocess
from imaging.selection import Preference, SeriesSummary
from imaging.volume import Study
from protos.deadline import Clock, Deadline


@contextmanager
def open_pipeline(
    settings: EdgeSettings,
    *,
    on_stage: Callable[[str], None] | None = None,
    on_sending: OnSending = lambda _sending: None,
    clock: Clock = time.monotonic,
    reads_files: bool = True,
    reads_ahead: bool = False,
    screening: Callable[[], Screening] | None = None,
) -> Iterator[Pipeline]:
    """Open a pipeline for all studies, with the model loaded and the channel to the cloud.

    It logs every decision.

    ``on_stage`` gets the name of each stage as it begins, ``on_sending`` what is about to be sent
    to a cloud. Each study is read in a child process; without ``reads_files`` there is none, and
    the caller brings volumes. With ``reads_ahead`` there are two, so that one may read the next
    study. ``screening`` opens another model than that of the settings.

    Raises:
        BadSettings: a certificate cannot be read.
        BadRules: the file of rules cannot be read, or a rule is wrong.
        UnfitModel: the model's manifest lacks its thresholds.
    """
    rules = load_rules(settings.rules)
    with ExitStack() as parts:
        limits = ReadLimits(settings.read_memory_mb)
        # first of all: their processes load their libraries while this one loads the model
        isolated: IsolatedReader | ReadersInTurn | None = None
        if reads_ahead:
            isolated = ReadersInTurn(limits, settings.series, selects=bool(rules))
        elif reads_files:
            isolated = IsolatedReader(limits)
        if isolated:
            parts.enter_context(isolated)
        screener = (screening or partial(open_configured, settings))()
        second_reader = open_second_reader(settings, parts, clock, on_sending)
        pipeline = build_pipeline(settings, screener, second_reader, on_stage=on_stage, clock=clock)
        if isolated:
            read = _reading(isolated.read, settings.series, rules)
            pipeline = replace(
                pipeline, read=read, preprocess=isolated.preprocess, rules=rules,
                read_peak_mb=lambda: isolated.peak_mb,
            )  # fmt: skip
        if isinstance(isolated, ReadersInTurn):
            pipeline = replace(pipeline, ahead=isolated)
        yield replace(pipeline, decide=decide_and_log)


def _reading(read: Callable[..., Study], series: str, rules: Rules) -> Callable[[Path], Study]:
    """Return the stage that reads a study by the rules; its refusal names the rule too."""
    if not rules:
        return partial(read, series=series)

    def read_by_rules(path: Path) -> Study:
        select, taken = selection(rules, path), list[Preference]()

        def noted(series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
            answers = select(series)
            fit = (a for one, a in zip(series, answers, strict=True) if not one.unfit)
            taken.extend(sorted((a for a in fit if not a.ignored), key=lambda a: a.rank))
            return answers

        try:
            return read(path, series, noted)
        except StudyError as error:
            error.rule = taken[0].rule if taken else ""
            raise

    return read_by_rules


def _read_here(path: Path, series: str) -> Study:
    # imported here: it loads all that reads files, which most need in the reading process only
    from imaging.read import read_study

    return read_study(path, series)


def build_pipeline(
    settings: EdgeSettings,
    screener: Screening,
    second_reader: SecondReader,
    *,
    on_stage: Callable[[str], None] | None = None,
    clock: Clock = time.monotonic,
) -> Pipeline:
    """Build the pipeline around a screening network and a second reader that are open."""
    reader = EdgeReader.of(screener)
    return Pipeline(
        start_budget=lambda: Budget(Deadline.after(settings.deadline_s, clock), on_stage),
        read=partial(_read_here, series=settings.series),
        preprocess=preprocess,
        reader=reader,
        decide=lambda situation, _study_key: decide(situation),
        second_reader=second_reader,
        draw=draw_pictures,
        persist_pending=lambda *_: None,  # only the agent amends a report later
        write=write_report,
        provenance=Provenance(
            reader.label, reader.guarantee, settings.deadline_s, lambda: datetime.now(UTC)
        ),
        settings=settings,
        policy=replace(SELECTION_POLICY, characterize=settings.cloud.characterize),
    )
