"""Audit messages of DICOM (PS3.15, A.5): each record of the trail as one XML message.

Every message carries its record, the line with the hash of the line before it. So a server that
has all messages can check the chain by itself, and notices when records are missing at its end.
"""

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from edge.audit import Event
from edge.trail.records import TrailRecord

Code = tuple[str, str]
"""A code of DICOM's own scheme, and its meaning."""

ACTIVITY: Code = ("110100", "Application Activity")
ACCESSED: Code = ("110103", "DICOM Instances Accessed")
TRANSFERRED: Code = ("110104", "DICOM Instances Transferred")
STUDY_DELETED: Code = ("110105", "DICOM Study Deleted")
EXPORT: Code = ("110106", "Export")
IMPORT: Code = ("110107", "Import")
SECURITY_ALERT: Code = ("110113", "Security Alert")
USER_AUTHENTICATION: Code = ("110114", "User Authentication")
START: Code = ("110120", "Application Start")
STOP: Code = ("110121", "Application Stop")
LOGIN: Code = ("110122", "Login")
SOFTWARE_CONFIGURATION: Code = ("110131", "Software Configuration")
RECORDING_STARTED: Code = ("110134", "Audit Recording Started")
APPLICATION: Code = ("110150", "Application")
DESTINATION: Code = ("110152", "Destination Role ID")
SOURCE: Code = ("110153", "Source Role ID")
DESTINATION_MEDIA: Code = ("110154", "Destination Media")
SOURCE_MEDIA: Code = ("110155", "Source Media")
STUDY_UID: Code = ("110180", "Study Instance UID")
MEDIA_URI: Code = ("110037", "URI")
PATIENT_NUMBER: Code = ("2", "Patient Number")
LOG_URI: Code = ("12", "URI")

OUTCOME_OK, OUTCOME_MINOR, OUTCOME_SERIOUS = "0", "4", "8"


@dataclass(frozen=True)
class AuditSource:
    """Who reports: the random identity of the agent, its site (may be empty) and its host."""

    agent: str
    site: str
    host: str


@dataclass(frozen=True)
class _Kind:
    """The codes of an event: identifier, action (C, R, U, D or E), and further type codes."""

    event: Code
    action: str
    types: tuple[Code, ...] = ()


_KINDS: Mapping[str, _Kind] = {
    Event.FILE: _Kind(SECURITY_ALERT, "E", (RECORDING_STARTED,)),
    Event.CONTINUED: _Kind(SECURITY_ALERT, "E", (RECORDING_STARTED,)),
    Event.STARTED: _Kind(ACTIVITY, "E", (START,)),
    Event.STOPPED: _Kind(ACTIVITY, "E", (STOP,)),
    Event.RECEIVED: _Kind(IMPORT, "C"),  # from a folder; over the network it was transferred
    Event.JOINED: _Kind(ACCESSED, "U"),
    Event.REPEATED: _Kind(ACCESSED, "R"),
    Event.CHANGED: _Kind(ACCESSED, "R"),
    Event.ADOPTED: _Kind(ACCESSED, "R"),
    Event.SENT: _Kind(EXPORT, "R"),
    Event.READ: _Kind(ACCESSED, "R"),
    Event.REJECTED: _Kind(ACCESSED, "R"),
    Event.AMENDED: _Kind(ACCESSED, "U"),
    Event.DELIVERED: _Kind(TRANSFERRED, "R"),
    Event.REQUEUED: _Kind(ACCESSED, "U"),
    Event.RESENT: _Kind(ACCESSED, "R"),
    Event.LOGIN: _Kind(USER_AUTHENTICATION, "E", (LOGIN,)),
    Event.STUDY_REMOVED: _Kind(STUDY_DELETED, "D"),
    Event.REPORT_REMOVED: _Kind(ACCESSED, "D"),
    Event.REMOVAL_FAILED: _Kind(STUDY_DELETED, "D"),
    **dict.fromkeys(
        (
            Event.MODEL_FETCHED,
            Event.MODEL_REFUSED,
            Event.MODEL_SHADOWED,
            Event.MODEL_PROMOTED,
            Event.MODEL_ROLLED_BACK,
            Event.MODEL_REPLACED,
        ),
        _Kind(SECURITY_ALERT, "E", (SOFTWARE_CONFIGURATION,)),
    ),
}
_OUTCOMES: Mapping[str, str] = {
    Event.CONTINUED: OUTCOME_SERIOUS,
    Event.REJECTED: OUTCOME_MINOR,
    Event.REMOVAL_FAILED: OUTCOME_MINOR,
    Event.MODEL_REFUSED: OUTCOME_MINOR,
    Event.MODEL_REPLACED: OUTCOME_SERIOUS,
}


