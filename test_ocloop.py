"""The tests of ocloop, in two halves.

The first knows no processes, no network and no sleeping (`now` is an argument): plan, prompt, event stream, the
loop as histories of events, the layout. The second runs ocloop from the outside, against a fake OpenCode and
then against the real one. There every test has a home, a project and an environment of its own, and only
127.0.0.1 is contacted; each ocloop carries a mark in its environment, which everything that it starts inherits,
and when it has ended nothing may be left that carries the mark.

`pytest -k real` runs what needs the real OpenCode 1.18.33, `pytest -k "not real"` all else. It is taken from
OCLOOP_TEST_OPENCODE, else from PATH, else from ~/.opencode/bin, else installed with npm into a cache.
`python test_ocloop.py` prints the golden layouts at the end of this file anew, in place.
"""
from __future__ import annotations

import argparse
import codecs
import collections
import fcntl
import json
import os
import pty
import random
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import unicodedata
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from scripted_model import ScriptedModel, opencode_config

import ocloop
from ocloop import (
    AbortSession,
    CheckFinished,
    CheckSetup,
    CreateSession,
    Entry,
    EventStream,
    Exit,
    Fault,
    FilesRead,
    HandOver,
    Key,
    Loop,
    Measure,
    Measured,
    Noted,
    Notify,
    Options,
    Picture,
    Poll,
    Polled,
    PromptAccepted,
    ReadFiles,
    Reply,
    RequestFailed,
    RunCheck,
    ScreenLost,
    Scroll,
    SendPrompt,
    ServerDied,
    ServerEvent,
    ServerReady,
    SessionAborted,
    SessionCreated,
    SetupChecked,
    Signalled,
    StartServer,
    StopCheck,
    StopServer,
    Streamed,
    StreamOpened,
    Tick,
    layout,
    parse_plan,
    text_width,
    view,
)

if TYPE_CHECKING:
    from ocloop import Command, Event

    Answer = Callable[[Any], Event | None]

OCLOOP = ROOT / "ocloop.py"
FAKE = ROOT / "examples" / "fake_opencode.py"
PACKAGE, VERSION = "opencode-ai", "1.18.33"
LONG = 60.0  # seconds that a step may take on a slow machine before it counts as never coming

# ── plan: boxes ──────────────────────────────────────────────────────────────────────────────────────────
# One line of a plan each, and what it is.

NO_TASK = ""


@pytest.mark.parametrize("line, state, text, reason", [
    ("- [ ] Build it", "pending", "Build it", ""),
    ("- [] Build it", "pending", "Build it", ""),
    ("- [x] Done", "done", "Done", ""),
    ("- [X] Done", "done", "Done", ""),
    ("- [MANUAL] Call Bob", "manual", "Call Bob", ""),
    ("- [manual] Call Bob", "manual", "Call Bob", ""),
    ("- [ ] [MANUAL] Call Bob", "manual", "Call Bob", ""),
    ("- [] [MANUAL] Call Bob", "manual", "Call Bob", ""),
    ("- [ ] [MANUAL: needs a phone] Call Bob", "manual", "Call Bob", "needs a phone"),
    ("- [MANUAL: needs a phone] Call Bob", "manual", "Call Bob", "needs a phone"),
    ("- [ ] **[MANUAL]** Call Bob", "manual", "Call Bob", ""),
    ("- [ ] **[BLOCKED: no key]** Deploy", "blocked", "Deploy", "no key"),
    ("- [BLOCKED] Deploy", "blocked", "Deploy", ""),
    ("- [ ] [BLOCKED] Deploy", "blocked", "Deploy", ""),
    ("- [BLOCKED:] Deploy", "blocked", "Deploy", ""),
    ("- [BLOCKED: no key] Deploy", "blocked", "Deploy", "no key"),
    ("- [ ] [blocked: no key] Deploy", "blocked", "Deploy", "no key"),
    ("- [BLOCKED: see [1]] Deploy", "blocked", "Deploy", "see [1]"),
    ("- [BLOCKED: a: b] Deploy", "blocked", "Deploy", "a: b"),
    ("- [x] [MANUAL] Call Bob", "done", "Call Bob", ""),
    ("- [x] [BLOCKED: no key] Deploy", "done", "Deploy", ""),
    ("- [ ] [MANUAL] [BLOCKED: x] Task", "manual", "Task", ""),
    ("- [ ] [1] first", "pending", "[1] first", ""),
    ("- [ ] see [docs](u)", "pending", "see [docs](u)", ""),
    ("- [ ] [docs](u) to read", "pending", "[docs](u) to read", ""),
    ("- [ ] **bold** words", "pending", "**bold** words", ""),
    ("- [ ]\ttab", "pending", "tab", ""),
    ("-  [ ]   wide   ", "pending", "wide", ""),
    ("  - [ ] sub", "pending", "sub", ""),
    ("\t- [x] sub", "done", "sub", ""),
    ("        - [ ] deep", "pending", "deep", ""),
    ("* [ ] star", "pending", "star", ""),
    ("+ [ ] plus", "pending", "plus", ""),
    ("1. [ ] one", "pending", "one", ""),
    ("2) [x] two", "done", "two", ""),
    ("12. [BLOCKED: later] twelve", "blocked", "twelve", "later"),
    ("- [ ]", NO_TASK, "", ""),
    ("- [ ]   ", NO_TASK, "", ""),
    ("- [x]", NO_TASK, "", ""),
    ("- [ ] [MANUAL]", NO_TASK, "", ""),
    ("- [x](https://e.org)", NO_TASK, "", ""),
    ("- [](u)", NO_TASK, "", ""),
    ("- [ ](u)", NO_TASK, "", ""),
    ("- [blocked-list](u)", NO_TASK, "", ""),
    ("- [BLOCKEDABC] T", NO_TASK, "", ""),
    ("- [~] T", NO_TASK, "", ""),
    ("- [-] T", NO_TASK, "", ""),
    ("- [?] T", NO_TASK, "", ""),
    ("- [wip] T", NO_TASK, "", ""),
    ("- Item", NO_TASK, "", ""),
    ("Not a task", NO_TASK, "", ""),
    ("[ ] no bullet", NO_TASK, "", ""),
    ("-[ ] no space", NO_TASK, "", ""),
    ("- [ ]no space", NO_TASK, "", ""),
    ("- [x", NO_TASK, "", ""),
    ("- [[[[", NO_TASK, "", ""),
    ("a - [ ] b", NO_TASK, "", ""),
])
def test_a_line_is_a_task_or_not(line: str, state: str, text: str, reason: str) -> None:
    found = [(task.state, task.text, task.reason) for task in parse_plan(line).tasks]
    assert found == ([(state, text, reason)] if state else [])


# ── plan: lines, code, comments ──────────────────────────────────────────────────────────────────────────


def texts(plan: str) -> str:
    return " ".join(task.text for task in parse_plan(plan).tasks)


@pytest.mark.parametrize("plan, expected", [
    ("- [ ] a\n- [ ] b\n", "a b"),
    ("- [ ] a\r\n- [ ] b\r\n", "a b"),
    ("- [ ] a\r- [ ] b", "a b"),
    ("- [ ] a\n\r\n- [ ] b", "a b"),
    ("\ufeff- [ ] a", "a"),
    ("", ""),
    ("\n\n", ""),
    ("- [ ] a\u2028- [ ] b", "a\u2028- [ ] b"),
    ("- [ ] a\u0085- [ ] b", "a\u0085- [ ] b"),
    ("- [ ] a\f- [ ] b", "a\f- [ ] b"),
    ("- [ ] a\v- [ ] b", "a\v- [ ] b"),
    ("- [ ] a\x1c- [ ] b", "a\x1c- [ ] b"),
], ids=ascii)
def test_lines_end_at_line_ends_only(plan: str, expected: str) -> None:
    assert texts(plan) == expected


@pytest.mark.parametrize("plan, expected", [
    ("```\n- [ ] no\n```\n- [ ] yes", "yes"),
    ("~~~\n- [ ] no\n~~~\n- [ ] yes", "yes"),
    ("```python\n- [ ] no\n```\n- [ ] yes", "yes"),
    ("```\n- [ ] no\n~~~\n- [ ] no\n```\n- [ ] yes", "yes"),
    ("````\n```\n- [ ] no\n```\n````\n- [ ] yes", "yes"),
    ("```\n- [ ] no\n`````\n- [ ] yes", "yes"),
    ("```\n- [ ] no\n``` not the end\n- [ ] no", ""),
    ("```\n- [ ] no\n``\n- [ ] no", ""),
    ("```\n- [ ] no, for it is never closed", ""),
    ("- [ ] yes\n  ```\n  - [ ] no\n  ```\n- [ ] too", "yes too"),
    ("- ```\n  - [ ] no\n  ```\n- [ ] yes", "yes"),
    ("``\n- [ ] yes\n``", "yes"),
    ("```a`b\n- [ ] yes, for an info string has no backtick", "yes, for an info string has no backtick"),
    ("use ``` like this\n- [ ] yes", "yes"),
    ("```\n<!--\n```\n- [ ] yes\n-->", "yes"),
    ("<!-- - [ ] no -->\n- [ ] yes", "yes"),
    ("<!--\n- [ ] no\n-->\n- [ ] yes", "yes"),
    ("<!--\n```\n-->\n- [ ] yes", "yes"),
    ("- [ ] a <!-- aside --> b\n- [ ] c", "a                b c"),
    ("<!-- a --> <!-- b -->\n- [ ] yes", "yes"),
    ("text <!-- begins\n- [ ] no\nends -->\n- [ ] yes", "yes"),
    ("- [ ] the sign `<!--` in code\n- [ ] yes", "the sign `<!--` in code yes"),
    ("the sign `<!--`, then <!-- one\n- [ ] no\n-->\n- [ ] yes", "yes"),
], ids=ascii)
def test_code_and_comments_hold_no_tasks(plan: str, expected: str) -> None:
    assert texts(plan) == expected


def test_a_task_knows_its_line_and_its_phase() -> None:
    plan = parse_plan("# Plan\n\n## Phase 1 ##\n- [x] a\n\n```\n# no heading\n```\n"
                      "### Part #2\n- [ ] b\n#none\n- [ ] c\n")
    assert [(task.text, task.phase, task.line) for task in plan.tasks] == [
        ("a", "Phase 1", 4), ("b", "Part #2", 10), ("c", "Part #2", 12)]
    assert plan.current == plan.tasks[1]


def test_a_task_without_a_heading_has_no_phase() -> None:
    assert parse_plan("- [ ] a\n# Later\n").tasks[0].phase == ""


# ── plan: progress ───────────────────────────────────────────────────────────────────────────────────────


def boxes(done: int, pending: int, manual: int = 0, blocked: int = 0) -> str:
    return "- [x] d\n" * done + "- [ ] p\n" * pending + "- [MANUAL] m\n" * manual + "- [BLOCKED: b] b\n" * blocked


@pytest.mark.parametrize("done, pending, manual, blocked, automatable, percent", [
    (2, 2, 2, 1, 4, 50), (1, 3, 0, 0, 4, 25), (1, 7, 0, 0, 8, 13), (0, 0, 0, 3, 0, 100), (0, 0, 0, 0, 0, 100),
    (0, 5, 0, 0, 5, 0), (5, 0, 2, 0, 5, 100), (1, 2, 0, 0, 3, 33), (2, 1, 0, 0, 3, 67), (1, 199, 0, 0, 200, 1),
    (199, 1, 0, 0, 200, 100), (3, 5, 0, 0, 8, 38),
])
def test_progress(done: int, pending: int, manual: int, blocked: int, automatable: int, percent: int) -> None:
    plan = parse_plan(boxes(done, pending, manual, blocked))
    assert (plan.automatable, plan.percent) == (automatable, percent)
    assert (plan.done, plan.pending, plan.manual, plan.blocked) == (done, pending, manual, blocked)


def test_the_current_task_is_the_first_pending_one() -> None:
    assert parse_plan(boxes(2, 0, 1, 1)).current is None
    current = parse_plan("- [x] a\n- [MANUAL] b\n- [BLOCKED] c\n- [ ] d\n- [ ] e\n").current
    assert current and current.text == "d"


# ── plan: completion ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("plan, summary", [
    ("<plan-complete>all done</plan-complete>", "all done"),
    ("<plan-complete>\n  all\n  done\n</plan-complete>\n", "all\n  done"),
    ("<plan-complete></plan-complete>", ""),
    ("   <plan-complete>a</plan-complete>", "a"),
    ("    <plan-complete>a</plan-complete>", None),
    ("\t<plan-complete>a</plan-complete>", None),
    ("text <plan-complete>a</plan-complete>", None),
    ("- <plan-complete>a</plan-complete>", None),
    ("<plan-complete>a", None),
    ("a</plan-complete>", None),
    ("</plan-complete><plan-complete>", None),
    ("<plan-complete date='x'>a</plan-complete>", None),
    ("<plan-complete/>", None),
    ("<PLAN-COMPLETE>a</PLAN-COMPLETE>", None),
    ("<plan-complete>a</plan-complete>\n<plan-complete>b</plan-complete>", "b"),
    ("<plan-complete>a</plan-complete>\n<plan-complete>b", "a"),
    ("<plan-complete>one\nends here</plan-complete> and text", "one\nends here"),
    ("```\n<plan-complete>a</plan-complete>\n```", None),
    ("```\n<plan-complete>a</plan-complete>", None),
    ("<!--\n<plan-complete>a</plan-complete>\n-->", None),
    ("<!-- <plan-complete>a</plan-complete> -->", None),
    ("`<plan-complete>a</plan-complete>`", None),
    ("<plan-complete>a\n```\ncode\n```\nb</plan-complete>", "a\n```\ncode\n```\nb"),
    ("- [ ] a\r\n<plan-complete>x\r\ny</plan-complete>\r\n", "x\ny"),
    ("\ufeff<plan-complete>a</plan-complete>", "a"),
    ("a\u2028<plan-complete>b</plan-complete>", None),
    ("- [ ] still pending\n<plan-complete>early</plan-complete>", "early"),
], ids=ascii)
def test_the_completion_tag(plan: str, summary: str | None) -> None:
    assert parse_plan(plan).summary == summary


# ── plan: size ───────────────────────────────────────────────────────────────────────────────────────────
# The bound is far above what is needed (two seconds); what is quadratic would take minutes.

GENEROUS = 20.0


@pytest.mark.parametrize("text, tasks", [
    (("- [ ] a task of a very long plan, with some words in it" + " and more" * 5 + "\n") * 100_000, 100_000),
    ("## A heading\n\ntext and more text [link](u) `code`\n- [x] done\n" * 60_000, 60_000),
    ("<!-- a comment\n" * 100_000, 0),
    ("text <!-- that nothing closes\n" * 100_000, 0),
    ("<plan-complete>\n" * 100_000, 0),
    ("- " + "[" * 1_000_000, 0),
    ("x" * 10_000_000, 0),
    ("# a" + " " * 3_000 + "b\n- [ ] after a wide heading", 1),
    ("# a" + " #" * 3_000 + "b\n- [ ] after a strange heading", 1),
    ("- [ ] " + "[MANUAL] " * 10_000 + "x", 1),
    ("`" * 100_000 + "x`\n- [ ] after many backticks", 1),
    ("<!---->" * 8_000 + "\n- [ ] after many comments", 1),
], ids=lambda value: ascii(value[:16]) if isinstance(value, str) else "")
def test_a_large_plan_is_read_in_time(text: str, tasks: int) -> None:
    before = time.perf_counter()
    assert len(parse_plan(text).tasks) == tasks
    assert time.perf_counter() - before < GENEROUS


# ── prompt ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text, fields, body", [
    ("Just do it", {}, "Just do it"),
    ("---\nmodel: a/b\nagent: build\n---\nDo it\n", {"model": "a/b", "agent": "build"}, "Do it"),
    ("---\r\nmodel: a/b\r\n---\r\nDo\r\nit", {"model": "a/b"}, "Do\nit"),
    ("\ufeff---\nmodel: a/b\n---\nDo it", {"model": "a/b"}, "Do it"),
    ("---\nmodel: 'a/b'\nagent: \"x\"\n---\nDo it", {"model": "a/b", "agent": "x"}, "Do it"),
    ("---\n# model: a/b\n\nagent:build\n---\nDo it", {"agent": "build"}, "Do it"),
    ("---\n---\nDo it", {}, "Do it"),
    ("---   \nmodel: a/b:free\n---  \nDo it", {"model": "a/b:free"}, "Do it"),
    ("---\nmodel: a/b\n---", {"model": "a/b"}, ""),
    ("---\nno end of it", {}, "---\nno end of it"),
    ("Text\n---\nmodel: a/b\n---\n", {}, "Text\n---\nmodel: a/b\n---"),
    ("---\nmodel: a/b\n---\nOne\n---\nTwo", {"model": "a/b"}, "One\n---\nTwo"),
    ("---\nmodel: a/b\n----\nagent: x\n---\nDo it", {"model": "a/b", "agent": "x"}, "Do it"),
    ("", {}, ""),
], ids=ascii)
def test_front_matter(text: str, fields: dict[str, str], body: str) -> None:
    assert ocloop.split_front_matter(text) == (fields, body)


@pytest.mark.parametrize("body, check, expected", [
    ("{{PLAN_FILE}} {{TASK}} {{ITERATION}}", "", "/p/PLAN.md a {{TASK}} \\1 {{CHECK}} b 7"),
    ("nothing", "", "nothing"),
    ("a {{CHECK}} b", "", "a  b"),
    ("a {{CHECK}} b", "bad {{TASK}}", "a bad {{TASK}} b"),
    ("a", "bad {{ITERATION}}", "a\n\nbad {{ITERATION}}"),
    ("{{task}} {{ TASK }} {{OTHER}}", "", "{{task}} {{ TASK }} {{OTHER}}"),
])
def test_placeholders_are_filled_once(body: str, check: str, expected: str) -> None:
    assert ocloop.render_prompt(body, "/p/PLAN.md", "a {{TASK}} \\1 {{CHECK}} b", 7, check) == expected


# ── server-sent events ───────────────────────────────────────────────────────────────────────────────────
# The first ones are the examples of html.spec.whatwg.org, "Server-sent events".

STREAMS: list[tuple[bytes, list[bytes]]] = [
    ((b"data: This is the first message.\n\ndata: This is the second message, it\ndata: has two lines.\n\n"
     b"data: This is the third message.\n\n"),
     [b"This is the first message.", b"This is the second message, it\nhas two lines.",
      b"This is the third message."]),
    (b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
     [b"73857293", b"2153", b"113411"]),
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
    (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
     [b"first event", b"second event", b" third event"]),
    (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
    (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    (b"data: a\r\ndata: b\n\rdata: c\r\r\n", [b"a\nb", b"c"]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    (b"data: never ended\n", []),
    (b"data: never ended", []),
    (b"event: x\n\ndata: a\n\n", [b"a"]),
    (b"event: x\nevent:\ndata: a\n\n", [b"a"]),
    (b":\n:comment\n : no comment\ndata: a\n:\n\n", [b"a"]),
    (b"Data: a\ndatas: b\n data: c\n\n", []),
    (b"retry: 100\nid: 4\nunknown: 5\ndata: a\n\n", [b"a"]),
    (b"data: {\"a\":\"x\xe2\x80\xa8y\xc2\x85z\x0b\x0c\x1c\"}\n\n",
     [b"{\"a\":\"x\xe2\x80\xa8y\xc2\x85z\x0b\x0c\x1c\"}"]),
    (b"data: \xff\xfe\x00\n\n", [b"\xff\xfe\x00"]),
    (b"\n\n\r\n\r\r\n\ndata: a: b\n\n\n", [b"a: b"]),
    (b"", []),
]


def feed(chunks: Iterable[bytes]) -> list[bytes]:
    stream = EventStream()
    return [event for chunk in chunks for event in stream.feed(chunk)]


@pytest.mark.parametrize("stream, events", STREAMS, ids=ascii)
def test_event_stream(stream: bytes, events: list[bytes]) -> None:
    assert feed([stream]) == events
    assert feed(stream[n:n + 1] for n in range(len(stream))) == events, "byte by byte"
    for n in range(len(stream) + 1):
        assert feed([stream[:n], b"", stream[n:]]) == events, n


def test_a_line_of_megabytes() -> None:
    data = b"x" * 5_000_000
    stream = b"data: " + data + b"\n\ndata: next\n\n"
    assert feed([stream]) == [data, b"next"]
    before = time.perf_counter()
    assert feed(stream[n:n + 1000] for n in range(0, len(stream), 1000)) == [data, b"next"]
    assert time.perf_counter() - before < GENEROUS


# ── server-sent events: what is posted ───────────────────────────────────────────────────────────────────


def read(chunks: Iterable[bytes], live: bool = True) -> list[Event]:
    posted: list[Event] = []
    ocloop.read_stream(iter(chunks), posted.append, lambda: True, live)
    return posted


def frame(type: str, **properties: Any) -> bytes:
    return b"data: %s\n\n" % json.dumps({"id": "evt_1", "type": type, "properties": properties}).encode()


DELTA = frame("message.part.delta", sessionID="ses_1", messageID="msg_1", partID="prt_1", field="text",
              delta="The")


def test_events_are_decoded() -> None:
    assert read([frame("session.idle", sessionID="ses_1") + frame("never.heard.of", x=[1])]) == [
        ServerEvent("session.idle", {"sessionID": "ses_1"}), ServerEvent("never.heard.of", {"x": [1]})]


def test_signs_of_life_are_no_events() -> None:
    assert read([frame("server.connected") + frame("server.heartbeat")]) == []


@pytest.mark.parametrize("data", [
    b"", b"{", b"null", b"7", b"[]", b"\"text\"", b"{\"type\":\"a\"}", b"{\"type\":\"a\",\"properties\":[]}",
    b"\xff\xfe",
    b"{\"type\":\"session.idle\",\"properties\":{\"sessionID\":\"ses_1\"}", b"9" * 5000,
], ids=lambda data: ascii(data[:20]))
def test_what_is_no_event_is_passed_over(data: bytes) -> None:
    assert read([b"data: " + data + b"\n\n" + frame("ok")]) == [ServerEvent("ok", {})]


def test_invalid_utf8_is_replaced() -> None:
    assert read([b"data: {\"type\":\"a\",\"properties\":{\"x\":\"\xff\"}}\n\n"]) == [ServerEvent("a",
                                                                                                 {"x": "\ufffd"})]


def test_deltas_are_a_sign_of_life_when_nobody_watches() -> None:
    assert read([DELTA * 3, DELTA], live=False) == [Streamed()]


def test_few_deltas_are_decoded_when_somebody_watches_and_a_flood_is_not() -> None:
    posted = read([DELTA * 1000])
    decoded = posted.count(Streamed("ses_1", "prt_1", "The"))
    assert 5 <= decoded <= 100 and posted[decoded:] == [Streamed()]


def test_reading_ends_when_it_is_not_wanted_any_more() -> None:
    answers = iter([True, False])
    posted: list[Event] = []
    ocloop.read_stream(iter([frame("a"), frame("b"), frame("c")]), posted.append, lambda: next(answers), True)
    assert posted == [ServerEvent("a", {})]


# ── judging a session ────────────────────────────────────────────────────────────────────────────────────
# Literals as OpenCode 1.18.33 answers `GET /session/{id}/message`, cut down to what matters.

STOPPED = {"type": "step-finish", "reason": "stop"}
UNAUTHORIZED = {"name": "APIError",
                "data": {"message": "scripted fault 401", "statusCode": 401, "isRetryable": False}}
ABORTED = {"name": "MessageAbortedError", "data": {"message": "Aborted"}}
OVERFLOW = {"name": "ContextOverflowError", "data": {"message": "too long"}}


def user(id: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"info": {"id": id, "role": "user", "time": {"created": 1}},
            "parts": list(parts) or [{"type": "text", "text": "Do it"}]}


def assistant(parent: str, finish: str | None = None, error: Any = None, completed: bool = True) -> dict[str, Any]:
    info: dict[str, Any] = {"id": "msg_a", "role": "assistant", "parentID": parent, "time": {"created": 1}}
    if completed:
        info["time"]["completed"] = 2
    if finish:
        info["finish"] = finish
    if error:
        info["error"] = error
    return {"info": info, "parts": []}


COMPACTION = user("msg_c", {"type": "compaction", "auto": True})
GO_ON = user("msg_g", {"type": "text", "synthetic": True, "text": "Continue if you have next steps"})


@pytest.mark.parametrize("messages, verdict", [
    ([], "unanswered"),
    ([user("msg_1")], "unanswered"),
    ([user("msg_1"), assistant("msg_1", "tool-calls"), assistant("msg_1", "stop")], "answered"),
    ([user("msg_1"), assistant("msg_1", "length")], "answered"),
    ([user("msg_1"), assistant("msg_1", "stop"), assistant("msg_1", "tool-calls", completed=False)], "unfinished"),
    ([user("msg_1"), assistant("msg_1", completed=False)], "unfinished"),
    ([user("msg_1"), assistant("msg_1", error=UNAUTHORIZED)], "failed"),
    ([user("msg_1"), assistant("msg_1", error=ABORTED)], "cut"),
    ([user("msg_1"), assistant("msg_1")], "cut"),
    ([user("msg_1"), assistant("msg_1", "unknown")], "cut"),
    ([user("msg_1"), assistant("msg_1", "tool-calls")], "refused"),
    ([user("msg_2"), assistant("msg_2", "stop")], "unanswered"),
    ([user("msg_1"), user("msg_2"), assistant("msg_2", "stop")], "unanswered"),
    ([user("msg_1"), assistant("msg_1", "stop"), user("msg_2"), assistant("msg_2", error=UNAUTHORIZED)],
     "answered"),
    ([user("msg_1"), assistant("msg_1", error=OVERFLOW), COMPACTION, assistant("msg_c", "stop"), GO_ON,
      assistant("msg_g", "tool-calls"), assistant("msg_g", "stop")], "answered"),
    ([COMPACTION, assistant("msg_c", "stop"), GO_ON, assistant("msg_g", completed=False)], "unfinished"),
    ([assistant("msg_1", "tool-calls"), assistant("msg_1", "stop")], "answered"),
])
def test_judge(messages: list[dict[str, Any]], verdict: str) -> None:
    assert ocloop.judge([ocloop.digest(message) for message in messages], "msg_1")[0] == verdict


def test_judge_says_what_failed() -> None:
    messages = [ocloop.digest(message) for message in (user("msg_1"), assistant("msg_1", error=UNAUTHORIZED))]
    assert ocloop.judge(messages, "msg_1") == ("failed", Fault("APIError", "scripted fault 401", 401))


@pytest.mark.parametrize("message, continues", [
    (user("a"), False), (COMPACTION, True), (GO_ON, True),
    (user("a", {"type": "text", "text": "x"}, {"type": "text", "text": "y", "synthetic": True}), False),
    (user("a", {"type": "file"}), False), ({"info": {"id": "a", "role": "user"}}, False),
])
def test_digest_knows_what_a_compaction_put_there(message: dict[str, Any], continues: bool) -> None:
    assert ocloop.digest(message)["continues"] is continues


def test_digest_of_nonsense() -> None:
    assert ocloop.digest({}) == {"id": "None", "role": None, "parent": "None", "finish": None,
                                 "completed": False, "error": None, "continues": False}
    assert ocloop.digest({"info": {"id": ["x"]}, "parts": [None, 4]})["id"] == "['x']"


@pytest.mark.parametrize("error, fault", [
    (None, None), ("text", None), ({}, None), ([], None), (ABORTED, None),
    (UNAUTHORIZED, Fault("APIError", "scripted fault 401", 401)),
    ({"name": "UnknownError", "data": {"message": "Model not found: fake/nope."}},
     Fault("UnknownError", "Model not found: fake/nope.")),
    ({"name": "ProviderAuthError"}, Fault("ProviderAuthError", "ProviderAuthError")),
    ({"name": "X", "data": "text"}, Fault("X", "X")),
    ({"name": "X", "data": {"statusCode": "429"}}, Fault("X", "X")),
])
def test_fault_of(error: Any, fault: Fault | None) -> None:
    assert ocloop.fault_of(error) == fault


@pytest.mark.parametrize("name, status, fatal, rate_limit", [
    ("APIError", 400, False, False), ("APIError", 401, True, False), ("APIError", 402, True, False),
    ("APIError", 403, True, False), ("APIError", 404, True, False), ("APIError", 429, False, True),
    ("APIError", 500, False, False), ("APIError", 529, False, True), ("ProviderAuthError", 0, True, False),
    ("ProviderModelNotFoundError", 0, True, False), ("UnknownError", 0, False, False),
])
def test_what_a_fault_is(name: str, status: int, fatal: bool, rate_limit: bool) -> None:
    fault = Fault(name, "rate limit 429 unauthorized", status)
    assert (bool(fault.advice), fault.rate_limit) == (fatal, rate_limit)


# ── words for people ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tool, state, text", [
    ("read", {"input": {"filePath": "/project/src/a.py"}}, "src/a.py"),
    ("read", {"input": {"filePath": "/worker/a.py"}}, "/worker/a.py"),
    ("bash", {"input": {"command": "make  test\n  && ls", "description": "Run"}}, "make test && ls"),
    ("grep", {"input": {"pattern": "x y", "path": "/project/src"}}, "x y in src"),
    ("glob", {"input": {"pattern": "**/*.py"}}, "**/*.py"),
    ("task", {"input": {"description": "look around", "prompt": "…"}}, "look around"),
    ("webfetch", {"input": {"url": "https://e.org"}}, "https://e.org"),
    ("todowrite", {"input": {"todos": [1, 2, 3]}}, "3 items"),
    ("todowrite", {"input": {}}, "0 items"),
    ("list", {"input": {"path": "/project/src"}}, "src"),
    ("mcp_thing", {"input": {"number": 3, "what": "this"}}, "this"),
    ("mcp_thing", {"input": {}, "title": "A title"}, "A title"),
    ("bash", {}, ""),
    ("bash", {"input": "text"}, ""),
    ("bash", {"input": {"command": "x" * 9999}}, "x" * 500),
    ("edit", {"input": {"filePath": "/project/a"}, "metadata": {"filediff": {"additions": 3, "deletions": 1}}},
     "a  +3 -1"),
])
def test_tool_text(tool: str, state: dict[str, Any], text: str) -> None:
    assert ocloop.tool_text(tool, state, "/project").split() == text.split()


@pytest.mark.parametrize("asked, detail", [
    ({"permission": "bash", "patterns": ["echo hi"], "metadata": {"command": "echo hi"}}, "echo hi"),
    ({"permission": "external_directory", "patterns": ["/etc/*"], "metadata": {"filepath": "/etc/hosts"}},
     "/etc/*, /etc/hosts"),
    ({"permission": "edit", "patterns": ["a", "b"], "metadata": {}}, "a, b"),
    ({"type": "bash", "pattern": "rm *", "title": "rm x"}, "rm *"),
    ({"title": "rm x"}, "rm x"),
    ({"patterns": ["*"], "metadata": {"command": "rm -rf /"}}, "*, rm -rf /"),
    ({"patterns": [], "metadata": "text"}, ""),
    ({}, ""),
])
def test_ask_detail(asked: dict[str, Any], detail: str) -> None:
    assert ocloop.ask_detail(asked) == detail


@pytest.mark.parametrize("seconds, text", [
    (0, "0s"), (-3, "0s"), (9.9, "9s"), (59.9, "59s"), (60, "1m00s"), (245, "4m05s"), (3599, "59m59s"),
    (3600, "1h00m"),
    (11_520, "3h12m"), (360_000, "100h00m"),
])
def test_duration(seconds: float, text: str) -> None:
    assert ocloop.duration(seconds) == text


@pytest.mark.parametrize("number, text", [
    (0, "0"), (999, "999"), (1000, "1.0k"), (1234, "1.2k"), (9940, "9.9k"), (9949, "9.9k"), (9990, "10k"),
    (10_000, "10k"),
    (999_499, "999k"), (999_600, "1.0M"), (1_234_567, "1.2M"), (45_000_000, "45M"), (2_000_000_000, "2.0G"),
])
def test_short_number(number: int, text: str) -> None:
    assert ocloop.short_number(number) == text


def test_short_numbers_are_short_and_never_fall() -> None:
    order = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    last = -1.0
    for number in sorted({int(10 ** (n / 500)) for n in range(4500)} | set(range(900, 10_200))):
        text = ocloop.short_number(number)
        value = float(text.rstrip("kMG")) * order[text.lstrip("0123456789.")]
        assert len(text) <= 4 and value >= last, (number, text)
        last = value


OPTION_VALUES: list[tuple[Callable[[str], Any], str, Any]] = [
    (ocloop.seconds, "90", 90.0), (ocloop.seconds, "90s", 90.0), (ocloop.seconds, "15m", 900.0),
    (ocloop.seconds, "2h", 7200.0), (ocloop.seconds, "1.5h", 5400.0), (ocloop.seconds, "0", 0.0),
    (ocloop.seconds, " 2 H ", 7200.0), (ocloop.seconds, "-1", None), (ocloop.seconds, "2x", None),
    (ocloop.seconds, "", None), (ocloop.seconds, "1h30m", 5400.0), (ocloop.seconds, "inf", None),
    (ocloop.count, "0", 0), (ocloop.count, "27", 27), (ocloop.count, "-1", None), (ocloop.count, "1.5", None),
    (ocloop.count, "", None), (ocloop.count, "many", None), (ocloop.count, "\u00b2", None),
    (ocloop.dollars, "20", 20.0), (ocloop.dollars, "$20", 20.0), (ocloop.dollars, "0.50", 0.5),
    (ocloop.dollars, ".5", 0.5), (ocloop.dollars, "5.", 5.0), (ocloop.dollars, "-1", None),
    (ocloop.dollars, "20 USD", None), (ocloop.dollars, "nan", None), (ocloop.dollars, "", None),
    (ocloop.model_name, "a/b", "a/b"), (ocloop.model_name, "openrouter/x/y:free", "openrouter/x/y:free"),
    (ocloop.model_name, "sonnet", None), (ocloop.model_name, "/b", None), (ocloop.model_name, "a/", None),
    (ocloop.model_name, "a b/c", None), (ocloop.model_name, "", None),
    (ocloop.port_number, "4096", 4096), (ocloop.port_number, "65536", None), (ocloop.port_number, "x", None),
]


@pytest.mark.parametrize("parser, text, value", OPTION_VALUES, ids=ascii)
def test_values_of_options(parser: Callable[[str], Any], text: str, value: Any) -> None:
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match="write "):
            parser(text)
    else:
        assert parser(text) == value


