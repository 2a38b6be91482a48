"""The contract, section 5: `/ws/docs` with `Accept: text/html` is the playground, in a browser and against a real gateway.

The README's pictures are made anew by `RINGWAY_SCREENSHOTS=docs/images RINGWAY_TEST_DRIVERS=io_uring tests/run -k screenshots`."""
from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness.browser import CHROMIUM, Browser, Page
from harness.client import KEY
from harness.frames import BINARY, CLOSE, TEXT, close_payload, frame
from harness.process import ROOT
from harness.programs import CLIENTS, Program, node
from harness.target import Target
from harness.tls import Authority
from test_http import get, request

in_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian package chromium)")
BROWSERS = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.fixture(scope="module")
def browser():
    made = Browser()
    yield made
    made.close()


@asynccontextmanager
async def playground(world, browser, gateway=None, target: Target | None = None, secure: bool = False, **look):
    """The page of a gateway, with an echo's address and the key filled in."""
    gateway = gateway or await world.gateway()
    target = target or world.target().serve_echo()
    async with browser.page(**look) as page:
        page.base = f"{'https' if secure else 'http'}://localhost:{gateway.tls_port if secure else gateway.port}"
        page.target = target
        await page.open(f"{page.base}/ws/docs")
        await page.fill("#url", target.url())
        await page.fill("#key", KEY)
        yield page
        strangers = [url for url in page.requests if not url.startswith((page.base, page.base.replace("http", "ws"), "data:"))]
        assert not strangers, "the page asks nobody but its gateway"


async def connect(page: Page) -> None:
    await page.click("#connect")
    await page.until_text("#status", "Connected")


async def say(page: Page, text: str) -> None:
    await page.fill("#message", text)
    await page.press("Enter")


async def rows(page: Page) -> list[dict]:
    """The messages that are in the page now."""
    return await page.evaluate("""[...document.querySelectorAll('.row')].map((row) => ({
        way: ['in', 'out', 'event'].find((way) => row.classList.contains(way)), kind: row.querySelector('.kind').textContent,
        time: row.querySelector('.time').textContent, size: row.querySelector('.size').textContent,
        body: row.querySelector('.body').textContent, trip: row.querySelector('.trip').textContent}))""")


async def until_row(page: Page, body: str, way: str = "in") -> None:
    await page.until(f"[...document.querySelectorAll('.row.{way} .body')].some((body) => body.textContent.includes({json.dumps(body)}))")


# --- who gets it ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("accept", [BROWSERS, "text/html", "text/html;q=0.9, application/json;q=0.9"])
async def test_a_browser_gets_the_page(world, accept):
    """`GET /ws/docs` with `Accept: text/html`: one self-contained page under a strict policy"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get("/ws/docs", f"Accept: {accept}"))
    assert answer.status == 200 and answer.fields["content-type"] == "text/html; charset=utf-8", answer.head
    assert answer.fields["vary"] == "Accept" and answer.fields["x-content-type-options"] == "nosniff"
    assert answer.fields["referrer-policy"] == "no-referrer"
    html = answer.body.decode()
    policy = dict(directive.split(" ", 1) for directive in answer.fields["content-security-policy"].split("; "))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        assert policy[directive] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    for directive in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert policy[directive] == "'none'"
    assert policy["connect-src"] == "'self'" and "{{" not in html


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json, text/html;q=0.9", "application/json, text/html", "text/html;q=0", "text/*"])
async def test_all_others_get_json(world, accept):
    """… everybody else the four keys"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get("/ws/docs", *([f"Accept: {accept}"] if accept else [])))
    assert list(answer.json()) == ["type", "status", "node_id", "message"] and answer.fields["vary"] == "Accept"


