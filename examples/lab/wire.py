"""Servers for the tests of what is said on the wire: with a wire, and without one."""

from __future__ import annotations

import http.server
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # ocloop is there

import ocloop
from ocloop import Client, OpenCode, Options, RequestError

Json = dict[str, Any]

PAGE = "<!doctype html><title>OpenCode</title>"
PAGE_ERROR = RequestError(502, "a page", "NotJSON")


class Wire:
    """A server on 127.0.0.1. `says` maps "METHOD /path" to what it answers.

    A text is a page, a number alone is a code with an empty body, else it is JSON; (code, answer)
    is an answer with a code; the answers of a `Turns` are given one by one. What is not in there is
    answered with `otherwise`.
    """

    def __init__(self) -> None:
        self.forget()
        wire = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                wire.heard.append((self.command, self.path, json.loads(raw) if raw else None))
                wire.ports.append(self.client_address[1])
                wire.headers.append(dict(self.headers.items()))
                route = f"{self.command} {self.path.partition('?')[0]}"
                said = wire.says.get(route, wire.otherwise)
                said = said.next() if isinstance(said, Turns) else said
                code, said = said if isinstance(said, tuple) else (200, said)
                if type(said) is int:
                    code, said = said, b""
                if not isinstance(said, (str, bytes)):
                    said = json.dumps(said)
                body = said if isinstance(said, bytes) else said.encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def forget(self) -> None:
        self.says: Json = {}
        self.otherwise: Any = PAGE  # both generations answer unknown paths like this
        self.heard: list[tuple[str, str, Any]] = []  # method, path with its query, body
        self.headers: list[dict[str, str]] = []
        self.ports: list[int] = []  # from which it was asked

    def client(self, password: str = "") -> Client:
        return Client(self.url, "opencode", password)


class Turns:
    """Answers that are given one after the other; the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def next(self) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def talker(*said: bytes, pause: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each request with these pieces, whatever it is; its URL, and what it
    hears."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), connection:
                        heard.append(connection.recv(65536))
                        for piece in said:
                            connection.sendall(piece)
                            time.sleep(pause)

        threading.Thread(target=talk, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard


OK = b"HTTP/1.1 200 OK\r\n"


class Said(Client):
    """A server without a wire: `says` maps "METHOD /path" to an answer, to what makes one of the
    path with its query, or to what is raised."""

    def __init__(self, says: Json) -> None:
        super().__init__("http://127.0.0.1:9", "", "")
        self.says = says
        self.heard: list[tuple[str, str, Any]] = []

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = ocloop.REQUEST_TIMEOUT
    ) -> Any:
        self.heard.append((method, path, body))
        said = self.says.get(f"{method} {path.partition('?')[0]}", PAGE_ERROR)
        if isinstance(said, Turns):
            said = said.next()
        if callable(said):
            said = said(path)
        if isinstance(said, Exception):
            raise said
        return said

    @property
    def sent(self) -> list[tuple[str, Any]]:
        """What was posted: routes and bodies."""
        return [
            (path.partition("?")[0], body) for method, path, body in self.heard if method == "POST"
        ]


PAGE_ERROR = RequestError(502, "a page", "NotJSON")


def a_dialect(client: Client | None = None, directory: str = "/project") -> OpenCode:
    return OpenCode(client or Client("http://127.0.0.1:9", "", ""), Options(directory=directory))


def read(stream: bytes, live: bool = True, verbose: bool = False) -> list[Any]:
    posted: list[Any] = []
    dialect = a_dialect()
    dialect.options = Options(directory="/project", attended=live, verbose=verbose)
    ocloop.StreamReader(dialect, posted.append).read(io.BytesIO(stream))
    return posted


def frame(type: str, /, **properties: Any) -> bytes:
    event = {"id": "evt_1", "type": type, "properties": properties}
    return b"data: %s\n\n" % json.dumps(event).encode()


def delta_of(session: str, text: str = "The") -> bytes:
    return frame("message.part.delta", sessionID=session, partID="prt_1", delta=text)
