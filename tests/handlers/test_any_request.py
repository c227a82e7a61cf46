"""Whatever a request says, it is answered, and never with an error of the agent's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_agent.testing import memory_connection
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = MessageType
F = FieldDescriptor

NAMES = st.sampled_from(["", "a", "b", "/", "/etc", "..", "sh", "none", "ready", "0", "root", "\0"]) | st.text(
    max_size=9
)

SCALARS: dict[int, st.SearchStrategy[Any]] = {
    F.TYPE_STRING: NAMES,
    F.TYPE_BOOL: st.booleans(),
    F.TYPE_BYTES: st.binary(),
    F.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    F.TYPE_UINT32: st.integers(0, 3) | st.integers(0, 2**32 - 1),
    F.TYPE_UINT64: st.integers(0, 3) | st.integers(0, 2**64 - 1),
    F.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
}


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of a type, with any of its fields."""
    fields = {field.name: values(cast("FieldDescriptor", field)) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: kind(**chosen))


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """What a field may have in it."""
    if field.enum_type is not None:
        one: st.SearchStrategy[Any] = st.integers(0, 2**31 - 1)  # proto3 keeps values that have no name
    elif field.message_type is None:
        one = SCALARS[field.type]
    elif field.message_type.GetOptions().map_entry:
        return st.dictionaries(NAMES, NAMES, max_size=2)
    else:
        one = messages(GetMessageClass(field.message_type))
    return st.lists(one, max_size=3) if field.is_repeated else one


REQUESTS = st.one_of(
    [
        st.tuples(st.just(exchange.request), messages(exchange.request_message))
        for exchange in EXCHANGES.values()
        if exchange.request_message is not None
    ]
)


@settings(deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=8))
async def test_no_request_makes_the_agent_fail(requests: list[tuple[MessageType, Message]]) -> None:
    async with memory_connection() as peer:
        for number, (kind, request) in enumerate(requests):
            await peer.send(kind, request, trace_id=str(number))
        await peer.send(T.PingRequest, trace_id="last")
        while (frame := await peer.receive()).trace_id != "last":
            assert frame.type != T.Error or ErrorReply.decode(frame.payload).code != 500
