#!/usr/bin/env python3
"""ocloop: work through a PLAN.md with OpenCode, one fresh session per task, and survive the night.

    python3 ocloop.py bootstrap     write a starter PLAN.md and .loop-prompt.md
    python3 ocloop.py run           work the plan until the agent writes <plan-complete>

One file, the standard library alone, Python 3.9 or newer. Two ideas carry it, a pure core and one inbox:

    event stream ---+
    server process -+
    worker results -+--> inbox --> Loop.handle --> commands --> worker --> opencode serve
    signals --------+            (main thread)
    keys, ticks ----+                  +--> view --> layout --> screen

Every thread only posts *events* to the inbox. `Loop.handle(event, now)` alone decides: it owns all state of
the run, touches no clock, file, socket or screen, and returns *commands* for the worker to carry out.
Read `class Loop` first; you can stop there. Above it stand the words it is written in (options, plan,
prompt, vocabulary, what OpenCode says), below it the view and everything that touches the world (event
stream, OpenCode, screens, files, command line).

Exit statuses: 0 the plan is complete; 1 it failed; 2 usage; 3 it stopped with work left (a limit, stuck, or
marked complete too early); 130 a person or a signal stopped it.

Words: the *server* is the `opencode serve` process, a *session* is OpenCode's, an *iteration* is one session
spent on the plan, a *task* is one checkbox of the plan.
"""
from __future__ import annotations

import sys

if sys.hexversion < 0x03090000:
    sys.exit(f"ocloop: this is Python {sys.version.split()[0]}: run it with 3.9 or newer, e.g. python3.12 {sys.argv[0]}")
if sys.platform == "win32":
    sys.exit("ocloop: Windows is not supported: run it in WSL, or on Linux or macOS")

import argparse
import base64
import collections
import difflib
import fcntl
import functools
import io
import json
import locale
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import quote

try:
    import curses
except ImportError:     # some minimal Pythons have none: plain lines then
    curses = None  # type: ignore[assignment]

__version__ = "1.0.0"


class Problem(Exception):
    """Something a person can act on; `str()` of it reads `what went wrong: what to do next`."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────
# One frozen object holds what the person asked for. The environment is asked for nothing but what has no option:
# the password of --server, colours, the terminal's abilities, where state is kept.


class Options(NamedTuple):
    """What `run` was asked to do. Paths are absolute, durations are seconds, 0 means off."""
    directory: str = "."
    plan: str = "PLAN.md"
    prompt: str = ".loop-prompt.md"
    model: str = ""                  # providerID/modelID; "" is OpenCode's own default
    agent: str = ""
    port: int = 0                    # 0: 4096, or a free one when that is taken
    run: bool = False                # start at once
    debug: bool = False              # no validation of the plan
    verbose: bool = False            # every server event in the activity
    log: str = ""
    plain: bool = False
    auto: bool = False               # approve what is asked
    ask_timeout: float = 300
    max_iterations: int = 0
    max_cost: float = 0              # USD
    max_time: float = 0
    iteration_timeout: float = 0
    stall_timeout: float = 900
    stuck: int = 5
    retries: int = 5
    check: str = ""
    check_timeout: float = 600
    notify: str = ""
    server_memory: int = 2048        # MiB
    opencode: tuple[str, ...] = ("opencode",)
    server: str = ""                 # URL of a server that is not ours
    interactive: bool = False        # somebody can press keys


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────
# The plan is Markdown that people and the agent both edit, so reading it is total: any text gives a Plan,
# nothing raises. The loop never writes it.


class Task(NamedTuple):
    """One checkbox. `state` is pending, done, manual or blocked; `line` counts from 1."""
    state: str
    text: str
    reason: str = ""
    phase: str = ""
    line: int = 0


class Plan:
    """A plan as read; `summary` is None until the completion tag stands in it."""

    def __init__(self, tasks: Sequence[Task] = (), summary: str | None = None) -> None:
        self.tasks, self.summary = tuple(tasks), summary
        counts = collections.Counter(task.state for task in tasks)
        self.done, self.pending = counts["done"], counts["pending"]
        self.manual, self.blocked = counts["manual"], counts["blocked"]
        self.automatable = self.done + self.pending
        self.percent = 100      # done of automatable, rounded half up
        if self.automatable:
            self.percent = (200 * self.done + self.automatable) // (2 * self.automatable)
        self.current = next((task for task in tasks if task.state == "pending"), None)
        self.goal = self.current.text if self.current else "wrap up"
        self.marks = [task[:3] for task in tasks]       # what an iteration can change

    def __str__(self) -> str:
        return (f"{self.done} of {self.automatable} tasks done ({self.percent} %), {self.blocked} blocked, "
                f"{self.manual} manual")


_LINE_END = re.compile(r"\r\n|\r")      # str.splitlines would split on U+2028 and form feeds as well
_FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}(?=[^`\n]*$)|~{3,})", re.MULTILINE)
_OPENING = re.compile("```+|~~~+|<!--")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*)")
_BULLET = re.compile(r"[ \t]*(?:[-*+]|\d+[.)])[ \t]+(?=\[)")
_USUAL = re.compile(r"[ \t]*(?:[-*+]|\d+[.)])[ \t]+\[([ xX]?)\][ \t]+([^\s*\[].*)")   # a box and text without a mark
_TAG_OPEN = re.compile(r"^ {0,3}<plan-complete>", re.MULTILINE)
_TAG_CLOSE = "</plan-complete>"
_BOXES = {"": "pending", " ": "pending", "x": "done", "X": "done"}


def parse_plan(text: str) -> Plan:
    """Read a plan; the rules are in the README under "The plan file".

    Code blocks and comments are blanked out first, character by character, so that offsets stay true and
    the summary can be cut out of the original.
    """
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    shown = _hide(text)
    tasks, phase = [], ""
    for number, line in enumerate(shown.split("\n"), 1):
        heading = _HEADING.match(line) if "#" in line else None
        if heading:
            phase = heading.group(1).rstrip(" \t").rstrip("#").rstrip(" \t")
        elif "[" in line:
            task = _parse_task(line, phase, number)
            if task:
                tasks.append(task)
    return Plan(tasks, _find_summary(text, shown))


def _hide(text: str) -> str:
    """Replace what stands in fenced code and HTML comments by spaces."""
    shown: list[str] = []
    done, at, line, last_close = 0, 0, 0, text.rfind("-->")
    while True:
        opening = _OPENING.search(text, at)
        if not opening:
            return "".join([*shown, text[done:]])
        line = text.rfind("\n", at, opening.start()) + 1 or line
        start, at = opening.span()
        if opening.group() != "<!--":
            fence = _FENCE.match(text, line)
            if not fence or fence.start(1) != start:
                continue                        # it does not begin its line
            close = re.compile(rf"\n[ \t]*{fence[1][0]}{{{len(fence[1])},}}[ \t]*$", re.MULTILINE).search(text, at)
            start, end = line, close.end() if close else len(text)
        elif text.count("`", line, start) % 2:
            continue                            # in inline code it is text
        elif last_close >= at:
            end = text.find("-->", at) + 3
        elif text[line:start].strip():
            continue                            # what nothing closes is text, too, unless it begins the line
        else:
            end = len(text)
        shown += [text[done:start], re.sub(r"[^\n]+", lambda match: " " * len(match[0]), text[start:end])]
        line = text.rfind("\n", line, end) + 1 or line
        done = at = end


def _parse_task(line: str, phase: str, number: int) -> Task | None:
    usual = _USUAL.match(line)
    if usual:
        return Task(_BOXES[usual.group(1)], usual.group(2).strip(), "", phase, number)
    bullet = _BULLET.match(line)
    if not bullet:
        return None
    box, rest = _take_box(line[bullet.end():])
    state, reason = (_BOXES[box], "") if box in _BOXES else _read_mark(box)
    while state:        # marks may follow the box: `- [ ] **[MANUAL]** …`; the first one counts, unless done
        bold = rest.startswith("**[")
        mark, after = _take_box(rest[2:] if bold else rest, "**" if bold else "")
        found, why = _read_mark(mark)
        if not found:
            break
        if state == "pending":
            state, reason = found, why
        rest = after
    return Task(state, rest, reason, phase, number) if state and rest else None


def _take_box(text: str, closing: str = "") -> tuple[str, str]:
    """Split `[inside] rest` at the bracket that closes it (brackets nest); ("?", text) when no box stands there."""
    depth = at = 0
    for at, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth <= 0:
            break
    rest = text[at + 1:].removeprefix(closing)
    if text.startswith("[") and depth == 0 and text.startswith(closing, at + 1) and rest[:1] in ("", " ", "\t"):
        return text[1:at], rest.strip()
    return "?", text


def _read_mark(mark: str) -> tuple[str, str]:
    """`BLOCKED: no key` -> ("blocked", "no key"); what is no mark -> ("", "")."""
    word, _colon, reason = mark.partition(":")
    word = word.strip().lower()
    return (word, reason.strip()) if word in ("manual", "blocked") else ("", "")


def _find_summary(text: str, shown: str) -> str | None:
    """The text in the last complete completion tag that starts a line outside of code and comments."""
    last_close = shown.rfind(_TAG_CLOSE)
    opens = [match.end() for match in _TAG_OPEN.finditer(shown) if match.end() <= last_close]
    return text[opens[-1]:shown.find(_TAG_CLOSE, opens[-1])].strip() if opens else None


# ── prompt ───────────────────────────────────────────────────────────────────────────────────────────────
# The prompt file is sent as it is, less its front matter, with four placeholders filled in.


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Split a leading `---` block of `key: value` lines from the prompt's body."""
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    match = re.match(r"---[ \t]*\n(.*?)(?:^|\n)---[ \t]*(?:\n|$)", text, re.DOTALL | re.MULTILINE)
    if not match:
        return {}, text.strip()
    fields = {}
    for line in match.group(1).split("\n"):
        key, colon, value = line.partition(":")
        if colon and key.strip() and not line.lstrip().startswith("#"):
            fields[key.strip()] = value.strip().strip("'\"")
    return fields, text[match.end():].strip()


def render_prompt(body: str, plan: str, task: str, iteration: int, check: str) -> str:
    """Fill the placeholders in one pass, so that no value is searched for placeholders itself."""
    values = {"PLAN_FILE": plan, "TASK": task, "ITERATION": str(iteration), "CHECK": check}
    if check and "{{CHECK}}" not in body:
        body += "\n\n{{CHECK}}"
    return re.sub(r"\{\{(PLAN_FILE|TASK|ITERATION|CHECK)\}\}", lambda match: values[match.group(1)], body)


NO_TASK = "{} has no task: add lines such as `- [ ] Build it`"
NO_PROMPT = "{} is empty: write the prompt into it, or make a new one with `bootstrap --force`"
NO_PLACE = "{} does not contain {{{{PLAN_FILE}}}}: add it, else the agent may not find the plan"
CHECK_FAILED = """The project's check fails. Mend that before anything else: it comes before the next task.
$ {command}
exit status {status}
{output}"""


# ── vocabulary ───────────────────────────────────────────────────────────────────────────────────────────
# Events are what happened, commands are what to do. Both are values without behaviour. Results of the
# worker name the command that they answer, so that a late one can be told from the one awaited.


class StartServer(NamedTuple):
    """Stop what runs of the server, then start it anew. Answered by ServerReady or ServerDied."""
    generation: int

class StopServer(NamedTuple):
    """Abort the session (if any) and stop the server, tools and all."""
    session: str

class CheckSetup(NamedTuple):
    """Ask the server for its configuration, models and agents. Answered by SetupChecked."""

class ReadFiles(NamedTuple):
    """Read plan and prompt; the number comes back. Answered by FilesRead."""
    number: int

class CreateSession(NamedTuple):
    """Answered by SessionCreated."""
    iteration: int
    title: str

class SendPrompt(NamedTuple):
    """Sending the same ids again is safe: the server knows them. Answered by PromptAccepted."""
    session: str
    message_id: str
    part_id: str
    text: str
    model: str
    agent: str

class Poll(NamedTuple):
    """Ask for the session's status, and for its messages when it is idle or `messages` is set."""
    session: str
    messages: bool = False

class AbortSession(NamedTuple):
    """Answered by SessionAborted."""
    session: str

class Measure(NamedTuple):
    """Ask what session and children cost, and how large the server is. Answered by Measured."""
    session: str

class Reply(NamedTuple):
    """Answer a permission (`reply`: once, always, reject) or a question (`answers`, a list per question)."""
    kind: str
    id: str
    session: str
    reply: str = ""
    message: str = ""
    answers: tuple[tuple[str, ...], ...] = ()

class RunCheck(NamedTuple):
    """Answered by CheckFinished."""
    iteration: int
    facts: dict[str, str]

class StopCheck(NamedTuple):
    """End the check that runs, if one does."""

class Notify(NamedTuple):
    facts: dict[str, str]

class HandOver(NamedTuple):
    """Give the terminal to OpenCode's own interface on this session."""
    session: str

class Exit(NamedTuple):
    status: int


class Tick(NamedTuple):
    """Time has passed."""

class ServerReady(NamedTuple):
    generation: int
    url: str
    version: str

class ServerDied(NamedTuple):
    """The server ended by itself, or did not start; `lines` are the last ones it printed."""
    generation: int
    reason: str
    lines: tuple[str, ...] = ()
    final: bool = False              # trying again cannot help

class SetupChecked(NamedTuple):
    """`models` maps providerID/modelID to the size of its context; None: the server cannot tell."""
    model: str = ""
    models: dict[str, int] | None = None
    agents: list[str] | None = None

class FilesRead(NamedTuple):
    """The texts of plan and prompt, or None and the problem."""
    number: int
    plan: str | None
    prompt: str | None
    problem: str = ""

class SessionCreated(NamedTuple):
    iteration: int
    session: str

class PromptAccepted(NamedTuple):
    session: str

class StreamOpened(NamedTuple):
    """The event stream is (again) being read; what happened meanwhile is not repeated on it."""

class ServerEvent(NamedTuple):
    """One event of OpenCode's, as it came."""
    type: str
    properties: dict[str, Any]

class Streamed(NamedTuple):
    """A model is writing: `text` is new text of a part, or "" when a flood of it is only counted."""
    session: str = ""
    part: str = ""
    text: str = ""

class Polled(NamedTuple):
    """`status` is idle, busy, retry or unknown (the server cannot tell), `messages` are digests, oldest first."""
    session: str
    status: str
    detail: dict[str, Any]
    messages: list[dict[str, Any]] | None = None
    children: Sequence[str] = ()
    permissions: Sequence[dict[str, Any]] = ()
    questions: Sequence[dict[str, Any]] = ()

class SessionAborted(NamedTuple):
    session: str

class Measured(NamedTuple):
    """`cost` in USD or None when the server cannot tell, `memory` of the server in MiB."""
    session: str
    cost: float | None = None
    memory: int = 0

class RequestFailed(NamedTuple):
    """A command's request got `status` (0: no answer at all) and `name`, OpenCode's name of the error."""
    command: str
    session: str
    status: int
    problem: str
    name: str = ""

class CheckFinished(NamedTuple):
    iteration: int
    status: int
    output: str
    interrupted: bool = False

class Key(NamedTuple):
    """A key that was pressed: one character in lower case, or a name such as `space`."""
    name: str

class Signalled(NamedTuple):
    name: str

class ScreenLost(NamedTuple):
    """Nobody can see or press anything any more."""
    reason: str

class Noted(NamedTuple):
    """Something that an edge has to say in the journal."""
    kind: str
    text: str


if TYPE_CHECKING:
    Command = (StartServer | StopServer | CheckSetup | ReadFiles | CreateSession | SendPrompt | Poll |
               AbortSession | Measure | Reply | RunCheck | StopCheck | Notify | HandOver | Exit)
    Event = (Tick | ServerReady | ServerDied | SetupChecked | FilesRead | SessionCreated | PromptAccepted |
             StreamOpened | ServerEvent | Streamed | Polled | SessionAborted | Measured |
             RequestFailed | CheckFinished | Key | Signalled | ScreenLost | Noted)


class Entry(NamedTuple):
    """One line of the journal, which is the one record of what happened. `time` is in seconds since 1970."""
    number: int
    time: float
    kind: str
    text: str
    tone: str = ""                   # dim, good, bad, warn, head
    depth: int = 0                   # 1 for what a subagent does
    iteration: int = 0
    session: str = ""
    data: dict[str, Any] | None = None


# ── reading opencode ─────────────────────────────────────────────────────────────────────────────────────
# What its answers and events mean, and in which words people are told. A server may be older, newer or
# broken: anything may be missing or of another type, and nothing here raises.


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e18 else 0.0


def as_int(value: Any) -> int:
    return int(as_float(value))


LOG_IN = "log in with `opencode auth login`, or look at the provider's key"
LOOK = "look at the model {} and the provider's address in the configuration"
ADVICE = {401: LOG_IN, 402: "look at the provider's balance", 403: LOG_IN, 404: LOOK, "ProviderAuthError": LOG_IN,
          "ProviderModelNotFoundError": LOOK, "ProviderInitError": LOOK}


class Fault(NamedTuple):
    """An error of OpenCode's, by its structured fields alone."""
    name: str
    message: str
    status: int = 0

    @property
    def advice(self) -> str:
        """What a person can do where trying again cannot help as long as nothing has worked yet; "" elsewhere."""
        return ADVICE.get(self.status) or ADVICE.get(self.name, "")

    @property
    def rate_limit(self) -> bool:
        return self.status in (429, 529)


def fault_of(error: Any) -> Fault | None:
    """Read `{name, data: {message, statusCode}}`; None for what is no error or only says "aborted"."""
    name, data = as_dict(error).get("name"), as_dict(as_dict(error).get("data"))
    if name in (None, "MessageAbortedError"):
        return None
    return Fault(str(name), str(data.get("message") or name), as_int(data.get("statusCode")))


