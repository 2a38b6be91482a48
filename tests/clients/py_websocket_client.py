"""websocket-client: python py_websocket_client.py '{"relay": …, "target": …, "key": …, "form": …}'."""
import sys

# docs: both
import json
from urllib.parse import quote

import websocket
# docs: end

asked = json.loads(sys.argv[1])
relay, target, key = asked["relay"], asked["target"], asked["key"]
passed = []
websocket.setdefaulttimeout(15)


def begin():
    if asked["form"] == "message":
        # docs: message
        socket = websocket.create_connection(relay)
        socket.send(json.dumps({"apiKey": key, "url": target}))
        answer = json.loads(socket.recv())
        # docs: end
        assert answer["type"] == "connected", answer
    else:
        # docs: query
        socket = websocket.create_connection(relay + "?url=" + quote(target, safe=""), header={"X-API-Key": key})
        # docs: end
    return socket


def pattern(length: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(length))


socket = begin()
for name, message in [("text", "grüße \U0001f600"), ("empty", ""), ("binary", pattern(256)), ("1 MiB", pattern(1 << 20))]:
    (socket.send if isinstance(message, str) else socket.send_binary)(message)
    if socket.recv() == message:
        passed.append(name)
for piece, opcode, last in [(b"frag", 1, 0), (b"men", 0, 0), (b"ts", 0, 1)]:
    socket.send_frame(websocket.ABNF.create_frame(piece, opcode, last))
if socket.recv() == "fragments":
    passed.append("fragments sent")
socket.send("fragment 5")
if socket.recv() == "0123456789" * 500:
    passed.append("fragments received")
socket.send_close(3001, b"bye")
opcode, data = socket.recv_data()
assert opcode == websocket.ABNF.OPCODE_CLOSE
own = [int.from_bytes(data[:2], "big"), data[2:].decode()]
socket.shutdown()
socket = begin()
socket.send("close 4002 enough")
opcode, data = socket.recv_data()
assert opcode == websocket.ABNF.OPCODE_CLOSE
print(json.dumps({"version": websocket.__version__, "passed": passed, "compressed": False, "own": own, "target": [int.from_bytes(data[:2], "big"), data[2:].decode()]}))
socket.shutdown()
