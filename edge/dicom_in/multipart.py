"""Take a multipart/related body apart while it arrives (RFC 2387), with bounds on its headers."""

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

MAX_BOUNDARY = 200


class MalformedRequest(ValueError):
    """The body is no valid multipart message; the text says why."""


@dataclass(frozen=True)
class PartBegins:
    """A part begins, with this media type; empty if it states none."""

    media_type: str


@dataclass(frozen=True)
class PartData:
    """The next bytes of the part."""

    data: bytes


@dataclass(frozen=True)
class PartEnds:
    """The part is whole."""


Event = PartBegins | PartData | PartEnds


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Return type and parameters of a Content-Type, in lower case except for values."""
    message = Message()
    message["Content-Type"] = value
    parameters = message.get_params(failobj=[], unquote=True)[1:]
    return message.get_content_type(), {name.lower(): text for name, text in parameters}


class RelatedParser:
    """Turns the chunks of a body into events.

    Raises:
        MalformedRequest: the boundary is invalid.
    """

    def __init__(self, boundary: str) -> None:
        if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
            raise MalformedRequest("Content-Type has no valid boundary")
        self._events: list[Event] = []
        self._name, self._value, self._kind = bytearray(), bytearray(), ""
        self._ended = False
        note = self._events.append
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: note(PartData(data[start:end])),
                "on_part_end": lambda: note(PartEnds()),
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events of the next chunk.

        Raises:
            MalformedRequest: it is no part of a valid message.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"the body is no valid multipart message: {error}") from error
        events = self._events.copy()
        self._events.clear()
        yield from events

    def finish(self) -> None:
        """Require that the message has ended.

        Raises:
            MalformedRequest: the closing boundary is missing.
        """
        if not self._ended:
            raise MalformedRequest("the body ends before its closing boundary")

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-type":
            self._kind, _ = media_type(self._value.decode("latin-1"))
        self._name.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        self._events.append(PartBegins(self._kind))
        self._kind = ""

    def _on_end(self) -> None:
        self._ended = True
