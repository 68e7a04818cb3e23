"""Receive studies over the network, as the settings say, into one store."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge.database import StepHook
from edge.dicom_in.incoming import Limits
from edge.dicom_in.port import Counters
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.scp import receiving_by_dicom
from edge.dicom_in.stow import receiving_by_stow
from edge.errors import BadSettings
from edge.settings.core import EdgeSettings

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
