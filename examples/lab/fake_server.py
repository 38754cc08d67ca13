"""What the fakes of both generations share: the plan, the answers, the streams, the socket.

`fake_opencode.py` starts a server and documents the settings. `fake_opencode1.py` and
`fake_opencode2.py` say the same things in the words of 1.x and 2.x: routes, bodies and events.
"""

from __future__ import annotations

import binascii
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

TASK = re.compile(
    r"(\s*(?:[-*+]|\d+[.)])\s+)\[([ ~]?|x)\](?=\s+(?!\**\[(?:manual|blocked)\b)\S)", re.IGNORECASE
)
EDITS = [
    "work",
    "mark",
    "block",
    "finish",
    "nothing",
    "delete",
    "uncheck",
    "retext",
]
DELTAS = 4096
BACKLOG = 1 << 20
DAY = 86400
PAGE = "<!doctype html>\n<title>OpenCode</title>\n"
REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Json = dict[str, Any]
encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Aborted(Exception):
    """Ends a turn from within: somebody called abort, or the server is being disposed of."""


class Prompt(NamedTuple):
    """What is to be answered; `model` is "provider/model"."""

    id: str
    text: str
    model: str
    agent: str


class Reply(NamedTuple):
    """A person's answer to what was asked: once, always, reject; answer, dismiss."""

    decision: str
    message: str = ""
    answers: Any = None


class Ask(NamedTuple):
    """A permission or a question that waits for its reply."""

    kind: str
    entry: Json
    turn: Turn


class Request(NamedTuple):
    """One request; `given` is the parsed body, {} when there is none."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[bytes, bytes]
    given: Json
    length: int
    arrived: float


class Answer(NamedTuple):
    """A response; a str is HTML, None an empty body. `after` is called when it has been sent."""

    status: int
    body: Any = None
    headers: str = ""
    after: Callable[[], None] | None = None


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


def no_tokens() -> Json:
    """The figures of a message that has none yet."""
    return {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}}


# The plan.


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


def find_tasks(lines: list[str]) -> list[tuple[int, bool]]:
    """The numbers of the lines with a box, and whether it is done; none in code and comments."""
    fence, comment, found = "", False, []
    for number, line in enumerate(lines):
        opened = re.match(r" {0,3}(`{3,}|~{3,})", line)
        task = TASK.match(line)
        if fence:
            if opened and opened[1].startswith(fence):
                fence = ""
        elif comment or "<!--" in line:
            closed = "-->" not in line
            comment = line.rfind("-->") < line.rfind("<!--") if "<!--" in line else closed
        elif opened:
            fence = opened[1]
        elif task:
            found.append((number, task[2].lower() == "x"))
    return found


def set_box(line: str, box: str) -> str:
    """The line of a task with another box."""
    return TASK.sub(lambda found: found[1] + box, line, count=1)


def edit_text(text: str, answer: str) -> str:
    """The plan after what the answer does to it."""
    lines = text.split("\n")
    tasks = find_tasks(lines)
    pending = [number for number, done in tasks if not done]
    checked = [number for number, done in tasks if done]
    box = "[BLOCKED: no key]" if answer == "block" else "[x]"
    if answer == "uncheck" and checked:
        lines[checked[0]] = set_box(lines[checked[0]], "[ ]")
    elif answer == "retext" and pending:
        count = lines[pending[0]].count(" (attempt ") + 1
        lines[pending[0]] += f" (attempt {count} failed)"
    elif answer not in ("finish", "retext"):
        for number in pending[:1]:
            lines[number] = set_box(lines[number], box)
    text = "\n".join(lines)
    complete = answer == "work" and len(pending) <= 1 and "<plan-complete>" not in text
    if complete or answer == "finish":
        tag = "<plan-complete>Everything that could be done is done.</plan-complete>"
        text = text.rstrip("\n") + f"\n\n{tag}\n"
    return text


def read_plan(path: str) -> str:
    """The plan's text with its own line ends and, if need be, its own bad bytes."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def write_plan(path: str, text: str) -> None:
    """Write in place, as the real tools do: a reader may well see half of it."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)


def edit_plan(path: str, answer: str) -> bool:
    """Do to the plan what the answer says; False where there was nothing to edit."""
    if answer == "nothing" or not os.path.isfile(path):
        return False
    if answer == "delete":
        os.unlink(path)
    else:
        write_plan(path, edit_text(read_plan(path), answer))
    return True


# The event stream.


class Stream:
    """One open event stream.

    Events are written by whoever has one, straight to the socket, so that nothing is measured but
    the reader. What a slow reader leaves is kept and written by the connection's own thread, as the
    real server grows rather than stops.
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
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.end()

    def run(self, heartbeat: float, beat: Callable[[], bytes]) -> None:
        """Write what readers left and the heartbeats, until the stream ends."""
        due = time.monotonic() + heartbeat
        while True:
            with self.changed:
                if not self.backlog and not self.ended:
                    self.changed.wait(max(0.0, due - time.monotonic()))
                if self.ended:
                    break
                part = bytes(self.backlog[: 1 << 18])
            if part:
                try:
                    sent = self.connection.send(part)
                except OSError:
                    break
                with self.changed:
                    del self.backlog[:sent]
                    self.changed.notify_all()
            if time.monotonic() >= due:
                due += heartbeat
                self.write(beat())
        self.end()