# ── loop: how its stories are told ───────────────────────────────────────────────────────────────────────
# A Story is a run with a world that answers every command as a well-behaved OpenCode would, at once. A test
# says what happens (`busy`, `works`, `tell`), interferes (`world`, `plan`, `status`), and reads what was
# commanded (`take`) and where the loop stands (`state`).

NOON = 1_800_000_000.0
MAYBE = frozenset(("Poll", "ReadFiles", "Measure", "StopCheck"))
TWO = "# Part\n- [ ] one\n- [ ] two\n"


class Story:
    """A run, the world around it, and all that was said between them."""

    def __init__(self, plan: str | None = TWO, now: float = NOON, start: bool = True, **options: Any) -> None:
        self.options = Options(**{"directory": "/project", "plan": "/project/PLAN.md", "prompt": "/project/.loop-prompt.md",
                                  "run": True, "interactive": True, **options})
        self.now = self.began = now
        self.plan, self.prompt, self.setup = plan, "Do {{TASK}}{{CHECK}}", SetupChecked("a/b", {"a/b": 1000},
                                                                                        ["build"])
        self.status, self.messages = "busy", list[dict[str, Any]]()
        self.cost: float | None = None
        self.memory = self.check = 0
        self.sessions = 0
        self.world: dict[type, Answer | None] = {       # None: no answer
            StartServer: lambda c: ServerReady(c.generation, "http://127.0.0.1:4096", "1.18.33"),
            CheckSetup: lambda c: self.setup, ReadFiles: self.files, CreateSession: self.create,
            SendPrompt: lambda c: PromptAccepted(c.session),
            Poll: lambda c: Polled(c.session, self.status, {}, list(self.messages)),
            AbortSession: lambda c: SessionAborted(c.session),
            Measure: lambda c: Measured(c.session, self.cost, self.memory),
            RunCheck: lambda c: CheckFinished(c.iteration, self.check, "output of the check")}
        self.commands: list[Command] = []
        self.taken = 0
        self.states = ["starting"]
        self.told: list[tuple[float, Event, bool]] = []      # the last: something came of it
        self.loop = Loop(self.options, now, "seed0001")
        if start:
            self.carry_out(self.loop.start())

    def files(self, command: ReadFiles) -> FilesRead:
        problem = "the plan /project/PLAN.md cannot be read (No such file): put it back" if self.plan is None else ""
        return FilesRead(command.number, self.plan, self.prompt, problem)

    def create(self, command: CreateSession) -> SessionCreated:
        self.sessions += 1
        self.status, self.messages = "busy", []
        return SessionCreated(command.iteration, f"ses_{self.sessions}")

    def tell(self, *events: Event) -> None:
        """Let events happen, a tenth of a second apart, and their consequences."""
        for event in events:
            self.now += 0.1
            entries = self.loop.entries
            commands = self.loop.handle(event, self.now)
            self.told.append((self.now, event, bool(commands) or self.loop.entries > entries))
            if self.loop.state != self.states[-1]:
                self.states.append(self.loop.state)
            self.carry_out(commands)

    def carry_out(self, commands: Sequence[Command]) -> None:
        self.commands += commands
        for command in commands:
            answer = self.world.get(type(command))
            event = answer(command) if answer else None
            if event is not None:
                self.tell(event)

    def let_pass(self, seconds: float, step: float = 0.5) -> None:
        until = self.now + seconds
        while self.now < until and not self.exits:
            self.now += min(step, until - self.now) - 0.1
            self.tell(Tick())

    def wait_out(self) -> float:
        """Let the wait for the next attempt pass; returns how long it was, in seconds."""
        assert self.state == "waiting"
        seconds = self.loop.wait_until - self.loop.now
        self.let_pass(seconds - 1, 5)
        assert self.state == "waiting"
        self.let_pass(2)
        assert self.state == "running"
        return seconds

    def event(self, type: str, session: str = "", **properties: Any) -> None:
        """An event of the session under way, or of another one."""
        self.tell(ServerEvent(type, {"sessionID": session or f"ses_{self.sessions}", **properties}))

    def busy(self) -> None:
        self.event("session.status", status={"type": "busy"})

    def idle(self) -> None:
        self.status = "idle"
        self.event("session.idle")

    def message(self, finish: str | None = None, cost: float = 0.0, id: str = "", session: str = "",
                **more: Any) -> None:
        number = len(self.told)
        self.event("message.updated", session, info={
            "id": id or f"msg_{number}", "role": "assistant", "cost": cost, "time": {"created": 1, "completed": 2},
            "tokens": {"input": 10, "output": 5, "reasoning": 1, "cache": {"read": 4, "write": 0}},
            "providerID": "a", "modelID": "b", **({"finish": finish} if finish else {}), **more})

    def ends(self, finish: str | None = "stop", error: Any = None) -> None:
        """The session ends with this last answer."""
        own = self.last(SendPrompt).message_id
        self.messages = [ocloop.digest(m) for m in (user(own), assistant(own, finish, error))]
        self.idle()

    def works(self, cost: float = 0.0) -> None:
        """The agent does the next task and ends its turn."""
        self.busy()
        self.plan = (self.plan or "").replace("[ ]", "[x]", 1)
        self.message("stop", cost)
        self.ends()

    def fails(self, status: int, message: str = "it failed", name: str = "APIError") -> None:
        """The provider's error ends the turn."""
        error = {"name": name, "data": {"message": message, "statusCode": status}}
        self.busy()
        self.event("session.error", error=error)
        self.ends(None, error)

    def asks(self, id: str = "per_1", session: str = "") -> None:
        self.event("permission.asked", session, id=id, permission="bash", patterns=["rm *"],
                   metadata={"command": "rm -r x"})

    def question(self, *labels: str, id: str = "que_1", times: int = 1, session: str = "") -> None:
        self.event("question.asked", session, id=id, questions=[
            {"question": "Which?", "options": [{"label": label} for label in labels]}] * times)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tell(Key(key))

    def take(self, *ignored: str) -> str:
        """The names of the commands since the last take, without `ignored` or what polling and reading add."""
        ignore = ignored or MAYBE
        names = [type(command).__name__ for command in self.commands[self.taken:]]
        self.taken = len(self.commands)
        return " ".join(name for name in names if name not in ignore)

    def all(self, kind: type) -> list[Any]:
        return [command for command in self.commands if type(command) is kind]

    def last(self, kind: type) -> Any:
        return self.all(kind)[-1]

    @property
    def state(self) -> str:
        return self.loop.state

    @property
    def exits(self) -> list[int]:
        return [command.status for command in self.all(Exit)]

    @property
    def text(self) -> str:
        return "\n".join(f"{entry.kind}: {entry.text}" for entry in self.loop.journal)


# ── loop: the happy path ─────────────────────────────────────────────────────────────────────────────────


def test_a_plan_is_worked_from_start_to_end() -> None:
    story = Story(max_iterations=9)
    assert story.take("-") == "StartServer ReadFiles CheckSetup ReadFiles CreateSession SendPrompt"
    assert story.state == "running"
    story.works()
    assert story.take("-") == "Poll Measure ReadFiles CreateSession SendPrompt"
    assert story.plan
    story.plan += "<plan-complete>both are done</plan-complete>"
    story.works()
    assert story.take("-") == "Poll Measure ReadFiles StopServer"
    assert story.states == ["starting", "running", "complete"]
    assert (story.loop.status, story.loop.plan.summary, story.loop.iterations) == (0, "both are done", 2)
    story.press("q")
    assert story.take() == "Exit" and story.exits == [0]


def test_without_a_terminal_it_starts_at_once_and_leaves_at_the_end() -> None:
    story = Story("- [ ] one\n", run=False, interactive=False)
    assert story.state == "running"
    story.plan = "- [x] one\n<plan-complete>done</plan-complete>"
    story.ends()
    assert story.state == "complete" and story.exits == [0]


def test_with_a_terminal_it_waits_for_a_person() -> None:
    story = Story(run=False)
    assert story.state == "ready" and story.take() == "StartServer CheckSetup"
    story.press("s")
    assert story.state == "running" and story.take() == "CreateSession SendPrompt"


@pytest.mark.parametrize("key", ["s", "space"])
def test_a_key_starts_it(key: str) -> None:
    story = Story(run=False)
    story.press(key)
    assert story.state == "running"


def test_start_may_be_pressed_before_the_server_is_ready() -> None:
    story = Story(run=False, start=False)
    story.world[StartServer] = None
    story.carry_out(story.loop.start())
    story.press("s")
    assert story.state == "starting"
    story.tell(ServerReady(1, "http://x", "1"))
    assert story.states == ["starting", "running"]


def test_prompt_and_title_say_what_the_task_is() -> None:
    story = Story("- [x] zero\n- [ ] one\n- [ ] two\n", model="a/b", agent="build")
    prompt = story.last(SendPrompt)
    assert (prompt.text, prompt.model, prompt.agent) == ("Do one", "a/b", "build")
    assert story.last(CreateSession).title == "ocloop 2/3: one"


def test_ids_are_like_those_of_opencode_and_grow() -> None:
    story = Story()
    story.works()
    first, second = story.all(SendPrompt)
    for prompt in (first, second):
        assert re.fullmatch(r"msg_[0-9a-f]{12}[0-9A-Za-z]{14}", prompt.message_id)
        assert re.fullmatch(r"prt_[0-9a-f]{12}[0-9A-Za-z]{14}", prompt.part_id)
    assert first.message_id < second.message_id and first.part_id != second.part_id


def test_front_matter_gives_model_and_agent_unless_the_command_line_does() -> None:
    for given, expected in (("", "a/b"), ("c/d", "c/d")):
        story = Story(start=False, model=given)
        story.setup, story.prompt = SetupChecked(), "---\nmodel: a/b\nagent: plan\n---\nDo it"
        story.carry_out(story.loop.start())
        prompt = story.last(SendPrompt)
        assert (prompt.model, prompt.agent, prompt.text) == (expected, "plan", "Do it")


def test_the_model_of_the_configuration_is_shown() -> None:
    story = Story(run=False)
    assert view(story.loop, story.now).model == "a/b"


def test_cost_and_tokens_are_added_up_over_iterations_and_messages() -> None:
    story = Story("- [ ] one\n- [ ] two\n- [ ] three\n")
    story.busy()
    story.message("tool-calls", 0.25, "msg_x")
    story.message("tool-calls", 0.50, "msg_x")          # the same message again, with more
    story.works(0.25)
    assert story.loop.total.cost == pytest.approx(0.75) and story.loop.total.tokens == 40
    story.busy()
    assert story.loop.total.cost == pytest.approx(0.75), "does not fall back to nothing"
    story.works(1.0)
    assert story.loop.total.cost == pytest.approx(1.75)
    assert (story.loop.total.input, story.loop.total.output, story.loop.total.cached) == (30, 18, 12)


def test_what_subagents_cost_is_added_and_what_strangers_cost_is_not() -> None:
    story = Story()
    story.event("session.created", "ses_child", info={"id": "ses_child", "parentID": "ses_1"})
    story.event("session.created", "ses_grandchild", info={"id": "ses_grandchild", "parentID": "ses_child"})
    story.event("session.created", "ses_stranger", info={"id": "ses_stranger"})
    story.message("stop", 0.25, session="ses_child")
    story.message("stop", 0.50, session="ses_grandchild")
    story.message("stop", 9.00, session="ses_stranger")
    story.works(1.0)
    assert story.loop.total.cost == pytest.approx(1.75)


@pytest.mark.parametrize("measured, total", [(None, 1.0), (3.5, 3.5), (0.0, 1.0)])
def test_what_the_server_measures_counts_where_it_can_tell(measured: float | None, total: float) -> None:
    story = Story()
    story.cost = measured
    story.works(1.0)
    assert story.loop.spent.cost == pytest.approx(total)


def test_an_iteration_is_over_when_both_its_cost_and_its_plan_are_known() -> None:
    story = Story()
    story.world[Measure] = lambda c: None
    story.works(1.0)
    assert story.loop.iterations == 1 and story.loop.iteration
    story.tell(Measured("ses_1", 1.5))
    assert story.loop.iterations == 2 and story.loop.spent.cost == pytest.approx(1.5)
    story.tell(Measured("ses_1", 9.5))
    assert story.loop.spent.cost == pytest.approx(1.5)


def test_the_context_is_that_of_the_own_session() -> None:
    story = Story()
    story.event("session.created", "ses_child", info={"id": "ses_child", "parentID": "ses_1"})
    story.message("tool-calls")
    story.message("stop", session="ses_child", tokens={"input": 900})
    assert story.loop.context == 20 and view(story.loop, story.now).context == 2


# ── loop: when an iteration is over ──────────────────────────────────────────────────────────────────────


def test_an_idle_event_alone_ends_nothing() -> None:
    story = Story()
    story.busy()
    story.event("session.idle")                         # the status says busy
    story.let_pass(30)
    assert story.take() == "StartServer CheckSetup CreateSession SendPrompt"


def test_the_end_is_seen_without_any_event() -> None:
    story = Story()
    own = story.last(SendPrompt).message_id
    story.take()
    story.status, story.plan = "idle", TWO.replace("[ ]", "[x]", 1)
    story.messages = [ocloop.digest(m) for m in (user(own), assistant(own, "stop"))]
    story.let_pass(6)
    assert story.take() == "CreateSession SendPrompt"


def test_a_stream_that_comes_back_is_answered_by_a_look() -> None:
    story = Story()
    story.busy()
    story.let_pass(3)
    story.take()
    story.tell(StreamOpened())
    assert story.take("ReadFiles") == "Poll"


def test_idle_of_another_session_is_not_the_end() -> None:
    story = Story()
    story.busy()
    story.event("session.created", "ses_child", info={"id": "ses_child", "parentID": "ses_1"})
    story.take()
    for session in ("ses_child", "ses_stranger"):
        story.event("session.idle", session)
    assert story.take("ReadFiles") == ""


def test_a_server_that_says_busy_for_ever_is_looked_at_more_closely() -> None:
    story = Story()
    story.busy()
    own = story.last(SendPrompt).message_id
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.messages = [ocloop.digest(m) for m in (user(own), assistant(own, "stop"))]
    story.let_pass(30)
    assert story.loop.iterations == 1
    story.let_pass(60)
    assert story.loop.iterations == 2 and "1 done" in story.text


def test_where_the_server_cannot_tell_the_idle_event_decides() -> None:
    story = Story("- [ ] one\n- [ ] two\n", start=False)
    story.setup = SetupChecked()
    story.world[Poll] = lambda c: Polled(c.session, "unknown", {})
    story.world[Measure] = lambda c: RequestFailed("Measure", c.session, 404, "not found")
    story.carry_out(story.loop.start())
    story.let_pass(60)
    assert story.loop.iterations == 1, "nothing was said: it works"
    story.busy()
    story.let_pass(60)
    assert story.loop.iterations == 1
    story.works()
    assert (story.loop.iterations, story.loop.plan.done, story.loop.failures) == (2, 1, 0)


def test_where_the_server_cannot_tell_an_error_before_idle_is_a_failure() -> None:
    story = Story(start=False)
    story.world[Poll] = lambda c: Polled(c.session, "unknown", {})
    story.carry_out(story.loop.start())
    story.fails(500)
    assert story.state == "waiting" and story.loop.failures == 1


def test_a_compaction_is_not_the_end() -> None:
    story = Story()
    story.busy()
    own = story.last(SendPrompt).message_id
    story.event("session.error", error=OVERFLOW)
    story.messages = [ocloop.digest(m) for m in (
        user(own), assistant(own, error=OVERFLOW), COMPACTION, assistant("msg_c", "stop"), GO_ON,
        assistant("msg_g", completed=False))]
    story.let_pass(20)
    assert story.loop.iterations == 1 and story.state == "running"
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.messages = story.messages[:-1] + [ocloop.digest(assistant("msg_g", "stop"))]
    story.idle()
    assert story.loop.iterations == 2 and "1 done" in story.text


def test_what_a_person_typed_into_the_session_is_not_the_answer() -> None:
    story = Story()
    own = story.last(SendPrompt).message_id
    story.busy()
    story.messages = [ocloop.digest(m) for m in (user(own), user("msg_p"), assistant("msg_p", "stop"))]
    story.idle()
    story.let_pass(3)
    assert story.loop.iterations == 1


def test_a_refused_permission_that_ends_the_turn_is_no_failure() -> None:
    story = Story()
    story.busy()
    story.ends("tool-calls")
    assert story.loop.iterations == 1, "it must settle first"
    story.let_pass(3)
    assert (story.loop.iterations, story.loop.failures, story.state) == (2, 0, "running")


def test_an_answer_that_was_broken_off_is_a_failure() -> None:
    story = Story(interactive=False)
    story.busy()
    story.ends(None, ABORTED)
    story.let_pass(2.5)
    assert (story.loop.failures, story.state) == (1, "waiting")


def test_a_person_who_breaks_an_answer_off_is_left_at_the_wheel() -> None:
    story = Story()
    story.busy()
    story.ends(None, ABORTED)
    story.let_pass(2.5)
    assert (story.loop.failures, story.state) == (0, "paused")
    story.press("space")
    assert story.state == "running" and story.loop.iterations == 2


def test_late_results_of_an_older_session_are_ignored() -> None:
    story = Story()
    own = story.last(SendPrompt).message_id
    story.works()
    story.take()
    before = (story.loop.iterations, story.state, story.loop.total.cost)
    story.tell(SessionCreated(1, "ses_1"), PromptAccepted("ses_1"), SessionAborted("ses_1"),
               Measured("ses_1", 9.0),
               Polled("ses_1", "idle", {}, [ocloop.digest(m) for m in (user(own), assistant(own, "stop"))]),
               CheckFinished(1, 1, ""), RequestFailed("SendPrompt", "ses_1", 0, "late"),
               RequestFailed("Poll", "ses_1", 404, "late"), FilesRead(1, "", "", ""), ServerDied(0, "older"))
    story.event("session.idle", "ses_1")
    story.event("session.error", "ses_1", error=UNAUTHORIZED)
    story.message("stop", 5.0, session="ses_1")
    assert (story.loop.iterations, story.state, story.loop.total.cost) == before
    assert story.take() == ""


# ── loop: faults of the provider ─────────────────────────────────────────────────────────────────────────


def retry(story: Story, attempt: int, after: float, message: str = "Too Many Requests") -> None:
    story.event("session.status", status={"type": "retry", "attempt": attempt, "message": message,
                                          "next": int((story.now + after) * 1000)})


def test_opencodes_own_retry_is_shown_and_counted_down() -> None:
    story = Story()
    story.busy()
    retry(story, 1, 4)
    assert "retry: attempt 1 failed: Too Many Requests" in story.text
    shown = [view(story.loop, story.now + n).live[-1].text for n in (0, 2)]
    assert shown == ["attempt 2 in 3s: Too Many Requests", "attempt 2 in 1s: Too Many Requests"]
    retry(story, 2, 8)
    story.works()
    assert (story.state, story.loop.iterations, story.loop.failures) == ("running", 2, 0)
    assert not view(story.loop, story.now).live


def test_a_retry_that_the_status_tells_is_shown_as_well() -> None:
    story = Story()
    story.world[Poll] = lambda c: Polled(c.session, "retry", {"attempt": 1, "message": "busy",
                                                              "next": int((story.now + 60) * 1000)})
    story.let_pass(20)
    assert story.text.count("attempt 1 failed: busy") == 1


def test_a_rate_limit_given_up_is_waited_out_longer_and_longer_without_using_up_retries() -> None:
    story = Story(retries=2)
    waits = []
    for _ in range(8):
        story.fails(429)
        waits.append(round(story.wait_out()))
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
    story.works()
    assert (story.loop.failures, story.loop.rate_limits, story.state) == (0, 0, "running")


def test_rate_limits_do_not_count_as_iterations() -> None:
    story = Story(max_iterations=1)
    story.fails(429)
    story.let_pass(40)
    assert story.state == "running"
    story.works()
    assert story.state == "paused" and "--max-iterations" in story.loop.reason


def test_a_retry_that_is_parked_for_long_is_taken_out_of_opencodes_hands() -> None:
    story = Story()
    story.busy()
    story.take()
    retry(story, 1, 3600)
    assert story.take() == "AbortSession"
    assert story.state == "waiting" and story.loop.rate_limits == 1 and "would wait" in story.loop.reason
    story.let_pass(35)
    assert story.take() == "CreateSession SendPrompt"


def test_a_retry_of_a_quarter_of_an_hour_is_left_alone_and_is_no_stall() -> None:
    story = Story(stall_timeout=60)
    story.busy()
    retry(story, 1, 890)
    story.status = "retry"
    story.world[Poll] = lambda c: Polled(c.session, "retry", {"attempt": 1, "next": int((NOON + 900) * 1000)})
    story.let_pass(850, 5)
    assert story.all(AbortSession) == [] and story.state == "running"


def test_failures_are_tried_again_with_growing_pauses_then_end_the_run() -> None:
    story = Story(retries=3)
    waits = []
    for _ in range(3):
        story.fails(500, "boom")
        waits.append(story.wait_out())
    assert 1 <= waits[0] <= waits[1] / 1.5 <= waits[2] / 2.25
    story.fails(500, "boom")
    assert story.state == "error" and story.loop.status == 1
    assert "4 iterations in a row failed" in story.loop.reason and "boom" in story.loop.reason


def test_a_success_forgets_failures() -> None:
    story = Story("- [ ] a\n" * 9, retries=2)
    for _ in range(4):
        story.fails(500)
        story.wait_out()
        story.works()
    assert story.state == "running" and story.loop.failures == 0


def test_retries_0_never_gives_up() -> None:
    story = Story(retries=0)
    for _ in range(20):
        story.fails(500)
        assert story.wait_out() <= 900
    story.loop.failures = 5000
    story.fails(500)
    assert story.state == "waiting"


@pytest.mark.parametrize("status, name, advice", [
    (401, "APIError", "opencode auth login"), (402, "APIError", "balance"),
    (403, "APIError", "opencode auth login"),
    (404, "APIError", "look at the model"), (0, "ProviderAuthError", "opencode auth login"),
])
def test_what_trying_again_cannot_mend_ends_the_run_at_once(status: int, name: str, advice: str) -> None:
    story = Story(interactive=False)
    story.fails(status, "no entry", name)
    assert story.state == "error" and story.exits == [1]
    assert "no entry" in story.loop.reason and advice in story.loop.reason


def test_after_a_first_success_even_that_is_tried_again() -> None:
    story = Story()
    story.works()
    story.fails(401)
    story.wait_out()


def test_an_error_before_idle_whose_message_comes_later_is_waited_for() -> None:
    story = Story()
    story.busy()
    story.event("session.error", error=UNAUTHORIZED)
    story.idle()                                        # no assistant message yet
    assert story.state == "running"
    story.ends(None, UNAUTHORIZED)
    story.let_pass(1)
    assert story.state == "error"


def test_an_unknown_model_that_could_not_be_known_before_is_a_failure() -> None:
    story = Story(retries=1)
    for _ in range(2):
        if story.state == "waiting":
            story.wait_out()
        own = story.last(SendPrompt).message_id
        story.busy()
        story.event("session.error", error={"name": "UnknownError", "data": {"message": "Model not found: a/x."}})
        story.messages = [ocloop.digest(user(own))]
        story.idle()
        story.let_pass(3)
    assert story.state == "error" and "Model not found: a/x." in story.loop.reason


@pytest.mark.parametrize("options, words", [
    ({"model": "a/c"}, "there is no model a/c: did you mean a/b?"),
    ({"model": "zzzzzz/zzzz"}, "`opencode models` lists them"),
    ({"agent": "biuld"}, "there is no agent biuld: did you mean build?"),
])
def test_a_wrong_model_or_agent_is_said_before_any_prompt(options: dict[str, Any], words: str) -> None:
    story = Story(interactive=False, **options)
    assert story.state == "error" and words in story.loop.reason and story.exits == [1]
    assert story.all(CreateSession) == []


def test_a_wrong_model_in_the_prompt_is_said_before_any_prompt() -> None:
    story = Story(start=False, interactive=False)
    story.prompt = "---\nmodel: a/c\n---\nDo it"
    story.carry_out(story.loop.start())
    assert story.exits == [1] and story.all(CreateSession) == []


def test_a_broken_configuration_is_said_at_once() -> None:
    story = Story(start=False, interactive=False)
    story.world[CheckSetup] = lambda c: RequestFailed("CheckSetup", "", 400, "opencode.json is broken",
                                                      "ConfigJsonError")
    story.carry_out(story.loop.start())
    assert (story.state, story.loop.reason, story.exits) == ("error", "opencode.json is broken", [1])