def digest(message: dict[str, Any]) -> dict[str, Any]:
    """The little of a message that `judge` needs; `continues`: a user message that a compaction put there."""
    info, parts = as_dict(message.get("info")), [as_dict(part) for part in as_list(message.get("parts"))]
    texts = [part for part in parts if part.get("type") == "text"]
    return {"id": str(info.get("id")), "role": info.get("role"), "parent": str(info.get("parentID")),
            "finish": info.get("finish"),
            "completed": bool(as_dict(info.get("time")).get("completed")), "error": info.get("error"),
            "continues": any(part.get("type") == "compaction" for part in parts)
            or (bool(texts) and all(part.get("synthetic") for part in texts))}


def judge(messages: Sequence[dict[str, Any]], message_id: str) -> tuple[str, Fault | None]:
    """Say how the answer to one's own message stands, of a session that is idle.

    Returns ("answered" | "failed" | "refused" | "cut" | "unfinished" | "unanswered", fault). What a person
    typed into the session is not one's own; what a compaction put there is.
    """
    foreign = {message["id"] for message in messages
               if message["role"] == "user" and message["id"] != message_id and not message["continues"]}
    last = next((message for message in reversed(messages)
                 if message["role"] == "assistant" and message["parent"] not in foreign), None)
    if last is None:
        return "unanswered", None
    if not last["completed"]:
        return "unfinished", None
    if last["error"]:
        fault = fault_of(last["error"])
        return ("failed", fault) if fault else ("cut", None)
    finish = str(last["finish"] or "")
    return {"tool-calls": "refused", "unknown": "cut", "": "cut"}.get(finish, "answered"), None


def tool_text(tool: str, state: dict[str, Any], directory: str) -> str:
    """A tool call in one line: its main argument, as a person would say it."""
    given = as_dict(state.get("input"))
    path = str(given.get("filePath") or given.get("path") or "").removeprefix(directory.rstrip("/") + "/")
    main = {"bash": "command", "grep": "pattern", "glob": "pattern", "webfetch": "url", "task": "description",
            "websearch": "query", "skill": "name"}.get(tool, "")
    text = str(given.get(main) or "")
    if tool in ("grep", "glob"):
        text += f" in {path}" if path else ""
    elif tool == "todowrite":
        text = f"{len(as_list(given.get('todos')))} items"
    elif not text:
        text = path or str(state.get("title") or next((v for v in given.values() if isinstance(v, str)), ""))
    diff = as_dict(as_dict(state.get("metadata")).get("filediff"))
    if diff:
        text += f"  +{as_int(diff.get('additions'))} -{as_int(diff.get('deletions'))}"
    return " ".join(text.split())[:500]


def ask_detail(p: dict[str, Any]) -> str:
    """What exactly is to be permitted."""
    patterns = p.get("patterns") or p.get("pattern") or p.get("title") or ""
    wanted = ", ".join(map(str, patterns)) if isinstance(patterns, list) else str(patterns)
    metadata = as_dict(p.get("metadata"))
    exact = str(metadata.get("command") or metadata.get("filepath") or metadata.get("url") or "")
    return exact if exact and wanted in exact else ", ".join(text for text in (wanted, exact) if text)


def duration(seconds: float) -> str:
    """Seconds for people: 9s, 4m05s, 3h12m."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def short_number(number: int) -> str:
    """1234 -> 1.2k, always four characters or fewer up to a billion."""
    value, signs = float(number), ["", "k", "M", "G"]
    while value >= 999.5 and len(signs) > 1:
        value /= 1000
        del signs[0]
    return f"{value:.1f}{signs[0]}" if value < 9.95 and value != number else f"{value:.0f}{signs[0]}"


# ── loop ─────────────────────────────────────────────────────────────────────────────────────────────────
# The whole run as one pure state machine. Handlers stand in the order in which things happen in an
# iteration; after them what goes wrong, what is asked, keys, time. Polling is the truth, the event stream
# only makes it quick, and every wait has an end.

POLL_EVERY = 5.0            # seconds between looks at a session that seems busy
LOOK_CLOSER = 60.0          # a session that is busy but silent for this long has its messages looked at
SETTLE = 1.5                # an end that looks odd must look the same for this long before it counts
SWALLOWED = 6.0             # a prompt that does not run after this long is sent again
SENDS = 4                   # how often one prompt is sent at most
FIRST_STARTS = 3            # a server that never ran yet is started so often: its database may be locked by another
SILENCES = 2                # requests in a row without any answer: the server hangs
BEGINS = 3.0                # an accepted prompt runs by then; an abort before that would do nothing
SPINS = 3                   # unfinished answers in a row: the model spins
READ_EVERY = 3.0            # seconds between looks at plan and prompt
READ_WITHIN = 30.0          # reading them takes longer only where a file system is gone
GRACE = 5.0                 # a plan may be away or half-written for this long
ABSENT = 10.0               # a longer gap between two events is time away (suspended, stopped)
LONGEST_WAIT = 900.0        # no pause between attempts is longer
JOURNAL = 5000              # entries kept in memory
LONGEST_TEXT = 4000         # characters of one entry
NOBODY = ("Nobody is there to answer. Do not ask again: go on without it, or mark the task "
          "[BLOCKED: reason] in the plan if it cannot be done without it.")

# States, events → next states, and the commands that go with it (Notify left out); a test holds it against the code.
# What is not named here never changes the state.
TRANSITIONS = """
starting                              SetupChecked   ready running error    StopServer ReadFiles StopCheck Exit
starting                              RequestFailed  error                  StopServer StopCheck Exit
starting,ready,paused,waiting         ServerDied     error                  StopServer StopCheck Exit
running                               Polled         pausing                Measure ReadFiles
running,pausing                       FilesRead,Measured,RequestFailed,ServerDied  \
    paused waiting stopping complete error  StartServer StopServer StopCheck Exit
waiting                               FilesRead      error                  StopServer StopCheck Exit
running,pausing                       Tick           error                  StopServer StopCheck Exit
waiting                               Tick           running error          StartServer StopServer ReadFiles StopCheck Exit
starting,complete                     Key            stopping               StopCheck Exit
ready,paused                          Key            running stopping       ReadFiles StopCheck Exit
running,pausing                       Key            running pausing stopping  StopCheck Exit
waiting                               Key            running paused stopping   ReadFiles StopCheck Exit
error                                 Key            starting stopping      StartServer StopCheck Exit
starting,ready,paused,complete,error  ScreenLost     stopping               StopCheck Exit
starting,ready,running,pausing,paused,waiting,complete,error  Signalled  stopping  StopCheck Exit
"""


class Ask(NamedTuple):
    """A permission or a question that waits for somebody."""
    kind: str
    id: str
    session: str
    title: str
    detail: str
    deadline: float
    questions: list[dict[str, Any]]
    answers: tuple[tuple[str, ...], ...] = ()       # labels, a list for each question answered so far


class Live(NamedTuple):
    """Something that runs now: a tool, a text, a thought."""
    kind: str
    text: str
    since: float
    depth: int
    message: str


class Retry(NamedTuple):
    """OpenCode's own next attempt, and when it comes."""
    attempt: int
    message: str
    at: float


class Spend(NamedTuple):
    """What was used: USD and tokens."""
    cost: float = 0.0
    input: int = 0
    output: int = 0
    cached: int = 0

    def plus(self, other: Spend) -> Spend:
        return Spend(self.cost + other.cost, self.input + other.input, self.output + other.output,
                     self.cached + other.cached)

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.cached

    def record(self) -> dict[str, Any]:
        return {"cost": round(self.cost, 6),
                "tokens": {"input": self.input, "output": self.output, "cached": self.cached}}


class Iteration:
    """One session spent on the plan. `step` names what is awaited: creating, prompting, working, aborting,
    rereading, checking."""

    def __init__(self, number: int, plan: Plan, prompt: SendPrompt, now: float) -> None:
        self.number, self.task, self.goal, self.before = number, plan.current, plan.goal, plan.marks
        self.prompt = prompt
        self.step = "creating"
        self.session = self.outcome = self.problem = self.check = ""
        self.family: dict[str, int] = {}            # this session and its subagents' -> depth
        self.started = self.prompted = now
        self.active = now                           # the last sign of life of the session
        self.sends = self.silences = 0
        self.poll_at = self.again_at = 0.0          # again: when a request that failed is tried again
        self.polling = self.idle_seen = False
        self.sending = self.busy_seen = False       # a prompt is under way; it has begun to run
        self.unsettled = ("", 0.0)                  # how an end looks that must stay so before it counts, since when
        self.fault: Fault | None = None
        self.retry: Retry | None = None
        self.spends: dict[str, Spend] = {}          # by message
        self.measured: float | None = None          # USD, as the server adds it up
        self.spins: set[str] = set()                # unfinished answers and compactions since the last good answer
        self.prompts: set[str] = set()              # user messages, whose texts are no answers
        self.journaled: set[str] = set()            # parts and errors that are in the journal
        self.answered: set[str] = set()             # what was asked
        self.live: dict[str, Live] = {}             # what runs now, by part

    @property
    def spend(self) -> Spend:
        total = functools.reduce(Spend.plus, self.spends.values(), Spend())
        return total._replace(cost=max(total.cost, self.measured or 0.0))


