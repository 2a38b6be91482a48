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
    """What a raw end sends. In pieces no message may stand in front of what is broken: whether an application gets to it
    first is its own race."""

    name: str
    sent: list[F]
    chop: int | None = None
    """In pieces of so many bytes."""
    closes: bool = True
    """A Close 1000 follows, behind all that the peer sends back."""
    cut: int | None = None
    """No Close: TCP ends behind so many bytes of a frame."""
    only: str | None = None
    """With peers of this make only."""
    deflate: bool = False
    """With permessage-deflate agreed on."""

    def raw(self, masks: bool) -> bytes:
        return b"".join(one.raw(masks) for one in self.sent)

    def end(self, masks: bool) -> bytes | None:
        """What goes out behind all that the peer sends back."""
        if self.cut is not None:
            return text(b"x" * 20).raw(masks)[: self.cut]
        return F(CLOSE, DONE).raw(masks) if self.closes else None


DONE = close_payload(1000, "done")

LAST = b"the last one"
"""What a message or a ping behind all others holds, so that its echo or pong is behind all other answers."""


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
    "at the start": b"\xffok ok",
    "at the end": b"ok ok\xff",
    "a missing continuation byte": b"ok \xce",
    "two missing ones in the middle": b"ok \xf0\x9f ok",
    "overlong": b"\xc0\xaf",
    "overlong, three bytes": b"\xe0\x80\xaf",
    "overlong, four bytes": b"\xf0\x80\x80\xaf",
    "an overlong NUL": b"a\xc0\x80b",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "0xFE": b"ok\xfe",
    "at the end of much that is good": b"x" * 4000 + b"\xff",
}
GOOD_CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]
"""Those of RFC 6455 section 7.4 and of IANA's registry, and of the ranges that are free."""
BAD_CODES = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
RESERVED = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
KINDS = {"text": TEXT, "binary": BINARY, "close": CLOSE, "ping": PING, "pong": PONG}
SIZES = [0, 1, 125, 126, 127, 128, 65_535, 65_536]


