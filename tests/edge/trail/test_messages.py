"""Audit messages as DICOM has them: valid by the schema of PS3.15, with codes of PS3.16."""

import base64
from pathlib import Path
from typing import Any

import pytest

from edge.audit import Event
from edge.trail.messages import AuditSource, message_of
from edge.trail.records import ORIGIN, TrailRecord

etree = pytest.importorskip("lxml.etree", reason="needs lxml for RELAX NG")

SOURCE = AuditSource("0123456789abcdef0123456789abcdef", "Nord", "ct-1")
IDS = {"study_key": "k1", "patient_id": "P 17", "study_uid": "1.2.3"}
BY_EVENT: dict[Event, dict[str, Any]] = {
    Event.FILE: {"agent": SOURCE.agent, "host": "ct-1", "program": "overread-edge 1"},
    Event.CONTINUED: {"reason": "the database is new"},
    Event.STARTED: {"site": "Nord", "user": "overread", "settings_sha256": "00"},
    Event.STOPPED: {"reason": "it was stopped"},
    Event.RECEIVED: {**IDS, "name": "a", "owner": "orthanc", "files": 3},
    Event.JOINED: {**IDS, "part": "k2", "version": 2, "images": 3},
    Event.REPEATED: {**IDS, "part": "k2"},
    Event.CHANGED: {**IDS, "part": "k2", "images": 2},
    Event.ADOPTED: {**IDS, "step": "done"},
    Event.SENT: {**IDS, "cloud": "[::1]:50051", "rois": 4, "bytes": 442368},
    Event.READ: {**IDS, "findings": 1, "models": {"edge": "m"}},
    Event.REJECTED: {**IDS, "kind": "NotCt"},
    Event.AMENDED: {**IDS, "version": 2},
    Event.DELIVERED: {**IDS, "target": "PACS", "peer": "10.0.0.7", "outcome": "sent"},
    Event.REQUEUED: {**IDS, "user": "anna", "name": "a"},
    Event.RESENT: {**IDS, "user": "anna", "versions": [1, 2], "targets": ["PACS"]},
    Event.LOGIN: {"user": "anna", "peer": "10.0.0.9", "outcome": "success"},
    Event.VIEWED: {**IDS, "user": "anna", "peer": "10.0.0.9", "what": "images"},
    Event.STUDY_REMOVED: {**IDS, "reason": "older than retention.studies_days"},
    Event.REPORT_REMOVED: {**IDS, "reason": "older than retention.reports_days"},
    Event.REMOVAL_FAILED: {**IDS, "kind": "study"},
    Event.MODEL_FETCHED: {"version": "1-2", "sha256": "00", "user": "agent"},
    Event.MODEL_REFUSED: {"version": "1-2", "reason": "damaged", "user": "agent"},
    Event.MODEL_SHADOWED: {"version": "1-2", "user": "agent"},
    Event.MODEL_PROMOTED: {"version": "1-2", "previous": "", "user": "anna"},
    Event.MODEL_ROLLED_BACK: {"version": "1-2", "to": "", "user": "anna"},
    Event.MODEL_REPLACED: {"version": "1-2", "to": "", "reason": "damaged"},
}


def record_of(event: str, fields: dict[str, Any]) -> TrailRecord:
    return TrailRecord(7, "2026-11-27T08:09:10.123+00:00", event, fields, ORIGIN)


def parsed(event: str, fields: dict[str, Any]) -> Any:
    """The message, after the schema has accepted it."""
    tree = etree.fromstring(message_of(record_of(event, fields), SOURCE))
    schema = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("audit_message.rng"))))
    schema.assertValid(tree)
    return tree


def values(tree: Any, path: str) -> list[str]:
    return [str(value) for value in tree.xpath(path)]


