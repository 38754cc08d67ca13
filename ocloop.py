#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""ocloop: work through a PLAN.md with OpenCode, one fresh session per task, and survive the night.

It is told from top to bottom: the plan, what OpenCode says, the prompt, one session, what is
reckoned with between two, the run, what is told and shown of it; below that all that touches the
world: the two dialects of OpenCode, processes, screens, files, the main thread, the command line.

    event stream ---+
    server process -+
    answers --------+--> inbox --> Run.handle ----> requests --> threads --> opencode serve
    signals --------+             (main thread)
    keys, time -----+                 |
                                      +--> view --> layout --> screen

Threads only post *events* to the inbox. What they mean is decided by one coroutine, which waits in
one place (`Run.work` iterates; `iterate` is one session, the plan after it and the check; `lead`
and `watch` are the session; `recall` stops what must not work on). It touches no clock, file,
socket or screen: what is to be done it asks for as *requests*, which `Outside` carries out.

Glossary:

    server      the `opencode serve` process, ours or that of --server; launch: its n-th start
    session     OpenCode's session; a `Talk` is what the run knows of the one at work
    iteration   one session, the plan read after it, and the check
    task        a checkbox of the plan; settled: it is done, blocked or manual
    stage       where the run stands, for people
    activity    what OpenCode says a session is doing
    verdict     how the answer to our prompt stands, by the server's messages; from it comes the
                outcome of the session, the result of the iteration, and the end of the run
    attempt     how often the prompt was handed over; of OpenCode's: its own, at the provider
    ask         a permission or a question of an agent's
    abandoned   a session that could not be stopped: it must not work on beside the next one
    code        of HTTP;  status: exit status of a process;  generation: of OpenCode, 1.x or 2.x

A session is *idle*, then *over*; a model is *set aside*; a run *rests* (ready, paused, complete,
error), which is its *standstill*, or *ends*.
"""

from __future__ import annotations  # a syntax error here: run ocloop with Python 3.9 or newer

import sys

if sys.hexversion < 0x03090000:
    sys.exit(
        f"ocloop: this is Python {sys.version.split()[0]}: "
        f"run it with 3.9 or newer, e.g. python3.12 {sys.argv[0]}"
    )
if sys.platform == "win32":
    sys.exit("ocloop: Windows is not supported: run it in WSL, or on Linux or macOS")

import os

if __name__ == "__main__" and os.path.dirname(os.path.realpath(__file__)) in sys.path[:1]:
    # What lies beside this file may be an agent's: never import it.
    del sys.path[0]

import argparse
import base64
import codecs
import collections
import difflib
import errno
import fcntl
import io
import json
import locale
import queue
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import termios
import threading
import time
import types
import unicodedata
import zlib
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn, Union, get_args
from urllib.parse import quote, urlsplit

try:
    import curses
except ImportError:  # some minimal Pythons have no curses: plain lines then
    curses = None  # type: ignore[assignment]

__version__ = "3.0.0"


class Problem(Exception):
    """Something that a person can act on: "what went wrong: what to do next"."""

    def __init__(self, message: str, status: int = 1, again: bool = False) -> None:
        super().__init__(message)
        self.status = status  # the exit status of the program
        self.again = again  # trying again, with nothing changed, can help


# ---- options -------------------------------------------------------------------------------------
# The only place where defaults stand. What has no option (the password of --server, colours, where
# state is kept) is read from the environment where it is used.


class Options(NamedTuple):
    """What `run` was asked to do. Paths are absolute, durations in seconds, 0 means off."""

    directory: str = "."
    plan: str = "PLAN.md"
    prompt: str = ".loop-prompt.md"
    models: tuple[str, ...] = ()  # providerID/modelID; (): OpenCode's own
    agent: str = ""
    port: int = 0  # 0: 4096, or a free one
    run: bool = False  # start at once
    debug: bool = False  # no validation of the plan
    verbose: bool = False
    log: str = ""
    plain: bool = False
    auto: bool = False  # approve what is asked
    ask_timeout: float = 300.0
    asks_wait: bool = False  # also without a screen
    max_iterations: int = 0
    max_cost: float = 0.0  # US dollars
    max_time: float = 0.0
    max_wait: float = 86400.0  # spent waiting for a provider, in a row
    iteration_timeout: float = 14400.0
    stall_timeout: float = 900.0
    stuck: int = 5
    retries: int = 5
    check: str = ""
    check_timeout: float = 600.0
    notify: str = ""
    server_memory: int = 2048  # MiB
    opencode: tuple[str, ...] = ("opencode",)
    server: str = ""  # the URL of a server that is not ours
    attended: bool = False  # there is a screen: somebody can look and press keys


# ---- plan ----------------------------------------------------------------------------------------
# Any text gives a Plan. Nothing that looks like a task vanishes: a line with a box is a task, or it
# is named as a near miss. Only a mark that says so settles a task.


class Task(NamedTuple):
    state: str  # pending, done, manual or blocked
    text: str
    reason: str = ""  # of what is manual or blocked
    phase: str = ""  # the heading above it
    line: int = 0  # counts from 1
    begun: bool = False  # pending, and marked as begun: `[~]`, `[wip]`
    depth: int = 0  # tasks in which it is nested

    @property
    def key(self) -> tuple[str, str]:
        """By which it is known again, wherever in the plan an agent moves it."""
        return self.phase, self.text


class NearMiss(NamedTuple):
    """A line that somebody probably meant to be a task, or that opens what is never closed."""

    line: int
    text: str
    problem: str
    is_open: bool = False  # its box has no tick

    def __str__(self) -> str:
        return f"{self.line} {self.problem}"


class Plan:
    """A plan as read. `summary` is None until the completion tag stands in it."""

    def __init__(
        self,
        tasks: Sequence[Task] = (),
        summary: str | None = None,
        near_misses: Sequence[NearMiss] = (),
    ) -> None:
        self.tasks = tuple(tasks)
        self.summary = summary
        self.near_misses = tuple(near_misses)
        self.open_near_misses = tuple(near for near in near_misses if near.is_open)
        counts = collections.Counter(task.state for task in tasks)
        self.done = counts["done"]
        self.pending = counts["pending"]
        self.manual = counts["manual"]
        self.blocked = counts["blocked"]
        self.settled = self.done + self.manual + self.blocked
        self.total = self.done + self.pending + self.blocked  # what an agent was to do
        self.percent = 100  # done of total, rounded half up, but 100 only when all is done
        if self.done < self.total:
            self.percent = min(99, (200 * self.done + self.total) // (2 * self.total))
        self.current = next((task for task in tasks if task.state == "pending"), None)
        self.goal = self.current.text if self.current else "wrap up"  # of the next iteration

    def __str__(self) -> str:
        if not self.tasks:
            return "no task"
        return (
            f"{self.done} of {self.total} tasks done ({self.percent} %), "
            f"{self.blocked} blocked, {self.manual} manual"
        )


def name_near_misses(name: str, near_misses: Sequence[NearMiss]) -> list[str]:
    """The first five in words, and how many more there are; `name` is the plan's."""
    said = [f"{name}:{near}" for near in near_misses[:5]]
    more = len(near_misses) - len(said)
    if more:
        said.append(f"{name} has {more} more such line{'s' * (more > 1)}")
    return said


def new_near_misses(before: Plan, now: Plan) -> list[NearMiss]:
    """Those that were not there before, wherever in the plan they stand."""
    known = collections.Counter(near.problem for near in before.near_misses)
    new = []
    for near in now.near_misses:
        if not known[near.problem]:
            new.append(near)
        else:
            known[near.problem] -= 1
    return new


def missing_tasks(before: Plan, now: Plan) -> list[str]:
    """The texts of undone tasks that a plan has lost: at most as many as there are fewer now."""
    if len(now.tasks) >= len(before.tasks):
        return []
    was, left = (collections.Counter(task.text for task in plan.tasks) for plan in (before, now))
    undone = (task.text for task in before.tasks if task.state in ("pending", "blocked"))
    missing = (was - left) & collections.Counter(undone)
    return list(missing.elements())[: len(before.tasks) - len(now.tasks)]


def open_texts(plan: Plan) -> collections.Counter[str]:
    return collections.Counter(task.text for task in plan.tasks if task.state == "pending")


def problem_of_plan(plan: Plan, path: str) -> str:
    """Why it cannot be worked; "": it can."""
    if len(plan.tasks) > MOST_TASKS:
        return f"{path} has {len(plan.tasks)} tasks: {MOST_TASKS} are the most: what wrote them?"
    if not plan.tasks and plan.summary is None:
        return f"{path} has no task: add lines such as `- [ ] Build it`"
    return ""


MOST_TASKS = 10_000  # more would be laid out for the screen all night
_LINE_END = re.compile(r"\r\n|\r")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*)")
_TAG_OPEN = re.compile(r"^ {0,3}<plan-complete>", re.MULTILINE)
_TAG_CLOSE = "</plan-complete>"


def parse_plan(text: str) -> Plan:
    """The rules are in the README under "The plan"."""
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    shown, near_misses = _hide(text)
    tasks: list[Task] = []
    phase = ""
    above: list[int] = []  # indentations of tasks in which the next may be nested
    # str.splitlines would split on U+2028 and form feeds as well.
    for number, line in enumerate(shown.split("\n"), 1):
        if not _WORTH_A_LOOK.search(line):
            continue  # nearly all lines of a long plan
        state, words, reason = _parse_task(line)
        if state:
            indentation = len(line) - len(line.lstrip())
            above = [outer for outer in above if outer < indentation]
            is_begun = state == "begun"
            state = "pending" if is_begun else state
            tasks.append(Task(state, words, reason, phase, number, is_begun, len(above)))
            above.append(indentation)
            continue
        near_misses += _find_near_miss(line, number)
        heading = _HEADING.match(line)
        if heading:
            phase = heading[1].rstrip().rstrip("#").rstrip()
            above.clear()
    # The last complete tag counts. It is found in `shown` and cut from `text`, which is as long:
    # so code and comments in it are kept.
    last_close = max(0, shown.rfind(_TAG_CLOSE))
    starts = [tag.end() for tag in _TAG_OPEN.finditer(shown, 0, last_close)]
    summary = text[starts[-1] : shown.find(_TAG_CLOSE, starts[-1])].strip() if starts else None
    return Plan(tasks, summary, sorted(set(near_misses)))


# Code and comments.

_LIST_SIGN = r"(?:[-*+]|\d+[.)])"
_INLINE_CODE = r"(?P<ticks>`(?<!``)`*)(?!`).*?(?<!`)(?P=ticks)(?!`)"
_OPENING = re.compile(
    rf"^[^\S\n]*(?:{_LIST_SIGN}[^\S\n]+)?(?P<fence>`{{3,}}(?=[^`\n]*$)|~{{3,}})"
    rf"|<!--|{_INLINE_CODE}",  # in which nothing opens
    re.MULTILINE,
)


def _hide(text: str) -> tuple[str, list[NearMiss]]:
    """A text as long, with fenced code and HTML comments as spaces; those that are never closed
    stay, and are named."""
    if not any(sign in text for sign in ("```", "~~~", "<!--")):
        return text, []
    shown = []
    near_misses = []
    at = 0  # what is before is in `shown`
    unclosed = set()  # what nothing closes any more: the first of each is named
    opening = _OPENING.search(text)
    while opening:
        start, end = opening.span()
        sign = opening["fence"] or "<!--"
        if not opening["ticks"] and sign not in unclosed:
            is_comment = not opening["fence"]
            pattern = "-->" if is_comment else rf"^[^\S\n]*{sign}{sign[0]}*[^\S\n]*$"
            closing = re.compile(pattern, re.MULTILINE).search(text, end)
            if closing:
                end = closing.end()
                hidden = re.sub(".+", lambda row: " " * len(row[0]), text[start:end])
                shown += [text[at:start], hidden]
                at = end
            else:
                unclosed.add(sign)
                what = "comment" if is_comment else "code block"
                problem = f"opens a {what} that is never closed"
                near_misses.append(NearMiss(text.count("\n", 0, start) + 1, "", problem))
        opening = _OPENING.search(text, end)
    return "".join([*shown, text[at:]]), near_misses


# Boxes and marks.

_NO_BRACKET = r"[^\[\]]*"
_BRACKETS = rf"\[{_NO_BRACKET}(?:\[{_NO_BRACKET}\]{_NO_BRACKET})*\]"
_INSIDE = rf"({_NO_BRACKET}(?:{_BRACKETS}{_NO_BRACKET})*)"
_BOX = rf"\[{_INSIDE}\]([*_`]*[:：]?[*_`]*)(?:\s+|$)"  # else it is a link
_TASK = re.compile(rf"\s*{_LIST_SIGN}\s+([*_`]*){_BOX}")
_MARK = re.compile(rf"([*_]*){_BOX}")  # none in code: "parse `[BLOCKED]`"
_END_MARK = re.compile(
    rf"(?:^|\s)([*_]*)\[(?=\s*(?:blocked|manual)(?![^\W_])){_INSIDE}\]([*_]*)$", re.IGNORECASE
)
_TICK_SIGNS = "✓✔✅☑🗸"
_PART = re.compile(r"[~≈]?\s*\d+(?:[.,]\d+)?\s*%|\d+\s*/\s*\d+")
# Behind done, pending and begun no letter follows; behind manual and blocked comes the reason.
_WORD = re.compile(
    rf"(?:[❌{_TICK_SIGNS}⏳🚧🏗⏸⚠⛔🚫🛑🔴🟡🔒🔄]+\s*)?(?:(?:"
    r"(?P<done>done|completed?|finished)"
    r"|(?P<pending>to[-_ ]?do|pending|open|not[-_ ]?started)"
    r"|(?P<begun>wip|in[-_ ]?progress|doing|started|ongoing|active|partial|(?:in[-_ ]?)?review"
    r"|incomplete|unfinished|not[-_ ]?done|partially[-_ ]done|waiting|paused|stuck)"
    r")(?:(?=\s+by\s)|(?!(?:[-_]|\s*)[^\W\d_]))|(?:"
    r"(?P<manual>manual|human)"
    r"|(?P<blocked>blocked|fail(?:ed|ure)?|skip(?:ped)?|deferred|postponed|cancell?ed"
    r"|won['’]?t[-_ ]?fix|on[-_ ]?hold|obsolete|n/a)"
    r")(?![^\W_])\s*(?:[:：,，;—–_]|-+)?\s*)",
    re.IGNORECASE,
)
# `[done, but tests fail]` is open.
_DOUBT = re.compile(r"[?%]|\b(?:but|except|not|fail|partial|without|untested)", re.IGNORECASE)


def _parse_task(line: str) -> tuple[str, str, str]:
    """State ("": no task; or "begun"), text and reason."""
    marks: list[tuple[str, str]] = []
    wrapping = ""  # emphasis that opens before a box and does not close right behind it
    at = 0
    box = _TASK.match(line)
    while box:
        mark = _read_box(box[2])
        if not mark[0] or (marks and mark[0] not in ("manual", "blocked")):
            break
        marks.append(mark)
        wrapping += "" if box[1][::-1] in box[3] else box[1]
        at = box.end()
        box = _MARK.match(line, at)
    text = line[at:].strip()
    end = _END_MARK.search(text) if marks and "[" in text else None
    if end:
        marks.append(_read_box(end[2]))
        # What closes behind the mark belongs to it, or to what began before it.
        text = text[: end.start()].rstrip() + ("" if end[1] else end[3])
    if not marks or not text:
        return "", "", ""
    if wrapping and text.count(wrapping[::-1]) % 2:
        text = wrapping + text  # `**[ ] Export:** as CSV`
    # The first mark counts, unless the box says that the task is done.
    is_open = marks[0][0] in ("pending", "begun") and len(marks) > 1
    state, reason = marks[1] if is_open else marks[0]
    return state, text, reason


def _read_box(inside: str) -> tuple[str, str]:
    """State and reason: `BLOCKED - no key` -> ("blocked", "no key"); "" is no mark of ours."""
    box = " ".join(inside.replace("\ufe0f", "").split())
    if not box:
        return "pending", ""
    if box in ("x", "X") or not box.strip(_TICK_SIGNS):
        return "done", ""
    if _PART.fullmatch(box) or not any(sign.isalnum() or sign in "[] " for sign in box):
        return "begun", ""
    word = _WORD.match(box)
    if not word:
        return "", ""
    state = word.lastgroup or ""
    reason = box[word.end() :]
    if state == "done" and _DOUBT.search(reason):
        return "begun", ""
    said = word[state].lower()
    if state == "blocked" and said != "blocked" and not reason:  # [skipped]: that is the reason
        reason = re.sub("[-_ ]", " ", said)
    return state, (reason if state in ("manual", "blocked") else "")


# Near misses: where a line begins, whatever looks like a box is named; elsewhere not in prose.

_OPEN_BOXES = "☐⬜□▢◻🔲🔳❏❐❑❒"
_DONE_BOXES = "☑☒🗹🗷🗵"
# With a space behind them, since none of these begins a link.
_AS_BOXES = {**dict.fromkeys(_OPEN_BOXES, "[ ] "), **dict.fromkeys(_DONE_BOXES, "[x] ")}
_PLAINER = str.maketrans({**_AS_BOXES, "］": "] ", "\\": "", "\ufe0f": ""})
_WORTH_A_LOOK = re.compile(rf"[\[#(（［{_OPEN_BOXES}{_DONE_BOXES}]")
_ANY_BOX = re.compile(
    r"\[[^\[\]]*\]|\(\s*\)"
    r"|\[(?:x|blocked|manual)?(?=[\s:]+[^\s\[\]][^\[\]]*$)",  # which nothing closes
    re.IGNORECASE,
)
_LINK = re.compile(r"[(\[\]]|:(?:\S|\s*(?:\S+\s*)?$)")  # behind a bracket that is no box
_SIGNS = r"(?:[^\w\[\](){}【】<\"'`!]|_)*"
_NUMBER = r"\(?(?:\d[\d.]*|\w{1,3}(?=[.)、]))[.)、:]*(?!\w)"  # 1.1, (1), iv.
_BEGINNING = re.compile(rf"{_SIGNS}(?:{_NUMBER}{_SIGNS})?")
_ITEM = re.compile(rf"\s*{_LIST_SIGN}\s")
_APART = re.compile(r"[\s*_|:]")
_ENDS = re.compile(r"[\s*_|]*$")


def _find_near_miss(line: str, number: int) -> list[NearMiss]:
    # What stands in code is talk.
    bare = re.sub(_INLINE_CODE, lambda code: "c" * len(code[0]), line)
    bare = unicodedata.normalize("NFKC", bare.translate(_PLAINER))
    beginning = _BEGINNING.match(bare)
    begins = beginning.end() if beginning else 0
    is_item = _ITEM.match(bare)
    is_prose = not (is_item or "|" in bare or bare[:begins].strip("*_~ \t"))
    found = []
    for box in _ANY_BOX.finditer(bare):
        start, end = box.span()
        inside = box[0].strip("[]()")
        state, _reason = _read_box(inside)
        link = _LINK.match(bare, end)
        if not state or (link and (inside.strip() or link[0] in "(]")):
            continue
        if box[0][0] == "(" and start != begins:
            continue  # call()
        is_open = state in ("pending", "begun")
        is_last = _ENDS.match(bare, end)
        if start == begins:
            is_near = True
        elif not (_APART.match(bare, start - 1) and (is_last or _APART.match(bare, end))):
            is_near = False  # a[ ]
        elif inside.isspace() or (state == "done" and len(inside.strip()) == 1):
            is_near = bool(is_last or not is_prose)
        else:
            is_word = (is_open or state == "done") and (inside[:1].isalpha() or len(inside) < 2)
            is_near = bool(is_word and is_last and is_item)
        if is_near:
            found.append(is_open)
    text = line.strip()
    problem = f'is nearly a task: "{text[:60]}": write it like `- [ ] Build it`'
    return [NearMiss(number, text, problem, any(found))] if found else []


# ---- values --------------------------------------------------------------------------------------
# What OpenCode says, and what is said to it: no dictionary of OpenCode's passes this line. Behind
# that, what else happens, and what the run asks for.

Json = dict[str, Any]


class Prompt(NamedTuple):
    text: str
    title: str = ""  # of the session
    model: str = ""  # providerID/modelID, "": OpenCode's own
    agent: str = ""
    message_id: str = ""  # ids of ours: so a prompt can be sent again safely
    part_id: str = ""
    attempt: int = 0  # how often the prompt was handed over before


def without_variant(name: str) -> str:
    return name.partition("#")[0]


class Question(NamedTuple):
    text: str
    options: tuple[tuple[str, str], ...] = ()  # labels and descriptions


class Ask(NamedTuple):
    id: str
    session: str
    kind: str  # permission or question
    title: str = ""  # of a permission: such as "bash"
    detail: str = ""
    questions: tuple[Question, ...] = ()
    is_circle: bool = False  # OpenCode asks because the calls are identical
    always: str = ""  # what "always" allows, and for how long
    since: float = 0.0  # when we first heard of the ask, by RunClock.now
    answers: tuple[str, ...] = ()  # labels, for the first questions


class Spend(NamedTuple):
    """What was used: US dollars and tokens."""

    cost: float = 0.0
    input: int = 0
    output: int = 0
    cached: int = 0

    def plus(self, other: Spend) -> Spend:
        return Spend._make(one + another for one, another in zip(self, other))

    def at_least(self, other: Spend) -> Spend:
        """The larger of each: two counts of the same thing, of which either may lag behind."""
        return Spend._make(map(max, self, other))

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.cached

    def record(self) -> dict[str, float | dict[str, int]]:
        tokens = {"input": self.input, "output": self.output, "cached": self.cached}
        return {"cost": round(self.cost, 6), "tokens": tokens}


class Fault(NamedTuple):
    """An error, told apart by structured names and codes alone, never by a model's prose."""

    # rate-limit, outage (the provider or the network is away), auth, balance, no-model, no-agent,
    # configuration (the run cannot go on), overflow (OpenCode compacts the context and goes on),
    # length, provider (any other of its errors), aborted or unknown
    kind: str
    message: str
    retry_after: float = 0.0  # seconds, where they were announced


# By fault, what a person can do; none is tried again before anything has worked.
ADVICE = {
    "auth": "log in with `opencode auth login`, or look at the provider's key",
    "balance": "look at the provider's balance",
    "no-model": "look at the model {model} and at the provider's address in the configuration",
    "no-agent": "look at the agent's name",
}


class Setup(NamedTuple):
    """What the server knows. What is empty it cannot tell, which is never an error."""

    model: str = ""  # that OpenCode's own configuration means, where nobody names an agent
    models: dict[str, int] = {}  # providerID/modelID -> tokens of context, 0: unknown
    agents: tuple[str, ...] = ()
    free: frozenset[str] = frozenset()  # models without a price
    variants: dict[str, tuple[str, ...]] = {}  # model -> names of its reasoning efforts
    chosen: str = ""  # the model that OpenCode would take where nobody names one
    asks: tuple[str, ...] = ()  # what OpenCode's configuration asks a person for
    unread: tuple[str, ...] = ()  # files of the configuration that OpenCode cannot read
    agent_models: dict[str, str] = {}  # agent -> the model that the configuration means for it

    def model_of(self, agent: str) -> str:
        return self.agent_models.get(agent, self.model)


class Polled(NamedTuple):
    """How the session stands. `verdict`, on the answer to our own prompt:
    answered     it ended well
    failed       it ended with `fault`
    refused      it ended because something was rejected
    cut          it was broken off; by somebody, if there is a `fault`
    unfinished   it has begun and not ended: it works, or its server died
    undelivered  the session does not know the prompt, or nothing came of it
    nothing-ran  the session is through, and there is no answer
    ""           not looked at
    """

    activity: str  # idle or working
    verdict: str = ""
    fault: Fault | None = None
    spent: Spend | None = None  # with its subagents; None: not known
    children: tuple[str, ...] = ()
    asks: tuple[Ask, ...] | None = None  # None: not looked at
    unlisted: tuple[str, ...] = ()  # kinds of asks that the server failed to list
    retry: Activity | None = None
    is_unsure: bool = False  # it seems to be idle, which has to be seen twice
    is_alive: bool = False  # a tool prints, of which the stream says nothing


class CheckResult(NamedTuple):
    status: int
    output: str
    interrupted: bool = False

    def __str__(self) -> str:
        return f"failed with exit status {self.status}\n{self.output[-1500:]}".strip()


class FilesRead(NamedTuple):
    plan: str | None  # the text; None: it cannot be read
    prompt: str | None
    problem: str = ""


# What the server's stream says.


class Activity(NamedTuple):
    session: str
    # idle, working, retrying, compacted, or woke (it works again by itself: something in its
    # background has ended)
    kind: str
    attempt: int = 0
    wait: float = 0.0  # seconds until OpenCode tries again
    message: str = ""


class Part(NamedTuple):
    session: str
    key: str  # which part of the session it is
    kind: str  # text, think or tool
    state: str  # running, done or failed
    text: str = ""  # what is said; of a tool that failed, why
    tool: str = ""
    argument: str = ""  # of a tool, in a line
    call: int = 0  # of a tool: the same for the same input, 0: not known


class Delta(NamedTuple):
    session: str
    key: str  # of the part that grows
    text: str


class Message(NamedTuple):
    """A message of the agent's."""

    session: str
    id: str
    spend: Spend  # for this message alone; its tokens, cached ones too, are the whole context
    model: str = ""
    agent: str = ""
    parent: str = ""  # id of the prompt that it answers, where that is known
    ended: str = ""  # answered, calls (tools are to run), nowhere (without saying why)
    is_over: bool = False  # nothing more of it is written, however it ended


class Answered(NamedTuple):
    session: str
    id: str  # of the ask
    is_refused: bool = False


class Child(NamedTuple):
    session: str  # which is known already
    child: str  # its subagent's


class Broke(NamedTuple):
    session: str
    fault: Fault


class Alive(NamedTuple):
    session: str  # shows life, and no more


class Edited(NamedTuple):
    path: str  # of a file that the agent changed


SessionEvent = Union[Activity, Part, Delta, Message, Ask, Answered, Child, Broke, Alive]
FROM_SESSION = get_args(SessionEvent)  # `isinstance` takes a Union only from Python 3.10 on

# What else happens.


class StreamOpened(NamedTuple):
    """The event stream is read, again; what happened meanwhile is not repeated."""


class ServerDied(NamedTuple):
    launch: int
    problem: str


class Key(NamedTuple):
    name: str  # one character in lower case, or a name such as `space`
    about: str | None = None  # the ask that was on the screen, or QUIT_SHOWN; None: not known


class Signalled(NamedTuple):
    name: str


class ScreenLost(NamedTuple):
    reason: str


class Noted(NamedTuple):  # for the journal
    kind: str
    text: str
    tone: str = "warn"


class RequestError(Exception):
    """A request that was not carried out. `code` is HTTP's, 0: no answer; `name` OpenCode's, or
    ours: Timeout, NotJSON."""

    def __init__(self, code: int, message: str, name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.name = name

    @property
    def why(self) -> str:
        if self.code == 0 or self.code >= 500:
            return "silent"
        if self.code in (401, 403):
            return "locked"  # the password is wrong
        if self.name.startswith("Config"):
            return "configuration"
        return "gone" if self.code == 404 else "rejected"


class Request:
    """What the run wants done outside."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name  # of a method of Outside
        self.args = args
        self.answer: Answer | None = None  # None: not heard yet


class Answer(NamedTuple):
    request: Request
    result: Any = None
    error: Exception | None = None


# ---- prompt --------------------------------------------------------------------------------------
# The prompt file with its places filled in, and what the loop itself has to tell an agent.

FRONT_MATTER = ("model", "agent", "description")  # the keys that mean something
PLACES = ("PLAN_FILE", "TASK", "ITERATION", "CHECK")
# Its lines are keys, what belongs to the key above, comments, or empty.
_FRONT_MATTER = re.compile(
    r"---[ \t]*\n((?:(?!---[ \t]*$)(?:[\w.-]+[ \t]*:|[ \t#-]|$).*\n)*)---[ \t]*$", re.MULTILINE
)


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """A leading `---` block of `key: value` lines, and the prompt's body. What stands between two
    rules and looks different is text for the agent."""
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    block = _FRONT_MATTER.match(text)
    if not block:
        return {}, text.strip()
    pairs = (line.partition(":") for line in block[1].split("\n") if line.lstrip()[:1] != "#")
    fields = {key.strip(): value.strip().strip("'\"") for key, colon, value in pairs if colon}
    return fields, text[block.end() :].strip()


def models_of(fields: dict[str, str]) -> tuple[str, ...]:
    """`model: A, B` names two, the first choice first."""
    return tuple(filter(None, map(str.strip, fields.get("model", "").split(","))))


def make_prompt(body: str, path: str, plan: Plan, iteration: int, remarks: str) -> Prompt:
    """`remarks` are what the loop itself has to say: they arrive, also without a place for them."""
    if remarks and "{{CHECK}}" not in body:
        body += "\n\n{{CHECK}}"
    values = dict(zip(PLACES, (path, plan.goal, str(iteration), remarks)))
    # In one pass: no value is searched for places itself.
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: values.get(place[1], place[0]), body)
    number = min(plan.total - plan.pending + 1, plan.total)
    return Prompt(text, f"ocloop {number}/{plan.total}: {plan.goal}"[:100])


def with_ids(prompt: Prompt, wall: float, number: int, seed: str) -> Prompt:
    """With ids as OpenCode makes them: 12 hex digits that grow with time, 14 more characters, the
    last two for `ids_of_attempts`."""
    stamp = (int(wall * 1000) * 4096 + number % 4096) & (2**48 - 1)
    tail = f"{stamp:012x}{seed[:12]:0<12}00"
    return prompt._replace(message_id=f"msg_{tail}", part_id=f"prt_{tail}")


def remark_on_near_misses(plan: Plan) -> str:
    """For the agent that is to wrap up."""
    if plan.current or not plan.open_near_misses:
        return ""
    lines = (f"- line {near.line}: {near.text[:200]}" for near in plan.open_near_misses[:20])
    return LOOK_LIKE_TASKS.format(lines="\n".join(lines))


NO_PROMPT = "{} is empty: write the prompt into it, or delete it and run `bootstrap`"
NO_PLACE = "{} does not contain {{{{PLAN_FILE}}}}: add it, else the agent may not find the plan"
CHECK_FAILED = """\
The project's check fails. Mend that before anything else: it comes before the next task.
$ {command}
exit status {status}
{output}"""
NOTHING_SETTLED = """\
The last {count} sessions settled nothing in the plan; what they worked on:
{goals}
{seen}
Look first whether the next task is done already: what is there may be good, and stays. If it is
done, mark it in the plan. Else finish what is missing, in another way than before, and mark it. If
it cannot be finished in this session, change its box to [BLOCKED: the reason in a few words],
write below it how far it got, and end your turn."""
CUT_OFF = "its answer was cut off at the model's output limit"
CUT_SHORT = f"""\
The last session did not come to its end: {CUT_OFF}. It worked on:
- {{goal}}
What it has done by then is there: look at it and go on from it. Write long files in several parts,
each with a tool call of its own, and keep each answer short."""
LOOK_LIKE_TASKS = """\
Nothing is pending in the plan, but these lines look like open tasks:
{lines}
Make a task (`- [ ] ...`) of each one that still has to be done, mend the others so that they do not
look so, and do the first task."""


# ---- journal, clock, words -----------------------------------------------------------------------
# What is noted as it happens, the time that counts, words for people, and what others say.

# Seconds to wait after so many failures in a row: none, one, two ...
LONGEST_WAIT = 900.0
RATE_LIMIT_WAITS = (0.0, 30.0, 60.0, 120.0, 240.0, 480.0, LONGEST_WAIT)
FAILURE_WAITS = (0.0, 4.0, 16.0, 64.0, 256.0, LONGEST_WAIT)  # five outlast 20 minutes
SERVER_WAITS = (0.0, 0.0, 1.0, 4.0, 16.0, 64.0, 256.0, LONGEST_WAIT)  # an upgrade takes a minute
LONGEST_START_WAIT = 15.0  # the longest of these for a server that has never been up

NEVER = float("inf")


def wait_after(times: int, waits: Sequence[float]) -> float:
    return waits[min(times, len(waits) - 1)]


class Entry(NamedTuple):
    number: int
    time: float  # in seconds since 1970; of what runs: since when, by RunClock.now
    kind: str
    text: str
    tone: str = ""  # dim, good, bad, warn or head
    depth: int = 0  # 1: of a subagent, 2: of a subagent's subagent
    iteration: int = 0
    session: str = ""
    record: Json | None = None  # for --log in JSON lines


class Journal:
    """What happened, its newest entries: the screen, the log and the plain lines show it."""

    LENGTH = 3000
    LONGEST_TEXT = 4000  # characters of one entry

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self.iteration = 0  # 0: none
        self.count = 0  # also of those that have been dropped
        self.entries: collections.deque[Entry] = collections.deque(maxlen=self.LENGTH)

    def note(
        self,
        kind: str,
        text: str,
        tone: str = "",
        session: str = "",
        depth: int = 0,
        record: Json | None = None,
    ) -> None:
        if len(text) > self.LONGEST_TEXT:
            text = f"{text[: self.LONGEST_TEXT]} … ({len(text)} characters)"
        kind, text, record = all_printable((kind, text, record))
        self.count += 1
        now = self.clock.wall
        entry = Entry(self.count, now, kind, text, tone, depth, self.iteration, session, record)
        self.entries.append(entry)


class RunClock:
    """The time of a run. `now`, on which all deadlines stand, leaves out what nobody lived through
    (sleep, a clock that was set); `wall` is for people."""

    def __init__(self, wall: float) -> None:
        self.began = wall
        self.wall = wall
        self.now = wall
        self.works = False  # else it is at rest
        self.elapsed = 0.0  # seconds of work

    def move_to(self, wall: float) -> bool:
        """False: it was time away, and does not count."""
        passed = wall - self.wall
        self.wall = wall
        if not 0 <= passed <= 10:  # a longer gap between two events: the machine slept
            return False
        self.now += passed
        if self.works:
            self.elapsed += passed
        return True


# Words for people.

LONGEST_TIME = 1e9  # seconds: thirty years, for all that is longer


def duration(seconds: float) -> str:
    """9s, 4m05s, 3h12m."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def dollars_of(cost: float) -> str:
    """$3.10, $0.0012: what is not nothing never reads as nothing."""
    if 0 < cost < 0.0001:
        return "<$0.0001"
    return f"${cost:.2g}" if 0 < cost < 0.095 else f"${cost:.2f}"


def short_number(number: int) -> str:
    """1234 -> 1.2k"""
    value, sign = float(number), ""
    for larger in "kMG":
        if value >= 999.5:
            value, sign = value / 1000, larger
    return f"{value:.1f}{sign}" if sign and value < 9.95 else f"{value:.0f}{sign}"


_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
# What controls, turns the direction of a line, or shows nothing.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_EMPHASIS = re.compile(r"\*\*(?=\S)(.+?)\*\*")


def printable(text: str) -> str:
    """The text without colours, and a sign for each character that could rewrite the screen or hide
    words."""
    if text.isascii() and text.isprintable():  # nearly every text is, and this is quick
        return text
    return _UNSAFE.sub("\ufffd", _COLOUR.sub("", text.replace("\t", "    ")))


def all_printable(value: Any) -> Any:
    """The same with each line of all its texts made printable."""
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, (list, tuple)):
        return [all_printable(item) for item in value]
    if isinstance(value, dict):
        return {name: all_printable(item) for name, item in value.items()}
    return value


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def title_of(text: str) -> str:
    """A task's text as people read it: one line, without the signs of emphasis."""
    return one_line(_EMPHASIS.sub(r"\1", text))


