"""A small Hub on loopback, with planted faults: requests and connections around `hub_protocol.Hub`.

`HubServer.log` holds what clients asked for; `HubServer.fault` makes the server answer badly.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_protocol import Answer, Call, Hub


@dataclass
class Fault:
    """An error in the answers to requests whose ``"METHOD path?query"`` has the pattern.

    Args:
        pattern: regular expression.
        times: number of requests that get it.
        status: HTTP status of the answer.
        headers: of that answer.
        cut: end the connection after this many bytes of the body.
        reset: end it with a reset.
        delay: seconds to wait before the answer; there is none if the block of the fault ends first.
        act: called before the answer.
    """

    pattern: str
    times: int = 1_000_000
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False
    delay: float = 0.0
    act: Callable[[], object] | None = None
    over: threading.Event = field(default_factory=threading.Event)


class HubServer(Hub):
    """Serves from a thread of its own until `close`; ``endpoint`` is for ``HF_ENDPOINT``."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Call] = []
        self.faults: list[Fault] = []
        self.connections: set[socket.socket] = set()
        self.handler = type("Handler", (_Handler,), {"hub": self})
        self._open(0)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _open(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self.handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # its client closed it meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens at the address during the block."""
        port = self._server.server_address[1]
        self.close()
        try:
            yield
        finally:
            self._open(port)

    @contextmanager
    def fault(self, pattern: str, **kinds: Any) -> Iterator[None]:
        """A fault during the block."""
        fault = Fault(pattern, **kinds)
        self.faults.append(fault)
        try:
            yield
        finally:
            self.faults.remove(fault)
            fault.over.set()

    @contextmanager
    def recorded(self) -> Iterator[list[Call]]:
        """The requests of the block; the list is filled when the block ends."""
        first = len(self.log)
        requests: list[Call] = []
        yield requests
        requests += self.log[first:]

    def take_fault(self, line: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return Fault("")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with suppress(OSError):  # the client went away
            super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client went away
            self.close_connection = True

    def _serve(self) -> None:
        call = self._call()
        fault = self.hub.take_fault(f"{self.command} {self.path}")
        if fault.over.wait(fault.delay):
            self.close_connection = True
            return
        if fault.act:
            fault.act()
        planted = fault.status and Answer(fault.status, b'{"error": "planted"}', fault.headers)
        answer = planted or self.hub.answer(call)
        self.hub.log.append(call)
        self._send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _call(self) -> Call:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        return Call(self.command, parts.path, query, token, self.headers.get("Range"), body)

    def _send(self, answer: Answer, fault: Fault) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: fault.cut])
        if fault.cut is None:
            return
        self.wfile.flush()
        if fault.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            time.sleep(0.1)  # so that the reset does not overtake the data
            self.connection.close()
        self.close_connection = True
