#!/usr/bin/env python3
"""A model that follows a script: for demonstrations and tests without a key or a network.

It speaks the streaming part of OpenAI's chat completions on 127.0.0.1 and works a plan file through
OpenCode's own tools: it reads the plan, does the first pending task, checks what it did, marks the
task, and ends its turn. The last task's turn also appends `<plan-complete>`. Nothing is remembered
between two requests: what to do next follows from the conversation that a request carries, as with
a real model. What is remembered is a list of faults, of which every request takes the next one;
after the last the model behaves.

    python3 scripted_model.py --delay 0.05 --faults ok,429,cut

    with ScriptedModel(faults="ok,429,cut") as model:
        (project / "opencode.json").write_text(json.dumps(opencode_config(model.url)))

Faults, each for one request that offers tools (title and summary requests take none):

    ok                  as usual
    400 401 404 429 …   that HTTP status; `429:3600` adds `retry-after: 3600`
    full                as usual, but the usage says that the context is full: OpenCode compacts
    overflow            400 with OpenAI's `context_length_exceeded`: OpenCode compacts the session
                        and goes on
    cut                 the connection is reset after some words
    hang                nothing is sent until the client gives up or this server closes
    unknown             the stream ends in good order but without a finish_reason
    length              likewise with the finish_reason of the model's output limit
    nothing             a text and a stop, with no work done
    bash:COMMAND        one bash call, then on as usual
    outside             reads a file outside of the directory: permission `external_directory`
    ask                 one call of the `question` tool
    subagent            one call of the `task` tool; the subagent runs a command
    subagent-outside    likewise, and the subagent asks for the permission of `outside`
    subagent-turns:N    likewise, and the subagent makes N calls by turns, without an end
    background:SECONDS  a subagent that works in the background for so long
    turns:N             the next one of N calls that are made by turns
    todo                one call of the `todowrite` tool
    doom                three identical calls at once: permission `doom_loop`
    block, manual       the task is marked `[BLOCKED: no key]` or `[MANUAL]` instead of being done
    complete-early      the completion tag is appended while tasks are pending
    slow:SECONDS        a text that takes so long in many small pieces, then on as usual
    flood:N             a text in N small pieces without a pause, then on as usual
    delete-plan         removes the plan file

`NAME*3` stands for three times, `NAME*` for ever, `NAME!` for all that the session still asks. A
bash command is taken as it stands, so it cannot be repeated this way and, in the comma-separated
form, cannot contain a comma. `block`, `manual` and `complete-early` wait until the plan was read.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import select
import shlex
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, final

JSON = dict[str, Any]

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Bulgaria": "Sofia", "Croatia": "Zagreb",
    "Cyprus": "Nicosia", "Czechia": "Prague", "Denmark": "Copenhagen", "Estonia": "Tallinn",
    "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "Italy": "Rome", "Latvia": "Riga",
    "Lithuania": "Vilnius", "Luxembourg": "Luxembourg", "Malta": "Valletta",
    "the Netherlands": "Amsterdam", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Romania": "Bucharest", "Slovakia": "Bratislava", "Slovenia": "Ljubljana", "Spain": "Madrid",
    "Sweden": "Stockholm",
}  # fmt: skip

CONTEXT = 128000
OUTSIDE_FILE = "/etc/hosts"
SUBAGENT_PROMPT = "Run the command `echo from the subagent` and report what it printed."
SUBAGENT_OUTSIDE_PROMPT = f"Read the file {OUTSIDE_FILE} and report how many lines it has."
SUBAGENT_TURNS = re.compile(r"Run the same (\d+) commands by turns\.")
SUBAGENT_SLEEPS = re.compile(r"Run the command `(sleep [\d.]+)` and report that it has ended\.")

TASK_LINE = re.compile(r"(?P<before>\s*(?:[-*+]|\d+[.)])\s+\[) ?\]\s+(?P<text>\S.*)")
SET_ASIDE = re.compile(r"\W*\[?(MANUAL|BLOCKED)\b", re.IGNORECASE)
QUIZ_TASK = re.compile(r"Write the capital of (?P<country>.+?) into (?P<file>\S+)")


def opencode_config(url: str) -> JSON:
    """What an opencode.json needs for the model at `url` (ScriptedModel.url) and no network."""
    return {
        "$schema": "https://opencode.ai/config.json",
        "autoupdate": False,
        "share": "disabled",
        "enabled_providers": ["scripted"],
        "model": "scripted/quiz",
        "small_model": "scripted/quiz",
        "lsp": False,
        "formatter": False,
        "provider": {
            "scripted": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Scripted model",
                "options": {"baseURL": url, "apiKey": "not-needed"},
                "models": {
                    "quiz": {
                        "name": "Quiz",
                        "reasoning": True,
                        "tool_call": True,
                        "limit": {"context": CONTEXT, "output": 8192},
                        "cost": {"input": 1.25, "output": 10, "cache_read": 0.125},
                    }
                },
            }
        },
    }


# ---- What the conversation says ------------------------------------------------------------------
# A request carries everything that happened so far. Only what follows the last prompt counts: an
# earlier prompt in the same session had its own turn.


@dataclass(frozen=True)
class Call:
    """One tool call that the model made, with what the tool answered (None while it has not)."""

    tool: str
    arguments: JSON
    result: str | None = None


def text_of(message: JSON) -> str:
    """The text of a chat message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