def cell_width(char: str) -> int:
    """Cells that a character takes in a terminal."""
    if char < "\u0300":
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(cell_width, text))


def clip(text: str, width: int) -> str:
    """As much of the text as fits into `width` cells."""
    for at, char in enumerate(text):
        width -= cell_width(char)
        if width < 0:
            return text[:at]
    return text


def ellipsis(text: str, width: int) -> str:
    """The text, or as much of it as fits, and a sign that it was cut."""
    if text_width(text) <= width:
        return text
    return clip(text, width - 1) + "…" if width > 0 else ""


# What others say: anything may be missing or of another type, and reads as empty.


def dig(value: Any, *names: str) -> Any:
    """What stands there, name below name; the next ones: of that type, or empty."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def as_dict(value: Any, *names: str) -> Json:
    found = dig(value, *names)
    return found if isinstance(found, dict) else {}


def as_list(value: Any, *names: str) -> list[Any]:
    found = dig(value, *names)
    return found if isinstance(found, list) else []


def dicts(value: Any, *names: str) -> list[Json]:
    return [as_dict(item) for item in as_list(value, *names)]


def as_text(value: Any, *names: str) -> str:
    found = dig(value, *names)
    return str(found) if isinstance(found, (str, int, float)) else ""


def first_text(value: Any, *names: str) -> str:
    """The first of these that says something."""
    return next(filter(None, (as_text(value, name) for name in names)), "")


def as_texts(value: Any, *names: str) -> list[str]:
    return [as_text(item) for item in as_list(value, *names)]


def as_id(value: Any, *names: str) -> str:
    """An id that may be part of a path and a word of a command, or ""."""
    text = as_text(value, *names)
    return text if re.fullmatch(r"\w[\w-]{0,199}", text, re.ASCII) else ""


def as_float(value: Any, *names: str) -> float:
    found = dig(value, *names)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return float(found) if is_number and abs(found) < 1e18 else 0.0


def as_int(value: Any, *names: str) -> int:
    return int(as_float(value, *names))


# ---- one session ---------------------------------------------------------------------------------
# What is known of it, and when it is over. Nothing here waits.

POLL_EVERY = 5.0  # seconds between two looks at a session that works
FIRST_LOOK = 2.0  # the first look after a prompt, without any event
LOOK_AGAIN = 0.25  # between two looks at what is not sure yet
LOOK_CLOSER = 60.0  # silent for so long, a session that "works" has its messages looked at
SPINS = 3  # answers that end nowhere, compactions without anything new, answers to one prompt
SAME_CALLS = 20  # in a row, or two to four by turns
REFUSALS = 20  # in one session
SHORT_WAIT = 90.0  # for a provider, where another model could work
SUBAGENT_TOOLS = ("task", "subagent")  # of OpenCode 1, of OpenCode 2
GOES_ON = 5  # times that a session is told to go on after a refusal that ended its turn

_DO_WITHOUT = (
    "Do not ask again: go on without it, or mark the task [BLOCKED: reason] in the plan if it "
    "cannot be done without it."
)
NOBODY = f"Nobody is there to answer. {_DO_WITHOUT}"
A_PERSON = f"A person refused this. {_DO_WITHOUT}"
SAME_CALL = f"You made the same call again and again: it will not help. {_DO_WITHOUT}"
WRONG_PASSWORD = (
    "the server refuses the password: set OPENCODE_SERVER_PASSWORD (or OPENCODE_PASSWORD, which "
    "goes before it) to its own"
)

UNREAD = "OpenCode cannot read {}, and goes on without: mend it, or what it denies is not denied"

NO_FAULT = Fault("", "")


class Outcome(NamedTuple):
    """What became of a session."""

    # done (the agent ended its turn), refused, cut, failed, stalled, rate-limited, outage, aborted,
    # or swallowed (the prompt has to be sent again)
    kind: str
    fault: Fault = NO_FAULT  # why, where it did not end well


def outcome_of(fault: Fault) -> Outcome:
    kinds = {"rate-limit": "rate-limited", "outage": "outage", "length": "cut"}
    return Outcome(kinds.get(fault.kind, "failed"), fault)


def fault_of_error(error: RequestError) -> Fault:
    if error.why == "locked":
        return Fault("configuration", WRONG_PASSWORD)
    if error.why == "configuration":
        return Fault("configuration", f"OpenCode's configuration is broken: mend it: {error}")
    return Fault("unknown", str(error))


# Outcomes of an iteration whose agent ended its turn in good order: a session's "done" becomes
# what was settled, see `enter`.
WORKED = ("done", "blocked", "manual", "progress", "nothing settled", "refused")


class Result(NamedTuple):
    """One iteration, as it stands in the books."""

    number: int
    task: Task | None  # None: nothing was left but the summary
    goal: str
    seconds: float
    spend: Spend
    model: str
    refused: dict[str, int]  # what it asked for in vain, and how often
    # What is known once it is over.
    outcome: str = ""  # one of WORKED, or the session's; "": it is under way
    fault: Fault = NO_FAULT
    check: str = ""  # passed, failed, interrupted, or "" when none ran
    progress: bool = False

    @property
    def word(self) -> str:
        """What people are told."""
        return "check failed" if self.check == "failed" else self.outcome

    @property
    def worked(self) -> bool:
        return self.outcome in WORKED

    @property
    def waited_for(self) -> bool:
        """It ended for what passes by itself, and counts as nobody's attempt."""
        return self.outcome in ("rate-limited", "outage")

    def record(self) -> Json:
        return {
            "iteration": self.number,
            "task": self.goal,
            "outcome": self.word,
            "progress": self.progress,
            "problem": self.fault.message,
            "seconds": round(self.seconds, 1),
            "model": self.model,
            "check": self.check,
            "refused": self.refused,
            **self.spend.record(),
        }


class Effort(NamedTuple):
    """What a run has spent on one task."""

    iterations: int = 0
    seconds: float = 0.0
    spend: Spend = Spend()
    model: str = ""
    outcome: str = ""  # of the last iteration that is over
    check_failed: bool = False  # after one of them, and no check has passed since

    def plus(self, result: Result) -> Effort:
        return Effort(
            self.iterations + 1,
            self.seconds + result.seconds,
            self.spend.plus(result.spend),
            result.model or self.model,
            result.outcome or self.outcome,
            result.check == "failed" or (self.check_failed and result.check != "passed"),
        )

    def record(self) -> Json:
        return {
            "iterations": self.iterations,
            "seconds": round(self.seconds),
            "model": self.model,
            "outcome": "check failed" if self.check_failed else self.outcome,
            **self.spend.record(),
        }


NO_EFFORT = Effort()


class Circles:
    """What happens again and again. Each method returns the problem once that was too often."""

    def __init__(self) -> None:
        # By session.
        self.calls: dict[str, list[int]] = collections.defaultdict(list)
        self.compactions: collections.Counter[str] = collections.Counter()  # since a call was new
        # Messages: by session those that ended nowhere, in a row; by prompt its answers.
        self.nowhere: dict[str, set[str]] = collections.defaultdict(set)
        self.answers: dict[str, set[str]] = collections.defaultdict(set)

    def call(self, part: Part) -> str:
        """OpenCode's own guard sees identical calls only within one step."""
        calls = self.calls[part.session]
        if part.call not in calls:
            self.compactions.pop(part.session, None)  # a new call: the session gets on
        calls.append(part.call)
        for length in range(1, 5):
            turn = calls[-length:]
            if 0 not in turn and calls[-length * SAME_CALLS :] == turn * SAME_CALLS:
                last = f"the last one {part.tool} {part.argument}"
                return f"it goes in circles: {SAME_CALLS} times in a row the same calls, {last}"
        return ""

    def message(self, event: Message) -> str:
        if event.ended == "nowhere":
            self.nowhere[event.session].add(event.id)
        elif event.ended:
            self.nowhere.pop(event.session, None)
        if event.ended == "answered" and event.parent:
            self.answers[event.parent].add(event.id)
        if len(self.nowhere[event.session]) >= SPINS:
            return f"it spins: {SPINS} answers without an end in a row"
        if len(self.answers[event.parent]) >= SPINS:
            return f"it answered the same prompt {SPINS} times: was this machine's clock set back?"
        return ""

    def compaction(self, session: str) -> str:
        """Answers between two are no sign that it gets on: only a tool call that is new is one."""
        self.compactions[session] += 1
        if self.compactions[session] < SPINS:
            return ""
        return (
            f"it spins: its context was compacted {SPINS} times without anything new between: the "
            "model's context limit is too small for this task, or set too low"
        )


class Transcript:
    """What runs now, and each part once in the journal, however often a server says it.

    With many providers a text ends after the tool that it announces: so a tool waits for the texts
    of its session.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.live: dict[str, Entry] = {}  # what runs, and since when, by the part's key
        self.journaled: set[str] = set()  # keys of parts, and messages of errors
        self.held: list[Entry] = []  # tools that wait

    def error(self, message: str, session: str) -> None:
        """A server tells it on the stream, in the message, and when polled."""
        if message not in self.journaled:
            self.journaled.add(message)
            self.talk.note("error", message, "bad", session)

    def show(self, part: Part) -> bool:
        """Whether it has ended, and that is news."""
        if part.key in self.journaled:
            return False
        kind = part.tool or part.kind
        tone = "dim" if kind == "think" else ""
        is_tool = part.kind == "tool"
        text = part.argument if is_tool else part.text
        known = self.live.get(part.key)
        now = self.talk.run.now
        since = known.time if known else now
        depth = self.talk.family.get(part.session, 0)
        entry = Entry(0, since, kind, text, tone, depth, session=part.session)
        if part.state == "running":
            self.live[part.key] = entry._replace(text=text[-Journal.LONGEST_TEXT :])
            # The call of a subagent is noted when it begins, too, once its purpose is known.
            is_first_told = text and not (known and known.text)
            if part.tool not in SUBAGENT_TOOLS or not is_first_told:
                return False
        else:
            self.live.pop(part.key, None)
            self.journaled.add(part.key)
            if is_tool and now - since >= 1:
                text += f"  {duration(now - since)}"
        if part.state == "failed":
            text += f"  failed: {part.text}"
            entry = entry._replace(tone="bad")
        if is_tool:
            self.held.append(entry._replace(text=text))
        elif text.strip():
            self.talk.note(kind, text.strip(), tone, part.session)
        self.release()
        return part.state != "running"

    def grow(self, delta: Delta) -> None:
        live = self.live.get(delta.key)
        if live:
            text = (live.text + delta.text)[-Journal.LONGEST_TEXT :]
            self.live[delta.key] = live._replace(text=text)

    def end_texts(self, session: str) -> None:
        """They have ended with their message: that may not be said of each."""
        for key, live in list(self.live.items()):
            if live.session == session and live.kind == "text":
                del self.live[key]
        self.release()

    def close(self) -> None:
        self.live.clear()
        self.release()

    def release(self) -> None:
        """Note the tools that wait for no text any more."""
        held, self.held = self.held, []
        written = {live.session for live in self.live.values() if live.kind == "text"}
        for entry in held:
            if entry.session in written:
                self.held.append(entry)
            else:
                self.talk.note(entry.kind, entry.text, entry.tone, entry.session)


class Asks:
    """What a session and its subagents ask."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.run = talk.run
        self.open: dict[str, Ask] = {}  # by id
        self.closed: set[str] = set()  # ids of those that were answered: a late poll may list them
        self.refused: collections.Counter[str] = collections.Counter()  # by title
        self.last_refusal = ""  # what the agent was told at the last refusal

    def hear(self, ask: Ask) -> None:
        """Nothing is answered any more once the session has to end."""
        is_known = ask.id in self.open or ask.id in self.closed
        if is_known or ask.session not in self.talk.family or self.talk.ends_as:
            return
        said = f"{ask.title}: {ask.detail}" if ask.kind == "permission" else ask.detail
        self.talk.note("ask", said, "warn", ask.session)
        self.open[ask.id] = ask._replace(since=self.run.now)
        self.mind()
        if ask.id in self.open:
            self.run.keys.confirming_quit = False  # what is asked is in front of a person now
            notify(self.run, "asked", said)

    def mind(self) -> None:
        """Answer what no person is to be asked, or none has answered."""
        options, attended = self.run.options, self.run.attended
        timeout = options.ask_timeout
        for ask in list(self.open.values()):
            is_auto = options.auto and ask.kind == "permission"
            if is_auto and not ask.is_circle:
                self.reply(ask, "once", "approved (--auto)")
            elif ask.is_circle and (is_auto or not attended):
                self.refuse(ask, "it is the same call again and again", SAME_CALL)
            elif not (attended or options.asks_wait):  # for the screen, or `attach`
                self.refuse(ask, "nobody is there to answer")
            elif timeout and self.run.now >= ask.since + timeout:
                self.refuse(ask, f"nobody answered for {duration(timeout)}")

    def reply(self, ask: Ask, decision: str, said: str, message: str = "") -> None:
        """`decision`: once, always or reject."""
        self.close(ask.id)
        self.talk.note("ask", said, "warn" if decision == "reject" else "good", ask.session)
        self.run.request("reply", ask, decision, message)

    def refuse(self, ask: Ask, why: str, message: str = NOBODY) -> None:
        """With a message: a bare rejection would end the agent's turn."""
        self.reply(ask, "reject", f"refused: {why}", message)
        self.count_refusal(ask, message)

    def count_refusal(self, ask: Ask, message: str) -> None:
        self.last_refusal = message
        title = ask.title or ask.kind
        self.refused[title] += 1
        if sum(self.refused.values()) >= REFUSALS:
            last = f"the last time {title} ({ask.detail}): {how_to_allow(self.refused)}"
            self.talk.give_up("failed", f"it asked {REFUSALS} times for what was refused, {last}")

    def hear_answered(self, event: Answered) -> None:
        """What is open still was answered elsewhere, as in OpenCode's own interface."""
        ask = self.open.get(event.id)
        self.close(event.id)
        if ask:
            said = "refused" if event.is_refused else "answered"
            self.talk.note("ask", f"{said} elsewhere", "dim", event.session)
            if event.is_refused:
                self.count_refusal(ask, A_PERSON)

    def close(self, id: str) -> None:
        self.open.pop(id, None)
        self.closed.add(id)

    def compare(self, polled: Polled, looked: float) -> None:
        """What a look, made at `looked`, does not list any more, somebody else has answered."""
        if polled.asks is None:
            return
        listed = {ask.id for ask in polled.asks}
        for id, ask in list(self.open.items()):
            if id not in listed and ask.kind not in polled.unlisted and ask.since < looked:
                del self.open[id]
        for ask in polled.asks:
            self.hear(ask)

    def delivered(self, answer: Answer) -> None:
        """An answer has arrived, or it was lost: the next look finds again what it was to."""
        ask, error = answer.request.args[0], answer.error
        is_gone = isinstance(error, RequestError) and error.why == "gone"  # somebody else answered
        if error and not is_gone and ask.session in self.talk.family:
            self.talk.note("warn", f"the answer did not arrive: {error}", "warn", ask.session)
            self.closed.discard(ask.id)

    @property
    def first(self) -> Ask | None:
        """What a person is shown."""
        return next(iter(self.open.values()), None)

    @property
    def shown(self) -> str:
        """What tells the question that a person is shown from all others."""
        return f"{self.first.id} {len(self.first.answers)}" if self.first else ""

    def takes_key(self, key: Key) -> bool:
        """Whether it belongs to what is shown; if so, that is answered with it."""
        ask = self.first
        if ask is None or key.about not in (None, self.shown):
            return False
        decisions = {"y": "once", "a": "always"} if ask.kind == "permission" else {}
        options = ask.questions[len(ask.answers)].options if ask.questions else ()
        labels = {str(number): label for number, (label, _) in enumerate(options[:9], 1)}
        if key.name == "n":
            self.refuse(ask, "by a person", A_PERSON)
        elif key.name in decisions:
            self.reply(ask, decisions[key.name], f"approved, {decisions[key.name]}")
        elif key.name in labels:  # the reply is sent when all questions of the ask are answered
            answers = (*ask.answers, labels[key.name])
            ask = self.open[ask.id] = ask._replace(answers=answers)
            if len(answers) == len(ask.questions):
                self.reply(ask, "once", f"answered: {', '.join(answers)}")
        else:
            return False
        return True


# What a verdict means, in `weigh`; "failed" is told there, any other means swallowed.
OUTCOME_OF_VERDICT = {
    "answered": Outcome("done"),
    "refused": Outcome("refused", Fault("", "something it asked for was refused")),
    "cut": Outcome("cut", Fault("", "its answer was broken off by somebody or something else")),
}


class Talk:
    """One session: what it was told, and what is known of it by its own words and by looks at it.

    Nothing that the event stream says is believed to be an end: it only makes us look.
    """

    def __init__(self, prompt: Prompt, run: Run) -> None:
        self.prompt = prompt
        self.run = run
        self.plan = run.plan  # as it was before this session
        self.task = self.plan.current  # None: nothing was left but the summary
        self.id = ""
        self.family: dict[str, int] = {}  # this session and its subagents' -> depth
        self.sending: Request | None = None
        self.started = run.now
        # All times are by RunClock.now.
        self.last_sign = run.now  # of life
        self.retry: Activity | None = None  # one of the family waits for a provider
        self.retry_at = 0.0  # when OpenCode tries again
        self.retry_since = 0.0  # when OpenCode's first attempt failed: further ones do not move it
        self.noted_attempt = ("", 0)  # session and OpenCode's own attempt, in the journal
        self.ends_as: Outcome | None = None  # set when the session has to be ended before its time
        self.circles = Circles()
        self.by_message: dict[str, Spend] = {}
        self.polled = Spend()
        self.context = 0  # tokens
        self.model = prompt.model
        self.agent = prompt.agent
        self.transcript = Transcript(self)
        self.asks = Asks(self)
        self.forget()

    def forget(self) -> None:
        """Forget what was heard of an attempt before this one, or of a server before this one."""
        self.begun_at = 0.0  # the last sign that the prompt runs; 0: none yet
        self.look_at = NEVER  # the next look
        self.verdict = ""  # of the last look, where it is not believed yet
        self.verdict_since = 0.0  # since when the looks agree on it
        self.fault: Fault | None = None  # the last error that the stream told of
        self.server_was_lost = False  # in the midst of the answer, which was cut off by that
        self.asks.last_refusal = ""

    def note(self, kind: str, text: str, tone: str = "", session: str = "") -> None:
        session = session or self.id
        self.run.journal.note(kind, text, tone, session, self.family.get(session, 0))

    def give_up(self, kind: str, problem: str, retry_after: float = 0.0) -> None:
        """It has to end: the first problem counts, and "" is none."""
        if problem and self.ends_as is None:
            self.ends_as = Outcome(kind, Fault("unknown", problem, retry_after))
            self.asks.open.clear()

    def look_within(self, seconds: float) -> None:
        self.look_at = min(self.look_at, self.run.now + seconds)

    # What the stream says.

    def hear(self, event: SessionEvent) -> None:
        session = event.session
        if session not in self.family:
            return
        self.last_sign = self.run.now
        if isinstance(event, Delta):
            self.begin(session)
            self.transcript.grow(event)
        elif isinstance(event, Part):
            self.hear_part(event)
        elif isinstance(event, Message):
            self.hear_message(event)
        elif isinstance(event, Activity):
            self.hear_activity(event)
        elif isinstance(event, Ask):
            self.asks.hear(event)
        elif isinstance(event, Answered):
            self.asks.hear_answered(event)
        elif isinstance(event, Child):
            self.family[event.child] = self.family[session] + 1
        elif isinstance(event, Broke):
            self.hear_fault(session, event.fault)

    def begin(self, session: str) -> None:
        """The prompt runs: an end that was seen was none."""
        self.begun_at = self.run.now
        self.verdict = ""
        self.server_was_lost = False  # if the answer is cut off from now on, somebody did that
        if self.retry and self.retry.session == session:
            self.retry = None

    def hear_activity(self, event: Activity) -> None:
        if event.kind == "compacted":
            self.note("note", "the session was compacted", "dim", event.session)
            self.give_up("failed", self.circles.compaction(event.session))
        elif event.kind != "idle":
            self.begin(event.session)
            if event.kind == "retrying":
                self.hear_retry(event)
        elif event.session == self.id:  # that a subagent is idle says nothing of ours
            self.look_within(0)

    def hear_retry(self, event: Activity) -> None:
        """OpenCode tries for ever, and honours an announced wait of days."""
        now, message = self.run.now, event.message
        self.retry = event
        self.retry_at = now + event.wait
        attempt = (event.session, event.attempt)
        if attempt != self.noted_attempt:  # stream and polls tell of the same attempt
            self.noted_attempt = attempt
            self.note("retry", f"attempt {event.attempt} failed: {message}", "warn", event.session)
            self.transcript.end_texts(event.session)  # what it had begun to say is void
        if event.attempt <= 1 or not self.retry_since:
            self.retry_since = now
        waited = now - self.retry_since
        most, longest = self.run.options.max_wait or NEVER, LONGEST_WAIT
        if self.run.model_line.others():
            most = longest = SHORT_WAIT
        if waited > most:
            self.give_up("rate-limited", f"OpenCode has waited {duration(waited)}: {message}")
        elif event.wait > longest:
            problem = f"OpenCode would wait {duration(event.wait)}: {message}"
            self.give_up("rate-limited", problem, event.wait)

    def hear_part(self, event: Part) -> None:
        if event.key == self.prompt.part_id:
            return
        if event.state == "running":
            self.begin(event.session)
        if self.transcript.show(event) and event.kind == "tool":
            self.give_up("failed", self.circles.call(event))

    def hear_message(self, event: Message) -> None:
        self.by_message[event.id] = event.spend
        if event.session == self.id:
            self.context = event.spend.tokens or self.context
            self.agent = event.agent or self.agent
            if event.model and event.model != without_variant(self.model):
                self.model = event.model
                line = self.run.model_line
                if not self.prompt.model and self.model != line.last_seen:
                    self.run.journal.note("model", f"OpenCode took {self.model}", "dim")
                line.last_seen = self.model
        if event.ended:
            self.noted_attempt = ("", 0)
            self.retry_since = 0.0
        if event.is_over:
            self.transcript.end_texts(event.session)
        self.give_up("failed", self.circles.message(event))

    def hear_fault(self, session: str, fault: Fault) -> None:
        if fault.kind == "aborted":
            return
        if session == self.id and fault.kind != "overflow":  # OpenCode compacts, and goes on
            self.fault = fault
            self.look_within(1.0)
        self.transcript.error(fault.message, session)

    # Looks at it.

    def take_in(self, polled: Polled, looked: float) -> None:
        for child in polled.children:
            self.family.setdefault(child, 1)
        spent = self.polled.at_least(polled.spent or Spend())
        if polled.is_alive or spent != self.polled:
            self.last_sign = max(self.last_sign, looked)  # something may have been heard since
        self.polled = spent
        self.asks.compare(polled, looked)

    @property
    def spent(self) -> Spend:
        """The stream may lose messages, and a poll may lag behind."""
        heard = Spend()
        for spend in self.by_message.values():
            heard = heard.plus(spend)
        return heard.at_least(self.polled)

    def weigh(self, polled: Polled, looked: float) -> Outcome | None:
        """What became of it; None: it is not over yet.

        An end that is believed too early begins a second session beside the first: an odd one must
        stay for some time, and any sign of work makes us forget it.
        """
        if polled.is_unsure or self.begun_at > looked:  # the look is older than the news
            if polled.activity == "idle":
                self.look_within(LOOK_AGAIN)
            return None
        if polled.retry:
            self.hear_activity(polled.retry)
        elif polled.activity == "working":
            self.begin(self.id)
            self.retry = None
        now = self.run.now
        verdict, fault = polled.verdict, polled.fault
        # A server may say "busy" for ever: after a long silence a finished answer counts as an end.
        is_silent = now - self.last_sign > LOOK_CLOSER
        if polled.activity != "idle" and not (is_silent and verdict in ("answered", "failed")):
            return None
        verdict = self.corrected(verdict)
        if verdict != self.verdict:
            self.verdict = verdict
            self.verdict_since = now
        is_sure = verdict == "answered" or (verdict == "failed" and (fault or is_silent))
        if not is_sure and now - self.verdict_since < self.patience(verdict):
            self.look_within(LOOK_AGAIN)
            return None
        if verdict == "failed":
            why = "it failed, and OpenCode does not say why"
            return outcome_of(fault or self.fault or Fault("unknown", why))
        outcome = OUTCOME_OF_VERDICT.get(verdict, Outcome("swallowed"))
        kind = fault.kind if fault else ""
        return outcome._replace(fault=outcome.fault._replace(kind=kind))

    def corrected(self, verdict: str) -> str:
        """A verdict, by what the server that gives it does not know."""
        if verdict in ("cut", "refused") and self.server_was_lost:
            return "unfinished"  # no person did it: the prompt is sent again
        if verdict in ("undelivered", "unfinished", "nothing-ran") and self.fault:
            return "failed"  # before the answer or in its midst, as with a missing model
        return verdict

    def patience(self, verdict: str) -> float:
        """How long a verdict that is not sure has to stand before it is believed."""
        if verdict == "undelivered" or (verdict == "unfinished" and self.prompt.attempt):
            # The prompt may still arrive. Until this attempt begins, an earlier one that was broken
            # off is all that the server sees, and that stays unfinished for ever.
            return 6.0
        return 1.5  # what says why may come a little later

    def result(self, now: float) -> Result:
        """Its iteration in the books, so far."""
        return Result(
            number=self.run.number,
            task=self.task,
            goal=self.plan.goal,
            seconds=now - self.started,
            spend=self.spent,
            model=self.model,
            refused=dict(self.asks.refused),
        )

    # Time, and the server.

    def mind(self) -> None:
        """What has to end it when nothing is heard."""
        now = self.run.now
        retry = self.retry if self.retry_at > now else None
        if self.run.server.is_down or self.asks.open or retry:
            self.last_sign = now  # it is silent for a known reason
        self.asks.mind()
        longest = self.run.options.iteration_timeout
        silence = self.run.options.stall_timeout
        if longest and now - self.started >= longest:
            problem = f"the iteration took longer than {duration(longest)}"
            if retry:  # the provider's fault, for which the run waits
                problem += f", waiting for the provider: {retry.message}"
            self.give_up("rate-limited" if retry else "stalled", problem)
        elif silence and now - self.last_sign >= silence:
            self.give_up("stalled", f"nothing happened for {duration(silence)}")
        self.give_up("aborted", self.run.books.overrun(self.run.used))

    def lose_server(self) -> None:
        """Whoever looks next has it started; what is asked still is asked again."""
        self.look_at = 0.0
        self.asks.open.clear()
        self.asks.closed.clear()
        self.transcript.close()
        self.retry = None

    def find_server(self) -> None:
        """It is another one; the end of the one before has broken off what was heard."""
        self.forget()
        self.server_was_lost = True
        self.look_within(0)


# ---- books, models, limits -----------------------------------------------------------------------
# What a run reckons with between two sessions, and what the next one is told. Nothing here waits.


PLAN_COMPLETE = "the plan is complete"
A_PERSON_QUIT = "a person quit"
QUIT_SHOWN = "quit"  # what a key is about that is pressed while "Q again" is on the screen


def problem_of_names(setup: Setup, models: Sequence[str], agent: str) -> str:
    """What is wrong with models ("": OpenCode's own) and agent, as far as the server can tell."""
    for name in models:
        model, _, variant = (name or setup.model_of(agent)).partition("#")
        if model and setup.models and model not in setup.models:
            close = difflib.get_close_matches(model, list(setup.models), 3, 0.4)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            advice = "`opencode models` lists them, `opencode auth login` adds a provider"
            return f"there is no model {model}: {meant}{advice}"
        known = setup.variants.get(model, ())
        if variant and setup.variants and variant not in known:
            return f"there is no variant {variant} of {model}: {', '.join(known) or 'it has none'}"
    if agent and setup.agents and agent not in setup.agents:
        return f"there is no agent {agent}: there are {', '.join(setup.agents)}"
    return ""


def how_complete(plan: Plan, gone: Sequence[str] = ()) -> tuple[int, str]:
    """The exit status of a run that its agents have ended, and why."""
    counts = ((plan.pending, "pending"), (plan.blocked, "blocked"))
    left = [tasks_of(count, state) for count, state in counts if count]
    if left:
        return 3, f"complete but for {' and '.join(left)}"
    if plan.summary is not None and (plan.tasks or not gone):
        return 0, PLAN_COMPLETE
    if plan.open_near_misses:
        near = first_of([f'"{near.text}"' for near in plan.open_near_misses])
        return 3, f"nothing is pending, but this looks undone: {near}"
    if gone:
        return 3, f"nothing is pending, but {said_gone(gone)}"
    return 0, "nothing is left to do; the agent wrote no summary"


def tasks_of(number: int, state: str) -> str:
    """1 blocked task, 2 pending tasks."""
    return f"{number} {state} task{'s' * (number > 1)}"