def test_a_configuration_that_breaks_later_ends_the_run() -> None:
    story = Story(interactive=False)
    story.world[CreateSession] = lambda c: RequestFailed("CreateSession", "", 400, "it is broken",
                                                         "ConfigInvalidError")
    story.works()
    assert story.exits == [1] and story.loop.reason == "it is broken"


def test_an_empty_prompt_is_said() -> None:
    story = Story(start=False, interactive=False)
    story.prompt = "---\nagent: build\n---\n"
    story.carry_out(story.loop.start())
    assert story.exits == [1] and "is empty" in story.loop.reason


def test_a_stall_is_aborted_and_tried_again() -> None:
    story = Story(stall_timeout=900)
    story.busy()
    story.take()
    story.let_pass(890, 5)
    assert story.take() == ""
    story.let_pass(11)
    assert story.take() == "AbortSession" and story.state == "waiting" and "nothing happened" in story.text
    story.wait_out()
    assert story.take() == "CreateSession SendPrompt" and story.loop.failures == 1


@pytest.mark.parametrize("sign", [
    Streamed(), Streamed("ses_1", "prt_1", "x"),
    ServerEvent("message.part.updated", {"sessionID": "ses_1", "part": {}}),
    ServerEvent("never.heard.of", {"sessionID": "ses_1"}),
], ids=lambda sign: str(sign)[:40])
def test_any_sign_of_life_keeps_a_stall_away(sign: Event) -> None:
    story = Story(stall_timeout=60)
    for _ in range(10):
        story.let_pass(50, 5)
        story.tell(sign)
    assert story.all(AbortSession) == []


def test_a_strangers_life_is_no_sign_of_life() -> None:
    story = Story(stall_timeout=60)
    for _ in range(3):
        story.let_pass(30, 5)
        story.event("session.status", "ses_stranger", status={"type": "busy"})
    assert len(story.all(AbortSession)) == 1


def test_an_iteration_may_have_an_end_of_its_own() -> None:
    story = Story(iteration_timeout=100)
    for _ in range(9):
        story.let_pass(10, 5)
        story.busy()
    assert story.all(AbortSession) == []
    story.let_pass(11)
    assert len(story.all(AbortSession)) == 1 and story.state == "waiting"


def test_a_model_that_spins_is_stopped_after_three_unfinished_answers() -> None:
    story = Story()
    story.busy()
    story.message("unknown")
    story.message("unknown")
    story.message("tool-calls")
    story.message("unknown", id="msg_x")
    story.message("unknown", id="msg_x")
    story.message("unknown")
    assert story.all(AbortSession) == []
    story.message("unknown")
    assert len(story.all(AbortSession)) == 1 and story.state == "waiting" and story.loop.failures == 1


@pytest.mark.parametrize("answer, outcome", [
    (lambda c: SessionAborted(c.session), "aborted"),
    (lambda c: RequestFailed("AbortSession", c.session, 404, "gone"), "aborted"),
    (lambda c: RequestFailed("AbortSession", c.session, 0, "timed out"), "aborted"),
])
def test_however_an_abort_is_answered_the_loop_goes_on(answer: Answer, outcome: str) -> None:
    story = Story()
    story.world[AbortSession] = answer
    story.busy()
    story.press("x")
    assert f"1 {outcome}" in story.text and story.loop.iterations == 2 and story.state == "running"


@pytest.mark.parametrize("status", [0, 500])
def test_an_abort_that_fails_replaces_the_server(status: int) -> None:
    story = Story()
    story.busy()
    story.world[AbortSession] = lambda c: RequestFailed("AbortSession", c.session, status, "timed out")
    story.take()
    story.press("x")
    assert story.take() == "AbortSession StartServer CreateSession SendPrompt"


# ── loop: faults of the plan ─────────────────────────────────────────────────────────────────────────────


def test_iterations_that_change_nothing_stop_the_run() -> None:
    story = Story(stuck=3, interactive=False)
    for _ in range(3):
        assert story.exits == []
        story.busy()
        story.ends()
    assert story.state == "paused" and story.exits == [3] and "--stuck" in story.loop.reason


def test_a_task_that_changes_in_any_way_is_progress() -> None:
    story = Story(stuck=2)
    for reason in "abcdef":
        story.busy()
        story.plan = f"- [ ] one\n- [BLOCKED: {reason}] two\n"
        story.ends()
    assert story.state == "running"


def test_going_on_after_stuck_begins_to_count_anew() -> None:
    story = Story(stuck=2)
    story.ends()
    story.ends()
    assert story.state == "paused"
    story.press("r")
    assert story.state == "running"
    story.ends()
    assert story.state == "running"
    story.ends()
    assert story.state == "paused"


def test_a_pause_does_not_turn_unchanged_tasks_into_failed_checks() -> None:
    story = Story("- [ ] a\n" * 9, stuck=5, check="make test")
    story.ends()
    story.press("space")
    story.ends()
    story.press("space")
    story.check = 1
    story.works()
    assert story.state == "running" and story.loop.check_failures == 1


def test_a_tag_with_pending_tasks_ends_the_run_but_not_well() -> None:
    story = Story("- [ ] a\n- [ ] b\n", interactive=False)
    story.plan = "- [x] a\n- [ ] b\n<plan-complete>enough</plan-complete>"
    story.ends()
    assert story.state == "complete" and story.exits == [3] and "1 task" in story.loop.reason


def test_no_tag_though_nothing_is_pending_gives_one_more_iteration() -> None:
    story = Story("- [ ] a\n", interactive=False)
    story.works()
    assert story.state == "running" and story.last(SendPrompt).text == "Do wrap up"
    story.ends()
    assert story.state == "complete" and story.exits == [0] and "no summary" in story.loop.reason
    assert len(story.all(SendPrompt)) == 2


def test_the_summary_of_the_last_iteration_is_taken() -> None:
    story = Story("- [ ] a\n", interactive=False)
    story.works()
    story.plan = "- [x] a\n<plan-complete>so it was</plan-complete>"
    story.ends()
    assert story.exits == [0] and story.loop.plan.summary == "so it was"


@pytest.mark.parametrize("between", ["pause", "limit", "memory", "rate limit"])
def test_the_last_iteration_is_worked_whatever_comes_in_between(between: str) -> None:
    story = Story("- [ ] a\n", max_iterations=1 if between == "limit" else 0)
    if between == "pause":
        story.press("space")
    if between == "memory":
        story.memory = 99_999
    story.works()
    story.memory = 0
    if between == "rate limit":
        story.fails(429)
        story.let_pass(40)
    elif between != "memory":
        assert story.state == "paused"
        story.press("r")
    assert story.state == "running" and story.last(SendPrompt).text == "Do wrap up"


def test_only_blocked_and_manual_tasks_are_nothing_to_do() -> None:
    story = Story("- [BLOCKED: x] a\n- [MANUAL] b\n", interactive=False)
    assert story.last(SendPrompt).text == "Do wrap up"
    story.ends()
    assert story.exits == [0]


@pytest.mark.parametrize("broken", [None, "", "# Plan\n", "half a lin"])
def test_a_plan_that_goes_away_ends_the_run_within_seconds(broken: str | None) -> None:
    story = Story("- [x] a\n- [ ] b\n", interactive=False)
    story.busy()
    story.plan = broken
    story.let_pass(4)
    assert story.state == "running"
    story.let_pass(8)
    assert story.state == "error" and story.exits == [1] and "PLAN.md" in story.loop.reason
    assert (story.loop.plan.done, story.loop.plan.automatable) == (1, 2), "the last good progress is still there"


@pytest.mark.parametrize("broken", [None, ""])
def test_a_plan_that_comes_back_goes_on(broken: str | None) -> None:
    story = Story()
    good = story.plan
    story.busy()
    for _ in range(5):
        story.plan = broken
        story.let_pass(3.5)
        story.plan = good
        story.let_pass(4)
    assert story.state == "running"
    story.works()
    assert story.state == "running" and story.loop.iterations == 2


def test_a_plan_that_is_away_at_the_end_of_an_iteration_is_waited_for() -> None:
    story = Story()
    good, story.plan = story.plan, None
    story.works()
    assert story.loop.iterations == 1
    story.plan = (good or "").replace("[ ]", "[x]", 1)
    story.let_pass(2)
    assert story.loop.iterations == 2 and story.loop.plan.done == 1


def test_a_plan_deleted_while_paused_is_said_only_when_it_matters() -> None:
    story = Story()
    story.press("space")
    story.works()
    story.plan = None
    story.let_pass(60, 5)
    assert story.state == "paused"
    story.press("space")
    story.let_pass(10)
    assert story.state == "error"


def test_a_plan_without_tasks_is_worked_with_debug() -> None:
    story = Story("Just some words\n", debug=True)
    assert story.state == "running" and story.all(SendPrompt)


def test_an_edit_is_read_at_once() -> None:
    story = Story()
    story.take()
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.tell(ServerEvent("file.edited", {"file": "/project/PLAN.md"}))
    assert story.take("Poll") == "ReadFiles" and story.loop.plan.done == 1 and "plan: 1 of 2 done" in story.text
    story.tell(ServerEvent("file.edited", {"file": "/project/other.md"}))
    assert story.take("Poll") == ""


# ── loop: what is asked ──────────────────────────────────────────────────────────────────────────────────


def replies(story: Story) -> list[tuple[str, str]]:
    return [(command.id, command.reply) for command in story.all(Reply)]


@pytest.mark.parametrize("key, reply", [("y", "once"), ("a", "always"), ("n", "reject")])
def test_a_permission_is_answered_with_a_key(key: str, reply: str) -> None:
    story = Story()
    story.asks()
    assert list(story.loop.asks) == ["per_1"] and story.loop.bells == 1 and replies(story) == []
    story.press(key)
    assert replies(story) == [("per_1", reply)] and not story.loop.asks
    assert bool(story.last(Reply).message) == (reply == "reject")
    story.asks()
    assert not story.loop.asks, "what was answered is not asked again"


def test_what_is_asked_is_answered_in_order() -> None:
    story = Story()
    story.asks("per_1")
    story.asks("per_2")
    story.asks("per_1")
    story.press("y", "n", "y")
    assert replies(story) == [("per_1", "once"), ("per_2", "reject")]


def test_a_question_is_answered_with_a_number() -> None:
    story = Story()
    story.question("red", "green", times=2)
    story.press("3", "0", "2")
    assert replies(story) == []
    story.press("1")
    assert story.last(Reply).answers == (("green",), ("red",)) and not story.loop.asks


def test_a_question_is_refused_with_words_so_that_the_agent_goes_on() -> None:
    story = Story()
    story.question("red", "green", times=2)
    story.press("1", "n")
    (first,), (second,) = story.last(Reply).answers
    assert first == "red" and "BLOCKED" in second


@pytest.mark.parametrize("key", ["\u00b2", "\u00bd", "\u00e9", "\x00", "\x1b", "5", "z"])
def test_no_key_is_a_wrong_answer(key: str) -> None:
    story = Story()
    story.question("red")
    story.press(key)
    assert list(story.loop.asks) == ["que_1"] and replies(story) == []


def test_nobody_answers_in_time() -> None:
    story = Story(ask_timeout=300, stall_timeout=60)
    story.asks()
    story.question("red")
    story.let_pass(295, 5)
    assert replies(story) == []
    story.let_pass(10)
    assert replies(story) == [("per_1", "reject"), ("que_1", "reject")] and story.state == "running"


def test_an_ask_timeout_of_0_waits_for_ever() -> None:
    story = Story(ask_timeout=0, stall_timeout=60)
    story.asks()
    story.let_pass(5000, 9)
    assert list(story.loop.asks) == ["per_1"]


def test_without_a_terminal_it_is_refused_at_once_and_with_words() -> None:
    story = Story(interactive=False)
    story.asks()
    story.question("red")
    assert replies(story) == [("per_1", "reject"), ("que_1", "reject")]
    assert "BLOCKED" in story.all(Reply)[0].message and "BLOCKED" in story.all(Reply)[1].answers[0][0]


@pytest.mark.parametrize("interactive", [True, False])
def test_auto_approves_permissions_but_answers_no_questions(interactive: bool) -> None:
    story = Story(auto=True, interactive=interactive)
    story.asks()
    assert replies(story) == [("per_1", "once")]
    story.question("red")
    assert len(replies(story)) == (1 if interactive else 2)


def test_children_ask_as_well_and_strangers_do_not() -> None:
    story = Story()
    story.event("session.created", "ses_child", info={"id": "ses_child", "parentID": "ses_1"})
    story.asks("per_s", "ses_stranger")
    story.question("red", id="que_s", session="ses_stranger")
    story.asks("per_c", "ses_child")
    story.question("red", id="que_c", session="ses_child")
    assert list(story.loop.asks) == ["per_c", "que_c"]
    story.press("y")
    assert story.last(Reply).session == "ses_child"


def test_what_is_asked_is_found_by_polling_as_well() -> None:
    story = Story()
    story.world[Poll] = lambda c: Polled(
        c.session, "busy", {}, None, ["ses_child"],
        [{"id": "per_1", "sessionID": "ses_child", "permission": "bash", "patterns": ["x"]},
         {"id": "per_2", "sessionID": "ses_old", "permission": "bash", "patterns": ["x"]}],
        [{"id": "que_1", "sessionID": "ses_1", "questions": []}])
    story.let_pass(12)
    assert list(story.loop.asks) == ["per_1", "que_1"] and story.loop.bells == 2


@pytest.mark.parametrize("event", [
    ("permission.replied", {"requestID": "per_1"}), ("permission.replied", {"permissionID": "per_1"}),
    ("question.replied", {"requestID": "per_1"}), ("question.rejected", {"requestID": "per_1"}),
])
def test_what_was_answered_elsewhere_is_asked_no_more(event: tuple[str, dict[str, str]]) -> None:
    story = Story()
    story.asks()
    story.event(event[0], **event[1])
    assert not story.loop.asks


def test_an_answer_that_comes_too_late_is_no_error() -> None:
    story = Story()
    story.asks()
    story.press("y")
    story.tell(RequestFailed("Reply", "ses_1", 404, "not found"))
    assert story.state == "running" and "did not arrive" not in story.text


def test_an_answer_that_did_not_arrive_is_asked_for_again() -> None:
    story = Story()
    asked = [{"id": "per_1", "sessionID": "ses_1", "permission": "bash", "patterns": ["x"]}]
    story.world[Poll] = lambda c: Polled(c.session, "busy", {}, None, (), asked)
    story.asks()
    story.press("y")
    story.tell(RequestFailed("Reply", "ses_1", 0, "timed out"))
    story.let_pass(3)
    assert list(story.loop.asks) == ["per_1"]


def test_the_end_of_the_session_ends_what_it_asked() -> None:
    story = Story()
    story.asks()
    story.works()
    assert not story.loop.asks


def test_somebody_is_told_that_something_is_asked() -> None:
    story = Story(notify="mail")
    story.asks()
    facts = story.last(Notify).facts
    assert facts["OCLOOP_EVENT"] == "asked" and "rm -r x" in facts["OCLOOP_MESSAGE"]


# ── loop: faults of the server ───────────────────────────────────────────────────────────────────────────


def same_ids(prompts: Sequence[SendPrompt]) -> bool:
    return len({(prompt.message_id, prompt.part_id, prompt.text, prompt.session) for prompt in prompts}) == 1


def test_a_swallowed_prompt_is_sent_again_with_the_same_ids_but_not_for_ever() -> None:
    story = Story()
    story.status = "idle"
    story.messages = [ocloop.digest(user(story.last(SendPrompt).message_id))]
    story.let_pass(11)
    assert 2 <= len(story.all(SendPrompt)) <= 3
    story.let_pass(30)
    prompts = story.all(SendPrompt)[:4]
    assert same_ids(prompts) and "never answered" in story.text
    assert story.all(SendPrompt)[4].message_id != prompts[0].message_id and story.loop.iterations == 2


def test_an_interrupted_answer_is_taken_up_again_with_the_same_ids() -> None:
    story = Story()
    own = story.last(SendPrompt).message_id
    story.busy()
    story.messages = [ocloop.digest(m) for m in (user(own), assistant(own, completed=False))]
    story.idle()
    story.let_pass(3)
    assert len(story.all(SendPrompt)) == 2 and same_ids(story.all(SendPrompt))
    story.works()
    assert story.loop.iterations == 2 and story.loop.failures == 0


@pytest.mark.parametrize("command", [Poll, SendPrompt])
def test_a_session_that_is_gone_is_a_failure(command: type) -> None:
    story = Story(start=False)
    story.world[command] = lambda c: RequestFailed(command.__name__, c.session, 404, "Session not found",
                                                   "NotFoundError")
    story.carry_out(story.loop.start())
    story.let_pass(3)
    assert story.loop.failures and "Session not found" in story.text


def test_a_server_that_dies_is_started_again_and_the_same_prompt_is_sent() -> None:
    story = Story()
    story.busy()
    story.take()
    own = story.last(SendPrompt).message_id
    story.status, story.messages = "idle", [ocloop.digest(m) for m in (user(own), assistant(own, completed=False))]
    story.tell(ServerDied(1, "the server ended by itself with exit status 137", ("last words",)))
    assert story.last(StartServer).generation == 2 and "last words" in story.text
    story.let_pass(5)
    assert story.take() == "StartServer SendPrompt" and same_ids(story.all(SendPrompt))
    story.works()
    assert (story.loop.iterations, story.loop.failures, story.state) == (2, 0, "running")


def test_a_server_that_keeps_dying_ends_the_run_with_its_last_words() -> None:
    story = Story(retries=3, interactive=False)
    for _ in range(9):
        story.tell(ServerDied(story.loop.generation, "it died", ("of this",)))
        story.let_pass(20)
    assert story.state == "error" and story.exits == [1] and "of this" in story.loop.reason
    assert len(story.all(StartServer)) == 4


def test_pauses_between_starts_of_the_server_are_never_longer_than_a_quarter_of_an_hour() -> None:
    story = Story(retries=50)
    for _ in range(40):
        story.tell(ServerDied(story.loop.generation, "it died"))
        starts = len(story.all(StartServer))
        story.let_pass(901, 9)
        assert len(story.all(StartServer)) == starts + 1 or story.loop.server_up


@pytest.mark.parametrize("final, interactive", [(False, False), (True, True)])
def test_a_server_that_does_not_start_is_an_error(final: bool, interactive: bool) -> None:
    story = Story(start=False, interactive=interactive)
    story.world[StartServer] = lambda c: ServerDied(c.generation, "port 7 is taken", ("a line",), final)
    story.carry_out(story.loop.start())
    story.let_pass(5)
    assert len(story.all(StartServer)) == (1 if final else 3)
    assert story.state == "error" and "port 7 is taken" in story.loop.reason and "a line" in story.loop.reason
    assert story.exits == ([] if interactive else [1])


def test_the_death_of_an_older_server_is_no_news() -> None:
    story = Story()
    story.tell(ServerDied(1, "it died"))
    story.take()
    story.tell(ServerDied(1, "it died, says somebody late"), ServerReady(1, "http://old", ""))
    assert story.take() == "" and story.loop.server_url == "http://127.0.0.1:4096"


def test_a_server_that_hangs_is_started_again() -> None:
    story = Story()
    story.busy()
    good = story.world[Poll]
    story.world[Poll] = lambda c: RequestFailed("Poll", c.session, 0, "timed out")
    story.take()
    story.let_pass(3.5)
    assert story.take() == "StartServer" and "does not answer" in story.text
    story.world[Poll] = good
    story.works()
    assert story.loop.iterations == 2


def test_one_request_without_an_answer_is_only_tried_again() -> None:
    story = Story(start=False)
    failing = [RequestFailed("CreateSession", "", 0, "timed out")]
    story.world[CreateSession] = lambda c: failing.pop() if failing else story.create(c)
    story.carry_out(story.loop.start())
    story.take()
    story.let_pass(2)
    assert story.take() == "CreateSession SendPrompt" and story.loop.server_failures == 0


def test_a_server_in_which_nothing_ever_works_ends_the_run() -> None:
    story = Story(start=False, interactive=False, retries=2)
    story.world[CreateSession] = lambda c: RequestFailed("CreateSession", "", 503, "no")
    story.carry_out(story.loop.start())
    story.let_pass(60)
    assert story.exits == [1] and len(story.all(StartServer)) == 3


def test_a_server_that_grew_is_replaced_between_iterations() -> None:
    story = Story("- [ ] a\n" * 3, server_memory=2048)
    story.memory = 2048
    story.works()
    story.memory = 2049
    story.take()
    story.works()
    assert story.take() == "StartServer CreateSession SendPrompt" and "grew to 2049 MiB" in story.text


def test_a_server_that_refuses_the_password_is_an_error() -> None:
    story = Story(start=False, interactive=False)
    story.world[CreateSession] = lambda c: RequestFailed("CreateSession", "", 401, "no")
    story.carry_out(story.loop.start())
    assert story.exits == [1] and "OPENCODE_SERVER_PASSWORD" in story.loop.reason


# ── loop: limits and the check ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("interactive", [True, False])
def test_max_iterations(interactive: bool) -> None:
    story = Story("- [ ] a\n" * 9, max_iterations=2, interactive=interactive)
    story.works()
    assert story.state == "running"
    story.works()
    assert story.state == "paused" and story.loop.status == 3 and story.exits == ([] if interactive else [3])


def test_r_raises_the_limit_by_as_much_again() -> None:
    story = Story("- [ ] a\n" * 9, max_iterations=2)
    for number in (2, 4, 6):
        story.works()
        story.works()
        assert (story.state, story.loop.iterations) == ("paused", number)
        assert ("R", "raise the limit") in view(story.loop, story.now).keys
        story.press("r")
        assert story.state == "running" and story.loop.status == 130


def test_quitting_at_a_limit_says_that_work_is_left() -> None:
    story = Story("- [ ] a\n" * 9, max_iterations=1)
    story.works()
    story.press("q")
    assert story.state == "stopping" and story.exits == [3]


def test_max_cost_stops_between_iterations_and_twice_as_much_stops_at_once() -> None:
    story = Story("- [ ] a\n" * 9, max_cost=1.0)
    story.works(0.6)
    story.busy()
    story.message("tool-calls", 0.9)
    story.let_pass(5)
    assert story.all(AbortSession) == []
    story.message("tool-calls", 0.6)
    story.let_pass(1)
    assert len(story.all(AbortSession)) == 1 and story.state == "paused" and "--max-cost" in story.loop.reason
    assert story.loop.total.cost == pytest.approx(2.1)


def test_a_persons_pause_does_not_count_towards_max_time() -> None:
    story = Story(max_time=600)
    story.press("space")
    story.works()
    assert story.state == "paused"
    story.let_pass(3600, 5)
    assert story.loop.elapsed < 10
    story.press("space")
    assert story.state == "running" and story.loop.elapsed < 10


def test_max_time() -> None:
    story = Story("- [ ] a\n" * 9, max_time=100)
    story.works()
    story.let_pass(90, 5)
    story.works()
    story.let_pass(20, 5)
    assert story.state == "running"
    story.works()
    assert story.state == "paused" and "--max-time" in story.loop.reason


def test_time_at_a_limit_does_not_count_against_it() -> None:
    story = Story("- [ ] a\n" * 9, max_time=100)
    story.let_pass(110, 5)
    story.works()
    assert story.state == "paused"
    story.let_pass(8 * 3600, 9)                         # the person comes in the morning
    story.press("r")
    assert story.state == "running"
    story.works()
    assert story.state == "running"


def test_time_after_an_error_does_not_count_either() -> None:
    story = Story("- [ ] a\n" * 9, max_time=100)
    story.tell(ServerDied(1, "it died", (), True))
    story.let_pass(8 * 3600, 9)
    story.press("r")
    assert story.state == "running" and story.loop.elapsed < 10


def test_an_error_at_a_limit_leaves_nothing_of_the_limit_behind() -> None:
    story = Story(stuck=1)
    story.ends()
    assert story.state == "paused" and story.loop.limit
    story.tell(ServerDied(1, "it died", (), True))
    assert story.state == "error"
    story.press("r")
    assert story.state == "running"
    story.press("q", "q")
    assert story.exits == [130] and "end: a person quit" in story.text


def test_the_check_gates_and_its_output_reaches_the_agent() -> None:
    story = Story("- [ ] a\n- [ ] b\n", check="make test")
    story.check = 2
    story.take()
    story.works()
    assert story.take() == "RunCheck CreateSession SendPrompt"
    text = story.last(SendPrompt).text
    assert "$ make test" in text and "exit status 2" in text and "output of the check" in text
    facts = story.all(RunCheck)[0].facts
    assert (facts["OCLOOP_TASK"], facts["OCLOOP_DONE"], facts["OCLOOP_ITERATION"]) == ("a", "1", "1")
    story.check = 0
    story.works()
    assert story.last(SendPrompt).text == "Do wrap up"


def test_a_plan_is_not_complete_while_the_check_fails() -> None:
    story = Story("- [ ] a\n", check="make test", interactive=False)
    story.check = 1
    story.plan = "- [x] a\n<plan-complete>done</plan-complete>"
    story.ends()
    assert story.state == "running" and "exit status 1" in story.last(SendPrompt).text
    story.check = 0
    story.ends()
    assert story.state == "complete" and story.exits == [0]


def test_a_check_that_never_passes_stops_the_run() -> None:
    story = Story("- [ ] a\n" * 9, check="make test", stuck=3, interactive=False)
    story.check = 1
    for _ in range(3):
        story.works()
    assert story.exits == [3] and "make test" in story.loop.reason


def test_nothing_is_checked_after_a_failure() -> None:
    story = Story(check="make test")
    story.fails(500)
    assert story.all(RunCheck) == []


def test_x_ends_the_check() -> None:
    story = Story(check="make test")
    story.world[RunCheck] = None
    story.works()
    story.take("-")
    story.press("x")
    assert story.take("-") == "StopCheck"
    story.tell(CheckFinished(1, -15, "", interrupted=True))
    assert story.take() == "CreateSession SendPrompt" and story.loop.check_failures == 0


# ── loop: people ─────────────────────────────────────────────────────────────────────────────────────────


def test_space_pauses_after_the_iteration_and_goes_on() -> None:
    story = Story()
    story.press("space")
    assert story.state == "pausing" and story.all(AbortSession) == []
    story.works()
    assert story.state == "paused"
    story.let_pass(60, 5)
    assert story.state == "paused" and len(story.all(SendPrompt)) == 1
    story.press("space")
    assert story.state == "running" and len(story.all(SendPrompt)) == 2


def test_space_takes_a_pause_back() -> None:
    story = Story()
    story.press("space", "space")
    story.works()
    assert story.states == ["starting", "running", "pausing", "running"] and story.loop.iterations == 2


def test_space_while_it_waits() -> None:
    story = Story()
    story.fails(500)
    story.press("space")
    assert story.state == "paused"
    story.let_pass(20)
    assert story.state == "paused"
    story.press("space")
    assert story.state == "running"


def test_a_failure_while_pausing_pauses() -> None:
    story = Story()
    story.press("space")
    story.fails(500)
    assert story.state == "paused" and story.loop.failures == 1


def test_r_does_not_wait() -> None:
    story = Story()
    story.fails(429)
    story.press("r")
    assert story.state == "running"


def test_r_starts_again_wherever_the_error_came_from() -> None:
    story = Story(model="a/c")
    assert story.state == "error"
    story.setup = SetupChecked("", {"a/c": 1}, None)
    story.take()
    story.press("r")
    assert story.take() == "StartServer CheckSetup CreateSession SendPrompt"
    assert story.states == ["starting", "error", "starting", "running"]
    for _ in range(5):
        story.fails(500)
        story.wait_out()
    story.fails(500)
    assert story.state == "error"
    story.press("r")
    assert story.state == "running" and story.loop.failures == 0


def test_an_error_with_a_terminal_stays_until_q() -> None:
    story = Story(model="a/c")
    assert story.exits == [] and story.last(StopServer)
    story.let_pass(60, 5)
    story.press("q")
    assert story.exits == [1] and story.state == "stopping"


def test_q_asks_once_while_an_iteration_runs() -> None:
    story = Story()
    story.press("q")
    assert story.loop.confirming_quit and story.state == "running"
    story.press("z")
    assert not story.loop.confirming_quit and story.state == "running"
    story.press("q", "q")
    assert story.state == "stopping" and story.exits == [130]


@pytest.mark.parametrize("state", ["ready", "paused", "waiting", "error", "complete"])
def test_q_does_not_ask_where_nothing_runs(state: str) -> None:
    story = in_state(state)
    story.press("q")
    assert story.state == "stopping" and len(story.exits) == 1


def test_nothing_is_done_after_the_end() -> None:
    story = Story()
    story.press("q", "q")
    story.take()
    story.press("s", "space", "r", "x", "t", "q", "?")
    story.tell(Tick(), Signalled("SIGTERM"), ScreenLost("gone"), ServerDied(1, "x"), SetupChecked())
    assert story.take("-") == "" and story.state == "stopping"


def test_x_aborts_the_iteration_and_the_next_one_begins() -> None:
    story = Story()
    story.busy()
    story.take()
    story.press("x")
    assert story.take() == "AbortSession CreateSession SendPrompt"
    assert story.state == "running" and story.loop.failures == 0


def test_x_before_there_is_a_session() -> None:
    story = Story(start=False)
    answer, story.world[CreateSession] = story.world[CreateSession], None
    story.carry_out(story.loop.start())
    story.world[CreateSession] = answer
    story.press("x")
    assert story.loop.iterations == 2 and story.state == "running"


