#!/usr/bin/env python3
"""The least that can work a plan with OpenCode 1: what the server and the model need, and no more.

It starts `opencode serve`, makes a session, sends the prompt, reads the event stream until the
session is idle, looks whether the plan is complete, and begins anew. It makes sure of nothing,
shows nothing, and survives nothing: benchmark.py measures with it how much of a task's time is
OpenCode's and the model's own, which no loop can save.

    least.py    in a project with PLAN.md and .loop-prompt.md; the first `opencode` on PATH
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAN = Path("PLAN.md")
PROMPT = Path(".loop-prompt.md")
SECRET = "least"
TIMEOUT = 60.0  # seconds without any news, then it fails
LOGIN = base64.b64encode(f"opencode:{SECRET}".encode()).decode()
HEADERS = {"Authorization": f"Basic {LOGIN}", "Content-Type": "application/json"}


def start_server() -> tuple[subprocess.Popen[bytes], int]:
    """The server's process, and the port on which it listens."""
    process = subprocess.Popen(
        ["opencode", "serve", "--hostname=127.0.0.1", "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OPENCODE_SERVER_PASSWORD": SECRET},
    )
    assert process.stdout
    for line in process.stdout:
        found = re.search(rb"listening on http://127\.0\.0\.1:(\d+)", line)
        if found:
            return process, int(found.group(1))
    raise SystemExit("least.py: the server did not start")


def post(port: int, path: str, body: object) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("POST", path, json.dumps(body), HEADERS)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    if answer.status >= 300:
        raise SystemExit(f"least.py: {path} was answered with {answer.status}")
    return json.loads(said) if said.strip() else None


def open_stream(port: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("GET", "/event", headers=HEADERS)
    return connection.getresponse()


def wait_until_idle(stream: http.client.HTTPResponse, session: str) -> None:
    for line in stream:
        if b'"session.idle"' in line and session.encode() in line:
            return
    raise SystemExit("least.py: the event stream ended")


def main() -> int:
    prompt = PROMPT.read_text("utf-8").replace("{{PLAN_FILE}}", str(PLAN.resolve()))
    process, port = start_server()
    try:
        stream = open_stream(port)
        while "<plan-complete>" not in PLAN.read_text("utf-8"):
            session = post(port, "/session", {"title": "least"})["id"]
            text = {"type": "text", "text": prompt}
            post(port, f"/session/{session}/prompt_async", {"parts": [text]})
            wait_until_idle(stream, session)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
