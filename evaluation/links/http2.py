"""What one direction of an HTTP/2 connection carried: headers and gRPC messages, decoded.

Headers may be compressed on the wire (HPACK): a search through raw bytes alone could miss them.
"""

import base64
import struct
from collections import defaultdict
from dataclasses import dataclass, field

from hpack import Decoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PushPromiseFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113, section 3.4)."""

_TABLE_BYTES = 1 << 20
"""Larger than any table of headers that gRPC asks for."""

Headers = list[tuple[str, str]]


@dataclass
class Carried:
    """By stream: all its headers, and the messages of its body. ``rest`` is what was cut off."""

    headers: dict[int, Headers] = field(default_factory=lambda: defaultdict(list))
    messages: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    rest: int = 0


def carried_by(data: bytes) -> Carried:
    """Decode all bytes of one direction of a connection, from its beginning."""
    found, decoder = Carried(), Decoder()
    decoder.max_allowed_table_size = _TABLE_BYTES
    bodies: dict[int, bytes] = defaultdict(bytes)
    block = b""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while at + 9 <= len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[at : at + 9]))
        if at + 9 + length > len(data):
            break
        frame.parse_body(memoryview(data[at + 9 : at + 9 + length]))
        at += 9 + length
        if isinstance(frame, DataFrame):
            bodies[frame.stream_id] += frame.data
        elif isinstance(frame, HeadersFrame | ContinuationFrame | PushPromiseFrame):
            block += frame.data
            if "END_HEADERS" in frame.flags:
                found.headers[frame.stream_id] += [
                    _header(bytes(name), bytes(value))
                    for name, value in decoder.decode(block, raw=True)
                ]
                block = b""
    for stream, body in bodies.items():
        found.messages[stream] = _messages(body)
    found.rest = len(data) - at
    return found


def _messages(body: bytes) -> list[bytes]:
    """Take messages out of their frames: a byte for compression, four for the length."""
    found = []
    while len(body) >= 5:
        compressed, length = struct.unpack(">BI", body[:5])
        if compressed:
            raise ValueError("a message is compressed, which this cannot read")
        found.append(body[5 : 5 + length])
        body = body[5 + length :]
    return found


def _header(name: bytes, value: bytes) -> tuple[str, str]:
    """Return name and value as text; bytes of a binary header (``-bin``) as Latin-1."""
    if name.endswith(b"-bin"):
        # after a zero byte as they are, otherwise in base64 without padding
        data = value[1:] if value.startswith(b"\0") else base64.b64decode(value + b"==")
        return name.decode(), data.decode("latin-1")
    return name.decode("utf-8", "replace"), value.decode("utf-8", "replace")