def test_x_before_the_prompt_runs_waits_until_it_does() -> None:
    """An abort does nothing to a prompt that has not begun, so that two sessions would be at work."""
    story = Story(start=False)
    answer, story.world[SendPrompt] = story.world[SendPrompt], None
    story.carry_out(story.loop.start())
    story.world[SendPrompt] = answer
    story.take()
    story.press("x")
    story.let_pass(2)
    assert "AbortSession" not in story.take(), "the prompt is still on its way"
    story.tell(PromptAccepted("ses_1"))
    story.let_pass(1)
    assert "AbortSession" not in story.take(), "it has not begun"
    story.busy()
    story.busy()
    assert story.take().split().count("AbortSession") == 1
    assert story.loop.iterations == 2


def test_x_on_a_prompt_that_never_runs() -> None:
    story = Story()
    story.take()
    story.press("x")
    assert story.take() == ""
    story.let_pass(4)
    assert "AbortSession" in story.take() and story.loop.iterations == 2


def test_a_poll_that_fails_does_not_leave_its_session_running() -> None:
    story = Story()
    story.busy()
    story.world[Poll] = lambda c: RequestFailed("Poll", c.session, 429, "slow down")
    story.let_pass(6)
    assert "AbortSession" in story.take() and "1 failed" in story.text


def test_t_gives_the_terminal_to_the_session() -> None:
    story = Story()
    story.press("t")
    assert story.last(HandOver) == HandOver("ses_1")


def test_help_is_shown_until_the_next_key() -> None:
    story = Story()
    story.press("?")
    assert story.loop.help
    story.press("q")
    assert not story.loop.help and not story.loop.confirming_quit


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("state", ocloop.STATES)
def test_a_signal_ends_it_in_every_state(state: str, name: str) -> None:
    story = in_state(state)
    before = len(story.exits)
    expected = {"complete": 0, "error": 1}.get(state, 130)
    story.tell(Signalled(name))
    assert story.state == "stopping" and story.exits[before:] == ([] if state == "stopping" else [expected])


@pytest.mark.parametrize("state, status", [
    ("starting", 130), ("ready", 130), ("paused", 130), ("complete", 0), ("error", 1), ("stopping", None),
])
def test_a_lost_screen_where_only_a_person_could_go_on_leaves(state: str, status: int | None) -> None:
    story = in_state(state)
    before = len(story.exits)
    story.tell(ScreenLost("the terminal hung up"))
    assert story.exits[before:] == ([] if status is None else [status])


@pytest.mark.parametrize("state", ["running", "waiting"])
def test_a_lost_screen_where_something_is_under_way_goes_on_to_the_end(state: str) -> None:
    story = in_state(state)
    story.tell(ScreenLost("the terminal hung up"))
    story.let_pass(60)
    story.works()
    assert story.state == "running"
    story.works()
    assert story.state == "complete" and story.exits == [0]


def test_a_lost_screen_while_it_starts_goes_on_when_it_was_wanted() -> None:
    story = Story("- [ ] one\n", start=False)
    story.carry_out([command for command in story.loop.start() if not isinstance(command, StartServer)])
    story.tell(ScreenLost("the terminal hung up"), ServerReady(1, "http://127.0.0.1:4096", ""))
    assert story.state == "running" and story.exits == []


def test_a_lost_screen_while_pausing_leaves_after_the_iteration() -> None:
    story = in_state("pausing")
    story.tell(ScreenLost("the terminal hung up"))
    assert story.state == "pausing" and story.exits == []
    story.works()
    assert story.state == "stopping" and story.exits == [130]


def test_a_lost_screen_at_a_limit_leaves() -> None:
    story = Story("- [ ] a\n" * 9, max_iterations=1)
    story.works()
    story.tell(ScreenLost("gone"))
    assert story.exits == [3]


def test_a_lost_screen_refuses_what_is_asked() -> None:
    story = Story()
    story.asks()
    story.press("q")
    story.tell(ScreenLost("gone"))
    assert replies(story) == [("per_1", "reject")] and not story.loop.confirming_quit
    story.asks("per_2")
    assert replies(story)[-1] == ("per_2", "reject")


def test_a_lost_screen_and_then_an_error_leaves() -> None:
    story = Story()
    story.tell(ScreenLost("gone"))
    story.fails(401)
    assert story.exits == [1]


def in_state(state: str) -> Story:
    """A story that has come to this state."""
    story = Story("- [ ] one\n", run=state not in ("ready", "starting"), start=state != "starting")
    if state == "starting":                             # and nothing is answered yet
        story.commands += story.loop.start()
    elif state == "pausing":
        story.press("space")
    elif state == "paused":
        story.press("space")
        story.fails(500)
    elif state == "waiting":
        story.fails(500)
    elif state == "stopping":
        story.press("q", "q")
    elif state == "complete":
        story.plan = "- [x] one\n<plan-complete>done</plan-complete>"
        story.ends()
    elif state == "error":
        story.fails(401)
    assert story.state == state
    return story


# ── loop: time away ──────────────────────────────────────────────────────────────────────────────────────
# A gap between two events is a machine that slept: nothing that has a deadline may see it.


def test_no_deadline_fires_for_time_away() -> None:
    story = Story(stall_timeout=60, iteration_timeout=120, ask_timeout=60, max_time=500)
    story.busy()
    story.asks()
    story.now += 3600
    story.tell(Tick())
    assert story.all(AbortSession) == [] and list(story.loop.asks) == ["per_1"]
    assert story.loop.elapsed < 10 and story.state == "running"
    story.let_pass(70)
    assert replies(story) == [("per_1", "reject")], "deadlines go on where they were"


def test_a_wait_goes_on_where_it_was() -> None:
    story = Story()
    story.fails(429)
    story.let_pass(20)
    story.now += 3600
    story.tell(Tick())
    assert story.state == "waiting" and story.loop.wait_until - story.loop.now == pytest.approx(10, abs=1.5)


def test_a_file_system_that_does_not_answer_is_an_error() -> None:
    story = Story(interactive=False)
    story.busy()
    story.world[ReadFiles] = None
    story.let_pass(30, 5)
    assert story.state == "running"
    story.let_pass(15)
    assert story.exits == [1] and "does not answer" in story.loop.reason


def test_a_plan_is_not_gone_for_good_because_of_time_away() -> None:
    story = Story()
    story.plan = None
    story.let_pass(4)
    story.now += 3600
    story.tell(Tick())
    assert story.state == "running"


def test_after_time_away_the_session_is_looked_at() -> None:
    story = Story()
    story.busy()
    story.let_pass(6)
    story.take()
    story.now += 3600
    story.tell(Tick())
    assert "Poll" in story.take("ReadFiles")


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    story = Story(stall_timeout=60)
    story.busy()
    story.now -= 86_400
    story.let_pass(30)
    assert story.all(AbortSession) == [] and 0 <= story.loop.elapsed < 60
    story.works()
    assert story.loop.iterations == 2


# ── loop: the journal ────────────────────────────────────────────────────────────────────────────────────


def part(story: Story, id: str, type: str, session: str = "", **more: Any) -> None:
    story.event("message.part.updated", session, part={
        "id": id, "messageID": "msg_9", "sessionID": session or "ses_1", "type": type, **more})


def test_texts_thoughts_and_tools_are_journaled_once() -> None:
    story = Story()
    part(story, "prt_1", "reasoning", text="Hm")
    story.tell(Streamed("ses_1", "prt_1", "m."))
    assert [(live.kind, live.text) for live in view(story.loop, story.now).live] == [("think", "Hmm.")]
    for _ in range(2):
        part(story, "prt_1", "reasoning", text="Hmm, yes", time={"start": 1, "end": 2})
        part(story, "prt_2", "text", text="I begin.", time={"start": 1, "end": 2})
        part(story, "prt_3", "tool", tool="bash", state={"status": "running", "input": {"command": "make"}})
        part(story, "prt_3", "tool", tool="bash", state={
            "status": "completed", "input": {"command": "make"}, "time": {"start": 0, "end": 5000}})
        part(story, "prt_4", "tool", tool="read", state={
            "status": "error", "input": {"filePath": "/project/x"}, "error": "no such file"})
    said = [(entry.kind, " ".join(entry.text.split()), entry.tone) for entry in story.loop.journal
            if entry.kind in ("think", "text", "bash", "read")]
    assert said == [("think", "Hmm, yes", "dim"), ("text", "I begin.", ""), ("bash", "make 5s", ""),
                    ("read", "x failed: no such file", "bad")]
    assert not story.loop.iteration or not story.loop.iteration.live


def test_the_prompt_itself_is_not_shown_as_an_answer() -> None:
    story = Story()
    prompt = story.last(SendPrompt)
    story.event("message.updated", info={"id": prompt.message_id, "role": "user"})
    story.event("message.part.updated", part={"id": prompt.part_id, "messageID": prompt.message_id,
                                              "sessionID": "ses_1", "type": "text", "text": prompt.text})
    part(story, "prt_s", "text", text="Continue", synthetic=True, time={"end": 1})
    assert not view(story.loop, story.now).live and "text:" not in story.text


def test_what_a_subagent_does_is_indented() -> None:
    story = Story()
    story.event("session.created", "ses_child", info={"id": "ses_child", "parentID": "ses_1"})
    part(story, "prt_c", "text", "ses_child", text="I look", time={"end": 1})
    assert story.loop.journal[-1].depth == 1 and story.loop.journal[-1].text == "I look"


def test_todos_and_compactions_are_journaled() -> None:
    story = Story()
    story.event("todo.updated", todos=[{"content": "a", "status": "completed"},
                                       {"content": "b", "status": "in_progress"}])
    story.event("session.compacted")
    assert "todo: 1/2 b" in story.text and "compacted" in story.text


def test_an_error_is_journaled_once() -> None:
    story = Story()
    for _ in range(3):
        story.event("session.error", error=UNAUTHORIZED)
    assert story.text.count("APIError: scripted fault 401") == 1


def test_numbers_run_on_and_the_journal_is_capped() -> None:
    story = Story()
    for number in range(ocloop.JOURNAL + 10):
        story.tell(Noted("note", str(number)))
    numbers = [entry.number for entry in story.loop.journal]
    assert len(numbers) == ocloop.JOURNAL and numbers == list(range(numbers[0], story.loop.entries + 1))


def test_a_long_text_is_cut() -> None:
    story = Story()
    story.tell(Noted("note", "x" * 1_000_000))
    text = story.loop.journal[-1].text
    assert len(text) < ocloop.LONGEST_TEXT + 100 and "1000000" in text


def test_events_are_journaled_when_asked_for() -> None:
    for verbose in (False, True):
        story = Story(verbose=verbose)
        story.tell(ServerEvent("never.heard.of", {"a": 1}))
        assert ("never.heard.of" in story.text) is verbose


def test_a_run_ends_with_records() -> None:
    story = Story("- [ ] a\n- [BLOCKED: no key] b\n- [MANUAL] c\n", notify="mail")
    story.plan = "- [x] a\n- [BLOCKED: no key] b\n- [MANUAL] c\n<plan-complete>so it is</plan-complete>"
    story.ends()
    records = [entry.data for entry in story.loop.journal if entry.data]
    assert [record["record"] for record in records] == ["iteration", "run"]
    expected = ({"outcome": "done", "changed": True, "done": 1, "total": 1},
                {"status": 0, "summary": "so it is", "blocked": 1, "manual": 1})
    for record, facts in zip(records, expected):
        assert {name: record[name] for name in facts} == facts
    assert all(words in story.text for words in ("end: so it is", "blocked: b (no key)", "manual: c"))
    assert story.last(Notify).facts["OCLOOP_EVENT"] == "complete"


# ── view and layout ──────────────────────────────────────────────────────────────────────────────────────
# What a screen of a given size shows, as text. The golden ones stand at the end of this file.


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(picture: Picture, width: int, height: int, utf8: bool = True, scroll: Scroll | None = None) -> list[str]:
    return ["".join(text for _, text in row) for row in layout(picture, width, height, utf8, scroll)]


SCENERY = """# The plan

## Phase 1: foundations
- [x] Set up the project
- [ ] Write the parser
- [ ] Test the parser on every example of the specification, and on what people really write

## Phase 2: out into the world
- [BLOCKED: no key yet] Deploy it
- [MANUAL] Tell Bob
- [ ] Write the documentation
"""
SCENES = ("starting", "ready", "running", "pausing", "paused", "waiting", "stopping", "complete", "error",
          "permission",
          "question", "help", "quit")


def scenery(**options: Any) -> Story:
    """An iteration that went well, and one under way."""
    story = Story(SCENERY, model="a/b", **options)
    story.busy()
    part(story, "prt_1", "reasoning", text="I have to read the plan first.", time={"start": 1, "end": 2})
    part(story, "prt_2", "tool", tool="read",
         state={"status": "completed", "input": {"filePath": "/project/PLAN.md"}})
    part(story, "prt_3", "tool", tool="bash", state={
        "status": "error", "input": {"command": "make test"}, "error": "exit status 2",
        "time": {"start": 0, "end": 72_000}})
    story.let_pass(95, 5)
    story.event("todo.updated", todos=[{"content": "write it", "status": "in_progress"}, {"content": "test it"}])
    part(story, "prt_4", "tool", tool="edit", state={
        "status": "completed", "input": {"filePath": "/project/parser.py"},
        "metadata": {"filediff": {"additions": 120, "deletions": 3}}})
    part(story, "prt_5", "text",
         text="The parser is written:\nit reads **all** of the examples, [x] and [bold] too.",
         time={"start": 1, "end": 2})
    story.works(0.1234)
    story.event("session.created", "ses_child", info={"id": "ses_child", "parentID": "ses_2"})
    part(story, "prt_6", "tool", tool="task", state={"status": "running", "input": {"description": "look around"}})
    part(story, "prt_7", "tool", "ses_child", tool="grep", state={
        "status": "completed", "input": {"pattern": "def test_", "path": "/project/tests"}})
    part(story, "prt_8", "tool", tool="bash",
         state={"status": "running", "input": {"command": "python -m pytest -q"}})
    story.let_pass(42, 5)
    return story


def scene(name: str) -> Story:
    if name in ("starting", "ready"):
        story = Story(SCENERY, run=False, start=False)
        if name == "starting":
            story.world[StartServer] = None
        story.carry_out(story.loop.start())
        story.let_pass(7)
        return story
    story = scenery(max_iterations=2 if name == "paused" else 0)
    if name == "pausing":
        story.press("space")
    elif name == "paused":
        story.works(0.0766)
    elif name == "waiting":
        story.fails(429, "Rate limit reached: try again later")
    elif name == "stopping":
        story.press("q", "q")
    elif name == "complete":
        story.plan = SCENERY.replace("[ ]", "[x]")
        story.plan += "<plan-complete>The parser works.\nDeploying needs a key.</plan-complete>"
        story.message("stop", 0.25)
        story.ends()
    elif name == "error":
        story.plan = None
        story.let_pass(12)
    elif name == "permission":
        story.asks()
        story.asks("per_2")
    elif name == "question":
        story.event("question.asked", id="que_1", questions=[{"question": "In which language?", "options": [
            {"label": "English", "description": "As the plan says"}, {"label": "Local"}]}])
    elif name == "help":
        story.press("?")
    elif name == "quit":
        story.press("q")
    return story


def goldens() -> dict[str, str]:
    """All golden layouts; a row that is too long for this file goes on after a `+`."""
    found = {}
    for name in SCENES:
        story = scene(name)
        sizes = [(80, 24), (40, 12)] + ([(120, 40), (20, 5)] if name in ("running", "question") else [])
        for width, height in sizes:
            rows = [row.rstrip() for row in drawn(view(story.loop, story.now), width, height)]
            rows = [re.sub(r"(.{,99}\S)(?=.{11})", "\\1\n+", row, count=1) for row in rows]
            found[f"{name} {width}x{height}"] = "\n".join(rows)
    return found


def test_golden_layouts() -> None:
    found = goldens()
    for name, golden in GOLDEN.items():
        assert found[name].strip("\n") == golden.strip("\n"), name
    assert sorted(found) == sorted(GOLDEN)


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_says_where_it_stands(name: str) -> None:
    story = scene(name)
    picture = view(story.loop, story.now)
    word = "waits for you" if name in ("permission", "question") else story.state
    assert story.state == ("running" if name in ("permission", "question", "help", "quit") else name)
    first, *others = drawn(picture, 80, 24)
    assert word in first and len(others) == 23
    for width, height in ((80, 24), (40, 12)):
        assert any(re.search(r"\d+/\d+", row) for row in drawn(picture, width, height)[:4]), "its progress"


def test_what_matters_is_there_at_80x24() -> None:
    running = "\n".join(drawn(view(scene("running").loop, scene("running").now), 80, 24))
    for words in ("running", "iteration 2", "elapsed", "2/4", "50%", "1 blocked", "1 manual",
                  "Test the parser on every",
                  "a/b", "context", "$0.1234", "make test", "python -m pytest -q", "look around", "Q quit"):
        assert words in running, words
    asked = "\n".join(drawn(view(scene("permission").loop, scene("permission").now), 80, 24))
    for words in ("bash", "rm -r x", "Y once", "A always", "N no", "+1 more", "refused in"):
        assert words in asked, words
    over = "\n".join(drawn(view(scene("complete").loop, scene("complete").now), 80, 24))
    for words in ("The parser works.", "Deploying needs a key.", "Deploy it (no key yet)", "Tell Bob", "4 of 4"):
        assert words in over, words


def test_a_picture_is_equal_to_the_next_one_while_nothing_changes() -> None:
    story = scene("running")
    picture = view(story.loop, story.now)
    assert view(story.loop, story.now)[:-1] == picture[:-1]
    story.tell(Noted("note", "new"))
    assert view(story.loop, story.now).journal[-1].text == "new"


@pytest.mark.parametrize("state, keys", [
    ("ready", "S Space ? Q"), ("running", "Space X T ? Q"), ("pausing", "Space X T ? Q"), ("paused", "Space ? Q"),
    ("waiting", "Space R ? Q"), ("complete", "? Q"), ("error", "R ? Q"), ("starting", "S ? Q"),
])
def test_only_keys_that_do_something_are_offered(state: str, keys: str) -> None:
    story = in_state(state)
    assert {key for key, _ in view(story.loop, story.now).keys} <= set(keys.split())
    assert {"?", "Q"} <= {key for key, _ in view(story.loop, story.now).keys}


def test_a_low_screen_keeps_the_choices() -> None:
    story = Story()
    story.event("permission.asked", id="per_1", permission="bash", metadata={"command": "make " * 80})
    for height in range(4, 12):
        assert "Y once" in drawn(view(story.loop, story.now), 80, height)[-1], height


def test_a_low_screen_shows_answers_to_choose_from() -> None:
    story = Story()
    story.question("red", "green", "blue")
    for height in range(6, 14):
        rows = drawn(view(story.loop, story.now), 60, height)
        assert "N none" in rows[-1] and any("1 red" in row for row in rows), height
        assert height < 8 or any("3 blue" in row for row in rows), height


def test_colours_are_taken_out_of_what_is_shown() -> None:
    assert ocloop.printable("\x1b[91m\x1b[1mError: \x1b[0m\x1b]0;x\x07") == "Error: \ufffd]0;x\ufffd"


# ── layout: any size, any text ───────────────────────────────────────────────────────────────────────────

NASTY = ("\x1b[31mred\x1b[0m", "\x07", "\r", "\n", "\t", "\x00", "\x9b2J", "\x7f", "\x85", "\ud800", "\udfff",
         "\u202e",
         "\u2066", "\u200f", "\u061c", "\u200b", "\ufeff", "\u2028", "\u2029", "e\u0301", "\u0300" * 40,
         "\u6f22\u5b57" * 9,
         "\U0001f469\u200d\U0001f467", "[x] [bold]", "x" * 300, "word " * 60, " ", "", "\u00ad", "\uffff",
         "\U0010ffff",
         "\u1100\u1161", "\xa0", "$%s{}\\")
FORBIDDEN = ("Cc", "Cs", "Zl", "Zp")
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def nasty_text(rng: random.Random) -> str:
    return "".join(rng.choice(NASTY) for _ in range(rng.randrange(6)))


def nasty_entry(rng: random.Random, number: int) -> Entry:
    return Entry(number, rng.choice((0.0, NOON)), rng.choice(("text", "iter", "think", "bash", nasty_text(rng))),
                 nasty_text(rng), rng.choice(("", "dim", "good", "bad", "warn", "head")), rng.randrange(7))


def nasty_picture(rng: random.Random) -> Picture:
    story = BASE[rng.randrange(len(BASE))]
    big = rng.choice((0, 7, 10 ** 4, 10 ** 9))
    entries = tuple(nasty_entry(rng, n) for n in range(1, rng.randrange(30)))
    plan = ocloop.Plan()
    plan.done = plan.blocked = plan.manual = big
    plan.automatable, plan.percent = rng.choice((big, big + 5)), rng.choice((0, 100))
    return view(story.loop, story.now)._replace(
        state=rng.choice(list(ocloop.STATES)), reason=nasty_text(rng), plan=plan,
        task=rng.choice((None, ocloop.Task("pending", nasty_text(rng), "", nasty_text(rng)))),
        model=nasty_text(rng), agent=nasty_text(rng), state_seconds=big, iteration=rng.choice((0, big)),
        elapsed=big,
        average=big, spend=ocloop.Spend(float(big), big, big, big),
        context=rng.choice((-1, 0, 100)),
        live=tuple(nasty_entry(rng, 0) for _ in range(rng.randrange(5))),
        ask=tuple(nasty_text(rng) for _ in range(rng.choice((0, 0, 3, 12)))), help=rng.random() < 0.1,
        confirming_quit=rng.random() < 0.1, newest=len(entries), journal=entries)


BASE: list[Story] = []


def check_rows(picture: Picture, width: int, height: int, utf8: bool, scroll: Scroll | None = None) -> None:
    rows = drawn(picture, width, height, utf8, scroll)
    assert len(rows) <= height
    for row in rows:
        assert text_width(row) <= width, (width, row)
        bad = [char for char in row if char in BIDI or unicodedata.category(char) in FORBIDDEN]
        assert not bad, (bad, row)
        assert utf8 or row.isascii(), row


def test_layout_at_every_small_size() -> None:
    stories = [scene(name) for name in SCENES]
    for story in stories:
        picture = view(story.loop, story.now)
        for width in range(13):
            for height in range(13):
                check_rows(picture, width, height, True)
                check_rows(picture, width, height, False)


def test_layout_of_anything_at_any_size() -> None:
    rng = random.Random(4)
    BASE.extend(scene(name) for name in ("running", "question", "complete"))
    for number in range(400):
        picture = nasty_picture(rng)
        width, height = rng.choice(((rng.randrange(30), rng.randrange(12)),
                                    (rng.randrange(500), rng.randrange(200))))
        scroll = Scroll()
        for _ in range(rng.randrange(3)):
            scroll.moved = rng.choice((-1, 1, -10, 10, -10 ** 9, 10 ** 9))
            check_rows(picture, width, height, number % 2 == 0, scroll)
        check_rows(picture, width, height, number % 2 == 0)


def test_markup_is_text() -> None:
    story = scene("running")
    story.tell(Noted("note", "[x] [bold]not bold[/bold] <b> %s {0} \\n"))
    rows = drawn(view(story.loop, story.now), 100, 30)
    assert any("[x] [bold]not bold[/bold] <b> %s {0} \\n" in row for row in rows)


def test_escape_sequences_are_disarmed_but_said() -> None:
    story = Story("- [ ] \x1b]0;title\x07 task\n")
    part(story, "prt_1", "tool", tool="\x1b[2Jx", state={"status": "completed", "input": {"command": "\x1b[2J"}})
    story.asks()
    rows = "\n".join(drawn(view(story.loop, story.now), 80, 24))
    assert "\x1b" not in rows and "\x07" not in rows and "]0;title" in rows and "[2J" in rows


def test_an_entry_with_a_strange_kind_is_logged_without_control_characters() -> None:
    log = ocloop.Log("x.log", lambda event: None)
    line = log.line(Entry(1, NOON, "\x1b[2J\n", "a\nb\x1b[2J"))
    assert not re.search(r"[\x00-\x1f]", line)


@pytest.mark.parametrize("text, width", [
    ("abc", 3), ("\u6f22\u5b57", 4), ("e\u0301", 1), ("\u00e9", 1), ("\uff21", 2), ("\u200b", 0), ("", 0),
    ("\u2500\u2588", 2),
    ("\U0001f600", 2),
])
def test_text_width(text: str, width: int) -> None:
    assert text_width(text) == width


@pytest.mark.parametrize("text, width, expected", [
    ("abc", 2, "ab"), ("abc", 0, ""), ("abc", -1, ""), ("abc", 9, "abc"), ("\u6f22\u5b57", 3, "\u6f22"),
    ("\u6f22\u5b57", 1, ""), ("e\u0301x", 1, "e\u0301"),
])
def test_clip(text: str, width: int, expected: str) -> None:
    assert ocloop.clip(text, width) == expected


@pytest.mark.parametrize("text, width, lines", [
    ("one two three", 7, ["one two", "three"]), ("one two three", 8, ["one two", "three"]), ("", 5, [""]),
    ("abcdefghij", 4, ["abcd", "efgh", "ij"]), ("a\n\nb", 5, ["a", "", "b"]),
    ("\u6f22\u5b57\u6f22", 4, ["\u6f22\u5b57", "\u6f22"]),
])
def test_wrap(text: str, width: int, lines: list[str]) -> None:
    assert ocloop.wrap(text, width) == lines


# ── layout: scrolling ────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """Somebody who looks at the activity of a story with numbered lines."""

    def __init__(self, lines: int) -> None:
        self.story, self.scroll, self.size = Story(), Scroll(), (80, 24)
        self.add(lines)

    def add(self, lines: int, text: str = "") -> None:
        for _ in range(lines):
            self.story.tell(Noted("note", f"<{self.story.loop.entries + 1}>{text}"))

    def look(self, moved: int = 0) -> list[int]:
        """The numbers of the lines that are shown."""
        self.scroll.moved += moved
        self.rows = drawn(view(self.story.loop, self.story.now), *self.size, scroll=self.scroll)
        return [int(number) for row in self.rows for number in re.findall(r"<(\d+)>", row)]

    @property
    def below(self) -> int:
        """How many lines are below, as the screen says."""
        match = re.search(r"(\d+) more line", "\n".join(self.rows))
        return int(match.group(1)) if match else 0


def test_the_tail_is_followed() -> None:
    reader = Reader(100)
    last = reader.story.loop.entries
    assert reader.look()[-1] == last and reader.below == 0
    reader.add(3)
    assert reader.look()[-1] == last + 3


def test_scrolling_keeps_its_place_and_says_what_is_below() -> None:
    reader = Reader(100)
    last = reader.story.loop.entries
    seen = reader.look(-10)
    assert seen[-1] == last - 10 and reader.below == 10 and seen == list(range(seen[0], seen[-1] + 1))
    reader.add(5)
    assert reader.look() == seen and reader.below == 15
    assert reader.look(-1)[-1] == seen[-1] - 1 and reader.below == 16
    assert reader.look(2)[-1] == seen[-1] + 1
    assert reader.look(10 ** 9)[-1] == last + 5 and reader.below == 0
    reader.add(1)
    assert reader.look()[-1] == last + 6, "at the end the tail is followed again"


def test_the_beginning_can_be_seen() -> None:
    reader = Reader(100)
    first = drawn(view(reader.story.loop, reader.story.now), 80, 1000)
    begin = next(row for row in first if "08:00:00" in row)
    reader.look(-10 ** 9)
    assert begin in reader.rows and reader.below > 50
    top = list(reader.rows)
    reader.look(-1)
    assert reader.rows == top


def test_a_page_up_and_a_page_down_lead_back() -> None:
    reader = Reader(100)
    reader.look(-30)
    seen = reader.look()
    reader.look(-10)
    assert reader.look(10) == seen


@pytest.mark.parametrize("size", [(80, 40), (50, 24), (120, 12)])
def test_a_resize_keeps_the_place(size: tuple[int, int]) -> None:
    reader = Reader(0)
    reader.add(60, " some words that are long enough to be wrapped on any screen that is not very wide" * 2)
    reader.look(-40)
    place = reader.scroll.entry
    reader.size = size
    reader.look()
    assert place and reader.scroll.entry == place
    reader.size = (80, 24)
    reader.look()
    assert reader.scroll.entry == place


def test_few_lines_cannot_be_scrolled() -> None:
    reader = Reader(2)
    seen = reader.look()
    assert reader.look(-5) == seen and reader.below == 0
    reader.add(1)
    assert reader.look() == [*seen, reader.story.loop.entries]


# ── fuzz: plans and event streams ────────────────────────────────────────────────────────────────────────

PIECES = ("- [ ] ", "- [x] ", "* [X] ", "1. [ ] ", "- []", "- [MANUAL] ", "- [BLOCKED: ", "[MANUAL: x] ", "] ",
          "[", "]", "**",
          "```", "~~~~", "`", "<!--", "-->", "<plan-complete>", "</plan-complete>", "# ", "## b #", "\n", "\n",
          "\n", "\r\n",
          "\r", "\u2028", "\x85", "\f", "\ufeff", "\t", "    ", "word", "(u)", "\x00", "\ud800", "<", ":",
          "blocked")