class Loop:
    """The run. `handle` takes one event and the time (seconds since 1970) and returns commands.

    The iteration under way is `iteration` (or None), `it` where there must be one, and `at(step)` where it counts
    only at that step."""

    def __init__(self, options: Options, now: float, seed: str = "") -> None:
        self.options = options
        self.now = self.wall = now                  # the run's own clock, which stands still while away; the real one
        self.seed = seed                            # makes the ids of two runs differ
        self.state, self.state_since = "starting", now
        self.reason = ""                            # why it is in this state, for a person
        self.status = 130                           # exit status if it ended now
        self.interactive = options.interactive
        self.wanted = options.run or not options.interactive    # go on without waiting for S
        # the server
        self.generation, self.server_up, self.server_url = 1, False, ""
        self.server_failures = 0                    # in a row
        self.server_at = 0.0                        # when to start it again
        self.replace_server = False                 # before the next iteration
        self.setup = SetupChecked()
        # plan and prompt
        self.plan, self.plan_text, self.prompt_text = Plan(), "", ""
        self.read_number, self.read_at = 0, 0.0     # the newest ReadFiles; when the next one is due
        self.read_until = 0.0                       # when reading has taken too long; 0: nothing is being read
        self.files_wanted = 0                       # the FilesRead on which the loop moves on
        self.trouble_since = 0.0                    # when they began to be unreadable
        # iterations
        self.iteration: Iteration | None = None
        self.iterations = self.succeeded = 0
        self.counted = 0                            # towards --max-iterations: not those that hit a rate limit
        self.busy_time = 0.0                        # seconds spent in iterations that succeeded
        self.failures = self.rate_limits = self.unchanged = self.check_failures = 0     # each in a row
        self.check_output = ""                      # of the check that failed last, as the agent is told it
        self.wrapped_up = False                     # an iteration had nothing to do but the summary
        self.wait_until = self.started = self.ended = 0.0
        self.session_to_abort = ""                  # of the iteration that an error ended
        self.limit = ""                             # the option that made it pause
        self.limits = {name: getattr(options, name) for name in ("max_iterations", "max_cost", "max_time")}
        self.spent = Spend()                        # by iterations that are over
        self.context = 0                            # tokens in the session's context
        self.model, self.agent = options.model, options.agent
        # people
        self.asks: dict[str, Ask] = {}
        self.bells = 0
        self.confirming_quit = self.help = False
        # what came of it
        self.journal: collections.deque[Entry] = collections.deque(maxlen=JOURNAL)
        self.entries = 0
        self.out: list[Command] = []

    def start(self) -> list[Command]:
        """The first commands."""
        self.note("server", f"waiting for {self.options.server}" if self.options.server else "starting OpenCode", "dim")
        self.emit(StartServer(self.generation))
        self.read_files()
        return self.out

    def handle(self, event: Event, now: float) -> list[Command]:
        self.out = []
        passed, self.wall = now - self.wall, now
        if 0 <= passed <= ABSENT:
            self.now += passed
        elif self.iteration:            # asleep, stopped, or the clock was set: no deadline may see it, but look anew
            self.iteration.poll_at = self.now
        HANDLERS[type(event)](self, event)
        return self.out

    # ── what handlers are written with

    def emit(self, command: Command) -> None:
        self.out.append(command)

    def note(self, kind: str, text: str, tone: str = "", session: str = "",
             data: dict[str, Any] | None = None) -> None:
        it = self.iteration
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]} … ({len(text)} characters)"
        self.entries += 1
        self.journal.append(Entry(self.entries, self.wall, kind, text, tone, it.family.get(session, 0) if it else 0,
                                  it.number if it else 0, session or (it.session if it else ""), data))

    def enter(self, state: str, reason: str = "") -> None:
        if state != self.state:
            self.state, self.state_since = state, self.now
            self.confirming_quit = False            # it was about what is over now
        self.reason = reason

    def read_files(self, move_on: bool = False) -> None:
        """Read plan and prompt; `move_on`: the loop goes on with what is read from now on, not before."""
        if move_on or not self.read_until:
            self.read_number += 1
            self.read_until = self.now + READ_WITHIN
            self.emit(ReadFiles(self.read_number))
        if move_on:
            self.files_wanted = self.read_number

    def notify(self, event: str, message: str) -> None:
        if self.options.notify:
            self.emit(Notify(dict(self.facts(), OCLOOP_EVENT=event, OCLOOP_MESSAGE=message)))

    def facts(self) -> dict[str, str]:
        """What --check and --notify get in their environment."""
        task = self.iteration.task if self.iteration else self.plan.current
        return {"OCLOOP_PLAN": self.options.plan, "OCLOOP_TASK": task.text if task else "",
                "OCLOOP_ITERATION": str(self.iterations), "OCLOOP_DONE": str(self.plan.done),
                "OCLOOP_TOTAL": str(self.plan.automatable)}

    def new_id(self, prefix: str) -> str:
        """An id as OpenCode makes them: 12 hex digits that grow with time, 14 random ones."""
        stamp = (int(self.wall * 1000) * 4096 + self.iterations % 4096) & (2 ** 48 - 1)
        return f"{prefix}_{stamp:012x}{self.seed[:8]:0<8}{self.iterations % 10 ** 6:06}"

    def at(self, step: str, session: str | None = None) -> Iteration | None:
        """The iteration, when it is at this step (of this session); a result that comes late is for nobody."""
        it = self.iteration
        return it if it and it.step == step and session in (None, it.session) else None

    @property
    def it(self) -> Iteration:
        """The iteration under way, where there must be one."""
        assert self.iteration
        return self.iteration

    def newest(self, count: int) -> list[Entry]:
        """The last entries of the journal, oldest first."""
        return list(self.journal)[-count:] if count else []

    @property
    def total(self) -> Spend:
        """What was spent so far, the iteration under way included."""
        return self.spent.plus(self.iteration.spend) if self.iteration else self.spent

    @property
    def elapsed(self) -> float:
        return (self.ended or self.now) - self.started if self.started else 0.0

    # ── one iteration, in the order in which it happens

    def on_server_ready(self, event: ServerReady) -> None:
        if event.generation != self.generation:
            return
        self.server_up, self.server_url = True, event.url
        self.note("server", "OpenCode {} on {}".format(event.version or "(version unknown)", event.url), "dim")
        if self.state == "starting":
            self.emit(CheckSetup())
        elif self.iteration:
            self.iteration.silences = 0
            self.take_step()
        elif self.state in ("running", "pausing"):
            self.read_files(move_on=True)

    def on_setup_checked(self, event: SetupChecked) -> None:
        if self.state != "starting":
            return
        self.setup = event
        problem = self.setup_problem(self.options.model, self.options.agent)
        if problem:
            self.fail(problem)
        elif self.wanted:
            self.begin()
        else:
            self.enter("ready")

    def setup_problem(self, model: str, agent: str) -> str:
        """What is wrong with model and agent, as far as the server could tell; "" when nothing is."""
        for kind, name, known, command in (("model", model, self.setup.models, "opencode models"),
                                           ("agent", agent, self.setup.agents, "opencode agent list")):
            if name and known is not None and name not in known:
                near = " or ".join(difflib.get_close_matches(name, list(known), 3, 0.4))
                return f"there is no {kind} {name}: " + (f"did you mean {near}?" if near else f"`{command}` lists them")
        return ""

    def begin(self) -> None:
        """Work from here on, with fresh files (`move_on` follows); a limit that was reached is raised by as much."""
        if self.limit in self.limits:
            self.limits[self.limit] += getattr(self.options, self.limit)
        elif self.limit:
            self.unchanged = self.check_failures = 0
        self.limit, self.status, self.wanted = "", 130, True
        self.started, self.ended = self.now - self.elapsed, 0.0     # the time at rest does not count
        self.enter("running")
        self.read_files(move_on=True)

    def on_files_read(self, event: FilesRead) -> None:
        if event.number >= self.read_number:
            self.read_until = 0.0
        self.read_at = self.now + READ_EVERY
        if self.state in ("complete", "error", "stopping"):
            return
        plan, problem = self.plan, event.problem
        if event.plan is not None and event.plan != self.plan_text:
            plan = parse_plan(event.plan)
        if not problem and not plan.tasks and plan.summary is None:
            problem = NO_TASK.format(self.options.plan)
        if problem and not self.options.debug:
            return self.on_bad_files(problem)
        self.trouble_since = 0.0
        if plan.done > self.plan.done and self.plan_text:
            self.note("plan", f"{plan.done} of {plan.automatable} done", "good")
        self.plan, self.plan_text, self.prompt_text = plan, event.plan or "", event.prompt or ""
        if self.files_wanted and event.number >= self.files_wanted:
            self.files_wanted = 0
            if self.iteration is None:
                self.move_on()
            else:
                self.check_or_conclude()

    def on_bad_files(self, problem: str) -> None:
        """An editor may be writing: only a problem that stays counts."""
        if self.state not in ("running", "pausing", "waiting"):
            return
        if not self.trouble_since:
            self.trouble_since = self.now
            self.note("warn", problem, "warn")
        elif self.now - self.trouble_since >= GRACE:
            return self.fail(problem)
        self.read_at = self.now + 0.5

    def move_on(self) -> None:
        """Nothing is under way and the plan is fresh: what now?"""
        if self.state not in ("running", "pausing"):
            return
        nothing_left = self.wrapped_up and not self.plan.pending
        if (self.plan.summary is not None or nothing_left) and not self.check_output:
            return self.complete()
        limit = self.limit_reached(1)
        if limit:                           # work is left, and a person has to say whether to go on
            self.limit = limit[0]
            self.end("paused", 3, limit[1])
        elif self.state == "pausing":
            self.pause("")
        elif self.replace_server:
            self.replace_server = False
            self.start_server()
        else:
            self.begin_iteration()

    def begin_iteration(self) -> None:
        fields, body = split_front_matter(self.prompt_text)
        model = self.options.model or fields.get("model", "")
        agent = self.options.agent or fields.get("agent", "")
        problem = self.setup_problem(model, agent) if body else NO_PROMPT.format(self.options.prompt)
        if problem:
            return self.fail(problem)
        self.iterations += 1
        self.model, self.agent, self.context = model or self.model, agent or self.agent, 0
        text = render_prompt(body, self.options.plan, self.plan.goal, self.iterations, self.check_output)
        prompt = SendPrompt("", self.new_id("msg"), self.new_id("prt"), text, model, agent)
        self.iteration = Iteration(self.iterations, self.plan, prompt, self.now)
        self.note("task", self.plan.goal, "head")
        self.take_step()

    def take_step(self) -> None:
        """Command what the iteration's step needs; also after a restart of the server, and again after a failure."""
        it = self.iteration
        if it is None or not self.server_up:
            return
        it.again_at = 0.0
        if it.step == "creating":
            title = f"ocloop {min(self.plan.done + 1, self.plan.automatable)}/{self.plan.automatable}: {it.goal}"
            self.emit(CreateSession(it.number, title[:100]))
        elif it.step == "prompting":
            it.sending = True
            self.emit(it.prompt._replace(session=it.session))
        elif it.step == "working":
            self.poll()
        elif it.step == "aborting" and it.sends and not it.busy_seen and self.now < it.prompted + BEGINS:
            it.again_at = it.prompted + BEGINS
        elif it.step == "aborting" and not it.sending:      # else the answer to the prompt comes first
            self.emit(AbortSession(it.session))

    def on_session_created(self, event: SessionCreated) -> None:
        it = self.at("creating")
        if it and event.iteration == it.number:
            it.session, it.family = event.session, {event.session: 0}
            it.step, it.silences = "prompting", 0
            self.take_step()

    def on_prompt_accepted(self, event: PromptAccepted) -> None:
        it = self.at("aborting", event.session) or self.at("prompting", event.session)
        if not it:
            return
        it.sending, it.silences = False, 0
        it.sends += 1
        it.prompted = it.active = self.now
        if it.step == "aborting":
            return self.take_step()
        it.step, it.unsettled = "working", ("", 0.0)
        it.idle_seen = it.idle_seen and it.sends == 1
        if it.idle_seen:
            self.poll()
        else:
            it.poll_at = self.now + 2

    def poll(self, messages: bool = False) -> None:
        it = self.at("working")
        if not it or not self.server_up:
            return
        if it.polling:                      # the answer under way may be from before what made us ask
            it.poll_at = self.now
        else:
            it.polling = True
            it.poll_at = self.now + POLL_EVERY
            self.emit(Poll(it.session, messages))

    def on_polled(self, event: Polled) -> None:
        it = self.at("working", event.session)
        if not it:
            return
        it.polling, it.silences = False, 0
        for child in event.children:
            it.family.setdefault(child, 1)
        for asked in event.permissions:
            self.on_asked("permission", asked)
        for asked in event.questions:
            self.on_asked("question", asked)
        verdict, fault = ("", None) if event.messages is None else judge(event.messages, it.prompt.message_id)
        silent = self.now - it.active
        if event.status in ("busy", "retry"):
            self.on_status(event.status, event.detail)
            if event.status == "busy" and verdict == "answered" and silent > LOOK_CLOSER:
                self.finish("done")         # a server that says busy for ever
            return
        if verdict:
            self.weigh(verdict, fault)
        elif it.idle_seen or (silent > SWALLOWED and (it.fault or event.status == "idle")):
            self.weigh("failed" if it.fault else "answered", it.fault)
        it.poll_at = min(it.poll_at, self.now + 0.5)

    def weigh(self, verdict: str, fault: Fault | None) -> None:
        """The session is idle: end the iteration, send the prompt again, or look once more."""
        it = self.it
        if verdict == "answered":
            return self.finish("done")
        if it.unsettled[0] != verdict:
            it.unsettled = (verdict, self.now)
        age = self.now - it.unsettled[1]
        again = (verdict == "unanswered" and not it.fault) or (verdict == "unfinished" and it.sends > 1)
        if fault and verdict == "failed":
            self.finish_failed(fault)
        elif age < (SWALLOWED if again else SETTLE):
            return
        elif verdict == "refused":
            self.finish("refused", "something it asked for was refused")
        elif verdict == "cut" and self.interactive:
            self.enter("pausing", "broken off in OpenCode's own interface")     # somebody is there, and at work
            self.finish("aborted", self.reason)
        elif verdict == "cut":
            self.finish("cut", "its answer was broken off by somebody or something else")
        elif verdict == "unanswered" and it.fault:
            self.finish_failed(it.fault)
        elif it.sends >= SENDS:
            self.finish("failed", f"the prompt was sent {it.sends} times and never answered")
        else:
            self.note("warn", "the prompt is not being answered: sending it again", "warn")
            it.step = "prompting"
            self.take_step()

    def finish(self, outcome: str, problem: str = "") -> None:
        """The session is over; what it cost and what it changed comes next."""
        it = self.it
        it.outcome, it.problem, it.step = outcome, problem, "rereading"
        it.live.clear()
        it.retry = None
        self.asks.clear()
        if problem and outcome != "fatal" and problem not in it.journaled:
            kind, tone = ("note", "warn") if outcome == "aborted" else ("error", "bad")
            self.note(kind, problem, tone)
        if self.server_up and it.session:
            self.emit(Measure(it.session))
        else:
            it.measured = 0.0
        self.read_files(move_on=True)

    def on_measured(self, event: Measured) -> None:
        limit, it = self.options.server_memory, self.at("rereading", event.session)
        if limit and event.memory > limit:
            self.replace_server = True
            self.note("server", f"grew to {event.memory} MiB (limit {limit}): replacing it", "warn")
        if it and it.measured is None:
            it.measured = event.cost or 0.0
            self.check_or_conclude()

    def check_or_conclude(self) -> None:
        """With both known, what it changed and what it cost: is it any good?"""
        it = self.at("rereading")
        if it is None or it.measured is None or self.files_wanted:
            return
        worked = it.outcome in ("done", "refused", "cut") or self.plan.summary is not None
        if self.options.check and worked and not it.check:
            it.step = "checking"
            it.live["check"] = Live("check", self.options.check, self.now, 0, "")
            self.emit(RunCheck(it.number, self.facts()))
        else:
            self.conclude()

    def on_check_finished(self, event: CheckFinished) -> None:
        it = self.at("checking")
        if not it or event.iteration != it.number:
            return
        it.live.clear()
        it.check = "interrupted" if event.interrupted else "passed" if event.status == 0 else "failed"
        if it.check == "passed":
            self.check_failures, self.check_output = 0, ""
            self.note("check", "passed", "good")
        elif it.check == "failed":
            self.check_failures += 1
            self.check_output = CHECK_FAILED.format(command=self.options.check, status=event.status,
                                                    output=event.output)
            self.note("check", f"failed with exit status {event.status}\n{event.output[-1500:]}", "bad")
        it.step = "rereading"                       # the check may have changed plan and prompt
        self.read_files(move_on=True)

    def conclude(self) -> None:
        """Write the iteration into the books, then decide what its outcome means for the run."""
        it = self.it
        seconds, spend, plan = self.now - it.started, it.spend, self.plan
        changed = it.before != plan.marks
        self.note("iter", f"{it.number} {it.outcome} in {duration(seconds)} · {plan.done}/{plan.automatable} · "
                  f"{short_number(spend.tokens)} tokens · ${spend.cost:.4f} · {it.goal}", "head", data={
                      "record": "iteration", "task": it.goal, "outcome": it.outcome, "problem": it.problem,
                      "seconds": round(seconds, 1), **spend.record(), "check": it.check, "changed": changed,
                      "done": plan.done, "total": plan.automatable})
        self.spent, self.iteration = self.total, None
        self.wrapped_up = not it.task and bool(self.plan_text) and it.outcome in ("done", "refused")
        self.counted += it.outcome != "rate-limited"
        if it.outcome in ("done", "refused"):
            self.succeeded += 1
            self.busy_time += seconds
            self.failures = self.rate_limits = self.server_failures = 0
            self.unchanged = 0 if changed or plan.summary is not None else self.unchanged + 1
        if it.outcome == "fatal":
            self.fail(it.problem)
        elif it.outcome == "rate-limited":
            self.rate_limits += 1
            self.wait(30.0 * 2 ** min(self.rate_limits - 1, 9), it.problem)
        elif it.outcome in ("failed", "stalled", "cut") and plan.summary is None:
            self.failures += 1
            if self.options.retries and self.failures > self.options.retries:
                self.fail(f"{self.failures} iterations in a row failed, the last one: {it.problem}")
            else:
                self.wait(4.0 ** min(self.failures, 9), it.problem)
        else:
            self.move_on()

    # ── how a run ends or rests

    def limit_reached(self, times: int) -> tuple[str, str] | None:
        """The option whose limit is reached (`times` over) and the reason in words."""
        stuck, cost, elapsed = self.options.stuck, self.total.cost, self.elapsed
        for name, used, words in (("max_iterations", self.counted, f"{self.counted} iterations were worked"),
                                  ("max_cost", cost, f"${cost:.2f} were spent"),
                                  ("max_time", elapsed, f"{duration(elapsed)} have passed")):
            if self.limits[name] and used >= self.limits[name] * times:
                return name, f"{words} (--{name.replace('_', '-')})"
        if stuck and self.unchanged >= stuck:
            return "stuck", (f"{self.unchanged} iterations in a row changed no task (--stuck): look at the "
                             "plan's next task and at the prompt, or mark the task [BLOCKED: reason]")
        if stuck and self.check_failures >= stuck:
            return "stuck", (f"the check failed {self.check_failures} times in a row (--stuck): run `"
                             f"{self.options.check}` yourself and mend what it shows")
        return None

    def complete(self) -> None:
        left = self.plan.pending
        reason = f"the plan was marked complete with {left} tasks still pending" if left else "the plan is complete"
        if self.plan.summary is None:
            reason = "nothing is left to do; the agent wrote no summary"
        self.end("complete", 3 if left else 0, reason)

    def fail(self, problem: str) -> None:
        """The run cannot go on; R starts again, whatever it was."""
        self.session_to_abort = self.iteration.session if self.iteration else ""
        self.spent, self.iteration, self.limit = self.total, None, ""
        self.asks.clear()
        self.end("error", 1, problem)

    def end(self, state: str, status: int, reason: str) -> None:
        """Tell everybody why it ends (or rests) here; without anybody to press a key, leave."""
        self.status, self.ended = status, self.ended or self.now
        self.enter(state, reason)
        event, plan = {"complete": "complete", "error": "failed"}.get(state, "stopped"), self.plan
        self.note("end", reason, {0: "good", 1: "bad"}.get(status, "warn"), data={
            "record": "run", "event": event, "status": status, "reason": reason, "summary": plan.summary,
            "done": plan.done, "total": plan.automatable, "blocked": plan.blocked,
            "manual": plan.manual, "iterations": self.iterations, "seconds": round(self.elapsed, 1),
            **self.total.record()})
        for line in self.summary():
            self.note("end", line)
        self.notify(event, reason)
        if state in ("error", "stopping"):
            self.emit(StopCheck())
        if state == "stopping" or not self.interactive:
            self.emit(Exit(status))
        elif state != "paused":             # nobody knows when somebody comes
            self.server_up, self.server_at = False, 0.0
            self.emit(StopServer(self.session_to_abort))

    def summary(self) -> list[str]:
        """What a person wants to know in the morning."""
        plan, total = self.plan, self.total
        lines = plan.summary.split("\n") if plan.summary else []
        lines.append(f"{plan}; {self.iterations} iteration{'s' * (self.iterations != 1)} in "
                     f"{duration(self.elapsed)}; {short_number(total.tokens)} tokens, ${total.cost:.4f}")
        for state in ("blocked", "manual"):
            for task in [task for task in plan.tasks if task.state == state][:20]:
                lines.append("{}: {}{}".format(state, task.text, f" ({task.reason})" if task.reason else ""))
        return lines

    def pause(self, reason: str) -> None:
        self.enter("paused", reason)
        self.ended = self.now
        if not self.interactive:
            self.quit("paused, and the terminal is gone")

    def wait(self, seconds: float, reason: str) -> None:
        if self.state == "pausing":
            return self.pause(reason)
        seconds = min(seconds, LONGEST_WAIT)
        self.wait_until = self.now + seconds
        self.enter("waiting", reason)
        self.note("retry", f"trying again in {duration(seconds)}", "warn")

    def start_server(self) -> None:
        self.server_up, self.server_at = False, 0.0
        self.generation += 1
        self.emit(StartServer(self.generation))

    # ── what the server tells between prompt and end

    def on_streamed(self, event: Streamed) -> None:
        it = self.iteration
        if it and (not event.session or event.session in it.family):
            it.active = self.now
            live = it.live.get(event.part)
            if live and event.text:
                it.live[event.part] = live._replace(text=(live.text + event.text)[-LONGEST_TEXT:])

    def on_server_event(self, event: ServerEvent) -> None:
        it, p = self.iteration, event.properties
        if self.options.verbose:
            self.note("event", f"{event.type} {str(p)[:300]}", "dim")
        if event.type == "file.edited" and p.get("file") == self.options.plan:
            self.read_files()
        if not it or it.step not in ("prompting", "working", "aborting"):
            return
        info, part = as_dict(p.get("info")), as_dict(p.get("part"))
        session = str(p.get("sessionID") or part.get("sessionID") or info.get("sessionID") or info.get("id") or "")
        parent = str(info.get("parentID"))
        if event.type == "session.created" and parent in it.family:
            it.family[session] = it.family[parent] + 1
        if session not in it.family:
            return
        it.active = self.now
        if event.type == "session.idle" and session == it.session:
            self.on_status("idle", {})
        elif event.type == "session.status" and session == it.session:
            self.on_status(str(as_dict(p.get("status")).get("type")), as_dict(p.get("status")))
        elif event.type == "session.error":
            self.on_session_error(session, p.get("error"))
        elif event.type == "message.updated":
            self.on_message(session, info)
        elif event.type == "message.part.updated":
            self.on_part(session, part)
        elif event.type in ("permission.asked", "permission.updated"):
            self.on_asked("permission", p)
        elif event.type == "question.asked":
            self.on_asked("question", p)
        elif event.type in ("permission.replied", "question.replied", "question.rejected"):
            self.asks.pop(str(p.get("requestID") or p.get("permissionID") or ""), None)
        elif event.type == "todo.updated":
            todos = [as_dict(todo) for todo in as_list(p.get("todos"))]
            doing = next((str(todo.get("content")) for todo in todos if todo.get("status") == "in_progress"), "")
            done = sum(todo.get("status") == "completed" for todo in todos)
            self.note("todo", f"{done}/{len(todos)} {doing}", "dim", session)
        elif event.type == "session.compacted":
            self.note("note", "the session was compacted", "dim", session)
            self.on_spin(f"compaction {self.entries}", "compactions without an answer")

    def on_status(self, kind: str, status: dict[str, Any]) -> None:
        """Idle, busy, or trying again by itself: only what OpenCode parks for too long is taken out of its hands."""
        it, last = self.it, self.it.retry
        it.idle_seen = kind == "idle"
        if it.idle_seen:
            return self.poll()
        it.busy_seen, it.retry = True, None
        if it.step == "aborting" and it.again_at:
            self.take_step()
        elif kind == "retry" and it.step != "aborting":
            attempt, wait = as_int(status.get("attempt")), as_float(status.get("next")) / 1000 - self.wall
            message = str(status.get("message") or "the provider failed")
            if last is None or last.attempt != attempt:
                self.note("retry", f"attempt {attempt} failed: {message}", "warn")
            it.retry = Retry(attempt, message, self.now + wait)
            if wait > LONGEST_WAIT:
                self.abort("rate-limited", f"OpenCode would wait {duration(wait)}: {message}")

    def on_session_error(self, session: str, error: Any) -> None:
        it, fault = self.it, fault_of(error)
        if not fault:
            return
        if session == it.session and fault.name != "ContextOverflowError":
            it.fault = fault
            it.poll_at = min(it.poll_at, self.now + 1)      # the message's error comes a little later
        if fault.message not in it.journaled:
            it.journaled.add(fault.message)
            self.note("error", f"{fault.name}: {fault.message}", "bad", session)

    def on_message(self, session: str, info: dict[str, Any]) -> None:
        it, message = self.it, str(info.get("id") or "")
        if info.get("role") == "user":
            it.prompts.add(message)
            return
        tokens, cache = as_dict(info.get("tokens")), as_dict(as_dict(info.get("tokens")).get("cache"))
        spend = it.spends[message] = Spend(
            as_float(info.get("cost")), as_int(tokens.get("input")), as_int(tokens.get("output"))
            + as_int(tokens.get("reasoning")), as_int(cache.get("read")) + as_int(cache.get("write")))
        if session == it.session:
            self.context = spend.tokens or self.context
            if info.get("providerID") and info.get("modelID"):
                self.model = "{}/{}".format(info["providerID"], info["modelID"])
            self.agent = str(info.get("agent") or info.get("mode") or self.agent)
        if not as_dict(info.get("time")).get("completed"):
            return
        self.note_texts(message, session)
        if info.get("finish") == "unknown":
            self.on_spin(message, "answers without an end")
        elif info.get("finish") and info.get("summary") is not True:
            it.spins.clear()

    def on_spin(self, what: str, words: str) -> None:
        """Two hot loops of OpenCode's have no end of their own: answers that never finish, and compactions that
        do not make the context fit."""
        it = self.it
        it.spins.add(what)
        if len(it.spins) >= SPINS:
            self.abort("failed", f"it spins: {SPINS} {words} in a row")

    def on_part(self, session: str, part: dict[str, Any]) -> None:
        it, id, message = self.it, str(part.get("id") or ""), str(part.get("messageID") or "")
        if id in it.journaled or id == it.prompt.part_id or message in it.prompts or part.get("synthetic"):
            return
        if part.get("type") == "tool":
            kind, state, tone = str(part.get("tool") or "tool"), as_dict(part.get("state")), ""
            text, ended = tool_text(kind, state, self.options.directory), state.get("status") in ("completed", "error")
            times = as_dict(state.get("time"))
            seconds = (as_int(times.get("end")) - as_int(times.get("start"))) / 1000
            if ended:
                text += f"  {duration(seconds)}" if seconds >= 1 else ""
                self.note_texts(message, session)
            elif kind == "task" and state.get("status") == "running" and id not in it.live:
                self.note(kind, text, "", session)
            if state.get("status") == "error":
                text, tone = f"{text}  failed: {state.get('error')}", "bad"
        elif part.get("type") in ("text", "reasoning"):
            kind, tone = ("text", "") if part["type"] == "text" else ("think", "dim")
            text, ended = str(part.get("text") or ""), bool(as_dict(part.get("time")).get("end"))
        else:
            return
        if ended:
            self.note_part(id, kind, text, tone, session)
        else:
            since = it.live[id].since if id in it.live else self.now
            it.live[id] = Live(kind, text[-LONGEST_TEXT:], since, it.family[session], message)

    def note_part(self, id: str, kind: str, text: str, tone: str, session: str) -> None:
        it = self.it
        it.journaled.add(id)
        it.live.pop(id, None)
        if text.strip():
            self.note(kind, text.strip(), tone, session)

    def note_texts(self, message: str, session: str) -> None:
        """A text may be ended only after the tools that it announces, and by older servers not at all."""
        for part in [part for part, live in self.it.live.items() if live.message == message and live.kind == "text"]:
            self.note_part(part, "text", self.it.live[part].text, "", session)

    # ── what is asked

    def on_asked(self, kind: str, p: dict[str, Any]) -> None:
        it, id, session = self.it, str(p.get("id") or ""), str(p.get("sessionID") or "")
        if not id or id in self.asks or id in it.answered or session not in it.family or it.step == "aborting":
            return
        questions = [as_dict(q) for q in as_list(p.get("questions"))]
        title, detail = "question", " / ".join(str(q.get("question")) for q in questions)
        said, timeout = detail, self.options.ask_timeout
        if kind == "permission":
            title, detail = str(p.get("permission") or p.get("type") or "something"), ask_detail(p)
            said = f"{title}: {detail}"
        ask = Ask(kind, id, session, title, detail, self.now + timeout if timeout else 0.0, questions)
        self.note("ask", said, "warn", session)
        if kind == "permission" and self.options.auto:
            self.answer(ask, "once", "approved (--auto)")
        elif not self.interactive:
            self.refuse(ask, "nobody is there to answer")
        else:
            self.asks[id] = ask
            self.bells += 1
            self.notify("asked", said)

    def answer(self, ask: Ask, reply: str, said: str) -> None:
        """Answer with once, always, reject, or, for a question, the answers that were gathered."""
        it = self.it
        self.asks.pop(ask.id, None)
        it.answered.add(ask.id)
        it.active = self.now
        self.note("ask", said, "warn" if reply == "reject" else "good", ask.session)
        self.emit(Reply(ask.kind, ask.id, ask.session, reply, NOBODY if reply == "reject" else "", ask.answers))

    def refuse(self, ask: Ask, why: str) -> None:
        """Refuse so that the agent goes on: a bare rejection would end its turn, a rejected question too."""
        answers = (*ask.answers, *[(NOBODY,)] * (len(ask.questions) - len(ask.answers)))
        self.answer(ask._replace(answers=answers), "reject", f"refused: {why}")

    def on_ask_key(self, key: str) -> bool:
        """Whether the key belonged to what is asked."""
        ask = next(iter(self.asks.values()), None)
        if ask is None:
            return False
        if key == "n":
            self.refuse(ask, "by a person")
        elif ask.kind == "permission" and key in ("y", "a"):
            self.answer(ask, "once" if key == "y" else "always", "approved" if key == "y" else "approved, always")
        elif ask.kind == "question" and key and key in "123456789" and ask.questions:
            options = as_list(ask.questions[len(ask.answers)].get("options"))
            if not 1 <= int(key) <= len(options):
                return True
            answer = (str(as_dict(options[int(key) - 1]).get("label")),)
            ask = self.asks[ask.id] = ask._replace(answers=(*ask.answers, answer))
            if len(ask.answers) == len(ask.questions):
                self.answer(ask, "", "answered: {}".format(", ".join(label for label, in ask.answers)))
        else:
            return False
        return True

    # ── what goes wrong

    def finish_failed(self, fault: Fault) -> None:
        if fault.rate_limit:
            self.finish("rate-limited", fault.message)
        elif fault.advice and not self.succeeded:
            self.finish("fatal", f"{fault.message.rstrip('.')}: {fault.advice.format(self.model)}")
        else:
            self.finish("failed", fault.message)

    def abort(self, outcome: str, problem: str) -> None:
        """End the iteration under way for this reason."""
        it = self.iteration
        if not it or it.step not in ("creating", "prompting", "working"):
            return
        it.outcome, it.problem = outcome, problem
        self.asks.clear()
        if it.session and self.server_up:
            it.step = "aborting"
            self.take_step()
        else:
            self.finish(outcome, problem)

    def on_session_aborted(self, event: SessionAborted) -> None:
        it = self.at("aborting", event.session)
        if it:
            self.finish(it.outcome, it.problem)

    def on_request_failed(self, event: RequestFailed) -> None:
        it = self.iteration
        if event.command == "CheckSetup":
            if self.state == "starting":
                self.fail(event.problem)
            return
        if not it or (event.session and event.session not in it.family):
            return
        if event.command == "Reply":
            if event.status != 404:                 # 404: somebody else has answered
                self.note("warn", f"the answer did not arrive: {event.problem}", "warn")
                it.answered.clear()
                it.poll_at = self.now + 1
        elif event.command == "Measure":
            self.on_measured(Measured(it.session))
        elif event.command == "AbortSession" and it.step == "aborting":
            if event.status != 404:
                self.replace_server = True          # it may still run: the next session gets a new server
            self.finish(it.outcome, it.problem)
        elif event.command == "SendPrompt" and it.step == "aborting":
            it.sending = False
            self.take_step()
        elif event.command == {"creating": "CreateSession", "prompting": "SendPrompt", "working": "Poll"}.get(it.step):
            it.polling = it.sending = False
            self.on_step_failed(it, event)

    def on_step_failed(self, it: Iteration, event: RequestFailed) -> None:
        if event.status == 0 or event.status >= 500:
            it.silences += 1
            it.again_at = self.now + 1
            if it.silences >= SILENCES and self.server_up:
                self.restart_server(f"the server does not answer: {event.problem}")
        elif event.status == 400 and event.name.startswith("Config"):
            self.fail(event.problem)
        elif event.status in (401, 403):
            self.fail("the server refuses the password: set OPENCODE_SERVER_PASSWORD to the one it was started with")
        else:
            self.abort("failed", event.problem)

    def on_server_died(self, event: ServerDied) -> None:
        if event.generation != self.generation or self.state in ("complete", "error", "stopping"):
            return
        never_ran = self.state == "starting" and self.server_failures >= FIRST_STARTS - 1
        what_now = self.fail if never_ran or event.final else self.restart_server
        what_now("\n  ".join((event.reason, *event.lines)))

    def restart_server(self, reason: str) -> None:
        """Start the server anew; the iteration goes on where it was (ids make repeating it safe)."""
        self.server_up = False
        self.server_failures += 1
        self.note("server", reason, "bad")
        if self.server_failures > (self.options.retries or 5):
            return self.fail(f"the server failed {self.server_failures} times in a row, the last time: {reason}")
        self.server_at = self.now + min(2.0 ** min(self.server_failures - 1, 10) - 1, LONGEST_WAIT)
        it = self.iteration
        if it:
            it.polling = it.idle_seen = False
            it.unsettled = ("", 0.0)
            if it.step == "aborting":
                self.finish(it.outcome, it.problem)
            elif it.step == "rereading":
                self.on_measured(Measured(it.session))
        if 0 < self.server_at <= self.now:      # finish may have ended the run, or started it
            self.start_server()

    # ── people

    def on_key(self, event: Key) -> None:
        key, state, it = event.name, self.state, self.iteration
        if state == "stopping":
            return
        if self.help:
            self.help = False
        elif self.confirming_quit:
            self.confirming_quit = False
            if key in ("q", "y"):
                self.quit("a person quit")
        elif key == "?":
            self.help = True
        elif key == "q" and it:
            self.confirming_quit = True
        elif key == "q":
            self.quit("a person quit")
        elif self.on_ask_key(key):
            return
        elif (key, state) in (("s", "ready"), ("space", "ready"), ("space", "paused"), ("r", "paused"),
                              ("r", "waiting")):
            self.begin()
        elif key == "s":
            self.wanted = True
        elif key == "space" and state == "running":
            self.enter("pausing", "after this iteration")
        elif key == "space" and state == "pausing":
            self.enter("running")
        elif key == "space" and state == "waiting":
            self.pause("")
        elif key == "r" and state == "error":
            self.failures = self.rate_limits = self.unchanged = self.check_failures = self.server_failures = 0
            self.trouble_since, self.session_to_abort = 0.0, ""
            self.wrapped_up, self.wanted = False, True
            self.enter("starting")
            self.start_server()
        elif key == "x" and it and it.step == "checking":
            self.emit(StopCheck())
        elif key == "x":
            self.abort("aborted", "aborted by a person")
        elif key == "t" and it and it.session and self.server_up:
            self.emit(HandOver(it.session))

    def quit(self, reason: str) -> None:
        if self.state == "stopping":
            return
        if self.state in ("complete", "error") or self.limit:       # why it ended was said already
            self.enter("stopping", self.reason)
            self.emit(StopCheck())
            self.emit(Exit(self.status))
        else:
            self.end("stopping", 130, reason)

    def on_screen_lost(self, event: ScreenLost) -> None:
        """Nobody is there any more: refuse what is asked, go on, and leave when it is over."""
        if not self.interactive:
            return
        self.interactive = False
        self.note("note", f"{event.reason}: going on without a screen", "warn")
        self.confirming_quit = self.help = False
        for ask in list(self.asks.values()):
            self.refuse(ask, "nobody is there to answer")
        if self.state in ("ready", "paused", "complete", "error") or not self.wanted:
            self.quit("the terminal is gone, and nobody is there to go on")

    # ── time

    def on_tick(self, event: Tick) -> None:
        """Everything that has a deadline."""
        it, now, options = self.iteration, self.now, self.options
        if self.state in ("complete", "error", "stopping"):
            return
        if self.server_at and now >= self.server_at:
            self.start_server()
        if self.read_until and now >= self.read_until:
            self.on_bad_files(f"{self.options.plan} cannot be read: its file system does not answer")
        elif now >= self.read_at:
            self.read_files()
        if self.state == "waiting" and now >= self.wait_until:
            self.begin()
        for ask in [ask for ask in self.asks.values() if ask.deadline and now >= ask.deadline]:
            self.refuse(ask, f"nobody answered for {duration(options.ask_timeout)}")
        if not it:
            return
        if it.again_at and now >= it.again_at:
            self.take_step()
        if it.step == "working" and now >= it.poll_at and not it.polling:
            self.poll(messages=now - it.active > LOOK_CLOSER)
        limit = self.limit_reached(2)
        if self.asks or (it.retry and it.retry.at > now):
            it.active = now
        if limit and limit[0] in ("max_cost", "max_time"):
            self.abort("aborted", f"twice the limit: {limit[1]}")
        elif options.iteration_timeout and now - it.started >= options.iteration_timeout:
            self.abort("stalled", f"the iteration took longer than {duration(options.iteration_timeout)}")
        elif options.stall_timeout and now - it.active >= options.stall_timeout:
            self.abort("stalled", f"nothing happened for {duration(options.stall_timeout)}")