@dataclass(frozen=True)
class Conversation:
    """The parts of a request on which the next step depends."""

    prompt: str
    directory: str
    plan_path: str
    calls: list[Call]
    tools: frozenset[str]

    @classmethod
    def of(cls, request: JSON) -> Conversation:
        """Find prompt, plan path and tool calls in a chat completions request."""
        messages: list[JSON] = request["messages"]
        users = [at for at, message in enumerate(messages) if message["role"] == "user"]
        last = users[-1] if users else 0
        system = "\n".join(text_of(message) for message in messages if message["role"] == "system")
        found = re.search(r"Working directory: (.+)", system)
        directory = found.group(1).strip() if found else ""
        # After a compaction the plan is named in the summary, which is an answer of the model's
        # own.
        paths = (
            find_plan(text_of(m), directory)
            for m in reversed(messages)
            if m["role"] in ("user", "assistant")
        )
        return cls(
            prompt=text_of(messages[last]),
            directory=directory,
            plan_path=next((path for path in paths if path), ""),
            calls=find_calls(messages[last + 1 :]),
            tools=frozenset(tool["function"]["name"] for tool in request.get("tools") or []),
        )


def find_plan(text: str, directory: str) -> str:
    """The absolute path of a Markdown file in `text`, or "".

    A path below the working directory, or in quotes, may contain blanks; any other ends at white
    space.
    """
    below = [re.escape(directory.rstrip("/")) + r"/[^\n`\"'<>]*?\.md\b"] if directory else []
    for pattern in [
        *below,
        r"(?<=[`\"'])/[^\n`\"']+?\.md(?=[`\"'])",
        r"(?<![\w.~])/[^\s`\"'<>()]+\.md\b",
    ]:
        found = re.search(pattern, text)
        if found:
            return found.group()
    return ""


def find_calls(messages: Sequence[JSON]) -> list[Call]:
    """The tool calls in `messages` in their order, each with its result."""
    results = {m.get("tool_call_id"): text_of(m) for m in messages if m["role"] == "tool"}
    calls = []
    for message in messages:
        for call in message.get("tool_calls") or []:
            try:
                arguments = json.loads(call["function"]["arguments"])
            except ValueError:
                arguments = {}
            calls.append(Call(call["function"]["name"], arguments, results.get(call["id"])))
    return calls


