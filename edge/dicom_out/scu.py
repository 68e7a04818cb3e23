"""Send DICOM files to an application entity by C-STORE (PS3.4, annex B)."""

import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pydicom
import structlog
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import STATUS_SUCCESS, STATUS_WARNING, code_to_category

from edge.dicom_out.targets import MAX_REASON, Refusal, Store, Target, Unreachable, status_words
from edge.settings.targets import DicomTarget
from process.http import host_and_port
from process.text import printable_line

NOT_ACCEPTED = Refusal("the target does not accept objects of its class", of_class=True)

_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model - FIND

log = structlog.get_logger()


def send_at_once(event: evt.Event) -> None:
    """Keep no second part of a message back until the first is acknowledged, 40 ms later."""
    if (opened := event.assoc.dul.socket) and opened.socket:
        opened.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _NothingAccepted(Exception):
    """The target answers, and takes objects of none of the classes that it was asked for."""


class DicomNode(Target):
    """An application entity that stores what it gets by C-STORE, all over one association."""

    def __init__(self, settings: DicomTarget) -> None:
        self._settings = settings

    @contextmanager
    def _opened(self, files: Sequence[Path]) -> Iterator[Store]:
        numbers = count(1)
        try:
            with self._associated(_contexts(files)) as association:
                yield lambda file: self._store(association, file, next(numbers))
        except _NothingAccepted:
            yield lambda _file: NOT_ACCEPTED

    def _store(
        self, association: Association, file: Path | pydicom.Dataset, number: int
    ) -> Refusal | None:
        try:
            status = association.send_c_store(file, msg_id=number)
        except ValueError:  # of pynetdicom: no context for it was accepted, or it is damaged
            kind = (pydicom.dcmread(file) if isinstance(file, Path) else file).SOPClassUID
            if kind not in [one.abstract_syntax for one in association.accepted_contexts]:
                return NOT_ACCEPTED
            return Refusal("the target accepts no transfer syntax of it, or it cannot be encoded")
        except RuntimeError:  # of pynetdicom: the association has ended before
            raise Unreachable(self._lost()) from None
        if "Status" not in status:
            return Refusal(self._lost(), is_last=True)
        category = code_to_category(status.Status)
        if category not in (STATUS_SUCCESS, STATUS_WARNING):
            comment = printable_line(str(status.get("ErrorComment", "") or ""))
            return Refusal.of(status.Status, comment[:MAX_REASON])
        if category == STATUS_WARNING:
            why = status_words(status.Status)
            log.warning("stored with a warning", target=self._settings.name, why=why)
        return None

    def _has(self, files: Mapping[str, tuple[str, str, str]]) -> set[str]:
        """Ask by C-FIND for each instance (PS3.4, C.4.1); see `Target`."""
        found, query = set[str](), pydicom.Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        # a target without the service, or that ends the association, does not say
        with (
            suppress(Unreachable, _NothingAccepted, ValueError, RuntimeError),
            self._associated([build_context(_FIND)]) as association,
        ):
            for name, uids in files.items():
                query.StudyInstanceUID, query.SeriesInstanceUID, query.SOPInstanceUID = uids
                answers = [one for _, one in association.send_c_find(query, _FIND) if one]
                if uids[2] in [one.get("SOPInstanceUID") for one in answers]:
                    found.add(name)
        return found

    def echo(self) -> str:
        """Verify the association by C-ECHO; see `Target`."""
        try:
            with self._associated([build_context(Verification)]) as association:
                status = association.send_c_echo()
        except Unreachable as error:
            return str(error)
        except _NothingAccepted:  # it does not know verification, but it answers
            return ""
        if "Status" not in status:
            return self._lost()
        return "" if status.Status == 0 else f"C-ECHO: {status_words(status.Status)}"

    @contextmanager
    def _associated(self, contexts: list[PresentationContext]) -> Iterator[Association]:
        """Yield an established association, and release it.

        Raises:
            Unreachable: there is none.
            _NothingAccepted: the target accepts none of the contexts.
        """
        target = self._settings
        entity = AE(ae_title=target.calling_ae)
        entity.connection_timeout = entity.acse_timeout = target.connect_s
        entity.dimse_timeout = entity.network_timeout = target.timeout_s
        try:
            tls = self._tls_context()
        except (OSError, ValueError):
            problems = "; ".join(target.tls.problems())
            raise Unreachable(problems or "the files of TLS cannot be used") from None
        host, port = host_and_port(target.address)
        tls_args = None if tls is None else (tls, host)
        try:
            association = entity.associate(
                host, port, contexts=contexts, ae_title=target.called_ae, tls_args=tls_args,
                evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once)],
            )  # fmt: skip
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"{target.address} cannot be looked up: {error}") from error
        if not association.is_established:
            if association.rejected_contexts and not association.accepted_contexts:
                raise _NothingAccepted
            raise Unreachable(self._why_none(association, tls))
        keep_responses(association)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _tls_context(self) -> ssl.SSLContext | None:
        files = self._settings.tls
        if files.ca is None:
            return None
        context = ssl.create_default_context(cafile=files.ca)
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
        return context

    def _why_none(self, association: Association, tls: ssl.SSLContext | None) -> str:
        target = self._settings
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = "" if answer is None else f": {answer.reason_str}"
            titles = f"called_ae = {target.called_ae}, calling_ae = {target.calling_ae}"
            return f"{target.address} rejects the association{why} ({titles})"
        # connect once more to find out: pynetdicom only logs why it could not
        place = host_and_port(target.address)
        try:
            with socket.create_connection(place, target.connect_s) as connection:
                if tls is not None:
                    tls.wrap_socket(connection, server_hostname=place[0]).close()
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of {target.address} is not accepted: {error.verify_message}"
        except ssl.SSLError as error:
            return f"{target.address} refuses TLS: {error.reason or error}"
        except TimeoutError:
            return f"{target.address} does not answer within {target.connect_s:g} s"
        except OSError as error:
            return f"{target.address}: {error.strerror or error}"
        return f"{target.address} ends the connection without an answer"

    def _lost(self) -> str:
        target = self._settings
        return f"{target.address} aborted, or did not answer within {target.timeout_s:g} s"


def keep_responses(association: Association) -> None:
    """Leave each response to the call that waits for it.

    The association's own thread would take one where the system holds it up: it then counts as
    paused, and is not. It drops what it takes, and the call waits until its time is over.
    """
    get_msg = association.dimse.get_msg

    def get(block: bool = False) -> Any:
        return get_msg(block) if block else (None, None)

    association.dimse.get_msg = get  # type: ignore[method-assign]


def _contexts(files: Sequence[Path]) -> list[PresentationContext]:
    """Return a presentation context for each SOP class and transfer syntax of the files.

    All are also offered uncompressed, in the default transfer syntax too, which each AE has.
    """
    wanted: dict[tuple[str, str], None] = {}
    for file in files:
        meta = pydicom.filereader.read_file_meta_info(file)
        for syntax in (meta.TransferSyntaxUID, ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            wanted[meta.MediaStorageSOPClassUID, syntax] = None
    return [build_context(sop_class, syntax) for sop_class, syntax in wanted]