HANDLERS: dict[type, Callable[[Loop, Any], None]] = {
    ServerReady: Loop.on_server_ready, SetupChecked: Loop.on_setup_checked, FilesRead: Loop.on_files_read,
    SessionCreated: Loop.on_session_created, PromptAccepted: Loop.on_prompt_accepted, Polled: Loop.on_polled,
    Measured: Loop.on_measured, CheckFinished: Loop.on_check_finished,
    StreamOpened: lambda loop, event: loop.poll(), Streamed: Loop.on_streamed, ServerEvent: Loop.on_server_event,
    SessionAborted: Loop.on_session_aborted, RequestFailed: Loop.on_request_failed, ServerDied: Loop.on_server_died,
    Key: Loop.on_key, Signalled: lambda loop, event: loop.quit(f"stopped by {event.name}"),
    ScreenLost: Loop.on_screen_lost, Noted: lambda loop, event: loop.note(event.kind, event.text, "warn"),
    Tick: Loop.on_tick,
}


# ── view ─────────────────────────────────────────────────────────────────────────────────────────────────
# What is shown is computed from state alone. `view` takes a picture of the loop; two equal pictures need no
# second drawing. `layout` turns a picture into rows of styled spans that never exceed width and height.

Span = tuple[str, str]      # style, text
Row = list[Span]

STATES = {      # state -> sign, style, what it means for a person
    "starting": ("◌", "accent", "the server is starting"), "ready": ("○", "accent", "S starts"),
    "running": ("●", "good", "a session is at work"), "pausing": ("◐", "warn", "pauses after this one"),
    "paused": ("‖", "warn", "Space goes on"), "waiting": ("◷", "warn", "tries again by itself"),
    "stopping": ("◌", "warn", "ends everything"), "complete": ("✔", "good", "the plan is done"),
    "error": ("✖", "bad", "R starts again"),
}
KEYS = (
    ("S", "start"), ("Space", "pause after this iteration, or go on"), ("R", "retry after an error; go on at a limit"),
    ("X", "abort this iteration"), ("T", "this session in OpenCode's own interface, and back"),
    ("arrows PgUp PgDn End", "scroll the activity"), ("Y A N", "permission: once, always, no"),
    ("1-9 N", "question: an answer, or none"), ("?", "this help"), ("Q", "quit (asks once while an iteration runs)"),
)


def printable(text: str) -> str:
    """The text without colours, and a sign in place of each control character: it could rewrite the screen."""
    return _UNSAFE.sub("\ufffd", _COLOUR.sub("", text.replace("\t", "    ")))


def ascii_only(text: str) -> str:
    """What a terminal that knows no more can show of printable text; as wide as that."""
    return "".join(char if char.isascii() else "?" * cell_width(char) for char in text.translate(_TO_ASCII))


_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069]")
_TO_ASCII = str.maketrans("…─▸↑↓≈–—‘’“”⟳✔✖◌○●◐‖◷·▏▎▍▌▋▊▉█", "~->^v~--''\"\"~+!.o*~=%........#")


def cell_width(char: str) -> int:
    """Cells that a character takes in a terminal: 0, 1 or 2."""
    if char < "\u0300":
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(cell_width, text))


def clip(text: str, width: int) -> str:
    """The longest beginning of the text that fits into `width` cells."""
    if text.isascii():
        return text[:max(width, 0)]
    used = 0
    for at, char in enumerate(text):
        used += cell_width(char)
        if used > width:
            return text[:at]
    return text


def ellipsis(text: str, width: int) -> str:
    """The text, or as much of it as fits with a sign that it goes on; nothing where only scraps would fit."""
    if text_width(text) <= width:
        return text
    return clip(text, width - 1) + "…" if width > 8 else ""


def wrap(text: str, width: int) -> list[str]:
    """Break text into printable lines of at most `width` cells, at spaces where there are any."""
    lines: list[str] = []
    for paragraph in map(printable, text.split("\n")):
        while text_width(paragraph) > width:
            head = clip(paragraph, width) or paragraph[:1]
            space = head.rfind(" ") if paragraph[len(head):len(head) + 1] != " " else len(head)
            head = head[:space] if space > width // 3 else head
            lines.append(head)
            paragraph = paragraph[len(head):].lstrip(" ")
        lines.append(paragraph)
    return lines


class Picture(NamedTuple):
    """All that a screen shows, without the place it is shown in. Times are whole seconds."""
    state: str
    state_seconds: int
    reason: str
    iteration: int
    elapsed: int
    average: float                   # seconds of an iteration that went well, 0: unknown
    plan: Plan
    task: Task | None
    model: str
    agent: str
    spend: Spend
    context: int                     # percent, -1: unknown
    live: tuple[Entry, ...]
    ask: tuple[str, ...]             # the panel's lines, the first one a title
    keys: tuple[tuple[str, str], ...]
    confirming_quit: bool
    help: bool
    bells: int
    newest: int
    journal: tuple[Entry, ...] = ()  # comes last: two pictures are compared without it