# --- a session ------------------------------------------------------------------------------------------------------------
@in_browser
async def test_a_session(world, browser):
    """connect, send text, live list of messages with times, sizes and kind, round-trip time, close with code and reason"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("#connect")
        connection = await target.accept()
        await connection.open()
        await page.until_text("#status", "Connected through scraping-de1")
        for text in ("hello", "grüße", "<img src=x onerror=alert(1)>"):
            await say(page, text)
            got = await connection.read_frame()
            assert (got.opcode, got.payload.decode()) == (TEXT, text)
            await connection.send(frame(TEXT, got.payload))
            await until_row(page, text)
        await connection.send(frame(TEXT, b"unasked") + frame(BINARY, b"\x00\xffbytes"))
        await until_row(page, "00 ff 62 79 74 65 73")
        listed = await rows(page)
        assert [(row["way"], row["kind"]) for row in listed[:3]] == [("event", "open"), ("out", "connect"), ("in", "answer")]
        assert [(row["way"], row["kind"], row["size"], row["body"]) for row in listed[3:]] == [
            ("out", "text", "5 B", "hello"), ("in", "text", "5 B", "hello"), ("out", "text", "7 B", "grüße"), ("in", "text", "7 B", "grüße"),
            ("out", "text", "28 B", "<img src=x onerror=alert(1)>"), ("in", "text", "28 B", "<img src=x onerror=alert(1)>"),
            ("in", "text", "7 B", "unasked"), ("in", "binary", "7 B", "00 ff 62 79 74 65 73"),
        ]
        assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}", row["time"]) for row in listed)
        assert [bool(re.fullmatch(r"[\d.]+ m?s", row["trip"])) for row in listed[3:]] == [False, True, False, True, False, True, False, False]
        assert re.fullmatch(r"[\d.]+ m?s", await page.text("#round-trip"))
        assert await page.text("#sent") == "3 · 40 B" and await page.text("#received") == "5 · 54 B"
        await page.fill("#close-code", "4001")
        await page.fill("#close-reason", "bye, grüße")
        await page.click("#disconnect")
        got = await connection.read_frame()
        assert (got.opcode, got.close_code, got.close_reason) == (CLOSE, 4001, "bye, grüße")
        await connection.send(frame(CLOSE, got.payload))
        await page.until_text("#status", "Closed: 4001 bye, grüße")
        await until_row(page, "Closed: 4001 bye, grüße", "event")
        last = (await rows(page))[-1]
        assert (last["way"], last["kind"], last["size"]) == ("event", "close", "")
        assert not await page.evaluate("document.querySelector('#connect').disabled")


@in_browser
async def test_the_target_closes(world, browser):
    """what the other side's Close says is shown"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("#connect")
        connection = await target.accept()
        await connection.open()
        await page.until_text("#status", "Connected")
        await connection.send(frame(CLOSE, close_payload(4321, "that is all")))
        await page.until_text("#status", "Closed: 4321 that is all")


@in_browser
async def test_a_close_that_cannot_be(world, browser):
    """close with code and reason: what a browser cannot send is said, and the session goes on"""
    async with playground(world, browser) as page:
        await connect(page)
        for code, reason, problem in (("1001", "", "3000 to 4999"), ("x", "", "3000 to 4999"), ("", "why", "needs a code"), ("1000", "ü" * 62, "123 bytes")):
            await page.fill("#close-code", code)
            await page.fill("#close-reason", reason)
            await page.click("#disconnect")
            assert problem in await page.text("#close-problem")
            await say(page, f"still there, {problem}")
            await until_row(page, f"still there, {problem}")


@in_browser
async def test_binary_messages(world, browser, tmp_path):
    """send … binary: as hex, or a file"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("#connect")
        connection = await target.accept()
        await connection.open()
        await page.until_text("#status", "Connected")
        await page.click("[name=kind][value=hex]")
        for typed, sent in (("00 ff 0x10", b"\x00\xff\x10"), ("DEADbeef", b"\xde\xad\xbe\xef"), ("", b"")):
            await say(page, typed)
            got = await connection.read_frame()
            assert (got.opcode, got.payload) == (BINARY, sent)
        for wrong in ("0", "0g", "hello"):
            await say(page, wrong)
            assert "Not hex" in await page.text("#message-problem")
        content = os.urandom(200_000)
        (tmp_path / "file.bin").write_bytes(content)
        await page.click("[name=kind][value=file]")
        await page.click("#send")
        assert "Choose a file" in await page.text("#message-problem")
        await page.choose_file("#file", tmp_path / "file.bin")
        await page.click("#send")
        frames = [await connection.read_frame()]
        while not frames[-1].fin:
            frames.append(await connection.read_frame())
        assert frames[0].opcode == BINARY and b"".join(got.payload for got in frames) == content
        await connection.send(frame(BINARY, content))
        await page.until("document.querySelector('#round-trip').textContent !== '–'")
        await page.click(".row.in.binary")
        assert await page.evaluate("document.querySelector('#detail-text').textContent.startsWith('000000  ')")


@in_browser
async def test_every_field(world, browser):
    """form for url, key, headers, cookies, geo, agent, idle timeout; shows the JSON it sends"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.fill("#url", target.url("/path?q=1"))
        await page.fill("#headers", ":authority: pasted.example.com\nX-Custom:  it's \"quoted\" \\ ü\nOrigin: https://target.example.com\nCookie: old=1")
        await page.fill("#cookies", "session=abc; theme=dark\nold=2")
        await page.fill("#geo", "US,DE")
        await page.fill("#agent", "de1")
        await page.fill("#idle", "0.5")
        shown = json.loads(await page.text("#call"))
        assert shown == {
            "apiKey": "••••••••", "url": target.url("/path?q=1"), "headers": {"X-Custom": "it's \"quoted\" \\ ü", "Origin": "https://target.example.com", "Cookie": "old=1"},
            "cookies": {"session": "abc", "theme": "dark", "old": "2"}, "geo": "US,DE", "agent": "de1", "idle_timeout": 0.5,
        }
        await page.click("#connect")
        connection = await target.accept()
        await connection.open()
        assert connection.request_line == "GET /path?q=1 HTTP/1.1"
        assert connection.header("X-Custom").encode("latin-1").decode() == "it's \"quoted\" \\ ü"
        assert connection.header("Origin") == "https://target.example.com" and connection.header("Cookie") == "old=2; session=abc; theme=dark"
        await page.until_text("#status", "Closed: 1000 Idle timeout")


