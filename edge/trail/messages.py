"""Audit messages of DICOM (PS3.15, A.5): each record of the trail as one XML message.

Every message carries its record, the line with the hash of the line before it. So a server that
has all messages can check the chain by itself, and notices when records are missing at its end.
"""

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree as ET

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from edge.audit import Event
from edge.trail.records import TrailRecord

DCM: Any = codes.DCM
PATIENT_NUMBER = Code("2", "RFC-3881", "Patient Number")
LOG_URI = Code("12", "RFC-3881", "URI")

OUTCOME_OK, OUTCOME_MINOR, OUTCOME_SERIOUS = "0", "4", "8"


@dataclass(frozen=True)
class AuditSource:
    """Who reports: the random identity of the agent, its site (may be empty) and its host."""

    agent: str
    site: str
    host: str


@dataclass(frozen=True)
class _Kind:
    """The codes of an event: identifier, action (C, R, U, D or E), further type, and outcome."""

    event: Code
    action: str
    type: Code | None = None
    outcome: str = OUTCOME_OK


_READ = _Kind(DCM.DICOMInstancesAccessed, "R")
_UPDATED = _Kind(DCM.DICOMInstancesAccessed, "U")
_RECORDING = _Kind(DCM.SecurityAlert, "E", DCM.AuditRecordingStarted)
_MODEL = _Kind(DCM.SecurityAlert, "E", DCM.SoftwareConfiguration)
_KINDS: Mapping[str, _Kind] = {
    Event.FILE: _RECORDING,
    Event.CONTINUED: replace(_RECORDING, outcome=OUTCOME_SERIOUS),
    Event.STARTED: _Kind(DCM.ApplicationActivity, "E", DCM.ApplicationStart),
    Event.STOPPED: _Kind(DCM.ApplicationActivity, "E", DCM.ApplicationStop),
    Event.RECEIVED: _Kind(DCM.Import, "C"),  # from a folder; over the network it was transferred
    Event.JOINED: _UPDATED,
    Event.REPEATED: _READ,
    Event.CHANGED: _READ,
    Event.ADOPTED: _READ,
    Event.SENT: _Kind(DCM.Export, "R"),
    Event.READ: _READ,
    Event.REJECTED: replace(_READ, outcome=OUTCOME_MINOR),
    Event.AMENDED: _UPDATED,
    Event.DELIVERED: _Kind(DCM.DICOMInstancesTransferred, "R"),
    Event.REQUEUED: _UPDATED,
    Event.RESENT: _READ,
    Event.VIEWED: _READ,
    Event.LOGIN: _Kind(DCM.UserAuthentication, "E", DCM.Login),
    Event.STUDY_REMOVED: _Kind(DCM.DICOMStudyDeleted, "D"),
    Event.REPORT_REMOVED: _Kind(DCM.DICOMInstancesAccessed, "D"),
    Event.REMOVAL_FAILED: _Kind(DCM.DICOMStudyDeleted, "D", outcome=OUTCOME_MINOR),
    Event.MODEL_FETCHED: _MODEL,
    Event.MODEL_REFUSED: replace(_MODEL, outcome=OUTCOME_MINOR),
    Event.MODEL_SHADOWED: _MODEL,
    Event.MODEL_PROMOTED: _MODEL,
    Event.MODEL_ROLLED_BACK: _MODEL,
    Event.MODEL_REPLACED: replace(_MODEL, outcome=OUTCOME_SERIOUS),
}


def message_of(record: TrailRecord, source: AuditSource) -> str:
    """Return the message of a record as XML on one line; empty for an event that is not known."""
    kind, fields = _KINDS.get(record.event), record.fields
    if kind is None:
        return ""
    if record.event == Event.RECEIVED and fields.get("way"):
        kind = _Kind(DCM.DICOMInstancesTransferred, "C")
    if record.event == Event.VIEWED and not fields.get("study_key"):  # the list of studies
        kind = _Kind(DCM.Query, "E")
    if record.event in (Event.DELIVERED, Event.LOGIN):
        succeeded = fields.get("outcome") in ("sent", "success")
        kind = replace(kind, outcome=OUTCOME_OK if succeeded else OUTCOME_MINOR)
    message = ET.Element("AuditMessage")
    _event(message, kind, record)
    _participants(message, record, source)
    audit_source = ET.SubElement(message, "AuditSourceIdentification")
    if source.site:
        audit_source.set("AuditEnterpriseSiteID", _token(source.site))
    audit_source.set("AuditSourceID", source.agent)
    ET.SubElement(audit_source, "AuditSourceTypeCode", {"csd-code": "4"})
    if study_key := fields.get("study_key"):
        uid, patient_id = (fields.get(name) or "unknown" for name in ("study_uid", "patient_id"))
        study = _object(message, uid, "2", "3", DCM.StudyInstanceUID, f"study key {study_key}")
        description = ET.SubElement(study, "ParticipantObjectDescription")
        if record.event == Event.SENT:
            ET.SubElement(description, "Anonymized").text = "true"
        _object(message, patient_id, "1", "1", PATIENT_NUMBER, "not recorded")
    # the record itself, as a part of the security audit log
    uri = f"urn:uuid:{source.agent}#{record.sequence}"
    log = _object(message, uri, "2", "13", LOG_URI, "Security Audit Log")
    value = base64.b64encode(record.line.encode("ascii")).decode("ascii")
    ET.SubElement(log, "ParticipantObjectDetail", {"type": "record", "value": value})
    return ET.tostring(message, encoding="unicode")


