"""Receiving studies over the network as a part of the agent: by C-STORE and by STOW-RS."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge.checks import Checked, Level, Results, existing, port
from edge.database import StepHook
from edge.dicom_in.incoming import Limits
from edge.dicom_in.port import Counters
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.scp import receiving_by_dicom
from edge.dicom_in.stow import read_token, receiving_by_stow
from edge.errors import BadSettings
from edge.folders import is_running
from edge.part import Agent, Part
from edge.report.model import Report
from edge.settings.core import EdgeSettings
from edge.settings.receive import DicomReceiveSettings
from edge.site import Site
from edge.telemetry import Telemetry
from process.tls import is_loopback

log = structlog.get_logger()


@dataclass(frozen=True)
class Receivers:
    """The ports that receive.

    ``problem`` returns what is wrong with them, empty for nothing. ``forget`` is called with the
    folder of a series whose study was refused.
    """

    problem: Callable[[], str] = lambda: ""
    forget: Callable[[str], None] = lambda _name: None


@contextmanager
def receiving(
    settings: EdgeSettings,
    inbox: Path,
    counters: Counters,
    on_step: StepHook = lambda _step, _durable: None,
    on_complete: Callable[[], None] = lambda: None,
) -> Iterator[Receivers]:
    """Receive studies while entered, if a port is set; call ``on_complete`` with each series.

    Raises:
        BadSettings: a port cannot be bound, or files of TLS or of the token cannot be used.
        OSError: the inbox cannot be written.
    """
    if not settings.receive.is_on:
        yield Receivers()
        return
    for tls in (settings.receive.dicom.tls, settings.receive.stow.tls):
        if problems := tls.problems():
            raise BadSettings("; ".join(problems))
        for warning in tls.warnings():
            log.warning("a certificate expires soon", reason=warning)
    store = ReceivedStore(inbox, Limits.of(settings), on_step=on_step, on_complete=on_complete)
    with ExitStack() as ports:
        by_dicom = ports.enter_context(receiving_by_dicom(settings, store, counters))
        if by_dicom is not None:
            ae_title = settings.receive.dicom.ae_title
            log.info("receiving by DICOM", address=by_dicom.address, ae_title=ae_title)
        by_stow = ports.enter_context(receiving_by_stow(settings, store, counters))
        if by_stow is not None:
            log.info("receiving by STOW-RS", address=by_stow.address)
        ports.callback(store.stop)
        listening = [one for one in (by_dicom, by_stow) if one is not None]

        def problem() -> str:
            dead = [one.address for one in listening if not one.is_served()]
            return f"{' and '.join(dead)} is not served any more: restart" if dead else ""

        yield Receivers(problem, store.forget)


MB = 1_000_000


class ReceiveMetrics:
    """What the ports count: `edge.dicom_in.port.Counters`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._received = telemetry.counter("received_instances", "Instances received", "way")
        self._refused = telemetry.counter(
            "refused_instances", "Instances refused by reason", "way", "reason"
        )
        self._refused_associations = telemetry.counter(
            "refused_associations", "Associations and connections refused by reason", "reason"
        )
        self._associations = telemetry.gauge("open_associations", "DICOM associations open now")

    def count_received(self, way: str) -> None:
        """Count an instance that was stored; ``way`` is dicom or stow."""
        self._received.labels(way).inc()

    def count_refused_instance(self, way: str, reason: str) -> None:
        """Count an instance that was refused."""
        self._refused.labels(way, reason).inc()

    def count_refused_association(self, reason: str) -> None:
        """Count an association that was rejected, or a connection that was refused."""
        self._refused_associations.labels(reason).inc()

    def set_associations(self, number: int) -> None:
        """Set how many associations are open."""
        self._associations.set(number)


class ReceivePart(Part):
    """Receives studies where an address is set.

    It is opened last: at the end nothing comes in any more before the other parts are closed.
    """

    name = "receiving"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._metrics = ReceiveMetrics(agent.telemetry)
        self._ports = Receivers()

    @classmethod
    def checks(cls, site: Site) -> Results:
        """Yield what is wrong with the ports, and who may send."""
        settings, runs = site.settings.receive, is_running(site.folders)
        if not settings.is_on:
            text = "off: studies arrive as files; see receive.dicom.address"
            yield Checked(Level.NOTE, "receiving", text)
            return
        dicom, stow = settings.dicom, settings.stow
        if dicom.address:
            setting = "receive.dicom.address"
            yield from port("receiving", setting, dicom.address, dicom.tls, runs=runs)
            if not is_loopback(dicom.address):
                yield from _senders(dicom)
        if stow.address:
            yield from port("receiving", "receive.stow.address", stow.address, stow.tls, runs=runs)
            read_token(site.settings)
        free = shutil.disk_usage(existing(site.folders.inbox)).free / MB
        if free < settings.min_free_mb:
            text = f"{free:.0f} MB are free for the inbox, less than receive.min_free_mb: make room"
            yield Checked(Level.WRONG, "receiving", text)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Listen at the ports.

        Raises:
            BadSettings: a port cannot be bound, or files of TLS or of the token cannot be used.
            OSError: the inbox cannot be written.
        """
        agent = self.agent
        settings, inbox = agent.site.settings, agent.site.folders.inbox
        for tls in (settings.receive.dicom.tls, settings.receive.stow.tls):
            agent.telemetry.set_expiries(tls.expiries())
        ports = receiving(settings, inbox, self._metrics, agent.on_step, agent.wake)
        with ports as self._ports:
            yield

    def ready(self) -> Mapping[str, Callable[[], str]]:
        """Return whether the ports are served."""
        is_on = self.agent.site.settings.receive.is_on
        return {"receiving": lambda: self._ports.problem()} if is_on else {}

    def reported(self, report: Report) -> None:
        """Forget a series whose study was refused, so that it may be sent again."""
        if report.rejection is not None:
            self._ports.forget(report.source.name)


def _senders(dicom: DicomReceiveSettings) -> Results:
    """Check who may send from other machines."""
    if not dicom.peers:
        text = "receive.dicom.peers is empty: other machines are rejected; name who may send"
        yield Checked(Level.WRONG, "receiving", text)
    open_titles = [one for one in dicom.peers if "@" not in one]
    if open_titles and dicom.tls.ca is None:
        text = f"{', '.join(open_titles)} may send from any address: AE titles are no secret"
        yield Checked(Level.NOTE, "receiving", f"{text}; name the address, AE@ADDRESS")
    if dicom.tls.cert is None:
        text = "studies come unencrypted: set receive.dicom.tls.cert where senders use TLS"
        yield Checked(Level.NOTE, "receiving", text)
