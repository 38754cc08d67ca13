#!/usr/bin/env python3
"""A fake `opencode`, for what the real one cannot be made to do, and for measuring what a loop costs.

It speaks the part of the HTTP interface of `opencode serve` 1.18.33 that a loop needs, with the same bodies
and the same order of events, and answers in less than a millisecond. In place of a model it has one setting,
so every fault can be had on demand. Put it on PATH under the name `opencode`, or name it with
`ocloop --opencode`.

    fake_opencode.py serve --hostname=127.0.0.1 --port=4096
    fake_opencode.py attach http://127.0.0.1:4096 --session ses_1
    fake_opencode.py --version

The setting is the environment variable FAKE_OPENCODE, a JSON object. All its keys may be left out:

    answers       list: what the agent does, one entry for each new prompt, the last one repeated; ["work"]
    again         what it does when the ids of a prompt that it did not answer are sent again: "work";
                  "same" repeats the fault
    delay         seconds of work in each answer; 0
    store         path: sessions and messages are kept here (JSON lines) and read again by the next process
    log           path: JSON lines, {"time", "method", "path", "body"} for each request when it arrives, and
                  {"time", "event", ...} for "exec", "listening", "busy", "idle", "flood", "flooded",
                  "spawned", "frozen" and "died"; time is time.time()
    start         "exit" (one line on stderr, exit status 3), "silent" (never says that it listens, nor does
                  it), "slow:SECONDS"; else a usual start
    starts        list: `start` for each process in turn, the last one repeated; counted in a file, see
                  `counter`
    counter       path of that file; the log's or the store's name with ".starts" appended
    port          listen on this port instead of the one that was asked for; 0 is any free one
    routes        "five": only POST /session, prompt_async and abort, GET /event and GET /config; else 404
    config_error  true: every route of the directory answers 400 ConfigJsonError
    heartbeat     seconds between server.heartbeat events; 10
    per_chunk     events in one HTTP chunk of a flood; 1, as on the real server's socket
    memory        MiB to take at the start; a list gives each process its own, counted as `starts` are
    stubborn      true: SIGTERM, SIGINT and SIGHUP are ignored
    model         the configured model, "fake/model"
    models        the models that exist; [model]
    agents        the agents that exist; ["build", "plan", "general", "explore"]

The plan is the file that the prompt names: an absolute path that ends in .md and exists. The answers:

    work          mark the first pending task done; when none is left after that, append the completion tag
    mark          mark the first pending task done, and nothing else
    all           mark all of them done, append the tag
    block         turn the first pending task into a blocked one
    finish        append the tag, whatever is pending
    complete-early  mark the first pending task done, append the tag
    nothing       answer without touching the plan
    delete        delete the plan
    empty         make the plan an empty file
    half          write half the plan, put it back with a task done a second later
    cost:USD      work, and that is what it cost
    sleep:SECONDS   work after that time
    error:CODE    the provider's APIError with this status, not retryable; error:CODE:MESSAGE sets its message
    auth          ProviderAuthError
    retry:SECONDS   session.status retry, due after that time, then work
    retry-park    the same with a day to wait
    unknown       answers without a finish reason, about 20 a second, until it is aborted
    overflow      ContextOverflowError while running, a compaction, the answer under a new parent
    hang          busy for ever, nothing comes
    silent        204, then nothing: the prompt is stored, never busy, never answered
    noidle        work, but no idle event is sent
    falsebusy     work, but it stays busy for the status route, and no idle event; falsebusy:idle sends
                  the events
    drop          close the event streams in mid-answer, finish the answer at once
    die           half an answer and half an event, then exit status 1 with a line on stderr
    freeze        busy, then no answer on any route ever, no event, no heartbeat; connections are still
                  accepted
    ask           permission.asked; `reject` without a message ends the turn, anything else goes on with work
    ask-child     the same from a subagent's session; then the parent works
    question      question.asked; a reply goes on with work, a rejection ends the turn
    typed         before the answer, a person types a message of their own, which is answered and goes idle
    garbage       invalid JSON and UTF-8, unknown types, comments, other sessions' events, then work
    flood:N       N text deltas as fast as they are read, then work
    bigline:BYTES one tool part with that much output, then work
    spawn         a `sleep 1000` with a session of its own, as bash tools have, then work; spawn:hang never
                  ends
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

VERSION = "1.18.33"
FIVE = re.compile(r"POST /session(/[^/]+/(prompt_async|abort))?|GET /(event|config)")
TASK = re.compile(r"(\s*(?:[-*+]|\d+[.)])\s+)\[ ?\](?=\s+(?!\**\[(?:manual|blocked)\b)\S)", re.IGNORECASE)
KEYS = [
    "answers",
    "again",
    "delay",
    "store",
    "log",
    "start",
    "starts",
    "counter",
    "routes",
    "config_error",
    "heartbeat",
    "memory",
    "stubborn",
    "port",
    "per_chunk",
    "model",
    "models",
    "agents",
]
PLAIN = [
    "work",
    "mark",
    "all",
    "block",
    "finish",
    "complete-early",
    "nothing",
    "delete",
    "empty",
    "silent",
    "same",
]
DELTAS = 4096
BACKLOG = 1 << 20

Json = dict[str, Any]
encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Aborted(Exception):
    """Ends a turn from within: somebody called abort, or the server is being disposed of."""


def milliseconds() -> int:
    """OpenCode's unit of time: whole milliseconds since the epoch."""
    return int(time.time() * 1000)