def first_of(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    shown = ", ".join(name[:60] for name in names[:5])
    return shown + (f", and {len(names) - 5} more" if len(names) > 5 else "")


def said_gone(gone: Sequence[str]) -> str:
    return f"{tasks_of(len(gone), 'open')} gone from the plan: {first_of(gone)}" if gone else ""


def said_refused(refused: dict[str, int]) -> str:
    """refused: bash ×6, edit ×3; "" when nothing was."""
    counts = collections.Counter(refused).most_common()
    said = ", ".join(f"{title} ×{times}" for title, times in counts)
    return f"refused: {said}" if said else ""


def how_to_allow(refused: Collection[str]) -> str:
    """What a person can do about what was refused: titles of permissions, or "question"."""
    titles = [title for title in refused if title != "question"]
    allow = f"allow {first_of(titles)} in opencode.json, or use --auto" if titles else ""
    answer = "answer in the plan what it asked" if "question" in refused else ""
    return "; ".join(filter(None, (allow, answer)))


class Books:
    """What is reckoned from all results so far and from the plan after each, and the limits that it
    is held against."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self.options = options
        self.journal = journal
        self.results: list[Result] = []
        self.last_worked: Result | None = None
        # What `add` counts up, so that no screen and no record goes through all results again.
        self.outcomes: collections.deque[Json] = collections.deque(maxlen=200)  # the latest
        self.counts: collections.Counter[str] = collections.Counter()  # how many have each word
        self.efforts: dict[tuple[str, str], Effort] = {}  # by the key of the task
        self.refused: collections.Counter[str] = collections.Counter()  # titles of asks
        self.well = 0  # how many went well
        self.well_seconds = 0.0  # of these
        self.counted = 0  # towards --max-iterations: not what a provider would not let work
        self.spent = Spend()  # by all iterations that are over, also those that an end broke off
        # What --check says of the work as it stands: passed, failed, interrupted; "": nothing yet.
        self.check = ""
        self.complaint = ""  # for the next agent: how the check failed; "": it did not
        self.plan = Plan()  # that was noted last
        self.gone: list[str] = []  # open tasks that went out of the plan, and nobody settled
        self.most_settled = 0  # the most settled tasks so far
        self.least_left = 0  # the fewest pending tasks so far, the missing summary as one more
        # Limits by name, as a person has raised them since.
        self.limits = {name: float(getattr(options, name)) for name in RAISED_BY_R}
        self.begin_anew()

    def begin_anew(self) -> None:
        """A person goes on: what was in a row before, is not now."""
        self.unsettled: list[Result] = []  # the latest ones that worked and settled nothing
        self.waited = 0.0  # seconds, for a provider, since an iteration worked
        self.check_failures = 0  # in a row: only a check that passes ends it

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.outcomes.append(result.record())
        self.counts[result.word] += 1
        self.refused.update(result.refused)
        self.spend(result)
        self.counted += not result.waited_for
        self.check_failures += result.check == "failed"
        if result.check == "passed":
            self.check_failures = 0
        if result.worked:
            self.well += 1
            self.well_seconds += result.seconds
            self.last_worked = result
            self.unsettled.append(result)
            self.waited = 0.0
        if result.progress:
            self.unsettled.clear()

    def spend(self, result: Result) -> None:
        """Count what an iteration has cost, also one that was broken off, and is no result."""
        self.spent = self.spent.plus(result.spend)
        if result.task:
            key = result.task.key
            self.efforts[key] = self.efforts.get(key, NO_EFFORT).plus(result)

    def note_check(self, checked: CheckResult) -> str:
        """Take in what --check said of the work as it stands; returns that in a word."""
        if checked.interrupted:  # no verdict: what the last check said still holds
            self.check = "failed" if self.complaint else "interrupted"
            self.journal.note("check", "interrupted", "warn")
            return "interrupted"
        if checked.status == 0:
            self.check = "passed"
            self.complaint = ""
            # A check looks at the whole project: so all tasks whose check failed are good now.
            for key, effort in self.efforts.items():
                self.efforts[key] = effort._replace(check_failed=False)
            self.journal.note("check", "passed", "good")
        else:
            self.check = "failed"
            self.complaint = CHECK_FAILED.format(command=self.options.check, **checked._asdict())
            self.journal.note("check", str(checked), "bad")
        return self.check

    def note_plan(self, plan: Plan) -> bool:
        """Take in a plan, and say what has gone out of it; whether it is progress: more settled, or
        less left, than ever before in this run. (Agents un-checked a task and checked it again.)"""
        if plan is self.plan:
            return False
        was, now = ({task.text for task in each.tasks} for each in (self.plan, plan))
        came = now - was
        lost = missing_tasks(self.plan, plan)
        if lost:
            self.journal.note("warn", said_gone(lost), "warn")
        self.gone = [text for text in self.gone if text not in came] + lost
        # A line that is done when it comes settles nothing: a task that was open has to be settled
        # now, or gone (it may have been reworded). Several may have one text.
        settles = bool(open_texts(self.plan) - open_texts(plan))
        left = plan.pending + (plan.summary is None)  # to write it is the last task of every plan
        has_more, has_less = plan.settled > self.most_settled, left < self.least_left
        # Where none of its tasks was there before, it is another plan, whose progress counts from
        # here. But a single task may be the old one, reworded.
        is_another = not was or (came == now and len(now) > 1)
        if has_more or is_another:
            self.most_settled = plan.settled
        if has_less or is_another:
            self.least_left = left
        self.plan = plan
        return (has_more and settles) or (has_less and not lost)

    # Remarks for the next agent.

    def remark_on_stuck(self) -> str:
        """Where so many iterations settled nothing."""
        most = self.options.stuck
        if not most or len(self.unsettled) < most:
            return ""
        goals = collections.Counter(result.goal for result in self.unsettled)
        refused = said_refused(self.refused_lately)
        return NOTHING_SETTLED.format(
            count=len(self.unsettled),
            goals="\n".join(f"- {goal} (×{times})" for goal, times in goals.items()),
            seen=f"What they asked for was {refused}: do without it."
            if refused
            else "They ended in good order, and marked nothing.",
        )

    def remark_on_cut(self) -> str:
        """Where the last one's answer had no room."""
        last = self.results[-1] if self.results else None
        if last and last.fault.kind == "length" and not last.progress:
            return CUT_SHORT.format(goal=last.goal)
        return ""

    @property
    def refused_lately(self) -> dict[str, int]:
        """What the unsettled ones asked for in vain, and how often; the most frequent first."""
        refused: collections.Counter[str] = collections.Counter()
        for result in self.unsettled:
            refused.update(result.refused)
        return dict(refused.most_common())

    # The limits, as a person has raised them since; `used` is held against them.

    def stuck_on(self) -> str:
        """What went wrong so often in a row that a person has to look at it; "": nothing."""
        most = self.options.stuck or NEVER
        count = len(self.unsettled)
        if count > most:  # the last agent was told so, and settled nothing either
            advice = "look at the next task and at the prompt, or mark the task [BLOCKED: reason]"
            refused = self.refused_lately
            if refused:
                advice = f"{said_refused(refused)}: {how_to_allow(refused)}"
            return f"{count} iterations in a row settled no task (--stuck): {advice}"
        count = self.check_failures
        if count >= most:
            advice = f"mend what `{self.options.check}` shows"
            return f"the check failed {count} time{'s' * (count > 1)} in a row (--stuck): {advice}"
        return ""

    def overrun(self, used: dict[str, float]) -> str:
        """Why an iteration must end in its midst: money or time, passed by as much again."""
        limit = self.used_up(used, 2)
        return f"twice the limit: {limit}" if limit else ""

    def used_up(self, used: dict[str, float], times: int = 1) -> str:
        """The first limit that is used up so many times over, in words; "": none is."""
        for name, most in self.limits.items():
            if 0 < times * most <= used[name]:
                option, shown = name.replace("_", "-"), RAISED_BY_R[name]
                return f"--{option} is reached: {shown(used[name])} of {shown(most)}"
        return ""

    def make_room(self, used: dict[str, float]) -> None:
        """Raise what is used up by as much again as was asked for, until there is room."""
        for name, most in self.limits.items():
            if 0 < most <= used[name]:
                step = float(getattr(self.options, name))
                self.limits[name] += step * ((used[name] - most) // step + 1)

    @property
    def average(self) -> float:
        """Seconds of an iteration that went well."""
        return self.well_seconds / max(1, self.well)


# The limits that R raises, by as much again, and how they are told.
RAISED_BY_R: dict[str, Callable[[float], str]] = {
    "max_iterations": "{:.0f}".format,
    "max_cost": dollars_of,
    "max_time": duration,
}


class End(NamedTuple):
    """Why a run rests or ends. `stage`: paused, complete, error or stopping."""

    stage: str
    status: int = 130  # exit status
    reason: str = ""
    is_limit: bool = False  # of those that R raises

    @property
    def is_pause(self) -> bool:
        """A person wanted it: nothing is announced, and what was in a row stays so."""
        return self.status == 130


class ModelLine:
    """Which models and agent work, by the command line, the front matter and OpenCode's own
    configuration; and what an outcome means for them. Of the models in line the first one works
    that is not set aside. Where nobody names one, OpenCode's own is alone in line, as ""."""

    def __init__(self, options: Options, files: Files, books: Books) -> None:
        self.options = options
        self.files = files
        self.books = books
        self.clock = books.journal.clock
        self.setup = Setup()  # what the server knows
        self.warned: set[str] = set()  # what a person was warned of, since once is enough
        self.models = options.models or ("",)  # in line, as they were for the last prompt
        self.current = ""  # the one at work; "": OpenCode's own
        self.last_seen = ""  # what OpenCode said that it used
        self.begin_anew()

    def begin_anew(self) -> None:
        self.back_at: dict[str, float] = {}  # model -> until when it is set aside
        self.times_aside: collections.Counter[str] = collections.Counter()  # in a row
        self.failures: collections.Counter[str] = collections.Counter()  # since one has worked

    def read(self) -> tuple[tuple[str, ...], str, str]:
        """The models in line, the agent, and the prompt's body, as they are now."""
        fields, body = split_front_matter(self.files.prompt_text)
        models = self.options.models or models_of(fields) or ("",)
        return models, self.options.agent or fields.get("agent", ""), body

    @property
    def first(self) -> str:
        """The model that is first in line, as far as it is known."""
        models, agent, _body = self.read()
        return models[0] or self.setup.model_of(agent) or self.setup.chosen

    @property
    def shown(self) -> str:
        """The model at work, or the one that will be, as a person knows it."""
        return self.current or self.last_seen or self.first

    def wait_for(self, model: str) -> float:
        """Seconds until it may work."""
        return max(0.0, self.back_at.get(model, 0.0) - self.clock.now)

    def others(self) -> list[str]:
        """Those that could work now besides the one at work."""
        return [one for one in self.models if one != self.current and not self.wait_for(one)]

    def choose(self, among: Sequence[str] = ()) -> str:
        """The model that works next: the first one not set aside, else the first one back."""
        self.current = min(among or self.models, key=self.wait_for)
        return self.current

    def prompt(self, number: int, remarks: str, is_last_try: bool) -> Prompt:
        """For the next iteration. The last try at a stuck task is another model's."""
        self.models, agent, body = self.read()
        model = self.choose(self.others() if is_last_try else ())
        prompt = make_prompt(body, self.options.plan, self.files.plan, number, remarks)
        return prompt._replace(model=model, agent=agent)

    def look_through(self) -> list[str]:
        """Say what a person should know before the first prompt, each once; returns what is new.
        Raises Problem where the server does not know a model or the agent, or, at night, cannot
        read what may forbid something."""
        models, agent, _body = self.read()
        problem = problem_of_names(self.setup, models, agent)
        if self.setup.unread and not self.options.attended:
            problem = problem or UNREAD.format(first_of(self.setup.unread))
        if problem:
            raise Problem(problem)
        fresh = [said for said in self.warnings() if said not in self.warned]
        self.warned.update(fresh)
        for warning in fresh:
            self.books.journal.note("warn", warning, "warn")
        return fresh

    def warnings(self) -> Iterator[str]:
        options, setup = self.options, self.setup
        models, agent, _body = self.read()
        model = without_variant(self.first)
        if model in setup.free and not (models[0] or setup.model_of(agent)):
            yield (
                f"nobody named a model, and OpenCode chose {model} by itself: your code goes to "
                f'provider "{model.partition("/")[0]}"; name another one with -m, or log in with '
                "`opencode auth login`"
            )
        if setup.asks and not options.auto:
            means = "means refused"
            if options.asks_wait:
                means = f"waits {duration(options.ask_timeout)} (`attach`), then is refused"
            yield (
                f"OpenCode asks a person before {', '.join(setup.asks)}: asked at night {means}: "
                "allow it in opencode.json, or use --auto"
            )
        if options.max_cost and model in setup.free:
            yield f"{model} has no price: --max-cost will not stop it, --max-time will"
        if setup.unread:
            yield UNREAD.format(first_of(setup.unread))

    def set_aside(self, why: str, announced: float = 0.0) -> float:
        """Set the one at work aside, as announced or longer each time, and make `current` the next
        in line; seconds until that one may work."""
        model = self.current
        self.times_aside[model] += 1
        seconds = announced or wait_after(self.times_aside[model], RATE_LIMIT_WAITS)
        self.back_at[model] = self.clock.now + seconds
        left = self.wait_for(self.choose())
        if not left:
            said = f"{model} rests for {duration(seconds)} ({why}): {self.current} is next"
            self.books.journal.note("retry", said, "warn")
        return left

    def note_success(self) -> None:
        """The one at work has worked."""
        self.failures.clear()
        self.back_at.pop(self.current, None)
        del self.times_aside[self.current]

    def after(self, result: Result) -> float | End:
        """Seconds to wait before the next iteration, or why the run rests. Raises Problem."""
        if result.worked or result.outcome == "aborted":
            return 0.0
        fault = result.fault
        problem = fault.message.rstrip(".")
        if result.waited_for:
            return self.after_wait(result, problem)
        advice = ADVICE.get(fault.kind, "").format(model=self.shown or "of the configuration")
        self.failures[self.current] += 1
        times, most = self.failures[self.current], self.options.retries or NEVER
        # Else two models that fail by turns would do so for ever.
        has_others = any(self.failures[other] <= most for other in self.others())
        if has_others and (advice or times > most):
            return self.set_aside(problem, LONGEST_WAIT)
        has_worked = self.books.last_worked is not None or result.spend.tokens > 0
        is_hopeless = fault.kind == "configuration" or (bool(advice) and not has_worked)
        if times <= most and not is_hopeless:
            return wait_after(times, FAILURE_WAITS)
        if not is_hopeless:
            times = sum(self.failures.values())
            problem = f"{times} iterations in a row failed, the last one: {problem}"
        raise Problem(f"{problem}: {advice}" if advice else problem)

    def after_wait(self, result: Result, problem: str) -> float | End:
        """The same, where its provider has not let it work."""
        books, announced = self.books, result.fault.retry_after
        if not result.spend.tokens:
            books.waited += result.seconds
        allowed = (self.options.max_wait or NEVER) - books.waited
        seconds = self.set_aside(problem, announced)  # `current` is the next one from here on
        # A model that was not limited since it worked may try at once. Others may not: two limited
        # ones would take turns, and --max-wait would never end that.
        if not seconds and not self.times_aside[self.current]:
            return 0.0
        # Where the provider has announced a time after --max-wait, it is not waited for at all.
        if allowed > 0 and (seconds <= allowed or not announced):
            return min(seconds, allowed)
        why = f"waited {duration(books.waited)}"
        why += f", and would for {duration(seconds)} more" if seconds else ""
        return End("paused", 3, f"{problem}: {why} (--max-wait)")


# ---- run -----------------------------------------------------------------------------------------
# The run, told from top to bottom as it happens. It is one coroutine, `async` without asyncio:
# `handle` takes one event and the time, resumes the coroutine, and returns the requests that are to
# be made. A test is a world that has the clock and answers the requests.
#
# Three rules make it safe:
# 1. It waits in `wait` and nowhere else. There events are heard (`hear`), deadlines are minded
#    (`mind`), and interrupts are raised. A wait without an end is for a person, a check, or the
#    next look at a session, and each of these ends.
# 2. Only Quit and Abort interrupt. That the server is gone is raised by a request alone (it is
#    "silent"), since only whoever asks knows how to go on without an answer; what else tells of it
#    marks it as down.
# 3. What must not be cut short is shielded: while a session is being stopped, X waits.

READ_EVERY = 3.0  # seconds between two looks at plan and prompt
FILES_WITHIN = 60.0  # plan and prompt may be away so long (an editor, git) when they are needed
FIRST_STARTS = 3  # a server that has never been up is started so often
BUSY_WITHIN = 120.0  # or for so long, while it answers with errors: its data base may be locked
MEASURE_EVERY = 10.0  # seconds between two looks at the server's memory
LEAK_TAKES = 600.0  # what grows quicker than that may be a language server, and no leak
MIND_EVERY = 0.25  # seconds between two looks at what has a time-out
REPEAT_AFTER = 1.0  # seconds until what has failed, or had no effect, is tried again
SILENCES = 2  # requests in a row without an answer, then the server is to blame
ANSWER_WITHIN = 300.0  # a request times out outside; if its thread hangs, nobody waits longer
LOCAL_WITHIN = 30.0  # the same, where only files and processes of this machine are looked at
ATTEMPTS = 4  # one prompt is handed over so often at the most
SENT_WITHIN = 60.0  # a prompt that is on its way has arrived by then, or is lost
BEGINS = 3.0  # a prompt that was accepted runs by then; before it does, an interrupt does nothing
LAST_STEP_WITHIN = 2.0  # at the end of the run a session has so long to tell what it has cost
INTERRUPT_WITHIN = 15.0  # an interrupted session is idle by then, or out of our control
# OpenCode 2 loads models and agents behind the first request: a name that is not listed may come.
LISTS_REST = 2.0  # where no name is looked for, a list is complete by then
MISSING_AFTER = 15.0  # a name that is not listed by then does not come

REFUSAL_ENDED_TURN = "Something that you asked for was refused, and that has ended your turn."
DATA_BASE = (
    ": another program may hold OpenCode's data base (~/.local/share/opencode/opencode.db): "
    "end that, then run again"
)


class Quit(Exception):
    """The run is to end: Q, a signal, nobody there to go on (so says `rest`). `str()` is why."""


class Abort(Exception):
    """This session is to end (X, a silence, a circle, twice a budget): see `Talk.ends_as`."""


@types.coroutine
def next_event() -> Generator[None, Any, Any]:
    """The only place where the run stands still: `handle` sends the next event in."""
    return (yield)


class Run:
    """The whole run. What it reckons with is in books and model line, neither of which waits."""

    def __init__(self, options: Options, wall: float, seed: str = "") -> None:
        self.options = options
        self.seed = seed  # makes the ids of two runs differ
        self.clock = RunClock(wall)
        self.journal = Journal(self.clock)
        self.files = Files(options, self.journal)
        self.server: Supervisor = Supervisor(self)
        # How it waits.
        self.requests: list[Request] = []  # to be made now
        self.quitting: Quit | None = None  # the first reason counts
        self.shielded: tuple[type[Exception], ...] = ()  # must not be raised now
        self.mind_at = 0.0  # what has a time-out is looked at then
        # Where it stands.
        self.stage = "starting"  # for people
        self.reason = ""  # of the stage
        self.stage_since = wall  # in seconds since 1970
        self.exit_status: int | None = None  # once the run has ended
        self.standstill: End | None = None  # at which it stands; None: it works, or only pauses
        # Iterations.
        self.number = 0  # of the newest one
        self.under_way: Talk | None = None  # its session, until the iteration is in the books
        self.talk: Talk | None = None  # the same, until it is over: the check runs without it
        self.check_since: float | None = None  # since when its check runs
        self.wait_until: float | None = None  # before the next one
        self.earlier: collections.deque[str] = collections.deque(maxlen=50)  # sessions, over
        # What it reckons with.
        self.books = Books(options, self.journal)
        self.model_line = ModelLine(options, self.files, self.books)
        # What a person wants.
        self.attended = options.attended  # somebody can look and press keys
        # It is to work: S, Space and R say so. Taken back, it pauses after this iteration.
        self.wanted = options.run or not options.attended
        self.keys = Keys(self)
        self.coroutine: Coroutine[Any, Any, int] = self.main()

    # How it waits, and makes requests.

    def handle(self, event: Any, wall: float) -> list[Request]:
        """One event has happened (None: only time has passed); returns the requests to be made.

        `wall` is in seconds since 1970. The first call begins the run, without an event.
        """
        was_away = not self.clock.move_to(wall)
        if was_away and self.talk:
            self.talk.look_within(0)  # the session may be over by now
        self.files.is_fresh = False
        if self.exit_status is None:
            try:
                self.coroutine.send(event)
            except StopIteration as end:
                self.exit_status = end.value
        requests, self.requests = self.requests, []
        return requests

    @property
    def now(self) -> float:
        return self.clock.now

    async def wait(
        self,
        seconds: float = NEVER,
        request: Request | None = None,
        sooner: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Live on for so long; less long where the request is answered, or `sooner` holds.

        Returns the answer's value, or raises its error; RequestError where there is no answer.
        """
        until = self.now + seconds
        while not (request and request.answer) and not sooner() and self.now < until:
            self.mind()
            if self.quitting and Quit not in self.shielded:
                raise self.quitting
            if self.talk and self.talk.ends_as and Abort not in self.shielded:
                raise Abort
            self.hear(await next_event())
        if request is None:
            return None
        answer = request.answer or Answer(request, error=RequestError(0, "no answer came"))
        if answer.error:
            raise answer.error
        return answer.result

    def request(self, method: str, *args: Any) -> Request:
        """Have a request made, on another thread."""
        self.requests.append(Request(method, args))
        return self.requests[-1]

    async def call(self, method: str, *args: Any, until: float = NEVER) -> Any:
        """Make a request of the server and wait for its answer, `until` then at the most. Raises
        RequestError; "silent" where the server is down, or did not answer twice."""
        error = RequestError(0, "no answer came")
        for _ in range(SILENCES):
            if self.server.is_down or self.now >= until:
                break
            request = self.request(method, *args)
            if self.talk and method == "send":  # `recall` waits until it has arrived
                self.talk.sending = request
            within = min(until - self.now, ANSWER_WITHIN)
            try:
                return await self.wait(within, request, lambda: self.server.is_down)
            except RequestError as failure:
                if failure.why != "silent":
                    raise
                error = failure
            # If its process has ended, `ServerDied` comes a moment later, with its last words.
            again_in = min(until - self.now, REPEAT_AFTER)
            await self.wait(again_in, sooner=lambda: self.server.is_down)
        problem = f"the server {'fails' if error.code else 'does not answer'}: {error}"
        if self.server.is_down:
            problem = self.server.problem or problem
        raise RequestError(error.code, problem, error.name)

    async def surely(self, method: str, *args: Any) -> Any:
        """Call, however often the server has to be got back: requests are safe to be repeated."""
        while True:
            try:
                return await self.call(method, *args)
            except RequestError as error:
                if error.why != "silent":
                    raise
                self.server.lose(str(error))
                await self.server.bring_up()

    def end(self, why: str) -> None:
        """The next wait ends the run."""
        self.quitting = self.quitting or Quit(why)

    @contextmanager
    def shield(self, *kinds: type[Exception]) -> Iterator[None]:
        """What interrupts waits until this is over."""
        before, self.shielded = self.shielded, (*self.shielded, *kinds)
        try:
            yield
        finally:
            self.shielded = before

    @contextmanager
    def showing(self, stage: str, reason: str = "", until: float | None = None) -> Iterator[None]:
        """What people see cannot lie: however it is left, the stage before is back."""
        before = (self.stage, self.reason, self.wait_until)
        self.show(stage, reason, until)
        try:
            yield
        finally:
            self.show(*before)

    def show(self, stage: str, reason: str = "", until: float | None = None) -> None:
        if stage != self.stage:
            self.stage_since = self.clock.wall
        self.stage, self.reason, self.wait_until = stage, reason, until

    # From its first to its last breath.

    async def main(self) -> int:
        """The whole run; returns the exit status."""
        try:
            while True:
                try:
                    end = await self.work()
                except Problem as problem:
                    end = End("error", 1, str(problem))
                await self.rest(end)
        except Quit as quit:
            self.clock.works = False
            end = self.standstill or tell_end(self, End("stopping", reason=str(quit)))
            self.show("stopping" if self.attended else end.stage, end.reason)
        return self.status

    async def get_ready(self) -> None:
        """Start the server, and say what its setup makes a person want to know. Raises Problem."""
        await self.server.bring_up()
        if self.model_line.look_through() and self.attended and not self.options.run:
            self.wanted = False  # S was pressed before these warnings could be read

    async def work(self) -> End:
        """Start the server, wait for S, then iterate until there is a reason to rest. Raises
        Problem."""
        await self.get_ready()
        while not self.wanted:
            with self.showing("ready"):
                await self.wait(sooner=lambda: self.wanted or self.server.is_down)
            await self.server.bring_up()
        self.clock.works = True
        with self.showing("running"):
            while True:  # whatever took time, the plan is read anew
                plan = await self.read_files()
                self.books.note_plan(plan)
                is_due = not self.number or plan.summary is not None
                if self.options.check and not self.books.check and is_due:
                    await self.run_check()  # if it fails, the next session is told
                    continue
                end = self.reason_to_rest(plan)
                if end is None and (self.server.is_down or self.server.replace):
                    await self.server.bring_up()
                    continue
                end = end or await self.follow(await self.iterate(plan))
                if end:
                    return end

    def reason_to_rest(self, plan: Plan) -> End | None:
        """Whether the plan is complete, a limit is reached, or a pause was wanted."""
        # An agent that was told to wrap up may have written no summary; with --debug a plan may be
        # empty, and that says nothing.
        last = self.books.last_worked
        has_wrapped_up = last and not last.task and not plan.pending and self.files.plan_text
        if (plan.summary is not None or has_wrapped_up) and not self.books.complaint:
            status, how = how_complete(plan, self.books.gone)
            if status == 0 and self.books.check == "interrupted":
                status, how = 3, "complete, but the last check was interrupted"
            return End("complete", status, how)
        limit = self.books.used_up(self.used)
        why = limit or self.books.stuck_on()
        if why:
            return End("paused", 3, why, is_limit=bool(limit))
        return None if self.wanted else End("paused")

    async def rest(self, end: End) -> None:
        """Stand still until a person goes on. Raises Quit where nobody is there to do so."""
        has_begun = self.wanted or self.clock.works
        self.clock.works = self.wanted = False
        with self.showing(end.stage, end.reason):
            if not end.is_pause:
                tell_end(self, end)
            elif end.reason:
                notify(self, "stopped", end.reason)
            if self.attended and end.stage != "paused":  # it may be days until a person goes on
                await self.server.stop()
            while True:
                if not self.attended:
                    raise Quit("paused, and the terminal is gone")
                await self.wait(sooner=lambda: self.wanted)
                if end.stage != "complete" or await self.has_new_tasks():
                    break
                self.wanted = False
        self.wanted = has_begun  # R after a start that failed: S is still to be pressed
        self.standstill = None
        self.books.plan = Plan()  # what changed in the plan meanwhile, a person has changed
        if end.is_limit:
            self.books.make_room(self.used)
        elif not end.is_pause:
            self.books.begin_anew()
            self.model_line.begin_anew()
            self.server.failures = 0

    async def has_new_tasks(self) -> bool:
        """Whether there is something to do in a plan that was complete; else it is said why not."""
        self.files.trouble = ""  # so that it is said anew, at each key
        await self.look_at_files()
        has_tag = self.plan.summary is not None
        has_tasks = self.plan.pending > 0 and not has_tag
        if not self.files.trouble and not has_tasks:
            tag = ", and take its <plan-complete> tag out" * has_tag
            self.journal.note("note", f"the plan is complete: add tasks{tag}, then go on", "warn")
        return has_tasks and not self.files.trouble

    # One iteration.

    async def iterate(self, plan: Plan) -> Result:
        """One session, the plan read after it, and the check."""
        self.model_line.look_through()  # the prompt may name another model by now
        self.number += 1
        self.journal.iteration = self.number
        talk = self.under_way = self.new_talk()
        if self.books.check != "failed":  # a failure stands until a check passes
            self.books.check = ""
        self.journal.note("task", title_of(plan.goal), "head")
        outcome = files_problem = None
        try:
            outcome = await self.lead(talk)
            try:
                plan = await self.read_files()  # as the session left it: a check may hide it
            except Problem as problem:  # the session counts, though the plan is away
                plan, files_problem = self.plan, problem
            has_worked = outcome.kind in ("done", "refused", "cut")
            is_due = self.options.check and (has_worked or plan.summary is not None)
            check = await self.run_check() if is_due else ""
            result = self.enter(talk, outcome, check, plan)
        except (Quit, Problem):
            self.books.note_plan(self.plan)  # the session may have deleted tasks
            self.books.spend(talk.result(self.now))
            if outcome is None:  # not seen idle: the session is stopped when the server is ended
                self.server.abandoned = talk.id
            raise
        finally:
            self.under_way = None
            self.keys.confirming_quit = False  # the question was about this iteration
            self.journal.iteration = 0
        if files_problem:
            raise files_problem
        return result

    def new_talk(self) -> Talk:
        """The next session, which is not made yet: its prompt, with the loop's own remarks."""
        books = self.books
        stuck = books.remark_on_stuck()
        near = remark_on_near_misses(self.plan)
        remarks = "\n\n".join(filter(None, (books.complaint, books.remark_on_cut(), stuck, near)))
        prompt = self.model_line.prompt(self.number, remarks, is_last_try=bool(stuck))
        if stuck:
            said = f"nothing was settled ×{len(books.unsettled)}"
            self.journal.note("warn", f"{said}: the last try, and the prompt says so", "warn")
        return Talk(with_ids(prompt, self.clock.wall, self.number, self.seed), self)

    async def lead(self, talk: Talk) -> Outcome:
        """One session, from its creation to its end."""
        self.talk = talk
        try:
            outcome = await self.have_answered(talk)
        except Abort:
            assert talk.ends_as
            outcome = talk.ends_as
            await self.recall(talk)
        except RequestError as error:
            outcome = outcome_of(fault_of_error(error))
            await self.recall(talk)
        except Quit:  # stop the session, and see what its last step has cost; soon
            if talk.id:
                with self.shield(Quit, Abort), suppress(RequestError):
                    await self.interrupt_until_idle(talk, LAST_STEP_WITHIN)
            raise
        finally:
            self.talk = None
            self.earlier.append(talk.id)  # when it wakes up from now on, it is stopped
            talk.transcript.close()
        if outcome.fault.message:
            talk.transcript.error(outcome.fault.message, talk.id)
        return outcome

    async def have_answered(self, talk: Talk) -> Outcome:
        """Make a session, hand the prompt over, again where it was swallowed, and look until it is
        answered."""
        talk.id = await self.surely("create", talk.prompt)
        talk.family[talk.id] = 0
        pushes_left = GOES_ON
        while talk.prompt.attempt < ATTEMPTS:
            if talk.prompt.attempt:
                talk.note("warn", "the prompt is not being answered: sending it again", "warn")
            talk.forget()
            await self.surely("send", talk.id, talk.prompt)
            talk.last_sign = self.now
            talk.look_within(FIRST_LOOK)
            outcome = await self.watch(talk)
            if outcome.kind == "swallowed":
                talk.prompt = talk.prompt._replace(attempt=talk.prompt.attempt + 1)
            elif outcome.kind == "refused" and talk.asks.last_refusal and pushes_left:
                # When one of two asks is refused, the server rejects the other one by itself,
                # without our words, and that ends the turn.
                pushes_left -= 1
                talk.note("note", "the refusal ended its turn: telling it to go on without", "warn")
                text = f"{REFUSAL_ENDED_TURN} {talk.asks.last_refusal}"
                prompt = talk.prompt._replace(text=text, attempt=0)
                talk.prompt = with_ids(prompt, self.clock.wall, self.number, self.seed)
            else:
                return outcome
        self.server.abandon(talk.id)  # the prompt may begin late
        why = f"the prompt was sent {ATTEMPTS} times and never answered"
        return outcome_of(Fault("unknown", why))

    async def watch(self, talk: Talk) -> Outcome:
        """Look until an end is believed: polling decides, an event only makes us look sooner."""
        while True:
            await self.wait(sooner=lambda: self.now >= talk.look_at)
            await self.server.measure(talk)
            looked = self.now
            talk.look_at = looked + min(POLL_EVERY, (self.options.stall_timeout or NEVER) / 3)
            is_silent = looked - talk.last_sign > LOOK_CLOSER
            polled = await self.surely("poll", talk.id, talk.prompt, is_silent)
            talk.take_in(polled, looked)
            outcome = talk.weigh(polled, looked)
            if outcome and polled.activity != "idle":
                await self.recall(talk)  # it answered long ago, but the server says "busy" for ever
            if outcome:
                return outcome

    async def recall(self, talk: Talk) -> None:
        """Stop what may be at work, so that nothing of it runs on beside the next session."""
        sending = talk.sending
        if sending is None:
            return  # the session was never given its prompt, and does nothing
        is_stopped = False
        with self.shield(Abort):
            try:
                # An interrupt does nothing to a prompt that is on its way, or has not begun.
                with suppress(RequestError):
                    await self.wait(SENT_WITHIN, sending, lambda: self.server.is_down)
                await self.wait(BEGINS, sooner=lambda: talk.begun_at > 0 or self.server.is_down)
                is_idle = await self.interrupt_until_idle(talk, INTERRUPT_WITHIN)
                is_stopped = is_idle and sending.answer is not None
            except RequestError as error:
                # Ours is down with all that ran there; somebody else's may only be out of reach.
                is_ended = self.server.is_down and not self.options.server
                is_stopped = is_ended or error.why == "gone"
        if not is_stopped:
            self.server.abandon(talk.id)

    async def interrupt_until_idle(self, talk: Talk, within: float) -> bool:
        """Interrupt a session until it is idle, for so long; whether it is. Raises RequestError."""
        until = self.now + within
        again_at = self.now
        while self.now < until:
            if self.now >= again_at:
                await self.call("interrupt", talk.id, talk.prompt, until=until)
                again_at = self.now + REPEAT_AFTER  # an interrupt before a prompt begins is lost
            looked = self.now
            polled = await self.call("poll", talk.id, talk.prompt, False, until=until)
            talk.take_in(polled, looked)  # with the cost of the last step
            if polled.activity == "idle" and not polled.is_unsure:
                return True
            await self.wait(min(until - self.now, LOOK_AGAIN))
        return False

    async def stop_abandoned(self) -> None:
        """On a server that is not ours it may still be at work."""
        self.journal.note("warn", "an earlier session was left here: stopping it", "warn")
        talk = Talk(Prompt(""), self)
        talk.id = self.server.abandoned
        try:
            if not await self.interrupt_until_idle(talk, INTERRUPT_WITHIN):
                self.journal.note("warn", "it does not stop, and may work beside this run", "warn")
        except RequestError as error:
            if error.why == "silent":
                self.server.lose(str(error))  # the next start comes here again
                return
        self.server.abandoned = ""

    async def run_check(self) -> str:
        """Have --check run: passed, failed or interrupted. Raises Problem where there is no such
        command from the beginning. It ends by itself, at --check-timeout, or by X."""

        checked = CheckResult(0, "", interrupted=True)  # unless an answer comes
        checking = self.request("run_check", facts_of(self))
        self.check_since = self.now

        def is_over() -> bool:  # a check costs no money: only twice --max-time ends it
            return bool(checking.answer or self.books.overrun({**self.used, "max_cost": 0.0}))

        try:
            await self.wait(sooner=is_over)
            if not checking.answer:
                self.request("stop_check")
            checked = await self.wait(request=checking)
        except RequestError as error:
            self.journal.note("warn", f"the check was not run: {error}", "warn")
        except Quit:
            pass  # the next wait raises Quit again, when the iteration is in the books
        self.check_since = None
        # How a shell says that there is no such command, or that it is no program.
        is_missing = checked.status in (126, 127) and not checked.interrupted
        if is_missing and not self.number:
            command = self.options.check
            raise Problem(f"the check `{command}` cannot be run: it {checked}: mend --check")
        return self.books.note_check(checked)

    def enter(self, talk: Talk, outcome: Outcome, check: str, plan: Plan) -> Result:
        """Write an iteration into the books; what nobody may overlook is said."""
        has_progress = self.books.note_plan(plan)
        near_misses = new_near_misses(talk.plan, plan)
        for said in name_near_misses(os.path.basename(self.options.plan), near_misses):
            self.journal.note("warn", said, "warn")
        word, fault = outcome
        if word in ("done", "refused") and has_progress:
            word = what_was_settled(talk.task, talk.plan, plan)
        elif word == "done":
            word = "nothing settled"
        result = talk.result(self.now)._replace(
            outcome=word,
            fault=fault._replace(message=fault.message[: Journal.LONGEST_TEXT]),
            check=check,
            progress=has_progress,
        )
        note_result(self.journal, result, plan, talk.id)
        self.books.add(result)
        if result.worked:
            self.server.failures = 0
            self.model_line.note_success()
        return result

    async def follow(self, result: Result) -> End | None:
        """Do what an iteration means for the run. Raises Problem."""
        if result.outcome == "cut" and result.fault.kind == "aborted" and self.attended:
            # Somebody is there, and at work in OpenCode's own interface: nobody else interrupts.
            return End("paused", reason="its answer was broken off: Space goes on")
        if self.plan.summary is not None and not self.books.complaint:
            return None  # nothing needs to be tried again: a person may have done it all
        seconds = self.model_line.after(result)
        if isinstance(seconds, End):
            return seconds

        def is_over() -> bool:  # R has cleared `wait_until`, or there is a reason to rest
            return self.wait_until is None or self.reason_to_rest(self.plan) is not None

        began = self.now
        if seconds and not self.reason_to_rest(self.plan):
            self.journal.note("retry", f"trying again in {duration(seconds)}", "warn")
            with self.showing("waiting", result.fault.message, began + seconds):
                await self.wait(seconds, sooner=is_over)
        if result.waited_for:
            self.books.waited += self.now - began
        return None

    # What it needs: plan and prompt, and the server.

    async def read_files(self) -> Plan:
        """Read plan and prompt; where they are away, wait for them. Raises Problem."""
        until = self.now + FILES_WITHIN
        while True:
            if not self.files.is_fresh:
                await self.look_at_files()
            if not self.files.trouble or self.plan.summary is not None:
                return self.plan  # an agent may move a plan away that is complete
            if self.now >= until:
                raise Problem(self.files.trouble)
            await self.wait(REPEAT_AFTER)

    def read_again(self) -> Request:
        self.files.read_at = self.now + READ_EVERY
        self.files.reading = self.request("read_files")
        return self.files.reading

    async def look_at_files(self) -> None:
        """Read plan and prompt once; a look that is on its way may be too old."""
        reading = self.read_again()
        try:
            await self.wait(LOCAL_WITHIN, reading)
        except RequestError as error:  # the reading failed, which was heard, or it hangs
            self.hear_answer(Answer(reading, error=error))

    # What happens, wherever it stands.

    def hear(self, event: Any) -> None:
        """Route what has happened to where it belongs."""
        if isinstance(event, Answer):
            self.hear_answer(event)
        elif isinstance(event, FROM_SESSION):
            self.hear_session(event)
        elif isinstance(event, Edited) and event.path == self.options.plan:
            self.files.read_at = self.mind_at = self.now
        elif isinstance(event, Key):
            self.keys.press(event)
        elif isinstance(event, StreamOpened) and self.talk:
            self.talk.look_within(0)
        elif isinstance(event, ServerDied) and event.launch == self.server.launch:
            if not self.server.is_down:  # else its start fails, and says so
                self.server.lose(event.problem)
        elif isinstance(event, Signalled):
            self.end(f"stopped by {event.name}")
        elif isinstance(event, ScreenLost):
            self.lose_screen(event.reason)
        elif isinstance(event, Noted):
            self.journal.note(event.kind, event.text, event.tone)

    def hear_answer(self, answer: Answer) -> None:
        """Write it into its request; say what failed of those that nobody waits for."""
        request = answer.request
        if request.answer:
            return  # late: the request was given up
        request.answer = answer
        if request is self.files.reading:
            problem = f"{self.options.plan} cannot be read: {answer.error}"
            self.files.take(answer.result or FilesRead(None, None, problem))
        elif request.name == "reply" and self.talk:
            self.talk.asks.delivered(answer)
        elif answer.error and request.name in ("notify", "stop_check", "stop_server", "hand_over"):
            self.journal.note("warn", str(answer.error), "warn")

    def hear_session(self, event: SessionEvent) -> None:
        """Only our own session and its subagents count."""
        woke = isinstance(event, Activity) and event.kind == "woke"
        if woke and event.session in self.earlier and not self.server.is_down:
            self.journal.note("warn", "an earlier session woke up by itself: stopping it", "warn")
            # Its answer must not be taken for that of the session under way.
            self.request("interrupt", event.session, Prompt(""))
        elif self.talk:
            self.talk.hear(event)

    def lose_screen(self, reason: str) -> None:
        """Go on without it; end where only a person could go on."""
        if not self.attended:
            return  # the news comes twice: a signal, and an error of the screen
        self.attended = False
        self.journal.note("note", f"{reason}: going on without a screen", "warn")
        if not self.wanted and not self.clock.works:
            self.end("the terminal is gone, and nobody is there to go on")

    def mind(self) -> None:
        """See to deadlines, and to plan and prompt, a few times a second."""
        if self.now < self.mind_at:
            return
        self.mind_at = self.now + MIND_EVERY
        files = self.files
        if not files.reading and self.now >= files.read_at and not self.standstill:
            self.read_again()
        if self.talk:
            self.talk.mind()

    # What people and programs are told.

    @property
    def status(self) -> int:
        """The exit status, if it ended now: while it works only a person does that."""
        return self.standstill.status if self.standstill else 130

    @property
    def shown_state(self) -> str:
        """The stage in a person's words: one of STATES."""
        if self.talk and self.talk.asks.first and not self.keys.confirming_quit:
            return "waits for you"
        if self.clock.works and not self.wanted:
            return "pausing"
        if self.stage == "running" and self.talk and self.talk.retry:
            return "retrying"
        return "stopped" if self.stage == "complete" and self.status else self.stage

    @property
    def plan(self) -> Plan:
        return self.files.plan

    @property
    def total(self) -> Spend:
        """What was spent so far, the iteration under way included."""
        under_way = self.under_way
        return self.books.spent.plus(under_way.spent) if under_way else self.books.spent

    @property
    def used(self) -> dict[str, float]:
        """What is held against the limits."""
        return {
            "max_iterations": self.books.counted,
            "max_cost": self.total.cost,
            "max_time": self.clock.elapsed,
        }

    @property
    def model(self) -> str:
        """The model at work, or the one that will be."""
        return (self.under_way and self.under_way.model) or self.model_line.shown


# ---- keys ----------------------------------------------------------------------------------------
# What a person can press, when, and what it does.

KEYS = (  # and what the help says of them
    ("S", "start"),
    ("Space", "pause after this iteration, or go on"),
    ("R", "retry after an error; go on at a limit"),
    ("X", "abort this iteration, or its check"),
    ("T", "this session in OpenCode's own interface, and back"),
    ("P", "the plan: what was done, what it cost; P or Esc goes back"),
    ("?", "this help"),
    ("Q", "quit, like ctrl-c (asks once while an iteration runs)"),
    ("Y A N", "permission: once, always (it says for what), no"),
    ("1-9 N", "question: an answer, or none"),
    ("arrows", "scroll; so do PgUp, PgDn, Home and End"),
)


class Keys:
    """The keyboard, and what is in front of whoever uses it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.confirming_quit = False
        self.overlay = ""  # what a person looks at instead of the activity: help or plan

    def press(self, key: Key) -> None:
        """Give the key to what is in front of the person: a question, else KEYS."""
        if key.about is not None and (key.about == QUIT_SHOWN) != self.confirming_quit:
            return  # "Q again" was not on the screen yet, or is out of date
        if self.confirming_quit:
            self.confirming_quit = False
            if key.name == "q":
                self.run.end(A_PERSON_QUIT)
        elif self.run.talk and self.run.talk.asks.takes_key(key):
            pass  # it was an answer
        elif key.name == "escape" or (self.overlay == "help" and key.name != "q"):
            self.overlay = ""
        elif key.name.capitalize() in self.uses():  # "s" -> "S", "space" -> "Space"
            self.use(key.name)

    def use(self, key: str) -> None:
        """Do what a key of KEYS is for."""
        run = self.run
        if key in ("s", "space"):
            run.wanted = not run.wanted
            if run.stage == "starting" and not run.clock.works:
                how = "begins" if run.wanted else "waits for S"
                run.reason = f"{how} when the server is ready"
        elif key == "r":
            run.wanted = True
            run.wait_until = None
        elif key == "x" and run.talk:
            run.talk.give_up("aborted", "aborted by a person")
        elif key == "x":
            run.request("stop_check")
        elif key == "t":
            run.request("hand_over")
        elif key == "p":
            self.overlay = "" if self.overlay == "plan" else "plan"
        elif key == "?":
            self.overlay = "help"
        elif run.under_way:  # Q would lose the iteration: ask once
            self.confirming_quit = True
        else:
            run.end(A_PERSON_QUIT)

    def uses(self) -> dict[str, str]:
        """The keys that do something now, and the footer's word for it ("": not told there)."""
        run = self.run
        uses: dict[str, str] = {}
        if run.stage == "stopping":
            return uses
        if self.confirming_quit:
            return {"Q": "again quits", "any other key": "goes on"}
        if self.overlay == "help":
            return {"any key": "back", "Q": "quit"}
        if run.stage == "complete":
            uses.update(S="go on", Space="", R="")
        elif run.stage == "paused" and not run.standstill:
            uses.update(Space="go on", R="")
        elif run.stage in ("paused", "error"):  # R alone goes beyond a limit
            is_limit = run.standstill and run.standstill.is_limit
            uses["R"] = "raise the limit" if is_limit else "retry"
        elif run.wanted or run.clock.works:
            uses["Space"] = "pause" if run.wanted else "go on"
        else:
            uses.update(S="start", Space="")
        if run.stage == "waiting":
            uses["R"] = "retry"
        if run.talk or run.check_since is not None:
            uses["X"] = "abort"
        if run.talk and run.talk.id and not run.server.is_down:
            uses["T"] = "session"
        uses["P"] = "activity" if self.overlay == "plan" else "plan"
        return {**uses, "?": "help", "Q": "quit"}


# ---- what the run needs: server and files --------------------------------------------------------
# The server as the run knows it, and plan and prompt.


class Supervisor:
    """The server, as the run knows it: it is started, and again where it died, hangs or grew. It is
    down until it has been started."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.options = run.options
        self.is_down: bool = True
        self.problem = ""  # why it was lost; "" where it is down on purpose, and nothing failed
        self.launch = 0  # counts the starts; what is said of an older one is old news
        self.failures = 0  # in a row: until an iteration works, or a person goes on
        self.has_worked = False  # one of its starts was good for something
        self.is_busy = False  # the last start: it answered, with errors only
        self.up_since = 0.0
        self.url, self.version, self.generation = "", "", 0
        self.measure_at = 0.0
        self.most_memory = float(run.options.server_memory or NEVER)  # MiB
        self.replace = False  # before the next iteration: it grew, or has an abandoned session
        self.abandoned = ""  # id of the session that may still be at work; "": none

    def note(self, text: str, tone: str) -> None:
        self.run.journal.note("server", text, tone)

    def lose(self, problem: str) -> None:
        """Mark it as down, and count the failure; once for each start."""
        if self.is_down and self.problem:
            return  # a request, its process and a start that fails may all tell of it
        if not self.is_down and self.run.now - self.up_since > LONGEST_WAIT:
            self.failures = 0  # it worked for long: no failures in a row
        self.failures += 1
        self.is_down = True
        self.problem = problem
        self.note(problem, "bad")
        if self.run.talk:
            self.run.talk.lose_server()

    def let_go(self) -> None:
        """Mark it as down on purpose: that is no failure, and what it still says is old news."""
        self.is_down = True
        self.problem = ""
        self.launch += 1
        self.replace = False

    def abandon(self, session: str) -> None:
        """It may be at work still, and must not run beside the next one: that gets a new server."""
        self.abandoned = session
        self.replace = True

    async def stop(self) -> None:
        """Interrupt the session that was left, and end the server, where it is ours."""
        self.let_go()
        request = self.run.request("stop_server", self.abandoned)
        if not self.options.server:  # the session ends with our server; else `bring_up` stops it
            self.abandoned = ""
        with suppress(RequestError, Problem):  # it was noted
            await self.run.wait(ANSWER_WITHIN, request)

    async def bring_up(self) -> None:
        """Start it where it is down, or is to be replaced, until it has told its setup. Raises
        Problem where it is no use to start it again."""
        if self.replace:
            await self.stop()
        with self.run.showing("starting", self.problem):
            await self.start_until_up()
        if self.run.talk:
            self.run.talk.find_server()
        elif self.abandoned:
            await self.run.stop_abandoned()

    async def start_until_up(self) -> None:
        began = self.run.now
        while self.is_down:
            if self.problem:
                if self.failures >= self.most_failures(self.run.now - began):
                    last = self.problem.rstrip(".") + DATA_BASE * self.is_busy
                    times = f"{self.failures} times in a row, the last time"
                    raise Problem(f"the server failed {times}: {last}")
                longest = NEVER if self.has_worked else LONGEST_START_WAIT
                await self.run.wait(min(wait_after(self.failures, SERVER_WAITS), longest))
            try:
                await self.start()
            except Problem as problem:
                if not problem.again and not self.has_worked:
                    raise
                self.lose(str(problem))

    def most_failures(self, tried: float) -> float:
        """After how many in a row it is given up; `tried`: for so long it is being started."""
        if self.has_worked:  # `--retries 0` means for ever, but not here
            return (self.options.retries or Options().retries) + 1
        return NEVER if self.is_busy and tried < BUSY_WITHIN else FIRST_STARTS

    async def start(self) -> None:
        """Start it, and read its setup. Raises Problem; `again` where the next try may work."""
        self.let_go()
        self.is_busy = False
        server = self.options.server
        self.note(f"waiting for {server}" if server else "starting OpenCode", "dim")
        request = self.run.request("start_server", self.launch)
        try:
            started = await self.run.wait(ANSWER_WITHIN, request)
            self.url, self.version, self.generation = started
            self.is_down = False
            self.up_since = self.run.now
            self.note(f"OpenCode {self.version} on {self.url}", "dim")
            await self.read_setup()
        except RequestError as error:
            problem = fault_of_error(error).message
            hangs = error.name == "Timeout" and not self.is_down
            if hangs:
                why = "a plugin or MCP server may hang while it is loaded: try `OPENCODE_PURE=1`"
                problem = f"OpenCode does not answer for this directory ({problem}): {why}"
            self.is_busy = error.code >= 500 and not self.is_down
            raise Problem(problem, again=error.why == "silent" and not hangs) from None
        self.has_worked = True
        memory, most = await self.memory(), self.most_memory
        if memory > most:
            self.most_memory = 2.0 * memory  # else it would be replaced for ever
            instead = f"it is replaced at {2 * memory}, and not at {most:.0f} (--server-memory)"
            self.note(f"takes {memory} MiB before any work: {instead}", "warn")

    async def read_setup(self) -> None:
        """Models, agents and configuration, once they are complete, as far as that shows."""
        began = self.run.now
        models, agent, _body = self.run.model_line.read()
        while True:
            setup: Setup = await self.run.call("setup")
            problem = problem_of_names(setup, models, agent)
            patience = 0.0
            if not setup.models or problem:
                patience = MISSING_AFTER
            elif not (models[0] or setup.model_of(agent)):
                patience = LISTS_REST
            # OpenCode 2 alone fills its lists after the first request for them.
            if self.generation < 2 or self.run.now - began >= patience:
                break
            await self.run.wait(LOOK_AGAIN)
        if not (self.has_worked and problem):  # else a local provider may be away: keep the old
            self.run.model_line.setup = setup

    async def memory(self) -> int:
        """In MiB; 0 where it cannot be told."""
        memory = 0
        with suppress(RequestError):
            request = self.run.request("measure_server")
            memory = await self.run.wait(LOCAL_WITHIN, request) or 0
        self.measure_at = self.run.now + MEASURE_EVERY
        return memory

    async def measure(self, talk: Talk) -> None:
        """If it is due, see how large it is: above the limit it is replaced before the next
        iteration, above twice the limit at once."""
        if self.is_down or self.run.now < self.measure_at:
            return
        memory, most = await self.memory(), self.most_memory
        is_bursting = memory > 2 * most
        if is_bursting or (memory > most and not self.replace):
            self.replace = True
            said = f"grew to {memory} MiB (limit {most:.0f}): replacing it"
            self.note(said + " in the midst" * is_bursting, "warn")
        is_first = most == self.options.server_memory  # once is enough: it may be a leak after all
        if is_bursting and is_first and self.run.now - self.up_since < LEAK_TAKES:
            self.most_memory = float(memory)  # or the next server would be ended as soon
            self.note(f"the work needs that much: the limit is {memory} MiB from now on", "warn")
        if is_bursting:
            with self.run.shield(Abort), suppress(RequestError):
                await self.run.interrupt_until_idle(talk, INTERRUPT_WITHIN)
            talk.lose_server()
            await self.bring_up()


class Files:
    """Plan and prompt, as they were when they could be read last: an agent may stash them while it
    works, and only who needs them waits for them."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self.options = options
        self.journal = journal
        self.plan = Plan()
        self.plan_text = ""
        self.prompt_text = ""
        self.reading: Request | None = None  # the newest look, while it is on its way
        self.read_at = 0.0  # when plan and prompt are read again
        self.is_fresh = False  # nothing at all has happened since they were read
        self.trouble = ""  # why they cannot be read now

    def take(self, read: FilesRead) -> None:
        """Keep what was read, as far as it is good; else `trouble` is what is wrong with it."""
        self.reading = None
        self.is_fresh = True
        plan, text = self.plan, read.plan
        if text is not None and text != self.plan_text:
            plan = parse_plan(text)
        plan_problem = problem_of_plan(plan, self.options.plan)
        is_good = text is not None and not plan_problem  # though the prompt may be away
        problem = read.problem or plan_problem
        if self.options.debug and read.prompt is not None:
            problem = ""  # --debug takes any plan
        if not problem and not split_front_matter(read.prompt or "")[1]:
            problem = NO_PROMPT.format(self.options.prompt)
        if problem and not self.trouble:
            self.journal.note("warn", problem, "warn")
        elif self.trouble and self.plan_text and not problem:
            self.journal.note("plan", "plan and prompt can be read again", "dim")
        self.trouble = problem
        if is_good or not problem:
            self.plan = plan
            if text is not None:
                self.plan_text = text
        if not problem:
            self.prompt_text = read.prompt or ""


# ---- reports -------------------------------------------------------------------------------------
# Words and records of a run for people, logs and other programs, computed from its state.


def tell_end(run: Run, end: End) -> End:
    """Tell everybody why it ends, or rests."""
    run.standstill = end
    events = {0: ("complete", "good"), 1: ("failed", "bad")}
    event, tone = events.get(end.status, ("stopped", "warn"))
    run.journal.note("end", end.reason, tone, record=end_record(run, event, end))
    for line in summary_of(run):
        run.journal.note("end", line)
    if end.reason != A_PERSON_QUIT:  # whoever did it is in front of the screen
        notify(run, event, end.reason)
    return end


def notify(run: Run, event: str, said: str) -> None:
    """Have --notify run: it needs a person."""
    if run.options.notify:
        message = message_of(run, event, said)
        facts = {**facts_of(run), "OCLOOP_EVENT": event, "OCLOOP_MESSAGE": message}
        run.request("notify", facts)


def what_was_settled(task: Task | None, before: Plan, after: Plan) -> str:
    """The word for an iteration that got on: how it left the task that it began with (None: to wrap
    up), or progress, where that is open still and another is not."""
    if task is None:
        return "done"
    was = [one.state for one in before.tasks if one.key == task.key]
    now = [one.state for one in after.tasks if one.key == task.key]
    for state in ("done", "blocked", "manual"):
        if now.count(state) > was.count(state):
            return state
    if after.done > before.done:  # an agent may word it anew as it marks it
        return "progress" if "pending" in now else "done"
    return "blocked" if after.blocked > before.blocked else "progress"


def counts_of(plan: Plan) -> dict[str, object]:
    """For JSON: done of total, which is what an agent was to do; manual stands beside it."""
    names = ("done", "total", "pending", "blocked", "manual")
    return {name: getattr(plan, name) for name in names}


def progress_of(plan: Plan) -> list[str]:
    """For people: done/total, and what stands beside it where there is any."""
    beside = ((plan.blocked, "blocked"), (plan.manual, "manual"))
    return [f"{plan.done}/{plan.total}", *(f"{count} {word}" for count, word in beside if count)]


def note_result(journal: Journal, result: Result, plan: Plan, session: str) -> None:
    facts = (
        f"#{result.number} {result.word} in {duration(result.seconds)}",
        said_refused(result.refused),
        *progress_of(plan),
        f"{short_number(result.spend.tokens)} tokens",
        dollars_of(result.spend.cost),
        title_of(result.goal),
    )
    record = {"record": "iteration", **result.record(), **counts_of(plan)}
    journal.note("iter", " · ".join(filter(None, facts)), "head", session, record=record)


def end_record(run: Run, event: str, end: End) -> Json:
    return {
        "record": "run",
        "event": event,
        "status": end.status,
        "reason": end.reason,
        **counts_of(run.plan),
        **left_behind(run),
        "iterations": run.number,
        "seconds": round(run.clock.elapsed, 1),
    }


def left_behind(run: Run) -> Json:
    """What a run leaves, for JSON and for `next_steps`."""
    books = run.books
    command = run.options.check
    lost = missing_tasks(books.plan, run.plan) if run.under_way else []  # not in the books yet
    return {
        "summary": run.plan.summary,
        "gone": books.gone + lost,
        "refused": dict(books.refused.most_common()),
        "check": {
            "command": command,
            "verdict": (books.check or "not run") if command else "",
            "told": books.complaint,
        },
        **run.total.record(),
    }


def summary_of(run: Run) -> list[str]:
    """What a person wants to know in the morning."""
    plan = run.plan
    record = {"iteration": run.number, "elapsed": run.clock.elapsed, **left_behind(run)}
    steps = next_steps(plan, {"status": run.status, **record})
    lines = [
        f"the agent says: {plan.summary}" if plan.summary else "",
        f"{plan}; {said_spent(record)}",
        said_gone(run.books.gone),
        *(f"blocked: {task}" for task in tasks_in(plan, "blocked")[:20]),
        *(f"manual: {task}" for task in tasks_in(plan, "manual")[:20]),
        *(f"to do: {step}" for step in steps),
    ]
    return list(filter(None, lines))


def said_spent(record: Json) -> str:
    number = as_int(record, "iteration")
    tokens = short_number(sum(map(as_int, as_dict(record, "tokens").values())))
    took, cost = duration(as_float(record, "elapsed")), dollars_of(as_float(record, "cost"))
    return f"{number} iteration{'s' * (number != 1)} in {took}; {tokens} tokens, {cost}"


def tasks_in(plan: Plan, state: str) -> list[str]:
    """The tasks that are blocked, or manual, with the reason in brackets."""
    tasks = [task for task in plan.tasks if task.state == state]
    return [task.text + (f" ({task.reason})" if task.reason else "") for task in tasks]


def next_steps(plan: Plan, record: Json, is_running: bool = False) -> list[str]:
    """What a person can do now, in the order in which it helps; `record` is the state file's."""
    if is_running:
        asked = as_texts(record, "waits_for")
        return [f"answer what it asks ({first_of(asked)}): `attach` joins it"] if asked else []
    tag = "take out the `<plan-complete>` tag, " if plan.summary is not None else ""
    has_work_left = record.get("status") != 0  # else what was refused was done without
    check = as_dict(record, "check")
    verbs = {"failed": "mend", "interrupted": "run"}
    if not plan.pending:  # else the next run begins with the check
        verbs["not run"] = "run"
    verb = verbs.get(as_text(check, "verdict"))
    gone = as_texts(record, "gone")
    start = "run again to go on" if record else "start it with `run`"
    if record.get("status") == 1:
        start = "mend what stopped it, run again"
    is_cut_short = record and has_work_left and plan.summary is None and not plan.blocked
    session, server = as_text(record, "session"), as_text(record, "server")
    steps = (
        ABANDONED.format(session, server) if session and server else "",
        how_to_allow(as_dict(record, "refused")) if has_work_left else "",
        f"{verb} the check: `{ellipsis(as_text(check, 'command'), 60)}`" if verb else "",
        f"write back what is gone from the plan, or let it be: {first_of(gone)}" if gone else "",
        f"{tag}{start}" if plan.pending or is_cut_short else "",
        "write tasks into it, such as `- [ ] Build it`" if not plan.tasks and not tag else "",
        f"unblock: change its box back to `[ ]`, {tag}run again" if plan.blocked else "",
        f"do by hand: {tasks_of(plan.manual, 'manual')}" if plan.manual else "",
    )
    return list(filter(None, steps))


def message_of(run: Run, event: str, reason: str) -> str:
    """One line for a telephone: project, count, cost, what is blocked."""
    why = f": {reason.removeprefix(event).strip()[:300]}"
    facts = (
        event + ("" if reason == PLAN_COMPLETE else why),
        *progress_of(run.plan),
        said_gone(run.books.gone),
        "" if "refused: " in reason else said_refused(run.books.refused),
        dollars_of(run.total.cost),
        duration(run.clock.elapsed),
    )
    project = os.path.basename(run.options.directory)
    return one_line(f"ocloop {project}: {', '.join(filter(None, facts))}")


def facts_of(run: Run) -> dict[str, str]:
    """What --check and --notify get in their environment."""
    before = run.under_way.plan if run.under_way else run.plan
    finished = collections.Counter(task.text for task in run.plan.tasks if task.state == "done")
    finished -= collections.Counter(task.text for task in before.tasks if task.state == "done")
    facts = {
        "project": one_line(os.path.basename(run.options.directory)),
        "plan": run.options.plan,
        # A check that commits needs a text at the end, too, and before the first task.
        "task": one_line(before.goal) if run.number else "before the first task",
        "finished": one_line(", ".join(finished.elements())),  # in this iteration
        "iteration": run.number,
        **counts_of(run.plan),
        "cost": f"{run.total.cost:.4f}",
        "seconds": int(run.clock.elapsed),
    }
    return {f"OCLOOP_{name.upper()}": str(fact) for name, fact in facts.items()}


def local_time(form: str, moment: Any) -> str:
    """A time, in seconds since 1970: "" where there is none, "?" where it is out of all bounds."""
    seconds = as_float(moment)
    with suppress(OSError, OverflowError, ValueError):
        return time.strftime(form, time.localtime(seconds)) if seconds else ""
    return "?"


iso_time = partial(local_time, "%Y-%m-%dT%H:%M:%S%z")
time_of_day = partial(local_time, "%H:%M")


# In the state file while a server is up, for `attach` and the next run; never shown.
SECRETS = ("username", "password", "opencode", "is_theirs")


def record_of(run: Run, outside: Outside, status: int | None, commit: str = "") -> Json:
    """What the state file says of a run; `status` once it has ended, `commit` where it began."""
    talk = run.talk
    asks = talk.asks.open.values() if talk else ()
    zero = run.clock.wall - run.now  # of the clock that deadlines stand on
    retry = ""
    if talk and talk.retry:
        retry = f"{talk.retry.message} (at {time_of_day(zero + talk.retry_at)})"
    is_up = status is None and not run.server.is_down
    state, ended = run.shown_state, None
    if status is not None:
        state = "ended"
        # When that was noted: it may have been looked at for hours before somebody pressed Q.
        noted = (entry.time for entry in run.journal.entries if entry.kind == "end")
        ended = max(noted, default=run.clock.wall)
    elif run.standstill:
        status = run.status
    record: Json = {  # as it was said: `status` makes it printable
        "plan": run.options.plan,
        "directory": run.options.directory,
        "pid": os.getpid(),
        "state": state,
        "reason": run.reason,
        "iteration": run.number,
        "task": run.under_way.task.text if run.under_way and run.under_way.task else "",
        "session": talk.id if talk else "",
        "model": run.model,
        "elapsed": round(run.clock.elapsed),
        "started": run.clock.began,
        "updated": run.clock.wall,
        "log": run.options.log,
        "commit": commit,
        **left_behind(run),
        "limits": {name: most for name, most in run.books.limits.items() if most},
        "server": run.server.url if is_up else "",
        "generation": run.server.generation,
        "opencode_version": run.server.version,
        "waits_for": [f"{ask.title} {ask.detail}".strip() for ask in asks],
        "retry": retry,
        "waiting_until": None if run.wait_until is None else zero + run.wait_until,
        "tasks": [{**item.task._asdict(), **item.effort.record()} for item in view_tasks(run)],
        "outcomes": list(run.books.outcomes),
        "counts": dict(run.books.counts),
        "status": status,
        "ended": ended,
    }
    if is_up:  # else it would be the next server's password beside the last server's address
        secrets = {"username": outside.username, "password": outside.password}
        record.update(secrets, opencode=list(run.options.opencode))
        record["is_theirs"] = bool(run.options.server)  # and lives on when this program ends
    return record


def attach_command(record: Json) -> tuple[list[str], dict[str, str]]:
    """What joins the recorded session in OpenCode's own interface: argv and environment."""
    opencode = as_texts(record, "opencode") or ["opencode"]
    names = ("server", "session", "directory", "username", "password")
    server, session, directory, user, password = (as_text(record.get(name)) for name in names)
    environment = {**os.environ, **login_environment(user, password)}
    for name in ("NO_PROXY", "no_proxy"):  # no proxy is asked for our own machine
        known = environment.get(name, "")
        environment[name] = f"{known},127.0.0.1,localhost".lstrip(",")
    if record.get("generation") == OpenCode2.generation:
        return [*opencode, directory, "--server", server, "--session", session], environment
    return [*opencode, "attach", server, "--session", session, "--dir", directory], environment


# ---- view ----------------------------------------------------------------------------------------
# `layout` makes rows of a picture of the run, which never exceed width and height. A number says
# what it counts, and nothing counts on at rest. What stands out has a sign as well as a colour.

Piece = tuple[int, str, str]  # rank (0 stays; of the others the highest goes first), style, text
Row = list[Piece]
GAP: Piece = (0, "gap", "")
BESIDE = "beside"  # where no key scrolls: the plan that stands beside the activity

# State -> sign, style.
STATES = {
    "starting": ("◌", "accent"),
    "ready": ("○", "accent"),
    "running": ("●", "good"),
    "retrying": ("⟳", "warn"),
    "pausing": ("◐", "warn"),
    "paused": ("‖", "warn"),
    "waiting": ("◷", "warn"),
    "stopping": ("◌", "warn"),
    "complete": ("✔", "good"),
    "stopped": ("◐", "warn"),  # by its agents, with work left
    "error": ("✖", "bad"),
    "waits for you": ("?", "warn"),
}
# A task's state -> sign, style.
TASK_SIGNS = {
    "current": ("▸", "accent bold"),
    "done": ("✔", "good"),
    "pending": ("○", ""),
    "begun": ("◐", "warn"),
    "blocked": ("✖", "bad"),
    "manual": ("☐", "warn"),
    "check failed": ("×", "bad"),
    "gone": ("-", "warn"),
}
# The footer's words -> the rank of their keys: how early each goes where there is no room.
RANKS = {"abort": 9, "session": 8, "plan": 7, "pause": 6, "activity": 3, "help": 2, "quit": 1}


def row_width(row: Row) -> int:
    return sum(text_width(text) for _rank, _style, text in row)


def fit(row: Row, width: int) -> Row:
    """The row in so many cells: pieces of the highest rank are dropped first, those of rank 0 are
    cut, and a gap takes what is left."""
    row = [(rank, style, printable(text)) for rank, style, text in row]
    for worst in sorted({rank for rank, _style, _text in row if rank}, reverse=True):
        if row_width(row) > width:
            row = [piece for piece in row if piece[0] < worst]
    spare = " " * (width - row_width(row))
    fitting: Row = []
    for rank, style, text in row:
        piece = (rank, "", spare) if style == "gap" else (rank, style, ellipsis(text, width))
        width -= text_width(piece[2])
        fitting.append(piece)
    return fitting


def indented(depth: int) -> str:
    return "  " * min(depth, 4)


def wrap(text: str, width: int) -> list[str]:
    """Printable lines of at most `width` cells, broken at spaces where there are any."""
    width = max(1, width)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        rest = printable(paragraph).replace("[ ]", "[\xa0]")  # a box is one word
        while True:
            head = clip(rest, width) or rest[:1]
            if head == rest:
                break
            space = rest.rfind(" ", 0, len(head) + 1)
            if space > width // 3:
                head = head[:space]
            lines.append(head)
            rest = rest[len(head) :].lstrip(" ")
        lines.append(rest)
    return [line.replace("\xa0", " ") for line in lines]


class TaskView(NamedTuple):
    """A task, with what this run spent on it."""

    task: Task
    is_current: bool = False
    effort: Effort = NO_EFFORT

    @property
    def is_new(self) -> bool:
        """Nobody has worked on it."""
        return not self.effort.iterations and self.task.state != "gone"

    @property
    def kind(self) -> str:
        """Which of TASK_SIGNS it has."""
        if self.is_current:
            return "current"
        if self.task.state == "done" and self.effort.check_failed:
            return "check failed"
        return "begun" if self.task.begun else self.task.state


class Picture:
    """All that a screen shows, as it stands now. Times are in whole seconds."""

    def __init__(self, run: Run) -> None:
        self.state = run.shown_state
        self.header = [state_row(run), reason_row(run), spend_row(run)]
        self.plan = run.plan
        self.check = "running" if run.check_since is not None else run.books.check
        self.tasks = view_tasks(run)
        self.live = view_live(run)
        self.ask = view_ask(run)
        # Goes with the keys that are pressed, as `Key.about`; the screen rings for it.
        asked = run.talk.asks.shown if run.talk else ""
        self.ask_shown = QUIT_SHOWN if run.keys.confirming_quit else asked
        self.keys = [(key, label) for key, label in run.keys.uses().items() if label]
        self.overlay = run.keys.overlay
        self.journal = tuple(run.journal.entries)


def state_row(run: Run) -> Row:
    sign, style = STATES[run.shown_state]
    since = "" if run.stage == "running" else f" since {time_of_day(run.stage_since)}"
    row = [(0, f"{style} bold", f" {sign} {run.shown_state}"), (1, "dim", since), GAP]
    ask = run.talk.asks.first if run.talk else None
    if ask and run.options.ask_timeout:
        left = ask.since + run.options.ask_timeout - run.now
        row.append((2, "", f"  refused in {duration(left + 0.9)}"))
    if run.number:
        took = f" {duration(run.now - run.under_way.started)}" if run.under_way else ""
        # What a provider did not let work, or what was broken off, does not count.
        uncounted = run.number - bool(run.under_way) - run.books.counted
        limit = of_limit(run, "max_iterations", uncounted)
        row.append((3, "", f"  iteration {run.number}{limit}{took}"))
        row.append((4, "", f"  run {duration(run.clock.elapsed)}{of_limit(run, 'max_time')}"))
    each, pending = run.books.average, run.plan.pending
    if each >= 1 and pending and run.stage in ("running", "waiting"):
        row.append((5, "", f"  ≈{duration(each * pending)} left"))
        row.append((6, "", f"  {duration(each)} each"))
    return row


def of_limit(run: Run, name: str, uncounted: int = 0) -> str:
    most = run.books.limits[name]
    return f" of {RAISED_BY_R[name](most + uncounted)}".removesuffix(".00") if most else ""


def reason_row(run: Run) -> Row:
    """Why it is in its state; else what it works on."""
    reason = run.reason
    if run.stage == "ready":
        reason = f"S begins with: {title_of(run.plan.goal)}"
    elif run.wait_until is not None:
        left = run.wait_until - run.now
        reason = f"again at {time_of_day(run.clock.wall + left)}, in {duration(left)}: {reason}"
    elif run.files.trouble and not run.standstill:
        reason = run.files.trouble
    task = run.under_way.task if run.under_way else run.plan.current
    if task and not reason:
        title, phase = title_of(task.text), title_of(task.phase)
        return [(0, "accent", " ▸ "), (0, "bold", title), (0, "dim", f"  {phase}")]
    return [(0, STATES[run.shown_state][1], f" {one_line(reason or 'no pending task')}")]


def spend_row(run: Run) -> Row:
    talk = run.under_way
    agent = talk.agent if talk else run.model_line.read()[1]
    size = run.model_line.setup.models.get(without_variant(run.model), 0)
    context = f"  context {min(100, 100 * talk.context // size):2}%" if talk and size else ""
    provider, slash, model = (run.model or "OpenCode's default model").rpartition("/")
    total = run.total
    tokens = zip("↑↓⟳", (total.input, total.output, total.cached))
    return [
        (0, "", " "),
        (6, "accent", provider + slash),
        (1, "accent", model),
        (4, "accent", f" · {agent}" if agent else ""),
        GAP,
        (3, "", "".join(f" {sign}{short_number(number):>4}" for sign, number in tokens)),
        (5, "", context),
        (0, "", f"  {dollars_of(total.cost)}"),
        (2, "", of_limit(run, "max_cost")),
    ]


def view_live(run: Run) -> list[Entry]:
    """What runs now, as entries without a time."""
    talk = run.talk
    lives = list(talk.transcript.live.values()) if talk else []
    if run.check_since is not None:
        lives.append(Entry(0, run.check_since, "check", run.options.check))
    entries = []
    for live in lives:
        seconds = run.now - live.time
        is_timed = live.kind not in ("text", "think") and seconds >= 1
        took = f"  {duration(seconds)}" if is_timed else ""
        entries.append(live._replace(time=0.0, text=live.text + took))
    if talk and talk.retry:
        left = duration(talk.retry_at - run.now)
        text = f"attempt {talk.retry.attempt + 1} in {left}: {talk.retry.message}"
        entries.append(Entry(0, 0.0, "retry", text, "warn"))
    return entries


def view_tasks(run: Run) -> list[TaskView]:
    """All tasks of the plan, then those that were worked on and are gone from it."""
    efforts = dict(run.books.efforts)
    current = run.plan.current
    talk = run.under_way
    if talk and talk.task:
        current = talk.task
        # In whole seconds: else no picture would equal the one before, and all would be drawn.
        so_far = talk.result(talk.started + int(run.now - talk.started))
        efforts[current.key] = efforts.get(current.key, NO_EFFORT).plus(so_far)
    views = []
    for task in run.plan.tasks:  # where two have one key, the first one is meant
        is_current = bool(current and task.state == "pending" and task.key == current.key)
        current = None if is_current else current
        views.append(TaskView(task, is_current, efforts.pop(task.key, NO_EFFORT)))
    for (phase, text), effort in efforts.items():
        moved = (at for at, view in enumerate(views) if view.task.text == text and view.is_new)
        at = next(moved, None)
        if at is None:
            views.append(TaskView(Task("gone", text, phase=phase), effort=effort))
        else:  # to another phase, or that was given another name
            views[at] = views[at]._replace(effort=effort)
    return views


def view_ask(run: Run) -> tuple[str, ...]:
    """What is asked: a title, what exactly, the choices, the way out."""
    ask = run.talk.asks.first if run.talk else None
    if not ask or run.keys.confirming_quit:
        return ()
    if ask.kind == "permission":
        always = [f"A allows {ask.always}"] if ask.always else []
        return (f"May it? {ask.title}", ask.detail, *always, "Y once, A always, N no")
    question = ask.questions[len(ask.answers)] if ask.questions else Question(ask.detail)
    choices = (" - ".join(filter(None, option)) for option in question.options[:9])
    numbered = (f"{number} {choice}" for number, choice in enumerate(choices, 1))
    return (question.text, *numbered, "N none of these")


class Scroll:
    """Where somebody looks."""

    def __init__(self) -> None:
        # Overlay ("": the activity) -> rows from where it stands when nobody scrolls.
        self.away: collections.Counter[str] = collections.Counter()
        self.journal: tuple[Entry, ...] = ()  # what the activity shows


def layout(picture: Picture, width: int, height: int, scroll: Scroll) -> list[Row]:
    """The rows of a screen. Where it is small, first the activity goes, then the header's last."""
    if width <= 0 or height <= 0:
        return []
    rules: list[Row] = [[(0, "dim", "─" * width)]] if height >= 8 else []
    room = height - 2 * len(rules)
    top = [fit(row, width - 1) for row in picture.header]
    top.insert(1, progress_row(picture, width))
    bottom = [footer(picture)]
    if picture.ask:
        bottom = ask_rows(picture.ask, width, max(1, room - 1))
    top = top[: max(1, room - len(bottom))]
    room = max(0, room - len(top) - len(bottom))
    rows = middle(picture, width, room, scroll)
    rows += [[]] * (room - len(rows))
    return [fit(row, width) for row in (top + rules + rows + rules + bottom)[:height]]


def middle(picture: Picture, width: int, height: int, scroll: Scroll) -> list[Row]:
    if picture.overlay == "help":
        return scrolled(help_rows(width), height, 0, scroll, "help")
    if picture.overlay == "plan":
        return plan_rows(picture, width, height, scroll, "plan")
    if width < 120:
        rows = journal_rows(picture, width, height, scroll)
        room = height - len(rows) - 1
        if picture.state in ("starting", "ready") and room >= 4:  # else an empty screen
            rows += [[], *plan_rows(picture, width, room, scroll)]
        return rows
    right = min(70, width * 9 // 20)
    left = width - right - 2
    blank: list[Row] = [[]] * height
    rows = (journal_rows(picture, left, height, scroll) + blank)[:height]
    beside = plan_rows(picture, right, height, scroll) + blank
    return [[*fit([*row, GAP], left), (0, "dim", "│ "), *other] for row, other in zip(rows, beside)]


def progress_row(picture: Picture, width: int) -> Row:
    """A bar of what is done, blocked and left, and the numbers behind it."""
    plan, check = picture.plan, picture.check
    if not plan.tasks:
        return [(0, "dim", " no task")]
    style = {"passed": "good", "failed": "bad"}.get(check, "warn")
    numbers = [
        (0, "bold", f" {plan.done}/{plan.total} {plan.percent}%"),
        (1, "bad", f"  {plan.blocked} blocked" if plan.blocked else ""),
        (2, "warn", f"  {plan.manual} manual" if plan.manual else ""),
        (3, style, f"  check {check}" if check else ""),
    ]
    numbers = fit(numbers, width - 12)
    size = min(width - row_width(numbers) - 2, 60)  # of the bar
    total = max(1, plan.total)
    blocked = -(-size * plan.blocked // total)  # rounded up: a single blocked task is seen
    done = min(size * plan.done // total, size - blocked)
    return [
        (0, "good", " " + "█" * done),
        (0, "bad", "▒" * blocked),
        (0, "dim", "·" * (size - done - blocked)),
        *numbers,
    ]


def ask_rows(ask: Sequence[str], width: int, height: int) -> list[Row]:
    """What is asked: what is long is cut first, the way out stays."""
    *texts, way_out = (wrap(one_line(text), width - 4)[:4] for text in ask)
    room = max(1, height - len(way_out))
    while sum(map(len, texts)) > room and max(map(len, texts)) > 1:
        max(reversed(texts), key=len).pop()  # of the longest ones the last
    first, *lines = [line for text in texts for line in text][:room]
    rows: list[Row] = [[(0, "warn bold", f" ? {first}")]]
    rows += [[(0, "", f"   {line}")] for line in lines]
    rows += [[(0, "accent", f"   {line}")] for line in way_out]
    return rows[-height:]


def footer(picture: Picture) -> Row:
    style = "warn bold" if picture.ask_shown == QUIT_SHOWN else "accent bold"
    row: Row = []
    for key, label in picture.keys:
        rank = RANKS.get(label, 5)
        row += [(rank, style, f" {key}"), (rank, "dim", f" {label} ")]
    return row


def help_rows(width: int) -> list[Row]:
    rows: list[Row] = []
    for key, what in KEYS:
        for at, line in enumerate(wrap(what, width - 9)):
            rows.append([(0, "accent bold", f" {'' if at else key:<6}"), (0, "", f" {line}")])
    signs = ", ".join(f"{sign}\xa0{name}" for name, (sign, _style) in TASK_SIGNS.items())
    others = "×2 in two iterations; tokens: ↑ in, ↓ out, ⟳ from the cache; ≈ about; bar: ▒ blocked"
    return rows + [[(0, "dim", f" {row}")] for row in wrap(f"\n{signs}; {others}", width - 2)]


def scrolled(
    rows: Sequence[Any], height: int, usual: int, scroll: Scroll, overlay: str
) -> list[Any]:
    """So many rows, from the usual one on, or from where somebody scrolled to."""
    last = max(0, len(rows) - height)
    usual = max(0, min(usual, last))
    at = max(0, min(usual + scroll.away[overlay], last))
    scroll.away[overlay] = at - usual
    shown = list(rows[at : at + height])
    if at < last and height >= 4:
        how = "" if overlay == BESIDE else " (arrows)"
        shown[-1] = [(0, "dim", f" ↓ {last - at + 1} more{how}")]
    return shown


def plan_rows(
    picture: Picture, width: int, height: int, scroll: Scroll, overlay: str = BESIDE
) -> list[Row]:
    """The plan, with the current task in sight."""
    rows: list[Row | TaskView] = []  # only what is seen is laid out
    last = ""
    focus = []
    for item in picture.tasks:
        task = item.task
        phase = "no longer in the plan" if task.state == "gone" else task.phase
        if phase != last:
            rows += [[]] * bool(rows) + [[(0, "dim bold", f" {title_of(phase)}")]]
        last = phase
        if item.kind in ("current", "pending", "begun"):
            focus.append(len(rows))
        rows.append(item)
        reason = item.kind if item.kind == "check failed" else task.reason
        if reason:
            rows.append([(0, "dim", f"{indented(task.depth)}     {one_line(reason)}")])
    focus.append(len(rows))  # where all is settled, the end is what is new
    shown = scrolled(rows, height, focus[0] - height // 2, scroll, overlay)
    return [task_row(row, width) if isinstance(row, TaskView) else row for row in shown]


def task_row(item: TaskView, width: int) -> Row:
    task = item.task
    sign, style = TASK_SIGNS[item.kind]
    weight = "dim" if task.state == "done" else "bold" if item.is_current else ""
    effort = item.effort
    columns = (
        (0, f"{duration(effort.seconds):>6}"),
        (44, f" {dollars_of(effort.spend.cost):>7}"),
        (44, f" ×{effort.iterations}" if effort.iterations > 1 else "   "),
        (70, f" {short_number(effort.spend.tokens):>5} tokens"),
        (90, f"  {effort.model.rpartition('/')[2][:20]:<20}"),
    )
    spent = "".join(text for least, text in columns if width >= least and effort.iterations)
    row = [(0, style, f"{indented(task.depth)} {sign} "), (0, weight, title_of(task.text)), GAP]
    return [*fit(row, width - 2 - len(spent)), (0, "dim", f" {spent}")]


def entry_rows(entry: Entry, width: int) -> list[Row]:
    """Time, kind, wrapped text; a rule closes an iteration."""
    if entry.kind == "iter":
        text = ellipsis(f"── {one_line(entry.text)}", width - 1) + " "
        return [[(0, "dim", text + "─" * (width - text_width(text)))]]
    stamp_size, kind_size = (8, 8) if width >= 60 else (5, 6)
    stamp = local_time("%H:%M:%S", entry.time)
    left = f" {stamp[:stamp_size]:<{stamp_size}} "
    kind = f"{entry.kind.replace('todowrite', 'todo')[:kind_size]:<{kind_size}} "
    indent = indented(entry.depth)
    style = "accent bold" if entry.tone == "head" else entry.tone
    text = {"bad": "✖ ", "good": "✔ "}.get(entry.tone, "") + entry.text
    if entry.kind in ("think", "text"):
        text = _EMPHASIS.sub(r"\1", text)
    rows: list[Row] = []
    for line in wrap(text, width - len(left + kind + indent) - 1):
        rows.append([(0, "dim", left), (0, style or "dim", kind), (0, style, indent + line)])
        left, kind = " " * len(left + kind), ""
    return rows


def journal_rows(picture: Picture, width: int, height: int, scroll: Scroll) -> list[Row]:
    """The journal, and at its end what runs now. Whoever has scrolled up sees the journal of then:
    it does not move."""
    above = max(0, -scroll.away[""])  # rows above the end
    if not above:
        scroll.journal = picture.journal
    rows: list[Row] = []  # no more than are shown, the lowest row first
    for entry in reversed(scroll.journal):
        if len(rows) >= height + above:
            break
        rows += reversed(entry_rows(entry, width))
    rows.reverse()
    for entry in () if above else picture.live[-3:]:
        for row in entry_rows(entry, width)[-3:]:
            rows.append([(rank, style or "accent", text) for rank, style, text in row])
    return scrolled(rows, height, len(rows), scroll, "")


# ---- opencode: what both generations share -------------------------------------------------------
# A server may be newer or broken: anything may be missing or of another type, and reads as empty.
# Only an answer that is of no use at all raises.

SETUP_TIMEOUT = 60.0  # the first call in a directory loads plugins
REQUEST_TIMEOUT = 20.0
IDLE_FOR = 2.0  # seconds that an unused connection is kept: later it may be dead without a sign
STREAM_TIMEOUT = 35.0  # heartbeats come every 10 or 15 s, in older versions every 30 s

LARGEST = 64 << 20  # bytes of an answer, an event or a file: far above what is real

EVENTS = "text/event-stream"

Verdict = tuple[str, Union[Fault, None]]  # as in Polled
Listed = tuple[tuple[Ask, ...], tuple[str, ...]]  # what is asked, the kinds that were not listed


def spend_of(source: Json) -> Spend:
    """What a session, a message or a step has used."""
    tokens = as_dict(source, "tokens")
    output = as_int(tokens, "output") + as_int(tokens, "reasoning")
    cached = as_int(tokens, "cache", "read") + as_int(tokens, "cache", "write")
    return Spend(as_float(source, "cost"), as_int(tokens, "input"), output, cached)


def message_from(session: str, message: str, info: Json, is_over: bool) -> Message:
    """A message of OpenCode 1, or a step of OpenCode 2."""
    # OpenCode 1 has the model's ids in the message, where `id` is the message's own.
    model = info.get("model") or {**info, "id": ""}
    return Message(
        session,
        message,
        spend_of(info),
        model=without_variant(name_of_model(model)),
        agent=as_text(info, "agent"),
        parent=as_text(info, "parentID"),
        ended=ENDED_OF_FINISH.get(as_text(info, "finish"), "answered"),
        is_over=is_over,
    )


# What says best what a tool does, whatever the tool.
MAIN_ARGUMENTS = ("command", "pattern", "url", "query", "filePath", "path", "description", "name")


def argument_of(given: Json, directory: str, title: str = "") -> str:
    """A tool's arguments in one line, as a person would say it."""
    others = (value for value in given.values() if isinstance(value, str))
    text = first_text(given, *MAIN_ARGUMENTS) or title or next(others, "")
    return " ".join(text.removeprefix(directory.rstrip("/") + "/").split())[:500]


def call_id(tool: str, given: Any) -> int:
    """The same number for the same call, never 0."""
    return zlib.crc32(json.dumps([tool, given], sort_keys=True).encode()) + 1


def change_of(changes: Sequence[Json]) -> str:
    """What an edit has changed: `  +3 -1` for each file."""
    counts = [(as_int(one, "additions"), as_int(one, "deletions")) for one in changes if one]
    return "".join(f"  +{added} -{deleted}" for added, deleted in counts)


def in_words(ask: Ask, message: str) -> list[str]:
    """An answer to each question: a label, or the message."""
    return [*ask.answers, *[message] * (len(ask.questions) - len(ask.answers))]


def retry_of(session: str, status: Json) -> Activity:
    """OpenCode tries again at a time told in ms since 1970."""
    wait = as_float(status.get("next") or status.get("at")) / 1000 - time.time()
    attempt = as_int(status, "attempt")
    if "at" in status:
        attempt = max(1, attempt - 1)  # OpenCode 2 counts the one to come, not the one that failed
    message = as_text(
        status.get("message") or dig(status, "error", "message") or "the provider failed"
    )
    return Activity(session, "retrying", attempt, min(wait, LONGEST_TIME), message)


# A `finish` in the words of `Message`, and as a verdict where OpenCode tells no error; what is not
# here has answered.
ENDED_OF_FINISH = {"": "", "unknown": "nowhere", "tool-calls": "calls"}
VERDICT_OF_FINISH: dict[str, Verdict] = {
    "length": ("failed", Fault("length", CUT_OFF)),
    "content-filter": ("failed", Fault("provider", "the provider's content filter ended it")),
    "tool-calls": ("refused", None),  # no step followed the calls: one was refused
    "error": ("cut", None),
    "unknown": ("cut", None),
    "": ("cut", None),
}
ANSWERED: Verdict = ("answered", None)
# Kinds of faults by the names of errors of OpenCode 1, the types of OpenCode 2.
FAULT_KINDS = {
    "MessageAbortedError": "aborted",
    "MessageOutputLengthError": "length",
    "ContextOverflowError": "overflow",
    "ProviderAuthError": "auth",
    "ProviderModelNotFoundError": "no-model",
    "ProviderInitError": "no-model",
    "AgentNotFoundError": "no-agent",
    "provider.rate-limit": "rate-limit",
    "provider.quota": "balance",
    "provider.auth": "auth",
    "provider.no-route": "no-model",
    "provider.internal": "outage",
    "provider.transport": "outage",
    "provider.timeout": "outage",
    "aborted": "aborted",
}
# By the provider's HTTP code, where no type says more: in OpenCode 2 it may be 200.
CODE_KINDS = {401: "auth", 402: "balance", 403: "auth", 404: "no-model", 429: "rate-limit"}
# What OpenCode says without a name, before a provider is asked.
NOT_THERE = re.compile(r"(Model|Variant|Agent) (?:unavailable|not found)")


def fault_of(error: Any) -> Fault | None:
    """Of OpenCode 1's `{name, data: {message, statusCode}}`, or 2's `{type, message, status}`. The
    message of an `UnknownError` may begin with the real name, and end in a stack."""
    name = first_text(error, "name", "type")
    if not name:
        return None
    data = as_dict(error, "data") or as_dict(error)
    message = re.split(r"\n\s+at ", as_text(data, "message"))[0].strip() or name
    real_name, _, rest = message.partition(": ")
    if name == "UnknownError" and real_name in FAULT_KINDS:
        name, message = real_name, rest
    kind = FAULT_KINDS.get(name, "")
    missing = NOT_THERE.match(message)
    if not kind and (name == "APIError" or name.startswith("provider.")):
        code = as_int(data.get("statusCode") or data.get("status"))
        is_outage = code >= 500 or (not code and data.get("isRetryable") is True)
        kind = CODE_KINDS.get(code, "outage" if is_outage else "provider")
    elif not kind and missing:
        kind = "no-agent" if missing[1] == "Agent" else "no-model"
    wait = as_float(data, "retryAfterMs") / 1000
    announced = as_text(data, "responseHeaders", "retry-after")
    if re.fullmatch(r"\d{1,9}(\.\d+)?", announced):  # else it is a date, or none
        wait = float(announced)
    return Fault(kind or "unknown", message, min(max(0.0, wait), LONGEST_TIME))


def name_of_model(described: Any) -> str:
    """A model as providerID/modelID, perhaps with #variant."""
    if isinstance(described, str):
        return described
    provider = as_text(described, "providerID")
    id = first_text(described, "id", "modelID", "model")
    variant = as_text(described, "variant")
    return f"{provider}/{id}{variant and '#'}{variant}" if provider and id else ""


def body_of_model(name: str, key: str) -> Json:
    """The inverse of `name_of_model`; `key` is what the model's id is called."""
    provider, _, rest = name.partition("/")
    model, _, variant = rest.partition("#")
    return {"providerID": provider, key: model, **({"variant": variant} if variant else {})}


def is_free(model: Json) -> bool:
    tiers = dicts(model, "cost") or [as_dict(model, "cost")]
    return not any(as_float(tier, way) for tier in tiers for way in ("input", "output"))


def variants_of(model: Json) -> tuple[str, ...]:
    """A table by name in OpenCode 1, a list in OpenCode 2."""
    listed = (as_text(variant, "id") for variant in dicts(model, "variants"))
    return (*as_dict(model, "variants"), *listed)


def asked_before(config: Json) -> dict[str, bool]:
    """What a configuration wants a person to be asked for: by permission (1.x) or action (2.x)."""
    rules = config.get("permission")
    found = {"everything": rules == "ask"} if isinstance(rules, str) else {}
    for name, rule in as_dict(rules).items():
        found[name] = "ask" in (rule, *as_dict(rule).values())
    for rule in dicts(config, "permissions"):
        action = as_text(rule, "action")
        found[action] = found.get(action, False) or rule.get("effect") == "ask"
    return found


def without_secrets(lines: Iterable[str]) -> Iterator[str]:
    """What OpenCode says, less a broken configuration, which may hold keys, and its password."""
    is_input = False
    for line in lines:
        part = re.search("--- (JSONC Input|Errors|End) ---", line)
        if part:
            is_input = part[1] == "JSONC Input"
        elif not is_input and not re.search(r"^\s*Line \d+: |^\s*\^$|password", line):
            yield line


def login_environment(username: str, password: str) -> dict[str, str]:
    """What tells server and interface their login."""
    return {
        "OPENCODE_SERVER_USERNAME": username,
        "OPENCODE_SERVER_PASSWORD": password,
        "OPENCODE_PASSWORD": password,
    }


def load_http(scheme: str) -> Any:
    """http.client, which is slow to load. Only https needs ssl, which would take 4 MiB more: for
    http its import is made to fail, and http.client goes on without."""
    if scheme == "http":
        sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # no module: it fails
    import http.client

    if scheme == "https" and not hasattr(http.client, "HTTPSConnection"):
        raise Problem("this Python has no ssl, which https needs: use another one, or http")
    return http.client


class Client:
    """HTTP to one server; no proxy is asked."""

    def __init__(self, url: str, username: str, password: str, process: Any = None) -> None:
        self.url = url.rstrip("/")
        self.process = process  # the server's, where it is ours
        self.patience = NEVER  # no request may take longer, in seconds
        self.stream: socket.socket | None = None  # of the events
        # Connections that are kept, since then: to make one takes longer than a request.
        self.idle: list[tuple[Any, float]] = []
        self.most_idle = 8
        self.headers = {"Content-Type": "application/json"}
        if password:
            token = base64.b64encode(f"{username}:{password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {token}"

    def hang_up(self) -> None:
        """OpenCode 2 would not end for 20 s while somebody listens."""
        self.most_idle = 0
        if self.stream:
            with suppress(OSError):
                self.stream.shutdown(socket.SHUT_RDWR)
        for connection, _since in self.idle:
            connection.close()  # a thread that has just taken one connects anew

    @contextmanager
    def open(self, method: str, path: str, body: Any, timeout: float, accept: str) -> Iterator[Any]:
        """The answer, whatever it is, of which only the head was read. What goes wrong while it is
        open raises RequestError; `timeout` is for each single wait. No redirect is followed:
        another host would be told the login."""
        where = urlsplit(self.url)
        http_client = load_http(where.scheme)
        connection: Any = None
        with suppress(IndexError):  # none is kept
            connection, since = self.idle.pop()
            if not 0 <= time.time() - since < IDLE_FOR:
                connection.close()
        if connection is None:
            is_safe = where.scheme == "https"
            kind = http_client.HTTPSConnection if is_safe else http_client.HTTPConnection
            connection = kind(where.hostname or "", where.port)
        was_idle = connection.sock  # None: it connects when it is used
        if was_idle:
            was_idle.settimeout(timeout)
        connection.timeout = timeout

        def ask() -> Any:
            if self.process and self.process.poll() is not None:  # others may have its port
                raise RequestError(0, "the server has ended")
            data = None if body is None else json.dumps(body)
            headers = {**self.headers, "Accept": accept}
            connection.request(method, where.path + path, data, headers)
            if accept == EVENTS:
                self.stream = connection.sock
            return connection.getresponse()

        try:
            try:
                answer = ask()
            except ConnectionError:
                if not was_idle:
                    raise
                connection.close()  # the server has closed it by now: connect anew
                answer = ask()
            with answer:
                yield answer
                is_whole = answer.isclosed() or answer.length == 0
            if is_whole and not answer.will_close and len(self.idle) < self.most_idle:
                self.idle.append((connection, time.time()))
                connection = None
        except (OSError, ValueError, http_client.HTTPException) as error:
            is_timeout = isinstance(error, socket.timeout)  # a TimeoutError from Python 3.10 on
            message = str(error) or type(error).__name__
            raise RequestError(0, message, "Timeout" if is_timeout else "") from None
        finally:
            if connection:
                connection.close()

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT
    ) -> Any:
        """The decoded answer, None for an empty one. Raises RequestError."""
        timeout = min(timeout, self.patience)
        until = time.monotonic() + timeout
        raw = bytearray()
        with self.open(method, path, body, timeout, "application/json") as answer:
            for piece in iter(lambda: answer.read1(1 << 18), b""):
                raw += piece
                if len(raw) > LARGEST:
                    raise ValueError(f"the answer is larger than {LARGEST >> 20} MiB")
                if time.monotonic() > until:
                    raise socket.timeout("timed out")  # the answer trickles
            if answer.length:
                raise ValueError("the answer was cut off")
        route = f"{method} {path}"
        decoded, is_json = None, True
        try:
            decoded = json.loads(raw.strip() or b"null")
        except RecursionError:  # a model's doing: the server is not to blame
            raise RequestError(400, f"{route}: the answer is nested too deep") from None
        except ValueError:
            is_json = False
        if answer.status >= 400:
            raise refusal(answer.status, decoded, route)
        if answer.status >= 300 or not is_json:  # an unknown route gives a page
            raise RequestError(502, f"{route} was not answered with JSON", "NotJSON")
        return decoded


def refusal(code: int, answer: Any, route: str) -> RequestError:
    """An answer that is not 2xx, in the server's own words."""
    details = as_dict(answer, "data")
    issues = [as_text(issue, "message") for issue in dicts(details, "issues")]
    words = [as_text(details, "path"), as_text(details, "message"), as_text(answer, "message")]
    lines = "\n".join(filter(None, [*words, "; ".join(issues)])).split("\n")
    message = " ".join(without_secrets(lines)).strip()
    name = first_text(answer, "name", "_tag", "code")
    return RequestError(code, message or f"{route} was answered with {code}", name)


# ---- opencode 1 ----------------------------------------------------------------------------------
# The dialect of 1.2 and later. Messages name the prompt that they answer.


class OpenCode:
    """OpenCode 1 in neutral words, and as much of OpenCode 2 as is alike. Whatever cannot be had
    raises RequestError. Nothing waits here: what ends later, or fills slowly, the run looks at
    again."""

    generation = 1
    place = "directory="  # what the directory is called in a query
    children_path = "/session/{}/children"
    active_path = "/session/status"
    interrupt_word = "abort"
    asks_paths = ("/permission", "/question")
    always_lasts = "until the server ends"
    asks_while_idle = False  # an idle session asks nothing, yet the server may list some
    idles_between_runs = False  # it may look idle for a moment between two steps

    def __init__(self, client: Client, options: Options) -> None:
        self.client = client
        self.options = options
        self.known = Setup()
        self.seen_idle = ""  # the session that was seen idle once
        self.prompts: set[str] = set()  # user messages, whose texts are no answers

    def path(self, path: str) -> str:
        """With the directory in its query."""
        directory = quote(os.fsencode(self.options.directory), safe="")
        return f"{path}{'&' if '?' in path else '?'}{self.place}{directory}"

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT
    ) -> Any:
        """What the server answers; OpenCode 2 wraps it in `data`."""
        answer = self.client.request(method, self.path(path), body, timeout)
        return answer.get("data", answer) if isinstance(answer, dict) else answer

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def get_if_possible(self, path: str) -> Any:
        """None where the server fails at it."""
        try:
            return self.get(path)
        except RequestError as error:
            if error.code == 0:
                raise
            return None

    def setup(self) -> Setup:
        config, listed, agents = self.get_for_setup("/config", "/config/providers", "/agent")
        models = {
            f"{provider.get('id')}/{name}": as_dict(model)
            for provider in dicts(listed, "providers")
            for name, model in as_dict(provider, "models").items()
        }
        by_name = {as_text(agent, "name"): agent for agent in dicts(agents)}
        setup = self.setup_of([as_dict(config)], models, by_name)
        defaults = [f"{provider}/{id}" for provider, id in as_dict(listed, "default").items()]
        # Of several defaults OpenCode takes the one used last, which is not known here.
        return setup._replace(chosen=defaults[0]) if len(defaults) == 1 else setup

    def get_for_setup(self, *paths: str) -> list[Any]:
        return [self.request("GET", path, timeout=SETUP_TIMEOUT) for path in paths]

    def setup_of(
        self, documents: Sequence[Json], models: dict[str, Json], agents: dict[str, Json]
    ) -> Setup:
        """Of the configuration's documents the last word counts."""
        asked: dict[str, bool] = {}
        model, agent = "", "build"
        for document in documents:
            asked.update(asked_before(document))
            model = name_of_model(document.get("model")) or model
            agent = as_text(document, "default_agent") or agent
        named = {name: name_of_model(one.get("model")) or model for name, one in agents.items()}
        self.known = Setup(
            model=named.get(agent, model),
            models={name: as_int(one, "limit", "context") for name, one in models.items()},
            # Hidden ones do OpenCode's own chores.
            agents=tuple(name for name, one in agents.items() if not one.get("hidden")),
            free=frozenset(name for name, one in models.items() if is_free(one)),
            variants={name: variants_of(one) for name, one in models.items()},
            asks=tuple(name for name, is_asked in asked.items() if is_asked),
            agent_models=named,
        )
        return self.known

    def create(self, prompt: Prompt) -> str:
        """Make a session; its id. Problem: it would work elsewhere."""
        body = {"title": prompt.title, **self.session_body(prompt)}
        made = self.request("POST", "/session", body)
        id = as_id(made, "id")
        if not id:
            raise RequestError(502, "the server made a session without an id that can be used")
        there = as_text(made, "directory") or as_text(made, "location", "directory")
        if there and os.path.realpath(there) != os.path.realpath(self.options.directory):
            # OpenCode 1 reads `my%20project` as `my project`.
            raise Problem(f"OpenCode would work in {there[:300]}: rename the folder")
        return id

    def session_body(self, _prompt: Prompt) -> Json:
        """What else a new session has to be told."""
        return {}

    def send(self, session: str, prompt: Prompt) -> None:
        """Sent again with its ids it runs again, if it was not answered."""
        text = {"id": prompt.part_id, "type": "text", "text": prompt.text}
        body: Json = {"messageID": prompt.message_id, "parts": [text]}
        if prompt.model:
            body["model"] = model = body_of_model(prompt.model, "modelID")
            if "variant" in model:
                body["variant"] = model.pop("variant")  # OpenCode 1 wants it beside the model
        if prompt.agent:
            body["agent"] = prompt.agent
        self.request("POST", f"/session/{session}/prompt_async", body)

    def family(self, session: str) -> dict[str, Json]:
        """The session and its subagents, as the server tells of them."""
        found = {session: as_dict(self.get_if_possible(f"/session/{session}"))}
        parents = [session]
        for parent in parents:  # the list grows meanwhile
            for child in dicts(self.get_if_possible(self.children_path.format(parent))):
                id = as_id(child, "id")
                # Early versions of OpenCode 2 list all there are.
                if id and id not in found and child.get("parentID", parent) == parent:
                    found[id] = child
                    parents.append(id)
        return found

    def at_work(self, family: Iterable[str]) -> Json:
        """Who of them is at work, and how."""
        listed = as_dict(self.get(self.active_path))
        return {id: listed[id] for id in family if dig(listed, id, "type") not in (None, "idle")}

    def poll(self, session: str, prompt: Prompt, wants_verdict: bool) -> Polled:
        """Look how the session stands; `wants_verdict`: also where it is at work."""
        family = self.family(session)
        spent = Spend()
        for member in family.values():
            spent = spent.plus(spend_of(member))
        working = self.at_work(family)
        asks, unlisted = self.asks() if working or self.asks_while_idle else (None, ())
        polled = Polled("idle", "", None, spent, tuple(family)[1:], asks, unlisted)
        # A subagent may work on while its parent is idle: then there is no verdict.
        if working or any(ask.session in family for ask in asks or ()):
            self.seen_idle = ""
            retries = (self.retry(id, status) for id, status in working.items())
            retry = next(filter(None, retries), None)
            polled = polled._replace(activity="working", retry=retry, is_alive=self.prints(family))
        elif self.idles_between_runs and self.seen_idle != session:
            self.seen_idle = session
            return polled._replace(is_unsure=True)
        if polled.activity == "idle" or (wants_verdict and session in working):
            try:
                verdict, fault = self.verdict(session, prompt, family[session])
            except RequestError as error:
                if error.why != "rejected":
                    raise
                # As what a model has nested too deep: nobody will ever read it.
                verdict, fault = "" if working else "failed", Fault("unknown", str(error))
            polled = polled._replace(verdict=verdict, fault=fault)
        return polled

    def verdict(self, session: str, prompt: Prompt, own: Json) -> Verdict:
        """By the newest answer, to whatever prompt, once there is one to ours."""
        messages = dicts(self.get(f"/session/{session}/message?limit=20"))  # the oldest first
        ours: Json = {}
        last: Json = {}
        for message in messages:
            info = as_dict(message, "info")
            if info.get("id") == prompt.message_id:
                last = {}
            elif info.get("role") == "assistant":
                ours = info if info.get("parentID") == prompt.message_id else ours
                last = info if ours or len(messages) >= 20 else {}  # ours may be further back
        if not last:
            return "undelivered", None
        if not all(dig(answer, "time", "completed") for answer in (ours or last, last)):
            return "unfinished", None
        fault = fault_of(last.get("error"))
        if fault and fault.message.startswith("The user rejected permission to use this"):
            return "refused", None  # to refuse a doom_loop ends the turn, words or not
        if fault:
            return ("cut" if fault.kind == "aborted" else "failed"), fault
        return VERDICT_OF_FINISH.get(as_text(last, "finish"), ANSWERED)

    def retry(self, session: str, status: Any) -> Activity | None:
        """The retry that a session at work waits for."""
        return retry_of(session, status) if dig(status, "type") == "retry" else None

    def prints(self, _family: Collection[str]) -> bool:
        """Whether a shell has printed something of which the stream is silent."""
        return False

    def interrupt(self, session: str, prompt: Prompt) -> None:
        """Stop a session, and what works for it in the background; it may be idle only later."""
        self.request("POST", f"/session/{session}/{self.interrupt_word}", {})  # at once
        for id in self.at_work(self.family(session)):
            if id != session:
                self.request("POST", f"/session/{id}/{self.interrupt_word}", {})

    def dispose(self) -> None:
        """End the tools that the server has started."""
        self.client.request("POST", "/global/dispose", {})

    # What is asked.

    def asks(self) -> Listed:
        """What any session asks."""
        permissions, questions = map(self.get_if_possible, self.asks_paths)
        found = [*map(self.permission, dicts(permissions)), *map(self.question, dicts(questions))]
        unlisted = ("permission",) * (permissions is None) + ("question",) * (questions is None)
        return tuple(ask for ask in found if ask.id), unlisted

    def permission(self, asked: Json) -> Ask:
        """For what kind of thing, and what exactly: patterns, and command, file or address."""
        title = first_text(asked, "permission", "action") or "something"
        patterns = ", ".join(as_texts(asked, "patterns") or as_texts(asked, "resources"))
        always = ", ".join(as_texts(asked, "always") or as_texts(asked, "save"))
        metadata = as_dict(asked, "metadata")
        exact = first_text(metadata, "command", "filepath", "url")
        detail = exact if patterns in exact else ", ".join(filter(None, (patterns, exact)))
        detail += change_of(dicts(metadata, "files"))
        always = f"{always}, {self.always_lasts}" if always else ""
        id, session = as_id(asked, "id"), as_id(asked, "sessionID")
        return Ask(id, session, "permission", title, detail, (), title == "doom_loop", always)

    def question(self, asked: Json) -> Ask:
        """Of OpenCode 1, or a form of OpenCode 2."""
        questions: list[Question] = []
        for field in dicts(asked, "questions") or dicts(asked, "fields"):
            text = first_text(field, "question", "description", "title", "key")
            options = dicts(field, "options")
            choices = [(as_text(one, "label"), as_text(one, "description")) for one in options]
            questions.append(Question(text, tuple(choices)))
        detail = " / ".join(question.text for question in questions)
        id, session = as_id(asked, "id"), as_id(asked, "sessionID")
        return Ask(id, session, "question", detail=detail, questions=tuple(questions))

    def reply(self, ask: Ask, decision: str, message: str) -> None:
        """A bare rejection would end the turn, and so would any of a question."""
        body: Json = {"reply": decision, "message": message}
        if ask.kind == "question":
            body = {"answers": [[said] for said in in_words(ask, message)]}
        self.request("POST", f"/{ask.kind}/{ask.id}/reply", body)

    def decode_ask(self, session: str, type: str, asked: Json) -> SessionEvent:
        """An event about a permission or a question."""
        kind, _, what = type.partition(".")
        if what in ("asked", "created"):
            ask = self.permission(asked) if kind == "permission" else self.question(asked)
            return ask if ask.id else Alive(session)
        if what in ("replied", "rejected", "cancelled"):
            is_refused = asked.get("reply") == "reject" or what != "replied"
            return Answered(session, first_text(asked, "requestID", "id"), is_refused)
        return Alive(session)

    def decode(self, event: Any) -> list[SessionEvent | Edited]:
        type = as_text(event, "type")
        properties = as_dict(event, "properties")
        info = as_dict(properties, "info")
        part = as_dict(properties, "part")
        own_id = info.get("id") if type.startswith("session.") else None
        known = properties.get("sessionID") or part.get("sessionID") or info.get("sessionID")
        session = as_id(known or own_id)
        fault = fault_of(properties.get("error"))
        status = "idle" if type == "session.idle" else dig(properties, "status", "type")
        heard: SessionEvent | Edited = Alive(session)
        if type == "file.edited":
            return [Edited(as_text(properties, "file"))]
        if not session:
            return []
        if type.startswith(("permission.", "question.")):
            heard = self.decode_ask(session, type, properties)
        elif type == "session.created":
            heard = Child(as_text(info, "parentID"), session)
        elif status in ("idle", "busy"):
            heard = Activity(session, "idle" if status == "idle" else "working")
        elif status == "retry":
            heard = retry_of(session, as_dict(properties, "status"))
        elif type == "session.error" and fault:
            heard = Broke(session, fault)
        elif type == "session.compacted":
            heard = Activity(session, "compacted")
        elif type == "message.updated" and info.get("role") == "user":
            self.prompts.add(as_text(info, "id"))
        elif type == "message.updated":
            is_over = bool(dig(info, "time", "completed"))
            heard = message_from(session, as_text(info, "id"), info, is_over)
            if not is_over or info.get("summary") is True:  # a compaction's is no answer
                heard = heard._replace(ended="")
        elif type == "message.part.updated":
            heard = self.decode_part(session, part)
        elif type == "message.part.delta":
            heard = Delta(session, as_text(properties, "partID"), as_text(properties, "delta"))
        return [heard]

    def decode_part(self, session: str, part: Json) -> SessionEvent:
        message = as_text(part, "messageID")
        kind = {"text": "text", "reasoning": "think", "tool": "tool"}.get(as_text(part, "type"))
        if not kind or message in self.prompts or part.get("synthetic"):
            return Alive(session)  # not the agent's
        state_of_tool = as_dict(part, "state")  # of a tool
        given = as_dict(state_of_tool, "input")
        tool = (as_text(part, "tool") or "tool") if kind == "tool" else ""
        argument = argument_of(given, self.options.directory, as_text(state_of_tool, "title"))
        states = {"completed": "done", "error": "failed"}
        has_ended = dig(part, "time", "end")  # of a text or a thought
        state = states.get(as_text(state_of_tool, "status"), "done" if has_ended else "running")
        return Part(
            session,
            as_text(part, "id"),
            kind,
            state,
            text=as_text(state_of_tool, "error") or as_text(part, "text"),
            tool=tool,
            argument=argument + change_of([as_dict(state_of_tool, "metadata", "filediff")]),
            call=call_id(tool, given) if tool and state != "running" else 0,
        )


# ---- opencode 2 ----------------------------------------------------------------------------------
# The dialect of 2.0.4 and later. A prompt waits in the inbox, becomes a message when delivered, and
# never runs again after that: to go on takes a new id. An answer is a row of steps, each a message
# of its own, and none names the prompt: what follows a prompt belongs to it.

INTERRUPTED = Fault("aborted", "it was interrupted")


class OpenCode2(OpenCode):
    generation = 2
    place = "location%5Bdirectory%5D="
    children_path = "/session?parentID={}"
    active_path = "/session/active"
    interrupt_word = "interrupt"
    asks_paths = ("/permission/request", "/form")
    always_lasts = "in this project from now on"
    asks_while_idle = True
    idles_between_runs = True

    def __init__(self, client: Client, options: Options) -> None:
        super().__init__(client, options)
        self.tools: dict[str, Part] = {}  # at work, by their keys
        self.shells: dict[str, tuple[str, str]] = {}  # of tools: the session, and the shell's id
        self.printed: dict[str, int] = {}  # bytes that these shells have printed
        self.forms: dict[str, Json] = {}  # by id

    def path(self, path: str) -> str:
        """A session knows where it is."""
        return "/api" + (path if path.startswith("/session") else super().path(path))

    def setup(self) -> Setup:
        entries, models, agents = map(dicts, self.get_for_setup("/config", "/model", "/agent"))
        setup = self.setup_of(
            [as_dict(entry, "info") for entry in entries],  # the lowest first
            {name_of_model(model): model for model in models},
            {as_text(agent, "id"): agent for agent in agents},
        )
        read = {as_text(entry, "path") for entry in entries if "info" in entry}
        files = {as_text(entry, "path") for entry in entries if entry.get("type") == "file"}
        chosen = name_of_model(self.get_if_possible("/model/default"))
        return setup._replace(chosen=chosen, unread=tuple(sorted(files - read)))

    def session_body(self, prompt: Prompt) -> Json:
        """With the model, which the server's configuration gives to an agent in vain; without an id
        of ours, since the free models want the server's."""
        body: Json = {"location": {"directory": self.options.directory}}
        model = prompt.model or self.known.model_of(prompt.agent)
        if model:
            body["model"] = body_of_model(model, "id")
        if prompt.agent:
            body["agent"] = prompt.agent
        if not (self.options.attended or self.options.asks_wait):  # nobody would answer
            body["permissions"] = [{"action": "question", "resource": "*", "effect": "deny"}]
        return body

    def send(self, session: str, prompt: Prompt) -> None:
        """What was not delivered of earlier attempts must not run beside this one."""
        ids = ids_of_attempts(prompt)
        self.seen_idle = ""
        self.withdraw(session, ids[:-1])
        self.request("POST", f"/session/{session}/prompt", {"id": ids[-1], "text": prompt.text})

    def withdraw(self, session: str, ids: Iterable[str]) -> None:
        """Take prompts out of the inbox; what was delivered, or never came there, is no error."""
        for id in ids:
            try:
                self.request("DELETE", f"/session/{session}/inbox/{id}")
            except RequestError as error:
                # A server without an inbox answers with these, or with a page.
                if error.code not in (404, 405) and error.name != "NotJSON":
                    raise

    def interrupt(self, session: str, prompt: Prompt) -> None:
        """What is left in the inbox would join whatever comes next."""
        super().interrupt(session, prompt)
        self.withdraw(session, ids_of_attempts(prompt))

    def dispose(self) -> None:
        """It does so itself."""

    def prints(self, family: Collection[str]) -> bool:
        before = dict(self.printed)
        for key, (session, shell) in list(self.shells.items()):
            if session in family:
                known = self.printed.get(key, 0)
                output = self.get_if_possible(f"/shell/{shell}/output?cursor={known}")
                self.printed[key] = max(known, as_int(output, "size"))
        return self.printed != before

    def retry(self, session: str, _status: Any) -> Activity | None:
        """The newest step waits for it: the server counts that as work."""
        newest = dicts(self.get_if_possible(f"/session/{session}/message?limit=1"))
        retry = retry_of(session, as_dict(newest[0], "retry") if newest else {})
        return retry if retry.wait > 0 else None

    def verdict(self, session: str, prompt: Prompt, own: Json) -> Verdict:
        """The answer is what follows our prompt, up to now."""
        ids = ids_of_attempts(prompt)
        messages = dicts(self.get(f"/session/{session}/message?limit=200"))  # the newest first
        newest = ids[-1] if ids else ""
        delivered = newest if len(messages) >= 200 else ""  # ours may be further back
        step: Json = {}  # the last one behind our prompt
        idle: Json = {}  # how the session became idle after that step
        for message in messages:
            if message.get("id") in ids:
                delivered = as_text(message, "id")
                break
            if message.get("type") == "assistant":
                step = step or message
            elif message.get("type") == "idle" and not step:
                idle = idle or message
        outcome = as_text(idle, "outcome")
        why = fault_of(idle.get("error"))
        fault = fault_of(step.get("error"))
        # It failed, and no step of the newest attempt says how.
        if "failed" in (outcome, own.get("outcome")) and not (step and delivered == newest):
            return "failed", why  # as with a model that is not there
        if not delivered:
            return "undelivered", None
        if not step and outcome != "interrupted":
            return ("nothing-ran" if outcome == "succeeded" else "unfinished"), None
        if step and not (dig(step, "time", "completed") or outcome in ("failed", "interrupted")):
            return "unfinished", None  # it is at work, or its server died
        if fault and fault.kind != "aborted":
            return "failed", fault
        verdict = VERDICT_OF_FINISH.get(as_text(step, "finish"), ANSWERED)
        if not fault and verdict[0] in ("answered", "failed"):
            return verdict
        if outcome == "failed":
            return "failed", why
        # A bare refusal looks like an interruption, but for what the tool says.
        errors = [as_dict(part, "state", "error") for part in dicts(step, "content")]
        if outcome != "interrupted" and any(map(is_refusal, errors)):
            return "refused", None
        return "cut", INTERRUPTED if fault or outcome == "interrupted" else None

    def asks(self) -> Listed:
        """A form of an MCP server's has no session: it is refused, or its tool would hang."""
        listed = super().asks()
        for ask in listed[0]:
            if ask.session == "global" and not self.options.server:
                with suppress(RequestError):
                    self.request("DELETE", f"/session/global/form/{ask.id}")
        return listed

    def question(self, asked: Json) -> Ask:
        self.forms[as_id(asked, "id")] = asked
        return super().question(asked)

    def reply(self, ask: Ask, decision: str, message: str) -> None:
        """A form is refused with words where it takes them: to dismiss it would end the turn."""
        if ask.kind == "permission":
            body = {"decision": decision, "message": message}
            self.request("POST", f"/session/{ask.session}/permission/{ask.id}/reply", body)
            return
        path = f"/session/{ask.session}/form/{ask.id}"
        values: Json = {}
        fields = dicts(self.forms.get(ask.id), "fields")
        for field, said in zip(fields, in_words(ask, message)):
            options = {as_text(option, "label"): option for option in dicts(field, "options")}
            value = as_dict(options, said).get("value", said)
            is_list = field.get("type") == "multiselect"
            values[as_text(field, "key")] = [value] if is_list else value
        try:
            self.request("POST", f"{path}/reply", {"answer": values})
        except RequestError as error:
            if error.code == 409:
                return  # somebody else has answered it
            if error.code != 400 or decision != "reject":
                raise
            # Versions differ in where they take the words, and none minds them elsewhere.
            path = f"{path}?message={quote(message, safe='')}"
            self.request("DELETE", path, {"message": message})

    def decode(self, event: Any) -> list[SessionEvent | Edited]:
        type = as_text(event, "type")
        data = as_dict(event, "data")
        session = as_id(data.get("sessionID") or dig(data, "form", "sessionID"))
        message = as_text(data, "assistantMessageID")
        area, _, what = type.removeprefix("session.").partition(".")  # as in session.step.ended
        fault = fault_of(data.get("error"))
        broke = [Broke(session, fault)] if fault else []
        working = Activity(session, "working")
        heard: SessionEvent = Alive(session)
        if type == "filesystem.changed":
            place = as_text(event, "location", "directory")
            return [Edited(os.path.join(place, as_text(data, "file")))]
        if not session:
            return []
        if area in ("permission", "form"):
            heard = self.decode_ask(session, type, as_dict(data, "form") or data)
        elif area == "created":
            heard = Child(as_text(data, "parentID"), session)
        elif type == "session.inbox.enqueued" and dig(data, "item", "type") == "synthetic":
            heard = Activity(session, "woke")  # nobody typed it
        elif area == "execution":
            return [working] if what == "started" else [*broke, Activity(session, "idle")]
        elif area == "step" and what in ("started", "ended", "failed"):
            # Its end tells what it has used: `usage.updated` would count that again.
            spent = message_from(session, message, data, what != "started")
            return [working, spent] if what == "started" else [spent, *broke]
        elif type == "session.retry.scheduled":
            heard = retry_of(session, data)
        elif type == "session.compaction.ended":
            heard = Activity(session, "compacted")
        elif area in ("text", "reasoning"):
            kind = "text" if area == "text" else "think"
            key = f"{message} {kind} {as_int(data, 'ordinal')}"
            state = "done" if what == "ended" else "running"
            heard = Part(session, key, kind, state, as_text(data, "text"))
            if what == "delta":
                heard = Delta(session, key, as_text(data, "delta"))
        elif area == "tool":
            heard = self.decode_tool(session, message, what, data)
        return [heard]

    def decode_tool(self, session: str, message: str, what: str, data: Json) -> SessionEvent:
        """Its name comes first, then its input, then its end. Its id is its own in its message."""
        key = f"{message} tool {as_text(data, 'id')}"
        if what == "input.started":
            tool = as_text(data, "name") or "tool"
            self.tools[key] = Part(session, key, "tool", "running", tool=tool)
        part = self.tools.get(key)
        if part is None:
            return Alive(session)  # its beginning was not heard
        if what == "called":
            given = as_dict(data, "input")
            argument = argument_of(given, self.options.directory)
            part = part._replace(argument=argument, call=call_id(part.tool, given))
            self.tools[key] = part
        elif what == "progress" and as_id(data, "metadata", "shellID"):
            self.shells[key] = session, as_id(data, "metadata", "shellID")
        elif what in ("success", "failed"):
            del self.tools[key]
            self.shells.pop(key, None)
            part = part._replace(
                state="done" if what == "success" else "failed",
                argument=part.argument + change_of(dicts(data, "metadata", "files")),
                text=as_text(data, "error", "message"),
            )
        return part


def ids_of_attempts(prompt: Prompt) -> tuple[str, ...]:
    """The ids of its attempts up to this one; a prompt that is not known has none."""
    start = prompt.message_id[:-2]
    return tuple(f"{start}{number:02}" for number in range(prompt.attempt + 1)) if start else ()


def is_refusal(error: Json) -> bool:
    words = ("The user dismissed this", "The user declined this")
    return error.get("type") == "permission.rejected" or as_text(error, "message").startswith(words)


# ---- opencode: which generation answers, and its events ------------------------------------------

SUPPORTED = "1.2 or newer, or 2.0.4 or newer"


def is_booting(error: RequestError) -> bool:
    """So says the server, or a proxy before it; but a page is one of a server that is up."""
    return error.code in (429, 502, 503, 504) and error.name != "NotJSON"


def detect(client: Client) -> tuple[type[OpenCode], str]:
    """Which dialect the server speaks, and its version. Problem: none; RequestError: none yet."""
    for path, dialect, oldest in (
        ("/api/info", OpenCode2, (2, 0, 4)),
        ("/api/status", OpenCode2, (2, 0, 4)),  # so in 2.0.4 and 2.0.5
        ("/global/health", OpenCode, (1, 2, 0)),
    ):
        try:
            version = as_text(client.request("GET", path, timeout=5.0), "version")
        except RequestError as error:
            if error.code in (0, 401, 403) or is_booting(error):
                raise  # silent, locked, or not up yet
            continue  # a page, or an error: this server has no such path
        numbers = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", version)
        if numbers and tuple(map(int, numbers.groups())) < oldest:
            advice = f"{SUPPORTED} is needed: upgrade it with `opencode upgrade`"
            raise Problem(f"OpenCode {version} is too old: {advice}")
        if version:
            return dialect, version
    raise Problem(f"{client.url} is not OpenCode ({SUPPORTED}): look at the address")


LONGEST_PAUSE = 5  # seconds before it connects anew
DELTAS_WITHIN = 0.1  # seconds
MOST_DELTAS = 50  # are read in that time where there is a screen, else one; the rest is skipped
DELTA = re.compile(rb'"type":\s*"(?:message\.part|session\.[a-z.]+)\.delta"')


def in_thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
    """Have it done on a thread of its own; the end of the program does not wait for that."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


class StreamReader:
    """Reads a server's event stream on a thread of its own, always: else the server would grow.

    An event is a line of JSON behind `data:`. Of a flood of deltas some are enough, as a sign of
    life: the whole text comes at its end.
    """

    def __init__(self, dialect: OpenCode, post: Callable[[Any], None]) -> None:
        self.dialect = dialect
        self.post = post
        self.stopped = False
        self.has_heard = False  # anything, on this connection
        self.has_warned = False  # that an event cannot be read
        self.deltas_left = 0  # that are read until `deltas_until`
        self.deltas_until = 0.0

    def run(self) -> None:
        """Connect, read, and connect anew."""
        path = self.dialect.path("/event")
        failures = 0  # in a row
        while not self.stopped:
            opened = time.monotonic()
            self.has_heard = False
            connecting = self.dialect.client.open("GET", path, None, STREAM_TIMEOUT, EVENTS)
            with suppress(RequestError), connecting as stream:
                if stream.status == 200 and EVENTS in stream.headers.get("Content-Type", ""):
                    self.post(StreamOpened())
                    self.read(stream)
            lasted = time.monotonic() - opened
            failures = 1 if self.has_heard and lasted > LONGEST_PAUSE else failures + 1
            if failures == 10:
                said = "there is no event stream: what the agent does is not shown"
                self.post(Noted("warn", said))
            time.sleep(min(failures, LONGEST_PAUSE))

    def stop(self) -> None:
        self.stopped = True
        self.dialect.client.hang_up()

    def read(self, stream: Any) -> None:
        """In pieces, which is quicker than by lines. What is cut off at the end is no event."""
        unread = bytearray()  # the beginning of a line
        for piece in iter(lambda: stream.read1(1 << 16), b""):
            unread += piece
            if self.stopped:
                return
            if b"\n" in piece:
                *lines, unread = unread.split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        self._take(line[5:].strip())
            elif len(unread) > LARGEST:
                raise ValueError(f"an event is larger than {LARGEST >> 20} MiB")

    def _take(self, data: bytearray) -> None:
        self.has_heard = True
        if DELTA.search(data, 0, 200):
            now = time.monotonic()
            if now >= self.deltas_until:
                self.deltas_until = now + DELTAS_WITHIN
                self.deltas_left = MOST_DELTAS if self.dialect.options.attended else 1
            if not self.deltas_left:
                return
            self.deltas_left -= 1
        try:
            event = json.loads(data.decode("utf-8", "replace"))
            if self.dialect.options.verbose:
                self.post(Noted("event", data[:300].decode("utf-8", "replace"), "dim"))
            for heard in self.dialect.decode(event):
                self.post(heard)
        except Exception as error:  # what a model says decides of which kind it is
            if not self.has_warned:
                self.has_warned = True
                said = f"an event cannot be read ({type(error).__name__}: {error})"
                self.post(Noted("warn", f"{said[:200]}: going on without it"))


# ---- processes -----------------------------------------------------------------------------------
# They are known from /proc where that is, else from `ps`, else not at all. All that ocloop starts
# carries a mark in its environment, by which it is found in groups of its own, too.

PROC = "/proc"
MARK = "OCLOOP_RUN"
# Of all processes, with the environment behind the command, for which macOS has another option.
PS = ("ps", "-AEww" if sys.platform == "darwin" else "axeww", "-o", "pid=,pgid=,rss=,command=")


def said_by(argv: Sequence[str], seconds: float) -> bytes | None:
    """What a program prints; None where it is not there, fails, or takes longer than that."""
    quiet = subprocess.DEVNULL
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        return subprocess.check_output(argv, stdin=quiet, stderr=quiet, timeout=seconds)
    return None


Popen = subprocess.Popen[bytes]


class Process(NamedTuple):
    pid: int
    group: int
    memory: int  # KiB resident
    marks: list[str]  # values of MARK in its environment, as far as that is shown


def list_processes() -> list[Process]:
    """All processes; none where there is no `ps` either, or it takes other options."""
    found = []
    if not os.path.isdir(f"{PROC}/self"):
        listed = said_by(PS, 5.0) or b""
        rows = re.findall(r"(?m)^ *(\d+) +(\d+) +(\d+) (.*)", listed.decode("utf-8", "replace"))
        for pid, group, memory, words in rows:
            marks = re.findall(rf"(?:^| ){MARK}=(\S*)", words)
            found.append(Process(int(pid), int(group), int(memory), marks))
        return found
    page = os.sysconf("SC_PAGE_SIZE") >> 10  # KiB
    for pid in filter(str.isdigit, os.listdir(PROC)):
        environment = ""
        with suppress(OSError), open(f"{PROC}/{pid}/environ", errors="replace") as file:
            environment = file.read(8 << 20)  # any process can make its own look endless
        with suppress(OSError, ValueError), open(f"{PROC}/{pid}/stat", errors="replace") as file:
            _state, _parent, group, *more = file.read().rpartition(")")[2].split()
            marks = re.findall(rf"(?:^|\0){MARK}=([^\0]*)", environment)
            found.append(Process(int(pid), int(group), int(more[18]) * page, marks))
    return found


def group_memory(group: int) -> int:
    """Resident MiB of a process group; 0 when they cannot be told."""
    return sum(process.memory for process in list_processes() if process.group == group) >> 10


def lines_from(pipe: Any) -> Iterator[bytes]:
    """All that a program prints, in pieces of at most 64 KiB: a full pipe would stop it."""
    return iter(lambda: pipe.readline(1 << 16), b"")


def wait_for_end(process: Popen, seconds: float) -> int | None:
    """Its exit status; None when it runs for longer than that."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def said_status(status: int | None) -> str:
    """exit status 3, signal 9 (as where the machine had no memory left)."""
    return f"signal {-status}" if status and status < 0 else f"exit status {status}"


def signal_group(process: Popen, signum: int) -> bool:
    """Signal a child's process group; whether anything of it is left. While anything is, no new
    process is given its number: whoever has it after the child was reaped is somebody else."""
    with suppress(OSError):
        if process.returncode is not None:  # it was reaped
            with suppress(ProcessLookupError):
                os.kill(process.pid, 0)  # somebody else has its number by now
                return False
        os.killpg(process.pid, signum)
        return True
    return False


def end_group(process: Popen, mark: str) -> None:
    """End a child's process group: SIGTERM, a second later SIGKILL, until nothing of it is left;
    then SIGKILL to what carries the mark: tools that went into groups of their own."""
    for signum, seconds in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 2.0)):
        until = time.monotonic() + seconds
        is_left = signal_group(process, signum)
        while is_left and time.monotonic() < until:
            time.sleep(0.01)
            process.poll()
            is_left = signal_group(process, 0)
    process.poll()
    for _ in range(2 if mark else 0):
        for other in list_processes():
            if mark in other.marks:
                with suppress(OSError):
                    os.kill(other.pid, signal.SIGKILL)
        time.sleep(0.02)  # a process that is just being executed shows no environment yet


def spawn(argv: Sequence[str], own_session: bool = True, **how: Any) -> Popen:
    """Start a program; in a session of its own it reads nothing, and hears no ctrl-c and ctrl-z of
    our terminal. What `run` blocks of signals for itself is not blocked there."""
    if own_session:
        how = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **how}
    held_back = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTTOU)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, held_back)
    try:
        return subprocess.Popen(argv, start_new_session=own_session, **how)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# What OpenCode, as a program of Bun's, unpacks for itself at each start, maps, and leaves behind.
LIBRARY = r"\.[0-9a-f]+-[0-9a-f]{8}\.(so|dylib|node)"


def lend_libraries(folder: str, environment: dict[str, str]) -> None:
    """Have them unpacked in that folder ("": there is none), while nobody else can write there."""
    if not folder:
        return
    with suppress(OSError), private(os.path.dirname(folder)), private(folder) as fd:
        if not os.fstatvfs(fd).f_flag & getattr(os, "ST_NOEXEC", 0):
            environment.setdefault("BUN_TMPDIR", folder)  # a person's own is kept


def remove_libraries(folder: str, before: float = NEVER) -> None:
    """Remove the libraries in it that were written before then; with all of them the folder."""
    with suppress(OSError), private(folder) as fd:
        for name in filter(re.compile(LIBRARY).fullmatch, os.listdir(fd)):
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime < before:
                os.unlink(name, dir_fd=fd)
        if before == NEVER:
            os.rmdir(folder)


# The guard is a small shell that reads a pipe from ocloop: when that ends without the word "over",
# ocloop was killed, and the guard ends what it started. Its arguments: the mark (a whole entry of
# an environment; that of a check or of `attach` is longer), PROC, PS, the folder of OpenCode's
# libraries, LIBRARY. The 48th and 49th word behind the name in `stat` say where an environment
# begins and ends: one that is made to look endless is not read.
GUARD = """\
trap '' HUP INT TERM
mark=$1 proc=$2 ps=$3
entry="OCLOOP_RUN=$1(\\.check|\\.attach)?"
marked() {
    files=
    if [ -r "$proc/self/environ" ]; then
        for folder in "$proc"/[0-9]*; do
            read -r stat <"$folder/stat" || continue
            set -- ${stat##*) }
            [ $((${49:-9999999} - ${48:-0})) -lt 8388608 ] && files="$files $folder/environ"
        done
        for file in $(grep -lasF "OCLOOP_RUN=$mark" $files /dev/null); do
            tr '\\n\\0' '\\1\\n' <"$file" | grep -aqxE "$entry" || continue
            file=${file%/environ}
            echo "${file##*/}"
        done
    else
        $ps | sed -nE "s/^ *([0-9]+) (.* )?$entry( .*)?\\$/\\1/p"
    fi
}
group=0
while read -r word; do
    [ "$word" = over ] && exit 0
    group=$word
done
for signal in TERM KILL; do
    [ "$group" -gt 1 ] && kill -$signal "-$group" 2>/dev/null
    for pid in $(marked); do kill -$signal "$pid" 2>/dev/null; done
    [ $signal = TERM ] && sleep 1
done
[ -L "$4" ] || ls -A "$4" | grep -xE "$5" | while read -r file; do rm -f "$4/$file"; done
rmdir "$4" 2>/dev/null
exit 0
"""


# ---- outside -------------------------------------------------------------------------------------
# What the run asks for is done here, each request on a thread that has nothing else to do: whatever
# hangs (a file system, a check of an hour, a server that is being started) holds up nothing else.

START_TIMEOUT = 60.0  # seconds
NOTIFY_WITHIN = 60.0  # while the run goes on; a run that ends does not wait for --notify
FAREWELL_WITHIN = 6.0  # for the last requests to the server, whatever holds them up
CLOSED_WITHIN = 20.0  # to end everything, also a start that hangs
MAPPED_WITHIN = 30.0  # a library that was unpacked; then nobody needs the file any more
MOST_THREADS = 200  # of this process: far above what a run needs
DEFAULT_USER = "opencode"
ABANDONED = "session {} may be at work still on {}: stop it there, or run again"


class Outside:
    """The world as a run knows it: OpenCode's server (ours, with all that it starts, or that of
    --server), the files that are read, and the commands of a person. A request is for a method of
    this or of the server's dialect; what that returns or raises is posted as an Answer."""

    def __init__(self, options: Options, post: Callable[[Any], None], libraries: str = "") -> None:
        self.options = options
        self.post = post
        self.environment = dict(os.environ)  # a copy: the screen changes ours
        self.environment.pop(MARK, None)  # of another ocloop, which would end our guard with us
        self.mark = os.urandom(12).hex()  # of the server
        self.guard: Popen | None = None
        self.libraries = libraries  # the folder for those that OpenCode unpacks; "": there is none
        # The login of --server is in our environment; ours gets a password at each start.
        known = self.environment if options.server else {}
        self.username = known.get("OPENCODE_SERVER_USERNAME") or DEFAULT_USER
        password = known.get("OPENCODE_PASSWORD") or known.get("OPENCODE_SERVER_PASSWORD")
        self.password = password or ""
        self.process: Popen | None = None  # the server
        self.last_lines: collections.deque[str] = collections.deque(maxlen=12)  # of what it printed
        self.dialect: OpenCode | None = None  # of one that has answered
        self.reader: StreamReader | None = None
        self.server_lock = threading.RLock()  # held while the server is started or stopped
        self.process_lock = threading.Lock()  # held while it is started; not after closing
        self.closing = False
        self.checking = threading.Lock()  # held while the check runs
        self.check_is_wanted = False
        self.requests: queue.SimpleQueue[Request] = queue.SimpleQueue()  # for free threads
        self.free_threads = threading.Semaphore(0)  # counts them
        self.abandoned = ""  # on somebody else's server, where it could not be stopped

    def make(self, request: Request) -> None:
        # Said here, in the order of the requests: of two threads the later one may run first.
        if request.name in ("run_check", "stop_check"):
            self.check_is_wanted = request.name == "run_check"
        try:
            if self.free_threads.acquire(blocking=False):  # quicker than a new thread
                self.requests.put(request)
            elif threading.active_count() > MOST_THREADS:  # somebody's server makes us ask and ask
                raise RuntimeError("too much is asked at once")
            else:
                in_thread(self._make_more, request)
        except RuntimeError as error:  # also where this user may start no more threads
            self.post(Answer(request, error=RequestError(0, str(error))))

    def _make_more(self, request: Request) -> None:
        """Make this request, then those that `make` puts into the queue, one for each release."""
        while True:
            answer = self._answer(request)
            self.free_threads.release()  # before anybody hears the answer, and asks for more
            self.post(answer)
            request = self.requests.get()

    def _answer(self, request: Request) -> Answer:
        try:
            place = self if hasattr(self, request.name) else self.dialect
            if place is None:
                raise RequestError(0, "the server is not running")
            return Answer(request, getattr(place, request.name)(*request.args))
        except (RequestError, Problem) as error:
            return Answer(request, error=error)
        except Exception as error:  # what a server says decides of which kind it is
            return Answer(request, error=RequestError(0, f"{type(error).__name__}: {error}"))

    def start_server(self, launch: int) -> tuple[str, str, int]:
        """Start it, after stopping what still runs of it; returns its URL, the version and the
        generation of OpenCode. Raises Problem."""
        with self.server_lock:
            self.stop_server()
            self._guard(0)  # the guard is there before there is something to guard
            try:
                url = self.options.server or self._start_process()
                self.dialect, version = self._meet(url)
            except Problem as problem:
                self.stop_server()
                raise Problem(f"{problem}{self._last_words()}", again=problem.again) from None
            self.reader = StreamReader(self.dialect, self.post)
            in_thread(self.reader.run)
            if self.process:
                in_thread(self._watch, self.process, launch)
            return url, version, self.dialect.generation

    def _start_process(self) -> str:
        """Start the process; returns its URL once it listens."""
        self.last_lines.clear()
        options = self.options
        if not port_is_free(options.port):
            advice = "choose another one with --port, or leave --port out for a free one"
            raise Problem(f"port {options.port} is taken, or is none: {advice}")
        argv = [*options.opencode, "serve", "--hostname=127.0.0.1", f"--port={options.port}"]
        self.password = os.urandom(24).hex()  # the last one may be known to who took its port
        env = {**self.environment, **login_environment(self.username, self.password)}
        env[MARK] = self.mark
        lend_libraries(self.libraries, env)
        try:
            with self.process_lock:
                if self.closing:
                    raise Problem("stopped while starting")
                process = spawn(argv, cwd=options.directory, env=env, stdout=subprocess.PIPE)
                self.process = process
                self._guard(process.pid)
        except OSError as error:  # during an upgrade OpenCode is missing for some seconds
            problem = f"cannot start {argv[0]}: {error.strerror or error}"
            raise Problem(problem, again=True) from None
        load_http("http")  # while the server starts: who needs it next does not wait for it
        found: queue.SimpleQueue[str] = queue.SimpleQueue()
        in_thread(self._drain, process.stdout, found)
        how = f"did not start within {START_TIMEOUT:.0f} s"
        with suppress(queue.Empty):
            url = found.get(timeout=START_TIMEOUT)
            if url:
                return url
            how = f"ended with {said_status(wait_for_end(process, 2.0))} while starting"
        problem = f"OpenCode {how}: run `{' '.join(argv)}` yourself to see why"
        raise Problem(problem, again=True)  # another one that starts may have locked the database

    def _drain(self, stdout: Any, found: queue.SimpleQueue[str]) -> None:
        """Keep the last lines that it prints; `found` gets the URL, and in the end ""."""
        lines = (printable(raw.decode("utf-8", "replace").rstrip()) for raw in lines_from(stdout))
        for line in without_secrets(lines):
            match = re.search(r"listening on (http://127\.0\.0\.1:\d+)", line)
            if match:
                found.put(match.group(1))
            else:
                self.last_lines.append(line[:300])
        found.put("")

    def _last_words(self) -> str:
        return "".join(f"\n  {line}" for line in list(self.last_lines))

    def _watch(self, process: Popen, launch: int) -> None:
        problem = f"the server ended by itself with {said_status(process.wait())}"
        time.sleep(0.1)  # for its last lines
        with self.server_lock:
            if self.process is process:
                self.post(ServerDied(launch, problem + self._last_words()))
                self.stop_server()  # at once: later its pid may be another process's

    def _meet(self, url: str) -> tuple[OpenCode, str]:
        """Wait until it answers; the dialect that it speaks, and its version."""
        until = time.monotonic() + START_TIMEOUT
        process = self.process
        while True:
            client = Client(url, self.username, self.password, process)
            try:
                dialect, version = detect(client)
                return dialect(client, self.options), version
            except RequestError as error:
                if process and process.poll() is not None:
                    said = f"the server ended by itself with {said_status(process.returncode)}"
                    raise Problem(said, again=True) from None
                if error.code in (401, 403):
                    if self.username == DEFAULT_USER:
                        raise Problem(f"{url}: {WRONG_PASSWORD}") from None
                    self.username = DEFAULT_USER  # OpenCode 2 knows no other
                    continue
                # A server that is not up yet is waited for; "service_failed": it will never be up.
                is_booted = not is_booting(error) or error.name == "service_failed"
                is_to_come = not (error.code and is_booted)
                is_distrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
                is_final = is_distrusted or not is_to_come or self.closing
                if is_final or time.monotonic() > until:
                    advice = "a plugin, an MCP server or a download may hang: try `OPENCODE_PURE=1`"
                    if is_distrusted:
                        advice = "name a file with its certificate in SSL_CERT_FILE"
                    elif self.options.server:
                        advice = "start it, or leave --server out"
                    raise Problem(f"{url} does not answer ({error}): {advice}") from None
                time.sleep(0.25)

    def stop_server(self, session: str = "") -> None:
        """Interrupt the session, and end what we started."""
        with self.server_lock:
            with self.process_lock:
                process, dialect = self.process, self.dialect
                self.process = self.dialect = None
            # On another's server it is the next run's to stop, unless the farewell does so now.
            self.abandoned = session if self.options.server else ""
            if dialect:
                with suppress(RuntimeError):  # no thread can be started: ended it is all the same
                    in_thread(self._say_farewell, dialect, session).join(FAREWELL_WITHIN)
            if self.abandoned:
                self.post(Noted("warn", ABANDONED.format(session, self.options.server)))
            if self.reader:
                self.reader.stop()
            if process:
                end_group(process, self.mark)
                self._guard(0)
            remove_libraries(self.libraries)

    def _say_farewell(self, dialect: OpenCode, session: str) -> None:
        """In a hurry. One that is gone hears none of it: the client sees to that."""
        dialect.client.patience = 1.5
        with suppress(RequestError, RecursionError):
            if session:
                dialect.interrupt(session, Prompt(""))
                until = time.monotonic() + 2.0  # else another process of OpenCode 2 may resume it
                while dialect.at_work(dialect.family(session)) and time.monotonic() < until:
                    time.sleep(0.1)
            if dialect.client.process:  # it is ours
                dialect.dispose()
            elif session:
                time.sleep(1.6)  # a prompt on its way may begin only now: stop it, too
                dialect.interrupt(session, Prompt(""))
            self.abandoned = ""

    def measure_server(self) -> int:
        """Resident MiB of its process group; the libraries grow as the night goes on, too."""
        remove_libraries(self.libraries, time.time() - MAPPED_WITHIN)
        with self.process_lock:
            process = self.process
            if process:
                self._guard(process.pid)
        return group_memory(process.pid) if process else 0

    def close(self, session: str = "") -> None:
        """Stop for good. Where that takes too long the guard does the rest."""
        with self.process_lock:
            self.closing = True
            starting = self.process if self.dialect is None else None
        self.stop_check()
        if starting:
            end_group(starting, self.mark)  # so that its start fails, and lets go of the lock
        self.stop_server(session)
        with self.checking:  # no check is left either
            if self.guard:
                self._guard("over")

    def _guard(self, word: object) -> None:
        """Tell the guard which process group to end, too (0: none), or that all is over."""
        with suppress(OSError):
            if self.guard is None or self.guard.poll() is not None:  # a guard may be killed
                given = (self.mark, PROC, " ".join(PS), self.libraries, LIBRARY)
                how: Json = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "bufsize": 0}
                argv = ["/bin/sh", "-c", GUARD, "ocloop-guard", *given]
                self.guard = spawn(argv, cwd="/", env=self.environment, **how)
            assert self.guard.stdin
            self.guard.stdin.write(f"{word}\n".encode())

    def read_files(self) -> FilesRead:
        plan, problem = read_text(self.options.plan, "plan")
        prompt, other_problem = read_text(self.options.prompt, "prompt")
        return FilesRead(plan, prompt, problem or other_problem)

    def _shell(self, command: str, facts: dict[str, str], cwd: str, stdout: int) -> Popen:
        """Start a command of a person's. No environment holds all that a plan or a model says."""
        env: Json = dict(self.environment)
        for name, value in facts.items():
            env[name] = value.replace("\0", "").encode("utf-8", "replace")[:4000]
        return spawn(["/bin/sh", "-c", command], cwd=cwd, env=env, stdout=stdout)

    def run_check(self, facts: dict[str, str]) -> CheckResult:
        """It runs until it ends, or is not wanted any more, or --check-timeout."""
        options = self.options
        mark = f"{self.mark}.check"
        with self.checking:
            if not self.check_is_wanted:
                return CheckResult(126, "", interrupted=True)
            facts = {**facts, MARK: mark}
            process = self._shell(options.check, facts, options.directory, subprocess.PIPE)
            last_lines: collections.deque[bytes] = collections.deque(maxlen=200)
            status = None
            until = time.monotonic() + (options.check_timeout or NEVER)
            try:
                reading = in_thread(last_lines.extend, lines_from(process.stdout))
                while status is None and self.check_is_wanted and time.monotonic() < until:
                    status = wait_for_end(process, 0.25)
            finally:
                end_group(process, mark)
        reading.join(1)  # not longer: a process that got away may hold the pipe
        said = b"".join(list(last_lines))[-4096:].decode("utf-8", "replace").strip()
        if status is None:
            status = 124
            said += f"\n(ended after {duration(options.check_timeout)}: --check-timeout)"
        return CheckResult(status, said, interrupted=not self.check_is_wanted)

    def stop_check(self) -> None:
        """`make` has said so already, but not at the end of the program."""
        self.check_is_wanted = False

    def notify(self, facts: dict[str, str]) -> None:
        """It may outlive the run: what it starts carries no mark."""
        cwd = self.options.directory if os.path.isdir(self.options.directory) else "/"
        process = self._shell(self.options.notify, facts, cwd, subprocess.DEVNULL)
        status = wait_for_end(process, NOTIFY_WITHIN)
        if status is None:
            end_group(process, "")
            raise Problem(f"--notify was ended after {duration(NOTIFY_WITHIN)}")
        if status:
            raise Problem(f"--notify ended with exit status {status}")


