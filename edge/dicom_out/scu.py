"""Send DICOM files to an application entity by C-STORE (PS3.4, annex B)."""

import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import structlog
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import STATUS_SUCCESS, STATUS_WARNING, code_to_category

from edge.dicom_out.targets import MAX_REASON, STOPPED, Refusal, Sent, is_full, status_words
from edge.settings.targets import DicomTarget
from process.http import host_and_port
from process.text import printable_line

log = structlog.get_logger()


class DicomNode:
    """An application entity that stores what it gets by C-STORE."""

    def __init__(self, settings: DicomTarget) -> None:
        self._settings = settings

    def send(self, files: Sequence[Path], stopped: Callable[[], bool]) -> Sent:
        """Send files over one association; see `Target`."""
        stored, refused = list[str](), dict[str, Refusal]()
        contexts = _contexts(files)
        association, problem = self._associate(contexts)
        if association is None:
            return Sent(unreachable=problem)
        try:
            for number, file in enumerate(files, start=1):
                if stopped():
                    return Sent(tuple(stored), refused, STOPPED)
                try:
                    status = association.send_c_store(str(file), msg_id=number)
                except ValueError:  # of pynetdicom: no context for it was accepted
                    refused[file.name] = Refusal("the target does not accept objects of its class")
                    continue
                except RuntimeError:  # of pynetdicom: the association has ended before
                    return Sent(tuple(stored), refused, self._lost())
                if "Status" not in status:
                    refused[file.name] = Refusal(self._lost())
                    return Sent(tuple(stored), refused, self._lost())
                category = code_to_category(status.Status)
                if category in (STATUS_SUCCESS, STATUS_WARNING):
                    stored.append(file.name)
                    if category == STATUS_WARNING:
                        why = status_words(status.Status)
                        log.warning("stored with a warning", target=self._settings.name, why=why)
                    continue
                refusal = Refusal(status_words(status.Status), _words(status, "ErrorComment"))
                refused[file.name] = refusal
                if is_full(status.Status):
                    return Sent(tuple(stored), refused, refusal.code)
            return Sent(tuple(stored), refused)
        finally:
            if association.is_established:
                association.release()

    def echo(self) -> str:
        """Verify the association by C-ECHO; see `Target`."""
        association, problem = self._associate([build_context(Verification)])
        if association is None:
            return problem
        try:
            status = association.send_c_echo()
            if "Status" not in status:
                return self._lost()
            return "" if status.Status == 0 else f"C-ECHO: {status_words(status.Status)}"
        except ValueError:  # it accepts the association, and not verification: it answers
            return ""
        finally:
            if association.is_established:
                association.release()

    def _associate(self, contexts: list[PresentationContext]) -> tuple[Association | None, str]:
        """Return an established association, or None and why there is none."""
        target = self._settings
        entity = AE(ae_title=target.calling_ae)
        entity.connection_timeout = entity.acse_timeout = target.connect_s
        entity.dimse_timeout = entity.network_timeout = target.timeout_s
        try:
            tls = self._tls_context()
        except (OSError, ValueError):
            return None, "; ".join(target.tls.problems()) or "the files of TLS cannot be used"
        host, port = host_and_port(target.address)
        association = entity.associate(
            host,
            port,
            contexts=contexts,
            ae_title=target.called_ae,
            tls_args=None if tls is None else (tls, host),
        )
        if association.is_established:
            return association, ""
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = "" if answer is None else f": {answer.reason_str}"
            titles = f"called_ae = {target.called_ae}, calling_ae = {target.calling_ae}"
            return None, f"{target.address} rejects the association{why} ({titles})"
        if association.acceptor.primitive is not None:  # it answered, and no context is left
            accepted = association.accepted_contexts
            if not accepted and association.rejected_contexts:
                return None, f"{target.address} accepts none of the objects' classes"
        return None, self._why_no_connection(tls)

    def _tls_context(self) -> ssl.SSLContext | None:
        files = self._settings.tls
        if files.ca is None:
            return None
        context = ssl.create_default_context(cafile=files.ca)
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
        return context

    def _why_no_connection(self, tls: ssl.SSLContext | None) -> str:
        """Connect once more to find out: pynetdicom only logs why it could not."""
        target = self._settings
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


def _contexts(files: Sequence[Path]) -> list[PresentationContext]:
    """Return a presentation context for each SOP class and transfer syntax of the files.

    Uncompressed objects are also offered in the default transfer syntax, which each AE has.
    """
    wanted: dict[tuple[str, str], None] = {}
    for file in files:
        meta = pydicom.filereader.read_file_meta_info(file)
        wanted[meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID] = None
        if not meta.TransferSyntaxUID.is_compressed:
            wanted[meta.MediaStorageSOPClassUID, ImplicitVRLittleEndian] = None
    return [build_context(sop_class, syntax) for sop_class, syntax in wanted]


def _words(dataset: pydicom.Dataset, keyword: str) -> str:
    return printable_line(str(dataset.get(keyword, "") or ""))[:MAX_REASON]