@in_browser
async def test_a_proxy(world, browser):
    """the field `proxy` goes into the connect message, and what comes of it is shown"""
    async with playground(world, browser) as page:
        await page.fill("#proxy", "socks5h://user:pass@127.0.0.1:9")
        assert json.loads(await page.text("#call"))["proxy"] == "socks5h://user:pass@127.0.0.1:9"
        await page.click("#connect")
        await page.until("document.querySelector('#state').dataset.state === 'bad' && /proxy/i.test(document.querySelector('#status').textContent)")


@in_browser
async def test_errors(world, browser):
    """an error of the gateway is shown in its own words"""
    async with playground(world, browser) as page:
        for field, value, said in (
            ("key", "wrong", "Invalid or missing API key (invalid_key)"), ("key", "", "Invalid or missing API key (invalid_key)"), ("geo", "AT", "No agent available (no_agent)"),
            ("url", "ws://127.0.0.1:1/", "Target connection failed"), ("url", "http://127.0.0.1/", "Invalid connect message: url"),
        ):
            before = await page.evaluate(f"document.querySelector('#{field}').value")
            await page.fill(f"#{field}", value)
            await page.click("#clear")
            await page.click("#connect")
            await page.until_text("#status", said)
            await page.until("[...document.querySelectorAll('.row.event.close .body')].some((body) => /^Closed: 10(08|11)/.test(body.textContent))")
            error = next(row for row in await rows(page) if row["kind"] == "error")
            assert error["way"] == "in" and json.loads(error["body"])["type"] == "error"
            await page.evaluate("(() => { const e = document.querySelector('#show'); e.value = 'close error'; e.dispatchEvent(new Event('change')); })()")
            await page.until("document.querySelectorAll('.row').length === 2")
            assert {row["kind"] for row in await rows(page)} == {"close", "error"}
            await page.evaluate("(() => { const e = document.querySelector('#show'); e.value = 'all'; e.dispatchEvent(new Event('change')); })()")
            assert await page.evaluate("document.querySelector('#state').dataset.state") == "bad"
            await page.fill(f"#{field}", before)


@in_browser
async def test_what_cannot_be_sent(world, browser):
    """bad input gets a clear error saying what and where, and nothing is sent"""
    async with playground(world, browser) as page:
        for field, value, said in (
            ("url", "", "Say where"), ("headers", "X-A: 1\nnonsense", "Line 2 has no colon"), ("headers", "@file: x", "Line 1"), ("cookies", "nonsense", "not name=value"),
            ("cookies", "a b=1", "must not"), ("idle", "soon", "Not a number"), ("idle", "-1", "Not a number"), ("idle", "9" * 400, "Not a number"),
        ):
            before = await page.evaluate(f"document.querySelector('#{field}').value")
            await page.fill(f"#{field}", value)
            await page.click("#connect")
            assert said in await page.text(f"#{field}-problem")
            assert await page.evaluate(f"document.activeElement.id === '{field}' && document.activeElement.getAttribute('aria-invalid')") == "true"
            assert await page.text("#status") == "Not connected" and await page.text("#call") == ""
            await page.fill(f"#{field}", before)
            assert await page.text(f"#{field}-problem") == "" and await page.text("#call") != ""