# The answers.


class Turn:
    """One prompt being answered, in a thread of its own.

    The upper half is what each generation says in its own words; the lower half, the answers, is
    made of it and is the same for both.
    """

    shell = ""
    subagent = ""
    path = ""
    garbage: tuple[bytes, ...] = ()

    def __init__(self, server: Server, session: Json, prompt: Prompt, plan: str) -> None:
        self.server = server
        self.session = session
        self.id: str = session["id"]
        self.prompt = prompt
        self.plan = plan
        self.cost = 0.00028
        self.message: Json = {}
        self.frames: list[bytes] = []
        self.wake = threading.Event()
        self.aborted = False
        self.parent: Turn | None = None
        self.reply = Reply("")

    def begin(self) -> bool:
        """All that comes before the first word of the model; False when there is none."""
        raise NotImplementedError

    def think(self, words: str) -> None:
        """What the model thinks before it speaks, where it is shown."""

    def open_text(self) -> None:
        """Begin a text."""
        raise NotImplementedError

    def delta(self, words: str) -> None:
        """Go on with the text."""
        raise NotImplementedError

    def close_text(self, text: str) -> None:
        """End the text."""
        raise NotImplementedError

    def tool(self, name: str, given: Json) -> Json:
        """A tool call, up to where it runs."""
        raise NotImplementedError

    def tool_end(self, tool: Json, output: str) -> None:
        """The tool's result."""
        raise NotImplementedError

    def tool_rejected(self, tool: Json, message: str) -> None:
        """The tool was refused with a message: the model goes on."""
        raise NotImplementedError

    def refused(self, tool: Json, kind: str) -> None:
        """The tool was refused without a message: the turn ends."""
        raise NotImplementedError

    def edited(self) -> None:
        """The plan was edited."""
        raise NotImplementedError

    def step_end(self, finish: str, cost: float) -> None:
        """The end of one request to the model: `finish` is its reason, `cost` in US dollars."""
        raise NotImplementedError

    def next_step(self, cost: float) -> None:
        """The model goes on after a tool: this step ends, another begins."""
        raise NotImplementedError

    def end(self, told: bool = True, over: bool = True) -> None:
        """The end of the turn; not `told`: without its event; not `over`: it stays active."""
        raise NotImplementedError

    def fail(self, code: int, message: str) -> None:
        """The turn ends with the provider's error; code 0 is a login that is missing."""
        raise NotImplementedError

    def retry(self, seconds: float, attempt: int, code: int, message: str) -> None:
        """The provider said no, and is asked again after that time."""
        raise NotImplementedError

    def abort(self) -> None:
        """What an abort leaves."""
        raise NotImplementedError

    def ask(self, kind: str, tool: Json) -> Reply:
        """Ask for a permission, or a question, and wait for the reply."""
        raise NotImplementedError

    def child(self, tool: Json) -> Turn:
        """The turn of a subagent, begun."""
        raise NotImplementedError

    def child_end(self, tool: Json, child: Turn) -> None:
        """The subagent is over."""
        raise NotImplementedError

    def answer_unknown(self, argument: str) -> None:
        """Answers without a finish reason."""
        raise NotImplementedError

    def answer_overflow(self, argument: str) -> None:
        """The context is too long, a compaction, then work."""
        raise NotImplementedError

    def answer_typed(self, argument: str) -> None:
        """A person types a message of their own."""
        raise NotImplementedError

    # What all answers are made of.

    def publish(self, kind: str, **data: Any) -> None:
        """Note an event; `flush` sends what was noted in one piece, as the real server does."""
        self.frames.append(frame(self.server.event(kind, data)))

    def flush(self) -> None:
        """Send the events noted so far."""
        data, self.frames = b"".join(self.frames), []
        self.server.send(data)

    def wait(self, seconds: float | None = None) -> None:
        """Sleep, or wait for a reply when no time is given; raises Aborted when somebody aborts."""
        self.flush()
        self.wake.wait(seconds)
        if self.aborted or (self.parent and self.parent.aborted):
            raise Aborted
        self.wake.clear()

    def stop(self) -> None:
        """Abort it, from another thread."""
        self.aborted = True
        self.wake.set()

    def forever(self) -> NoReturn:
        """Wait until somebody aborts."""
        while True:
            self.wait()

    def asked(self, kind: str, number: str, entry: Json) -> Reply:
        """Put up what is asked and wait for the reply."""
        self.server.asks[number] = Ask(kind, entry, self)
        self.wait()
        return self.reply

    def text(self, *words: str) -> None:
        """A streamed text: begun, its deltas, ended."""
        self.open_text()
        for word in words:
            self.delta(word)
        self.close_text("".join(words))

    def push(self) -> Json:
        """The tool call that asks for a permission."""
        return self.tool(self.shell, {"command": "git push", "description": "Push"})

    def work(self, answer: str = "work", told: bool = True, over: bool = True) -> None:
        """The usual rest of a turn: a step that edits the plan, a step that says so, the end."""
        if self.server.delay:
            self.wait(self.server.delay)
        self.think("What is next?")
        self.text("Let me see.")
        tool = self.tool("edit", {self.path: self.plan})
        edited = edit_plan(self.plan, answer)
        if edited:
            self.edited()
        self.tool_end(tool, "Edit applied successfully." if edited else "Nothing to do.")
        self.next_step(self.cost / 2)
        self.flush()
        self.text("All ", "is ", "done.")
        self.step_end("stop", self.cost / 2)
        self.end(told, over)
        self.flush()

    def run(self, answer: str) -> None:
        """Answer the prompt as `answer` says."""
        name, _, argument = answer.partition(":")
        try:
            if self.begin():
                method = getattr(self, "answer_" + name.replace("-", "_"), None)
                if method:
                    method(argument)
                else:
                    self.work(name)
        except Aborted:
            self.abort()
        finally:
            self.server.over(self)

    # The answers that are more than an edit of the plan.

    def answer_cost(self, argument: str) -> None:
        self.cost = float(argument)
        self.work()

    def answer_sleep(self, argument: str) -> None:
        self.wait(float(argument))
        self.work()

    def answer_stash(self, argument: str) -> None:
        away = self.plan + ".stash"
        os.rename(self.plan, away)
        self.edited()
        try:
            self.wait(float(argument))
        finally:
            os.rename(away, self.plan)
        self.work()

    def answer_error(self, argument: str) -> None:
        code, _, message = argument.partition(":")
        message = message or "The provider said no."
        if code == "429" or code >= "500":
            for attempt in range(self.server.retries):
                self.retry(0.2, attempt + 1, int(code), message)
        self.fail(int(code), message)

    def answer_auth(self, argument: str) -> None:
        self.fail(0, "The API key is missing.")

    def answer_retry(self, argument: str) -> None:
        self.retry(float(argument), 1, 429, "Too Many Requests")
        self.work()

    def answer_retry_park(self, argument: str) -> None:
        self.retry(DAY, 1, 429, "Too Many Requests")
        self.work()

    def answer_hang(self, argument: str) -> None:
        self.forever()

    def answer_noidle(self, argument: str) -> None:
        self.work(told=False)

    def answer_falsebusy(self, argument: str) -> None:
        self.work(told=argument == "idle", over=False)
        self.forever()

    def answer_drop(self, argument: str) -> None:
        self.text("Let me see.")
        self.flush()
        self.server.cut_streams()
        self.work()

    def answer_die(self, argument: str) -> None:
        self.text("Let me see.")
        self.tool("edit", {self.path: self.plan})
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

    def answer_grow(self, argument: str) -> None:
        self.server.memory.append(bytearray(b"x") * (int(argument) << 20))
        self.work()

    def answer_swell(self, argument: str) -> None:
        while True:
            self.server.memory.append(bytearray(b"x") * (int(argument) << 20))
            self.wait(1.0)

    def answer_loop_tool(self, argument: str) -> None:
        while True:
            tool = self.tool(self.shell, {"command": "make test", "description": "Test"})
            self.tool_end(tool, "1 failed")
            self.next_step(0.0001)
            self.wait(0.05)

    def answer_ask(self, argument: str) -> None:
        self.ask_to_push(again=False)

    def answer_ask_forever(self, argument: str) -> None:
        self.ask_to_push(again=True)

    def ask_to_push(self, again: bool) -> None:
        """Ask for a permission; `again`: after every refusal."""
        refused = True
        while refused:
            tool = self.push()
            reply = self.ask("permission", tool)
            refused = again and reply.decision == "reject"
            if reply.decision != "reject":
                self.tool_end(tool, "Everything up-to-date")
            elif reply.message:
                self.tool_rejected(tool, reply.message)
            else:
                self.refused(tool, "permission")
                return
            self.next_step(0.0001)
        self.work()

    def answer_ask_child(self, argument: str) -> None:
        given = {"description": "Push", "prompt": "Push it."}
        key = "subagent_type" if self.subagent == "task" else "agent"
        task = self.tool(self.subagent, {**given, key: "general"})
        child = self.child(task)
        try:
            tool = child.push()
            reply = child.ask("permission", tool)
        except Aborted:
            child.abort()
            raise
        if reply.decision == "reject" and not reply.message:
            child.refused(tool, "permission")
        else:
            if reply.decision == "reject":
                child.tool_rejected(tool, reply.message)
            else:
                child.tool_end(tool, "Everything up-to-date")
            child.next_step(0)
            child.text("That was it.")
            child.step_end("stop", 0.0001)
            child.end()
        child.flush()
        self.child_end(task, child)
        self.next_step(0.0001)
        self.work()

    def answer_question(self, argument: str) -> None:
        options = [
            {"label": "A", "description": "the first way"},
            {"label": "B", "description": "the other"},
        ]
        question = {"question": "Which way?", "header": "Way", "options": options}
        tool = self.tool("question", {"questions": [question]})
        reply = self.ask("question", tool)
        if reply.decision == "answer":
            self.tool_end(tool, f"User has answered your questions: {reply.answers}")
        elif reply.message:
            self.tool_rejected(tool, reply.message)
        else:
            self.refused(tool, "question")
            return
        self.next_step(0.0001)
        self.work()

    def answer_garbage(self, argument: str) -> None:
        other = "ses_ffffffffffffffffffffffffff"
        for data in (
            b": a comment\n\n",
            b"data: \xff\xfe\xc3(\n\n",
            b"data\n\n",
            b'data: null\n\ndata: 12\n\ndata: []\n\ndata: "text"\n\ndata: {}\n\n',
            b'data: {"type":7}\n\n',
            b"id: 7\nretry: soon\nevent: what\n\n",
            b"\n\n\n",
            b"data: " + b"[" * 100_000 + b"\n\n",
            *self.garbage,
        ):
            self.frames.append(chunk(data))
        self.publish("of.tomorrow", sessionID=self.id, anything=[1, {"two": None}])
        self.strangers(other)
        self.flush()
        self.work()

    def strangers(self, other: str) -> None:
        """Events of another session: begun, failed, over."""
        raise NotImplementedError

    def answer_flood(self, argument: str) -> None:
        self.open_text()
        self.flush()
        for number in range(DELTAS):
            self.delta(f"word {number} ")
        deltas, self.frames = self.frames, []
        left = int(argument)
        whole = merge(deltas, self.server.per_chunk)
        self.server.note("flood", events=left)
        while left > 0:
            few = left < DELTAS
            self.server.send(merge(deltas[:left], self.server.per_chunk) if few else whole)
            self.server.drain()
            left -= DELTAS
        self.server.note("flooded")
        self.close_text("Many words.")
        self.work()

    def answer_bigline(self, argument: str) -> None:
        tool = self.tool(self.shell, {"command": "cat big", "description": "Read a big file"})
        self.tool_end(tool, ("0123456789abcde\n" * (int(argument) // 16 + 1))[: int(argument)])
        self.next_step(0.0001)
        self.work()

    def answer_spawn(self, argument: str) -> None:
        import subprocess  # noqa: PLC0415  (it would double the time of a start)

        tool = self.tool(self.shell, {"command": "sleep 1000", "description": "Wait"})
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(
            ["sleep", "1000"],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env={**os.environ, **self.server.tool_environment(self.id)},
            start_new_session=True,
        )
        self.server.note("spawned", pid=process.pid)
        self.server.children.append(process)
        try:
            if argument == "hang":
                self.forever()
        except Aborted:
            process.kill()
            raise
        self.tool_end(tool, "Started.")
        self.next_step(0.0001)
        self.work()


# The server.


class Server:
    """What a process of `opencode serve` knows, and its socket; the routes are a generation's."""

    turn: type[Turn]
    events_path = ""
    heartbeat = 10.0
    version = ""

    def __init__(self, behaviour: Json) -> None:
        self.behaviour = behaviour
        self.answers: list[str] = behaviour.get("answers") or ["work"]
        self.again: str = behaviour.get("again", "work")
        self.delay = float(behaviour.get("delay", 0))
        self.heartbeat = float(behaviour.get("heartbeat", self.heartbeat))
        self.per_chunk = int(behaviour.get("per_chunk", 1))
        self.retries = int(behaviour.get("retries", 0))
        self.old: str = behaviour.get("old", "")
        self.version = str(behaviour.get("version") or self.old or self.version)
        self.not_opencode = bool(behaviour.get("not_opencode"))
        self.reply_fails = int(behaviour.get("reply_fails", 0))
        self.question_fails = int(behaviour.get("question_fails", 0))
        self.price = bool(behaviour.get("price", True))
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
        self.prompted: set[str] = set()
        self.taken = 0
        self.asks: dict[str, Ask] = {}
        self.turns: list[Turn] = []
        self.children: list[Any] = []
        self.streams: list[Stream] = []
        self.lock = threading.Lock()
        self.last_id = 0
        self.plan = ""
        self.frozen = False
        self.memory: list[bytearray] = []  # memory, as ordered
        self.began = time.monotonic()
        if behaviour.get("store"):
            self.load(behaviour["store"])

    def event(self, kind: str, data: Json) -> Json:
        """An event in the server's envelope."""
        raise NotImplementedError

    def route(self, request: Request) -> Answer:
        """Answer one request, except for the event stream."""
        raise NotImplementedError

    def beat(self) -> bytes:
        """A heartbeat of the event stream."""
        raise NotImplementedError

    def connected(self) -> bytes:
        """The first thing in an event stream."""
        raise NotImplementedError

    def tool_environment(self, session: str) -> dict[str, str]:
        """What the tools find in their environment."""
        raise NotImplementedError

    def unauthorized(self) -> Answer:
        """The answer to a request without the password."""
        raise NotImplementedError

    def message_id(self, message: Json) -> str:
        """A message's id."""
        raise NotImplementedError

    # What is kept, and what is told.

    def note(self, event: str, **more: Any) -> None:
        """Log an event: the fake's own, or a request in words that fit both generations."""
        if self.log is not None:
            line = encode({"time": time.time(), "event": event, **more})
            os.write(self.log, line.encode("utf-8", "replace") + b"\n")

    def keep(self, **record: Any) -> None:
        """Append to the store; the last record of an id is the one that counts."""
        if self.store is not None:
            os.write(self.store, encode(record).encode("utf-8", "replace") + b"\n")

    def load(self, path: str) -> None:
        """Read what an earlier process kept."""
        with open(path, encoding="utf-8") as file:
            for line in file:
                self.restore(json.loads(line))

    def restore(self, record: Json) -> None:
        """Take in one record of the store."""
        number = record["of"]
        if "session" in record:
            self.sessions[number] = record["session"]
            self.messages.setdefault(number, [])
        elif "prompt" in record:
            self.prompts[record["prompt"]] = record["answer"]
            self.prompted.add(number)
            self.taken += record["taken"]
        elif "message" in record:
            self.add_message(number, record["message"])

    def add_message(self, number: str, message: Json) -> None:
        """Add a message to a session, or put it in the place of what it was before."""
        known = self.messages[number]
        own = self.message_id(message)
        for place in range(len(known) - 1, -1, -1):
            if self.message_id(known[place]) == own:
                known[place] = message
                return
        known.append(message)

    def choose(self, number: str, prompt: str, going_on: bool) -> str:
        """What to answer: the next of `answers`, or `again` to a prompt that had no answer."""
        taken = not going_on
        if taken:
            answer = self.answers[min(self.taken, len(self.answers) - 1)]
            self.taken += 1
        elif self.again == "same":
            answer = (
                self.prompts.get(prompt) or self.answers[min(self.taken, len(self.answers)) - 1]
            )
        else:
            answer = self.again
        if prompt not in self.prompts:
            self.prompts[prompt] = answer
            self.prompted.add(number)
            self.keep(of=number, prompt=prompt, answer=answer, taken=int(taken))
        return answer

    def new_id(self, prefix: str) -> str:
        """Ids rise with time, but those of sessions fall, as the real ones do."""
        with self.lock:
            self.last_id = number = max(self.last_id + 1, milliseconds() << 12)
        if prefix == "ses":
            number = ~number
        return f"{prefix}_{number & (2**48 - 1):012x}{os.urandom(7).hex()}"

    def send(self, data: bytes) -> None:
        """Write to everybody who listens; a frozen server says nothing."""
        if not self.frozen and data:
            for stream in list(self.streams):
                stream.write(data)

    def publish(self, kind: str, **data: Any) -> None:
        """Tell everybody at once."""
        self.send(frame(self.event(kind, data)))

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
        self.keep(of=turn.id, session=turn.session)

    def stop_turns(self, number: str = "") -> bool:
        """Abort the turns of a session, or all of them; whether there was one."""
        with self.lock:
            running = [turn for turn in self.turns if number in ("", turn.id)]
        for turn in running:
            turn.stop()
        return bool(running)

    def give(self, request: Request, kind: str, number: str, reply: Reply) -> int:
        """Give a reply to who asked, once; the status says whether that went well."""
        ask = self.asks.get(number)
        status = self.reply_fails or (200 if ask and ask.kind == kind else 404)
        self.note(
            "reply",
            time=request.arrived,
            kind=kind,
            id=number,
            decision=reply.decision,
            message=reply.message,
            answers=reply.answers,
            code=status,
        )
        if ask and status == 200:
            del self.asks[number]
            ask.turn.reply = reply
            ask.turn.wake.set()
        return status

    def asked(self, kind: str) -> list[Json]:
        """What is asked and not yet answered."""
        return [ask.entry for ask in list(self.asks.values()) if ask.kind == kind]

    def limits(self) -> Json:
        """What a model can take."""
        return {"context": 100000, "output": 10000}

    def kill_tools(self) -> None:
        """End what the tools have started."""
        for child in self.children:
            child.kill()

    # The socket.

    def serve(self, listener: socket.socket) -> None:
        """Accept for ever, one thread for each connection."""
        self.began = time.monotonic()
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
                    line, *lines = head.split(b"\r\n")
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
                    if not self.answer(connection, arrived, line.decode("latin-1"), headers, body):
                        return
        except OSError:
            pass

    def answer(
        self,
        connection: socket.socket,
        arrived: float,
        line: str,
        headers: dict[bytes, bytes],
        body: bytes,
    ) -> bool:
        """One request; False when the connection is not to be used again."""
        method, target, _ = line.split(" ", 2)
        path, _, query = target.partition("?")
        try:
            given = json.loads(body) if body else {}
        except ValueError:
            given = {}
        if self.log is not None:
            record = {"time": arrived, "method": method, "path": target, "body": given or None}
            os.write(self.log, encode(record).encode("utf-8", "replace") + b"\n")
        if self.frozen:
            threading.Event().wait()
        pairs = (pair.partition("=") for pair in query.split("&"))
        values = {unquote(key): unquote(value) for key, _, value in pairs}
        given = given if isinstance(given, dict) else {}
        request = Request(method, path, values, headers, given, len(body), arrived)
        denied = self.authorization and headers.get(b"authorization") != self.authorization
        if self.not_opencode:
            answer = Answer(200, PAGE)
        elif denied:
            answer = self.unauthorized()
        elif self.streams_events(request):
            return self.stream(connection)
        else:
            answer = self.route(request)
        respond(connection, answer)
        if answer.after:
            answer.after()
        return headers.get(b"connection", b"").lower() != b"close"

    def streams_events(self, request: Request) -> bool:
        """Whether a request asks for the event stream."""
        return request.path == self.events_path and request.method == "GET"

    def stream(self, connection: socket.socket) -> bool:
        """Answer with events, until the stream ends."""
        stream = Stream(connection)
        stream.write(
            b"HTTP/1.1 200 OK\r\nCache-Control: no-cache, no-transform\r\n"
            b"X-Content-Type-Options: nosniff\r\nContent-Type: text/event-stream\r\n"
            b"Vary: Origin\r\nx-accel-buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
            + self.connected()
        )
        self.streams.append(stream)
        stream.run(self.heartbeat, lambda: b"" if self.frozen else self.beat())
        if stream in self.streams:
            self.streams.remove(stream)
        return False


def basic(user: str, password: str) -> bytes:
    """The header of Basic authentication."""
    return b"Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False)


def unquote(text: str) -> str:
    """Percent-decoding; urllib would take longer to import than all else to run."""
    if "%" not in text:
        return text
    found = re.sub(rb"%([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return found.decode("utf-8", "replace")


def respond(connection: socket.socket, answer: Answer) -> None:
    """Send a whole response in one piece."""
    status, body, headers, _ = answer
    data, kind = b"", ""
    if isinstance(body, str):
        data, kind = body.encode(), "Content-Type: text/html\r\n"
    elif body is not None:
        data = encode(body).encode("utf-8", "replace")
        kind = "Content-Type: application/json\r\n"
    reason = REASONS.get(status, "Unknown")
    length = "" if status == 204 else f"Content-Length: {len(data)}\r\n"
    head = f"HTTP/1.1 {status} {reason}\r\n{kind}{headers}{length}Vary: Origin\r\n\r\n"
    connection.sendall(head.encode() + data)


def open_append(path: str | None) -> int | None:
    """A file to append whole lines to, from any thread and any process."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None