def port_is_free(port: int) -> bool:
    with suppress(OSError, OverflowError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


# ---- screens -------------------------------------------------------------------------------------
# Each is a thread that shows what it is given, so that a terminal that takes no more output
# (ctrl-S, an ssh connection that froze) never holds up the run.
#
# Curses' `refresh` and `getch` let go of Python's lock while they write. `initscr`, `curs_set` and
# `endwin` do not, and under ctrl-S would stop every thread, signal handlers too: they are called
# only when the terminal takes output. `doupdate` and `beep` are never called.


def say(text: str, file: Any = None) -> None:
    """Print lines: whoever wrote them, they cannot rewrite the terminal. Nothing else prints."""
    print(all_printable(text), file=file, flush=True)


class Writer:
    """One thread that writes, in order. What cannot be written is said once, and tried on."""

    def __init__(self, post: Callable[[Any], None]) -> None:
        self.post = post
        self.jobs: queue.SimpleQueue[tuple[Callable[[], None], str, str] | None]
        self.jobs = queue.SimpleQueue()
        self.thread = in_thread(self._run)

    def put(self, job: Callable[[], None], what: str, advice: str) -> None:
        self.jobs.put((job, what, advice))

    def close(self, seconds: float = 5.0) -> None:
        """Wait until all is written, but no longer than that."""
        self.jobs.put(None)
        self.thread.join(seconds)

    def _run(self) -> None:
        failing = set()
        for job, what, advice in iter(self.jobs.get, None):
            try:
                job()
                failing.discard(what)
            except OSError as error:
                if what not in failing:
                    failing.add(what)
                    problem = f"{what} cannot be written ({error.strerror}): {advice}"
                    self.post(Noted("warn", problem))


class LineScreen(Writer):
    """Plain lines, for pipes and terminals that can do little."""

    newest = 0  # the number of the newest entry that was printed

    def show(self, picture: Picture) -> None:
        for entry in picture.journal:
            if entry.number > self.newest:
                self.newest = entry.number
                left = f"{local_time('%H:%M:%S', entry.time)} {entry.kind[:8]:<8} "
                text = indented(entry.depth) + entry.text.replace("\n", "\n" + " " * len(left))
                job = partial(say, left + text)
                self.put(job, "standard output", "nobody reads it, perhaps")


class CursesScreen:
    """The terminal. One thread makes all curses calls."""

    FRAME = 0.1  # seconds between two drawings, and the longest wait for a key

    def __init__(self, post: Callable[[Any], None]) -> None:
        self.post = post
        self.scroll = Scroll()
        self.picture: Picture | None = None
        self.ask_shown = ""  # as it was drawn last
        # Who is to have the terminal: command and environment.
        self.handed: tuple[Request, Sequence[str], dict[str, str]] | None = None
        self.child: subprocess.Popen[bytes] | None = None  # the program that has it, or had it
        self.closing = False
        self.modes = termios.tcgetattr(0)
        use_utf8()
        for name in ("LINES", "COLUMNS"):  # a resize would never be seen
            os.environ.pop(name, None)
        os.environ["ESCDELAY"] = "25"  # ms; initscr reads it, on every Python
        self.thread = in_thread(self._run)

    def show(self, picture: Picture) -> None:
        self.picture = picture

    def close(self) -> None:
        """Give the terminal back."""
        self.closing = True
        if self.child:
            for end in (self.child.terminate, self.child.kill):
                end()
                self.thread.join(1.5)
        with suppress(OSError, termios.error):
            termios.tcflow(1, termios.TCOON)  # whoever pressed ctrl-S wants the shell back now
        self.thread.join(3)
        if self.thread.is_alive():  # the thread is stuck in a write
            self._restore()

    def _restore(self) -> None:
        """Set the terminal's modes without curses, which would write."""
        with suppress(OSError, termios.error):
            termios.tcsetattr(0, termios.TCSANOW, self.modes)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGWINCH, signal.SIGTSTP))
        while not takes_output():  # initscr writes, too
            if self.closing:
                return
        window = curses.initscr()
        try:
            curses.noecho()
            curses.cbreak()
            window.keypad(True)
            window.timeout(int(self.FRAME * 1000))
            if takes_output():
                with suppress(curses.error):
                    curses.curs_set(0)
            self._loop(window, make_styles())
        except curses.error as error:  # it hung up, perhaps while OpenCode's interface had it
            self.handed = None
            self.post(ScreenLost(f"the terminal is gone ({error})"))
        finally:
            if takes_output():
                with suppress(curses.error):
                    curses.endwin()
            self._restore()

    def _loop(self, window: Any, styles: dict[str, int]) -> None:
        drawn: Picture | None = None  # None: draw again
        drawn_at = 0.0
        quick = 0  # looks for a key that ended at once without one, in a row
        while not self.closing:
            if self.handed:
                self._give_terminal(window, *self.handed)
                self.handed = drawn = None
            picture = self.picture
            now = time.monotonic()
            if picture and picture is not drawn and now - drawn_at >= self.FRAME * 0.9:
                self._draw(window, picture, styles)
                drawn = picture
                drawn_at = now
            key = window.getch()
            if key != -1:
                drawn = None
                self._take_key(window, key)
            is_quick = key == -1 and time.monotonic() - now < self.FRAME / 4
            quick = quick + 1 if is_quick else 0
            if quick > 200:
                raise curses.error("it hung up")

    def _take_key(self, window: Any, key: int) -> None:
        page = max(1, window.getmaxyx()[0] - 8)
        moves = {
            curses.KEY_UP: -1,
            curses.KEY_DOWN: 1,
            curses.KEY_PPAGE: -page,
            curses.KEY_NPAGE: page,
            curses.KEY_HOME: -(10**9),
            curses.KEY_END: 10**9,
        }
        if self.picture:
            self.scroll.away[self.picture.overlay] += moves.get(key, 0)
        if key == 12:  # ctrl-l
            window.redrawwin()
        elif 0 <= key < 256:
            name = {27: "escape", 32: "space"}.get(key, chr(key).lower())
            self.post(Key(name, self.ask_shown))

    def _draw(self, window: Any, picture: Picture, styles: dict[str, int]) -> None:
        height, width = window.getmaxyx()
        window.erase()
        for y, row in enumerate(layout(picture, width, height, self.scroll)):
            x = 0
            for _rank, style, text in row:
                attributes = sum(styles.get(name, 0) for name in style.split())
                # The lower right cell raises after it was drawn; some curses know no wide signs.
                with suppress(curses.error, UnicodeError):
                    window.addstr(y, x, text, attributes)
                x += text_width(text)
        # Curses ignores ctrl-z while it draws: held back, the signal comes after that.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTSTP,))
        window.refresh()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTSTP,))
        if picture.ask and picture.ask_shown != self.ask_shown:
            with suppress(OSError):
                os.write(1, b"\a")
        self.ask_shown = picture.ask_shown

    def _give_terminal(
        self, window: Any, request: Request, argv: Sequence[str], env: dict[str, str]
    ) -> None:
        """Run a program in the terminal, then take it back; the run goes on meanwhile."""
        if not takes_output():
            self.post(Answer(request, error=Problem("the terminal takes no output: ctrl-q?")))
            return
        curses.def_prog_mode()
        curses.endwin()
        problem = None
        try:
            os.write(1, b"opening OpenCode's interface: leaving it (ctrl-c) comes back\r\n")
            # Ended by ctrl-c it prints a stack trace.
            self.child = spawn(argv, own_session=False, env=env, stderr=subprocess.DEVNULL)
            status = self.child.wait()
            if status not in (0, 130, -signal.SIGINT):
                problem = Problem(
                    f"OpenCode's interface ended with exit status {status}: "
                    "`ocloop.py attach` in another terminal shows why"
                )
        except OSError as error:
            problem = Problem(f"cannot start {argv[0]}: {error}")
        self.post(Answer(request, error=problem))
        curses.reset_prog_mode()
        window.redrawwin()
        curses.flushinp()


