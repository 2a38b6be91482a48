"""Chromium without a window, driven over its DevTools protocol; nothing but `websockets` is needed for that."""
from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.asyncio.client import connect

from .wire import PATIENCE_S

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--ignore-certificate-errors", "--force-color-profile=srgb", "--remote-debugging-port=0",
]
KEYS = {
    "Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "Home": (36, ""), "End": (35, ""), "PageUp": (33, ""), "PageDown": (34, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Space": (32, " "),
}


class Browser:
    """One process for all tests of a file; each test opens a page of its own, in a context of its own."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ringway-browser-", ignore_cleanup_errors=True)
        self.log = open(Path(self.folder.name) / "log", "w+")
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={self.folder.name}/profile"], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        told = Path(self.folder.name) / "profile" / "DevToolsActivePort"
        end = time.monotonic() + 30
        while not (told.exists() and len(lines := told.read_text().split("\n")) >= 2):
            if self.process.poll() is not None or time.monotonic() > end:
                self.log.seek(0)
                said = self.log.read()
                self.close()
                raise AssertionError(f"chromium did not start:\n{said}")
            time.sleep(0.02)
        self.endpoint = f"ws://127.0.0.1:{lines[0]}{lines[1]}"

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.folder.cleanup()

    @contextlib.asynccontextmanager
    async def page(self, width: int = 1280, height: int = 900, dark: bool = False):
        """An empty page. What it complains of fails the test when it ends, unless `page.expected` has a part of it."""
        async with connect(self.endpoint, max_size=None, proxy=None, compression=None) as ws:
            page = Page(ws)
            reader = asyncio.create_task(page.read())
            context = None
            try:
                context = (await page.call("Target.createBrowserContext", on_page=False))["browserContextId"]
                made = await page.call("Target.createTarget", on_page=False, url="about:blank", browserContextId=context, width=width, height=height)
                page.session = (await page.call("Target.attachToTarget", on_page=False, targetId=made["targetId"], flatten=True))["sessionId"]
                for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
                    await page.call(f"{domain}.enable")
                await page.call("Browser.grantPermissions", on_page=False, browserContextId=context, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
                await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
                await page.size(width, height)
                await page.theme(dark)
                await page.call("Page.addScriptToEvaluateOnNewDocument", source="addEventListener('securitypolicyviolation', (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`))")
                yield page
                complaints = [one for one in page.complaints if not any(part in one for part in page.expected)]
                assert not complaints, complaints
            finally:
                if context is not None:
                    with contextlib.suppress(Exception):
                        await page.call("Target.disposeBrowserContext", on_page=False, browserContextId=context)
                reader.cancel()


class Page:
    def __init__(self, ws) -> None:
        self.ws = ws
        self.session: str | None = None
        self.number = 0
        self.waiting: dict[int, asyncio.Future] = {}
        self.complaints: list[str] = []
        """Errors on its console, exceptions, and what its Content-Security-Policy forbade."""
        self.expected: list[str] = []
        self.requests: list[str] = []
        """Every address that it asked for."""
        self.loaded = asyncio.Event()

    async def read(self) -> None:
        async for text in self.ws:
            message = json.loads(text)
            if "id" in message:
                waiting = self.waiting.pop(message["id"], None)
                if waiting and not waiting.done():
                    waiting.set_result(message)
                continue
            method, params = message["method"], message["params"]
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.complaints.append(params["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            elif method == "Network.webSocketCreated":
                self.requests.append(params["url"])
            elif method == "Page.loadEventFired":
                self.loaded.set()

    async def call(self, method: str, on_page: bool = True, **params) -> dict:
        self.number += 1
        answer = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        message = {"id": self.number, "method": method, "params": params}
        if on_page:
            message["sessionId"] = self.session
        await self.ws.send(json.dumps(message))
        got = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in got, f"{method}: {got['error']}"
        return got["result"]

    # --- what it looks like --------------------------------------------------------------------------------------
    async def size(self, width: int, height: int) -> None:
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    async def theme(self, dark: bool) -> None:
        """What `prefers-color-scheme` says; nothing moves either."""
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()])

    async def screenshot(self, file: Path | str, whole: bool = False) -> None:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, optimizeForSpeed=False)
        Path(file).write_bytes(base64.b64decode(shot["data"]))

    # --- what it does --------------------------------------------------------------------------------------------
    async def open(self, url: str) -> None:
        self.loaded.clear()
        got = await self.call("Page.navigate", url=url)
        assert "errorText" not in got, got
        await asyncio.wait_for(self.loaded.wait(), PATIENCE_S)

    async def evaluate(self, expression: str):
        """The value of an expression; a promise is awaited."""
        got = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in got, f"{expression}: {got['exceptionDetails'].get('exception', got['exceptionDetails'])}"
        return got["result"].get("value")

    async def until(self, expression: str, patience: float = PATIENCE_S):
        """Until the expression is true, looked at in each frame of the page; its value."""
        waiting = f"new Promise((done) => {{ const look = () => {{ const value = ({expression}); if (value) done(value); else if (performance.now() > end) done(null); else requestAnimationFrame(look); }}; const end = performance.now() + {patience * 900}; look(); }})"
        value = await self.evaluate(waiting)
        if not value:
            raise AssertionError(f"never true within {patience} s: {expression}; the page's text:\n{await self.evaluate('document.body.innerText')}\n{self.complaints}")
        return value

    async def text(self, selector: str) -> str:
        return await self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")

    async def until_text(self, selector: str, part: str) -> str:
        """Until the text there contains `part`; the text."""
        where = f"document.querySelector({json.dumps(selector)}).textContent"
        return await self.until(f"{where}.includes({json.dumps(part)}) && {where}")

    async def click(self, selector: str) -> None:
        """A click with the mouse, where the element is."""
        box = await self.evaluate(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def fill(self, selector: str, text: str) -> None:
        """Puts `text` in a field's place of what was there, as a paste does."""
        await self.evaluate(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        if text:
            await self.call("Input.insertText", text=text)
        else:
            await self.press("Backspace")

    async def press(self, *keys: str) -> None:
        """Keys with a name, such as Enter or Shift+Tab."""
        for combined in keys:
            *modifiers, key = combined.split("+")
            number, text = KEYS.get(key, (8, ""))
            common = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": number, "modifiers": 8 if "Shift" in modifiers else 0}
            await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def choose_file(self, selector: str, file: Path) -> None:
        element = await self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        await self.call("DOM.setFileInputFiles", files=[str(file)], objectId=element["result"]["objectId"])