def test_fuzz_plans() -> None:
    rng = random.Random(1)
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(8_000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(40)))
        plan = parse_plan(text)
        states = [task.state for task in plan.tasks]
        assert plan.done + plan.pending + plan.manual + plan.blocked == len(states)
        assert set(states) <= {"pending", "done", "manual", "blocked"}
        assert plan.automatable == plan.done + plan.pending and 0 <= plan.percent <= 100
        assert all(task.text and "\n" not in task.text and task.text == task.text.strip() for task in plan.tasks)
        assert (plan.current is None) == (plan.pending == 0)
        again = parse_plan(text)
        assert (again.tasks, again.summary) == (plan.tasks, plan.summary)
        other = parse_plan(text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n"))
        assert (other.tasks, other.summary) == (plan.tasks, plan.summary), "line ends make no difference"
        if text[:1] != "\ufeff":
            assert parse_plan("\ufeff" + text).tasks == plan.tasks
        tasks = [task for task in plan.tasks if safe(task.text)]
        written = parse_plan("".join(f"- {BOXES[task.state]} {task.text}\n" for task in tasks))
        assert [task[:2] for task in written.tasks] == [task[:2] for task in tasks]
        seen.update(states, complete=plan.summary is not None)
    hits = [seen[state] for state in ("pending", "done", "manual", "blocked", "complete")]
    assert min(hits) > 10, "it must hit something"


BOXES = {"pending": "[ ]", "done": "[x]", "manual": "[MANUAL]", "blocked": "[BLOCKED]"}


def safe(text: str) -> bool:
    """Whether a task's text means the same when it is written anew."""
    return not re.search(r"<|-->|`|^\*\*\[|^\[", text)


def test_fuzz_event_streams() -> None:
    rng = random.Random(2)
    pieces = (b"data: ", b"data:", b"data", b"event: x", b"event", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n",
              b"\r\n\r\n", b"a",
              b"{\"type\":", b"\xe2\x80\xa8", b"\xff", b"\xef\xbb\xbf", b"id: 3\n", b"\x00")
    found = 0
    for _ in range(3000):
        stream = b"".join(rng.choice(pieces) for _ in range(rng.randrange(30)))
        events = feed([stream])
        found += len(events)
        assert events == feed(stream[n:n + 1] for n in range(len(stream)))
        for _ in range(5):
            cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(6)))
            assert events == feed(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)]))
        rest = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert events == feed([rest]) or rest.startswith(b"\xef\xbb\xbf"), "line ends make no difference"
    assert found > 1000, "it must hit something"


# ── fuzz: the loop ───────────────────────────────────────────────────────────────────────────────────────
# A world that answers, answers late, twice, wrongly or never, and says anything in between.

WORDS = ("", "ses_1", "msg_1", "idle", "busy", "retry", "assistant", "user", "running", "completed", "error",
         "text", "tool",
         "unknown", "stop", "tool-calls", "bash", "\ud800", "\x1b[2J")
TYPES = ("session.created", "session.status", "session.idle", "session.error", "message.updated",
         "message.part.updated",
         "permission.asked", "permission.updated", "question.asked", "permission.replied", "question.replied",
         "question.rejected", "todo.updated", "session.compacted", "file.edited", "never.heard.of")
NAMES = ("sessionID", "info", "part", "status", "error", "id", "todos", "questions", "options", "patterns",
         "metadata", "state",
         "input", "time", "tokens", "cache", "parentID", "type", "role", "finish", "name", "data", "statusCode",
         "next", "label",
         "attempt", "completed", "end", "messageID", "tool", "requestID", "cost", "file", "content", "filediff",
         "synthetic")
PLANS = ("- [ ] a\n- [ ] b\n", "- [x] a\n- [ ] b\n", "- [x] a\n- [x] b\n", "- [x] a\n- [BLOCKED: c] b\n",
         "- [x] a\n- [x] b\n<plan-complete>done</plan-complete>", "- [ ] a\n<plan-complete>early</plan-complete>",
         "", None)
KEYS = ("s", "space", "space", "space", "r", "x", "t", "q", "y", "a", "n", "1", "2", "?", "z", "\u00b2", "\x1b",
        "")


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value, of names that mean something now and then."""
    kind = rng.randrange(10 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(WORDS)
    if kind < 6:
        return rng.choice((None, True, False, 0, 1, -1, 429, 1e300, float("nan"), 10 ** 30, 2_000_000_000_000))
    if kind == 6:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): anything(rng, depth + 1) for _ in range(rng.randrange(6))}


Table = dict[tuple[str, str], tuple[set[str], set[str]]]      # (state, event) -> next states, commands


class Chaos:
    """A loop in a world without manners."""

    def __init__(self, rng: random.Random, seen: Table) -> None:
        self.rng, self.seen, self.now = rng, seen, NOON
        self.plan: str | None = PLANS[0]
        self.sessions = 0
        self.open = ""                                  # the session that was prompted and not ended since
        self.exits = 0
        self.prompts: dict[str, SendPrompt] = {}
        self.pending: list[Command] = []
        self.hung = False                               # the file system
        self.look = 0                                   # what the messages say when it is looked at
        self.loop = Loop(Options(
            plan="/p", run=rng.random() < 0.7, interactive=rng.random() < 0.8, debug=rng.random() < 0.1,
            auto=rng.random() < 0.2, verbose=rng.random() < 0.2, max_iterations=rng.choice((0, 0, 2)),
            max_cost=rng.choice((0, 0, 1.0)), max_time=rng.choice((0, 0, 60)), stuck=rng.choice((0, 2, 5)),
            retries=rng.choice((0, 1, 5)), check=rng.choice(("", "", "make")), notify=rng.choice(("", "mail")),
            iteration_timeout=rng.choice((0, 60)), stall_timeout=rng.choice((0, 60)),
            server=rng.choice(("", "", "http://x")),
            model=rng.choice(("", "", "a/b")), ask_timeout=rng.choice((0, 30))), self.now, "chaos")
        self.note_commands(self.loop.start())

    def step(self, event: Event | None = None) -> bool:
        """One event, a random one; whether the run still goes on."""
        rng, before = self.rng, self.loop.state
        self.now += rng.choice((0.0, 0.1, 0.1, 0.5, 2.0, 5.0, 9.0, rng.choice((0.1, 3.0, 40.0, 4000.0, -5.0))))
        if rng.random() < 0.02:
            self.plan = rng.choice(PLANS)
        event = self.event() if event is None else event
        commands = self.loop.handle(event, self.now)
        after = self.loop.state
        assert after in ocloop.STATES
        assert self.loop.iteration is None or after in ("running", "pausing", "stopping"), after
        assert len([c for c in commands if isinstance(c, Exit)]) <= 1
        if after != before:
            next_states, kinds = self.seen.setdefault((before, type(event).__name__), (set(), set()))
            next_states.add(after)
            kinds.update(type(command).__name__ for command in commands if not isinstance(command, Notify))
        self.note_commands(commands)
        if rng.random() < 0.1:
            view(self.loop, self.now)
        return not self.exits

    def note_commands(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, (CreateSession, SendPrompt)):
                assert self.loop.state in ("running", "pausing"), self.loop.state
            if isinstance(command, SendPrompt):
                assert self.open in ("", command.session), "two sessions at once"
                self.open = command.session
                known = self.prompts.setdefault(command.message_id, command)
                assert known == command, "an id stands for one prompt in one session"
            elif isinstance(command, (Measure, AbortSession, StopServer, StartServer)):
                self.open = ""
            self.exits += isinstance(command, Exit)
        self.pending = (self.pending + list(commands))[-12:]

    def session(self) -> str:
        """The one under way mostly."""
        return self.rng.choice((f"ses_{self.sessions}",) * 6 + ("ses_1", "ses_child", "ses_stranger"))

    def event(self) -> Event:
        rng, dice = self.rng, self.rng.random()
        if dice < 0.50 and self.pending:
            command = self.pending.pop(rng.randrange(len(self.pending)))
            if rng.random() < 0.05:
                self.pending.append(command)            # it is answered twice
            event = self.answer(command)
            if event is not None:
                return event
        if dice < 0.72:
            return self.server_event()
        if dice < 0.80 and self.loop.interactive:
            return Key(rng.choice(KEYS))
        if dice < 0.97:
            return Tick()
        return rng.choice((
            StreamOpened(), Streamed(self.session(), "prt_1", "x"), Noted("warn", "x"),
            ServerDied(self.loop.generation, "it died", ("x",), rng.random() < 0.2),
            ServerReady(rng.randrange(4), "http://x", ""),
            SetupChecked(), FilesRead(rng.randrange(99), rng.choice(PLANS), "Do it", ""),
            SessionCreated(rng.randrange(5), "ses_1"),
            PromptAccepted(self.session()), SessionAborted(self.session()), Measured(self.session(), 1.0, 9999),
            CheckFinished(rng.randrange(5), 0, "x"), RequestFailed("Poll", self.session(), 0, "x"),
            self.answer(Poll(self.session())) or Tick(),
            ScreenLost("gone") if rng.random() < 0.5 else Noted("note", "x")))

    def answer(self, command: Command) -> Event | None:
        rng, name, session = self.rng, type(command).__name__, str(getattr(command, "session", ""))
        if rng.random() < 0.07 and not isinstance(command, (StartServer, StopServer, ReadFiles, Exit, HandOver)):
            return RequestFailed(name, session, rng.choice((0, 0, 400, 401, 404, 500)), "it failed",
                                 rng.choice(("", "ConfigJsonError", "NotFoundError")))
        if isinstance(command, StartServer):
            return ServerReady(command.generation, "http://x", "1") if rng.random() < 0.85 else ServerDied(
                command.generation, "it died", (), rng.random() < 0.3)
        if isinstance(command, CheckSetup):
            bad = rng.random() < 0.1
            return SetupChecked("", {}, []) if bad else SetupChecked("a/b", rng.choice((None, {"a/b": 9})), None)
        if isinstance(command, ReadFiles):
            self.hung = self.hung or rng.random() < 0.003
            return None if self.hung else FilesRead(command.number, self.plan, rng.choice(("Do it",) * 40 + ("", None)),
                             "" if self.plan is not None else "it is gone")
        if isinstance(command, CreateSession):
            self.sessions += 1
            return SessionCreated(command.iteration, f"ses_{self.sessions}")
        if isinstance(command, SendPrompt):
            return PromptAccepted(session)
        if isinstance(command, Poll):
            if rng.random() < 0.5:
                self.plan = rng.choice(PLANS[:4]) if rng.random() < 0.5 else self.plan
            own = self.loop.iteration.prompt.message_id if self.loop.iteration else "msg_1"
            error = {"name": "APIError", "data": {"message": "x", "statusCode": rng.choice((401, 429, 500))}}
            if rng.random() < 0.4:                      # else it looks as it did the last time
                self.look = rng.randrange(8)
            last = (assistant(own, "stop"), assistant(own, "stop"), assistant(own, error=error), assistant(own),
                    assistant(own, "tool-calls"), assistant(own, completed=False), user(own), anything(rng))[self.look]
            return Polled(session, rng.choice(("idle", "idle", "busy", "retry", "unknown")),
                          {"next": (self.now + rng.choice((5, 5000))) * 1000}, rng.choice((None, [
                              ocloop.digest(m) for m in (user(own), last) if isinstance(m, dict)])),
                          rng.choice(((), ["ses_child"])))
        if isinstance(command, AbortSession):
            return SessionAborted(session)
        if isinstance(command, Measure):
            return Measured(session, rng.choice((None, 0.3)), rng.choice((0, 0, 9999)))
        if isinstance(command, RunCheck):
            return CheckFinished(command.iteration, rng.choice((0, 0, 1)), "output", rng.random() < 0.1)
        return None

    def server_event(self) -> Event:
        rng, session = self.rng, self.session()
        if rng.random() < 0.15:
            return ServerEvent(rng.choice(TYPES), dict(ocloop.as_dict(anything(rng)), sessionID=session))
        number = rng.randrange(99)
        return rng.choice((
            ServerEvent("session.idle", {"sessionID": session}),
            ServerEvent("session.status",
                        {"sessionID": session, "status": {"type": rng.choice(("busy", "idle"))}}),
            ServerEvent("session.status", {"sessionID": session, "status": {
                "type": "retry", "attempt": number % 5, "next": (self.now + rng.choice((5, 5000))) * 1000}}),
            ServerEvent("session.created",
                        {"sessionID": "ses_child", "info": {"id": "ses_child", "parentID": session}}),
            ServerEvent("session.error",
                        {"sessionID": session, "error": rng.choice((UNAUTHORIZED, ABORTED, OVERFLOW))}),
            ServerEvent("message.updated", {"sessionID": session, "info": {
                "id": f"msg_{number}", "role": "assistant", "cost": 0.1, "time": {"completed": 1},
                "finish": rng.choice(("stop", "tool-calls", "unknown"))}}),
            ServerEvent("message.part.updated", {"sessionID": session, "part": {
                "id": f"prt_{number}", "messageID": "msg_1", "type": "tool", "tool": "bash",
                "state": {"status": rng.choice(("running", "completed"))}}}),
            ServerEvent("permission.asked", {"sessionID": session, "id": f"per_{number}", "permission": "bash"}),
            ServerEvent("question.asked", {"sessionID": session, "id": f"que_{number}", "questions": [
                {"question": "?", "options": [{"label": "a"}]}] * rng.randrange(3)}),
            ServerEvent("permission.replied", {"sessionID": session, "requestID": f"per_{number}"})))


EVENTS = 100_000


@pytest.fixture(scope="module")
def explored() -> Table:
    """The transitions of 100,000 random events."""
    seen: Table = {}
    rng, told = random.Random(5), 0
    while told < EVENTS:
        chaos = Chaos(rng, seen)
        for _ in range(rng.randrange(rng.choice((10, 100, 400)))):
            told += 1
            if not chaos.step():
                break
        else:
            died = ServerDied(chaos.loop.generation, "it died", (), True)
            chaos.step(rng.choice((Signalled("SIGTERM"), ScreenLost("gone"), died)))
    return seen


def table_of(text: str) -> Table:
    """Read a transition table: `state,…  Event,…  next states  commands`."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.strip().split("\n")]
    return {(state, event): ({*after.split()}, {*commands.split()})
            for states, events, after, commands in rows for state in states.split(",") for event in events.split(",")}


def table_text(table: Table) -> str:
    """A transition table, in the order of states and of handlers."""
    events = [event.__name__ for event in ocloop.HANDLERS]
    kinds = [kind.__name__
             for kind in (StartServer, StopServer, CheckSetup, ReadFiles, CreateSession, SendPrompt, Poll,
                                        AbortSession, Measure, Reply, RunCheck, StopCheck, Notify, HandOver, Exit)]
    keys = sorted(table, key=lambda key: (list(ocloop.STATES).index(key[0]), events.index(key[1])))
    return "\n".join("{:<9} {:<15} {:<41} {}".format(
        state, " " + event, " " + (" ".join(sorted(table[state, event][0], key=list(ocloop.STATES).index)) or "-"),
        " " + (" ".join(sorted(table[state, event][1], key=kinds.index)) or "-")) for state, event in keys)


def test_the_transition_table_and_the_code_agree(explored: Table) -> None:
    table = table_of(ocloop.TRANSITIONS)
    assert sorted(table) == sorted(explored), "observed was\n" + table_text(explored)
    for key, (states, commands) in explored.items():
        assert states <= table[key][0] and commands <= table[key][1], f"{key}: observed was {states} {commands}"


def test_every_state_is_left_and_reached(explored: Table) -> None:
    assert {state for state, _ in explored} == set(ocloop.STATES) - {"stopping"}
    assert set().union(*(states for states, _ in explored.values())) == set(ocloop.STATES)


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────
# `--verbose --log x.jsonl` records what the loop was told: enough to live it through again.


def replay(lines: Iterable[str]) -> Loop:
    """A loop that was told what the records say."""
    loop: Loop | None = None
    for line in lines:
        record = json.loads(line)
        if record["kind"] == "start":
            options = {**record["options"], "opencode": tuple(record["options"]["opencode"])}
            loop = Loop(Options(**options), record["now"], record["seed"])
            loop.start()
        elif record["kind"] == "input" and loop:
            loop.handle(getattr(ocloop, record["event"])(**record["fields"]), record["now"])
    assert loop, "there is no start in these records"
    return loop


