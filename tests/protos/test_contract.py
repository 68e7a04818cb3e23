"""The contract is frozen: what a peer of today knows keeps its name, number and type.

``python -m tests.protos.test_contract`` writes the description again, after an addition.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from protos import generate
from protos import overread_pb2 as pb

FILE = Path(__file__).with_name("contract.json")
TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def described() -> dict[str, Any]:
    """All services, messages and enums of the contract, without comments and without order."""
    file = pb.DESCRIPTOR
    return {
        "file": file.name,
        "package": file.package,
        "services": {
            service.full_name: {method.name: signature(method) for method in service.methods}
            for service in file.services_by_name.values()
        },
        "messages": {
            name: {field.name: kind(field) for field in message.fields}
            for name, message in file.message_types_by_name.items()
        },
        "enums": {
            name: {value.name: value.number for value in enum.values}
            for name, enum in file.enum_types_by_name.items()
        },
    }


def signature(method: Any) -> str:
    def part(message: Descriptor, is_stream: bool) -> str:
        return ("stream " if is_stream else "") + message.full_name

    asked = part(method.input_type, method.client_streaming)
    return f"{asked} -> {part(method.output_type, method.server_streaming)}"


def kind(field: FieldDescriptor) -> str:
    """Number, label and type of a field, and the oneof that it is in."""
    of = field.message_type or field.enum_type
    whole = of.full_name if of is not None else TYPES[field.type]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        whole = f"map<{TYPES[key.type]}, {TYPES[value.type]}>"
    label = "repeated " if field.is_repeated else ""
    inside = field.containing_oneof
    one = f" in {inside.name}" if inside is not None else ""
    return f"{field.number}: {label}{whole}{one}"


def missing(committed: Any, now: Any, path: str = "") -> list[str]:
    """What was described and is gone or different; what was added is no break."""
    if not isinstance(committed, dict):
        return [] if committed == now else [f"{path}: {committed!r} is now {now!r}"]
    found = []
    for name, value in committed.items():
        there = now.get(name) if isinstance(now, dict) else None
        found += missing(value, there, f"{path}/{name}")
    return found


def test_nothing_of_the_contract_has_changed() -> None:
    """A change breaks a peer that is not updated: add a field or a value instead."""
    assert missing(json.loads(FILE.read_text()), described()) == []


def test_what_was_added_is_described_too() -> None:
    """Or the next change of it would not be seen."""
    assert missing(described(), json.loads(FILE.read_text())) == []


def test_a_change_of_number_type_or_name_would_be_seen() -> None:
    for change in ("number", "type", "name", "stream"):
        other = described()
        header, methods = other["messages"]["Header"], other["services"]["overread.v1.Overread"]
        if change == "number":
            header["budget_s"] = header["budget_s"].replace("3", "6")
        elif change == "type":
            header["budget_s"] = header["budget_s"].replace("double", "float")
        elif change == "name":
            header["budget"] = header.pop("budget_s")
        else:
            methods["Read"] = methods["Read"].replace("stream ", "")
        assert len(missing(json.loads(FILE.read_text()), other)) == 1


def test_the_committed_stubs_have_not_drifted() -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, of the extra dev")
    assert generate.drifted() == []


if __name__ == "__main__":
    FILE.write_text(json.dumps(described(), indent=1) + "\n")