# --- the transparent form -------------------------------------------------------------------------------------------------
@in_browser
async def test_the_transparent_form(world, browser):
    """choice of form: `GET /ws?url=…&key=…`, which says that the key then stands in the address"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("[name=form][value=transparent]")
        assert "the key then stands in the address" in await page.text("#form-hint")
        await page.fill("#url", target.url("/a?b=c&d='e'"))
        await page.fill("#geo", "DE")
        await page.fill("#headers", "Sec-WebSocket-Protocol: chat, other")
        assert await page.text("#call") == f"{page.base.replace('http', 'ws')}/ws?url=ws%3A%2F%2F127.0.0.1%3A{target.port}%2Fa%3Fb%3Dc%26d%3D'e'&key=••••••••&geo=DE"
        await page.click("#connect")
        connection = await target.accept()
        await connection.read_request()
        assert connection.request_line == "GET /a?b=c&d=%27e%27 HTTP/1.1"
        assert connection.header("Sec-WebSocket-Protocol") == "chat, other" and KEY not in connection.head.decode("latin-1")
        await connection.send(connection.switching("Sec-WebSocket-Protocol: chat\r\n"))
        await page.until_text("#status", "Connected, chat")
        await say(page, "through")
        await connection.read_frame()
        await connection.send(frame(TEXT, b"through"))
        await until_row(page, "through")


@in_browser
async def test_the_transparent_form_refused(world, browser):
    """a browser does not tell why an opening handshake was refused, and the page says so"""
    async with playground(world, browser) as page:
        page.expected.append("WebSocket connection to")
        await page.click("[name=form][value=transparent]")
        await page.fill("#key", "wrong")
        await page.click("#connect")
        await page.until_text("#status", "Refused. A browser does not say why")
        await until_row(page, "Refused.", "event.error")


# --- the list -------------------------------------------------------------------------------------------------------------
@in_browser
async def test_filter_and_clear(world, browser):
    """filter, clear; a message in full beside the list"""
    async with playground(world, browser) as page:
        await connect(page)
        for text in ("apple", "banana", "Apple pie\nin two lines"):
            await say(page, text)
            await until_row(page, text.split("\n")[0])
        await page.fill("#filter", "APPLE")
        await page.until("document.querySelectorAll('.row').length === 4")
        assert "4 of " in await page.text("#shown")
        await page.evaluate("(() => { const e = document.querySelector('#show'); e.value = 'in'; e.dispatchEvent(new Event('change')); })()")
        await page.until("document.querySelectorAll('.row').length === 2")
        assert {row["way"] for row in await rows(page)} == {"in"}
        await say(page, "another apple")
        await page.until("document.querySelectorAll('.row').length === 3")
        await page.click(".row:nth-child(2)")
        assert await page.text("#detail-text") == "Apple pie\nin two lines"
        await page.click("#copy-message")
        await page.until_text("#message-copied", "Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == "Apple pie\nin two lines"
        await page.fill("#filter", "nothing like it")
        await page.until("!document.querySelector('#empty').hidden")
        await page.click("#clear")
        await page.fill("#filter", "")
        await page.until_text("#empty", "Messages appear here")
        assert await page.evaluate("document.querySelector('#detail').hidden") and await page.text("#sent") == "0"
        await say(page, "after it")
        await until_row(page, "after it")


INSIDE = "(() => { const l = document.querySelector('#list').getBoundingClientRect(), r = [...document.querySelectorAll('.row')].find((row) => row.textContent.includes(%s))?.getBoundingClientRect(); return Boolean(r && r.top >= l.top - 1 && r.bottom <= l.bottom + 1); })()"
"""Whether a row with this text is to be seen in the list."""
FIRST_SEEN = "(() => { const top = document.querySelector('#list').getBoundingClientRect().top; return [...document.querySelectorAll('.row')].find((row) => Math.abs(row.getBoundingClientRect().top - top) < row.offsetHeight)?.querySelector('.body').textContent; })()"
"""The text of the row at the top of what is to be seen."""


@in_browser
async def test_ten_thousand_messages(world, browser):
    """usable with 10,000 messages in the list"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("#connect")
        connection = await target.accept()
        await connection.open(behind=b"".join(frame(TEXT, b"message %d" % n) for n in range(10_000)))
        await until_row(page, "message 9999")
        nodes = await page.evaluate("document.querySelectorAll('*').length")
        assert nodes < 1000, f"{nodes} elements"
        assert await page.text("#received") == "10,000 · 116 KiB"
        assert await page.evaluate(INSIDE % "'message 9999'"), "the last one is seen"
        # Somebody who reads further up is left there.
        await page.evaluate("document.querySelector('#list').scrollTop = 0")
        await page.until(INSIDE % "'message 3'")
        await page.until("!document.querySelector('#latest').hidden")
        await connection.send(frame(TEXT, b"one more"))
        await page.until_text("#received", "10,001")
        assert await page.evaluate(INSIDE % "'message 3'") and await page.evaluate("document.querySelector('#list').scrollTop") == 0
        await page.click("#latest")
        await page.until(INSIDE % "'one more'")
        await page.fill("#filter", "message 77")
        await page.until_text("#shown", "111 of 10,004")
        await page.fill("#filter", "")
        await page.press("Shift+Tab")  # and on to the list by its own keys
        await page.evaluate("document.querySelector('#list').focus()")
        await page.press("Home")
        await page.until(INSIDE % "'Connecting to'")
        await page.press("ArrowDown", "ArrowDown", "ArrowDown")
        assert await page.text("#detail-text") == "message 0"
        await page.press("End")
        await page.until("document.querySelector('#detail-text').textContent === 'one more'")
        assert await page.evaluate("document.querySelector('.row[aria-selected=true]').id === document.querySelector('#list').getAttribute('aria-activedescendant')")
        assert await page.evaluate("document.querySelectorAll('*').length") < 1000
        # Rows are higher on a phone.
        for width in (360, 1280):
            await page.size(width, 900)
            await page.until(INSIDE % "'one more'")