def file_content(result: str) -> list[str] | None:
    """The lines of a file that the read tool shows, without numbers; None if it shows no file."""
    lines = [
        found.group(1) for found in re.finditer(r"^ *\d+(?:\||:) ?(.*)$", result, re.MULTILINE)
    ]
    return lines or None


# ---- What to do next -----------------------------------------------------------------------------
# A turn is a list of calls; the next one is the first that the conversation does not hold yet.


@dataclass(frozen=True)
class Answer:
    """What the model says: reasoning and text, then tool calls; without calls its turn ends."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


def call(tool: str, **arguments: Any) -> Call:
    """Short for a call yet to be made."""
    return Call(tool, arguments)


def usual_answer(talk: Conversation, mark: str = "x") -> Answer:
    """The next step of one task's turn; a `mark` other than "x" sets the task aside instead."""
    if SUBAGENT_PROMPT in talk.prompt:
        return first_missing(
            talk, [call("bash", command="echo from the subagent")], "It printed: from the subagent"
        )
    if SUBAGENT_OUTSIDE_PROMPT in talk.prompt:
        return first_missing(talk, [call("read", filePath=OUTSIDE_FILE)], "It has some lines.")
    turns = SUBAGENT_TURNS.search(talk.prompt)
    if turns:
        return by_turns(talk, int(turns.group(1)))
    sleeps = SUBAGENT_SLEEPS.search(talk.prompt)
    if sleeps:
        return first_missing(talk, [call("bash", command=sleeps.group(1))], "It has ended.")
    if not talk.plan_path:
        return Answer(
            "There is no path of a plan in this prompt, so there is nothing for me to do."
        )
    read = plan_read(talk)
    if read is None:
        return Answer(
            "I will read the plan first.",
            "The prompt names a plan file. Only the file says which tasks are still open, "
            "so I begin there.",
            [call("read", filePath=talk.plan_path)],
        )
    lines = file_content(read.result or "")
    if lines is None:
        return Answer(f"The plan {talk.plan_path} could not be read, so I stop here.")
    edited = [
        made.arguments for made in talk.calls if made.tool == "edit" and same_path(talk, made)
    ]
    text = "\n".join(lines)
    for edit in edited:
        text = text.replace(edit.get("oldString", "\0"), edit.get("newString", ""), 1)
    if "<plan-complete>" in text:
        return Answer("The plan is complete.")
    if first_pending(text.split("\n")) is None:
        return Answer(
            "No task is left.", "Nothing that I could do is pending.", [completion(talk, text)]
        )
    if edited:
        return Answer("The task is marked, and the next one is for the next session.")
    return next_on_task(talk, lines, mark)


def by_turns(talk: Conversation, number: int) -> Answer:
    """The next of so many calls that are made again and again."""
    return Answer(calls=[call("bash", command=f"echo turn {len(talk.calls) % number}")])


def plan_read(talk: Conversation) -> Call | None:
    """The first reading of the plan in this turn."""
    return next(
        (made for made in talk.calls if made.tool == "read" and same_path(talk, made)), None
    )


def same_path(talk: Conversation, made: Call) -> bool:
    """Whether a call was about the plan file."""
    return bool(made.arguments.get("filePath") == talk.plan_path)


def first_pending(lines: Sequence[str]) -> int | None:
    """The index of the first pending task line, not set aside and outside of fenced code."""
    fence = ""
    for at, line in enumerate(lines):
        found = re.match(r" {0,3}(```|~~~)", line)
        if found and fence in ("", found.group(1)):
            fence = "" if fence else found.group(1)
        task = TASK_LINE.match(line)
        if task and not fence and not SET_ASIDE.match(task.group("text")):
            return at
    return None


