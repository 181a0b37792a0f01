"""The HTTP side of the small Hub: read a request, fail where a test asks for it, else hand it to its route."""

import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What happens instead of the answer to requests whose ``METHOD path`` matches, so many times."""

    pattern: str
    what: str  # a status | hang | cut | reset | shorter | other | slow | hold | hold after | act
    times: int = 1000
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[], object] = bool  # is done before the usual answer


class Transport(BaseHTTPRequestHandler):
    server: Any  # the LoopbackHub
    routes: list[tuple[str, Callable[..., None]]] = []
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        self.close_connection = True
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.authorized = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        fault = self._fault()
        self.body = self._read(half=fault is not None and fault.what == "cut")
        self.server.requests.append(f"{self.command} {self.route}")
        self.cut = fault is not None and fault.what == "cut"
        if self.cut and self.command != "GET":
            return
        self.replaced = {"shorter": 7, "other": 6}.get(fault.what, 0) if fault is not None else 0
        if fault is not None and fault.what == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # which then is no end of a stream, but a broken connection
            return
        if fault is not None and fault.what == "slow":
            self.server.closing.wait(0.2)
        if fault is not None and fault.what == "act":
            fault.act()
        if fault is not None and fault.what in ("hang", "hold"):
            fault.reached.set()
            fault.go_on.wait(30)
            if fault.what == "hang":
                return
        if fault is not None and fault.what.isdecimal():
            # The worst that can come back: what was sent.
            self._json(int(fault.what), {"error": f"refused {self.headers.get('Authorization')}"}, **fault.headers)
            return
        for pattern, method in self.routes:
            found = re.fullmatch(pattern, f"{self.command} {self.route}")
            if found:
                self.held = fault if fault is not None and fault.what == "hold after" else None
                try:
                    method(self, *(part for part in found.groups() if part is not None))
                finally:
                    if fault is not None:
                        fault.over.set()
                return
        self._json(404, {"error": f"no route {self.command} {self.route}"})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _fault(self) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.times > 0 and re.search(fault.pattern, f"{self.command} {self.route}"):
                    fault.times -= 1
                    return fault
        return None

    def _read(self, *, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def _json(self, status: int, content: Any, **headers: str) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self.replaced:  # as of a network that answers in the Hub's place
            content = b"<html>" + content[self.replaced :]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