@in_browser
async def test_thousands_a_second(world, browser):
    """… and while thousands come each second: the page answers, and is drawn once a frame"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("#connect")
        connection = await target.accept()
        await connection.open()
        await page.until_text("#status", "Connected")
        await page.evaluate("""(() => { globalThis.changes = 0; globalThis.frames = 0;
            new MutationObserver(() => changes += 1).observe(document.querySelector('#received'), {childList: true});
            const tick = () => { frames += 1; requestAnimationFrame(tick); }; tick(); })()""")

        async def flood() -> None:
            for block in range(40):
                await connection.send(b"".join(frame(TEXT, b"message %d" % (block * 250 + n)) for n in range(250)))
                await asyncio.sleep(0.05)  # 5000 a second

        coming = asyncio.create_task(flood())
        answers = 0
        while not coming.done():
            await page.fill("#message", f"typed {answers}")
            assert await page.evaluate("document.querySelector('#message').value") == f"typed {answers}"
            answers += 1
        await coming
        await page.until_text("#received", "10,000 ·")
        changes, drawn = await page.evaluate("[changes, frames]")
        assert 1 <= changes <= drawn and answers > 3, (changes, drawn, answers)


@in_browser
async def test_older_messages_make_room(world, browser):
    """a limit on everything that a stranger can make grow: a target that never ends does not fill the memory"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click("#connect")
        connection = await target.accept()
        await connection.open(behind=b"".join(frame(TEXT, b"message %d" % n) for n in range(51_000)))
        await until_row(page, "message 50999")
        assert re.search(r"5,\d{3} older ones made room", await page.text("#shown"))
        # Who reads further up goes on reading there, with a filter and without.
        count = 51_000
        for typed in ("", "message"):
            await page.fill("#filter", typed)
            await page.evaluate("(() => { const list = document.querySelector('#list'); list.scrollTop = list.scrollHeight / 2; })()")
            read = await page.until(f"!document.querySelector('#latest').hidden && {FIRST_SEEN}")
            await connection.send(b"".join(frame(TEXT, b"message, one more") for _ in range(5_000)))
            count += 5_000
            await page.until_text("#received", f"{count:,} ·")
            assert await page.evaluate(FIRST_SEEN) == read
        await page.fill("#filter", "")
        for _ in range(5):
            await connection.send(frame(BINARY, bytes(8 << 20)))
        await page.until_text("#received", "61,005")
        await page.until("+document.querySelector('.row').getAttribute('aria-setsize') < 20")
        # One of them can be copied whole, and that does not hold up the page for long.
        await page.click(".row.in.binary")
        await page.click("#copy-message")
        await page.until_text("#message-copied", "Copied")
        assert await page.evaluate("navigator.clipboard.readText().then((text) => text.length === 3 * (8 << 20) - 1 && /^00 00 00/.test(text))")