@pytest.mark.parametrize("event", list(Event))
def test_every_event_has_a_message_that_the_schema_accepts(event: Event) -> None:
    """It carries the record itself, with the chain; study and patient by their identifiers."""
    tree = parsed(event, BY_EVENT[event])
    (record,) = values(tree, "//ParticipantObjectDetail[@type='record']/@value")
    assert base64.b64decode(record).decode() == record_of(event, BY_EVENT[event]).line
    assert values(tree, "//EventIdentification/@EventDateTime") == ["2026-11-27T08:09:10.123+00:00"]
    assert values(tree, "//AuditSourceIdentification/@AuditSourceID") == [SOURCE.agent]
    objects = "//ParticipantObjectIdentification[@ParticipantObjectTypeCodeRole='{}']"
    for role, identifier in (
        (("3", "1.2.3"), ("1", "P 17")) if "study_key" in BY_EVENT[event] else ()
    ):
        assert values(tree, f"{objects.format(role)}/@ParticipantObjectID") == [identifier]


CAME = {"way": "dicom", "calling_ae": "CT1", "called_ae": "OVERREAD", "peer": "10.0.0.5"}
EVENT, SENDER = "//EventID/@csd-code", "//ActiveParticipant[1]"
MEDIA = "//ActiveParticipant[RoleIDCode/@csd-code='110154']"
PERSON = "//ActiveParticipant[@UserIsRequestor='true']"


@pytest.mark.parametrize(
    ("event", "fields", "expected"),
    [
        (Event.RECEIVED, BY_EVENT[Event.RECEIVED], {EVENT: ["110107"]}),  # imported
        (Event.RECEIVED, {**IDS, **CAME, "owner": "x"},
         {EVENT: ["110104"],  # transferred
          "//ActiveParticipant/@AlternativeUserID": ["AETITLES=CT1", "AETITLES=OVERREAD"],
          f"{SENDER}/@NetworkAccessPointID": ["10.0.0.5"],
          f"{SENDER}/@NetworkAccessPointTypeCode": ["2"]}),
        (Event.SENT, BY_EVENT[Event.SENT],
         {EVENT: ["110106"], "//Anonymized/text()": ["true"],
          f"{MEDIA}/@UserID": ["[::1]:50051"], f"{MEDIA}/@NetworkAccessPointID": ["::1"]}),
        (Event.LOGIN, BY_EVENT[Event.LOGIN],
         {EVENT: ["110114"], "//EventTypeCode/@csd-code": ["110122"],
          f"{PERSON}/@UserID": ["anna"], f"{PERSON}/@NetworkAccessPointID": ["10.0.0.9"]}),
        (Event.VIEWED, BY_EVENT[Event.VIEWED],
         {EVENT: ["110103"], f"{PERSON}/@UserID": ["anna"]}),
        (Event.VIEWED, {"user": "anna", "what": "list", "studies": ["k1"]},
         {EVENT: ["110112"]}),  # a query
    ],
    ids=["folder", "network", "to the cloud", "login", "view", "list of studies"],
)  # fmt: skip
def test_who_does_what_with_which_codes(
    event: Event, fields: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    tree = parsed(event, fields)
    assert {path: values(tree, path) for path in expected} == expected


@pytest.mark.parametrize(
    ("event", "fields", "outcome"),
    [(Event.READ, {}, "0"), (Event.REJECTED, {}, "4"), (Event.CONTINUED, {}, "8"),
     (Event.DELIVERED, {"outcome": "failed"}, "4"), (Event.LOGIN, {}, "0"),
     (Event.LOGIN, {"outcome": "failure", "reason": "wrong password"}, "4")],
)  # fmt: skip
def test_what_failed_has_an_outcome_and_a_reason(
    event: Event, fields: dict[str, Any], outcome: str
) -> None:
    tree = parsed(event, BY_EVENT[event] | fields)
    assert values(tree, "//@EventOutcomeIndicator") == [outcome]
    assert bool(values(tree, "//EventOutcomeDescription/text()")) == (outcome != "0")


def test_odd_identifiers_make_no_invalid_xml_and_an_unknown_event_no_message() -> None:
    """What a header holds is untrusted: control characters, markup, half of a surrogate pair."""
    odd = {"patient_id": "a\x00<b>&\ud800", "study_uid": "1\n2", "study_key": "k", "owner": "\x1b"}
    tree = parsed(Event.RECEIVED, odd)
    assert "a?<b>&?" in values(tree, "//@ParticipantObjectID")
    assert message_of(record_of("teleported", {}), SOURCE) == ""  # of a newer version