def use_utf8() -> None:
    """Where the locale says nothing of the terminal, as LC_ALL=C or one that is not installed. When
    no name is known here, curses leaves the signs out and keeps the words."""
    for name in ("C.UTF-8", "UTF-8", "en_US.UTF-8"):  # Linux, macOS, an older Linux
        if locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX"):
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)


def make_styles() -> dict[str, int]:
    """The words of styles, and curses' attributes for them."""
    styles = {"bold": curses.A_BOLD, "dim": curses.A_DIM}
    with suppress(curses.error):
        if not os.environ.get("NO_COLOR"):
            curses.start_color()
            curses.use_default_colors()
            for number, name in ((1, "bad"), (2, "good"), (3, "warn"), (6, "accent")):
                curses.init_pair(number, number, -1)
                styles[name] = curses.color_pair(number)
    return styles


def takes_output() -> bool:
    """Not under ctrl-S, nor when nobody reads the terminal any more."""
    with suppress(OSError, ValueError):
        return bool(select.select([], [1], [], 0.3)[1])
    return False


def why_no_screen() -> str:
    """Why there can be plain lines alone; "": there can be a screen."""
    with suppress(OSError):
        if os.tcgetpgrp(0) != os.getpgrp():  # whoever takes the terminal now is stopped by it
            return "it runs in the background of this shell"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "there is no terminal"
    if curses is None:
        return "this Python has no curses"
    with suppress(curses.error):
        curses.setupterm()
        if curses.tigetstr("cup"):
            return ""
    return f"TERM={os.environ.get('TERM', '')} is not known here, or cannot move the cursor"