def next_on_task(talk: Conversation, lines: list[str], mark: str) -> Answer:
    """Do, check and mark the first pending task of the plan, one call at a time."""
    at = first_pending(lines)
    assert at is not None
    found = TASK_LINE.match(lines[at])
    assert found is not None
    task = found.group("text").strip()
    marked = found.group("before") + mark + "] " + found.group("text")
    edit = call("edit", filePath=talk.plan_path, **replacement(lines, at, marked))
    if mark != "x":
        return first_missing(talk, [edit], "", f"I cannot do this one: {task}")
    quiz = QUIZ_TASK.match(task)
    if not quiz:
        note = call("bash", command=f"echo {shlex.quote('done: ' + task)} >> notes.txt")
        steps = [note, call("bash", command="tail -n 3 notes.txt"), edit]
        return first_missing(talk, steps, "", f"The task is: {task}")
    country, capital = quiz.group("country"), CAPITALS.get(quiz.group("country"), "unknown")
    path = (
        f"{talk.directory.rstrip('/')}/{quiz.group('file')}"
        if talk.directory
        else quiz.group("file")
    )
    steps = [
        call("write", filePath=path, content=capital + "\n"),
        call("bash", command=f"cat {shlex.quote(quiz.group('file'))}"),
        edit,
    ]
    thought = f"The first pending task asks for the capital of {country}. That is {capital}."
    return first_missing(talk, steps, "", f"The capital of {country} is {capital}.", thought)


def replacement(lines: Sequence[str], at: int, new: str) -> dict[str, str]:
    """oldString and newString that change line `at` to `new`.

    The old text has to be unique in the file, so lines around it are taken in until it is.
    """
    text = "\n".join(lines)
    first, last = at, at + 1
    while text.count("\n".join(lines[first:last])) > 1 and last - first < len(lines):
        last, first = (last + 1, first) if last < len(lines) else (last, first - 1)
    old = list(lines[first:last])
    return {
        "oldString": "\n".join(old),
        "newString": "\n".join([*old[: at - first], new, *old[at - first + 1 :]]),
    }


def completion(talk: Conversation, text: str) -> Call:
    """The call that appends the completion tag to a plan of this content."""
    lines = text.rstrip("\n").split("\n")
    done = len(re.findall(r"^\s*(?:[-*+]|\d+[.)])\s+\[x\]", text, re.IGNORECASE | re.MULTILINE))
    tag = f"<plan-complete>{done} tasks are done and checked.</plan-complete>"
    return call(
        "edit",
        filePath=talk.plan_path,
        **replacement(lines, len(lines) - 1, f"{lines[-1]}\n\n{tag}"),
    )


def first_missing(
    talk: Conversation, steps: Sequence[Call], end: str, text: str = "", reasoning: str = ""
) -> Answer:
    """The first of `steps` not called yet, after all of them `end`.

    Text and reasoning come before the very first.
    """
    made = [(earlier.tool, earlier.arguments) for earlier in talk.calls]
    for number, step in enumerate(steps):
        if (step.tool, step.arguments) not in made:
            return Answer(text if number == 0 else "", reasoning if number == 0 else "", [step])
    return Answer(end)


# ---- Faults --------------------------------------------------------------------------------------

FAULTS_ONCE_READ = {"block": "BLOCKED: no key", "manual": "MANUAL", "complete-early": ""}
FAULTS_OF_TRANSPORT = ("full", "overflow", "cut", "hang", "unknown", "length")
FAULTS_WITH_CALLS = (
    "outside",
    "ask",
    "subagent",
    "subagent-outside",
    "todo",
    "doom",
    "delete-plan",
)
FAULT = re.compile(
    r"ok|nothing|[45]\d\d(?::\d+)?|bash:.+|(?:slow|background):\d+(?:\.\d+)?|"
    r"(?:flood|turns|subagent-turns):\d+|"
    + "|".join((*FAULTS_ONCE_READ, *FAULTS_OF_TRANSPORT, *FAULTS_WITH_CALLS)),
    re.DOTALL,
)