# --- with keys only, for everyone -----------------------------------------------------------------------------------------
@in_browser
async def test_by_keyboard(world, browser):
    """keyboard-usable: skip link, labels, Enter connects and sends, Shift+Enter makes a new line, focus is seen"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        focused = "document.activeElement.id || document.activeElement.className || document.activeElement.name"
        await page.open(f"{page.base}/ws/docs")
        await page.press("Tab")
        assert await page.evaluate(focused) == "skip"
        seen = []
        for _ in range(60):
            await page.press("Tab")
            seen.append(await page.evaluate(focused))
            if seen[-1] == "schema-panel":
                break
            ring = await page.evaluate("(() => { const s = getComputedStyle(document.activeElement.matches('.segments input') ? document.activeElement.nextElementSibling : document.activeElement); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; })()")
            assert ring, f"the focus on {seen[-1]} is not seen"
        for wanted in ("theme", "form", "url", "key", "show-key", "headers", "cookies", "geo", "agent", "idle", "proxy", "connect", "filter", "show", "clear", "list", "kind", "message", "close-code", "close-reason", "copy", "call", "tab-json", "tab-connect", "schema-panel"):
            assert wanted in seen or wanted in ("copy", "call"), f"{wanted} is not reached: {seen}"
        await page.evaluate("document.querySelector('#url').focus()")
        await page.call("Input.insertText", text=target.url())
        await page.press("Tab")
        await page.call("Input.insertText", text=KEY)
        await page.press("Enter")
        connection = await target.accept()
        await connection.open()
        await page.until_text("#status", "Connected")
        await page.evaluate("document.querySelector('#message').focus()")
        await page.call("Input.insertText", text="two")
        await page.press("Shift+Enter")
        await page.call("Input.insertText", text="lines")
        await page.press("Enter")
        assert (await connection.read_frame()).payload == b"two\nlines"
        assert await page.evaluate("document.querySelector('#message').value") == ""
        await page.evaluate("document.querySelector('#tab-json').focus()")
        await page.press("ArrowRight")
        assert await page.evaluate(focused) == "tab-wscat" and (await page.text("#call")).startswith("npx wscat")


@in_browser
async def test_every_control_has_a_name(world, browser):
    """labels, and a live region for the status"""
    async with playground(world, browser) as page:
        await page.call("Accessibility.enable")
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        controls = [n for n in tree if not n.get("ignored") and n["role"]["value"] in ("textbox", "searchbox", "button", "radio", "combobox", "listbox", "tab", "tabpanel", "link", "DisclosureTriangle")]
        assert len(controls) > 30, len(controls)
        assert [n for n in controls if not n.get("name", {}).get("value")] == []
        assert await page.evaluate("document.querySelector('#status').getAttribute('role')") == "status"
        assert await page.evaluate("document.documentElement.lang") == "en"


CONTRAST = """(() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
    const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => { const layers = []; for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor)); return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
    const ratio = (colour, e) => { const back = behind(e), [a, b] = [light(over(rgba(colour), back)), light(back)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); };
    const poor = []; let looked = 0;
    for (const e of document.querySelectorAll('body *')) {
        if (!e.checkVisibility({visibilityProperty: true, opacityProperty: true}) || e.closest('.visually-hidden, script, style')) continue;
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()), field = e.matches('input:not([type=radio]), textarea, select');
        if (!own && !field) continue;
        looked += 1;
        const found = ratio(getComputedStyle(e).color, e);
        if (found < 4.5) poor.push([e.tagName, e.id, e.className, e.textContent.slice(0, 30), found]);
        if (field && e.placeholder) { const its = ratio(getComputedStyle(e, '::placeholder').color, e); if (its < 4.5) poor.push(['placeholder', e.id, its]); }
        if (field && ratio(getComputedStyle(e).borderTopColor, e.parentElement) < 3) poor.push(['border', e.id, ratio(getComputedStyle(e).borderTopColor, e.parentElement)]);
    }
    return {looked, poor};
})()"""


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_contrast(world, browser, dark):
    """dark and light; WCAG AA contrast of all visible text (1.4.3), and of the edges of fields (1.4.11)"""
    async with playground(world, browser, dark=dark) as page:
        for theme in ("system", "toggled"):
            if theme == "toggled":
                await page.theme(not dark)
                await page.click("#theme")
            background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (max(int(n) for n in re.findall(r"\d+", background)[:3]) < 60) == dark, background
            looked = 0
            # As it is at first, with what is wrong, connected and with a message chosen, and with an error.
            for step in ("first", "problems", "connected", "schema", "error"):
                if step == "problems":
                    await page.fill("#headers", "nonsense")
                    await page.fill("#idle", "x")
                elif step == "connected":
                    await page.fill("#headers", "")
                    await page.fill("#idle", "")
                    await connect(page)
                    await say(page, "hello")
                    await until_row(page, "hello")
                    await page.click(".row.in.text")
                elif step == "schema":
                    await page.click("#tab-error")
                    await page.click("#tab-python")
                elif step == "error":
                    await page.click("#disconnect")
                    await page.until_text("#status", "Closed")
                    await page.fill("#key", "wrong")
                    await page.click("#connect")
                    await page.until_text("#status", "Invalid or missing")
                    await page.fill("#key", KEY)
                got = await page.evaluate(CONTRAST)
                assert got["poor"] == [], (theme, step)
                looked += got["looked"]
            assert looked > 200


@in_browser
@pytest.mark.parametrize("width", [320, 360, 1000])
async def test_narrow(world, browser, width):
    """readable on a phone: nothing is wider than the screen, whatever is shown"""
    async with playground(world, browser, width=width, height=780) as page:
        await page.evaluate("document.querySelector('#more').open = true")
        await connect(page)
        await say(page, "wide" * 300)
        await until_row(page, "wide")
        await page.click(".row.in.text")
        for tab in ("json", "wscat", "curl", "python", "javascript", "connect", "connected", "error"):
            await page.click(f"#tab-{tab}")
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (tab, wide)
            assert await page.evaluate("visualViewport.scale") == 1
        cut = await page.evaluate("[...document.querySelectorAll('button, label, h1, h2, dt, dd')].filter((e) => e.checkVisibility() && !e.closest('.visually-hidden') && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline').map((e) => e.id || e.textContent)")
        assert cut == []


# --- the key --------------------------------------------------------------------------------------------------------------
@in_browser
@pytest.mark.parametrize("form", ["message", "transparent"])
async def test_the_key_stays_where_it_is(world, browser, form):
    """Key kept in memory only: in no storage, not in the page's address, and not to be seen unless shown"""
    async with playground(world, browser) as page:
        await page.click(f"[name=form][value={form}]")
        await connect(page)
        await say(page, "hello")
        await until_row(page, "hello")
        everything = "document.documentElement.outerHTML + document.body.innerText"
        for tab in ("json", "wscat", "curl", "python", "javascript"):
            await page.click(f"#tab-{tab}")
            assert "••••••••" in await page.text("#call")
            assert KEY not in await page.evaluate(everything), tab
        stored = await page.evaluate("Promise.all([JSON.stringify({...localStorage, ...sessionStorage}), document.cookie, indexedDB.databases().then((all) => all.length), JSON.stringify(history.state), location.href])")
        assert stored == ["{}", "", 0, "null", f"{page.base}/ws/docs"]
        assert await page.evaluate("(() => { const k = document.querySelector('#key'); return [k.type, k.autocomplete, k.form]; })()") == ["password", "off", None]
        await page.click("#show-key")
        assert KEY in await page.text("#call") and await page.evaluate("document.querySelector('#key').type") == "text"
        assert KEY not in await page.evaluate("document.querySelector('#list').textContent")
        await page.click("#show-key")
        assert KEY not in await page.evaluate(everything)
        await page.call("Page.reload")
        await page.until("document.readyState === 'complete' && document.querySelector('#key').value === ''")