# ---- files ---------------------------------------------------------------------------------------
# What a run reads, and what it leaves for its user alone: the log, and per plan a lock that ends
# with its owner and a state file, for `status` and `attach`. All is written on one thread: a file
# system that hangs holds up neither the run nor its end.

LARGEST_TEXT = 10 << 20  # bytes of a plan or prompt: a plan of that size takes seconds to read


def read_whole(fd: int, limit: int) -> str:
    """The text of an open file, which is closed. OSError when it is none, or larger."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is not a file")
    with os.fdopen(fd, "rb") as file:
        raw = file.read(limit + 1) or b""  # some of the system's own wait for more: None
    if len(raw) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB")
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")


def read_text(path: str, what: str) -> tuple[str | None, str]:
    """A file's text whatever its bytes, or None and the problem."""
    try:  # a pipe is not waited for
        return read_whole(os.open(path, os.O_RDONLY | os.O_NONBLOCK), LARGEST_TEXT), ""
    except OSError as error:
        advice = f"put it there, name another with --{what}, or write a starter with `bootstrap`"
        return None, f"the {what} {path} cannot be read ({error.strerror}): {advice}"


class Log:
    """`--log`: every entry of the journal, appended; JSON lines when the path ends in .jsonl."""

    def __init__(self, path: str, writer: Writer) -> None:
        self.path = path
        self.writer = writer

    def add(self, entries: Sequence[Entry]) -> None:
        if self.path:
            lines = "".join(f"{self.line(entry)}\n" for entry in entries)
            append = partial(self._append, lines.encode("utf-8", "backslashreplace"))
            advice = "going on without; name another path with --log"
            self.writer.put(append, f"the log {self.path}", advice)

    def _append(self, left: bytes) -> None:
        """All of it or nothing, since half a line would make the file unreadable for others."""
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        if not self.path.startswith("/dev/"):
            how |= os.O_NOFOLLOW  # whoever may write into its folder could put a link there
        fd = os.open(self.path, how, 0o600)  # a pipe without a reader: an error
        before = os.fstat(fd)
        try:
            if before.st_uid not in (0, os.getuid()):
                raise PermissionError(errno.EPERM, "it is somebody else's")
            while left:
                left = left[os.write(fd, left) :]
        finally:
            if left:
                with suppress(OSError):
                    os.ftruncate(fd, before.st_size)  # not of a pipe
            os.close(fd)

    def line(self, entry: Entry) -> str:
        record = {
            "time": iso_time(entry.time),
            "kind": entry.kind,
            "iteration": entry.iteration,
            "session": entry.session,
            "text": entry.text,
        }
        if self.path.endswith(".jsonl"):
            return json.dumps({**record, **(entry.record or {})})
        return printable(f"{record['time']} {entry.kind:<8} {entry.text}".replace("\n", " / "))