def view(loop: Loop, now: float) -> Picture:
    """Take the picture; `now` is on the run's own clock, in seconds."""
    it, plan = loop.iteration, loop.plan
    size = (loop.setup.models or {}).get(loop.model, 0)
    live = []
    for item in it.live.values() if it else ():
        timed = now - item.since >= 1 and item.kind not in ("text", "think")
        live.append(Entry(0, 0.0, item.kind, item.text + (f"  {duration(now - item.since)}" if timed else ""),
                          "dim" if item.kind == "think" else "", item.depth))
    if it and it.retry:
        live.append(Entry(0, 0.0, "retry", f"attempt {it.retry.attempt + 1} in {duration(it.retry.at - now)}: "
                          f"{it.retry.message}", "warn"))
    reason = loop.reason
    if loop.state == "waiting":
        reason = f"{reason.rstrip('.')}: again in {duration(loop.wait_until - now)}"
    return Picture(
        state=loop.state, state_seconds=int(now - loop.state_since), reason=reason, iteration=loop.iterations,
        elapsed=int(loop.elapsed), average=loop.busy_time / max(1, loop.succeeded), plan=plan,
        task=it.task if it and it.task else plan.current, model=loop.model or loop.setup.model, agent=loop.agent,
        spend=loop.total, context=min(100, 100 * loop.context // size) if size else -1, live=tuple(live),
        ask=ask_panel(loop, now), keys=hints(loop), confirming_quit=loop.confirming_quit, help=loop.help,
        bells=loop.bells, newest=loop.entries, journal=tuple(loop.journal))


def ask_panel(loop: Loop, now: float) -> tuple[str, ...]:
    """What is asked first, in lines: a title, what exactly, the choices."""
    ask = next(iter(loop.asks.values()), None)
    if ask is None:
        return ()
    left = f"  (refused in {duration(ask.deadline - now + 0.9)})" if ask.deadline else ""
    more = f"  (+{len(loop.asks) - 1} more)" if len(loop.asks) > 1 else ""
    if ask.kind == "permission":
        return (f"May it? {ask.title}{left}{more}", ask.detail, "Y once   A always   N no")
    question = ask.questions[len(ask.answers)] if ask.questions else {}
    options = [as_dict(option) for option in as_list(question.get("options"))]
    return (f"It asks{left}{more}", str(question.get("question") or ""),
            *(f"{n} {option.get('label')}" + (f" - {option['description']}" if option.get("description") else "")
              for n, option in enumerate(options[:9], 1)), "N none of these")


def hints(loop: Loop) -> tuple[tuple[str, str], ...]:
    """The keys that do something now."""
    state, out = loop.state, []
    if state == "stopping":
        return ()
    if state == "ready" or (state == "starting" and not loop.wanted):
        out.append(("S", "start"))
    if state in ("running", "pausing", "paused", "waiting"):
        out.append(("Space", "pause" if state in ("running", "waiting") else "go on"))
    if state in ("error", "waiting") or loop.limit:
        out.append(("R", "raise the limit" if loop.limit in loop.limits else "retry"))
    if loop.iteration:
        out += [("X", "abort"), ("T", "session")]
    return (*out, ("?", "help"), ("Q", "quit"))


class Scroll:
    """Which part of the activity is looked at: the tail, or a place that stays while new lines come."""
    entry = row = 0                  # number and row of the last line shown; 0: follow the tail
    moved = 0                        # rows to move, not yet carried out: the layout knows the heights


def layout(picture: Picture, width: int, height: int, utf8: bool = True, scroll: Scroll | None = None) -> list[Row]:
    """Rows for a screen of that size. Dropped first when it gets small: activity, keys, second line."""
    if width <= 0 or height <= 0:
        return []
    rule: Row = [("dim", "─" * width)]
    panel: list[Row] = []
    if picture.ask and not picture.confirming_quit:
        panel = [rule, *asked(picture, width, max(3, height - (4 if height >= 12 else 2)))]
    top, bottom = header(picture, width)[:max(0, height - len(panel))], panel or [footer(picture, width)]
    spare = height - len(top) - len(bottom)
    if not top:
        bottom = panel[1:]
    if spare >= 3:                                      # room for a rule and some activity
        top.append(rule)
        spare -= 1
        if not panel and spare >= 4:
            bottom.insert(0, rule)
            spare -= 1
    middle = help_rows(width) if picture.help else activity(picture, width, spare, scroll)
    middle = (middle + [[]] * spare)[:max(0, spare)]
    return [fit(row, width, utf8) for row in (top + middle + bottom)[:height]]


def fit(row: Row, width: int, utf8: bool) -> Row:
    """As much of the row as fits into `width` cells, in characters that the terminal knows."""
    out: Row = []
    for style, text in row:
        text = clip(text, width)
        width -= text_width(text)
        if text:
            out.append((style, text if utf8 else ascii_only(text)))
    return out


def header(picture: Picture, width: int) -> list[Row]:
    """State, progress, task, model: four rows, the first ones matter most."""
    sign, style, _meaning = STATES[picture.state]
    word = f"{sign} {picture.state}"
    if picture.ask:
        word, style = ("? asked" if width < 40 else "? waits for you"), "warn"
    state: Row = [(style + " bold", f" {word}"), ("dim", f" {duration(picture.state_seconds):<6}")]
    room = width - sum(text_width(text) for _, text in state) - 1
    average = duration(picture.average) if picture.average >= 1 else ""
    left = f"  ≈{duration(picture.average * picture.plan.pending)}" if average and picture.state != "complete" else ""
    facts = f"iteration {picture.iteration}  {duration(picture.elapsed)} elapsed"
    facts += (f"  {average} each" if average else "") + (left and f"{left} left")
    if text_width(facts) > room:
        facts = f"#{picture.iteration}  {duration(picture.elapsed)}{left}"
    state.append(("", (facts if picture.iteration else "").rjust(room)))
    if picture.reason and picture.state in ("error", "paused", "waiting", "pausing", "complete", "stopping"):
        third: Row = [(style, ellipsis(printable(" " + " ".join(picture.reason.split())), width))]
    elif picture.task:
        task = ellipsis(printable(picture.task.text), width - 4)
        phase = printable("  " + picture.task.phase if picture.task.phase else "")
        third = [("accent", " ▸ "), ("bold", task), ("dim", ellipsis(phase, width - 4 - text_width(task)))]
    else:
        third = [("dim", " no pending task")]
    return [state, progress(picture.plan, width), third, spending(picture, width)]


def progress(plan: Plan, width: int) -> Row:
    counts = f" {plan.done:>{len(str(plan.automatable))}}/{plan.automatable} {plan.percent:3}%"
    rest = ""
    if width >= 50:
        rest += f"  {plan.blocked} blocked" if plan.blocked else ""
        rest += f"  {plan.manual} manual" if plan.manual else ""
    size = min(width - len(counts) - len(rest) - 2, 60)
    if size < 4:
        return [("bold", counts)]
    full, eighths = divmod(size * 8 * plan.done // plan.automatable if plan.automatable else size * 8, 8)
    bar = "█" * full + " ▏▎▍▌▋▊▉"[eighths] * (eighths > 0)
    return [("", " "), ("bar", bar), ("dim", "·" * (size - len(bar))), ("bold", counts), ("warn", rest)]


def spending(picture: Picture, width: int) -> Row:
    spend = picture.spend
    tokens = f"↑{short_number(spend.input):>4} ↓{short_number(spend.output):>4} ⟳{short_number(spend.cached):>4}"
    context = f"  context {picture.context:2}%" if picture.context >= 0 else ""
    cost = f"  ${spend.cost:.4f}" if spend.cost < 10 else f"  ${spend.cost:.2f}"
    right = tokens + context + cost
    if text_width(right) + 14 > width:
        right = tokens + cost if text_width(tokens + cost) < width else cost.strip()
    model = printable(picture.model or "OpenCode's default model")
    name = model + printable(f" · {picture.agent}" if picture.agent else "")
    room = width - text_width(right) - 3
    name = clip(name if text_width(name) <= room else model.rpartition("/")[2], room)
    return [("accent", " " + name + " " * max(1, room - text_width(name) + 1)), ("", right)]


def asked(picture: Picture, width: int, height: int) -> list[Row]:
    """What is asked, in at most `height` rows; of what does not fit, the details go first, and the way out stays."""
    title, detail, *choices = picture.ask

    def rows(text: str, style: str) -> list[Row]:
        return [[(style, "   " + line)] for line in wrap(" ".join(text.split()), max(1, width - 4))[:4]]

    answers = [row for choice in choices[:-1] for row in rows(choice, "")]
    details = rows(detail, "")[:max(1, height - 2 - len(answers))]
    return [[("warn bold", " ? " + printable(title))], *details, *answers[:max(0, height - 2 - len(details))],
            [("accent", "   " + printable(choices[-1]))]]


def footer(picture: Picture, width: int) -> Row:
    if picture.confirming_quit:
        return [("warn bold", " Q again stops the iteration and quits, any other key goes on")]
    keys = list(picture.keys)
    while len(keys) > 2 and sum(len(key) + len(label) + 3 for key, label in keys) > width:
        del keys[-3]                                    # the last two say where to find the others, and the way out
    return [span for key, label in keys for span in (("accent bold", " " + key), ("dim", f" {label} "))]


def help_rows(width: int) -> list[Row]:
    rows: list[Row] = [[("accent bold", f" {key:<22}"), ("", " " + text)] for key, text in KEYS]
    cells: list[Row] = [[(style, f" {sign} {state:<9}"), ("", f"{meaning:<24}")]
                        for state, (sign, style, meaning) in STATES.items()]
    columns = 2 if width >= 72 else 1
    rows += [[], *([span for cell in cells[n:n + columns] for span in cell] for n in range(0, len(cells), columns))]
    return [*rows, [("dim", " ▸ the current task   tokens: ↑ in   ↓ out   ⟳ from the cache")]]


def entry_rows(entry: Entry, width: int) -> list[Row]:
    """One journal entry as rows: time, kind, wrapped text; a rule closes an iteration."""
    if entry.kind == "iter":
        text = clip(f"── {printable(entry.text)} ", width)
        return [[("dim", text + "─" * (width - text_width(text)))]]
    clock, cells = (8, 8) if width >= 60 else (5, 6) if width >= 30 else (0, 0)
    stamp = time.strftime("%H:%M:%S", time.localtime(entry.time)) if entry.time else ""
    left = f" {stamp[:clock]:<{clock}} " if clock else " "
    kind = f"{printable(entry.kind)[:cells]:<{cells}} " if cells else ""
    indent = "  " * min(entry.depth, 4)
    style = "accent bold" if entry.tone == "head" else entry.tone
    sign = {"bad": "✖ ", "good": "✔ "}.get(entry.tone, "") if entry.kind not in ("think", "text") else ""
    rows: list[Row] = []
    for line in wrap(sign + entry.text, max(1, width - len(left) - len(kind) - len(indent) - 1)):
        rows.append([("dim", left), (style or "dim", kind), (style, indent + line)])
        left, kind = " " * len(left), " " * len(kind)
    return rows


def activity(picture: Picture, width: int, height: int, scroll: Scroll | None) -> list[Row]:
    """The part of the journal that is looked at, oldest row first; what runs now follows it at the tail."""
    scroll = scroll if scroll and (scroll.entry or scroll.moved) else None
    found: list[tuple[tuple[int, int], Row]] = []       # newest first, each with its entry and its number in it
    for entry in reversed(picture.journal):
        if len(found) >= height and not scroll:         # who scrolls is looking: then it may cost something
            break
        found += reversed([((entry.number, n), row) for n, row in enumerate(entry_rows(entry, width))])
    if scroll:
        below = sum(place > (scroll.entry, scroll.row) for place, _ in found) if scroll.entry else 0
        below = max(0, min(below - scroll.moved, len(found) - max(1, height - 1)))
        (scroll.entry, scroll.row), scroll.moved = found[below][0] if below else (0, 0), 0
        if below:
            return [*(row for _, row in reversed(found[below:below + max(0, height - 1)])),
                    [("warn", f" ↓ {below} more lines below (End)")]]
    rows = [row for _, row in reversed(found)]
    for entry in picture.live[-3:]:
        rows += [[(style or "accent", text) for style, text in row] for row in entry_rows(entry, width)[-3:]]
    return rows[-height:]


# ── server-sent events ───────────────────────────────────────────────────────────────────────────────────
# Bytes to events, after the WHATWG rules (html.spec.whatwg.org, "Server-sent events"). What the data means
# is not known here.


class EventStream:
    """Feed it bytes, cut anywhere; get the data of the events that became complete. OpenCode names no event types."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []        # a line that has no end yet, in pieces
        self._begun = False
        self._after_cr = False
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        if chunk:
            after_cr, self._after_cr = self._after_cr, chunk.endswith(b"\r")
            chunk = chunk[after_cr and chunk.startswith(b"\n"):].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            self._rest.append(chunk)
            return []
        lines = b"".join((*self._rest, chunk)).split(b"\n")
        self._rest = [lines.pop()]
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events


# ── opencode ─────────────────────────────────────────────────────────────────────────────────────────────
# The server's process, its HTTP interface, its event stream, and the worker that carries commands out, a
# few at a time so that a request that hangs holds up nothing else. No decisions are made here.

START_TIMEOUT = 60.0
SETUP_TIMEOUT = 120.0       # the first call in a directory loads plugins
REQUEST_TIMEOUT = 10.0
STREAM_TIMEOUT = 35.0       # heartbeats come every 10 s, in older versions every 30 s
GUARD = """# Ends what ocloop started when ocloop is gone without having done so itself (SIGKILL).
trap '' HUP INT TERM
group=0
while read -r word; do
    [ "$word" = over ] && exit 0
    group=$word
done
for signal in TERM KILL; do
    [ "$group" -gt 1 ] && kill -$signal "-$group" 2>/dev/null
    for file in $(grep -lasF "OCLOOP_RUN=$1" /proc/[0-9]*/environ 2>/dev/null); do
        file=${file#/proc/}
        kill -$signal "${file%/environ}" 2>/dev/null
    done
    [ $signal = TERM ] && sleep 1
done
exit 0
"""


class RequestError(Exception):
    """A request that was not answered with 2xx; `status` 0: it was not answered at all."""

    def __init__(self, status: int, message: str, name: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.name = name


def http_client(tls: bool) -> Any:
    """The module, imported only here, while the server starts: it is the heaviest. Without need for TLS it is kept from
    loading OpenSSL, which would take more memory than ocloop itself does."""
    if not tls:
        sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    import http.client

    return http.client


class Client:
    """OpenCode's HTTP interface, as one directory sees it. No proxy is asked: the server is on our own machine."""

    def __init__(self, url: str, username: str, password: str, directory: str) -> None:
        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        self.host, slash, path = rest.partition("/")
        self.path = slash + path
        http = http_client(scheme == "https")
        self.connection = http.HTTPSConnection if scheme == "https" else http.HTTPConnection
        self.errors = (OSError, ValueError, http.HTTPException)     # what a request that is not answered raises
        self.query = "directory=" + quote(os.fsencode(directory), safe="")
        self.headers = {"Content-Type": "application/json", "Connection": "close"}
        self.known: set[str] = set()        # routes that it has answered
        if password:
            token = base64.b64encode(f"{username}:{password}".encode()).decode()
            self.headers["Authorization"] = "Basic " + token

    def open(self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT) -> Any:
        """Send a request; returns the response, raises RequestError. `timeout`, in seconds, is for every single wait."""
        target = "{}{}{}{}".format(self.path, path, "&" if "?" in path else "?", self.query)
        data = None if body is None else json.dumps(body).encode("utf-8", "backslashreplace")
        try:
            connection = self.connection(self.host, timeout=timeout)
            connection.request(method, target, data, self.headers)
            response = connection.getresponse()
        except self.errors as error:
            raise RequestError(0, str(error) or type(error).__name__) from None
        if 200 <= response.status < 300:
            return response
        said: dict[str, Any] = {}
        with suppress(RecursionError, *self.errors), response:
            said = as_dict(json.loads(response.read(1 << 16)))
        details = as_dict(said.get("data"))
        issues = "; ".join(str(as_dict(issue).get("message")) for issue in as_list(details.get("issues")))
        message = " ".join(str(text) for text in (details.get("path"), details.get("message"), issues) if text)
        raise RequestError(response.status, message or f"{method} {path} was answered with {response.status}",
                           str(said.get("name") or ""))

    def request(self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT) -> Any:
        """Send a request; returns the decoded JSON or None, raises RequestError."""
        try:
            with self.open(method, path, body, timeout) as response:
                raw = response.read()
        except self.errors as error:
            raise RequestError(0, str(error) or type(error).__name__) from None
        try:
            return json.loads(raw) if raw.strip() else None
        except (ValueError, RecursionError):    # some servers answer an unknown route with a page
            raise RequestError(404, f"{method} {path} was not answered with JSON", "NotJSON") from None

    def ask(self, path: str, timeout: float = REQUEST_TIMEOUT) -> Any:
        """GET what a server need not know; None: it cannot tell. A route that it has answered once it does know."""
        route = re.sub(r"/ses_[^/?]*", "/ID", path)
        try:
            answer = self.request("GET", path, timeout=timeout)
            self.known.add(route)
            return answer
        except RequestError as error:
            if route in self.known and error.name == "NotJSON":
                raise RequestError(502, str(error)) from None
            if error.status not in (404, 405, 501) or route in self.known:
                raise
            return None


class Server:
    """The `opencode serve` process and everything it starts, or somebody else's server (`--server`)."""

    def __init__(self, options: Options, post: Callable[[Event], None]) -> None:
        self.options = options
        self.post = post
        self.environment = dict(os.environ)     # a copy: the screen changes ours
        self.token = os.urandom(12).hex()       # what we start carries it, so that it can be found again
        self.username, self.password = "opencode", os.urandom(24).hex()
        if options.server:
            self.username = self.environment.get("OPENCODE_SERVER_USERNAME") or self.username
            self.password = self.environment.get("OPENCODE_SERVER_PASSWORD", "")
        self.client: Client | None = None
        self.process: Any = None
        self.guard: Any = None
        self.lines: collections.deque[str] = collections.deque(maxlen=12)
        self.turn = threading.RLock()           # one starts or stops it at a time, until it is closed
        self.lock = threading.Lock()            # nothing is started but under it: so nothing after closing
        self.closing = False
        self.measure_at = 0.0

    def start(self, generation: int) -> None:
        """Start it (after stopping what still runs) and post ServerReady or ServerDied."""
        with self.turn:
            self.stop()
            self.measure_at = 0.0
            try:
                url = self.options.server or self._launch()
                client = Client(url, self.username, self.password, self.options.directory)
                version = self._wait_healthy(client) if self.options.server else ""
                with suppress(RequestError):
                    version = version or str(as_dict(client.request("GET", "/global/health")).get("version") or "")
            except Problem as problem:
                self.stop()
                return self.post(ServerDied(generation, str(problem), tuple(self.lines), final=problem.status == 2))
            self.client = client
            self.post(ServerReady(generation, url, version))
            threading.Thread(target=read_events, args=(client, self.post, lambda: self.client is client,
                                                       self.options.interactive), daemon=True).start()
            if not self.options.server:
                threading.Thread(target=self._watch, args=(self.process, generation), daemon=True).start()

    def _launch(self) -> str:
        """Start the process; returns its URL once it listens."""
        port = self.options.port        # 0: OpenCode takes 4096, or a free one when that is taken
        if port and not port_is_free(port):
            raise Problem(f"port {port} is taken: choose another one with --port, or leave --port out for a free one", 2)
        argv = [*self.options.opencode, "serve", "--hostname=127.0.0.1", f"--port={port}"]
        environment = dict(self.environment, OPENCODE_SERVER_USERNAME=self.username,
                           OPENCODE_SERVER_PASSWORD=self.password, OCLOOP_RUN=self.token)
        with self.lock:
            if self.closing:
                raise Problem("stopped while starting")
            try:
                self._tell_guard("0")
                self.process = process = subprocess.Popen(
                    argv, cwd=self.options.directory, env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
            except OSError as error:
                raise Problem(f"cannot start {argv[0]}: {error.strerror or error}", 2) from None
            self._tell_guard(str(process.pid))
        http_client(tls=False)          # while it starts
        found: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.lines.clear()
        threading.Thread(target=self._drain, args=(process.stdout, found), daemon=True).start()
        try:
            url = found.get(timeout=START_TIMEOUT)
        except queue.Empty:
            raise Problem(f"OpenCode did not start within {START_TIMEOUT:.0f} s: run `{' '.join(argv)}` "
                          "yourself and look at what it says") from None
        if not url:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
            raise Problem(f"OpenCode ended with exit status {process.returncode} while starting: run `{' '.join(argv)}` "
                          "yourself to see why")
        return url

    def _drain(self, stdout: Any, found: queue.SimpleQueue[str]) -> None:
        """Read all it prints, always: a full pipe would stop it. The URL, or "" at the end, goes to `found`."""
        for raw in iter(lambda: stdout.readline(1 << 16), b""):
            line = printable(raw.decode("utf-8", "replace").rstrip())
            self.lines.append(line[:300])
            match = re.search(r"listening on (https?://\S+)", line)
            if match:
                found.put(match.group(1))
        found.put("")

    def _watch(self, process: Any, generation: int) -> None:
        status = process.wait()
        if self.process is process:
            time.sleep(0.1)                 # for its last lines
            self.post(ServerDied(generation, f"the server ended by itself with exit status {status}",
                                 tuple(self.lines)))

    def _wait_healthy(self, client: Client) -> str:
        until = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return str(as_dict(client.ask("/global/health", 2)).get("version") or "")
            except RequestError as error:
                if error.status in (401, 403):
                    raise Problem(f"{client.url} refuses the password: set OPENCODE_SERVER_PASSWORD to the one it was "
                                  "started with", 2) from None
                if self.closing or time.monotonic() > until:
                    raise Problem(f"{client.url} does not answer ({error}): start it, or leave --server out",
                                  2) from None
                if until - time.monotonic() > START_TIMEOUT - 1:
                    self.post(Noted("server", f"waiting for {client.url}: {error}"))
                time.sleep(1)

    def _tell_guard(self, word: str) -> None:
        """Tell the guard which process group to end when we are killed; it is started at the first word."""
        if self.guard is None:
            self.guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "ocloop-guard", self.token], cwd="/", stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                env={name: value for name, value in self.environment.items() if name != "OCLOOP_RUN"})
        with suppress(OSError):
            self.guard.stdin.write(word.encode() + b"\n")
            self.guard.stdin.flush()

    def stop(self, session: str = "") -> None:
        """Abort the session, and stop what we started: tools first, then the group, then what left the group."""
        with self.turn:
            with self.lock:
                process, client = self.process, self.client
                self.process = self.client = None
            late = threading.Timer(4.0, end_group, (process, 0.0, self.token))  # for answers that trickle without end
            late.daemon = True
            if process:
                late.start()
            abort = f"/session/{session}/abort"         # what is not ours goes on if it begins late: twice
            last = (1.6, abort) if self.options.server else (0.0, "/global/dispose")
            for pause, path in ((0.0, abort), last):
                if client and (session or path != abort):
                    time.sleep(pause)
                    try:
                        client.request("POST", path, {}, timeout=1.5)
                    except RequestError as error:
                        client = client if error.status else None
            late.cancel()
            if process:
                end_group(process, 1.0, self.token)
                self._tell_guard("0")

    def close(self, session: str = "") -> None:
        """Stop for good."""
        with self.lock:
            self.closing = True
            starting = self.process if self.client is None else None
        if starting:
            end_group(starting, 0.5, self.token)    # so that whoever has the turn is done with it soon
        self.stop(session)
        if self.guard:
            self._tell_guard("over")
            with suppress(OSError, subprocess.TimeoutExpired):
                self.guard.stdin.close()
                self.guard.wait(2)

    def memory(self) -> int:
        """Resident MiB of the server's process group; 0 when it cannot be told, or was told less than 10 s ago."""
        process, total, now = self.process, 0, time.monotonic()
        if process is None or now < self.measure_at:
            return 0
        self.measure_at = now + 10
        for pid in running_pids():
            with suppress(OSError, IndexError, ValueError):
                if os.getpgid(pid) == process.pid:
                    with open(f"/proc/{pid}/statm") as file:
                        total += int(file.read().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE") >> 20


def port_is_free(port: int) -> bool:
    with suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def running_pids() -> list[int]:
    """All processes there are, as far as the system tells (Linux)."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []


def end_group(process: Any, patience: float, mark: str) -> None:
    """SIGTERM, after `patience` seconds SIGKILL to a child's process group, until nothing of it is left; SIGKILL to
    whatever carries the mark in its environment: tools that went into groups of their own."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 2.0)):
        until = time.monotonic() + seconds
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.01)
    process.poll()
    for pid in running_pids():
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if f"OCLOOP_RUN={mark}\0".encode() in file.read():
                os.kill(pid, signal.SIGKILL)


def read_events(client: Client, post: Callable[[Event], None], wanted: Callable[[], bool], live: bool) -> None:
    """Post the server's events until they are not wanted any more; connects anew with growing pauses."""
    pause = 0.2
    while wanted():
        with suppress(RequestError, *client.errors), client.open("GET", "/event", timeout=STREAM_TIMEOUT) as response:
            post(StreamOpened())
            opened = time.monotonic()
            read_stream(iter(lambda: response.read1(1 << 18), b""), post, wanted, live)
            if time.monotonic() - opened > 5:
                pause = 0.2
        time.sleep(pause)               # polling goes on meanwhile
        pause = min(pause * 2, 5.0)


def read_stream(chunks: Iterator[bytes], post: Callable[[Event], None], wanted: Callable[[], bool],
                live: bool) -> None:
    """Decode events and post them. Deltas are decoded only when somebody watches and they are few; of a flood of
    them, one sign of life every tenth of a second is enough."""
    stream, budget, renewed = EventStream(), 0, 0.0
    for chunk in chunks:
        if not wanted():
            return
        now = time.monotonic()
        if now - renewed > 0.1:
            budget, renewed = 20 if live else 0, now
            alive = False
        for data in stream.feed(chunk):
            if data.find(b'"message.part.delta"', 0, 120) >= 0 and budget <= 0:
                if not alive:
                    alive = True
                    post(Streamed())
                continue
            event: dict[str, Any] = {}
            with suppress(ValueError, RecursionError):
                event = as_dict(json.loads(data.decode("utf-8", "replace")))
            p = event.get("properties")
            if not isinstance(p, dict):
                continue
            if event.get("type") == "message.part.delta":
                budget -= 1
                post(Streamed(str(p.get("sessionID") or ""), str(p.get("partID") or ""), str(p.get("delta") or "")))
            elif event.get("type") not in ("server.heartbeat", "server.connected"):
                post(ServerEvent(str(event.get("type")), p))


class Worker:
    """Carries commands out and posts what came of them, on threads enough that one that hangs holds up nothing."""
    THREADS = 5         # a check that takes an hour, a request that hangs, and some for what else is to be done

    def __init__(self, server: Server) -> None:
        self.server = server
        self.options = server.options
        self.post = server.post
        self.mark = server.token + ".check"     # what the check starts carries it
        self.check: Any = None
        self.check_stopped = False
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.server_commands: queue.SimpleQueue[Command] = queue.SimpleQueue()      # strictly one after the other
        for commands in (self.server_commands, *[self.commands] * self.THREADS):
            threading.Thread(target=self._work, args=(commands,), daemon=True).start()

    def carry_out(self, command: Command) -> None:
        if isinstance(command, Notify):
            self.notify(command)
        else:
            (self.server_commands if isinstance(command, (StartServer, StopServer)) else self.commands).put(command)

    def _work(self, commands: queue.SimpleQueue[Command]) -> None:
        while True:
            command = commands.get()
            try:
                event = CARRY_OUT[type(command)](self, command)
            except RequestError as error:
                event = RequestFailed(type(command).__name__, getattr(command, "session", ""), error.status, str(error),
                                      error.name)
            if event is not None:
                self.post(event)

    @property
    def client(self) -> Client:
        client = self.server.client
        if client is None:
            raise RequestError(0, "the server is not running")
        return client

    def check_setup(self, command: CheckSetup) -> SetupChecked:
        client = self.client
        try:
            config = as_dict(client.request("GET", "/config", timeout=SETUP_TIMEOUT))
        except RequestError as error:
            if error.status == 400:
                raise RequestError(400, f"OpenCode's configuration is broken: mend it: {error}", error.name) from None
            if error.status == 0:
                raise RequestError(0, f"OpenCode does not answer for this directory ({error}): a plugin or MCP server "
                                   "may hang while it is loaded: try `OPENCODE_PURE=1`") from None
            raise
        providers, agents = client.ask("/config/providers", SETUP_TIMEOUT), client.ask("/agent", SETUP_TIMEOUT)
        models = {f"{provider.get('id')}/{name}": as_int(as_dict(as_dict(model).get("limit")).get("context"))
                  for provider in map(as_dict, as_list(as_dict(providers).get("providers")))
                  for name, model in as_dict(provider.get("models")).items()} if providers else None
        names = [str(as_dict(agent).get("name")) for agent in agents] if isinstance(agents, list) else None
        return SetupChecked(str(config.get("model") or ""), models, names)

    def read_files(self, command: ReadFiles) -> FilesRead:
        plan, problem = read_text(self.options.plan, "plan")
        prompt, otherwise = read_text(self.options.prompt, "prompt")
        return FilesRead(command.number, plan, prompt, problem or otherwise)

    def create_session(self, command: CreateSession) -> SessionCreated:
        created = as_dict(self.client.request("POST", "/session", {"title": command.title}, timeout=30))
        if not created.get("id"):
            raise RequestError(502, "the server made a session without an id")
        return SessionCreated(command.iteration, str(created["id"]))

    def send_prompt(self, command: SendPrompt) -> PromptAccepted:
        body: dict[str, Any] = {"messageID": command.message_id,
                                "parts": [{"id": command.part_id, "type": "text", "text": command.text}]}
        if command.model:
            provider, _, model = command.model.partition("/")
            body["model"] = {"providerID": provider, "modelID": model}
        if command.agent:
            body["agent"] = command.agent
        self.client.request("POST", f"/session/{command.session}/prompt_async", body, timeout=30)
        return PromptAccepted(command.session)

    def poll(self, command: Poll) -> Polled:
        client, path = self.client, f"/session/{command.session}"
        statuses = client.ask("/session/status")
        detail = as_dict(as_dict(statuses).get(command.session))
        status = "unknown" if statuses is None else str(detail.get("type") or "idle")
        busy = status in ("busy", "retry")
        found = client.ask(path + "/message?limit=20") if command.messages or not busy else None
        messages = [digest(as_dict(message)) for message in found] if isinstance(found, list) else None
        children, permissions, questions = (
            [as_dict(one) for one in as_list(client.ask(route))] if busy else []
            for route in (path + "/children", "/permission", "/question"))
        return Polled(command.session, status, detail, messages, [str(child.get("id")) for child in children],
                      permissions, questions)

    def abort_session(self, command: AbortSession) -> SessionAborted:
        self.client.request("POST", f"/session/{command.session}/abort", {})
        return SessionAborted(command.session)

    def cost(self, session: str) -> float | None:
        """USD of a session and the subagents' below it."""
        found = self.client.ask(f"/session/{session}")
        if found is None or "cost" not in as_dict(found):
            return None
        children = as_list(self.client.ask(f"/session/{session}/children"))
        return as_float(found["cost"]) + sum(self.cost(str(as_dict(child).get("id"))) or 0.0 for child in children)

    def reply(self, command: Reply) -> None:
        client = self.client
        if command.kind == "question":
            answers = [list(answer) for answer in command.answers]
            client.request("POST", f"/question/{command.id}/reply", {"answers": answers})
            return
        body = {"reply": command.reply, **({"message": command.message} if command.message else {})}
        try:
            client.request("POST", f"/permission/{command.id}/reply", body)
        except RequestError as error:
            if error.status != 404:
                raise
            client.request("POST", f"/session/{command.session}/permissions/{command.id}",
                           {"response": command.reply})

    def shell(self, command: str, facts: dict[str, str], cwd: str, stdout: int, **more: str) -> Any:
        """Start a shell command. Facts from plan and model may be longer and stranger than an environment can hold."""
        env: dict[str, Any] = {**self.server.environment, **more}
        env.update((name, value.replace("\0", "").encode("utf-8", "replace")[:4000]) for name, value in facts.items())
        return subprocess.Popen(["/bin/sh", "-c", command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout,
                                stderr=subprocess.STDOUT, start_new_session=True, env=env)

    def run_check(self, command: RunCheck) -> CheckFinished:
        self.check_stopped = False
        try:
            with self.server.lock:
                if self.server.closing:
                    return CheckFinished(command.iteration, 126, "", interrupted=True)
                process = self.check = self.shell(self.options.check, command.facts, self.options.directory,
                                                  subprocess.PIPE, OCLOOP_RUN=self.mark)
        except (OSError, ValueError) as error:
            return CheckFinished(command.iteration, 126, f"the check cannot be started: {error}")
        tail = bytearray()

        def read() -> None:
            for piece in iter(lambda: os.read(process.stdout.fileno(), 1 << 16), b""):
                tail.extend(piece)
                del tail[:-4096]

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            status, late = process.wait(self.options.check_timeout or None), ""
        except subprocess.TimeoutExpired:
            status, late = 124, f"\n(ended after {duration(self.options.check_timeout)}: --check-timeout)"
        end_group(process, 0.5, self.mark)
        reader.join(1)
        self.check = None
        output = bytes(tail).decode("utf-8", "replace").strip() + late
        return CheckFinished(command.iteration, status, output, self.check_stopped)

    def stop_check(self, command: StopCheck | None = None) -> None:
        self.check_stopped = True
        process = self.check
        if process:
            end_group(process, 0.5, self.mark)

    def notify(self, command: Notify) -> None:
        """Started at once, since the program may be about to end; waited for only to say that it failed."""
        directory = self.options.directory
        try:
            process = self.shell(self.options.notify, command.facts, directory if os.path.isdir(directory) else "/",
                                 subprocess.DEVNULL)
        except (OSError, ValueError) as error:
            return self.post(Noted("warn", f"--notify cannot be started: {error}"))

        def wait() -> None:
            if process.wait():
                self.post(Noted("warn", f"--notify ended with exit status {process.returncode}"))

        threading.Thread(target=wait, daemon=True).start()


CARRY_OUT: dict[type, Callable[[Worker, Any], Event | None]] = {
    StartServer: lambda worker, command: worker.server.start(command.generation),
    StopServer: lambda worker, command: worker.server.stop(command.session),
    Measure: lambda worker, command: Measured(command.session, worker.cost(command.session), worker.server.memory()),
    CheckSetup: Worker.check_setup, ReadFiles: Worker.read_files, CreateSession: Worker.create_session,
    SendPrompt: Worker.send_prompt, Poll: Worker.poll, AbortSession: Worker.abort_session, Reply: Worker.reply,
    RunCheck: Worker.run_check, StopCheck: Worker.stop_check,
}


# ── screens ──────────────────────────────────────────────────────────────────────────────────────────────
# Each is a thread that shows what it is given, so that a terminal that does not take any more output (an ssh
# connection that froze) never holds up the run. No state of the run lives here.


class LineScreen:
    """Plain lines: one per journal entry, for logs, pipes and terminals that can do no more."""
    handed = None       # lines have no terminal to give

    def __init__(self, colour: bool, utf8: bool) -> None:
        self.colours = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "head": "1;36"} if colour else {}
        self.utf8 = utf8
        self.queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def show(self, picture: Picture, fresh: Sequence[Entry]) -> None:
        for entry in fresh:
            self.queue.put(entry)

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join(5)

    def _run(self) -> None:
        for entry in iter(self.queue.get, None):
            colour = self.colours.get(entry.tone, "")
            start, end = (f"\033[{colour}m", "\033[0m") if colour else ("", "")
            stamp = time.strftime("%H:%M:%S", time.localtime(entry.time))
            text = ("\n" + " " * 18).join(map(printable, entry.text.split("\n")))
            line = f"{stamp} {start}{printable(entry.kind)[:8]:<8} {'  ' * entry.depth}{text}{end}"
            with suppress(OSError, ValueError):     # nobody may be reading any more
                print(line if self.utf8 else ascii_only(line), flush=True)


class CursesScreen:
    """The terminal. One thread makes all curses calls; the facts it rests on were tried on ncurses 6.4."""
    FRAME = 0.1                 # seconds between two drawings, and longest wait for a key

    def __init__(self, post: Callable[[Event], None], colour: bool, utf8: bool) -> None:
        self.post = post
        self.colour = colour
        self.utf8 = utf8
        self.scroll = Scroll()
        self.title = ""
        self.child: Any = None      # the program that has, or had, the terminal
        self.picture: Picture | None = None
        self.handed: tuple[Sequence[str], dict[str, str]] | None = None     # who gets it next: argv, environment
        self.closing = False
        self.styles: dict[str, int] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def show(self, picture: Picture, fresh: Sequence[Entry]) -> None:
        self.picture = picture

    def close(self) -> None:
        self.closing = True
        if self.child:          # whoever has the terminal gives it back
            for end in (self.child.terminate, self.child.kill):
                end()
                self.thread.join(1.5)
        self.thread.join(3)     # a frozen terminal is left as it is

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGWINCH, signal.SIGTSTP))
        for name in ("LINES", "COLUMNS"):           # else a resize is never seen
            os.environ.pop(name, None)
        os.environ["ESCDELAY"] = "25"               # ms; initscr reads it, on every Python
        window = curses.initscr()
        try:
            curses.noecho()
            curses.cbreak()
            window.keypad(True)
            window.timeout(int(self.FRAME * 1000))
            with suppress(curses.error):
                curses.curs_set(0)
            self._make_styles()
            self._loop(window)
        finally:
            self._title("")
            for undo in (lambda: window.keypad(False), curses.nocbreak, curses.echo, lambda: curses.curs_set(1),
                         curses.endwin):
                with suppress(curses.error):
                    undo()

    def _make_styles(self) -> None:
        self.styles = {"bold": curses.A_BOLD, "dim": curses.A_DIM}
        if self.colour:
            with suppress(curses.error):
                curses.start_color()
                curses.use_default_colors()
                for name, colour in (
                        ("good", curses.COLOR_GREEN), ("bar", curses.COLOR_GREEN), ("bad", curses.COLOR_RED),
                        ("warn", curses.COLOR_YELLOW), ("accent", curses.COLOR_CYAN)):
                    curses.init_pair(colour, colour, -1)
                    self.styles[name] = curses.color_pair(colour)

    def _loop(self, window: Any) -> None:
        drawn: Picture | None = None        # None: draw again
        drawn_at, quick, bells = 0.0, 0, 0
        while not self.closing:
            picture, now = self.picture, time.monotonic()
            if self.handed:
                self._give_terminal(window, *self.handed)
                self.handed = drawn = None
            if picture is not None and picture is not drawn and now - drawn_at >= self.FRAME * 0.9:
                self._draw(window, picture)
                if picture.bells > bells:
                    curses.beep()
                bells, drawn, drawn_at = picture.bells, picture, now
            key = window.getch()
            if key == -1:
                # A terminal that hung up answers at once, again and again.
                quick = quick + 1 if time.monotonic() - now < self.FRAME / 4 else 0
                if quick > 200:
                    self.post(ScreenLost("the terminal hung up"))
                    return
                continue
            quick, drawn = 0, None
            page = max(1, window.getmaxyx()[0] - 8)
            moves = {curses.KEY_UP: -1, curses.KEY_DOWN: 1, curses.KEY_PPAGE: -page, curses.KEY_NPAGE: page,
                     curses.KEY_HOME: -10 ** 9, curses.KEY_END: 10 ** 9}
            self.scroll.moved += moves.get(key, 0)
            if key == 12:                           # ctrl-l
                window.redrawwin()
            elif 0 <= key < 256:
                self.post(Key("space" if key == 32 else chr(key).lower()))

    def _draw(self, window: Any, picture: Picture) -> None:
        height, width = window.getmaxyx()
        window.erase()
        for y, row in enumerate(layout(picture, width, height, self.utf8, self.scroll)):
            x = 0
            for style, text in row:
                attributes = 0
                for name in style.split():
                    attributes |= self.styles.get(name, 0)
                with suppress(curses.error):        # the lower right cell raises after it was drawn
                    window.addstr(y, x, text, attributes)
                x += text_width(text)
        window.noutrefresh()
        curses.doupdate()
        self._title(f"ocloop {picture.state} {picture.plan.done}/{picture.plan.automatable}")

    def _title(self, text: str) -> None:
        """Set the terminal's title where it knows how; "" gives it back."""
        if text != self.title and re.match("xterm|rxvt|tmux|screen|alacritty|foot|kitty|vte|gnome|konsole|st-",
                                           os.environ.get("TERM", "")):
            save, restore = "" if self.title else "\033[22;2t", "" if text else "\033[23;2t"
            self.title = text
            with suppress(OSError):
                os.write(1, f"{save}\033]2;{text}\007{restore}".encode())

    def _give_terminal(self, window: Any, argv: Sequence[str], environment: dict[str, str]) -> None:
        """Run a program in the terminal, then take it back; the run goes on meanwhile."""
        curses.def_prog_mode()
        curses.endwin()
        try:
            self.child = subprocess.Popen(argv, env=environment)
            self.child.wait()
        except OSError as error:
            self.post(Noted("warn", f"cannot start {argv[0]}: {error}"))
        curses.reset_prog_mode()
        window.redrawwin()
        curses.flushinp()


