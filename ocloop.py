#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""ocloop: work through a PLAN.md with OpenCode, one fresh session per task, and survive the night.

    python3 ocloop.py bootstrap     write a starter PLAN.md and .loop-prompt.md
    python3 ocloop.py run           work the plan until the agent writes <plan-complete>

One file, the standard library alone, Python 3.9 or newer. It is told from top to bottom: the plan,
what OpenCode says, the rules, the run, what is shown; below that everything that touches the world.

    event stream ---+
    server process -+
    answers --------+--> inbox --> Run.handle ----> requests --> threads --> opencode serve
    signals --------+             (main thread)
    keys, time -----+                 |
                                      +--> view --> layout --> screen

Every thread only posts *events* to the inbox. What they mean is decided by one coroutine, which
waits in one place (section "run": `Run.work` iterates, `iterate` is one session, the plan after it
and the check, `lead` and `watch` are the session, `recall` stops what must not work on). It touches
no clock, file, socket or screen: what is to be done it asks for as *requests*, which `Outside`
carries out, each on a thread of its own.

Glossary:

    server      the `opencode serve` process, ours or the one that --server names
    session     OpenCode's session; a `Talk` is what the run knows of the one at work
    iteration   one session, the plan read after it, and the check: what makes one `Result`
    task        one checkbox of the plan; it is settled when it is done, blocked or manual
    phase       the heading above a task
    outcome     what became of an iteration
    stage       where the run stands, for people;  activity  what OpenCode says a session is doing
    verdict     how the answer to our own prompt stands, as the server's messages tell it
    generation  of OpenCode: 1.x or 2.x;  launch  the n-th start of the server
    attempt     how often the prompt was handed over; of OpenCode's: its own, at the provider
    ask         a permission or a question of an agent's;  request  what the run wants done outside
    check       the command of --check
    limit       what makes a run rest with work left: --max-cost, --max-time, --stuck ...
    code        of HTTP;  status  exit status of a process

A session is *over*; a run *rests* (ready, paused, complete, error) or *ends*.
"""

from __future__ import annotations  # an error here: run it with Python 3.9 or newer

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
    # What lies beside this file may be an agent's: it is no library of ours. (A `__future__.py` is
    # read before this can be said; `python3 -I` minds it, too.)
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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Union, get_args
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import http.client  # with email and ssl it takes long: it is loaded while the server starts

try:
    import curses
except ImportError:  # some minimal Pythons come without it: plain lines then
    curses = None  # type: ignore[assignment]

__version__ = "3.0.0"


class Problem(Exception):
    """Something that a person can act on: "what went wrong: what to do next"."""

    def __init__(self, message: str, status: int = 1, again: bool = False) -> None:
        super().__init__(message)
        self.status = status  # the exit status it leads to
        self.again = again  # trying again, with nothing changed, can help


# ── options ───────────────────────────────────────────────────────────────────────────────────────
# The only place where defaults stand. The environment is asked for nothing that an option can say;
# what has no option (the password of --server, colours, where state is kept) is read where it is
# used.


class Options(NamedTuple):
    """What `run` was asked to do. Paths are absolute, durations are in seconds, 0 means off."""

    directory: str = "."
    plan: str = "PLAN.md"
    prompt: str = ".loop-prompt.md"
    models: tuple[str, ...] = ()  # providerID/modelID, the first choice first; (): OpenCode's own
    agent: str = ""
    port: int = 0  # 0: OpenCode takes 4096, or a free one when that is taken
    run: bool = False  # start at once
    debug: bool = False  # no validation of the plan
    verbose: bool = False  # every event of the server in the activity
    log: str = ""
    plain: bool = False
    auto: bool = False  # approve what is asked
    ask_timeout: float = 300.0
    asks_wait: bool = False  # that was named: what is asked waits although there is no screen
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
    attended: bool = False  # somebody can look and press keys: there is a screen


# ── plan ──────────────────────────────────────────────────────────────────────────────────────────
# The plan is Markdown that people and the agent both edit, so reading it is total: any text gives a
# Plan, nothing raises, and the time it takes grows as the text does. The loop never writes it.
# Nothing that looks like a task vanishes: a line with a box is a task, or it is named as a near
# miss. Only a mark that says so settles a task; whatever else stands in its box, it is open.


class Task(NamedTuple):
    """One checkbox."""

    state: str  # pending, done, manual or blocked
    text: str
    reason: str = ""  # of what is manual or blocked
    phase: str = ""  # the heading above it
    line: int = 0  # counts from 1
    begun: bool = False  # pending, and marked as begun: `[~]`, `[wip]`
    depth: int = 0  # tasks in which it is nested

    @property
    def name(self) -> tuple[str, str]:
        """What tells it from others: an agent may move it, and phases share texts."""
        return self.phase, self.text


class NearMiss(NamedTuple):
    """A line that somebody probably meant to be a task, or that opens what is never closed."""

    line: int
    text: str
    fault: str
    is_open: bool = False  # its box is

    def __str__(self) -> str:
        return f"{self.line} {self.fault}"


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
    return [*said, f"{name} has {more} more such line{'s' * (more > 1)}"] if more else said


def missing_tasks(before: Plan, now: Plan) -> list[str]:
    """The texts of tasks that a plan has lost since it was read before, and that were not done.

    Rewording, splitting and reordering lose nothing: at most as many are missing as there are
    fewer tasks now.
    """
    missing = collections.Counter(task.text for task in before.tasks)
    missing -= collections.Counter(task.text for task in now.tasks)
    undone = (task.text for task in before.tasks if task.state in ("pending", "blocked"))
    missing &= collections.Counter(undone)
    return list(missing.elements())[: max(0, len(before.tasks) - len(now.tasks))]


def problem_of_plan(plan: Plan, path: str) -> str:
    """Why it cannot be worked; "": it can."""
    if len(plan.tasks) > MOST_TASKS:
        return f"{path} has {len(plan.tasks)} tasks: {MOST_TASKS} are the most: what wrote them?"
    if not plan.tasks and plan.summary is None:
        return f"{path} has no task: add lines such as `- [ ] Build it`"
    return ""


_LINE_END = re.compile(r"\r\n|\r")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*)")
_TAG_OPEN = re.compile(r"^ {0,3}<plan-complete>", re.MULTILINE)
_TAG_CLOSE = "</plan-complete>"
MOST_NEAR_MISSES = 1_000
MOST_TASKS = 10_000  # of a plan that can be worked: more are no plan of anybody's


def parse_plan(text: str) -> Plan:
    """Read a plan; the rules are in the README under "The plan"."""
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    shown, unclosed = _hide(text)
    near_misses: list[NearMiss] = []
    tasks: list[Task] = []
    phase = ""
    above: list[int] = []  # the indentations of the tasks in which the next one may be nested
    # str.splitlines would split on U+2028 and form feeds as well.
    for number, line in enumerate(shown.split("\n"), 1):
        if not _WORTH_A_LOOK.search(line):
            continue  # nearly all lines of a long plan
        state, words, reason = _parse_task(line)
        if state:
            indentation = len(line) - len(line.lstrip())
            while above and above[-1] >= indentation:
                above.pop()
            is_begun = state == "begun"
            state = "pending" if is_begun else state
            tasks.append(Task(state, words, reason, phase, number, is_begun, len(above)))
            above.append(indentation)
        elif len(near_misses) < MOST_NEAR_MISSES:
            near_misses += _find_near_miss(line, number)
            if len(near_misses) == MOST_NEAR_MISSES:  # what is not looked at may be open
                near_misses[-1] = near_misses[-1]._replace(is_open=True)
        heading = _HEADING.match(line)
        if heading:
            phase = heading[1].rstrip().rstrip("#").rstrip()
            above.clear()
    # The last complete tag counts; in its text code and comments are kept.
    tags = [tag.end() for tag in _TAG_OPEN.finditer(shown, 0, max(0, shown.rfind(_TAG_CLOSE)))]
    summary = text[tags[-1] : shown.find(_TAG_CLOSE, tags[-1])].strip() if tags else None
    return Plan(tasks, summary, sorted({*unclosed[:MOST_NEAR_MISSES], *near_misses}))


# Code and comments.

_LIST_SIGN = r"(?:[-*+]|\d+[.)])"
_HIDING = re.compile(
    rf"^[^\S\n]*({_LIST_SIGN}[^\S\n]+)?(`{{3,}}(?=[^`\n]*$)|~{{3,}})(?=(.*)$)|<!--|-->",
    re.MULTILINE,
)
_OPENING = re.compile("```|~~~|<!--")


def _hide(text: str) -> tuple[str, list[NearMiss]]:
    """Replace fenced code and HTML comments by spaces, and name those that are never closed.

    What nothing closes is text. Whether something will is found out from the end of the text, so
    that nothing is searched for twice.
    """
    if not _OPENING.search(text):
        return text, []
    lines = (_without_code(line) if "<!--" in line else line for line in text.split("\n"))
    signs = []
    longest = {"`": -1, "~": -1, "": -1}  # fence that closes in what follows; "": a comment
    for sign in reversed(list(_HIDING.finditer("\n".join(lines)))):
        item, fence, info = sign.groups("")
        closes = sign[0] == "-->" or bool(fence and not item and not info.strip())
        signs.append((sign, fence, closes, len(fence) <= longest[fence[:1]]))
        if closes:
            longest[fence[:1]] = max(longest[fence[:1]], len(fence))
    shown = []
    faults = []
    at = 0  # where what is not in `shown` yet begins
    line = 1
    seen = 0  # its lines are counted
    rest = reversed(signs)  # whoever looks for an end takes from it, too
    for sign, fence, _closes, is_closed in rest:
        start = sign.start()
        if sign[0] == "-->":
            continue  # there is nothing to close
        if is_closed:
            end = next(
                other.end()
                for other, close, closes, _is_closed in rest
                if closes and close[:1] == fence[:1] and len(close) >= len(fence)
            )
            hidden = re.sub(".+", lambda row: " " * len(row[0]), text[start:end])
            shown += [text[at:start], hidden]
            at = end
        else:
            line += text.count("\n", seen, start)
            seen = start
            what = "code block" if fence else "comment"
            faults.append(NearMiss(line, "", f"opens a {what} that is never closed"))
    return "".join([*shown, text[at:]]), faults


def _without_code(line: str) -> str:
    """The line with a letter in place of each sign of inline code: what stands in it is talk."""
    parts = re.split("(`+)", line)
    last = {part: index for index, part in enumerate(parts)}
    ticks = 1  # every other part is
    while ticks < len(parts):
        closing = ticks
        if last[parts[ticks]] > ticks:
            closing = parts.index(parts[ticks], ticks + 1)
            parts[ticks : closing + 1] = ["c" * len(part) for part in parts[ticks : closing + 1]]
        ticks = closing + 2
    return "".join(parts)


# Boxes and marks.

_NO_BRACKET = r"[^\[\]]*"
_BRACKETS = rf"\[{_NO_BRACKET}(?:\[{_NO_BRACKET}\]{_NO_BRACKET})*\]"
_INSIDE = rf"({_NO_BRACKET}(?:{_BRACKETS}{_NO_BRACKET})*)"
_BOX = rf"\[{_INSIDE}\]([*_`]*[:：]?[*_`]*)(?:\s+|$)"  # anything else behind it makes it a link
_TASK = re.compile(rf"\s*{_LIST_SIGN}\s+([*_`]*){_BOX}")
_MARK = re.compile(rf"([*_]*){_BOX}")  # a mark in code is talk: "parse `[BLOCKED]`"
_END_MARK = re.compile(
    rf"(?:^|\s)([*_]*)\[(?=\s*(?:blocked|manual)(?![^\W_])){_INSIDE}\]([*_]*)$", re.IGNORECASE
)
_TICK_SIGNS = "✓✔✅☑🗸"
_PART = re.compile(r"[~≈]?\s*\d+(?:[.,]\d+)?\s*%|\d+\s*/\s*\d+")
# What stands behind the first three kinds must not go on with a letter; behind the others it is
# the reason. A picture may stand in front: `[✅ DONE]`.
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
_DOUBT = re.compile(
    r"[?%]|\b(?:but|except|not|fail|partial|without|untested)", re.IGNORECASE
)  # `[done, but tests fail]`
_PARENTHESES = re.compile(r"^[(（]([^()（）]*)[)）]$")


def _parse_task(line: str) -> tuple[str, str, str]:
    """State, text and reason of a task: a list sign, a box, marks beside it, and a text.

    The state may be "begun" as well; "": it is no task.
    """
    said: list[tuple[str, str]] = []
    wrapping = ""  # what the box and the marks leave open
    at = 0
    box = _TASK.match(line)
    while box:
        mark = _read_box(box[2])
        if not mark[0] or (said and mark[0] not in ("manual", "blocked")):
            break
        said.append(mark)
        wrapping += "" if box[1][::-1] in box[3] else box[1]
        at = box.end()
        box = _MARK.match(line, at)
    text = line[at:].strip()
    end = _END_MARK.search(text) if said else None
    if end:
        said.append(_read_box(end[2]))
        # What closes behind the mark belongs to it, or to what began before it.
        text = text[: end.start()].rstrip() + ("" if end[1] else end[3])
    if not said or not text:
        return "", "", ""
    if wrapping and text.count(wrapping[::-1]) % 2:
        text = wrapping + text  # `**[ ] Export:** as CSV`
    # The first mark counts, unless the box says that the task is done.
    is_open = said[0][0] in ("pending", "begun") and len(said) > 1
    state, reason = said[1] if is_open else said[0]
    return state, text, reason


def _read_box(inside: str) -> tuple[str, str]:
    """What stands in a box: state and reason; the state is "" when it is no mark of ours.

    `BLOCKED - no key` -> ("blocked", "no key"), `~` -> ("begun", "").
    """
    box = " ".join(inside.replace("\ufe0f", "").split())
    if not box:
        return "pending", ""
    if box in ("x", "X") or not box.strip(_TICK_SIGNS):
        return "done", ""
    if _PART.fullmatch(box) or not any(sign.isalnum() or sign in "[] \t" for sign in box):
        return "begun", ""
    word = _WORD.match(box)
    state = word.lastgroup or "" if word else ""
    if word and state == "done" and _DOUBT.search(box, word.end()):
        return "begun", ""
    if not word or state not in ("manual", "blocked"):
        return state, ""
    reason = _PARENTHESES.sub(r"\1", box[word.end() :]).strip()
    said = word[state].lower()
    if state == "blocked" != said and not reason:
        reason = re.sub("[-_ ]", " ", said)
    return state, reason


# Near misses: each box is written anew so that it tells its kind, and a few patterns say where such
# a box looks like that of a task.

_OPEN_BOXES = "☐⬜□▢◻🔲🔳❏❐❑❒"
_DONE_BOXES = "☑☒🗹🗷🗵"
_WORTH_A_LOOK = re.compile(rf"[\[#(（［【{{<{_OPEN_BOXES}{_DONE_BOXES}]")
_ANY_BOX = re.compile(
    r"\[([^\[\]]*)\]|\\\[([^\[\]\\]*)\\\]|［([^［］]*)］"
    r"|\[([ x]?|blocked|manual)(?=[\s:]\s*[^\s\[\]][^\[\]]*$)"  # which nothing closes
    rf"|([{_OPEN_BOXES}])\ufe0f?|([{_DONE_BOXES}])|([(（{{<【]\s*[)）}}>】])",
    re.IGNORECASE,
)
_LINK = re.compile(r"[(\]]|\[(?!\s?\]|x\]|blocked|manual)|:(?:\S|\s*(?:\S+\s*)?$)", re.IGNORECASE)
_LEAD = r"(?:[^\w\[\](){}（）【】<\"'`\\!]|_)"  # signs that may stand before a box
# In a lookahead, so that what it took is not given back piece by piece: that took minutes.
_LABEL = (
    r"(?=([(（]?(?:\d+(?:[.．]\d+)*|[①-⑳]|[一二三四五六七八九十]+(?=[、.)])"
    r"|(?:[A-Za-z]|[ivxIVX]+)(?=[.)]))[.)）:、．]*(?!\w)))\1"
)
_APART = r"(?<![^\s*_|:：])"  # no word stands right before it
_NEAR_MISSES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_LEAD}*(?:{_LABEL}{_LEAD}*)?\[([ xod?-])\]",  # it begins the line
        rf".*?{_APART}\[([ x])\][\s*_|]*$",  # it ends the line
        rf"\s*{_LIST_SIGN}\s.*?{_APART}\[([od])\][\s*_|]*$",  # it ends a list's item
        r".*?\|[\s*_]*\[([ x])\][\s*_|:：]",  # in a table
        # In the middle of what does not begin like prose.
        rf"\s*[*_~]*(?:(?<=\*)\s|(?![\s*_~]){_LEAD}|{_LABEL})"
        rf".*?(?:{_APART}\[( )\]|[:：][\s*_]*\[(x)\])[\s*_|:：]",
    )
)


def _find_near_miss(line: str, number: int) -> list[NearMiss]:
    boxes = _ANY_BOX.sub(_with_letter, _without_code(line))
    if "[" not in boxes:
        return []
    text = line.strip()
    fault = f'is nearly a task: "{text[:60]}": write it like `- [ ] Build it`'
    for pattern in _NEAR_MISSES:
        found = pattern.match(boxes)
        if found:
            return [NearMiss(number, text, fault, found[found.lastindex or 0] in " o?")]
    return []


def _with_letter(box: re.Match[str]) -> str:
    """A box of any form as [ ] or [x], or with a letter for what else it says: [o] open, [d] done,
    [?] open and [-] settled where it begins the line. Without brackets: it is none."""
    form = box.lastindex or 0
    inside = box[form]
    if form > 4:
        return ("[ ]", "[x]", "[?]")[form - 5]
    link = _LINK.match(box.string, box.end())
    if link and (inside.strip() or link[0] in "(]"):
        return "c"
    if inside.isspace():
        return "[ ]"
    state, _reason = _read_box(inside)
    if state == "done":
        return "[x]" if len(inside.strip()) == 1 else "[d]"
    if state in ("pending", "begun"):
        return "[o]" if len(inside) < 2 or inside[0].isalpha() else "[?]"
    return "[-]" if state else "c"


# ── prompt ────────────────────────────────────────────────────────────────────────────────────────
# The prompt file is sent as it is, less its front matter, with four placeholders filled in. What
# the loop itself has to tell the agent (the check fails, nothing gets settled) takes the place of
# {{CHECK}}, or is appended where the prompt has no such place: it must reach the agent in any case.

FRONT_MATTER = ("model", "agent", "description")  # the keys that mean something
PLACES = ("PLAN_FILE", "TASK", "ITERATION", "CHECK")
# A line of it: nothing, a comment, a key, or what belongs to the key above.
_FIELD = re.compile(r"\s*$|\s*#|[\w.-]+[ \t]*:|[ \t-]")


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Split a leading `---` block of `key: value` lines from the prompt's body.

    What stands between two rules and does not look like that is text for the agent.
    """
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    block = re.match(r"---[ \t]*\n((?:(?!---[ \t]*$).*\n)*)---[ \t]*(?:\n|$)", text, re.MULTILINE)
    if not block or not all(map(_FIELD.match, block[1].split("\n"))):
        return {}, text.strip()
    fields: dict[str, str] = {}
    for line in block[1].split("\n"):
        key, colon, value = line.partition(":")
        if colon and key.strip() and not line.lstrip().startswith("#"):
            fields[key.strip()] = value.strip().strip("'\"")
    return fields, text[block.end() :].strip()


def models_of(fields: dict[str, str]) -> tuple[str, ...]:
    """The models that a front matter names: `model: A, B` names two, the first choice first."""
    return tuple(name.strip() for name in fields.get("model", "").split(",") if name.strip())


def make_prompt(body: str, path: str, plan: Plan, iteration: int, told: str) -> Prompt:
    """What the next session is told; `path` is the plan's, `told` what the loop has to tell.

    The places are filled in one pass, so that no value is searched for places itself.
    """
    if told and "{{CHECK}}" not in body:
        body += "\n\n{{CHECK}}"
    values = dict(zip(PLACES, (path, plan.goal, str(iteration), told)))
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: values.get(place[1], place[0]), body)
    place = f"{min(plan.total - plan.pending + 1, plan.total)}/{plan.total}"
    return Prompt(text, f"ocloop {place}: {plan.goal}"[:100])


def told_of_near_misses(plan: Plan) -> str:
    """What the agent is told that is to wrap up a plan in which something looks undone."""
    near = [f"- line {near.line}: {near.text[:200]}" for near in plan.open_near_misses[:20]]
    return "" if plan.current or not near else LOOK_LIKE_TASKS.format(lines="\n".join(near))


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


# ── values ────────────────────────────────────────────────────────────────────────────────────────
# What OpenCode says, and what is said to it, in neutral words: no dictionary of OpenCode's passes
# this line.


class Prompt(NamedTuple):
    """What one session is told."""

    text: str
    title: str = ""  # of the session
    model: str = ""  # providerID/modelID, "": OpenCode's own
    agent: str = ""
    message_id: str = ""  # our own ids, so that sending it again is safe
    part_id: str = ""


class Question(NamedTuple):
    text: str
    options: tuple[tuple[str, str], ...] = ()  # labels and descriptions


class Ask(NamedTuple):
    id: str
    session: str
    kind: str  # permission or question
    title: str = ""  # of a permission: what kind of thing it is for, such as "bash"
    detail: str = ""  # what exactly
    questions: tuple[Question, ...] = ()
    is_circle: bool = False  # OpenCode asks because the agent makes identical calls
    always: str = ""  # what "always" allows, and for how long


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
        """For JSON."""
        tokens = {"input": self.input, "output": self.output, "cached": self.cached}
        return {"cost": round(self.cost, 6), "tokens": tokens}


class Fault(NamedTuple):
    """An error, told apart by structured names and codes alone, never by a model's prose."""

    kind: str  # one of the keys of FAULTS
    message: str
    retry_after: float = 0.0  # seconds, where they were announced


# What kinds of faults there are. Those with an advice are a person's to mend: trying again cannot
# help as long as nothing has worked yet.
FAULTS = {
    "rate-limit": "",  # passes by itself, at the announced time or some time later
    "outage": "",  # the provider or the network is away: passes by itself
    "auth": "log in with `opencode auth login`, or look at the provider's key",
    "balance": "look at the provider's balance",
    "no-model": "look at the model {model} and at the provider's address in the configuration",
    "no-agent": "look at the agent's name",
    "configuration": "",  # OpenCode's own: the run cannot go on
    "overflow": "",  # the context does not fit: OpenCode compacts it and goes on
    "length": "",  # the answer was cut off at the model's output limit
    "provider": "",  # any other error of the provider's
    "aborted": "",
    "unknown": "",
}


class Setup(NamedTuple):
    """What the server knows. None means that it cannot tell, which is never an error."""

    model: str = ""  # of OpenCode's own configuration
    models: dict[str, int] | None = None  # providerID/modelID -> tokens of context, 0: unknown
    agents: tuple[str, ...] | None = None
    free: frozenset[str] = frozenset()  # models without a price
    variants: dict[str, tuple[str, ...]] = {}  # model -> names of its reasoning efforts
    chosen: str = ""  # the model that OpenCode would take where nobody names one
    asks: tuple[str, ...] = ()  # what its configuration wants a person to be asked for
    unread: tuple[str, ...] = ()  # files of it that OpenCode goes on without


class Polled(NamedTuple):
    """How the session stands: the truth, where events are only quick.

    `verdict`, on the answer to our own prompt:
    answered     it ended well
    failed       it ended with `fault`
    refused      it ended because something was rejected
    cut          it was broken off: where `fault` says so, by somebody who interrupted it
    unfinished   it has begun and not ended: it works, or its server died
    undelivered  the session does not know the prompt, or nothing came of it
    nothing-ran  the session says that it is through, and there is no answer
    ""           not looked at: it works, or `is_unsure`
    """

    activity: str  # idle, working or retrying
    verdict: str = ""
    fault: Fault | None = None
    spent: Spend | None = None  # of the session and all its subagents; None: it cannot be told
    children: tuple[str, ...] = ()
    asks: tuple[Ask, ...] | None = None  # None: not looked at
    unlisted: tuple[str, ...] = ()  # kinds of asks that the server failed to list
    retry: Activity | None = None  # the details, when it is retrying
    is_unsure: bool = False  # it seems to rest, which has to be seen twice
    is_alive: bool = False  # something of it goes on that the stream does not tell of

    @property
    def is_finished(self) -> bool:
        """There is an answer that has come to its own end."""
        return self.verdict in ("answered", "failed")


class CheckResult(NamedTuple):
    status: int  # exit status of --check
    output: str
    interrupted: bool = False


class FilesRead(NamedTuple):
    plan: str | None  # None: it cannot be read
    prompt: str | None
    problem: str = ""


# What the server's stream says: hints, and quick.


class Activity(NamedTuple):
    session: str
    kind: str  # idle, working or retrying
    attempt: int = 0
    wait: float = 0.0  # seconds until OpenCode tries again
    message: str = ""


class Part(NamedTuple):
    """A piece of a message."""

    session: str
    message: str
    key: str  # tells it from all other parts of the session
    kind: str  # text, thinking or tool
    state: str  # running, done or failed
    text: str = ""  # what is said; of a tool that failed, why
    tool: str = ""
    argument: str = ""  # of a tool: the one that matters, in a line
    call: int = 0  # of a tool: the same for the same input, 0: not known
    seconds: float = 0.0
    opens: bool = False  # a tool that lets a subagent work
    synthetic: bool = False  # put there by OpenCode itself


class Delta(NamedTuple):
    session: str
    key: str  # of the part that grows
    text: str


class Spent(NamedTuple):
    """A message of the agent's, with what it has cost so far."""

    session: str
    message: str
    spend: Spend
    context: int = 0  # tokens in the session's context
    model: str = ""
    agent: str = ""
    parent: str = ""  # the message that it answers, where that is known
    ended: str = ""  # answered, calls (it wants tools to run), nowhere (without saying why)
    complete: bool = False  # nothing of it is being written any more


class Answered(NamedTuple):
    session: str
    id: str  # of the ask that was answered, by whomever
    is_refused: bool = False


class Child(NamedTuple):
    session: str  # a subagent's
    parent: str


class Broke(NamedTuple):
    session: str
    fault: Fault


class Compacted(NamedTuple):
    session: str


class Alive(NamedTuple):
    session: str  # which shows life, and no more than that


class Woke(NamedTuple):
    """A session goes to work again by itself: something that it left in the background ended."""

    session: str


class Edited(NamedTuple):
    path: str  # of a file that the agent changed


SessionEvent = Union[
    Activity, Part, Delta, Spent, Ask, Answered, Child, Broke, Compacted, Alive, Woke
]
FROM_SESSION = get_args(SessionEvent)  # `isinstance` takes a Union only from Python 3.10 on

# What else happens.


class StreamOpened(NamedTuple):
    """The event stream is being read, again; what happened meanwhile is not repeated on it."""


class ServerDied(NamedTuple):
    launch: int
    problem: str


class Key(NamedTuple):
    name: str  # one character in lower case, or a name such as `space`
    # The ask that was on the screen when it was pressed (or QUIT_SHOWN), "": none; None: not known.
    about: str | None = None


class Signalled(NamedTuple):
    name: str


class ScreenLost(NamedTuple):
    reason: str  # why nobody can see or press anything any more


class Noted(NamedTuple):
    """Something that an edge has to say in the journal."""

    kind: str
    text: str
    tone: str = "warn"