def chunk(data: bytes) -> bytes:
    """One event is one HTTP chunk, as on the real server's socket."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def frame(event: Json) -> bytes:
    """An event as it stands on the wire."""
    return chunk(b"data: " + encode(event).encode("utf-8", "replace") + b"\n\n")


def merge(frames: list[bytes], count: int) -> bytes:
    """The frames one after the other, with `count` events in each chunk."""
    if count > 1:
        events = [data.partition(b"\r\n")[2][:-2] for data in frames]
        frames = [chunk(b"".join(events[at : at + count])) for at in range(0, len(events), count)]
    return b"".join(frames)


def find_plan(text: str) -> str:
    """The first absolute path in a prompt that ends in .md and exists, "" if there is none.

    Folders may have spaces in their names, so every slash of a line may be the start.
    """
    for line in text.splitlines():
        for end in re.finditer(r"\.md\b", line):
            for start in re.finditer("/", line[: end.start()]):
                path = line[start.start() : end.end()]
                if os.path.isfile(path):
                    return path
    return ""


def mark_tasks(text: str, box: str, count: int) -> tuple[str, int]:
    """The plan with the boxes of its first `count` pending tasks replaced, and how many are left pending."""
    lines = text.split("\n")
    fence, comment, left = "", False, 0
    for number, line in enumerate(lines):
        opened = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            if opened and opened[1].startswith(fence):
                fence = ""
        elif comment or "<!--" in line:
            comment = line.rfind("-->") < line.rfind("<!--") if "<!--" in line else "-->" not in line
        elif opened:
            fence = opened[1]
        elif TASK.match(line):
            if count:
                lines[number] = TASK.sub(lambda found: found[1] + box, line, count=1)
                count -= 1
            else:
                left += 1
    return "\n".join(lines), left


def read_plan(path: str) -> str:
    """The plan's text with its own line ends and, if need be, its own bad bytes."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def write_plan(path: str, text: str) -> None:
    """Write in place, as the real tools do: a reader may well see half of it."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)


def append_tag(text: str) -> str:
    """The plan with the completion tag at its end."""
    return text.rstrip("\n") + "\n\n<plan-complete>Everything that could be done is done.</plan-complete>\n"


def edit_plan(path: str, answer: str) -> bool:
    """Do to the plan what the answer says; False where there was nothing to edit."""
    if answer == "nothing" or not os.path.isfile(path):
        return False
    if answer == "delete":
        os.unlink(path)
        return True
    text = read_plan(path)
    if answer == "empty":
        text = ""
    elif answer == "finish":
        text = append_tag(text)
    elif answer == "block":
        text, _ = mark_tasks(text, "[BLOCKED: no key]", 1)
    elif answer == "all":
        text = append_tag(mark_tasks(text, "[x]", -1)[0])
    else:
        text, left = mark_tasks(text, "[x]", 1)
        if answer == "complete-early" or (answer == "work" and not left and "<plan-complete>" not in text):
            text = append_tag(text)
    write_plan(path, text)
    return True


class Stream:
    """One open `GET /event`.

    Events are written by whoever has one, straight to the socket, so that nothing is measured but the reader.
    What a slow reader leaves is kept and written by the connection's own thread, as the real server grows
    rather than stops.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.backlog = bytearray()
        self.changed = threading.Condition()
        self.ended = False

    def write(self, data: bytes) -> None:
        """Send, or keep what cannot be sent now; never waits."""
        with self.changed:
            if self.ended:
                return
            sent = 0
            if not self.backlog:
                try:
                    sent = self.connection.send(data, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    self.ended = True
            if sent < len(data):
                self.backlog += data[sent:]
                self.changed.notify_all()

    def drain(self) -> None:
        """Wait until the reader is not far behind."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or len(self.backlog) < BACKLOG)

    def end(self) -> None:
        """No more events; the connection's thread returns from `run`."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def cut(self) -> None:
        """Break the connection as a network would."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.end()

    def run(self, heartbeat: float, beat: Callable[[], bytes]) -> None:
        """Write what readers left and the heartbeats, until the stream ends."""
        due = time.monotonic() + heartbeat
        while True:
            with self.changed:
                if not self.backlog and not self.ended:
                    self.changed.wait(max(0.0, due - time.monotonic()))
                if self.ended:
                    return
                part = bytes(self.backlog[: 1 << 18])
            if part:
                try:
                    sent = self.connection.send(part)
                except OSError:
                    return self.end()
                with self.changed:
                    del self.backlog[:sent]
                    self.changed.notify_all()
            if time.monotonic() >= due:
                due += heartbeat
                self.write(beat())


class Turn:
    """One prompt being answered, in a thread of its own."""

    def __init__(self, server: Server, session: Json, user: Json, plan: str) -> None:
        self.server = server
        self.session = session
        self.id: str = session["id"]
        self.user = user
        self.plan = plan
        self.cost = 0.00028
        self.message: Json = {}
        self.frames: list[bytes] = []
        self.wake = threading.Event()
        self.aborted = False
        self.retrying = False
        self.reply: Json | None = None

    # What all answers are made of.

    def publish(self, kind: str, **properties: Any) -> None:
        """Note an event; `flush` sends what was noted in one piece, as the real server does."""
        self.frames.append(frame(self.server.event(kind, properties)))

    def flush(self) -> None:
        """Send the events noted so far."""
        data, self.frames = b"".join(self.frames), []
        self.server.send(data)

    def wait(self, seconds: float | None = None) -> None:
        """Sleep, or wait for a reply when no time is given; raises Aborted when somebody aborts."""
        self.flush()
        self.wake.wait(seconds)
        if self.aborted:
            raise Aborted
        self.wake.clear()

    def status(self, kind: str, **more: Any) -> None:
        """Set the session's status, the route's and the event's."""
        self.server.status[self.id] = {"type": kind, **more}
        self.publish("session.status", sessionID=self.id, status={"type": kind, **more})

    def idle(self) -> None:
        """The end of a turn: the key is gone from the status route before anybody is told."""
        self.server.status.pop(self.id, None)
        self.idle_events(self.id)
        self.server.note("idle", session=self.id)
        self.flush()

    def idle_events(self, session: str) -> None:
        """The two events that say a session went idle."""
        self.publish("session.status", sessionID=session, status={"type": "idle"})
        self.publish("session.idle", sessionID=session)

    def session_updated(self) -> None:
        """The session's cumulative figures."""
        self.session["time"]["updated"] = milliseconds()
        self.publish("session.updated", sessionID=self.id, info=self.session)

    def message_updated(self, message: Json) -> None:
        """A message's own figures; also kept in the store."""
        self.publish("message.updated", sessionID=message["info"]["sessionID"], info=message["info"])
        self.server.keep(message=message)

    def part(self, message: Json, part: Json) -> Json:
        """Add a part to a message, or say that it changed."""
        if not any(part is other for other in message["parts"]):
            part.setdefault("id", self.server.new_id("prt"))
            part.update(messageID=message["info"]["id"], sessionID=message["info"]["sessionID"])
            message["parts"].append(part)
        self.publish("message.part.updated", sessionID=part["sessionID"], part=part, time=milliseconds())
        return part

    def user_message(self, text: str, **part: Any) -> Json:
        """A further user message in this session: a person's, or a compaction's."""
        info = {**self.user["info"], "id": self.server.new_id("msg"), "time": {"created": milliseconds()}}
        message: Json = {"info": info, "parts": []}
        self.server.messages[self.id].append(message)
        self.message_updated(message)
        self.part(message, {"type": "text", "text": text, **part} if text else part)
        return message

    def assistant(self, parent: Json, mode: str = "", **more: Any) -> Json:
        """Begin an answer to `parent`."""
        user = parent["info"]
        message: Json = {
            "info": {
                "id": self.server.new_id("msg"),
                "parentID": user["id"],
                "role": "assistant",
                "mode": mode or user["agent"],
                "agent": mode or user["agent"],
                **more,
                "path": {"cwd": self.session["directory"], "root": "/"},
                "cost": 0,
                "tokens": no_tokens(),
                **user["model"],
                "time": {"created": milliseconds()},
                "sessionID": user["sessionID"],
            },
            "parts": [],
        }
        self.server.messages[user["sessionID"]].append(message)
        self.message_updated(message)
        return message

    def begin(self) -> None:
        """All that comes before the first word of the model."""
        self.session.update(agent=self.user["info"]["agent"], model=session_model(self.user["info"]["model"]))
        self.server.note("busy", session=self.id)
        self.session_updated()
        self.message_updated(self.user)
        for part in self.user["parts"]:
            self.part(self.user, part)
        self.session_updated()
        self.status("busy")
        self.message = self.assistant(self.user)
        self.late()
        self.status("busy")
        self.flush()

    def late(self) -> None:
        """What the server says about the session and the prompt by the way, also after it went idle."""
        self.session["summary"] = {"additions": 0, "deletions": 0, "files": 0}
        self.session_updated()
        self.publish("session.diff", sessionID=self.id, diff=[])
        self.user["info"]["summary"] = {"diffs": []}
        self.message_updated(self.user)

    def text(self, message: Json, words: list[str], kind: str = "text") -> None:
        """A streamed text (or reasoning): begun, its deltas, ended."""
        part = self.part(message, {"type": kind, "text": "", "time": {"start": milliseconds()}})
        for word in words:
            self.publish(
                "message.part.delta",
                sessionID=part["sessionID"],
                messageID=part["messageID"],
                partID=part["id"],
                field="text",
                delta=word,
            )
        part["text"] = "".join(words)
        part["time"]["end"] = milliseconds()
        self.part(message, part)

    def tool(self, message: Json, name: str, given: Json) -> Json:
        """A tool call, up to where it runs; `tool_end` ends it."""
        part = self.part(
            message,
            {
                "type": "tool",
                "tool": name,
                "callID": "call_" + message["info"]["id"][4:],
                "state": {"status": "pending", "input": {}, "raw": ""},
            },
        )
        part["state"] = {"status": "running", "input": given, "time": {"start": milliseconds()}}
        return self.part(message, part)

    def tool_end(self, message: Json, part: Json, output: str, error: str = "") -> None:
        """The tool's result."""
        state = part["state"]
        state["time"]["end"] = milliseconds()
        if error:
            state.update(status="error", error=error)
        else:
            title = str(state["input"].get("description") or state["input"].get("filePath") or "")
            state.update(status="completed", output=output, title=title, metadata={"truncated": False})
        self.part(message, part)

    def step_end(self, message: Json, finish: str, cost: float) -> None:
        """The end of one request to the model: `finish` is its reason, `cost` in US dollars."""
        tokens = no_tokens()
        if finish != "unknown":
            tokens.update(total=120, input=100, output=20)
        self.part(message, {"type": "step-finish", "reason": finish, "tokens": tokens, "cost": cost})
        message["info"].update(cost=cost, tokens=tokens, finish=finish)
        message["info"]["time"]["completed"] = milliseconds()
        self.message_updated(message)
        self.message_updated(message)
        self.session["cost"] = round(self.session["cost"] + cost, 9)
        for key in ("input", "output"):
            self.session["tokens"][key] += tokens[key]

    def fail(self, error: Json, twice: bool = True) -> None:
        """The turn ended with an error: the session says so and goes idle, then the message, idle again."""
        self.publish("session.error", sessionID=self.id, error=error)
        if twice:
            self.idle()
            time.sleep(0.05)
        self.complete(error=error)
        self.idle()

    def complete(self, **more: Any) -> None:
        """The open message is over without a finish reason."""
        self.message["info"].update(more)
        self.message["info"]["time"]["completed"] = milliseconds()
        self.message_updated(self.message)

    def work(self, answer: str = "work", idle: bool = True) -> None:
        """The usual rest of a turn: a step that edits the plan, a step that says so, idle."""
        if self.server.delay:
            self.wait(self.server.delay)
        self.part(self.message, {"type": "step-start"})
        self.text(self.message, ["Let me see."])
        part = self.tool(self.message, "edit", {"filePath": self.plan})
        edited = edit_plan(self.plan, answer)
        if edited:
            self.publish("file.edited", file=self.plan)
            self.publish("file.watcher.updated", file=self.plan, event="change")
        self.tool_end(self.message, part, "Edit applied successfully." if edited else "Nothing to do.")
        self.step_end(self.message, "tool-calls", self.cost / 2)
        self.status("busy")
        self.message = self.assistant(self.user)
        self.late()
        self.status("busy")
        self.flush()
        self.part(self.message, {"type": "step-start"})
        self.text(self.message, ["All ", "is ", "done."])
        self.step_end(self.message, "stop", self.cost / 2)
        self.status("busy")
        if idle:
            self.idle()
            self.late()
        self.flush()

    def refused(self, part: Json, error: str) -> None:
        """A rejected permission or question ends the turn with a finish reason of tool-calls."""
        self.tool_end(self.message, part, "", error)
        self.step_end(self.message, "tool-calls", self.cost / 2)
        self.idle()
        self.late()
        self.flush()

    def forever(self) -> NoReturn:
        """Wait until somebody aborts."""
        while True:
            self.wait()

    # The turn, and the answers that are more than an edit of the plan.

    def run(self, answer: str) -> None:
        """Answer the prompt as `answer` says."""
        name, _, argument = answer.partition(":")
        self.begin()
        try:
            method = getattr(self, "answer_" + name.replace("-", "_"), None)
            if method:
                method(argument)
            else:
                self.work(name)
        except Aborted:
            self.abort()
        finally:
            self.server.over(self)

    def abort(self) -> None:
        """What an abort leaves; during a retry the message gets neither a finish nor an error."""
        if "completed" in self.message["info"]["time"]:
            return self.idle()
        if self.retrying:
            self.complete()
            return self.idle()
        for part in self.message["parts"]:
            if part["type"] == "tool" and part["state"]["status"] == "running":
                self.tool_end(self.message, part, "(no output)\n\nUser aborted the command")
        self.fail({"name": "MessageAbortedError", "data": {"message": "Aborted"}})

    def answer_cost(self, argument: str) -> None:
        self.cost = float(argument)
        self.work()

    def answer_sleep(self, argument: str) -> None:
        self.wait(float(argument))
        self.work()

    def answer_half(self, argument: str) -> None:
        text = read_plan(self.plan)
        write_plan(self.plan, text[: len(text) // 2])
        self.publish("file.edited", file=self.plan)
        try:
            self.wait(1.0)
        finally:
            write_plan(self.plan, text)
        self.work()

    def answer_error(self, argument: str) -> None:
        code, _, message = argument.partition(":")
        body = encode({"error": {"message": message or "The provider said no.", "type": "error"}})
        self.fail(
            {
                "name": "APIError",
                "data": {
                    "message": message or "The provider said no.",
                    "statusCode": int(code),
                    "isRetryable": False,
                    "responseHeaders": {"content-type": "application/json"},
                    "responseBody": body,
                    "metadata": {"url": "http://127.0.0.1:9/v1/chat/completions"},
                },
            }
        )

    def answer_auth(self, argument: str) -> None:
        self.fail(
            {
                "name": "ProviderAuthError",
                "data": {
                    "providerID": self.user["info"]["model"]["providerID"],
                    "message": "The API key is missing.",
                },
            }
        )

    def answer_retry(self, argument: str) -> None:
        self.retrying = True
        next_at = milliseconds() + int(float(argument) * 1000)
        self.status("retry", attempt=1, message="Too Many Requests", next=next_at)
        self.wait(float(argument))
        self.retrying = False
        self.status("busy")
        self.work()

    def answer_retry_park(self, argument: str) -> None:
        self.answer_retry("86400")

    def answer_unknown(self, argument: str) -> None:
        while True:
            self.part(self.message, {"type": "step-start"})
            self.text(self.message, ["hm"])
            self.step_end(self.message, "unknown", 0)
            self.status("busy")
            self.message = self.assistant(self.user)
            self.late()
            self.status("busy")
            self.wait(0.05)

    def answer_overflow(self, argument: str) -> None:
        error = {"message": "The context is too long.", "responseBody": "{}"}
        self.publish(
            "session.error", sessionID=self.id, error={"name": "ContextOverflowError", "data": error}
        )
        self.complete()
        compaction = self.user_message("", type="compaction", auto=True, overflow=True)
        self.status("busy")
        self.message = self.assistant(compaction, "compaction", summary=True)
        self.status("busy")
        self.wait(0.2)
        self.part(self.message, {"type": "step-start"})
        self.text(self.message, ["What was done so far."])
        self.step_end(self.message, "stop", 0.0001)
        self.user = self.user_message("Continue.", synthetic=True, metadata={"compaction_continue": True})
        self.publish("session.compacted", sessionID=self.id)
        self.status("busy")
        self.message = self.assistant(self.user)
        self.status("busy")
        self.wait(0.2)
        self.work()

    def answer_hang(self, argument: str) -> None:
        self.forever()

    def answer_noidle(self, argument: str) -> None:
        self.work(idle=False)
        self.server.status.pop(self.id, None)

    def answer_falsebusy(self, argument: str) -> None:
        self.work(idle=False)
        if argument == "idle":
            self.idle_events(self.id)
            self.flush()
        self.forever()

    def answer_drop(self, argument: str) -> None:
        self.part(self.message, {"type": "step-start"})
        self.flush()
        self.server.cut_streams()
        self.work()

    def answer_die(self, argument: str) -> None:
        self.part(self.message, {"type": "step-start"})
        self.text(self.message, ["Let me see."])
        self.tool(self.message, "edit", {"filePath": self.plan})
        self.frames[-1] = self.frames[-1][: len(self.frames[-1]) // 2]
        self.flush()
        self.server.note("died")
        sys.stderr.write("fake opencode: out of memory, as ordered\n")
        sys.stderr.flush()
        os._exit(1)

    def answer_freeze(self, argument: str) -> None:
        self.server.note("frozen")
        self.server.frozen = True
        self.forever()

    def answer_ask(self, argument: str) -> None:
        self.part(self.message, {"type": "step-start"})
        part = self.tool(self.message, "bash", {"command": "git push", "description": "Push"})
        error = self.ask_permission(self.message, part)
        if error and "feedback" not in error:
            return self.refused(part, error)
        self.tool_end(self.message, part, "Everything up-to-date", error)
        self.next_step()
        self.work()

    def ask_permission(self, message: Json, part: Json) -> str:
        """Ask, wait for the answer, and return the error it means for the tool, "" when it was allowed."""
        number, session = self.server.new_id("per"), message["info"]["sessionID"]
        entry = {
            "id": number,
            "sessionID": session,
            "permission": "bash",
            "patterns": ["git push"],
            "metadata": {"command": "git push"},
            "always": ["git push *"],
            "tool": {"messageID": message["info"]["id"], "callID": part["callID"]},
        }
        self.server.permissions[number] = (entry, self)
        self.publish("permission.asked", **entry)
        self.wait()
        reply = self.reply or {}
        answer = reply.get("reply") or reply.get("response")
        self.publish("permission.replied", sessionID=session, requestID=number, reply=answer)
        if answer != "reject":
            return ""
        error = "The user rejected permission to use this specific tool call"
        return error + (f" with the following feedback: {reply['message']}" if reply.get("message") else ".")

    def next_step(self) -> None:
        """The model goes on after a tool: this step ends, a new message begins."""
        self.step_end(self.message, "tool-calls", 0.0001)
        self.status("busy")
        self.message = self.assistant(self.user)
        self.status("busy")

    def answer_ask_child(self, argument: str) -> None:
        self.part(self.message, {"type": "step-start"})
        given = {"description": "Push", "prompt": "Push it.", "subagent_type": "general"}
        task = self.tool(self.message, "task", given)
        child = self.server.new_session(
            {"title": "Push (@general subagent)", "parentID": self.id, "agent": "general"},
            self.session["directory"],
        )
        self.publish("session.created", sessionID=child["id"], info=child)
        task["state"]["metadata"] = {"parentSessionId": self.id, "sessionId": child["id"]}
        self.part(self.message, task)
        info = {
            **self.user["info"],
            "id": self.server.new_id("msg"),
            "sessionID": child["id"],
            "agent": "general",
        }
        prompt: Json = {"info": info, "parts": []}
        self.server.messages[child["id"]].append(prompt)
        self.message_updated(prompt)
        self.part(prompt, {"type": "text", "text": "Push it."})
        busy = {"type": "busy"}
        self.server.status[child["id"]] = busy
        self.publish("session.status", sessionID=child["id"], status=busy)
        message = self.assistant(prompt)
        self.part(message, {"type": "step-start"})
        part = self.tool(message, "bash", {"command": "git push", "description": "Push"})
        try:
            error = self.ask_permission(message, part)
        finally:
            self.server.status.pop(child["id"], None)
        self.tool_end(message, part, "Everything up-to-date", error)
        finish = "tool-calls" if error and "feedback" not in error else "stop"
        self.step_end(message, finish, 0)
        child["cost"] = 0.0001
        self.idle_events(child["id"])
        self.publish("session.updated", sessionID=child["id"], info=child)
        self.tool_end(self.message, task, "Tried to push.")
        self.next_step()
        self.work()

    def answer_question(self, argument: str) -> None:
        self.part(self.message, {"type": "step-start"})
        options = [{"label": "A", "description": "the first way"}, {"label": "B", "description": "the other"}]
        questions = [{"question": "Which way?", "header": "Way", "options": options}]
        part = self.tool(self.message, "question", {"questions": questions})
        number = self.server.new_id("que")
        entry = {
            "id": number,
            "sessionID": self.id,
            "questions": questions,
            "tool": {"messageID": self.message["info"]["id"], "callID": part["callID"]},
        }
        self.server.questions[number] = (entry, self)
        self.publish("question.asked", **entry)
        self.wait()
        answers = (self.reply or {}).get("answers")
        if answers is None:
            self.publish("question.rejected", sessionID=self.id, requestID=number)
            return self.refused(part, "The user dismissed this question")
        self.publish("question.replied", sessionID=self.id, requestID=number, answers=answers)
        self.tool_end(self.message, part, f"User has answered your questions: {answers}")
        self.next_step()
        self.work()

    def answer_typed(self, argument: str) -> None:
        typed = self.user_message("A word from a person.")
        message = self.assistant(typed)
        self.part(message, {"type": "step-start"})
        self.text(message, ["Noted."])
        self.step_end(message, "stop", 0.0001)
        self.idle()
        self.wait(0.5)
        self.status("busy")
        self.work()

    def answer_garbage(self, argument: str) -> None:
        other = "ses_ffffffffffffffffffffffffff"
        for data in (
            b": a comment\n\n",
            b'data: {"type": "session.idle", \n\n',
            b"data: \xff\xfe\xc3(\n\n",
            b"data\n\n",
            b'data: null\n\ndata: 12\n\ndata: []\n\ndata: "text"\n\ndata: {}\n\n',
            b'data: {"type":7}\n\n',
            b'data: {"type":"session.idle","properties":null}\n\n',
            b"id: 7\nretry: soon\nevent: what\n\n",
            b'data: {"type":"session.status","properties":{"sessionID":7,"status":[]}}\n\n',
            b'data: {"type":"message.part.updated","properties":{"part":null}}\n\n',
            b'data: {"type":"message.updated","properties":{"info":{"id":[]}}}\n\n',
            b'event: message\r\ndata: {"type":"of.tomorrow",\r\ndata: "properties":{"a":[]}}\r\n\r\n',
            b'data: {"type":"session.error","properties":{"error":"only words"}}\n\n',
            b"\n\n\n",
            b"data: " + b"[" * 100_000 + b"\n\n",
        ):
            self.frames.append(chunk(data))
        self.publish("of.tomorrow", sessionID=self.id, anything=[1, {"two": None}])
        self.publish("session.created", sessionID=other, info={"id": other})
        self.publish("session.error", sessionID=other, error={"name": "UnknownError", "data": {}})
        self.idle_events(other)
        self.flush()
        self.work()

    def answer_flood(self, argument: str) -> None:
        part = self.part(self.message, {"type": "text", "text": "", "time": {"start": milliseconds()}})
        for number in range(DELTAS):
            self.publish(
                "message.part.delta",
                sessionID=self.id,
                messageID=part["messageID"],
                partID=part["id"],
                field="text",
                delta=f"word {number} ",
            )
        deltas, self.frames = self.frames[-DELTAS:], self.frames[:-DELTAS]
        left = int(argument)
        whole = merge(deltas, self.server.per_chunk)
        self.flush()
        self.server.note("flood", events=left)
        while left > 0:
            self.server.send(whole if left >= DELTAS else merge(deltas[:left], self.server.per_chunk))
            self.server.drain()
            left -= DELTAS
        self.server.note("flooded")
        self.work()

    def answer_bigline(self, argument: str) -> None:
        self.part(self.message, {"type": "step-start"})
        part = self.tool(self.message, "bash", {"command": "cat big", "description": "Read a big file"})
        self.tool_end(self.message, part, ("0123456789abcde\n" * (int(argument) // 16 + 1))[: int(argument)])
        self.next_step()
        self.work()

    def answer_spawn(self, argument: str) -> None:
        import subprocess  # here, because it would double the time of a start

        self.part(self.message, {"type": "step-start"})
        part = self.tool(self.message, "bash", {"command": "sleep 1000", "description": "Wait"})
        nothing = subprocess.DEVNULL
        child = subprocess.Popen(
            ["sleep", "1000"],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env={**os.environ, "OPENCODE_PID": str(os.getpid())},
            start_new_session=True,
        )
        self.server.note("spawned", pid=child.pid)
        self.server.children.append(child)
        try:
            if argument == "hang":
                self.forever()
        except Aborted:
            child.kill()
            raise
        self.tool_end(self.message, part, "Started.")
        self.next_step()
        self.work()


def no_tokens() -> Json:
    """The figures of a message that has none yet."""
    return {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}}


def session_model(model: Json) -> Json:
    """A message's model in the words of a session."""
    return {"id": model["modelID"], "providerID": model["providerID"], "variant": "default"}


def unknown_error(message: str) -> Json:
    """The error that has no name of its own."""
    return {"name": "UnknownError", "data": {"message": message}}


def missing(session: str) -> tuple[int, Any]:
    """The answer for a session that does not exist."""
    return 404, {"name": "NotFoundError", "data": {"message": f"Session not found: {session}"}}


class Server:
    """Everything a process of `opencode serve` knows, and its routes."""

    def __init__(self, behaviour: Json) -> None:
        self.answers: list[str] = behaviour.get("answers") or ["work"]
        self.again: str = behaviour.get("again", "work")
        self.delay = float(behaviour.get("delay", 0))
        self.heartbeat = float(behaviour.get("heartbeat", 10))
        self.per_chunk = int(behaviour.get("per_chunk", 1))
        self.five = behaviour.get("routes") == "five"
        self.config_error = bool(behaviour.get("config_error"))
        self.model: str = behaviour.get("model", "fake/model")
        self.models: list[str] = behaviour.get("models") or [self.model]
        self.agents: list[str] = behaviour.get("agents") or ["build", "plan", "general", "explore"]
        self.log = open_append(behaviour.get("log"))
        self.store = open_append(behaviour.get("store"))
        self.authorization = b""
        self.sessions: dict[str, Json] = {}
        self.messages: dict[str, list[Json]] = {}
        self.status: dict[str, Json] = {}
        self.prompts: dict[str, str] = {}
        self.permissions: dict[str, tuple[Json, Turn]] = {}
        self.questions: dict[str, tuple[Json, Turn]] = {}
        self.turns: list[Turn] = []
        self.children: list[Any] = []
        self.streams: list[Stream] = []
        self.lock = threading.Lock()
        self.last_id = 0
        self.plan = ""
        self.frozen = False
        if behaviour.get("store"):
            self.load(behaviour["store"])

    # What is kept, and what is told.

    def note(self, event: str, **more: Any) -> None:
        """Log an event of the fake's own."""
        if self.log is not None:
            os.write(self.log, encode({"time": time.time(), "event": event, **more}).encode() + b"\n")

    def keep(self, **record: Any) -> None:
        """Append to the store; the last record of an id is the one that counts."""
        if self.store is not None:
            os.write(self.store, encode(record).encode("utf-8", "replace") + b"\n")

    def load(self, path: str) -> None:
        """Read what an earlier process kept."""
        with open(path, encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if "session" in record:
                    self.sessions[record["session"]["id"]] = record["session"]
                    self.messages.setdefault(record["session"]["id"], [])
                elif "prompt" in record:
                    self.prompts[record["prompt"]] = record["answer"]
                else:
                    message = record["message"]
                    known = self.messages[message["info"]["sessionID"]]
                    for place, other in enumerate(known):
                        if other["info"]["id"] == message["info"]["id"]:
                            known[place] = message
                            break
                    else:
                        known.append(message)

    def new_id(self, prefix: str) -> str:
        """Ids rise with time, but those of sessions fall, as the real ones do."""
        with self.lock:
            self.last_id = number = max(self.last_id + 1, milliseconds() << 12)
        if prefix == "ses":
            number = ~number
        return f"{prefix}_{number & (2**48 - 1):012x}{os.urandom(7).hex()}"

    def event(self, kind: str, properties: Json) -> Json:
        """An event in the server's envelope."""
        return {"id": self.new_id("evt"), "type": kind, "properties": properties}

    def send(self, data: bytes) -> None:
        """Write to everybody who listens; a frozen server says nothing."""
        if not self.frozen and data:
            for stream in list(self.streams):
                stream.write(data)

    def publish(self, kind: str, **properties: Any) -> None:
        """Tell everybody at once."""
        self.send(frame(self.event(kind, properties)))

    def drain(self) -> None:
        """Wait for the slowest reader."""
        for stream in list(self.streams):
            stream.drain()

    def cut_streams(self) -> None:
        """Lose every event stream, as a broken network would."""
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.cut()

    def over(self, turn: Turn) -> None:
        """A turn has ended."""
        with self.lock:
            self.turns.remove(turn)
        self.keep(session=turn.session)

    # The routes. Each returns a status and a body; None is an empty body, and a thread is one to be started
    # when the empty body has been sent.

    def route(self, method: str, path: str, directory: str, body: Any) -> tuple[int, Any]:
        """Answer one request, except `GET /event`."""
        if self.five and not FIVE.fullmatch(f"{method} {path}"):
            return 404, {"name": "NotFoundError", "data": {"message": "Not found"}}
        names = path.strip("/").split("/")
        if path == "/global/health":
            return 200, {"healthy": True, "version": VERSION}
        if path in ("/global/dispose", "/instance/dispose"):
            return self.dispose(directory)
        if self.config_error:
            return 400, config_error(directory)
        if names[0] == "session" and (len(names) > 1 and names[1] != "status" or method == "POST"):
            return self.session_route(method, names[1:], directory, body if isinstance(body, dict) else {})
        if names[0] in ("permission", "question") and method == "POST" and len(names) == 3:
            return self.reply(names[0], names[1], names[2], body if isinstance(body, dict) else {})
        if method == "GET":
            return self.list_route(path)
        return 404, None

    def list_route(self, path: str) -> tuple[int, Any]:
        """The routes that only tell."""
        if path == "/session":
            return 200, list(self.sessions.values())
        if path == "/session/status":
            return 200, self.status
        if path == "/permission":
            return 200, [entry for entry, _ in self.permissions.values()]
        if path == "/question":
            return 200, [entry for entry, _ in self.questions.values()]
        if path == "/agent":
            return 200, [
                {
                    "name": name,
                    "description": "A fake agent.",
                    "mode": "primary",
                    "native": True,
                    "permission": [],
                    "options": {},
                }
                for name in self.agents
            ]
        if path == "/config":
            own = json.loads(os.environ.get("OPENCODE_CONFIG_CONTENT") or "{}")
            return 200, {
                "$schema": "https://opencode.ai/config.json",
                "command": {},
                "plugin": [],
                "model": self.model,
                "username": "fake",
                "mode": {},
                "agent": {},
                **own,
            }
        if path == "/config/providers":
            return 200, self.providers()
        return 200, "<!doctype html>\n<title>OpenCode</title>\n"

    def providers(self) -> Json:
        """The models that exist, by provider."""
        providers: dict[str, Json] = {}
        for name in self.models:
            provider, _, model = name.partition("/")
            entry = providers.setdefault(
                provider,
                {
                    "id": provider,
                    "name": provider,
                    "source": "config",
                    "env": [],
                    "options": {},
                    "models": {},
                },
            )
            entry["models"][model] = {
                "id": model,
                "providerID": provider,
                "name": model,
                "status": "active",
                "limit": {"context": 100000, "output": 10000},
            }
        default = {provider: next(iter(entry["models"])) for provider, entry in providers.items()}
        return {"providers": list(providers.values()), "default": default}

    def new_session(self, body: Json, directory: str) -> Json:
        """Make a session; the caller tells of it."""
        number, now = self.new_id("ses"), milliseconds()
        session: Json = {
            "id": number,
            "slug": "fake-session",
            "version": VERSION,
            "projectID": "global",
            "directory": directory,
            "path": directory.lstrip("/"),
            "title": "New session",
            "cost": 0,
            "tokens": no_tokens(),
            "time": {"created": now, "updated": now},
            **{key: body[key] for key in ("title", "parentID", "permission", "agent") if key in body},
        }
        self.messages[number] = []
        self.sessions[number] = session
        self.keep(session=session)
        return session

    def session_route(self, method: str, names: list[str], directory: str, body: Json) -> tuple[int, Any]:
        """Everything below /session; `names` is the rest of the path."""
        if not names:
            session = self.new_session(body, directory)
            self.publish("session.created", sessionID=session["id"], info=session)
            return 200, session
        number, rest = names[0], "/".join(names[1:])
        if rest == "abort":
            return self.abort(number)
        if number not in self.sessions:
            return missing(number)
        if rest == "prompt_async":
            return self.prompt(number, body)
        if rest == "message":
            return 200, self.messages[number][-int(body.get("limit") or 0) :]
        if rest == "children":
            return 200, [other for other in self.sessions.values() if other.get("parentID") == number]
        if rest.startswith("permissions/"):
            return self.reply("permission", rest[12:], "reply", body)
        return (200, self.sessions[number]) if not rest else (404, None)

    def prompt(self, number: str, body: Json) -> tuple[int, Any]:
        """Take a prompt; whatever is wrong with it, the answer is 204 and the events tell."""
        session = self.sessions[number]
        text = "\n".join(part.get("text", "") for part in body.get("parts", []))
        self.plan = find_plan(text) or self.plan
        provider, _, model = self.model.partition("/")
        model_given = body.get("model") or {"providerID": provider, "modelID": model}
        info: Json = {
            "id": body.get("messageID") or self.new_id("msg"),
            "role": "user",
            "sessionID": number,
            "time": {"created": milliseconds()},
            "agent": body.get("agent") or "build",
            "model": model_given,
        }
        user: Json = {"info": info, "parts": []}
        for part in body.get("parts", []):
            own = {"id": part.get("id") or self.new_id("prt"), "messageID": info["id"], "sessionID": number}
            user["parts"].append({**part, **own})
        turn = Turn(self, session, user, self.plan)
        target, arguments = self.choose(turn)
        return 204, threading.Thread(target=target, args=arguments, daemon=True)

    def choose(self, turn: Turn) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """What becomes of a prompt: a function and its arguments, for a thread of its own."""
        info = turn.user["info"]
        if info["agent"] not in self.agents:
            return self.unknown_agent, (turn,)
        if f"{info['model']['providerID']}/{info['model']['modelID']}" not in self.models:
            return self.unknown_model, (turn,)
        if any(other.user["info"]["id"] == info["id"] for other in list(self.turns)):
            return turn.flush, ()
        if self.answered(turn.id, info["id"]):
            return self.nothing_new, (turn,)
        answer = self.prompts.get(info["id"])
        if answer is None:
            answer = self.answers[min(len(self.prompts), len(self.answers) - 1)]
            self.prompts[info["id"]] = answer
            self.keep(prompt=info["id"], answer=answer)
            self.messages[turn.id].append(turn.user)
            self.keep(message=turn.user)
        elif self.again != "same":
            answer = self.again
        if answer == "silent":
            return turn.flush, ()
        with self.lock:
            self.turns.append(turn)
        return turn.run, (answer,)

    def answered(self, session: str, prompt: str) -> bool:
        """Whether a prompt has an answer that came to a good end."""
        for message in self.messages[session]:
            info = message["info"]
            if info.get("parentID") == prompt and info.get("finish") not in (None, "tool-calls", "unknown"):
                return True
        return False

    def nothing_new(self, turn: Turn) -> None:
        """The same ids again, answered long ago: busy and idle, no second answer."""
        turn.message_updated(turn.user)
        turn.session_updated()
        turn.status("busy")
        turn.idle()

    def unknown_agent(self, turn: Turn) -> None:
        """Two errors, no status and no idle ever."""
        known = ", ".join(sorted(self.agents))
        words = f'Agent not found: "{turn.user["info"]["agent"]}". Available agents: {known}'
        for message in (words, "UnknownError: UnknownError\n    at <anonymous>"):
            self.publish("session.error", sessionID=turn.id, error=unknown_error(message))

    def unknown_model(self, turn: Turn) -> None:
        """Busy, an error, idle, a second error; the prompt stays without an answer."""
        self.messages[turn.id].append(turn.user)
        turn.message_updated(turn.user)
        turn.status("busy")
        model = turn.user["info"]["model"]
        words = f"Model not found: {model['providerID']}/{model['modelID']}."
        turn.publish("session.error", sessionID=turn.id, error=unknown_error(words))
        turn.idle()
        words = f"ProviderModelNotFoundError: {words}\n    at <anonymous>"
        turn.publish("session.error", sessionID=turn.id, error=unknown_error(words))
        turn.flush()

    def abort(self, number: str) -> tuple[int, Any]:
        """Abort a session and its children; even one that nobody knows is said to go idle."""
        with self.lock:
            running = [turn for turn in self.turns if turn.id == number]
        for turn in running:
            turn.aborted = True
            turn.wake.set()
        if not running:
            self.status.pop(number, None)
            self.publish("session.status", sessionID=number, status={"type": "idle"})
            self.publish("session.idle", sessionID=number)
        return 200, True

    def reply(self, kind: str, number: str, verb: str, body: Json) -> tuple[int, Any]:
        """Answer a permission or a question, once."""
        entries = self.permissions if kind == "permission" else self.questions
        if number not in entries:
            tag = "PermissionNotFoundError" if kind == "permission" else "QuestionNotFoundError"
            words = f"{kind.title()} request not found: {number}"
            return 404, {"_tag": tag, "requestID": number, "message": words}
        answer = body.get("reply") or body.get("response")
        if kind == "permission" and answer not in ("once", "always", "reject"):
            return 400, {"name": "BadRequest", "data": {"message": "Expected once, always or reject"}}
        _, turn = entries.pop(number)
        turn.reply = {} if verb == "reject" else body
        turn.wake.set()
        return 200, True

    def dispose(self, directory: str) -> tuple[int, Any]:
        """End what runs, the bash tools too, and every event stream."""
        with self.lock:
            running = list(self.turns)
        for turn in running:
            turn.aborted = True
            turn.wake.set()
        for child in self.children:
            child.kill()
        self.publish("server.instance.disposed", directory=directory)
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.write(b"0\r\n\r\n")
            stream.end()
        return 200, True

    # The socket.

    def serve(self, listener: socket.socket) -> None:
        """Accept for ever, one thread for each connection."""
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.converse, args=(connection,), daemon=True).start()

    def converse(self, connection: socket.socket) -> None:
        """The requests of one connection, one after the other."""
        kept = b""
        try:
            with connection:
                while True:
                    while b"\r\n\r\n" not in kept:
                        data = connection.recv(65536)
                        if not data:
                            return
                        kept += data
                    arrived = time.time()
                    head, _, kept = kept.partition(b"\r\n\r\n")
                    request, *lines = head.split(b"\r\n")
                    headers = {
                        name.lower(): value.strip()
                        for name, _, value in (line.partition(b":") for line in lines)
                    }
                    length = int(headers.get(b"content-length", b"0"))
                    while len(kept) < length:
                        data = connection.recv(1 << 20)
                        if not data:
                            return
                        kept += data
                    body, kept = kept[:length], kept[length:]
                    if not self.answer(connection, arrived, request.decode("latin-1"), headers, body):
                        return
        except OSError:
            pass

    def answer(
        self,
        connection: socket.socket,
        arrived: float,
        request: str,
        headers: dict[bytes, bytes],
        body: bytes,
    ) -> bool:
        """One request; False when the connection is not to be used again."""
        method, target, _ = request.split(" ", 2)
        path, _, query = target.partition("?")
        try:
            given = json.loads(body) if body else {}
        except ValueError:
            given = {}
        if self.log is not None:
            line = encode({"time": arrived, "method": method, "path": target, "body": given or None})
            os.write(self.log, line.encode("utf-8", "replace") + b"\n")
        if self.frozen:
            threading.Event().wait()
        if self.authorization and headers.get(b"authorization") != self.authorization:
            respond(connection, 401, None, 'www-authenticate: Basic realm="Secure Area"\r\n')
            return headers.get(b"connection", b"").lower() != b"close"
        values = {key: unquote(value) for key, _, value in (pair.partition("=") for pair in query.split("&"))}
        if method == "GET":
            given = values
        header = unquote(headers.get(b"x-opencode-directory", b"").decode("utf-8", "replace"))
        directory = values.get("directory") or header or os.getcwd()
        if path == "/event" and method == "GET" and not self.config_error:
            return self.stream(connection)
        status, answer = self.route(method, path, directory, given)
        if isinstance(answer, threading.Thread):
            respond(connection, status, None)
            answer.start()
        else:
            respond(connection, status, answer)
        return headers.get(b"connection", b"").lower() != b"close"

    def stream(self, connection: socket.socket) -> bool:
        """Answer `GET /event`, until the stream ends."""
        stream = Stream(connection)
        stream.write(
            b"HTTP/1.1 200 OK\r\nCache-Control: no-cache, no-transform\r\nX-Content-Type-Options: nosniff\r\n"
            b"Content-Type: text/event-stream\r\nVary: Origin\r\nx-accel-buffering: no\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + frame(self.event("server.connected", {}))
        )
        self.streams.append(stream)

        def beat() -> bytes:
            return b"" if self.frozen else frame(self.event("server.heartbeat", {}))

        stream.run(self.heartbeat, beat)
        if stream in self.streams:
            self.streams.remove(stream)
        return False


def config_error(directory: str) -> Json:
    """What every route of a directory with a broken opencode.json answers."""
    path = os.path.join(directory, "opencode.json")
    return {"name": "ConfigJsonError", "data": {"path": path, "message": "\nCloseBraceExpected at line 3"}}


def unquote(text: str) -> str:
    """Percent-decoding; urllib would take longer to import than all else to run."""
    if "%" not in text:
        return text
    found = re.sub(rb"%([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return found.decode("utf-8", "replace")


def respond(connection: socket.socket, status: int, body: Any, headers: str = "") -> None:
    """Send a whole response in one piece."""
    words = {200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}
    data, kind = b"", ""
    if isinstance(body, str):
        data, kind = body.encode(), "Content-Type: text/html\r\n"
    elif body is not None:
        data, kind = encode(body).encode("utf-8", "replace"), "Content-Type: application/json\r\n"
    head = f"HTTP/1.1 {status} {words[status]}\r\n{kind}{headers}Content-Length: {len(data)}\r\n"
    connection.sendall(head.encode() + b"Vary: Origin\r\n\r\n" + data)


def open_append(path: str | None) -> int | None:
    """A file to append whole lines to, from any thread and any process."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None


def nth_start(behaviour: Json) -> int:
    """How many processes with this counter were started before; the file's size is the count."""
    if not isinstance(behaviour.get("starts"), list) and not isinstance(behaviour.get("memory"), list):
        return 0
    path = behaviour.get("counter") or (behaviour.get("log") or behaviour.get("store") or "") + ".starts"
    if path == ".starts":
        raise SystemExit("fake opencode: a list of starts needs one of the keys counter, log and store")
    with open(path, "ab") as file:
        file.write(b".")
        file.flush()
        return file.tell() - 1


def check(behaviour: Json) -> None:
    """A misspelt key or answer would make a test pass that tests nothing."""
    wrong = sorted(set(behaviour) - set(KEYS))
    answers = [*behaviour.get("answers", []), behaviour.get("again", "work")]
    for answer in answers:
        name = answer.partition(":")[0]
        if name not in PLAIN and not hasattr(Turn, "answer_" + name.replace("-", "_")):
            wrong.append(answer)
    if wrong:
        raise SystemExit(f"fake opencode: unknown in FAKE_OPENCODE: {', '.join(wrong)}")


def listen(hostname: str, ports: tuple[int, ...]) -> socket.socket:
    """Take the first port that is free; a taken port ends the process as the real one's does."""
    for number in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((hostname, number))
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
    sys.stderr.write("Error: Unexpected error\n\nServeError\n")
    raise SystemExit(1)


def serve(hostname: str, port: int) -> None:
    """`opencode serve`."""
    began = time.time() - time.process_time()
    behaviour = json.loads(os.environ.get("FAKE_OPENCODE") or "{}")
    check(behaviour)
    place = nth_start(behaviour)
    starts = behaviour.get("starts") or [behaviour.get("start") or ""]
    start = starts[min(place, len(starts) - 1)] or ""
    if behaviour.get("stubborn"):
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    memory = behaviour.get("memory") or 0
    if isinstance(memory, list):
        memory = memory[min(place, len(memory) - 1)]
    taken = bytearray(b"x") * (int(memory) << 20)
    server = Server(behaviour)
    if server.log is not None:
        line = {"time": began, "event": "exec", "pid": os.getpid(), "memory": len(taken) >> 20}
        os.write(server.log, encode(line).encode() + b"\n")
    if start == "exit":
        sys.stderr.write("fake opencode: it cannot start, as ordered\n")
        raise SystemExit(3)
    if start == "silent":
        while True:
            time.sleep(3600)
    if start.startswith("slow:"):
        time.sleep(float(start[5:]))
    password = os.environ.get("OPENCODE_SERVER_PASSWORD")
    if password:
        import base64

        user = os.environ.get("OPENCODE_SERVER_USERNAME") or "opencode"
        server.authorization = b"Basic " + base64.b64encode(f"{user}:{password}".encode())
    else:
        print("Warning: OPENCODE_SERVER_PASSWORD is not set; server is unsecured.")
    if "port" in behaviour:
        listener = listen(hostname, (int(behaviour["port"]),))
    else:
        listener = listen(hostname, (port,) if port else (4096, 0))
    server.note("listening", port=listener.getsockname()[1])
    print(f"opencode server listening on http://{hostname}:{listener.getsockname()[1]}", flush=True)
    server.serve(listener)


def attach(arguments: list[str]) -> None:
    """`opencode attach`: say what was given, wait for a line or the end of the input."""
    password = "yes" if os.environ.get("OPENCODE_SERVER_PASSWORD") else "no"
    print(f"attach {' '.join(arguments)}\npassword: {password}", flush=True)
    sys.stdin.readline()


def main() -> None:
    """The command line, as far as a loop uses it."""
    command, *arguments = sys.argv[1:] or [""]
    options = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
    for place, argument in enumerate(arguments[:-1]):
        if argument in ("--hostname", "--port"):
            options[argument[2:]] = arguments[place + 1]
    if command == "serve":
        serve(options.get("hostname") or "127.0.0.1", int(options.get("port") or 0))
    elif command == "attach":
        attach(arguments)
    elif command in ("--version", "-v"):
        print(VERSION)
    else:
        raise SystemExit("usage: opencode serve|attach|--version")


if __name__ == "__main__":
    main()