class RunFile:
    """The lock and the state file of one plan, in a private folder that is looked at before each
    use. Where there is none, the plan's own folder is locked, and nothing is written."""

    def __init__(self, plan: str) -> None:
        real = os.path.realpath(plan)
        self.home = os.path.dirname(real)
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(self.home))[:40]
        name = f"{stem}-{zlib.crc32(os.fsencode(real)):08x}"
        self.name, self.lock_name = f"{name}.json", f"{name}.lock"
        self.folder, self.problem = private_folder()
        self.path = os.path.join(self.folder, self.name)
        self.libraries = self.folder and os.path.join(self.folder, f"{name}.libraries")
        self.lock: int | None = None  # the file descriptor that holds it

    def acquire(self) -> int:
        """Take the lock until this process ends; returns what `running` does, if another has it."""
        for _ in range(5):  # `status` holds the lock for a moment, or its owner is just ending
            try:
                before, self.lock = self.lock, self.locked(fcntl.LOCK_EX)
                if before is not None:
                    os.close(before)  # of a file that was cleaned away
                if self.folder:
                    with suppress(OSError):  # it is overwritten: that can be done on a full disk
                        os.pwrite(self.lock, b"%-19d\n" % os.getpid(), 0)
                return 0
            except BlockingIOError:
                time.sleep(0.1)
            except OSError as error:  # some file systems know no locks
                said = f"no lock can be had in {self.folder or self.home} ({error.strerror})"
                self.problem = f"{said}: make sure that no second loop works on this plan"
                return 0
        return self.last_pid() or -1

    def running(self) -> int:
        """The pid of the loop that works on the plan now (-1: it does not say), 0: none does."""
        try:
            os.close(self.locked(fcntl.LOCK_SH))
        except BlockingIOError:
            return self.last_pid() or -1
        except OSError:  # there is no lock, or none can be had
            pass
        return 0

    def last_pid(self) -> int:
        """Who took the lock last; 0: it does not say."""
        with suppress(OSError, ValueError):
            return int(read_whole(open_ours(self.folder, self.lock_name, os.O_RDONLY), 100))
        return 0

    def locked(self, how: int) -> int:
        """The descriptor of what is locked until it is closed. BlockingIOError where somebody has
        it, another OSError where it is not there, or no lock can be had."""
        if self.folder:
            flags = os.O_RDWR | os.O_CREAT if how == fcntl.LOCK_EX else os.O_RDONLY
            fd = open_ours(self.folder, self.lock_name, flags)
        else:
            fd = os.open(self.home, os.O_RDONLY)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def write(self, record: Json) -> None:
        """Replace the state file at once and whole. Raises OSError."""
        if not self.folder:
            return
        if self.lock is not None and not os.fstat(self.lock).st_nlink:
            held = self.acquire()  # a lock file that was deleted keeps nobody out
            if held:
                raise OSError(errno.EBUSY, f"another loop works on this plan, {process_of(held)}")
        with private(self.folder) as folder:
            draft = f"{self.name}.{os.urandom(8).hex()}"
            try:
                fd = open_ours(self.folder, draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(json.dumps(record))  # `dump` is three times as slow
                os.replace(draft, self.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:  # a full disk
                with suppress(OSError):
                    os.unlink(draft, dir_fd=folder)
                raise

    def read(self) -> Json:
        """The state file; empty when there is none, or when somebody damaged it."""
        return read_record(self.folder, self.name)


def read_record(folder: str, name: str) -> Json:
    try:
        record = as_dict(json.loads(read_whole(open_ours(folder, name, os.O_RDONLY), LARGEST)))
        json.dumps(all_printable([[[record]]]))  # what is nested too deep to be shown is not ours
        return {} if b"\0" in os.fsencode(as_text(record, "plan")) else record  # no path of a file
    except (OSError, ValueError, RecursionError):
        return {}


def plans_of_all() -> list[str]:
    """The plans that a run of this user's works on, or worked on; the newest run comes first."""
    folder, _problem = private_folder()
    names = os.listdir(folder) if folder else []
    records = [read_record(folder, name) for name in names if name.endswith(".json")]
    records.sort(key=lambda record: as_float(record, "updated"), reverse=True)
    return list(filter(None, (as_text(record, "plan") for record in records)))


@contextmanager
def private(folder: str) -> Iterator[int]:
    """The descriptor of a folder of our own, which is made where it is missing. OSError where it
    is a link, or somebody else may write into it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        is_ours = found.st_uid == os.getuid() and not found.st_mode & 0o022
        if not (is_ours and os.access(folder, os.W_OK | os.X_OK)):
            raise PermissionError(errno.EPERM, "it cannot be written, or others may write into it")
        yield fd
    finally:
        os.close(fd)


def open_ours(folder: str, name: str, flags: int) -> int:
    """Open a file of ours in a folder of our own, never by way of a link."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK
    with private(folder) as place:
        return os.open(name, flags, 0o600, dir_fd=place)


def private_folder() -> tuple[str, str]:
    """The folder where state is kept ("": there is none), and a warning if it is not the usual."""
    home = [os.path.expanduser(step) for step in ("~/", "~/.local", "~/.local/state")]
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):  # the specification of XDG_STATE_HOME wants that
        home = [given]
    temporary = os.environ.get("TMPDIR") or "/tmp"
    wanted = os.path.join(home[-1], "ocloop")
    fallback = os.path.join(temporary, f"ocloop-{os.getuid()}")
    for folder, above in ((wanted, home), (fallback, [temporary])):
        # Without HOME and an entry of this user's, "~" stays.
        if os.path.isabs(folder) and all(map(is_safe, above)):
            with suppress(OSError), private(folder):
                is_wanted = folder == wanted
                return folder, "" if is_wanted else f"{wanted} cannot be used: using {fallback}"
    problem = f"neither {wanted} nor {fallback} can be used: no `status`"
    return "", f"{problem}, and no second loop on any plan in this folder"


def is_safe(folder: str) -> bool:
    """Whether only we and root could replace what is in it. (As root, a user's home is not safe:
    under `sudo` without -H.) What is not there is."""
    with suppress(OSError):
        found = os.stat(folder)
        is_open = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        return found.st_uid in (0, os.getuid()) and not is_open
    return True


GIT_WITHIN = 5.0  # seconds: what git says is worth no more


def git(directory: str, *arguments: str) -> str | None:
    """What git says of a project; None where it has nothing to say, or takes too long."""
    argv = ["git", "--no-optional-locks", "-C", directory, *arguments]  # it disturbs nobody's work
    said = said_by(argv, GIT_WITHIN)
    return None if said is None else said.decode("utf-8", "surrogateescape").strip("\n")


def changes_since(directory: str, commit: str) -> Json | None:
    """How many files and lines differ from that commit, whether or not they are committed."""
    how = ("--numstat", "--no-renames", "--no-ext-diff", "--no-textconv")
    differ = git(directory, "diff", *how, commit, "--", ".") if commit else None
    if differ is None:  # without a run, git is not let loose on what may be somebody else's
        return None
    rows = re.findall(r"(?m)^(\d*)-?\t(\d*)-?\t", differ)  # "-": it is binary
    added, removed = (sum(int(row[i] or 0) for row in rows) for i in (0, 1))
    others = git(directory, "ls-files", "--others", "--exclude-standard", "-z") or ""
    names = list(filter(None, others.split("\0")))
    until = time.monotonic() + GIT_WITHIN  # an agent may leave large ones behind
    for name in names:
        if time.monotonic() < until:
            text, _problem = read_text(os.path.join(directory, name), "file")
            added += (text or "").count("\n")
    counts = {"files": len(rows) + len(names), "untracked": len(names)}
    return {"commit": commit, **counts, "added": added, "removed": removed}


# ---- driver --------------------------------------------------------------------------------------


class Driver:
    """The main thread: one inbox, one run, and everything that feeds it and is fed by it."""

    TICK = 0.25  # seconds
    RECORD_EVERY = 10.0  # seconds between two writings of the state file while nothing changes

    def __init__(self, run: Run, run_file: RunFile) -> None:
        self.run = run
        self.run_file = run_file
        self.before = run_file.read()  # what the last run left
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        options = run.options
        self.outside = Outside(options, self.inbox.put, run_file.libraries)
        self.writer = Writer(self.inbox.put)
        self.log = Log(options.log, self.writer)
        self.logged = 0  # entries of the journal
        self.screen: LineScreen | CursesScreen
        self.picture: Picture | None = None
        self.shown_at = 0.0  # of time's monotonic clock
        self.recorded: list[object] = []  # what the state file says, in short
        self.notifying: Request | None = None  # the last --notify
        self.commit = ""  # at which the project stands when it begins, where there is git

    def work(self) -> int:
        """Run until the run ends; whatever happens, nothing of it is left behind."""
        self.inbox.put(None)  # begins the run, before a screen can post a key
        screen = CursesScreen if self.run.options.attended else LineScreen
        self.screen = screen(self.inbox.put)
        sys.setswitchinterval(0.0005)  # a frame that is laid out must not hold up a request
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup, or in a script's `… &`
                signal.signal(signum, self._take_signal)
        threading.excepthook = lambda args: self.inbox.put(args.exc_value)
        try:
            in_thread(self._note_commit)
            while self.run.exit_status is None:
                try:
                    event = self.inbox.get(timeout=self.TICK)
                except queue.Empty:
                    event = None  # only time has passed
                if isinstance(event, BaseException):  # a bug on another thread
                    raise event
                self._carry_out(self.run.handle(event, time.time()))
                if time.monotonic() - self.shown_at >= CursesScreen.FRAME:
                    self._show()
        except Exception as error:
            self._tell_of_bug(error)
            raise RuntimeError("a bug of ocloop's") from error  # `main` shows all of it
        finally:
            self._leave()
        return self.run.exit_status

    def _take_signal(self, signum: int, frame: Any) -> None:
        screen = self.screen
        if signum == signal.SIGHUP:
            self.inbox.put(ScreenLost("the terminal is gone (SIGHUP)"))
        elif signum == signal.SIGINT and isinstance(screen, CursesScreen) and self.run.attended:
            if screen.handed is None:  # else ctrl-c is not for us
                self.inbox.put(Key("q"))  # asks once, as Q does: it may be meant for another
        else:
            self.inbox.put(Signalled(signal.Signals(signum).name))

    def _note_commit(self) -> None:
        self.commit = git(self.run.options.directory, "rev-parse", "HEAD") or ""

    def _tell_of_bug(self, error: Exception) -> None:
        """Whoever sleeps must hear of it, wherever the run stands."""
        reason = f"ocloop itself failed: {error!r}: please report it"
        run = self.run
        with suppress(Exception):
            run.show("error", reason)
            run.requests.clear()
            tell_end(run, End("error", 1, reason))
            self._carry_out(run.requests)

    def _carry_out(self, requests: Sequence[Request]) -> None:
        """Have requests made, and what is new in the journal logged."""
        for request in requests:
            if request.name == "hand_over":
                assert isinstance(self.screen, CursesScreen)  # lines take no key
                argv, environment = attach_command(record_of(self.run, self.outside, None))
                environment[MARK] = f"{self.outside.mark}.attach"
                lend_libraries(self.outside.libraries, environment)
                self.screen.handed = (request, argv, environment)
                continue
            if request.name == "notify":
                self.notifying = request
            self.outside.make(request)
        journal = self.run.journal
        if journal.count > self.logged:
            self.log.add(list(journal.entries)[self.logged - journal.count :])
            self.logged = journal.count

    def _show(self) -> None:
        run = self.run
        self.shown_at = time.monotonic()
        picture = Picture(run)
        if self.picture is None or vars(picture) != vars(self.picture):
            self.picture = picture
            self.screen.show(picture)
        # The plan is among these: what is gone from it must survive `kill -9`.
        news: list[object] = [run.shown_state, run.reason, run.plan, run.number]
        news.append(run.talk and (run.talk.id, len(run.talk.asks.open)))
        news.append(int(run.now / self.RECORD_EVERY))
        if news != self.recorded:
            self.recorded = news
            self._record(None)

    def _record(self, status: int | None) -> None:
        record = record_of(self.run, self.outside, status, self.commit)
        if status == 130 and not self.run.number and self.before:  # somebody has only looked
            record = {**self.before, "pid": os.getpid()}
        if self.outside.abandoned:  # the next run stops it
            theirs = {"server": self.run.options.server, "is_theirs": True}
            record.update(theirs, session=self.outside.abandoned)
        job = partial(self.run_file.write, record)
        self.writer.put(job, self.run_file.path, "`status` cannot tell of this run")

    def _leave(self) -> None:
        """End everything, in this order, whatever a step raises."""
        run = self.run
        status = 1 if run.exit_status is None else run.exit_status  # None: there was a bug
        session = run.talk.id if run.talk else run.server.abandoned
        steps: tuple[Callable[[], None], ...] = (
            self._show,
            lambda: self._close_outside(session),
            self._hear_last,
            self.screen.close,
            lambda: self._record(status),
            self.writer.close,
            lambda: self._say_goodbye(status),
        )
        with ExitStack() as stack:  # it begins with the last one
            for step in reversed(steps):
                stack.callback(step)

    def _close_outside(self, session: str) -> None:
        """On a thread: a start that hangs, as in a file system that is away, has the lock."""
        try:
            in_thread(self.outside.close, session).join(CLOSED_WITHIN)
        except RuntimeError:  # no thread can be started
            self.outside.close(session)

    def _hear_last(self) -> None:
        """What comes too late for the run, such as how the last --notify ended, is in the log."""
        until = time.monotonic() + 3.0
        while True:
            is_due = bool(self.notifying and not self.notifying.answer and time.monotonic() < until)
            try:
                event = self.inbox.get(is_due, 0.1)
            except queue.Empty:
                if not is_due:
                    break
                continue
            if isinstance(event, (Noted, Answer)):
                self.run.hear(event)
        if self.notifying and not self.notifying.answer:
            self.run.journal.note("warn", "the last --notify has not ended yet", "warn")
        self._carry_out([])
        self._show()

    def _say_goodbye(self, status: int) -> None:
        """Leave the summary where it can be scrolled back to. A terminal that takes no output, and
        the thread that is stuck in it, are not waited for."""
        if self.screen.thread.is_alive() or not takes_output():
            os._exit(status)
        try:
            if isinstance(self.screen, CursesScreen):
                lines = [f"ocloop: {self.run.reason}", *summary_of(self.run)]
                if self.outside.abandoned:
                    lines.append(ABANDONED.format(self.outside.abandoned, self.run.options.server))
                say("\n  ".join(lines))
            sys.stdout.flush()
        except OSError:  # else the exit status would tell of this instead
            os._exit(status)


# ---- command line --------------------------------------------------------------------------------
# The commands and their parser, and in `main` the last place where a Problem is caught.

STARTER_TASK = "Describe one task in one line, small enough for one session"
STARTER_PLAN = f"""\
# Plan

What this plan is for, and what an agent has to know to work on it without asking: goals, limits,
how to build, how to test.

## Phase 1: foundations

- [ ] {STARTER_TASK}, with how to see that it is done
- [ ] Describe the next one; the order of the lines is the order of the work

## Phase 2: everything else

- [ ] A task may point to files, commands and documents
- [MANUAL] What only a person can do is marked like this and skipped
"""

STARTER_PROMPT = """\
---
description: work on one task of the plan
---

You work on one task of the plan in {{PLAN_FILE}}, in a session of your own. Nobody is watching, and
what you do not write down is forgotten when the session ends.

1. Read {{PLAN_FILE}} from start to end.
2. Choose the first task marked `[ ]` in the earliest phase that is not finished. Work on this one
   task alone: never batch tasks, never begin the next one. Leave alone what is marked `[MANUAL]` or
   `[BLOCKED]`.
3. Do it.
4. Verify it: run the tests, the build, or whatever shows that it works. Mend what does not.
5. Mark it in {{PLAN_FILE}}: change its `[ ]` to `[x]`. If it cannot be done (a permission, a
   service or a decision is missing), change its box to `[BLOCKED: the reason in a few words]`
   instead, and write below it how far it got: the next session knows no more than what it finds.
6. When no `[ ]` is left anywhere in the plan, append to its end, on a line of its own:
   `<plan-complete>what was done, what is blocked and why, what a person has to do</plan-complete>`
   Write that tag in no other case.

Then end your turn.

{{CHECK}}
"""


# Looking before the start.


def absolute(path: str) -> str:
    try:
        path = os.path.abspath(os.path.expanduser(path))
        path.encode()
    except OSError:
        raise Problem("this directory is gone: change into one that exists") from None
    except UnicodeEncodeError:
        advice = "rename it, since OpenCode cannot be told of it"
        raise Problem(f"{path} is not UTF-8: {advice}") from None
    return path


def find_opencode(asked: str) -> tuple[str, ...]:
    """The command that starts OpenCode, as argv."""
    try:
        argv = shlex.split(asked) or ["opencode"]
    except ValueError as error:
        raise Problem(f"--opencode {asked}: mind its quotes ({error})", 2) from None
    found = shutil.which(argv[0])
    if not found and not asked and is_safe(os.path.expanduser("~/")):
        found = shutil.which(os.path.expanduser("~/.opencode/bin/opencode"))
    if not found:
        how = "is no program" if os.path.exists(argv[0]) else "is not there"
        raise Problem(
            f"{argv[0] or '--opencode'} {how}: install OpenCode (`npm install -g opencode-ai`), or "
            'let npx fetch it with --opencode "npx -y opencode-ai"'
        )
    return (os.path.abspath(found), *argv[1:])


def make_options(given: argparse.Namespace) -> Options:
    """Everything that `run` has to know; paths become absolute here."""
    named = {name: getattr(given, name, None) for name in Options._fields}
    options = Options(**{name: value for name, value in named.items() if value is not None})
    needs_none = options.server and not given.opencode
    return options._replace(
        directory=absolute("."),
        plan=absolute(options.plan),
        prompt=absolute(options.prompt),
        models=tuple(given.model or ()),
        log=absolute(options.log) if options.log else "",
        attended=not (given.plain or why_no_screen()),
        asks_wait=bool(given.ask_timeout),
        opencode=() if needs_none else find_opencode(given.opencode or ""),
        # Of the two addresses of that name, the other one may be somebody else's.
        server=re.sub("^http://localhost(?=[:/]|$)", "http://127.0.0.1", options.server),
    )


def preflight(options: Options) -> tuple[Plan, list[str], list[str]]:
    """The plan, what is wrong and what is odd; `run` and `--dry-run` refuse the same."""
    text, plan_problem = read_text(options.plan, "plan")
    prompt, prompt_problem = read_text(options.prompt, "prompt")
    plan = parse_plan(text or "")
    fields, body = split_front_matter(prompt or "")
    name = os.path.basename(options.plan)
    problems = [
        plan_problem or problem_of_plan(plan, options.plan),
        prompt_problem or ("" if body else NO_PROMPT.format(options.prompt)),
    ]
    warnings = name_near_misses(name, plan.near_misses)
    if any(task.text.startswith(STARTER_TASK) for task in plan.tasks):
        said = f"{name} is still the starter: write your own tasks into it"
        (warnings if options.attended else problems).append(said)
    if plan.summary is not None:
        said = f"{options.plan} is marked complete already ({how_complete(plan)[1]})"
        warnings.append(f"{said}: take out its <plan-complete> tag to work on it again")
    if options.debug:
        problems.clear()
    warnings += oddities_of_prompt(options.prompt, fields, body)
    home = os.path.expanduser("~/")
    if not is_safe(home):
        warnings.append("the home folder is another user's, or open to all: use `sudo -H`")
    if options.directory in ("/", os.path.realpath(home)):
        advice = "change into the project's own folder"
        warnings.append(f"the project is {options.directory}, all of it: {advice}")
    problems += [problem_above(options.directory), problem_of_log(options)]
    problems += problems_of_commands(options)
    return plan, list(filter(None, problems)), warnings


def oddities_of_prompt(path: str, fields: dict[str, str], body: str) -> list[str]:
    """What is in it and means nothing, or is not in it and should be."""
    warnings = []
    if not fields and re.match(r"---\s*\n(?s:.*?)^(?:model|agent)\s*:", body, re.MULTILINE):
        said = "a line of the block on top is no `key: value`: the agent gets it as text"
        warnings.append(f"{path}: {said}")
    places = re.findall(r"\{\{(\w+)\}\}", body)
    if body and "PLAN_FILE" not in places:
        warnings.append(NO_PLACE.format(path))
    for known, used in ((FRONT_MATTER, fields), (PLACES, places)):
        unknown = ", ".join(sorted(set(used).difference(known)))
        if unknown:
            warnings.append(f"{path}: {unknown} means nothing here: {', '.join(known)} do")
    return warnings


def problem_above(directory: str) -> str:
    """That OpenCode would read, above a project and up to where git begins, what is neither ours,
    nor root's, nor the project's owner's; else ""."""
    trusted = {0, os.getuid(), os.stat(directory).st_uid}
    folder = os.path.realpath(directory)
    while not os.path.lexists(os.path.join(folder, ".git")) and folder != "/":
        folder = os.path.dirname(folder)
        for name in ("opencode.json", "opencode.jsonc", ".opencode", "AGENTS.md", "CLAUDE.md"):
            path = os.path.join(folder, name)
            if os.path.lexists(path) and os.lstat(path).st_uid not in trusted:
                advice = "have it removed, or run `git init` here"
                return f"OpenCode would read {path}, which is another user's: {advice}"
    return ""


def problem_of_log(options: Options) -> str:
    """Why --log cannot be written, or must not; "": it can."""
    log = options.log
    place = log if os.path.exists(log) else f"{os.path.dirname(log)}/"
    why = ""
    known = [path for path in (options.plan, options.prompt) if os.path.exists(path)]
    if os.path.exists(log) and any(os.path.samefile(log, path) for path in known):
        why = "it is the plan or the prompt"
    elif os.path.isdir(log) or (os.path.islink(log) and not log.startswith("/dev/")):
        why = "it is a folder or a link"  # none is followed
    elif log and not os.access(place, os.W_OK):
        why = f"{place} is not there, or may not be written"
    return f"the log {log} cannot be written ({why}): name another path with --log" if why else ""


def problems_of_commands(options: Options) -> list[str]:
    """Commands that are not there, as far as that can be told of a shell's text."""
    problems = []
    look = ["/bin/sh", "-c", 'command -v "$1" >/dev/null', "sh"]
    for option, command in (("--check", options.check), ("--notify", options.notify)):
        word = re.match(r"\s*([\w./+-]+)(?!\S)", command)  # else it is a shell's own syntax
        if word and subprocess.call([*look, word[1]], cwd=options.directory):
            problems.append(f"{option}: there is no command {word[1]}")
    return problems


# run


def run(given: argparse.Namespace) -> int:
    """Work the plan; returns the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, every exit status would read as 0
    options = make_options(given)
    plan, problems, warnings = preflight(options)
    run_file = RunFile(options.plan)
    is_over = plan.summary is not None and not (options.check or problems or given.dry_run)
    only_looks = given.dry_run or problems or is_over
    held = run_file.running() if only_looks else run_file.acquire()
    if held:
        problems.append(f"another loop works on this plan ({process_of(held)}): see `status`")
        run_file.libraries = ""  # the other loop's server has them mapped: leave them alone
    elif is_over:
        say("\n".join(warnings))
        return how_complete(plan)[0]
    for path in plans_of_all():
        beside = RunFile(path)
        is_here = beside.read().get("directory") == options.directory
        if is_here and beside.path != run_file.path and beside.running():
            warnings.append(f"another loop works in this folder, on {path}: they share all files")
    if given.dry_run:
        options = options._replace(attended=False, log="", notify="")
        loop: Run = Rehearsal(options, plan, problems)
        # A rehearsal writes no state file, and stops no session that a real run has left.
        run_file.folder = ""
    elif problems:
        odd = [f"warning: {warning}" for warning in warnings]
        raise Problem("\n        ".join([*problems, *odd]))
    else:
        loop = Run(options, time.time(), os.urandom(4).hex())
        if sys.stdout.isatty() and not (options.attended or given.plain):
            warnings.append(f"plain lines, since {why_no_screen()}")
    loop.files.plan = plan  # for the first picture: it is read again before it is worked
    for warning in filter(None, [*warnings, run_file.problem]):
        loop.journal.note("warn", warning, "warn")
    # Threads inherit what is blocked. Two signals are for the screen's thread alone; the other one
    # would stop a run that prints in the background of a terminal with `stty tostop`.
    held_back = (signal.SIGWINCH, signal.SIGTSTP) if options.attended else (signal.SIGTTOU,)
    signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    driver = Driver(loop, run_file)
    before = driver.before
    if options.server and options.server == before.get("server"):  # "": all was stopped there
        loop.server.abandoned = as_id(before, "session")
    texts = {task.text for task in plan.tasks}
    if any(as_text(task, "text") in texts for task in dicts(before, "tasks")):  # the same plan
        loop.books.gone = as_texts(before, "gone")
    return driver.work()


class Rehearsal(Run):
    """`--dry-run`: a run up to where it would wait for S, and no further."""

    def __init__(self, options: Options, plan: Plan, problems: list[str]) -> None:
        super().__init__(options, time.time())
        self.problems = problems
        self.files.trouble = "".join(problems)  # not empty: `Files.take` does not say it again
        self.journal.note("opencode", options.server or shlex.join(options.opencode))
        for line in (f"{options.plan}: {plan}", *tasks_as_read(plan)):
            self.journal.note("plan", line)
        for problem in problems:
            self.journal.note("problem", problem, "bad")

    async def main(self) -> int:
        is_good = not self.problems
        try:
            await self.get_ready()
        except Problem as problem:
            is_good = False
            self.journal.note("problem", str(problem), "bad")
        except Quit:
            return 130
        models, agent, _body = self.model_line.read()
        models = tuple(filter(None, models)) or (self.model or "OpenCode's own",)
        self.journal.note("model", ", then ".join(models))
        self.journal.note("agent", agent or "OpenCode's own")
        said = "no problem was found" if is_good else "there are problems"
        self.journal.note("end", f"{said}; the server was asked, and no prompt was sent")
        return 0 if is_good else 1


def tasks_as_read(plan: Plan) -> list[str]:
    """How the plan was understood, in its first twenty tasks: phase, nesting, sign."""
    lines: list[str] = []
    phase = ""
    for task in plan.tasks[:20]:
        if task.phase != phase:
            phase = task.phase
            lines.append(f"# {phase}")
        signs = {"pending": "~" if task.begun else " ", "done": "x"}
        other = f"{task.state.upper()}: {task.reason}".removesuffix(": ")
        mark = signs.get(task.state, other)
        lines.append(f"{'  ' * task.depth}[{mark}] {task.text}")
    if len(plan.tasks) > 20:
        lines.append(f"… and {len(plan.tasks) - 20} more")
    return lines


# bootstrap, status, attach


def bootstrap(given: argparse.Namespace) -> int:
    """Write the starter files; what is there is left alone, or kept as a copy."""
    folder = absolute(given.directory)
    os.makedirs(folder, exist_ok=True)
    for name, text in (("PLAN.md", STARTER_PLAN), (".loop-prompt.md", STARTER_PROMPT)):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            if not given.force:
                say(f"skipped  {path}: it exists already (--force replaces it, and keeps a copy)")
                continue
            copy = f"{path}~"
            while os.path.lexists(copy):
                copy += "~"
            os.replace(path, copy)
            say(f"kept     {copy}: what {name} was")
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        say(f"wrote    {path}")
    say("\nNext: write your tasks into PLAN.md, look over .loop-prompt.md, then:")
    me = f"python3 {shlex.quote(os.path.abspath(sys.argv[0]))}"
    say(f"  cd {shlex.quote(folder)}\n  {me} run --dry-run\n  {me} run")
    return 0


def status_at(path: str) -> tuple[Plan, str, Json]:
    """A plan, why it cannot be read, and what `status --json` says of it."""
    text, problem = read_text(path, "plan")
    plan = parse_plan(text or "")
    run_file = RunFile(path)
    pid = run_file.running()
    found = run_file.read()
    record = {name: fact for name, fact in found.items() if name not in SECRETS}
    last_pid = pid or run_file.last_pid()
    if last_pid and record.get("pid") != last_pid:
        record = {}  # an earlier run's: the last run has not written one, or could not
    by_key: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    by_text = {task.text: task.state for task in plan.tasks}
    for known in plan.tasks:
        by_key[known.key].append(known.state)
    for task in dicts(record, "tasks"):  # as they are now; several may have one key
        phase, text = as_text(task, "phase"), as_text(task, "text")
        states = by_key[phase, text]
        task["state"] = states.pop(0) if states else by_text.get(text, "gone")
    if record.get("gone"):
        gone = as_texts(record, "gone")
        record["gone"] = [text for text in gone if text not in by_text]
    if record and not pid:  # the run may have been killed while it waited
        record.update(waits_for=[], retry="", waiting_until=None)
        if not found.get("is_theirs"):  # else the session may be at work there
            record["server"] = ""
    return plan, problem, status_record(path, plan, pid, record)


def status_record(path: str, plan: Plan, pid: int, record: Json) -> Json:
    """What `status --json` says."""
    known_pid = pid if pid > 0 else None  # `kill` would take 0 and -1 for many
    state = "ended" if record.get("ended") else "killed"
    if pid:
        state = as_text(record, "state") or "starting"
    has_run = pid or record.get("state")
    is_told = plan.summary is not None or (record.get("status") == 0 and bool(plan.tasks))
    is_at_work = bool(pid) and record.get("status") is None  # else the run is at a standstill
    is_checked = dig(record, "check", "verdict") not in ("failed", "interrupted", "not run")
    is_all_done = how_complete(plan, as_texts(record, "gone"))[0] == 0
    report = {
        **counts_of(plan),
        "percent": plan.percent,
        "complete": is_told and is_checked and is_all_done and not is_at_work,
        "summary": plan.summary,
        "running": bool(pid),
        "pid": known_pid,
        "near_misses": [f"{os.path.basename(path)}:{near}" for near in plan.near_misses],
        "changes": None,  # `status` fills it in; for --all, git would take too long
        "next_steps": next_steps(plan, record, is_at_work),
        "run": {**record, "pid": known_pid, "state": state} if has_run else None,
    }
    return {"plan": path, **all_printable(report)}


def status(given: argparse.Namespace) -> int:
    """How far the plan is and how the run on it is doing; 0 complete, 3 work is left, 1 no plan."""
    if given.all:
        return status_of_all(given.json)
    plan, problem, report = status_at(absolute(given.plan or Options().plan))
    if problem:
        raise Problem(problem)
    run = as_dict(report["run"])
    report["changes"] = changes_since(as_text(run, "directory"), as_id(run, "commit"))
    say(json.dumps(report) if given.json else "\n".join(status_lines(plan, report)))
    return 0 if report["complete"] else 3


def status_of_all(as_json: bool) -> int:
    """A line for each loop on this machine that runs, or ran last; the newest comes first."""
    records = []
    lines = [f"{'state':<15} {'tasks':<28} {'cost':>8} {'time':>7}  plan"]
    for path in plans_of_all():
        if not os.path.isdir(os.path.dirname(path)):
            continue
        plan, problem, report = status_at(path)
        records.append(report)
        run = as_dict(report["run"])
        status = "" if run.get("status") is None else run["status"]
        how = f"{run.get('state', 'killed')} {status}"
        far = "no plan any more" if problem else " · ".join(progress_of(plan))
        cost, took = dollars_of(as_float(run, "cost")), duration(as_float(run, "elapsed"))
        why = ellipsis(said_why(run), 62)
        lines.append(f"{how:<15} {far:<28} {cost:>8} {took:>7}  {path}{why}")
    if not records:
        lines = ["no loop has run on this machine"]
    say(json.dumps(records) if as_json else "\n".join(lines))
    return 0


def process_of(pid: int | None) -> str:
    return f"process {pid}" if pid and pid > 0 else "its process is not known"


def said_why(run: Json) -> str:
    return f": {one_line(as_text(run, 'reason'))}" if run.get("reason") else ""


def said_counts(run: Json, name: str) -> str:
    return ", ".join(f"{what} ×{as_int(times)}" for what, times in as_dict(run, name).items())


def status_lines(plan: Plan, report: Json) -> list[str]:
    """The same for a person in the morning; what is empty is not shown."""
    run = as_dict(report["run"])
    gone = as_texts(run, "gone")
    mark = ""
    if report["complete"]:
        mark = ", complete"
    elif plan.summary is not None:
        mark = f", {how_complete(plan, gone)[1]}".replace(PLAN_COMPLETE, "marked complete")
    elif not plan.pending:
        mark = ", not marked complete yet"
    how = "none so far"
    if report["running"]:
        how = f"{run['state']}{said_why(run)}, {process_of(run['pid'])}"
        how += f" (`kill {run['pid']}` ends it in good order)" if run["pid"] else ""
    elif run:
        how = "ended" if run["state"] == "ended" else "was killed after"
        how += f" {iso_time(run.get('ended') or run.get('updated')) or '?'}{said_why(run)}"
    changes, changed = report["changes"], ""
    if changes:
        changed = "{files} files ({untracked} untracked), +{added} −{removed}".format(**changes)
        changed += f" since {time_of_day(run.get('started'))} (git diff {changes['commit']:.7})"
    # The first line of what the next session is told is for agents.
    output = as_text(as_dict(run, "check"), "told").split("\n")[1:]
    name = os.path.basename(report["plan"])
    rows = [
        ("plan", report["plan"]),
        ("progress", f"{plan}{mark}"),
        ("next", plan.current.text if plan.current else ""),
        ("run", how),
        ("again", time_of_day(run.get("waiting_until"))),
        *((name, as_text(run, name)) for name in ("retry", "task", "session", "server")),
        ("started", iso_time(run.get("started"))),
        *((name, as_text(run, name)) for name in ("log", "model")),
        ("spent", said_spent(run) if run.get("iteration") else ""),
        ("outcomes", said_counts(run, "counts")),
        ("refused", said_counts(run, "refused")),
        ("changes", changed),
        *(("check", line) for line in output[-8:]),
        *(("summary", line) for line in (plan.summary or "").split("\n")),
        *((state, task) for state in ("blocked", "manual") for task in tasks_in(plan, state)),
        *(("warning", near) for near in name_near_misses(name, plan.near_misses)),
        *(("gone", text) for text in gone),
    ]
    lines = [f"{name:<9} {fact}" for name, fact in rows if fact]
    steps = [f"to do     {step}" for step in report["next_steps"]]
    return [*lines, *task_lines(run, report["running"]), *([""] if steps else []), *steps]


def task_lines(run: Json, is_running: bool) -> list[str]:
    """What the run spent on each task that it worked on."""
    lines = []
    for task in dicts(run, "tasks"):
        state, text = as_text(task, "state"), as_text(task, "text")
        if state == "pending" and is_running and text == run.get("task"):
            state = "at work"
        elif state == "done" and task.get("outcome") == "check failed":
            state = "check failed"
        took, cost = duration(as_float(task, "seconds")), dollars_of(as_float(task, "cost"))
        tries = as_int(task, "iterations")
        if tries:
            lines.append(f"{state:<12} {took:>6} {cost:>8} {tries:>6}  {text}")
    return ["", "state          time     cost  tries  task", *lines] if lines else []


def attach(given: argparse.Namespace) -> NoReturn:
    """Become OpenCode's own interface on the running loop's session."""
    path = absolute(given.plan or Options().plan)
    run_file = RunFile(path)
    record = run_file.read()
    if not run_file.running():
        raise Problem(f"no loop works on {path}: name another plan with --plan")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Problem("attach needs a terminal: without one there is `status`")
    if not as_id(record, "session") or "opencode" not in record:  # which is there with a server
        raise Problem("the loop has no session right now: try again in a moment")
    record["opencode"] = as_list(record["opencode"]) or list(find_opencode(""))
    argv, environment = attach_command(record)
    lend_libraries(run_file.libraries, environment)  # the run clears that folder
    os.execvpe(argv[0], argv, environment)


# The options of each command, as `Parser` reads them: a line without a description begins a group.
# The defaults in brackets are those of Options; a test holds the two together.

PLAN_OPTION = "--plan PATH           the plan file (PLAN.md)\n"
RUN_OPTIONS = f"""\
what is worked
{PLAN_OPTION}\
--prompt PATH         the loop prompt (.loop-prompt.md)
-m --model PROVIDER/MODEL  model to use; given again, the next one in line when that one cannot
-a --agent AGENT      agent to use; otherwise the prompt's, otherwise OpenCode's own
-r --run              start at once, without waiting for S
-d --debug            skip the validation of the plan file
--dry-run             check everything, also with the server, and work nothing
when it stops
--max-iterations N    after N iterations
--max-cost USD        when OpenCode counts this much; in the midst of an iteration at twice
--max-time DURATION   when this much time has passed; the same at twice that
--max-wait DURATION   after waiting so long, in a row, for a provider (24h)
--stuck N             after N in a row settled no task, and one more; or failed --check (5)
--retries N           when an iteration failed, and N more tries in a row (5)
--iteration-timeout DURATION  abort an iteration that takes longer, and try again (4h)
--stall-timeout DURATION  abort an iteration in which nothing happens for so long (15m)
when nobody is there
--auto                approve what is asked, except what the configuration denies
--ask-timeout DURATION  refuse what nobody answered so long (5m; without a terminal: at once)
--check CMD           shell command that must succeed after every iteration
--check-timeout DURATION  end the check then (10m)
--notify CMD          shell command to run when it ends, stops, or asks
--log PATH            append every entry to PATH (JSON lines for .jsonl)
the screen
--plain               plain lines, and start at once (the default without a terminal)
--verbose             every event of the server in the activity
the server
-p --port PORT        port of the server (4096, or a free one when that is taken)
--opencode CMD        how to start OpenCode, e.g. "npx -y opencode-ai"
--server URL          use a server that runs already (its login: OPENCODE_SERVER_PASSWORD)
--server-memory MIB   replace the server between iterations when it has grown larger (2048)
"""
BOOTSTRAP_OPTIONS = """\
DIRECTORY             where to write them (here)
-f --force            replace what exists, and keep a copy of it
"""
STATUS_OPTIONS = f"""\
{PLAN_OPTION}\
--all                 a line for each loop on this machine that runs, or ran last
--json                print it as JSON
"""

EXIT_STATUSES = """\
exit statuses:
  0 the plan is complete, all of it        1 it failed        2 usage
  3 it stopped with work left (a limit, stuck, blocked, or marked complete too
    early)
  130 a person or a signal stopped it
"""
HELP = f"""\
examples:
  python3 ocloop.py run            show the screen; S starts
  python3 ocloop.py run --run --max-cost 20 --max-time 8h --check 'make test' \\
      --notify 'echo "$OCLOOP_MESSAGE" | mail -s ocloop me@example.org'
  python3 ocloop.py status         how is it doing? (from any other terminal)

{EXIT_STATUSES}"""
KEY_LINES = "\n".join(f"  {name:<7} {what}" for name, what in KEYS)
RUN_HELP = f"""\
keys:
{KEY_LINES}

Durations read 90, 90s, 15m, 2h, 1h30m. 0 means off, of whatever takes a number.
The prompt may contain {{{{PLAN_FILE}}}}, {{{{TASK}}}}, {{{{ITERATION}}}} and {{{{CHECK}}}};
a `---` block on its top may set `model:` (a comma separates several), `agent:`.

{EXIT_STATUSES}"""
STATUS_HELP = """\
From any terminal, while a run works and after it. It exits with 0 when the plan
is complete, with 3 while work is left, and with 1 where there is no plan."""
ATTACH_HELP = """\
Leave the interface with ctrl-c: the loop goes on. A session that is over stays
on the screen: attach again for the next one."""
COMMANDS = (
    (run, "Work the plan in this directory until it is complete", RUN_OPTIONS, RUN_HELP),
    (bootstrap, "Write a starter PLAN.md and .loop-prompt.md", BOOTSTRAP_OPTIONS, ""),
    (status, "How far a plan is, and how a run on it is doing", STATUS_OPTIONS, STATUS_HELP),
    (attach, "Join the loop's session in OpenCode's own interface", PLAN_OPTION, ATTACH_HELP),
)


def seconds_of(text: str) -> float:
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"([\d.]+)([dhms]?)", text)
    return min(LONGEST_TIME, sum(float(number) * units[unit] for number, unit in parts))


# What a value looks like, what becomes of it, and what to write in place of any other.
_NUMBER = r"\d+(\.\d+)?"
_HOST = r"(\[[0-9a-fA-F:.]+\]|[^/@:\s]+)"
_MODEL = r"[^/\s,]+/[^\s,#]+(#[^\s,#]+)?"
_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_COUNT = (r"\d{1,9}", int, "a whole number; 0 means off")
VALUES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "N": _COUNT,
    "MIB": _COUNT,
    "USD": (r"\d{1,9}(\.\d*)?|\.\d+", float, "dollars such as 20 or 0.50; 0 means off"),
    "DURATION": (rf"{_NUMBER}|({_NUMBER}[dhms])+", seconds_of, "90, 15m, 2h; 0 means off"),
    "PORT": (_PORT, int, "a number up to 65535"),
    "URL": (rf"https?://{_HOST}(:{_PORT})?(/[^@\s]*)?", str, "http://HOST:PORT, without a login"),
    "CMD": (r"(?s).*\S.*", str, "a command"),
    "PATH": (r"(?s).*\S.*", str, "a path"),
    "AGENT": (r"(?s).*\S.*", str, "a name"),
    "PROVIDER/MODEL": (
        f"{_MODEL}(,{_MODEL})*",
        lambda text: text.split(","),
        "one that `opencode models` lists",
    ),
}


def value_of(kind: str, text: str) -> Any:
    """What a text stands for; argparse's error where it does not look like that."""
    if kind not in VALUES:
        return text
    pattern, convert, advice = VALUES[kind]
    if not re.fullmatch(pattern, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind}: write {advice}")
    return convert(text)


class Version(argparse.Action):
    """Which file this is, too: a copy that somebody edited has another sum."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import hashlib  # needed here alone, and slow to load

        with open(__file__, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        say(f"ocloop {__version__} (SHA-256 {digest[:12]})")
        parser.exit()


class Parser(argparse.ArgumentParser):
    def __init__(self, options: str = "", **how: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=formatter, allow_abbrev=False, **how)
        group: argparse._ActionsContainer = self
        for line in options.splitlines():
            option, _, what = line.partition("  ")
            *flags, last = option.split()
            what = what.strip()
            if not what:
                group = self.add_argument_group(line)
            elif last.startswith("-"):
                group.add_argument(*flags, last, help=what, action="store_true")
            elif not flags:
                group.add_argument(last.lower(), metavar=last, help=what, nargs="?", default=".")
            else:
                action = "extend" if last == "PROVIDER/MODEL" else "store"
                kind = partial(value_of, last)
                group.add_argument(*flags, metavar=last, help=what, type=kind, action=action)

    def error(self, message: str) -> NoReturn:
        raise Problem(f"{message} (`{self.prog} --help` lists what there is)", 2)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    what = "Work through the tasks of a PLAN.md with OpenCode: one fresh session per task."
    parser = Parser(prog="ocloop.py", description=what, epilog=HELP)
    parser.add_argument("--version", action=Version, nargs=0, help="which ocloop, and its SHA-256")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for function, what, options, epilog in COMMANDS:
        command = subparsers.add_parser(
            function.__name__, help=what, description=what, epilog=epilog, options=options
        )
        command.set_defaults(function=function, parser=command)
    first = words[0] if words else ""
    if first.startswith("-") and first not in parser._option_string_actions:
        parser.error(f"{first} is an option of a command: did you mean `run {first}`?")
    given, unknown = parser.parse_known_args(words)
    if unknown:
        word = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(word, given.parser._option_string_actions, 1, 0.75)
        meant = f": did you mean {close[0]}?" if close else ""
        given.parser.error(f"{word} is not known here{meant}")
    return given


def main(words: Sequence[str]) -> int:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: else the next file opened would take its place
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every encoding knows every character
    try:
        given = parse_arguments(words)
        return int(given.function(given))
    except Problem as problem:
        say(f"ocloop: {problem}", sys.stderr)
        return problem.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"ocloop: {where}{error.strerror or error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
