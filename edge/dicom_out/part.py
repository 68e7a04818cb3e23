"""The delivery of results as a part of the agent: DICOM objects of each report to every target."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from edge.audit import Person
from edge.checks import Checked, Level, Results, secrets
from edge.database import Schema
from edge.dicom_out.deliver import MakeObjects, delivering, made_objects
from edge.dicom_out.exports import MIGRATIONS, Backlog, DeliveryStep, ExportStore
from edge.dicom_out.overview import LATEST, overview, resend
from edge.part import Action, Agent, Panel, Part
from edge.settings.core import EdgeSettings
from edge.settings.targets import DicomWebTarget
from edge.site import Site


class DeliverPart(Part):
    """Sends the results to the targets of the settings; without any it is off.

    ``make_objects`` makes what the targets get.
    """

    name = "targets"

    def __init__(self, agent: Agent, make_objects: MakeObjects = made_objects) -> None:
        super().__init__(agent)
        self._make_objects, telemetry = make_objects, agent.telemetry
        self._undelivered_age = telemetry.gauge(
            "undelivered_oldest_seconds", "Age of the oldest one that a target waits for", "target"
        )
        self._dead = telemetry.gauge("dead_letters", "Deliveries that were given up", "target")
        self._unmade = telemetry.gauge(
            "unexported_reports", "Versions of reports whose objects are not made"
        )

    @classmethod
    def schema(cls, settings: EdgeSettings) -> Schema:
        """Return the tables of exports and deliveries; without targets nothing is stored."""
        targets = [one.name for one in settings.targets]
        export = partial(ExportStore, targets=targets)
        return Schema(MIGRATIONS, extensions=(export,) if targets else ())

    @classmethod
    def checks(cls, site: Site) -> Results:
        """Yield whether each target answers, what it lacks, and what is wrong with its TLS."""
        if not site.settings.targets:
            return
        for target in site.settings.targets:
            token = target.token_file if isinstance(target, DicomWebTarget) else None
            yield from secrets("targets", target.tls.key, token)
            if target.encryption == "none" and target.insecure:
                text = f"{target.name}: results travel unencrypted (insecure = true)"
                yield Checked(Level.NOTE, "targets", text)
            for warning in target.tls.warnings() if not target.tls.problems() else []:
                yield Checked(Level.NOTE, "targets", f"{target.name}: {warning}")
        states, unmade = overview(site)
        for state in states:
            if state.problem:
                level = Level.WRONG if state.address else Level.NOTE
                yield Checked(level, "targets", f"{state.name}: {state.problem}")
            else:
                text = f"{state.name}: {state.address} answers, encryption: {state.encryption}"
                yield Checked(Level.OK, "targets", text)
            for refused in state.not_taken:
                text = (
                    f"{state.name} does not take {refused.name}: let it, or set objects without it"
                )
                yield Checked(Level.NOTE, "targets", text)
            if state.dead:
                text = (
                    f"{state.name}: {len(state.dead)} dead letters: overread-edge targets says why"
                )
                yield Checked(Level.WRONG, "targets", text)
        if unmade:
            count = sum(one.step == "not made" for one in unmade)
            text = f"{len(unmade)} reports have no objects, {count} of them cannot be made"
            level, why = Level.WRONG if count else Level.NOTE, "overread-edge targets says why"
            yield Checked(level, "targets", f"{text}: {why}")

    def opened(self) -> AbstractContextManager[None]:
        """Make and send objects, in a thread for each target."""
        agent = self.agent
        if not agent.site.settings.targets:
            return nullcontext()
        return delivering(
            agent.site,
            self._make_objects,
            on_step=agent.on_step,
            on_backlog=self._set_backlog,
            clock=agent.clock,
        )

    def panels(self) -> Sequence[Panel]:
        """Return what waits for each target, and the dead letters with their buttons."""
        if not self.agent.site.settings.targets:
            return ()
        return [deliveries_panel(self.agent.site)]

    def _set_backlog(self, backlogs: Mapping[str, Backlog], unmade: int) -> None:
        self._unmade.set(unmade)
        for target, backlog in backlogs.items():
            self._undelivered_age.labels(target).set(backlog.oldest_s)
            self._dead.labels(target).set(backlog.dead)


def deliveries_panel(site: Site) -> Panel:
    """Return the section of the status page."""

    def values() -> Mapping[str, Any]:
        now = datetime.now(UTC)
        with site.opened() as store:
            exports = store.extension(ExportStore)
            waiting = [
                (
                    name,
                    backlog.waiting,
                    now - timedelta(seconds=backlog.oldest_s) if backlog.waiting else None,
                )
                for name, backlog in sorted(exports.backlogs().items())
            ]
            refused = {name: exports.not_taken(name) for name in exports.targets}
            lacking: list[Any] = [*exports.unmade(), *exports.deliveries(DeliveryStep.DEAD)[::-1]]
            dead = [
                {
                    "letter": letter,
                    "name": store.get(letter.study_key).name if store.has(letter.study_key) else "",
                    "since": datetime.fromisoformat(letter.created)
                    if hasattr(letter, "created")
                    else "",
                }
                for letter in lacking
            ]
        return {"waiting": waiting, "refused": refused, "dead": dead}

    def send_again(form: Mapping[str, str], by: Person) -> None:
        version = form.get("version", LATEST)
        resend(form.get("study", ""), form.get("target") or None, site, by, version)

    action = Action(send_again, "The results are sent again.", "They cannot be sent again")
    template = Path(__file__).with_name("panel.html.j2")
    return Panel("deliveries", template, values, {"resend": action})