def message_of(record: TrailRecord, source: AuditSource) -> str:
    """Return the message of a record as XML on one line; empty for an event that is not known."""
    kind = _KINDS.get(record.event)
    if kind is None:
        return ""
    fields = record.fields
    if record.event == Event.RECEIVED and fields.get("way"):
        kind = _Kind(TRANSFERRED, "C")
    message = ET.Element("AuditMessage")
    _event(message, kind, record)
    for participant in _participants(record, source):
        participant.attach(message)
    audit_source = ET.SubElement(message, "AuditSourceIdentification")
    if source.site:
        audit_source.set("AuditEnterpriseSiteID", _token(source.site))
    audit_source.set("AuditSourceID", source.agent)
    ET.SubElement(audit_source, "AuditSourceTypeCode", {"csd-code": "4"})
    if study_key := fields.get("study_key"):
        _study(message, record, str(study_key))
        _patient(message, record)
    _log(message, record, source)
    return ET.tostring(message, encoding="unicode")


def outcome_of(record: TrailRecord) -> str:
    """Return how the event ended, as DICOM's EventOutcomeIndicator."""
    if record.event == Event.DELIVERED:
        return OUTCOME_OK if record.fields.get("outcome") == "sent" else OUTCOME_MINOR
    if record.event == Event.LOGIN:
        return OUTCOME_OK if record.fields.get("outcome") == "success" else OUTCOME_MINOR
    return _OUTCOMES.get(record.event, OUTCOME_OK)


@dataclass(frozen=True)
class _Participant:
    """A user, process or medium that takes part; ``address`` is a name or number of a machine."""

    user: str
    role: Code
    requestor: bool
    alternative: str = ""
    address: str = ""
    media: bool = False

    def attach(self, message: ET.Element) -> None:
        node = ET.SubElement(message, "ActiveParticipant", {"UserID": _text(self.user)})
        if self.alternative:
            node.set("AlternativeUserID", _text(self.alternative))
        node.set("UserIsRequestor", "true" if self.requestor else "false")
        if self.address:
            node.set("NetworkAccessPointID", _token(self.address))
            node.set("NetworkAccessPointTypeCode", "2" if _is_number(self.address) else "1")
        _code(node, "RoleIDCode", self.role)
        if self.media:
            _code(ET.SubElement(node, "MediaIdentifier"), "MediaType", MEDIA_URI)