def parse_faults(faults: str | Sequence[str]) -> Iterator[str]:
    """The faults one by one, then "ok" for ever. ValueError when one does not exist."""
    names = (
        [name.strip() for name in faults.split(",") if name.strip()]
        if isinstance(faults, str)
        else list(faults)
    )
    parts: list[Iterator[str]] = []
    for given in names:
        found = re.fullmatch(r"([^:]+(?::[\d.]+)?)\*(\d*)", given)
        name, times = (found.group(1), found.group(2)) if found else (given, "1")
        if not FAULT.fullmatch(name.removesuffix("!")):
            raise ValueError(f"there is no fault {name!r}")
        parts.append(itertools.repeat(name, int(times)) if times else itertools.repeat(name))
    return itertools.chain(*parts, itertools.repeat("ok"))


def fault_answer(talk: Conversation, fault: str) -> Answer:
    """What the model says under a fault of its behaviour; as usual under one of the transport."""
    name, _, argument = fault.partition(":")
    if name == "nothing":
        return Answer("I have looked at everything and leave it as it is.")
    if name in ("block", "manual"):
        return usual_answer(talk, FAULTS_ONCE_READ[name])
    if name == "complete-early":
        lines = file_content((plan_read(talk) or Call("read", {})).result or "")
        return Answer("That should be enough.", "", [completion(talk, "\n".join(lines or []))])
    if name == "turns":
        return by_turns(talk, int(argument))
    calls = {
        "bash": [call("bash", command=argument)],
        "outside": [call("read", filePath=OUTSIDE_FILE)],
        "ask": [call("question", questions=[QUESTION])],
        "subagent": [subagent("Say hello", SUBAGENT_PROMPT)],
        "subagent-outside": [subagent("Count lines", SUBAGENT_OUTSIDE_PROMPT)],
        "subagent-turns": [subagent("Turn", f"Run the same {argument} commands by turns.")],
        "background": [
            subagent(
                "Sleep",
                f"Run the command `sleep {argument}` and report that it has ended.",
                background=True,
            )
        ],
        "todo": [call("todowrite", todos=TODOS)],
        "doom": [call("bash", command="echo the same again")] * 3,
        "delete-plan": [call("bash", command=f"rm {shlex.quote(talk.plan_path)}")],
    }
    return Answer("", "", calls[name]) if name in calls else usual_answer(talk)


QUESTION = {
    "question": "In which language should the capitals be written?",
    "header": "Language",
    "options": [
        {"label": "English", "description": "As the plan says"},
        {"label": "Local", "description": "As the people who live there write it"},
        {"label": "Both", "description": "English first, then the local name"},
    ],
}
TODOS = [
    {"content": "Read the plan", "status": "completed", "priority": "high"},
    {"content": "Write the answer", "status": "in_progress", "priority": "high"},
    {"content": "Mark the task", "status": "pending", "priority": "medium"},
]


def subagent(description: str, prompt: str, **more: Any) -> Call:
    """A call that hands a prompt to a subagent."""
    return call("task", description=description, prompt=prompt, subagent_type="general", **more)


# ---- The wire ------------------------------------------------------------------------------------


