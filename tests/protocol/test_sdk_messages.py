"""Our messages of package arcbox.sandbox.v1 against those of the PyPI package `arcbox`, the SDK of the hosts' maker.

Both define the same names, and a process has one pool of those: the SDK's descriptors are taken from a process of their
own, and go into a pool of their own.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_protocol import arcbox_sandbox_v1, sandbox_v1

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message

DUMP_DESCRIPTORS = """
import base64, json
from google.protobuf import empty_pb2, timestamp_pb2
from arcbox._gen import filesystem_pb2, process_pb2, sandbox_pb2
files = empty_pb2, timestamp_pb2, sandbox_pb2, process_pb2, filesystem_pb2
print(json.dumps([base64.b64encode(file.DESCRIPTOR.serialized_pb).decode() for file in files]))
"""

PACKAGE = "arcbox.sandbox.v1"
# Named as in the SDK's package, though on the wire before it.
SHARED: list[type[Message]] = [sandbox_v1.FileChunk, sandbox_v1.ReadFileRequest, sandbox_v1.WriteFileOpen]
# Between agent and host only: the SDK talks to the host.
NOT_IN_THE_SDK = {"SandboxResumeCommand", "SandboxResumeResponse"}
OURS: dict[str, Descriptor] = {
    **{name: d for name, d in arcbox_sandbox_v1.DESCRIPTOR.message_types_by_name.items() if name not in NOT_IN_THE_SDK},
    **{kind.DESCRIPTOR.name: cast("Descriptor", kind.DESCRIPTOR) for kind in SHARED},
}
MESSAGES = sorted(OURS)
ENUMS = sorted(arcbox_sandbox_v1.DESCRIPTOR.enum_types_by_name)


@pytest.fixture(scope="module")
def sdk() -> DescriptorPool:
    command = [sys.executable, "-c", DUMP_DESCRIPTORS]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout  # noqa: S603  our own text
    pool = DescriptorPool()
    for file in json.loads(output):
        pool.Add(FileDescriptorProto.FromString(base64.b64decode(file)))
    return pool


def fields(message: Descriptor) -> list[tuple[Any, ...]]:
    return [
        (f.number, f.name, f.type, f.is_repeated, type_name(f), f.containing_oneof and f.containing_oneof.name)
        for f in sorted(message.fields, key=lambda field: field.number)
    ]


def type_name(field: FieldDescriptor) -> str:
    kind = field.message_type or field.enum_type
    return kind.full_name.replace("sandbox.v1.", "") if kind else ""


def values(enum: EnumDescriptor) -> list[tuple[str, int]]:
    return [(value.name, value.number) for value in enum.values]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_the_fields_of_the_sdks(sdk: DescriptorPool, name: str) -> None:
    assert fields(OURS[name]) == fields(sdk.FindMessageTypeByName(f"{PACKAGE}.{name}"))


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_values_of_the_sdks(sdk: DescriptorPool, name: str) -> None:
    ours = arcbox_sandbox_v1.DESCRIPTOR.enum_types_by_name[name]
    assert values(ours) == values(sdk.FindEnumTypeByName(f"{PACKAGE}.{name}"))


def filled(kind: type[Message], number: int) -> Message:
    """A message with something in each of its fields; of a oneof only one can be kept, which one `number` decides."""
    message = kind()
    everything = cast("list[FieldDescriptor]", list(kind.DESCRIPTOR.fields))
    for field in everything[number % len(everything) :] + everything[: number % len(everything)] if everything else []:
        oneof = field.containing_oneof
        if oneof is None or message.WhichOneof(oneof.name) is None:
            fill(message, field, number)
    return message


def fill(message: Message, field: FieldDescriptor, number: int) -> None:
    value: Any
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[f"key {number}"] = "value"
        return
    if field.message_type is not None:
        value = filled(GetMessageClass(field.message_type), number)
        target = getattr(message, field.name)
        (target.add() if field.is_repeated else target).CopyFrom(value)
        if not field.is_repeated:
            target.SetInParent()
        return
    if field.type == field.TYPE_STRING:
        value = f"{field.name} {number} ✓"
    elif field.type == field.TYPE_BYTES:
        value = number.to_bytes(8)
    else:
        value = True if field.type == field.TYPE_BOOL else number
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


@pytest.mark.parametrize("name", MESSAGES)
@settings(max_examples=20, deadline=None)
@given(number=st.integers(1, 999_999_999))  # what nanoseconds may be
def test_the_sdks_bytes_are_ours(sdk: DescriptorPool, name: str, number: int) -> None:
    theirs = filled(GetMessageClass(sdk.FindMessageTypeByName(f"{PACKAGE}.{name}")), number)
    golden = theirs.SerializeToString(deterministic=True)
    ours = GetMessageClass(OURS[name]).FromString(golden)
    assert MessageToDict(ours) == MessageToDict(theirs)
    assert ours.SerializeToString(deterministic=True) == golden