# --- the same call --------------------------------------------------------------------------------------------------------
NASTY_URL = "/it's?a=\"b\"&c=$HOME`id`\\n{x}[y]%41+é\u202e"
NASTY_HEADER = "it's \"quoted\" $HOME `id` $(id) \\n \\' !! %41 {a,b} <b>&amp; #x */"
NASTY_COOKIE = "'\"$(id)`\\"


async def copied(page: Page, call: str) -> str:
    await page.click(f"#tab-{call}")
    await page.click("#copy")
    await page.until_text("#copied", "Copied, with the key in it.")
    return await page.evaluate("navigator.clipboard.readText()")


@in_browser
@pytest.mark.parametrize("form", ["message", "transparent"])
@pytest.mark.parametrize("call", ["wscat", "curl", "python", "javascript"])
async def test_the_same_call(world, browser, form, call):
    """the same call as wscat, curl, Python and JavaScript to copy: it does what the page does, whatever was typed"""
    target = world.target()
    async with playground(world, browser, target=target) as page:
        await page.click(f"[name=form][value={form}]")
        await page.fill("#url", target.url(NASTY_URL))
        await page.fill("#headers", f"X-Nasty: {NASTY_HEADER}\nX-Empty:\n__proto__: polluted\nUser-Agent: mine\nCookie: given=1")
        await page.fill("#cookies", f"nasty={NASTY_COOKIE}\n__proto__=c")
        await page.fill("#geo", "de, us")
        await page.click("#connect")
        own = await target.accept()
        await own.open()
        await page.until_text("#status", "Connected")
        await page.click("#disconnect")
        text = await copied(page, call)
        assert KEY in text and "••" not in text and "\u202e" not in text
        program = None
        if call == "javascript":
            await page.evaluate(f"{{ {text} }}")
        elif call == "python":
            program = await world.program(await Program.python(text))
        else:
            # In the shell's own place, so that it is the one that is killed at the end.
            its = f'npx() {{ shift; exec "{node()}" "{CLIENTS}/node_modules/wscat/bin/wscat" "$@"; }}\ncurl() {{ exec env curl "$@"; }}\n'
            program = await world.program(await Program.in_terminal("sh", "-c", f"{its}{text}"))
        connection = await target.accept()
        await connection.open()
        assert connection.request_line == own.request_line
        sets_headers = not (form == "transparent" and call == "javascript")
        if sets_headers:
            # Node.js keeps no header of the name __proto__.
            names = ["X-Nasty", "X-Empty", "User-Agent", *(["__proto__"] if call != "wscat" or form == "message" else [])]
            wanted = [NASTY_HEADER, "", "mine", "polluted"]
            assert [connection.header(name) for name in names] == wanted[: len(names)]
            assert connection.header("Cookie") == f"given=1; nasty={NASTY_COOKIE}; __proto__=c"
        head = connection.head.decode("latin-1")
        assert KEY not in head
        if call == "curl":
            await program.says("HTTP/1.1 101")
            await connection.send(frame(TEXT, b"and frames"))
            await program.says("and frames")
            return
        if call == "wscat" and form == "transparent":
            return
        got = await connection.read_frame()
        assert (got.opcode, got.payload) == (TEXT, b"hello")
        await connection.send(frame(TEXT, b"hello to you"))
        if program:
            await program.says("hello to you")


# --- addresses ------------------------------------------------------------------------------------------------------------
@in_browser
async def test_public_url(world, browser):
    """`public_url`: what /ws/docs and the playground name"""
    gateway = await world.gateway(top={"public_url": "wss://relay.example.com/"})
    async with playground(world, browser, gateway) as page:
        await page.until_text("#address", "wss://relay.example.com/ws")
        await page.until_text("#node", "scraping-de1")
        for call in ("wscat", "python", "javascript"):
            assert "wss://relay.example.com/ws" in await copied(page, call)
        assert "'https://relay.example.com/ws?url=" in await copied(page, "curl")
        # The page itself stays with who served it.
        await connect(page)


