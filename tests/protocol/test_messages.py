"""The message types and messages against the tables of the protocol page: wire_*.txt, beside this file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from arcbox_protocol import (
    EXCHANGES,
    LATER_REQUESTS,
    NOTIFICATIONS,
    Exchange,
    MessageType,
    arcbox_sandbox_v1,
    arcbox_v1,
    describe_type,
    sandbox_v1,
)

HERE = Path(__file__).parent

# What the page says in the payload column for a payload that `protocol` has no message for.
NO_MESSAGE = {"-", "empty", "Empty (ignored)", "raw stdin bytes; empty = end of stdin", ""}
TYPE_NAMES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def lines_of(name: str) -> list[str]:
    return [line for line in (HERE / name).read_text().splitlines() if line and not line.startswith("#")]


def definitions_of_the_page() -> tuple[dict[str, str], dict[str, str]]:
    """Full names of messages and of enums to their fields and values, as the page writes them."""
    messages: dict[str, str] = {}
    enums: dict[str, str] = {}
    package = ""
    for line in lines_of("wire_messages.txt"):
        if line.startswith("package "):
            package = line.removeprefix("package ")
        else:
            name, _, content = line.partition(": ")
            kind = enums if name.startswith("enum ") else messages
            kind[f"{package}.{name.removeprefix('enum ')}"] = content
    return messages, enums


MESSAGES_OF_THE_PAGE, ENUMS_OF_THE_PAGE = definitions_of_the_page()
ROWS_OF_THE_PAGE = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines_of("wire_exchanges.txt")]
REQUEST_ROWS = [row for row in ROWS_OF_THE_PAGE if row[0] != "Empty" and not row[0].startswith("(")]
FILES = (arcbox_v1.DESCRIPTOR, sandbox_v1.DESCRIPTOR, arcbox_sandbox_v1.DESCRIPTOR)
DESCRIPTORS = {descriptor.full_name: descriptor for file in FILES for descriptor in file.message_types_by_name.values()}
ENUMS = {
    enum.full_name: enum
    for scope in (*(file.enum_types_by_name for file in FILES), *(d.enum_types_by_name for d in DESCRIPTORS.values()))
    for enum in scope.values()
}


def as_the_page_writes_it(field: FieldDescriptor) -> str:
    return f"{field.name} {type_as_the_page_writes_it(field)} = {field.number}"


def type_as_the_page_writes_it(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        assert [TYPE_NAMES[entry.type] for entry in message.fields] == ["string", "string"]
        return "map"
    name = TYPE_NAMES[field.type] if message is None else message.name
    if field.is_repeated:
        return f"[]{name}"
    oneof = field.containing_oneof
    if oneof is not None and oneof.name.startswith("_"):  # protoc's own, one for each optional field
        return f"optional {name}"
    return name


@pytest.mark.parametrize("name", MESSAGES_OF_THE_PAGE)
def test_a_message_has_the_fields_of_the_page(name: str) -> None:
    page = re.sub(r" \([^)]*\)|; 16 reserved$|^oneof \w+: |^-$", "", MESSAGES_OF_THE_PAGE[name])
    assert ", ".join(as_the_page_writes_it(field) for field in DESCRIPTORS[name].fields) == page


def test_there_are_no_other_messages_and_enums() -> None:
    assert set(DESCRIPTORS) == set(MESSAGES_OF_THE_PAGE)
    assert set(ENUMS) == set(ENUMS_OF_THE_PAGE)


@pytest.mark.parametrize("name", ENUMS_OF_THE_PAGE)
def test_an_enum_has_the_values_of_the_page(name: str) -> None:
    assert ", ".join(f"{value.name} {value.number}" for value in ENUMS[name].values) == ENUMS_OF_THE_PAGE[name]


def test_the_oneofs_are_those_of_the_page() -> None:
    page = {
        (name, fields.split(" ")[1].removesuffix(":"))
        for name, fields in MESSAGES_OF_THE_PAGE.items()
        if fields.startswith("oneof ")
    }
    ours = {
        (name, oneof.name)
        for name, descriptor in DESCRIPTORS.items()
        for oneof in descriptor.oneofs
        if not oneof.name.startswith("_")
    }
    assert ours == page


def test_an_optional_field_tells_empty_from_absent() -> None:
    empty = sandbox_v1.CreateSandboxRequest(ssh_public_key="")
    assert sandbox_v1.CreateSandboxRequest.FromString(empty.SerializeToString()).HasField("ssh_public_key")
    assert not sandbox_v1.CreateSandboxRequest().HasField("ssh_public_key")


def test_the_message_types_are_those_of_the_page() -> None:
    page = {}
    for request, request_number, _, reply, reply_number, _ in ROWS_OF_THE_PAGE:
        if request_number:
            page[request] = int(request_number, 16)
        if reply_number:
            page[reply.removesuffix(", many")] = int(reply_number, 16)
    assert {member.name: member.value for member in MessageType} == page


@pytest.mark.parametrize("row", REQUEST_ROWS, ids=lambda row: row[0])
def test_an_exchange_is_that_of_the_page(row: list[str]) -> None:
    name, number, payload, reply, reply_number, reply_payload = row
    exchange = EXCHANGES[int(number, 16)]
    assert exchange.request.name == name
    assert message_name(exchange, "request") == (None if payload in NO_MESSAGE else payload)
    assert exchange.reply == (int(reply_number, 16) if reply_number else None)
    assert message_name(exchange, "reply") == (None if reply_payload in NO_MESSAGE else reply_payload)
    assert exchange.streams == reply.endswith(", many")
    ends = [row[3] for row in ROWS_OF_THE_PAGE if row[0] == f"(end of {name})"]
    assert [exchange.end.name] == ends if exchange.end else ends == []


def message_name(exchange: Exchange, side: str) -> str | None:
    """The message's name, in the package that its request belongs to."""
    message = exchange.request_message if side == "request" else exchange.reply_message
    if message is None:
        return None
    package, _, name = message.DESCRIPTOR.full_name.rpartition(".")
    assert package == package_of(exchange.request)
    return name


def package_of(request: MessageType) -> str:
    if request.name.startswith("Sandbox"):
        return "sandbox.v1"
    later_sandboxes = 0x20 <= request < 0x50 or request >= 0x60
    return "arcbox.sandbox.v1" if later_sandboxes else "arcbox.v1"


def test_there_are_no_other_requests() -> None:
    assert set(EXCHANGES) == {int(row[1], 16) for row in REQUEST_ROWS}


def test_the_notifications_are_those_of_the_page() -> None:
    page = {int(row[4], 16): f"arcbox.v1.{row[5]}" for row in ROWS_OF_THE_PAGE if row[0] == "(notification)"}
    assert {number: message.DESCRIPTOR.full_name for number, message in NOTIFICATIONS.items()} == page


def test_no_number_means_two_requests() -> None:
    assert not LATER_REQUESTS.keys() & set(MessageType)


def test_a_known_type_is_described_by_number_and_name() -> None:
    assert describe_type(0x000B) == "0x000B (MmapReadFileRequest)"
    assert describe_type(0x0090) == "0x0090 (KubernetesLoadBalancersRequest)"


@pytest.mark.parametrize(("number", "text"), [(0x9999, "0x9999"), (0xFFFF_FFFF, "0xFFFFFFFF"), (0x1F, "0x001F")])
def test_an_unknown_type_is_described_by_its_number(number: int, text: str) -> None:
    assert describe_type(number) == text