def packed(payload: bytes, level: int = -1) -> bytes:
    """RFC 7692 section 7.2.1; at level 0 it is stored, not compressed."""
    packer = zlib.compressobj(level, wbits=-15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def packed_final(payload: bytes) -> bytes:
    """With BFINAL set, section 7.2.3.4."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(payload) + packer.flush() + b"\0"


def packed_one_by_one(payloads: list[bytes]) -> list[bytes]:
    """With one context for all of them, section 7.2.3.2."""
    packer = zlib.compressobj(wbits=-15)
    return [(packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4] for payload in payloads]


def deflated(name: str, sent: list[F], **more) -> Case:
    return Case(name, sent, deflate=True, **more)


FRAMING = [  # RFC 6455 section 5.2
    *(Case(f"{kind} of {size}", [F(KINDS[kind], LETTERS[:size])]) for kind in ("text", "binary") for size in SIZES),
    *(Case(f"{kind} of 65536 in pieces of {chop}", [F(KINDS[kind], LETTERS[:65_536])], chop=chop) for kind in ("text", "binary") for chop in (997, 16_384)),
    *(Case(f"binary of {size} in pieces of 3", [F(BINARY, NOISE[:size]), text("behind")], chop=3) for size in (125, 126, 128)),
    Case("byte by byte", [text(), F(BINARY, b"\0\1\2"), F(PING, b"p")], chop=1),
    Case("many at once", [text(str(number)) for number in range(200)]),
    Case("all sizes at once", [F(BINARY, NOISE[:size]) for size in SIZES]),
]

PINGS_AND_PONGS = [  # sections 5.5.2 and 5.5.3
    *(Case(f"ping of {size}", [F(PING, NOISE[:size])]) for size in (0, 1, 125)),
    *(Case(f"{kind} of 126", [text(), F(KINDS[kind], NOISE[:126]), text("behind")]) for kind in ("ping", "pong")),
    *(Case(f"{kind} of 65536", [F(KINDS[kind], NOISE[:65_536]), text("behind")]) for kind in ("ping", "pong")),
    *(Case(f"a fragmented {kind}", [F(KINDS[kind], b"p", fin=False), more(), text("behind")]) for kind in ("ping", "pong")),
    *(Case(f"a pong of {size} that nobody asked for", [F(PONG, NOISE[:size]), text()]) for size in (0, 1, 125)),
    Case("ping of 125, byte by byte", [F(PING, NOISE[:125])], chop=1),
    Case("ten pings", [F(PING, bytes([number])) for number in range(10)]),
    Case("ten pings, byte by byte", [F(PING, bytes([number])) for number in range(10)], chop=1),
    Case("pings and pongs in turn", [F(PING, b"1"), F(PONG, b"2"), text(), F(PING, b"3"), F(PONG)]),
]

RESERVED_BITS = [  # section 5.2: none has a meaning unless an extension gave it one
    *(Case(f"rsv {rsv} on {kind}", [text(), F(opcode, b"x", rsv=rsv), text("behind")]) for rsv in range(1, 8) for kind, opcode in KINDS.items()),
    *(Case(f"rsv {rsv} on a continuation", [text(fin=False), more(rsv=rsv), text("behind")]) for rsv in range(1, 8)),
    *(Case(f"rsv {rsv} on the first frame, empty", [text(b"", rsv=rsv)]) for rsv in (1, 2, 4)),
    *(Case(f"rsv {rsv} on a large one", [F(BINARY, NOISE[:200_000], rsv=rsv), text("behind")]) for rsv in (1, 2, 4)),
    Case("byte by byte", [F(PING, b"p"), text(rsv=2), text("behind")], chop=1),
]

RESERVED_OPCODES = [  # section 5.2
    *(Case(f"opcode {opcode}, {len(payload)} bytes", [text(), F(opcode, payload), text("behind")]) for opcode in RESERVED for payload in (b"", b"x" * 64)),
    *(Case(f"opcode {opcode} in front of all", [F(opcode, b"x"), text("behind")]) for opcode in RESERVED),
    *(Case(f"opcode {opcode} between fragments", [text(fin=False), F(opcode, b"x"), more()]) for opcode in RESERVED),
    *(Case(f"opcode {opcode}, fragmented, byte by byte", [F(PING, b"p"), F(opcode, b"x", fin=False), more()], chop=1) for opcode in (3, 11)),
]

FRAGMENTATION = [  # section 5.4
    Case("two fragments", [text(fin=False), more()]),
    Case("two fragments, byte by byte", [text(fin=False), more()], chop=1),
    *(Case(f"{kind} of 64 KiB in fragments of {size}", fragments(KINDS[kind], LETTERS[:65_536], size)) for kind in ("text", "binary") for size in (64, 256, 4096, 65_000)),
    Case("1000 fragments of a byte", fragments(TEXT, LETTERS[:1000], 1)),
    Case("empty fragments", [text(b"", fin=False), more(b"", fin=False), more(b"")]),
    Case("empty fragments around one that is not", [text(b"", fin=False), more(fin=False), more(b"")]),
    *(Case(f"a {kind} between", [text(fin=False), F(KINDS[kind], b"p"), more()]) for kind in ("ping", "pong")),
    *(Case(f"a {kind} between, byte by byte", [text(fin=False), F(KINDS[kind], b"p"), more()], chop=1) for kind in ("ping", "pong")),
    Case("ten fragments, ten pings", [text(fin=False), *(one for number in range(9) for one in (F(PING, bytes([number])), more(fin=False))), F(PING), more()]),
    Case("a Close between", [text(fin=False), F(CLOSE, close_payload(1000)), more()], closes=False),
    *(Case(f"a continuation of nothing, FIN {fin}, {len(payload)} bytes", [more(payload, fin=fin), text()]) for fin in (True, False) for payload in (b"", b"more")),
    Case("a continuation behind a whole message", [text(), more(), text("behind")]),
    Case("another message inside one", [text(fin=False), text("other"), more()]),
    Case("another kind of message inside one", [text(fin=False), F(BINARY, b"other"), more()]),
    Case("another fragmented message inside one", [text(fin=False), F(BINARY, b"x", fin=False), more()]),
    Case("no end", [text(fin=False)]),
    Case("no end, a ping behind", [text(fin=False), more(fin=False), F(PING, b"p")]),
]

UTF_8 = [  # section 8.1
    Case("good", [text(GREEK)]),
    Case("good, byte by byte", [text(GREEK)], chop=1),
    Case("good, in fragments of a byte", fragments(TEXT, GREEK, 1)),
    Case("good, in fragments of a byte, byte by byte", fragments(TEXT, GREEK, 1), chop=1),
    Case("good, cut at every byte", [one for cut in range(1, len(GREEK)) for one in (text(GREEK[:cut], fin=False), more(GREEK[cut:]))]),
    Case("the first and the last of each length", [text("\0\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff")]),
    *(Case(name, [text(), text(payload), text("behind")]) for name, payload in BAD_UTF8.items()),
    *(Case(f"{name}, in fragments", [*fragments(TEXT, payload, 2), text("behind")]) for name, payload in BAD_UTF8.items() if len(payload) < 20),
    *(Case(f"{name}, byte by byte", [text(payload), text("behind")], chop=1) for name, payload in BAD_UTF8.items() if len(payload) < 20),
    *(Case(f"{name}, no end", [text(payload, fin=False)]) for name, payload in BAD_UTF8.items()),
    Case("bad behind a ping", [text(b"\xce", fin=False), F(PING, b"p"), more(b"\xce")]),
    Case("as binary", [F(BINARY, payload) for payload in BAD_UTF8.values()]),
]

LARGE = [
    *(Case(f"{kind} of 1 MiB", [F(KINDS[kind], LETTERS if kind == "text" else NOISE)]) for kind in ("text", "binary")),
    *(Case(f"{kind} of 1 MiB in fragments of {size}", fragments(KINDS[kind], LETTERS if kind == "text" else NOISE, size)) for kind in ("text", "binary") for size in (256, 1024, 4096)),
    # `websockets` refuses more than 4096 fragments, and takes 10 s to hang up.
    *(Case(f"{kind} of 1 MiB in fragments of 64", fragments(KINDS[kind], LETTERS if kind == "text" else NOISE, 64), only="ws") for kind in ("text", "binary")),
    *(Case(f"{kind} of 256 KiB in fragments of 64", fragments(KINDS[kind], (LETTERS if kind == "text" else NOISE)[: 1 << 18], 64)) for kind in ("text", "binary")),
    *(Case(f"1 MiB in fragments of {size}", fragments(BINARY, NOISE, size)) for size in (65_536, 300_000)),
    Case("1 MiB in pieces of 1000", [F(BINARY, NOISE)], chop=1000),
    # One byte more than what a library takes by default.
    Case("more than 1 MiB", [F(BINARY, NOISE + b"x"), text("behind")]),
    Case("more than 1 MiB in fragments", [*fragments(BINARY, NOISE + b"x", 65_536), text("behind")]),
]


def the_close(name: str, *sent: F, **bits) -> Case:
    """The Close is the case's own."""
    return Case(name, list(sent), closes=False, **bits)


CLOSES = [  # sections 5.5.1 and 7.4
    the_close("without a code", F(CLOSE)),
    the_close("of one byte", F(CLOSE, b"\x03")),
    *(the_close(f"a reason of {size} bytes", F(CLOSE, close_payload(1000, b"r" * size))) for size in (1, 122, 123, 124, 1000)),
    the_close("a reason in Greek", F(CLOSE, close_payload(4000, GREEK))),
    *(the_close(f"a reason that is not UTF-8: {name}", F(CLOSE, close_payload(1000, reason))) for name, reason in BAD_UTF8.items() if len(reason) < 20),
    the_close("fragmented", F(CLOSE, close_payload(1000), fin=False), more()),
    the_close("byte by byte", F(CLOSE, close_payload(1000, "why")), chop=1),
    *(the_close(f"code {code}", F(CLOSE, close_payload(code))) for code in (*GOOD_CODES, *BAD_CODES)),
    *(the_close(f"code {code} and a reason", F(CLOSE, close_payload(code, "why"))) for code in (*GOOD_CODES, *BAD_CODES)),
    the_close("text behind it", F(CLOSE, close_payload(1000)), text()),
    the_close("much behind it", F(CLOSE, close_payload(1000)), F(BINARY, NOISE[:300_000])),
    the_close("a ping behind it", F(CLOSE, close_payload(1000)), F(PING, b"p")),
    the_close("a broken frame behind it", F(CLOSE, close_payload(1000)), F(3, b"p", rsv=7)),
    the_close("another one behind it", F(CLOSE, close_payload(1000)), F(CLOSE, close_payload(1001))),
    the_close("a ping and a pong in front of it", F(PING, b"p"), F(PONG, b"p"), F(CLOSE, close_payload(1001, "away"))),
    Case("a large message in front of it", [F(BINARY, NOISE[:300_000])]),
]

# What ends in the middle of a frame's payload ends without a Close of ringway's too.
TCP_ENDS = [Case(f"{cut} bytes behind a frame", [text(), F(PING, b"p")], cut=cut) for cut in (0, 1, 3, 12)]
TCP_ENDS += [Case("behind a fragment", [text(), text(fin=False)], cut=0)]

MASKING_AND_LENGTHS = [  # sections 5.1 and 5.2; each way of masking is wrong in one of the roles
    *(Case(f"{kind}, masked {masked}", [text(), F(opcode, close_payload(1000) if opcode == CLOSE else b"p", masked=masked), text("behind")]) for kind, opcode in KINDS.items() for masked in (True, False)),
    *(Case(f"empty {kind}, masked {masked}", [text(), F(opcode, masked=masked), text("behind")]) for kind, opcode in KINDS.items() for masked in (True, False)),
    *(Case(f"a continuation, masked {masked}", [text(fin=False), more(masked=masked)]) for masked in (True, False)),
    *(Case(f"{form} bits for {size}", [text(), F(BINARY, NOISE[:size], form=form), text("behind")]) for form, size in ((16, 0), (16, 5), (16, 125), (64, 0), (64, 5), (64, 126), (64, 65_535))),
    *(Case(f"{form} bits for a {kind} of 5", [text(), F(KINDS[kind], b"hello", form=form), text("behind")]) for form in (16, 64) for kind in ("ping", "pong")),
    *(the_close(f"{form} bits for a Close", F(CLOSE, close_payload(1000, "why"), form=form)) for form in (16, 64)),
    Case("16 bits for 5, byte by byte", [text(form=16), text("behind")], chop=1),
]

LONG = packed(LETTERS[:60_000])
SAID = [b"hello " * 20, b"hello " * 20, b"", GREEK, LETTERS[:5000], b"hello " * 20]

COMPRESSION = [  # RFC 7692, agreed on end to end
    deflated("a message", [text(packed(b"hello" * 100), rsv=4)]),
    deflated("a binary one", [F(BINARY, packed(NOISE[:5000]), rsv=4)]),
    deflated("stored", [F(BINARY, packed(NOISE[:5000], level=0), rsv=4)]),
    deflated("several blocks", [text(packed(b"one") + b"\0\0\xff\xff" + packed(b"two"), rsv=4)]),
    deflated("BFINAL", [text(packed_final(b"hello" * 100), rsv=4), text(packed(b"behind"), rsv=4)]),
    deflated("many with one context", [text(payload, rsv=4) for payload in packed_one_by_one(SAID)]),
    deflated("a context that is not there", [text(packed_one_by_one([LETTERS[:500], LETTERS[:500]])[1], rsv=4)]),
    deflated("each with a context of its own", [text(packed(payload) or b"\0", rsv=4) for payload in SAID]),
    deflated("one that is not compressed", [text("plain"), F(PING, b"p")]),
    deflated("in turn with what is not compressed", [text(packed(b"one"), rsv=4), text("two"), text(packed(b"three"), rsv=4)]),
    deflated("in fragments", [text(LONG[:10], fin=False, rsv=4), more(LONG[10:100], fin=False), more(LONG[100:])]),
    deflated("in fragments, byte by byte", [text(packed(GREEK)[:3], fin=False, rsv=4), more(packed(GREEK)[3:])], chop=1),
    deflated("in empty fragments too", [text(b"", fin=False, rsv=4), more(b"", fin=False), more(LONG, fin=False), more(b"")]),
    deflated("in fragments of a byte", [F(TEXT if at == 0 else CONTINUATION, LONG[at : at + 1], fin=at == len(LONG) - 1, rsv=0 if at else 4) for at in range(len(LONG))]),
    *(deflated(f"with a {kind} between", [text(LONG[:10], fin=False, rsv=4), F(KINDS[kind], b"p"), more(LONG[10:])]) for kind in ("ping", "pong")),
    deflated("empty", [text(packed(b""), rsv=4), text(b"\0", rsv=4), text("behind")]),
    deflated("of no bytes", [text(b"", rsv=4), text("behind")]),
    deflated("byte by byte", [text(packed(GREEK), rsv=4)], chop=1),
    deflated("1 MiB", [F(BINARY, packed(LETTERS), rsv=4)]),
    deflated("1 MiB that cannot be compressed", [F(BINARY, packed(NOISE), rsv=4)]),
    deflated("more than 1 MiB", [F(BINARY, packed(LETTERS * 3), rsv=4), text("behind")]),
    *(deflated(f"RSV1 on a continuation, FIN {fin}", [text(LONG[:10], fin=False, rsv=4), more(LONG[10:], rsv=4, fin=fin), text("behind")]) for fin in (True, False)),
    deflated("RSV1 on the continuation only", [text(fin=False), more(packed(b"hello"), rsv=4), text("behind")]),
    *(deflated(f"RSV1 on {kind}", [F(KINDS[kind], close_payload(1000) if kind == "close" else b"p", rsv=4), text("behind")]) for kind in ("ping", "pong", "close")),
    *(deflated(f"rsv {rsv}", [text(packed(b"hello"), rsv=rsv), text("behind")]) for rsv in (1, 2, 3, 5, 6, 7)),
    deflated("broken", [text(b"\xff\xff\xff\xff\xff", rsv=4), text("behind")]),
    deflated("broken in the second fragment", [text(LONG[:30], fin=False, rsv=4), more(b"\xff" * 30), text("behind")]),
    deflated("broken behind a good one", [text(packed(b"hello"), rsv=4), text(b"\x06\xff\xff", rsv=4), text("behind")]),
    deflated("cut short", [text(LONG[:20], rsv=4), text(packed(b"behind"), rsv=4)]),
    *(deflated(f"not UTF-8: {name}", [text(packed(payload), rsv=4), text("behind")]) for name, payload in BAD_UTF8.items()),
    deflated("a Close with a reason", [text(packed(b"hello"), rsv=4), F(CLOSE, close_payload(4000, "why"))], closes=False),
]

SECTIONS: dict[str, list[Case]] = {
    "framing": FRAMING,
    "pings and pongs": PINGS_AND_PONGS,
    "reserved bits": RESERVED_BITS,
    "reserved opcodes": RESERVED_OPCODES,
    "fragmentation": FRAGMENTATION,
    "UTF-8": UTF_8,
    "large": LARGE,
    "closes": CLOSES,
    "TCP ends": TCP_ENDS,
    "masking and lengths": MASKING_AND_LENGTHS,
    "compression": COMPRESSION,
}
"""A length with its top bit set is not among them: it is the one frame that ringway judges (docs/protocol.md, "What passes")."""