def choose_screen(options: Options, post: Callable[[Event], None]) -> LineScreen | CursesScreen:
    """Curses where there is a terminal that can, plain lines elsewhere, with a word about why."""
    colour, utf8 = not os.environ.get("NO_COLOR"), False
    with suppress(locale.Error, AttributeError):
        locale.setlocale(locale.LC_ALL, "")         # sys.stdout.encoding may say UTF-8 where the terminal does not
        utf8 = locale.nl_langinfo(locale.CODESET).upper().replace("-", "") == "UTF8"
    if options.interactive:
        return CursesScreen(post, colour, utf8)
    terminal = sys.stdout.isatty()
    return LineScreen(colour and terminal and os.environ.get("TERM") != "dumb", utf8 or not terminal)


def curses_problem() -> str:
    """Why this terminal cannot have the curses screen; "" when it can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "there is no terminal"
    if curses is None:
        return "this Python has no curses"
    term = os.environ.get("TERM", "")
    try:
        curses.setupterm()
        return "" if curses.tigetstr("cup") else f"TERM={term} cannot move the cursor"
    except curses.error:
        return f"TERM={term} is not known here"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────
# What a run leaves for others: its log, and per plan a lock that dies with its owner and a state file that
# `status` and `attach` read. All of it is private to the user.


def read_text(path: str, what: str) -> tuple[str | None, str]:
    """A file's text whatever its bytes, or None and the problem; a pipe would never end, so it must be a file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(0, "it is not a file")
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace"), ""
    except OSError as error:
        return None, (f"the {what} {path} cannot be read ({error.strerror}): put it there, name another with --{what}, "
                      "or write a starter with `bootstrap`")


