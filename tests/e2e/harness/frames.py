"""RFC 6455 frames as bytes, legal or not. Nothing here judges a frame: tests build what they like."""
from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def header(opcode: int, length: int, *, fin: bool = True, rsv: int = 0, mask: bytes | None = None, form: int | None = None) -> bytes:
    """A frame header. `form` forces the length form: 7, 16 or 64 bits; `rsv` is the three bits as a number."""
    if form is None:
        form = 7 if length < 126 else 16 if length < 65536 else 64
    first = (0x80 if fin else 0) | (rsv << 4) | opcode
    masked = 0x80 if mask is not None else 0
    if form == 7:
        head = bytes([first, masked | length])
    elif form == 16:
        head = struct.pack("!BBH", first, masked | 126, length)
    else:
        head = struct.pack("!BBQ", first, masked | 127, length)
    return head + (mask or b"")


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """XOR with the four-byte key; its own inverse."""
    if not payload:
        return b""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(len(payload), "little")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = None, form: int | None = None) -> bytes:
    """A whole frame; with `mask` its payload is masked."""
    body = apply_mask(payload, mask) if mask is not None else payload
    return header(opcode, len(payload), fin=fin, rsv=rsv, mask=mask, form=form) + body


def masked(opcode: int, payload: bytes = b"", **bits) -> bytes:
    """A frame as a client sends it, with a fresh masking key."""
    return frame(opcode, payload, mask=os.urandom(4), **bits)


def close_payload(code: int | None, reason: bytes | str = b"") -> bytes:
    if code is None:
        return b""
    return struct.pack("!H", code) + (reason.encode() if isinstance(reason, str) else reason)


@dataclass
class Frame:
    """One frame as it came: `raw` is every byte of it, `payload` is unmasked."""

    fin: bool
    rsv: int
    opcode: int
    mask: bytes | None
    payload: bytes
    raw: bytes = field(repr=False)

    @property
    def close_code(self) -> int | None:
        return struct.unpack("!H", self.payload[:2])[0] if len(self.payload) >= 2 else None

    @property
    def close_reason(self) -> str:
        return self.payload[2:].decode("utf-8", "replace")


def parse(buffer: bytes | bytearray) -> Frame | None:
    """The first whole frame of `buffer`, or None while it is cut."""
    if len(buffer) < 2:
        return None
    first, second = buffer[0], buffer[1]
    length, at = second & 0x7F, 2
    if length == 126:
        if len(buffer) < 4:
            return None
        (length,), at = struct.unpack_from("!H", buffer, 2), 4
    elif length == 127:
        if len(buffer) < 10:
            return None
        (length,), at = struct.unpack_from("!Q", buffer, 2), 10
    mask = None
    if second & 0x80:
        if len(buffer) < at + 4:
            return None
        mask, at = bytes(buffer[at : at + 4]), at + 4
    if len(buffer) < at + length:
        return None
    payload = bytes(buffer[at : at + length])
    return Frame(
        fin=bool(first & 0x80),
        rsv=(first >> 4) & 7,
        opcode=first & 0x0F,
        mask=mask,
        payload=apply_mask(payload, mask) if mask else payload,
        raw=bytes(buffer[: at + length]),
    )