def _participants(record: TrailRecord, source: AuditSource) -> list[_Participant]:
    fields, event = record.fields, record.event
    process = f"overread-edge {source.agent}"

    def own(role: Code, *, requestor: bool = True, ae: object = "") -> _Participant:
        title = f"AETITLES={ae}" if ae else ""
        return _Participant(process, role, requestor, title, source.host)

    if event == Event.RECEIVED and fields.get("way"):
        calling, called = fields.get("calling_ae"), fields.get("called_ae")
        peer = str(fields.get("peer") or "")
        name = str(calling or fields.get("caller") or peer or "unknown")
        title = f"AETITLES={calling}" if calling else ""
        sender = _Participant(name, SOURCE, True, title, peer)
        return [sender, own(DESTINATION, requestor=False, ae=called or "")]
    if event == Event.RECEIVED:
        owner = _Participant(str(fields.get("owner", "unknown")), SOURCE_MEDIA, False, media=True)
        return [own(DESTINATION), owner]
    if event == Event.SENT:
        address = str(fields.get("cloud") or "unknown")
        host = address.rpartition(":")[0].strip("[]")
        return [own(SOURCE), _Participant(address, DESTINATION_MEDIA, False, "", host, media=True)]
    if event == Event.DELIVERED:
        target, host = str(fields.get("target", "unknown")), str(fields.get("peer") or "")
        return [own(SOURCE), _Participant(target, DESTINATION, False, address=host)]
    if user := fields.get("user"):
        peer = str(fields.get("peer") or "")
        person = _Participant(str(user), APPLICATION, True, address=peer)
        return [own(APPLICATION, requestor=False), person]
    return [own(APPLICATION)]


def _event(message: ET.Element, kind: _Kind, record: TrailRecord) -> None:
    outcome = outcome_of(record)
    values = {
        "EventActionCode": kind.action,
        "EventDateTime": record.time,
        "EventOutcomeIndicator": outcome,
    }
    node = ET.SubElement(message, "EventIdentification", values)
    _code(node, "EventID", kind.event)
    for one in kind.types:
        _code(node, "EventTypeCode", one)
    if outcome != OUTCOME_OK:
        why = record.fields.get("kind") or record.fields.get("reason") or record.event
        ET.SubElement(node, "EventOutcomeDescription").text = _text(str(why))


def _study(message: ET.Element, record: TrailRecord, study_key: str) -> None:
    uid = str(record.fields.get("study_uid") or "unknown")
    node = _object(message, uid, "2", "3", STUDY_UID, f"study key {study_key}")
    description = ET.SubElement(node, "ParticipantObjectDescription")
    if record.event == Event.SENT:
        ET.SubElement(description, "Anonymized").text = "true"


def _patient(message: ET.Element, record: TrailRecord) -> None:
    patient_id = str(record.fields.get("patient_id") or "unknown")
    _object(message, patient_id, "1", "1", PATIENT_NUMBER, "not recorded", scheme="RFC-3881")


def _log(message: ET.Element, record: TrailRecord, source: AuditSource) -> None:
    """Add the record itself, as a part of the security audit log."""
    uri = f"urn:uuid:{source.agent}#{record.sequence}"
    name = "Security Audit Log"
    node = _object(message, uri, "2", "13", LOG_URI, name, scheme="RFC-3881")
    value = base64.b64encode(record.line.encode("ascii")).decode("ascii")
    ET.SubElement(node, "ParticipantObjectDetail", {"type": "record", "value": value})


def _object(
    message: ET.Element,
    identifier: str,
    type_code: str,
    role: str,
    id_type: Code,
    name: str,
    *,
    scheme: str = "DCM",
) -> ET.Element:
    values = {
        "ParticipantObjectID": _token(identifier),
        "ParticipantObjectTypeCode": type_code,
        "ParticipantObjectTypeCodeRole": role,
    }
    node = ET.SubElement(message, "ParticipantObjectIdentification", values)
    _code(node, "ParticipantObjectIDTypeCode", id_type, scheme)
    ET.SubElement(node, "ParticipantObjectName").text = _token(name)
    return node


def _code(parent: ET.Element, name: str, code: Code, scheme: str = "DCM") -> None:
    value, meaning = code
    ET.SubElement(
        parent, name, {"csd-code": value, "codeSystemName": scheme, "originalText": meaning}
    )


def _is_number(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _text(value: Any) -> str:
    """Return the text with a question mark for what XML cannot hold (XML 1.0, section 2.2)."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", str(value))


def _token(value: Any) -> str:
    return " ".join(_text(value).split())