def _event(message: ET.Element, kind: _Kind, record: TrailRecord) -> None:
    values = {
        "EventActionCode": kind.action,
        "EventDateTime": record.time,
        "EventOutcomeIndicator": kind.outcome,
    }
    node = ET.SubElement(message, "EventIdentification", values)
    _code(node, "EventID", kind.event)
    if kind.type is not None:
        _code(node, "EventTypeCode", kind.type)
    if kind.outcome != OUTCOME_OK:
        why = record.fields.get("kind") or record.fields.get("reason") or record.event
        ET.SubElement(node, "EventOutcomeDescription").text = _text(why)


def _participants(message: ET.Element, record: TrailRecord, source: AuditSource) -> None:
    fields, event = record.fields, record.event
    peer = fields.get("peer")

    def add(
        user: Any, role: Code, requestor: bool, *,
        ae: Any = "", address: Any = "", media: bool = False,
    ) -> None:  # fmt: skip
        """Add one; ``address`` is a name or number of a machine."""
        node = ET.SubElement(message, "ActiveParticipant", {"UserID": _text(user)})
        if ae:
            node.set("AlternativeUserID", _text(f"AETITLES={ae}"))
        node.set("UserIsRequestor", "true" if requestor else "false")
        if address:
            node.set("NetworkAccessPointID", _token(address))
            node.set("NetworkAccessPointTypeCode", "2" if _is_number(str(address)) else "1")
        _code(node, "RoleIDCode", role)
        if media:
            _code(ET.SubElement(node, "MediaIdentifier"), "MediaType", DCM.URI)

    def add_agent(role: Code, *, requestor: bool = True, ae: Any = "") -> None:
        add(f"overread-edge {source.agent}", role, requestor, ae=ae, address=source.host)

    if event == Event.RECEIVED and fields.get("way"):
        calling = fields.get("calling_ae")
        name = calling or fields.get("caller") or peer or "unknown"
        add(name, DCM.SourceRoleID, True, ae=calling, address=peer)
        add_agent(DCM.DestinationRoleID, requestor=False, ae=fields.get("called_ae"))
    elif event == Event.RECEIVED:
        add_agent(DCM.DestinationRoleID)
        add(fields.get("owner", "unknown"), DCM.SourceMedia, False, media=True)
    elif event == Event.SENT:
        cloud = str(fields.get("cloud") or "unknown")
        host = cloud.rpartition(":")[0].strip("[]")
        add_agent(DCM.SourceRoleID)
        add(cloud, DCM.DestinationMedia, False, address=host, media=True)
    elif event == Event.DELIVERED:
        add_agent(DCM.SourceRoleID)
        add(fields.get("target", "unknown"), DCM.DestinationRoleID, False, address=peer)
    elif user := fields.get("user"):
        add_agent(DCM.Application, requestor=False)
        add(user, DCM.Application, True, address=peer)
    else:
        add_agent(DCM.Application)


def _object(
    message: ET.Element, identifier: Any, kind: str, role: str, id_type: Code, name: str
) -> ET.Element:
    values = {
        "ParticipantObjectID": _token(identifier),
        "ParticipantObjectTypeCode": kind,
        "ParticipantObjectTypeCodeRole": role,
    }
    node = ET.SubElement(message, "ParticipantObjectIdentification", values)
    _code(node, "ParticipantObjectIDTypeCode", id_type)
    ET.SubElement(node, "ParticipantObjectName").text = _token(name)
    return node


def _code(parent: ET.Element, name: str, code: Code) -> None:
    values = {
        "csd-code": code.value,
        "codeSystemName": code.scheme_designator,
        "originalText": code.meaning,
    }
    ET.SubElement(parent, name, values)


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
