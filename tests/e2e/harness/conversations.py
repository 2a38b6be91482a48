"""Frame sequences that a strict peer must judge, written from RFC 6455 and RFC 7692: what a raw end sends, by section."""
from __future__ import annotations

import os
import random
import zlib
from dataclasses import dataclass

from . import frames
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload


@dataclass(frozen=True)
class F:
    """One frame. `masked`: as an end of that role has to, unless said otherwise."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    form: int | None = None
    masked: bool | None = None

    def raw(self, masks: bool) -> bytes:
        masks = masks if self.masked is None else self.masked
        return frames.frame(self.opcode, self.payload, fin=self.fin, rsv=self.rsv, form=self.form, mask=os.urandom(4) if masks else None)


@dataclass(frozen=True)
class Case:
    name: str
    sent: list[F]
    chop: int | None = None
    """In pieces of so many bytes."""
    closes: bool = True
    """A Close 1000 follows, behind all that the peer sends back."""
    deflate: bool = False
    """With permessage-deflate agreed on."""

    def raw(self, masks: bool) -> bytes:
        return b"".join(one.raw(masks) for one in self.sent)


LAST = b"the last one"
"""The message behind all others, for which a server's echo is awaited: an application that has messages to answer when the
Close comes may answer them or not."""


def is_last(got: frames.Frame) -> bool:
    payload = zlib.decompressobj(-15).decompress(got.payload + b"\0\0\xff\xff", 100) if got.rsv == 4 and got.opcode == TEXT and len(got.payload) < 100 else got.payload
    return payload == LAST


def text(payload: bytes | str = b"hello", **bits) -> F:
    return F(TEXT, payload.encode() if isinstance(payload, str) else payload, **bits)


def more(payload: bytes = b"more", fin: bool = True, **bits) -> F:
    return F(CONTINUATION, payload, fin=fin, **bits)


def fragments(opcode: int, payload: bytes, size: int) -> list[F]:
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    last = len(pieces) - 1
    return [F(CONTINUATION if at else opcode, piece, fin=at == last) for at, piece in enumerate(pieces)]


NOISE = random.Random(0).randbytes(1 << 20)
LETTERS = (b"conformance " * 90_000)[: 1 << 20]
GREEK = "κόσμε \U0001f600 ß".encode()
BAD_UTF8 = {
    "a lone continuation byte": b"ok \x80 no",
    "a missing continuation byte": b"ok \xce",
    "overlong": b"\xc0\xaf",
    "overlong, three bytes": b"\xe0\x80\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "0xFE": b"ok\xfe",
    "at the end of much that is good": b"x" * 4000 + b"\xff",
}
GOOD_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
BAD_CODES = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


def packed(payload: bytes) -> bytes:
    """RFC 7692 section 7.2.1."""
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def deflated(name: str, sent: list[F], **more) -> Case:
    return Case(name, sent, deflate=True, **more)


LONG = packed(LETTERS[:60_000])

SECTIONS: dict[str, list[Case]] = {
    "framing": [
        *(Case(f"{kind} of {size}", [F(opcode, LETTERS[:size])]) for kind, opcode in (("text", TEXT), ("binary", BINARY)) for size in (0, 1, 125, 126, 127, 128, 65535, 65536)),
        *(Case(f"65536 in pieces of {chop}", [text(LETTERS[:65536])], chop=chop) for chop in (997, 16_384)),
        Case("byte by byte", [text(), F(BINARY, b"\0\1\2"), F(PING, b"p")], chop=1),
        Case("many at once", [text(str(number)) for number in range(200)]),
    ],
    "pings and pongs": [
        *(Case(f"ping of {size}", [F(PING, NOISE[:size])]) for size in (0, 1, 125)),
        Case("ping of 126", [F(PING, NOISE[:126])]),
        Case("a fragmented ping", [F(PING, b"p", fin=False), more()]),
        Case("ten pings", [F(PING, bytes([number])) for number in range(10)]),
        Case("a pong nobody asked for", [F(PONG, b"p"), text()]),
        Case("a pong of 126", [F(PONG, NOISE[:126])]),
        Case("pings and pongs in turn", [F(PING, b"1"), F(PONG, b"2"), text(), F(PING, b"3"), F(PONG)]),
    ],
    "reserved bits": [Case(f"rsv {rsv} on {name}", [text(), F(opcode, b"x", rsv=rsv), text("behind")]) for rsv in range(1, 8) for name, opcode in (("text", TEXT), ("ping", PING), ("close", CLOSE))],
    "reserved opcodes": [Case(f"opcode {opcode}, {len(payload)} bytes", [text(), F(opcode, payload), text("behind")]) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15) for payload in (b"", b"x" * 64)],
    "fragmentation": [
        Case("two fragments", [text(fin=False), more()]),
        *(Case(f"64 KiB in fragments of {size}", fragments(TEXT, LETTERS[:65536], size)) for size in (64, 256, 4096, 65_000)),
        Case("empty fragments", [text(b"", fin=False), more(b"", fin=False), more(b"")]),
        Case("a ping between", [text(fin=False), F(PING, b"p"), more()]),
        Case("a pong between", [text(fin=False), F(PONG, b"p"), more()]),
        Case("ten fragments, ten pings", [text(fin=False), *(one for number in range(9) for one in (F(PING, bytes([number])), more(fin=False))), F(PING), more()]),
        Case("a Close between", [text(fin=False), F(CLOSE, close_payload(1000)), more()], closes=False),
        Case("a continuation of nothing", [more(), text()]),
        Case("a continuation of nothing that goes on", [more(fin=False), text()]),
        Case("a continuation behind a whole message", [text(), more()]),
        Case("another message inside one", [text(fin=False), text("other")]),
        Case("another fragmented message inside one", [text(fin=False), F(BINARY, b"x", fin=False), more()]),
        Case("no end", [text(fin=False)]),
    ],
    "UTF-8": [
        Case("good", [text(GREEK)]),
        Case("good, byte by byte", [text(GREEK)], chop=1),
        Case("good, cut at every byte", [one for cut in range(1, len(GREEK)) for one in (text(GREEK[:cut], fin=False), more(GREEK[cut:]))]),
        *(Case(name, [text(payload), text("behind")]) for name, payload in BAD_UTF8.items()),
        *(Case(f"{name}, in fragments", [*fragments(TEXT, payload, 2), text("behind")]) for name, payload in BAD_UTF8.items() if len(payload) < 20),
        Case("as binary", [F(BINARY, payload) for payload in BAD_UTF8.values()]),
    ],
    "large": [
        *(Case(f"{kind} of 1 MiB", [F(opcode, payload)]) for kind, opcode, payload in (("text", TEXT, LETTERS), ("binary", BINARY, NOISE))),
        *(Case(f"1 MiB in fragments of {size}", fragments(BINARY, NOISE, size)) for size in (4096, 65_536, 300_000)),
        Case("1 MiB in pieces of 1000", [F(BINARY, NOISE)], chop=1000),
    ],
    "closes": [
        Case("without a code", [F(CLOSE)], closes=False),
        Case("of one byte", [F(CLOSE, b"\x03")], closes=False),
        Case("a reason of 123 bytes", [F(CLOSE, close_payload(1000, b"r" * 123))], closes=False),
        Case("a reason of 124 bytes", [F(CLOSE, close_payload(1000, b"r" * 124))], closes=False),
        Case("a reason that is not UTF-8", [F(CLOSE, close_payload(1000, b"\xff\xfe"))], closes=False),
        Case("fragmented", [F(CLOSE, close_payload(1000), fin=False), more()], closes=False),
        *(Case(f"code {code}", [F(CLOSE, close_payload(code, "why"))], closes=False) for code in (*GOOD_CODES, *BAD_CODES)),
        Case("text behind it", [F(CLOSE, close_payload(1000)), text()], closes=False),
        Case("a ping behind it", [F(CLOSE, close_payload(1000)), F(PING, b"p")], closes=False),
        Case("another one behind it", [F(CLOSE, close_payload(1000)), F(CLOSE, close_payload(1001))], closes=False),
        Case("a large message in front of it", [F(BINARY, NOISE[:300_000])]),
    ],
    "masking and lengths": [
        Case("the wrong masking, text", [text(masked=True), text(masked=False)]),
        Case("the wrong masking, ping", [F(PING, b"p", masked=True), F(PING, b"q", masked=False)]),
        Case("16 bits for 5", [text(form=16), text("behind")]),
        Case("64 bits for 5", [text(form=64), text("behind")]),
        Case("64 bits for 65535", [F(BINARY, NOISE[:65535], form=64), text("behind")]),
        Case("16 bits for a ping of 5", [F(PING, b"hello", form=16), text("behind")]),
    ],
    "compression": [
        deflated("a message", [text(packed(b"hello" * 100), rsv=4)]),
        deflated("two with one context", [text(packed(b"hello"), rsv=4), text(packed(b"hello"), rsv=4)]),
        deflated("one that is not compressed", [text("plain")]),
        deflated("in fragments", [text(LONG[:10], fin=False, rsv=4), more(LONG[10:100], fin=False), more(LONG[100:])]),
        deflated("with a ping between", [text(LONG[:10], fin=False, rsv=4), F(PING, b"p"), more(LONG[10:])]),
        deflated("empty", [text(packed(b"") or b"\0", rsv=4)]),
        deflated("byte by byte", [text(packed(GREEK), rsv=4)], chop=1),
        deflated("1 MiB", [F(BINARY, packed(LETTERS), rsv=4)]),
        deflated("RSV1 on a continuation", [text(LONG[:10], fin=False, rsv=4), more(LONG[10:], rsv=4), text("behind")]),
        deflated("RSV1 on a ping", [F(PING, b"p", rsv=4), text("behind")]),
        deflated("RSV2", [text(packed(b"hello"), rsv=6), text("behind")]),
        deflated("broken", [text(b"\xff\xff\xff\xff\xff", rsv=4), text("behind")]),
        deflated("not UTF-8", [text(packed(b"\xff\xfe"), rsv=4), text("behind")]),
    ],
}
