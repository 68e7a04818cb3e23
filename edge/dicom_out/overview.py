"""What the targets have and lack, as the command line shows it, and how to send something again.

Commands work on the database of the agent, which may run: what they change is done at its next
look.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edge.audit import Person
from edge.dicom_out.deliver import open_target
from edge.dicom_out.exports import Backlog, Delivery, DeliveryStep, Export, ExportStore, NotTaken
from edge.errors import EdgeError
from edge.report.write import exported_versions
from edge.site import Site
from edge.store.record import Record, Step
from edge.store.studies import StudyStore

LATEST, EVERY = "latest", "every"
NOT_SET_UP = "is not set up any more"
NO_TARGETS = "no targets are set up: docs/connect.md says how, with [[targets]]"


class NothingToSend(EdgeError):
    """There is no such study or target, or the report is not there."""


@dataclass(frozen=True)
class DeadLetter:
    """What a target lacks, or a report without objects: then ``target`` is empty.

    ``attempts`` counts those that the target refused. ``step`` is that of the delivery or export.
    """

    study: str
    study_key: str
    report: str
    version: int
    target: str
    attempts: int
    reason: str
    step: str


@dataclass(frozen=True)
class TargetState:
    """One target.

    Attributes:
        address: where it is; empty if it is not set up any more.
        encryption: of the way to it.
        problem: why it does not answer; empty if it does.
        last_reason: why the oldest delivery that waits has failed.
        not_taken: the classes that it refuses.
        dead: its dead letters, the oldest first.
    """

    name: str
    kind: str
    address: str
    encryption: str
    problem: str
    waiting: int
    oldest_s: float
    last_reason: str
    not_taken: list[NotTaken]
    dead: tuple[DeadLetter, ...]


def overview(site: Site) -> tuple[list[TargetState], list[DeadLetter]]:
    """Ask every target whether it answers; return their states, and the reports without objects.

    Raises:
        NothingToSend: no targets are set up.
        InvalidDatabase: the database cannot be opened, or is damaged.
    """
    targets = site.settings.targets
    if not targets:
        raise NothingToSend(NO_TARGETS)
    backlogs, dead = dict[str, Backlog](), list[DeadLetter]()
    reasons, unmade = dict[str, str](), list[DeadLetter]()
    not_taken = dict[str, list[NotTaken]]()
    if site.database.is_file():
        with site.opened() as store:
            exports = store.extension(ExportStore)
            backlogs = exports.backlogs()
            letters = exports.deliveries(DeliveryStep.DEAD)
            dead = [_letter(store, one, one.target, one.attempts) for one in letters]
            for one in exports.deliveries(DeliveryStep.SENDING):
                reasons.setdefault(one.target, one.reason)
            unmade = [_letter(store, one) for one in exports.unmade(every=True)]
            not_taken = {one.name: exports.not_taken(one.name) for one in targets}
    with ThreadPoolExecutor(max_workers=len(targets)) as pool:
        problems = list(pool.map(lambda one: open_target(one).echo(), targets))

    def state(name: str, kind: str, address: str, encryption: str, problem: str) -> TargetState:
        backlog, last = backlogs.get(name, Backlog()), reasons.get(name, "")
        lacks = backlog.waiting, backlog.oldest_s, last, not_taken.get(name, [])
        letters = tuple(letter for letter in dead if letter.target == name)
        return TargetState(name, kind, address, encryption, problem, *lacks, letters)

    states = [
        state(target.name, target.kind, target.address, target.encryption, problem)
        for target, problem in zip(targets, problems, strict=True)
    ]
    gone = backlogs.keys() - {one.name for one in targets}
    return states + [state(name, "", "", "", NOT_SET_UP) for name in sorted(gone)], unmade


def resend(
    study: str | None, to: str | None, site: Site, by: Person | None = None, version: str = LATEST
) -> list[str]:
    """Make deliveries due again: those of one study, or all that is given up; return what.

    ``study`` is a study key or the name of a report; None stands for all dead letters, and for all
    objects that cannot be made. ``to`` is the name of a target, None for all. ``by`` is who wants
    it, by default this user. ``version`` of the study is a number, `LATEST`, or `EVERY` for all in
    their order.

    Raises:
        NothingToSend: there is no such study, target or version, or the report is not there.
        InvalidDatabase: the database cannot be opened, or is damaged.
    """
    names = [one.name for one in site.settings.targets]
    if not names:
        raise NothingToSend(NO_TARGETS)
    if to is not None and to not in names:
        raise NothingToSend(f"{to}: no such target, expected {' or '.join(names)}")
    chosen = [to] if to else names
    if not site.database.is_file():
        raise NothingToSend(f"{site.database} is missing: the agent makes it at its start")
    with site.opened() as store:
        exports = store.extension(ExportStore)
        if study is None:
            letters = exports.deliveries(DeliveryStep.DEAD)
            due: list[tuple[Delivery | Export, list[str]]]
            due = [(one, [one.target]) for one in letters if one.target in chosen]
            due += ((one, chosen) for one in exports.unmade())
            for one, places in due:
                exports.resend(one.study_key, (one.version,), places, by)
            return [_line(store, one.study_key, (one.version,), places) for one, places in due]
        record = _find(store, study)
        out = site.folders.outbox / record.report_name
        every = exported_versions(out, record.id)
        named = tuple(one for one in every if str(one) == version)
        versions = {EVERY: every, LATEST: every[-1:]}.get(version, named)
        if not versions:
            raise NothingToSend(f"{study}: no report that targets get is in {out} ({version})")
        exports.resend(record.id, versions, chosen, by)
        return [_line(store, record.id, versions, chosen)]


def _letter(
    store: StudyStore, one: Delivery | Export, target: str = "", attempts: int = 0
) -> DeadLetter:
    record = store.get(one.study_key) if store.has(one.study_key) else None
    name, report = (record.name, record.report_name) if record else ("", "")
    what = report, one.version, target, attempts, one.reason, one.step.value
    return DeadLetter(name, one.study_key, *what)


def _line(store: StudyStore, key: str, versions: Iterable[int], targets: Iterable[str]) -> str:
    report = store.get(key).report_name if store.has(key) else key
    return f"{report} version {', '.join(map(str, versions))} to {', '.join(targets)}"


def _find(store: StudyStore, study: str) -> Record:
    """Return the study of this key, or whose report has this name."""
    found = [one for one in store.at(*Step) if study in (one.id, one.report_name)]
    if not found:
        raise NothingToSend(f"{study}: no study has this key, and no report this name")
    return found[0]
