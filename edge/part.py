"""A part of the agent: what a site may switch on beside the core, such as the status page.

A part imports the core and no other part. The core imports none, and calls all of them through
this interface. `edge.run` alone knows which there are. `docs/parts.md` shows how to add one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

from edge.audit import Person
from edge.checks import Results
from edge.database import Schema, StepHook
from edge.link.estimate import LinkEstimate
from edge.pipeline import Pipeline
from edge.report.model import Report
from edge.settings.core import EdgeSettings
from edge.site import Site
from edge.store.studies import StudyStore
from edge.telemetry import EdgeTelemetry


@dataclass
class Agent:
    """What a running agent offers to its parts.

    Attributes:
        site: its settings, folders and database.
        telemetry: where a part registers its metrics.
        stop: is set when the agent shall end.
        on_step: is called with every durable step.
        clock: monotonic, in seconds.
        wake: lets the main loop look into the inbox at once.
        problem: returns what is wrong with the main loop, empty for nothing; any thread may ask.
        store: the open database of the main loop, for its thread alone; set before a part opens.
        pipeline: returns that of the next study; None before it is open.
        links: returns what to expect of each cloud by its address, without waiting.
        parts: all parts, in the order in which they are opened.
    """

    site: Site
    telemetry: EdgeTelemetry
    stop: Event
    on_step: StepHook
    clock: Callable[[], float]
    wake: Callable[[], None]
    problem: Callable[[], str]
    store: StudyStore = field(init=False)
    pipeline: Callable[[], Pipeline | None] = lambda: None
    links: Callable[[], Mapping[str, LinkEstimate]] = dict
    parts: list["Part"] = field(default_factory=list)


@dataclass(frozen=True)
class Action:
    """A button of a panel.

    Attributes:
        run: does it, with the fields of the form, for a person; it raises an `EdgeError` that says
            why not.
        done: the sentence that is shown afterwards.
        refused: the beginning of the sentence that says why not.
    """

    run: Callable[[Mapping[str, str], Person], None]
    done: str
    refused: str


@dataclass(frozen=True)
class Card:
    """One of the cards at the top of the status page; ``look`` is a colour: ok, look, wrong."""

    title: str
    value: str
    text: str
    look: str = ""


@dataclass(frozen=True)
class Panel:
    """What a part shows on the status page. Other threads call it.

    Attributes:
        name: of its page ``/NAME`` and of its actions ``/NAME/ACTION``.
        template: Jinja file, which gets the values.
        values: returns the values of the template, at each look.
        actions: its buttons by name.
        card: returns its card, where it has one.
        is_page: whether it is a page of its own, and not a section of the first one.
    """

    name: str
    template: Path
    values: Callable[[], Mapping[str, Any]]
    actions: Mapping[str, Action] = field(default_factory=dict)
    card: Callable[[], Card] | None = None
    is_page: bool = False


class Part:
    """The base of all parts. Each method does nothing: a part has only those that it needs.

    All but `schema`, `checks` and those of panels are called by the thread of the main loop.
    """

    name: ClassVar[str] = ""
    """What ``overread-edge doctor`` calls it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    @classmethod
    def schema(cls, settings: EdgeSettings) -> Schema:
        """Return what the part stores in the agent's database; the tables whether it is on or not.

        Commands ask for it too, without an agent.
        """
        return Schema()

    @classmethod
    def checks(cls, site: Site) -> Results:
        """Yield what ``overread-edge doctor`` says of the part; the agent may run or not."""
        return iter(())

    def opened(self) -> AbstractContextManager[None]:
        """Return the context in which the part is open: its threads and ports.

        Raises:
            EdgeError, OSError: it cannot be opened; the agent does not start.
        """
        return nullcontext()

    def ready(self) -> Mapping[str, Callable[[], str]]:
        """Return checks for ``/readyz``: each returns what is wrong, empty for nothing."""
        return {}

    def started(self) -> None:
        """Note that all parts are open, and that the main loop begins."""

    def work(self, waiting: bool) -> bool:
        """Do one piece of work between two studies; return whether there was any.

        ``waiting`` says that a study waits: then only what takes some milliseconds is done. After
        any error it is called again later, and after the next one later still.
        """
        return False

    def make_room(self) -> bool:
        """Free space, once; called while nothing can be written. Return whether there was any."""
        return False

    def reported(self, report: Report) -> None:
        """Note that a report is out in its first version, also a refusal."""

    def amended(self, report: Report) -> None:
        """Note that a later version of a report is out."""

    def forget(self, key: str) -> None:
        """Delete what the part keeps of the images of a study, which are about to be removed."""

    def panels(self) -> Sequence[Panel]:
        """Return what the part shows on the status page."""
        return ()