def recorded(story: Story, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that a run would have written: ticks that nothing came of are left out, but for one in 5 s."""
    lines = [json.dumps({"kind": "start", "now": story.began, "seed": "seed0001",
                         "options": story.options._asdict()})]
    log = ocloop.Log("x.jsonl", lambda event: None)
    monkeypatch.setattr(log, "write", lines.extend)
    last = 0.0
    for now, event, noisy in story.told:
        if noisy or now - last > 5 or not isinstance(event, Tick):
            last = now
            log.record(now, "input", event=type(event).__name__, fields=event._asdict())
    return lines


def lived(loop: Loop) -> tuple[Any, ...]:
    return (loop.state, loop.reason, loop.iterations, loop.total, loop.status,
            [(entry.number, entry.kind, entry.text, entry.tone, entry.depth, entry.session)
             for entry in loop.journal])


@pytest.mark.parametrize("name", SCENES)
def test_replay_of_a_scene(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story = scene(name)
    assert lived(replay(recorded(story, monkeypatch))) == lived(story.loop)


def test_replay_of_a_night(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story("- [ ] a\n" * 30, stall_timeout=60, verbose=True, check="make test", max_cost=9.0,
                  ask_timeout=30)
    for n in range(20):
        story.check = n % 3 == 1
        story.busy()
        story.asks(f"per_{n}")
        story.let_pass(40)
        if n % 4 == 0:
            story.let_pass(100)
        elif n % 4 == 1:
            story.fails(429 if n % 8 == 1 else 500)
        else:
            story.works(0.3)
        story.let_pass(70)
        if n == 7:
            story.tell(ServerDied(story.loop.generation, "it died", ("x",)))
        if n == 9:
            story.busy()
            story.now += 3600
    assert {"waiting", "running"} <= set(story.states)
    assert lived(replay(recorded(story, monkeypatch))) == lived(story.loop)


# ── drivers ────────────────────────────────────────────────────────────────────────────────────────────────
# A Screen is what a terminal would show, a Child is one ocloop whose output goes to a file, a Terminal is one
# that sits in a pseudo-terminal, and a World is what surrounds them in one test.


def until(condition: Callable[[], Any], what: str, timeout: float = LONG, said: Callable[[], str] = str) -> Any:
    """Wait for something and return it; fail with what was said meanwhile when it does not come."""
    end = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout:.0f} s for {what}; there was:\n{said()}")
        time.sleep(0.03)


def marked(mark: str) -> dict[int, str]:
    """The processes that carry the mark in their environment: pid -> command line."""
    found = {}
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and mark.encode() in Path("/proc", name, "environ").read_bytes():
                line = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(name)] = line.decode("utf-8", "replace")
    return found


class Screen:
    """As much of a terminal as ncurses makes use of: a grid of characters and the sequences that change it."""

    SEQUENCE = re.compile(
        r"\x1b\[([?>]?)([\d;]*)([@-~])|\x1b\]([^\x07\x1b]*)(?:\x07|\x1b\\)|\x1b[()][0-9A-Z]|\x1b([=>78MDEc])"
        r"|([\x00-\x1a\x1c-\x1f\x7f])|([^\x00-\x1f\x7f]+)"
    )

    def __init__(self, width: int, height: int) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""
        self.title = ""
        self.alternate = False
        self.saved = (0, 0)
        self.x = self.y = 0
        self.grid: list[list[str]] = []
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Lines are cut or filled up, as a terminal does."""
        self.width, self.height = width, height
        self.grid = [(row + [" "] * width)[:width] for row in self.grid[:height]]
        self.grid += [[" "] * width for _ in range(height - len(self.grid))]
        self.top, self.bottom = 0, height - 1
        self.x, self.y = min(self.x, width - 1), min(self.y, height - 1)

    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.grid)

    def feed(self, data: bytes) -> None:
        text, at = self.rest + self.decoder.decode(data), 0
        while at < len(text):
            found = self.SEQUENCE.match(text, at)
            if not found:
                if text[at] == "\x1b" and len(text) - at < 200:
                    break  # the rest of a sequence is still to come
                at += 1
                continue
            at = found.end()
            private, numbers, final, title, escape, control, plain = found.groups()
            if plain:
                self.write(plain)
            elif control:
                self.control(control)
            elif final:
                self.csi(private, [int(n or 0) for n in numbers.split(";")], final)
            elif title is not None:
                self.title = title.partition(";")[2]
            elif escape == "M":
                self.up()
            elif escape == "7":
                self.saved = (self.x, self.y)
            elif escape == "8":
                self.x, self.y = self.saved
        self.rest = text[at:]

    def write(self, text: str) -> None:
        for char in text:
            if unicodedata.combining(char):
                continue
            wide = 2 if unicodedata.east_asian_width(char) in "WF" else 1
            if self.x + wide > self.width:
                self.x = 0
                self.down()
            self.grid[self.y][self.x] = char
            if wide == 2:
                self.grid[self.y][self.x + 1] = ""
            self.x += wide
            self.last = char

    def control(self, control: str) -> None:
        if control == "\r":
            self.x = 0
        elif control == "\n":
            self.down()
        elif control == "\b":
            self.x = max(0, min(self.x, self.width - 1) - 1)
        elif control == "\t":
            self.x = min(self.width - 1, self.x // 8 * 8 + 8)

    def down(self) -> None:
        if self.y == self.bottom:
            self.scroll(1)
        else:
            self.y = min(self.y + 1, self.height - 1)

    def up(self) -> None:
        if self.y == self.top:
            self.scroll(-1)
        else:
            self.y = max(self.y - 1, 0)

    def scroll(self, lines: int, top: int = -1) -> None:
        """Move what lies between `top` (else the region's top) and the region's bottom up, or down."""
        top = self.top if top < 0 else top
        for _ in range(min(abs(lines), self.height)):
            del self.grid[top if lines > 0 else self.bottom]
            self.grid.insert(self.bottom if lines > 0 else top, [" "] * self.width)

    def csi(self, private: str, numbers: list[int], final: str) -> None:
        n = numbers[0] or 1
        self.x = min(self.x, self.width - 1)
        row = self.grid[self.y]
        if private == "?" and final in "hl":
            if 1049 in numbers or 47 in numbers:
                self.alternate = final == "h"
                self.grid = [[" "] * self.width for _ in range(self.height)]
        elif final in "Hf":
            column = numbers[1] if len(numbers) > 1 else 1
            self.y, self.x = min(n, self.height) - 1, min(max(column, 1), self.width) - 1
        elif final in "G`":
            self.x = min(n, self.width) - 1
        elif final == "d":
            self.y = min(n, self.height) - 1
        elif final in "AB":
            self.y = max(0, min(self.height - 1, self.y + (n if final == "B" else -n)))
        elif final in "CD":
            self.x = max(0, min(self.width - 1, self.x + (n if final == "C" else -n)))
        elif final in "JK":
            first = 0 if numbers[0] else self.x
            last = self.x + 1 if numbers[0] == 1 else self.width
            row[first:last] = [" "] * (last - first)
            if final == "J":
                for y in {0: range(self.y + 1, self.height), 1: range(self.y)}.get(numbers[0], range(self.height)):
                    self.grid[y] = [" "] * self.width
        elif final == "X":
            row[self.x : self.x + n] = [" "] * min(n, self.width - self.x)
        elif final == "P":
            row[self.x : self.x + n] = []
            row += [" "] * (self.width - len(row))
        elif final == "@":
            row[self.x : self.x] = [" "] * n
            del row[self.width :]
        elif final in "LM":
            self.scroll(n if final == "M" else -n, self.y)
        elif final in "ST":
            self.scroll(n if final == "S" else -n)
        elif final == "b":
            self.write(self.last * n)
        elif final == "r":
            self.top, self.bottom = n - 1, (numbers[1] if len(numbers) > 1 else self.height) - 1
            self.x = self.y = 0


class Child:
    """A running program, ocloop as a rule. Its output goes to a file; `finish` is how a test ends it."""

    def __init__(self, world: World, argv: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        self.world = world
        self.project = cwd
        self.mark = f"OCLOOP_TEST={uuid.uuid4().hex}"
        self.env = {**env, "OCLOOP_TEST": self.mark.partition("=")[2]}
        self.path = world.folder / f"output-{len(world.children)}.txt"
        self.log = world.folder / f"log-{len(world.children)}.jsonl"
        self.requests_path = world.folder / f"requests-{len(world.children)}.jsonl"
        world.children.append(self)
        self.process = self.spawn([part.replace("{log}", str(self.log)) for part in argv])

    def spawn(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        with open(self.path, "wb") as file:
            return subprocess.Popen(argv, cwd=self.project, env=self.env, stdin=subprocess.DEVNULL, stdout=file,
                                    stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.path.read_text("utf-8", "replace")

    def wait_for(self, pattern: str, timeout: float = LONG) -> str:
        """Wait until the output (the screen, in a terminal) has a match; returns it."""
        return str(self.until(lambda: re.search(pattern, self.shown()), repr(pattern), timeout).group())

    def until(self, condition: Callable[[], Any], what: str, timeout: float = LONG) -> Any:
        """Wait for something that cannot come any more once the program has ended."""

        def look() -> Any:
            ended = self.process.poll() is not None
            found = condition()
            if ended and not found:
                time.sleep(0.3)  # the reader of a terminal may be a little behind
                found = condition()
                if not found:
                    pytest.fail(f"it ended with {self.process.poll()} before {what}:\n{self.everything()}")
            return found

        return until(look, what, timeout, self.everything)

    def shown(self) -> str:
        return self.output

    def everything(self) -> str:
        return f"{self.shown()}\n--- log:\n{self.log_text()[-6000:]}"

    def finish(self, status: int, timeout: float = LONG, patience: float = 2.0) -> Child:
        """Wait for the end: the exit status is `status`, and after `patience` seconds nothing is left."""
        try:
            got = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {timeout:.0f} s:\n{self.everything()}")
        self.world.finished.add(self.mark)
        end = time.monotonic() + patience
        while marked(self.mark) and time.monotonic() < end:
            time.sleep(0.05)
        left = marked(self.mark)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert got == status, self.everything()
        assert not left, f"left behind: {left}\n{self.everything()}"
        return self

    def wait_for_tool(self) -> None:
        """Wait until a `sleep 1000` of its runs."""
        self.until(lambda: any(line.startswith("sleep 1000") for line in marked(self.mark).values()), "a tool")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    # What a run leaves in files.

    def log_text(self) -> str:
        return self.log.read_text("utf-8") if self.log.exists() else ""

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """The entries of the log that have all these values."""
        found = [json.loads(line) for line in self.log_text().split("\n")[:-1]]
        return [record for record in found if all(record.get(key) == value for key, value in wanted.items())]

    def said(self, pattern: str) -> bool:
        """Whether an entry of the log matches."""
        return any(re.search(pattern, str(record.get("text"))) for record in self.records())

    def wait_said(self, pattern: str, timeout: float = LONG) -> None:
        self.until(lambda: self.said(pattern), f"{pattern!r} in the log", timeout)

    def outcomes(self) -> list[str]:
        """How the iterations ended, one after the other."""
        return [str(record["outcome"]) for record in self.records(record="iteration")]

    @property
    def plan(self) -> str:
        return (self.project / "PLAN.md").read_text("utf-8")

    def boxes(self) -> str:
        """The boxes of the plan in one string, "x" for done, " " for pending, else the mark's first letter."""
        return "".join(found[:1].lower() for found in re.findall(r"^- \[([^\]]*)", self.plan, re.MULTILINE))

    def state(self) -> dict[str, Any]:
        """The state file of the run."""
        for path in Path(self.env["XDG_STATE_HOME"], "ocloop").glob("*.json"):
            record: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if Path(record["plan"]).parent == self.project:
                return record
        return {}

    def requests(self, path: str = "", method: str = "") -> list[dict[str, Any]]:
        """What the fake OpenCode noted: requests whose path has a match, or with path "" everything."""
        text = self.requests_path.read_text("utf-8") if self.requests_path.exists() else ""
        found = [json.loads(line) for line in text.split("\n")[:-1]]
        return [one for one in found if method in one.get("method", "") and re.search(path, one.get("path", ""))]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What else the fake OpenCode noted of itself."""
        return [one for one in self.requests() if one.get("event") == name]

    def prompts(self) -> list[str]:
        """The texts that were sent to the fake OpenCode."""
        return [str(one["body"]["parts"][0]["text"]) for one in self.requests("prompt_async")]

    def kill_server(self) -> None:
        """SIGKILL to the server, wrapper and all, as the kernel does when memory runs out."""
        pids = until(lambda: [pid for pid, line in marked(self.mark).items() if " serve " in line], "a server")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """For a test that failed: end what it started."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(4)
        for pid in [*marked(self.mark)] if self.mark not in self.world.finished else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.wait(5)


class Terminal(Child):
    """A program in a pseudo-terminal. What counts is what stands on the screen."""

    def __init__(self, world: World, argv: Sequence[str], cwd: Path, env: dict[str, str],
                 width: int = 100, height: int = 30) -> None:
        self.screen = Screen(width, height)
        self.lock = threading.Lock()
        self.transcript = b""
        self.hung_up = False
        super().__init__(world, argv, cwd, env)

    def spawn(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        self.master, slave = pty.openpty()
        self.set_size(self.screen.width, self.screen.height)
        self.env.update(TERM="xterm-256color")
        process = subprocess.Popen(argv, cwd=self.project, env=self.env, stdin=slave, stdout=slave, stderr=slave,
                                   start_new_session=True, preexec_fn=take_terminal)  # noqa: PLW1509
        os.close(slave)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        return process

    def read(self) -> None:
        while not self.hung_up:
            try:
                if not select.select([self.master], [], [], 0.1)[0]:
                    continue
                data = os.read(self.master, 1 << 16)
            except OSError:
                return
            with self.lock:
                self.transcript += data
                self.screen.feed(data)

    def set_size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def resize(self, width: int, height: int) -> None:
        with self.lock:
            self.screen.resize(width, height)
        self.set_size(width, height)

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def output(self) -> str:
        return self.transcript.decode("utf-8", "replace")

    def shown(self) -> str:
        with self.lock:
            return self.screen.text()

    def hang_up(self) -> None:
        """The terminal goes away, as when a connection breaks."""
        if not self.hung_up:
            self.hung_up = True
            self.thread.join()  # it would keep the terminal open
            os.close(self.master)

    def restored(self) -> bool:
        """Whether the terminal is as a program found it: the usual screen, echo, whole lines, a cursor."""
        flags = termios.tcgetattr(self.master)[3]
        shown = self.output.rfind("\x1b[?25h") >= self.output.rfind("\x1b[?25l")
        return bool(flags & termios.ECHO and flags & termios.ICANON and shown and not self.screen.alternate)

    def finish(self, status: int, timeout: float = LONG, patience: float = 2.0) -> Child:
        super().finish(status, timeout, patience)
        if not self.hung_up:
            until(self.restored, "a restored terminal", 5, lambda: repr(self.output[-300:]))
        return self

    def close(self) -> None:
        super().close()
        self.hang_up()


def take_terminal() -> None:
    """In the child: make the terminal on standard input the one that controls this session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class World:
    """One test's home, projects and environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self.finished: set[str] = set()
        self.helpers: list[subprocess.Popen[bytes]] = []
        self.env = sealed(folder / "home")

    def project(self, tasks: int | str = 2, name: str = "", prompt: str = "Work on {{PLAN_FILE}}.\n") -> Path:
        """A folder with a plan (of so many tasks, or this text) and a prompt."""
        folder = self.folder / (name or f"project-{len(self.children)}")
        folder.mkdir()
        text = tasks if isinstance(tasks, str) else "# Plan\n\n## Phase one\n\n" + "".join(
            f"- [ ] Task {number}\n" for number in range(1, tasks + 1)
        )
        (folder / "PLAN.md").write_text(text, "utf-8")
        (folder / ".loop-prompt.md").write_text(prompt, "utf-8")
        return folder

    def start(self, project: Path, *args: str, terminal: bool = False, **env: Any) -> Any:
        """Start ocloop with these arguments; a Terminal, or else a Child."""
        return self.execute(project, [sys.executable, str(OCLOOP), *args], terminal, **env)

    def execute(self, project: Path, argv: Sequence[str], terminal: bool = False, **env: Any) -> Any:
        """Start any program in a project."""
        return (Terminal if terminal else Child)(self, argv, project, {**self.env, **env})

    def say(self, project: Path, *args: str, status: int = 0, **env: Any) -> str:
        """Run ocloop to its end, expect this status, return its output."""
        return str(self.start(project, *args, **env).finish(status).output)

    def fake(self, *args: str, answers: Sequence[str] = ("work",), project: Path | None = None,
             tasks: int | str = 2, terminal: bool = False, env: dict[str, str] | None = None,
             patch: str = "", default_port: bool = False, **behaviour: Any) -> Any:
        """Start `ocloop run` on the fake OpenCode. `patch` is Python that is run before, as for a crash."""
        project = project or self.project(tasks)
        port = [] if default_port or {"-p", "--port"} & set(args) else ["--port", str(free_port())]
        log = self.folder / f"requests-{len(self.children)}.jsonl"
        setting = json.dumps({"answers": list(answers), "log": str(log), **behaviour})
        logged = [] if "--log" in args else ["--log", "{log}"]
        program = [str(OCLOOP)]
        if patch:
            before = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport ocloop\n{patch}\n"
            program = ["-c", before + "sys.exit(ocloop.main(sys.argv[1:]))"]
        argv = [sys.executable, *program, "run", *logged, *port, *([] if "--opencode" in args else [
            "--opencode", fake_command()]), *args]
        return self.execute(project, argv, terminal, FAKE_OPENCODE=setting, **(env or {}))

    def real(self, *args: str, model: ScriptedModel, opencode: str = "", server: RealServer | None = None,
             project: Path | None = None, tasks: int = 2, terminal: bool = False, **env: Any) -> Any:
        """Start `ocloop run` on the real OpenCode: a server of its own, or the one that runs already."""
        project = project or quiz(self, tasks)
        if not (project / "opencode.json").exists():
            (project / "opencode.json").write_text(json.dumps(opencode_config(model.url)), "utf-8")
        where = ["--opencode", shlex.quote(opencode)]
        if server:
            where = ["--server", server.url]
            env.update(OPENCODE_SERVER_PASSWORD=server.password)
        return self.start(project, "run", "--log", "{log}", *where, *args, terminal=terminal, **env)

    def helper(self, argv: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start something that is not ocloop's and does not carry its mark; it is ended with the test."""
        process = subprocess.Popen(argv, env={**self.env, **env}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        self.helpers.append(process)
        return process

    def close(self) -> None:
        for child in self.children:
            child.close()
        for process in self.helpers:
            end_helper(process)


def sealed(home: Path) -> dict[str, str]:
    """The environment of a test: a home of its own and no way to the network."""
    home.mkdir()
    (home.parent / "tmp").mkdir()
    unwanted = re.compile(r"(?i)(OPENCODE_|OCLOOP|npm_|XDG_|LC_|LANG|PYTHON).*|.*_proxy|NO_COLOR|COLUMNS|LINES")
    env = {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)}
    env.update(
        HOME=str(home), XDG_CONFIG_HOME=str(home / ".config"), XDG_DATA_HOME=str(home / ".local" / "share"),
        XDG_STATE_HOME=str(home / ".local" / "state"), XDG_CACHE_HOME=str(home / ".cache"),
        TMPDIR=str(home.parent / "tmp"), LANG="C.UTF-8", LC_ALL="C.UTF-8", TERM="dumb",
        PYTHONDONTWRITEBYTECODE="1", npm_config_offline="true",
        OPENCODE_DISABLE_AUTOUPDATE="1", OPENCODE_DISABLE_MODELS_FETCH="1", OPENCODE_PURE="1",
    )
    return env


def fake_command() -> str:
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE))}"


def end_helper(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(process: subprocess.Popen[bytes]) -> str:
    """The URL on which a server that was just started says that it listens; its output is drained from then on."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        found = re.search(rb"listening on (http://\S+)", line)
        if found:
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found.group(1).decode()
    pytest.fail(f"the server did not start: {lines}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


# ── the command line ───────────────────────────────────────────────────────────────────────────────────────
# What ends before a server is started, and the mistakes that everybody makes once.


def test_version_and_manual(world: World) -> None:
    """Issue 5, line 11: --version; --help is the manual, with examples, exit statuses and keys."""
    assert re.fullmatch(r"ocloop \d+\.\d+\.\d+\n", world.say(world.project(), "--version"))
    general = world.say(world.project(), "--help")
    assert "examples:" in general and "exit statuses:" in general and "bootstrap" in general
    manual = world.say(world.project(), "run", "--help")
    assert "keys:" in manual and "exit statuses:" in manual and "durations" in manual
    for option in ("--max-cost", "--check", "--notify", "--server-memory", "--ask-timeout", "--dry-run", "-m"):
        assert option in manual


@pytest.mark.parametrize("arguments, message", [
    ("", "required: COMMAND"),
    ("walk", "invalid choice"),
    ("run --unknown", "unrecognized arguments"),
    ("run --max-time soon", "'soon' is no duration: write 90, 90s, 15m, 2h or 1h30m"),
    ("run --stuck few", "'few' is no count"),
    ("run --max-cost lots", "'lots' is no amount"),
    ("run --model gpt", "'gpt' is no model: write providerID/modelID"),
    ("run --port 99999", "'99999' is no port"),
    ("run --server here", "--server here is no URL: write http://HOST:PORT"),
    ("run --opencode \"it's", "cannot be read"),
])
def test_usage_errors(world: World, arguments: str, message: str) -> None:
    """Exit status 2, and a message that says what is expected."""
    split = arguments.split(" ", 2) if "opencode" in arguments else arguments.split()
    assert message in world.say(world.project(), *split, status=2)


def test_bootstrap(world: World) -> None:
    """Makes both files, never overwrites without --force, says so, and says what comes next."""
    folder = world.folder / "new folder" / "ünter"
    said = world.say(world.folder, "bootstrap", str(folder))
    assert said.count("wrote") == 2 and "Next:" in said and " run" in said
    plan, prompt = folder / "PLAN.md", folder / ".loop-prompt.md"
    assert "- [ ] " in plan.read_text("utf-8") and "{{PLAN_FILE}}" in prompt.read_text("utf-8")
    plan.write_text("mine", "utf-8")
    prompt.unlink()
    said = world.say(folder, "bootstrap")
    assert "skipped" in said and "wrote" in said and "--force" in said
    assert plan.read_text("utf-8") == "mine" and prompt.exists()
    world.say(folder, "bootstrap", "-f")
    assert "- [ ] " in plan.read_text("utf-8")
    (world.folder / "a-file").write_text("", "utf-8")
    said = world.say(world.folder, "bootstrap", "a-file/below", status=1)
    assert "cannot write into" in said and "choose another directory" in said


def test_mistakes_say_what_to_do(world: World) -> None:
    """Issue 6, the newcomer's mistakes that show before a server is started; each exit status is 1."""
    nothing = world.folder / "nothing"
    nothing.mkdir()
    project = world.project()
    empty = str(world.folder)
    cases: list[tuple[Path, list[str], dict[str, str], list[str]]] = [
        (project, ["run"], {"PATH": empty}, ["opencode is not there: install OpenCode", "npm install", "npx -y"]),
        (project, ["run", "--opencode", "opencoode"], {}, ["opencoode is not there"]),
        (nothing, ["run"], {}, ["the plan", "cannot be read", "bootstrap", "--plan"]),
        (project, ["run", "--prompt", "none.md"], {}, ["the prompt", "cannot be read", "--prompt"]),
        (world.project("# Plan\n\nNothing yet.\n", "no-tasks"), ["run"], {}, ["has no task", "- [ ] Build it"]),
        (world.project(1, "no-prompt", "---\nmodel: a/b\n---\n"), ["run"], {}, ["is empty", "bootstrap --force"]),
    ]
    for cwd, args, env, expected in cases:
        where = [] if env or "--opencode" in args else ["--opencode", fake_command()]
        said = world.say(cwd, *args, *where, status=1, **env)
        assert said.startswith("ocloop: ") and "Traceback" not in said
        for part in expected:
            assert part in said


def test_old_python_is_told_apart(world: World) -> None:
    """Issue 6: Python 3.8 gets a sentence, not a SyntaxError. Simulated where there is no such Python."""
    here = [Path(shutil.which("python3.8") or ""), *Path.home().glob(".pyenv/versions/3.8*/bin/python3.8")]
    found = [path for path in here if path.is_file() and "shims" not in path.parts]
    pretend = f"import runpy, sys\nsys.hexversion = 0x03080000\nrunpy.run_path({str(OCLOOP)!r})"
    argv = [str(found[0]), str(OCLOOP), "run"] if found else [sys.executable, "-c", pretend]
    said = world.execute(world.project(), argv).finish(1).output
    assert said.startswith("ocloop: this is Python 3.") and "3.9 or newer" in said
    assert "Traceback" not in said and len(said.split("\n")) == 2


def test_plan_that_is_complete_already(world: World) -> None:
    """Nothing is started; the exit status says whether work is left."""
    done = world.project("- [x] One\n\n<plan-complete>All of it</plan-complete>\n", "done")
    assert "is complete already" in world.say(done, "run", "--opencode", fake_command())
    early = world.project("- [ ] One\n\n<plan-complete>Early</plan-complete>\n", "early")
    said = world.say(early, "run", "--opencode", fake_command(), status=3)
    assert "1 tasks are still pending" in said or "1 task is still pending" in said


def test_dry_run(world: World) -> None:
    """Issue 5, line 9: everything is checked and shown, nothing is started."""
    project = world.project("- [x] One\n- [ ] Two\n- [MANUAL] Three\n", prompt="---\nmodel: fake/model\n---\n"
                            "Do {{TASK}} of {{PLAN_FILE}}, {{ITERATION}}.\n")
    child = world.fake("--dry-run", "--check", "true", "--notify", "echo hello", project=project).finish(0)
    said = child.output
    for part in (VERSION, "1 of 2 tasks done", "1 manual", "Two", "fake/model", "all is well",
                 f"Do Two of {project}/PLAN.md, 1."):
        assert part in said, said
    assert "model: fake/model" not in said
    assert not child.requests() and not child.log_text()


def test_dry_run_problems(world: World) -> None:
    """Issue 5, line 9: each problem is said, and the exit status is 1."""
    project = world.project(prompt="Just work.\n")
    broken = world.folder / "broken"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 7\n", "utf-8")
    broken.chmod(0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        child = world.fake("--dry-run", "--check", "no-such-check", "--notify", "no-such-notify",
                           "--port", str(port), "--opencode", str(broken), project=project)
        said = child.finish(1).output
    for part in ("no-such-check", "no-such-notify", f"port {port} is taken", "exit status 7", "it is broken",
                 "does not contain {{PLAN_FILE}}"):
        assert part in said, said
    loop = world.fake("--plain", answers=["sleep:30"], project=world.project(1, "busy"))
    loop.wait_said("Task 1")
    said = world.fake("--dry-run", project=loop.project).finish(1).output
    assert f"another loop works on this plan (process {loop.pid})" in said
    loop.signal(signal.SIGTERM)
    loop.finish(130)


# ── a run on the fake OpenCode ─────────────────────────────────────────────────────────────────────────────


def test_run_to_the_end(world: World) -> None:
    """Without a terminal it starts by itself, says in lines what happens, and leaves with 0."""
    child = world.fake(tasks=3, default_port=True).finish(0)
    assert child.boxes() == "xxx" and child.outcomes() == ["done"] * 3
    for part in ("Task 1", "Task 3", "the plan is complete", "3 of 3 tasks done"):
        assert part in child.output
    assert "\x1b" not in child.output
    titles = [one["body"]["title"] for one in child.requests("^/session[?]", "POST")]
    assert titles == ["ocloop 1/3: Task 1", "ocloop 2/3: Task 2", "ocloop 3/3: Task 3"]


def test_a_server_that_knows_five_routes(world: World) -> None:
    """design.md, old and minimal servers: where a server cannot tell, the idle event counts."""
    child = world.fake(routes="five", tasks=3).finish(0)
    assert child.boxes() == "xxx" and child.outcomes() == ["done"] * 3


def test_prompt_file(world: World) -> None:
    """Issue 5, line 4: placeholders, read anew each time, front matter honoured and not sent, a warning."""
    project = world.project(2, prompt="---\nmodel: fake/other\nagent: plan\ndescription: x\n---\n\n"
                            "{{ITERATION}}: {{TASK}} of {{PLAN_FILE}}; check: [{{CHECK}}]\n")
    child = world.fake(project=project, models=["fake/model", "fake/other"]).finish(0)
    plan = f"{project}/PLAN.md"
    assert child.prompts() == [f"1: Task 1 of {plan}; check: []", f"2: Task 2 of {plan}; check: []"]
    body = child.requests("prompt_async")[0]["body"]
    assert body["model"] == {"providerID": "fake", "modelID": "other"} and body["agent"] == "plan"

    (project / "PLAN.md").write_text("- [ ] One\n- [ ] Two\n", "utf-8")
    change = f"echo 'Changed. '{shlex.quote(plan)} > .loop-prompt.md"
    child = world.fake("-m", "fake/model", "-a", "build", "--check", change, project=project,
                       models=["fake/model", "fake/other"]).finish(0)
    body = child.requests("prompt_async")[0]["body"]
    assert body["model"]["modelID"] == "model" and body["agent"] == "build", "the command line goes before"
    assert child.prompts()[1] == f"Changed. {plan}", "it is read anew before every iteration"
    child = world.fake("--dry-run", project=project).finish(0)
    assert "does not contain {{PLAN_FILE}}" in child.output


def test_setup_mistakes_end_before_a_prompt(world: World) -> None:
    """Unknown model, provider, agent, broken configuration: one message, exit 1, nothing was sent.

    Row: 401, unknown model, unknown provider, unknown agent, malformed opencode.json (the real one: see
    test_real_mistakes).
    """
    models = ["fake/model", "fake/mode-large"]
    cases: list[tuple[list[str], dict[str, Any], list[str]]] = [
        (["-m", "fake/modle"], {"models": models}, ["there is no model fake/modle", "did you mean fake/model"]),
        (["-a", "biuld"], {}, ["there is no agent biuld", "did you mean build"]),
        (["-m", "zzz/qqqq"], {"models": ["a/b"], "model": "a/b"}, ["no model zzz/qqqq", "opencode models"]),
        ([], {"config_error": True}, ["opencode.json", "mend it"]),
    ]
    for child, expected in [(world.fake(*args, **behaviour), expected) for args, behaviour, expected in cases]:
        child.finish(1)
        for part in expected:
            assert part in child.output
        assert not child.requests("prompt_async") and child.records(record="run")[0]["status"] == 1


def test_errors_that_trying_again_does_not_mend(world: World) -> None:
    """Row: 401 …: one clear message with what to do, exit 1 after a single prompt."""
    cases = [("error:401", "opencode auth login"), ("auth", "opencode auth login"),
             ("error:404", "look at the model"), ("error:402", "balance")]
    for child, expected in [(world.fake(answers=[answer]), expected) for answer, expected in cases]:
        child.finish(1)
        assert expected in child.output and len(child.requests("prompt_async")) == 1


def test_errors_that_are_tried_again(world: World) -> None:
    """Rows: 500 … retried with pauses (here of a second), --retries in a row; answers without a finish reason."""
    answers = ["error:500", "unknown", "work", "overflow", "retry:0.5", "nothing", "block", "work"]
    child = world.fake("--retries", "2", answers=answers, tasks=5, patch="ocloop.LONGEST_WAIT = 1.0").finish(0)
    outcomes = ["failed", "failed", "done", "done", "done", "done", "done", "done"]
    assert child.outcomes() == outcomes and child.boxes() == "xxxbx"
    assert child.said(r"spins: 3 ") and child.log_text().count("trying again in 1s") == 2
    assert child.said("attempt 1 failed: Too Many Requests") and child.said("the session was compacted")
    records = child.records(record="iteration")
    assert [record["changed"] for record in records] == [False, False, True, True, True, False, True, True]


def test_too_many_errors(world: World) -> None:
    """Row: --retries in a row, then exit 1 with the last error."""
    child = world.fake("--retries", "1", answers=["error:503:The model is overloaded"]).finish(1)
    assert child.outcomes() == ["failed", "failed"]
    assert "2 iterations in a row failed" in child.output and "The model is overloaded" in child.output


def test_stuck(world: World) -> None:
    """Row: the agent does nothing, again and again: --stuck N: stop, exit 3, with what to do."""
    child = world.fake("--stuck", "3", answers=["mark", "nothing"]).finish(3)
    assert child.outcomes() == ["done"] * 4
    assert "3 iterations in a row changed no task (--stuck)" in child.output
    assert "[BLOCKED: reason]" in child.output


def test_ends_of_a_plan(world: World) -> None:
    """Row: the tag while tasks are pending; no tag though nothing is pending; no tasks at all."""
    early = world.fake(answers=["complete-early"], tasks=3)
    silent = world.fake(answers=["mark", "mark", "nothing"], tasks=2)
    late = world.fake(answers=["mark", "finish"], tasks=1)
    # Tasks that a person, or nobody, can do leave one iteration for the summary.
    manual = world.fake(tasks="- [MANUAL] Call Bob\n- [BLOCKED: no key] Deploy\n", answers=["finish"])
    debug = world.fake("--debug", tasks="No tasks.\n", answers=["finish"])
    early.finish(3)
    assert "2 tasks still pending" in early.output and early.boxes() == "x  "
    silent.finish(0)
    assert len(silent.outcomes()) == 3 and "wrote no summary" in silent.output
    late.finish(0)
    assert len(late.outcomes()) == 2 and "Everything that could be done is done." in late.output
    manual.finish(0)
    assert "manual: Call Bob" in manual.output and "blocked: Deploy (no key)" in manual.output
    assert "<plan-complete>" in debug.finish(0).plan


def test_a_plan_that_changes_under_way(world: World) -> None:
    """Row: plan deleted, emptied, half-written while running; a deleted plan stops within seconds, exit 1."""
    gone = world.fake(answers=["delete"])
    empty = world.fake(answers=["empty"])
    half = world.fake(answers=["half", "work"])
    edited = world.fake("--plain", answers=["sleep:2", "work"], tasks=1)
    edited.wait_said("Task 1")
    with open(edited.project / "PLAN.md", "a", encoding="utf-8") as file:
        file.write("- [ ] One more\n")
    assert "PLAN.md cannot be read" in gone.finish(1).output
    assert "PLAN.md has no task" in empty.finish(1).output
    assert half.finish(0).boxes() == "xx" and half.outcomes() == ["done", "done"]
    last = gone.records(record="run")[0]
    assert (last["done"], last["total"]) == (0, 2), "the last good progress stays"
    assert edited.finish(0).boxes() == "xx"


def test_asked_without_a_terminal(world: World) -> None:
    """Row: permission or question, here or in a subagent: refused at once with a message, the agent goes on."""
    child = world.fake(answers=["ask", "ask-child", "question"], tasks=3).finish(0)
    assert child.boxes() == "xxx" and child.outcomes() == ["done"] * 3
    replies = [one["body"] for one in child.requests("/permission/.*/reply")]
    assert [reply["reply"] for reply in replies] == ["reject", "reject"] and all(r["message"] for r in replies)
    assert child.said("git push") and child.said("nobody is there to answer")
    child = world.fake("--auto", answers=["ask", "ask-child", "question"], tasks=3).finish(0)
    replies = [one["body"] for one in child.requests("/permission/.*/reply")]
    assert [reply["reply"] for reply in replies] == ["once", "once"] and child.said("--auto")


def test_strange_events(world: World) -> None:
    """Row: lines of 5 MB, invalid JSON and UTF-8, unknown events, a session that someone typed into."""
    child = world.fake(answers=["garbage", "typed", "bigline:5000000", "work"], tasks=4).finish(0)
    assert child.boxes() == "xxxx" and child.outcomes() == ["done"] * 4
    assert "\x1b" not in child.output


def test_flood(world: World) -> None:
    """Row: 100 MB of events in one iteration: worked through, and memory stays flat."""
    peaks = []
    for number in (100000, 400000):
        child = world.fake(answers=[f"flood:{number}", "work"], tasks=1)
        peak = 0
        while child.process.poll() is None:
            with suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc", str(child.pid), "status").read_text())
                peak = max(peak, int(found.group(1)) if found else 0)
            time.sleep(0.02)
        child.finish(0)
        peaks.append(peak)
    assert peaks[1] < peaks[0] * 1.5 and peaks[1] < 120_000, f"peaks in kB: {peaks}"


# ── what happens to the server ─────────────────────────────────────────────────────────────────────────────


def test_a_server_that_fails_under_way(world: World) -> None:
    """Row: the server is killed, hangs, drops the stream, loses events: the iteration goes on or is repeated.

    They run side by side, since most of the time is waiting. "silent" swallows a prompt.
    """
    runs = {}
    for answer in ("die", "freeze", "drop", "noidle", "silent"):
        store = str(world.folder / f"store-{answer}")
        runs[answer] = world.fake(answers=[answer, "work"], store=store, tasks=2)
    killed = runs["killed"] = world.fake(answers=["sleep:2", "work"], store=str(world.folder / "store-k"), tasks=2)
    killed.wait_said("Task 1")
    killed.until(lambda: killed.events("busy"), "a busy session")
    killed.kill_server()
    for name, run in runs.items():
        run.finish(0, timeout=120)
        assert run.boxes() == "xx", name
        assert run.outcomes() == ["done", "done"], name
        assert len(run.requests("^/session[?]", "POST")) == 2, f"{name}: the iteration goes on in its session"
    starts = {name: len(run.events("listening")) for name, run in runs.items()}
    assert starts == {"die": 2, "freeze": 2, "killed": 2, "drop": 1, "noidle": 1, "silent": 1}
    assert runs["die"].said("out of memory, as ordered")
    for name in ("die", "freeze", "silent", "killed"):
        ids = [one["body"]["messageID"] for one in runs[name].requests("prompt_async")]
        assert len(set(ids)) == 2 and len(ids) >= 3, f"{name}: sent again with the same ids"


def test_a_server_that_keeps_dying(world: World) -> None:
    """Row: … capped, then exit 1 with the server's last lines."""
    child = world.fake("--retries", "1", answers=["die"], again="same", store=str(world.folder / "store"))
    child.finish(1)
    assert "the server failed 2 times in a row" in child.output and "out of memory, as ordered" in child.output
    assert len(child.events("listening")) == 2


def test_a_server_that_does_not_start(world: World) -> None:
    """It ends at once, or says nothing; and one that ends later is started again."""
    child = world.fake(start="exit").finish(1)
    assert len(child.events("exec")) == 3
    assert world.fake(starts=["exit", "exit", ""]).finish(0).boxes() == "xx", "a database may be locked for a moment"
    assert "ended with exit status 3 while starting" in child.output
    assert "it cannot start, as ordered" in child.output
    child = world.fake(start="silent", patch="ocloop.START_TIMEOUT = 1.0").finish(1)
    assert "did not start within 1 s" in child.output
    assert world.fake(start="slow:2").finish(0).boxes() == "xx"


def test_a_server_that_grew(world: World) -> None:
    """Row: above --server-memory: replaced between iterations, said in the activity."""
    child = world.fake("--server-memory", "150", memory=[200, 0], tasks=3).finish(0)
    assert len(child.events("exec")) == 2 and child.said(r"grew to \d+ MiB") and child.boxes() == "xxx"


def test_ports(world: World) -> None:
    """Row: port taken: asked for: exit 1 with a clear message; not asked for: a free one is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        child = world.fake("--port", str(port)).finish(1)
        assert f"port {port} is taken" in child.output and "--port" in child.output
    port = free_port()
    assert world.fake("--port", str(port)).finish(0).events("listening")[0]["port"] == port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def take() -> bool:  # another run may have it for a moment
            with suppress(OSError):
                taken.bind(("127.0.0.1", 4096))
                taken.listen()
                return True
            return False

        until(take, "port 4096")
        child = world.fake(default_port=True).finish(0)
        assert child.events("listening")[0]["port"] != 4096 and child.boxes() == "xx"


def test_quitting_while_the_server_is_being_stopped(world: World) -> None:
    """A plan that is complete stops its server; Q meanwhile waits for that, and keeps the reason."""
    term = world.fake("--run", stubborn=True, terminal=True)
    term.wait_for("✔ complete")
    term.send("q")
    term.finish(0)
    assert "ocloop: the plan is complete" in term.everything()
    assert "the plan is complete" in world.say(term.project, "status")


def test_stubborn_server(world: World) -> None:
    """A server that ignores SIGTERM is killed; nothing is left a moment later."""
    child = world.fake(stubborn=True, answers=["spawn:hang"])
    child.until(lambda: child.events("spawned"), "a tool")
    child.signal(signal.SIGTERM)
    child.finish(130, timeout=20)


def test_no_interface_to_give_the_terminal_to(world: World) -> None:
    """T with a server from elsewhere and no OpenCode here: said, and the run goes on."""
    process = world.helper([sys.executable, str(FAKE), "serve", "--hostname=127.0.0.1", f"--port={free_port()}"],
                           FAKE_OPENCODE=json.dumps({"answers": ["hang"]}))
    term = world.start(world.project(1), "run", "--run", "--server", listening(process), terminal=True,
                       PATH=str(world.folder), HOME=str(world.folder))
    term.until(lambda: term.state().get("session"), "a session")
    term.send("t")
    term.wait_for("cannot start opencode")
    term.send("q")
    term.wait_for("Q again")
    term.send("q")
    term.finish(130)


def test_a_lock_that_is_let_go_at_the_last_moment_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first, second, third = (ocloop.RunFile(str(tmp_path / "PLAN.md")) for _ in range(3))
    sleeps: list[float] = []
    with open(first.lock_path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def let_go(seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) == 5:
                fcntl.flock(held, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", let_go)
        assert second.acquire() == 0 and len(sleeps) == 5
        assert third.acquire() == os.getpid(), "it is really held"


def test_server_url(world: World) -> None:
    """Issue 5, line 10: a server that runs already is used, never stopped, and only its own session aborted."""
    log = world.folder / "server.jsonl"
    process = world.helper([sys.executable, str(FAKE), "serve", "--hostname=127.0.0.1", f"--port={free_port()}"],
                           FAKE_OPENCODE=json.dumps({"answers": ["work", "work", "hang"], "log": str(log)}),
                           OPENCODE_SERVER_PASSWORD="secret", OPENCODE_SERVER_USERNAME="me")
    url = listening(process)
    login: dict[str, Any] = {"OPENCODE_SERVER_PASSWORD": "secret", "OPENCODE_SERVER_USERNAME": "me"}
    args = ("run", "--server", url)
    project = world.project(2)
    assert "the plan is complete" in world.say(project, *args, **login)
    said = world.say(world.project(1, "wrong"), *args, status=1)
    assert "refuses the password: set OPENCODE_SERVER_PASSWORD" in said
    child = world.start(world.project(1, "stopped"), *args, **login)
    child.requests_path = log
    child.until(lambda: len(child.prompts()) == 3, "the third prompt")
    child.signal(signal.SIGINT)
    child.finish(130)
    assert child.requests("/abort") and not child.requests("/dispose") and process.poll() is None
    said = world.say(project, "run", "--dry-run", "--server", url)
    assert url in said
    port = free_port()
    child = world.start(world.project(1, "nobody"), "run", "--server", f"http://127.0.0.1:{port}")
    child.wait_for("waiting for http")
    child.signal(signal.SIGTERM)
    child.finish(130)


# ── how a run is ended ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(world: World, number: int) -> None:
    """Row: SIGINT, SIGTERM: session aborted, tools and server gone, exit 130 (the real one: see below)."""
    child = world.fake(answers=["spawn:hang"])
    child.until(lambda: child.events("spawned"), "a tool")
    child.signal(number)
    child.finish(130, timeout=20)
    assert child.requests("/abort") and child.records(record="run")[0]["status"] == 130
    # While the server is starting, too.
    child = world.fake(start="slow:30")
    child.until(lambda: child.events("exec"), "a server")
    child.signal(number)
    child.finish(130, timeout=20)


def test_ctrl_c(world: World) -> None:
    """Row: SIGINT, as it comes from a terminal: the screen is left in order."""
    term = world.fake("--run", answers=["spawn:hang"], terminal=True)
    term.until(lambda: term.events("spawned"), "a tool")
    term.wait_for("● running")
    term.send("\x03")
    term.finish(130, timeout=20)
    assert "0 of 2 tasks done" in term.shown()
    lines = world.fake("--plain", answers=["hang"], terminal=True)
    lines.until(lambda: lines.events("busy"), "a busy session")
    lines.send("\x03")
    lines.finish(130, timeout=20)


def test_a_crash_of_its_own(world: World) -> None:
    """Row: a crash of ocloop itself: traceback, exit 1, nothing left, the terminal restored."""
    patch = ("def boom(self, event): raise RuntimeError('a bug, as ordered')\n"
             "ocloop.HANDLERS[ocloop.PromptAccepted] = boom")
    child = world.fake(answers=["spawn:hang"], patch=patch).finish(1)
    assert "Traceback" in child.output and "a bug, as ordered" in child.output
    child = world.fake("--run", answers=["spawn:hang"], patch=patch, terminal=True).finish(1)
    assert "Traceback" in child.shown() and "a bug, as ordered" in child.shown()
    thread = "def boom(*args): raise RuntimeError('a bug, as ordered')\nocloop.Worker.send_prompt = boom\n"
    thread += "ocloop.CARRY_OUT[ocloop.SendPrompt] = boom"
    child = world.fake(answers=["work"], patch=thread).finish(1)
    assert "a bug, as ordered" in child.output


def test_killed(world: World) -> None:
    """Rows: SIGKILL of ocloop: no server left 3 s later; the lock is free; `status` says how it ended.

    And two loops on one plan: the second is refused with the first one's pid.
    """
    first = world.fake(answers=["spawn:hang"])
    first.until(lambda: first.events("spawned"), "a tool")
    second = world.fake(project=first.project).finish(1)
    assert f"another loop works on this plan (process {first.pid})" in second.output and not second.requests()
    # Through another name of the same file as well.
    link = world.folder / "link"
    link.symlink_to(first.project)
    third = world.start(link, "run", "--opencode", fake_command()).finish(1)
    assert f"(process {first.pid})" in third.output
    first.signal(signal.SIGKILL)
    first.finish(-signal.SIGKILL, patience=4.0)
    said = world.say(first.project, "status", status=3)
    assert "was killed" in said
    assert world.fake(project=first.project).finish(0).boxes() == "xx"
    assert "ended" in world.say(first.project, "status")


def test_hangups(world: World) -> None:
    """Rows: SIGHUP, or a terminal that hung up: the loop goes on without a screen to the end."""
    hup = world.fake("--run", answers=["sleep:1"], tasks=3, terminal=True)
    gone = world.fake("--run", answers=["sleep:1"], tasks=3, terminal=True)
    asked = world.fake("--run", answers=["ask", "work"], tasks=2, terminal=True)
    lines = world.fake("--plain", answers=["sleep:1"], tasks=2, terminal=True)
    for run in (hup, gone):
        run.wait_for("running")
    asked.wait_for("git push")
    lines.wait_for("Task 1")
    hup.signal(signal.SIGHUP)
    for run in (gone, asked, lines):
        run.hang_up()
    hup.wait_said("going on without a screen")
    state = json.loads(world.say(gone.project, "status", "--json", status=3))
    assert state["running"] and state["run"]["pid"] == gone.pid
    for run in (hup, gone, asked, lines):
        run.finish(0)
        assert set(run.boxes()) == {"x"}
    assert asked.said("nobody is there to answer")


# ── the screen ─────────────────────────────────────────────────────────────────────────────────────────────


def test_keys(world: World) -> None:
    """S, Space, ?, X, resize, Q twice, in a terminal; the picture is looked at on the screen."""
    term = world.fake(answers=["sleep:2", "sleep:2", "hang", "sleep:1", "hang"], tasks=6, terminal=True)
    term.wait_for("ready")
    assert re.search(r"0/6 +0%", term.shown()) and "S start" in term.shown() and not term.prompts()
    term.send("?")
    term.wait_for("this help")
    term.send("?")
    term.until(lambda: "this help" not in term.shown(), "the help to go")
    term.send("s")
    term.wait_for("● running")
    term.send(" ")
    term.wait_for("pausing")
    term.send(" ")
    term.wait_for("● running")
    term.send(" ")
    term.wait_for("‖ paused")
    assert len(term.prompts()) == 1 and re.search(r"1/6 +17%", term.shown())
    time.sleep(0.5)
    assert len(term.prompts()) == 1
    for width, height in ((40, 12), (20, 4), (200, 50), (80, 24)):
        term.resize(width, height)
        term.wait_for("paused")
        assert term.shown().count("\n") == height - 1
        time.sleep(0.3)
    term.wait_for(r"Q quit")
    term.send(" ")
    term.until(lambda: len(term.prompts()) == 3, "the iteration that hangs")
    term.send("x")
    term.wait_said("aborted by a person")
    term.until(lambda: len(term.prompts()) == 5, "the one after the next")
    term.send("q")
    term.wait_for("Q again")
    term.send("z")
    term.until(lambda: "Q again" not in term.shown(), "the question to go")
    assert term.process.poll() is None
    term.send("q")
    term.wait_for("Q again")
    term.send("q")
    term.finish(130, timeout=20)
    assert term.outcomes() == ["done", "done", "aborted", "done"]
    assert "3 of 6 tasks done" in term.shown(), "the summary stays when the screen is gone"


def test_complete_on_the_screen(world: World) -> None:
    """The summary is shown until a person quits; quitting a complete plan is exit 0."""
    term = world.fake("--run", terminal=True)
    term.wait_for("✔ complete")
    term.wait_for("2 of 2 tasks done")
    term.send("q")
    term.finish(0)
    assert "Everything that could be done is done." in term.shown()


def test_retry_after_an_error(world: World) -> None:
    """R after an error starts again, wherever it came from: server and all."""
    fatal = world.fake("--run", answers=["error:401", "work"], terminal=True, store=str(world.folder / "store"))
    no_start = world.fake("--run", starts=["exit", "exit", "exit", ""], terminal=True)
    no_plan = world.fake("--run", answers=["delete"], terminal=True)
    left = world.fake("--run", answers=["error:404"], terminal=True)
    plan = "- [x] Task 1\n\n<plan-complete>By hand</plan-complete>\n"
    fatal.wait_for("opencode auth login")
    for term in (fatal, no_start, no_plan, left):
        term.wait_for("✖ error")
    left.send("q")
    (no_plan.project / "PLAN.md").write_text(plan, "utf-8")
    for term in (fatal, no_start, no_plan):
        term.send("r")
        term.wait_for("✔ complete")
        term.send("q")
        term.finish(0)
    left.finish(1)
    assert len(fatal.events("listening")) == 2 and len(no_start.events("listening")) == 1


def test_rate_limits(world: World) -> None:
    """Row: OpenCode gives up on a rate limit, or parks it: the loop waits, which uses up no --retries."""
    term = world.fake("--run", "--retries", "1", terminal=True,
                      answers=["error:429", "retry-park", "error:429:Slow down", "work"])
    for wait in ("30s", "1m00s", "2m00s"):
        term.wait_said(f"trying again in {wait}")
        term.wait_for(r"◷ waiting(.|\n)* again in ")
        term.send("r")
    term.wait_for("complete")
    term.send("q")
    term.finish(0)
    assert term.outcomes() == ["rate-limited"] * 3 + ["done"] * 2
    assert term.said("OpenCode would wait 23h59m|OpenCode would wait 24h")


def test_asked_in_a_terminal(world: World) -> None:
    """Row: shown, answered with a key; after --ask-timeout refused; --auto; answered elsewhere is no error."""
    term = world.fake("--run", "--notify", "echo $OCLOOP_EVENT >> notes", tasks=6, terminal=True,
                      answers=["ask", "ask-child", "ask", "question", "question", "ask"])

    def asked(number: int) -> None:
        """Wait for so many things to have been asked, and for the last one on the screen."""
        said = re.compile(r"bash: git push|Which way\?")
        term.until(lambda: sum(bool(said.fullmatch(one["text"])) for one in term.records(kind="ask")) == number,
                   f"number {number}")
        term.wait_for(r"waits for you(.|\n)*(git push(.|\n)*Y once|Which way(.|\n)*2 B)")

    asked(1)
    assert "Y once" in term.shown() and "refused in " in term.shown()
    assert "waits for you: bash" in world.say(term.project, "status", status=3)
    for number, key in enumerate("yan2n", 1):
        asked(number)
        term.send(key)
    asked(6)
    state = term.state()
    number = term.events("busy")[-1]["session"] and ask_server(state, "GET", "/permission")[0]["id"]
    ask_server(state, "POST", f"/permission/{number}/reply", {"reply": "once"})
    term.wait_for("complete")
    term.send("q")
    term.finish(0)
    replies = [one["body"].get("reply") for one in term.requests("/permission/.*/reply")]
    assert replies == ["once", "always", "reject", "once"]
    answers = [one["body"]["answers"] for one in term.requests("/question/.*/reply")]
    assert answers[0] == [["B"]] and len(answers) == 2 and term.boxes() == "xxxxxx"
    assert (term.project / "notes").read_text().split()[0] == "asked"

    term = world.fake("--run", "--ask-timeout", "2", answers=["ask", "question"], terminal=True)
    term.wait_for("refused in 2s")
    term.wait_for("complete")
    term.send("q")
    term.finish(0)
    assert term.said("nobody answered for 2s") and term.boxes() == "xx"


def ask_server(state: dict[str, Any], method: str, path: str, body: Any = None) -> Any:
    """A request to the server of a run, as someone else on this machine would send it."""
    request = urllib.request.Request(state["server"] + path, None if body is None else json.dumps(body).encode(),
                                     method=method)
    login = "{}:{}".format(state["username"], state["password"])
    request.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
        return json.loads(response.read() or b"null")


def test_session_in_opencodes_own_interface(world: World) -> None:
    """T gives the terminal to `opencode attach` and takes it back; the run goes on meanwhile."""
    term = world.fake("--run", answers=["sleep:4", "work"], terminal=True)
    term.wait_for("● running")
    term.until(lambda: term.events("busy"), "a busy session")
    session = term.events("busy")[0]["session"]
    term.send("t")
    term.wait_for(rf"attach http://127\.0\.0\.1:\d+ --session {session}(.|\n)*password: yes")
    term.until(lambda: len(term.prompts()) == 2, "the next iteration")
    term.send("\n")
    term.wait_for("✔ complete")
    assert "password: yes" not in term.shown()
    term.send("q")
    term.finish(0)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 130), (signal.SIGKILL, 137)])
def test_ending_while_the_terminal_is_given_away(world: World, number: int, status: int) -> None:
    """What has the terminal goes too, also where ocloop is but a job of a shell."""
    argv = [sys.executable, str(OCLOOP), "run", "--run", "--port", str(free_port()), "--opencode", fake_command()]
    shell = world.execute(world.project(), ["/bin/sh", "-c", f"{shlex.join(argv)}; echo status $?; read _"],
                          terminal=True, FAKE_OPENCODE=json.dumps({"answers": ["hang"]}))
    shell.wait_for("● running")
    shell.until(lambda: shell.state().get("session"), "a session")
    shell.send("t")
    shell.wait_for("password: yes")
    os.kill(int(shell.state()["pid"]), number)
    shell.wait_for(f"status {status}")
    shell.until(lambda: not [line for line in marked(shell.mark).values() if not line.startswith("/bin/sh -c")],
                "the end of what had the terminal")
    shell.send("\n")
    shell.finish(0)


def test_closed_streams_and_odd_encodings(world: World) -> None:
    """Closed standard streams lead nowhere; what an encoding cannot say is replaced."""
    for number, closed in enumerate(("<&-", ">&-", "<&- >&- 2>&-")):
        project = world.project(1, f"closed-{number}")
        argv = [sys.executable, str(OCLOOP), "run", "--port", str(free_port()), "--opencode", fake_command()]
        child = world.execute(project, ["/bin/sh", "-c", f"{shlex.join(argv)} {closed}"], FAKE_OPENCODE="{}")
        child.finish(0)
        assert child.boxes() == "x"
    project = world.project("- [x] one\n- [BLOCKED: a \u2192 b] two\n\n<plan-complete>\u2713</plan-complete>\n", "latin")
    assert "complete" in world.say(project, "status", PYTHONIOENCODING="latin-1")


def test_facts_that_fit_into_no_environment(world: World) -> None:
    """A task of 200 KB, with a NUL in it, is worked all the same, with --check and --notify."""
    project = world.project("- [ ] one \0 " + "x" * 200_000 + "\n", "long")
    child = world.fake("--check", "true", "--notify", "true", project=project).finish(0)
    assert [record["check"] for record in child.records(record="iteration")] == ["passed"]


def test_a_pipe_in_place_of_the_plan(world: World) -> None:
    """What would never end to be read is refused, at the start and under way."""
    project = world.project(1, "pipe")
    (project / "PLAN.md").unlink()
    os.mkfifo(project / "PLAN.md")
    said = world.say(project, "run", "--opencode", fake_command(), status=1)
    assert "it is not a file" in said
    run = world.fake(answers=["hang"])
    run.until(lambda: run.prompts(), "the prompt")
    (run.project / "PLAN.md").unlink()
    os.mkfifo(run.project / "PLAN.md")
    run.finish(1)
    assert "it is not a file" in run.output


def test_stop_and_continue(world: World) -> None:
    """Row: ctrl-z and `fg`: the screen is back, the run goes on."""
    term = world.fake("--run", answers=["sleep:2", "work"], terminal=True, project=world.project(2, "in-a-shell"))
    command = " ".join(map(shlex.quote, term.process.args))
    term.wait_for("● running")
    term.send("q")
    term.wait_for("Q again")
    term.send("q")
    term.finish(130)
    shell = world.execute(term.project, ["/bin/sh", "-i"], terminal=True, PS1="prompt> ",
                          FAKE_OPENCODE=term.env["FAKE_OPENCODE"])
    shell.wait_for("prompt>")
    shell.send(command + "; echo status $?\n")
    shell.wait_for("● running")
    shell.send("\x1a")
    shell.wait_for(r"prompt>\s*$")
    assert "running" not in shell.shown().split("\n")[0]
    until(shell.restored, "the shell's terminal")
    time.sleep(0.5)
    shell.send("fg\n")
    shell.wait_for("✔ complete")
    shell.send("q")
    shell.wait_for(r"prompt>\s*$")
    shell.send("exit\n")
    shell.finish(0)
    assert shell.boxes() == "xx"


def test_terminals_that_can_do_less(world: World) -> None:
    """TERM=dumb and an unknown TERM fall back to lines, and say so; NO_COLOR and ASCII are respected."""
    for term_name in ("dumb", "no-such-terminal"):
        argv_env = {"TERM": term_name}
        run = world.fake(tasks=1, terminal=True, patch=f"import os\nos.environ['TERM'] = {term_name!r}",
                         env=argv_env).finish(0)
        assert f"plain lines, since TERM={term_name}" in run.output
    run = world.fake("--run", tasks=1, terminal=True, env={"NO_COLOR": "1", "LC_ALL": "C", "LANG": "C"})
    run.wait_for(r"\+ complete")
    assert run.shown().isascii()
    run.send("q")
    run.finish(0)
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", run.output)


# ── limits, a gate, a record ───────────────────────────────────────────────────────────────────────────────


def test_limits(world: World) -> None:
    """Issue 5, line 1: a limit ends the loop after the iteration, exit 3, the reason said."""
    iterations = world.fake("--max-iterations", "2", tasks=4)
    cost = world.fake("--max-cost", "1", answers=["cost:0.60"], tasks=4)
    late = world.fake("--max-time", "1s", answers=["sleep:1"], tasks=4)
    twice = world.fake("--max-time", "1s", answers=["hang"], tasks=4)
    in_time = world.fake("--max-iterations", "2", tasks=2)
    iterations.finish(3)
    assert iterations.boxes() == "xx  " and "2 iterations were worked (--max-iterations)" in iterations.output
    cost.finish(3)
    assert cost.boxes() == "xx  " and "$1.20 were spent (--max-cost)" in cost.output
    late.finish(3)
    assert late.boxes().startswith("x") and "--max-time" in late.output
    twice.finish(3)
    assert twice.outcomes() == ["aborted"] and "twice the limit" in twice.output
    assert in_time.finish(0).boxes() == "xx", "the limit of a plan that is complete anyway is none"


def test_a_limit_is_raised(world: World) -> None:
    """Issue 5, line 1: on the screen R goes on with the limit raised by as much again."""
    term = world.fake("--run", "--max-iterations", "1", tasks=3, terminal=True)
    for number in (1, 2):
        term.wait_for(rf"paused(.|\n)*{number} iterations were worked")
        assert len(term.prompts()) == number
        term.send("r")
    term.wait_for("complete")
    term.send("q")
    term.finish(0)
    term = world.fake("--run", "--max-iterations", "1", tasks=3, terminal=True)
    term.wait_for("1 iterations were worked")
    term.send("q")
    term.finish(3)


def test_timeouts(world: World) -> None:
    """Row: provider sends nothing: abort, new session, the plan goes on."""
    long = world.fake("--iteration-timeout", "1", answers=["hang", "work"], tasks=1)
    still = world.fake("--stall-timeout", "1", answers=["hang", "work"], tasks=1)
    for child, expected in ((long, "took longer than 1s"), (still, "nothing happened for 1s")):
        child.finish(0)
        assert child.outcomes() == ["stalled", "done"] and expected in child.output


def test_check(world: World) -> None:
    """Issue 5, line 2: a check that fails is told to the next prompt, and keeps the plan from being complete."""
    check = 'echo "plan=$OCLOOP_PLAN task=$OCLOOP_TASK n=$OCLOOP_ITERATION $OCLOOP_DONE/$OCLOOP_TOTAL"; pwd; ' \
            'test "$OCLOOP_ITERATION" != 1'
    child = world.fake("--check", check, tasks=2).finish(0)
    prompts = child.prompts()
    assert len(prompts) == 2 and "plan=" not in prompts[0]
    for part in (check, "exit status 1", f"plan={child.project}/PLAN.md task=Task 1 n=1 1/2\n{child.project}"):
        assert part in prompts[1]
    assert [record["check"] for record in child.records(record="iteration")] == ["failed", "passed"]
    # One that fails at the end keeps the plan open; its output is cut to the last 4 KB.
    child = world.fake("--check", "seq 5000; test $OCLOOP_ITERATION -gt 2", tasks=1,
                       answers=["work", "nothing"]).finish(0)
    prompts = child.prompts()
    assert len(prompts) == 3 and "\n5000" in prompts[1] and len(prompts[1]) < 5000
    child = world.fake("--check", "echo never good; false", "--stuck", "2", tasks=1, answers=["work", "nothing"])
    child.finish(3)
    assert "the check failed 2 times in a row (--stuck)" in child.output


def test_check_timeout(world: World) -> None:
    """Issue 5, line 2: its whole process group is ended; an interrupted check is no failure."""
    check = "if test $OCLOOP_ITERATION = 1; then sleep 1000 & setsid sleep 1000 & sleep 1000; fi"
    late = world.fake("--check", check, "--check-timeout", "1s", tasks=2)
    child = world.fake("--check", check, tasks=1)
    term = world.fake("--run", "--check", check, terminal=True)
    for run in (child, term):
        run.wait_for_tool()
    child.signal(signal.SIGTERM)
    term.send("x")
    child.finish(130, timeout=20)
    term.wait_for("complete")
    term.send("q")
    term.finish(0)
    assert [record["check"] for record in term.records(record="iteration")] == ["interrupted", "passed"]
    late.finish(0)
    assert "--check-timeout" in late.prompts()[1]


def test_notify(world: World) -> None:
    """Issue 5, line 3: run with the variables when it ends, stops or fails; never waited for, never fatal."""
    command = 'echo "$OCLOOP_EVENT|$OCLOOP_MESSAGE|$OCLOOP_DONE/$OCLOOP_TOTAL|$OCLOOP_PLAN" >> notes'
    cases: list[tuple[list[str], list[str], int, str]] = [
        ([], ["work"], 0, "complete|the plan is complete|2/2|"),
        (["--max-iterations", "1"], ["work"], 3, "stopped|1 iterations were worked (--max-iterations)|1/2|"),
        ([], ["error:401"], 1, "failed|The provider said no:"),
    ]
    for child, status, expected in [(world.fake("--notify", command, *args, answers=answers), status, expected)
                                    for args, answers, status, expected in cases]:
        child.finish(status)
        notes = child.project / "notes"
        until(notes.exists, "a notification", 5)
        assert notes.read_text().startswith(expected) and f"|{child.project}/PLAN.md" in notes.read_text()
    failing = world.fake("--notify", "exit 3")
    world.fake("--notify", "no-such-program").finish(0)
    failing.finish(0)


def test_status(world: World) -> None:
    """Issue 5, line 5: the plan's progress, the run while it runs, how the last one ended; 0, 3 or 1."""
    project = world.project("- [x] Zero\n- [ ] Task 1\n- [BLOCKED: no key] Two\n")
    said = world.say(project, "status", status=3)
    assert "1 of 2 tasks done" in said and "1 blocked" in said and "Task 1" in said and "none so far" in said
    child = world.fake(answers=["sleep:3", "work"], project=project)
    child.until(lambda: child.events("busy"), "a busy session")
    child.until(lambda: child.state().get("session"), "the session in the state file")
    said = world.say(world.folder, "status", "--plan", str(project / "PLAN.md"), status=3)
    session = child.events("busy")[0]["session"]
    for part in ("running", f"process {child.pid}", session, "iteration 1: Task 1", "http://127.0.0.1:"):
        assert part in said
    state = json.loads(world.say(project, "status", "--json", status=3))
    assert (state["done"], state["total"], state["blocked"], state["running"]) == (1, 2, 1, True)
    assert state["run"]["session"] == session and state["run"]["state"] == "running"
    password = child.state()["password"]
    assert password and password not in said and "password" not in json.dumps(state)
    files = list(Path(child.env["XDG_STATE_HOME"], "ocloop").iterdir())
    assert files and all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert not any(password in line for line in marked(child.mark).values()), "never on a command line"
    child.finish(0)
    state = json.loads(world.say(project, "status", "--json"))
    assert state["complete"] and not state["running"] and state["run"]["status"] == 0
    assert "password" not in child.state(), "it is of no use to anybody any more"
    assert "the plan is complete" in world.say(project, "status")
    assert "cannot be read" in world.say(world.folder, "status", status=1)
    assert sorted(path.name for path in project.iterdir()) == [".loop-prompt.md", "PLAN.md"], "nothing of its own"


def test_attach(world: World) -> None:
    """Issue 5, line 6: joins the live session from any other terminal; the password is on no command line."""
    project = world.project()
    said = world.say(project, "attach", status=1)
    assert "no loop works on" in said
    child = world.fake(answers=["sleep:4", "work"], project=project)
    child.until(lambda: child.state().get("session"), "the session in the state file")
    session, password = child.events("busy")[0]["session"], child.state()["password"]
    other = world.start(project, "attach", terminal=True)
    other.wait_for(rf"attach http://127\.0\.0\.1:\d+ --session {session} --dir /")
    other.wait_for("password: yes")
    lines = list(marked(other.mark).values())
    assert any("attach" in line for line in lines) and not any(password in line for line in lines)
    other.send("\n")
    other.finish(0)
    child.finish(0)


def test_logs(world: World) -> None:
    """Issue 5, line 8: an entry per happening, a record per iteration, one of the run; text or JSON lines."""
    child = world.fake("--check", "true", answers=["cost:0.5", "nothing", "work"], tasks=2).finish(0)
    records = child.records()
    for record in records[1:]:
        assert {"time", "kind", "iteration", "session", "text"} <= set(record)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", record["time"])
    assert records[0]["kind"] == "start" and "version" in records[0]
    iterations = child.records(record="iteration")
    assert [one["task"] for one in iterations] == ["Task 1", "Task 2", "Task 2"]
    assert [one["changed"] for one in iterations] == [True, False, True]
    assert iterations[0]["cost"] == 0.5 and iterations[0]["check"] == "passed"
    assert iterations[0]["tokens"]["input"] > 0
    assert iterations[0]["outcome"] == "done" and iterations[0]["seconds"] >= 0
    (last,) = child.records(record="run")
    assert (last["status"], last["done"], last["total"], last["iterations"]) == (0, 2, 2, 3)
    assert last["reason"] and last["summary"] and 0.5 < last["cost"] < 0.6

    log = world.folder / "night.log"
    for _ in range(2):
        world.fake("--log", str(log), tasks=1).finish(0)
    text = log.read_text("utf-8")
    assert text.count("the plan is complete") >= 2, "it is appended to"
    assert text.count("starting OpenCode") == 2, "from the first entry on"
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+ \w+ +\S", line) for line in text.split("\n")[:-1])


def test_verbose_log_can_be_replayed(world: World) -> None:
    """Issue 5, line 8: with --verbose, what the loop was told stands in the log, from start to end."""
    child = world.fake("--verbose", tasks=1).finish(0)
    inputs = child.records(kind="input")
    assert {"ServerReady", "SetupChecked", "FilesRead", "SessionCreated", "PromptAccepted", "ServerEvent",
            "Polled", "Measured"} <= {record["event"] for record in inputs}
    times = [record["now"] for record in inputs]
    assert times == sorted(times) and all(isinstance(record["fields"], dict) for record in inputs)
    assert child.said("session.idle"), "every event of the server is in the activity"


def test_places_that_cannot_be_written(world: World) -> None:
    """Row: disk full or --log unwritable, HOME unwritable: a warning; the loop goes on."""
    blocked = world.folder / "file"
    blocked.write_text("", "utf-8")
    child = world.fake("--log", str(blocked / "below.log")).finish(0)
    assert "cannot write the log" in child.output and child.boxes() == "xx"
    child = world.fake("--log", "/dev/full").finish(0)
    assert child.output.count("cannot write the log /dev/full") == 1 and "No space left" in child.output
    nowhere = {"HOME": str(blocked), "XDG_STATE_HOME": ""}
    child = world.fake(env=nowhere).finish(0)
    assert "cannot be written: using" in child.output and child.boxes() == "xx"
    child = world.fake(env={**nowhere, "TMPDIR": str(blocked)}).finish(0)
    assert "no lock" in child.output and child.boxes() == "xx"


# ── the real OpenCode ──────────────────────────────────────────────────────────────────────────────────────
# Driven by the scripted model of examples/, so without a key. What is about the server's process has a server
# of its own; all else shares one, through --server, each test in a directory of its own.


def find_opencode() -> str:
    """The real OpenCode: named, on PATH, in its usual place, or installed into a cache with npm."""
    named = os.environ.get("OCLOOP_TEST_OPENCODE", "")
    found = named or shutil.which("opencode") or shutil.which(str(Path.home() / ".opencode/bin/opencode"))
    if found:
        return os.path.abspath(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ocloop-test" / VERSION
    program = cache / "node_modules" / ".bin" / "opencode"
    npm = shutil.which("npm")
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the suite may get here at once
        if not (cache / "installed").exists():
            if not npm:
                pytest.fail("no opencode and no npm on PATH: install one of them, or set OCLOOP_TEST_OPENCODE")
            done = subprocess.run([npm, "install", "--prefix", str(cache), f"{PACKAGE}@{VERSION}"], check=False,
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode or not program.exists():
                pytest.fail(f"npm could not install {PACKAGE}@{VERSION}: set OCLOOP_TEST_OPENCODE\n{done.stdout}")
            (cache / "installed").touch()
    return str(program)


@pytest.fixture(scope="session")
def opencode(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = find_opencode()
    env = sealed(tmp_path_factory.mktemp("version") / "home")
    done = subprocess.run([path, "--version"], check=False, env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{path} --version failed: {done.stdout}"
    return path


class RealServer:
    """An `opencode serve` that is not ocloop's."""

    def __init__(self, opencode: str, env: dict[str, str], cwd: Path) -> None:
        self.password = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [opencode, "serve", "--hostname=127.0.0.1", f"--port={free_port()}"], cwd=cwd,
            env={**env, "OPENCODE_SERVER_PASSWORD": self.password}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self.url = listening(self.process)


@pytest.fixture(scope="session")
def server(opencode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Used by many runs of ocloop, none of which may stop it."""
    folder = tmp_path_factory.mktemp("server")
    real = RealServer(opencode, sealed(folder / "home"), folder)
    yield real
    running = real.process.poll() is None
    end_helper(real.process)
    assert running, "somebody stopped the shared server"


def quiz(world: World, tasks: int, name: str = "") -> Path:
    """A project with the first tasks of the example's plan and its prompt."""
    lines = (ROOT / "examples" / "PLAN.md").read_text("utf-8").split("\n")
    places = [number for number, line in enumerate(lines) if line.startswith("- [ ]")]
    prompt = (ROOT / "examples" / "loop-prompt.md").read_text("utf-8")
    return world.project("\n".join(lines[: places[tasks - 1] + 1]) + "\n", name, prompt)


def answers(project: Path) -> list[str]:
    return [path.read_text("utf-8").strip() for path in sorted((project / "answers").glob("*.txt"))]


def test_real_bootstrap_then_run(world: World, opencode: str) -> None:
    """Issue 2: in an empty folder, `bootstrap` then `run --run` to exit 0, with output to a file.

    The folder's name has spaces, & and ü, and it is in no git repository.
    """
    folder = world.folder / "a dir with spaces & ünïcode"
    folder.mkdir()
    world.say(folder, "bootstrap")
    with ScriptedModel() as model:
        child = world.real("--run", model=model, opencode=opencode, project=folder)
        child.finish(0, timeout=120)
    assert set(child.boxes()) <= {"x", "m"} and child.boxes().count("x") >= 2
    assert child.outcomes() == ["done"] * child.boxes().count("x")
    assert "the plan is complete" in child.output and "\x1b" not in child.output
    assert (folder / "notes.txt").read_text("utf-8").count("done: ") == child.boxes().count("x")
    assert all(record["cost"] > 0 for record in child.records(record="iteration"))


def test_real_terminal(world: World, opencode: str) -> None:
    """Issue 2, and the row on what is asked: in a terminal, answered with keys, in a subagent's session too."""
    with ScriptedModel("outside,ask,subagent-outside") as model:
        term = world.real(model=model, opencode=opencode, terminal=True)
        term.wait_for("○ ready")
        assert "0/2" in term.shown() and "scripted/quiz" in term.shown()
        term.send("s")
        term.wait_for(r"May it\? external_directory(.|\n)*/etc(.|\n)*Y once")
        term.send("y")
        term.wait_for(r"In which language(.|\n)*1 English")
        term.resize(60, 16)
        term.send("1")
        term.wait_for(r"May it\? external_directory(.|\n)*Y once")
        term.send("n")
        term.wait_for("✔ complete", 90)
        term.resize(80, 24)
        term.wait_for(r"2/2 100%")
        said = json.dumps(model.requests)
        term.send("q")
        term.finish(0)
    assert answers(term.project) == ["Vienna", "Brussels"] and term.boxes() == "xx"
    assert term.said("approved") and term.said("answered: English") and term.said("refused: by a person")
    assert "localhost" in said, "what was approved was read"
    assert "2 of 2 tasks done" in term.shown()


def test_real_demo(world: World, opencode: str) -> None:
    """Issue 2: `python3 examples/demo.py` works a plan and removes what it made."""
    program = world.folder / "bin" / "opencode"
    program.parent.mkdir()
    program.symlink_to(opencode)
    argv = [sys.executable, str(ROOT / "examples" / "demo.py"), "--plain", "--tasks", "2", "--delay", "0"]
    path = f"{program.parent}{os.pathsep}{world.env['PATH']}"
    child = world.execute(world.project(), argv, PATH=path).finish(0, timeout=120)
    assert "the plan is complete (exit status 0), 2 of 2 tasks are done" in child.output
    assert not list((world.folder / "tmp").glob("ocloop-demo-*")), "the folder is removed"


def test_real_faults_in_one_night(world: World, server: RealServer) -> None:
    """Rows: 429 twice; 500; reset in mid-stream; no finish reason; overflow; asked without a terminal.

    One plan, and in its order: a subagent, todos, a permission and a question in task 1; task 2 is blocked;
    429, 429, 500 and a reset in task 3; answers without a finish reason in task 4; an overflow later.
    """
    faults = "subagent,todo,outside,ask,ok*5,block,ok,429*2,ok,500,ok,cut,ok*3,unknown*4,ok*5,overflow"
    with ScriptedModel(faults) as model:
        child = world.real(model=model, server=server, tasks=6).finish(0, timeout=150)
        given, said = model.given, json.dumps(model.requests)
    assert child.boxes() == "xbxxxx" and set(answers(child.project)) >= {"Vienna", "Copenhagen"}
    outcomes = child.outcomes()
    assert outcomes.count("failed") == 1 and outcomes.count("done") == 6
    for fault in ("subagent", "todo", "outside", "ask", "block", "429", "500", "cut", "unknown", "overflow"):
        assert fault in given, f"{fault} was never had"
    kinds = {record["kind"] for record in child.records()}
    assert {"task", "todo", "ask", "retry", "bash", "read", "write", "edit", "text", "iter", "end"} <= kinds
    assert child.said("external_directory") and child.said("In which language")
    assert child.said("nobody is there to answer") and "Nobody is there to answer" in said
    assert child.said("attempt 1 failed") and child.said("attempt 2 failed")
    assert child.said(r"spins: 3 ") and child.said("the session was compacted")
    assert any(record["kind"] == "bash" and "from the subagent" in record["text"] for record in child.records())
    assert "blocked: Write the capital of Belgium" in child.output


def test_real_auto(world: World, server: RealServer) -> None:
    """Row: --auto approves what is not denied: here, in a subagent, and identical calls."""
    with ScriptedModel("outside,subagent-outside,doom") as model:
        child = world.real("--auto", model=model, server=server, tasks=1).finish(0)
        said = json.dumps(model.requests)
    assert child.boxes() == "x" and "localhost" in said
    approved = [record for record in child.records(kind="ask") if "approved (--auto)" in record["text"]]
    assert len(approved) >= 2 and not child.said("refused")


def test_real_mistakes(world: World, server: RealServer) -> None:
    """Row: 401, unknown model, unknown provider, unknown agent, malformed opencode.json: exit 1, what to do."""
    with ScriptedModel("401*") as model, ScriptedModel() as unused:
        broken = quiz(world, 1, "broken")
        (broken / "opencode.json").write_text('{"model": "scripted/quiz",\n', "utf-8")
        denied = world.real(model=model, server=server, project=quiz(world, 1, "denied"))
        runs = [
            (world.real(*args, model=unused, server=server, project=project), expected)
            for project, args, expected in [
                (quiz(world, 1, "a"), ["-m", "scripted/quizz"], ["scripted/quizz", "did you mean scripted/quiz?"]),
                (quiz(world, 1, "b"), ["-m", "script/quiz"], ["script/quiz", "did you mean scripted/quiz?"]),
                (quiz(world, 1, "c"), ["-a", "biuld"], ["no agent biuld", "did you mean build"]),
                (broken, [], ["opencode.json", "mend it"]),
            ]
        ]
        for run, expected in runs:
            run.finish(1)
            for part in expected:
                assert part in run.output
            assert not run.outcomes() and "Traceback" not in run.output
        denied.finish(1)
        assert "opencode auth login" in denied.output and denied.outcomes() == [] or denied.outcomes() == ["fatal"]
        assert unused.requests == [] and len(model.given) == 1


def test_real_ends(world: World, server: RealServer) -> None:
    """Rows: the provider is silent; the agent does nothing; tag too early; plan deleted; a retry that is parked.

    They run side by side, each with a model of its own.
    """
    cases: list[tuple[str, list[str], str, int, int, list[str]]] = [
        ("hang", ["--iteration-timeout", "15s"], "took longer than 15s", 0, 1, ["stalled", "done"]),
        ("ok,hang", ["--stall-timeout", "15s"], "nothing happened for 15s", 0, 1, ["stalled", "done"]),
        ("nothing*", ["--stuck", "2"], "2 iterations in a row changed no task", 3, 1, ["done", "done"]),
        ("complete-early", [], "2 tasks still pending", 3, 2, ["done"]),
        ("ok,delete-plan", [], "PLAN.md cannot be read", 1, 1, []),
    ]
    models = [ScriptedModel(case[0]).start() for case in cases]
    runs = [
        world.real(*case[1], model=model, server=server, project=quiz(world, case[4], f"case-{number}"))
        for number, (case, model) in enumerate(zip(cases, models))
    ]
    for (fault, _, expected, status, _, outcomes), run, model in zip(cases, runs, models):
        run.finish(status, timeout=120)
        assert expected in run.output, fault
        assert run.outcomes() == outcomes, fault
        model.close()
    with ScriptedModel("429:3600") as model:
        parked = world.real(model=model, server=server, tasks=1)
        parked.wait_said("OpenCode would wait 59m|OpenCode would wait 1h")
        parked.wait_said("trying again in 30s")
        parked.signal(signal.SIGTERM)
        parked.finish(130)
        assert parked.outcomes() == ["rate-limited"] and len(model.given) == 1


def test_real_refused(world: World, server: RealServer) -> None:
    """Row: the provider refuses connections, then is there: OpenCode's retry is shown, the plan completes."""
    gone = ScriptedModel().start()
    gone.close()
    child = world.real(model=gone, server=server, tasks=1)
    child.wait_said("attempt 1 failed")
    with ScriptedModel(port=int(gone.url.split(":")[2].partition("/")[0])):
        child.finish(0, timeout=120)
    assert child.boxes() == "x" and child.outcomes() == ["done"]


def test_real_check(world: World, server: RealServer) -> None:
    """Issue 5: a check that fails once: the next prompt has its output, the plan completes after it passes."""
    check = "test -e mended || { touch mended; echo the capital of Austria is in doubt; false; }"
    with ScriptedModel() as model:
        child = world.real("--check", check, model=model, server=server).finish(0, timeout=90)
        messages = [message for request in model.requests for message in request["messages"]]
        prompts = [message for message in messages if message["role"] == "user"]
    assert child.boxes() == "xx"
    assert [record["check"] for record in child.records(record="iteration")] == ["failed", "passed"]
    told = [prompt for prompt in prompts if "the capital of Austria is in doubt" in json.dumps(prompt)]
    assert told and "exit status 1" in json.dumps(told[0]) and len(told) < len(prompts)


def test_real_server_killed(world: World, opencode: str) -> None:
    """Row: the server is killed: restarted, the iteration goes on; the plan completes."""
    with ScriptedModel(["ok", "slow:60"]) as model:
        child = world.real(model=model, opencode=opencode, tasks=1)
        child.until(lambda: "slow:60" in model.given, "a session at work")
        child.kill_server()
        child.finish(0, timeout=120)
    assert child.boxes() == "x" and child.outcomes() == ["done"] and child.said("the server ended by itself")
    assert len({record["session"] for record in child.records() if record.get("session")}) == 1


def test_real_stopped_in_a_tool(world: World, opencode: str) -> None:
    """Rows: SIGINT, SIGTERM, Q: exit 130, tools and server gone; SIGKILL: nothing left some seconds later.

    The tool is `sleep 1000`, which OpenCode starts in a session of its own.
    """
    with ScriptedModel(["bash:sleep 1000"] * 4) as model:

        def start(terminal: bool = False) -> Any:
            return world.real("--run", model=model, opencode=opencode, tasks=1, terminal=terminal)

        term, second, third, fourth = start(terminal=True), start(), start(), start()
        for run in (term, second, third, fourth):
            run.wait_for_tool()
        term.send("q")
        term.wait_for("Q again")
        term.send("q")
        second.signal(signal.SIGINT)
        third.signal(signal.SIGTERM)
        fourth.signal(signal.SIGKILL)
        fourth.finish(-signal.SIGKILL, patience=5)
        for run in (term, second, third):
            run.finish(130, timeout=20)


# ── golden layouts ───────────────────────────────────────────────────────────────────────────────────────
# `python` with this file as its argument writes them anew.

# golden: begin
GOLDEN: dict[str, str] = {
    "starting 80x24": r"""
 ◌
+ starting 7s
 ████████████···································· 1/4  25%  1 blocke
+d  1 manual
 ▸ Write the parser  Phase 1:
+ foundations
 OpenCode's default model                            ↑   0 ↓   0 ⟳
+   0  $0.0000
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 server   starti
+ng OpenCode
















─────────────────────────────────────────────────────────────────────
+───────────
 S start  ? h
+elp  Q quit
""",
    "starting 40x12": r"""
 ◌
+ starting 7s
 ███████▎···················
+·· 1/4  25%
 ▸ Write the parser  Phase 1
+: foundati…
 OpenCode's  ↑   0 ↓   0 ⟳
+   0  $0.0000
─────────────────────────────
+───────────
 08:00 server starti
+ng OpenCode




─────────────────────────────
+───────────
 S start  ? h
+elp  Q quit
""",
    "ready 80x24": r"""
 ○ ready 7s
 ████████████···································· 1/4  25%  1 blocke
+d  1 manual
 ▸ Write the parser  Phase 1:
+ foundations
 a/b                                                 ↑   0 ↓   0 ⟳
+   0  $0.0000
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 server   starti
+ng OpenCode
 08:00:00 server   OpenCode 1.18.33 on http://127
+.0.0.1:4096















─────────────────────────────────────────────────────────────────────
+───────────
 S start  ? h
+elp  Q quit
""",
    "ready 40x12": r"""
 ○ ready 7s
 ███████▎···················
+·· 1/4  25%
 ▸ Write the parser  Phase 1
+: foundati…
 a/b         ↑   0 ↓   0 ⟳
+   0  $0.0000
─────────────────────────────
+───────────
 08:00 server starti
+ng OpenCode
 08:00 server OpenCode
+ 1.18.33 on
              http://127
+.0.0.1:4096


─────────────────────────────
+───────────
 S start  ? h
+elp  Q quit
""",
    "running 80x24": r"""
 ● running 2m19s            iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on wha
+t people r…
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 server   OpenCode 1.18.33 on http://127
+.0.0.1:4096
 08:00:00 task     Write
+ the parser
 08:00:00 think    I have to read the
+ plan first.
 08:00:00 read
+     PLAN.md
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
─────────────────────────────────────────────────────────────────────
+───────────
 Space pause  X abort  T session  ? h
+elp  Q quit
""",
    "running 40x12": r"""
 ● running 2m19s      #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 ▸ Test the parser on every
+ example of…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
              what people r
+eally write
 08:01 task
+   look around
 08:01 grep     def tes
+t_ in tests
       task   look
+ around  42s
       bash   python -m pyt
+est -q  42s
─────────────────────────────
+───────────
 Space pause  X abort  ? h
+elp  Q quit
""",
    "running 120x40": r"""
 ● running 2m19s                                                    iteration 2  2m19s elapsed  1m36
+s each  ≈3m13s left
 ██████████████████████████████······························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on what people really write  Phase 1:
+ foundations
 a/b                                                                            ↑  10 ↓   6 ⟳   4  c
+ontext  0%  $0.1234
────────────────────────────────────────────────────────────────────────────────────────────────────
+────────────────────
 08:00:00 server   starti
+ng OpenCode
 08:00:00 server   OpenCode 1.18.33 on http://127
+.0.0.1:4096
 08:00:00 task     Write
+ the parser
 08:00:00 think    I have to read the
+ plan first.
 08:00:00 read
+     PLAN.md
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ──────────────────────────────────
+────────────────────
 08:01:36 task     Test the parser on every example of the specification, and on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
















────────────────────────────────────────────────────────────────────────────────────────────────────
+────────────────────
 Space pause  X abort  T session  ? h
+elp  Q quit
""",
    "running 20x5": r"""
 ● runni
+ng 2m19s #2
 ████▌··
+·· 2/4  50%
 ▸ Test
+ the parser…
 a/b
+        $0.1234
 ? h
+elp  Q quit
""",
    "pausing 80x24": r"""
 ◐ pausing 0s               iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 after thi
+s iteration
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 server   OpenCode 1.18.33 on http://127
+.0.0.1:4096
 08:00:00 task     Write
+ the parser
 08:00:00 think    I have to read the
+ plan first.
 08:00:00 read
+     PLAN.md
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
─────────────────────────────────────────────────────────────────────
+───────────
 Space go on  X abort  T session  ? h
+elp  Q quit
""",
    "pausing 40x12": r"""
 ◐ pausing 0s         #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 after thi
+s iteration
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
              what people r
+eally write
 08:01 task
+   look around
 08:01 grep     def tes
+t_ in tests
       task   look
+ around  42s
       bash   python -m pyt
+est -q  42s
─────────────────────────────
+───────────
 Space go on  X abort  ? h
+elp  Q quit
""",
    "paused 80x24": r"""
 ‖ paused 0s                iteration 2  2m19s elapsed  1m09s each
+  ≈1m09s left
 ████████████████████████████████████············ 3/4  75%  1 blocke
+d  1 manual
 2 iterations were worked (--max-
+iterations)
 a/b                                    ↑  20 ↓  12 ⟳   8  context
+  2%  $0.2000
─────────────────────────────────────────────────────────────────────
+───────────
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:20 plan     ✔
+ 3 of 4 done
── 2 done in 43s · 3/4 · 20 tokens · $0.0766 · Test the parser on ev
+ery example
 08:02:20 end      2 iterations were worked (--max-
+iterations)
 08:02:20 end      3 of 4 tasks done (75 %), 1 blocked, 1 manual; 2
+ iterations
                   in 2m19s; 40 toke
+ns, $0.2000
 08:02:20 end      blocked: Deploy it (
+no key yet)
 08:02:20 end      manua
+l: Tell Bob
─────────────────────────────────────────────────────────────────────
+───────────
 Space go on  R raise the limit  ? h
+elp  Q quit
""",
    "paused 40x12": r"""
 ‖ paused 0s          #2  2m
+19s  ≈1m09s
 █████████████████████▊·····
+·· 3/4  75%
 2 iterations were worked (--
+max-iterat…
 a/b         ↑  20 ↓  12 ⟳
+   8  $0.2000
─────────────────────────────
+───────────
              iterations i
+n 2m19s; 40
              toke
+ns, $0.2000
 08:02 end    blocked: De
+ploy it (no
              key yet)
 08:02 end    manua
+l: Tell Bob
─────────────────────────────
+───────────
 Space go on  ? h
+elp  Q quit
""",
    "waiting 80x24": r"""
 ◷ waiting 0s               iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 Rate limit reached: try again later: a
+gain in 30s
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 task     Write
+ the parser
 08:00:00 think    I have to read the
+ plan first.
 08:00:00 read
+     PLAN.md
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:19 error    ✖ APIError: Rate limit reached: try
+ again later
── 2 rate-limited in 43s · 2/4 · 0 tokens · $0.0000 · Test the parser
+ on every e
 08:02:20 retry    trying a
+gain in 30s
─────────────────────────────────────────────────────────────────────
+───────────
 Space pause  R retry  ? h
+elp  Q quit
""",
    "waiting 40x12": r"""
 ◷ waiting 0s         #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 Rate limit reached: try agai
+n later: a…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
 08:01 grep     def tes
+t_ in tests
 08:02 error  ✖ APIError:
+ Rate limit
              reached: try
+ again later
── 2 rate-limited in 43s · 2/
+4 · 0 token
 08:02 retry  trying a
+gain in 30s
─────────────────────────────
+───────────
 Space pause  R retry  ? h
+elp  Q quit
""",
    "stopping 80x24": r"""
 ◌ stopping 0s              iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 a
+ person quit
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:19 end      a
+ person quit
 08:02:19 end      2 of 4 tasks done (50 %), 1 blocked, 1 manual; 2
+ iterations
                   in 2m19s; 20 toke
+ns, $0.1234
 08:02:19 end      blocked: Deploy it (
+no key yet)
 08:02:19 end      manua
+l: Tell Bob
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
─────────────────────────────────────────────────────────────────────
+───────────

""",
    "stopping 40x12": r"""
 ◌ stopping 0s        #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 a
+ person quit
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
 08:02 end    blocked: De
+ploy it (no
              key yet)
 08:02 end    manua
+l: Tell Bob
       task   look
+ around  42s
       bash   python -m pyt
+est -q  42s
─────────────────────────────
+───────────

""",
    "complete 80x24": r"""
 ✔ complete 0s                           iteration 2  2m19s elapsed
+  1m09s each
 ████████████████████████████████████████████████ 4/4 100%  1 blocke
+d  1 manual
 the plan
+ is complete
 a/b                                    ↑  20 ↓  12 ⟳   8  context
+  2%  $0.3734
─────────────────────────────────────────────────────────────────────
+───────────
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:19 plan     ✔
+ 4 of 4 done
── 2 done in 43s · 4/4 · 20 tokens · $0.2500 · Test the parser on ev
+ery example
 08:02:19 end      ✔ the plan
+ is complete
 08:02:19 end      The pa
+rser works.
 08:02:19 end      Deploying n
+eeds a key.
 08:02:19 end      4 of 4 tasks done (100 %), 1 blocked, 1 manual; 2
+ iterations
                   in 2m19s; 40 toke
+ns, $0.3734
 08:02:19 end      blocked: Deploy it (
+no key yet)
 08:02:19 end      manua
+l: Tell Bob
─────────────────────────────────────────────────────────────────────
+───────────
 ? h
+elp  Q quit
""",
    "complete 40x12": r"""
 ✔ complete 0s
+                #2  2m19s
 ███████████████████████████
+██ 4/4 100%
 the plan
+ is complete
 a/b         ↑  20 ↓  12 ⟳
+   8  $0.3734
─────────────────────────────
+───────────
              2 iterations i
+n 2m19s; 40
              toke
+ns, $0.3734
 08:02 end    blocked: De
+ploy it (no
              key yet)
 08:02 end    manua
+l: Tell Bob
─────────────────────────────
+───────────
 ? h
+elp  Q quit
""",
    "error 80x24": r"""
 ✖ error 3s                 iteration 2  2m27s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 the plan /project/PLAN.md cannot be read (No such file):
+ put it back
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:22 warn     the plan /project/PLAN.md cannot be read (No such
+ file): put
                   it back
 08:02:27 end      ✖ the plan /project/PLAN.md cannot be read (No
+ such file):
                   put it back
 08:02:27 end      2 of 4 tasks done (50 %), 1 blocked, 1 manual; 2
+ iterations
                   in 2m27s; 20 toke
+ns, $0.1234
 08:02:27 end      blocked: Deploy it (
+no key yet)
 08:02:27 end      manua
+l: Tell Bob
─────────────────────────────────────────────────────────────────────
+───────────
 R retry  ? h
+elp  Q quit
""",
    "error 40x12": r"""
 ✖ error 3s           #2  2m
+27s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 the plan /project/PLAN.md ca
+nnot be re…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
              iterations i
+n 2m27s; 20
              toke
+ns, $0.1234
 08:02 end    blocked: De
+ploy it (no
              key yet)
 08:02 end    manua
+l: Tell Bob
─────────────────────────────
+───────────
 R retry  ? h
+elp  Q quit
""",
    "permission 80x24": r"""
 ? waits for you 2m19s      iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on wha
+t people r…
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:19 ask      bash: rm
+ *, rm -r x
 08:02:19 ask      bash: rm
+ *, rm -r x
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
─────────────────────────────────────────────────────────────────────
+───────────
 ? May it? bash  (refused in 5m00s)
+  (+1 more)
   rm
+ *, rm -r x
   Y once   A al
+ways   N no
""",
    "permission 40x12": r"""
 ? waits for you 2m19s #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 ▸ Test the parser on every
+ example of…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
 08:02 ask    bash: rm
+ *, rm -r x
       task   look
+ around  42s
       bash   python -m pyt
+est -q  42s
─────────────────────────────
+───────────
 ? May it? bash  (refused in
+ 5m00s)  (+1
   rm
+ *, rm -r x
   Y once   A al
+ways   N no
""",
    "question 80x24": r"""
 ? waits for you 2m19s      iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on wha
+t people r…
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:19 ask      In whic
+h language?
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
─────────────────────────────────────────────────────────────────────
+───────────
 ? It asks  (refuse
+d in 5m00s)
   In whic
+h language?
   1 English - As th
+e plan says
   2 Local
   N no
+ne of these
""",
    "question 40x12": r"""
 ? waits for you 2m19s #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 ▸ Test the parser on every
+ example of…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
       task   look
+ around  42s
       bash   python -m pyt
+est -q  42s
─────────────────────────────
+───────────
 ? It asks  (refuse
+d in 5m00s)
   In whic
+h language?
   1 English - As th
+e plan says
   2 Local
   N no
+ne of these
""",
    "question 120x40": r"""
 ? waits for you 2m19s                                              iteration 2  2m19s elapsed  1m36
+s each  ≈3m13s left
 ██████████████████████████████······························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on what people really write  Phase 1:
+ foundations
 a/b                                                                            ↑  10 ↓   6 ⟳   4  c
+ontext  0%  $0.1234
────────────────────────────────────────────────────────────────────────────────────────────────────
+────────────────────
 08:00:00 server   starti
+ng OpenCode
 08:00:00 server   OpenCode 1.18.33 on http://127
+.0.0.1:4096
 08:00:00 task     Write
+ the parser
 08:00:00 think    I have to read the
+ plan first.
 08:00:00 read
+     PLAN.md
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ──────────────────────────────────
+────────────────────
 08:01:36 task     Test the parser on every example of the specification, and on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
 08:02:19 ask      In whic
+h language?
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s











────────────────────────────────────────────────────────────────────────────────────────────────────
+────────────────────
 ? It asks  (refuse
+d in 5m00s)
   In whic
+h language?
   1 English - As th
+e plan says
   2 Local
   N no
+ne of these
""",
    "question 20x5": r"""
 ? asked
+ 2m19s #2  2
─────────
+───────────
 ? It ask
+s  (refused
   In which
   N no
+ne of these
""",
    "help 80x24": r"""
 ● running 2m19s            iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on wha
+t people r…
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 S
+                      start
 Space                  pause after this iteratio
+n, or go on
 R                      retry after an error; go on
+ at a limit
 X                      abort thi
+s iteration
 T                      this session in OpenCode's own interfac
+e, and back
 arrows PgUp PgDn End   scroll t
+he activity
 Y A N                  permission: once,
+ always, no
 1-9 N                  question: an answ
+er, or none
 ?
+                      this help
 Q                      quit (asks once while an iter
+ation runs)

 ◌ starting the server is starting   ○ ready
+    S starts
 ● running  a session is at work     ◐ pausing  pauses aft
+er this one
 ‖ paused   Space goes on            ◷ waiting  tries agai
+n by itself
 ◌ stopping ends everything          ✔ complete the p
+lan is done
 ✖ error    R s
+tarts again
 ▸ the current task   tokens: ↑ in   ↓ out   ⟳ fro
+m the cache
─────────────────────────────────────────────────────────────────────
+───────────
 Space pause  X abort  T session  ? h
+elp  Q quit
""",
    "help 40x12": r"""
 ● running 2m19s      #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 ▸ Test the parser on every
+ example of…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
 S
+                      start
 Space                  pause
+ after this
 R                      retry
+ after an e
 X                      abort
+ this itera
 T                      this
+ session in
─────────────────────────────
+───────────
 Space pause  X abort  ? h
+elp  Q quit
""",
    "quit 80x24": r"""
 ● running 2m19s            iteration 2  2m19s elapsed  1m36s each
+  ≈3m13s left
 ████████████████████████························ 2/4  50%  1 blocke
+d  1 manual
 ▸ Test the parser on every example of the specification, and on wha
+t people r…
 a/b                                    ↑  10 ↓   6 ⟳   4  context
+  0%  $0.1234
─────────────────────────────────────────────────────────────────────
+───────────
 08:00:00 server   OpenCode 1.18.33 on http://127
+.0.0.1:4096
 08:00:00 task     Write
+ the parser
 08:00:00 think    I have to read the
+ plan first.
 08:00:00 read
+     PLAN.md
 08:00:00 bash     ✖ make test  1m12s  failed: ex
+it status 2
 08:01:36 todo     0
+/2 write it
 08:01:36 edit     parser
+.py +120 -3
 08:01:36 text     The parser
+ is written:
                   it reads **all** of the examples, [x] and
+ [bold] too.
 08:01:36 plan     ✔
+ 2 of 4 done
── 1 done in 1m36s · 2/4 · 20 tokens · $0.1234 · Write the parser ───
+───────────
 08:01:36 task     Test the parser on every example of the specifi
+cation, and
                   on what people r
+eally write
 08:01:37 task
+     look around
 08:01:37 grep       def tes
+t_ in tests
          task     look
+ around  42s
          bash     python -m pyt
+est -q  42s
─────────────────────────────────────────────────────────────────────
+───────────
 Q again stops the iteration and quits, any other
+ key goes on
""",
    "quit 40x12": r"""
 ● running 2m19s      #2  2m
+19s  ≈3m13s
 ██████████████▌············
+·· 2/4  50%
 ▸ Test the parser on every
+ example of…
 a/b         ↑  10 ↓   6 ⟳
+   4  $0.1234
─────────────────────────────
+───────────
              what people r
+eally write
 08:01 task
+   look around
 08:01 grep     def tes
+t_ in tests
       task   look
+ around  42s
       bash   python -m pyt
+est -q  42s
─────────────────────────────
+───────────
 Q again stops the iteration
+ and quits,
""",
}
# golden: end


def write_goldens() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    block = "".join(f'    "{name}": r"""\n{text}\n""",\n' for name, text in goldens().items())
    with open(__file__, encoding="utf-8") as file:
        before, _, rest = file.read().partition("# golden: begin\n")
    after = rest.partition("# golden: end\n")[2]
    with open(__file__, "w", encoding="utf-8") as file:
        file.write(f"{before}# golden: begin\nGOLDEN: dict[str, str] = {{\n{block}}}\n# golden: end\n{after}")


if __name__ == "__main__":
    write_goldens()
