"""What a command is: one attrs class per request type, an instance per request, called once.

The three kinds differ in what their call may do, so that the types say it: a `QuickCommand` can't wait, a
`UnaryCommand` waits and answers once, a `StreamCommand` answers as often as it likes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, Union

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from google.protobuf.message import Message

    from arcbox_guest import Guest
    from arcbox_protocol import Buffer, Frame, MessageType

RequestT = TypeVar("RequestT")


@frozen(kw_only=True)
class Context:
    """What every command sees. Built once, in `agent`; a test builds one around a guest of fakes."""

    guest: Guest
    version: str
    """The agent's version, as Ping reports it."""


class OpenFile(Protocol):
    """A part of an open file."""

    @property
    def descriptor(self) -> int:
        """The file, open for reading."""

    @property
    def offset(self) -> int:
        """Where the part begins, in bytes."""

    @property
    def length(self) -> int:
        """Its bytes."""

    async def send(self, socket: int, sent: int, *, copied: bool = False) -> int:
        """Send some of what comes after the first `sent` bytes to a non-blocking socket; 0 when there is no more.

        Args:
            socket: its descriptor.
            sent: bytes of this part.
            copied: have them read and sent, where sendfile(2) is slower.

        Raises:
            BlockingIOError: the socket takes none now.
        """

    def close(self) -> None:
        """Let go of the file."""


@frozen
class FileReply:
    """A reply with a part of a file in its payload, which the kernel sends from where it lies."""

    head: bytes
    """The payload before the file's bytes."""

    file: OpenFile
    """Closed once it was sent, or could not be."""

    tail: Callable[[int], bytes]
    """The payload after them, given how many were really there: where the file ended early, zeros take their place, so
    that the frame stays whole."""

    tail_size: int
    """Bytes of the tail, whatever the number."""

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return len(self.head) + self.file.length + self.tail_size


@frozen
class Acknowledgement:
    """A reply that must be on the wire before what it promises begins."""

    message: Message | None
    """None is an empty payload."""

    then: Callable[[], None]
    """Called once the reply was sent, and not at all when it could not be."""


Reply = Union["Message", FileReply, Acknowledgement]
"""What answers a request."""


class ReplyStream(Protocol):
    """A stream's way back to the peer; every frame bears its request's trace id."""

    @property
    def inputs(self) -> trio.abc.ReceiveChannel[Frame]:
        """The frames of the types in the command's `accepts` that the peer sent to this stream."""

    def started(self) -> None:
        """Say that a stream that `observes` does so from now on."""

    async def send(self, message: Message) -> None:
        """Send one reply; waits while the peer reads slowly."""

    async def send_payload(self, *parts: Buffer) -> None:
        """Send one reply whose payload is these parts one after the other, uncopied."""

    async def notify(self, message_type: MessageType, message: Message) -> None:
        """Send a frame of another type, which bears no trace id: a notification for the whole connection."""

    async def end(self) -> None:
        """Send the empty frame that says that the stream is over, of the type that `Exchange.end` has for it."""


@frozen
class Command(ABC, Generic[RequestT]):
    """One request, about to be carried out."""

    handles: ClassVar[MessageType]
    """The request type that this class is registered for."""

    request: RequestT
    """The parsed protobuf message; None for a type whose payload is ignored."""


@frozen
class QuickCommand(Command[RequestT]):
    """Answered on the spot, in microseconds: no waiting, no blocking calls."""

    @abstractmethod
    def __call__(self, context: Context) -> Message | None:
        """Carry the request out; None is an empty payload."""


@frozen
class UnaryCommand(Command[RequestT]):
    """Answered once, in turn; other requests of the connection wait for it unless it is slow."""

    slow: ClassVar[bool] = False
    """Whether later requests of the connection may overtake it."""

    def at_once(self, context: Context) -> Reply | None:  # noqa: ARG002  the interface's
        """The reply, if it can be had without any waiting, which is cheaper; None when the command has to be called."""
        return None

    @abstractmethod
    async def __call__(self, context: Context) -> Reply | None:
        """Carry the request out; None is an empty payload."""


@frozen
class StreamCommand(Command[RequestT]):
    """Answered any number of times, beside everything else on the connection."""

    accepts: ClassVar[frozenset[MessageType]] = frozenset()
    """The types of later frames that are this stream's input, such as SandboxExecInput."""

    observes: ClassVar[bool] = False
    """Whether it tells what other requests do: those behind it wait until it calls `ReplyStream.started`, or ends."""

    @abstractmethod
    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        """Carry the request out; the stream ends with the call."""


AnyCommand = type[QuickCommand[Any]] | type[UnaryCommand[Any]] | type[StreamCommand[Any]]