@final
class ScriptedModel:
    """The server, running in a thread between `start` and `close` (or in a `with` block).

    url         where OpenCode finds it, with /v1
    requests    the newest bodies of POST /v1/chat/completions, oldest first, at most `keep`
    given       what the requests with tools were given: the fault's name, or the names of the tools
                called ("read", "bash,bash,bash"), or "stop" for an answer that ended the turn; at
                most `keep`
    """

    def __init__(
        self, faults: str | Sequence[str] = (), delay: float = 0.0, port: int = 0, keep: int = 1000
    ) -> None:
        self.delay = delay
        self.closing = threading.Event()
        self._faults = parse_faults(faults)
        self._held: str | None = None
        self._lasting = ""  # what the session under way is given, whatever it asks
        self._lock = threading.Lock()
        self._requests: deque[JSON] = deque(maxlen=keep)
        self._given: deque[str] = deque(maxlen=keep)
        self._numbers = itertools.count(1)
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def requests(self) -> list[JSON]:
        """A copy of the newest request bodies."""
        with self._lock:
            return list(self._requests)

    @property
    def given(self) -> list[str]:
        """A copy of what the newest requests with tools were given."""
        with self._lock:
            return list(self._given)

    def set_faults(self, faults: str | Sequence[str]) -> None:
        """Replace what is left of the faults."""
        with self._lock:
            self._faults, self._held = parse_faults(faults), None

    def start(self) -> ScriptedModel:
        """Serve until `close`."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving; answers under way, hanging ones too, are broken off."""
        self.closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> ScriptedModel:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def decide(self, request: JSON) -> tuple[str, Answer]:
        """The fault that a request takes ("ok" for none) and what to answer."""
        talk = Conversation.of(request)
        with self._lock:
            self._requests.append(request)
        if not talk.tools:
            # A title or a summary; after a compaction only the summary is left, so it has to name
            # the plan.
            about = f" of {talk.plan_path}" if talk.plan_path else ""
            return "ok", Answer(f"One task{about}")
        of_subagent = (SUBAGENT_PROMPT, SUBAGENT_OUTSIDE_PROMPT, SUBAGENT_TURNS, SUBAGENT_SLEEPS)
        if any(re.search(prompt, talk.prompt) for prompt in of_subagent):
            return "ok", self._record("ok", usual_answer(talk), talk)
        with self._lock:
            if all(message["role"] != "assistant" for message in request["messages"]):
                self._lasting = ""  # another session
            fault = self._lasting or self._held or next(self._faults)
            if fault.endswith("!") and not fault.startswith("bash:"):
                fault = self._lasting = fault[:-1]
            read = plan_read(talk)
            self._held = (
                fault if fault in FAULTS_ONCE_READ and (read is None or not read.result) else None
            )
            if self._held:
                fault = "ok"
        return fault, self._record(fault, fault_answer(talk, fault), talk)

    def _record(self, fault: str, answer: Answer, talk: Conversation) -> Answer:
        """Note what is given; a tool that is not on offer cannot be called."""
        missing = [made.tool for made in answer.calls if made.tool not in talk.tools]
        if missing:
            answer = Answer(f"I would need the tool {missing[0]}, which is not offered.")
        with self._lock:
            self._given.append(
                fault if fault != "ok" else ",".join(c.tool for c in answer.calls) or "stop"
            )
        return answer

    def number(self) -> int:
        """A number not used before, for ids."""
        with self._lock:
            return next(self._numbers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], model: ScriptedModel) -> None:
        self.model = model
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback; all else is a bug and shows one."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the demonstration."""

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            models = [{"id": "quiz", "object": "model", "created": 0, "owned_by": "scripted"}]
            self._send_json(200, {"object": "list", "data": models})
        else:
            self._send_error(404, "not_found", f"no such path: {self.path}")

    def do_POST(self) -> None:
        try:
            request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
            fault, answer = self.server.model.decide(request)
        except (ValueError, KeyError, TypeError) as error:
            self._send_error(400, "invalid_request", f"not a chat completions request: {error!r}")
            return
        if self.path.rstrip("/") != "/v1/chat/completions":
            self._send_error(404, "not_found", f"no such path: {self.path}")
        elif fault == "hang":
            self._hang()
        elif fault == "overflow":
            message = (
                f"This model's maximum context length is {CONTEXT} tokens; "
                "your messages are longer."
            )
            self._send_error(400, "context_length_exceeded", message)
        elif fault[:3].isdigit():
            self._send_error(int(fault[:3]), "scripted", f"scripted fault {fault[:3]}", fault[4:])
        else:
            self._stream(request, fault, answer)

    def _send_json(self, status: int, body: JSON, retry_after: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("connection", "close")
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.end_headers()
        self.wfile.write(data)

    def _send_error(self, status: int, code: str, message: str, retry_after: str = "") -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        self._send_json(
            status, {"error": {"message": message, "type": kind, "code": code}}, retry_after
        )

    def _hang(self) -> None:
        """Hold the connection until the other side closes it."""
        self.close_connection = True
        while not self.server.model.closing.is_set():
            if select.select([self.connection], [], [], 0.1)[0] and not self.connection.recv(4096):
                return

    def _stream(self, request: JSON, fault: str, answer: Answer) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("connection", "close")
        self.end_headers()
        model = self.server.model
        head = {
            "id": f"chatcmpl-{model.number()}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "quiz",
        }
        # A stream that is to be cut or to end without a finish_reason still has something to say
        # first.
        said = (
            answer
            if fault not in ("cut", "unknown", "length")
            else Answer("Let me look at this for a moment, and")
        )
        for pause, delta in self._deltas(fault, said):
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if pause and model.closing.wait(pause):
                self.close_connection = True
                return
        if fault == "cut":
            # Linger time 0: close() sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionAbortedError("cut, as asked for")
        if fault != "unknown":
            reason = "tool_calls" if said.calls else "length" if fault == "length" else "stop"
            self._event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self._event({**head, "choices": [], "usage": usage(request, said, fault == "full")})
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _deltas(self, fault: str, answer: Answer) -> Iterator[tuple[float, JSON]]:
        """Each delta with the seconds to wait after it."""
        delay = self.server.model.delay
        yield delay, {"role": "assistant", "content": ""}
        for word in words(answer.reasoning):
            yield delay, {"reasoning_content": word}
        name, _, argument = fault.partition(":")
        if name == "slow":
            for number in range(max(1, round(float(argument) * 10))):
                yield 0.1, {"content": f"word{number} "}
        if name == "flood":
            for number in range(int(argument)):
                yield 0.0, {"content": f"w{number} "}
        for word in words(answer.text):
            yield delay, {"content": word}
        for index, made in enumerate(answer.calls):
            function: JSON = {"name": made.tool, "arguments": ""}
            opening = {
                "index": index,
                "id": f"call_{self.server.model.number()}",
                "type": "function",
            }
            yield delay, {"tool_calls": [{**opening, "function": function}]}
            arguments = json.dumps(made.arguments, ensure_ascii=False)
            for start in range(0, len(arguments), 40):
                piece = {"arguments": arguments[start : start + 40]}
                yield delay, {"tool_calls": [{"index": index, "function": piece}]}

    def _event(self, body: JSON) -> None:
        self._chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def words(text: str) -> list[str]:
    """The text in pieces of a word each, blanks kept."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


def usage(request: JSON, answer: Answer, full: bool = False) -> JSON:
    """Token counts in OpenAI's form, at four characters a token.

    What was sent before counts as cached. With `full` the prompt counts as many
    tokens as the context holds.
    """
    messages = request["messages"]
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    tools = len(json.dumps(request.get("tools") or []))
    prompt = CONTEXT if full else (len(json.dumps(messages)) + tools) // 4
    cached = (len(json.dumps(messages[: answers[-1]])) + tools) // 4 // 128 * 128 if answers else 0
    reasoning = (len(answer.reasoning) + 3) // 4
    said = len(answer.text) + sum(
        len(made.tool) + len(json.dumps(made.arguments)) for made in answer.calls
    )
    output = reasoning + (said + 3) // 4
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)"
    )
    parser.add_argument(
        "--delay", type=float, default=0.02, help="seconds between two pieces (default: 0.02)"
    )
    parser.add_argument(
        "--faults", default="", help="comma-separated, one for each request (see above)"
    )
    options = parser.parse_args()
    try:
        model = ScriptedModel(options.faults, options.delay, options.port)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with model:
        print(f"scripted model listening on {model.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