class RequestError(Exception):
    """A request that was not carried out. `why`:

    silent         there was no answer, or the server failed at it
    locked         the password is wrong
    configuration  OpenCode's configuration is what is wrong
    gone           the session, or what it asked, is not there any more
    rejected       it says no for another reason: to ask again is no use

    `code` is HTTP's, 0 without an answer; `name` is OpenCode's own name of the error.
    """

    def __init__(self, code: int, message: str, name: str = "", is_timeout: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.is_timeout = is_timeout  # tells a server that is silent from one that is gone

    @property
    def why(self) -> str:
        if self.code == 0 or self.code >= 500:
            return "silent"
        if self.code in (401, 403):
            return "locked"
        if self.name.startswith("Config"):
            return "configuration"
        return "gone" if self.code == 404 else "rejected"


class Request:
    """What the run wants done outside: it is made elsewhere, and `hear` writes the answer in."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name  # the name of a method of Outside
        self.args = args
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def value(self) -> Any:
        """The result; raises the error in its place."""
        if self.error:
            raise self.error
        return self.result


class Answer(NamedTuple):
    """A request was carried out (or not: `error`)."""

    request: Request
    result: Any = None
    error: Exception | None = None


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────
# What a run remembers and reckons with, as values with one job each. None of them waits, and only a
# Talk, with its Asks and its Transcript, knows the run.

# Seconds to wait after so many failures in a row: none, one, two ...; the last one holds from there
# on. No wait that grows gets longer than a quarter of an hour.
LONGEST_WAIT = 900.0
RATE_LIMIT_WAITS = (0.0, 30.0, 60.0, 120.0, 240.0, 480.0, LONGEST_WAIT)
FAILURE_WAITS = (0.0, 4.0, 16.0, 64.0, 256.0, LONGEST_WAIT)  # five outlast 20 minutes
SERVER_WAITS = (0.0, 0.0, 1.0, 4.0, 16.0, 64.0, 256.0, LONGEST_WAIT)  # an upgrade takes a minute
FIRST_WAITS = (0.0, 0.0, 1.0, 4.0, 15.0)  # the same, for a server that never ran: see BUSY_WITHIN
STREAM_WAITS = (0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)

NEVER = float("inf")


def wait_after(times: int, waits: Sequence[float]) -> float:
    """The wait after so many failures in a row."""
    return waits[max(0, min(times, len(waits) - 1))]


class Entry(NamedTuple):
    """One line of the journal."""

    number: int
    time: float  # in seconds since 1970
    kind: str
    text: str
    tone: str = ""  # dim, good, bad, warn or head
    depth: int = 0  # 1 for what a subagent does
    iteration: int = 0
    session: str = ""
    record: Json | None = None  # for --log in JSON lines


class Journal:
    """The one record of what happened: the screen, the log and the plain lines show it.

    It holds the newest entries; numbers go on beyond those that have been dropped.
    """

    LENGTH = 3000
    LONGEST_TEXT = 4000  # characters of one entry

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self.iteration = 0  # what is noted belongs to this one; 0: to none
        self.count = 0
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
        said = (self.count, self.clock.wall, kind, text, tone)
        self.entries.append(Entry(*said, depth, self.iteration, session, record))

    def newest(self, count: int) -> list[Entry]:
        """The last entries, oldest first."""
        return list(self.entries)[-count:] if count > 0 else []


ABSENT = 10.0  # a longer gap between two events is time away: the machine slept


class RunClock:
    """The time of a run: it leaves out what nobody lived through (sleep, a clock that was set).

    All deadlines stand on `now`. `wall` is the time for people; both in seconds.
    """

    def __init__(self, wall: float) -> None:
        self.began = wall  # for people
        self.wall = wall
        self.now = wall
        self.works = False  # else it is at rest
        self.elapsed = 0.0  # seconds of work

    def move_to(self, wall: float) -> bool:
        """Time has passed; False: it was time away, and does not count."""
        passed = wall - self.wall
        self.wall = wall
        if not 0 <= passed <= ABSENT:
            return False
        self.now += passed
        if self.works:
            self.elapsed += passed
        return True


# Words for people.

LONGEST_TIME = 1e9  # seconds, some thirty years: nobody is told of a longer one


def duration(seconds: float) -> str:
    """Seconds for people: 9s, 4m05s, 3h12m."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def dollars_of(cost: float) -> str:
    """US dollars for people: $3.10, $0.0012. What is not nothing never reads as nothing."""
    if 0 < cost < 0.0001:
        return "<$0.0001"
    whole, _, cents = (f"{cost:.4f}" if cost < 0.1 else f"{cost:.2f}").partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"


def short_number(number: int) -> str:
    """1234 -> 1.2k; four characters or fewer up to a billion."""
    value = float(number)
    signs = ["", "k", "M", "G"]
    while value >= 999.5 and len(signs) > 1:
        value /= 1000
        del signs[0]
    has_decimal = value < 9.95 and value != number
    return f"{value:.1f}{signs[0]}" if has_decimal else f"{value:.0f}{signs[0]}"


# One session: whether it is over, what it costs, whether it goes in circles, what it says.

POLL_EVERY = 5.0  # seconds between two looks at a session that works
FIRST_LOOK = 2.0  # the first look after a prompt, when no event makes us look sooner
LOOK_AGAIN = 0.5  # between two looks at an end that is not believed yet
LOOK_TWICE = 0.25  # between two looks where resting has to be seen twice
LOOK_CLOSER = 60.0  # silent for so long, a session that "works" has its messages looked at
ODD_END_STAYS = 1.5  # an end that looks odd must look the same for so long before it is believed
SWALLOWED = 6.0  # a prompt of which nothing is seen for so long was swallowed
SPINS = 3  # answers that end nowhere, compactions without anything new, answers to one prompt
SAME_CALLS = 20  # the same tool with the same input, in a row, or two to four by turns
LONGEST_TURN = 4  # calls that come by turns
REFUSALS = 20  # in one session
SHORT_WAIT = 90.0  # OpenCode may wait so long for a provider where another model could work
GOES_ON = 5  # times that one session is told to go on after a refusal that ended its turn
LOST_REPLIES = 3  # answers to asks that the server would not take, in a row

_DO_WITHOUT = (
    "Do not ask again: go on without it, or mark the task [BLOCKED: reason] in the plan if it "
    "cannot be done without it."
)
NOBODY = f"Nobody is there to answer. {_DO_WITHOUT}"
A_PERSON = f"A person refused this. {_DO_WITHOUT}"
SAME_CALL = f"You made the same call again and again: it will not help. {_DO_WITHOUT}"
WRONG_PASSWORD = (
    "the server refuses the password: set OPENCODE_SERVER_PASSWORD to the one it was started with "
    "(OPENCODE_PASSWORD goes before it)"
)


class Outcome(NamedTuple):
    """What became of a session.

    `kind` is done (the agent ended its turn), refused, cut, failed, stalled, rate-limited, outage,
    aborted, or swallowed (the prompt has to be sent again).
    """

    kind: str
    problem: str = ""
    fault: Fault | None = None


# What the verdict on an answer means. One that is not here failed, or it was swallowed.
ENDS = {
    "answered": Outcome("done"),
    "refused": Outcome("refused", "something it asked for was refused"),
    "cut": Outcome("cut", "its answer was broken off by somebody or something else"),
}


def outcome_of(fault: Fault | None) -> Outcome:
    """What becomes of a session whose answer ended with this fault; None: nobody says why."""
    if fault is None:
        fault = Fault("unknown", "it failed, and OpenCode does not say why")
    kinds = {"rate-limit": "rate-limited", "outage": "outage", "length": "cut"}
    return Outcome(kinds.get(fault.kind, "failed"), fault.message, fault)


def outcome_of_error(error: RequestError) -> Outcome:
    """What becomes of a session when this is said to a request that it cannot go on without."""
    if error.why == "locked":
        return outcome_of(Fault("configuration", WRONG_PASSWORD))
    if error.why == "configuration":
        problem = f"OpenCode's configuration is broken: mend it: {error}"
        return outcome_of(Fault("configuration", problem))
    return Outcome("failed", str(error))


class Circles:
    """The circles that an agent or a server can walk in, each session of the family in its own.

    Each method takes in what happened, and returns the problem once that was too often.
    """

    def __init__(self) -> None:
        self.calls: dict[str, list[int]] = {}  # by session
        self.compactions: collections.Counter[str] = collections.Counter()  # since a call was new
        self.spins: dict[str, set[str]] = {}  # by session: messages that ended nowhere, in a row
        self.answers: set[str] = set()  # finished answers to our own prompt

    def call(self, part: Part) -> str:
        """OpenCode's own guard sees identical calls only within one step."""
        calls = self.calls.setdefault(part.session, [])
        if part.call not in calls:
            del self.compactions[part.session]
        calls.append(part.call)
        for length in range(1, LONGEST_TURN + 1):
            turn = calls[-length:]
            if 0 not in turn and calls[-length * SAME_CALLS :] == turn * SAME_CALLS:
                return (
                    f"it goes in circles: {SAME_CALLS} times in a row the same calls, the last one "
                    f"{part.tool} {part.argument}"
                )
        return ""

    def message(self, event: Spent, own_prompt: str) -> str:
        if event.ended == "nowhere":
            spins = self.spins.setdefault(event.session, set())
            spins.add(event.message)
            if len(spins) >= SPINS:
                return f"it spins: {SPINS} answers without an end in a row"
        elif event.ended:
            self.spins.pop(event.session, None)
        if event.ended == "answered" and event.parent == own_prompt:
            self.answers.add(event.message)
        if len(self.answers) < SPINS:
            return ""
        return f"it answered the same prompt {SPINS} times: was this machine's clock set back?"

    def compaction(self, session: str) -> str:
        """A context that does not fit even when compacted is compacted for ever, also with answers
        between: only a tool call that is new shows that it gets on."""
        self.compactions[session] += 1
        if self.compactions[session] < SPINS:
            return ""
        return (
            f"it spins: its context was compacted {SPINS} times without anything new between: the "
            "model's context limit is too small for this task, or set too low in the configuration"
        )


class Live(NamedTuple):
    """A part that runs or is being written now."""

    kind: str
    text: str
    since: float
    depth: int = 0
    message: str = ""


class Transcript:
    """What a session says and does, part by part: what runs now, and each part once in the journal.

    A server may say the same part many times, leave out pieces of a text, and tell its end after
    that of the tool that it announces, or never. So a tool waits for the texts of its message.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.live: dict[str, Live] = {}  # by the part's key
        self.journaled: set[str] = set()  # keys of parts, and messages of errors
        self.held: list[tuple[str, str, str, str]] = []  # tools that wait

    def error(self, message: str, session: str) -> None:
        """Each error once: a server tells it on the stream, in the message, and when polled."""
        if message not in self.journaled:
            self.journaled.add(message)
            self.talk.note("error", message, "bad", session)

    def show(self, part: Part) -> bool:
        """Whether it has ended, and that is news."""
        if part.key in self.journaled:
            return False
        is_tool = part.kind == "tool"
        text = part.argument if is_tool else part.text
        kind = {"text": "text", "thinking": "think"}.get(part.kind, part.tool)
        tone = "dim" if part.kind == "thinking" else ""
        if part.state == "running":
            known = self.live.get(part.key)
            if known is None and part.opens:
                self.note_tool(part, kind, text)
            shown = text[-Journal.LONGEST_TEXT :]
            since = known.since if known else self.talk.run.now
            depth = self.talk.family.get(part.session, 0)
            self.live[part.key] = Live(kind, shown, since, depth, part.message)
            return False
        self.journaled.add(part.key)
        self.live.pop(part.key, None)
        if is_tool:
            text += f"  {duration(part.seconds)}" if part.seconds >= 1 else ""
            if part.state == "failed":
                text += f"  failed: {part.text}"
                tone = "bad"
            self.note_tool(part, kind, text, tone)
        elif text.strip():
            self.talk.note(kind, text.strip(), tone, part.session)
        if part.kind == "text":
            self.release()
        return True

    def grow(self, delta: Delta) -> None:
        live = self.live.get(delta.key)
        if live:
            text = (live.text + delta.text)[-Journal.LONGEST_TEXT :]
            self.live[delta.key] = live._replace(text=text)

    def note_tool(self, part: Part, kind: str, text: str, tone: str = "") -> None:
        self.held.append((kind, text, tone, part.session))
        texts = [live.message for live in self.live.values() if live.kind == "text"]
        if part.message not in texts:
            self.release()

    def end_message(self, message: str, session: str) -> None:
        """Nothing of it is being written any more: its texts have ended, whoever says so."""
        for key, live in list(self.live.items()):
            if live.message == message and live.kind == "text":
                del self.live[key]
                if live.text.strip():
                    self.journaled.add(key)
                    self.talk.note("text", live.text.strip(), "", session)
        self.release()

    def release(self) -> None:
        for entry in self.held:
            self.talk.note(*entry)
        self.held.clear()

    def close(self) -> None:
        """Nothing runs any more."""
        self.release()
        self.live.clear()


class OpenAsk(NamedTuple):
    ask: Ask
    since: float  # whatever looks later must list it
    answers: tuple[str, ...] = ()  # labels, one for each question answered so far


class Asks:
    """What a session and its subagents ask, from its coming up until the answer has arrived.

    What nobody has to be asked for it decides by itself.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.run = talk.run
        self.open: dict[str, OpenAsk] = {}  # by the ask's id, in the order in which they came
        self.settled: set[str] = set()  # ids
        self.refused: collections.Counter[str] = collections.Counter()  # by the ask's title
        self.lost_replies = 0  # in a row
        self.last_refusal = ""  # what the agent was told of it; "": there is none
        self.is_closed = False  # the session is being ended: nothing is answered any more

    def hear(self, ask: Ask) -> None:
        is_known = ask.id in self.open or ask.id in self.settled
        if is_known or self.is_closed or ask.session not in self.talk.family:
            return
        is_permission = ask.kind == "permission"
        said = f"{ask.title}: {ask.detail}" if is_permission else ask.detail
        self.talk.note("ask", said, "warn", ask.session)
        waiting = OpenAsk(ask, self.run.now)
        is_auto = self.run.options.auto and is_permission
        if is_auto and not ask.is_circle:
            self.reply(waiting, "once", "approved (--auto)")
        elif ask.is_circle and (is_auto or not self.run.attended):
            self.refuse(waiting, "it is the same call again and again", SAME_CALL)
        elif not self.can_wait:
            self.refuse(waiting, "nobody is there to answer")
        else:
            self.open[ask.id] = waiting
            self.run.need_person(said)

    def reply(self, waiting: OpenAsk, decision: str, said: str, message: str = "") -> None:
        """`decision` is once, always or reject; `said` is for the journal."""
        ask = waiting.ask
        self.answered(ask.id)
        self.talk.note("ask", said, "warn" if decision == "reject" else "good", ask.session)
        self.run.request("reply", ask, decision, waiting.answers, message)

    def refuse(self, waiting: OpenAsk, why: str, message: str = NOBODY) -> None:
        """Refuse with a message: a bare rejection would end the agent's turn. An agent that does
        not take no for an answer is stopped."""
        ask = waiting.ask
        self.reply(waiting, "reject", f"refused: {why}", message)
        self.last_refusal = message
        self.refused[ask.title or ask.kind] += 1
        if sum(self.refused.values()) >= REFUSALS:
            last = f"the last time {ask.title} ({ask.detail}): {how_to_allow(self.refused)}"
            self.talk.give_up("failed", f"it asked {REFUSALS} times for what was refused, {last}")

    def hear_answered(self, event: Answered) -> None:
        """What is open still was answered elsewhere, as in OpenCode's own interface."""
        waiting = self.open.get(event.id)
        if waiting and event.is_refused:
            self.talk.note("ask", "refused elsewhere", "warn", waiting.ask.session)
            self.last_refusal = A_PERSON
            self.refused[waiting.ask.title or waiting.ask.kind] += 1
        elif waiting:
            self.talk.note("ask", "answered elsewhere", "good", waiting.ask.session)
        self.answered(event.id)

    def answered(self, id: str) -> None:
        """By whomever. A poll that is on its way may list it still."""
        self.open.pop(id, None)
        self.settled.add(id)

    def compare(self, polled: Polled, looked: float) -> None:
        """What a look does not list any more, somebody else has answered; `looked` is when."""
        if polled.asks is None:
            return
        listed = {ask.id for ask in polled.asks}
        for id, waiting in list(self.open.items()):
            is_listed = id in listed or waiting.ask.kind in polled.unlisted
            if not is_listed and waiting.since < looked:
                del self.open[id]
        for ask in polled.asks:
            self.hear(ask)

    @property
    def can_wait(self) -> bool:
        """Somebody may answer: on the screen, or with `attach`."""
        return self.run.attended or self.run.options.asks_wait

    def mind(self) -> None:
        timeout = self.run.options.ask_timeout
        for waiting in list(self.open.values()):
            if not self.can_wait:
                self.refuse(waiting, "nobody is there to answer")
            elif timeout and self.run.now >= waiting.since + timeout:
                self.refuse(waiting, f"nobody answered for {duration(timeout)}")

    def delivered(self, request: Request) -> None:
        """An answer of ours has arrived, or it was lost: then the agent waits for ever for it, and
        the next look finds again what it asks."""
        ask = request.args[0]
        error = request.error
        if error is None:
            self.lost_replies = 0
            return
        is_gone = isinstance(error, RequestError) and error.why == "gone"  # somebody else answered
        if is_gone or self.is_closed or ask.session not in self.talk.family:
            return
        self.talk.note("warn", f"the answer did not arrive: {error}", "warn", ask.session)
        self.settled.discard(ask.id)
        self.lost_replies += 1
        if self.lost_replies >= LOST_REPLIES:
            problem = f"{LOST_REPLIES} answers to what it asks did not arrive: {error}"
            self.talk.give_up("failed", problem)
        self.talk.look_within(1.0)

    def forget(self) -> None:
        """The server is gone: what it was asked and told is asked again where it still matters."""
        self.open.clear()
        self.settled.clear()

    def close(self) -> None:
        self.is_closed = True
        self.open.clear()

    # People.

    @property
    def first(self) -> OpenAsk | None:
        """The one that a person is shown."""
        return next(iter(self.open.values()), None)

    @property
    def shown(self) -> str:
        """What tells the question that a person is shown from all others; "" when there is none."""
        return f"{self.first.ask.id} {len(self.first.answers)}" if self.first else ""

    def takes_key(self, key: Key) -> bool:
        """Whether the key belongs to what is asked first; if so, it is answered with it."""
        waiting = self.first
        if waiting is None or key.about not in (None, self.shown):
            return False
        is_permission = waiting.ask.kind == "permission"
        if key.name == "n":
            self.refuse(waiting, "by a person", A_PERSON)
        elif is_permission and key.name in ("y", "a"):
            decision = "once" if key.name == "y" else "always"
            self.reply(waiting, decision, f"approved, {decision}")
        elif not is_permission and key.name in tuple("123456789"):
            self.choose(waiting, int(key.name))
        else:
            return False
        return True

    def choose(self, waiting: OpenAsk, number: int) -> None:
        """Answer the question that is shown; the reply is sent when all of the ask's are."""
        questions = waiting.ask.questions
        options = questions[len(waiting.answers)].options if questions else ()
        if number <= len(options):
            label, _description = options[number - 1]
            waiting = waiting._replace(answers=(*waiting.answers, label))
            self.open[waiting.ask.id] = waiting
            if len(waiting.answers) == len(questions):
                self.reply(waiting, "once", f"answered: {', '.join(waiting.answers)}")


class Ending:
    """The end that looks show, until it is believed.

    An end that is believed too early begins a second session beside the first: one that is odd must
    stay as it is for some time, and whatever says that the session works makes us forget it.
    """

    def __init__(self, server_was_lost: bool = False) -> None:
        self.server_was_lost = server_was_lost  # in the midst of the answer, which has cut it off
        self.fault: Fault | None = None  # the last error that the stream told of
        self.verdict = ""  # that is not believed yet
        self.since = 0.0  # it was seen first

    def believe(self, polled: Polled, now: float, is_silent: bool, attempt: int) -> Outcome | None:
        """What became of the session, by a look at one that rests; None: not believed yet.

        `is_silent`: nothing was heard of it for long. `attempt` is how often the prompt was handed
        over before.
        """
        verdict, fault = polled.verdict, polled.fault
        if verdict in ("undelivered", "unfinished", "nothing-ran") and self.fault:
            verdict = "failed"  # before or in the midst of it, as with a model that is not there
        elif verdict in ("cut", "refused") and self.server_was_lost:
            verdict = "unfinished"  # no person did it: the prompt is sent again
        patience = ODD_END_STAYS
        if verdict == "undelivered" or (verdict == "unfinished" and attempt):
            patience = SWALLOWED  # the answer to an attempt before stays unfinished for ever
        elif verdict == "answered" or (polled.is_finished and (fault or is_silent)):
            patience = 0.0  # else the message's own error comes a little later
        if verdict != self.verdict:
            self.verdict = verdict
            self.since = now
        if now - self.since < patience:
            return None
        if verdict == "failed":
            return outcome_of(fault or self.fault)
        return ENDS.get(verdict, Outcome("swallowed"))._replace(fault=fault)


class Talk:
    """One session: what it was told, and what is known of it by its own words and by looks at it.

    Polling is the truth and the event stream only makes it quick: nothing that the stream says is
    believed to be an end, it only makes us look. What has to end it before its time (a circle, a
    silence, a wait of days) stands in `ends_as`.
    """

    def __init__(self, prompt: Prompt, run: Run) -> None:
        self.prompt = prompt
        self.run = run
        self.id: str = ""
        self.family: dict[str, int] = {}  # this session and its subagents' -> depth
        self.attempt = 0  # how often the prompt was handed over before
        self.sending: Request | None = None  # which hands it over, or has done so
        self.begun_at = 0.0  # when the prompt was last known to run; 0: it has not begun
        self.look_at = NEVER  # when the session is to be looked at
        self.started = run.now
        self.last_sign = run.now  # the last sign of life
        self.retry: Activity | None = None  # OpenCode waits for a provider, for one of the family
        self.retry_at = 0.0  # until then
        self.retry_since = 0.0  # it has waited since then, however often it tried
        self.told_attempt = ("", 0)  # session and OpenCode's own attempt: the journal tells of it
        self.ending = Ending()
        self.ends_as: Outcome | None = None
        self.circles = Circles()
        # What it and its subagents have used is the larger of two counts: the stream may lose
        # messages, and a poll may lag behind.
        self.by_message: dict[str, Spend] = {}
        self.polled = Spend()
        self.context = 0  # tokens in its own context
        self.model = prompt.model
        self.agent = prompt.agent
        self.transcript = Transcript(self)
        self.asks = Asks(self)

    def note(self, kind: str, text: str, tone: str = "", session: str = "") -> None:
        session = session or self.id
        self.run.journal.note(kind, text, tone, session, self.family.get(session, 0))

    def give_up(self, kind: str, problem: str, fault: Fault | None = None) -> None:
        """It has to end; the first reason counts. No problem: no reason."""
        if problem and self.ends_as is None:
            self.ends_as = Outcome(kind, problem, fault)

    def look_within(self, seconds: float) -> None:
        self.look_at = min(self.look_at, self.run.now + seconds)

    def prepare(self) -> None:
        """The prompt is handed over now: what was heard before is old."""
        self.begun_at = 0.0
        self.look_at = NEVER
        self.ending = Ending()
        self.asks.last_refusal = ""

    # What the stream says.

    def hear(self, event: SessionEvent) -> None:
        """Take it in, if it is about this session or one of its subagents'."""
        about = event.parent if isinstance(event, Child) else event.session
        if about not in self.family:
            return
        self.last_sign = self.run.now
        if isinstance(event, Delta):
            self.begin(event.session)
            self.transcript.grow(event)
        elif isinstance(event, Part):
            self.hear_part(event)
        elif isinstance(event, Spent):
            self.hear_spent(event)
        elif isinstance(event, Activity):
            self.hear_activity(event)
        elif isinstance(event, Ask):
            self.asks.hear(event)
        elif isinstance(event, Answered):
            self.asks.hear_answered(event)
        elif isinstance(event, Child):
            self.family[event.session] = self.family[event.parent] + 1
        elif isinstance(event, Broke):
            self.hear_fault(event)
        elif isinstance(event, Compacted):
            self.note("note", "the session was compacted", "dim", event.session)
            self.give_up("failed", self.circles.compaction(event.session))
        elif isinstance(event, Woke):
            self.begin(event.session)

    def begin(self, session: str) -> None:
        """The prompt runs: an end that was seen was none. Who works does not wait for a provider;
        another of the family may."""
        self.begun_at = self.run.now
        self.ending.verdict = ""
        if self.retry and self.retry.session == session:
            self.retry = None

    def hear_activity(self, event: Activity) -> None:
        if event.kind == "idle":
            if event.session == self.id:  # a subagent's rest is not ours
                self.look_within(0)
            return
        self.begin(event.session)
        if event.kind == "retrying":
            self.retry = event
            self.retry_at = self.run.now + event.wait
            if (event.session, event.attempt) != self.told_attempt:
                self.told_attempt = (event.session, event.attempt)
                said = f"attempt {event.attempt} failed: {event.message}"
                self.note("retry", said, "warn", event.session)
            if event.attempt <= 1 or not self.retry_since:
                self.retry_since = self.run.now
            waited = self.run.now - self.retry_since
            has_others = self.run.line.others(self.run.now)
            longest = self.run.options.max_wait or NEVER
            if waited > (SHORT_WAIT if has_others else longest):
                # OpenCode tries for ever, every 30 s, where no time is announced.
                problem = f"OpenCode has waited {duration(waited)}: {event.message}"
                self.give_up("rate-limited", problem, Fault("rate-limit", problem))
            elif event.wait > (SHORT_WAIT if has_others else LONGEST_WAIT):
                # OpenCode honours an announced wait of days. Nothing would be lost by waiting, but
                # another model could work meanwhile, and whoever looks should know.
                problem = f"OpenCode would wait {duration(event.wait)}: {event.message}"
                fault = Fault("rate-limit", problem, retry_after=event.wait)
                self.give_up("rate-limited", problem, fault)

    def hear_part(self, event: Part) -> None:
        if event.key == self.prompt.part_id or event.synthetic:
            return  # our own prompt, and what OpenCode puts in by itself
        if event.state == "running":
            self.begin(event.session)
        has_ended = self.transcript.show(event)
        if has_ended and event.kind == "tool":
            self.give_up("failed", self.circles.call(event))

    def hear_spent(self, event: Spent) -> None:
        self.by_message[event.message] = event.spend
        if event.session == self.id:
            self.context = event.context or self.context
            self.agent = event.agent or self.agent
            if event.model and event.model != without_variant(self.model):
                self.model = event.model
                self.tell_of_model()
        if event.ended:
            self.told_attempt = ("", 0)
            self.retry_since = 0.0
        if event.complete:
            self.transcript.end_message(event.message, event.session)
        self.give_up("failed", self.circles.message(event, self.prompt.message_id))

    def tell_of_model(self) -> None:
        """Where `run` named none: it costs, and it sees the code."""
        run = self.run
        if self.prompt.model or self.model == run.line.last_seen:
            return
        run.line.last_seen = self.model
        is_named = self.model == without_variant(run.briefing.setup.model)
        whose = "from OpenCode's configuration" if is_named else "by OpenCode's own choice"
        run.journal.note("model", f"{self.model}, {whose}", "dim")

    def hear_fault(self, event: Broke) -> None:
        fault = event.fault
        if fault.kind == "aborted":
            return
        if event.session == self.id and fault.kind != "overflow":  # that one is compacted away
            self.ending.fault = fault
            self.look_within(1.0)
        self.transcript.error(fault.message, event.session)

    # Looks at it.

    def take_in(self, polled: Polled, looked: float) -> None:
        """What the stream may have lost."""
        for child in polled.children:
            self.family.setdefault(child, 1)
        known = self.polled
        if polled.spent:
            self.polled = known.at_least(polled.spent)
        if polled.is_alive or self.polled != known:
            self.last_sign = looked
        self.asks.compare(polled, looked)

    @property
    def spent(self) -> Spend:
        told = Spend()
        for spend in self.by_message.values():
            told = told.plus(spend)
        return told.at_least(self.polled)

    def weigh(self, polled: Polled, looked: float) -> Outcome | None:
        """What became of it, once that is believed; None: it is not over yet."""
        if polled.is_unsure or self.begun_at > looked:  # the look is older than the news
            self.look_within(LOOK_TWICE)
            return None
        if polled.retry:
            self.hear_activity(polled.retry)
        elif polled.activity == "working":
            self.begin(self.id)
            self.retry = None
        is_silent = self.run.now - self.last_sign > LOOK_CLOSER
        # Silent for long, a finished answer is one also where a server says "busy" for ever.
        is_over = polled.activity == "idle" or (polled.is_finished and is_silent)
        if not is_over:
            return None
        outcome = self.ending.believe(polled, self.run.now, is_silent, self.attempt)
        if outcome is None:
            self.look_within(LOOK_AGAIN)
        return outcome

    # Time, and the server.

    def mind(self) -> None:
        """What has to end it when nothing is heard."""
        now = self.run.now
        is_retrying = self.retry is not None and self.retry_at > now
        if self.run.server.is_down or self.asks.open or is_retrying:
            self.last_sign = now  # it waits, and for something that is known
        self.asks.mind()
        longest = self.run.options.iteration_timeout
        silence = self.run.options.stall_timeout
        if longest and now - self.started >= longest:
            problem = f"the iteration took longer than {duration(longest)}"
            if self.retry and is_retrying:  # nobody's fault, and it is waited for
                problem += f", waiting for the provider: {self.retry.message}"
                self.give_up("rate-limited", problem, Fault("rate-limit", problem))
            elif self.asks.first:
                problem += f", waiting for an answer: {self.asks.first.ask.detail}"
            self.give_up("stalled", problem)
        elif silence and now - self.last_sign >= silence:
            self.give_up("stalled", f"nothing happened for {duration(silence)}")
        self.give_up("aborted", self.run.limits.overrun(self.run.used))

    def lose_server(self) -> None:
        """Whoever looks at the session next finds that out, and has it started."""
        self.look_at = 0.0
        self.asks.forget()
        self.transcript.close()
        self.retry = None

    def find_server(self) -> None:
        """It is there again: what was heard before is old, and was broken off by its end."""
        self.ending = Ending(server_was_lost=True)
        self.look_within(0)


# The books, the models in line, what an outcome means for the run, limits, the check.

WORKED = ("done", "refused")  # outcomes of an agent that ended its turn in good order

PLAN_COMPLETE = "the plan is complete"
A_PERSON_QUIT = "a person quit"
QUIT_SHOWN = "quit"  # what a key is about that is pressed while "Q again" is on the screen


class Result(NamedTuple):
    """One iteration, as it stands in the books."""

    number: int
    task: str  # "" when nothing was left but the summary
    goal: str
    outcome: str  # of the session
    ended: str  # what was settled, "nothing settled", or the outcome; "": it is under way
    problem: str
    seconds: float
    spend: Spend
    model: str
    check: str  # passed, failed, interrupted, or "" when none ran
    progress: bool
    phase: str = ""  # of the task
    refused: tuple[tuple[str, int], ...] = ()  # what it asked for in vain, and how often
    fault: Fault | None = None  # behind the problem

    @property
    def word(self) -> str:
        """What people are told: the truth, also where an agent ended well."""
        return "check failed" if self.check == "failed" else self.ended

    @property
    def worked(self) -> bool:
        return self.outcome in WORKED

    @property
    def waited_for(self) -> bool:
        """It ended because of what passes by itself: nobody's fault, and nobody's attempt."""
        return self.outcome in ("rate-limited", "outage")


def problem_of_names(setup: Setup, models: Sequence[str], agent: str) -> str:
    """What is wrong with models and agent, as far as the server can tell: a mistake must show in
    the evening, also one in OpenCode's own configuration."""
    for name in models or filter(None, (setup.model,)):
        model, _, variant = name.partition("#")
        if setup.models is not None and model not in setup.models:
            advice = "`opencode models` lists them, `opencode auth login` adds a provider"
            return f"there is no model {model}: {meant(model, setup.models)}{advice}"
        known = setup.variants.get(model, ())
        if variant and setup.variants and variant not in known:
            there = ", ".join(known) or "it has none"
            return f"there is no variant {variant} of {model}: {there}"
    if agent and setup.agents is not None and agent not in setup.agents:
        there = ", ".join(setup.agents)
        return f"there is no agent {agent}: {meant(agent, setup.agents)}there are {there}"
    return ""


def meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 3, 0.4)
    return f"did you mean {' or '.join(close)}? " if close else ""


def how_complete(plan: Plan, gone: Sequence[str] = ()) -> tuple[int, str]:
    """The exit status of a run that its agents have ended, and the reason for a person.

    Where no agent has said that it is complete, tasks that are `gone` and what looks like an open
    task are work that is left.
    """
    left = [tasks_of(plan.pending, "pending")] if plan.pending else []
    left += [tasks_of(plan.blocked, "blocked")] if plan.blocked else []
    if left:
        return 3, f"complete but for {' and '.join(left)}"
    if plan.summary is not None and (plan.tasks or not gone):
        return 0, PLAN_COMPLETE
    if plan.open_near_misses:
        near = [f'"{near.text}"' for near in plan.open_near_misses]
        return 3, f"nothing is pending, but this looks undone: {first_of(near)}"
    if gone:
        return 3, f"nothing is pending, but {said_gone(gone)}"
    return 0, "nothing is left to do; the agent wrote no summary"


def tasks_of(number: int, word: str = "") -> str:
    """1 blocked task, 2 pending tasks."""
    return f"{number} {word + ' ' if word else ''}task{'s' if number > 1 else ''}"