@in_browser
async def test_a_link_that_names_a_target(world, browser):
    """what `ringway dev` prints: the target stands in the page's address, and nothing else is taken from there"""
    target = world.target().serve_echo()
    async with playground(world, browser, target=target) as page:
        await page.open("about:blank")
        await page.open(f"{page.base}/ws/docs#url={target.url()}&key={KEY}")
        value = "document.querySelector('#%s').value"
        assert await page.evaluate(value % "url") == target.url() and await page.evaluate(value % "key") == ""
        assert json.loads(await page.text("#call")) == {"url": target.url()}
        await page.evaluate("location.hash = '#url=wss%3A%2F%2Fother.example.com%2F%3Fa%3Db%26c'")
        await page.until(f"{value % 'url'} === 'wss://other.example.com/?a=b&c'")
        assert json.loads(await page.text("#call")) == {"url": "wss://other.example.com/?a=b&c"}


@in_browser
async def test_over_tls(world, browser):
    """works under ws and wss"""
    authority = Authority(world.folder())
    pem = str(authority.identity("localhost", "127.0.0.1"))
    gateway = await world.gateway(tls={"cert": pem, "key": pem})
    async with playground(world, browser, gateway, secure=True) as page:
        await page.until_text("#address", f"wss://localhost:{gateway.tls_port}/ws")
        for form in ("message", "transparent"):
            await page.click(f"[name=form][value={form}]")
            await connect(page)
            await say(page, form)
            await until_row(page, form)
            await page.click("#disconnect")
            await page.until_text("#status", "Closed: 1000")


@in_browser
async def test_schema(world, browser):
    """the schema of connect message, answers and errors beside it"""
    gateway = await world.gateway()
    schema = json.loads((await request(world, gateway, get("/ws/schema"))).body)["$defs"]
    async with playground(world, browser, gateway) as page:
        for part in ("connect", "connected", "error"):
            await page.click(f"#tab-{part}")
            await page.until_text("#schema-panel", schema[part]["description"])
            names = await page.evaluate("[...document.querySelectorAll('#schema-panel dt code')].map((code) => code.textContent)")
            assert names == list(schema[part]["properties"])
        assert await page.evaluate("[...document.querySelectorAll('#schema-panel li')].map((item) => item.textContent)") == schema["error"]["properties"]["code"]["enum"]


@in_browser
async def test_the_policy_holds(world, browser):
    """strict CSP: what gets into the page all the same does nothing"""
    async with playground(world, browser) as page:
        page.expected += ["policy:", "Content Security Policy", "Refused to", "violates", "TrustedScript"]
        await page.evaluate("""(() => {
            for (const [tag, text] of [['script', 'globalThis.broken = 1'], ['style', 'body { display: none }']]) {
                const e = document.createElement(tag);
                try { e.append(text); document.body.append(e); } catch { /* trusted types */ }
            }
            try { document.body.setAttribute('onclick', 'globalThis.broken = 1'); } catch { /* the same */ }
            document.body.click();
        })()""")
        assert await page.evaluate("typeof broken") == "undefined" and await page.evaluate("getComputedStyle(document.body).display") == "block"
        assert await page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', (e) => e.name)") == "TypeError"
        assert any("connect-src" in one for one in page.complaints), page.complaints


# --- the README's pictures ------------------------------------------------------------------------------------------------
CALM = "new Promise((done) => requestIdleCallback(() => requestAnimationFrame(() => requestIdleCallback(done, {timeout: 500})), {timeout: 500}))"
"""Until the page has nothing to draw, so that a round trip is not that of its drawing."""


@in_browser
@pytest.mark.skipif("RINGWAY_SCREENSHOTS" not in os.environ, reason="RINGWAY_SCREENSHOTS names no folder for the pictures")
@pytest.mark.parametrize("look", ["light", "dark"])
async def test_screenshots(world, browser, look):
    folder = ROOT / os.environ["RINGWAY_SCREENSHOTS"]
    folder.mkdir(parents=True, exist_ok=True)
    async with playground(world, browser, dark=look == "dark", width=1280, height=900) as page:
        await page.call("Emulation.setScrollbarsHidden", hidden=True)
        await page.fill("#headers", "Origin: https://target.example.com")
        await page.fill("#cookies", "session=abc123")
        await page.fill("#geo", "DE,AT")
        await connect(page)
        for kind, message in (("text", '{"op":"subscribe"}'), ("text", "hello world"), ("text", "ping"), ("hex", "00 ff 10 2a")):
            await page.click(f"[name=kind][value={kind}]")
            await page.evaluate(CALM)
            await say(page, message)
            await until_row(page, message)
        await page.click("[name=kind][value=text]")
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        await page.evaluate("new Promise((done) => { scrollTo(0, 0); document.activeElement.blur(); requestAnimationFrame(() => requestAnimationFrame(done)); })")
        await page.screenshot(folder / f"playground-{look}.png")