class Log:
    """`--log`: every journal entry, appended; JSON lines when the path ends in .jsonl."""

    def __init__(self, path: str, post: Callable[[Event], None]) -> None:
        self.path = path
        self.post = post
        self.json = path.endswith(".jsonl")
        self.warned = False

    def write(self, lines: Sequence[str]) -> None:
        """Append; a disk that is full or a path that cannot be written is said once, and tried on."""
        if not self.path or not lines:
            return
        try:
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace",
                      opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK, 0o666)) as file:
                file.write("".join(line + "\n" for line in lines))
            self.warned = False
        except OSError as error:
            if not self.warned:
                self.warned = True
                self.post(Noted("warn", f"cannot write the log {self.path}: {error.strerror}; going on without: "
                                "name another path with --log"))

    def line(self, entry: Entry) -> str:
        if self.json:
            record = {"time": iso_time(entry.time), "kind": entry.kind, "iteration": entry.iteration,
                      "session": entry.session, "text": entry.text, **(entry.data or {})}
            return json.dumps(record)
        return printable(f"{iso_time(entry.time)} {entry.kind:<8} " + entry.text.replace("\n", " / "))

    def record(self, now: float, kind: str, **fields: Any) -> None:
        """A JSON line besides the entries': how it was started and what it was told, so that it can be replayed."""
        if self.json:
            self.write([json.dumps({"time": iso_time(now), "kind": kind, "now": now, **fields})])


def iso_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


class RunFile:
    """The lock and the state file of one plan, in $XDG_STATE_HOME/ocloop or a private temporary folder."""

    def __init__(self, plan: str) -> None:
        real = os.path.realpath(plan)
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(os.path.dirname(real)))[:40]
        name = f"{stem}-{zlib.crc32(os.fsencode(real)):08x}"
        self.folder, self.problem = private_folder()
        self.path = os.path.join(self.folder, name + ".json")
        self.lock_path = os.path.join(self.folder, name + ".lock")

    def acquire(self) -> int:
        """Take the lock until this process ends; returns 0, or the pid of the loop that holds it."""
        if not self.folder:
            return 0
        try:
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.problem = f"{self.lock_path} cannot be opened ({error.strerror}): no lock against a second loop"
            return 0
        for _attempt in range(5):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)                             # `status` holds it for a moment
            except OSError as error:                        # a file system that knows no locks
                self.problem = f"no lock on this file system ({error}): make sure no second loop works on this plan"
                break
        else:
            os.close(fd)
            return self.running() or self.acquire()         # it may have ended just now
        with suppress(OSError):                             # a full disk: the lock is what counts
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return 0

    def running(self) -> int:
        """The pid of the loop that works on the plan now (-1: it does not say), 0: none does."""
        with suppress(OSError), open(self.lock_path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = file.read().strip()
                return int(said) if said.isdigit() else -1
        return 0

    def write(self, record: dict[str, Any]) -> None:
        """Replace the state file at once and whole; without one, a run goes on."""
        if not self.folder:
            return
        with suppress(OSError):
            draft = f"{self.path}.{os.getpid()}"
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
                json.dump(record, file)
            os.replace(draft, self.path)

    def read(self) -> dict[str, Any]:
        try:
            with open(self.path, encoding="utf-8") as file:
                return as_dict(json.load(file))
        except (OSError, ValueError, RecursionError):
            return {}


def private_folder() -> tuple[str, str]:
    """Where state is kept, and a warning when it is not where it should be."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    wanted = os.path.join(home, "ocloop")
    fallback = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"ocloop-{os.getuid()}")
    for folder in (wanted, fallback):
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            found = os.lstat(folder)
            if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK):
                return folder, "" if folder == wanted else f"{wanted} cannot be written: using {folder}"
        except OSError:
            continue
    return "", f"neither {wanted} nor {fallback} can be written: no lock, and `status` will not find this run"


def attach_command(record: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """What joins the recorded session in OpenCode's own interface: argv and environment."""
    argv = [*(record["opencode"] or ["opencode"]), "attach", record["server"], "--session", record["session"],
            "--dir", record["directory"]]
    return argv, dict(os.environ, OPENCODE_SERVER_USERNAME=record["username"], OPENCODE_SERVER_PASSWORD=record["password"])


def record_of(loop: Loop, server: Server, status: int | None) -> dict[str, Any]:
    """What the state file says of a run; `status` is its exit status once it has ended."""
    it = loop.iteration
    record = {"pid": os.getpid(), "plan": loop.options.plan, "directory": loop.options.directory, "state": loop.state,
              "reason": loop.reason, "iteration": loop.iterations, "task": it.task.text if it and it.task else "",
              "session": it.session if it else "", "elapsed": round(loop.elapsed), "updated": loop.wall,
              **loop.total.record(), "server": loop.server_url, "waits_for": [ask.title for ask in loop.asks.values()]}
    if status is not None:
        return dict(record, status=status, ended=loop.wall)
    return dict(record, username=server.username, password=server.password, opencode=list(loop.options.opencode))


# ── command line ─────────────────────────────────────────────────────────────────────────────────────────
# The parser, the commands, and the one ladder of errors in `main`.

STARTER_PLAN = """# Plan

What this plan is for, and what an agent has to know to work on it without asking: goals, limits, how to
build, how to test.

## Phase 1: foundations

- [ ] Describe one task in one line, small enough for one session, with how to see that it is done
- [ ] Describe the next one; the order of the lines is the order of the work

## Phase 2: everything else

- [ ] A task may point to files, commands and documents
- [MANUAL] What only a person can do is marked like this and skipped
"""

STARTER_PROMPT = """---
description: work on one task of the plan
---

You work on one task of the plan in {{PLAN_FILE}}, in a session of your own. Nobody is watching, and what you
do not write down is forgotten when the session ends.

1. Read {{PLAN_FILE}} from start to end.
2. Choose the first task marked `[ ]` in the earliest phase that is not finished. Work on this one task alone:
   never batch tasks, never begin the next one. Leave alone what is marked `[MANUAL]` or `[BLOCKED]`.
3. Do it.
4. Verify it: run the tests, the build, or whatever shows that it works. Mend what does not.
5. Mark it in {{PLAN_FILE}}: change its `[ ]` to `[x]`. If it cannot be done (a permission, a service or a
   decision is missing), change its box to `[BLOCKED: the reason in a few words]` instead, and undo what is
   half done.
6. When no `[ ]` is left anywhere in the plan, append to its end, on a line of its own:
   `<plan-complete>what was done, what is blocked and why, what is left for a person</plan-complete>`
   Write that tag in no other case.

Then end your turn.

{{CHECK}}
"""

HELP = """examples:
  python3 ocloop.py bootstrap                 write PLAN.md and .loop-prompt.md here
  python3 ocloop.py run                       show the screen; S starts
  python3 ocloop.py run --run                 start at once
  python3 ocloop.py run --run --max-cost 20 --max-time 8h --check 'make test' \\
      --notify 'echo "$OCLOOP_MESSAGE" | mail -s "ocloop: $OCLOOP_EVENT" me@example.org' --log night.jsonl
  python3 ocloop.py status                    how is it doing? (from any other terminal)

exit statuses:
  0 the plan is complete        1 it failed        2 usage
  3 it stopped with work left (a limit, stuck, or marked complete too early)
  130 a person or a signal stopped it
"""

RUN_HELP = "keys:\n" + "".join(f"  {key:<22} {what}\n" for key, what in KEYS) + """
durations read 90, 90s, 15m, 2h, 1h30m; 0 means off.
The prompt may contain {{PLAN_FILE}}, {{TASK}}, {{ITERATION}} and {{CHECK}}; a `---` block on its top may set
`model:` and `agent:`.

""" + HELP[HELP.index("exit statuses"):]


def seconds(text: str) -> float:
    """Read `90`, `90s`, `15m`, `1h30m`; raises argparse's error for anything else."""
    text = "".join(text.lower().split())
    if not re.fullmatch(r"\d+(\.\d+)?|(\d+(\.\d+)?[dhms])+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 90, 90s, 15m, 2h or 1h30m; 0 means off")
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([dhms]?)", text))


def value(kind: Callable[[str], Any], pattern: str, wrong: str) -> Callable[[str], Any]:
    """A type for argparse: what matches the pattern, as `kind` reads it."""
    def read(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is no {wrong}")
        return kind(text)

    return read


count = value(int, r"\d+", "count: write a whole number; 0 means off")
dollars = value(lambda text: float(text.lstrip("$")), r"\$?(\d+(\.\d*)?|\.\d+)",
                "amount: write US dollars such as 20 or 0.50")
model_name = value(str, r"[^/\s]+/\S+", "model: write providerID/modelID; `opencode models` lists them")


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: write a number up to 65535")
    return int(text)


VALUES = {"N": count, "MIB": count, "USD": dollars, "DURATION": seconds, "PORT": port_number,
          "PROVIDER/MODEL": model_name}
# Groups, options and the values they take; the defaults stand in Options.
RUN_OPTIONS = """\
what is worked
--plan PATH                   the plan file (PLAN.md)
--prompt PATH                 the loop prompt (.loop-prompt.md)
-m --model PROVIDER/MODEL     model to use; otherwise the prompt's, otherwise OpenCode's own
-a --agent AGENT              agent to use; otherwise the prompt's, otherwise OpenCode's own
-r --run                      start at once, without waiting for S
-d --debug                    skip the validation of the plan file
--dry-run                     check everything, show the first prompt, start nothing
when it stops
--max-iterations N            after N iterations
--max-cost USD                when this much was spent
--max-time DURATION           when this much time has passed
--stuck N                     after N iterations in a row that change no task, or whose check fails (5)
--retries N                   after N failed iterations in a row (5; 0: never)
--iteration-timeout DURATION  abort an iteration that takes longer, and try again (off)
--stall-timeout DURATION      abort an iteration in which nothing happens for so long, and try again (15m)
when nobody is there
--auto                        approve what is asked, except what the configuration denies
--ask-timeout DURATION        refuse what nobody answered for so long (5m); without a terminal it is refused at once
--check CMD                   shell command that must succeed after every iteration
--check-timeout DURATION      end the check then (10m)
--notify CMD                  shell command to run when it ends, stops, or asks
--log PATH                    append every entry to PATH (JSON lines for .jsonl)
the screen
--plain                       plain lines, and start at once (the default without a terminal)
--verbose                     every event of the server in the activity
the server
-p --port PORT                port of the server (4096, or a free one when that is taken)
--opencode CMD                how to start OpenCode, e.g. "npx -y opencode-ai"
--server URL                  use a server that runs already (OPENCODE_SERVER_USERNAME and _PASSWORD are its login)
--server-memory MIB           replace the server between iterations when it has grown larger (2048)
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Problem(f"{message} (`{self.prog} --help` lists what there is)", 2)


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="ocloop.py", formatter_class=raw, epilog=HELP, description=(
        "Work through the tasks of a PLAN.md with OpenCode: one fresh session per task, until the plan is complete."))
    parser.add_argument("--version", action="version", version="ocloop " + __version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="work the plan", formatter_class=raw, epilog=RUN_HELP,
                              description="Work the plan in the current directory until it is complete.")
    for line in RUN_OPTIONS.splitlines():
        option, _, what = line.partition("  ")
        *flags, last = option.split()
        if not what:
            group = run.add_argument_group(line)
        elif last.startswith("-"):
            group.add_argument(*flags, last, action="store_true", help=what.strip())
        else:
            group.add_argument(*flags, metavar=last, type=VALUES.get(last, str), help=what.strip())
    bootstrap = commands.add_parser("bootstrap", help="write a starter PLAN.md and .loop-prompt.md")
    bootstrap.add_argument("directory", nargs="?", default=".", metavar="DIRECTORY")
    bootstrap.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
    status = commands.add_parser("status", help="how far a plan is, and how a run on it is doing")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    attach = commands.add_parser("attach", help="join the running loop's session in OpenCode's own interface")
    for command in (status, attach):
        command.add_argument("--plan", default="PLAN.md", metavar="PATH", help="the plan file (PLAN.md)")
    return parser


def make_options(given: argparse.Namespace) -> Options:
    """Everything `run` has to know; paths become absolute here."""
    values = {name: value for name, value in vars(given).items() if name in Options._fields and value is not None}
    options = Options(**values)
    if options.server and not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[^/@:\s]+)(:\d+)?(/[^@\s]*)?", options.server):
        raise Problem(f"--server {options.server} is no URL: write http://HOST:PORT (user and password come from "
                      "OPENCODE_SERVER_USERNAME and OPENCODE_SERVER_PASSWORD)", 2)
    plan, prompt, log = (os.path.abspath(os.path.expanduser(path)) if path else ""
                         for path in (options.plan, options.prompt, options.log))
    opencode = () if options.server else find_opencode(given.opencode or "")
    return options._replace(directory=os.getcwd(), plan=plan, prompt=prompt, log=log, opencode=opencode)


def find_opencode(asked: str) -> tuple[str, ...]:
    """The command that starts OpenCode, as argv."""
    try:
        argv = tuple(shlex.split(asked)) or ("opencode",)
    except ValueError as error:
        raise Problem(f"--opencode {asked} cannot be read ({error}): mind its quotes", 2) from None
    found = shutil.which(argv[0])
    if found is None and not asked:
        found = shutil.which(os.path.expanduser("~/.opencode/bin/opencode"))
    if found is None:
        raise Problem(f"{argv[0]} is not there: install OpenCode (`npm install -g opencode-ai`, `brew install opencode`, "
                      "or see opencode.ai), or let npx fetch it with --opencode \"npx -y opencode-ai\"")
    return (os.path.abspath(found), *argv[1:])


def check_files(options: Options) -> tuple[Plan, str]:
    """Plan and prompt's text, or the Problem that keeps the loop from starting."""
    (text, problem), (prompt, otherwise) = read_text(options.plan, "plan"), read_text(options.prompt, "prompt")
    plan, problem = parse_plan(text or ""), problem or otherwise
    if not problem and not plan.tasks and plan.summary is None:
        problem = NO_TASK.format(options.plan)
    if not problem and not split_front_matter(prompt or "")[1]:
        problem = NO_PROMPT.format(options.prompt)
    if problem and not options.debug:
        raise Problem(problem)
    return plan, prompt or ""


def run(given: argparse.Namespace) -> int:
    """Work the plan; returns the exit status."""
    options = make_options(given)
    plan, prompt = check_files(options)
    run_file = RunFile(options.plan)
    if given.dry_run:
        return dry_run(options, plan, prompt, run_file)
    if plan.summary is not None:
        left = f"; {plan.pending} tasks are still pending" if plan.pending else ""
        print(f"ocloop: {options.plan} is complete already{left}: remove its <plan-complete> tag to work on it again")
        return 3 if left else 0
    held = run_file.acquire()
    if held:
        raise Problem(f"another loop works on this plan (process {held}): `status` shows it, `attach` joins it")
    why_plain = "" if options.plain else curses_problem()
    options = options._replace(interactive=not (options.plain or why_plain))
    warnings = [run_file.problem, "" if "{{PLAN_FILE}}" in prompt else NO_PLACE.format(options.prompt),
                f"plain lines, since {why_plain}" if why_plain and sys.stdout.isatty() else ""]
    if options.interactive:     # these two are for the screen's thread alone, so before there is any other
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGWINCH, signal.SIGTSTP))
    return Run(options, run_file, warnings).work()