def times_of(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def first_of(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    shown = ", ".join(name[:60] for name in names[:5])
    return shown + (f", and {len(names) - 5} more" if len(names) > 5 else "")


def said_gone(gone: Sequence[str]) -> str:
    return f"{tasks_of(len(gone), 'open')} gone from the plan: {first_of(gone)}"


def refused_by(results: Iterable[Result]) -> tuple[tuple[str, int], ...]:
    """What agents asked for in vain, and how often, the most frequent first."""
    refused: collections.Counter[str] = collections.Counter()
    for result in results:
        refused.update(dict(result.refused))
    return tuple(refused.most_common())


def said_refused(refused: Iterable[tuple[str, int]]) -> str:
    """refused: bash ×6, edit ×3; "" when nothing was."""
    said = ", ".join(f"{title} ×{times}" for title, times in refused)
    return f"refused: {said}" if said else ""


def how_to_allow(refused: Collection[str]) -> str:
    """What a person can do about what was refused: titles of permissions, or "question"."""
    permissions = [title for title in refused if title != "question"]
    steps = []
    if permissions:
        steps.append(f"allow {first_of(permissions)} in opencode.json, or use --auto")
    if "question" in refused:
        steps.append("answer in the plan what it asked")
    return "; ".join(steps)


class Books:
    """All results so far, and what is reckoned from them."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.spent = Spend()  # by all iterations that are over, also those that an end broke off
        self.unsettled: list[Result] = []  # the latest ones that worked and settled nothing
        self.check_failures = 0  # in a row: only a check that passes ends it
        self.check = ""  # what the last one said: passed, failed or interrupted; "": none ran
        self.is_unchecked = True  # something was at work since it said so
        self.complaint = ""  # of the check, for the next agent; "" when the last one passed
        self.waited = 0.0  # seconds, for a provider, since an iteration worked
        self.plan = Plan()  # that was noted last
        self.gone: list[str] = []  # open tasks that went out of the plan, and nobody settled
        self.tasks: set[str] = set()  # of the plan that was noted last
        self.has_tagged = False  # an agent has said that the plan is complete
        self.most_settled = 0  # tasks, so far
        self.least_pending = NEVER  # the same

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.spent = self.spent.plus(result.spend)
        if result.check == "failed":
            self.check_failures += 1
        elif result.check == "passed":
            self.check_failures = 0
        if result.worked:
            self.unsettled.append(result)
        if result.progress:
            self.unsettled.clear()

    def note_plan(self, plan: Plan) -> bool:
        """Take in a plan; whether it is progress.

        Progress is more settled, or less pending, than ever before in this run, and nothing gone.
        To un-check a task and to check it again, to reword it, or to add a line that is done, is
        none: agents did so all night.
        A plan of several tasks, none of which was in the one before, is another one, and counts
        from where it begins.
        """
        tasks = {task.text for task in plan.tasks}
        lost = missing_tasks(self.plan, plan)
        came = collections.Counter(task.text for task in plan.tasks)  # some come back
        came -= collections.Counter(task.text for task in self.plan.tasks)
        gone = collections.Counter((*self.gone, *lost)) - came
        self.gone = list(gone.elements())
        was_open, is_open = (
            collections.Counter(task.text for task in each.tasks if task.state == "pending")
            for each in (self.plan, plan)
        )
        self.plan = plan
        has_more = plan.settled > self.most_settled
        has_less = plan.pending < self.least_pending
        is_another = len(tasks) > 1 and self.tasks.isdisjoint(tasks)
        if tasks:  # an agent may empty it for a moment
            self.tasks = tasks
        if has_more or is_another:
            self.most_settled = plan.settled
        if has_less or is_another:
            self.least_pending = plan.pending
        settles = has_more and bool(was_open - is_open)  # and no line came that was done already
        shrinks = has_less and not lost
        return settles or shrinks

    def begin_anew(self) -> None:
        """A person goes on after it has come to rest: what was in a row before, is not now."""
        self.unsettled.clear()
        self.check_failures = 0
        self.waited = 0.0
        self.has_tagged = False

    def forget_progress(self) -> None:
        """Progress counts from the plan that is noted next."""
        self.tasks = set()
        self.most_settled = 0
        self.least_pending = NEVER

    @property
    def verdict(self) -> str:
        """What a check says of the work as it stands: passed, failed, interrupted or not run."""
        is_stale = self.is_unchecked and self.check in ("", "passed")  # a failure stays one
        return "not run" if is_stale else self.check

    def told_of_stuck(self, most: int) -> str:
        """What the next agent is told when so many iterations settled nothing (0: nothing)."""
        if not most or len(self.unsettled) < most:
            return ""
        goals = collections.Counter(result.goal for result in self.unsettled)
        lines = "\n".join(f"- {goal} ({times} times)" for goal, times in goals.items())
        refused = said_refused(refused_by(self.unsettled))
        seen = "They ended in good order, and marked nothing."
        if refused:
            seen = f"What they asked for was {refused}: do without it."
        return NOTHING_SETTLED.format(count=len(self.unsettled), goals=lines, seen=seen)

    def told_of_cut(self) -> str:
        """What the next agent is told when the last one's answer had no room."""
        last = self.results[-1] if self.results else None
        if last and last.fault and last.fault.kind == "length" and not last.progress:
            return CUT_SHORT.format(goal=last.goal)
        return ""

    @property
    def counted(self) -> int:
        """Towards --max-iterations: not those that a provider would not let work."""
        return sum(not result.waited_for for result in self.results)

    @property
    def last_worked(self) -> Result | None:
        return next((result for result in reversed(self.results) if result.worked), None)

    @property
    def average(self) -> float:
        """Seconds of an iteration that went well; 0 when there was none."""
        times = [result.seconds for result in self.results if result.worked]
        return sum(times) / len(times) if times else 0.0


class End(NamedTuple):
    """Why a run rests or ends. `stage`: paused, complete, error or stopping."""

    stage: str
    status: int = 130  # exit status
    reason: str = ""
    limit: str = ""  # the option that makes it rest, such as max_cost

    @property
    def is_pause(self) -> bool:
        """A person's: nothing is told of it, and nothing begins anew after it."""
        return self.status == 130


class Wait(NamedTuple):
    """What comes after an iteration that failed. `seconds` is how long."""

    why: str
    seconds: float
    for_provider: bool = False  # it counts towards --max-wait


class ModelLine:
    """The models in line, and what an outcome means for them and the run.

    The first one that does not rest works; every rest has an end. Without any model named,
    OpenCode's own default is the only one in line, as "".
    """

    def __init__(self, options: Options, books: Books, journal: Journal) -> None:
        self.options = options
        self.books = books
        self.journal = journal
        self.models = options.models or ("",)
        self.current = self.models[0]
        self.until: dict[str, float] = {}  # model -> when its rest is over
        self.rests: collections.Counter[str] = collections.Counter()  # how many, in a row
        self.failures: collections.Counter[str] = collections.Counter()  # since one has worked
        self.last_seen = ""  # what OpenCode said that it used

    def left(self, model: str, now: float) -> float:
        """Seconds that it still rests."""
        return max(0.0, self.until.get(model, 0.0) - now)

    def others(self, now: float) -> list[str]:
        """Those that could work now besides the one at work."""
        others = [model for model in self.models if model != self.current]
        return [model for model in others if not self.left(model, now)]

    def choose(self, now: float, another: bool = False) -> str:
        """The model that works next: the first one that does not rest, else the first one back.

        `another`: than the one at work, where there is one.
        """
        models = (self.others(now) if another else ()) or self.models
        self.current = min(models, key=lambda model: self.left(model, now))
        return self.current

    def rest(self, now: float, announced: float = 0.0) -> float:
        """Let the one at work rest, for the announced seconds, else longer each time; how long."""
        self.rests[self.current] += 1
        seconds = announced or wait_after(self.rests[self.current], RATE_LIMIT_WAITS)
        self.until[self.current] = now + seconds
        return seconds

    def note_success(self) -> None:
        """The one at work has worked."""
        self.failures.clear()
        self.until.pop(self.current, None)
        del self.rests[self.current]

    def forget(self) -> None:
        self.until.clear()
        self.rests.clear()
        self.failures.clear()

    def after(self, result: Result, model: str, now: float) -> Wait | End | None:
        """What comes before the next iteration; None: nothing. Raises Problem.

        `model` is what a person knows the model at work by.
        """
        fault = result.fault
        problem = result.problem
        if result.waited_for:
            if not result.spend.tokens:
                self.books.waited += result.seconds  # it did nothing but wait
            return self.wait_for_provider(fault.retry_after if fault else 0.0, problem, now)
        if result.worked or result.outcome == "aborted":
            return None
        if fault and fault.kind == "configuration":
            raise Problem(problem)
        advice = FAULTS[fault.kind] if fault else ""
        if advice and self.others(now):
            self.let_another_work(problem, now, LONGEST_WAIT)
            return None
        if advice and self.books.last_worked is None and not result.spend.tokens:
            advice = advice.format(model=model or "of the configuration")
            raise Problem(f"{problem.rstrip('.')}: {advice}")
        self.failures[self.current] += 1
        times = self.failures[self.current]
        most = self.options.retries
        if not most or times <= most:
            return Wait(problem, wait_after(times, FAILURE_WAITS))
        # Two models that fail by turns would do so for ever.
        if any(self.failures[other] <= most for other in self.others(now)):
            self.let_another_work(problem, now, LONGEST_WAIT)
            return None
        times = sum(self.failures.values())
        advice = advice and f": {advice.format(model=model or 'of the configuration')}"
        raise Problem(f"{times} iterations in a row failed, the last one: {problem}{advice}")

    def let_another_work(self, why: str, now: float, seconds: float) -> None:
        """Let the model at work rest for so long (0: longer each time), and the next one work."""
        model = self.current
        rest = duration(self.rest(now, seconds))
        following = self.choose(now)
        said = f"{model} rests for {rest} ({why}): {following} is next"
        self.journal.note("retry", said, "warn")

    def wait_for_provider(self, announced: float, problem: str, now: float) -> Wait | End | None:
        """A limit or an outage passes by itself, and costs nothing while it is waited for.

        What is left of --max-wait is waited; not for a time that was announced to come after it.
        """
        left = (self.options.max_wait or NEVER) - self.books.waited
        if self.others(now) and left > 0:
            self.let_another_work(problem, now, announced)
            return None
        self.rest(now, announced)
        seconds = min(self.left(model, now) for model in self.models)
        if left <= 0 or (announced and seconds > left):
            waited = duration(self.books.waited)
            back = f", and would be back in {duration(seconds)}" if announced else ""
            why = f"{problem.rstrip('.')}: waited {waited}{back} (--max-wait)"
            return End("paused", 3, why, "max_wait")
        return Wait(problem, min(seconds, left), for_provider=True)


# The limits that R raises, by as much again, and how they are told.
RAISED_BY_R: dict[str, Callable[[float], str]] = {
    "max_iterations": "{:.0f}".format,
    "max_cost": dollars_of,
    "max_time": duration,
}


class Limits:
    """The limits of a run, as a person has raised them since; `used` is held against them."""

    def __init__(self, options: Options, books: Books) -> None:
        self.options = options
        self.books = books
        self.most = {name: float(getattr(options, name)) for name in RAISED_BY_R}

    def reached(self, used: dict[str, float]) -> End | None:
        """Work is left, and a person has to say whether to go on."""
        for name, count in used.items():
            if self.most[name] and count >= self.most[name]:
                return End("paused", 3, self.told(name, count), name)
        most = self.options.stuck
        unsettled = self.books.unsettled
        if most and len(unsettled) > most:  # the last one was told of it: NOTHING_SETTLED
            refused = refused_by(unsettled)
            advice = "look at the next task and at the prompt, or mark the task [BLOCKED: reason]"
            if refused:
                advice = f"{said_refused(refused)}: {how_to_allow(dict(refused))}"
            why = f"{len(unsettled)} iterations in a row settled no task (--stuck): {advice}"
            return End("paused", 3, why, "stuck")
        failures = self.books.check_failures
        if most and failures >= most:
            advice = f"mend what `{self.options.check}` shows"
            why = f"the check failed {times_of(failures)} in a row (--stuck): {advice}"
            return End("paused", 3, why, "stuck")
        return None

    def overrun(self, used: dict[str, float]) -> str:
        """Why an iteration must end in its midst: money or time, passed by as much again."""
        for name in ("max_cost", "max_time"):
            if self.most[name] and used[name] >= 2 * self.most[name]:
                return f"twice the limit: {self.told(name, used[name])}"
        return ""

    def told(self, name: str, count: float) -> str:
        shown = RAISED_BY_R[name]
        option = f"--{name.replace('_', '-')}"
        return f"{option} is reached: {shown(count)} of {shown(self.most[name])}"

    def raise_above(self, name: str, count: float) -> None:
        """By as much again as was asked for, until there is room."""
        step = float(getattr(self.options, name))
        if self.most[name] <= count:
            self.most[name] += step * ((count - self.most[name]) // step + 1)


class Briefing:
    """What the next session is told, and by which model and agent it is worked: front matter,
    command line and OpenCode's own configuration have a word in it."""

    def __init__(self, options: Options, files: Files, line: ModelLine, seed: str) -> None:
        self.options = options
        self.files = files
        self.line = line
        self.seed = seed  # makes the ids of two runs differ
        self.setup = Setup()  # what the server knows
        self.warned: set[str] = set()  # of this

    def read(self) -> tuple[tuple[str, ...], str, str]:
        """The models in line, the agent, and the prompt's body, as they are now."""
        fields, body = split_front_matter(self.files.prompt_text)
        models = self.options.models or models_of(fields)
        return models, self.options.agent or fields.get("agent", ""), body

    def problem(self) -> str:
        models, agent, _body = self.read()
        return problem_of_names(self.setup, models, agent)

    def first_model(self) -> str:
        """The model that is first in line, as far as it is known."""
        models, _agent, _body = self.read()
        return (*models, self.setup.model or self.setup.chosen)[0]

    def warnings(self) -> list[str]:
        """What a person should know before the first prompt; each is said once."""
        setup = self.setup
        model = without_variant(self.first_model())
        said = []
        if not self.read()[0] and not setup.model and model in setup.free:
            said.append(
                f"nobody named a model, and OpenCode chose {model} by itself: your code goes to "
                f'provider "{model.partition("/")[0]}"; name another one with -m, or log in with '
                "`opencode auth login`"
            )
        if model in setup.free and self.options.max_cost:
            said.append(f"{model} has no price: --max-cost will not stop it, --max-time will")
        if setup.asks and not self.options.auto:
            means = "asked at night means refused"
            if self.options.asks_wait:
                means = f"each waits {duration(self.options.ask_timeout)} for an answer (`attach`)"
            said.append(
                f"OpenCode's configuration asks a person before {', '.join(setup.asks)}: {means}: "
                "allow it in opencode.json, or use --auto"
            )
        if setup.unread:
            said.append(
                f"OpenCode cannot read {first_of(setup.unread)}, and goes on without: mend it, or "
                "what it denies is not denied"
            )
        fresh = [warning for warning in said if warning not in self.warned]
        self.warned.update(fresh)
        return fresh

    def prompt(self, number: int, told: str, clock: RunClock, is_last_try: bool) -> Prompt:
        """`told` is what the loop has to add. The last try at a stuck task is another model's."""
        models, agent, body = self.read()
        self.line.models = models or ("",)
        model = self.line.choose(clock.now, another=is_last_try)
        prompt = make_prompt(body, self.options.plan, self.files.plan, number, told)
        prompt = prompt._replace(model=model, agent=agent)
        return with_ids(prompt, clock.wall, number, self.seed)


# ── run ───────────────────────────────────────────────────────────────────────────────────────────
# The run, told from top to bottom as it happens. It is one coroutine, `async` without asyncio:
# `handle` takes one event and the time, resumes the coroutine, and returns the requests that are to
# be made. A test is a world that has the clock and answers the requests.
#
# Three rules make it safe:
# 1. Everything that is waited for is waited for in `wait`. All that happens is heard there
#    (`hear`), all deadlines are minded there (`mind`), and all that interrupts is raised there. A
#    wait without `until` waits for a person, or for something that has an end of its own.
# 2. Only Quit and Abort interrupt. That the server is gone is raised by a request alone, since only
#    whoever asks knows how to go on without an answer; what else tells of it marks it as down.
# 3. What must not be cut short is shielded: while a session is being stopped, X waits.

READ_EVERY = 3.0  # seconds between two looks at plan and prompt
READ_AGAIN = 0.5  # the same, while they are needed and away
FILES_WITHIN = 60.0  # they may be away for so long when they are needed (an editor, git)
FIRST_STARTS = 3  # a server that never ran is started so often
BUSY_WITHIN = 120.0  # or for so long, where it answers that it cannot: its data base is locked
MEASURE_EVERY = 10.0  # seconds between two looks at the server's memory
MIND_EVERY = 0.25  # seconds between two looks at what has a time-out
REPEAT_AFTER = 1.0  # a request that failed is made again after so long
SILENCES = 2  # requests in a row without an answer, then the server is to blame
# Each request times out outside. For one whose thread hangs nobody waits longer than that; a check
# has an end of its own.
ANSWER_WITHIN = 300.0
LOCAL_WITHIN = 30.0  # the same, where only files and processes of this machine are looked at
ATTEMPTS = 4  # one prompt is handed over so often at the most
SENT_WITHIN = 60.0  # a prompt that is on its way has arrived by then, or is lost
BEGINS = 3.0  # a prompt that was accepted runs by then; before it does, an interrupt does nothing
LAST_STEP_WITHIN = 2.0  # at the end of the run a session has so long to tell what it has cost
INTERRUPT_WITHIN = 15.0  # an interrupted session is at rest by then, or out of our control
INTERRUPT_AGAIN = 1.0  # an interrupt that came before the run began did nothing
# OpenCode 2 loads models and agents behind the first request: a name that is not listed may come.
LISTS_REST = 2.0  # where no name is looked for, a list is complete by then
MISSING_AFTER = 15.0  # a name that is not listed by then does not come

STILL_COMPLETE = "the plan is complete: add tasks, and take its <plan-complete> tag out, then go on"
REFUSAL_ENDED_TURN = "Something that you asked for was refused, and that has ended your turn."
DATA_BASE = (
    ": another program may hold OpenCode's data base (~/.local/share/opencode/opencode.db): "
    "end that, then run again"
)


class Interrupt(Exception):
    """What `wait` raises in place of an answer."""


class Quit(Interrupt):
    """The run is to end: Q, a signal, nobody there to go on (so says `rest`). `str()` is why."""


class Abort(Interrupt):
    """This session is to end (X, a silence, a circle, twice a budget): see `Talk.ends_as`."""


class ServerGone(Exception):
    """Found out by a request, and by nothing else. `error` is the last thing that it said."""

    def __init__(self, problem: str, error: RequestError) -> None:
        super().__init__(problem)
        self.error = error


@types.coroutine
def next_event() -> Generator[None, Any, Any]:
    """The only place where the run stands still: `handle` sends the next event in."""
    return (yield)


class Supervisor:
    """The server, as the run knows it: it is started, and again where it died, hangs or grew. It is
    down until it has been started."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.options = run.options
        self.is_down: bool = True
        self.problem = ""  # why it is down; "" before the first start, and when it was given up
        self.launch = 0  # counts the starts; what is said of an older one is old news
        self.failures = 0  # in a row: until an iteration works, or a person goes on
        self.has_worked = False  # one of its starts was good for something
        self.is_busy = False  # the last one answered, and failed at everything
        self.up_since = 0.0
        self.url = ""
        self.version = ""
        self.generation = 0
        self.measure_at = 0.0
        self.most_memory = float(run.options.server_memory or NEVER)  # MiB
        # Before the next iteration: a session may still be at work in it, or it grew.
        self.replace = False
        self.left_session = ""  # the last one, where it may still be at work

    def note(self, text: str, tone: str) -> None:
        self.run.journal.note("server", text, tone)

    def lose(self, problem: str, is_busy: bool = False) -> None:
        """It is gone, or was not started: once for each start."""
        if self.is_down and self.problem:
            return
        if not self.is_down and self.run.now - self.up_since > LONGEST_WAIT:
            self.failures = 0  # it was good for long: not in a row
        self.failures += 1
        self.is_down = True
        self.is_busy = is_busy
        self.problem = problem
        self.note(problem, "bad")
        if self.run.talk:
            self.run.talk.lose_server()

    def let_go(self) -> None:
        """It is to be stopped, and that is no failure: its last words are old news."""
        self.is_down = True
        self.problem = ""
        self.launch += 1
        self.replace = False

    async def stop(self) -> None:
        """Interrupt the session that was left, and end the server, where it is ours."""
        self.let_go()
        request = self.run.request("stop_server", self.left_session)
        if not self.options.server:  # else it may be out of reach, and is stopped by `bring_up`
            self.left_session = ""
        with suppress(RequestError, Problem):  # it was noted
            await self.run.wait(self.run.now + ANSWER_WITHIN, request)

    async def bring_up(self) -> None:
        """Have it started, until it is up and has told its setup; one that is to be replaced is
        ended before. Raises Problem where it is no use to start it again."""
        if self.replace:
            await self.stop()
        with self.run.showing("starting", self.problem):
            await self.start_until_up()
        if self.run.talk:
            self.run.talk.find_server()
        elif self.left_session:
            await self.run.stop_left_session()

    async def start_until_up(self) -> None:
        began = self.run.now
        while self.is_down:
            if self.problem:
                most: float = FIRST_STARTS
                if self.has_worked:  # `--retries 0` is for what costs nothing: here it has a count
                    most = (self.options.retries or Options().retries) + 1
                elif self.is_busy and self.run.now - began < BUSY_WITHIN:
                    most = NEVER
                waits = SERVER_WAITS if self.has_worked else FIRST_WAITS
                if self.failures >= most:
                    last = self.problem.rstrip(".") + (DATA_BASE if self.is_busy else "")
                    times = f"{self.failures} times in a row, the last time"
                    raise Problem(f"the server failed {times}: {last}")
                await self.run.wait(self.run.now + wait_after(self.failures, waits))
            try:
                await self.start()
            except Problem as problem:
                if not problem.again and not self.has_worked:
                    raise
                self.lose(str(problem))
            except ServerGone as gone:
                self.lose(str(gone), gone.error.code >= 500)

    async def start(self) -> None:
        """Start it, and read its setup. Raises Problem and ServerGone."""
        self.let_go()
        where = f"waiting for {self.options.server}" if self.options.server else "starting OpenCode"
        self.note(where, "dim")
        request = self.run.request("start_server", self.launch)
        try:
            started = await self.run.wait(self.run.now + ANSWER_WITHIN, request)
            if started is None:
                raise Problem("the server was not started: no answer came", again=True)
            self.url, self.version, self.generation = started
            self.is_down = False
            self.up_since = self.run.now
            self.note(f"OpenCode {self.version} on {self.url}", "dim")
            setup = await self.read_setup()
            models, agent, _body = self.run.briefing.read()
            # Started again it may list less than before: a plugin, or a provider of this machine.
            if not self.has_worked or not problem_of_names(setup, models, agent):
                self.run.briefing.setup = setup
        except RequestError as error:
            problem = outcome_of_error(error).problem
            raise Problem(problem, again=error.why == "silent") from None
        except ServerGone as gone:
            if not gone.error.is_timeout or self.is_down:
                raise
            raise Problem(
                f"OpenCode does not answer for this directory ({gone}): a plugin or MCP server may "
                "hang while it is loaded: try `OPENCODE_PURE=1`"
            ) from None
        self.has_worked = True
        memory = await self.memory()
        most = self.most_memory
        if memory > most:  # it would be replaced for ever
            self.most_memory = NEVER
            said = f"takes {memory} MiB before any work: --server-memory {most:.0f} has no effect"
            self.note(said, "warn")

    async def read_setup(self) -> Setup:
        """Models, agents and configuration, once they are complete, as far as that shows."""
        began = self.run.now
        models, agent, _body = self.run.briefing.read()
        while True:
            setup: Setup = await self.run.call("setup")
            patience = 0.0
            if not setup.models or problem_of_names(setup, models, agent):
                patience = MISSING_AFTER
            elif not models and not setup.model:
                patience = LISTS_REST
            # OpenCode 2 alone fills its lists after the first request for them.
            if self.generation < 2 or self.run.now - began >= patience:
                return setup
            await self.run.wait(self.run.now + LOOK_TWICE)

    async def memory(self) -> int:
        """In MiB; 0 where it cannot be told."""
        memory = 0
        with suppress(RequestError):
            request = self.run.request("measure_server")
            memory = await self.run.wait(self.run.now + LOCAL_WITHIN, request) or 0
        self.measure_at = self.run.now + MEASURE_EVERY
        return memory

    async def measure(self, talk: Talk) -> None:
        """Look how large it is, if that is due: one that has grown is replaced between two
        iterations, at twice the limit at once."""
        if self.is_down or self.run.now < self.measure_at:
            return
        memory = await self.memory()
        most = self.most_memory
        is_bursting = memory > 2 * most
        if memory <= most or (self.replace and not is_bursting):
            return
        self.replace = True
        said = f"grew to {memory} MiB (limit {most:.0f}): replacing it"
        self.note(said + " in the midst" * is_bursting, "warn")
        if is_bursting:
            with self.run.shield(Abort), suppress(RequestError, ServerGone):
                await self.run.comes_to_rest(talk, INTERRUPT_WITHIN)
            self.let_go()
            talk.lose_server()
            await self.bring_up()


class Files:
    """Plan and prompt, as they were read last while they were good.

    An agent may stash them while it works: that is no mistake. Only who needs them waits for them.
    """

    def __init__(self, options: Options, journal: Journal) -> None:
        self.options = options
        self.journal = journal
        self.plan = Plan()
        self.plan_text = ""
        self.prompt_text = ""
        self.reading: Request | None = None  # the newest look, while it is on its way
        self.read_at = 0.0  # when they are looked at again
        self.trouble = ""  # why they cannot be read now

    def take(self, read: FilesRead) -> None:
        """Keep what was read, if it is good; else `trouble` is what is wrong with it."""
        self.reading = None
        plan = self.plan
        if read.plan is not None and read.plan != self.plan_text:
            plan = parse_plan(read.plan)
        plan_problem = problem_of_plan(plan, self.options.plan)
        problem = read.problem or plan_problem
        if self.options.debug and read.prompt is not None:
            problem = ""  # it takes any plan
        if not problem and not split_front_matter(read.prompt or "")[1]:
            problem = NO_PROMPT.format(self.options.prompt)
        if problem and not self.trouble:
            self.journal.note("warn", problem, "warn")
        elif self.trouble and self.plan_text and not problem:
            self.journal.note("plan", "plan and prompt can be read again", "dim")
        self.trouble = problem
        if problem:
            if read.plan is not None and not plan_problem:
                self.plan, self.plan_text = plan, read.plan  # the prompt alone is away
            return
        if self.plan_text and plan.done > self.plan.done:
            self.journal.note("plan", f"{plan.done} of {plan.total} done", "good")
        self.plan = plan
        self.plan_text = read.plan or ""
        self.prompt_text = read.prompt or ""


class Iteration(NamedTuple):
    """One session, the plan read after it, and the check."""

    number: int
    plan: Plan  # before it
    talk: Talk

    @property
    def task(self) -> Task | None:
        """The one that it began with; None: nothing was left but the summary."""
        return self.plan.current

    def result(self, now: float) -> Result:
        """How it stands, while it is under way."""
        return Result(
            number=self.number,
            task=self.task.text if self.task else "",
            phase=self.task.phase if self.task else "",
            goal=self.plan.goal,
            outcome="",
            ended="",
            problem="",
            seconds=now - self.talk.started,
            spend=self.talk.spent,
            model=self.talk.model,
            check="",
            progress=False,
            refused=tuple(self.talk.asks.refused.most_common()),
        )


class Run:
    """The whole run. It reckons with values: books, line, limits, briefing."""

    def __init__(self, options: Options, wall: float, seed: str = "") -> None:
        self.options = options
        self.clock = RunClock(wall)
        self.journal = Journal(self.clock)
        self.files = Files(options, self.journal)
        self.server: Supervisor = Supervisor(self)
        # How it waits.
        self.requests: list[Request] = []  # to be made now
        self.quitting: Quit | None = None  # the first reason counts
        self.shielded: tuple[type[Interrupt], ...] = ()  # must not be raised now
        self.mind_at = 0.0  # what has a time-out is looked at then
        # Where it stands.
        self.stage = "starting"  # for people
        self.reason = ""  # of the stage
        self.stage_since = wall  # in seconds since 1970
        self.exit_status: int | None = None  # once the run has ended
        self.rests_at: End | None = None  # an end that was told, and at which it stands
        # Iterations.
        self.number = 0  # of the newest one
        self.iteration: Iteration | None = None  # the one under way
        self.talk: Talk | None = None  # its session, while that is at work
        self.check_since: float | None = None  # since when its check runs
        self.wait_until: float | None = None  # before the next one
        self.earlier: collections.deque[str] = collections.deque(maxlen=50)  # sessions, over
        # What it reckons with.
        self.books = Books()
        self.line = ModelLine(options, self.books, self.journal)
        self.briefing = Briefing(options, self.files, self.line, seed)
        self.limits = Limits(options, self.books)
        # What a person wants.
        self.attended = options.attended  # somebody can look and press keys
        self.wanted = options.run or not options.attended  # S
        self.goes_on = False  # from where it rests or waits
        self.pause_wanted = False  # after this iteration
        self.confirming_quit = False
        self.overlay = ""  # what a person looks at instead of the activity: help or plan
        self.coroutine: Coroutine[Any, Any, int] = self.main()

    # How it waits, and makes requests.

    def handle(self, event: Any, wall: float) -> list[Request]:
        """One event has happened (None: only time has passed); returns the requests to be made.

        `wall` is in seconds since 1970. The first call begins the run, without an event.
        """
        was_away = not self.clock.move_to(wall)
        if was_away and self.talk:
            self.talk.look_within(0)  # what became of it meanwhile?
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
        until: float = NEVER,
        request: Request | None = None,
        sooner: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Live on until then; less long where the request is answered, or `sooner` holds.

        Returns the answer's value, or raises its error; None where there is no answer.
        """
        while not (request and request.done) and not sooner() and self.now < until:
            self.mind()
            if self.quitting and Quit not in self.shielded:
                raise self.quitting
            if self.talk and self.talk.ends_as and Abort not in self.shielded:
                raise Abort
            self.hear(await next_event())
        return request.value if request and request.done else None

    def request(self, method: str, *args: Any) -> Request:
        """Have a request made, on another thread."""
        self.requests.append(Request(method, args))
        return self.requests[-1]

    async def call(self, method: str, *args: Any, until: float = NEVER) -> Any:
        """Make a request of the server and wait for its answer. For one that comes too late nobody
        waits. Raises RequestError, and ServerGone where it is gone or twice silent."""
        error = RequestError(0, "no answer came")
        for _ in range(SILENCES):
            if self.server.is_down or self.now >= until:
                break
            request = self.request(method, *args)
            if self.talk and method == "send":
                self.talk.sending = request
            within = min(until, self.now + ANSWER_WITHIN)
            try:
                await self.wait(within, request, lambda: self.server.is_down)
                if request.done:
                    return request.value
            except RequestError as said:
                if said.why != "silent":
                    raise
                error = said
            # Its process may have ended: that is told a moment later, with its last words.
            again_at = min(until, self.now + REPEAT_AFTER)
            await self.wait(again_at, sooner=lambda: self.server.is_down)
        if self.server.is_down:
            raise ServerGone(self.server.problem, error)
        raise ServerGone(f"the server does not answer: {error}", error)

    async def surely(self, method: str, *args: Any) -> Any:
        """Call, however often the server has to be got back: requests are safe to be repeated."""
        while True:
            try:
                return await self.call(method, *args)
            except ServerGone as gone:
                self.server.lose(str(gone))
                await self.server.bring_up()

    def end(self, why: str) -> None:
        """The next wait ends the run."""
        self.quitting = self.quitting or Quit(why)

    @contextmanager
    def shield(self, *kinds: type[Interrupt]) -> Iterator[None]:
        """What interrupts waits until this is over."""
        before, self.shielded = self.shielded, (*self.shielded, *kinds)
        try:
            yield
        finally:
            self.shielded = before

    @contextmanager
    def showing(self, stage: str, reason: str = "") -> Iterator[None]:
        """What people see cannot lie: however it is left, the stage before is back."""
        before = (self.stage, self.reason)
        self.show(stage, reason)
        try:
            yield
        finally:
            self.show(*before)

    def show(self, stage: str, reason: str = "") -> None:
        if stage != self.stage:
            self.stage_since = self.clock.wall
        self.stage = stage
        self.reason = reason

    # From its first to its last breath.

    async def main(self) -> int:
        """Live until a person, a signal or the end of the work ends it; the exit status."""
        try:
            while True:
                try:
                    end = await self.work()
                except Problem as problem:
                    end = End("error", 1, str(problem))
                await self.rest(end)
        except Quit as quit:
            last = self.rests_at or End("stopping", 130, str(quit))
            # Where nobody was there to go on, it ends as it is.
            self.show("stopping" if self.attended else last.stage, last.reason)
            if self.rests_at is None:  # else it was told
                self.tell_end(last)
        return self.status

    async def get_ready(self) -> None:
        """The server, its setup, and what a person has to know of them. Raises Problem."""
        await self.server.bring_up()
        if self.look_through() and self.attended and not self.options.run:
            self.wanted = False  # S was pressed before there was this to read

    async def stop_left_session(self) -> None:
        """It may be at work, on a server that is not ours."""
        self.journal.note("warn", "an earlier session was left here: stopping it", "warn")
        talk = Talk(Prompt(""), self)
        talk.id = self.server.left_session
        with suppress(RequestError, ServerGone):
            with suppress(RequestError):
                await self.comes_to_rest(talk, INTERRUPT_WITHIN)
            self.server.left_session = ""  # but where the server was gone again

    def look_through(self) -> list[str]:
        """What is wrong with models and agent ends the run; what is odd is said, once, and
        returned."""
        problem = self.briefing.problem()
        if problem:
            raise Problem(problem)
        warnings = self.briefing.warnings()
        for warning in warnings:
            self.journal.note("warn", warning, "warn")
        return warnings

    async def work(self) -> End:
        """The server, a person's S, then one iteration after another, until there is a reason to
        rest. Raises Problem."""
        try:
            await self.get_ready()
            while not self.wanted:
                with self.showing("ready"):
                    await self.wait(sooner=lambda: self.wanted or self.server.is_down)
                await self.server.bring_up()
            self.clock.works = True
            with self.showing("running"):
                while True:
                    is_due = not self.books.check or self.plan.summary is not None
                    if self.options.check and self.books.verdict == "not run" and is_due:
                        self.take_stock(await self.read_files())  # a check may change it
                        await self.run_check()  # what it says is told to the first session
                    plan = await self.read_files()  # whoever wrote it may have been quick
                    self.take_stock(plan)
                    end = self.reason_to_rest(plan)
                    if end:
                        return end
                    if self.server.is_down or self.server.replace:
                        await self.server.bring_up()
                        continue  # the plan may be another one by now
                    end = await self.follow(await self.iterate(plan))
                    if end:
                        return end
        finally:
            self.clock.works = False
            self.pause_wanted = False

    def reason_to_rest(self, plan: Plan) -> End | None:
        """Whether the plan is complete, a limit is reached, or a pause was wanted."""
        # The agent of an iteration without a task was told to wrap up, and may have written no
        # summary. (Where --debug takes any plan, an empty one says nothing.)
        last = self.books.last_worked
        was_last = last is not None and not last.task
        has_wrapped_up = was_last and not plan.pending and bool(self.files.plan_text)
        if (plan.summary is not None or has_wrapped_up) and not self.books.complaint:
            status, how = how_complete(plan, self.books.gone)
            if status == 0 and self.books.check == "interrupted":
                status, how = 3, "complete, but the last check was interrupted"
            return End("complete", status, how)
        pause = End("paused") if self.pause_wanted else None
        return self.limits.reached(self.used) or pause

    async def rest(self, end: End) -> None:
        """Stand still until a person goes on. Raises Quit where nobody is there to do so."""
        self.goes_on = False  # what is pressed from here on counts
        with self.showing(end.stage, end.reason):
            if not end.is_pause:
                self.rests_at = end
                self.tell_end(end)
            elif end.reason:
                self.notify("stopped", end.reason)
            if not self.attended:
                raise Quit("paused, and the terminal is gone")
            if end.stage != "paused":  # nobody knows when somebody comes: the server does not wait
                await self.server.stop()
            while True:
                await self.wait(sooner=lambda: self.goes_on)
                self.goes_on = False
                if end.stage != "complete":
                    break
                await self.look_at_files()
                if not self.files.trouble:
                    if self.plan.summary is None and self.plan.pending:
                        break
                    self.journal.note("note", STILL_COMPLETE, "warn")
        self.rests_at = None
        self.books.forget_progress()  # what happened to the plan at rest is a person's
        if end.limit in RAISED_BY_R:
            self.limits.raise_above(end.limit, self.used[end.limit])
        elif not end.is_pause:  # whatever went wrong so far, this is a new beginning
            self.books.begin_anew()
            self.line.forget()
            self.server.failures = 0

    # One iteration.

    async def iterate(self, plan: Plan) -> Result:
        """One session, the plan read after it, and the check."""
        self.look_through()  # it may name another model by now
        self.number += 1
        self.journal.iteration = self.number
        talk = self.new_talk()
        self.books.is_unchecked = True
        iteration = self.iteration = Iteration(self.number, plan, talk)
        self.journal.note("task", title_of(plan.goal), "head")
        try:
            try:
                outcome = await self.lead(talk)
                plan = await self.read_files()  # as the session left it: a check may hide it
            except (Interrupt, Problem):
                # It is in no book but for what it has cost, and what it has taken out of the plan.
                self.take_stock(self.plan)
                self.books.spent = self.books.spent.plus(talk.spent)
                self.server.left_session = talk.id
                raise
            check = ""
            is_to_be_checked = outcome.kind in (*WORKED, "cut") or plan.summary is not None
            try:
                if self.options.check and is_to_be_checked:
                    check = await self.run_check()
            except Quit:
                check = self.books.check = "interrupted"
                raise
            finally:
                result = self.settle(iteration, outcome, check, plan)
            return result
        finally:
            self.iteration = None
            self.confirming_quit = False  # it was about what is over now
            self.journal.iteration = 0

    def new_talk(self) -> Talk:
        """A session that is to be made, with the prompt and what the loop has to tell."""
        stuck = self.books.told_of_stuck(self.options.stuck)
        near = told_of_near_misses(self.plan)
        all_told = (self.books.complaint, self.books.told_of_cut(), stuck, near)
        told = "\n\n".join(filter(None, all_told))
        prompt = self.briefing.prompt(self.number, told, self.clock, is_last_try=bool(stuck))
        if stuck:
            times = len(self.books.unsettled)
            said = f"nothing was settled {times_of(times)}: the last try, and the prompt says so"
            self.journal.note("warn", said, "warn")
        return Talk(prompt, self)

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
            outcome = outcome_of_error(error)
            await self.recall(talk)
        except Quit:  # stop the session, and see what its last step has cost; soon
            if talk.id:
                with self.shield(Quit, Abort), suppress(RequestError, ServerGone):
                    await self.comes_to_rest(talk, LAST_STEP_WITHIN)
            raise
        finally:
            self.talk = None
            self.earlier.append(talk.id)  # from here on it is a stray when it wakes
            talk.transcript.close()
        if outcome.problem:
            talk.transcript.error(outcome.problem, talk.id)
        return outcome

    async def have_answered(self, talk: Talk) -> Outcome:
        """Make a session, hand the prompt over, again where it was swallowed, and look until it is
        answered."""
        talk.id = await self.surely("create", talk.prompt)
        talk.family[talk.id] = 0
        pushes_left = GOES_ON
        while talk.attempt < ATTEMPTS:
            if talk.attempt:
                talk.note("warn", "the prompt is not being answered: sending it again", "warn")
            talk.prepare()
            await self.surely("send", talk.id, talk.prompt, talk.attempt)
            talk.last_sign = self.now
            talk.look_within(FIRST_LOOK)
            outcome = await self.watch(talk)
            if outcome.kind == "swallowed":
                talk.attempt += 1
            elif outcome.kind == "refused" and talk.asks.last_refusal and pushes_left:
                # Of two asks at once the server rejects the second one by itself when the first one
                # is refused, without our words, and that ends the turn.
                pushes_left -= 1
                talk.note("note", "the refusal ended its turn: telling it to go on without", "warn")
                text = f"{REFUSAL_ENDED_TURN} {talk.asks.last_refusal}"
                prompt = talk.prompt._replace(text=text)
                talk.prompt = with_ids(prompt, self.clock.wall, self.number, self.briefing.seed)
                talk.attempt = 0
            else:
                return outcome
        # It may begin late, and must not run beside the next session.
        self.server.left_session = talk.id
        self.server.replace = True
        return Outcome("failed", f"the prompt was sent {ATTEMPTS} times and never answered")

    async def watch(self, talk: Talk) -> Outcome:
        """Look until an end is believed: polling decides, an event only makes us look sooner."""
        while True:
            await self.wait(talk.look_at, sooner=lambda: self.now >= talk.look_at)
            await self.server.measure(talk)
            looked = self.now
            talk.look_at = looked + min(POLL_EVERY, (self.options.stall_timeout or NEVER) / 3)
            closer = looked - talk.last_sign > LOOK_CLOSER
            polled = await self.surely("poll", talk.id, talk.prompt, talk.attempt, closer)
            talk.take_in(polled, looked)
            outcome = talk.weigh(polled, looked)
            if outcome and polled.activity != "idle":
                await self.recall(talk)  # it has answered long ago, and says "busy" for ever
            if outcome:
                return outcome

    async def recall(self, talk: Talk) -> None:
        """Stop what may be at work, so that nothing of it runs on beside the next session. What may
        run all the same is left behind, and the next session gets a new server."""
        sending = talk.sending
        if sending is None:
            return  # nothing of ours runs there
        talk.asks.close()
        with self.shield(Abort):
            try:
                # An interrupt does nothing to a prompt that is on its way, or has not begun.
                with suppress(RequestError):
                    await self.wait(self.now + SENT_WITHIN, sending, lambda: self.server.is_down)
                begins_by = self.now + BEGINS
                await self.wait(
                    begins_by, sooner=lambda: bool(talk.begun_at) or self.server.is_down
                )
                is_at_rest = await self.comes_to_rest(talk, INTERRUPT_WITHIN)
                lost_control = not is_at_rest or not sending.done
            except RequestError as error:
                lost_control = error.why != "gone"
            except ServerGone:
                # Ours is gone, with all that ran there; somebody else's may be out of reach.
                lost_control = bool(self.options.server) or not self.server.is_down
        if lost_control:
            self.server.left_session = talk.id
            self.server.replace = True

    async def comes_to_rest(self, talk: Talk, within: float) -> bool:
        """Interrupt a session until it rests, for so long; whether it does. Raises RequestError and
        ServerGone."""
        until = self.now + within
        again_at = self.now
        while True:
            if self.now >= again_at:
                await self.call("interrupt", talk.id, talk.prompt, talk.attempt, until=until)
                again_at = self.now + INTERRUPT_AGAIN
            looked = self.now
            polled = await self.call("poll", talk.id, talk.prompt, talk.attempt, False, until=until)
            talk.take_in(polled, looked)  # what it has cost, to the last
            is_at_rest: bool = polled.activity == "idle" and not polled.is_unsure
            if is_at_rest or self.now >= until:
                return is_at_rest
            await self.wait(min(until, self.now + LOOK_TWICE))

    async def run_check(self) -> str:
        """Have --check run: passed, failed or interrupted. Raises Problem where there is no such
        command from the beginning."""
        self.check_since = self.now
        try:
            # Its own end is --check-timeout, or X; it costs time, and no money.
            checking = self.request("run_check", facts_of(self))
            await self.wait(
                request=checking,
                sooner=lambda: bool(self.limits.overrun({**self.used, "max_cost": 0.0})),
            )
            if not checking.done:
                self.request("stop_check")
                await self.wait(request=checking)
            checked: CheckResult = checking.value
        except RequestError as error:
            self.journal.note("warn", f"the check was not run: {error}", "warn")
            checked = CheckResult(126, "", interrupted=True)
        finally:
            self.check_since = None
        books = self.books
        said = f"failed with exit status {checked.status}\n{checked.output[-1500:]}".strip()
        books.is_unchecked = checked.interrupted
        if checked.interrupted:  # it said nothing
            books.check = "interrupted"
        elif checked.status == 0:
            books.check = "passed"
            books.complaint = ""
            self.journal.note("check", "passed", "good")
        elif checked.status in (126, 127) and not books.check:  # a shell's "no such"
            command = self.options.check
            raise Problem(f"the check `{command}` cannot be run: it {said}: mend --check")
        else:
            books.check = "failed"
            books.complaint = CHECK_FAILED.format(
                command=self.options.check, status=checked.status, output=checked.output
            )
            self.journal.note("check", said, "bad")
        return books.check

    def settle(self, iteration: Iteration, outcome: Outcome, check: str, plan: Plan) -> Result:
        """Write an iteration into the books; what nobody may overlook is said."""
        is_tagged = plan.summary is not None
        has_progress = self.take_stock(plan) or (is_tagged and not self.books.has_tagged)
        self.books.has_tagged = self.books.has_tagged or is_tagged
        known = collections.Counter(near.fault for near in iteration.plan.near_misses)
        near_misses = []
        for near in plan.near_misses:
            if known[near.fault] <= 0:
                near_misses.append(near)
            known[near.fault] -= 1
        for said in name_near_misses(os.path.basename(self.options.plan), near_misses):
            self.journal.note("warn", said, "warn")
        ended = outcome.kind
        if ended in WORKED and has_progress:
            ended = what_was_settled(iteration.task, iteration.plan, plan)
        elif ended == "done":
            ended = "nothing settled"
        result = iteration.result(self.now)._replace(
            outcome=outcome.kind,
            ended=ended,
            problem=outcome.problem[: Journal.LONGEST_TEXT],
            fault=outcome.fault,
            check=check,
            progress=has_progress,
        )
        note_result(self.journal, result, plan, iteration.talk.id)
        self.books.add(result)
        if result.worked:
            self.server.failures = 0
            self.books.waited = 0.0
            self.line.note_success()
        return result

    def take_stock(self, plan: Plan) -> bool:
        """Note it in the books, and say what has gone out of it; whether it is progress."""
        known = collections.Counter(self.books.gone)
        has_progress = self.books.note_plan(plan)
        gone = list((collections.Counter(self.books.gone) - known).elements())
        if gone:
            self.journal.note("warn", said_gone(gone), "warn")
        return has_progress

    async def follow(self, result: Result) -> End | None:
        """Do what an iteration means for the run. Raises Problem."""
        fault = result.fault
        if result.outcome == "cut" and fault and fault.kind == "aborted" and self.attended:
            # Somebody is there, and at work in OpenCode's own interface: nobody else interrupts.
            return End("paused", reason="its answer was broken off: Space goes on")

        def is_complete() -> bool:
            """Nothing needs to be tried again, or waited for: a person may have done it all."""
            return self.plan.summary is not None and not self.books.complaint

        if is_complete():
            return None
        step = self.line.after(result, self.model, self.now)
        if not isinstance(step, Wait):
            return step
        self.goes_on = False

        def is_over() -> bool:
            """The next turn finds out what made the wait end, such as --max-time."""
            has_limit = self.limits.reached(self.used) is not None
            return self.goes_on or self.pause_wanted or is_complete() or has_limit

        if is_over():
            return None
        self.journal.note("retry", f"trying again in {duration(step.seconds)}", "warn")
        began = self.now
        self.wait_until = began + step.seconds
        try:
            with self.showing("waiting", step.why):
                await self.wait(self.wait_until, sooner=is_over)
        finally:
            self.wait_until = None
            if step.for_provider:
                self.books.waited += self.now - began
        return None

    # What it needs: plan and prompt, and the server.

    async def read_files(self) -> Plan:
        """Plan and prompt, read afresh, and waited for where they are away. Raises Problem."""
        until = self.now + FILES_WITHIN
        while True:
            await self.look_at_files()
            if not self.files.trouble or self.plan.summary is not None:
                return self.plan  # one that was complete may be moved away after that
            if self.now >= until:
                raise Problem(self.files.trouble)
            await self.wait(self.now + READ_AGAIN)

    def read_again(self) -> Request:
        self.files.read_at = self.now + READ_EVERY
        self.files.reading = self.request("read_files")
        return self.files.reading

    async def look_at_files(self) -> None:
        """Have plan and prompt read, whatever look is on its way: it may be too old."""
        reading = self.read_again()
        with suppress(RequestError):  # `hear` sees to it
            await self.wait(self.now + LOCAL_WITHIN, reading)
        if not reading.done:
            self.hear(Answer(reading, error=RequestError(0, "no answer came")))

    # What happens, wherever it stands.

    def hear(self, event: Any) -> None:
        """Route what has happened to where it belongs."""
        if isinstance(event, Answer):
            self.hear_answer(event)
        elif isinstance(event, FROM_SESSION):
            self.hear_session(event)
        elif isinstance(event, Edited):
            if event.path == self.options.plan:
                self.files.read_at = self.mind_at = self.now
        elif isinstance(event, Key):
            self.press(event)
        elif isinstance(event, StreamOpened):
            if self.talk:
                self.talk.look_within(0)
        elif isinstance(event, ServerDied):
            if event.launch == self.server.launch and not self.server.is_down:
                self.server.lose(event.problem)
        elif isinstance(event, Signalled):
            self.end(f"stopped by {event.name}")
        elif isinstance(event, ScreenLost):
            self.lose_screen(event.reason)
        elif isinstance(event, Noted):
            self.journal.note(event.kind, event.text, event.tone)

    def hear_answer(self, answer: Answer) -> None:
        """For one that comes too late nobody waits; of what nobody awaits failures are said."""
        request = answer.request
        if request.done:
            return
        request.done = True
        request.result = answer.result
        request.error = answer.error
        if request is self.files.reading:
            problem = f"{self.options.plan} cannot be read: {request.error}"
            self.files.take(request.result or FilesRead(None, None, problem))
        elif request.name == "reply":
            if self.talk:
                self.talk.asks.delivered(request)
        elif request.error and request.name in ("notify", "stop_check", "stop_server", "hand_over"):
            self.journal.note("warn", str(request.error), "warn")
        elif request.name == "hand_over":
            self.journal.note("note", "back, and the loop goes on", "dim")

    def hear_session(self, event: SessionEvent) -> None:
        """Only our own session and its subagents count."""
        if isinstance(event, Woke) and event.session in self.earlier and not self.server.is_down:
            self.journal.note("warn", "an earlier session woke up by itself: stopping it", "warn")
            # Its answer must not be taken for that of the session under way.
            self.request("interrupt", event.session, Prompt(""), 0)
        elif self.talk:
            self.talk.hear(event)

    def lose_screen(self, reason: str) -> None:
        """Nobody looks any more: go on, as long as there is something to go on with."""
        if not self.attended:
            return  # a terminal that is gone may say so in several ways
        self.attended = False
        self.journal.note("note", f"{reason}: going on without a screen", "warn")
        if self.stage in ("ready", "paused", "complete", "error") or not self.wanted:
            self.end("the terminal is gone, and nobody is there to go on")

    def mind(self) -> None:
        """What has to be looked after wherever it stands: what it finds interrupts, or is asked."""
        if self.now < self.mind_at:
            return
        self.mind_at = self.now + MIND_EVERY
        files = self.files
        if not files.reading and self.now >= files.read_at and not self.rests_at:
            self.read_again()
        if self.talk:
            self.talk.mind()

    # People.

    def press(self, key: Key) -> None:
        """Whatever is in front of a person takes the key first."""
        if key.about == QUIT_SHOWN and not self.confirming_quit:
            return  # the iteration has ended meanwhile, and the question with it
        if self.confirming_quit and key.about not in (None, QUIT_SHOWN):
            return  # it was pressed before the question was on the screen: a key held down
        if self.confirming_quit:
            self.confirming_quit = False
            if key.name == "q":
                self.end(A_PERSON_QUIT)
        elif self.talk and self.talk.asks.takes_key(key):
            pass
        elif key.name == "escape" or (self.overlay == "help" and key.name != "q"):
            self.overlay = ""
        else:
            uses = [use for known in KEYS if known.name.lower() == key.name for use in known.uses]
            for use in uses:
                if use.when(self):
                    use.do(self)
                    return

    @property
    def waits_for_start(self) -> bool:
        return not self.wanted and self.stage in ("starting", "ready")

    @property
    def is_at_work(self) -> bool:
        """Working, or waiting to: it can be paused."""
        return self.wanted and self.stage in ("running", "waiting", "starting")

    def want(self) -> None:
        """S: start, or go on from where it rests."""
        self.wanted = self.goes_on = True
        if self.stage == "starting":
            self.reason = "begins when the server is ready"

    def go_on(self) -> None:
        self.goes_on = True

    def toggle_pause(self) -> None:
        self.pause_wanted = not self.pause_wanted

    def abort(self) -> None:
        if self.talk:
            self.talk.give_up("aborted", "aborted by a person")
        else:
            self.request("stop_check")

    def hand_over(self) -> None:
        self.journal.note("note", "opening OpenCode's interface on this session", "dim")
        self.request("hand_over")

    def show_overlay(self, overlay: str) -> None:
        self.overlay = overlay

    def quit(self) -> None:
        """An iteration that would be lost is asked for once."""
        if self.iteration:
            self.confirming_quit = True
        else:
            self.end(A_PERSON_QUIT)

    # What people and programs are told.

    @property
    def status(self) -> int:
        """The exit status, if it ended now."""
        return self.rests_at.status if self.rests_at else 130

    @property
    def limit(self) -> str:
        """The option that makes it rest, such as max_cost."""
        return self.rests_at.limit if self.rests_at else ""

    @property
    def shown_state(self) -> str:
        """The stage in a person's words: one of STATES."""
        if self.talk and self.talk.asks.first and not self.confirming_quit:
            return "waits for you"
        if self.pause_wanted and self.stage in ("running", "starting"):
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
        under_way = self.iteration
        return self.books.spent.plus(under_way.talk.spent) if under_way else self.books.spent

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
        if self.iteration and self.iteration.talk.model:
            return self.iteration.talk.model
        return self.line.current or self.line.last_seen or self.briefing.first_model()

    def need_person(self, said: str) -> None:
        self.confirming_quit = False  # what is asked is in front of a person now
        self.notify("asked", said)

    def tell_end(self, end: End) -> None:
        """Tell everybody why it ends, or rests."""
        events = {0: ("complete", "good"), 1: ("failed", "bad")}
        event, tone = events.get(end.status, ("stopped", "warn"))
        record = end_record(self, event, end)
        self.journal.note("end", end.reason, tone, record=record)
        for line in summary_of(self):
            self.journal.note("end", line)
        if end.reason != A_PERSON_QUIT:  # whoever did it is in front of the screen
            self.notify(event, end.reason)

    def notify(self, event: str, said: str) -> None:
        if self.options.notify:
            message = message_of(self, event, said)
            facts = dict(facts_of(self), OCLOOP_EVENT=event, OCLOOP_MESSAGE=message)
            self.request("notify", facts)


class Use(NamedTuple):
    """What a key is good for, and when; `label` is the footer's word, "": it is not told there."""

    label: str
    when: Callable[[Run], bool]
    do: Callable[[Run], None]


class KeyHelp(NamedTuple):
    """A key, what the help says of it, and its uses, of which the first possible one counts."""

    name: str
    help: str
    uses: tuple[Use, ...] = ()  # none: the screen takes it, or what is asked does


# fmt: off
KEYS = (
    KeyHelp("S", "start", (
        Use("start", lambda run: run.waits_for_start, Run.want),
        Use("go on", lambda run: run.stage == "complete", Run.want))),
    KeyHelp("Space", "pause after this iteration, or go on", (
        Use("", lambda run: run.waits_for_start or run.stage == "complete", Run.want),
        Use("go on", lambda run: run.is_at_work and run.pause_wanted, Run.toggle_pause),
        Use("pause", lambda run: run.is_at_work, Run.toggle_pause),
        # R alone goes beyond a limit.
        Use("go on", lambda run: run.stage == "paused" and not run.rests_at, Run.go_on))),
    KeyHelp("R", "retry after an error; go on at a limit", (
        Use("raise the limit", lambda run: run.limit in RAISED_BY_R, Run.go_on),
        Use("retry", lambda run: bool(run.limit) or run.stage in ("error", "waiting"), Run.go_on),
        Use("", lambda run: run.stage in ("paused", "complete"), Run.go_on))),
    KeyHelp("X", "abort this iteration, or its check", (
        Use("abort", lambda run: bool(run.talk) or run.check_since is not None, Run.abort),)),
    KeyHelp("T", "this session in OpenCode's own interface, and back", (
        Use("session", lambda run: bool(run.talk and run.talk.id and not run.server.is_down),
            Run.hand_over),)),
    KeyHelp("P", "the plan: what was done, what it cost; P or Esc goes back", (
        Use("activity", lambda run: run.overlay == "plan", lambda run: run.show_overlay("")),
        Use("plan", lambda run: True, lambda run: run.show_overlay("plan")))),
    KeyHelp("?", "this help", (
        Use("help", lambda run: True, lambda run: run.show_overlay("help")),)),
    KeyHelp("Q", "quit, like ctrl-c (asks once while an iteration runs)", (
        Use("quit", lambda run: True, Run.quit),)),
    KeyHelp("Y A N", "permission: once, always (it says for what), no"),
    KeyHelp("1-9 N", "question: an answer, or none"),
    KeyHelp("arrows", "scroll; so do PgUp, PgDn, Home and End"),
)
# fmt: on


# ── what is told of a run ─────────────────────────────────────────────────────────────────────────
# Words and records for people, logs and other programs, computed from the state of the run.


def what_was_settled(task: Task | None, before: Plan, after: Plan) -> str:
    """The word for an iteration that got on: done, blocked or manual, as it left the task that it
    began with (None: to wrap up), or progress, where that is open still and another is not."""
    if task is None:
        return "done"

    def count(plan: Plan, state: str) -> int:
        return sum(one.state == state and one.name == task.name for one in plan.tasks)

    for state in ("done", "blocked", "manual"):
        if count(after, state) > count(before, state):
            return state
    # An agent may word it anew as it marks it.
    if after.done > before.done and not count(after, "pending"):
        return "done"
    return "blocked" if after.blocked > before.blocked and after.done <= before.done else "progress"


def counts_of(plan: Plan) -> dict[str, object]:
    """For JSON: done of total, which is what an agent was to do; manual stands beside it."""
    names = ("done", "total", "pending", "blocked", "manual")
    return {name: getattr(plan, name) for name in names}


def progress_of(plan: Plan) -> list[str]:
    """For people: done/total, and what stands beside it where there is any."""
    beside = ((plan.blocked, "blocked"), (plan.manual, "manual"))
    return [f"{plan.done}/{plan.total}", *(f"{count} {word}" for count, word in beside if count)]


def note_result(journal: Journal, result: Result, plan: Plan, session: str) -> None:
    spend = result.spend
    facts = (
        f"#{result.number} {result.word} in {duration(result.seconds)}",
        said_refused(result.refused),
        *progress_of(plan),
        f"{short_number(spend.tokens)} tokens",
        dollars_of(spend.cost),
        title_of(result.goal),
    )
    record = {"record": "iteration", **result_record(result), **counts_of(plan)}
    journal.note("iter", " · ".join(filter(None, facts)), "head", session, record=record)


def result_record(result: Result) -> Json:
    return {
        "iteration": result.number,
        "task": result.goal,
        "outcome": result.word,
        "progress": result.progress,
        "problem": result.problem,
        "seconds": round(result.seconds, 1),
        "model": result.model,
        "check": result.check,
        "refused": dict(result.refused),
        **result.spend.record(),
    }


def task_record(item: TaskView) -> Json:
    return {
        **item.task._asdict(),
        "iterations": item.iterations,
        "seconds": round(item.seconds),
        "model": item.model,
        "outcome": item.outcome,
        **item.spend.record(),
    }


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
    gone_now = missing_tasks(books.plan, run.plan) if run.iteration else []
    verdict = books.verdict if run.options.check else ""
    check = {"command": run.options.check, "verdict": verdict, "told": books.complaint}
    return {
        "summary": run.plan.summary,
        "gone": [*books.gone, *gone_now],
        "refused": dict(refused_by(run.books.results)),
        "check": check,
        **run.total.record(),
    }


def summary_of(run: Run) -> list[str]:
    """What a person wants to know in the morning."""
    plan = run.plan
    lines = [f"the agent says: {plan.summary}"] if plan.summary else []
    iterations = "1 iteration" if run.number == 1 else f"{run.number} iterations"
    if run.files.plan_text:
        lines.append(
            f"{plan}; {iterations} in {duration(run.clock.elapsed)}; "
            f"{short_number(run.total.tokens)} tokens, {dollars_of(run.total.cost)}"
        )
    if run.books.gone:
        lines.append(said_gone(run.books.gone))
    for state in ("blocked", "manual"):
        lines += [f"{state}: {said}" for said in tasks_in(plan, state)[:20]]
    steps = next_steps(plan, {"status": run.status, **left_behind(run)})
    return lines + [f"to do: {step}" for step in steps]


def tasks_in(plan: Plan, state: str) -> list[str]:
    """The tasks that are blocked, or manual, with the reason in brackets."""
    tasks = [task for task in plan.tasks if task.state == state]
    return [task.text + (f" ({task.reason})" if task.reason else "") for task in tasks]


def next_steps(plan: Plan, record: Json, is_running: bool = False) -> list[str]:
    """What a person can do now, in the order in which it helps. `record` is what the state file
    says of the run; empty: there was none."""
    if is_running:
        asked = [as_text(title) for title in as_list(record, "waits_for")]
        return [f"answer what it asks ({first_of(asked)}): `attach` joins it"] if asked else []
    steps = []
    tag = "take out the `<plan-complete>` tag, " if plan.summary is not None else ""
    has_work_left = record.get("status") != 0  # else what was refused was done without
    refused = list(as_dict(record, "refused"))
    if refused and has_work_left:
        steps.append(how_to_allow(refused))
    check = as_dict(record, "check")
    verdict = as_text(check, "verdict")
    verb = {"failed": "mend", "interrupted": "run", "not run": "run"}.get(verdict)
    if verb and not (verdict == "not run" and plan.pending):  # the next run begins with it
        steps.append(f"{verb} the check: `{ellipsis(as_text(check, 'command'), 60)}`")
    gone = [as_text(text) for text in as_list(record, "gone")]
    if gone:
        steps.append(f"write back what is gone from the plan, or let it be: {first_of(gone)}")
    if plan.open_near_misses and not plan.pending:
        lines = first_of([f"line {near.line}" for near in plan.open_near_misses])
        steps.append(f"make tasks of what looks like one: {lines}")
    is_cut_short = record and has_work_left and plan.summary is None
    if plan.pending or (is_cut_short and not plan.blocked):
        start = "run again to go on" if record else "start it with `run`"
        if record.get("status") == 1:
            start = "mend what stopped it, run again"
        steps.append(f"{tag}{start}")
    if plan.blocked:
        steps.append(f"unblock: change its box back to `[ ]`, {tag}run again")
    if plan.manual:
        steps.append(f"do by hand what is manual: {tasks_of(plan.manual)}")
    return steps


def message_of(run: Run, event: str, reason: str) -> str:
    """One line for a telephone: project, count, cost, what is blocked."""
    project = one_line(os.path.basename(run.options.directory) or run.options.directory)
    gone = run.books.gone
    facts = (
        event
        if reason == PLAN_COMPLETE
        else f"{event}: {one_line(reason).removeprefix(event).strip()[:300]}",
        *progress_of(run.plan),
        f"{tasks_of(len(gone), 'open')} gone from the plan" if gone else "",
        "" if "refused: " in reason else said_refused(refused_by(run.books.results)),
        dollars_of(run.total.cost),
        duration(run.clock.elapsed),
    )
    return f"ocloop {project}: {', '.join(filter(None, facts))}"


def facts_of(run: Run) -> dict[str, str]:
    """What --check and --notify get in their environment."""
    goal = run.iteration.plan.goal if run.iteration else run.plan.goal
    if not run.number:
        goal = "before the first task"  # what a check commits now is nobody's work on it
    finished: collections.Counter[str] = collections.Counter()
    if run.iteration:
        finished.update(task.text for task in run.plan.tasks if task.state == "done")
        finished.subtract(task.text for task in run.iteration.plan.tasks if task.state == "done")
    facts = {
        "project": one_line(os.path.basename(run.options.directory)),
        "plan": run.options.plan,
        "task": one_line(goal),  # whoever commits with it needs one at the end, too
        "finished": one_line(", ".join((+finished).elements())),  # in this iteration
        "iteration": run.number,
        **counts_of(run.plan),
        "cost": f"{run.total.cost:.4f}",
        "seconds": int(run.clock.elapsed),
    }
    return {f"OCLOOP_{name.upper()}": str(fact) for name, fact in facts.items()}


def local_time(form: str, moment: Any) -> str:
    """A time, in seconds since 1970; "?" for what is none, as in a damaged state file."""
    with suppress(OSError, OverflowError, ValueError):
        return time.strftime(form, time.localtime(as_float(moment)))
    return "?"


def iso_time(moment: Any) -> str:
    return local_time("%Y-%m-%dT%H:%M:%S%z", moment)


def time_of_day(moment: Any) -> str:
    return local_time("%H:%M", moment)


# ── view ──────────────────────────────────────────────────────────────────────────────────────────
# A picture of the run is frozen, and `layout` makes rows of it that never exceed width and height.
# A number says what it counts, and nothing counts on at rest. What stands out carries a sign as
# well as a colour.

Piece = tuple[int, str, str]  # rank, style, text: see `fit`
Row = list[Piece]
GAP: Piece = (0, "gap", "")

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
# The footer's words -> the rank of their keys.
RANKS = {"abort": 9, "session": 8, "plan": 7, "pause": 6, "activity": 3, "help": 2, "quit": 1}

_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
# What controls, turns the direction of a line, or shows nothing, and so can hide words.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_EMPHASIS = re.compile(r"\*\*(?=\S)(.+?)\*\*")


def printable(text: str) -> str:
    """The text without colours, and a sign for each character that could rewrite the screen or that
    nobody would see."""
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


def cell_width(char: str) -> int:
    """Cells that a character takes in a terminal."""
    if char < "\u0300":
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(cell_width, text))


def row_width(row: Row) -> int:
    return sum(text_width(text) for _rank, _style, text in row)


def clip(text: str, width: int) -> str:
    """The longest beginning of the text that fits into `width` cells."""
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


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def title_of(text: str) -> str:
    """A task's text as people read it: one line, without the signs of emphasis."""
    return one_line(_EMPHASIS.sub(r"\1", text))


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
    iterations: int = 0
    seconds: float = 0.0
    spend: Spend = Spend()
    model: str = ""
    outcome: str = ""  # the word of the last iteration that worked on it

    @property
    def kind(self) -> str:
        """Which of TASK_SIGNS it has."""
        if self.is_current:
            return "current"
        if self.task.state == "done" and self.outcome == "check failed":
            return self.outcome
        return "begun" if self.task.begun else self.task.state


class Picture:
    """All that a screen shows, without the place it is shown in. Times are in whole seconds."""

    def __init__(self, run: Run) -> None:
        asked = run.talk.asks.shown if run.talk else ""
        self.state = run.shown_state
        # The second row stands behind the bar.
        self.header = [state_row(run), progress_numbers(run), task_title(run), spend_row(run)]
        self.plan = run.plan
        self.tasks = view_tasks(run)
        self.live = view_live(run)
        self.ask = view_ask(run)
        # Goes with the keys that are pressed, as `Key.about`; the screen rings for it.
        self.ask_shown = QUIT_SHOWN if run.confirming_quit else asked
        self.keys = hints(run)
        self.overlay = run.overlay
        self.journal = tuple(run.journal.entries)


def state_row(run: Run) -> Row:
    sign, style = STATES[run.shown_state]
    since = "" if run.stage == "running" else f" since {time_of_day(run.stage_since)}"
    row = [(0, f"{style} bold", f" {sign} {run.shown_state}"), (1, "dim", since), GAP]
    asked = run.talk.asks.first if run.talk else None
    if asked and run.options.ask_timeout:
        left = asked.since + run.options.ask_timeout - run.now
        row.append((2, "", f"  refused in {duration(left + 0.9)}"))
    if run.number:
        most = run.limits.most["max_iterations"]
        limit = f" of {most:.0f}" if run.number <= most else ""
        took = f" {duration(run.now - run.iteration.talk.started)}" if run.iteration else ""
        row.append((3, "", f"  iteration {run.number}{limit}{took}"))
        most = run.limits.most["max_time"]
        limit = f" of {duration(most)}" if most else ""
        row.append((4, "", f"  run {duration(run.clock.elapsed)}{limit}"))
        average = run.books.average
        if average >= 1 and run.plan.pending and run.stage in ("running", "waiting"):
            row.append((5, "", f"  ≈{duration(average * run.plan.pending)} left"))
            row.append((6, "", f"  {duration(average)} each"))
    return row


def progress_numbers(run: Run) -> Row:
    plan = run.plan
    if not plan.tasks:
        return [(0, "dim", "no task")]
    check = "running" if run.check_since is not None else run.books.check
    style = {"passed": "good", "failed": "bad"}.get(check, "warn")
    return [
        (0, "bold", f" {plan.done}/{plan.total} {plan.percent}%"),
        (1, "bad", f"  {plan.blocked} blocked" if plan.blocked else ""),
        (2, "warn", f"  {plan.manual} manual" if plan.manual else ""),
        (3, style, f"  check {check}" if check else ""),
    ]


def task_title(run: Run) -> Row:
    """Why it is in its state; else what it works on."""
    task = run.iteration.task if run.iteration else run.plan.current
    reason = run.reason
    if run.stage == "ready":
        reason = f"S begins with: {title_of(run.plan.goal)}"
    elif run.wait_until is not None:
        left = run.wait_until - run.now
        reason = f"again at {time_of_day(run.clock.wall + left)}, in {duration(left)}: {reason}"
    elif run.files.trouble and run.rests_at is None:
        reason = run.files.trouble
    if reason or task is None:
        style = STATES[run.shown_state][1]
        return [(0, style, f" {one_line(reason or 'no pending task')}")]
    phase = f"  {title_of(task.phase)}"
    return [(0, "accent", " ▸ "), (0, "bold", title_of(task.text)), (0, "dim", phase)]


def spend_row(run: Run) -> Row:
    talk = run.iteration.talk if run.iteration else None
    agent = talk.agent if talk else run.options.agent
    size = (run.briefing.setup.models or {}).get(without_variant(run.model), 0)
    context = f"  context {min(100, 100 * talk.context // size):2}%" if talk and size else ""
    provider, slash, model = (run.model or "OpenCode's default model").rpartition("/")
    total = run.total
    tokens = zip("↑↓⟳", (total.input, total.output, total.cached))
    most = run.limits.most["max_cost"]
    return [
        (0, "", " "),
        (6, "accent", provider + slash),
        (1, "accent", model),
        (4, "accent", f" · {agent}" if agent else ""),
        GAP,
        (3, "", "".join(f" {sign}{short_number(number):>4}" for sign, number in tokens)),
        (5, "", context),
        (0, "", f"  {dollars_of(total.cost)}"),
        (2, "", f" of {dollars_of(most).removesuffix('.00')}" if most else ""),
    ]


def view_live(run: Run) -> list[Entry]:
    """What runs now, as entries without a time."""
    talk = run.talk
    found = list(talk.transcript.live.values()) if talk else []
    if run.check_since is not None:
        found.append(Live("check", run.options.check, run.check_since))
    entries = []
    for kind, text, since, depth, _message in found:
        is_timed = kind not in ("text", "think") and run.now - since >= 1
        took = f"  {duration(run.now - since)}" if is_timed else ""
        tone = "dim" if kind == "think" else ""
        entries.append(Entry(0, 0.0, kind, text + took, tone, depth))
    if talk and talk.retry:
        left = duration(talk.retry_at - run.now)
        text = f"attempt {talk.retry.attempt + 1} in {left}: {talk.retry.message}"
        entries.append(Entry(0, 0.0, "retry", text, "warn"))
    return entries


def view_tasks(run: Run) -> list[TaskView]:
    """All tasks of the plan, and those that were worked on and are "gone", with what this run spent
    on them."""
    results = list(run.books.results)
    if run.iteration:
        began = run.iteration.talk.started  # in whole seconds, or every picture were a new one
        results.append(run.iteration.result(began + int(run.now - began)))
    # A check looks at the whole project: one that passes is the end of all failures before it.
    passed = max((result.number for result in results if result.check == "passed"), default=0)
    spent: dict[tuple[str, str], TaskView] = {}
    for result in results:
        name = (result.phase, result.task)
        known = spent.get(name) or TaskView(Task("gone", result.task, phase=result.phase))
        word = result.ended if result.number < passed else result.word
        spent[name] = known._replace(
            iterations=known.iterations + 1,
            seconds=known.seconds + result.seconds,
            spend=known.spend.plus(result.spend),
            model=result.model,
            outcome=word or known.outcome,
        )
    goal = (run.iteration and run.iteration.task) or run.plan.current
    views = []
    for task in run.plan.tasks:  # the first one counts, where two have that name
        is_current = bool(goal and (task.state, task.name) == ("pending", goal.name))
        goal = None if is_current else goal
        known = spent.pop(task.name, TaskView(task))
        views.append(known._replace(task=task, is_current=is_current))
    return views + [known for known in spent.values() if known.task.text]


def view_ask(run: Run) -> tuple[str, ...]:
    """What is asked first, in lines: a title, what exactly, the choices, the way out."""
    waiting = run.talk.asks.first if run.talk else None
    if not waiting or run.confirming_quit:
        return ()
    ask = waiting.ask
    if ask.kind == "permission":
        always = [f"A allows {ask.always}"] if ask.always else []
        return (f"May it? {ask.title}", ask.detail, *always, "Y once, A always, N no")
    question = (*ask.questions[len(waiting.answers) :], Question(ask.detail))[0]
    choices = (
        f"{number} {label}" + (f" - {description}" if description else "")
        for number, (label, description) in enumerate(question.options[:9], 1)
    )
    return (question.text, *choices, "N none of these")


def hints(run: Run) -> list[tuple[str, str]]:
    """The keys that do something now, and what."""
    if run.stage == "stopping":
        return []
    if run.confirming_quit:
        return [("Q", "again quits"), ("any other key", "goes on")]
    if run.overlay == "help":
        return [("any key", "back"), ("Q", "quit")]
    possible = ((key.name, [use.label for use in key.uses if use.when(run)]) for key in KEYS)
    return [(name, labels[0]) for name, labels in possible if labels and labels[0]]


class Scroll:
    """Where somebody looks."""

    def __init__(self) -> None:
        self.moved = 0  # rows, not yet carried out: only the layout knows the heights
        # Rows from the usual place, by overlay; "" is the activity.
        self.away: collections.Counter[str] = collections.Counter()
        self.journal: tuple[Entry, ...] = ()  # what the activity shows


def layout(picture: Picture, width: int, height: int, scroll: Scroll) -> list[Row]:
    """Rows for a screen of that size. Where it is small, the activity goes first, then the last
    rows of the header."""
    if width <= 0 or height <= 0:
        return []
    rules: list[Row] = [[(0, "dim", "─" * width)]] if height >= 8 else []
    room = height - 2 * len(rules)
    top = [fit(row, width - 1) for row in picture.header]
    top[1] = progress_row(picture.plan, picture.header[1], width)
    bottom = [footer(picture)]
    if picture.ask:
        bottom = ask_rows(picture.ask, width, max(1, room - 1))
    top = top[: max(1, room - len(bottom))]
    room = max(0, room - len(top) - len(bottom))
    rows = [*middle(picture, width, room, scroll), *([[]] * room)][:room]
    rows = [*top, *rules, *rows, *rules, *bottom]
    return [fit(row, width) for row in rows[:height]]


def middle(picture: Picture, width: int, height: int, scroll: Scroll) -> list[Row]:
    if picture.overlay == "help":
        return scrolled(help_rows(width), height, 0, scroll, "help")
    if picture.overlay == "plan":
        return plan_rows(picture, width, height, scroll)
    if width < 120:
        rows = activity(picture, width, height, scroll)
        room = height - len(rows) - 1
        if picture.state in ("starting", "ready") and room >= 4:  # else an empty screen
            rows += [[], *plan_rows(picture, width, room, None)]
        return rows
    right = min(70, width * 9 // 20)
    left = width - right - 2
    blank: list[Row] = [[]] * height
    rows = (activity(picture, left, height, scroll) + blank)[:height]
    beside = plan_rows(picture, right, height, None) + blank
    rule = (0, "dim", "│ ")
    return [[*fit([*row, GAP], left), rule, *other] for row, other in zip(rows, beside)]


def progress_row(plan: Plan, numbers: Row, width: int) -> Row:
    """What is done, blocked and left as a bar, and the numbers behind it."""
    numbers = fit(numbers, width - 12)
    size = min(width - row_width(numbers) - 2, 60) if plan.tasks else 0  # of the bar
    some = bool(plan.blocked)  # one of many is seen, too
    settled = max(some, size * (plan.done + plan.blocked) // max(1, plan.total))
    done = min(settled - some, size * plan.done // max(1, plan.total))
    return [
        (0, "good", " " + "█" * done),
        (0, "bad", "▒" * (settled - done)),
        (0, "dim", "·" * (size - settled)),
        *numbers,
    ]


def ask_rows(ask: Sequence[str], width: int, height: int) -> list[Row]:
    """What is asked: what is long is cut first, the way out stays."""
    *pieces, way_out = (wrap(one_line(text), width - 4)[:4] for text in ask)
    room = max(1, height - len(way_out))
    while sum(map(len, pieces)) > room and max(map(len, pieces)) > 1:
        max(reversed(pieces), key=len).pop()  # of the longest ones the last
    lines = [line for piece in pieces for line in piece][:room]
    rows: list[Row] = [[(0, "", f"   {line}")] for line in lines]
    rows[0] = [(0, "warn bold", f" ? {lines[0]}")]
    return [*rows, *([(0, "accent", f"   {line}")] for line in way_out)][-height:]


def footer(picture: Picture) -> Row:
    style = "warn bold" if picture.ask_shown == QUIT_SHOWN else "accent bold"
    row: Row = []
    for key, label in picture.keys:
        rank = RANKS.get(label, 5)
        row += [(rank, style, f" {key}"), (rank, "dim", f" {label} ")]
    return row


def help_rows(width: int) -> list[Row]:
    rows: list[Row] = []
    for key in KEYS:
        for at, line in enumerate(wrap(key.help, width - 9)):
            name = "" if at else key.name
            rows.append([(0, "accent bold", f" {name:<6}"), (0, "", f" {line}")])
    signs = ", ".join(f"{sign}\xa0{name}" for name, (sign, _style) in TASK_SIGNS.items())
    others = "×2 in two iterations; tokens: ↑ in, ↓ out, ⟳ from the cache; ≈ about; bar: ▒ blocked"
    return rows + [[(0, "dim", f" {row}")] for row in wrap(f"\n{signs}; {others}", width - 2)]


def scrolled(
    rows: Sequence[Any], height: int, usual: int, scroll: Scroll | None, overlay: str
) -> list[Any]:
    """So many rows, from the usual one on, or from where the overlay was scrolled to."""
    last = max(0, len(rows) - height)
    at = usual = max(0, min(usual, last))
    if scroll:
        at = max(0, min(usual + scroll.away[overlay] + scroll.moved, last))
        scroll.away[overlay] = at - usual
        scroll.moved = 0
    shown = list(rows[at : at + height])
    if at < last and height >= 4:
        shown[-1] = [(0, "dim", f" ↓ {last - at + 1} more" + (" (arrows)" if scroll else ""))]
    return shown


def plan_rows(picture: Picture, width: int, height: int, scroll: Scroll | None) -> list[Row]:
    """The plan, with the current task in sight; without `scroll` it stands beside the activity."""
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
    shown = scrolled(rows, height, focus[0] - height // 2, scroll, "plan")
    return [task_row(row, width) if isinstance(row, TaskView) else row for row in shown]


def task_row(item: TaskView, width: int) -> Row:
    task = item.task
    sign, style = TASK_SIGNS[item.kind]
    weight = "dim" if task.state == "done" else "bold" if item.is_current else ""
    columns = (
        (0, f"{duration(item.seconds):>6}"),
        (44, f" {dollars_of(item.spend.cost):>7}"),
        (44, f" ×{item.iterations}" if item.iterations > 1 else "   "),
        (70, f" {short_number(item.spend.tokens):>5} tokens"),
        (90, f"  {item.model.rpartition('/')[2][:20]:<20}"),
    )
    spent = "".join(text for least, text in columns if width >= least and item.iterations)
    row = [(0, style, f"{indented(task.depth)} {sign} "), (0, weight, title_of(task.text)), GAP]
    return [*fit(row, width - 2 - len(spent)), (0, "dim", f" {spent}")]


def entry_rows(entry: Entry, width: int) -> list[Row]:
    """Time, kind, wrapped text; a rule closes an iteration."""
    if entry.kind == "iter":
        text = ellipsis(f"── {one_line(entry.text)}", width - 1) + " "
        return [[(0, "dim", text + "─" * (width - text_width(text)))]]
    stamp_size, kind_size = (8, 8) if width >= 60 else (5, 6) if width >= 30 else (0, 0)
    stamp = local_time("%H:%M:%S", entry.time) if entry.time else ""
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
        left, kind = " " * len(left), " " * len(kind)
    return rows


def activity(picture: Picture, width: int, height: int, scroll: Scroll) -> list[Row]:
    """The journal, and at its end what runs now; only what is looked at is laid out. Whoever has
    scrolled up sees the journal of then: it does not move."""
    above = -scroll.away[""] - scroll.moved  # rows above the end
    if above <= 0:
        scroll.journal = picture.journal
    rows: list[Row] = []  # the lowest one first
    for entry in reversed(scroll.journal):
        if len(rows) >= height + max(0, above):
            break
        rows += reversed(entry_rows(entry, width))
    rows.reverse()
    for entry in picture.live[-3:] if above <= 0 else ():
        for row in entry_rows(entry, width)[-3:]:
            rows.append([(rank, style or "accent", text) for rank, style, text in row])
    return scrolled(rows, height, len(rows), scroll, "")


# ── opencode: what both generations share ─────────────────────────────────────────────────────────
# The HTTP client, the readers of JSON, and what the dialects have in common. A server may be newer
# or broken: anything may be missing or of another type, and nothing here raises for that.

START_TIMEOUT = 60.0  # seconds; of the waits outside
SETUP_TIMEOUT = 60.0  # the first call in a directory loads plugins
REQUEST_TIMEOUT = 10.0
SLOW_TIMEOUT = 30.0  # for requests that do some work
STREAM_TIMEOUT = 35.0  # heartbeats come every 10 or 15 s, in older versions every 30 s
NOTIFY_WITHIN = 60.0  # while the run goes on; a run that ends does not wait for --notify
FAREWELL_WITHIN = 6.0  # to the server, at the end of the program: whatever holds it up
CLOSED_WITHIN = 20.0  # all of it, also when a start that hangs has to come to an end first
MAPPED_WITHIN = 30.0  # a library that was unpacked; then nobody needs the file any more

LARGEST = 64 << 20  # bytes of an answer, an event or a file: far above what is real
LARGEST_TEXT = 10 << 20  # bytes of a plan or prompt: a plan of that size takes seconds to read
LONGEST_TAIL = 4096  # bytes, of what a check prints
MOST_RELATIVES = 1000  # subagents of a session: a server that lists them without end is left alone
MOST_THREADS = 200  # of this process: far above what a run needs

Json = dict[str, Any]


def in_thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
    """Have it done on a thread of its own; the end of the program does not wait for that."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def dig(told: Any, *names: str) -> Any:
    """What stands there, name below name, if anything does; the next ones: of that type."""
    for name in names:
        told = told.get(name) if isinstance(told, dict) else None
    return told


def as_dict(told: Any, *names: str) -> Json:
    found = dig(told, *names)
    return found if isinstance(found, dict) else {}


def as_list(told: Any, *names: str) -> list[Any]:
    found = dig(told, *names)
    return found if isinstance(found, list) else []


def dicts(told: Any, *names: str) -> list[Json]:
    return [as_dict(item) for item in as_list(told, *names)]


def as_text(told: Any, *names: str) -> str:
    found = dig(told, *names)
    with suppress(RecursionError):
        return "" if found is None else str(found)
    return ""


def as_id(told: Any, *names: str) -> str:
    """An id that may be part of a path and a word of a command; "" for what is none."""
    text = as_text(told, *names)
    return text if re.fullmatch(r"\w[\w-]{0,199}", text, re.ASCII) else ""


def as_float(told: Any, *names: str) -> float:
    found = dig(told, *names)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return float(found) if is_number and abs(found) < 1e18 else 0.0


def as_int(told: Any, *names: str) -> int:
    return int(as_float(told, *names))


def spend_of(told: Json) -> Spend:
    """What a session, a message or a step has used. What comes from the cache is not in `input`."""
    tokens = as_dict(told, "tokens")
    output = as_int(tokens, "output") + as_int(tokens, "reasoning")
    cached = as_int(tokens, "cache", "read") + as_int(tokens, "cache", "write")
    return Spend(as_float(told, "cost"), as_int(tokens, "input"), output, cached)


# The arguments that say what a tool does, the best first, whatever the tool.
MAIN_ARGUMENTS = ("command", "pattern", "url", "query", "filePath", "path", "description", "name")
LONGEST_ARGUMENT = 500  # characters
SUBAGENT_TOOLS = ("task", "subagent")  # in 1.x, in 2.x
ELSEWHERE = "global"  # stands for the session in what an MCP server asks by itself


def argument_of(given: Json, directory: str, title: str = "") -> str:
    """A tool's arguments in one line, as a person would say it."""
    texts = [as_text(given, name) for name in MAIN_ARGUMENTS]
    texts += [title, *(value for value in given.values() if isinstance(value, str))]
    text = next(filter(None, texts), "").removeprefix(directory.rstrip("/") + "/")
    return " ".join(text.split())[:LONGEST_ARGUMENT]


def call_id(tool: str, given: Any) -> int:
    """The same number for the same tool with the same input; 0 for one that is nested too deep."""
    with suppress(RecursionError):
        return zlib.crc32(json.dumps([tool, given], sort_keys=True).encode()) + 1
    return 0


def change_of(changes: Sequence[Json]) -> str:
    """What an edit has changed: `  +3 -1` for each file."""
    counts = [(as_int(one, "additions"), as_int(one, "deletions")) for one in changes if one]
    return "".join(f"  +{added} -{deleted}" for added, deleted in counts)


def how_ended(told: Json) -> str:
    """A message's `finish` in the words of `Spent`."""
    words = {"": "", "unknown": "nowhere", "tool-calls": "calls"}
    return words.get(as_text(told, "finish"), "answered")


def fields_of(form: Json) -> list[Json]:
    """What is to be filled in: the questions of OpenCode 1, the fields of a form of OpenCode 2."""
    fields = [field for field in dicts(form, "fields") if not field.get("hidden")]
    return dicts(form, "questions") or fields


def label_of(option: Json) -> str:
    return as_text(option.get("label") or option.get("value"))


def retry_of(session: str, told: Json) -> Activity:
    """OpenCode tries again at a time told in ms since 1970."""
    wait = as_float(told.get("next") or told.get("at")) / 1000 - time.time()
    attempt = as_int(told, "attempt")
    if "at" in told:
        attempt = max(1, attempt - 1)  # OpenCode 2 counts the one to come, not the one that failed
    message = as_text(told.get("message") or dig(told, "error", "message") or "the provider failed")
    return Activity(session, "retrying", attempt, min(wait, LONGEST_TIME), message)


# Verdict and fault by a message's `finish`, where OpenCode tells no error.
FINISHES: dict[str, tuple[str, Fault | None]] = {
    "stop": ("answered", None),
    "length": ("failed", Fault("length", CUT_OFF)),
    "content-filter": ("failed", Fault("provider", "the provider's content filter ended it")),
}
# Kinds of faults by OpenCode's own names of errors: the names of OpenCode 1, the types of 2.
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
# Kinds by the provider's HTTP code, where no type of OpenCode 2's says more; there it may be 200.
CODE_KINDS = {401: "auth", 402: "balance", 403: "auth", 404: "no-model", 429: "rate-limit"}
# What OpenCode says itself, without a name of its own, before a provider is asked.
NOT_THERE = re.compile(r"(Model|Variant|Agent) (?:unavailable|not found)")


def fault_of(error: Any) -> Fault | None:
    """Read OpenCode 1's `{name, data: {message, statusCode}}`, or OpenCode 2's `{type, message,
    status}`; None for what is no error. Some of OpenCode 1's are wrapped: `UnknownError` with a
    message whose first word is the real name, and a stack behind it."""
    name = as_text(dig(error, "name") or dig(error, "type"))
    if not name:
        return None
    told = as_dict(error, "data") or as_dict(error)
    message = re.split(r"\n\s+at ", as_text(told, "message"))[0].strip() or name
    wrapped = re.match(r"(\w+Error): ", message)
    if name == "UnknownError" and wrapped and wrapped.group(1) in FAULT_KINDS:
        name = wrapped.group(1)
        message = message[wrapped.end() :]
    code = as_int(told.get("statusCode") or told.get("status"))
    kind = FAULT_KINDS.get(name) or ("provider" if name.startswith("provider.") else "unknown")
    missing = NOT_THERE.match(message)
    if name == "APIError":
        is_outage = code >= 500 or (not code and told.get("isRetryable") is True)
        kind = CODE_KINDS.get(code, "outage" if is_outage else "provider")
    elif kind == "provider":
        kind = CODE_KINDS.get(code, kind)
    elif kind == "unknown" and missing:
        kind = "no-agent" if missing.group(1) == "Agent" else "no-model"
    elif kind == "length":
        message = CUT_OFF  # it has no words of its own
    announced = seconds_until(as_text(told, "responseHeaders", "retry-after"))
    retry_after = announced or as_float(told, "retryAfterMs") / 1000
    retry_after = min(max(0.0, retry_after), LONGEST_TIME)
    return Fault(kind, message, retry_after)


def seconds_until(announced: str) -> float:
    """What a `retry-after` says: seconds, or a date of HTTP's; 0 for anything else."""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", announced):
        return float(announced)
    from email.utils import parsedate_to_datetime  # as http.client

    with suppress(ValueError, TypeError, IndexError, OverflowError):  # before 3.10 more of them
        return parsedate_to_datetime(announced).timestamp() - time.time()
    return 0.0


def with_ids(prompt: Prompt, wall: float, number: int, seed: str) -> Prompt:
    """The prompt with ids as OpenCode makes them: 12 hex digits that grow with time, 14 more
    characters. They end in digits, of which `ids_of_attempts` makes further ones."""
    stamp = (int(wall * 1000) * 4096 + number % 4096) & (2**48 - 1)
    rest = f"{stamp:012x}{seed[:8]:0<8}{number % 10**6:06}"
    return prompt._replace(message_id=f"msg_{rest}", part_id=f"prt_{rest}")


def name_of_model(described: Any) -> str:
    """A model as it is named elsewhere: providerID/modelID, perhaps with #variant."""
    if isinstance(described, str):  # so in a configuration
        return described
    provider = as_text(described, "providerID")
    id = as_text(dig(described, "id") or dig(described, "modelID") or dig(described, "model"))
    name = f"{provider}/{id}" if provider and id else ""
    variant = as_text(described, "variant")
    return f"{name}#{variant}" if name and variant else name


def without_variant(name: str) -> str:
    return name.partition("#")[0]


def is_free(model: Json) -> bool:
    tiers = dicts(model, "cost") or [as_dict(model, "cost")]
    return not any(as_float(tier, way) for tier in tiers for way in ("input", "output"))


def variants_of(model: Json) -> tuple[str, ...]:
    """A table by name in OpenCode 1, a list in OpenCode 2."""
    listed = [as_text(variant, "id") for variant in dicts(model, "variants")]
    return tuple(as_dict(model, "variants") or listed)


def body_of_model(name: str, key: str) -> Json:
    """The inverse of `name_of_model`; `key` is what the model's id is called."""
    provider, _, rest = name.partition("/")
    model, _, variant = rest.partition("#")
    return {"providerID": provider, key: model, **({"variant": variant} if variant else {})}


def without_secrets(lines: Iterable[str]) -> Iterator[str]:
    """What OpenCode says, less what is nobody's business: a broken configuration, which it shows,
    may hold keys, and 2.x may print the password that it made."""
    is_input = False
    for line in lines:
        part = re.search("--- (JSONC Input|Errors|End) ---", line)
        if part:
            is_input = part[1] == "JSONC Input"
        elif not is_input and not re.search(r"^\s*Line \d+: |^\s*\^$|password", line):
            yield line


def login_environment(username: str, password: str) -> dict[str, str]:
    """What tells server and interface their login. In OpenCode 2 the user is always `opencode`."""
    return {
        "OPENCODE_SERVER_USERNAME": username,
        "OPENCODE_SERVER_PASSWORD": password,
        "OPENCODE_PASSWORD": password,
    }


class Receiver(io.RawIOBase):
    """What a connection receives until that moment, however slowly it trickles in."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.connection = connection
        self.until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.until < NEVER:
            left = self.until - time.monotonic()
            if left <= 0:
                raise socket.timeout("timed out")
            self.connection.settimeout(left)
        return self.connection.recv_into(buffer)

    def close(self) -> None:
        super().close()
        self.connection.close()

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What HTTPResponse wants of a socket."""
        return io.BufferedReader(self)


class Client:
    """HTTP to one server; no proxy is asked. `process` is the server's, where it is ours."""

    def __init__(
        self,
        url: str,
        username: str,
        password: str,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.process = process
        self.patience = NEVER  # no request may take longer, in seconds
        self.stream: socket.socket | None = None  # of the event stream
        self.headers = {"Content-Type": "application/json", "Connection": "close"}
        if password:
            token = base64.b64encode(f"{username}:{password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {token}"

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What a request that is not answered raises."""
        import http.client

        return OSError, ValueError, http.client.HTTPException

    def open(
        self, method: str, path: str, body: Any, timeout: float, is_stream: bool = False
    ) -> http.client.HTTPResponse:
        """Send a request; the answer, whatever it is, of which only the head was read. `timeout`
        is for all of it, to the last byte; of an event stream, for each single wait. No redirect
        is followed: another host would be told the login."""
        import http.client

        if self.process and exit_status(self.process) is not None:
            raise RequestError(0, "the server has ended")  # its port may be somebody else's by now
        data = None if body is None else json.dumps(body).encode("utf-8", "backslashreplace")
        accept = "text/event-stream" if is_stream else "application/json"
        where = urlsplit(self.url)
        is_safe = where.scheme == "https"
        kind = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=timeout)
        try:
            headers = {**self.headers, "Accept": accept}
            connection.request(method, where.path + path, data, headers)
            assert connection.sock
            if is_stream:
                self.stream = connection.sock
            until = NEVER if is_stream else time.monotonic() + timeout
            receiver: Any = Receiver(connection.sock, until)
            answer = http.client.HTTPResponse(receiver, method=method)
            answer.begin()
            return answer
        except self.errors:
            connection.close()
            raise

    def hang_up(self) -> None:
        """End the event stream, whatever the thread does that reads it."""
        if self.stream:
            with suppress(OSError):
                self.stream.shutdown(socket.SHUT_RDWR)

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT
    ) -> Any:
        """Send a request; the decoded JSON, None for an empty answer, or RequestError."""
        import http.client

        raw = bytearray()
        try:
            with self.open(method, path, body, min(timeout, self.patience)) as answer:
                for piece in iter(lambda: answer.read1(1 << 18), b""):
                    raw += piece
                    if len(raw) > LARGEST:
                        raise ValueError(f"the answer is larger than {LARGEST >> 20} MiB")
                if answer.length:  # what was announced did not come
                    raise http.client.IncompleteRead(b"", answer.length)
        except self.errors as error:
            # socket.timeout is a TimeoutError only since Python 3.10.
            is_timeout = isinstance(error, (TimeoutError, socket.timeout))
            message = str(error) or type(error).__name__
            raise RequestError(0, message, is_timeout=is_timeout) from None
        said: Any = None
        is_json = False
        with suppress(ValueError, RecursionError):
            said = json.loads(raw.strip() or b"null")
            is_json = True
        if answer.status >= 400:
            raise refusal(answer.status, said, f"{method} {path}")
        if answer.status >= 300 or not is_json:  # servers answer an unknown route with a page
            raise RequestError(502, f"{method} {path} was not answered with JSON", "NotJSON")
        return said


def refusal(code: int, said: Any, route: str) -> RequestError:
    """An answer that is not 2xx, in the server's own words."""
    details = as_dict(said, "data")
    issues = "; ".join(as_text(issue, "message") for issue in dicts(details, "issues"))
    words = (details.get("path"), details.get("message"), dig(said, "message"), issues)
    lines = "\n".join(as_text(word) for word in words if word).split("\n")
    message = " ".join(without_secrets(lines)).strip()
    name = as_text(dig(said, "name") or dig(said, "_tag") or dig(said, "code"))
    return RequestError(code, message or f"{route} was answered with {code}", name)


def asked_before(config: Json) -> dict[str, bool]:
    """Whether a configuration wants a person to be asked: by permission (1.x) or action (2.x)."""
    rules = config.get("permission")
    found = {"everything": rules == "ask"} if isinstance(rules, str) else {}
    for name, rule in as_dict(rules).items():
        found[name] = "ask" in (rule, *as_dict(rule).values())
    for rule in dicts(config, "permissions"):
        action = as_text(rule, "action")
        found[action] = found.get(action, False) or rule.get("effect") == "ask"
    return found


class Catalogue(NamedTuple):
    """What a server tells of models and agents, in its own words."""

    documents: list[Json]  # of its configuration; the last word counts
    models: dict[str, Json]  # by name
    agents: dict[str, Json]
    chosen: str  # the model that OpenCode takes where nothing names one
    unread: tuple[str, ...] = ()  # files of its configuration that it found and cannot read


class OpenCode(ABC):
    """OpenCode in neutral words: what its generations have in common.

    Each has a class of its own, and nothing else knows its wire. Whatever cannot be had raises
    RequestError, and nothing waits here: what ends later, or fills slowly, the run looks at again.
    """

    generation: ClassVar[int]
    place: ClassVar[str]  # what the directory is called in a query
    children_path: ClassVar[str]
    active_path: ClassVar[str]
    interrupt_word: ClassVar[str]
    asks_paths: ClassVar[dict[str, str]]  # of permissions and questions
    # What is asked for, for what exactly, what the answer "always" allows, and for how long.
    permission_words: ClassVar[tuple[str, str, str, str]]

    def __init__(self, client: Client, options: Options) -> None:
        self.client = client
        self.options = options
        self.query = self.place + quote(os.fsencode(options.directory), safe="")
        # The configuration.
        self.model = ""  # providerID/modelID, perhaps with #variant
        self.agent = ""  # the one that works when none is named
        self.agent_models: dict[str, str] = {}  # what the configuration gives them, or ""
        # The session.
        self.session = ""  # the one at work: it was looked at, or given a prompt, last
        self.relatives: tuple[str, ...] = ()  # it and its subagents, at the last look
        self.resting = ""  # the session that was seen at rest once
        self.forms: dict[str, Json] = {}  # by id: the questions behind what is shown of them

    def path(self, path: str) -> str:
        """The path, with the directory in its query."""
        return f"{path}{'&' if '?' in path else '?'}{self.query}"

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT
    ) -> Any:
        """What the server answers; OpenCode 2 wraps it in `data`."""
        answer = self.client.request(method, self.path(path), body, timeout)
        return answer.get("data", answer) if isinstance(answer, dict) else answer

    def post(self, path: str, body: Json, timeout: float = SLOW_TIMEOUT) -> Any:
        return self.request("POST", path, body, timeout)

    def get(self, path: str, timeout: float = REQUEST_TIMEOUT) -> Any:
        return self.request("GET", path, timeout=timeout)

    def get_if_possible(self, path: str) -> Any:
        """What is good to know; None when the server fails at it."""
        try:
            return self.get(path)
        except RequestError as error:
            if error.code == 0:
                raise
            return None

    def setup(self) -> Setup:
        """What the server knows; a list that is empty may only be late."""
        told = self.catalogue()
        models = told.models
        agents = told.agents
        asked: dict[str, bool] = {}
        for document in told.documents:
            asked.update(asked_before(document))
            self.model = name_of_model(document.get("model")) or self.model
            self.agent = as_text(document, "default_agent") or self.agent
        self.agent_models = {
            name: name_of_model(dig(agent, "model")) for name, agent in agents.items()
        }
        contexts = {name: as_int(model, "limit", "context") for name, model in models.items()}
        # Hidden ones do OpenCode's own chores.
        shown = tuple(name for name, agent in agents.items() if not agent.get("hidden"))
        return Setup(
            model=self.model_for(self.options.agent),
            models=contexts or None,
            agents=shown or None,
            free=frozenset(name for name, model in models.items() if is_free(model)),
            variants={name: variants_of(model) for name, model in models.items()},
            chosen=told.chosen,
            unread=told.unread,
            asks=tuple(name for name, is_asked in asked.items() if is_asked),
        )

    @abstractmethod
    def catalogue(self) -> Catalogue:
        """Ask for all of it; a list that cannot be had raises."""

    def model_for(self, agent: str) -> str:
        """The model that a configuration means for this agent."""
        return self.agent_models.get(agent or self.agent or "build") or self.model

    # Sessions.

    def create(self, prompt: Prompt) -> str:
        """Make a session; returns its id. Problem: it would work elsewhere."""
        made = self.post("/session", {"title": prompt.title, **self.session_body(prompt)})
        id = as_id(made, "id")
        if not id:
            raise RequestError(502, "the server made a session without an id that can be used")
        there = as_text(dig(made, "directory") or dig(made, "location", "directory"))
        here = self.options.directory
        if there not in ("", here) and os.path.realpath(there) != os.path.realpath(here):
            # OpenCode 1 reads `my%20project` as `my project`, and would work in that sibling.
            raise Problem(
                f"OpenCode would work in {there[:300]} and not in {here}: rename the folder "
                "(OpenCode reads a % in its name as the beginning of a code)"
            )
        return id

    def session_body(self, _prompt: Prompt) -> Json:
        """What else a session has to be told when it is made."""
        return {}

    @abstractmethod
    def send(self, session: str, prompt: Prompt, attempt: int) -> None:
        """Hand the prompt over; one that was handed over before must not run twice."""

    def spent_by_family(self, session: str, own: Json) -> Spend:
        """Look for the subagents' sessions; what all of them have used. OpenCode 2 lists the
        newest 50 of a parent: older ones are known by then, and the larger sum counts."""
        spent = spend_of(own)
        found = [session]
        for parent in found:  # it grows meanwhile
            if len(found) > MOST_RELATIVES:
                break
            for child in dicts(self.get_if_possible(self.children_path.format(parent))):
                id = as_id(child, "id")
                # Early versions of OpenCode 2 list all there are.
                if id and id not in found and child.get("parentID", parent) == parent:
                    found.append(id)
                    spent = spent.plus(spend_of(child))
        self.relatives = tuple(found)
        return spent

    def at_work(self, session: str) -> Json:
        """Who of the family is at work: who is not listed is idle."""
        listed = as_dict(self.get(self.active_path))
        # An earlier session that woke up is none of the family that was looked at last.
        family = self.relatives if session in self.relatives else (session,)
        working = [id for id in family if id in listed and dig(listed, id, "type") != "idle"]
        return {id: listed[id] for id in working}

    def poll(self, session: str, prompt: Prompt, attempt: int, closer: bool) -> Polled:
        """Look how the session stands; `closer` asks for a verdict although it is at work."""
        self.session = session
        own = as_dict(self.get_if_possible(f"/session/{session}"))
        spent = self.spent_by_family(session, own)
        polled = Polled("idle", spent=spent, children=self.relatives[1:])
        working = self.at_work(session)
        if working or self.generation > 1:  # OpenCode 1 lists what is not asked any more
            asks, unlisted = self.asks()
            polled = polled._replace(asks=asks, unlisted=unlisted)
        # A subagent may work on while its parent rests: then there is no verdict.
        if working or self.is_asked(polled.asks or ()):
            self.resting = ""
            retries = (self.retry(id, status) for id, status in working.items())
            retry = next(filter(None, retries), None)
            activity = "retrying" if retry else "working"
            polled = polled._replace(activity=activity, retry=retry, is_alive=self.prints())
        elif self.generation > 1 and self.resting != session:
            self.resting = session
            return polled._replace(is_unsure=True)  # one look alone may fall between two runs
        if polled.activity == "idle" or (closer and session in working):
            verdict, fault = self.verdict(session, prompt, attempt, own, session in working)
            polled = polled._replace(verdict=verdict, fault=fault)
        return polled

    @abstractmethod
    def verdict(
        self, session: str, prompt: Prompt, attempt: int, own: Json, is_at_work: bool
    ) -> tuple[str, Fault | None]:
        """How the answer to our own prompt stands; `own` is the session in the server's words."""

    def retry(self, session: str, status: Any) -> Activity | None:
        """The retry that a session at work waits for."""
        return retry_of(session, status) if dig(status, "type") == "retry" else None

    def prints(self) -> bool:
        """Whether a shell has printed something of which the stream is silent."""
        return False

    def interrupt(self, session: str, prompt: Prompt, attempt: int) -> None:
        """Stop a session, and what works on for it in the background; it may rest later."""
        for id in dict.fromkeys((session, *self.at_work(session))):
            self.post(f"/session/{id}/{self.interrupt_word}", {}, REQUEST_TIMEOUT)

    @abstractmethod
    def dispose(self) -> None:
        """End the tools that the server has started: they may survive it."""

    # What is asked.

    def asks(self) -> tuple[tuple[Ask, ...], tuple[str, ...]]:
        """What any session of the directory asks, and the kinds that could not be listed."""
        found: list[Ask] = []
        unlisted: list[str] = []
        for kind, path in self.asks_paths.items():
            read = self.permission if kind == "permission" else self.question
            try:
                found += map(read, dicts(self.get(path)))
            except RequestError as error:
                if error.code == 0:
                    raise
                unlisted.append(kind)
        return tuple(ask for ask in found if ask.id), tuple(unlisted)

    def is_asked(self, asks: tuple[Ask, ...]) -> bool:
        """Whether the family waits for an answer; what an MCP server asks keeps nobody."""
        family = [ask.id for ask in asks if ask.session in self.relatives]
        return any(dig(self.forms, id, "sessionID") != ELSEWHERE for id in family)

    def permission(self, asked: Json) -> Ask:
        """What kind of thing, and what exactly: the command, file or address, and the patterns."""
        name, wanted, allowed, lasts = self.permission_words
        title = as_text(asked.get(name) or "something")
        patterns = ", ".join(map(as_text, as_list(asked, wanted)))
        always = ", ".join(map(as_text, as_list(asked, allowed)))
        metadata = as_dict(asked, "metadata")
        exact = as_text(metadata.get("command") or metadata.get("filepath") or metadata.get("url"))
        detail = exact if patterns in exact else ", ".join(filter(None, (patterns, exact)))
        return Ask(
            as_id(asked, "id"),
            as_id(asked, "sessionID"),
            "permission",
            title,
            detail + change_of(dicts(metadata, "files")),
            is_circle=title == "doom_loop",
            always=f"{always}, {lasts}" if always else "",
        )

    def question(self, asked: Json) -> Ask:
        """Questions, as many as there are to be answered at once.

        What an MCP server asks names no session. On a server of our own it is ours: unanswered it
        blocks the tool for ever. On somebody else's server it is left to them.
        """
        questions: list[Question] = []
        for told in fields_of(asked):
            texts = [as_text(told, name) for name in ("question", "description", "title", "key")]
            options = dicts(told, "options")
            choices = [(label_of(option), as_text(option, "description")) for option in options]
            questions.append(Question(next(filter(None, texts), ""), tuple(choices)))
        detail = " / ".join(question.text for question in questions) or as_text(asked, "title")
        id = as_id(asked, "id")
        session = as_id(asked, "sessionID")
        self.forms[id] = asked
        if session == ELSEWHERE and not self.options.server:
            session = self.session
        return Ask(id, session, "question", detail=detail, questions=tuple(questions))

    def decode_ask(self, session: str, type: str, told: Json) -> SessionEvent:
        """An event about a permission or a question."""
        if type.endswith((".asked", ".created")):
            ask = self.permission(told) if type == "permission.asked" else self.question(told)
            return ask if ask.id else Alive(session)
        if type.endswith((".replied", ".rejected", ".cancelled")):
            is_refused = told.get("reply") == "reject" or not type.endswith(".replied")
            return Answered(session, as_text(told.get("requestID") or told.get("id")), is_refused)
        return Alive(session)

    @abstractmethod
    def reply(self, ask: Ask, decision: str, answers: Sequence[str], message: str) -> None:
        """Answer an ask, and let the turn go on. `decision` is once, always or reject; `answers`
        are the labels for its questions."""

    # The event stream.

    @abstractmethod
    def decode(self, event: Any) -> list[SessionEvent | Edited]:
        """One event, in neutral words; [] for what is nothing to us. They come in their order."""


# ── opencode 1 ────────────────────────────────────────────────────────────────────────────────────
# The dialect of 1.2 and later: routes without a prefix, the directory in the query, idle told by
# absence, messages that name the prompt they answer.


class OpenCode1(OpenCode):
    generation = 1
    place = "directory="
    children_path = "/session/{}/children"
    active_path = "/session/status"
    interrupt_word = "abort"
    asks_paths = {"permission": "/permission", "question": "/question"}
    permission_words = ("permission", "patterns", "always", "until the server ends")

    def __init__(self, client: Client, options: Options) -> None:
        super().__init__(client, options)
        self.prompts: set[str] = set()  # user messages, whose texts are no answers

    def catalogue(self) -> Catalogue:
        config = as_dict(self.get("/config", SETUP_TIMEOUT))
        listed = self.get("/config/providers", SETUP_TIMEOUT)
        defaults = [f"{provider}/{id}" for provider, id in as_dict(listed, "default").items()]
        chosen = defaults[0] if len(defaults) == 1 else ""  # of several it takes the last used
        models = {
            f"{provider.get('id')}/{name}": as_dict(model)
            for provider in dicts(listed, "providers")
            for name, model in as_dict(provider, "models").items()
        }
        agents = dicts(self.get("/agent", SETUP_TIMEOUT))
        by_name = {as_text(agent, "name"): agent for agent in agents}
        return Catalogue([config], models, by_name, chosen)

    def send(self, session: str, prompt: Prompt, attempt: int) -> None:
        """Sent again with its ids it runs again, if it was not answered."""
        text = {"id": prompt.part_id, "type": "text", "text": prompt.text}
        body: Json = {"messageID": prompt.message_id, "parts": [text]}
        if prompt.model:
            body["model"] = model = body_of_model(prompt.model, "modelID")
            if "variant" in model:
                body["variant"] = model.pop("variant")  # it stands beside the model here
        if prompt.agent:
            body["agent"] = prompt.agent
        self.post(f"/session/{session}/prompt_async", body)

    def verdict(
        self, session: str, prompt: Prompt, attempt: int, own: Json, is_at_work: bool
    ) -> tuple[str, Fault | None]:
        messages = dicts(self.get(f"/session/{session}/message?limit=20"))
        return judge_messages(messages, prompt.message_id, is_at_work)

    def reply(self, ask: Ask, decision: str, answers: Sequence[str], message: str) -> None:
        """A bare rejection would end the turn, and so would any of a question."""
        body: Json = {"reply": decision, "message": message}
        if ask.kind == "question":
            said = [*answers, *[message] * (len(ask.questions) - len(answers))]
            body = {"answers": [[answer] for answer in said]}
        self.post(f"/{ask.kind}/{ask.id}/reply", body)

    def dispose(self) -> None:
        self.client.request("POST", "/global/dispose", {})

    # The event stream.

    def decode(self, event: Any) -> list[SessionEvent | Edited]:
        type = as_text(event, "type")
        told = as_dict(event, "properties")
        info = as_dict(told, "info")
        part = as_dict(told, "part")
        own_id = info.get("id") if type.startswith("session.") else None
        session = as_id(
            told.get("sessionID") or part.get("sessionID") or info.get("sessionID") or own_id
        )
        status = dig(told, "status", "type")
        fault = fault_of(told.get("error"))
        if type == "file.edited":
            return [Edited(as_text(told, "file"))]
        if not session:
            return []
        if type.startswith(("permission.", "question.")):
            return [self.decode_ask(session, type, told)]
        if type == "session.created":
            return [Child(session, as_text(info, "parentID"))]
        if type == "session.idle" or status == "idle":
            return [Activity(session, "idle")]
        if status == "busy":
            return [Activity(session, "working")]
        if status == "retry":
            return [retry_of(session, as_dict(told, "status"))]
        if type == "session.error" and fault:
            return [Broke(session, fault)]
        if type == "session.compacted":
            return [Compacted(session)]
        if type == "message.updated":
            return [self.decode_message(session, info)]
        if type == "message.part.updated":
            return [self.decode_part(session, part)]
        if type == "message.part.delta":
            return [Delta(session, as_text(told, "partID"), as_text(told, "delta"))]
        return [Alive(session)]

    def decode_message(self, session: str, info: Json) -> SessionEvent:
        message = as_text(info, "id")
        if info.get("role") == "user":
            self.prompts.add(message)
            return Alive(session)
        spend = spend_of(info)
        is_complete = bool(dig(info, "time", "completed"))
        has_ended = is_complete and info.get("summary") is not True  # a compaction's is no answer
        return Spent(
            session,
            message,
            spend,
            context=spend.tokens,
            model=without_variant(name_of_model({**info, "id": ""})),  # its id is the message's
            agent=as_text(info, "agent"),
            parent=as_text(info, "parentID"),
            ended=how_ended(info) if has_ended else "",
            complete=is_complete,
        )

    def decode_part(self, session: str, part: Json) -> SessionEvent:
        message = as_text(part, "messageID")
        key = as_text(part, "id")
        kind = {"text": "text", "reasoning": "thinking", "tool": "tool"}.get(as_text(part, "type"))
        if message in self.prompts or not kind:
            return Alive(session)
        if kind != "tool":
            state = "done" if dig(part, "time", "end") else "running"
            text = as_text(part, "text")
            is_synthetic = bool(part.get("synthetic"))
            return Part(session, message, key, kind, state, text, synthetic=is_synthetic)
        tool = as_text(part.get("tool") or "tool")
        opens = tool in SUBAGENT_TOOLS
        told = as_dict(part, "state")
        given = as_dict(told, "input")
        argument = argument_of(given, self.options.directory, as_text(told, "title"))
        if opens and not argument:
            return Alive(session)  # what a subagent works for is told a moment after its tool
        status = as_text(told, "status")
        state = {"completed": "done", "error": "failed"}.get(status, "running")
        return Part(
            session,
            message,
            key,
            kind,
            state,
            text=as_text(told, "error"),
            tool=tool,
            argument=argument + change_of([as_dict(told, "metadata", "filediff")]),
            call=0 if state == "running" else call_id(tool, given),
            seconds=(as_int(told, "time", "end") - as_int(told, "time", "start")) / 1000,
            opens=opens,
        )


def judge_messages(
    messages: Sequence[Json], own: str, is_at_work: bool = False
) -> tuple[str, Fault | None]:
    """How the answer to one's own message stands, by the session's newest messages, oldest first.

    Each answer names the message that it answers. What a person typed into the session is not ours,
    what a compaction put there is. While it works on a person's prompt, ours is not over.
    """
    foreign = set()
    newest: Json = {}
    last: Json = {}  # of the answers to ours
    for message in messages:
        newest = as_dict(message, "info")
        id = as_text(newest, "id")
        if newest.get("role") == "user" and id != own and not is_of_compaction(message):
            foreign.add(id)
        if newest.get("role") == "assistant" and as_text(newest, "parentID") not in foreign:
            last = newest
    if is_at_work and {as_text(newest, "id"), as_text(newest, "parentID")} & foreign:
        return "unfinished", None
    if not last:
        return "undelivered", None
    if not dig(last, "time", "completed"):
        return "unfinished", None
    fault = fault_of(last.get("error"))
    if fault and fault.message.startswith("The user rejected permission to use this"):
        return "refused", None  # a doom_loop: it ends the turn, words or not
    if fault:
        return ("cut" if fault.kind == "aborted" else "failed"), fault
    finish = as_text(last, "finish")
    if finish in FINISHES:
        return FINISHES[finish]
    return {"tool-calls": "refused", "unknown": "cut", "": "cut"}.get(finish, "answered"), None


def is_of_compaction(message: Json) -> bool:
    """Whether a compaction, and no person, wrote this user message of OpenCode 1's."""
    parts = [part for part in dicts(message, "parts") if part.get("type") in ("text", "compaction")]
    return bool(parts) and all(
        part.get("synthetic") or part.get("type") == "compaction" for part in parts
    )


# ── opencode 2 ────────────────────────────────────────────────────────────────────────────────────
# The dialect of 2.0.4 and later: routes below /api, the directory in `location`. A prompt waits in
# the session's inbox, becomes a message when it is delivered, and never runs again after that: to
# go on takes a new id. An answer is a row of steps, each a message of its own, and none names the
# prompt: what follows a prompt belongs to it.

PAGE = 50  # messages asked for at once
MOST_PAGES = 200  # of one session: a server that pages in circles is left alone
NO_QUESTIONS = {"action": "question", "resource": "*", "effect": "deny"}
INTERRUPTED = Fault("aborted", "it was interrupted")


class Call(NamedTuple):
    """A tool at work: its name, its input and its end come with different events."""

    part: Part
    since: float  # by the server's clock
    shell: str = ""  # the id of one that it lets run


class OpenCode2(OpenCode):
    generation = 2
    place = "location%5Bdirectory%5D="
    children_path = "/session?parentID={}"
    active_path = "/session/active"
    interrupt_word = "interrupt"
    asks_paths = {"permission": "/permission/request", "question": "/form"}
    permission_words = ("action", "resources", "save", "in this project from now on")

    def __init__(self, client: Client, options: Options) -> None:
        super().__init__(client, options)
        self.calls: dict[str, Call] = {}  # tools at work, by the keys of their parts
        self.printed: dict[str, int] = {}  # bytes, by shell

    def path(self, path: str) -> str:
        """A session knows where it is."""
        return "/api" + (path if path.startswith("/session") else super().path(path))

    def catalogue(self) -> Catalogue:
        entries = dicts(self.get("/config", SETUP_TIMEOUT))  # the lowest first
        documents = [entry for entry in entries if "info" in entry]
        found = [as_text(entry, "path") for entry in entries if entry.get("type") == "file"]
        read = {as_text(document, "path") for document in documents}
        models = dicts(self.get("/model", SETUP_TIMEOUT))
        agents = dicts(self.get("/agent", SETUP_TIMEOUT))
        return Catalogue(
            [as_dict(document, "info") for document in documents],
            {without_variant(name_of_model(model)): model for model in models},
            {as_text(agent, "id"): agent for agent in agents},
            chosen=name_of_model(self.get_if_possible("/model/default")),
            unread=tuple(path for path in found if path not in read),
        )

    # Sessions and prompts.

    def session_body(self, prompt: Prompt) -> Json:
        """No id: OpenCode's free models want the server's. The server does not apply the model that
        its configuration gives to an agent."""
        body: Json = {"location": {"directory": self.options.directory}}
        model = prompt.model or self.model_for(prompt.agent)
        if model:
            body["model"] = body_of_model(model, "id")
        if prompt.agent:
            body["agent"] = prompt.agent
        if not (self.options.attended or self.options.asks_wait):
            body["permissions"] = [NO_QUESTIONS]  # nobody would answer
        return body

    def send(self, session: str, prompt: Prompt, attempt: int) -> None:
        """The same id is safe to be sent again: once it was delivered it does nothing. What was
        not delivered of earlier attempts must not run beside this one."""
        ids = ids_of_attempts(prompt, attempt)
        self.session = session
        self.resting = ""
        self.withdraw(session, ids[:-1])
        self.post(f"/session/{session}/prompt", {"id": ids[-1], "text": prompt.text})

    def withdraw(self, session: str, ids: Iterable[str]) -> None:
        """Take prompts out of the inbox; what was delivered, or never came there, is no error."""
        for id in ids:
            try:
                self.request("DELETE", f"/session/{session}/inbox/{id}")
            except RequestError as error:
                # A server without an inbox answers such a path with its web page.
                if error.code not in (404, 405) and error.name != "NotJSON":
                    raise

    def interrupt(self, session: str, prompt: Prompt, attempt: int) -> None:
        """It leaves in the inbox what was not delivered, which would join whatever comes next."""
        super().interrupt(session, prompt, attempt)
        self.withdraw(session, ids_of_attempts(prompt, attempt))

    def dispose(self) -> None:
        """It does so itself when it ends."""

    # How a session stands.

    def prints(self) -> bool:
        has_grown = False
        for call in list(self.calls.values()):
            if call.shell and call.part.session in self.relatives:
                known = self.printed.get(call.shell, 0)
                path = f"/shell/{quote(call.shell, safe='')}/output?cursor={known}"
                size = as_int(self.get_if_possible(path), "size")
                if size > known:
                    self.printed[call.shell] = size
                    has_grown = True
        return has_grown

    def retry(self, session: str, _status: Any) -> Activity | None:
        """The retry that the newest step waits for: the server counts that as work."""
        newest = dicts(self.get_if_possible(f"/session/{session}/message?limit=1"))
        retry = retry_of(session, as_dict(newest[0], "retry") if newest else {})
        return retry if retry.wait > 0 else None

    def verdict(
        self, session: str, prompt: Prompt, attempt: int, own: Json, is_at_work: bool
    ) -> tuple[str, Fault | None]:
        ids = ids_of_attempts(prompt, attempt)
        delivered, messages = self.since_prompt(session, ids)
        has_step = any(message.get("type") == "assistant" for message in messages)
        if own.get("outcome") == "failed" and (delivered != ids[-1] or not has_step):
            # Before the first step, as with a model that is not there. Why, the message tells since
            # 2.1; before, the stream alone.
            idles = [message for message in messages if message.get("type") == "idle"]
            return "failed", fault_of(idles[-1].get("error")) if idles else None
        return judge_steps(messages, is_at_work) if delivered else ("undelivered", None)

    def since_prompt(self, session: str, ids: Sequence[str]) -> tuple[str, list[Json]]:
        """The newest of our prompts that was delivered, or "", and what came after it."""
        path = self.path(f"/session/{session}/message?limit={PAGE}")
        newer: list[Json] = []
        cursor = ""
        for _ in range(MOST_PAGES):
            answer = self.client.request("GET", path + cursor)
            for message in dicts(answer, "data"):
                id = as_text(message, "id")
                if id in ids:
                    return id, newer[::-1]
                newer.append(message)
            following = as_text(answer, "cursor", "next")
            if not dicts(answer, "data") or not following:  # the last page names an empty one
                break
            cursor = "&cursor=" + quote(following, safe="")
        return "", newer[::-1]

    # What is asked.

    def reply(self, ask: Ask, decision: str, answers: Sequence[str], message: str) -> None:
        """A form is refused with words where it takes them: to dismiss it would end the turn."""
        if ask.kind == "permission":
            body = {"decision": decision, "message": message}
            self.post(f"/session/{ask.session}/permission/{ask.id}/reply", body)
            return
        form = self.forms.get(ask.id, {})
        path = f"/session/{as_id(form.get('sessionID') or ask.session)}/form/{ask.id}"
        values = answer_to_form(form, answers, message)
        if values:
            try:
                self.post(f"{path}/reply", {"answer": values})
                return
            except RequestError as error:
                if error.code == 409:
                    return  # somebody else has answered it
                if error.code != 400 or decision != "reject":
                    raise
        # Versions differ in where they take the words, and none minds them elsewhere.
        self.request("DELETE", f"{path}?message={quote(message, safe='')}", {"message": message})

    # The event stream.

    def decode(self, event: Any) -> list[SessionEvent | Edited]:
        type = as_text(event, "type")
        data = as_dict(event, "data")
        session = as_id(data.get("sessionID") or dig(data, "form", "sessionID"))
        area, _, what = type.removeprefix("session.").partition(".")
        fault = fault_of(data.get("error"))
        broke: list[SessionEvent | Edited] = [Broke(session, fault)] if fault else []
        if type == "filesystem.changed":
            place = as_text(event, "location", "directory")
            return [Edited(os.path.join(place, as_text(data, "file")))]
        if not session:
            return []
        if area in ("permission", "form"):
            return [self.decode_ask(session, type, as_dict(data, "form") or data)]
        if area == "created":
            return [Child(session, as_text(data, "parentID"))]
        if type == "session.inbox.enqueued" and dig(data, "item", "type") == "synthetic":
            return [Woke(session)]  # nobody typed it: something in its background has ended
        if area == "execution" and what != "started":
            return [*broke, Activity(session, "idle")]
        if area == "execution":
            return [Activity(session, "working")]
        if area == "step" and what == "started":  # again after a retry, for the same message
            return [Activity(session, "working"), self.decode_step(session, data, False)]
        if area == "step" and what in ("ended", "failed"):
            return [self.decode_step(session, data, True), *broke]
        if type == "session.retry.scheduled":
            return [retry_of(session, data)]
        if type == "session.compaction.ended":
            return [Compacted(session)]
        if area in ("text", "reasoning"):
            return [self.decode_written(session, area, what, data)]
        if area == "tool":
            return [self.decode_tool(session, what, data, as_float(event, "created") / 1000)]
        return [Alive(session)]

    def decode_step(self, session: str, data: Json, is_over: bool) -> Spent:
        """A step's end alone tells what it has cost: `usage.updated` would count it again."""
        message = as_text(data, "assistantMessageID")
        if is_over:  # whose tools were broken off: no word of their end will come
            for key in [key for key, call in self.calls.items() if call.part.message == message]:
                del self.calls[key]
        spend = spend_of(data)
        return Spent(
            session,
            message,
            spend,
            context=spend.input + spend.cached,
            model=without_variant(name_of_model(data.get("model"))),
            agent=as_text(data, "agent"),
            ended=how_ended(data),
            complete=is_over,
        )

    def decode_written(self, session: str, area: str, what: str, data: Json) -> SessionEvent:
        """A text or a thought of a step. They have no ids: they are counted, each on its own."""
        message = as_text(data, "assistantMessageID")
        kind = "text" if area == "text" else "thinking"
        key = f"{message} {kind} {as_int(data, 'ordinal')}"
        if what == "delta":
            return Delta(session, key, as_text(data, "delta"))
        state = "done" if what == "ended" else "running"
        return Part(session, message, key, kind, state, as_text(data, "text"))

    def decode_tool(self, session: str, what: str, data: Json, now: float) -> SessionEvent:
        """Its name comes first, then its input, then its end. Its id is its own in its message."""
        message = as_text(data, "assistantMessageID")
        key = f"{message} tool {as_text(data, 'id')}"
        if what == "input.started":
            tool = as_text(data.get("name") or "tool")
            opens = tool in SUBAGENT_TOOLS
            part = Part(session, message, key, "tool", "running", tool=tool, opens=opens)
            self.calls[key] = Call(part, now)
            return Alive(session) if opens else part  # it is shown once, when it is known what for
        call = self.calls.get(key)
        if call is None:
            return Alive(session)  # of a server that is gone: nobody knows what it was
        if what == "called":
            given = as_dict(data, "input")
            part = call.part._replace(argument=argument_of(given, self.options.directory))
            self.calls[key] = Call(part._replace(call=call_id(part.tool, given)), now)
            return part
        if what in ("success", "failed"):
            del self.calls[key]
            return call.part._replace(
                state="done" if what == "success" else "failed",
                argument=call.part.argument + change_of(dicts(data, "metadata", "files")),
                text=as_text(data, "error", "message"),
                seconds=max(0.0, now - call.since),
            )
        shell = as_text(data, "metadata", "shellID")
        self.calls[key] = call._replace(shell=shell or call.shell)
        return Alive(session)


def ids_of_attempts(prompt: Prompt, attempt: int) -> tuple[str, ...]:
    """The ids of a prompt's attempts up to this one. They follow from the first, which ends in
    digits; a prompt that is not known has none."""
    first = prompt.message_id
    further = [f"{first[:-3]}z{number:02}" for number in range(1, attempt + 1)]
    return (first, *further) if first else ()


def answer_to_form(form: Json, labels: Sequence[str], message: str) -> Json:
    """Values by the fields' keys. What has no label is answered with the message, where the field
    takes words; an MCP server would take them for the value that it asked for."""
    answer: Json = {}
    takes_words = bool(message) and form.get("sessionID") != ELSEWHERE
    for number, field in enumerate(fields_of(form)):
        value: Any = message
        if number < len(labels):
            options = {label_of(option): option for option in dicts(field, "options")}
            value = as_dict(options, labels[number]).get("value", labels[number])
        elif not takes_words or not field.get("custom"):
            continue
        is_list = field.get("type") == "multiselect"
        answer[as_text(field, "key")] = [value] if is_list else value
    return answer


def judge_steps(messages: Sequence[Json], is_at_work: bool = False) -> tuple[str, Fault | None]:
    """How the answer to a prompt stands, by the messages after the prompt. The last step decides.

    What a person said meanwhile belongs to the answer; what they said after its end begins one of
    their own, and while the session is at work on that, ours is not over.
    """
    step: Json = {}  # the last one
    idle: Json = {}  # the end of the run that it belongs to
    has_more = False  # something was delivered after it
    for message in messages:
        type = message.get("type")
        has_finished = bool(step) and step.get("finish") != "tool-calls"  # else another follows
        if type == "user" and (idle or has_finished):
            if is_at_work:
                return "unfinished", None
            break
        if type == "assistant":
            step = message
            idle = {}
            has_more = False
        elif type == "idle":
            idle = message
            has_more = False
        elif type in ("user", "synthetic"):
            has_more = True
    outcome = as_text(idle, "outcome")
    finish = as_text(step, "finish")
    fault = fault_of(step.get("error"))
    why = fault_of(idle.get("error"))
    was_interrupted = outcome == "interrupted"
    if not step:
        ends = {"succeeded": "nothing-ran", "failed": "failed", "interrupted": "cut"}
        return ends.get(outcome, "unfinished"), INTERRUPTED if was_interrupted else why
    is_complete = dig(step, "time", "completed") or outcome in ("failed", "interrupted")
    if has_more or not is_complete:
        return "unfinished", None  # it works, or its server died
    if fault and fault.kind != "aborted":
        return "failed", fault
    if not fault and finish in FINISHES:
        return FINISHES[finish]
    if outcome == "failed" or (finish == "error" and not fault):
        return "failed", why
    # A bare refusal looks like an interruption, but for what the tool says.
    if not was_interrupted and any(map(was_refused, dicts(step, "content"))):
        return "refused", None
    return "cut", INTERRUPTED if was_interrupted or fault else None


def was_refused(part: Json) -> bool:
    """Whether a part of a step is a tool that somebody refused, in OpenCode's own words."""
    error = as_dict(part, "state", "error")
    says_so = re.match("The user (?:dismissed|declined) this", as_text(error, "message"))
    return error.get("type") == "permission.rejected" or bool(says_so)


# ── opencode: which generation answers ────────────────────────────────────────────────────────────

SUPPORTED = "1.2 or newer, or 2.0.4 or newer"
# Where a version is told, and the oldest one that will do.
PROBES: tuple[tuple[str, type[OpenCode], tuple[int, int, int]], ...] = (
    ("/api/info", OpenCode2, (2, 0, 4)),
    ("/api/status", OpenCode2, (2, 0, 4)),  # so in 2.0.4 and 2.0.5
    ("/global/health", OpenCode1, (1, 2, 0)),
)


def detect(client: Client) -> tuple[type[OpenCode], str]:
    """Which dialect the server speaks, and its version. Unknown paths are answered with a page by
    both: only JSON proves anything. Problem: it speaks neither; RequestError: none yet."""
    for path, dialect, oldest in PROBES:
        try:
            version = as_text(client.request("GET", path, timeout=5.0), "version")
        except RequestError as error:
            if error.code in (0, 401, 403, 503):  # silent, locked, or still booting
                raise
            continue
        numbers = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", version)
        if numbers and tuple(map(int, numbers.groups())) < oldest:
            advice = f"{SUPPORTED} is needed: upgrade it with `opencode upgrade`"
            raise Problem(f"OpenCode {version} is too old: {advice}")
        if version:
            return dialect, version
    raise Problem(f"{client.url} is not OpenCode ({SUPPORTED}): look at the address")


# ── opencode: the event stream ────────────────────────────────────────────────────────────────────
# An event is one line of JSON behind `data:`; what else the stream holds, such as heartbeats in the
# form of comments, says nothing.

LIVE_DELTAS = 20  # decoded within LIVE_WINDOW while somebody looks; of more only signs of life come
LIVE_WINDOW = 0.1  # seconds
DELTA = re.compile(rb'"type":\s*"(?:message\.part|session\.[a-z.]+)\.delta"')
SESSION_ID = re.compile(rb'"sessionID":\s*"([^"\\]+)"')  # in an event of either generation


class StreamReader:
    """Reads a server's event stream on a thread of its own, always: else the server would grow.

    Deltas are decoded only when somebody looks and they are few: of a flood of them, a sign of
    life is enough.
    """

    def __init__(
        self, dialect: OpenCode, post: Callable[[Any], None], live: bool, verbose: bool
    ) -> None:
        self.dialect = dialect
        self.post = post
        self.live = live
        self.verbose = verbose
        self.stopped = False
        self.has_warned = False  # that an event cannot be read
        self.window_ends = 0.0
        self.budget = 0
        self.alive: set[bytes] = set()  # sessions whose sign of life this window has had

    def run(self) -> None:
        """Connect, read, and connect anew with growing pauses; polling goes on meanwhile."""
        client = self.dialect.client
        path = self.dialect.path("/event")
        failures = 0
        while not self.stopped:
            opened = time.monotonic()
            with suppress(RequestError, *client.errors):
                response = client.open("GET", path, None, STREAM_TIMEOUT, is_stream=True)
                with response:
                    if response.status == 200:
                        self.post(StreamOpened())
                        self.read(response)
            lasted = time.monotonic() - opened
            failures = 1 if lasted > STREAM_WAITS[-1] else failures + 1
            if failures == 2 * len(STREAM_WAITS):
                said = "there is no event stream: what the agent does cannot be shown"
                self.post(Noted("warn", f"{said}; its session is looked at all the same"))
            time.sleep(wait_after(failures, STREAM_WAITS))

    def stop(self) -> None:
        """Hang up: OpenCode 2 would not end for 20 s while somebody listens."""
        self.stopped = True
        self.dialect.client.hang_up()

    def read(self, stream: io.BufferedIOBase) -> None:
        for line in iter(lambda: stream.readline(LARGEST), b""):
            if self.stopped:
                return
            try:
                if line.startswith(b"data:") and line.endswith(b"\n"):  # else it was cut off
                    self._take(line[5:].strip())
            except Exception as error:  # what a model says decides of which kind it is
                if not self.has_warned:
                    self.has_warned = True
                    said = f"an event cannot be read ({type(error).__name__}: {error})"
                    self.post(Noted("warn", f"{said[:200]}: going on without it"))

    def _take(self, data: bytes) -> None:
        now = time.monotonic()
        if now >= self.window_ends:
            self.window_ends = now + LIVE_WINDOW
            self.budget = LIVE_DELTAS if self.live else 0
            self.alive.clear()
        if DELTA.search(data, 0, 200):
            self.budget -= 1
            if self.budget < 0:
                found = SESSION_ID.search(data)
                if found and found.group(1) not in self.alive:
                    self.alive.add(found.group(1))
                    self.post(Alive(found.group(1).decode("utf-8", "replace")))
                return
        event = json.loads(data.decode("utf-8", "replace"))
        if self.verbose:
            what = f"{as_text(event, 'type')} {data[:300].decode('utf-8', 'replace')}"
            self.post(Noted("event", what, "dim"))
        for said in self.dialect.decode(event):
            self.post(said)


# ── processes ─────────────────────────────────────────────────────────────────────────────────────
# What the system can tell of processes, in one place: from /proc where it is, else from `ps`, else
# not at all. Everything that ocloop starts carries a mark in its environment, so that tools that
# went into groups of their own can be found when the server is gone.

PROC = "/proc"
MARK = "OCLOOP_RUN"
# Bytes, above what a program can be started with; who likes can make theirs look endless.
LARGEST_ENVIRONMENT = 8 << 20
# pid, parent, group, resident KiB, then the command with its environment. macOS spells it -E,
# the BSDs -e; procps, and with it Linux without /proc in sight, knows `e` among the BSD flags.
PS = {
    "darwin": ("ps", "-A", "-E", "-ww", "-o", "pid=,ppid=,pgid=,rss=,command="),
    "linux": ("ps", "axeww", "-o", "pid=,ppid=,pgid=,rss=,args="),
}.get(sys.platform, ("ps", "-A", "-e", "-ww", "-o", "pid=,ppid=,pgid=,rss=,command="))


class Process(NamedTuple):
    pid: int
    parent: int
    group: int
    memory: int  # KiB resident
    started: str  # tells it from another one of that number, where that is known
    marks: list[str]  # values of MARK in its environment, as far as that is shown


def list_processes() -> list[Process]:
    """All processes; none where there is no `ps` either, or it takes other options."""
    found = []
    if os.path.isdir(f"{PROC}/self"):
        page = os.sysconf("SC_PAGE_SIZE") >> 10
        how: Json = {"encoding": "utf-8", "errors": "replace"}
        for pid in filter(str.isdigit, os.listdir(PROC)):
            environment = ""
            with suppress(OSError), open(f"{PROC}/{pid}/environ", **how) as file:
                environment = file.read(LARGEST_ENVIRONMENT)
            with suppress(OSError, ValueError), open(f"{PROC}/{pid}/stat", **how) as file:
                _state, parent, group, *more = file.read().rpartition(")")[2].split()
                memory = int(more[18]) * page
                marks = re.findall(rf"(?:^|\0){MARK}=([^\0]*)", environment)
                process = Process(int(pid), int(parent), int(group), memory, more[16], marks)
                found.append(process)
    else:
        told = ""
        with suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                PS, stdin=subprocess.DEVNULL, capture_output=True, timeout=5.0, check=False
            ).stdout.decode("utf-8", "replace")
        row = r"^ *(\d+) +(\d+) +(\d+) +(\d+) (.*)"
        for pid, parent, group, memory, words in re.findall(row, told, re.MULTILINE):
            marks = re.findall(rf"(?:^| ){MARK}=(\S*)", words)
            found.append(Process(int(pid), int(parent), int(group), int(memory), "", marks))
    return found


def marked_pids(mark: str) -> list[int]:
    """The processes that carry the mark in their environment."""
    return [process.pid for process in list_processes() if mark in process.marks]


def descendants(pid: int) -> set[tuple[int, str]]:
    """All that a process has started and that still runs below it, by number and start: what leaves
    its group is found by its mark, but not where `ps` shows no marks."""
    processes = list_processes()
    found: set[tuple[int, str]] = set()
    above = [pid]
    for one in above:  # it grows meanwhile
        below = [process for process in processes if process.parent == one]
        above += [process.pid for process in below]
        found.update((process.pid, process.started) for process in below)
    return found


def group_memory(group: int) -> int:
    """Resident MiB of a process group; 0 when it cannot be told."""
    return sum(process.memory for process in list_processes() if process.group == group) >> 10


def exit_status(process: subprocess.Popen[bytes]) -> int | None:
    """A child's exit status once it has ended.

    It is looked at without reaping, where that can be done: until then its number, which is that of
    its group too, is given to nobody else.
    """
    if process.returncode is None and hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
        with suppress(ChildProcessError):  # another thread has reaped it just now
            found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is None:
                return None
            return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    return process.poll()


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit status, not reaped; None when it runs for longer than that."""
    if seconds == NEVER and hasattr(os, "waitid"):  # nothing wakes up all night to look
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    until = time.monotonic() + seconds
    pause = 0.001
    while exit_status(process) is None and time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return exit_status(process)


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a child's process group; ProcessLookupError when nothing of it is left.

    While anything is, no new process is given its number: whoever has it after the child was reaped
    is somebody else.
    """
    if process.returncode is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, 0)
            raise PermissionError
    os.killpg(process.pid, number)


def end_group(process: subprocess.Popen[bytes], patience: float, mark: str) -> None:
    """End a child's process group, and what left it.

    SIGTERM, after `patience` seconds SIGKILL, until nothing of the group is left; then SIGKILL to
    whatever carries the mark: tools that went into groups of their own. Only here is it reaped.
    """
    strays = descendants(process.pid) if process.returncode is None else set()
    with suppress(ProcessLookupError, PermissionError):
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 2.0)):
            signal_group(process, number)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                process.poll()
                signal_group(process, 0)
                time.sleep(0.01)
    process.poll()
    for _ in range(2):
        for other in list_processes():
            if (other.pid, other.started) in strays or (mark and mark in other.marks):
                with suppress(OSError):
                    os.kill(other.pid, signal.SIGKILL)
        time.sleep(0.02)  # one that is just being executed shows no environment for a moment


def spawn(argv: Sequence[str], own_session: bool = True, **how: Any) -> subprocess.Popen[bytes]:
    """Start a program; in a session of its own ctrl-c and ctrl-z in our terminal are not its.

    A child inherits its starter's mask. One with signals blocked that `run` holds back would behave
    differently from one that a person starts.
    """
    held_back = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTTOU)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, held_back)
    try:
        return subprocess.Popen(argv, start_new_session=own_session, **how)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# What OpenCode, as a program of Bun's, unpacks for itself at each start, maps, and leaves behind.
LIBRARY = r"\.[0-9a-f]+-[0-9a-f]{8}\.(so|dylib|node)"


def remove_libraries(folder: str, before: float = NEVER) -> None:
    """Remove the libraries in that folder of ours that were written before then, and nothing
    else."""
    if not os.path.isdir(folder):
        return
    with suppress(OSError), private(folder) as number:
        for name in os.listdir(number):
            if re.fullmatch(LIBRARY, name):
                with suppress(OSError):
                    found = os.stat(name, dir_fd=number, follow_symlinks=False)
                    if found.st_mtime < before:
                        os.unlink(name, dir_fd=number)


def lend_libraries(folder: str, environment: dict[str, str]) -> None:
    """Name the folder to what unpacks and runs a library there, as long as it is ours alone: in the
    temporary folder somebody else may have put another one in its place. "": there is none."""
    with suppress(OSError):
        if folder:
            with private(os.path.dirname(folder)), private(folder):
                environment.setdefault("BUN_TMPDIR", folder)  # a person's own is kept


# The guard is a small shell that holds a pipe from ocloop: when the pipe ends without the word
# "over", ocloop is gone without having ended what it started (SIGKILL), and the guard does it. Its
# arguments: the mark, where /proc is, the command that lists processes where there is none, the
# folder with OpenCode's libraries and what they are called. The mark is looked for as a whole entry
# of an environment; that of a check is longer. Where an environment lies is told by the 50th and
# 51st field of `stat`: one that is larger than any real one is not looked into.
GUARD = """\
trap '' HUP INT TERM
entry="OCLOOP_RUN=$1(\\.check|\\.attach)?"
marked() {
    mark=$1 proc=$2 ps=$3 files=
    if [ -r "$proc/self/environ" ]; then
        for folder in "$proc"/[0-9]*; do
            read -r stat <"$folder/stat" || continue
            set -- ${stat##*) }
            [ $((${49:-9999999} - ${48:-0})) -lt 8388608 ] && files="$files $folder/environ"
        done
        for file in $(grep -lasF "OCLOOP_RUN=$mark" $files /dev/null); do
            head -c 8388608 "$file" | tr '\\n\\0' '\\1\\n' | grep -aqE "^$entry\\$" || continue
            file=${file%/environ}
            echo "${file##*/}"
        done
    else
        $ps | grep -E "(^| )$entry( |\\$)" | while read -r pid rest; do echo "$pid"; done
    fi
}
group=0
while read -r word; do
    [ "$word" = over ] && exit 0
    group=$word
done
for signal in TERM KILL; do
    [ "$group" -gt 1 ] && kill -$signal "-$group" 2>/dev/null
    for pid in $(marked "$1" "$2" "$3"); do kill -$signal "$pid" 2>/dev/null; done
    [ $signal = TERM ] && sleep 1
done
[ -d "$4" ] && [ ! -L "$4" ] || exit 0
ls -A "$4" | grep -xE "$5" | while read -r file; do rm -f "$4/$file"; done
exit 0
"""


class Guard:
    """Ends what we started when we are killed without being able to do it ourselves."""

    def __init__(self, mark: str, environment: dict[str, str], libraries: str = "") -> None:
        self.argv = ["/bin/sh", "-c", GUARD, "ocloop-guard"]
        self.argv += [mark, PROC, " ".join(PS), libraries, LIBRARY]
        self.environment = {name: value for name, value in environment.items() if name != MARK}
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def watch(self, group: int) -> None:
        """From now on this process group is to be ended, too; 0: none. Somebody may have killed the
        guard: then there is another one."""
        with self.lock, suppress(OSError):
            if self.process is None or self.process.poll() is not None:
                self.process = spawn(
                    self.argv,
                    cwd="/",
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=self.environment,
                )
            assert self.process.stdin
            self.process.stdin.write(f"{group}\n".encode())
            self.process.stdin.flush()

    def dismiss(self) -> None:
        with self.lock, suppress(OSError, subprocess.TimeoutExpired):
            if self.process:
                self.process.communicate(b"over\n", timeout=2)


# ── opencode: the server's process ────────────────────────────────────────────────────────────────

DEFAULT_USER = "opencode"
ENDED_BY_ITSELF = "the server ended by itself with exit status {}"


class Server:
    """The `opencode serve` process and everything it starts, or somebody else's server (--server).

    One command at a time starts or stops it, until it is closed. `libraries` is the folder into
    which it unpacks its own; "": there is none.
    """

    def __init__(self, options: Options, post: Callable[[Any], None], libraries: str = "") -> None:
        self.options = options
        self.post = post
        self.libraries = libraries
        self.environment = dict(os.environ)  # a copy: the screen changes ours
        self.mark = os.urandom(12).hex()
        self.username = DEFAULT_USER
        self.password = ""  # each start has one of its own
        if options.server:
            known = self.environment.get
            self.username = known("OPENCODE_SERVER_USERNAME") or DEFAULT_USER
            self.password = known("OPENCODE_PASSWORD") or known("OPENCODE_SERVER_PASSWORD") or ""
        self.dialect: OpenCode | None = None  # of one that has answered
        self.process: subprocess.Popen[bytes] | None = None
        self.reader: StreamReader | None = None
        self.guard = Guard(self.mark, self.environment, libraries)
        self.last_lines: collections.deque[str] = collections.deque(maxlen=12)
        self.turn = threading.RLock()  # held while it is started or stopped
        self.lock = threading.Lock()  # nothing is started but under it, and nothing after closing
        self.closing = False

    def start(self, launch: int) -> tuple[str, str, int]:
        """Start it, after stopping what still runs of it; returns its URL, the version and the
        generation of OpenCode. Raises Problem."""
        options = self.options
        with self.turn:
            self.stop()
            try:
                url = options.server or self._launch()
                dialect, version = self._meet(url)
            except Problem as problem:
                self.stop()
                said = f"{problem}{self._last_words()}"
                raise Problem(said, problem.status, problem.again) from None
            self.dialect = dialect
            self.reader = StreamReader(dialect, self.post, options.attended, options.verbose)
            in_thread(self.reader.run)
            if self.process:
                in_thread(self._watch, self.process, launch)
            return url, version, dialect.generation

    def _launch(self) -> str:
        """Start the process; returns its URL once it listens."""
        self.last_lines.clear()
        port = self.options.port
        if port and not port_is_free(port):
            advice = "choose another one with --port, or leave --port out for a free one"
            raise Problem(f"port {port} is taken, or is none: {advice}")
        argv = [*self.options.opencode, "serve", "--hostname=127.0.0.1", f"--port={port}"]
        self.password = os.urandom(24).hex()  # whoever took the last one's port may know that one's
        environment = {
            **self.environment,
            **login_environment(self.username, self.password),
            MARK: self.mark,
        }
        lend_libraries(self.libraries, environment)
        try:
            with self.lock:
                if self.closing:
                    raise Problem("stopped while starting")
                self.guard.watch(0)  # it is there before there is something to guard
                self.process = process = spawn(
                    argv,
                    cwd=self.options.directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                self.guard.watch(process.pid)
        except OSError as error:
            # It may be missing for some seconds only: an upgrade replaces it.
            problem = f"cannot start {argv[0]}: {error.strerror or error}"
            raise Problem(problem, again=True) from None
        import http.client  # noqa: F401 (whoever needs it next has not to wait for it)

        found: queue.SimpleQueue[str] = queue.SimpleQueue()
        in_thread(self._drain, process.stdout, found)
        how = f"did not start within {START_TIMEOUT:.0f} s"
        with suppress(queue.Empty):
            url = found.get(timeout=START_TIMEOUT)
            if url:
                return url
            how = f"ended with exit status {wait_for_end(process, 2.0)} while starting"
        problem = f"OpenCode {how}: run `{' '.join(argv)}` yourself to see why"
        raise Problem(problem, again=True)  # another one that starts may have locked the database

    def _drain(self, stdout: Any, found: queue.SimpleQueue[str]) -> None:
        """Read all it prints, always: a full pipe would stop it. `found` gets the URL, or "". The
        rest is kept for its last words."""
        printed = iter(lambda: stdout.readline(1 << 16), b"")
        lines = (printable(raw.decode("utf-8", "replace").rstrip()) for raw in printed)
        for line in without_secrets(lines):
            match = re.search(r"listening on (https?://127\.0\.0\.1:\d+)", line)
            if match:
                found.put(match.group(1))
            else:
                self.last_lines.append(line[:300])
        found.put("")

    def _last_words(self) -> str:
        return "".join(f"\n  {line}" for line in list(self.last_lines))

    def _watch(self, process: subprocess.Popen[bytes], launch: int) -> None:
        problem = ENDED_BY_ITSELF.format(wait_for_end(process, NEVER))
        if self.process is process:
            time.sleep(0.1)  # for its last lines
            self.post(ServerDied(launch, problem + self._last_words()))

    def _meet(self, url: str) -> tuple[OpenCode, str]:
        """Wait until it answers; the dialect that it speaks, and its version."""
        until = time.monotonic() + START_TIMEOUT
        process = self.process
        advice = "a plugin, an MCP server or a download may hang: try `OPENCODE_PURE=1`"
        if self.options.server:
            advice = "start it, or leave --server out"
        while True:
            client = Client(url, self.username, self.password, process)
            try:
                dialect, version = detect(client)
                return dialect(client, self.options), version
            except RequestError as error:
                status = exit_status(process) if process else None
                if status is not None:
                    raise Problem(ENDED_BY_ITSELF.format(status), again=True) from None
                if error.code in (401, 403):
                    if self.username == DEFAULT_USER:
                        raise Problem(f"{url}: {WRONG_PASSWORD}") from None
                    self.username = DEFAULT_USER  # OpenCode 2 knows no other
                    continue
                is_booting = error.code == 503 and error.name != "service_failed"
                is_final = error.code != 0 and not is_booting
                if is_final or self.closing or time.monotonic() > until:
                    raise Problem(f"{url} does not answer ({error}): {advice}") from None
                time.sleep(0.25)

    def stop(self, session: str = "") -> None:
        """Interrupt the session, and stop what we started: the tools, then the group, then what has
        left the group."""
        with self.turn:
            with self.lock:
                process, self.process = self.process, None
                dialect, self.dialect = self.dialect, None
            if dialect:
                in_thread(self._say_farewell, dialect, session).join(FAREWELL_WITHIN)
            if self.reader:
                self.reader.stop()
            if process:
                end_group(process, 1.0, self.mark)
                self.guard.watch(0)
            remove_libraries(self.libraries)
            with suppress(OSError):
                os.rmdir(self.libraries)  # the next start makes it anew

    def _say_farewell(self, dialect: OpenCode, session: str) -> None:
        """In a hurry. One that is gone hears none of it: the client sees to that."""
        dialect.client.patience = 1.5
        with suppress(RequestError, RecursionError):
            if session:
                self._stop_session(dialect, session)
            if dialect.client.process:  # it is ours
                dialect.dispose()
            elif session:
                time.sleep(1.6)  # a prompt that begins late is not stopped by the first one
                self._stop_session(dialect, session)

    def _stop_session(self, dialect: OpenCode, session: str) -> None:
        """Interrupt a session. What is not at rest when its server ends leaves a claim behind, with
        which another process of OpenCode 2 may wake it."""
        until = time.monotonic() + 2.0
        dialect.interrupt(session, Prompt(""), 0)
        while dialect.at_work(session) and time.monotonic() < until:
            time.sleep(0.1)

    def close(self, session: str = "") -> None:
        """Stop for good. What cannot be ended in time is left to the guard."""
        with self.lock:
            self.closing = True
            starting = self.process if self.dialect is None else None
        if starting:
            end_group(starting, 0.5, self.mark)  # whoever has the turn is done with it soon
        stopping = in_thread(self.stop, session)
        stopping.join(CLOSED_WITHIN)
        if not stopping.is_alive():
            self.guard.dismiss()

    def look_after(self) -> int:
        """See to what must not grow as the night goes on; returns MiB resident of its process
        group, 0 when they cannot be told."""
        with self.lock:
            process = self.process
            self.guard.watch(process.pid if process else 0)
        remove_libraries(self.libraries, time.time() - MAPPED_WITHIN)
        return group_memory(process.pid) if process else 0


def port_is_free(port: int) -> bool:
    with suppress(OSError, OverflowError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


# ── outside ───────────────────────────────────────────────────────────────────────────────────────
# What the run asks for is done here, each request on a thread of its own, so that whatever hangs (a
# file system, a check of an hour, a server that is being started) holds up nothing else. Nothing is
# decided here, but that a check which was stopped before it began does not begin.


class Outside:
    """The world as a run knows it: a request is the name of a method, and its arguments. What is
    not known here (setup, create, send, poll, interrupt, reply) the server's dialect knows.

    What a method returns, or the RequestError or Problem that it raises, is posted as an Answer.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.options = server.options
        self.post = server.post
        self.start_server = server.start
        self.stop_server = server.stop
        self.measure_server = server.look_after
        self.check_mark = f"{server.mark}.check"  # what the check starts carries it
        self.check: subprocess.Popen[bytes] | None = None  # until it has ended, or is stopped
        self.check_is_wanted = False
        self.notifying: threading.Thread | None = None  # the last one

    def make(self, request: Request) -> None:
        """Have a request made."""
        if request.name in ("run_check", "stop_check"):  # their threads may overtake each other
            self.check_is_wanted = request.name == "run_check"
        if threading.active_count() > MOST_THREADS:  # somebody's server makes us ask and ask
            self.post(Answer(request, error=RequestError(0, "too much is asked at once")))
            return
        making = in_thread(self._make, request)
        if request.name == "notify":
            making.join(1.0)  # the program may be about to end

    def _make(self, request: Request) -> None:
        try:
            place = self if hasattr(self, request.name) else self.dialect
            result = getattr(place, request.name)(*request.args)
        except (RequestError, Problem) as error:
            self.post(Answer(request, error=error))
        except Exception as error:  # what a server says decides of which kind it is
            said = f"{type(error).__name__}: {error}"
            self.post(Answer(request, error=RequestError(0, said)))
        else:
            self.post(Answer(request, result))

    @property
    def dialect(self) -> OpenCode:
        dialect = self.server.dialect
        if dialect is None:
            raise RequestError(0, "the server is not running")
        return dialect

    def read_files(self) -> FilesRead:
        plan, problem = read_text(self.options.plan, "plan")
        prompt, other_problem = read_text(self.options.prompt, "prompt")
        return FilesRead(plan, prompt, problem or other_problem)

    # Shell commands of a person's: --check and --notify.

    def _shell(
        self, command: str, facts: dict[str, str], cwd: str, stdout: int
    ) -> subprocess.Popen[bytes]:
        """Start a shell command. Facts from plan and model may be longer and stranger than an
        environment can hold."""
        environment: dict[str, Any] = dict(self.server.environment)
        for name, value in facts.items():
            environment[name] = value.replace("\0", "").encode("utf-8", "replace")[:4000]
        return spawn(
            ["/bin/sh", "-c", command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def run_check(self, facts: dict[str, str]) -> CheckResult:
        options = self.options
        server = self.server
        facts = {**facts, MARK: self.check_mark}
        try:
            with server.lock:
                if server.closing or not self.check_is_wanted:
                    return CheckResult(126, "", interrupted=True)
                server.guard.watch(server.process.pid if server.process else 0)
                process = self._shell(options.check, facts, options.directory, subprocess.PIPE)
                self.check = process
        except OSError as error:
            return CheckResult(126, f"the check cannot be started: {error}")
        tail = bytearray()

        def read() -> None:
            """All of it, since a full pipe would stop it; the last of it is kept."""
            output: Any = process.stdout
            for piece in iter(lambda: output.read1(1 << 16), b""):
                tail.extend(piece)
                del tail[:-LONGEST_TAIL]

        reading = in_thread(read)
        late = ""
        status = wait_for_end(process, options.check_timeout or NEVER)
        if status is None:
            status = 124
            late = f"\n(ended after {duration(options.check_timeout)}: --check-timeout)"
        end_group(process, 0.5, self.check_mark)
        with server.lock:
            is_stopped = self.check is not process
            self.check = None
        reading.join(1)  # what it left behind may still write
        said = bytes(tail).decode("utf-8", "replace").strip()
        return CheckResult(status, said + late, is_stopped)

    def stop_check(self) -> None:
        with self.server.lock:
            process, self.check = self.check, None
        if process:
            end_group(process, 0.5, self.check_mark)

    def notify(self, facts: dict[str, str]) -> None:
        """Never waited for, but for saying that it failed. It may outlive the run, so that what it
        starts carries no mark."""
        directory = self.options.directory
        cwd = directory if os.path.isdir(directory) else "/"
        try:
            process = self._shell(self.options.notify, facts, cwd, subprocess.DEVNULL)
        except OSError as error:
            raise Problem(f"--notify cannot be started: {error}") from None

        def wait() -> None:
            if wait_for_end(process, NOTIFY_WITHIN) is None:
                end_group(process, 0.5, "")
                self.post(Noted("warn", f"--notify was ended after {duration(NOTIFY_WITHIN)}"))
            elif process.wait():
                self.post(Noted("warn", f"--notify ended with exit status {process.returncode}"))

        self.notifying = in_thread(wait)


# ── screens ───────────────────────────────────────────────────────────────────────────────────────
# Each is a thread that shows what it is given, so that a terminal that takes no more output
# (ctrl-S, an ssh connection that froze) never holds up the run.
#
# Curses' `refresh` and `getch` let go of Python's lock while they write. `doupdate`, `beep`,
# `curs_set` and `endwin` do not, and under ctrl-S would stop every thread, signal handlers too:
# they are called only when the terminal takes output, or never.


def say(text: str, file: Any = None) -> None:
    """Print lines: whoever wrote them, they cannot rewrite the terminal. Nothing else prints."""
    print(all_printable(text), file=file, flush=True)


class LineScreen:
    """Plain lines, for pipes and terminals that can do little."""

    def __init__(self, post: Callable[[Any], None]) -> None:
        self.writer = Writer(post)
        self.thread = self.writer.thread
        self.newest = 0  # the number of the newest entry that was printed

    def show(self, picture: Picture) -> None:
        for entry in picture.journal:
            if entry.number > self.newest:
                left = f"{local_time('%H:%M:%S', entry.time)} {entry.kind[:8]:<8} "
                text = indented(entry.depth) + entry.text.replace("\n", "\n" + " " * len(left))
                job = partial(say, left + text)
                self.writer.put(job, "standard output", "nobody reads it, perhaps")
                self.newest = entry.number

    def close(self) -> None:
        self.writer.close(5.0)


class CursesScreen:
    """The terminal. One thread makes all curses calls."""

    FRAME = 0.1  # seconds between two drawings, and the longest wait for a key

    def __init__(self, post: Callable[[Any], None]) -> None:
        self.post = post
        self.scroll = Scroll()
        self.picture: Picture | None = None
        self.ask_shown = ""  # as it was drawn last
        # The command that is to have the terminal, and its environment.
        self.handed: tuple[Request, Sequence[str], dict[str, str]] | None = None
        self.child: subprocess.Popen[bytes] | None = None  # it has, or had, the terminal
        self.closing = False
        self.modes = termios.tcgetattr(0)
        for name in ("", "C.UTF-8"):  # the signs need UTF-8, whatever LC_ALL says
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
        for name in ("LINES", "COLUMNS"):  # a resize would never be seen
            os.environ.pop(name, None)
        os.environ["ESCDELAY"] = "25"  # ms; initscr reads it, on every Python
        self.thread = in_thread(self._run)

    def show(self, picture: Picture) -> None:
        self.picture = picture

    def close(self) -> None:
        """Give the terminal back."""
        self.closing = True
        if self.child:  # whoever has the terminal gives it back
            for end in (self.child.terminate, self.child.kill):
                end()
                self.thread.join(1.5)
        with suppress(OSError, termios.error):
            termios.tcflow(1, termios.TCOON)  # whoever pressed ctrl-S wants the shell back now
        self.thread.join(3)
        if self.thread.is_alive():  # it is stuck in a write
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
        quick = 0  # answers without a key that came at once: a terminal that hung up gives no other
        while quick < 200:
            if self.closing:
                return
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
        self.post(ScreenLost("the terminal hung up"))

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
        self.scroll.moved += moves.get(key, 0)
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
                with suppress(curses.error):  # the lower right cell raises after it was drawn
                    window.addstr(y, x, text, attributes)
                x += text_width(text)
        window.refresh()
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
        said = ""
        try:
            os.write(1, b"opening OpenCode's interface: leaving it (ctrl-c) comes back\r\n")
            # Nobody wants to see the stack that it leaves with.
            self.child = spawn(argv, own_session=False, env=env, stderr=subprocess.DEVNULL)
            status = self.child.wait()
            if status not in (0, 130, -signal.SIGINT):
                said = f"OpenCode's interface ended with exit status {status}: "
                said += "`ocloop.py attach` in another terminal shows why"
        except OSError as error:
            said = f"cannot start {argv[0]}: {error}"
        self.post(Answer(request, error=Problem(said) if said else None))
        curses.reset_prog_mode()
        window.redrawwin()
        curses.flushinp()


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


# ── files ─────────────────────────────────────────────────────────────────────────────────────────
# What a run reads, and what it leaves for others: its log, and per plan a lock that dies with its
# owner and a state file that `status` and `attach` read. All of it is private to the user. Writing
# is done on one thread, so that a file system that hangs holds up neither the run nor its end.


def read_whole(number: int, most: int) -> str:
    """The text of an open file, which is closed. OSError when it is none, or larger than that."""
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(0, "it is not a file")
        with os.fdopen(number, "rb", closefd=False) as file:
            raw = file.read(most + 1) or b""  # some of the system's own wait for more: None
        if len(raw) > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")
    finally:
        os.close(number)


def read_text(path: str, what: str) -> tuple[str | None, str]:
    """A file's text whatever its bytes, or None and the problem. A pipe would never end: it must be
    a file."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return read_whole(number, LARGEST_TEXT), ""
    except OSError as error:
        return None, (
            f"the {what} {path} cannot be read ({error.strerror}): put it there, name another with "
            f"--{what}, or write a starter with `bootstrap`"
        )


class Writer:
    """One thread that writes, in order. What cannot be written is said once, and tried on."""

    MOST = 20_000  # jobs that wait for a file system that hangs; more are dropped

    def __init__(self, post: Callable[[Any], None]) -> None:
        self.post = post
        self.jobs: queue.Queue[tuple[Callable[[], None], str, str] | None] = queue.Queue(self.MOST)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def put(self, job: Callable[[], None], what: str, advice: str) -> None:
        with suppress(queue.Full):
            self.jobs.put_nowait((job, what, advice))

    def close(self, seconds: float) -> None:
        """Wait until all is written, but no longer than that."""
        with suppress(queue.Full):
            self.jobs.put_nowait(None)
            self.thread.join(seconds)

    def _run(self) -> None:
        failing = set()
        for job, what, advice in iter(self.jobs.get, None):
            try:
                job()
                failing.discard(what)
            except OSError as error:
                if what not in failing:
                    problem = f"{what} cannot be written ({error.strerror}): {advice}"
                    self.post(Noted("warn", problem))
                failing.add(what)


class Log:
    """`--log`: every entry of the journal, appended; JSON lines when the path ends in .jsonl."""

    def __init__(self, path: str, writer: Writer) -> None:
        self.path = path
        self.writer = writer

    def add(self, entries: Sequence[Entry]) -> None:
        if self.path and entries:
            lines = "".join(f"{self.line(entry)}\n" for entry in entries)
            raw = lines.encode("utf-8", "backslashreplace")
            advice = "going on without; name another path with --log"
            self.writer.put(lambda: self._append(raw), f"the log {self.path}", advice)

    def _append(self, left: bytes) -> None:
        """All of it or nothing, since half a line would make the file unreadable for others."""
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        if not self.path.startswith("/dev/"):
            how |= os.O_NOFOLLOW  # whoever may write into its folder could put a link there
        number = os.open(self.path, how, 0o600)  # a pipe without a reader: an error
        found = os.fstat(number)
        before = found.st_size
        try:
            if found.st_uid not in (0, os.getuid()):
                raise PermissionError(errno.EPERM, "it is somebody else's")
            while left:
                left = left[os.write(number, left) :]
        finally:
            if left:
                with suppress(OSError):
                    os.ftruncate(number, before)  # not of a pipe
            os.close(number)

    def line(self, entry: Entry) -> str:
        if not self.path.endswith(".jsonl"):
            text = entry.text.replace("\n", " / ")
            return printable(f"{iso_time(entry.time)} {entry.kind:<8} {text}")
        record = {
            "time": iso_time(entry.time),
            "kind": entry.kind,
            "iteration": entry.iteration,
            "session": entry.session,
            "text": entry.text,
        }
        return json.dumps({**record, **(entry.record or {})})


class RunFile:
    """The lock and the state file of one plan, in $XDG_STATE_HOME/ocloop or a private folder.

    The folder is made sure of before each use: whoever cleans it away may put another one in its
    place. Where there is none, the plan's own folder is locked, and nothing written.
    """

    def __init__(self, plan: str) -> None:
        real = os.path.realpath(plan)
        self.home = os.path.dirname(real)
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(self.home))[:40]
        name = f"{stem}-{zlib.crc32(os.fsencode(real)):08x}"
        self.folder, self.problem = private_folder()
        self.lock: int | None = None  # the file descriptor that holds it
        self.taken_by = 0  # the pid of the one that holds it in our place
        self.name, self.lock_name = f"{name}.json", f"{name}.lock"
        self.path = os.path.join(self.folder, self.name)

    def acquire(self) -> int:
        """Take the lock until this process ends; returns 0, or the pid of the one that holds it."""
        for attempt in range(50):
            try:
                self.lock = self.locked(fcntl.LOCK_EX)
                break
            except BlockingIOError:
                held = self.running()
                if held and attempt >= 4:
                    return held
                time.sleep(0.1)  # `status` holds it for a moment, or its owner is just ending
            except OSError as error:  # some file systems know no locks
                self.problem = (
                    f"no lock can be had in {self.folder or self.home} ({error.strerror}): make "
                    "sure that no second loop works on this plan"
                )
                return 0
        if self.lock is None:
            return -1
        if self.folder:
            with suppress(OSError):
                os.pwrite(
                    self.lock, b"%-19d\n" % os.getpid(), 0
                )  # in its place: a disk may be full
        return 0

    def running(self) -> int:
        """The pid of the loop that works on the plan now (-1: it does not say), 0: none does."""
        try:
            os.close(self.locked(fcntl.LOCK_SH))
        except BlockingIOError:
            return self.last_pid() or -1
        except OSError:
            pass
        return 0

    def last_pid(self) -> int:
        """Who took the lock last; 0: it does not say."""
        with suppress(OSError, ValueError), private(self.folder) as folder:
            return int(read_whole(open_ours(self.lock_name, os.O_RDONLY, folder), 100))
        return 0

    def locked(self, how: int) -> int:
        """The descriptor of what is locked, until it is closed. BlockingIOError where another
        process has it, another OSError where there are no locks."""
        if self.folder:
            flags = os.O_RDWR | os.O_CREAT if how == fcntl.LOCK_EX else os.O_RDONLY
            with private(self.folder) as folder:
                number = open_ours(self.lock_name, flags, folder)
        else:
            number = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(number, how | fcntl.LOCK_NB)
        except OSError:
            os.close(number)
            raise
        return number

    def keep_lock(self, folder: int) -> None:
        """Somebody may have cleaned the folder away: a lock without a name keeps nobody out."""
        if self.lock is None:
            return
        with suppress(OSError):
            named = os.stat(self.lock_name, dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(named, os.fstat(self.lock)):
                return
        os.close(self.lock)
        self.lock = None
        self.taken_by = self.acquire()

    def libraries_folder(self) -> str:
        """The folder for what OpenCode unpacks as it works on this plan; "": there is none, or what
        is there cannot be run."""
        with suppress(OSError):
            if self.folder and not os.statvfs(self.folder).f_flag & getattr(os, "ST_NOEXEC", 0):
                return f"{self.path[:-5]}.libraries"
        return ""

    def write(self, record: Json) -> None:
        """Replace the state file at once and whole. Raises OSError."""
        if not self.folder:
            return
        with private(self.folder) as folder:
            self.keep_lock(folder)
            if self.taken_by:
                said = f"another loop works on this plan, {process_of(self.taken_by)}"
                raise OSError(errno.EBUSY, said)
            draft = f"{self.name}.{os.getpid()}"
            try:
                with suppress(FileNotFoundError):  # of one that was killed, with our number
                    os.unlink(draft, dir_fd=folder)
                number = open_ours(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder)
                with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                    json.dump(record, file)
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
        with private(folder) as number:
            record = as_dict(json.loads(read_whole(open_ours(name, os.O_RDONLY, number), LARGEST)))
        # What is nested too deep to be shown is not ours, nor a plan that no file can be.
        json.dumps(all_printable([[[record]]]))
        return {} if b"\0" in os.fsencode(as_text(record, "plan")) else record
    except (OSError, ValueError, RecursionError):
        return {}


def plans_of_all() -> list[str]:
    """The plans on this machine that a run of this user's works on, or worked on; newest first."""
    folder, _problem = private_folder()
    names = os.listdir(folder) if folder else []
    records = [read_record(folder, name) for name in names if name.endswith(".json")]
    records.sort(key=lambda record: as_float(record, "updated"), reverse=True)
    return [plan for plan in (as_text(record, "plan") for record in records) if plan]


@contextmanager
def private(folder: str) -> Iterator[int]:
    """The descriptor of a folder of our own, which is made where it is missing. OSError where it
    is a link, or somebody else may write into it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(number)
        is_ours = found.st_uid == os.getuid() and not found.st_mode & 0o022
        if not is_ours or not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EPERM, "it cannot be written, or others may write into it")
        yield number
    finally:
        os.close(number)


def open_ours(name: str, flags: int, folder: int) -> int:
    """A file of the folder's, never by way of a link, nor one that is somebody else's."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    number = os.open(name, flags, 0o600, dir_fd=folder)
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(number)
        raise PermissionError(errno.EPERM, "it is not a file of ours")
    return number


def private_folder() -> tuple[str, str]:
    """Where state is kept, and a warning when that is not where it should be; "": nowhere."""
    user = os.getuid()
    above = [os.path.expanduser(step) for step in ("~/", "~/.local", "~/.local/state")]
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):  # its specification says so: else it would follow the working folder
        above = [os.path.join(given, "")]
    wanted = os.path.join(above[-1], "ocloop")
    # In what is somebody else's they decide where it leads. `sudo` may leave us another's home.
    is_ours = all(os.lstat(step).st_uid == user for step in above if os.path.lexists(step))
    has_home = os.path.isabs(wanted)  # without HOME and an entry of this user's, "~" stays
    if has_home and is_ours and not any(map(is_open_to_others, above)):
        with suppress(OSError), private(wanted):
            return wanted, ""
    temporary = os.environ.get("TMPDIR") or "/tmp"
    fallback = os.path.join(temporary, f"ocloop-{user}")
    if not is_open_to_others(temporary):
        with suppress(OSError), private(fallback):
            return fallback, f"{wanted} cannot be used: using {fallback}"
    problem = f"neither {wanted} nor {fallback} can be used: no `status`"
    return "", f"{problem}, and no second loop on any plan in this folder"


def is_open_to_others(folder: str) -> bool:
    """Whether others may put something else in the place of what is ours in it."""
    with suppress(OSError):
        mode = os.stat(folder).st_mode
        return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
    return False


GIT_WITHIN = 5.0  # seconds: what git says is worth no more


def git(directory: str, *arguments: str) -> str | None:
    """What git says of a project; None where it has nothing to say, or takes too long."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.check_output(
            ["git", "-C", directory, *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=GIT_WITHIN,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # whoever works there is not disturbed
        )
        return said.decode("utf-8", "surrogateescape").strip("\n")
    return None


def changes_since(directory: str, commit: str) -> Json | None:
    """How many files and lines differ from that commit, whether or not they are committed."""
    how = ("--numstat", "--no-renames", "--no-ext-diff", "--no-textconv")
    differ = git(directory, "diff", *how, commit, "--", ".") if commit else None
    if differ is None:  # without a run, git is not let loose on what may be somebody else's
        return None
    others = git(directory, "ls-files", "--others", "--exclude-standard", "-z") or ""
    rows = [line.split("\t") for line in differ.split("\n") if line]
    names = [name for name in others.split("\0") if name]
    added = sum(int(row[0]) for row in rows if row[0] != "-")  # "-": it is binary
    removed = sum(int(row[1]) for row in rows if row[1] != "-")
    until = time.monotonic() + GIT_WITHIN  # an agent may leave large ones behind
    for name in names[:1000]:
        if time.monotonic() > until:
            break
        text, _problem = read_text(os.path.join(directory, name), "file")
        added += (text or "").count("\n")
    sums = {"untracked": len(names), "added": added, "removed": removed}
    return {"commit": commit, "files": len(rows) + len(names), **sums}


SECRETS = ("username", "password", "opencode")  # of the state file; never shown
EXACT = ("plan", "directory")  # the rest of it is printable: these have to be found


def record_of(run: Run, server: Server, status: int | None, commit: str = "") -> Json:
    """What the state file says of a run; `status` is its exit status once it has ended, `commit`
    the one at which it began."""
    talk = run.talk
    asks = talk.asks.open.values() if talk else ()
    began = run.clock.wall - run.now  # when the run's own clock stood at 0
    retry = ""
    if talk and talk.retry:
        retry = f"{talk.retry.message} (at {time_of_day(began + talk.retry_at)})"
    record: Json = {
        "pid": os.getpid(),
        "plan": run.options.plan,
        "directory": run.options.directory,
        "state": run.shown_state,
        "reason": run.reason,
        "iteration": run.number,
        "task": run.iteration.task.text if run.iteration and run.iteration.task else "",
        "session": talk.id if talk else "",
        "model": run.model,
        "elapsed": round(run.clock.elapsed),
        "started": run.clock.began,
        "updated": run.clock.wall,
        "log": run.options.log,
        "commit": commit,
        **left_behind(run),
        "limits": {name: most for name, most in run.limits.most.items() if most},
        "server": "" if run.server.is_down or status is not None else run.server.url,
        "generation": run.server.generation,
        "opencode_version": run.server.version,
        "waits_for": [f"{waiting.ask.title} {waiting.ask.detail}".strip() for waiting in asks],
        "retry": retry,
        "waiting_until": None if run.wait_until is None else began + run.wait_until,
        "tasks": [task_record(item) for item in view_tasks(run)],
        "outcomes": [result_record(result) for result in run.books.results[-200:]],
        "counts": collections.Counter(result.word for result in run.books.results),
    }
    record.update(all_printable({k: v for k, v in record.items() if k not in EXACT}))
    if status is None:
        if not run.server.is_down:  # else: the next one's password, beside the last one's address
            secrets = (server.username, server.password, list(run.options.opencode))
            record.update(zip(SECRETS, secrets))
        return {**record, "status": run.status} if run.rests_at else record
    # It may have been looked at for hours before somebody pressed Q.
    entries = reversed(run.journal.entries)
    ends = (one.time for one in entries if (one.record or {}).get("record") == "run")
    return {**record, "state": "ended", "status": status, "ended": next(ends, run.clock.wall)}


def attach_command(record: Json) -> tuple[list[str], dict[str, str]]:
    """What joins the recorded session in OpenCode's own interface: argv and environment."""
    opencode = [as_text(word) for word in as_list(record, "opencode")] or ["opencode"]
    names = ("server", "session", "directory", "username", "password")
    server, session, directory, user, password = (as_text(record.get(name)) for name in names)
    environment = {**os.environ, **login_environment(user, password)}
    for name in ("NO_PROXY", "no_proxy"):  # a proxy is not to be asked for our own machine
        known = (environment.get(name), "127.0.0.1", "localhost")
        environment[name] = ",".join(filter(None, known))
    if record.get("generation") == OpenCode2.generation:
        return [*opencode, directory, "--server", server, "--session", session], environment
    return [*opencode, "attach", server, "--session", session, "--dir", directory], environment


# ── command line ──────────────────────────────────────────────────────────────────────────────────
# The parser, the commands, and in `main` the last place where a Problem is caught.

STARTER_PLAN = """\
# Plan

What this plan is for, and what an agent has to know to work on it without asking: goals, limits,
how to build, how to test.

## Phase 1: foundations

- [ ] Describe one task in one line, small enough for one session, with how to see that it is done
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

# The options of each command. A line without a description begins a group. The defaults in brackets
# are those of Options; a test holds the two together.
PLAN_OPTION = "--plan PATH                   the plan file (PLAN.md)\n"
RUN_OPTIONS = f"""\
what is worked
{PLAN_OPTION}\
--prompt PATH                 the loop prompt (.loop-prompt.md)
-m --model PROVIDER/MODEL     model to use; given again, the next one in line when that one cannot
-a --agent AGENT              agent to use; otherwise the prompt's, otherwise OpenCode's own
-r --run                      start at once, without waiting for S
-d --debug                    skip the validation of the plan file
--dry-run                     check everything, also with the server, and work nothing
when it stops
--max-iterations N            after N iterations
--max-cost USD                when OpenCode counts this much; in the midst of an iteration at twice
--max-time DURATION           when this much time has passed; the same at twice that
--max-wait DURATION           after waiting so long, in a row, for a provider (24h)
--stuck N                     after N in a row settled no task, and one more; or failed --check (5)
--retries N                   when an iteration failed, and N more tries in a row (5)
--iteration-timeout DURATION  abort an iteration that takes longer, and try again (4h)
--stall-timeout DURATION      abort an iteration in which nothing happens for so long (15m)
when nobody is there
--auto                        approve what is asked, except what the configuration denies
--ask-timeout DURATION        refuse what nobody answered so long (5m; without a terminal: at once)
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
--server URL                  use a server that runs already (its login: OPENCODE_SERVER_PASSWORD)
--server-memory MIB           replace the server between iterations when it has grown larger (2048)
"""
STATUS_OPTIONS = f"""\
{PLAN_OPTION}\
--all                         a line for each loop on this machine that runs, or ran last
--json                        print it as JSON
"""
BOOTSTRAP_OPTIONS = "-f --force                    replace what exists, and keep a copy of it\n"

RUN_HELP = f"""\
keys:
{"".join(f"  {key.name:<7} {key.help}{chr(10)}" for key in KEYS)}
Durations read 90, 90s, 15m, 2h, 1h30m. 0 means off, of whatever takes a number.
The prompt may contain {{{{PLAN_FILE}}}}, {{{{TASK}}}}, {{{{ITERATION}}}} and {{{{CHECK}}}};
a `---` block on its top may set `model:` (a comma separates several), `agent:`.

{EXIT_STATUSES}"""
BOOTSTRAP_HELP = "Without --force it leaves alone what is there already."
STATUS_HELP = """\
It reads the plan, and what the run on it keeps up to date: from any terminal,
and after the run has ended until the next one begins. It exits with 0 when the
plan is complete, with 3 while work is left, and with 1 where there is no plan."""
ATTACH_HELP = """\
Leave the interface with ctrl-c: the loop goes on. A session that is over stays
on the screen: attach again for the next one."""
COMMANDS = (
    ("run", "work the plan in this directory until it is complete", RUN_OPTIONS, RUN_HELP),
    ("bootstrap", "write a starter PLAN.md and .loop-prompt.md", BOOTSTRAP_OPTIONS, BOOTSTRAP_HELP),
    ("status", "how far a plan is, and how a run on it is doing", STATUS_OPTIONS, STATUS_HELP),
    ("attach", "join the loop's session in OpenCode's own interface", PLAN_OPTION, ATTACH_HELP),
)


def seconds_of(text: str) -> float:
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"([\d.]+)([dhms]?)", text)
    return min(LONGEST_TIME, sum(float(number) * units[unit] for number, unit in parts))


def port_number(text: str) -> int:
    if int(text) > 65535:
        raise ValueError
    return int(text)


def server_url(text: str) -> str:
    port_number(str(urlsplit(text).port or 0))  # ValueError where it is none
    return text


# What a value looks like, what becomes of it, and what is said of any other.
COUNT = (r"\d{1,9}", int, "count: write a whole number; 0 means off")
_HOST = r"(\[[0-9a-fA-F:.]+\]|[^/@:\s]+)"
_MODEL = r"[^/\s,]+/[^\s,#]+(#[^\s,#]+)?"
VALUES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "N": COUNT,
    "MIB": COUNT,
    "USD": (r"\d{1,9}(\.\d*)?|\.\d+", float, "amount: write US dollars such as 20 or 0.50"),
    "DURATION": (
        r"\d+(\.\d+)?|(\d+(\.\d+)?[dhms])+",
        seconds_of,
        "duration: write 90, 90s, 15m, 2h or 1h30m; 0 means off",
    ),
    "PORT": (r"\d{1,5}", port_number, "port: write a number up to 65535"),
    "URL": (
        rf"https?://{_HOST}(:\d+)?(/[^@\s]*)?",
        server_url,
        "URL: write http://HOST:PORT, no login",
    ),
    "PROVIDER/MODEL": (
        f"{_MODEL}(,{_MODEL})*",
        lambda text: text.split(","),
        "model: write providerID/modelID; `opencode models` lists them",
    ),
}


def value_of(kind: str, text: str) -> Any:
    """What a text stands for; argparse's error where it does not look like that."""
    pattern, convert, advice = VALUES.get(kind, ("(?s:.*)", str, ""))
    with suppress(ValueError):
        if re.fullmatch(pattern, text):
            return convert(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no {advice}")


class Parser(argparse.ArgumentParser):
    """Says of a mistake whose --help has more."""

    def error(self, message: str) -> NoReturn:
        raise Problem(f"{message} (`{self.prog} --help` lists what there is)", 2)

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def add_options(self, described: str) -> None:
        group: argparse._ActionsContainer = self
        for line in described.splitlines():
            option, _, what = line.partition("  ")
            *flags, last = option.split()
            if not what:
                group = self.add_argument_group(line)
            elif last.startswith("-"):
                group.add_argument(*flags, last, help=what.strip(), action="store_true")
            else:
                how: dict[str, Any] = {"metavar": last, "type": partial(value_of, last)}
                if last == "PROVIDER/MODEL":
                    how.update(dest="models", action="extend")
                group.add_argument(*flags, help=what.strip(), **how)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    how: Json = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = Parser(
        prog="ocloop.py",
        epilog=HELP,
        description="Work through the tasks of a PLAN.md with OpenCode: one fresh session\n"
        "per task, until the plan is complete.",
        **how,
    )
    parser.add_argument("--version", action="store_true", help="which ocloop, and its SHA-256")
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands: dict[str, Parser] = {}
    for name, what, options, epilog in COMMANDS:
        sentence = f"{what[0].upper()}{what[1:]}."
        command = subparsers.add_parser(name, help=what, description=sentence, epilog=epilog, **how)
        command.add_options(options)
        commands[name] = command
    commands["bootstrap"].add_argument(
        "directory", nargs="?", default=".", metavar="DIRECTORY", help="where to write them (here)"
    )

    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0].partition("=")[0] if words else ""
    if first == "--version":
        return argparse.Namespace(command=first)
    if first not in parser.options() and first in commands["run"].options():
        parser.error(f"{first} is an option of a command: did you mean `run {first}`?")
    given, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands[given.command]
        word = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(word, command.options(), 1, 0.75)
        command.error(
            f"{word} is not known here" + (f": did you mean {close[0]}?" if close else "")
        )
    return given


def version(given: argparse.Namespace) -> int:
    """Which file this is, too: a copy that somebody edited has another sum."""
    import hashlib  # for this alone: a start is quick

    with open(__file__, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    say(f"ocloop {__version__} (SHA-256 {digest[:12]})")
    return 0


def make_options(given: argparse.Namespace) -> Options:
    """Everything that `run` has to know; paths become absolute here."""
    values = {
        name: value
        for name, value in vars(given).items()
        if name in Options._fields and value is not None
    }
    options = Options(**values)
    return options._replace(
        directory=absolute("."),
        plan=absolute(options.plan),
        prompt=absolute(options.prompt),
        models=tuple(options.models),
        log=absolute(options.log) if options.log else "",
        asks_wait=bool(given.ask_timeout),
        opencode=() if options.server else find_opencode(given.opencode or ""),
        # Of the two addresses of that name, the other one may be somebody else's.
        server=re.sub("^http://localhost(?=[:/]|$)", "http://127.0.0.1", options.server),
    )


def absolute(path: str) -> str:
    try:
        path = os.path.abspath(os.path.expanduser(path))
        path.encode("utf-8")
    except OSError as error:
        problem = f"this directory is gone ({error.strerror}): change into one that exists"
        raise Problem(problem) from None
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "replace")
        problem = f"{shown} is not UTF-8, and OpenCode cannot be told of it: rename it"
        raise Problem(problem) from None
    return path


def find_opencode(asked: str) -> tuple[str, ...]:
    """The command that starts OpenCode, as argv."""
    try:
        argv = tuple(shlex.split(asked)) or ("opencode",)
    except ValueError as error:
        raise Problem(f"--opencode {asked} cannot be read ({error}): mind its quotes", 2) from None
    found = shutil.which(argv[0])
    if not found and not asked and not home_of_another():
        found = shutil.which(os.path.expanduser("~/.opencode/bin/opencode"))
    if not found:
        raise Problem(
            f"{argv[0]} is not there: install OpenCode (`npm install -g opencode-ai` for 1.x, "
            "`npm install -g @opencode/cli` for 2.x), or let npx fetch it with "
            '--opencode "npx -y opencode-ai"'
        )
    return (os.path.abspath(found), *argv[1:])


def home_of_another() -> str:
    """The home folder, where it is another user's, as `sudo` may leave it; else ""."""
    home = os.path.expanduser("~/")
    with suppress(OSError):
        return home if os.stat(home).st_uid not in (0, os.getuid()) else ""
    return ""


def configuration_of_others(directory: str) -> str:
    """What OpenCode would read above a project, up to where git or the file system begins, and that
    neither we, nor root, nor whoever has the project put there; else ""."""
    trusted = {0, os.getuid(), os.stat(directory).st_uid}
    folder = os.path.realpath(directory)
    while not os.path.lexists(os.path.join(folder, ".git")) and folder != "/":
        folder = os.path.dirname(folder)
        for name in ("opencode.json", "opencode.jsonc", ".opencode", "AGENTS.md", "CLAUDE.md"):
            path = os.path.join(folder, name)
            if os.path.lexists(path) and os.lstat(path).st_uid not in trusted:
                return path
    return ""


def preflight(options: Options) -> tuple[Plan, list[str], list[str]]:
    """The plan, what is wrong and what is odd, before anything is started; `run` and `--dry-run`
    refuse the same."""
    text, plan_problem = read_text(options.plan, "plan")
    prompt, prompt_problem = read_text(options.prompt, "prompt")
    plan = parse_plan(text or "")
    fields, body = split_front_matter(prompt or "")
    name = os.path.basename(options.plan)
    problems = [problem for problem in (plan_problem, prompt_problem) if problem]
    warnings = name_near_misses(name, plan.near_misses)
    if not plan_problem and problem_of_plan(plan, options.plan):
        problems.append(problem_of_plan(plan, options.plan))
    if not prompt_problem and not body:
        problems.append(NO_PROMPT.format(options.prompt))
    if parse_plan(STARTER_PLAN).tasks[0].text in [task.text for task in plan.tasks]:
        said = f"{name} is still the starter: write your own tasks into it"
        (warnings if options.attended else problems).append(said)
    if options.debug:
        problems.clear()
    try:
        if fields.get("model"):
            value_of("PROVIDER/MODEL", ",".join(models_of(fields)))
    except argparse.ArgumentTypeError as error:
        problems.append(f"{options.prompt}: {error}")
    warnings += oddities_of_prompt(options.prompt, fields, body)
    if home_of_another():
        said = f"{home_of_another()} is another user's, and OpenCode reads its configuration there"
        warnings.append(f"{said}: use `sudo -H`")
    with suppress(OSError):
        foreign = configuration_of_others(options.directory)
        if foreign:
            said = f"OpenCode would read {foreign}, which is another user's: have that removed"
            problems.append(f"{said}, or make the project a git repository")
    if os.path.realpath(options.directory) in (os.path.realpath(os.path.expanduser("~")), "/"):
        advice = "change into the project's own folder"
        warnings.append(f"the project is {options.directory}, all of it: {advice}")
    return plan, [*problems, *problems_of_log(options), *problems_of_commands(options)], warnings


def oddities_of_prompt(path: str, fields: dict[str, str], body: str) -> list[str]:
    """What is in it and means nothing, or is not in it and should be."""
    odd = []
    places = re.findall(r"\{\{(\w+)\}\}", body)
    if body and "PLAN_FILE" not in places:
        odd.append(NO_PLACE.format(path))
    for known, used in ((FRONT_MATTER, fields), (PLACES, places)):
        unknown = ", ".join(word for word in dict.fromkeys(used) if word not in known)
        if unknown:
            means = f"{unknown} means nothing here: {', '.join(known)} do"
            odd.append(f"{path}: {means}")
    return odd


def problems_of_log(options: Options) -> list[str]:
    """Why --log cannot be written, or must not."""
    log = options.log
    if not log:
        return []
    problems = []
    place = log if os.path.exists(log) else os.path.join(os.path.dirname(log), ".")
    if os.path.isdir(log) or not os.access(place, os.W_OK):
        problems.append(f"the log {log} cannot be written: name another path with --log")
    if os.path.islink(log) and not log.startswith("/dev/"):
        problems.append(f"the log {log} is a link: name what it leads to with --log")
    for what, path in (("plan", options.plan), ("prompt", options.prompt)):
        with suppress(OSError):  # what is not there is not the same
            if os.path.samefile(log, path):
                problems.append(f"the log {log} is the {what}: name another path with --log")
    return problems


def problems_of_commands(options: Options) -> list[str]:
    """Commands that are not there, as far as that can be told of a shell's text."""
    problems = []
    for option, command in (("--check", options.check), ("--notify", options.notify)):
        word = (command.split() or [""])[0]
        look = ["/bin/sh", "-c", 'command -v "$1" >/dev/null', "sh", word]
        is_plain = re.fullmatch(r"[\w./+-]+", word)  # else it is a shell's own syntax
        if is_plain and subprocess.call(look, cwd=options.directory, stdin=subprocess.DEVNULL):
            problems.append(f"{option}: there is no command {word}")
    return problems


def tasks_as_read(plan: Plan) -> list[str]:
    """How the plan was understood, in its first twenty tasks: phase, nesting, sign."""
    lines: list[str] = []
    phase = ""
    for task in plan.tasks[:20]:
        if task.phase != phase:
            phase = task.phase
            lines.append(f"# {phase}")
        sign = {"pending": "~" if task.begun else " ", "done": "x"}.get(task.state)
        mark = sign or task.state.upper() + (f": {task.reason}" if task.reason else "")
        lines.append(f"{'  ' * task.depth}[{mark}] {task.text}")
    if len(plan.tasks) > 20:
        lines.append(f"… and {len(plan.tasks) - 20} more")
    return lines


def run(given: argparse.Namespace) -> int:
    """Work the plan; returns the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, every exit status would read as 0
    options = make_options(given)
    why_plain = "" if options.plain else why_no_screen()
    options = options._replace(attended=not options.plain and not why_plain)
    plan, problems, warnings = preflight(options)
    run_file = RunFile(options.plan)
    is_over = plan.summary is not None and not options.check
    comes_to_work = not (given.dry_run or problems or is_over)
    held = run_file.acquire() if comes_to_work else run_file.running()
    if held:
        advice = "`status` shows it, `attach` joins it"
        problems.append(f"another loop works on this plan ({process_of(held)}): {advice}")
    if plan.summary is not None and options.check:
        warnings.append(f"{options.plan} is marked complete: --check says whether it is")
    if given.dry_run:
        say_found(options, plan, problems, warnings)
    if is_over and not problems:
        status, how = how_complete(plan)
        advice = "it is marked so already: take out its <plan-complete> tag to work on it again"
        say(f"{options.plan}: {how}; {advice}")
        return status
    if given.dry_run:
        return rehearse(options, problems)
    if problems:
        raise Problem("\n        ".join([*problems, *warnings]))
    warnings.append(run_file.problem)
    for path in plans_of_all():
        beside = RunFile(path)
        is_here = beside.read().get("directory") == options.directory
        if is_here and beside.path != run_file.path and beside.running():
            warnings.append(f"another loop works in this folder, on {path}: they share all files")
    if why_plain and sys.stdout.isatty():
        warnings.append(f"plain lines, since {why_plain}")
    # Two of them are for the screen's thread alone; the third one would stop lines that are printed
    # in the background of a terminal with `stty tostop`. Threads inherit what is blocked: it is
    # done before there are any.
    held_back = (signal.SIGWINCH, signal.SIGTSTP) if options.attended else (signal.SIGTTOU,)
    signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    run = Run(options, time.time(), os.urandom(4).hex())
    record = run_file.read()
    if options.server and options.server == record.get("server") and not record.get("ended"):
        run.server.left_session = as_id(record, "session")
    texts = {task.text for task in plan.tasks}
    if any(as_text(task, "text") in texts for task in dicts(record, "tasks")):  # the same plan
        run.books.gone = [as_text(text) for text in as_list(record, "gone")]
    for warning in filter(None, warnings):
        run.journal.note("warn", warning, "warn")
    return Driver(run, run_file).work()


class Driver:
    """The main thread: one inbox, one run, and everything that feeds it and is fed by it."""

    TICK = 0.25  # seconds
    RECORD_EVERY = 10.0  # seconds between two writings of the state file while nothing changes

    def __init__(self, run: Run, run_file: RunFile | None) -> None:
        self.run = run
        self.run_file = run_file  # None: nothing is left of it
        self.before = run_file.read() if run_file else {}  # what the last run left
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        options = run.options
        post = self.inbox.put
        libraries = run_file.libraries_folder() if run_file and not options.server else ""
        self.server = Server(options, post, libraries)
        self.outside = Outside(self.server)
        self.writer = Writer(post)
        self.log = Log(options.log, self.writer)
        self.logged = 0  # entries of the journal
        self.screen: LineScreen | CursesScreen | None = None
        self.shown_at = 0.0
        self.picture: Picture | None = None
        self.commit = ""  # at which the project stands when it begins, where there is git
        self.recorded: object = None  # what the state file says, in short

    def work(self) -> int:
        """Run until the run ends; whatever happens, nothing of it is left behind."""
        sys.setswitchinterval(0.0005)  # a frame that is laid out must not hold up a request
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # so a script starts `… &`
                signal.signal(number, self._take_signal)
        threading.excepthook = lambda args: self.inbox.put(args.exc_value)
        try:
            self._handle(None)
            screen = CursesScreen if self.run.options.attended else LineScreen
            self.screen = screen(self.inbox.put)
            in_thread(self._note_commit)
            event = None  # only time has passed
            while self.run.exit_status is None:
                patience = self.TICK if event is None else CursesScreen.FRAME  # it is to be shown
                event = None
                with suppress(queue.Empty):
                    event = self.inbox.get(timeout=patience)
                self._handle(event)
                if not 0 <= time.time() - self.shown_at < CursesScreen.FRAME:
                    self._show()
        except Exception as error:
            self._tell_of_bug(error)
            raise
        finally:
            self._leave()
        return self.run.exit_status

    def _take_signal(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        screen = self.screen
        if name == "SIGHUP":
            self.inbox.put(ScreenLost("the terminal is gone (SIGHUP)"))
        elif name == "SIGINT" and isinstance(screen, CursesScreen) and self.run.attended:
            if screen.handed is None:  # else ctrl-c is not for us
                self.inbox.put(Key("q"))  # asks once, as Q does: it may be meant for another
        else:
            self.inbox.put(Signalled(name))

    def _note_commit(self) -> None:
        self.commit = git(self.run.options.directory, "rev-parse", "HEAD") or ""

    def _tell_of_bug(self, error: Exception) -> None:
        """Whoever sleeps must hear of it, wherever the run stands."""
        reason = f"ocloop itself failed: {error.__cause__ or error!r}: please report it"
        run = self.run
        with suppress(Exception):
            run.show("error", reason)
            run.requests.clear()
            run.tell_end(End("error", 1, reason))
            self._log()
            self._make(run.requests)

    def _handle(self, event: Any) -> None:
        """Let the run decide, carry it out, and write it down."""
        if isinstance(event, BaseException):
            raise RuntimeError("a bug on another thread") from event  # noqa: TRY004
        self._make(self.run.handle(event, time.time()))
        self._log()

    def _log(self) -> None:
        """What is new in the journal goes into the log."""
        journal = self.run.journal
        self.log.add(journal.newest(journal.count - self.logged))
        self.logged = journal.count

    def _make(self, requests: Sequence[Request]) -> None:
        """Have requests made. The terminal is the screen's to give away."""
        for request in requests:
            if request.name == "hand_over":
                assert isinstance(self.screen, CursesScreen)  # lines take no key
                argv, environment = attach_command(record_of(self.run, self.server, None))
                environment[MARK] = f"{self.server.mark}.attach"
                lend_libraries(self.server.libraries, environment)
                self.screen.handed = (request, argv, environment)
            else:
                self.outside.make(request)

    def _show(self) -> None:
        run = self.run
        self.shown_at = time.time()
        last = self.picture
        picture = Picture(run)
        if self.screen and (last is None or vars(picture) != vars(last)):
            self.picture = picture
            self.screen.show(picture)
        talk = run.talk
        at_work = (talk.id, len(talk.asks.open)) if talk else None
        often = int(run.now / self.RECORD_EVERY)
        counts = (run.plan.done, len(run.plan.tasks))  # what is gone must not be lost by `kill -9`
        changed = (run.shown_state, run.reason, run.number, at_work, counts, often)
        if changed != self.recorded:
            self.recorded = changed
            self._record(None)

    def _record(self, status: int | None) -> None:
        run_file = self.run_file
        if run_file:
            record = record_of(self.run, self.server, status, self.commit)
            if status == 130 and not self.run.number and self.before:
                # Somebody has only looked: the last night's is still true.
                record = {**self.before, "pid": os.getpid()}
            self.writer.put(
                lambda: run_file.write(record), run_file.path, "`status` cannot tell of this run"
            )

    def _leave(self) -> None:
        """End everything, in the order in which it stands here; whatever a step raises, the others
        are needed all the same."""
        run = self.run
        status = 1 if run.exit_status is None else run.exit_status  # None: there was a bug
        session = run.talk.id if run.talk else run.server.left_session
        steps: tuple[Callable[[], None], ...] = (
            self._show,
            # Each on a thread: a start that hangs, as in a file system that is away, has the lock.
            lambda: in_thread(self.outside.stop_check).join(5.0),
            lambda: in_thread(self.server.close, session).join(2 * CLOSED_WITHIN),
            lambda: in_thread(self.outside.stop_check).join(5.0),  # one that was about to start
            self._hear_last,
            self.screen.close if self.screen else lambda: None,
            lambda: self._record(status),
            lambda: self.writer.close(3.0),
            lambda: self._say_goodbye(status),
        )
        with ExitStack() as stack:  # it begins with the last one, and tries each
            for step in reversed(steps):
                stack.callback(step)

    def _hear_last(self) -> None:
        """What comes too late for the run, such as how the last --notify ended, is in the log."""
        if self.outside.notifying:
            self.outside.notifying.join(3.0)
        with suppress(queue.Empty):
            while True:
                event = self.inbox.get_nowait()
                if isinstance(event, (Noted, Answer)):
                    self.run.hear(event)
        self._log()
        self._show()

    def _say_goodbye(self, status: int) -> None:
        """Leave the summary where it can be scrolled back to: the screen is gone.

        Into a terminal that takes no output nothing is printed, and its stuck thread is not waited
        for.
        """
        run = self.run
        screen = self.screen
        if screen and (screen.thread.is_alive() or not takes_output()):
            os._exit(status)
        try:
            if isinstance(screen, CursesScreen) and run.exit_status is not None:
                width = shutil.get_terminal_size().columns - 2
                lines = [f"ocloop: {run.reason}", *summary_of(run)]
                say("\n  ".join(row for line in lines for row in wrap(line, width)))
            sys.stdout.flush()
        except OSError:  # else the exit status would tell of this instead
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Rehearsal(Run):
    """`--dry-run`: a run up to where it would wait for S, and no further."""

    async def main(self) -> int:
        try:
            await self.get_ready()
        except Problem as problem:
            self.journal.note("problem", str(problem), "bad")
            return 1
        except Quit:
            return 130
        if self.briefing.setup.unread:
            return 1  # it was said
        models, agent, _body = self.briefing.read()
        own = "OpenCode's own: none is named"
        self.journal.note("model", ", then ".join(models) or self.model or own)
        self.journal.note("agent", agent or own)
        return 0


def say_found(options: Options, plan: Plan, problems: list[str], warnings: list[str]) -> None:
    facts = [
        ("opencode", options.server or shlex.join(options.opencode)),
        ("plan", f"{options.plan}: {plan}" if plan.tasks else options.plan),
        *(("", line) for line in tasks_as_read(plan)),
        *(("warning", warning) for warning in warnings),
        *(("problem", problem) for problem in problems),
    ]
    say("\n".join(f"{name:<9} {fact}" for name, fact in facts if fact))


def rehearse(options: Options, problems: list[str]) -> int:
    """Have the real server check what it can; returns 0 or 1."""
    silent = options._replace(attended=False, log="", notify="")
    rehearsal = Rehearsal(silent, time.time())
    rehearsal.files.trouble = "".join(problems)  # it was said
    status = Driver(rehearsal, None).work()
    if status != 130:
        status = 1 if problems else status
        said = "there are problems" if status else "no problem was found"
        did = "asked" if options.server else "started, asked and stopped"
        say(f"{said}; the server was {did}, and no prompt was sent")
    return status


def bootstrap(given: argparse.Namespace) -> int:
    """Write the starter files; what is there is left alone, or kept as a copy."""
    folder = absolute(given.directory)
    try:
        os.makedirs(folder, exist_ok=True)
        for name, text in (("PLAN.md", STARTER_PLAN), (".loop-prompt.md", STARTER_PROMPT)):
            path = os.path.join(folder, name)
            if os.path.lexists(path):
                if not given.force:
                    say(f"skipped  {path}: it exists already (--force keeps it as a copy)")
                    continue
                copy = f"{path}~"
                while os.path.lexists(copy):
                    copy += "~"
                os.replace(path, copy)
                say(f"kept     {copy}: what {name} was")
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
            say(f"wrote    {path}")
    except OSError as error:
        problem = f"cannot write into {folder} ({error.strerror}): choose another directory"
        raise Problem(problem) from None
    me = f"python3 {shlex.quote(os.path.abspath(sys.argv[0]))}"
    say("\nNext: write your tasks into PLAN.md, look over .loop-prompt.md, then:")
    say(f"  cd {shlex.quote(folder)}\n  {me} run --dry-run\n  {me} run")
    return 0


def run_on(path: str, plan: Plan) -> tuple[int, Json]:
    """The pid of the loop that works on a plan, and what is recorded of its run, in which each task
    has the state that it has in the plan now."""
    run_file = RunFile(path)
    pid = run_file.running()
    found = run_file.read()
    record = {name: fact for name, fact in found.items() if name not in SECRETS}
    last_pid = pid or run_file.last_pid()
    if last_pid and record.get("pid") != last_pid:
        record = {}  # an earlier run's: the last one has not written any, or could not
    exact: dict[tuple[str, str], list[str]] = {}  # of those with one name, in their order
    for one in plan.tasks:
        exact.setdefault(one.name, []).append(one.state)
    states = {task.text: task.state for task in plan.tasks}  # a heading may be another now
    for task in dicts(record, "tasks"):
        phase, text = as_text(task, "phase"), as_text(task, "text")
        same = exact.get((phase, text))
        task["state"] = same.pop(0) if same else states.get(text, "gone")
    if record and not pid:  # it may have been killed while it waited
        record.update(waits_for=[], retry="", waiting_until=None)
        if found.get("opencode"):  # its server was its own, and the guard has ended it
            record["server"] = ""
    if record:
        gone = map(as_text, as_list(record, "gone"))
        record["gone"] = [text for text in gone if text not in states]
    return pid, record


def status(given: argparse.Namespace) -> int:
    """How far the plan is and how the run on it is doing; 0 complete, 3 work is left, 1 no plan."""
    if given.all:
        return status_of_all(given.json)
    path = absolute(given.plan or Options().plan)
    text, problem = read_text(path, "plan")
    if text is None:
        raise Problem(problem)
    plan = parse_plan(text)
    pid, record = run_on(path, plan)
    said = status_record(path, plan, pid, record)
    say(json.dumps(said) if given.json else "\n".join(status_lines(plan, said)))
    return 0 if said["complete"] else 3


def status_of_all(as_json: bool) -> int:
    """A line for each loop on this machine that runs, or ran last; the newest comes first."""
    records = []
    lines = []
    for path in plans_of_all():
        if not os.path.isdir(os.path.dirname(path)):
            continue
        text, _problem = read_text(path, "plan")
        plan = parse_plan(text or "")
        pid, run = run_on(path, plan)
        if as_json:
            records.append(status_record(path, plan, pid, run))
            continue
        how = f"{state_of(pid, run)} {run.get('status', '')}"
        far = "no plan any more" if text is None else " · ".join(progress_of(plan))
        spent = dollars_of(as_float(run, "cost"))
        took = duration(as_float(run, "elapsed"))
        why = f": {ellipsis(one_line(as_text(run, 'reason')), 60)}" if run.get("reason") else ""
        lines.append(f"{how:<15} {far:<28} {spent:>8} {took:>7}  {path}{why}")
    if as_json:
        say(json.dumps(records))
    else:
        heads = f"{'state':<15} {'tasks':<28} {'cost':>8} {'time':>7}  plan"
        say("\n".join([heads, *lines] if lines else ["no loop has run on this machine"]))
    return 0


def process_of(pid: int | None) -> str:
    return f"process {pid}" if pid and pid > 0 else "its process is not known"


def state_of(pid: int, record: Json) -> str:
    if pid:
        return as_text(record, "state") or "starting"
    return "ended" if record.get("ended") else "killed"


def status_record(path: str, plan: Plan, pid: int, record: Json) -> Json:
    """What `status --json` says."""
    known_pid = pid if pid > 0 else None  # `kill` would take 0 and -1 for many
    run = {**record, "pid": known_pid, "state": state_of(pid, record)}
    is_told = plan.summary is not None or (record.get("status") == 0 and bool(plan.tasks))
    is_at_work = bool(pid) and record.get("status") is None  # else it stands at an end
    is_checked = dig(record, "check", "verdict") not in ("failed", "interrupted", "not run")
    gone = [as_text(text) for text in as_list(record, "gone")]
    is_all_done = how_complete(plan, gone)[0] == 0
    said = {
        **counts_of(plan),
        "percent": plan.percent,
        "complete": is_told and is_checked and is_all_done and not is_at_work,
        "summary": plan.summary,
        "running": bool(pid),
        "pid": known_pid,
        "near_misses": [str(near) for near in plan.near_misses],
        "changes": changes_since(as_text(record, "directory"), as_id(record, "commit")),
        "next_steps": next_steps(plan, record, is_at_work),
        "run": run if record.get("state") or pid else None,
    }
    return {"plan": path, **all_printable(said)}


def status_lines(plan: Plan, said: Json) -> list[str]:
    """What a person wants to know in the morning, in lines; what is empty is not shown."""
    run = as_dict(said["run"])
    mark = ""
    if said["complete"]:
        mark = ", complete"
    elif plan.summary is not None:
        how = how_complete(plan, [as_text(text) for text in as_list(run, "gone")])[1]
        mark = f", {how if how != PLAN_COMPLETE else 'marked complete'}"
    elif not plan.pending:
        mark = ", not marked complete yet"
    changes = said["changes"]
    changed = ""
    if changes:
        changed = (
            "{files} file{s} ({untracked} untracked), +{added} −{removed} since {since} (git diff "
            "{commit:.7})"
        ).format(s="s" * (changes["files"] != 1), since=time_of_day(run.get("started")), **changes)
    check = as_dict(run, "check")
    told = []
    if check.get("verdict") == "failed":
        told.append("it failed; what the next session is told of it:")
        output = as_text(check, "told").rstrip().split("\n")
        told += ["…"] * (len(output) > 8) + output[-8:]
    near_misses = name_near_misses(os.path.basename(said["plan"]), plan.near_misses)
    facts = [
        ("plan", said["plan"]),
        ("progress", f"{plan}{mark}"),
        ("next", plan.current.text if plan.current else ""),
        ("run", said_run(run, said["running"]) if run else "none so far"),
        *((name, show(run[field])) for name, field, show in SHOWN if run.get(field)),
        ("changes", changed),
        *(("summary", line) for line in (plan.summary or "").split("\n")),
        *((state, task) for state in ("blocked", "manual") for task in tasks_in(plan, state)),
        *(("warning", near) for near in near_misses),
        *(("check", line) for line in told),
        *(("gone", as_text(text)) for text in as_list(run, "gone")),
    ]
    lines = [f"{name:<9} {fact}" for name, fact in facts if fact]
    steps = [f"to do     {step}" for step in said["next_steps"]]
    return [*lines, *task_lines(run, said["running"]), *([""] if steps else []), *steps]


def said_run(run: Json, is_running: bool) -> str:
    why = f": {one_line(as_text(run, 'reason'))}" if run.get("reason") else ""
    if is_running:
        pid = run["pid"]
        how = f" (`kill {pid}` ends it in good order)" if pid else ""
        return f"{run['state']}{why}, {process_of(pid)}{how}"
    how = "ended" if run["state"] == "ended" else "was killed after"
    return f"{how} {iso_time(run.get('ended') or run.get('updated'))}{why}"


def said_counts(counts: Any) -> str:
    return ", ".join(f"{name} ×{as_int(times)}" for name, times in as_dict(counts).items())


# What `status` shows of a run: the name, the field of the state file, and how it is said.
SHOWN: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("asks", "waits_for", lambda asks: f"waits for you: {'; '.join(map(as_text, as_list(asks)))}"),
    ("retry", "retry", lambda retry: f"OpenCode tries again: {as_text(retry)}"),
    ("again", "waiting_until", lambda at: f"at {time_of_day(at)}"),
    ("iteration", "iteration", lambda number: f"{as_int(number)}"),
    ("task", "task", as_text),
    ("session", "session", as_text),
    ("server", "server", as_text),
    ("started", "started", iso_time),
    ("log", "log", as_text),
    ("model", "model", as_text),
    ("time", "elapsed", lambda seconds: duration(as_float(seconds))),
    ("tokens", "tokens", lambda kinds: short_number(sum(map(as_int, as_dict(kinds).values())))),
    ("cost", "cost", lambda cost: dollars_of(as_float(cost))),
    ("outcomes", "counts", said_counts),
    ("refused", "refused", said_counts),
)


def task_lines(run: Json, is_running: bool) -> list[str]:
    """What the run spent on each task that it worked on."""
    lines = []
    for task in dicts(run, "tasks"):
        state = as_text(task, "state")
        if state == "pending" and is_running and as_text(task, "text") == run.get("task"):
            state = "at work"
        elif state == "done" and task.get("outcome") == "check failed":
            state = "check failed"
        if as_int(task, "iterations"):
            lines.append(
                f"{state:<12} {duration(as_float(task, 'seconds')):>6} "
                f"{dollars_of(as_float(task, 'cost')):>8} {as_int(task, 'iterations'):>6}  "
                f"{as_text(task, 'text')}"
            )
    return ["", "state          time     cost  tries  task", *lines] if lines else []


def attach(given: argparse.Namespace) -> int:
    """Become OpenCode's own interface on the running loop's session."""
    path = absolute(given.plan or Options().plan)
    run_file = RunFile(path)
    record = run_file.read()
    if not run_file.running():
        problem = f"no loop works on {path}: start one with `run`, or name its plan with --plan"
        raise Problem(problem)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Problem("attach needs a terminal: `status` tells without one how the loop is doing")
    has_secrets = all(record.get(name) is not None for name in SECRETS)  # not the last run's
    if not as_id(record, "session") or not record.get("server") or not has_secrets:
        state = as_text(record, "state") or "starting"
        raise Problem(f"the loop has no session right now (it is {state}): try again in a moment")
    record["opencode"] = as_list(record["opencode"]) or list(find_opencode(""))
    argv, environment = attach_command(record)
    lend_libraries(run_file.libraries_folder(), environment)  # the run clears it
    try:
        os.execvpe(argv[0], argv, environment)
    except (OSError, ValueError) as error:
        raise Problem(f"cannot start {argv[0]}: {error}") from None


def mend_streams() -> None:
    """Standard streams that were closed lead to /dev/null, and none fails on a character."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        stream = getattr(sys, name)
        if number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main(argv: Sequence[str] | None = None) -> int:
    mend_streams()
    commands = {
        "run": run,
        "bootstrap": bootstrap,
        "status": status,
        "attach": attach,
        "--version": version,
    }
    try:
        given = parse_arguments(argv)
        return commands[given.command](given)
    except Problem as problem:
        say(f"ocloop: {problem}", sys.stderr)
        return problem.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
