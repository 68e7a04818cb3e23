"""Receiving studies over the network as a part of the agent: by C-STORE and by STOW-RS."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import structlog

from edge.checks import Checked, Level, Results, existing, port
from edge.dicom_in.received import ReceivedStore, ReceiveMetrics
from edge.dicom_in.scp import receiving_by_dicom
from edge.dicom_in.stow import receiving_by_stow
from edge.errors import BadSettings
from edge.folders import is_running
from edge.part import Agent, Part
from edge.settings.core import MB
from edge.settings.receive import DicomReceiveSettings
from edge.site import Site
from process.tls import is_loopback

log = structlog.get_logger()


class ReceivePart(Part):
    """Receives studies where an address is set.

    It is opened last: at the end nothing comes in any more before the other parts are closed.
    """

    name = "receiving"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._metrics = ReceiveMetrics(agent.telemetry)
        # of each port its address, and whether it is served
        self._ports: list[tuple[str, Callable[[], bool]]] = []

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
            stow.token()
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
        agent, settings = self.agent, self.agent.site.settings.receive
        if not settings.is_on:
            yield
            return
        for tls in (settings.dicom.tls, settings.stow.tls):
            if problems := tls.problems():
                raise BadSettings("; ".join(problems))
            agent.telemetry.observe_expiries(tls)
            for warning in tls.warnings():
                log.warning("a certificate expires soon", reason=warning)
        store = ReceivedStore(
            agent.site.folders.inbox,
            settings,
            self._metrics,
            on_step=agent.on_step,
            on_news=agent.wake,
        )
        with ExitStack() as ports:
            for address, receiving_by in (
                (settings.dicom.address, receiving_by_dicom),
                (settings.stow.address, receiving_by_stow),
            ):
                if address:
                    port = receiving_by(settings, store, self._metrics)
                    self._ports.append(ports.enter_context(port))
            ports.callback(store.stop)
            yield

    def ready(self) -> Mapping[str, Callable[[], str]]:
        """Return whether the ports are served."""

        def problem() -> str:
            dead = [address for address, is_served in self._ports if not is_served()]
            return f"{' and '.join(dead)} is not served any more: restart" if dead else ""

        return {"receiving": problem} if self.agent.site.settings.receive.is_on else {}


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
