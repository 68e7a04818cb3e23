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


def test_the_contract_is_as_it_was_described() -> None:
    """A change breaks a peer that is not updated: add a field or a value, and describe it too."""
    assert described() == json.loads(FILE.read_text())


def test_the_committed_stubs_have_not_drifted() -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, of the extra dev")
    assert generate.drifted() == []


if __name__ == "__main__":
    FILE.write_text(json.dumps(described(), indent=1) + "\n")