class Run:
    """The main thread: one inbox, one loop, and everything that is fed by it and feeds it."""
    TICK = 0.25

    def __init__(self, options: Options, run_file: RunFile, warnings: Sequence[str]) -> None:
        self.options = options
        self.run_file = run_file
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        post = self.inbox.put
        self.server = Server(options, post)
        self.worker = Worker(self.server)
        self.log = Log(options.log, post)
        self.loop = Loop(options, time.time(), os.urandom(4).hex())
        self.screen: Any = None
        self.status: int | None = None
        self.ticked_at = self.drawn_at = 0.0
        self.dirty = True                   # something may have changed since it was drawn
        self.logged_event = 0.0
        self.picture: Picture | None = None
        self.recorded: tuple[Any, ...] = ()
        for warning in filter(None, warnings):
            post(Noted("warn", warning))

    def work(self) -> int:
        """Run until the loop says Exit; whatever happens, nothing of it is left behind."""
        sys.setswitchinterval(0.0005)       # a frame being laid out must not hold up a request that is due
        self._take_signals()
        threading.excepthook = lambda args: self.inbox.put(args.exc_value)
        try:
            for command in self.loop.start():
                self.worker.carry_out(command)
            self.screen = choose_screen(self.options, self.inbox.put)
            self.log.record(self.loop.wall, "start", version=__version__, seed=self.loop.seed,
                            options=self.options._asdict())
            self.log.write([self.log.line(entry) for entry in self.loop.journal])
            while self.status is None:
                self._turn()
        finally:
            self._leave()
        return self.status

    def _take_signals(self) -> None:
        def post(number: int, frame: Any) -> None:
            name = signal.Signals(number).name
            if name == "SIGINT" and self.screen and self.screen.handed:
                return                              # the terminal is not ours at the moment
            self.inbox.put(ScreenLost("the terminal is gone (SIGHUP)") if name == "SIGHUP" else Signalled(name))

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, post)

    def _turn(self) -> None:
        """Take what is in the inbox, let the loop decide, carry it out, write it down, show it."""
        now = time.time()
        wake = self.drawn_at + CursesScreen.FRAME if self.dirty else self.ticked_at + self.TICK
        try:
            event = self.inbox.get(timeout=min(max(0.0, wake - now), self.TICK))
            self._handle(event)
        except queue.Empty:
            pass
        now = time.time()
        if not 0 <= now - self.ticked_at < self.TICK:
            self.ticked_at = now
            self._handle(Tick())
        if self.dirty and not 0 <= now - self.drawn_at < CursesScreen.FRAME:
            self.drawn_at, self.dirty = now, False
            self._show()

    def _handle(self, event: Any) -> None:
        if isinstance(event, BaseException):
            raise RuntimeError("a bug on another thread") from event  # noqa: TRY004
        now, entries = time.time(), self.loop.entries
        commands = self.loop.handle(event, now)
        for command in commands:
            if isinstance(command, Exit):
                self.status = command.status
            elif isinstance(command, HandOver):
                argv, environment = attach_command(record_of(self.loop, self.server, None))
                self.screen.handed = argv, dict(environment, OCLOOP_RUN=self.server.token + ".attach")
            else:
                self.worker.carry_out(command)
        if self.options.verbose and (commands or self.loop.entries > entries or now - self.logged_event > 5
                                     or not isinstance(event, Tick)):
            self.logged_event = now
            self.log.record(now, "input", event=type(event).__name__, fields=event._asdict())
        if self.options.log:
            self.log.write([self.log.line(entry) for entry in self.loop.newest(self.loop.entries - entries)])
        self.dirty = True

    def _show(self) -> None:
        loop, last = self.loop, self.picture
        picture = view(loop, loop.now)
        if last is None or picture[:-1] != last[:-1]:
            self.picture = picture
            self.screen.show(picture, loop.newest(picture.newest - (last.newest if last else 0)))
        session = loop.iteration.session if loop.iteration else ""
        worth = (loop.state, loop.reason, loop.iterations, session, len(loop.asks), int(loop.now / 10))
        if worth != self.recorded:
            self.recorded = worth
            self.run_file.write(record_of(loop, self.server, None))

    def _leave(self) -> None:
        """End everything, whatever state it is in; every step is tried, the last one named first."""
        loop, status = self.loop, 1 if self.status is None else self.status
        session = loop.iteration.session if loop.iteration else loop.session_to_abort
        with ExitStack() as steps:
            steps.callback(self._say_goodbye, status)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):      # all is stopped: it may be cut short
                steps.callback(signal.signal, number, lambda *_: os._exit(status))
            steps.callback(self.run_file.write, record_of(loop, self.server, status))
            if self.screen:
                steps.callback(self.screen.close)
            steps.callback(self.worker.stop_check)          # again: one may have been about to start
            steps.callback(self.server.close, session)
            steps.callback(self.worker.stop_check)
            if self.screen:
                steps.callback(self._show)

    def _say_goodbye(self, status: int) -> None:
        """Leave the summary where it can be scrolled back to: the screen is gone."""
        loop = self.loop
        try:
            if isinstance(self.screen, CursesScreen) and self.status is not None:
                print("ocloop: " + printable(loop.reason))
                for line in loop.summary():
                    print("  " + printable(line))
            if self.screen and self.screen.thread.is_alive():       # stuck in a write that nobody reads: do not wait
                os._exit(status)
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)            # else the exit status would tell of this instead


def dry_run(options: Options, plan: Plan, prompt: str, run_file: RunFile) -> int:
    """Check all that `run` would check, start no server, print it; returns 0 or 1."""
    problems, server = [], options.server
    if not server:
        argv = " ".join(options.opencode)
        try:
            found = subprocess.run([*options.opencode, "--version"], stdin=subprocess.DEVNULL, capture_output=True,
                                   text=True, check=False)
        except OSError as error:
            raise Problem(f"cannot start {argv}: {error.strerror}") from None
        server = "{} ({})".format(found.stdout.strip() or "?", argv)
        if found.returncode:
            problems.append(f"`{argv} --version` ended with exit status {found.returncode}: {found.stderr.strip()[-200:]}")
        if options.port and not port_is_free(options.port):
            problems.append(f"port {options.port} is taken: choose another one with --port")
    if options.log and not os.access(options.log if os.path.exists(options.log) else os.path.dirname(options.log), os.W_OK):
        problems.append(f"the log {options.log} cannot be written: name another path with --log")
    for name, command in (("check", options.check), ("notify", options.notify)):
        for word in command.split()[:1]:
            if re.fullmatch(r"[\w./+-]+", word) and subprocess.run(
                    ["/bin/sh", "-c", 'type "$1"', "sh", word], cwd=options.directory, capture_output=True,
                    check=False).returncode:
                problems.append(f"--{name}: there is no command {word}")
    held = run_file.running()
    if held:
        problems.append(f"another loop works on this plan (process {held})")
    fields, body = split_front_matter(prompt)
    task = plan.current.text if plan.current else "wrap up"
    complete = "" if plan.summary is None else ", marked complete: remove its <plan-complete> tag to work on it again"
    limits = ", ".join(f"{name.replace('_', ' ')} {getattr(options, name):g}" for name in (
        "max_iterations", "max_cost", "max_time", "stuck", "retries") if getattr(options, name))
    facts = {"server" if options.server else "opencode": server, "directory": options.directory,
             "plan": f"{options.plan}: {plan}{complete}", "next task": task, "limits": limits or "none",
             "log": options.log, "model": options.model or fields.get("model") or "OpenCode's own",
             "agent": options.agent or fields.get("agent") or "OpenCode's own", "check": options.check,
             "notify": options.notify, "prompt": options.prompt,
             "warning": "" if "{{PLAN_FILE}}" in prompt else NO_PLACE.format(options.prompt)}
    lines = [f"{name:<9} {fact}" for name, fact in facts.items() if fact]
    lines += ["", *("  | " + line for line in render_prompt(body, options.plan, task, 1, "").split("\n")), ""]
    lines += ["problem   " + problem for problem in problems]
    lines += [] if problems else ["all is well: nothing was started (the server checks model and agent when it runs)"]
    print("\n".join(map(printable, lines)))
    return 1 if problems else 0


def bootstrap(given: argparse.Namespace) -> int:
    """Write the starter files; never overwrites without --force."""
    folder = os.path.abspath(os.path.expanduser(given.directory))
    skipped = False
    try:
        os.makedirs(folder, exist_ok=True)
        for name, text in (("PLAN.md", STARTER_PLAN), (".loop-prompt.md", STARTER_PROMPT)):
            path = os.path.join(folder, name)
            try:
                with open(path, "w" if given.force else "x", encoding="utf-8") as file:
                    file.write(text)
                print(f"wrote    {path}")
            except FileExistsError:
                skipped = True
                print(f"skipped  {path}: it exists already")
    except OSError as error:
        raise Problem(f"cannot write into {folder} ({error.strerror}): choose another directory") from None
    if skipped:
        print("\n--force overwrites what exists.")
    print("\nNext: write your tasks into PLAN.md, look over .loop-prompt.md, then, in that directory:\n"
          f"  python3 {os.path.abspath(sys.argv[0])} run")
    return 0


def status(given: argparse.Namespace) -> int:
    """Print how far the plan is and how the run on it is doing; 0 complete, 3 work is left, 1 no plan."""
    path = os.path.abspath(os.path.expanduser(given.plan))
    text, problem = read_text(path, "plan")
    if problem:
        raise Problem(problem)
    plan, run_file = parse_plan(text or ""), RunFile(path)
    pid, secret = run_file.running(), ("password", "username", "opencode")
    record = {name: fact for name, fact in run_file.read().items() if name not in secret}
    complete = plan.summary is not None and not plan.pending
    if given.json:
        print(json.dumps({"plan": path, "done": plan.done, "total": plan.automatable, "percent": plan.percent,
                          "blocked": plan.blocked, "manual": plan.manual, "complete": complete,
                          "summary": plan.summary, "running": bool(pid), "run": record or None}))
        return 0 if complete else 3
    mark = ", complete" if plan.summary is not None else "" if plan.pending else ", not marked complete yet"
    facts = {"plan": path, "progress": f"{plan}{mark}", "next": plan.current.text if plan.current else "",
             "run": "none so far"}
    state, reason, ended = record.get("state"), str(record.get("reason") or ""), record.get("ended")
    if pid:
        waits = "".join(f", waits for you: {title}" for title in as_list(record.get("waits_for")))
        facts["run"] = f"{state}{': ' if reason else ''}{' '.join(reason.split())}{waits}, process {pid}"
        facts["iteration"] = "{}: {}".format(record.get("iteration"), record.get("task") or "-")
        facts["session"] = "{} on {}".format(record.get("session") or "-", record.get("server") or "-")
    elif record:
        last = iso_time(as_float(ended or record.get("updated")))
        facts["run"] = f"{'ended' if ended else 'was killed after'} {last}: {reason or state}"
    if record:
        facts["spent"] = "{}, {} tokens, ${:.4f}".format(
            duration(as_float(record.get("elapsed"))), short_number(sum(map(as_int, as_dict(record.get("tokens")).values()))),
            as_float(record.get("cost")))
    print("\n".join(f"{name:<9} {printable(fact)}" for name, fact in facts.items() if fact))
    return 0 if complete else 3


def attach(given: argparse.Namespace) -> int:
    """Become OpenCode's own interface on the running loop's session."""
    path = os.path.abspath(os.path.expanduser(given.plan))
    run_file = RunFile(path)
    record = run_file.read()
    if not run_file.running():
        raise Problem(f"no loop works on {path}: start one with `run`, or name its plan with --plan")
    if not record.get("session") or "password" not in record:      # the record may still be the last run's
        raise Problem("the loop has no session right now (it is {}): try again in a moment".format(record.get("state")))
    argv, environment = attach_command({**record, "opencode": record["opencode"] or find_opencode("")})
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        raise Problem(f"cannot start {argv[0]}: {error.strerror}") from None


def mend_streams() -> None:
    """Standard streams that were closed lead to /dev/null, and none fails on a character that it cannot encode."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)          # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))
        if fd and isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="replace")


def main(argv: Sequence[str] | None = None) -> int:
    mend_streams()
    try:
        given = make_parser().parse_args(argv)
        return {"run": run, "bootstrap": bootstrap, "status": status, "attach": attach}[given.command](given)
    except Problem as problem:
        print(f"ocloop: {problem}", file=sys.stderr)
        return problem.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
