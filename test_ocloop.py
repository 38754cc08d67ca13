"""The tests of ocloop, in four parts; each begins under a banner of `=`.

    1  The run: told as stories, interrupted everywhere, and put into hostile worlds
    2  What surrounds it: plan, prompt, values, OpenCode 1's wire, view, files, parser
    3  The dialect of OpenCode 2, against recorded answers
    4  From the outside: ocloop as a program, on stand-ins of both generations, and on the real one

Parts 1 and 2 know no OpenCode, no sleeping, and hardly any process. In part 4 every test has a
home, a project and an environment of its own, and when an ocloop has ended, nothing may be left
that carries its mark. Only 127.0.0.1 is contacted. What the tests are made with is in examples/lab:
stories, simulation and scenes for part 1, plan_lines, wire and recorded for parts 2 and 3, harness
for part 4, and given, the fixtures of all.

`python3 test_ocloop.py` runs them side by side; words after it go to pytest, which alone runs them
one after the other. `-k real` is what needs the real OpenCode, `-k "not real"` all else, `-k v1`
and `-k v2` what runs on the stand-in of that generation. The real one is taken from
OCLOOP_TEST_OPENCODE, else from PATH, else from ~/.opencode/bin, else installed with npm into a
cache. `python3 test_ocloop.py --screens` writes the golden screens in examples/lab/screens.txt.
"""

from __future__ import annotations

import argparse
import ast
import collections
import errno
import fcntl
import functools
import gc
import hashlib
import io
import itertools
import json
import locale
import os
import queue
import random
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "examples" / "lab"))

# isort: off
# fmt: off
import harness
import sidebyside
from anything import WORDS, anything, is_sound, names_in
from harness import (
    AUTHOR, EXAMPLES, GENERATIONS, OCLOOP, ROOT, RealServer, World, allow_elsewhere, answers_in,
    commit_all, expect, fake_command, first_line, free_port, interface_of, is_alive, leave,
    libraries_of, marked, quiz, until, wait_asked,
)
from harness import Child as ChildProcess
from plan_lines import (
    BEGUN, BOXES, LARGE_PLANS, LONG_PLAN, NEAR_MISSES, NO_TASKS, OPTION_VALUES, PIECES, PLANS,
    PROGRESS, PROMPTS, TAGS,
)
from recorded import (
    AGENTS_2, ASKED_FORM, ASKED_PERMISSION, ATTEMPTS_2, CALLS, CHILD_1, CONFIGURATION, DECODED,
    DECODED_2, DONE_2, FAULTS_1, FAULTS_2, FIRST, FORM, HERE, IN_A, NOT_NOW, NO_KEY_1, PERMISSION,
    PROMPT, PROMPT_2, REQUEST_1, REQUEST_2, SECOND, SPENT_2, STOP, THIRD, TOKENS, TURN,
    UNAUTHORIZED, USED, VERDICTS_1, VERDICTS_2, ZERO, assistant, catalogue, child_2, dialect_2,
    document, event, look, message_event, model_2, part_event, polled, provider, stand_in, step,
    told, user, user_2, whole_server, wrapped,
)
from scenes import (
    SCENES, SCREENS, SIZES, Reader, check_rows, drawn, header, nasty_picture, scene, screens,
    seen, timeless, write_golden_screens,
)
from scripted_model import ScriptedModel, opencode_config
from simulation import INTERRUPTIONS, MISBEHAVIOURS, SHORT, Simulation, drive, note_end_of, replay
from stories import (
    ACME, BEGINS, BROKEN_SETUP, CHECK_STOPPED, DONE, GONE, MAYBE, NINE, NOON, STATES, TWO, WAITS,
    No, Story, a_result, answers, at_work, books_of, calls, fails_first, fails_with, growing,
    in_line, in_state, is_done, is_same, keeps_retrying, permission, project_options, status_of,
    status_text, tasks_of, waiting_for,
)
from versions import try_version
from wire import OK, PAGE, PAGE_ERROR, Said, Turns, Wire, a_dialect, delta_of, frame, read, talker

sys.path.insert(0, str(OCLOOP.parent))

import ocloop
from ocloop import (
    Activity, Alive, Answer, Answered, Ask, Broke, Child, Client, Delta, Edited, Entry, Fault, Key,
    Message, Noted, OpenCode, OpenCode2, Options, Part, Plan, Polled, Problem, Prompt, Question,
    Request, RequestError, Run, RunFile, ScreenLost, Scroll, ServerDied, Setup, Spend, StreamOpened,
    parse_plan, text_width,
)
# fmt: on
# isort: on

if TYPE_CHECKING:
    Event = Any

    Way = Callable[[Any], Any]  # from a request to what it is answered with

Json = dict[str, Any]
pytest_plugins = ["given"]  # the fixtures, in examples/lab


# ==================================================================================================
# 1  The run
#
# What a run promises, told as stories, then interrupted everywhere, then put into hostile worlds.
#
# A story (examples/lab/stories.py) knows no processes, no network and no sleeping. Each promise
# has a section, in the order of a run.
# ==================================================================================================

# ── a run from start to end ───────────────────────────────────────────────────────────────────────


def test_a_plan_is_worked_from_start_to_end() -> None:
    story = Story(max_iterations=9)
    assert story.take() == BEGINS and story.state == "running"
    assert story.count("read_files") >= 2, "once more, since whoever wrote it may have been quick"
    story.works()
    assert story.take() == "create send"
    story.plan = (story.plan or "") + "<plan-complete>both are done</plan-complete>"
    story.works()
    assert story.take() == "stop_server"
    assert story.states == ["starting", "running", "complete"]
    assert (story.status, story.run.plan.summary, story.number) == (0, "both are done", 2)
    story.press("q")
    assert story.take() == "exit" and story.exits == [0]
    story = Story("- [ ] one\n", run=False, attended=False)
    assert story.state == "running", "without a terminal it starts at once"
    story.plan = DONE
    story.ends()
    assert story.state == "complete" and story.exits == [0], "and leaves at the end"


@pytest.mark.parametrize("key", ["s", "space"])
def test_with_a_terminal_it_waits_for_a_key(key: str) -> None:
    story = Story(run=False)
    assert story.state == "ready" and story.take() == "start_server setup"
    assert story.model == "a/b", "that of the configuration"
    story.press(key)
    assert story.state == "running" and story.take() == "create send"
    story = in_state("starting")
    story.press(key)  # before the server is ready
    assert story.state == "starting"
    story.answer(story.last("start_server"))
    assert story.states == ["starting", "running"]


def test_prompt_title_and_ids_are_like_those_of_opencode_and_differ_between_runs() -> None:
    story = Story("- [x] zero\n- [ ] one\n- [ ] two\n", models=("a/b",), agent="build")
    prompt = story.prompted
    assert (prompt.text, prompt.model, prompt.agent) == ("Do one", "a/b", "build")
    assert story.last("create").prompt == prompt and prompt.title == "ocloop 2/3: one"
    story.works()
    first, second = (request.prompt for request in story.all("send"))
    for prompt in (first, second):
        assert re.fullmatch(r"msg_[0-9a-f]{12}[0-9A-Za-z]{14}", prompt.message_id)
        assert re.fullmatch(r"prt_[0-9a-f]{12}[0-9A-Za-z]{14}", prompt.part_id)
    assert first.message_id < second.message_id and first.part_id != second.part_id
    milliseconds = int(first.message_id[4:16], 16) >> 12
    assert milliseconds == pytest.approx(int(NOON * 1000) % 2**36, abs=5_000)
    assert Story(seed="another").prompted.message_id != Story().prompted.message_id


@pytest.mark.parametrize("given", ["", "a/b"])
def test_front_matter_gives_model_and_agent_unless_the_command_line_does(given: str) -> None:
    body = "Do {{TASK}}"
    finds = {"prompt": f"---\nmodel: c/d\nagent: plan\n---\n{body}"}
    story = Story(finds=finds, models=(given,) if given else (), run=False)
    expected = given or "c/d"
    assert f" {expected} " in seen(story), "shown before anything has begun"
    story.press("s")
    prompt = story.prompted
    assert (prompt.model, prompt.agent, prompt.text) == (expected, "plan", "Do one")
    story.prompt = body
    story.works()
    assert story.prompted.model == given, "one that was dropped is used no more"


@pytest.mark.parametrize("between", ["pause", "limit", "memory", "rate limit"])
def test_the_last_iteration_is_worked_whatever_comes_in_between(between: str) -> None:
    """The prompt asks to wrap up where nothing is pending and no tag is there."""
    story = Story("- [ ] a\n", max_iterations=1 if between == "limit" else 0)
    if between == "pause":
        story.press("space")
    if between == "memory":
        story.memory = 99_999
        story.let_pass(1)
    story.works()
    story.memory = 0
    if between == "rate limit":
        story.fails("rate-limit")
        story.let_pass(40)
    elif between != "memory":
        assert story.state == "paused"
        story.press("r")
    assert story.state == "running" and story.prompted.text == "Do wrap up"
    story.plan = "- [x] a\n<plan-complete>so it was</plan-complete>"
    story.ends()
    assert story.status == 0 and story.run.plan.summary == "so it was"


def test_debug_takes_any_plan_and_waits_for_a_prompt_all_the_same() -> None:
    story = Story("Just some words\n", debug=True, attended=False)
    assert story.state == "running" and story.count("send") == 1
    story.plan = TWO
    story.prompt = None
    story.works()
    story.let_pass(5)
    assert story.state == "running" and story.exits == [] and story.count("send") == 1
    story.prompt = "Do it"
    story.let_pass(5)
    assert story.count("send") == 2


@pytest.mark.parametrize("options, finds, words", [
    ({"models": ("a/b", "c/d", "e/f")}, {}, "there is no model e/f"),
    ({"agent": "biuld"}, {}, "there is no agent biuld: there are build"),
    ({}, {"setup": Setup("a/x", {"a/b": 1000})}, "there is no model a/x"),
    ({}, {"prompt": "---\nmodel: a/b, a/c\n---\nDo it"}, "there is no model a/c"),
])  # fmt: skip
def test_a_wrong_set_up_is_said_before_any_prompt(options: Json, finds: Json, words: str) -> None:
    story = Story(finds=finds, attended=False, **options)
    assert story.state == "error" and words in story.reason and story.exits == [1]
    assert not story.all("send") and not story.all("create")


def test_a_session_that_would_work_in_another_folder_gets_no_prompt() -> None:
    """OpenCode 1 reads `my%20project` as `my project`."""
    made: Json = {"id": "ses_1"}
    dialect = a_dialect(Said({"POST /session": made}), "/my%20project")
    assert dialect.create(Prompt("")) == "ses_1", "it does not say"
    made["directory"] = "/my project"
    with pytest.raises(Problem, match="work in /my project: rename the folder"):
        dialect.create(Prompt(""))
    story = waiting_for("create", attended=False)
    story.tell(Answer(story.last("create").made, error=Problem("rename the folder")))
    assert story.exits == [1] and story.all("send") == [] and "rename" in story.reason


def test_what_the_server_cannot_tell_is_no_error_and_its_own_model_is_named_once() -> None:
    unknown = {"setup": Setup()}
    story = Story(finds=unknown, models=("a/unheard",), agent="unheard")
    assert story.state == "running" and story.all("send")
    story = Story(finds=unknown)
    for _ in range(2):
        story.works(model="own/choice")
    assert story.text.count("model: ") == 1
    assert "model: OpenCode took own/choice" in story.text
    story = Story(finds={"setup": Setup("own/named#high", {"own/named": 0})})
    story.works(model="own/named")
    assert "model: OpenCode took own/named" in story.text


@pytest.mark.parametrize("model, most, is_said", [("a/b", 0, 0), ("a/b", 20, 1), ("c/d", 20, 0)])
def test_a_model_without_a_price_is_named_once(model: str, most: float, is_said: int) -> None:
    """Where money is the limit; the model of the prompt is the one whose price counts."""
    setup = Setup("c/d", {"a/b": 1000, "c/d": 1000}, free=frozenset(("a/b",)))
    finds = {"prompt": f"---\nmodel: {model}\n---\nDo it", "setup": setup}
    story = Story(finds=finds, max_cost=most)
    story.works()
    assert story.text.count("a/b has no price") == is_said


def test_what_happens_to_asks_at_night_is_said_as_it_is() -> None:
    story = Story(finds={"setup": Setup("a/b", {"a/b": 1}, asks=("bash",))})
    assert "before bash: asked at night means refused" in story.text
    story = Story(finds={"setup": Setup("a/b", {"a/b": 1}, asks=("bash",))}, asks_wait=True)
    assert "asked at night waits 5m00s (`attach`), then is refused" in story.text


def test_a_configuration_that_is_not_read_denies_nothing_and_is_named() -> None:
    setup = {"setup": Setup(unread=("/project/opencode.json",))}
    said = "OpenCode cannot read /project/opencode.json, and goes on without"
    assert said in Story(finds=setup).text
    story = Story(finds=setup, attended=False)
    assert said in story.reason and story.exits == [1], "nobody reads a warning at night"


def test_what_a_killed_run_left_on_another_s_server_is_stopped_before_anything_else() -> None:
    story = Story(start=False, finds={"poll": fails_with(404)})
    story.run.server.abandoned = "ses_left"
    story.hear()
    assert story.take("read_files").startswith("start_server setup measure_server interrupt")
    assert story.last("interrupt").session == "ses_left"
    assert story.state == "running" and story.count("send") == 1, "it is gone, and no error"


# ── when a session is over ────────────────────────────────────────────────────────────────────────
# Polling is the truth: the stream only makes us look.


def test_nothing_that_is_said_ends_an_iteration_without_a_look() -> None:
    story = at_work()
    story.tell(Activity(story.id, "idle"))  # a look says that it works
    story.let_pass(30)
    assert story.take() == BEGINS
    story.world["poll"] = None
    said = Activity(story.id, "idle"), Broke(story.id, Fault("auth", "no entry"))
    story.tell(*said, StreamOpened())
    story.let_pass(30)
    assert (story.state, story.number, story.books.results) == ("running", 1, [])
    story.mend()
    story.works()
    assert story.number == 1, "nothing is decided before there is an answer"
    story.answer(story.last("poll"), Polled("working"))
    story.let_pass(1)
    assert story.number == 2, "what made us look meanwhile is looked at"


def test_what_makes_us_look() -> None:
    story = Story()
    story.let_pass(1.6)
    story.tell(Broke(story.id, Fault("provider", "boom")))
    story.let_pass(0.6)
    assert story.count("poll") == 1, "a reason to look soon does not make it look later"
    story.busy()
    story.let_pass(2)
    story.take()
    story.tell(StreamOpened())
    assert story.take("read_files") == "poll"
    story.tell(Child("ses_1", "ses_child"), Activity("ses_child", "idle"))
    story.tell(Activity("ses_stranger", "idle"))
    assert story.take("read_files") == "", "idle of another session is not the end"
    story = waiting_for("send")
    story.tell(Activity(story.id, "idle"))  # quicker than the answer to our request
    story.world["poll"] = None
    story.answer(story.last("send"))
    assert story.count("poll") == 1
    story = Story()
    story.activity, story.verdict = "idle", "answered"
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.let_pass(6)
    assert story.count("send") == 2, "the end is seen without any event"


def test_a_server_that_says_busy_for_ever_is_looked_at_more_closely() -> None:
    """It takes the server longer, since it reads the messages: after a silence only."""
    story = at_work()
    story.let_pass(50)
    assert not any(request.closer for request in story.all("poll"))
    story.let_pass(30)
    assert story.last("poll").closer
    story.busy()
    story.let_pass(30)
    assert not story.last("poll").closer
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.verdict = "answered"
    story.let_pass(60)
    assert story.number == 2 and "1 done" in story.text


@pytest.mark.parametrize("verdict, word", [("answered", "done"), ("failed", "rate-limited")])
@pytest.mark.parametrize("is_deaf", [True, False])
def test_what_works_on_after_its_answer_is_stopped(verdict: str, word: str, is_deaf: bool) -> None:
    story = at_work(stall_timeout=0)
    story.take()
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.verdict = verdict
    story.fault = Fault("rate-limit", "Too Many Requests")
    if is_deaf:
        story.world["interrupt"] = is_done  # which changes nothing
    story.let_pass(130)
    assert story.words[0] == word and story.take().startswith("interrupt")
    assert story.all("interrupt")[0].session == "ses_1"
    assert story.count("start_server") == (2 if is_deaf else 1)


def test_a_compaction_is_not_the_end() -> None:
    story = at_work()
    overflow = Fault("overflow", "it does not fit")
    story.tell(Broke(story.id, overflow), Activity(story.id, "compacted"))
    story.activity = "idle"
    story.verdict = "unfinished"  # what goes on after the compaction
    story.let_pass(1)
    story.busy()
    story.activity = "working"
    story.let_pass(20)
    assert story.number == 1 and story.state == "running"
    story.works()
    assert story.words == ["done"] and "compacted" in story.text
    story.tell(Broke(story.id, Fault("overflow", "too long")))
    story.ends("undelivered")
    story.let_pass(10)
    assert story.words == ["done"] and story.count("send") > 2, "no fault: it is sent again"


@pytest.mark.parametrize("verdict", ["refused", "cut", "unfinished", "nothing-ran", "undelivered"])
def test_an_odd_end_must_stay_before_it_is_believed(verdict: str) -> None:
    story = at_work()
    story.ends(verdict)
    story.let_pass(1)
    assert story.number == 1 and story.count("send") == 1
    story.let_pass(0.8 if verdict != "undelivered" else 6)
    assert story.books.results or story.count("send") == 2


@pytest.mark.parametrize("sign", [
    Activity("ses_1", "working"), Activity("ses_1", "woke"), None,
    Part("ses_1", "prt_1", "text", "running", text="I go on"),
])  # fmt: skip
def test_an_odd_end_that_came_and_went_is_not_held_against_the_next_one(sign: Any) -> None:
    story = at_work()
    story.ends("refused")
    story.let_pass(1)
    story.activity = "working"
    story.tell(*[sign] * bool(sign))
    story.let_pass(46)  # and a look
    story.ends("refused")
    assert story.number == 1
    story.let_pass(3)
    assert story.number == 2


BY_SOMEBODY = Fault("aborted", "Aborted")


@pytest.mark.parametrize("attended, fault", [(False, BY_SOMEBODY), (True, None)])
def test_an_answer_that_no_person_broke_off_is_a_failure(attended: bool, fault: Any) -> None:
    """Also where there is a screen: the night would be lost in a pause."""
    story = at_work(attended=attended)
    story.ends("cut", fault)
    story.let_pass(2.5)
    assert (story.words, story.state) == (["cut"], "waiting")


def test_a_person_who_breaks_an_answer_off_is_left_at_the_wheel() -> None:
    story = at_work(notify="mail")
    story.tell(Broke("ses_1", Fault("unknown", "the server is shutting down")))
    story.verdict, story.fault, story.activity = "cut", BY_SOMEBODY, "idle"
    story.server_dies()  # one that is asked to end aborts what works: no person has done it
    story.let_pass(3)
    assert story.state == "running" and story.count("send") == 2
    story.busy()
    story.ends("cut", BY_SOMEBODY)
    story.let_pass(2.5)
    assert story.state == "paused" and story.number == 1
    assert story.count("notify") == 1 and story.last("notify").facts["OCLOOP_EVENT"] == "stopped"
    assert "broken off" in story.notified
    story.press("space")
    assert story.state == "running" and story.number == 2


@pytest.mark.parametrize("verdict", ["undelivered", "unfinished", "nothing-ran"])
def test_a_prompt_that_is_not_answered_is_sent_again_with_the_same_ids(verdict: str) -> None:
    """Four times; then it may still begin late, and is stopped."""
    story = Story()
    story.activity, story.verdict = "idle", verdict
    if verdict != "undelivered":
        story.busy()
    story.let_pass(11 if verdict == "undelivered" else 5)
    assert 2 <= story.count("send") <= 3
    story.let_pass(30)
    prompts = [request for request in story.all("send") if request.session == "ses_1"]
    assert len({request.prompt._replace(attempt=0) for request in prompts}) == 1
    assert [request.prompt.attempt for request in prompts] == [0, 1, 2, 3]
    assert "sent 4 times and never answered" in story.text and story.words[0] == "failed"
    assert story.prompted.message_id != prompts[0].prompt.message_id
    if verdict == "undelivered":
        assert story.all("stop_server")[0].session == "ses_1"
        second = story.requests.index(story.all("create")[1])
        assert story.requests.index(story.all("stop_server")[0]) < second


@pytest.mark.parametrize("name", ["create", "send", "poll"])
@pytest.mark.parametrize("code", [400, 404, 429])
def test_a_request_that_is_refused_is_a_failure(name: str, code: int) -> None:
    story = Story(finds={name: fails_with(code, "rejected")}, attended=False, retries=2)
    story.let_pass(60)
    assert story.exits == [1] and "rejected" in story.reason
    assert story.count("create") == 3 and set(story.words) == {"failed"}
    assert name == "create" or code == 404 or story.all("interrupt"), "it may be at work"


@pytest.mark.parametrize("name", ["setup", "create", "send", "poll"])
@pytest.mark.parametrize("code, kind, words", [
    (400, BROKEN_SETUP, "OpenCode's configuration is broken: mend it: no"),
    (401, "", "SERVER_PASSWORD"),
])  # fmt: skip
def test_what_nothing_mends_ends_the_run(name: str, code: int, kind: str, words: str) -> None:
    story = Story(finds={name: fails_with(code, "no", kind)}, attended=False)
    story.let_pass(6)
    assert story.exits == [1] and words in story.reason and story.count("start_server") == 1
    is_stopped = bool(story.all("interrupt")) or story.abandoned == "ses_1"
    assert is_stopped == (name in ("send", "poll"))
    story = Story(finds={name: fails_with(400, "no")}, attended=False)
    story.let_pass(6)
    assert story.exits == [1] * (name == "setup"), "it may be a request that is wrong"


@pytest.mark.parametrize("verdict", ["undelivered", "unfinished", "nothing-ran"])
@pytest.mark.parametrize("is_late", [True, False])
def test_an_error_may_come_without_its_message_or_before_it(verdict: str, is_late: bool) -> None:
    story = at_work(attended=False, retries=1)
    fault = Fault("auth", "no entry")
    story.tell(Broke(story.id, fault))
    story.ends(verdict)  # no answer of the assistant's yet
    assert story.state == "running"
    if is_late:
        story.ends("failed", fault)
    story.let_pass(1 if is_late else 3)
    assert story.state == "error" and "no entry" in story.reason
    story = waiting_for("send")
    story.tell(Broke(story.id, Fault("provider", "boom")))
    story.let_pass(5)
    assert story.count("send") == 1, "it does not send twice what is on its way"


def test_late_news_of_an_older_session_is_ignored() -> None:
    story = Story()
    story.let_pass(3)
    story.works()
    older = list(story.requests)
    story.let_pass(3)
    story.take()
    before = story.picture()
    for request in older:
        twice = ("ses_late", "") if request.name == "create" else ...
        for value in (twice, No("late", 404), No("late", 400, BROKEN_SETUP, again=False)):
            story.answer(request, value)
    story.tell(ServerDied(0, "older"), Activity("ses_1", "idle"))
    story.tell(Broke("ses_1", Fault("auth", "no")))
    story.message("answered", 5.0, session="ses_1")
    assert story.take() == "" and timeless(story.picture()) == timeless(before)


@pytest.mark.parametrize("what", ["work", "run_check"])
def test_a_session_that_wakes_up_when_it_is_over_is_stopped(what: str) -> None:
    """Something that it left in the background ended; never two sessions at once."""
    story = waiting_for(what)
    if what == "work":
        story.works()
    state, number = story.state, story.number
    story.take()
    story.tell(Activity("ses_stranger", "woke"))
    assert story.take() == ""
    story.world["interrupt"] = None
    story.tell(Activity("ses_1", "woke"))
    assert story.take() == "interrupt" and story.last("interrupt").session == "ses_1"
    assert "an earlier session woke up by itself" in story.text
    assert (story.state, story.number) == (state, number)
    if what == "work":
        stray = story.last("interrupt")
        story.busy()
        story.press("x")
        story.answer(stray)
        assert story.number == 2, "its answer is not that of the own session"
        story.answer(story.last("interrupt"))
        assert story.number == 3


def test_a_session_that_the_end_of_a_run_broke_off_may_not_wake_up_later() -> None:
    story = Story(NINE, max_iterations=2, stall_timeout=0)
    story.fails("configuration")
    story.press("r")
    story.busy()
    story.world["start_server"] = fails_with(0, "gone for good", again=False)
    story.server_dies()
    story.let_pass(200, 5)
    assert (story.state, story.number, story.words) == ("error", 2, ["failed"])
    assert story.last("stop_server").session == "ses_2", "the session at work is named"
    story.mend()
    story.press("r")
    assert story.state == "running" and story.id == "ses_3"
    said = "of the two one was broken off, and does not count"
    assert re.search(r"  iteration 3 of 3 \d+s  ", header(story, 0)), said
    story.tell(Activity("ses_2", "woke"))
    assert story.last("interrupt").session == "ses_2"


# ── circles ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("session", ["ses_1", "ses_child"])
def test_the_same_calls_20_times_in_a_row_are_a_circle(length: int, session: str) -> None:
    """By turns as well, and in a subagent, whatever others do in between."""
    story = Story()
    story.tell(Child("ses_1", "ses_child"))
    story.busy()
    for number in range(20 * length):
        assert story.all("interrupt") == [], number
        calls(story, 1, 100 + number % length, session)
        if session == "ses_child":
            calls(story, 1, 10_000 + number)
    assert story.count("interrupt") == 1 and story.words == ["failed"]
    assert "20 times in a row" in story.text and "bash make" in story.text


def test_other_calls_in_between_are_no_circle() -> None:
    story = Story()
    for number in range(30):
        calls(story, 19)
        calls(story, 1, call=100 + number)
    calls(story, 60, call=0)  # what the input was is not known
    for _ in range(60):  # one call, told many times
        story.part("prt_1", "tool", tool="bash", argument="make", call=7)
    story.let_pass(5)
    assert story.all("interrupt") == [] and story.state == "running"


@pytest.mark.parametrize("auto, title", [(False, "bash"), (True, "doom_loop")])
def test_20_refusals_end_the_session_and_say_what_to_allow(auto: bool, title: str) -> None:
    story = at_work(attended=auto, auto=auto)
    for number in range(20):
        assert story.all("interrupt") == [] and len(story.replied) == number
        story.busy()
        story.asks(f"per_{number}", title=title)
    assert story.count("interrupt") == 1 and story.words == ["failed"]
    reason = story.books.results[0].fault.message
    assert "20 times" in reason and title in reason and "opencode.json" in reason


@pytest.mark.parametrize("before, circle", [
    # A clock that was set back makes OpenCode answer the same prompt again and again.
    ("own.1 own.1 other.2 own.3 other.4", "own.5"),
    ("nowhere.1 nowhere.2 calls.3 nowhere.4 nowhere.4 nowhere.5", "nowhere.6"),
    ("compacted calls.1 compacted answered.2", "compacted"),
    ("compacted compacted call.7 compacted call.7 compacted", "compacted"),
    ("nowhere.1.a compacted.a nowhere.2.b compacted.b compacted.a", "compacted.a"),
    ("nowhere.1 calls.2.a nowhere.3 calls.4.a", "nowhere.5"),
])  # fmt: skip
def test_what_leads_nowhere_three_times_is_a_circle(before: str, circle: str) -> None:
    story = at_work()
    story.tell(Child("ses_1", "ses_a"), Child("ses_1", "ses_b"))
    for word in [*before.split(), circle]:
        assert story.all("interrupt") == [], word
        what, *more = word.split(".")
        session = f"ses_{more.pop()}" if more and more[-1].isalpha() else "ses_1"
        if what == "call":
            calls(story, 1, int(more[0]))
        elif what == "compacted":
            story.tell(Activity(session, "compacted"))
        elif what in ("own", "other"):
            parent = story.prompted.message_id if what == "own" else "msg_other"
            story.message("answered", id=f"msg_{more[0]}", parent=parent)
        else:
            story.message(what, id=f"msg_{more[0]}", session=session)
    assert story.count("interrupt") == 1 and story.words == ["failed"]
    assert "3 times" in story.text or circle.startswith("nowhere")
    assert ("context limit" in story.text) == circle.startswith("compacted")


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key, decision", [("y", "once"), ("a", "always"), ("n", "reject")])
@pytest.mark.parametrize("title", ["bash", "doom_loop"])
@pytest.mark.parametrize("session", ["ses_1", "ses_child"])
def test_a_permission_is_answered_by_key(key: str, decision: str, title: str, session: str) -> None:
    story = Story(notify="mail")
    story.tell(Child("ses_1", "ses_child"))
    story.asks("per_s", "ses_stranger", title)
    story.question("red", id="que_s", session="ses_stranger")
    assert story.asked == []
    story.asks(session=session, title=title)
    assert story.asked == ["per_1"] and story.replied == []
    assert "per_1" in story.picture().ask_shown, "the screen rings for it"
    facts = story.last("notify").facts
    assert facts["OCLOOP_EVENT"] == "asked" and "rm -r x" in facts["OCLOOP_MESSAGE"]
    story.question("red", session=session)
    story.press(key)
    assert story.replied == [("per_1", decision)] and story.asked == ["que_1"]
    assert story.last("reply").request.session == session
    assert story.last("reply").message == (ocloop.A_PERSON if decision == "reject" else "")
    story.asks(session=session)
    assert story.asked == ["que_1"], "what was answered is not asked again"


def test_a_question_is_answered_with_a_number_or_refused_so_that_the_agent_goes_on() -> None:
    story = Story()
    story.question("red", "green", times=2)
    story.press("3", "0", "2", "\u00b2", "\u00bd", "\x00", "\x1b", "z", "", "-", "12")
    assert story.replied == [] and story.asked == ["que_1"], "no key is a wrong answer"
    story.press("1")
    assert story.last("reply").request.answers == ("green", "red") and not story.asked
    story.question("red", "green", id="que_2", times=2)
    story.press("1", "n")
    assert (
        story.last("reply").request.answers == ("red",) and "BLOCKED" in story.last("reply").message
    )
    story.tell(Ask("que_3", story.id, "question", "", "?", ()))
    story.press("1", "2")
    assert story.asked == ["que_3"], "without options it can only be refused"
    story.press("n")
    assert story.replied[-1] == ("que_3", "reject")


def test_a_key_answers_what_was_on_the_screen_and_nothing_else() -> None:
    story = at_work(NINE)
    story.asks("per_1")
    story.asks("per_2")
    seen = story.picture().ask_shown
    story.tell(Answered("ses_1", "per_1"), Key("a", seen))
    assert story.all("reply") == [], "it was meant for the first one"
    story.tell(Key("y", story.picture().ask_shown))
    assert story.replied == [("per_2", "once")]
    story.question("one", "two", times=2)
    seen = story.picture().ask_shown
    story.tell(Key("1", seen), Key("1", seen))
    assert story.count("reply") == 1, "the second question has not been seen"
    story.tell(Key("2", story.picture().ask_shown))
    assert story.last("reply").request.answers == ("one", "two")
    story.press("q")
    seen = story.picture().ask_shown
    assert seen == ocloop.QUIT_SHOWN
    story.works()
    for name in ("x", "q", "space"):
        story.tell(Key(name, seen))
    assert story.state == "running" and story.exits == [] and story.words == ["done"]
    story.press("q")
    story.tell(Key("q", seen))
    assert story.exits == [130]


@pytest.mark.parametrize("within", [300, 0])
def test_nobody_answers_in_time(within: int) -> None:
    story = Story(ask_timeout=within, stall_timeout=60)
    story.asks()
    story.question("red")
    story.let_pass(295, 5)
    assert story.replied == []
    story.let_pass(10 if within else 5000, 9)
    assert story.replied == ([("per_1", "reject"), ("que_1", "reject")] if within else [])
    assert not within or story.last("reply").message == ocloop.NOBODY
    assert story.state == "running" and story.all("interrupt") == []


@pytest.mark.parametrize("attended", [True, False])
@pytest.mark.parametrize("auto", [True, False])
def test_what_is_answered_without_a_person(attended: bool, auto: bool) -> None:
    """--auto approves permissions, but no circles, and answers no questions."""
    story = Story(auto=auto, attended=attended)
    story.asks()
    story.asks("per_2", title="doom_loop")
    story.question("red")
    expected = [("per_1", "once" if auto else "reject"), ("per_2", "reject"), ("que_1", "reject")]
    assert story.replied == expected[: 3 if not attended else 2 if auto else 0]
    refused = [request for request in story.all("reply") if request.decision == "reject"]
    assert all("BLOCKED" in request.message for request in refused)
    if auto or not attended:
        assert "ask: refused: it is the same call again and again" in story.text
        (of_circle,) = (one.message for one in refused if one.request.id == "per_2")
        assert of_circle.startswith("You made the same call again and again")


def test_a_turn_that_our_refusal_has_ended_goes_on_in_the_same_session() -> None:
    """Of two asks of one step the server rejects the second by itself when the first is refused."""
    story = Story(attended=False)
    for times in range(1, 7):
        story.busy()
        story.asks(f"per_{times}")
        story.ends("refused")
        story.let_pass(2)
        if times < 6:
            assert story.words == [] and story.last("send").session == "ses_1"
            assert story.prompted.text == f"{ocloop.REFUSAL_ENDED_TURN} {ocloop.NOBODY}"
    assert story.words == ["refused"] and story.last("send").session == "ses_2"
    assert len({request.prompt.message_id for request in story.all("send")}) == 7, "all are new"
    story.busy()
    story.ends("refused")  # by somebody else, or by its configuration
    story.let_pass(2)
    assert story.words == ["refused", "refused"]


def test_what_is_asked_is_found_and_compared_by_polling_as_well() -> None:
    story = Story()
    story.children = ("ses_child",)
    listed = permission("per_1", "ses_child"), Ask("que_1", "ses_1", "question")
    story.asks_open = (*listed, permission("per_2", "ses_old"))
    story.let_pass(12)
    assert story.asked == ["per_1", "que_1"]
    assert story.text.count("ask: bash: rm -r x") == 1
    story.asks_open = None
    story.let_pass(12)
    assert len(story.asked) == 2, "a look that cannot tell changes nothing"
    story.asks_open = ()
    story.unlisted = ("permission",)
    story.let_pass(12)
    assert story.asked == ["per_1"], "the server failed to list those"
    story.unlisted = ()
    story.let_pass(12)
    assert not story.asked and story.replied == [], "somebody else has answered"
    story = Story(finds={"poll": None}, notify="mail")
    story.let_pass(3)
    story.asks()
    story.asks_open = ()
    story.answer(story.last("poll"))
    assert story.asked == ["per_1"], "a look from before the ask does not take it away"
    story.let_pass(6)
    story.tell(Answered(story.id, "per_1"))
    assert not story.asked, "it was answered elsewhere"
    late = Polled("working", asks=(permission("per_1", "ses_1"),))
    story.answer(story.last("poll"), late)
    assert not story.asked and story.count("notify") == 1, "nor does one bring it back"


@pytest.mark.parametrize("how", ["at work", "before the prompt was accepted", "the server died"])
def test_an_answer_that_did_not_arrive_is_asked_for_again_within_seconds(how: str) -> None:
    story = waiting_for("send") if how.startswith("before") else Story()
    story.world["reply"] = None if how == "the server died" else fails_with(500)
    story.asks()
    story.press("y")
    assert story.count("reply") == 1 and not story.asked
    story.asks_open = (permission("per_1", story.id),)
    if how == "the server died":
        story.server_dies()
    elif how == "at work":
        assert "did not arrive" in story.text
    else:
        story.answer(story.last("send"))
    story.let_pass(2 if how == "at work" else 10)
    assert story.asked == ["per_1"]


def test_answers_that_come_too_late_or_at_the_second_try_are_not_lost() -> None:
    story = Story(finds={"reply": fails_with(404, "not found")}, stall_timeout=0)
    story.asks()
    story.press("y")
    assert story.state == "running" and "did not arrive" not in story.text
    story.busy()
    for number in range(4):
        story.world["reply"] = fails_first(1, fails_with(0), is_done)
        story.asks_open = (permission(f"per_1{number}", "ses_1"),)
        for _ in range(2):
            story.let_pass(6)
            story.press("y")
        story.asks_open = ()
    assert story.all("interrupt") == [] and story.count("reply") == 9


@pytest.mark.parametrize("code", [0, 400, 500])
@pytest.mark.parametrize("options", [{"attended": False}, {"auto": True}])
def test_a_reply_that_is_never_taken_ends_the_session(code: int, options: Json) -> None:
    """What it asks is found again at each look, and that is no sign of life."""
    story = at_work(finds={"reply": fails_with(code, "rejected")}, stall_timeout=60, **options)
    story.asks_open = (permission("per_1", "ses_1"),)
    story.asks()
    story.let_pass(62)
    assert story.count("reply") > 3 and story.all("interrupt")
    assert "the answer did not arrive: rejected" in story.text


def test_what_is_asked_is_nobodys_to_answer_once_the_session_has_to_end() -> None:
    story = Story(finds={"interrupt": None})
    story.busy()
    story.asks()
    story.press("x", "y")
    story.tell(Answered(story.id, "per_1", True))
    assert story.all("interrupt") and story.all("reply") == []
    assert "elsewhere" not in story.text and story.run.shown_state == "running"


def test_a_reply_that_is_rejected_is_no_sign_of_life() -> None:
    story = Story(auto=True, stall_timeout=60)
    story.world["reply"] = fails_with(500, "rejected")
    story.busy()
    story.let_pass(50)
    story.asks_open = (permission("per_1", "ses_1"),)
    while not story.all("reply"):
        story.let_pass(0.5)
    story.asks_open = ()
    assert story.all("interrupt") == [] and "did not arrive" in story.text
    story.let_pass(62 - (story.now - NOON))
    assert story.count("interrupt") == 1 and "nothing happened for" in story.text


# ── failures and waits ────────────────────────────────────────────────────────────────────────────


def test_opencodes_own_retry_is_shown_and_counted_down() -> None:
    story = at_work()
    story.retries(1, 4)
    assert "retry: attempt 1 failed: Too Many Requests" in story.text
    for seconds in (4, 3):
        said = f"attempt 2 in {seconds}s: Too Many Requests"
        assert (story.picture().state, story.picture().live[-1].text) == ("retrying", said)
        story.let_pass(1)
    story.retries(2, 8)
    story.busy()
    assert story.picture().state == "running" and not story.picture().live, "it works again"
    story = waiting_for("send")
    story.retry = Activity("ses_1", "retrying", 1, 60, "busy")
    story.tell(story.retry)
    story.activity = "retrying"
    story.answer(story.last("send"))
    story.let_pass(20)
    assert story.text.count("attempt 1 failed: busy") == 1, "a look tells it as well"
    assert story.picture().state == "retrying"


@pytest.mark.parametrize("models", [(), ("a/b",), ("a/b", "c/d")])
def test_a_long_retry_is_waited_for_unless_another_model_can_work(models: tuple[str, ...]) -> None:
    story = at_work(models=models, stall_timeout=60)
    story.retries(1, 89)
    assert not story.all("interrupt")
    story.retries(2, 120)
    has_another = len(models) > 1
    assert story.count("interrupt") == has_another and story.state == "running"
    assert story.prompted.model == ("c/d" if has_another else "".join(models[:1]))
    if has_another:
        return
    story.retries(3, 890)
    story.retry = Activity("ses_1", "retrying", 3, 890)
    story.activity = "retrying"
    story.let_pass(850, 5)
    assert not story.all("interrupt") and story.state == "running", "it is no stall"
    story.retries(4, 3600)
    assert story.count("interrupt") == 1 and story.words == ["rate-limited"]
    assert story.state == "waiting" and "would wait 1h00m" in story.reason
    assert story.wait_left == pytest.approx(3600, abs=5), "the announced time"


@pytest.mark.parametrize("models, minutes, stopped, used", [
    (("a/b", "c/d"), 3, [], "c/d"), (("a/b",), 65, [3], "a/b"),
])  # fmt: skip
def test_short_retries_without_an_end_are_a_limit_too(
    models: Any, minutes: float, stopped: list[int], used: str
) -> None:
    story = at_work(models=models, attended=False, max_wait=3600.0)
    keeps_retrying(story, minutes)
    assert story.prompted.model == used and story.words[:1] == ["rate-limited"]
    assert story.exits == stopped and ("--max-wait" in story.reason) == bool(stopped)


def test_an_iteration_that_only_waited_is_no_failure() -> None:
    story = at_work(attended=False, iteration_timeout=600.0)
    keeps_retrying(story, 12)
    assert story.words == ["rate-limited"] and story.run.books.waited > 590


@pytest.mark.parametrize("lost", ["end", "attempt"])
def test_waits_of_two_rows_are_not_added_up(lost: str) -> None:
    """The end of the first one, or the beginning of the second, may be lost with the stream."""
    story = Story(models=("a/b", "c/d"), attended=False)
    story.retries(1, 30, "Overloaded")
    story.retries(2, 30, "Overloaded")
    story.let_pass(30)
    if lost == "attempt":
        story.message("calls", 0.1)
    story.let_pass(600, 5)
    story.retries(2 if lost == "attempt" else 1, 30, "Overloaded")
    assert story.count("interrupt") == 0 and story.number == 1


def test_retries_that_only_looks_tell_of_are_not_added_up() -> None:
    story = Story(models=("a/b", "c/d"), attended=False, stall_timeout=0, iteration_timeout=0)
    for _ in range(2):
        story.retry = Activity("ses_1", "retrying", 1, 30, "slow")
        story.activity = "retrying"
        story.let_pass(20)
        story.retry, story.activity = None, "working"
        story.let_pass(600, 5)
    assert story.count("interrupt") == 0 and story.number == 1


@pytest.mark.parametrize("kind", ["rate-limit", "outage"])
def test_what_passes_by_itself_is_waited_out_without_using_up_retries(kind: str) -> None:
    story = Story(retries=2, attended=False)
    waits = []
    for _ in range(8):
        story.fails(kind)
        waits.append(round(story.wait_out()))
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
    story.works()
    assert story.state == "running"
    story.fails(kind)
    assert round(story.wait_out()) == 30, "it begins anew"
    story.fails(kind, "Monthly quota used up", retry_after=7200)
    assert story.wait_left == pytest.approx(7200, abs=1), "the announced time is used and shown"
    reason = header(story, 2)
    assert "Monthly quota used up" in reason and "again at " in reason and "in 2h00m" in reason
    assert "trying again in 2h00m" in story.text
    story.wait_out()
    story.world["read_files"] = None
    assert (story.state, story.reason) == ("running", ""), "what it was for is no reason any more"


def test_s_that_was_pressed_before_there_was_something_to_read_is_asked_for_again() -> None:
    """What a person has to know before the code goes to a provider that nobody chose."""
    chosen = Setup("", {"free/m": 9}, ("build",), frozenset(("free/m",)), chosen="free/m")
    for setup in (chosen, Setup("a/b", {"a/b": 1000})):
        story = Story(finds={"setup": None}, run=False)
        story.press("s")
        assert "begins when the server is ready" in story.reason
        story.answer(story.last("setup"), setup)
        is_told = setup is chosen
        assert story.state == ("ready" if is_told else "running")
        assert ("your code goes to" in story.text) == is_told
        story.press("s")
        assert story.state == "running"


def test_the_model_of_the_prompt_s_own_agent_is_one_that_somebody_chose() -> None:
    chosen = Setup("", {"free/m": 9, "a/b": 9}, free=frozenset(("free/m",)), chosen="free/m")
    setup = chosen._replace(agent_models={"plan": "a/b", "build": ""})
    for agent in ("plan", "build"):
        prompt = f"---\nagent: {agent}\n---\nDo it"
        story = Story(finds={"setup": setup, "prompt": prompt, "start_server": None}, run=False)
        story.let_pass(1)
        story.answer(story.last("start_server"))
        assert ("your code goes to" in story.text) == (agent == "build")
        assert story.model == ("a/b" if agent == "plan" else "free/m")


def test_what_is_asked_waits_without_a_screen_where_a_time_was_named() -> None:
    """Whoever is told by --notify can answer with `attach`."""
    story = Story(attended=False, ask_timeout=60.0, asks_wait=True, notify="mail")
    story.asks()
    assert story.all("reply") == [] and story.last("notify").facts["OCLOOP_EVENT"] == "asked"
    story.let_pass(61)
    assert story.last("reply").decision == "reject" and "nobody answered for 1m00s" in story.text
    for words in (["--ask-timeout", "60"], ["--ask-timeout", "0"], []):
        given = ocloop.parse_arguments(["run", "--server", "http://x", *words])
        assert ocloop.make_options(given).asks_wait == ("60" in words)


def test_an_error_after_which_a_session_works_on_does_not_end_it() -> None:
    story = at_work()
    story.tell(Broke(story.id, Fault("unknown", "a plugin failed")))
    story.part("prt_1", "tool", "running", tool="bash", argument="make")
    story.verdict = "unfinished"
    story.let_pass(300)
    assert story.number == 1 and story.state == "running" and not story.count("interrupt")


def test_what_a_new_server_s_answer_is_cut_off_by_is_a_person() -> None:
    """Its server was lost before it had begun: that has cut off nothing."""
    story = Story(finds={"send": None})
    story.mend()
    story.server_dies()
    story.busy()
    story.ends("cut", Fault("aborted", "it was interrupted"))
    story.let_pass(5)
    assert story.state == "paused" and "Space goes on" in story.reason


def test_a_text_that_grows_asks_for_no_look() -> None:
    """Each look is five requests: they come every five seconds, whatever is heard meanwhile."""
    story = Story(finds={"poll": None})
    story.part("prt_1", "text", "running")
    began, answered = story.now, 0
    while story.now < began + 30:
        asked = story.all("poll")[answered:]
        story.tell(Delta(story.id, "prt_1", "word "))  # and only then a request is answered
        for request in asked:
            story.answer(request)
            answered += 1
    assert 5 <= answered <= 8


def test_what_somebody_answers_elsewhere_is_told_and_a_refusal_goes_on() -> None:
    story = Story(attended=False, ask_timeout=60.0, asks_wait=True)
    story.asks("per_1")
    story.tell(Answered("ses_1", "per_1"))
    assert "ask: answered elsewhere" in story.text
    story.asks("per_2")
    story.tell(Answered("ses_1", "per_2", is_refused=True))
    story.activity, story.verdict = "idle", "refused"
    story.let_pass(5)
    assert "ask: refused elsewhere" in story.text and story.all("reply") == []
    assert story.count("send") == 2 and "has ended your turn" in story.prompted.text
    assert story.run.under_way and dict(story.run.under_way.result(0).refused) == {"bash": 1}


def test_growing_costs_are_a_sign_of_life_also_where_the_time_out_is_short() -> None:
    """There may be no event stream."""
    story = at_work(attended=False, stall_timeout=3.0)
    for second in range(20):
        story.spent = Spend(cost=float(second))
        story.let_pass(1, 1)
    assert story.words == [] and story.number == 1
    story.let_pass(5, 1)
    assert story.words == ["stalled"]


def test_a_plan_that_a_person_completes_has_been_checked() -> None:
    story = Story("- [ ] one\n", check="make test", attended=False)
    story.fails("provider")
    assert story.count("run_check") == 1
    story.check = 1
    story.plan = DONE
    story.let_pass(5)
    assert story.count("run_check") == 2 and story.exits == []
    assert "project's check fails" in story.prompted.text


def test_what_a_person_unticks_at_a_rest_is_work_again() -> None:
    cases: list[Json] = [{}, {"max_iterations": 3}]
    for options in cases:
        story = Story(NINE, stuck=2, **options)
        for number in range(3):
            if number == 2 and not options:
                story.press("space")
            story.works()
        assert story.state == "paused"
        story.plan = NINE
        story.let_pass(5)
        story.press("r" if options else "space")
        story.works()
        assert story.words == ["done"] * 4


def test_a_server_that_lists_less_when_it_is_started_again_ends_nothing() -> None:
    """A plugin, or a provider of this machine, may be late."""
    story = Story(models=("a/b",), attended=False)
    story.setup = Setup("c/d", {"c/d": 1000}, ("build",))
    story.works()
    story.server_dies()
    story.let_pass(10)
    story.works()
    assert story.exits == [0] or story.state == "running", story.reason


def test_a_plan_that_a_person_completes_meanwhile_is_not_waited_for() -> None:
    story = in_state("waiting", attended=False)
    story.plan = DONE
    story.let_pass(3.5)  # of the first wait, which takes 4
    assert story.exits == [0] and story.number == 1


@pytest.mark.parametrize("kind", ["rate-limit", "outage"])
@pytest.mark.parametrize("attended", [True, False])
def test_max_wait_ends_the_waiting_with_3(kind: str, attended: bool) -> None:
    story = Story(max_wait=1000, attended=attended)
    for _ in range(5):
        story.fails(kind, "not now")
        story.wait_out()
    story.fails(kind, "not now")
    assert 60 <= story.wait_out() <= 70, "what is left, and not as long as before"
    story.fails(kind, "not now")
    assert story.state == "paused" and story.status == 3
    assert "--max-wait" in story.reason and "not now: waited 16m4" in story.reason
    assert story.exits == ([] if attended else [3])
    if attended:
        assert story.shown["R"] == "retry"
        story.press("r")
        assert story.state == "running" and story.status == 130
        story.fails(kind)
        assert story.wait_left == pytest.approx(30, abs=1), "counted anew"
    story = Story(max_wait=3600, attended=False)
    story.fails(kind, "quota", retry_after=7 * 86_400)
    assert story.exits == [3] and "168h00m" in story.reason, "one beyond it is not begun"
    story = Story(max_wait=0, attended=False)
    story.fails(kind, retry_after=30 * 86_400)
    assert story.state == "waiting", "0: for ever"


@pytest.mark.parametrize("between", ["a success", "a pause", "work", "a wait after a failure"])
def test_max_wait_counts_nothing_but_waits_for_a_provider_in_a_row(between: str) -> None:
    story = Story(NINE, max_wait=3600, stall_timeout=0, retries=9)
    for _ in range(7 if between == "a wait after a failure" else 0):
        story.fails("provider")
        story.wait_out()
    for _ in range(4):
        story.fails("rate-limit", retry_after=1500)
        assert story.state == "waiting", story.reason
        if between == "a wait after a failure":
            break
        if between == "a pause":
            story.press("space")
            story.let_pass(7200, 9)
            story.press("space")
        elif between == "work":
            story.press("r")
            story.message("calls", 0.5)
            story.let_pass(4000, 9)
        else:
            story.wait_out()
            story.works()


def test_failures_are_tried_again_with_growing_pauses_then_end_the_run() -> None:
    story = Story(retries=3)
    waits = []
    for _ in range(2):
        for _ in range(3):
            story.fails("provider", "boom")
            waits.append(round(story.wait_out()))
        story.fails("provider", "boom")
        assert story.state == "error" and story.status == 1
        assert "4 iterations in a row failed" in story.reason and "boom" in story.reason
        story.press("r")
    assert waits == [4, 16, 64] * 2, "R begins to count anew"
    story = Story(retries=0)
    for _ in range(20):
        story.fails()
        longest = story.wait_out()
    assert round(longest) == 900, "--retries 0 never gives up"
    assert ocloop.wait_after(10**9, ocloop.FAILURE_WAITS) == 900


def test_what_passes_by_itself_counts_neither_as_an_iteration_nor_as_a_failure() -> None:
    story = Story(NINE, retries=2, max_iterations=8, attended=False)
    for _ in range(2):
        story.fails()
        story.wait_out()
        story.works()  # which forgets the failure before it
    for _ in range(2):
        story.fails("provider", "boom")
        story.wait_out()
        story.fails("outage", "the network is away")
        story.wait_out()
    assert story.state == "running", "between failures it does not make them be forgotten"
    story.fails("provider", "boom")
    assert story.exits == [1] and "3 iterations in a row failed" in story.reason
    story = Story(max_iterations=1)
    story.fails("rate-limit")
    story.wait_out()
    story.works()
    assert story.state == "paused" and "--max-iterations" in story.reason


@pytest.mark.parametrize("kind, advice", [
    ("auth", "opencode auth login"), ("balance", "balance"),
    ("no-model", "look at the model a/b"), ("no-agent", "agent"),
    ("configuration", "it is wrong"),
])  # fmt: skip
def test_what_trying_again_cannot_mend_ends_the_run_at_once(kind: str, advice: str) -> None:
    story = Story(attended=False)
    story.fails(kind, "it is wrong")
    assert story.state == "error" and story.exits == [1]
    assert "it is wrong" in story.reason and advice in story.reason
    for is_midst in (False, True):
        story = Story(attended=False)
        if is_midst:
            story.message("calls", 0.1)
        else:
            story.works()
        story.fails(kind)
        state = "error" if kind == "configuration" else "waiting"
        assert story.state == state, "it has worked"


@pytest.mark.parametrize("kind", ["provider", "rate-limit", "outage", "auth"])
def test_a_failed_iteration_leaves_a_plan_complete_and_reaches_a_limit(kind: str) -> None:
    story = Story("- [ ] one\n", attended=False, max_wait=60)
    story.plan = DONE
    story.fails(kind, retry_after=7200)
    assert story.exits == [0] and story.state == "complete"
    if kind != "auth":
        story = Story(NINE, max_cost=1.0, attended=False)
        story.fails(kind, cost=0.4)
        story.wait_out()
        story.fails(kind, cost=0.7)
        assert story.exits == [3] and "--max-cost" in story.reason, "noticed before the pause"


SIGNS: list[Event] = [
    *(Delta("ses_1", "prt_1", "x"), Part("ses_1", "prt_1", "text", "running")),
    *(Alive("ses_1"), Activity("ses_1", "working"), Delta("ses_child", "prt_1", "x")),
]
STRANGE_SIGNS: list[Event] = [
    *(Delta("ses_stranger", "prt_1", "x"), Alive("ses_stranger")),
    *(Activity("ses_stranger", "working"), Child("ses_stranger", "ses_another")),
]


@pytest.mark.parametrize("sign", [*SIGNS, *STRANGE_SIGNS], ids=str)
def test_a_stall_is_aborted_unless_the_own_family_shows_a_sign_of_life(sign: Event) -> None:
    story = Story(stall_timeout=60)
    story.tell(Child("ses_1", "ses_child"))
    story.let_pass(40, 5)
    story.tell(sign)
    story.take()
    while not story.all("interrupt"):
        assert story.now - NOON < 110
        story.let_pass(0.5)
    assert 60 <= story.now - NOON - (0 if sign in STRANGE_SIGNS else 40) < 66
    assert story.take() == "interrupt" and story.state == "waiting"
    assert "nothing happened" in story.text
    story.wait_out()
    assert story.take() == "create send" and story.words == ["stalled"]


@pytest.mark.parametrize("limit", [100, 14_400])
def test_an_agent_that_works_for_ever_is_ended(limit: int) -> None:
    story = Story(iteration_timeout=limit, stall_timeout=0)
    for _ in range(9):
        story.let_pass(limit // 10, 9)
        story.busy()
    assert story.all("interrupt") == []
    story.let_pass(limit // 10 + 1, 9)
    assert story.count("interrupt") == 1 and story.state == "waiting"
    assert "took longer than" in story.text
    assert Options().iteration_timeout == 4 * 3600


# ── models in line ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind, announced, rests",
    [("rate-limit", 0, 30), ("rate-limit", 7200, 7200)]
    + [(kind, 0, 900) for kind in ("balance", "auth", "no-model")],
)
@pytest.mark.parametrize("parked", [False, True])
def test_another_model_works_meanwhile(kind: str, announced: int, rests: int, parked: bool) -> None:
    story = in_line()
    assert story.prompted.model == "a/b"
    if parked and announced:  # OpenCode would wait for it
        story.busy()
        story.retries(1, announced, "quota")
    else:
        story.fails(kind, "slow down", announced)
    assert story.state == "running" and story.prompted.model == "c/d" and story.exits == []
    assert "a/b rests for " in story.text and "c/d is next" in story.text
    for seconds, model in ((0, "c/d"), (rests - 20, "c/d"), (25, "a/b")):
        story.let_pass(seconds, 9)
        story.works(0.1, "c/d")
        assert story.prompted.model == model, seconds


def test_all_models_rate_limited_are_waited_for_until_the_first_one_is_back() -> None:
    story = in_line()
    story.fails("rate-limit", retry_after=7200)
    story.let_pass(10)
    story.fails("rate-limit", retry_after=600)
    assert story.state == "waiting" and round(story.wait_out()) == 600
    assert story.prompted.model == "c/d"
    story.fails("rate-limit", retry_after=86_000)
    assert story.wait_out() == pytest.approx(7200 - 610, abs=10) and story.prompted.model == "a/b"


@pytest.mark.parametrize("retries", [2, 5])
def test_models_that_all_cannot_work_or_keep_failing_end_the_run(retries: int) -> None:
    story = in_line(retries=retries)
    models = []
    while not story.exits:
        if story.state == "waiting":
            story.wait_out()
        models.append(story.prompted.model)
        story.fails("provider", "boom")
        assert story.number < 200
    assert models[: retries + 2] == ["a/b"] * (retries + 1) + ["c/d"], "the next one has its tries"
    assert story.exits == [1] and "boom" in story.reason
    assert retries > 2 or story.count("create") <= 12
    story = in_line()
    story.fails("balance", "no money")
    story.fails("auth", "no entry")
    assert story.exits == [1] and "no entry" in story.reason


def test_max_wait_ends_no_line_in_which_one_has_not_been_tried() -> None:
    story = in_line(max_wait=60)
    story.let_pass(80)  # it tried all the time
    story.fails("outage", "the network is away")
    assert story.state == "running" and story.prompted.model == "c/d"
    story.let_pass(80)
    story.fails("outage", "the network is away")
    assert story.exits == [3] and "waited 2m4" in story.reason and "0s more" not in story.reason


def test_max_wait_ends_a_line_in_which_one_always_seems_to_be_back() -> None:
    story = in_line(max_wait=5 * 3600)
    for _ in range(40):
        if story.exits:
            break
        if story.state == "waiting":
            story.wait_out()
        story.let_pass(1000, 9)
        story.fails("outage", "the network is away")
    assert story.exits == [3] and "--max-wait" in story.reason
    assert story.now - NOON < 6 * 3600


def test_a_front_matter_names_models_in_line_and_the_records_say_which_one_did_what() -> None:
    story = Story(NINE, finds={"prompt": "---\nmodel: c/d, a/b\n---\nDo it"}, attended=False)
    story.works(0.1, "c/d")
    story.fails("rate-limit")
    assert story.prompted.model == "a/b" and story.state == "running"
    story.works(0.1)
    records = [entry.record for entry in story.entries if entry.record]
    models = [record["model"] for record in records if record["record"] == "iteration"]
    assert models == ["c/d", "c/d", "a/b"]


@pytest.mark.parametrize("rests", [False, True])
def test_the_last_try_at_a_stuck_task_is_made_by_the_next_model(rests: bool) -> None:
    story = in_line(stuck=2)
    if rests:
        story.fails("rate-limit", retry_after=9000)
        assert story.prompted.model == "c/d"
    story.idles()
    story.idles()
    assert "settled nothing" in story.prompted.text
    assert story.prompted.model == "c/d", "one that rests has no try"
    story.idles()
    assert story.exits == [3] and "--stuck" in story.reason
    story = in_line(stuck=2)
    story.idles()
    story.idles()
    story.works(model="c/d")
    assert story.prompted.model == "a/b", "then the first one in line works again"


# ── progress, limits and the check ────────────────────────────────────────────────────────────────


def test_a_stuck_task_is_told_the_next_agent_before_it_ends_the_run() -> None:
    story = Story("- [x] zero\n- [~] one\n", stuck=3)
    for number in (3, 7):
        for _ in range(3):
            assert story.prompted.text == "Do one"
            story.idles()
        text = story.prompted.text
        assert "The last 3 sessions settled nothing" in text and "- one (" in text
        assert "[BLOCKED: the reason" in text and text.startswith("Do one")
        told = [entry for entry in story.entries if "the last try" in entry.text]
        assert told[-1].iteration == number + 1, "it is noted with the iteration that is told"
        story.idles()
        assert (story.state, story.status) == ("paused", 3) and "--stuck" in story.reason
        story.press("r")  # begins to count anew
    story = Story(stuck=0)
    for _ in range(30):
        story.idles()
    assert story.state == "running" and "settled nothing" not in story.prompted.text
    story = Story(stuck=2, attended=False, check="make test")
    story.prompt = "Do {{TASK}}"
    story.idles()
    story.check = 1
    story.idles()
    text = story.prompted.text
    assert "project's check fails" in text and "settled nothing" in text
    story.check = 0
    story.plan = "- [BLOCKED: it cannot be done] one\n- [ ] two\n"
    story.idles()
    assert story.prompted.text == "Do two", "one that is blocked at last does not end the night"


@pytest.mark.parametrize("plans, stuck, begun", [
    (["- [x] one\n- [ ] two\n", TWO] * 9, 3, 5),
    ([f"- [ ] one (attempt {number} failed)\n- [ ] two\n" for number in range(20)], 3, 4),
    ([f"- [ ] one\n- [BLOCKED: {number}] two\n" for number in range(20)], 2, 4),
], ids=["checked and unchecked", "reworded", "another reason"])  # fmt: skip
def test_what_is_changed_again_and_again_is_stuck(plans: list[str], stuck: int, begun: int) -> None:
    story = Story(stuck=stuck, attended=False)
    for plan in plans:
        if story.exits:
            break
        story.plan = plan
        story.idles()
    assert story.exits == [3] and "--stuck" in story.reason and story.number == begun


@pytest.mark.parametrize("first, then, words", PROGRESS)
def test_what_is_progress(first: str, then: list[str], words: str) -> None:
    story = Story(first.replace("[", "- ["), stuck=9)
    for plan in then:
        story.plan = plan.replace("[", "- [")
        story.idles()
    assert ", ".join(story.words) == words
    assert f"iter: #1 {story.words[0]} in" in story.text


def test_r_raises_a_limit_by_as_much_again_and_q_says_that_work_is_left() -> None:
    story = Story(NINE, max_iterations=2)
    for number in (2, 4, 6):
        story.works()
        assert story.state == "running"
        story.works()
        story.press("space")  # is no way beyond it
        assert (story.state, story.number, story.status) == ("paused", number, 3)
        assert story.shown["R"] == "raise the limit"
        story.press("r")
        assert story.state == "running" and story.status == 130
    story.works()
    story.works()
    story.press("q")
    assert story.state == "stopping" and story.exits == [3]


def test_r_at_a_limit_begins_nothing_anew_and_at_an_error_raises_no_limit() -> None:
    story = Story(NINE, max_iterations=2, stuck=3)
    story.idles()
    story.idles()
    story.press("r")
    story.idles()
    assert "settled nothing" in story.prompted.text, "the last try"
    story.idles()
    assert "--stuck" not in story.reason, "the limit comes first"
    story.press("r")
    assert "4 iterations in a row settled no task (--stuck)" in story.reason
    story = at_work(max_cost=2.0)
    story.message("calls", 2.5, "msg_1")
    story.fails("configuration")
    assert (story.state, story.shown["R"]) == ("error", "retry")
    story.press("r")
    assert story.state == "paused" and "--max-cost is reached: $2.50 of $2.00" in story.reason


@pytest.mark.parametrize("seen_by", ["the stream", "a look"])
def test_max_cost_stops_between_iterations_and_twice_as_much_stops_at_once(seen_by: str) -> None:
    story = at_work(NINE, max_cost=1.0)
    for cost, is_too_much in ((1.9, False), (2.1, True)):
        if seen_by == "a look":
            story.spent = Spend(cost)
        else:
            story.message("calls", cost, "msg_1")
        story.let_pass(10)
        assert story.count("interrupt") == int(is_too_much)
    assert story.state == "paused" and "--max-cost" in story.reason
    assert story.total.cost == pytest.approx(2.1) and "twice the limit" in story.text
    story.press("r")
    story.spent = None
    story.works()
    assert story.state == "running" and " of $3" in header(story, 3), "it goes on after that"
    for most, shown in ((1, "$1.2"), (0.0001, "reached: $0.0001"), (0.00001, "reached: <$0.0001")):
        story = Story(NINE, max_cost=most, attended=False)
        story.works(most * 1.2)
        assert story.exits == [3] and story.all("interrupt") == []
        assert shown in story.reason and "$0.00 " not in story.reason


def test_max_time_counts_work_alone() -> None:
    story = Story(NINE, max_time=100)
    story.press("space")
    story.works()
    story.let_pass(3600, 9)  # a person's pause
    story.press("space")
    assert story.state == "running" and story.clock.elapsed < 10
    story.let_pass(90, 5)
    story.works()
    story.let_pass(20, 5)
    assert story.state == "running", "an iteration may end"
    story.works()
    assert story.state == "paused" and "--max-time" in story.reason
    story.let_pass(8 * 3600, 9)  # the person comes in the morning
    story.press("r")
    story.works()
    assert story.state == "running"
    story.fails("configuration")
    assert story.state == "error"
    story.let_pass(8 * 3600, 9)
    story.press("r")
    assert story.state == "running" and story.clock.elapsed < 130
    story.let_pass(300, 5)
    assert story.count("interrupt") == 1 and "twice the limit" in story.text
    story.press("r")
    assert story.state == "running" and "of 8m20s" in header(story, 0)
    story = Story(max_time=3600, max_wait=0, attended=False)
    story.fails("rate-limit", retry_after=20 * 3600)
    assert story.state == "waiting"
    story.let_pass(3700, 5)
    assert story.exits == [3] and "--max-time" in story.reason, "it ends a wait as well"


@pytest.mark.parametrize("status", [0, 1, 126, 127])
def test_the_check_is_tried_once_before_the_first_prompt(status: int) -> None:
    finds = {"run_check": answers(ocloop.CheckResult(status, "output of the check"))}
    story = Story("- [ ] a\n- [ ] b\n", finds=finds, check="make test", attended=False)
    if status > 100:
        assert story.exits == [1] and story.all("create") == []
        assert "`make test` cannot be run" in story.reason
        assert "output of the check: mend --check" in story.reason
        return
    assert story.take() == "start_server setup run_check create send"
    assert ("exit status 1" in story.prompted.text) == bool(status)
    assert ("check failed" in header(story, 1)) == bool(status)
    assert ("check: passed" in story.text) != bool(status)
    story.mend()
    story.works()
    assert story.words == ["done"] and story.count("run_check") == 2


def test_a_tag_is_believed_when_the_first_check_has_passed() -> None:
    """What stands in the plan was written before this run, or by the check itself."""
    for status, end in ((1, []), (0, [0])):
        story = Story(DONE, finds={"check": status}, check="make test", attended=False)
        assert story.exits == end
    assert story.all("create") == [], "nothing is left to do"
    story = Story("- [ ] one\n", finds={"run_check": None}, check="./write-plan", attended=False)
    story.plan = DONE
    story.answer(story.last("run_check"))
    assert story.exits == [0] and story.all("create") == [], "the plan is read after it"


def test_whoever_commits_has_a_word_for_the_last_iteration() -> None:
    story = Story("- [ ] one\n", check="git commit -m $OCLOOP_TASK")
    story.works()
    story.idles()
    facts = [request.facts for request in story.all("run_check")]
    assert [fact["OCLOOP_TASK"] for fact in facts] == ["before the first task", "one", "wrap up"]
    assert [fact["OCLOOP_FINISHED"] for fact in facts] == ["", "one", ""]


def test_the_check_gates_and_its_output_reaches_the_agent() -> None:
    story = Story("- [ ] a\n- [ ] b\n", check="make test")
    story.check = 2
    story.take()
    story.works()
    assert story.take() == "run_check create send"
    text = story.prompted.text
    assert "$ make test" in text and "exit status 2" in text and "output of the check" in text
    facts = story.all("run_check")[1].facts
    told = (facts["OCLOOP_TASK"], facts["OCLOOP_DONE"], facts["OCLOOP_ITERATION"])
    assert told == ("a", "1", "1")
    assert story.words == ["check failed"]
    first, *_ = story.record()["tasks"]
    assert (first["state"], first["outcome"]) == ("done", "check failed")
    story.press("p")
    text = seen(story)
    assert re.search(r"^ × a .*\n     check failed$", text, re.MULTILINE) and "✔ a" not in text
    story.press("p")
    story.plan = f"- [x] a\n- [x] b\n{SO}"
    story.ends()
    assert story.state == "running", "a plan is not complete while its check fails"
    story.check = 0
    story.ends()
    assert (story.state, story.status) == ("complete", 0) and "check passed" in header(story, 1)
    outcomes = {task["outcome"] for task in story.record()["tasks"]}
    assert outcomes == {"done"}, "it looks at all of the project"
    story.press("p")
    assert "✔ a" in seen(story)


def test_plan_and_prompt_are_read_once_between_two_sessions() -> None:
    story = Story(NINE)
    story.works()
    before = story.count("read_files")
    story.works()
    assert story.count("read_files") == before + 1


@pytest.mark.parametrize("retries", [0, 2])
def test_failures_after_the_plan_was_marked_complete_do_not_burn(retries: int) -> None:
    """The check fails, so that the tag does not count yet; and every iteration fails at once."""
    story = Story("- [ ] one\n", check="make test", stuck=0, retries=retries, attended=False)
    story.check = 1
    story.plan = DONE
    story.ends()
    began = story.now
    for _ in range(6):
        if story.state == "waiting":
            story.wait_out()
        if story.exits:
            break
        story.fails("provider", "boom")
    assert story.exits == [1] or story.now - began > 100


def test_a_check_that_never_passes_stops_the_run() -> None:
    story = Story(NINE, check="make test", stuck=3)
    story.idles()
    story.press("space")
    story.check = 1
    story.works()
    story.press("space")
    story.works()
    story.works()
    assert (story.state, story.status) == ("paused", 3) and "make test" in story.reason
    assert story.words == ["nothing settled", *["check failed"] * 3], "a pause counts for nothing"


def test_x_ends_the_check_and_the_next_iteration_begins_when_it_has_ended() -> None:
    story = waiting_for("run_check")
    check = story.last("run_check")
    story.take("-")
    story.press("x")
    assert story.take("-") == "stop_check"
    story.let_pass(30)
    assert story.number == 1 and story.take() == "", "until it says that it has ended"
    story.answer(check, CHECK_STOPPED)
    story.works()
    assert story.words == ["done"] and story.books.results[0].check == "interrupted"
    assert story.count("run_check") == 3
    story.answer(check, ocloop.CheckResult(1, "late"))
    assert story.number == 2 and story.words == ["done"]
    story = Story(finds={"run_check": None}, check="make test")
    story.press("x")
    assert story.take("-").endswith("stop_check") and story.all("create") == []
    story.answer(story.last("run_check"), CHECK_STOPPED)
    assert story.state == "running" and story.prompted.text == "Do one", "the first one as well"
    story.world["run_check"] = fails_with(0, "no such shell")
    story.works()
    assert story.state == "running" and "the check was not run: no such shell" in story.text
    story.world["run_check"] = answers(CHECK_STOPPED)
    story.plan = DONE
    story.ends()
    assert (story.state, story.status) == ("complete", 3), "an end that nobody has checked"
    assert "the last check was interrupted" in story.reason
    assert "◐ stopped" in seen(story) and "run the check: `make test`" in story.text


def test_the_prompt_s_agent_is_shown_between_iterations() -> None:
    story = Story(run=False, finds={"prompt": "---\nagent: plan\n---\nDo {{TASK}}"})
    assert story.state == "ready" and "a/b · plan" in seen(story)


def test_with_debug_a_plan_that_goes_away_is_not_forgotten() -> None:
    story = Story(debug=True)
    known = story.run.files.plan_text
    story.plan = None
    story.let_pass(10)
    assert story.run.files.plan_text == known and story.run.plan.total == 2


def test_what_was_done_is_checked_and_counts_though_the_prompt_is_away_afterwards() -> None:
    story = Story(check="make test")
    story.prompt = None
    story.plan = "# Part\n- [x] one\n- [ ] two\n"
    story.ends()
    story.let_pass(70)
    assert (story.state, story.words, story.count("run_check")) == ("error", ["done"], 2)
    assert "the prompt cannot be read" in story.reason and story.total.cost == 0


def test_a_check_that_is_interrupted_takes_no_complaint_back() -> None:
    story = Story(plan=NINE, check="make test", finds={"check": 1})
    assert "check fails" in story.prompted.text
    story.world["run_check"] = answers(CHECK_STOPPED)
    story.works()
    assert story.run.books.check == "failed" and "check fails" in story.prompted.text
    story.world["run_check"] = answers(ocloop.CheckResult(0, ""))
    story.works()
    assert "check fails" not in story.prompted.text


def test_a_check_that_hides_the_plan_does_not_hide_what_was_settled() -> None:
    """`git stash` around a check: the plan is read meanwhile, and is an older one."""
    story = Story(check="git stash; make; git stash pop", stuck=1)
    story.world["run_check"] = None
    for _ in range(2):
        story.works()
        after = story.plan
        story.plan = TWO
        story.let_pass(10)
        story.plan = after
        story.answer(story.last("run_check"), ocloop.CheckResult(0, ""))
    assert story.words == ["done", "done"]


def test_a_check_ends_at_twice_max_time_and_costs_no_money() -> None:
    story = Story(check="make test", max_time=100, max_cost=1, attended=False)
    story.world["run_check"] = None
    story.spent = Spend(2.0)  # told by the last look: too late to end the session for it
    story.works()
    story.let_pass(90, 5)
    assert story.count("stop_check") == 0, "it costs time, and no money"
    story.let_pass(120, 5)
    assert story.count("stop_check") == 1
    story.answer(story.last("run_check"), CHECK_STOPPED)
    assert story.exits == [3]


# ── the server ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verdict", ["unfinished", "refused"])
def test_a_server_that_dies_is_started_again_and_the_same_prompt_is_sent(verdict: str) -> None:
    """What a dead server seems to have refused was cut off."""
    story = at_work()
    story.take()
    story.activity, story.verdict = "idle", verdict
    story.server_dies("the server ended by itself with exit status 137: last words")
    assert story.last("start_server").launch == 2 and "last words" in story.text
    story.let_pass(5)
    assert story.take() == "start_server setup send"
    first, second = story.all("send")
    assert (first.session, first.prompt) == (second.session, second.prompt._replace(attempt=0))
    story.activity = "working"
    story.works()
    assert (story.words, story.state) == (["done"], "running")
    story.tell(ServerDied(1, "it died, says somebody late"))
    story.answer(story.all("start_server")[0], ("http://old", "", 1))
    assert story.take() == "create send", "that of an older server is no news"
    assert story.record()["server"] == "http://127.0.0.1:4096"


@pytest.mark.parametrize("state", ["running", "ready"])
def test_a_server_that_keeps_dying_ends_the_run_with_its_last_words(state: str) -> None:
    story = in_state(state, retries=3)
    for _ in range(9):
        if story.state != "error":
            story.server_dies("it died of this")
            story.let_pass(20)
    assert story.state == "error" and "the server failed 4 times in a row" in story.reason
    assert "it died of this" in story.reason and story.count("start_server") == 4
    story = Story(stall_timeout=0, iteration_timeout=0)
    for _ in range(9):
        story.busy()
        story.server_dies()
        story.let_pass(2000, 9)
    assert story.state == "running", "with hours of good service between it is not in a row"


@pytest.mark.parametrize("again, attended", [(True, False), (False, True)])
def test_a_first_server_that_does_not_start_is_an_error(again: bool, attended: bool) -> None:
    problem = "port 7 is taken:\n  line after line\n" + "x" * 999
    finds = {"start_server": fails_with(0, problem, again=again)}
    story = Story(finds=finds, attended=attended, notify="mail", run=not attended)
    story.let_pass(5)
    assert story.count("start_server") == (3 if again else 1)
    assert story.state == "error" and "port 7 is taken" in story.reason
    assert story.exits == ([] if attended else [1])
    assert story.count("notify") == 1
    assert "\n" not in story.notified and len(story.notified) < 400, "one line for a telephone"
    if attended:
        story.mend()
        story.press("r")
        assert story.state == "ready" and "send" not in story.take(), "it waits for S"


def test_a_first_server_that_answers_that_it_cannot_is_tried_for_two_minutes() -> None:
    """Somebody else holds OpenCode's data base."""
    for is_mended in (True, False):
        story = Story(finds={"setup": fails_with(500, "database is locked")}, attended=False)
        story.let_pass(40)
        assert story.state == "starting" and story.count("start_server") > 3
        if is_mended:
            story.mend()
        story.let_pass(75 if not is_mended else 20)
        assert story.exits == [] and (story.state == "running") == is_mended
    story.let_pass(30)
    assert story.exits == [1] and "another program may hold OpenCode's data base" in story.reason
    story = in_state("starting")
    story.mend()
    error = RequestError(0, "too much is asked at once")
    story.tell(Answer(story.last("start_server").made, error=error))
    assert "too much is asked at once" in story.text
    assert story.state == "ready" and story.count("start_server") == 2


def test_a_server_that_has_worked_is_given_a_minute_to_come_back() -> None:
    """An upgrade replaces it, or its machine has no network just now."""
    story = at_work(attended=False, stall_timeout=0)
    story.world["start_server"] = fails_with(0, "opencode is not there: an upgrade?", again=False)
    story.server_dies()
    story.let_pass(60)
    assert story.state == "starting" and story.exits == []
    assert story.reason == "it died", "whoever looks sees why"
    story.mend()
    story.let_pass(60)
    story.works()
    assert story.words == ["done"]
    story = at_work(retries=2)
    story.world["start_server"] = fails_with(0, "no", again=True)
    story.server_dies()
    story.let_pass(0.5, 0.25)
    story.press("x")
    story.mend()
    story.let_pass(60)
    assert story.state == "running"
    assert "the server failed" not in story.text, "an abort counts no failure twice"


@pytest.mark.parametrize("name", ["create", "send", "poll"])
@pytest.mark.parametrize("code", [0, 500])
@pytest.mark.parametrize("times", [1, 9])
def test_a_server_that_hangs_is_started_again(name: str, code: int, times: int) -> None:
    """One request without an answer is only tried again."""
    story = Story(start=False)
    story.world[name] = fails_first(times, fails_with(code), story.good[name])
    story.hear()
    story.busy()
    story.let_pass(5)
    said = "the server fails" if code else "does not answer"
    assert (said in story.text) == (times > 1)
    assert (story.count("start_server") == 1) == (times == 1)
    story.mend()
    story.let_pass(9)
    story.works()
    story.let_pass(2)
    assert story.words == ["done"]


def test_a_server_that_dies_at_rest_is_started_when_somebody_goes_on() -> None:
    story = in_state("paused")
    story.server_dies("it died of this")
    assert story.text.count("server: it died of this") == 1
    story.take()
    story.let_pass(100, 5)
    assert story.take() == "" and story.state == "paused"
    story.press("space")
    assert story.take() == BEGINS


@pytest.mark.parametrize("state", ["waiting", "paused"])
@pytest.mark.parametrize("value", [..., No("port 7 is taken")])
def test_a_session_may_be_given_up_while_its_server_is_away(state: str, value: Any) -> None:
    """The answer to its start comes while nobody needs it: the run must not wait for that."""
    story = waiting_for("server", iteration_timeout=60, retries=5)
    if state == "paused":
        story.press("space", "x")
    else:
        story.let_pass(62, 0.25)
    assert story.state == state
    story.mend()
    story.answer(story.last("start_server"), value)
    if state == "paused":
        story.press("space")
    story.let_pass(30)
    assert story.state == "running" and story.number == 2


def test_what_is_at_work_out_of_reach_is_stopped_before_the_next_session() -> None:
    """The server of --server is not ours: that it does not answer does not mean that it is gone."""
    story = at_work(server="http://127.0.0.1:4096")
    story.world.update(poll=fails_with(0), start_server=None)
    story.let_pass(20)
    story.take()
    story.press("x")
    assert story.take() == "stop_server start_server"
    assert story.last("stop_server").session == "ses_1"
    story.mend()
    story.answer(story.last("start_server"))
    story.let_pass(5)
    names = [request.name for request in story.requests]
    assert story.all("interrupt")[0].session == "ses_1", "nobody heard the farewell"
    assert story.count("create") == 2 and "create" in names[names.index("interrupt") :]


@pytest.mark.parametrize("server, left", [("http://127.0.0.1:4096", "ses_1"), ("", "")])
def test_what_is_at_work_out_of_reach_is_stopped_at_the_end(server: str, left: str) -> None:
    story = at_work(server=server, max_iterations=1 if server else 2)
    story.world["interrupt"] = fails_with(0)
    story.press("x")
    story.let_pass(5)
    if not server:
        story.works()
    assert story.state == "paused" and story.abandoned == left
    if server:  # it goes away meanwhile
        story.take()
        story.server_dies()
        story.press("r")
        assert story.take().startswith("stop_server start_server")
        assert story.last("stop_server").session == "ses_1"
        story.mend()
        story.let_pass(5)
        assert story.run.server.abandoned == "" and "an earlier session" in story.text


def test_a_server_that_grew_is_replaced_between_iterations() -> None:
    story = Story(NINE, server_memory=1000)
    story.let_pass(11)
    story.works()
    story.take()
    story.memory = 1001
    story.let_pass(16)
    assert story.take() == "", "not in the midst of an iteration"
    story.memory = 0
    story.works()
    assert story.take() == f"stop_server {BEGINS}" and story.text.count("grew to 1001 MiB") == 1
    story.memory = 1001
    story.let_pass(16)
    story.memory = 0
    story.server_dies()
    story.let_pass(3)
    story.works()
    assert story.count("start_server") == 3, "it grew and died, which renews it once"
    story = Story(NINE, finds={"memory": 1500}, server_memory=1000)
    for _ in range(3):
        story.let_pass(11)
        story.works()
    instead = "takes 1500 MiB before any work: it is replaced at 3000, and not at 1000"
    assert story.text.count(instead) == 1
    assert story.count("start_server") == 1, "a limit below that would renew it for ever"
    story.memory = 3001
    story.let_pass(11)
    story.works()
    assert story.count("start_server") == 2
    for way in (fails_with(500), None):
        story = Story(server_memory=2048, finds={"measure_server": way})
        story.let_pass(5)
        story.mend()
        story.memory = 4096
        for _ in range(20):
            story.busy()
            story.let_pass(9)
        assert "grew to 4096 MiB" in story.text, "it is measured again after a time"


def test_a_server_that_grows_to_twice_its_limit_is_replaced_in_the_midst() -> None:
    story = at_work(server_memory=1000)
    story.part("prt_1", "text", "running", text="I begin")
    story.take()
    story.memory = 1500
    story.let_pass(16)
    assert "grew to 1500 MiB" in story.text and story.take() == ""
    story.memory = 2001

    def is_cut(request: Any) -> None:
        """By our interrupt: nobody else has done it."""
        story.memory = 400
        story.verdict = "cut"
        story.activity = "idle"

    story.world["interrupt"] = is_cut
    while story.count("send") < 2:
        story.let_pass(0.5)
    assert "replacing it in the midst" in story.text and not story.picture().live
    assert story.take() == "interrupt stop_server start_server setup send" and story.words == []
    assert story.last("send").session == "ses_1" and story.last("send").prompt.attempt == 1
    story.activity = "working"
    story.works()
    assert story.words == ["done"] and story.count("start_server") == 2
    story.memory = 4000  # a language server needs that much, and would need it again and again
    story.let_pass(16)
    assert story.count("start_server") == 2
    for starts in (3, 4):
        story.memory = 9000
        story.let_pass(16)
        assert story.count("start_server") == starts, "once is enough: it may be a leak after all"
    story = at_work(server_memory=1000)
    story.memory = 2001
    story.world["measure_server"] = None
    story.let_pass(12)
    story.works()
    story.mend()
    assert story.words == []
    story.answer(story.last("measure_server"))  # it is seen when the session is over
    story.memory = 0
    story.let_pass(3)
    assert story.words == ["done"]
    assert story.count("start_server") == 2 and story.count("send") == 2


def test_a_key_that_is_pressed_while_the_server_is_being_stopped_is_not_lost() -> None:
    story = Story(finds={"stop_server": None})
    story.fails("auth")
    assert story.state == "error" and story.shown["R"] == "retry"
    story.press("r")
    story.let_pass(400, 5)
    assert story.state == "running"


# ── plan and prompt ───────────────────────────────────────────────────────────────────────────────

AWAY = [None, "", "# Plan\n", "half a lin"]


@pytest.mark.parametrize("broken", [*AWAY, "the prompt"])
def test_a_file_that_is_away_while_a_session_works_ends_nothing(broken: str | None) -> None:
    """The agent may have stashed it away: whoever ends its session then loses people's work."""
    story = at_work("- [x] a\n- [ ] b\n", attended=False)
    good = (story.plan, story.prompt)
    if broken == "the prompt":
        story.prompt = None
    else:
        story.plan = broken
    for _ in range(21):
        story.let_pass(30)
        story.busy()
    assert story.state == "running" and not story.all("interrupt")
    assert story.run.plan.done == 1 and story.run.plan.total == 2, "the last good progress"
    assert header(story, 2).strip() in story.text
    assert story.text.count("PLAN.md") + story.text.count("the prompt ") == 1, "it is said once"
    story.plan, story.prompt = good
    story.works()
    assert story.words == ["done"] and "can be read again" in story.text


@pytest.mark.parametrize("what", ["a check", "a rate limit", "a pause"])
def test_a_plan_that_is_away_while_nobody_needs_it_ends_nothing(what: str) -> None:
    story = waiting_for("run_check", attended=False) if what == "a check" else Story()
    if what == "a rate limit":
        story.fails("rate-limit", retry_after=310)
    elif what == "a pause":
        story.press("space")
        story.works()
    good, state = story.plan, story.state
    story.plan = None
    story.let_pass(300, 5)
    assert (story.state, story.exits) == (state, []) and story.all("stop_check") == []
    if what == "a check":
        story.answer(story.last("run_check"))
    else:
        story.press("space" if what == "a pause" else "r")
    story.let_pass(30)
    assert (story.state, story.number) == ("running", 1)
    story.plan = good
    story.let_pass(2)
    assert (story.state, story.number) == ("running", 2)


@pytest.mark.parametrize("after", ["a session", "a check"])
@pytest.mark.parametrize("broken", AWAY)
@pytest.mark.parametrize("away", [20, 55, 63])
def test_a_plan_that_is_needed_is_waited_for(after: str, broken: str | None, away: float) -> None:
    story = Story(attended=False) if after == "a session" else waiting_for("run_check")
    good, story.plan = story.plan, broken
    if after == "a session":
        story.ends()
    else:
        story.answer(story.last("run_check"))
    story.let_pass(min(away, ocloop.FILES_WITHIN - 2))
    assert (story.state, story.number, story.exits) == ("running", 1, [])
    if away < ocloop.FILES_WITHIN:
        story.plan = (good or "").replace("[ ]", "[x]", 1)
        story.let_pass(2)
        assert story.number == 2 and story.words == ["done"]
        return
    story.let_pass(4)
    assert story.state == "error" and story.status == 1 and "PLAN.md" in story.reason
    assert story.abandoned == "", "its session is over"
    assert not broken or "has no task: add lines such as" in story.reason


def test_a_file_system_that_does_not_answer_is_an_error_when_it_is_needed() -> None:
    story = at_work(attended=False)
    story.world["read_files"] = None
    for _ in range(10):
        story.busy()
        story.let_pass(30, 5)
    assert story.state == "running", "nobody needs it"
    story.ends()
    story.let_pass(60, 5)
    assert story.exits == []
    story.let_pass(40, 5)
    assert story.exits == [1] and "cannot be read" in story.reason


def test_an_edit_is_read_at_once() -> None:
    story = Story()
    story.take()
    story.plan = TWO.replace("[ ]", "[x]", 1)
    story.tell(Edited("/project/PLAN.md"))
    assert story.take("poll") == "read_files" and story.run.plan.done == 1
    story.tell(Edited("/project/other.md"))
    assert story.take("poll") == ""
    story.plan = DONE
    story.tell(Edited("/project/PLAN.md"))
    story.plan = None
    story.ends()
    assert (story.state, story.status) == ("complete", 0), "one that is moved away then stays so"


# ── keys and rests ────────────────────────────────────────────────────────────────────────────────


def test_space_pauses_after_the_iteration_and_goes_on() -> None:
    story = Story(notify="mail")
    story.press("space", "space")  # taken back
    story.works()
    assert story.states == ["starting", "running", "pausing", "running"]
    story.press("space")
    assert story.state == "pausing" and story.all("interrupt") == []
    story.idles()
    assert story.state == "paused" and story.all("notify") == []
    story.let_pass(60, 5)
    assert story.state == "paused" and story.count("send") == 2
    story.press("space")
    assert story.state == "running" and story.count("send") == 3


@pytest.mark.parametrize("what", [what for what in WAITS if what != "setup"])
def test_space_pauses_whatever_the_running_run_does(what: str) -> None:
    story = waiting_for(what)
    story.press("space")
    assert story.state == "pausing"
    story.press("space")
    assert story.state == ("starting" if what == "server" else "running")


@pytest.mark.parametrize("kind", ["provider", "rate-limit", "outage"])
@pytest.mark.parametrize("is_early", [False, True])
def test_space_pauses_a_wait_that_comes_and_one_that_is_there(kind: str, is_early: bool) -> None:
    story = Story()
    if is_early:
        story.press("space")
    story.fails(kind)
    if not is_early:
        story.press("space")
    story.let_pass(20)
    assert story.state == "paused" and len(story.books.results) == 1
    story.press("space")
    assert story.state == "running"


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_space_while_the_server_is_renewed_asks_for_a_pause(is_taken_back: bool) -> None:
    story = at_work()
    story.world["interrupt"] = fails_with(500)
    story.world["start_server"] = None
    story.press("x")
    story.let_pass(3)
    assert story.state == "starting" and story.shown["Space"] == "pause"
    story.press("space")
    assert story.state == "pausing" and story.shown["Space"] == "go on"
    if is_taken_back:
        story.press("space")
        assert (story.state, story.reason) == ("starting", "")
    story.answer(story.last("start_server"))
    if not is_taken_back:
        assert story.state == "paused" and story.count("send") == 1
        story.press("space")
    assert story.state == "running" and story.count("send") == 2


def test_r_begins_anew_wherever_the_error_came_from() -> None:
    story = Story(models=("a/c",))
    assert story.exits == [] and story.last("stop_server")
    story.let_pass(60, 5)
    assert story.state == "error", "it stays until a person says something"
    story.setup = Setup("", {"a/c": 1})
    story.take()
    story.press("r")
    assert story.take() == BEGINS
    assert story.states == ["starting", "error", "starting", "running"]
    for _ in range(2):
        for _ in range(5):
            story.fails()
            story.wait_out()
        story.fails("rate-limit")
        assert story.wait_out() == pytest.approx(30, abs=1), "rests are counted anew as well"
        story.fails()
        assert story.state == "error"
        story.press("r")
    story.fails("configuration")
    story.press("q")
    assert story.exits == [1] and story.state == "stopping"


@pytest.mark.parametrize("key", ["s", "space", "r"])
def test_a_complete_plan_goes_on_when_it_has_open_tasks_and_no_tag(key: str) -> None:
    story = in_state("complete", notify="mail")
    assert story.last("stop_server") and story.shown["S"] == "go on"
    still = "the plan is complete: add tasks"
    tagged = f"{still}, and take its <plan-complete> tag out, then go on"
    untagged = "- [x] one\n"
    said = [(DONE, tagged), (f"- [ ] two\n{DONE}", tagged), (untagged, f"{still}, then go on")]
    for plan, why in [*said, (None, GONE), (None, GONE)]:
        story.plan = plan
        before = story.text.count(why)
        story.press(key)
        story.let_pass(3)
        assert story.state == "complete" and story.text.count(why) == before + 1, "each time"
    assert story.count("send") == 1
    story.plan = "- [x] one\n- [ ] two\n"
    story.take()
    story.press(key)
    story.let_pass(1)
    assert story.state == "running" and story.take() == BEGINS
    assert story.prompted.text == "Do two"
    story.plan = f"- [x] one\n- [x] two\n{SO}"
    story.ends()
    assert story.state == "complete" and story.words == ["done", "done"]
    story.press("q")
    assert story.exits == [0]


@pytest.mark.parametrize("what", [what for what in WAITS if what not in ("setup", "read_files")])
@pytest.mark.parametrize("overlay", ["z", "?", "p"])
def test_q_asks_once_while_an_iteration_runs(what: str, overlay: str) -> None:
    story = waiting_for(what)
    story.press(overlay)
    assert story.shown["Q"] == "quit"
    story.press("q")
    state = "starting" if what == "server" else "running"
    assert story.asks_whether_to_quit and story.state == state
    story.tell(Key("q", about=""))
    assert story.asks_whether_to_quit, "of a key held down, before the question was to be seen"
    story.press("z")
    assert not story.asks_whether_to_quit and story.state == state
    story.press("q")
    story.asks()
    has_come = bool(story.asked)
    assert not (has_come and story.asks_whether_to_quit), "that is in front of a person now"
    story.press(*("n", "q", "q") if has_come else ("q",))
    assert story.state == "stopping" and story.exits == [130]


def test_q_while_x_stops_a_session_leaves_that_to_the_end_of_the_program() -> None:
    story = waiting_for("interrupt")
    story.press("q", "q")
    assert story.exits == [130] and story.abandoned == "ses_1"


def test_nothing_is_done_after_the_end() -> None:
    for state in ("starting", "ready", "paused", "waiting", "error", "complete", "read_files"):
        story = in_state(state) if state in STATES else waiting_for(state)
        story.press("q")
        assert story.state == "stopping" and len(story.exits) == 1, "without being asked twice"
        story.take()
        story.press("s", "space", "r", "x", "t", "q", "?", "p")
        story.tell(ocloop.Signalled("SIGTERM"), ScreenLost("gone"), ServerDied(1, "x"))
        story.sleep(1)
        story.sleep(100)
        assert story.take("-") == "" and story.state == "stopping"


RENEWED = f"stop_server {BEGINS}"


@pytest.mark.parametrize(
    "way, then",
    [(None, "create send"), (fails_with(404), "create send"), (is_done, RENEWED)]
    + [(fails_with(code), RENEWED) for code in (0, 400, 500)],
)
def test_x_aborts_and_replaces_a_server_where_it_may_work_on(way: Way | None, then: str) -> None:
    story = at_work()
    story.take()
    story.world["interrupt"] = way or story.good["interrupt"]
    story.press("x")
    story.let_pass(20)
    assert story.take("interrupt", *MAYBE) == then
    assert story.state == "running" and story.words == ["aborted"]


@pytest.mark.parametrize("code", [0, 500, 403, 404])
def test_a_server_that_does_not_say_whether_a_session_rests_is_replaced(code: int) -> None:
    """But for one that says that there is no such session."""
    story = waiting_for("look")
    story.mend()
    story.take()
    story.world["poll"] = fails_first(code in (0, 500), fails_with(code), story.good["poll"])
    story.answer(story.last("poll"), No("no", code))
    story.let_pass(3)
    assert ("start_server" in story.take()) == (code != 404)
    assert story.state == "running" and story.number == 2


@pytest.mark.parametrize("what", [what for what in WAITS if what not in ("setup", "read_files")])
@pytest.mark.parametrize("dies", [False, True])
def test_x_ends_the_iteration_wherever_it_is(what: str, dies: bool) -> None:
    story = waiting_for(what)
    story.press("x")
    if what == "run_check":
        story.answer(story.last("run_check"), CHECK_STOPPED)
    story.mend()
    if dies:
        story.server_dies()
    story.let_pass(500, 5)
    assert story.number > 1 and story.state == "running"
    assert story.words[0] == ("done" if what in ("review", "run_check") else "aborted")


def test_x_before_the_prompt_runs_waits_until_it_does() -> None:
    """An interrupt does nothing to a prompt that has not begun: two sessions would be at work."""
    story = waiting_for("send")
    story.mend()
    story.take()
    story.press("x")
    story.let_pass(2)
    assert story.take() == "", "the prompt is still on its way"
    story.answer(story.last("send"))
    story.let_pass(1)
    assert story.take() == "", "it has not begun"
    story.busy()
    assert story.number == 2 and story.take() == "interrupt create send"


def test_t_gives_the_terminal_to_the_session() -> None:
    story = Story()
    story.press("t")
    assert story.count("hand_over") == 1 and story.record()["session"] == "ses_1"
    story.world["hand_over"] = None
    story.press("t")
    story.works()
    story.answer(story.last("hand_over"))
    assert story.state == "running" and story.number == 2
    for story in (in_state("paused"), waiting_for("create")):
        story.press("t")
        assert story.all("hand_over") == []


@pytest.mark.parametrize("key", ["p", "escape"])
def test_help_and_plan_are_shown_until_they_are_put_away(key: str) -> None:
    story = at_work()
    story.press("?")
    assert story.picture().overlay == "help"
    story.press(key)
    assert not story.picture().overlay and not story.asks_whether_to_quit
    story.press("p", "space")
    assert story.picture().overlay == "plan" and story.state == "pausing", "other keys work"
    story.asks()
    story.press("n")
    assert story.last("reply").decision == "reject" and story.picture().overlay == "plan"
    story.press(key)
    assert not story.picture().overlay and not story.asks_whether_to_quit


@pytest.mark.parametrize("where", [*STATES, *WAITS])
def test_keys_that_are_not_offered_change_nothing(where: str) -> None:
    story = in_state(where) if where in STATES else waiting_for(where)
    offered = {key.lower() for key in story.shown}
    offered |= {"r"} if where in ("paused", "complete") else set()  # it does what Space does
    before = story.picture()
    for key in ("s", "r", "x", "z", "", "\x1b", "1", "y", "a", "n"):
        if key not in offered:
            story.take("-")
            story.press(key)
            assert timeless(story.picture()) == timeless(before), key
            assert story.take("-") == "", key


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("where", [*STATES, *WAITS])
def test_a_signal_ends_it_wherever_it_is(where: str, name: str) -> None:
    story = in_state(where) if where in STATES else waiting_for(where)
    before = len(story.exits)
    expected = {"complete": 0, "error": 1}.get(where, 130)
    story.tell(ocloop.Signalled(name))
    assert story.state == "stopping"
    assert story.exits[before:] == ([] if where == "stopping" else [expected])


# ── the lost screen ───────────────────────────────────────────────────────────────────────────────

LEAVES = {"starting": 130, "ready": 130, "paused": 130, "complete": 0, "error": 1, "pausing": 130}


@pytest.mark.parametrize("state", LEAVES)
def test_a_lost_screen_where_only_a_person_could_go_on_leaves(state: str) -> None:
    story = in_state(state)
    story.tell(ScreenLost("the terminal hung up"))
    if state == "pausing":
        assert story.state == "pausing" and story.exits == []
        story.works()
    assert story.exits == [LEAVES[state]]


@pytest.mark.parametrize("where", ["running", "waiting", *WAITS])
def test_a_lost_screen_where_something_is_under_way_goes_on_to_the_end(where: str) -> None:
    story = in_state(where) if where in STATES else waiting_for(where)
    story.asks("per_0")
    story.tell(ScreenLost("the terminal is gone (SIGHUP)"), ScreenLost("the terminal hung up"))
    assert story.text.count("going on without a screen") == 1 and story.exits == []
    story.let_pass(0.5)
    assert not story.asked
    story.mend()
    if where == "run_check":
        story.answer(story.last(where))
    story.let_pass(700, 5)
    story.asks()
    assert story.asked == [], "it is refused, whenever the screen was lost"
    for _ in range(4):
        if not story.exits:
            story.works()
    assert story.state == "complete" and story.exits == [0]


def test_a_lost_screen_while_it_starts_goes_on_when_a_run_was_wanted() -> None:
    story = in_state("starting", run=True)
    story.tell(ScreenLost("the terminal hung up"))
    story.answer(story.last("start_server"))
    assert story.state == "running" and story.exits == []
    story.asks()
    assert story.last("reply").decision == "reject"
    story.fails("auth")
    assert story.exits == [1], "nobody is there to press R"


# ── time away ─────────────────────────────────────────────────────────────────────────────────────
# A gap between two events is a machine that slept: nothing that has a deadline may see it.


def test_no_deadline_fires_for_time_away() -> None:
    story = at_work(stall_timeout=60, iteration_timeout=120, ask_timeout=60, max_time=500)
    story.asks()
    story.take()
    story.sleep(3600)
    assert story.all("interrupt") == [] and story.asked == ["per_1"]
    assert story.clock.elapsed < 10 and story.state == "running"
    assert "poll" in story.take("read_files"), "the session is looked at"
    story.let_pass(70)
    assert story.replied == [("per_1", "reject")], "deadlines go on where they were"
    story.sleep(-86_400)
    story.let_pass(30)
    assert story.all("interrupt") == [] and 0 <= story.clock.elapsed < 120, "a clock set back"
    story = Story(attended=False)
    story.fails("rate-limit")
    story.let_pass(20)
    story.sleep(3600)
    assert story.state == "waiting" and story.wait_left == pytest.approx(10, abs=1.5)
    story.let_pass(12)
    story.plan = None
    story.works()
    story.let_pass(4)
    story.sleep(3600)
    assert story.number == 2 and story.exits == [], "the plan is waited for"


# ── sums ──────────────────────────────────────────────────────────────────────────────────────────


def test_cost_and_tokens_are_added_up_over_iterations_messages_and_subagents() -> None:
    story = at_work(NINE)
    story.message("calls", 0.25, "msg_x")
    story.message("calls", 0.50, "msg_x")  # the same message again, with more
    story.works(0.25)
    assert story.total.cost == pytest.approx(0.75) and story.total.tokens == 40
    story.tell(Child("ses_2", "ses_child"), Child("ses_child", "ses_grandchild"))
    story.tell(Child("", "ses_stranger"))
    story.tell(Message("ses_child", "msg_c", Spend(0.25, 90_010, 6, 4)))
    story.message("answered", 0.50, session="ses_grandchild")
    story.message("answered", 9.00, session="ses_stranger")
    assert "context  0%" in header(story, 3), "the context is that of the own session"
    assert story.total.cost == pytest.approx(1.5), "it does not fall back to nothing"
    story.works(1.0)
    assert story.total.cost == pytest.approx(2.5)
    assert (story.total.input, story.total.output, story.total.cached) == (90_050, 30, 20)


@pytest.mark.parametrize("polled, total", [(None, 1.0), (Spend(3.5), 3.5), (Spend(0.0), 1.0)])
def test_what_polls_count_counts_where_it_can_be_told(polled: Spend | None, total: float) -> None:
    story = Story()
    story.spent = polled
    story.works(1.0)
    story.spent = None
    assert story.total.cost == pytest.approx(total)
    story.spent = Spend(0.5, 1000)  # without any event
    story.let_pass(6)
    assert story.total.cost == pytest.approx(total + 0.5) and story.total.input >= 1000
    story = waiting_for("look")  # at a session that is ended
    assert story.number == 1
    story.spent = Spend(1.5)
    story.answer(story.last("poll"))
    assert story.number == 2 and story.books.results[0].spend.cost == pytest.approx(1.5)


@pytest.mark.parametrize("end, told", [("Q", ""), ("SIGTERM", " notify")])
@pytest.mark.parametrize("is_quick", [True, False])
def test_the_last_costs_are_looked_up_before_the_exit(end: str, told: str, is_quick: bool) -> None:
    """Who pressed Q in front of the screen knows of the end."""
    story = at_work(notify="mail")
    story.message("calls", 0.5)
    story.spent = Spend(0.8)
    story.take("-")
    if not is_quick:
        story.world["interrupt"] = story.world["poll"] = None
    story.press("q", "q") if end == "Q" else story.tell(ocloop.Signalled(end))
    if not is_quick:
        assert story.exits == []
        story.let_pass(2.5)
    assert story.exits == [130], "nobody waits longer than two seconds"
    assert story.total.cost == pytest.approx(0.8 if is_quick else 0.5)
    assert story.record()["tasks"][0]["cost"] == pytest.approx(story.total.cost)
    poll = " poll" if is_quick else ""
    assert story.take("read_files", "measure_server") == f"interrupt{poll}{told} exit"
    assert {entry.iteration for entry in story.entries if entry.kind == "end"} == {0}


def test_no_number_of_a_task_is_that_of_another_one() -> None:
    """Tasks of one name in two phases are two tasks."""
    for plan in ("- [ ] test\n- [ ] test\n", "# A\n- [ ] test\n# B\n- [ ] test\n"):
        story = Story(plan)
        assert [task.is_current for task in tasks_of(story)] == [True, False]
        story.works(0.5)
        first, second = tasks_of(story)
        assert (first.is_current, second.is_current) == (False, True)
        assert (first.effort.spend.cost, second.effort.spend.cost) == (0.5, 0.0)
    story.plan = (story.plan or "").replace("# A", "# A (1 of 2)")
    story.let_pass(5)
    assert [task.effort.spend.cost for task in tasks_of(story)] == [0.5, 0.0], "it is the same task"
    story.busy()
    story.message("calls", 0.125)
    first, second = tasks_of(story)
    assert (first.effort.iterations, second.effort.iterations) == (1, 1)
    assert (first.effort.spend.cost, second.effort.spend.cost) == (0.5, 0.125)


# ── the journal ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "how, word, is_checked",
    [("refused", "refused", True), ("cut", "cut", True), ("x", "aborted", False)]
    + [("provider", "failed", False), ("outage", "outage", False)],
)
def test_an_iteration_is_called_what_it_was(how: str, word: str, is_checked: bool) -> None:
    story = at_work(NINE, check="make test")
    if how == "x":
        story.press("x")
    elif is_checked:
        story.ends(how)
        story.let_pass(3)
    else:
        story.fails(how)
    assert story.words == [word] and f"iter: #1 {word} in" in story.text
    assert story.count("run_check") == 1 + is_checked, "not where nothing may have been done"


def test_a_check_that_passes_later_makes_no_blocked_task_a_done_one() -> None:
    story = Story("- [ ] one\n- [ ] two\n", check="make test")
    story.check = 1
    story.plan = "- [BLOCKED: no key] one\n- [ ] two\n"
    story.ends()
    story.check = 0
    story.works()
    assert story.words == ["check failed", "done"]
    assert [task["outcome"] for task in story.record()["tasks"]] == ["blocked", "done"]


@pytest.mark.parametrize("is_polled", [False, True])
def test_a_subagent_that_waits_for_its_provider_is_not_silent(is_polled: bool) -> None:
    """It may have a model of its own. A wait of hours is one for the whole session."""
    story = at_work()
    story.tell(Child(story.id, "ses_child"))
    told = Activity("ses_child", "retrying", 1, 800.0, "Too Many Requests")
    for _ in range(3):
        if is_polled:
            story.activity, story.retry = "retrying", told
            story.let_pass(790, 9)
            story.activity, story.retry = "working", None
        else:
            story.tell(told)
            story.let_pass(790, 9)
        story.tell(Activity("ses_child", "working"))
    assert story.all("interrupt") == [] and story.words == []
    assert "attempt 1 failed: Too Many Requests" in story.text
    story.tell(told._replace(attempt=2, wait=7200.0))
    story.let_pass(30)
    assert story.words == ["rate-limited"] and story.state == "waiting"


def test_an_end_is_not_believed_of_a_look_that_is_older_than_the_news() -> None:
    story = at_work()
    story.world["poll"] = None
    story.idle()
    looking = story.last("poll")
    story.tell(Activity(story.id, "woke"), Activity(story.id, "working"))
    story.answer(looking, Polled("idle", "answered"))
    assert story.words == [], "it works again since"
    story.world["poll"] = answers(Polled("idle", "answered"))
    story.let_pass(1)
    assert story.words == ["nothing settled"]


def test_x_also_ends_a_session_whose_server_is_replaced_in_the_midst() -> None:
    story = at_work(server_memory=100, retries=40)
    story.memory = 300
    story.world["start_server"] = fails_with(0, "no port")
    story.let_pass(60)
    assert "in the midst" in story.text and story.state == "starting" and story.number == 1
    story.press("x")
    story.let_pass(5)
    assert story.words == ["aborted"]


def test_who_quits_during_a_check_loses_nothing_of_what_was_done() -> None:
    story = waiting_for("run_check", notify="mail")
    done = story.count("run_check")
    story.press("q", "q")
    assert story.exits == [130] and done == 2
    (result,) = story.books.results
    assert (result.word, result.check) == ("done", "interrupted")
    assert "iter: #1 done in" in story.text and story.record(130)["outcomes"]
    assert "to do: run the check" in story.text


def test_a_clock_that_steps_back_before_the_first_event_is_no_bug() -> None:
    story = Story(start=False)
    story.now -= 0.001
    story.hear()
    assert story.state == "running"


def test_what_a_subagent_does_is_no_end_of_a_wait_for_the_provider() -> None:
    story = at_work()
    story.tell(Child(story.id, "ses_child"))
    story.retries(1, 60)
    story.tell(Delta("ses_child", "prt_1", "a"))
    story.part("prt_2", "tool", "running", session="ses_child", tool="bash")
    assert story.picture().state == "retrying"
    story.part("prt_3", "tool", "running", tool="bash")
    assert story.picture().state == "running"


def test_texts_thoughts_and_tools_are_journaled_once() -> None:
    story = Story()
    story.part(story.prompted.part_id, "text", text=story.prompted.text)
    assert not story.picture().live and "text:" not in story.text, "it is no answer"
    story.part("prt_1", "think", "running", text="Hm")
    story.tell(Delta("ses_1", "prt_1", "m."))
    story.let_pass(5)
    shown = [(live.kind, live.text) for live in story.picture().live]
    assert shown == [("think", "Hmm.")], "a thought has no time beside it"
    told = len(story.entries)
    for _ in range(2):
        story.part("prt_1", "think", text="Hmm, yes")
        story.part("prt_2", "text", text="I begin.")
        story.part("prt_3", "tool", "running", tool="bash", argument="make")
        story.let_pass(5)
        story.part("prt_3", "tool", tool="bash", argument="make")
        story.part("prt_4", "tool", "failed", tool="read", argument="x", text="no such file")
    said = [
        (entry.kind, " ".join(entry.text.split()), entry.tone) for entry in story.entries[told:]
    ]
    assert said == [
        ("think", "Hmm, yes", "dim"), ("text", "I begin.", ""), ("bash", "make 5s", ""),
        ("read", "x failed: no such file", "bad"),
    ]  # fmt: skip
    story.part("prt_5", "text", "running", text="")
    story.tell(Message(story.id, "msg_9", Spend(), ended="calls", is_over=True))
    assert not story.picture().live, "one of which nothing is known is not shown for ever"
    story.part("prt_6", "text", "running", text="Let me")
    story.tell(Message(story.id, "msg_10", Spend(), is_over=True))  # with an error
    assert not story.picture().live


@pytest.mark.parametrize("text", ["I will read the plan.", ""])
@pytest.mark.parametrize("pieces", [(), ("I will read ", "the plan."), ("I will plan.",)])
def test_a_text_is_told_once_however_it_comes(text: str, pieces: tuple[str, ...]) -> None:
    """Where nobody looks pieces are left out, and its end may come after that of its tool."""
    story = at_work()
    for _ in range(2):
        story.part("prt_1", "text", "running", text=text)
        for piece in () if text else pieces:
            story.tell(Delta(story.id, "prt_1", piece))
        story.part("prt_2", "tool", tool="read", argument="PLAN.md")
        story.part("prt_1", "text", "done", text="I will read the plan.")
        kinds = [entry.kind for entry in story.entries]
        assert kinds[-2:] == ["text", "read"], "before the tool that it announced"
    story.tell(Message(story.id, "msg_9", Spend(), ended="calls", is_over=True))
    assert story.text.count("I will read the plan.") == 1 and not story.picture().live
    story.part("prt_3", "text", "running", text="")
    story.part("prt_4", "tool", tool="bash", argument="make")
    story.works()
    assert story.text.count("bash: make") == 1, "also where the end of the text never comes"


def test_an_error_is_told_once_and_a_subagents_is_indented_and_ends_nothing() -> None:
    story = Story(NINE, stall_timeout=60)
    fault = Fault("auth", "no entry")
    story.tell(Child("ses_1", "ses_child"), *[Broke("ses_child", fault)] * 3)
    story.part("prt_c", "text", session="ses_child", text="I look")
    story.works()
    assert story.words == ["done"]
    for _ in range(3):
        story.tell(Broke(story.id, fault._replace(message="boom")))
    story.ends("failed", fault._replace(message="boom"))
    story.let_pass(100)
    told = [(entry.text, entry.depth) for entry in story.entries if entry.kind in ("text", "error")]
    expected = [("no entry", 1), ("I look", 1), ("boom", 0), ("nothing happened for 1m00s", 0)]
    assert told == expected


def test_a_run_ends_with_records() -> None:
    story = Story("- [ ] a\n- [BLOCKED: no key] b\n- [MANUAL] c\n", notify="mail")
    story.plan = "- [x] a\n- [BLOCKED: no key] b\n- [MANUAL] c\n"
    story.plan += "<plan-complete>so it is</plan-complete>"
    story.ends()
    records = [entry.record for entry in story.entries if entry.record]
    assert [record["record"] for record in records] == ["iteration", "run"]
    expected: list[dict[str, object]] = [
        {"outcome": "done", "progress": True, "done": 1, "total": 2, "task": "a"},
        {"status": 3, "summary": "so it is", "blocked": 1, "manual": 1},
    ]
    for number, facts in enumerate(expected):
        assert {name: records[number][name] for name in facts} == facts
    for words in ("end: the agent says: so it is", "blocked: b (no key)", "manual: c"):
        assert words in story.text
    assert story.last("notify").facts["OCLOOP_EVENT"] == "stopped"


# ── interrupted everywhere ────────────────────────────────────────────────────────────────────────
# Short stories, each once more with an interruption after each thing that happens in it.


@pytest.mark.parametrize("story", SHORT)
def test_a_short_story_comes_to_its_end(story: str) -> None:
    for mute in (False, True):
        world = drive(Simulation(mute=mute, **{**SHORT[story], "attended": True}), 400)
        assert (world.state, world.status, world.run.plan.done) == ("complete", 0, 2)
        note_end_of(world)


@pytest.mark.parametrize("happens", INTERRUPTIONS)
@pytest.mark.parametrize("story", SHORT)
def test_a_run_that_is_interrupted_anywhere_ends_in_good_order(story: str, happens: str) -> None:
    for after in range(replay(story).happened):
        world = replay(story, after, happens)
        note_end_of(world)
        if happens == "Q":
            assert world.exits in ([130], [0])
        elif happens == "space":
            assert world.state in ("ready", "paused", "complete")
        elif happens == "screen":
            assert world.exits == [0]
        else:
            assert (world.state, world.status) == ("complete", 0), (after, world.told)


# ── hostile worlds ────────────────────────────────────────────────────────────────────────────────

SETTINGS: list[Json] = [{}, {"attended": True}, {"auto": False}, {"attended": True, "auto": False}]
ALL_ASK = ("ask",) * 99


def hostile(name: str, way: str, **options: Any) -> Simulation:
    return Simulation({name: way}, does=ALL_ASK, **options)


@pytest.mark.parametrize("name, way", MISBEHAVIOURS)
def test_a_run_comes_to_an_end_whatever_one_kind_of_request_does(name: str, way: str) -> None:
    for mute in (False, True):
        for options in SETTINGS:
            drive(hostile(name, way, mute=mute, **options))
        for since in (2, 3):
            drive(hostile(name, way, mute=mute, since=since))


# Kinds of answers that are not tried again, with good reason.
FATAL_ONCE = {(name, "final") for name in ("start_server", "setup", "create", "send", "poll")}
FATAL_ONCE |= {("setup", "400"), ("setup", "404")}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name, way", [*MISBEHAVIOURS, ("send", "lost")])
def test_what_happens_once_ends_no_run(name: str, way: str, number: int) -> None:
    for mute in (False, True) if (name, way) not in FATAL_ONCE else ():
        world = drive(hostile(name, way, since=number, times=1, mute=mute))
        # A last check that could not be run leaves the work unchecked.
        status = 3 if "the last check was interrupted" in world.reason else 0
        assert status == 0 or name == "run_check"
        assert (world.state, world.exits) == ("complete", [status]), world.told


def some_ways(rng: random.Random, kinds: int) -> dict[str, str]:
    return dict(rng.sample(MISBEHAVIOURS, kinds))


def test_a_run_comes_to_an_end_from_wherever_it_is_when_the_world_goes_wrong() -> None:
    rng = random.Random(11)
    for number in range(1400):
        world = Simulation(
            does=rng.choices(("", "ask", "two asks", "limit", "subagent", "retry"), k=9),
            auto=rng.random() < 0.5,
            grows=rng.choice((0.0, 0.0, 110.0)),
            server_memory=1000,
            mute=rng.random() < 0.4,
            attended=rng.random() < 0.5,
            iteration_timeout=rng.choice((0.0, 300.0)),
            check=rng.choice(("", "make")),
            models=rng.choice(((), ("a/b", "c/d"))),
        )
        turns = rng.choice((0, rng.randrange(90), rng.randrange(90)))
        troubled_at = turns - rng.randrange(1, 12)
        for turn in range(turns):
            if not world.rests:
                world.turn()
            if turn == troubled_at and not world.rests:
                INTERRUPTIONS[rng.choice(list(INTERRUPTIONS))](world)
            if turn == troubled_at and not world.rests and rng.random() < 0.2:
                world.press("t", "x")
        world.ways = some_ways(rng, 1 + number % 5)
        drive(world)


# ── the morning tells the truth ───────────────────────────────────────────────────────────────────
# What a run says of itself when nobody has looked: what is left, why it stopped, what to do.

SO = "<plan-complete>So.</plan-complete>"
FORTY = "nothing is pending, but this looks undone: " + '"[ ] b", ' * 5 + "and 35 more"


@pytest.mark.parametrize("plan, status, reason", [
    ("- [x] a\n- [MANUAL] b\n", 0, "the plan is complete"),
    ("- [x] a\n- [ ]b\n", 0, "the plan is complete"),
    ("- [x] a\n- [BLOCKED: x] b\n", 3, "complete but for 1 blocked task"),
    ("- [x] a\n- [~] b\n", 3, "complete but for 1 pending task"),
    ("- [ ] a\n- [ ]  c\n- [BLOCKED] b\n", 3, "for 2 pending tasks and 1 blocked task"),
])  # fmt: skip
def test_a_tagged_plan_ends_well_with_nothing_left(plan: str, status: int, reason: str) -> None:
    story = Story("- [ ] a\n- [ ] b\n", attended=False, notify="mail")
    story.plan = plan + SO
    story.ends()
    assert story.exits == [status] and reason in story.reason and f"{reason}\n" in story.text
    assert story.last("notify").facts["OCLOOP_EVENT"] == ("stopped" if status else "complete")
    assert ("◐ stopped" if status else "✔ complete") in seen(story)


@pytest.mark.parametrize("left, status, reason", [
    ("", 0, "nothing is left to do; the agent wrote no summary"),
    ("- [x]b\n", 0, "nothing is left to do; the agent wrote no summary"),
    ("- [BLOCKED: no key] b\n", 3, "complete but for 1 blocked task"),
    ("- [ ]b\n", 3, 'nothing is pending, but this looks undone: "- [ ]b"'),
    ("[ ] b\n" * 40, 3, FORTY),
])  # fmt: skip
def test_without_a_tag_what_looks_undone_is_undone(left: str, status: int, reason: str) -> None:
    story = Story(f"- [ ] a\n{left}", attended=False)
    story.works()
    assert story.exits == [] and "wrap up" in story.prompted.text
    told = "look like open tasks" in story.prompted.text
    assert told == ("look" in reason), "and whoever wraps up is told of them"
    story.idles()
    assert story.exits == [status] and f"end: {reason}" in story.text


@pytest.mark.parametrize("is_tagged", [True, False])
def test_an_open_task_that_goes_out_of_the_plan_is_named(is_tagged: bool) -> None:
    story = Story("- [ ] a\n- [ ] lost\n", attended=False, notify="mail")
    story.plan = "- [x] a\n" + SO * is_tagged
    story.ends()
    if not is_tagged:
        story.idles()
    assert story.exits == [0 if is_tagged else 3]
    gone = "1 open task gone from the plan: lost"
    assert f"end: {gone}" in story.text
    assert (f"end: nothing is pending, but {gone}" in story.text) != is_tagged
    assert "1 open task" in story.notified
    assert "to do: write back what is gone from the plan, or let it be: lost" in story.text
    story = Story("- [ ] a\n- [ ] b\n- [ ] c\n", attended=False)
    for plan in ("- [x] a\n- [ ] c\n", "- [x] a\n- [x] c\n- [x] b\n"):
        story.plan = plan
        story.idles()
    story.idles()
    assert story.exits == [0], "one that comes back was not lost"
    story = Story("- [ ] a\n" + "- [ ] test\n" * 3, attended=False)
    story.plan = "- [x] a\n- [x] test\n"
    story.idles()
    story.idles()
    assert story.exits == [3] and "2 open tasks gone from the plan: test, test" in story.reason
    story = Story("- [x] a\n- [ ] b\n- [ ] lost\n", check="git stash", finds={"run_check": None})
    story.plan = "- [x] a\n- [x] b\n" + SO
    story.answer(story.last("run_check"))
    assert "warn: 1 open task gone from the plan: lost" in story.text, "the check did it"
    story = Story(NINE, attended=False)
    story.plan = SO
    story.ends()
    assert story.exits == [3] and "gone from the plan" in story.reason, "nothing is left of it"


def test_the_counter_says_what_is_left_of_all_that_was_to_do() -> None:
    plan = "- [ ] a\n- [BLOCKED: x] b\n- [ ] c\n- [MANUAL] d\n"
    story = Story(plan, notify="mail", attended=False)
    assert story.last("create").prompt.title == "ocloop 2/3: a"
    story.works()
    assert "· 1/3 · 1 blocked · 1 manual ·" in story.text
    story.works()
    story.idles()
    assert story.exits == [3] and ", 2/3, 1 blocked, 1 manual, " in story.notified
    for plan, shown in (
        ("- [x] a\n- [BLOCKED] b\n- [ ] c\n- [ ] d\n", "██▒▒····"),
        ("- [x] a\n- [BLOCKED] b\n", "████▒▒▒▒"),
        ("- [x] a\n- [x] a\n- [BLOCKED] b\n", "█████▒▒▒"),
        ("- [x] a\n" * 99 + "- [BLOCKED] b\n", "███████▒"),
        ("- [ ] a\n" * 99 + "- [BLOCKED] b\n", "▒·······"),
        ("- [x] a\n- [MANUAL] b\n", "████████"),
    ):
        picture = story.picture()
        picture.plan = parse_plan(plan)
        row = ocloop.progress_row(picture, 10)
        assert "".join(text for _rank, _style, text in row) == f" {shown}"


def test_what_was_refused_is_counted_and_named() -> None:
    story = Story("- [ ] a\n", attended=False, stuck=2, notify="mail")
    for _ in range(3):
        told = story.prompted.text
        story.busy()
        for number, title in enumerate(("bash", "edit", "bash")):
            story.asks(f"per_{story.sessions}_{number}", title=title)
        story.idles()
    assert "iter: #1 nothing settled in" in story.text
    assert "· refused: bash ×2, edit ×1 ·" in story.text
    assert "What they asked for was refused: bash ×4, edit ×2: do without it." in told
    why = "refused: bash ×6, edit ×3: allow bash, edit in opencode.json, or use --auto"
    assert story.exits == [3]
    assert f"end: 3 iterations in a row settled no task (--stuck): {why}" in story.text
    assert why in story.notified and story.notified.count("refused") == 1
    assert "end: to do: allow bash, edit in opencode.json, or use --auto" in story.text
    first, *_others, last = (entry.record for entry in story.entries if entry.record)
    assert first["refused"] == {"bash": 2, "edit": 1}
    assert last["refused"] == {"bash": 6, "edit": 3}
    assert ocloop.how_to_allow(("bash", "question")) == (
        "allow bash in opencode.json, or use --auto; answer in the plan what it asked"
    ), "to allow a question would be to ask again"
    story = Story("- [ ] a\n", attended=False, notify="mail")
    story.asks(title="webfetch")
    story.plan = f"- [x] a\n{SO}"
    story.ends()
    message = story.notified
    assert story.exits == [0] and ", refused: webfetch ×1, " in message, "on the way"


@pytest.mark.parametrize("attended", [True, False])
@pytest.mark.parametrize("is_busy", [True, False])
def test_an_answer_that_a_limit_cut_off_is_tried_again(attended: bool, is_busy: bool) -> None:
    """Nobody interrupted it: it is no reason for a pause. A server may say busy for ever."""
    story = at_work("- [ ] a\n", attended=attended)
    story.verdict = "failed"
    story.fault = Fault("length", ocloop.CUT_OFF)
    if not is_busy:
        story.idle()
    story.let_pass(90 if is_busy else 2)
    assert story.words[0] == "cut" and "iter: #1 cut in" in story.text
    assert "error: its answer was cut off at the model's output limit" in story.text
    if not is_busy:
        story.wait_out()
        told = story.prompted.text
        assert "cut off at the model's output limit. It worked on:\n- a\n" in told
        story.works()
        assert "output limit" not in story.prompted.text


TAG = "take out the `<plan-complete>` tag, "
UNBLOCK = "unblock: change its box back to `[ ]`, "
ALLOW = "allow bash in opencode.json, or use --auto"
REFUSED = {"refused": {"bash": 2}}
FAILED = {**REFUSED, "check": {"command": "make test", "verdict": "failed"}}


@pytest.mark.parametrize("plan, record, steps", [
    (f"- [x] a\n{SO}", {"status": 0}, []),
    (f"- [x] a\n{SO}", {"status": 0, **REFUSED}, []),  # it was done without
    ("- [ ] a\n", {"status": 130}, ["run again to go on"]),
    (f"- [ ] a\n{SO}", {}, [f"{TAG}run again to go on"]),
    ("- [BLOCKED: x] a\n", {}, [f"{UNBLOCK}run again"]),
    ("- [ ] a\n- [BLOCKED: x] b\n", {}, ["run again to go on", f"{UNBLOCK}run again"]),
    (f"- [BLOCKED: x] a\n{SO}", {}, [f"{UNBLOCK}{TAG}run again"]),
    ("- [ ] a\n", FAILED, [ALLOW, "mend the check: `make test`", "run again to go on"]),
    ("- [x] a\n- [MANUAL] b\n", {"status": 0}, ["do by hand: 1 manual task"]),
    ("- [ ] a\n", {"state": ""}, ["start it with `run`"]), ("- [x] a\n", {"state": ""}, []),
    ("- [ ] a\n", {"status": 1}, ["mend what stopped it, run again"]),
])  # fmt: skip
def test_every_end_says_what_to_do_next(plan: str, record: Json, steps: list[str]) -> None:
    ended = {"state": "ended", "status": 3, **record} if record.get("state", "x") else {}
    assert ocloop.next_steps(parse_plan(plan), ended)[: len(steps) or 1] == steps
    assert ocloop.next_steps(parse_plan(plan), {"waits_for": ["bash rm -r x"]}, True) == [
        "answer what it asks (bash rm -r x): `attach` joins it"
    ]


def test_a_prompt_that_goes_with_the_last_task_hides_no_plan() -> None:
    """`git clean -fdx` by the agent: the plan is complete, and the prompt is needed no more."""
    story = Story("- [ ] a\n- [ ] b\n", attended=False)
    story.works()
    story.prompt = None
    story.plan = f"- [x] a\n- [x] b\n{SO}"
    story.ends()
    assert story.exits == [0] and "2 of 2 tasks done (100 %)" in story.text


@pytest.mark.parametrize("is_late", [False, True])
def test_what_no_check_has_seen_is_not_complete(is_late: bool) -> None:
    story = Story("- [ ] one\n", check="make test")
    story.world["run_check"] = None
    story.plan = DONE
    if is_late:
        story.ends()
    story.press("q", "q")
    record = story.record(130)
    assert record["check"]["verdict"] == ("interrupted" if is_late else "not run")
    said = ocloop.status_record("/p", parse_plan(DONE), 0, record)
    assert not said["complete"] and said["next_steps"] == ["run the check: `make test`"]
    assert in_state("ready", check="make test").record(130)["check"]["verdict"] == "not run"


def test_a_tag_that_somebody_takes_out_each_time_is_progress_once() -> None:
    story = Story("- [ ] one\n", check="git checkout PLAN.md", stuck=2, attended=False)
    for _ in range(4):
        story.plan = "- [ ] one\n" + SO
        story.world["run_check"] = None
        story.ends()
        story.plan = "- [ ] one\n"
        story.answer(story.last("run_check"), ocloop.CheckResult(0, ""))
    assert story.words == ["progress", *["nothing settled"] * 3] and story.exits == [3]


@pytest.mark.parametrize("plan, record, said", [
    (DONE, {"status": 0}, "(100 %), 0 blocked, 0 manual, complete\n"),
    (DONE, {"check": {"verdict": "failed"}}, ", marked complete\n"),
    ("- [x] one\n", {"status": 0}, ", complete\n"), ("- [x] one\n", {}, ", not marked complete"),
    ("- [ ] one\n" + SO, {"status": 3}, ", complete but for 1 pending task\n"),
    (SO, {"status": 3, "gone": ["lost"], "state": "ended"}, "1 open task gone from the plan: lost"),
    ("", {"status": 0}, "no task, not marked complete yet"),
])  # fmt: skip
def test_status_does_not_contradict_itself(plan: str, record: Json, said: str) -> None:
    read = parse_plan(plan)
    lines = ocloop.status_lines(read, ocloop.status_record("/p", read, 0, record))
    assert said in "\n".join(lines) + "\n"


def test_what_the_last_run_left_counts_on(tmp_path: Path, run_file: RunFile) -> None:
    """A task that an agent took out is not done the next day; and who only looks wipes nothing."""
    plan = tmp_path / "PLAN.md"
    plan.write_text("# B\n- [x] a\n")
    tasks = [{"phase": "A", "text": "a", "iterations": 1}]
    last = {"state": "ended", "ended": NOON, "status": 3, "gone": ["lost", "a"], "tasks": tasks}
    for is_killed in (False, True):
        if is_killed:
            del last["ended"]
        run_file.write(last)
        record = ocloop.status_at(str(plan))[2]["run"]
        assert record["gone"] == ["lost"], "one was written back"
        assert record["tasks"][0]["state"] == "done", "under another heading"
        driver = ocloop.Driver(Run(project_options(tmp_path), NOON), run_file)
        driver._record(None)
        driver._record(130)
        driver.writer.close(GENEROUS)
        assert run_file.read() == {**last, "pid": os.getpid()}


def test_a_record_is_told_of_its_own_run(tmp_path: Path, run_file: RunFile) -> None:
    path = str(tmp_path / "PLAN.md")
    Path(path).write_text("- [ ] a\n# B\n- [x] a\n- [ ] a\n")
    waits = {"waits_for": ["bash x"], "retry": "429", "waiting_until": NOON}
    tasks = [{"phase": phase, "text": "a"} for phase in ("", "B", "B")]
    run_file.write({"pid": 77, "state": "running", "tasks": tasks, **waits})
    record = ocloop.status_at(path)[2]["run"]
    assert [task["state"] for task in record["tasks"]] == ["pending", "done", "pending"]
    over: Json = {"waits_for": [], "retry": "", "waiting_until": None}
    assert {name: record[name] for name in waits} == over, "it was killed, and waits for nobody"
    assert run_file.acquire() == 0
    assert ocloop.status_at(path)[2]["run"] == {"pid": os.getpid(), "state": "starting"}
    os.close(run_file.lock or 0)


def test_what_an_iteration_took_out_before_it_was_broken_off_is_gone() -> None:
    story = Story("- [ ] one\n- [ ] two\n")
    story.plan = "- [ ] one\n"
    story.let_pass(4)
    assert story.record()["gone"] == ["two"], "also where nobody can say so at its end"
    story.press("q", "q")
    assert story.record(130)["gone"] == ["two"] and "1 open task gone from the plan" in story.text


def test_a_prompt_that_is_emptied_is_waited_for_as_one_that_is_away() -> None:
    for seconds in (20, 70):
        story = Story(attended=False)
        story.prompt = "---\nagent: build\n---\n"
        story.idles()
        story.let_pass(min(seconds, 50))
        assert (story.number, story.exits) == (1, [])
        story.prompt = "Do it" if seconds < 60 else ""
        story.let_pass(20)
        assert story.exits == ([] if seconds < 60 else [1])
        assert story.number == 2 or "is empty: write the prompt into it" in story.reason


def test_a_plan_with_more_tasks_than_anybody_planned_is_refused() -> None:
    story = Story(attended=False)
    story.plan = "- [ ] x\n" * (ocloop.MOST_TASKS + 1)
    story.idles()
    story.let_pass(70)
    assert story.exits == [1] and "has 10001 tasks: 10000 are the most" in story.reason
    assert story.run.plan.total == 2, "the last one that was good stays"


@pytest.mark.parametrize("plan, record, is_complete", [
    (f"- [x] a\n{SO}", {}, True), (f"- [x] a\n{SO}", {"status": 130}, True),
    (f"- [x] a\n- [ ] b\n{SO}", {}, False), (f"- [BLOCKED] a\n{SO}", {}, False),
    ("- [x] a\n", {}, False), ("- [x] a\n", {"status": 0}, True),  # no summary was written
    ("- [x] a\n- [ ] b\n", {"status": 0}, False),  # a person added a task
    ("- [x] a\n- [ ]b\n", {"status": 0}, False), ("- [x] a\n", {"status": 3}, False),
    *[(f"- [x] a\n{SO}", {"check": {"verdict": verdict}}, verdict == "passed")
      for verdict in ("passed", "failed", "interrupted", "not run")],
])  # fmt: skip
def test_status_says_complete(plan: str, record: Json, is_complete: bool) -> None:
    read = parse_plan(plan)
    assert ocloop.status_record("/p", read, 0, record)["complete"] == is_complete
    at_work = {name: fact for name, fact in record.items() if name != "status"}
    assert not ocloop.status_record("/p", read, 17, at_work)["complete"], "it is worked on"


def test_a_run_that_stands_at_its_end_has_a_status_and_next_steps() -> None:
    story = Story("- [ ] one\n")
    assert story.record()["status"] is None and story.record()["ended"] is None
    story.plan = "- [BLOCKED: no key] one\n" + SO
    story.ends()
    record = story.record()
    assert (record["state"], record["status"]) == ("stopped", 3)
    assert ocloop.status_record("/p", story.run.plan, 17, record)["next_steps"] == [
        f"{UNBLOCK}{TAG}run again"
    ]
    story = in_state("complete")
    assert ocloop.status_record("/p", story.run.plan, 17, story.record())["complete"]


def test_a_second_line_that_is_nearly_a_task_is_told_as_the_first_one_was() -> None:
    story = Story(TWO)
    for number in (1, 2):
        story.plan = TWO + "[ ] b\n" * number
        story.idles()
        assert story.text.count("is nearly a task") == number


# ── what a person sees ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
def test_always_says_for_what_and_how_long(size: tuple[int, int]) -> None:
    asked = {"id": "per_1", "sessionID": "ses_1", "permission": "bash", "action": "shell"}
    first = OpenCode.__new__(OpenCode).permission({**asked, "always": ["make *", "git *"]})
    second = OpenCode2.__new__(OpenCode2).permission({**asked, "save": ["make *", "git *"]})
    assert first.always == "make *, git *, until the server ends"
    assert second.always == "make *, git *, in this project from now on"
    story = Story()
    story.tell(first._replace(session=story.id))
    shown = " ".join(seen(story, *size).split())
    assert "A allows make *, git *, until the server ends Y once, A always, N no" in shown
    assert "A allows" not in seen(scene("permission")), "not every server says so"


def test_emphasis_is_not_shown_raw() -> None:
    story = Story("# **One**\n- [ ] **Export:** as `CSV`, 2**3\n- [ ] b\n", run=False)
    assert "S begins with: Export: as `CSV`, 2**3" in seen(story)
    story.press("s")
    for key in ("z", "p"):
        story.press(key)
        assert "Export: as" in seen(story) and "**E" not in seen(story) and "**O" not in seen(story)
    story.works()
    assert "task: Export:" in story.text and "· Export: as" in story.text


def test_nested_tasks_are_indented() -> None:
    plan = "- [ ] a\n  - [x] b\n      - [ ] c\n  - [ ] d\n- [ ] e\n\t- [ ] f\n# G\n  - [ ] g\n"
    assert [task.depth for task in parse_plan(plan).tasks] == [0, 1, 2, 1, 0, 1, 0]
    story = Story(plan)
    story.press("p")
    rows = [row.rstrip() for row in seen(story).split("\n")]
    for row in ("   ✔ b", "     ○ c", "   ○ d", " ○ e"):
        assert row in rows, row


def test_the_help_can_be_read_on_a_small_screen() -> None:
    story = scene("help")
    scroll = Scroll()
    read: list[str] = []
    for moved in (0, *[1] * 39):
        scroll.away["help"] += moved
        read += drawn(story.picture(), 40, 12, scroll)[2:10]
    shown = " ".join(" ".join(dict.fromkeys(read)).split())
    words = " ".join(" ".join(key) for key in ocloop.KEYS)
    for word in (*words.split(), "▸", "○", "☐", "×2", "▒", "(arrows)"):
        assert word in shown, word
    assert scroll.away["help"] > 9
    story.press("z", "p")
    drawn(story.picture(), 40, 12, scroll)
    assert scroll.away["plan"] == 0, "the place in the help is not that in the plan"


def test_only_what_is_seen_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[str] = []

    def counted(function: Any, *args: Any) -> Any:
        laid_out.append(function.__name__)
        return function(*args)

    for name in ("entry_rows", "task_row"):
        monkeypatch.setattr(ocloop, name, functools.partial(counted, getattr(ocloop, name)))
    story = Story("- [x] done\n" * 3000 + "- [ ] last\n")
    for number in range(3000):
        story.tell(Noted("note", f"{number}"))
    scroll = Scroll()
    for moved in (0, -5, -1, 0, 3):
        laid_out.clear()
        scroll.away[""] += moved
        drawn(story.picture(), 160, 40, scroll)
        assert len(laid_out) < 100, moved


# ==================================================================================================
# 2  What surrounds the run
#
# The values that it is made of, OpenCode 1's wire, what the system is asked, what a person reads
# and types. Nothing here needs OpenCode; most of it knows no processes, no network and no sleeping.
# What speaks HTTP does so with a server of the test's own on 127.0.0.1.
# ==================================================================================================

Patch = pytest.MonkeyPatch
Printed = pytest.CaptureFixture[str]
Started = Callable[..., "subprocess.Popen[bytes]"]
Say = Callable[..., str]
GENEROUS = 20.0  # seconds; what is quadratic would take minutes


# ── plan ──────────────────────────────────────────────────────────────────────────────────────────

ADVICE = "write it like `- [ ] Build it`"


@pytest.mark.parametrize("state", BOXES)
def test_what_is_a_task(state: str) -> None:
    for line, text, *reason in BOXES[state]:
        plan = parse_plan(line)
        found = [(task.state, task.text, task.reason, task.begun) for task in plan.tasks]
        assert found == [(state, text, "".join(reason), False)], line
        assert plan.near_misses == (), line


@pytest.mark.parametrize("text", NO_TASKS, ids=ascii)
def test_what_is_no_task_and_no_near_miss(text: str) -> None:
    plan = parse_plan(text)
    assert plan.near_misses == () == plan.tasks


@pytest.mark.parametrize("mark", BEGUN, ids=ascii)
def test_what_is_begun_is_open(mark: str) -> None:
    plan = parse_plan(f"- [{mark}] T\n- [x] done\n")
    task = plan.tasks[0]
    assert (task.state, task.text, task.reason, task.begun) == ("pending", "T", "", True)
    assert plan.current == task
    assert (plan.done, plan.pending, plan.settled, plan.percent) == (1, 1, 1, 50)
    assert plan.near_misses == ()


@pytest.mark.parametrize("fault", NEAR_MISSES)
def test_a_near_miss_is_no_task_and_is_named_with_its_line_and_an_advice(fault: str) -> None:
    for line in NEAR_MISSES[fault]:
        plan = parse_plan(f"# Plan\n\n- [x] a\n{line}\n")
        is_open = "x" not in line.lower() and "\u2611" not in line
        assert [task.text for task in plan.tasks] == ["a"]
        (near,) = plan.near_misses
        assert (near.line, near.text, near.is_open) == (4, line.strip(), is_open)
        assert plan.open_near_misses == plan.near_misses[: int(is_open)]
        assert str(near) == f'4 is nearly a task: "{line.strip()}": {ADVICE}'


def test_an_open_box_that_begins_a_line_never_vanishes() -> None:
    signs = ("", "- ", "-", "* ", "**", "1. ", "1.1 ", "> ", "### ", "| ", "\u2022 ", "(1) ", "a) ")
    rests = ("T", "T [x]", "T `a`", "[MANUAL] T", "[BLOCKED: a] T", "T [b](c)", "a:b")
    for sign in signs:
        for space in (" ", "", "**", " **", ": ", "* ", "\u3000"):
            for rest in rests:
                plan = parse_plan(f"{sign}[ ]{space}{rest}")
                assert len(plan.tasks) + len(plan.near_misses) == 1, (sign, space, rest)


def test_the_first_five_are_named_and_how_many_more_there_are() -> None:
    def said(count: int) -> list[str]:
        return ocloop.name_near_misses("P.md", parse_plan("[ ] T\n" * count).near_misses)

    assert said(0) == []
    assert said(5)[4] == f'P.md:5 is nearly a task: "[ ] T": {ADVICE}'
    assert said(6)[5:] == ["P.md has 1 more such line"]
    assert said(40)[5:] == ["P.md has 35 more such lines"]
    plan = parse_plan("[BLOCKED: no key] Pay\n- [BLOCKED: no key Pay\n### [MANUAL] Call\n")
    assert [near.line for near in plan.near_misses] == [1, 2, 3], "settled ones are named, too"
    assert plan.tasks == () == plan.open_near_misses
    assert parse_plan("| T | [x] | [ ] |").open_near_misses, "one of its boxes is open"


@pytest.mark.parametrize("plan, expected", PLANS, ids=ascii)
def test_lines_end_at_line_ends_only_and_what_holds_no_tasks(plan: str, expected: str) -> None:
    assert " ".join(task.text for task in parse_plan(plan).tasks) == expected


def test_a_fence_or_a_comment_that_is_never_closed_is_named() -> None:
    plan = parse_plan("```\na\n```\n[ ] T\n````sh\n```\nb\n```\n\nc <!-- d\n[ ] T\n~~~\n")
    assert [str(near) for near in plan.near_misses] == [
        f'4 is nearly a task: "[ ] T": {ADVICE}',
        "5 opens a code block that is never closed",
        "10 opens a comment that is never closed",
        f'11 is nearly a task: "[ ] T": {ADVICE}',
        "12 opens a code block that is never closed",
    ]
    assert [near.line for near in plan.open_near_misses] == [4, 11], "a fault is no open task"


def test_a_task_knows_its_line_and_its_phase_and_the_current_one_is_the_first_pending() -> None:
    plan = parse_plan(
        "- [x] z\n## Phase 1 ##\n- [x] a\n\n```\n# no heading\n```\n"
        "### Part #2\n- [BLOCKED] b\n#none\n- [~] c\n- [ ] d\n"
    )
    found = [(task.text, task.phase, task.line) for task in plan.tasks[:4]]
    assert found == [("z", "", 1), ("a", "Phase 1", 3), ("b", "Part #2", 9), ("c", "Part #2", 11)]
    assert plan.current == plan.tasks[3] and plan.goal == "c"
    over = parse_plan("- [x] a\n- [MANUAL] b\n")
    assert over.current is None and over.goal == "wrap up"


@pytest.mark.parametrize("done, pending, manual, blocked, total, percent", [
    (2, 2, 2, 1, 5, 40), (1, 3, 0, 0, 4, 25), (1, 7, 0, 0, 8, 13), (0, 0, 0, 3, 3, 0),
    (0, 0, 3, 0, 0, 100), (5, 0, 1, 1, 6, 83), (0, 0, 0, 0, 0, 100), (0, 5, 0, 0, 5, 0),
    (5, 0, 2, 0, 5, 100), (1, 199, 0, 0, 200, 1), (199, 1, 0, 0, 200, 99), (3, 5, 0, 0, 8, 38),
])  # fmt: skip
def test_progress(
    done: int, pending: int, manual: int, blocked: int, total: int, percent: int
) -> None:
    marks = "x" * done + " " * pending + "M" * manual + "B" * blocked
    words = {"M": "MANUAL", "B": "BLOCKED: b"}
    plan = parse_plan("".join(f"- [{words.get(mark, mark)}] t\n" for mark in marks))
    assert (plan.total, plan.percent) == (total, percent)
    assert (plan.done, plan.pending, plan.manual, plan.blocked) == (done, pending, manual, blocked)
    assert plan.settled == done + manual + blocked
    said = f"{done} of {total} tasks done ({percent} %), {blocked} blocked, {manual} manual"
    assert str(plan) == (said if plan.tasks else "no task")


@pytest.mark.parametrize("before, now, missing", [
    ("- [ ] a\n- [ ] b\n- [ ] c", "- [x] a", ["b", "c"]), ("- [ ] a\n- [x] b", "- [ ] a", []),
    ("- [ ] a\n- [MANUAL] b\n- [x] c", "- [ ] a", []),
    ("- [ ] a\n- [BLOCKED] c", "- [ ] a", ["c"]),  # it is not done
    ("- [x] test\n- [ ] a\n- [ ] test", "- [x] test\n- [x] a", ["test"]),
    ("- [ ] a\n- [ ] b", "- [ ] b, in other words\n- [x] a", []),
    ("- [ ] a\n- [ ] b", "- [ ] b\n- [ ] a", []), ("- [ ] a", "- [ ] a1\n- [ ] a2", []),
    ("- [ ] a\n- [ ] b\n- [ ] c", "- [x] a\n- [ ] d", ["b"]),
    ("- [ ] test\n- [ ] b\n- [ ] test", "- [ ] test\n- [ ] b", ["test"]), ("- [ ] a", "", ["a"]),
    ("", "- [ ] a", []),
])  # fmt: skip
def test_open_tasks_that_are_gone_are_missing(before: str, now: str, missing: list[str]) -> None:
    assert ocloop.missing_tasks(parse_plan(before), parse_plan(now)) == missing


@pytest.mark.parametrize("plan, summary", TAGS, ids=ascii)
def test_the_completion_tag(plan: str, summary: str | None) -> None:
    assert parse_plan(plan).summary == summary


@pytest.mark.parametrize(
    "text, tasks",
    LARGE_PLANS,
    ids=lambda value: ascii(value[:16]) if isinstance(value, str) else "",
)
def test_a_large_plan_is_read_in_time(text: str, tasks: int) -> None:
    before = time.process_time()
    assert len(parse_plan(text).tasks) == tasks
    assert time.process_time() - before < GENEROUS


WRITTEN = {"pending": "[ ]", "done": "[x]", "manual": "[MANUAL]", "blocked": "[BLOCKED]"}


def test_any_text_is_a_plan() -> None:
    rng = random.Random(1)
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(6_000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(40)))
        plan = parse_plan(text)
        states = [task.state for task in plan.tasks]
        assert plan.settled + plan.pending == len(states)
        assert set(states) <= set(WRITTEN)
        assert plan.total == plan.done + plan.pending + plan.blocked and 0 <= plan.percent <= 100
        assert (plan.current is None) == (plan.pending == 0)
        for task in plan.tasks:
            assert task.text and "\n" not in task.text and task.text == task.text.strip()
            assert task.state == "pending" or not task.begun
        lines = {task.line for task in plan.tasks}
        assert lines.isdisjoint(near.line for near in plan.near_misses if near.text)
        assert set(plan.open_near_misses) <= set(plan.near_misses)
        crlf = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
        for same in (text, crlf, *["\ufeff" + text] * (text[:1] != "\ufeff")):
            other = parse_plan(same)
            assert (other.tasks, other.summary) == (plan.tasks, plan.summary)
        plain = [task for task in plan.tasks if not re.search(r"<|-->|`|^\**\[|\]\**$", task.text)]
        anew = parse_plan("".join(f"- {WRITTEN[task.state]} {task.text}\n" for task in plain))
        assert [task[:2] for task in anew.tasks] == [task[:2] for task in plain]
        seen.update(states, complete=plan.summary is not None, near=len(plan.near_misses))
        seen.update(begun=sum(task.begun for task in plan.tasks))
    assert min(seen[word] for word in (*WRITTEN, "complete", "begun", "near")) > 10, seen


# ── prompt ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text, fields, body", PROMPTS, ids=ascii)
def test_front_matter(text: str, fields: dict[str, str], body: str) -> None:
    assert ocloop.split_front_matter(text) == (fields, body)


def test_a_comma_separates_the_models_in_line() -> None:
    assert ocloop.models_of({}) == () == ocloop.models_of({"model": ""})
    assert ocloop.models_of({"model": "a/b,c/d, e/f,,"}) == ("a/b", "c/d", "e/f")


@pytest.mark.parametrize("body, told, expected", [
    ("{{PLAN_FILE}} {{TASK}} {{ITERATION}}", "", "/p/PLAN.md a {{TASK}} \\1 {{CHECK}} b 7"),
    ("nothing", "", "nothing"),
    ("a {{CHECK}} b", "", "a  b"),
    ("a {{CHECK}} b", "bad {{TASK}}", "a bad {{TASK}} b"),
    ("a", "bad {{ITERATION}}", "a\n\nbad {{ITERATION}}"),
    ("{{task}} {{ TASK }} {{OTHER}}", "", "{{task}} {{ TASK }} {{OTHER}}"),
])  # fmt: skip
def test_placeholders_are_filled_once(body: str, told: str, expected: str) -> None:
    task = "a {{TASK}} \\1 {{CHECK}} b"
    plan = ocloop.Plan([ocloop.Task("pending", task)])
    assert ocloop.make_prompt(body, "/p/PLAN.md", plan, 7, told).text == expected


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_journal_keeps_the_newest_entries_and_its_numbers_go_on() -> None:
    journal = ocloop.Journal(ocloop.RunClock(NOON))
    for number in range(journal.LENGTH + 10):
        journal.note("note", str(number))
    assert journal.count == journal.LENGTH + 10 and len(journal.entries) == journal.LENGTH
    assert [entry.text for entry in list(journal.entries)[-2:]] == ["3008", "3009"]
    assert journal.entries[-1].number == journal.count
    journal.note("text", "x" * 5_000_000)
    text = journal.entries[-1].text
    assert text.endswith("… (5000000 characters)") and len(text) < 4100


@pytest.mark.parametrize("words, value, text", [
    *[(ocloop.duration, *row) for row in (
        (0, "0s"), (-3, "0s"), (9.9, "9s"), (59.9, "59s"), (60, "1m00s"), (245, "4m05s"),
        (3599, "59m59s"), (3600, "1h00m"), (11_520, "3h12m"), (360_000, "100h00m"))],
    *[(ocloop.short_number, *row) for row in (
        (0, "0"), (999, "999"), (1000, "1.0k"), (1234, "1.2k"), (9949, "9.9k"), (9950, "10k"),
        (10_000, "10k"), (999_499, "999k"), (999_500, "1.0M"), (1_234_567, "1.2M"),
        (45_000_000, "45M"), (999_500_000, "1.0G"), (2_000_000_000, "2.0G"))],
    *[(ocloop.dollars_of, *row) for row in (
        (0.0012, "$0.0012"), (0.25, "$0.25"), (3.1, "$3.10"), (1234.5, "$1234.50"),
        (0.0001, "$0.0001"), (0.00009, "<$0.0001"), (0.099, "$0.10"), (0.1, "$0.10"))],
])  # fmt: skip
def test_words_for_people(words: Callable[[Any], str], value: float, text: str) -> None:
    assert words(value) == text


def test_only_a_check_that_passes_ends_the_streak_of_those_that_fail() -> None:
    names = {"f": "failed", "p": "passed", "i": "interrupted", "-": ""}
    for checks, failures in (("", 0), ("ffp", 0), ("fpff", 2), ("f-f", 2), ("fif", 2), ("pppf", 1)):
        books = books_of(*(a_result(check=names[letter]) for letter in checks))
        assert books.check_failures == failures, checks


@pytest.mark.parametrize("plans, progress", [
    (["- [ ] a", "- [x] a"], "+"), (["- [ ] a", "- [BLOCKED: b] a"], "+"),
    (["- [ ] a", "- [MANUAL] a"], "+"), (["- [ ] a", "- [ ] a"], "-"),
    (["- [ ] a", "- [~] a", "- [ ] a"], "--"), (["- [ ] a", "- [ ] a (attempt 3 failed)"], "-"),
    (["- [ ] a", "- [x] a", "- [ ] a", "- [x] a", "- [ ] a", "- [x] a"], "+----"),
    (["- [x] a\n- [ ] b", "- [ ] a\n- [x] b"], "-"), (["- [ ] a\n- [ ] b", "- [ ] b"], "-"),
    (["- [ ] a", "- [ ] a\n- [ ] b", "- [ ] a"], "--"),
    (["- [ ] a", "- [ ] a\n- [x] b", "- [ ] a", "- [ ] a\n- [x] b"], "---"),
    # A line that is done from the beginning is nobody's progress: agents add one each time.
    (["- [ ] a", "- [ ] a\n- [x] b", "- [ ] a\n- [x] b\n- [x] c", "- [x] a\n- [x] b"], "--+"),
    (["- [ ] a\n- [ ] b", "- [x] a\n- [ ] b\n- [ ] c\n- [ ] d"], "+"),
    (["- [x] a\n- [ ] b", "- [x] a\n- [x] b"], "+"), (["- [ ] a", "", "- [ ] a"], "--"),
])  # fmt: skip
def test_progress_is_more_than_ever_before(plans: list[str], progress: str) -> None:
    books = books_of()
    books.note_plan(parse_plan(plans[0]))
    found = [books.note_plan(parse_plan(plan)) for plan in plans[1:]]
    assert "".join("+" if made else "-" for made in found) == progress


def test_sums_and_streaks_are_computed_from_the_results() -> None:
    books = books_of(
        a_result("done", seconds=100.0, spend=Spend(1.0, 1, 2, 3)),
        a_result("rate-limited", seconds=900.0, spend=Spend(0.25)),
        a_result("refused", seconds=20.0, task=ocloop.Task("pending", "two")),
        a_result("outage"),
        a_result("failed", check="failed"),
    )
    assert books.spent.cost == pytest.approx(1.0 + 0.25 + 3 * 0.5)
    assert books.spent.tokens == 6 + 3 * 19
    assert books.average == 60.0, "of those that went well"
    assert books.counted == 3, "what a provider would not let work does not count"
    assert books.last_worked is books.results[2] and len(books.unsettled) == 2
    books.begin_anew()
    assert (books.check_failures, books.unsettled) == (0, []), "where a person went on"
    books.add(a_result(check="failed"))
    assert (books.check_failures, len(books.unsettled)) == (1, 1)
    books.add(a_result("rate-limited"))
    assert books.efforts["", "one"].check_failed, "no check has passed since"
    books.note_check(ocloop.CheckResult(0, ""))
    assert not books.efforts["", "one"].check_failed
    books = books_of()
    assert (books.average, books.last_worked, books.spent) == (0.0, None, Spend())


def test_the_first_model_that_does_not_rest_works() -> None:
    """A rest without an announced end grows until the model has worked."""
    books = books_of()
    clock = books.journal.clock
    files = ocloop.Files(Options(), books.journal)
    line = ocloop.ModelLine(Options(models=("a/1", "a/2", "a/3")), files, books)
    clock.now = 0.0
    assert line.choose() == "a/1" and line.others() == ["a/2", "a/3"]
    assert line.set_aside("", 100.0) == 0.0 and line.current == "a/2", "another one works at once"
    line.set_aside("", 50.0)
    clock.now = 10.0
    assert line.choose() == "a/3" and not line.others()
    assert line.set_aside("", 190.0) == 40.0, "all rest: until the one that is back first"
    assert line.current == "a/2" == line.choose() and line.wait_for("a/2") == 40.0
    clock.now = 99.0
    assert line.choose() == "a/2"
    clock.now = 100.0
    assert line.choose() == "a/1" and line.wait_for("a/1") == 0.0
    line.models = ("a/1",)
    rests = [line.set_aside("") for _ in range(7)]
    assert rests == [60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0]
    line.note_success()
    assert line.choose() == line.current and line.set_aside("") == 30.0
    line.begin_anew()
    assert line.choose() == "a/1" and line.wait_for("a/1") == 0.0 and line.set_aside("") == 30.0
    line.models = ("",)  # the prompt names none any more: OpenCode's own default is alone
    assert line.choose() == "" and line.set_aside("", 70.0) == 70.0 == line.wait_for("")
    assert line.choose() == "" and not line.others()


@pytest.mark.parametrize("models, agent, words", [
    (("acme/large",), "build", ""),
    (("acme/large", "acme/smal"), "", "there is no model acme/smal: did you mean acme/small"),
    (("acme/zzzzzzzzzzz",), "", "acme/zzzzzzzzzzz: `opencode models` lists them"),
    (("other/large",), "", "`opencode auth login` adds a provider"),
    (("acmee/large",), "", "there is no model acmee/large: did you mean acme/large"),
    (("",), "", "there is no model acme/gone"),  # of the configuration
    (("acme/large#high",), "", ""),
    (("acme/large#turbo",), "", "there is no variant turbo of acme/large: low, medium, high"),
    (("acme/small#low",), "", "there is no variant low of acme/small: it has none"),
    (("acme/small",), "biuld", "there is no agent biuld: there are build"),
    (("acme/small",), "xyz", "there is no agent xyz: there are build, plan"),
])  # fmt: skip
def test_a_wrong_name_is_told_with_what_was_meant(
    models: tuple[str, ...], agent: str, words: str
) -> None:
    problem = ocloop.problem_of_names(ACME, models, agent)
    assert words in problem and bool(problem) == bool(words)
    assert ocloop.problem_of_names(Setup(), models, agent) == "", "which it cannot tell"
    assert "debug agents" not in OCLOOP.read_text("utf-8"), "it starts a service, and lists nothing"


@pytest.mark.parametrize("options, used, streaks, words", [
    ({}, (10**6, 1e6, 1e9), (5, 0), ""),
    ({"max_iterations": 3}, (2, 0, 0), (0, 0), ""),
    ({"max_iterations": 3}, (3, 0, 0), (0, 0), "--max-iterations is reached: 3"),
    ({"max_cost": 2.0}, (0, 1.99, 0), (0, 0), ""),
    ({"max_cost": 2.0}, (0, 2.5, 0), (0, 0), "--max-cost is reached: $2.50"),
    ({"max_time": 3600.0}, (0, 0, 3700), (0, 0), "--max-time is reached: 1h01m"),
    ({}, (0, 0, 0), (6, 0), "6 iterations in a row settled no task (--stuck)"),
    ({"stuck": 2}, (0, 0, 0), (2, 0), ""),  # the next one is told of it
    ({"stuck": 0}, (0, 0, 0), (99, 99), ""),
    ({"check": "make test"}, (0, 0, 0), (0, 5),
     "the check failed 5 times in a row (--stuck): mend what `make test` shows"),
    ({"stuck": 1}, (0, 0, 0), (0, 1), "the check failed 1 time in a row (--stuck)"),
])  # fmt: skip
def test_a_limit_that_is_reached_is_named_with_what_was_used(
    options: Json, used: tuple[float, ...], streaks: tuple[int, int], words: str
) -> None:
    unsettled, failures = streaks
    results = [a_result()] * unsettled + [a_result("cut", check="failed")] * failures
    books = books_of(*results, **options)
    limit = books.used_up(dict(zip(("max_iterations", "max_cost", "max_time"), used)))
    reached = limit or books.stuck_on()
    assert words in reached and bool(reached) == bool(words)


def test_a_limit_is_raised_by_as_much_again_until_there_is_room() -> None:
    books = books_of(max_iterations=3, max_cost=1e-6)
    for name, used, most in (
        ("max_iterations", 3, 6.0),
        ("max_iterations", 7, 9.0),
        ("max_cost", 10.0, 10.000001),  # in no time
    ):
        books.make_room({**dict.fromkeys(books.limits, 0.0), name: used})
        assert books.limits[name] == pytest.approx(most)


# ── opencode: the event stream ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("comes", ["nothing", "a page"])
def test_a_stream_that_never_comes_is_said_once(comes: str, wire: Wire, monkeypatch: Patch) -> None:
    posted: list[Event] = []
    waits: list[float] = []
    client = wire.client() if comes == "a page" else Client("http://127.0.0.1:9", "", "")
    reader = ocloop.StreamReader(a_dialect(client), posted.append)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        reader.stopped = len(waits) > 30

    monkeypatch.setattr(time, "sleep", sleep)
    reader.run()
    assert waits == [1, 2, 3, 4, *[5] * 27] and len(posted) == 1
    assert "there is no event stream" in posted[0].text


def test_events_are_decoded_in_their_order() -> None:
    idle, new = frame("session.idle", sessionID="ses_1"), frame("never.heard.of", sessionID="ses_2")
    odd = delta_of("ses_1", "x").replace(b'"x"', b'"\xff"')
    stream = frame("server.connected") + idle + new + b": heartbeat\n\n" + odd
    said = [Activity("ses_1", "idle"), Alive("ses_2"), Delta("ses_1", "prt_1", "\ufffd")]
    assert read(stream) == said
    quoted = json.dumps({"type": "message.part.delta", "sessionID": "ses_2"})
    part = {"id": "prt_1", "messageID": "msg_1", "type": "text", "text": quoted}
    (words,) = read(frame("message.part.updated", part=part, sessionID="ses_1"), live=False)
    assert isinstance(words, Part) and words.session == "ses_1", "what a model quotes is no event"
    heard, idle = read(frame("session.idle", sessionID="ses_1", more="x" * 9999), verbose=True)
    assert isinstance(heard, Noted) and idle == Activity("ses_1", "idle")
    assert '"type": "session.idle"' in heard.text and len(heard.text) < 400


@pytest.mark.parametrize("data", [
    b"", b"{", b"null", b"7", b"[]", b"\"text\"", b"{\"type\":\"a\"}",
    b"{\"type\":\"a\",\"properties\":[]}", b"\xff\xfe", b"9" * 5000, b"[" * 100_000,
    b"{\"type\":\"session.idle\",\"properties\":{\"sessionID\":\"ses_1\"}",
], ids=lambda data: ascii(data[:20]))  # fmt: skip
def test_what_is_no_event_is_passed_over(data: bytes) -> None:
    stream = b"data: " + data + b"\n\n" + frame("session.idle", sessionID="ses_1")
    said = [one for one in read(stream) if not isinstance(one, Noted)]
    assert said == [Activity("ses_1", "idle")]
    assert read(stream.replace(b"\n", b"\r\n"))[-1:] == said
    assert read(b"event: x\nid: 1\nretry: 9\n:\n\n\ndatas: {}\n" + stream)[-1:] == said
    assert read(stream[:-2]) == read(stream)[:-1], "a line that is cut off is none"
    reader = ocloop.StreamReader(a_dialect(), [].append)
    reader.stopped = True
    reader.read(types.SimpleNamespace(read1=lambda _: stream))  # though that never ends


@pytest.mark.parametrize("said", [
    RecursionError("too deep"), MemoryError(), ValueError("odd"), RequestError(0, ""),
    "/a\0b", "/\ud800", "/" * 100_000,  # folders that none can be
], ids=lambda said: ascii(said)[:20])  # fmt: skip
def test_a_request_that_is_too_much_for_us_failed_like_any_other(said: Any) -> None:
    outside = ocloop.Outside(Options(directory="/project"), print)
    says = {"POST /session": {"id": "ses_1", "directory": said}, "GET /session/status": said}
    outside.dialect = a_dialect(Said({**says, "GET /session/s": {}}))
    is_folder = isinstance(said, str)
    reply = Request("create", (PROMPT,)) if is_folder else Request("poll", ("s", PROMPT, 0, False))
    answer = outside._answer(reply)
    assert answer.request is reply
    if not is_folder:
        assert isinstance(answer.error, RequestError) and answer.error.why == "silent"
    elif answer.error is not None:
        assert isinstance(answer.error, (RequestError, Problem))


def test_whatever_a_server_makes_us_ask_the_threads_are_not_without_number(
    monkeypatch: Patch,
) -> None:
    """On another's server an earlier session may wake up twenty thousand times a second."""
    monkeypatch.setattr(ocloop, "MOST_THREADS", threading.active_count() + 20)
    posted: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    outside = ocloop.Outside(Options(), posted.put)
    hold = threading.Event()
    outside.stop_check = hold.wait  # type: ignore[assignment]
    try:
        for _ in range(ocloop.MOST_THREADS + 50):
            outside.make(Request("stop_check", ()))
        assert threading.active_count() <= ocloop.MOST_THREADS + 1
        assert isinstance(posted.get(timeout=5).error, RequestError)
    finally:
        hold.set()
    for _ in range(ocloop.MOST_THREADS + 49):
        posted.get(timeout=5)


def test_a_thread_that_is_done_makes_the_next_request(monkeypatch: Patch) -> None:
    posted: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    outside = ocloop.Outside(Options(), posted.put)
    hold = threading.Event()
    outside.stop_check = hold.wait  # type: ignore[assignment]
    outside.read_files = threading.get_ident  # type: ignore[assignment]

    idents = []
    for name in ("read_files", "read_files", "stop_check", "read_files"):
        outside.make(Request(name, ()))
        if name == "read_files":  # else it hangs, and holds up nobody
            idents.append(posted.get(timeout=GENEROUS).result)
    assert idents[0] == idents[1] != idents[2]
    monkeypatch.setattr(ocloop, "in_thread", lambda *_: threading.main_thread().start())
    for _ in range(2):  # one thread is free
        outside.make(Request("stop_check", ()))
    assert isinstance(posted.get(timeout=GENEROUS).error, RequestError)
    hold.set()


def test_only_https_loads_ssl_which_takes_4_mib() -> None:
    code = "import sys, ocloop; ocloop.load_http(sys.argv[1]); print(bool(sys.modules.get('ssl')))"
    for scheme, is_loaded in (("http", "False"), ("https", "True")):
        argv = [sys.executable, "-S", "-c", code, scheme]
        assert subprocess.check_output(argv, cwd=ROOT, text=True).strip() == is_loaded


def test_what_https_needs_is_said_at_once(monkeypatch: Patch) -> None:
    distrusted = RequestError(0, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    monkeypatch.setattr(ocloop, "Client", lambda *_: Said({"GET /api/info": distrusted}))
    with pytest.raises(Problem, match="name a file with its certificate in SSL_CERT_FILE"):
        ocloop.Outside(Options(server="https://x"), print)._meet("https://x")
    monkeypatch.delattr(ocloop.load_http("https"), "HTTPSConnection")
    with pytest.raises(Problem, match="this Python has no ssl, which https needs"):
        ocloop.load_http("https")


def test_a_check_that_is_stopped_before_it_began_does_not_begin(tmp_path: Path) -> None:
    posted: queue.SimpleQueue[Any] = queue.SimpleQueue()
    options = Options(directory=str(tmp_path), check="echo x >ran", check_timeout=0)
    outside = ocloop.Outside(options, posted.put)
    with outside.checking:  # as busy as it can be
        for name, args in (("run_check", ({},)), ("stop_check", ())):
            outside.make(Request(name, args))
    results = [posted.get(timeout=GENEROUS).result for _ in range(2)]
    assert any(result and result.interrupted for result in results)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_prompt_that_begins_late_on_another_s_server_is_stopped_too(
    monkeypatch: Patch, is_ours: bool
) -> None:
    client = Said({**whole_server(), "POST /session/ses_1/abort": True})
    client.says["POST /global/dispose"] = True
    client.process = is_ours or None
    monkeypatch.setattr(time, "sleep", lambda _: None)
    ocloop.Outside(Options(), print)._say_farewell(a_dialect(client), "ses_1")
    last = "/global/dispose" if is_ours else "/session/ses_1/abort"
    assert [route for route, _ in client.sent] == ["/session/ses_1/abort", last]


def test_last_words_are_read_while_more_are_said() -> None:
    server = ocloop.Outside(Options(), print)

    stop = threading.Event()

    def say() -> None:
        while not stop.is_set():
            server.last_lines.append("a")

    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    saying = threading.Thread(target=say)
    saying.start()
    try:
        for _ in range(20_000):
            server._last_words()
    finally:
        stop.set()
        saying.join()
        sys.setswitchinterval(patience)


def test_a_notification_that_hangs_is_ended(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ocloop, "NOTIFY_WITHIN", 0.3)
    options = Options(directory=str(tmp_path), notify="echo $$ >pid; sleep 1000; true")
    with pytest.raises(Problem, match="--notify was ended after 0s"):
        ocloop.Outside(options, print).notify({})
    with pytest.raises(ProcessLookupError):
        os.killpg(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, KeyError, ValueError])
def test_an_event_that_cannot_be_read_is_said_once(
    error: type[Exception], monkeypatch: Patch
) -> None:
    decode = OpenCode.decode

    def fails(self: OpenCode, event: Json) -> Any:
        if event["type"] == "session.error":
            raise error("too deep")
        return decode(self, event)

    monkeypatch.setattr(OpenCode, "decode", fails)
    bad = frame("session.error", sessionID="ses_1")
    said, after = read(bad + bad + frame("session.idle", sessionID="ses_1"))
    assert isinstance(said, Noted) and "cannot be read" in said.text and error.__name__ in said.text
    assert after == Activity("ses_1", "idle")


def test_of_a_flood_some_of_the_deltas_are_enough(monkeypatch: Patch) -> None:
    idle = frame("session.idle", sessionID="ses_1")
    stream = delta_of("ses_1") * 300 + idle
    delta = Delta("ses_1", "prt_1", "The")
    over = Activity("ses_1", "idle")
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    assert read(delta_of("ses_1") * 50 + idle) == [*[delta] * 50, over], "500 a second are shown"
    assert read(stream) == [*[delta] * 50, over], "and nothing else is held up"
    assert read(stream, live=False) == [delta, over], "and nothing else is held up"
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 1024)
    assert read(stream, live=False).count(delta) == 3


# ── opencode: what both generations share ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("given, text", [
    ({"filePath": "/project/src/a.py"}, "src/a.py"), ({"path": "/project/src/a.py"}, "src/a.py"),
    ({"filePath": "/projects/a.py"}, "/projects/a.py"),
    ({"command": "make  test\n  && ls", "description": "Run"}, "make test && ls"),
    ({"command": "make", "workdir": "/project"}, "make"),
    ({"pattern": "x y", "path": "/project/src"}, "x y"), ({"pattern": "**/*.py"}, "**/*.py"),
    ({"description": "look around", "prompt": "…"}, "look around"),
    ({"agent": "plan", "description": "look around", "prompt": "…"}, "look around"),
    ({"url": "https://e.org"}, "https://e.org"), ({"query": "curses"}, "curses"),
    ({"name": "pdf"}, "pdf"), ({"todos": [1, 2, 3]}, "A title"), ({"path": "/project/src"}, "src"),
    ({"number": 3, "what": "this"}, "A title"), ({}, "A title"),
    ({"command": "x" * 9999}, "x" * 500),
])  # fmt: skip
def test_a_tool_is_told_by_the_argument_that_matters(given: Json, text: str) -> None:
    assert ocloop.argument_of(given, "/project", "A title") == text
    assert ocloop.argument_of({"what": "this"}, "/project") == "this"


def test_the_same_call_has_the_same_number_whatever_the_order_of_its_arguments() -> None:
    one = ocloop.call_id("bash", {"command": "ls", "timeout": 5})
    assert one == ocloop.call_id("bash", {"timeout": 5, "command": "ls"}) > 0
    others = [("shell", {"command": "ls", "timeout": 5}), ("bash", {"command": "ls"}), ("bash", {})]
    assert one not in [ocloop.call_id(*other) for other in others]
    assert ocloop.call_id("\ud800", float("nan")) > 0


def test_what_was_spent_is_read_from_whatever_is_there() -> None:
    used = {**TOKENS, "cache": {"read": 4, "write": 2}}
    assert ocloop.spend_of({"cost": 0.5, "tokens": used}) == Spend(0.5, 10, 6, 6)
    nothings: list[tuple[Any, Any]] = [
        *[(None, None), ("1", {"input": "10"}), (True, {"input": True}), (10**30, {"cache": 3})],
        (float("nan"), {"input": float("inf")}),
    ]
    for cost, tokens in nothings:
        assert ocloop.spend_of({"cost": cost, "tokens": tokens}) == Spend(), cost


# ── opencode: HTTP ────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_answered_and_no_proxy_is_asked(wire: Wire, monkeypatch: Patch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    wire.says = {"GET /a": {"x": [1, "\u00e9"]}, "POST /b": 204, "GET /c": (500, {})}
    client = wire.client("secret")
    assert client.request("GET", "/a?b=c") == {"x": [1, "\u00e9"]}
    assert client.request("POST", "/b", {"text": "\ud800"}) is None
    assert wire.heard == [("GET", "/a?b=c", None), ("POST", "/b", {"text": "\ud800"})]
    for headers in wire.headers:
        assert headers["Authorization"] == "Basic b3BlbmNvZGU6c2VjcmV0"
        assert headers["Accept"] == headers["Content-Type"] == "application/json"
    dialect = a_dialect(client)
    assert dialect.get_if_possible("/a") == {"x": [1, "\u00e9"]}
    assert dialect.get_if_possible("/c") is None, "what is only good to know may fail"


@pytest.mark.parametrize("said, code, name, message", [
    ((400, {"name": "ConfigInvalidError", "data": {
        "path": "/p/opencode.json", "message": "bad", "issues": [{"message": "a"},
        {"message": "b"}]}}),
     400, "ConfigInvalidError", "/p/opencode.json bad a; b"),
    ((404, {"_tag": "SessionNotFoundError", "message": "gone"}), 404, "SessionNotFoundError",
     "gone"),
    ((503, {"code": "service_starting"}), 503, "service_starting", "GET /a was answered with 503"),
    ((500, PAGE), 500, "", "GET /a was answered with 500"),
    (500, 500, "", "GET /a was answered with 500"),
    ((500, [1]), 500, "", "GET /a was answered with 500"),
    ((400, b"\xff\xfe{"), 400, "", "GET /a was answered with 400"),
    ((400, {"data": {"issues": "many"}, "message": None}), 400, "", "GET /a was answered with 400"),
    (PAGE, 502, "NotJSON", "GET /a was not answered with JSON"),
    (b"[" * 100_000, 400, "", "GET /a: the answer is nested too deep"),
    (b"\xff\xfe", 502, "NotJSON", "GET /a was not answered with JSON"),
], ids=lambda value: ascii(value)[:30])  # fmt: skip
def test_what_is_not_2xx_and_json_is_an_error(
    wire: Wire, said: Any, code: int, name: str, message: str
) -> None:
    wire.says = {"GET /a": said}
    with pytest.raises(RequestError) as error:
        wire.client().request("GET", "/a")
    found = error.value
    assert (found.code, found.name, str(found)) == (code, name, message)
    assert found.name != "Timeout"


def test_a_server_that_is_gone_is_told_from_one_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "", "")
        with pytest.raises(RequestError) as error:
            client.request("GET", "/", timeout=0.1)
        assert error.value.code == 0 and error.value.name == "Timeout"
    for ask in (client.request, lambda _, path: a_dialect(client).get_if_possible(path)):
        with pytest.raises(RequestError) as error:
            ask("GET", "/")
        assert error.value.code == 0 and not error.value.name
    for said in (b"SSH-2.0-OpenSSH_9.2\r\n", b"", OK + b"Content-Length: 9\r\n\r\n{"):
        with talker(said) as (url, _), pytest.raises(RequestError) as error:
            Client(url, "", "").request("GET", "/")
        assert error.value.why == "silent" and str(error.value), (
            "what speaks no HTTP, or is cut off"
        )


def test_a_connection_is_used_again_for_a_moment(wire: Wire, monkeypatch: Patch) -> None:
    wire.says = {"GET /a": [1], "GET /b": (500, {})}
    client = wire.client()
    for path in ("/a", "/b", "/a"):
        with suppress(RequestError):
            client.request("GET", path)
    client.idle[0][0].sock.shutdown(socket.SHUT_RDWR)
    assert client.request("GET", "/a") == [1], "a server may close it, and need not say so"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ocloop.IDLE_FOR)
    client.request("GET", "/a")
    client.hang_up()
    client.request("GET", "/a")
    assert [wire.ports.index(port) for port in wire.ports] == [0, 0, 0, 3, 4, 5]
    assert not client.idle, "OpenCode 2 would wait for it at its end"


ODD_IDS = (
    *("--port=1", "-s", "../x", "..", "a/b", "a?b", "a#b", "a%2fb", "a b", "a\n", "\x1b[2J"),
    *("x" * 1_000_000, "http://localhost/", "\u00e9", "", None),
)


@pytest.mark.parametrize("id", ODD_IDS, ids=lambda id: ascii(id)[:20])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_id_that_leads_elsewhere_is_none(generation: int, id: Any) -> None:
    """A server chooses them; they become a part of paths, and a word of `attach`."""
    assert ocloop.as_id(id) == "" and ocloop.as_id("ses_1-b") == "ses_1-b"
    made = {"id": id, "parentID": "ses_1", "directory": "/project"}
    asked = {"id": id, "sessionID": "ses_1"}
    client = Said({
        "POST /session": made, "POST /api/session": {"data": made},
        "GET /session/ses_1/children": [made], "GET /api/session": {"data": [made]},
        "GET /permission": [asked], "GET /question": [asked],
    })  # fmt: skip
    dialect = (OpenCode, OpenCode2)[generation - 1](client, Options(directory="/project"))
    with pytest.raises(RequestError, match="without an id"):
        dialect.create(PROMPT)
    assert list(dialect.family("ses_1")) == ["ses_1"]
    if generation == 1:
        assert dialect.asks()[0] == ()
        assert dialect.decode(event("permission.asked", **asked)) == [Alive("ses_1")]
        assert dialect.decode(event("session.idle", sessionID=id)) == []
    else:
        assert dialect.decode(told("session.execution.started", {"sessionID": id})) == []
    paths = [path for _, path, _ in client.heard]
    assert not any(id and id in unquote(path.partition("?")[0]) for path in paths), paths


def test_the_model_of_the_default_agent_is_no_other_agent_s() -> None:
    made = OpenCode(Said({}), Options())
    agents: Json = {"build": {"model": {"providerID": "x", "modelID": "big"}}, "plan": {}}
    made.setup_of([{}], {}, agents)
    assert [made.known.model_of(name) for name in ("", "build", "plan", "new")] == [
        "x/big", "x/big", "", "x/big",
    ]  # fmt: skip
    made.setup_of([{"model": "a/b"}], {}, agents)
    assert [made.known.model_of(name) for name in ("", "plan")] == ["x/big", "a/b"]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(wire: Wire, code: int) -> None:
    """It would carry the login to another host."""
    head = f"HTTP/1.1 {code} Found\r\nLocation: {wire.url}/a\r\nContent-Length: 0\r\n\r\n"
    with talker(head.encode()) as (url, heard):
        client = Client(url, "opencode", "secret")
        for method in ("GET", "POST"):
            with pytest.raises(RequestError) as error:
                client.request(method, "/a", {} if method == "POST" else None)
            assert (error.value.code, error.value.name) == (502, "NotJSON")
        with pytest.raises(Problem, match="is not OpenCode"):
            ocloop.detect(client)
    assert len(heard) > 2 and wire.heard == []


TRICKLES: dict[str, tuple[bytes, ...]] = {
    "body": (OK + b"Content-Length: 200\r\n\r\n", *[b" "] * 90),
    "body without a length": (OK + b"\r\n", *[b" "] * 90),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 90),
    "refusal": (b"HTTP/1.1 500 No\r\nContent-Length: 200\r\n\r\n", *[b" "] * 90),
}


@pytest.mark.parametrize("said", TRICKLES.values(), ids=list(TRICKLES))
def test_an_answer_that_trickles_has_an_end(said: tuple[bytes, ...]) -> None:
    with talker(*said, pause=0.1) as (url, _):
        before = time.monotonic()
        with pytest.raises(RequestError) as error:
            Client(url, "", "").request("GET", "/", timeout=0.5)
        assert time.monotonic() - before < 8, "it would take nine seconds"
        assert error.value.code == 500 or error.value.name == "Timeout"


@pytest.mark.parametrize("head", [b"", b"Content-Length: 9999999\r\n"])
def test_an_answer_without_an_end_is_an_error(head: bytes, monkeypatch: Patch) -> None:
    assert ocloop.LARGEST == 64 << 20
    monkeypatch.setattr(ocloop, "LARGEST", 1 << 20)
    endless = talker(OK + head + b"\r\n", *[b" " * 65536] * 60)
    with endless as (url, _), pytest.raises(RequestError, match="larger than 1 MiB"):
        Client(url, "", "").request("GET", "/")
    with talker(OK + b"\r\n[", b" " * 1000_000, b"]") as (url, _):
        assert Client(url, "", "").request("GET", "/") == []


# ── opencode: which generation answers, and its server ────────────────────────────────────────────

INFO = {"version": "2.0.20", "pid": 7, "urls": [], "paths": {"tmp": "/tmp"}}
HEALTH = {"healthy": True, "version": "1.18.33"}
DIGITS = "9" * 5000 + ".1.1"
STRANGERS: tuple[Any, ...] = (PAGE, (404, {"detail": "Not"}), [], {}, (500, {"message": "a"}), 204)


# What a server says -> the dialect and its version, after so many requests; or the Problem.
@pytest.mark.parametrize("says, otherwise, found, requests", [
    ({"GET /api/info": INFO}, PAGE, (OpenCode2, "2.0.20"), 1),
    ({"GET /api/info": {**INFO, "version": "local"}}, PAGE, (OpenCode2, "local"), 1),
    ({"GET /api/info": INFO, "GET /global/health": HEALTH}, PAGE, (OpenCode2, "2.0.20"), 1),
    ({"GET /api/status": {"version": "2.0.4"}}, PAGE, (OpenCode2, "2.0.4"), 2),
    ({"GET /api/status": {"version": "2.0.5"}}, (404, {}), (OpenCode2, "2.0.5"), 2),
    ({"GET /global/health": HEALTH}, PAGE, (OpenCode, "1.18.33"), 3),
    ({"GET /global/health": HEALTH}, (404, {}), (OpenCode, "1.18.33"), 3),
    ({"GET /global/health": {**HEALTH, "version": DIGITS}}, PAGE, (OpenCode, DIGITS), 3),
    ({"GET /global/health": HEALTH, "GET /api/session": [], "GET /api/health": {"healthy": True},
      "GET /api/session/active": {"data": {}}}, PAGE, (OpenCode, "1.18.33"), 3),
    ({"GET /api/info": (500, {}), "GET /global/health": HEALTH}, PAGE, (OpenCode, "1.18.33"), 3),
    # 2.0.0 to 2.0.3 tell their version elsewhere.
    ({"GET /api/health": {"healthy": True, "version": "2.0.2"}}, PAGE, "is not OpenCode", 3),
    ({"GET /api/info": {**INFO, "version": "2.0.3"}}, PAGE, "OpenCode 2.0.3 is too old", 1),
    ({"GET /global/health": {"version": "1.1.9"}}, PAGE, "OpenCode 1.1.9 is too old", 3),
    ({"GET /global/health": {"version": "0.9.9"}}, PAGE, "OpenCode 0.9.9 is too old", 3),
    *[({}, otherwise, "is not OpenCode", 3) for otherwise in STRANGERS],
])  # fmt: skip
def test_which_generation_answers(
    wire: Wire, says: Json, otherwise: Any, found: Any, requests: int
) -> None:
    wire.says = says
    wire.otherwise = otherwise
    if isinstance(found, tuple):
        assert ocloop.detect(wire.client()) == found
    else:
        with pytest.raises(Problem) as problem:
            ocloop.detect(wire.client())
        assert found in str(problem.value) and not problem.value.again
        assert "1.2 or newer, or 2.0.4 or newer" in str(problem.value)
        advice = "`opencode upgrade`" if "too old" in found else "look at the address"
        assert advice in str(problem.value)
    assert len(wire.heard) == requests


def test_a_server_that_boots_is_waited_for(wire: Wire) -> None:
    server = ocloop.Outside(Options(server=wire.url), print)
    booting = (503, {"code": "service_starting"})
    wire.says = {"GET /api/info": Turns(booting, (502, "<h1>Bad Gateway</h1>"), INFO)}
    dialect, version = server._meet(wire.url)
    assert isinstance(dialect, OpenCode2) and version == "2.0.20"
    with pytest.raises(Problem, match=f"{wire.url}/wrong/path is not OpenCode"):
        ocloop.detect(Client(f"{wire.url}/wrong/path/", "", ""))
    wire.forget()
    for code, said, words in (
        (503, {"code": "service_failed", "message": "no disk"}, "does not answer (no disk)"),
        (401, {"_tag": "Unauthorized"}, "refuses the password: set OPENCODE_SERVER_PASSWORD"),
        (403, {}, "refuses the password"),
    ):
        wire.otherwise = (code, said)
        with pytest.raises(RequestError) as error:
            ocloop.detect(wire.client())
        assert error.value.code == code, "it is not judged"
        before = time.monotonic()
        with pytest.raises(Problem) as problem:
            server._meet(wire.url)
        assert words in str(problem.value) and time.monotonic() - before < GENEROUS


def test_a_port_that_is_none_is_a_sentence_at_once() -> None:
    with pytest.raises(Problem, match="port 70000 is taken, or is none: choose") as problem:
        ocloop.Outside(Options(port=70000), print)._start_process()
    assert not problem.value.again


def test_what_a_server_prints_is_kept_but_no_secret(monkeypatch: Patch) -> None:
    monkeypatch.delenv("OPENCODE_PASSWORD", raising=False)
    monkeypatch.delenv("OPENCODE_SERVER_USERNAME", raising=False)
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "one")
    server = ocloop.Outside(Options(server="http://x"), print)
    assert (server.username, server.password) == ("opencode", "one")
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    printed = (
        b"\x1b[31mWarning\x1b[0m: \xff\n" + b"y" * 200_000 + b"\n"
        b"// listening on http://elsewhere:4097\n"  # in a file that is shown: no password for it
        b"server listening on http://127.0.0.1:4097\nserver password hunter2\n"
    )
    server._drain(io.BytesIO(printed + CONFIGURATION.encode() + b"\nafter\n"), found)
    assert [found.get(), found.get()] == ["http://127.0.0.1:4097", ""]
    lines = list(server.last_lines)
    assert lines[0] == "Warning: \ufffd" and lines[-1] == "after"
    assert max(map(len, lines)) <= 300
    kept = "\n".join(lines)
    assert "hunter2" not in kept and "SECRET" not in kept and "PropertyNameExpected" in kept
    error = ocloop.refusal(400, {"data": {"message": CONFIGURATION}}, "GET /a")
    assert str(error) == "/project/opencode.json PropertyNameExpected at line 3, column 23"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_whoever_takes_a_dead_server_s_port_hears_nothing(
    tmp_path: Path, monkeypatch: Patch, generation: int
) -> None:
    """Not the login, not a farewell, not the event stream; and the next start has its own login."""
    monkeypatch.setenv("FAKE_OPENCODE", json.dumps({"generation": generation}))
    opencode = tuple(shlex.split(fake_command()))
    options = project_options(tmp_path, opencode=opencode, port=free_port())
    posted: queue.Queue[Event] = queue.Queue()
    server = ocloop.Outside(options, posted.put)
    heard: list[bytes] = []
    try:
        server.start_server(1)
        assert posted.get(timeout=GENEROUS) == StreamOpened()
        first = server.password
        process, dialect = server.process, server.dialect
        assert len(first) >= 32 and process and dialect
        os.kill(process.pid, signal.SIGKILL)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            until(lambda: process.poll() is not None, "its end")
            until(lambda: ocloop.port_is_free(options.port), "the port")
            taken.bind(("127.0.0.1", options.port))
            taken.listen()
            taken.settimeout(2.0)  # the stream would have been connected anew by then
            with pytest.raises(RequestError) as error:
                dialect.create(Prompt("text", "title"))
            assert error.value.code == 0 and "has ended" in str(error.value)
            with suppress(socket.timeout):
                heard.append(taken.accept()[0].recv(65536))
            assert server.process is None, "a number that may be somebody else's is not kept"
            server._say_farewell(dialect, "ses_1")
            taken.settimeout(0.2)
            with suppress(socket.timeout):
                heard.append(taken.accept()[0].recv(65536))
        assert heard == []
        server.start_server(2)
        assert len(server.password) >= 32 and server.password != first
    finally:
        server.close()


# ── opencode 1: the event stream ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("said, expected", DECODED, ids=lambda value: ascii(value)[:60])
def test_opencode_1_events_in_neutral_words(said: Json, expected: list[Any]) -> None:
    assert is_same(a_dialect().decode(said), expected)


def test_the_text_of_a_prompt_is_no_answer_and_a_retry_has_a_countdown() -> None:
    dialect = a_dialect()
    assert is_same(dialect.decode(message_event(id="msg_u", role="user")), [Alive("ses_1")])
    said = part_event(messageID="msg_u", type="text", text="Do it", time={"end": 2})
    assert is_same(dialect.decode(said), [Alive("ses_1")])
    assert [type(one) for one in dialect.decode(part_event(type="text", text="x"))] == [Part]
    at = (time.time() + 12) * 1000
    status = {"type": "retry", "attempt": 2, "message": "overloaded", "next": at}
    (found,) = dialect.decode(event("session.status", sessionID="ses_1", status=status))
    assert isinstance(found, Activity)
    assert found._replace(wait=0.0) == Activity("ses_1", "retrying", 2, 0.0, "overloaded")
    assert 10 < found.wait <= 12
    says = whole_server(**{"GET /session/status": {"ses_1": status}})
    look = polled(says)
    assert look.activity == "working" and look.retry
    assert look.retry == found._replace(wait=look.retry.wait)


TYPES = sorted({str(said.get("type")) for said, _ in DECODED})


def test_any_event_of_opencode_1_is_taken_and_none_raises() -> None:
    rng = random.Random(5)
    dialect = a_dialect()
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(12_000):
        said = {"type": rng.choice(TYPES), "properties": anything(rng)}
        if rng.random() < 0.7 and isinstance(said["properties"], dict):
            said["properties"]["sessionID"] = "ses_1"
            said["properties"].setdefault("id", "per_1")
            kind = rng.choice(("text", "reasoning", "tool", rng.choice(WORDS)))
            said["properties"].setdefault("part", {"type": kind, "state": anything(rng)})
            said["properties"].setdefault("info", {"id": "m", "role": rng.choice(WORDS)})
            error = {"name": rng.choice(WORDS), "data": anything(rng)}
            said["properties"].setdefault("error", error)
        if rng.random() < 0.05:
            said = ocloop.as_dict(anything(rng))
        for found in dialect.decode(said):
            assert isinstance(found, (*ocloop.FROM_SESSION, Edited))
            assert is_sound(tuple(found)), found
            seen[type(found).__name__] += 1
    named = {kind.__name__ for kind in (*ocloop.FROM_SESSION, Edited)}
    assert min(seen[name] for name in named) > 10, seen


# ── opencode 1: what is asked of it ───────────────────────────────────────────────────────────────


BOOM = RequestError(500, "boom", "UnknownError")


# fmt: off
LARGE = {"limit": {"context": 1000}, "cost": {"input": 1, "output": 2}, "variants": {"high": {}}}
PRICES = {"in": {"input": 1, "output": 0}, "out": {"input": 0, "output": 2},
          "free": {"input": 0, "output": 0}, "none": {}}
# fmt: on


def test_what_opencode_1_knows() -> None:
    models = {name: {"limit": {"context": 7}, "cost": cost} for name, cost in PRICES.items()}
    says: Json = {
        "GET /config": {"model": "acme/large"},
        "GET /config/providers": {"providers": [provider(large=LARGE, **models), {"id": "other"}]},
        "GET /agent": [{"name": "build"}, {"name": "plan"}],
    }
    setup = a_dialect(Said(says)).setup()
    assert setup == Setup(
        model="acme/large",
        models={"acme/large": 1000, **{f"acme/{name}": 7 for name in PRICES}},
        agents=("build", "plan"),
        free=frozenset(("acme/free", "acme/none")),  # neither way has a price
        variants={"acme/large": ("high",), **{f"acme/{name}": () for name in PRICES}},
        agent_models={"build": "acme/large", "plan": "acme/large"},
    )
    says["GET /config/providers"] = {"providers": [None, provider(odd=None)]}
    assert a_dialect(Said(says)).setup().models == {"acme/odd": 0}
    nothings: tuple[Any, ...] = ({}, {"providers": None}, [], "text")
    for nothing in nothings:
        says["GET /config/providers"] = says["GET /agent"] = nothing
        setup = a_dialect(Said(says)).setup()
        assert not setup.models, "it cannot tell"
    says["GET /config"] = RequestError(400, "opencode.json: bad", "ConfigInvalidError")
    with pytest.raises(RequestError, match="opencode.json: bad"):
        a_dialect(Said(says)).setup()


def test_a_session_is_made_and_a_prompt_carries_its_own_ids_and_may_be_sent_again() -> None:
    route = "/session/ses_1/prompt_async"
    client = Said({
        "POST /session": {"id": "ses_1", "directory": "/my%20project/\u00e9"},
        f"POST {route}": None,
    })  # fmt: skip
    dialect = a_dialect(client, "/my%20project/\u00e9")
    assert dialect.create(PROMPT) == "ses_1"
    path = "/session?directory=%2Fmy%2520project%2F%C3%A9"
    assert client.heard == [("POST", path, {"title": PROMPT.title})]
    part = {"id": "prt_0", "type": "text", "text": "Do it"}
    bare = {"messageID": "msg_0", "parts": [part]}
    model = {"providerID": "acme", "modelID": "large/v2"}
    whole = {**bare, "model": model, "agent": "build"}
    for prompt, attempt, body in (
        (PROMPT, 0, whole),
        (PROMPT, 1, whole),
        (PROMPT._replace(model="acme/large/v2#high"), 0, {**whole, "variant": "high"}),
        (PROMPT._replace(model="", agent=""), 0, bare),
    ):
        dialect.send("ses_1", prompt._replace(attempt=attempt))
        assert client.sent[-1] == (route, body)


@pytest.mark.parametrize("messages, verdict, fault", VERDICTS_1)
def test_how_the_answer_to_our_own_prompt_stands(
    messages: list[Json], verdict: str, fault: Fault | None
) -> None:
    dialect = a_dialect(Said({"GET /session/ses_1/message": messages}))
    prompt = PROMPT._replace(message_id="msg_1")
    assert dialect.verdict("ses_1", prompt, {}) == (verdict, fault)


@pytest.mark.parametrize("error, fault", FAULTS_1, ids=lambda value: ascii(value)[:50])
def test_errors_of_1_are_told_apart_and_no_stack_is_shown(error: Any, fault: Fault | None) -> None:
    assert ocloop.fault_of(error) == fault
    assert {"rate-limit", "outage"}.isdisjoint(ocloop.ADVICE), "they pass by themselves"
    for message in ("", "\n    at x", "UnknownError", "  "):
        nameless = ocloop.fault_of(wrapped(message))
        assert nameless and nameless.message.strip()


# How a session stands.


NO_STATUS: Json = {"GET /session/status": {}}
FAILED_1 = {"GET /session/ses_1/message": [user("msg_0"), assistant("msg_0", error=UNAUTHORIZED)]}


@pytest.mark.parametrize("route, error, changed", [
    ("", None, {}),
    ("/question", BOOM, {"asks": (REQUEST_1,), "unlisted": ("question",)}),
    ("/permission", PAGE_ERROR, {"asks": (REQUEST_2,), "unlisted": ("permission",)}),
    ("/session/ses_1", BOOM, {"spent": Spend(0.25, 1)}),
    ("/session/ses_1/children", BOOM, {"spent": Spend(0.5, 10, 6, 4), "children": ()}),
])  # fmt: skip
def test_what_fails_beside_a_poll_does_not_fail_it(route: str, error: Any, changed: Json) -> None:
    spent = Spend(0.75, 11, 6, 4)
    whole = Polled("working", spent=spent, children=("ses_2",), asks=(REQUEST_1, REQUEST_2))
    fails = {f"GET {route}": error}
    assert polled(whole_server(**fails)) == whole._replace(**changed)
    assert polled(whole_server(**fails), closer=True).verdict == "answered"
    if route:  # else it would seem to say that nothing is asked
        with pytest.raises(RequestError):
            polled(whole_server(**{f"GET {route}": RequestError(0, "connection refused")}))
    for decides in ("GET /session/status", "GET /session/ses_1/message"):
        for error in (BOOM, PAGE_ERROR):
            with pytest.raises(RequestError):
                polled(whole_server(**{**NO_STATUS, decides: error}))


DEEP = b'[{"info": {"id": "msg_0"}, "parts": %s}]' % (b"[" * 100_000 + b"]" * 100_000)


def test_what_a_model_has_nested_too_deep_costs_its_session_and_no_server(wire: Wire) -> None:
    story = Story()
    active: Json = {story.id: {"type": "busy"}}
    wire.says = {"GET /session/status": active, f"GET /session/{story.id}/message": DEEP}
    story.world["poll"] = lambda request: a_dialect(wire.client()).poll(*request.made.args)
    story.let_pass(ocloop.LOOK_CLOSER + 20)
    assert story.words == [], "it works, and may go on"
    active.clear()
    story.let_pass(ocloop.POLL_EVERY)
    assert story.words == ["failed"] and "nested too deep" in story.books.results[0].fault.message
    assert story.run.server.failures == 0
    command = {"command": [[["x"]]]}
    asked = {"id": "per_1", "sessionID": "ses_1", "metadata": command, "patterns": [{}]}
    assert a_dialect().permission(asked).detail == "", "nothing of it is put into words"


BUSY_2 = {"GET /session/status": {"ses_2": {"type": "busy"}}}  # a subagent in the background


@pytest.mark.parametrize("says, closer, activity, verdict, fault", [
    (NO_STATUS, False, "idle", "answered", None),  # who is not listed is idle
    ({"GET /session/status": {"ses_1": {"type": "idle"}}}, False, "idle", "answered", None),
    ({"GET /session/status": {"ses_3": {"type": "busy"}}}, False, "idle", "answered", None),
    ({**NO_STATUS, **FAILED_1}, False, "idle", "failed", NO_KEY_1),
    ({"GET /session/status": {"ses_1": {"type": "of tomorrow"}}}, False, "working", "", None),
    (BUSY_2, False, "working", "", None), (BUSY_2, True, "working", "", None),
])  # fmt: skip
def test_who_works(
    says: Json, closer: bool, activity: str, verdict: str, fault: Fault | None
) -> None:
    found = polled(whole_server(**says), closer)
    assert (found.activity, found.verdict, found.fault) == (activity, verdict, fault)


@pytest.mark.parametrize("kind", ["question", "permission"])
def test_what_is_asked_is_not_forgotten_because_the_server_fails_to_list_it(kind: str) -> None:
    story = Story()
    lists: Json = {"GET /permission": [], "GET /question": [], f"GET /{kind}": BOOM}
    client = Said({"GET /session/status": {story.id: {"type": "busy"}}, **lists})
    story.world["poll"] = lambda request: a_dialect(client).poll(*request.made.args)
    if kind == "question":
        story.question("red", "blue", id="ask_1")
    else:
        story.asks("ask_1")
    story.let_pass(20)
    assert story.asked == ["ask_1"]
    client.says[f"GET /{kind}"] = []
    story.let_pass(20)
    assert story.asked == [], "somebody else has answered it"


def test_a_family_that_goes_in_circles_is_counted_once() -> None:
    """A server that does not know the route may list all its sessions."""
    for children in (
        [{**CHILD_1, "id": "ses_1"}],
        [CHILD_1],
        [CHILD_1, {**CHILD_1, "parentID": "ses_2"}, {"id": "ses_1"}, {}, None, {"id": ""}],
    ):
        routes = ("GET /session/ses_1/children", "GET /session/ses_2/children")
        client = Said(whole_server(**dict.fromkeys(routes, children)))
        spent = a_dialect(client).poll("ses_1", PROMPT, False).spent
        assert spent and spent.cost <= 0.75 and len(client.heard) < 20


def test_any_answer_of_a_server_is_taken_or_is_an_error_of_the_request() -> None:
    rng = random.Random(6)

    class Whatever(Said):
        def request(self, *args: Any, **more: Any) -> Any:
            if "/children" in str(args[1]):
                return []
            if rng.random() < 0.2:
                raise RequestError(rng.choice((0, 400, 404, 500)), "no", rng.choice(("", "X")))
            return anything(rng)

    done = 0
    for _ in range(1500):
        dialect = a_dialect(Whatever({}))
        for ask, *args in (
            (dialect.setup,),
            (dialect.create, PROMPT),
            (dialect.send, "ses_1", PROMPT._replace(attempt=1)),
            (dialect.poll, "ses_1", PROMPT, rng.random() < 0.5),
            (dialect.reply, REQUEST_2._replace(answers=("a",)), "once", ""),
            (dialect.interrupt, "ses_1", PROMPT),
        ):
            with suppress(RequestError):
                found = ask(*args)
                done += 1
                if isinstance(found, Polled):
                    assert found.activity in ("idle", "working")
                    assert is_sound(tuple(found)), found
    assert done > 3000


# What is asked, and what is replied.


def test_a_permission_says_what_exactly_it_is_for() -> None:
    for name, patterns, metadata, detail in (
        ("bash", ["echo hi"], {"command": "echo hi"}, "echo hi"),
        ("external_directory", ["/etc/*"], {"filepath": "/etc/hosts"}, "/etc/*, /etc/hosts"),
        ("edit", ["a", "b"], {}, "a, b"),
        ("webfetch", ["*"], {"url": "https://e.org"}, "*, https://e.org"),
        ("", [], "text", ""),
    ):
        asked = {"permission": name, "patterns": patterns, "metadata": metadata}
        request = a_dialect().permission({"id": "per_1", "sessionID": "ses_1", **asked})
        assert request == Ask("per_1", "ses_1", "permission", name or "something", detail)
    questions = [{"question": "A?"}, {"question": "B?"}]
    several = a_dialect().question({"id": "que_1", "sessionID": "s", "questions": questions})
    assert several.detail == "A? / B?" and len(several.questions) == 2


BOTH = Ask("que_1", "ses_1", "question", "", "", (Question("A?"), Question("B?")))
NO_MORE = "Go on without."


# A bare refusal of a question would end the turn: each is answered with words.
@pytest.mark.parametrize("ask, decision, answers, message, body", [
    (REQUEST_1, "once", (), "", {"reply": "once", "message": ""}),
    (REQUEST_1, "always", (), "", {"reply": "always", "message": ""}),
    (REQUEST_1, "reject", (), NO_MORE, {"reply": "reject", "message": NO_MORE}),
    (BOTH, "once", ("red", "blue"), "", {"answers": [["red"], ["blue"]]}),
    (BOTH, "reject", ("red",), NO_MORE, {"answers": [["red"], [NO_MORE]]}),
    (BOTH, "reject", (), NO_MORE, {"answers": [[NO_MORE], [NO_MORE]]}),
])  # fmt: skip
def test_what_is_asked_of_1_is_replied_to(
    ask: Ask, decision: str, answers: tuple[str, ...], message: str, body: Json
) -> None:
    route = f"/{ask.kind}/{ask.id}/reply"
    client = Said({f"POST {route}": True})
    a_dialect(client).reply(ask._replace(answers=answers), decision, message)
    assert client.sent == [(route, body)]
    client.says[f"POST {route}"] = BOOM
    with pytest.raises(RequestError):
        a_dialect(client).reply(ask._replace(answers=answers), decision, message)


def test_a_session_is_stopped_with_what_works_for_it_in_the_background() -> None:
    posts = {f"POST /session/ses_{number}/abort": True for number in (1, 2, 3)}
    for working, aborted in (("", "1"), ("1", "1"), ("23", "12")):
        statuses = {f"ses_{number}": {"type": "busy"} for number in working}
        says = {**whole_server(**{"GET /session/status": statuses}), **posts}
        client = Said({**says, "POST /global/dispose": True})
        dialect = a_dialect(client)
        dialect.interrupt("ses_1", PROMPT)
        dialect.dispose()
        routes = [f"/session/ses_{number}/abort" for number in aborted]
        assert [route for route, _ in client.sent] == [*routes, "/global/dispose"]


def test_how_a_session_is_joined() -> None:
    """The password is nowhere where other users see it."""
    record: Json = {"opencode": ["npx", "opencode"], "server": "http://x", "session": "ses_1"}
    record.update(directory="/project", username="me", password="secret")
    for generation, words in (
        (1, "attach http://x --session ses_1 --dir /project"),
        (2, "/project --server http://x --session ses_1"),
    ):
        argv, environment = ocloop.attach_command({**record, "generation": generation})
        assert argv == ["npx", "opencode", *words.split()]
        names = ("OPENCODE_SERVER_USERNAME", "OPENCODE_SERVER_PASSWORD", "OPENCODE_PASSWORD")
        assert [environment[name] for name in names] == ["me", "secret", "secret"]


# ── processes ─────────────────────────────────────────────────────────────────────────────────────
# Once as the system tells it by /proc, and once as `ps` does where there is none.

NO_PROC = "/nonexistent/proc"


def marked_pids(mark: str) -> list[int]:
    return [process.pid for process in ocloop.list_processes() if mark in process.marks]


def test_processes_are_found_by_their_mark_and_measured(seam: str, started: Started) -> None:
    mark = os.urandom(8).hex()
    code = "x = bytearray(50 << 20); print('up', flush=True); input()"
    marked = started(f'exec "{sys.executable}" -c "{code}"', mark, stdin=subprocess.PIPE)
    other = started("echo up; exec sleep 60", f"{mark}.check")
    assert first_line(marked) == first_line(other) == "up"
    until(lambda: marked_pids(mark) == [marked.pid], "its mark")
    assert marked_pids(f"{mark}.check") == [other.pid]
    assert marked_pids("nobody has this one") == []
    assert 50 <= ocloop.group_memory(marked.pid) < 200
    assert ocloop.group_memory(2**22 + 1) == 0


def test_an_endless_environment_is_not_read_to_its_end(tmp_path: Path, monkeypatch: Patch) -> None:
    """Any user can make theirs so, and root reads it: gigabytes would end the night."""
    proc = tmp_path / "proc"
    for name, size in (("self", 9), ("1", 9 << 20), ("42", 0), ("43", 5), ("44", 6)):
        (proc / name).mkdir(parents=True)
        fields = ["S", "1", "77", *["0"] * 18, "256", *["0"] * 25, "1000", str(1000 + size)]
        name_of_program = ") S 1 2\n(a b" if name == "44" else ") S 1 2 (a b"
        (proc / name / "stat").write_text(f"{name} ({name_of_program}) {' '.join(fields)} 0\n")
        with open(proc / name / "environ", "wb") as file:
            file.write(b"A=1\0OCLOOP_RUN=me\0OCLOOP_RUNS=no\0" + b"x" * size)
            file.write(b"\0OCLOOP_RUN=far\0")
    monkeypatch.setattr(ocloop, "PROC", str(proc))
    marks = {process.pid: process.marks for process in ocloop.list_processes()}
    assert marks == {1: ["me"], 42: ["me", "far"], 43: ["me", "far"], 44: ["me", "far"]}
    script = ocloop.GUARD.partition("group=0")[0] + "marked"
    for mark, found in (("me", "42 43"), ("m", ""), ("far", "42 43")):
        argv = ["/bin/sh", "-c", script, "guard", mark, str(proc), "false"]
        assert subprocess.check_output(argv, text=True).split() == found.split()


def test_without_proc_and_ps_nothing_is_told_and_nothing_raises(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ocloop, "PROC", NO_PROC)
    for ps in (("/nonexistent/ps",), ("false",), ("echo", "PID TTY\n nonsense")):
        monkeypatch.setattr(ocloop, "PS", ps)
        assert ocloop.list_processes() == [] == marked_pids("x")
        assert ocloop.group_memory(1) == 0


def test_a_group_is_ended_with_what_left_it(seam: str, started: Started) -> None:
    mark = os.urandom(8).hex()
    leaves = "import os, sys, time; os.setsid(); print(os.getpid(), flush=True); sys.stdout.close()"
    leaves += "; time.sleep(60)"
    away = f"\"{sys.executable}\" -c '{leaves}'"
    child = started(f"trap '' TERM; {away} & sleep 60 & wait; wait; sleep 60", mark)
    left = int(first_line(child))
    assert is_alive(left) and os.getpgid(left) == left
    before = time.monotonic()
    ocloop.end_group(child, mark)
    assert 0.9 < time.monotonic() - before < 10, "it had its time"
    assert child.poll() is not None
    until(lambda: not is_alive(left), "the end of what left the group")
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_the_number_of_a_reaped_child_is_another_s(started: Started) -> None:
    for command, status in (("exit 3", 3), ("kill -9 $$", -9)):
        child = started(command)
        assert ocloop.wait_for_end(child, GENEROUS) == status
        ocloop.end_group(child, "nobody has this one")
    other = started("sleep 60")
    child = started("exit 0")
    child.wait()
    own, child.pid = child.pid, other.pid
    ocloop.end_group(child, "nobody has this one")
    child.pid = own
    assert other.poll() is None
    assert ocloop.wait_for_end(other, 0.05) is None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc here")
def test_what_is_started_has_the_signals_of_a_shell(
    started: Started,
) -> None:
    """The main thread blocks SIGWINCH and SIGTSTP for the screen's sake, and children inherit."""
    theirs = {signal.SIGWINCH, signal.SIGTSTP, signal.SIGTTOU}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, theirs | {signal.SIGUSR2})
    try:
        child = started("exec grep SigBlk /proc/self/status")
        blocked = int(first_line(child).split()[1], 16)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= theirs, "ours stay as they were"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert not any(blocked >> (number - 1) & 1 for number in theirs)
    assert blocked >> (signal.SIGUSR2 - 1) & 1, "and no other one is touched"


@pytest.mark.parametrize("where", ["farewell", "start"])
def test_leaving_waits_for_nothing_without_an_end(where: str, monkeypatch: Patch) -> None:
    """A name that is looked up for ever, say: no deadline of a request covers that."""
    monkeypatch.setattr(ocloop, "FAREWELL_WITHIN", 0.3)
    monkeypatch.setattr(ocloop, "CLOSED_WITHIN", 2.0 if where == "farewell" else 0.3)
    server = ocloop.Outside(Options(server="http://127.0.0.1:9"), print)
    end = threading.Event()
    monkeypatch.setattr(server, "_say_farewell", lambda *_: end.wait(GENEROUS))
    server.dialect = a_dialect()
    server._guard(0)
    guard = server.guard
    if where == "start":
        threading.Thread(target=lambda: server.server_lock.acquire() and end.wait(GENEROUS)).start()
    before = time.monotonic()
    ocloop.in_thread(server.close, "ses_1").join(ocloop.CLOSED_WITHIN)
    assert time.monotonic() - before < GENEROUS / 2
    assert guard and guard.stdin
    if where == "farewell":
        assert guard.wait(GENEROUS) == 0
    assert (guard.poll() is None) == (where == "start"), "it is needed where something may be left"
    end.set()
    guard.stdin.close()
    guard.wait(GENEROUS)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def test_all_bytes_are_read_and_a_pipe_is_not_waited_for(
    tmp_path: Path,
) -> None:
    path = tmp_path / "PLAN.md"
    for raw, text in (
        (b"\xef\xbb\xbf- [ ] \xff\x00\n", "- [ ] \ufffd\x00\n"),
        *[
            ("\ufeff- [ ] \u00e9\n".encode(f"utf-16-{end}"), "- [ ] \u00e9\n")
            for end in ("le", "be")
        ],
        (b"\xff\xfe-", "\ufffd"),
    ):
        path.write_bytes(raw)
        assert ocloop.read_text(str(path), "plan") == (text, "")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("gone", "pipe", ".", "loop", "gone/gone"):
        said, problem = ocloop.read_text(str(tmp_path / name), "plan")
        assert said is None
        assert problem.startswith(f"the plan {tmp_path / name} cannot be read (")
        assert "--plan" in problem and "`bootstrap`" in problem and "force" not in problem
    os.truncate(path, 4 << 30)  # of nothing
    said, problem = ocloop.read_text(str(path), "plan")
    assert said is None and "it is larger than 10 MiB" in problem


def an_entry(kind: str = "note", text: str = "said", **more: Any) -> Entry:
    return Entry(1, NOON, kind, text, **more)


def test_a_log_has_a_line_for_each_entry_and_is_private(tmp_path: Path, monkeypatch: Patch) -> None:
    def written(name: str, *entries: Entry) -> str:
        writer = ocloop.Writer(lambda event: pytest.fail(str(event)))
        log = ocloop.Log(str(tmp_path / name), writer)
        log.add(entries)
        log.add(())
        writer.close(GENEROUS)
        return (tmp_path / name).read_text("utf-8")

    entry = an_entry("bash", "one\ntwo\x1b[31m\x07")
    line = "2027-01-15T08:00:00+0000 bash     one / two\ufffd\n"
    assert written("x.log", entry, entry) == line * 2
    assert written("x.log", entry) == line * 3
    assert (tmp_path / "x.log").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link.log").symlink_to("precious")
    (tmp_path / "precious").touch()
    warned: list[Any] = []
    for name in ("link.log", "theirs.log"):
        if name == "theirs.log":
            (tmp_path / name).touch()
            monkeypatch.setattr(os, "getuid", lambda: 4242)
            monkeypatch.setattr(
                os, "fstat", lambda number: os.stat_result((0o100600, *[0] * 3, 77, *[0] * 5))
            )
        writer = ocloop.Writer(warned.append)
        ocloop.Log(str(tmp_path / name), writer).add((entry,))
        writer.close(GENEROUS)
        monkeypatch.undo()
    assert len(warned) == 2 and "somebody else's" in warned[1].text
    assert not (tmp_path / "precious").read_text() + (tmp_path / "theirs.log").read_text()
    (tmp_path / "y.log").touch(0o644)
    text = written("y.log", an_entry("\x1b[2J\n", "a\nb\x1b[2J\u2028"))
    assert not re.search("[\x00-\x1f\u2028]", text.rstrip("\n"))
    assert (tmp_path / "y.log").stat().st_mode & 0o777 == 0o644, "it is not ours to change"
    entry = an_entry("iter", "1 done\n\ud800", iteration=1, session="ses_1", record={"cost": 0.5})
    text = written("x.jsonl", entry)
    said = {"kind": "iter", "iteration": 1, "session": "ses_1", "text": "1 done\n\ud800"}
    assert json.loads(text) == {"time": "2027-01-15T08:00:00+0000", "cost": 0.5, **said}
    assert text.count("\n") == 1


HOSTILE = "a\x1b]52;c;eA==\x07b\u200bc\u200dd\U000e0041e\u202ef\ufeffg\u2060h\x9bi"
HARMLESS = "a\ufffd]52;c;eA==\ufffdb\ufffdc\ufffdd\ufffde\ufffdf\ufffdg\ufffdh\ufffdi"


def test_what_enters_the_journal_the_status_and_the_facts_is_printable() -> None:
    """Whoever shows them need not think of it: `jq`, a shell, another program."""
    journal = ocloop.Journal(ocloop.RunClock(NOON))
    journal.note(HOSTILE, f"{HOSTILE}\n{HOSTILE}", record={"task": HOSTILE, "list": [HOSTILE]})
    (entry,) = journal.entries
    assert (entry.kind, entry.text) == (HARMLESS, f"{HARMLESS}\n{HARMLESS}")
    assert entry.record == {"task": HARMLESS, "list": [HARMLESS]}

    plan = f"- [ ] {HOSTILE}\n- [BLOCKED: {HOSTILE}] {HOSTILE}\n- [ ]{HOSTILE}\n"
    story = Story(plan, directory=f"/{HOSTILE}", check=HOSTILE)
    facts = ocloop.facts_of(story.run)
    assert facts["OCLOOP_TASK"] == HARMLESS == facts["OCLOOP_PROJECT"]
    message = ocloop.message_of(story.run, "failed", HOSTILE)
    assert HARMLESS in message and HOSTILE not in message
    record = story.record(1)
    assert record["directory"] == story.options.directory, "it has to be found"
    said = ocloop.status_record("PLAN.md", parse_plan(plan), 0, record)
    assert HARMLESS in json.dumps(said, ensure_ascii=False)
    for text in (json.dumps(said, ensure_ascii=False), str(list(facts.values()))):
        assert not set(HOSTILE) & set(text) - set(HARMLESS), text


@pytest.mark.parametrize("command, status", [
    ("run", 1), ("run --dry-run", 1), ("status", 3), ("bootstrap", 0),
])  # fmt: skip
def test_nothing_that_is_printed_can_rewrite_the_terminal(
    command: str, status: int, tmp_path: Path, monkeypatch: Patch, say: Say
) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "PLAN.md").write_text(f"[ ] {HOSTILE}\n" + "- [ ] a\n" * (command == "status"))
    (folder / ".loop-prompt.md").write_text(HOSTILE)
    words = [*command.split(), *["--opencode", "true"] * ("run" in command)]
    said = say(*words, status=status)
    assert HARMLESS in said and not set(HOSTILE) & set(said) - set(HARMLESS)


def test_a_log_that_cannot_be_written_is_said_once_and_tried_on(tmp_path: Path) -> None:
    posted: list[Event] = []
    writer = ocloop.Writer(posted.append)
    log = ocloop.Log(str(tmp_path / "later" / "x.log"), writer)
    os.mkfifo(tmp_path / "pipe")
    pipe = ocloop.Log(str(tmp_path / "pipe"), writer)
    for _ in range(3):
        log.add([an_entry()])
        pipe.add([an_entry()])
    until(writer.jobs.empty, "what was to be written")
    (tmp_path / "later").mkdir()
    log.add([an_entry()])
    writer.close(GENEROUS)
    assert [type(event) for event in posted] == [Noted, Noted]
    assert "name another path with --log" in str(posted[0])
    assert (tmp_path / "later" / "x.log").read_text().count("\n") == 1


def test_a_disk_that_fills_up_tears_no_line_of_the_log(tmp_path: Path, monkeypatch: Patch) -> None:
    writer = ocloop.Writer(lambda event: None)
    log = ocloop.Log(str(tmp_path / "x.jsonl"), writer)
    write = os.write
    room = [200]

    def small(number: int, data: bytes) -> int:
        if not room[0]:
            full()
        written = write(number, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", small)
        for _ in range(5):
            log.add([an_entry("iter", "x" * 60)])
        until(writer.jobs.empty, "what was to be written")
        time.sleep(0.1)
    log.add([an_entry("iter", "the last one")])
    writer.close(GENEROUS)
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert records[-1]["text"] == "the last one" and len(records) >= 2


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_bug_and_a_state_file_that_cannot_be_written_are_told(
    tmp_path: Path, run_file: RunFile, monkeypatch: Patch
) -> None:
    driver = ocloop.Driver(ocloop.Run(project_options(tmp_path, notify="mail"), NOON), run_file)
    made: list[Request] = []
    monkeypatch.setattr(driver.outside, "make", made.append)
    driver._tell_of_bug(ValueError("of a strange kind"))  # whoever sleeps hears of a bug
    (notify,) = made
    (facts,) = notify.args
    assert (notify.name, facts["OCLOOP_EVENT"]) == ("notify", "failed")
    assert "ocloop itself failed" in facts["OCLOOP_MESSAGE"]
    record = ocloop.record_of(driver.run, driver.outside, 1)
    assert record["state"] == "ended" and "of a strange kind" in str(record["reason"])
    monkeypatch.setattr(os, "replace", full)
    for _ in range(3):
        driver._record(None)
    driver.writer.close(GENEROUS)
    said = str(driver.inbox.get_nowait())
    assert "No space left on device" in said and "`status` cannot tell" in said
    assert driver.inbox.empty()
    assert all(name.endswith(".libraries") for name in os.listdir(run_file.folder))


def lock_of(run_file: RunFile) -> str:
    return os.path.join(run_file.folder, run_file.lock_name)


def test_where_no_lock_can_be_had_that_is_said(run_file: RunFile, monkeypatch: Patch) -> None:
    def flock(number: int, how: int) -> None:
        opened.append(number)
        raise OSError(errno.ENOLCK, "No locks available")

    opened: list[int] = []
    monkeypatch.setattr(fcntl, "flock", flock)
    assert run_file.acquire() == 0 and run_file.lock is None
    assert "make sure that no second loop works on this plan" in run_file.problem
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_where_state_was_cleaned_away_a_second_loop_is_seen(
    tmp_path: Path, run_file: RunFile
) -> None:
    second = RunFile(str(tmp_path / "PLAN.md"))
    run_file.write({"state": "running"})
    assert run_file.acquire() == 0
    shutil.rmtree(run_file.folder)
    assert second.acquire() == 0
    second.write({"state": "theirs"})
    for _ in range(2):
        with pytest.raises(OSError, match="another loop works on this plan, process"):
            run_file.write({"state": "running"})
    assert run_file.read() == {"state": "theirs"}


def test_a_lock_that_is_taken_anew_leaves_no_descriptor_open(run_file: RunFile) -> None:
    assert run_file.acquire() == 0
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        shutil.rmtree(run_file.folder)
        run_file.write({"state": "running"})
    assert run_file.running() and len(os.listdir("/dev/fd")) == before


def test_a_lock_of_somebody_stopped_is_not_waited_for(
    run_file: RunFile, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    run_file.write({})
    with open(lock_of(run_file), "w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # as `status` does, for a moment
        assert run_file.acquire() == -1


def test_a_lock_is_taken_when_its_owner_lets_go(run_file: RunFile) -> None:
    """`status` holds it for a moment."""
    with open(lock_of(run_file), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        assert run_file.acquire() == 0 and run_file.problem == ""


def test_a_relative_state_home_is_none(
    tmp_path: Path, state_home: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    monkeypatch.chdir(tmp_path)
    assert RunFile("PLAN.md").folder == str(tmp_path / "home/.local/state/ocloop")
    assert not (tmp_path / "here").exists()


def test_the_state_file_is_private_and_replaced_whole(tmp_path: Path, state_home: Path) -> None:
    run_file = RunFile(str(tmp_path / "my project" / "PLAN.md"))
    assert run_file.problem == "" and Path(run_file.folder) == state_home / "ocloop"
    assert Path(run_file.path).name.startswith("my_project-")
    assert run_file.read() == {}
    for record in ({"state": "running", "text": "\ud800"}, {"state": "complete"}):
        run_file.write(record)
        assert run_file.read() == record
    assert os.stat(run_file.path).st_mode & 0o777 == 0o600
    assert os.stat(run_file.folder).st_mode & 0o777 == 0o700
    assert os.listdir(run_file.folder) == [Path(run_file.path).name], "no draft is left"
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    paths = [RunFile(str(tmp_path / name)).path for name in ("a/P", "a/Q", "b/P", "link/P")]
    assert len(set(paths)) == 3 and paths[3] == paths[0], "the plan counts, not the way to it"


def test_where_state_cannot_be_kept_it_is_kept_elsewhere(tmp_path: Path, state_home: Path) -> None:
    state_home.write_text("a file is in the way")
    (tmp_path / "project").mkdir()
    plan = str(tmp_path / "project" / "PLAN.md")
    run_file = RunFile(plan)
    assert run_file.folder == str(tmp_path / f"ocloop-{os.getuid()}")
    assert "cannot be used: using" in run_file.problem
    os.chmod(run_file.folder, 0o777)  # anybody could put a state file there
    first, second = RunFile(plan), RunFile(plan)
    assert first.folder == "" and "no `status`" in first.problem
    assert "no second loop on any plan in this folder" in first.problem
    assert first.running() == 0 == first.acquire()
    first.write({"state": "running"})
    assert second.acquire() == -1 == second.running() and second.read() == {}
    assert os.listdir(tmp_path / "project") == []
    assert RunFile(str(tmp_path / "PLAN.md")).acquire() == 0, "of another folder"


@pytest.mark.parametrize("trap", ["symlink", "hard link", "link to a folder", "open to all"])
def test_a_folder_of_another_is_not_written_into(
    tmp_path: Path, run_file: RunFile, trap: str, monkeypatch: Patch
) -> None:
    """A cleaner removes the state folder in mid-run, and another user puts theirs in its place."""
    assert run_file.acquire() == 0
    run_file.write({"password": "first"})
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = Path(run_file.folder)
    if trap != "open to all":
        shutil.rmtree(folder)
    if trap == "link to a folder":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o777 if trap == "open to all" else 0o700)
    if trap.endswith("link"):
        monkeypatch.setattr(os, "urandom", lambda _: b"guessed")
        draft = folder / f"{run_file.name}.{b'guessed'.hex()}"
        (os.symlink if trap == "symlink" else os.link)(precious, draft)
        with pytest.raises(FileExistsError):
            run_file.write({"password": "second"})
        run_file.write({"password": "second"})
        assert run_file.read() == {"password": "second"}
        assert RunFile(str(tmp_path / "PLAN.md")).running() == os.getpid(), "it is locked, too"
    else:
        with pytest.raises(OSError):
            run_file.write({"password": "second"})
        assert run_file.read() == {} and run_file.running() == 0
        assert "second" not in "".join(path.read_text() for path in folder.iterdir())
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("is_open", ["", "state", "state/a.libraries"])
def test_a_library_is_unpacked_where_nobody_else_can_write(tmp_path: Path, is_open: str) -> None:
    """It is run from there. Another user may have made the folder anew since the run began."""
    libraries = tmp_path / "state" / "a.libraries"
    if is_open:
        libraries.mkdir(parents=True, mode=0o700)
        (tmp_path / is_open).chmod(0o777)
        (libraries / "theirs").touch()  # an empty folder would be made anew
    command = ("/bin/sh", "-c", 'echo "$BUN_TMPDIR" >seen')
    options = Options(directory=str(tmp_path), opencode=command)
    server = ocloop.Outside(options, print, str(libraries))
    server.environment.pop("BUN_TMPDIR", None)
    with pytest.raises(ocloop.Problem):
        server.start_server(1)  # it ends at once
    server.close()
    assert (tmp_path / "seen").read_text().strip() == ("" if is_open else str(libraries))


def test_what_the_folder_of_libraries_leads_to_is_left_alone(tmp_path: Path) -> None:
    libraries, theirs = tmp_path / "a.libraries", tmp_path / "theirs"
    for folder in (libraries, theirs):
        folder.mkdir(mode=0o700)
        (folder / ".a-01234567.so").touch()
        (folder / "mine").touch()
    ocloop.remove_libraries(str(libraries), time.time() - 60)
    assert len(list(libraries.iterdir())) == 2, "it may not be mapped yet"
    ocloop.remove_libraries(str(libraries))
    assert [path.name for path in libraries.iterdir()] == ["mine"]
    shutil.rmtree(libraries)
    libraries.symlink_to(theirs)
    ocloop.remove_libraries(str(libraries))
    given = ("0" * 24, ocloop.PROC, " ".join(ocloop.PS), str(libraries), ocloop.LIBRARY)
    argv = ["/bin/sh", "-c", ocloop.GUARD, "ocloop-guard", *given]
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True)
    assert len(list(theirs.iterdir())) == 2


@pytest.mark.parametrize("step", ["state", "tmp"])
def test_below_what_others_may_write_nothing_is_kept(
    tmp_path: Path, monkeypatch: Patch, step: str
) -> None:
    """They could put another folder in the place of ours, but where it is sticky."""
    for name, variable in (("state", "XDG_STATE_HOME"), ("tmp", "TMPDIR")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    assert RunFile("/PLAN.md").folder == str(tmp_path / "state" / "ocloop")
    with monkeypatch.context() as without:  # HOME and an entry of this user's
        without.delenv("XDG_STATE_HOME")
        without.setattr(os.path, "expanduser", lambda path: path)
        without.chdir(tmp_path)
        assert RunFile("/PLAN.md").folder == str(tmp_path / "tmp" / f"ocloop-{os.getuid()}")
        assert not (tmp_path / "~").exists()
    (tmp_path / "state").chmod(0o777)
    fallback = str(tmp_path / "tmp" / f"ocloop-{os.getuid()}")
    assert RunFile("/PLAN.md").folder == fallback
    (tmp_path / "tmp").chmod(0o777)
    assert RunFile("/PLAN.md").folder == "" and "no second loop" in RunFile("/PLAN.md").problem
    (tmp_path / step).chmod(0o1777)
    assert RunFile("/PLAN.md").folder == (fallback if step == "tmp" else f"{tmp_path}/state/ocloop")


@pytest.mark.parametrize("step", ["", ".local", ".local/state"])
def test_in_a_home_of_another_nothing_is_kept(
    tmp_path: Path, state_home: Path, monkeypatch: Patch, step: str
) -> None:
    """As root, with the HOME of another: they could lead us where they like."""
    monkeypatch.delenv("XDG_STATE_HOME")
    home = tmp_path / "home"
    (home / ".local" / "state").mkdir(parents=True)
    theirs = os.path.join(home, step)
    look = os.stat

    def their_stat(path: Any, **how: Any) -> os.stat_result:
        found = look(path, **how)
        return os.stat_result((*found[:4], 4242, *found[5:])) if path == theirs else found

    monkeypatch.setattr(os, "stat", their_stat)
    run_file = RunFile(str(tmp_path / "PLAN.md"))
    assert run_file.folder == str(tmp_path / f"ocloop-{os.getuid()}")
    assert list(home.rglob("ocloop")) == [], "nothing of ours is made there"


def test_a_damaged_state_file_says_nothing(tmp_path: Path, run_file: RunFile, say: Say) -> None:
    gc.collect()  # not in the depths of a recursion, where pytest's own hooks have no room
    state = Path(run_file.path)
    for raw in (
        *(b"", b"{", b"[1]", b"null", b"7", b"\xef\xbb\xbf{}", b"[" * 100_000, b"\0", b"\xff\xfe"),
        *(b'{"plan": "/a\\u0000b"}', b'{"plan": "\\ud800"}'),
    ):
        state.write_bytes(raw)
        assert run_file.read() == {}, raw[:20]
        say("status", "--all", "--json")
    # How deep is too deep is each Python's own affair: what is read can be shown.
    state.write_bytes(b'{"plan": "/a", "state": %s}' % (b"[" * 600 + b"]" * 600))
    say("status", "--all", "--json")
    state.unlink()
    (tmp_path / "theirs").write_text('{"server": "http://elsewhere"}')
    state.symlink_to(tmp_path / "theirs")
    assert run_file.read() == {}, "somebody put it elsewhere"


# ── command line: options ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", OPTION_VALUES)
def test_values_of_options(kind: str) -> None:
    for text, value in OPTION_VALUES[kind].items():
        if value is not None:
            assert ocloop.value_of(kind, text) == value, text
            continue
        with pytest.raises(argparse.ArgumentTypeError, match=f" is no {kind}: write "):
            ocloop.value_of(kind, text)


def test_every_option_is_a_field_and_its_help_says_its_default() -> None:
    found = set()
    for flags, metavar, text in re.findall(
        r"^(-[-\w]*(?:,? --[-\w]+)?)(?: ([A-Z/]+))?  +(.*)$", ocloop.RUN_OPTIONS, re.M
    ):
        name = flags.rpartition("--")[2].replace("-", "_")
        found.add(name)
        default = getattr(Options(), {"model": "models"}.get(name, name), None)
        if name in ("opencode", "port") or not metavar:
            continue  # no default, or one that is told in words
        brackets = re.findall(r"\(([^()]*)\)$", text)
        assert brackets or not default, f"{name} does not say its default"
        for said in brackets:  # with a value in front: `4h` -> 14400.0
            value: Any = None
            with suppress(argparse.ArgumentTypeError):
                value = ocloop.value_of(metavar, (said.split() or [""])[0].strip("`;,"))
            if default:
                assert value == default, f"{name}: {said!r}, and it is {default}"
            else:
                assert not isinstance(value, (int, float)), f"{name}: {said!r}, there is none"
    fields = set(Options._fields) - {"directory", "attended", "models", "asks_wait"}
    assert found == fields | {"model", "dry_run"}


def test_what_is_parsed_is_what_was_asked_for(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "opencode").write_text("#!/bin/sh\n")
    (tmp_path / "opencode").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    here = str(Path.cwd())
    options = ocloop.make_options(ocloop.parse_arguments(["run"]))
    assert options == project_options(Path(here), opencode=(f"{tmp_path}/opencode",))
    words = (
        "run -m a/b --model c/d -a x -p 5 -r -d --auto --plain --verbose --stuck 0 --log l "
        "--max-cost 3 --max-time 1h30m --server http://h:1 --check"
    )
    options = ocloop.make_options(ocloop.parse_arguments([*words.split(), "make test"]))
    assert options.models == ("a/b", "c/d") and options.agent == "x" and options.port == 5
    assert options.run and options.debug and options.auto and options.plain and options.verbose
    assert (options.stuck, options.max_cost, options.max_time) == (0, 3.0, 5400.0)
    assert (options.log, options.check) == (f"{here}/l", "make test")
    assert (options.server, options.opencode) == ("http://h:1", ())


@pytest.mark.parametrize("words, said", [
    ("rnu", "invalid choice: 'rnu' (choose from"),
    ("--run", "--run is an option of a command: did you mean `run --run`?"),
    ("--max-cost=3", "did you mean `run --max-cost=3`?"),
    ("run --max-time soon", "'soon' is no DURATION: write 90, 15m, 2h; 0 means off"),
    ("run --stuck few", "'few' is no N: write a whole number"),
    ("run --port 65536", "'65536' is no PORT: write a number up to 65535"),
    ("run --server here", "'here' is no URL: write http://HOST:PORT"),
    ("", "required: command (`ocloop.py --help` lists what there is)"),
    ("run --max-costs=3", "--max-costs is not known here: did you mean --max-cost? (`ocloop.py"),
    ("status --jsn", "did you mean --json? (`ocloop.py status --help` lists what there is)"),
    ("bootstrap a b", "b is not known here (`ocloop.py bootstrap --help` lists what there is)"),
    ("run --max-cost many", "argument --max-cost: 'many' is no USD: write dollars such as 20"),
    ("run --max-cost", "(`ocloop.py run --help` lists what there is)"),
    ("run -m sonnet", "'sonnet' is no PROVIDER/MODEL: write one that `opencode models` lists"),
])  # fmt: skip
def test_a_mistake_is_one_line(words: str, said: str, capsys: Printed) -> None:
    assert ocloop.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("ocloop: ") and err.count("\n") == 1 and not out


# ── command line: bootstrap ───────────────────────────────────────────────────────────────────────


def test_bootstrap_writes_what_is_missing_and_loses_nothing(tmp_path: Path, say: Say) -> None:
    folder = tmp_path / "new" / "project"
    plan, prompt = folder / "PLAN.md", folder / ".loop-prompt.md"
    assert f"wrote    {plan}" in say("bootstrap", str(folder))
    assert plan.read_text() == ocloop.STARTER_PLAN
    assert prompt.read_text() == ocloop.STARTER_PROMPT and len(list(folder.iterdir())) == 2
    read, problems, (warning,) = ocloop.preflight(project_options(folder, attended=True))
    assert "is still the starter: write your own tasks into it" in warning
    assert problems == []
    assert ocloop.preflight(project_options(folder))[1:] == ([warning], []), "nobody looks"
    assert read.pending == 3 and read.manual == 1 and read.summary is None
    plan.write_text("mine")
    prompt.unlink()
    assert f"skipped  {plan}" in say("bootstrap", str(folder))
    assert plan.read_text() == "mine" and prompt.read_text() == ocloop.STARTER_PROMPT
    assert say("bootstrap", str(plan), status=1) == f"ocloop: {plan}: File exists\n"
    plan.write_text("mine")
    assert f"kept     {folder / 'PLAN.md~'}" in say("bootstrap", "--force", str(folder))
    plan.write_text("also mine")
    for _ in range(2):
        say("bootstrap", "--force", str(folder))
    assert (folder / "PLAN.md~").read_text() == "mine" and plan.read_text() == ocloop.STARTER_PLAN
    assert "also mine" in [path.read_text() for path in folder.iterdir()]


# ── command line: what shows in the evening ───────────────────────────────────────────────────────


def problems(folder: Path, **options: Any) -> str:
    return "\n".join(ocloop.preflight(project_options(folder, **options))[1])


def warnings(folder: Path, **options: Any) -> str:
    return "\n".join(ocloop.preflight(project_options(folder, **options))[2])


def test_a_project_without_tasks_or_words_is_refused(
    project: Path,
) -> None:
    options = project_options(project, check="make test", log=f"{project}/log")
    plan, *found = ocloop.preflight(options)
    assert found == [[], []]
    assert plan.pending == 1 and ocloop.tasks_as_read(plan) == ["[ ] one", "[x] two"]
    (project / "PLAN.md").write_text("# Nothing\n")
    assert "has no task: add lines such as `- [ ] Build it`" in problems(project)
    assert problems(project, debug=True) == ""
    (project / "PLAN.md").write_text("- [ ] one\n")
    (project / ".loop-prompt.md").write_text("---\nmodel: a/b\n---\n\n")
    said = problems(project)
    assert "is empty" in said and "force" not in said, "nothing ever advises to destroy"
    (project / ".loop-prompt.md").unlink()
    assert "the prompt" in problems(project) and "cannot be read" in problems(project)


def test_what_is_odd_in_a_project_is_a_warning(project: Path, monkeypatch: Patch) -> None:
    assert warnings(project) == ""
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(project))
        assert "all of it: change into the project's own folder" in warnings(project)
        options = project_options(project, directory="/")
        assert "the project is /, all of it" in "\n".join(ocloop.preflight(options)[2])
    (project / "PLAN.md").write_text("- [ ] one\n" + "- [ ]nearly\n" * 9)
    (project / ".loop-prompt.md").write_text("---\nmodle: a/b\nagent: x\n---\nDo it\n")
    said = warnings(project)
    assert f'PLAN.md:2 is nearly a task: "- [ ]nearly": {ADVICE}' in said
    assert said.count("nearly a task") == 5, "and not one for each"
    assert "does not contain {{PLAN_FILE}}" in said
    assert "modle means nothing here: model, agent," in said
    (project / ".loop-prompt.md").write_text("---\ndescription: {{PLAN_FILE}}\n---\nDo it\n")
    assert "does not contain {{PLAN_FILE}}" in warnings(project), "the agent sees the body alone"
    (project / ".loop-prompt.md").write_text("---\nmodel: a/b\nagent\n---\nDo {{PLAN_FILE}}\n")
    assert "is no `key: value`: the agent gets it as text" in warnings(project)
    (project / ".loop-prompt.md").write_text("---  \nmodel: a/b\nagent\n---\nDo {{PLAN_FILE}}\n")
    assert "is no `key: value`: the agent gets it as text" in warnings(project)
    (project / ".loop-prompt.md").write_text("---\nYour rules, in short:\n---\nDo {{PLAN_FILE}}\n")
    assert "key: value" not in warnings(project), "it is text between two rules"
    (project / "PLAN.md").write_text(f"`{ocloop.STARTER_TASK}` is no task\n- [ ] a\n")
    assert ocloop.preflight(project_options(project))[1] == []


def test_a_command_that_does_not_exist_is_refused(
    project: Path,
) -> None:
    (project / "there.sh").write_text("#!/bin/sh\n")
    (project / "there.sh").chmod(0o755)
    for name in ("check", "notify"):
        for command in ("nobody-has-it", "nobody-has-it test", "./check.sh"):
            said = problems(project, **{name: command})
            assert said == f"--{name}: there is no command {command.split()[0]}"
        for command in (
            *("sh -c true", "./there.sh --fast", "cd sub && make", "X=1 nobody-has-it", "true", ""),
            *("! grep -q x y", "(nobody-has-it)", "if true; then nobody-has-it; fi", "$CHECK"),
            "~/bin/check",
        ):
            assert problems(project, **{name: command}) == "", command
    for words, said in (
        ("nobody-has-it serve", "nobody-has-it is not there: install OpenCode"),
        ("/dev/null", "/dev/null is no program: install OpenCode"),
        ('npx "-y', ": mind its quotes .No closing quotation"),
    ):
        with pytest.raises(Problem, match=said):
            ocloop.find_opencode(words)
    assert ocloop.find_opencode("/bin/sh -y x") == ("/bin/sh", "-y", "x")


def test_a_log_that_cannot_be_written_is_refused(project: Path) -> None:
    assert problems(project, log=f"{project}/there.log") == ""
    plan = project / "PLAN.md"
    link = project / "link"
    link.symlink_to("there.log")
    (project / "here").symlink_to(project)
    os.link(plan, project / "hard")
    for path, why in (
        (plan, "it is the plan"),
        (project / "here" / "PLAN.md", "it is the plan"),
        (project / "hard", "it is the plan"),
        (project, "it is a folder"),
        (project / "gone" / "x.log", f"{project}/gone/ is not there"),
        (plan / "x.log", f"{plan}/ is not there"),
        (link, "it is a folder or a link"),
    ):
        said = problems(project, log=str(path))
        assert f"cannot be written ({why}" in said and "name another path with --log" in said
    assert not (project / "there.log").exists(), "looking leaves nothing behind"


@pytest.mark.parametrize("name", ["opencode.json", "opencode.jsonc", ".opencode", "AGENTS.md"])
def test_what_others_put_above_a_project_is_not_read(
    tmp_path: Path, project: Path, of_others: Callable[..., None], name: str
) -> None:
    """OpenCode reads its configuration upwards, to where git begins: it may start programs."""
    (tmp_path / name).mkdir()
    assert problems(project) == ""
    of_others(tmp_path / name)
    assert f"OpenCode would read {tmp_path / name}, which is another user's" in problems(project)
    (project / ".git").mkdir()
    assert problems(project) == ""
    (project / ".git").rmdir()
    of_others(tmp_path / name, project)  # as root, in a project of theirs
    assert problems(project) == ""


def test_in_another_s_home_no_program_is_looked_for(
    tmp_path: Path, project: Path, monkeypatch: Patch, of_others: Callable[..., None]
) -> None:
    program = tmp_path / ".opencode" / "bin" / "opencode"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert ocloop.find_opencode("") == (str(program),)
    of_others(tmp_path)
    with pytest.raises(ocloop.Problem, match="opencode is not there"):
        ocloop.find_opencode("")
    options = Options(str(project), f"{project}/PLAN.md", f"{project}/.loop-prompt.md")
    _plan, _problems, warnings = ocloop.preflight(options)
    assert any("is another user's" in warning and "sudo -H" in warning for warning in warnings)


@pytest.mark.parametrize("url, asked", [
    ("http://localhost:4096", "http://127.0.0.1:4096"), ("http://localhost", "http://127.0.0.1"),
    ("http://localhost.example:1", "http://localhost.example:1"),
    ("https://localhost:1", "https://localhost:1"), ("http://[::1]:1", "http://[::1]:1"),
])  # fmt: skip
def test_of_the_two_addresses_of_localhost_one_is_asked(url: str, asked: str) -> None:
    """Somebody else may listen on the other one, and would be told the password."""
    given = ocloop.parse_arguments(["run", "--server", url])
    assert ocloop.make_options(given).server == asked


def test_what_a_configuration_wants_to_be_asked_before() -> None:
    rules = [("bash", "ask"), ("bash", "allow"), ("edit", "deny")]
    configurations: list[tuple[Json, list[str]]] = [
        ({"permission": {}}, []), ({"permission": "allow"}, []), ({}, []),
        ({"permission": {"edit": None, "bash": {"*": ["ask"]}}}, []),
        ({"permission": 7, "permissions": [7, {}]}, []),
        ({"permission": "ask"}, ["everything"]),
        ({"permission": {"edit": "ask", "bash": {"ls": "allow", "*": "ask"}, "read": "deny"}},
         ["edit", "bash"]),
        ({"permissions": [{"action": name, "effect": effect} for name, effect in rules]}, ["bash"]),
    ]  # fmt: skip
    for config, asks in configurations:
        found = [name for name, is_asked in ocloop.asked_before(config).items() if is_asked]
        assert found == asks, config


def test_run_refuses_what_a_dry_run_refuses(project: Path, monkeypatch: Patch, say: Say) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(ocloop, "START_TIMEOUT", 0.1)
    words = ["run", "--plain", "--server", "http://127.0.0.1:9", "--check", "nobody-has-it"]
    assert "--check: there is no command nobody-has-it" in say(*words, status=1)
    for name in ("PLAN.md", ".loop-prompt.md"):
        (project / name).unlink()
    said = say(*words, "--dry-run", status=1)
    assert "problem  --check: there is no command nobody-has-it" in said
    assert said.count("cannot be read") == 2, "both are named, and neither is shown"
    assert "100 %" not in said


def test_a_dry_run_fails_where_a_configuration_is_not_read() -> None:
    for unread, status in (((), 0), (("/project/opencode.json",), 1)):
        story = Story(start=False, finds={"setup": Setup("a/b", {"a/b": 1000}, unread=unread)})
        story.run = ocloop.Rehearsal(story.options._replace(attended=False), Plan(), [])
        story.hear()
        assert story.run.exit_status == status
        assert ("end: there are problems; the server" in story.text) == bool(status)


def test_a_dry_run_says_how_a_plan_of_long_lines_was_read() -> None:
    plan = ocloop.parse_plan(f"- [ ] {'long ' * 60}\n" * 30)
    run = ocloop.Rehearsal(Options(), plan, [])
    texts = [entry.text for entry in run.journal.entries]
    assert texts[-1] == "… and 10 more" and sum("[ ] long" in text for text in texts) == 20


def test_a_plan_that_is_complete_needs_no_server(
    project: Path, monkeypatch: Patch, say: Say
) -> None:
    monkeypatch.chdir(project)
    words = ["run", "--plain", "--server", "http://127.0.0.1:9"]
    for text, status in (("- [x] a\n", 0), ("- [ ] a\n", 3)):
        (project / "PLAN.md").write_text(text + "<plan-complete>all</plan-complete>\n")
        said = say(*words, status=status)
        assert "take out its <plan-complete> tag to work on it again" in said
        assert "plain lines, since" not in said, "they were asked for"
        assert ("marked complete already (complete but for 1 pending task)" in said) == bool(status)
    held = RunFile(str(project / "PLAN.md"))
    assert held.acquire() == 0
    assert "another loop works on this plan" in say(*words, status=1), "it may still be at work"


def test_a_directory_that_has_no_readable_name_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    with pytest.raises(Problem, match="is not UTF-8: rename it"):
        ocloop.absolute(f"{tmp_path}/\udcff")


# ── command line: status and attach ───────────────────────────────────────────────────────────────


def says(text: str, *words: str) -> None:
    for each in words:
        assert each in text, each


def test_status_tells_of_a_run_at_work_and_what_it_waits_for() -> None:
    plan = "- [ ] one\n- [ ] two\n- [BLOCKED: no key] Deploy\n"
    story = Story(plan, max_cost=20.0, check="make test")
    story.works(0.5)
    story.busy()
    text = status_text(story)
    says(
        f"{text}\n",
        "plan      /project/PLAN.md",
        "progress  1 of 3 tasks done (33 %), 1 blocked, 0 manual",
        "next      two",
        "run       running, process 4711 (`kill 4711` ends it in good order)",
        *("task      two\n", "session   ses_2\n", "model     a/b\n", "spent     2 iterations in "),
        *("server    http://127.0.0.1:4096\n", " tokens, $0.50\n", "outcomes  done ×1\n"),
        "blocked   Deploy (no key)",
    )
    assert re.search(r"^done +\d+s +\$0.50 +1  one$", text, re.MULTILINE)
    story.check = 2
    story.works()
    text = status_text(story)
    assert re.search(r"^check failed .* 1  two$", text, re.MULTILINE), "and not done"
    says(text, "check failed ×1", "\ncheck     exit status 2\ncheck     output of the check")
    story = Story()
    story.asks()
    says(status_text(story), "to do     answer what it asks (bash rm -r x): `attach` joins it")
    story = Story()
    story.retries(1, 20, "overloaded")
    says(status_text(story), "retry     overloaded (at ")
    story = Story()
    story.fails("rate-limit", "Too many requests", retry_after=3600)
    assert re.search(r"waiting: .*, process 4711(.|\n)*\nagain +\d\d:\d\d", status_text(story))
    says(status_text(Story(), 0), "was killed after")


def test_status_tells_how_a_run_ended() -> None:
    story = Story("- [ ] one\n- [MANUAL] Tell Bob\n", log="/night.jsonl")
    story.plan = "- [x] one\n- [MANUAL] Tell Bob\n<plan-complete>It works.\nSo.</plan-complete>"
    story.ends()
    ended = story.now
    story.let_pass(3600, 60)
    story.press("q")
    record = story.record(0)
    assert record["ended"] == pytest.approx(ended, abs=1), "not when somebody pressed Q"
    assert (record["state"], record["opencode_version"]) == ("ended", "1.18.33")
    text = status_text(story, 0, 0)
    assert re.search(r"^run       ended 2027-01-15T\S+: the plan is complete$", text, re.MULTILINE)
    says(text, ", complete", "summary   It works.", "summary   So.", "manual    Tell Bob")
    says(text, f"\nstarted   {ocloop.iso_time(NOON)}\n", "\nlog       /night.jsonl")
    story = Story("- [ ] one\n- [ ] two\n- [ ] three\n", attended=False)
    story.asks(title="bash")
    story.works()
    story.plan = "- [x] one, and more\n- [x] two\n"
    story.ends()
    text = status_text(story, 0, 3)
    says(text, "refused   bash ×1", "gone      three")
    says(text, "to do     allow bash in opencode.json, or use --auto")
    says(text, "to do     write back what is gone from the plan, or let it be: three")
    assert re.search(r"^gone .* 1  one$", text, re.MULTILINE), "it was worked on, and is no more"
    assert "- one" in seen(story, 160, 40)


def test_the_fields_of_status_json_are_in_the_readme() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    story = Story()
    record = {**story.record(0), **story.record()}
    whole = ocloop.status_record("/PLAN.md", parse_plan("- [ ] one\n"), 7, record)
    for name in whole:
        assert f"`{name}`" in readme, name
    for name in whole["run"]:
        assert name in ocloop.SECRETS or name == "pid" or f"`{name}`" in readme, name


def test_status_of_a_start_tells_nothing_of_the_last_run(
    tmp_path: Path, run_file: RunFile, say: Say
) -> None:
    plan = tmp_path / "PLAN.md"
    plan.write_text("- [ ] one\n")
    words = ("status", "--plan", str(plan))
    story = Story("- [ ] one\n", attended=False)
    story.fails("auth", "no login")
    run_file.write({**story.record(1), "pid": 4711})
    assert "no login" in say(*words, status=3)
    assert os.listdir(run_file.folder) == [run_file.name], "looking makes no lock"
    plan.write_text("- [ ] two\n")  # after the run
    assert re.search(r"^gone .* 1  one$", say(*words, status=3), re.MULTILINE)
    assert run_file.acquire() == 0
    said = say(*words, status=3)
    assert f"run       starting, process {os.getpid()}" in said and "no login" not in said
    run = json.loads(say(*words, "--json", status=3))["run"]
    assert (run["state"], run["pid"], run.get("reason")) == ("starting", os.getpid(), None)
    assert run_file.lock
    os.close(run_file.lock)  # it ended, and could not write: the disk was full
    assert json.loads(say(*words, "--json", status=3))["run"] is None


def in_git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
@pytest.mark.parametrize("record", [{}, {"state": "ended", "commit": "--output=written"}])
def test_without_a_commit_status_lets_git_alone(
    tmp_path: Path, run_file: RunFile, monkeypatch: Patch, record: Json, say: Say
) -> None:
    """What a repository has configured is run by git, and an option could make it write a file."""
    in_git(tmp_path, "init", "-q")
    in_git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    in_git(tmp_path, "config", "core.fsmonitor", "touch written; false")
    monkeypatch.chdir(tmp_path)
    Path("PLAN.md").write_text("- [ ] a\n")
    run_file.write({**record, "directory": str(tmp_path)})
    say("status", status=3)
    assert not Path("written").exists()


def test_status_does_not_read_large_files_for_minutes(monkeypatch: Patch) -> None:
    now = 0.0

    def read_text(path: str, what: str) -> tuple[str, str]:
        nonlocal now
        now += 1.0
        return "a\n", ""

    said = {"diff": "", "ls-files": "\0".join(map(str, range(1000)))}
    monkeypatch.setattr(ocloop, "git", lambda _directory, word, *_more: said[word])
    monkeypatch.setattr(ocloop, "read_text", read_text)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    changes = ocloop.changes_since("/project", "abc")
    assert changes and changes["files"] == 1000 and changes["added"] < 10


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_status_says_what_changed_since_the_run_began(
    tmp_path: Path, state_home: Path, monkeypatch: Patch
) -> None:
    folder = str(tmp_path)
    assert ocloop.git(folder, "rev-parse", "HEAD") is None, "no repository: nothing is said"
    assert ocloop.changes_since(folder, "") is None
    in_git(tmp_path, "init", "-q")
    (tmp_path / "old").write_text("1\n2\n3\n")
    (tmp_path / ".gitignore").write_text("ignored\nstate\n")
    in_git(tmp_path, "add", "-A")
    in_git(tmp_path, "commit", "-qm", "one")
    driver = ocloop.Driver(
        ocloop.Run(project_options(tmp_path), NOON), RunFile(f"{folder}/PLAN.md")
    )
    driver._note_commit()
    driver._record(None)
    driver.writer.close(5)
    commit = RunFile(f"{folder}/PLAN.md").read()["commit"]
    assert commit == ocloop.git(folder, "rev-parse", "HEAD")
    (tmp_path / "committed").write_text("a\nb\n")
    in_git(tmp_path, "add", "-A")
    in_git(tmp_path, "commit", "-qm", "two")
    for name, text in (("old", "1\n"), ("new", "a\nb\nc\n"), ("ignored", "a\n"), ("picture", "\0")):
        (tmp_path / name).write_text(text)
    (tmp_path / "link").symlink_to("/nowhere")
    changes = ocloop.changes_since(folder, commit)
    assert changes == {"commit": commit, "files": 5, "untracked": 3, "added": 5, "removed": 2}
    assert ocloop.changes_since(folder, "0" * 40) is None, "it was rewritten: nothing is said"
    record = {"state": "ended", "started": NOON, "directory": folder, "commit": commit}
    said = f"5 files (3 untracked), +5 −2 since {ocloop.time_of_day(NOON)} (git diff {commit[:7]})"
    whole = {**ocloop.status_record("/p", Plan(), 0, record), "changes": changes}
    assert f"changes   {said}" in ocloop.status_lines(Plan(), whole)
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", folder, prepend=os.pathsep)
    monkeypatch.setattr(ocloop, "GIT_WITHIN", 0.2)
    began = time.monotonic()
    assert ocloop.git(folder, "status") is None, "one that hangs is not waited for"
    assert time.monotonic() - began < GENEROUS


def test_status_without_a_run_and_with_near_misses() -> None:
    text = status_of({}, plan=parse_plan("- [x] a\n- [ ]b\n"))
    says(text, "run       none so far", ", not marked complete yet")
    says(text, f'warning   PLAN.md:2 is nearly a task: "- [ ]b": {ADVICE}')
    # `kill $(… | jq .pid)` with 0 would end the process group of whoever says it.
    for pid, shown in ((0, None), (18, 18)):
        record = ocloop.status_record("/p", Plan(), pid, {"pid": 17, "state": "complete"})
        assert record["pid"] == shown == record["run"]["pid"]


def test_no_password_stands_beside_the_address_of_a_server_that_is_gone() -> None:
    """It would be the next one's already, and its port may be anybody's by now."""
    story = Story()
    assert {"password", "server"} <= set(story.record()) and story.record()["server"]
    story.world["start_server"] = None
    story.tell(ServerDied(1, "it died"))
    record = story.record()
    assert "password" not in record and record["server"] == "", story.state


def test_secrets_are_in_the_state_file_of_a_live_run(
    tmp_path: Path, run_file: RunFile, say: Say
) -> None:
    """And nowhere else."""
    plan = tmp_path / "PLAN.md"
    plan.write_text("- [ ] one\n")
    live = {**Story().record(), "password": "correct horse battery staple"}
    assert set(ocloop.SECRETS) <= set(live)
    assert not set(ocloop.SECRETS) & set(Story().record(0))
    run_file.write(live)
    for more in ([], ["--json"]):
        text = say("status", "--plan", str(plan), *more, status=3)
        assert live["password"] not in text
    found = json.loads(text)
    assert found["run"]["state"] == "killed" and found["total"] == 1 and not found["running"]
    assert not set(ocloop.SECRETS) & set(found["run"])


def test_the_exit_status_of_status(tmp_path: Path, say: Say) -> None:
    words = ["status", "--plan", str(tmp_path / "PLAN.md")]
    say(*words, status=1)  # there is no plan
    tag = "<plan-complete>b</plan-complete>"
    for text, status in (("- [x] a\n", 3), (f"- [x] a\n{tag}", 0), (f"- [ ] a\n{tag}", 3)):
        (tmp_path / "PLAN.md").write_text(text)
        say(*words, status=status)


def test_any_state_file_gives_a_status_and_no_traceback(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ocloop, "changes_since", lambda *_: None)
    rng = random.Random(8)
    plan = parse_plan("- [ ] a\n")
    story = Story(max_cost=1.0, check="make")
    story.works()
    base = story.record()
    names = sorted(set(base) | names_in([base, story.record(1)]) | {"summary", "verdict", "told"})
    for number in range(3000):
        record = dict(base) if number % 2 else {}
        for _ in range(rng.randrange(8)):
            record[rng.choice(names)] = anything(rng)
        if rng.random() < 0.3:
            tasks = [{rng.choice(names): anything(rng) for _ in range(5)} for _ in range(3)]
            record[rng.choice(("tasks", "outcomes"))] = tasks
        for pid in (0, 7):
            assert isinstance(status_of(record, "/p", plan, pid), str)
        argv, environment = ocloop.attach_command(record)
        assert all(isinstance(word, str) for word in [*argv, *environment.values()])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"session": "s", "server": 7}', '{"state": []}'])
def test_attach_with_a_damaged_state_file_is_a_sentence(
    tmp_path: Path, run_file: RunFile, text: str, monkeypatch: Patch, say: Say
) -> None:
    words = ("attach", "--plan", str(tmp_path / "PLAN.md"))
    assert "no loop works on" in say(*words, status=1)
    assert run_file.acquire() == 0
    Path(run_file.path).write_text(text)
    assert "attach needs a terminal" in say(*words, status=1)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert "the loop has no session right now" in say(*words, status=1)


# ── view and layout: scenes ───────────────────────────────────────────────────────────────────────
# What a screen of a given size shows, as text. The golden ones are in examples/lab/screens.txt.


def test_the_screen_is_as_it_was_looked_at() -> None:
    """A change of it is to be looked at in examples/lab/screens.txt, which this file can write."""
    golden = SCREENS.read_text("utf-8").split("\n\n")
    for expected, found in itertools.zip_longest(golden, screens(), fillvalue=""):
        assert found.rstrip("\n") == expected.rstrip("\n"), found.partition("\n")[0]


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_says_where_it_stands_and_its_keys_do_something(name: str) -> None:
    story = scene(name)
    picture = story.picture()
    shown = SCENES[name]
    assert story.run.shown_state == shown
    for width, height in ((120, 40), *SIZES):
        first, *others = drawn(picture, width, height)
        assert shown in first and len(others) == height - 1
        is_low_help = name == "help" and height < 24  # it needs the room
        has_progress = any(re.search(r"\d+/\d+", row) for row in others[:3])
        assert has_progress or is_low_help
    for key, label in picture.keys:
        assert picture.ask or label in drawn(picture, 80, 24)[-1], "all fit into 80 columns"
        story = scene(name)
        story.take()
        story.press("z" if key.startswith("any") else key.lower())
        assert timeless(story.picture()) != timeless(picture) or story.take("-"), key
    keys = {key for key, _ in picture.keys}
    if name == "stopping":
        assert not keys
    assert {"?", "Q", "P"} <= keys or name in ("help", "quit", "stopping")


def test_a_wide_screen_shows_the_plan_beside_the_activity_all_the_time() -> None:
    story = scene("running")
    wide = seen(story, 120, 40)
    says(wide, "│  ✔ Write the parser", "│  ▸ Test the parser", "python -m pytest -q")
    assert "│" not in seen(story, 119, 40)
    beside = [row for row in wide.split("\n") if "│" in row]
    assert len({text_width(row.partition("│")[0]) for row in beside}) == 1, "a straight line"
    says(seen(scene("ready")), "Phase 1: foundations", "Tell Bob")  # before the start, all of it


def test_what_a_task_took_is_added_up_over_its_iterations() -> None:
    story = Story("- [ ] one\n- [ ] two\n", models=("a/b",))
    story.let_pass(10)
    story.idles(0.25)
    story.let_pass(5)
    story.works(0.5)
    one, two = tasks_of(story)
    effort = one.effort
    assert (effort.iterations, effort.spend.cost, effort.model) == (2, 0.75, "a/b")
    assert 14 < effort.seconds < 18 and not one.is_current
    assert (two.effort.iterations, two.is_current) == (1, True), "the one under way counts"
    row = next(row for row in seen(story, 120, 40).split("\n") if "✔ one" in row)
    assert "$0.75 ×2" in " ".join(row.split())


@pytest.mark.parametrize("name", ["ready", "paused", "complete", "error"])
def test_nothing_counts_on_at_rest(name: str) -> None:
    story = scene(name)
    picture = story.picture()
    screen = seen(story)
    assert "context" not in screen, "it is that of a session"
    story.let_pass(3600, 9)
    assert vars(story.picture()) == vars(picture)
    assert seen(story) == screen
    story.sleep(3600)
    assert seen(story) == screen


def test_the_way_out_is_named_on_any_screen_and_what_is_small_or_cut_says_so() -> None:
    says(drawn(scene("quit").picture(), 40, 12)[-1], "Q again", "any other key goes on")
    says(drawn(scene("running").picture(), 20, 10)[-1], "? help", "Q quit")
    for width in (30, 40, 200):
        says(drawn(scene("plan").picture(), width, 12)[-1], "P activity", "Q quit")
    (row,) = (row for row in seen(scene("paused")).split("\n") if row.startswith("── #2 done"))
    assert row.rstrip().endswith(("…", "─")), row
    for size in SIZES:
        assert re.search(r" again at 08:0\d, in \d+s", seen(scene("waiting"), *size))
    assert [ocloop.ellipsis("123456789", width) for width in (9, 8, 1)] == [
        *("123456789", "1234567…", "…")
    ]


def test_a_low_screen_keeps_the_choices() -> None:
    story = Story()
    story.tell(permission("per_1", story.id, detail="make " * 80))
    for height in range(4, 12):
        assert "Y once" in drawn(story.picture(), 80, height)[-1], height
    story = Story()
    story.question("red", "green", "blue")
    for height in range(6, 14):
        rows = drawn(story.picture(), 60, height)
        assert "N none" in rows[-1] and any("1 red" in row for row in rows), height
        assert height < 8 or any("3 blue" in row for row in rows), height
    story = Story()
    story.question(*(f"choice {number}" for number in range(1, 12)))
    lines = story.picture().ask
    assert lines[1:] == (*(f"{n} choice {n}" for n in range(1, 10)), "N none of these")
    (row,) = drawn(scene("running").picture(), 60, 1)
    assert "running" in row
    panel = ocloop.ask_rows(("May I?", "word " * 100, "no"), 40, 20)
    assert len(panel) == 1 + 4 + 1, "title, detail, the way out"


# ── view and layout: rows ─────────────────────────────────────────────────────────────────────────


def test_what_happened_has_a_sign_as_well_as_a_colour() -> None:
    for kind, tone, style, shown in (
        ("bash", "bad", "bad", "✖ x"), ("check", "good", "good", "✔ x"), ("bash", "", "", "x"),
        ("server", "head", "accent bold", "x"), ("server", "warn", "warn", "x"),
    ):  # fmt: skip
        ((*spans,),) = ocloop.entry_rows(Entry(1, 0.0, kind, "x", tone), 80)
        assert spans[-1] == (0, style, shown)


# ── view and layout: any size, any text ───────────────────────────────────────────────────────────


def test_layout_at_every_small_size() -> None:
    for name in SCENES:
        picture = scene(name).picture()
        for width, height in itertools.product(range(13), range(13)):
            check_rows(picture, width, height)


def test_layout_of_anything_at_any_size() -> None:
    rng = random.Random(4)
    stories = [scene(name) for name in ("running", "question", "complete")]
    for _ in range(400):
        picture = nasty_picture(rng, stories)
        small = (rng.randrange(30), rng.randrange(12))
        large = (rng.randrange(500), rng.randrange(200))
        width, height = rng.choice((small, large))
        scroll = Scroll()
        for _ in range(rng.randrange(3)):
            scroll.away[picture.overlay] += rng.choice((-1, 1, -10, 10, -(10**9), 10**9))
            check_rows(picture, width, height, scroll)
        check_rows(picture, width, height)


def test_a_box_is_not_torn_in_two() -> None:
    said = "change its box back to `[ ]`, run again"
    for width in range(12, 50):
        lines = ocloop.wrap(said, width)
        assert any("`[ ]`," in line for line in lines), width


def test_a_long_line_is_wrapped_in_time(monkeypatch: Patch) -> None:
    """A model that asks with a hundred thousand characters must not stop the screen for minutes."""
    looks = 0

    def cell_width(char: str) -> int:
        nonlocal looks
        looks += 1
        return 2

    monkeypatch.setattr(ocloop, "cell_width", cell_width)
    assert ocloop.wrap("界" * 5000, 100) == ["界" * 50] * 100
    assert looks < 10_000, "each character once, more or less"


@pytest.mark.parametrize("known", ["C.UTF-8", "UTF-8", "en_US.UTF-8", "none"])
@pytest.mark.parametrize("name", ["C", "POSIX", "de_DE.UTF-8", "de_DE.ISO-8859-1"])
def test_a_locale_that_says_nothing_means_utf_8(name: str, known: str, monkeypatch: Patch) -> None:
    """As LC_ALL=C; names differ by system. One that names a character set is meant so."""
    used = name

    def setlocale(category: int, wanted: str | None = None) -> str:
        nonlocal used
        if wanted not in (None, known):
            raise locale.Error("unsupported locale setting")
        used = wanted or used
        return used

    monkeypatch.setattr(locale, "setlocale", setlocale)
    ocloop.use_utf8()
    assert used == (known if name in ("C", "POSIX") and known != "none" else name)


def test_a_curses_that_knows_no_wide_signs_keeps_the_words() -> None:
    written: list[str] = []

    def addstr(_y: int, _x: int, text: str, _attributes: int) -> None:
        written.append(text.encode("ascii").decode())

    window = types.SimpleNamespace(getmaxyx=lambda: (24, 80), addstr=addstr)
    window.erase = window.refresh = lambda: None
    screen = object.__new__(ocloop.CursesScreen)
    vars(screen).update(scroll=Scroll(), ask_shown="")
    screen._draw(window, scene("running").picture(), {})
    assert " Space" in written and "─" * 80 not in written


def test_no_two_states_of_a_task_have_one_sign() -> None:
    signs = [sign for sign, _style in ocloop.TASK_SIGNS.values()]
    assert len(set(signs)) == len(signs)


@pytest.mark.parametrize("function, args, expected", [
    *[(text_width, (text,), width) for text, width in (
        ("abc", 3), ("\u6f22\u5b57", 4), ("e\u0301", 1), ("\u00e9", 1), ("\uff21", 2),
        ("\u200b", 0), ("", 0), ("\u2500\u2588", 2), ("\U0001f600", 2), ("\u02ff", 1),
        ("\u0300", 0))],
    *[(ocloop.clip, (text, width), clipped) for text, width, clipped in (
        ("abc", 2, "ab"), ("abc", 0, ""), ("abc", -1, ""), ("abc", 9, "abc"),
        ("\u6f22\u5b57", 3, "\u6f22"), ("\u6f22\u5b57", 1, ""), ("e\u0301x", 1, "e\u0301"))],
    *[(ocloop.wrap, (text, width), lines) for text, width, lines in (
        ("one two three", 7, ["one two", "three"]), ("one two three", 8, ["one two", "three"]),
        ("", 5, [""]), ("abcdefghij", 4, ["abcd", "efgh", "ij"]), ("a\n\nb", 5, ["a", "", "b"]),
        ("\u6f22\u5b57\u6f22", 4, ["\u6f22\u5b57", "\u6f22"]))],
])  # fmt: skip
def test_widths_of_texts(function: Callable[..., Any], args: Any, expected: Any) -> None:
    assert function(*args) == expected


# ── view and layout: scrolling ────────────────────────────────────────────────────────────────────


def test_scrolling_keeps_its_place_and_says_what_is_below() -> None:
    reader = Reader(100)
    last = reader.last
    shown = reader.look(-10)
    assert shown[-1] == last - 11 and reader.below == 11
    assert shown == list(range(shown[0], shown[-1] + 1))
    reader.add(5)
    assert reader.look() == shown and reader.below == 11, "what is read does not move"
    assert reader.look(-1)[-1] == shown[-1] - 1 and reader.below == 12
    assert reader.look(2)[-1] == shown[-1] + 1
    assert reader.look(10**9)[-1] == last + 5 and reader.below == 0
    reader.add(1)
    assert reader.look()[-1] == last + 6, "at the end the tail is followed again"


def test_the_current_task_is_kept_in_sight() -> None:
    reader = Reader(0, LONG_PLAN, is_plan_read=True)
    shown = reader.look()
    assert 30 in shown and shown == sorted(shown) and 10 not in shown and 69 not in shown
    assert any(row.startswith(" ▸ task 30") for row in reader.rows)
    reader.story.works()
    assert 31 in reader.look()
    for size in ((40, 12), (120, 40), (80, 8)):
        reader.size = size
        assert 31 in reader.look(), size


def test_the_plan_scrolls_from_its_first_task_to_its_last_and_no_further() -> None:
    reader = Reader(0, LONG_PLAN, is_plan_read=True)
    middle = reader.look()
    one_up = reader.look(-1)
    assert one_up != middle and reader.look(1) == middle
    assert 10 in reader.look(-(10**9))
    top = list(reader.rows)
    assert reader.look(-5) and reader.rows == top
    reader.look(1)
    assert reader.rows != top, "what was moved too far is not moved back first"
    assert 69 in reader.look(10**9)
    bottom = list(reader.rows)
    assert "69" in bottom[-3], "no empty screen below the last task"
    reader.look(10)
    assert reader.rows == bottom
    reader.look(-1)
    assert reader.rows != bottom


def test_the_place_in_the_activity_is_kept_while_the_plan_is_looked_at() -> None:
    reader = Reader(100)
    shown = reader.look(-10)
    reader.story.press("p")
    reader.look(-3)
    reader.look(2)
    reader.story.press("p")
    assert reader.look() == shown


def test_beside_the_activity_the_plan_does_not_take_the_arrows() -> None:
    reader = Reader(100, LONG_PLAN)
    reader.size = (160, 40)
    reader.look()
    beside = [row.partition("│")[2] for row in reader.rows]
    before = reader.look(-10)
    assert [row.partition("│")[2] for row in reader.rows] == beside
    assert before and reader.below == 11


def test_what_is_short_cannot_be_scrolled_and_the_tail_is_followed() -> None:
    reader = Reader(0, "- [ ] a <1>\n- [ ] b <2>\n", is_plan_read=True)
    assert reader.look() == [1, 2] == reader.look(5) == reader.look(-9)
    reader = Reader(2)
    shown = reader.look()
    assert reader.look(-5) == shown and reader.below == 0
    reader.add(1)
    assert reader.look() == [*shown, reader.last]
    reader.add(100)
    assert reader.look()[-1] == reader.last and reader.below == 0


# ==================================================================================================
# 3  The dialect of OpenCode 2
#
# Against answers and events as a 2.0.20 gave them, with ids and times shortened. What the dialect
# only says and the run waits for is told as stories.
# ==================================================================================================


def test_where_opencode_2_is() -> None:
    made = OpenCode2(Said({}), Options(directory="/w/my %20 ü"))
    assert made.path("/form") == "/api/form?location%5Bdirectory%5D=%2Fw%2Fmy%20%2520%20%C3%BC"
    assert "&location" in made.path("/form?a=b")
    assert made.path("/session/ses_A") == "/api/session/ses_A", "a session knows where it is"


# ── opencode 2: the set-up ────────────────────────────────────────────────────────────────────────


def test_what_opencode_2_knows() -> None:
    tier = {"input": 1.25, "output": 10, "cache": {"read": 0.1, "write": 0}}
    models = [model_2("sim/m1", cost=[tier]), model_2("sim/a/b", variants=[])]
    higher = document(model={"providerID": "sim", "model": "m1", "variant": "high"})
    says = catalogue(models, AGENTS_2, document(model="sim/m0"), higher, document(share="disabled"))
    made, client = dialect_2(says)
    setup = made.setup()
    assert setup == Setup(
        model="sim/m1#high",
        models={"sim/m1": 200000, "sim/a/b": 200000},
        agents=("build", "mine"),
        free=frozenset(("sim/a/b",)),
        variants={"sim/m1": ("low",), "sim/a/b": ()},
        agent_models={"build": "sim/m1#high", "mine": "sim/m2", "title": "sim/m1#high"},
    )
    assert all("location%5Bdirectory%5D=%2Fw" in path for _, path, _ in client.heard)
    files = [{"type": "file", "path": path} for path in ("/w/opencode.json", "/w/broken.json")]
    there = {"path": "/w/opencode.json", **document(model="sim/m1")}
    assert dialect_2(catalogue([], [], there, *files))[0].setup().unread == ("/w/broken.json",)
    problem = ocloop.problem_of_names(setup, ("",), "")
    assert problem == "there is no variant high of sim/m1: low"
    empty = dialect_2(catalogue([], []))[0].setup()
    assert not (empty.models or empty.agents), "lists that stay empty are no finding"
    for route in ("config", "model", "agent"):
        refused = RequestError(400, "no", "ConfigJsonError")
        made, _ = dialect_2({**catalogue([], []), f"GET /api/{route}": refused})
        with pytest.raises(RequestError) as caught:
            made.setup()
        assert caught.value.why == "configuration"


# What is looked for; what the lists hold, one look after the other; how long it is looked for at
# least and at most, in seconds, and what is said then.
SLOW_LISTS: list[tuple[Json, list[Setup], float, float, str]] = [
    ({"models": ("a/b",)}, [growing()], 0, 1, ""),
    ({"models": ("a/b",)},
     [growing(models=None)] * 3 + [growing(models={"c/d": 1})] * 3 + [growing()], 1.5, 3, ""),
    ({"models": ("a/b#low",)}, [growing(variants={"a/b": ("low",)})], 0, 1, ""),
    ({"models": ("a/x",)}, [growing()], 15, 16.5, "there is no model a/x: did you mean a/b?"),
    ({"models": ("a/x",)},
     [growing(models={f"a/{number}": 1 for number in range(n)}) for n in range(40)] * 9,
     15, 17, "there is no model a/x"),
    ({"models": ("a/b",), "agent": "mine"},
     [growing()] * 9 + [growing(agents=("build", "mine"))], 2, 5, ""),
    ({"models": ("a/b",), "agent": "mine"}, [growing()], 15, 16.5, "there is no agent mine"),
    ({"models": ("a/b",)}, [growing(agents=None)], 0, 1, ""),
    ({}, [growing(models=None)] * 4 + [growing()], 2.5, 5, ""),
]  # fmt: skip


@pytest.mark.parametrize("options, lists, least, most, said", SLOW_LISTS)
def test_lists_that_fill_slowly_are_looked_at_again(
    options: Json, lists: list[Setup], least: float, most: float, said: str
) -> None:
    story = Story(start=False, **options)
    story.world["start_server"] = answers(("http://127.0.0.1:4096", "2.1.0", 2))
    turns = Turns(*lists)
    story.world["setup"] = lambda _: turns.next()
    began = story.now
    story.hear()
    while story.state == "starting":
        story.let_pass(0.1)
        assert story.now - began < 100
    assert least <= story.now - began <= most
    assert said in story.reason and story.state == ("error" if said else "running")


# ── opencode 2: sessions and prompts ──────────────────────────────────────────────────────────────

CREATED = {"data": {"id": "ses_A", "cost": 0, "tokens": ZERO, "location": {"directory": "/w"}}}
NOBODY_ASKS = {"permissions": [{"action": "question", "resource": "*", "effect": "deny"}]}


@pytest.mark.parametrize("prompt, config, attended, known, more", [
    ({}, {}, False, "", NOBODY_ASKS),
    ({}, {}, True, "", {}),
    ({}, {"model": "sim/m1#high"}, True, "sim/m1#high",
     {"model": {"id": "m1", "providerID": "sim", "variant": "high"}}),
    ({}, {"model": {"providerID": "sim", "model": "a/b"}}, True, "sim/a/b",
     {"model": {"id": "a/b", "providerID": "sim"}}),
    ({}, {"model": "sim/m1", "default_agent": "mine"}, True, "sim/m2",
     {"model": {"id": "m2", "providerID": "sim"}}),
    ({"agent": "build"}, {"model": "sim/m1", "default_agent": "mine"}, True, "sim/m1",
     {"model": {"id": "m1", "providerID": "sim"}, "agent": "build"}),
    ({"model": "sim/a/b#low", "agent": "mine"}, {"model": "sim/m1"}, True, "sim/m2",
     {"model": {"id": "a/b", "providerID": "sim", "variant": "low"}, "agent": "mine"}),
    ({"agent": "mine"}, {"model": "sim/m1"}, True, "sim/m2",
     {"model": {"id": "m2", "providerID": "sim"}, "agent": "mine"}),
])  # fmt: skip
def test_a_session_is_made_with_the_model_that_is_meant(
    prompt: Json, config: Json, attended: bool, known: str, more: Json
) -> None:
    says = {**catalogue([], AGENTS_2, document(**config)), "POST /api/session": CREATED}
    made, client = dialect_2(says, attended=attended)
    assert made.setup().model_of(prompt.get("agent", "")) == known
    assert made.create(PROMPT_2._replace(**prompt)) == "ses_A"
    body = {"title": PROMPT_2.title, "location": {"directory": "/w"}, **more}
    assert client.heard[-1] == ("POST", "/api/session", body)


def test_each_attempt_has_an_id_of_its_own_and_earlier_ones_are_taken_back() -> None:
    assert ocloop.ids_of_attempts(PROMPT_2._replace(attempt=2)) == (FIRST, SECOND, THIRD)
    assert {len(id) for id in ocloop.ids_of_attempts(PROMPT_2._replace(attempt=20))} == {len(FIRST)}
    assert ocloop.ids_of_attempts(Prompt("", attempt=3)) == ()
    inbox = "/api/session/ses_A/inbox"
    prompt = "/api/session/ses_A/prompt"
    gone = RequestError(404, "gone", "InboxItemNotFoundError")
    says: Json = {
        f"POST {prompt}": {"data": {}},
        f"DELETE {inbox}/{FIRST}": None,
        f"DELETE {inbox}/{SECOND}": gone,
    }
    made, client = dialect_2(says)
    made.send("ses_A", PROMPT_2)
    assert client.heard == [("POST", prompt, {"id": FIRST, "text": "Do it"})]
    made.send("ses_A", PROMPT_2._replace(attempt=2))
    assert client.heard[1:] == [
        ("DELETE", f"{inbox}/{FIRST}", None),
        ("DELETE", f"{inbox}/{SECOND}", None),
        ("POST", prompt, {"id": THIRD, "text": "Do it"}),
    ]
    for code in (500, 502):
        says[f"DELETE {inbox}/{FIRST}"] = RequestError(code, "no")
        with pytest.raises(RequestError):
            made.send("ses_A", PROMPT_2._replace(attempt=1))
    assert client.heard[-1][0] == "DELETE", "one that may still run keeps the next one back"
    for missing in (PAGE_ERROR, RequestError(404, "no"), RequestError(405, "no")):
        says[f"DELETE {inbox}/{FIRST}"] = missing
        made.send("ses_A", PROMPT_2._replace(attempt=1))
        assert client.heard.pop()[0] == "POST", "a server without an inbox holds nothing back"


# ── opencode 2: verdicts ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", VERDICTS_2)
def test_how_the_answer_to_our_own_prompt_stands_in_2(case: str) -> None:
    messages, verdict, fault = VERDICTS_2[case]
    polled = look(stand_in([user_2("msg_0"), STOP, DONE_2, user_2(FIRST), *messages]))
    assert (polled.activity, polled.verdict, polled.fault) == ("idle", verdict, fault)


@pytest.mark.parametrize("messages, outcome, attempt, verdict, fault", ATTEMPTS_2)
def test_the_newest_delivered_attempt_counts(
    messages: list[Json], outcome: str, attempt: int, verdict: str, fault: Fault | None
) -> None:
    polled = look(stand_in(messages, session={"outcome": outcome}), attempt=attempt)
    assert (polled.activity, polled.verdict, polled.fault) == ("idle", verdict, fault)
    made, _ = dialect_2(stand_in(messages, session={"outcome": "failed"}))
    made.poll("ses_A", Prompt(""), False)
    assert made.poll("ses_A", Prompt(""), False).activity == "idle", "that of an earlier run"


# ── opencode 2: activity ──────────────────────────────────────────────────────────────────────────

RUNNING = {"data": {"ses_A": {"type": "running"}}}
RUNS_B = {"data": {"ses_B": {"type": "running"}}}
NOBODY: Json = {"data": {}}
OVER = [user_2(FIRST), STOP, DONE_2]


@pytest.mark.parametrize("messages, more, closer, activity, verdict", [
    ([user_2(FIRST), CALLS], {"active": RUNNING}, False, "working", ""),
    (OVER, {"active": RUNNING}, True, "working", "answered"),
    ([*OVER, user_2("msg_7")], {}, True, "idle", "answered"),
    (OVER, {"active": {"data": {"ses_X": {}}}, "children": [child_2("ses_B", "ses_A")]}, False,
     "idle", "answered"),
    # A subagent in the background, of which only the list has told.
    (OVER, {"active": RUNS_B, "children": [child_2("ses_B", "ses_A")]}, True, "working", ""),
    (OVER, {"active": Turns(NOBODY, RUNNING)}, False, "working", ""),
])  # fmt: skip
def test_who_works_in_2(
    messages: list[Json], more: Json, closer: bool, activity: str, verdict: str
) -> None:
    polled = look(stand_in(messages, **more), closer=closer)
    assert (polled.activity, polled.verdict, polled.retry) == (activity, verdict, None)


def test_a_session_that_seems_to_rest_for_the_first_time_is_not_judged() -> None:
    made, _ = dialect_2(stand_in(OVER, active=Turns(NOBODY, RUNNING, NOBODY)))
    polls = [made.poll("ses_A", PROMPT_2, False) for _ in range(4)]
    found = [(one.activity, one.is_unsure, one.verdict) for one in polls]
    assert found[:3] == [("idle", True, ""), ("working", False, ""), ("idle", True, "")]
    assert found[3] == ("idle", False, "answered")


def test_a_retry_counts_as_work_for_the_server(monkeypatch: Patch) -> None:
    error = {"type": "provider.rate-limit", "message": "slow down", "status": 200}
    waiting = step(retry={"attempt": 2, "at": 1007_000, "error": error})
    told = Activity("ses_A", "retrying", 1, 7.0, "slow down")
    for now, activity, retry in ((1000.0, "working", told), (1008.0, "working", None)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        polled = look(stand_in([user_2(FIRST), waiting], active=RUNNING))
        assert (polled.activity, polled.retry) == (activity, retry)
    for coming, failed in ((0, 1), (1, 1), (2, 1), (3, 2), (5, 4)):
        assert ocloop.retry_of("ses_A", {"attempt": coming, "at": 1}).attempt == failed


@pytest.mark.parametrize("is_filtering", [False, True])
def test_the_family_in_2_and_what_it_has_used(is_filtering: bool) -> None:
    everybody = [child_2(f"ses_{id}", f"ses_{of}") for id, of in ("BA", "CB", "XY", "AB", "BB")]

    def listed(path: str) -> Json:
        parent = path.rpartition("parentID=")[2]
        return {"data": [one for one in everybody if one["parentID"] == parent or not is_filtering]}

    polled = look(stand_in(OVER, **{"GET /api/session": listed}))
    assert polled.children == ("ses_B", "ses_C")
    assert polled.spent == Spend(1.0, 1800, 150, 1200)


def test_what_cannot_be_told_in_2_and_what_must_not_fail() -> None:
    says = stand_in(OVER)
    no = RequestError(500, "no")
    polled = look({**says, "GET /api/session/ses_A": no, "GET /api/session": no})
    assert (polled.verdict, polled.spent, polled.children) == ("answered", Spend(), ())
    gone = RequestError(404, "Session not found: ses_A", "SessionNotFoundError")
    with pytest.raises(RequestError) as caught:
        look(
            {
                **stand_in([]),
                **dict.fromkeys(["GET /api/session/ses_A", "GET /api/session/ses_A/message"], gone),
            }
        )
    assert caught.value.why == "gone"
    decide = ("GET /api/session/active", "GET /api/session/ses_A/message")
    away = RequestError(0, "connection refused")  # else it would seem to say that nothing is asked
    for route, error in (*((route, no) for route in decide), *((route, away) for route in says)):
        with pytest.raises(RequestError):
            look({**says, route: error})


def test_a_shell_that_prints_is_alive_though_the_stream_does_not_tell() -> None:
    output = "GET /api/shell/sh_1/output"
    sizes = [{"data": {"output": "x", "size": size}} for size in (10, 10, 25)]
    says = {**stand_in([user_2(FIRST), CALLS], active=RUNNING), output: Turns(*sizes)}
    made, client = dialect_2(says)

    def is_alive() -> bool:
        return made.poll("ses_A", PROMPT_2, False).is_alive

    frames = [
        told("session.tool.input.started", {**IN_A, "id": "call_1", "name": "shell"}),
        told("session.tool.called", {**IN_A, "id": "call_1", "input": {"command": "make test"}}),
        told("session.tool.progress", {**IN_A, "id": "call_1", "metadata": {"shellID": "sh_1"}}),
    ]
    for frame_of_it in frames:
        made.decode(frame_of_it)
    assert [is_alive() for _ in range(3)] == [True, False, True]
    asked = [path for _, path, _ in client.heard if "/shell/" in path]
    assert ["cursor=10" in path for path in asked] == [False, True, True]
    made.decode(told("session.tool.success", {**IN_A, "id": "call_1"}))
    says[output] = {"size": 99}
    assert not is_alive() and len(asked) == 3, "it has ended: nobody looks at it any more"
    strangers = {**IN_A, "sessionID": "ses_X", "id": "c", "metadata": {"shellID": "sh_1"}}
    made.decode(told("session.tool.progress", strangers))
    assert not is_alive(), "and not at that of another session"


# ── opencode 2: what is asked, and the answers ────────────────────────────────────────────────────

FAILS = RequestError(500, "no")


# What is asked keeps a session from being over, but not what others ask.
@pytest.mark.parametrize("more, activity, asks", [
    ({"permissions": [PERMISSION]}, "working", (ASKED_PERMISSION,)),
    ({"forms": [FORM]}, "working", (ASKED_FORM,)),
    ({"permissions": [{**PERMISSION, "sessionID": "ses_X"}]}, "idle",
     (ASKED_PERMISSION._replace(session="ses_X"),)),
    ({"GET /api/form": FAILS, "permissions": [PERMISSION]}, "working", (ASKED_PERMISSION,)),
])  # fmt: skip
def test_what_is_asked_in_2(more: Json, activity: str, asks: Any) -> None:
    polled = look(stand_in(OVER, **more))
    assert (polled.activity, polled.verdict) == (activity, "answered" if activity == "idle" else "")
    assert polled.asks == asks
    assert polled.unlisted == (("question",) if "GET /api/form" in more else ())


def test_what_an_mcp_server_asks_is_refused_where_the_server_is_ours() -> None:
    form = {"id": "frm_2", "sessionID": "global", "fields": [{"key": "sure", "type": "string"}]}
    path = "/api/session/global/form/frm_2"
    for error in (None, RequestError(404, "gone")):
        for server, sent in (("", [("DELETE", path, None)]), ("http://x", [])):
            says = stand_in(OVER, forms=[form], **{f"DELETE {path}": error})
            made, client = dialect_2(says, server=server)
            looks = [made.poll("ses_A", PROMPT_2, False) for _ in range(2)]
            assert looks[1].verdict == "answered"
            assert [one for one in client.heard if one[0] == "DELETE"] == sent * 2


FORM_1 = "/api/session/ses_A/form/frm_1"
PERMISSION_1 = "/api/session/ses_A/permission/per_1/reply"
INVALID = RequestError(400, "Expected an answer", "FormInvalidAnswerError")


@pytest.mark.parametrize("form, ask, decision, answers, message, sent", [
    (None, ASKED_PERMISSION, "once", (), "",
     [("POST", PERMISSION_1, {"decision": "once", "message": ""})]),
    (None, ASKED_PERMISSION, "reject", (), "nobody",
     [("POST", PERMISSION_1, {"decision": "reject", "message": "nobody"})]),
    (FORM, ASKED_FORM, "once", ("Red", "M"), "",
     [("POST", f"{FORM_1}/reply", {"answer": {"q0": "r", "q1": ["M"]}})]),
    (FORM, ASKED_FORM, "reject", (), "nobody",
     [("POST", f"{FORM_1}/reply", {"answer": {"q0": "nobody", "q1": ["nobody"]}})]),
])  # fmt: skip
def test_what_is_asked_is_answered(
    form: Any, ask: Ask, decision: str, answers: tuple[str, ...], message: str, sent: Any
) -> None:
    made, client = dialect_2(
        {f"{method} {path.partition('?')[0]}": None for method, path, _ in sent}
    )
    made.decode({"type": "form.created", "data": {"form": form}})
    made.reply(ask._replace(answers=answers), decision, message)
    assert client.heard == sent


def test_a_field_without_words_is_asked_by_its_name() -> None:
    made, _client = dialect_2({})
    form = {"id": "frm_9", "sessionID": "ses_A", "fields": [{"key": "size", "type": "string"}]}
    assert made.question(form).questions == (Question("size"),)


def test_an_answer_that_is_not_taken() -> None:
    def routes(
        error: RequestError, ask: Ask, decision: str, answers: tuple[str, ...], message: str
    ) -> list[str]:
        says = {f"POST {FORM_1}/reply": error, f"DELETE {FORM_1}": None}
        made, client = dialect_2({**says, f"POST {PERMISSION_1}": error})
        made.decode({"type": "form.created", "data": {"form": FORM}})
        made.reply(ask._replace(answers=answers), decision, message)
        return [f"{method} {path.partition('?')[2]}".strip() for method, path, _ in client.heard]

    once = ("once", ("Red", "M"), "")
    assert routes(INVALID, ASKED_FORM, "reject", (), "no one") == [
        "POST",
        "DELETE message=no%20one",
    ]
    settled = RequestError(409, "settled", "FormAlreadySettledError")
    assert routes(settled, ASKED_FORM, *once) == ["POST"], "somebody else has answered it"
    for error, ask in ((INVALID, ASKED_FORM), (RequestError(404, "gone"), ASKED_PERMISSION)):
        with pytest.raises(RequestError):
            routes(error, ask, *once)


# ── opencode 2: interrupts ────────────────────────────────────────────────────────────────────────

GONE_2 = RequestError(404, "Session not found", "SessionNotFoundError")


@pytest.mark.parametrize("active, prompt, sent", [
    (RUNNING, PROMPT_2, [("POST", "/api/session/ses_A/interrupt"),
                         ("DELETE", f"/api/session/ses_A/inbox/{FIRST}"),
                         ("DELETE", f"/api/session/ses_A/inbox/{SECOND}")]),
    ({"data": dict.fromkeys(("ses_B", "ses_X"), {"type": "running"})}, Prompt(""),
     [("POST", "/api/session/ses_A/interrupt"), ("POST", "/api/session/ses_B/interrupt")]),
])  # fmt: skip
def test_an_interrupt_is_for_the_family_and_the_inbox(
    active: Json, prompt: Prompt, sent: list[tuple[str, str]]
) -> None:
    posts: Json = {f"POST /api/session/{id}/interrupt": {} for id in ("ses_A", "ses_B")}
    inbox = {f"DELETE /api/session/ses_A/inbox/{id}": None for id in (FIRST, SECOND)}
    family = {"GET /api/session": {"data": [child_2("ses_B", "ses_A")]}}
    made, client = dialect_2({"GET /api/session/active": active, **family, **posts, **inbox})
    made.interrupt("ses_A", prompt._replace(attempt=1))
    assert [(method, path) for method, path, _ in client.heard if method != "GET"] == sent
    client.says["GET /api/session"] = RequestError(0, "it hangs")
    client.heard.clear()
    with pytest.raises(RequestError):
        made.interrupt("ses_A", prompt._replace(attempt=1))
    assert client.heard[0][:2] == ("POST", "/api/session/ses_A/interrupt"), "that comes first"
    client.says["POST /api/session/ses_A/interrupt"] = GONE_2
    with pytest.raises(RequestError):
        made.interrupt("ses_A", prompt._replace(attempt=1))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_earlier_session_is_interrupted_without_the_one_at_work(generation: int) -> None:
    """It woke up by itself: the family that was looked at last is that of the session under way."""
    prefix, word, active = (
        ("", "abort", "/session/status"),
        ("/api", "interrupt", "/api/session/active"),
    )[generation - 1]
    client = Said({
        f"GET {active}": {"ses_A": {"type": "busy"}, "ses_B": {"type": "busy"}},
        f"POST {prefix}/session/ses_old/{word}": True,
    })  # fmt: skip
    made = (OpenCode, OpenCode2)[generation - 1](client, Options(directory="/w"))
    made.interrupt("ses_old", Prompt(""))
    posted = [path.partition("?")[0] for method, path, _ in client.heard if method == "POST"]
    assert posted == [f"{prefix}/session/ses_old/{word}"]


def test_a_session_is_interrupted_again_until_it_rests_and_that_was_seen_twice() -> None:
    story = Story()
    story.busy()
    story.take()
    looks = Turns(
        *[Polled("working")] * 8,
        Polled("idle", is_unsure=True),
        Polled("working"),
        Polled("idle", is_unsure=True),
        Polled("idle", "cut", ocloop.INTERRUPTED),
    )
    story.world["poll"] = lambda _: looks.next()
    story.press("x")
    while not story.words:
        story.let_pass(0.1)
    assert not looks.answers[1:], "it was looked at until it rested, twice in a row"
    assert 2 <= story.take().split().count("interrupt") <= 5
    assert story.words == ["aborted"]


# ── opencode 2: faults ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error, fault", FAULTS_2)
def test_faults_by_type_with_announced_waits(error: Json, fault: Fault) -> None:
    assert ocloop.fault_of(error) == fault


# ── opencode 2: the event stream ──────────────────────────────────────────────────────────────────


def test_a_turn_with_a_tool() -> None:
    made, _ = dialect_2({})
    for type, data, at, expected in TURN:
        assert is_same(made.decode(told(f"session.{type}", {**IN_A, **data}, at)), expected), type
    assert not made.tools


@pytest.mark.parametrize("type, data, expected", DECODED_2)
def test_opencode_2_events_in_neutral_words(
    type: str, data: Json, expected: list[Any], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    made, _ = dialect_2({})
    event_of_it = {**told(type, {**IN_A, **data}), "location": {"directory": "/w"}}
    assert is_same(made.decode(event_of_it), expected)
    assert made.decode(told(type, {})) in ([], [Edited("")])


def test_how_a_tool_of_2_ends() -> None:
    files = [{"file": "a.txt", "additions": 2, "deletions": 1}, {"additions": 3}]
    path = {"path": "/w/a.txt"}
    for name, given, type, more, state, argument in (
        ("write", path, "failed", {"error": NOT_NOW}, "failed", "a.txt"),
        ("edit", path, "success", {"metadata": {"files": files}}, "done", "a.txt  +2 -1  +3 -0"),
        ("subagent", {"description": "probe"}, "success", {}, "done", "probe"),
    ):
        made, _ = dialect_2({})
        call: Json = {**IN_A, "id": "c", "name": name, "input": given}
        made.decode(told("session.tool.input.started", call))
        made.decode(told("session.tool.called", call))
        (part,) = made.decode(told(f"session.tool.{type}", {**call, **more}))
        assert isinstance(part, Part) and not made.tools
        assert (part.tool, part.state, part.argument) == (name, state, argument)
        assert part.text == ("not now" if state == "failed" else "")


def test_a_tools_id_is_its_own_only_within_its_message() -> None:
    made, _ = dialect_2({})
    other = {**IN_A, "assistantMessageID": "msg_3"}
    made.decode(told("session.tool.input.started", {**IN_A, "id": "call_0", "name": "read"}))
    made.decode(told("session.tool.input.started", {**other, "id": "call_0", "name": "shell"}))
    (part,) = made.decode(told("session.tool.called", {**IN_A, "id": "call_0", "input": {}}))
    assert isinstance(part, Part) and part.tool == "read"
    (later,) = made.decode(told("session.tool.success", {**other, "id": "call_0"}))
    assert isinstance(later, Part) and later.tool == "shell" and later.key != part.key


def test_nothing_is_counted_twice_in_2() -> None:
    made, _ = dialect_2({})
    talk = ocloop.Talk(Prompt(""), ocloop.Run(Options(), NOON))
    talk.id = "ses_A"
    for message in ("msg_2", "msg_3"):
        data = {**IN_A, "assistantMessageID": message}
        for type in ("step.started", "step.started", "step.ended", "usage.updated"):
            more = {"cost": 0.5, "tokens": USED} if type != "step.started" else {}
            for said in made.decode(told(f"session.{type}", {**data, **more})):
                if isinstance(said, Message):
                    talk.hear_message(said)
    assert talk.spent == SPENT_2.plus(SPENT_2)
    assert talk.context == 1050


ODD: tuple[Any, ...] = (None, 7, -1, 1e300, "s", [], [7], {}, {"a": [None]}, True)


@pytest.mark.parametrize("odd", ODD)
def test_no_field_of_an_event_or_an_answer_of_2_raises(odd: Any) -> None:
    made, _ = dialect_2({})
    keys = "id name input ordinal delta text error cost tokens finish model agent at attempt item"
    keys += " parentID assistantMessageID requestID resources metadata fields title action form"
    types = {type for type, *_ in DECODED_2} | {f"session.{type}" for type, *_ in TURN}
    for type in types | {"session.deleted", "session.tool.failed"}:
        made.decode(told(type, odd))
        made.decode(told(type, {**HERE, **dict.fromkeys(keys.split(), odd)}, at=odd))
        made.decode(told(type, {"form": {"id": "f", **HERE, "fields": [odd, {"options": odd}]}}))
    for answer in (odd, {"data": odd}, {"data": [odd]}, {"data": {"ses_A": odd}}):
        assert look(dict.fromkeys(stand_in([]), answer)).activity in ("idle", "working")


def test_deltas_are_found_in_a_frames_beginning() -> None:
    for type in ("session.text.delta", "session.reasoning.delta", "session.compaction.delta"):
        place = {"directory": "/home/somebody/a/rather/long/path/to/a/workspace"}
        frame = {"id": "evt_" + "0" * 26, "created": 1767225609000, "type": type}
        data = json.dumps({**frame, "location": place, "data": IN_A}).encode()
        assert ocloop.DELTA.search(data, 0, 200)
    for type in ("session.text.started", "session.text.ended", "permission.asked"):
        frame = {"id": "evt_1", "type": type, "data": {"text": "session.text.delta"}}
        assert not ocloop.DELTA.search(json.dumps(frame).encode(), 0, 200)


# ==================================================================================================
# 4  From the outside: ocloop as a program
#
# What runs on the fake OpenCode runs on both generations of its interface.
# ==================================================================================================

# What a few tests change inside of ocloop, as Python that is run before its `main`: the only places
# here that know a name of the inside.
SHORT_WAITS = "ocloop.FAILURE_WAITS = ocloop.RATE_LIMIT_WAITS = (0.0, 1.0)"
MEASURED_OFTEN = "ocloop.MEASURE_EVERY = 1.0"
WITHOUT_PROC = "ocloop.PROC = '/nowhere'"
WITHOUT_PROC_AND_PS = "ocloop.PROC = '/nowhere'; ocloop.PS = ('no-such-ps',)"
FILES_SOON = "ocloop.FILES_WITHIN = 3.0"  # so long the plan may be away
START_SOON = "ocloop.START_TIMEOUT = 1.0"
MAPPED_SOON = "ocloop.MAPPED_WITHIN = 1.0"  # so long what was unpacked may be unused
BUG = "def boom(*args):\n    raise RuntimeError('a bug, as ordered')\nocloop.{} = boom"

SECRET: Json = {"OPENCODE_SERVER_PASSWORD": "secret"}


# ── the command line ──────────────────────────────────────────────────────────────────────────────
# The options of `run`. A new one is added here and to Options.
# fmt: off
OPTIONS = [
    "--plan", "--prompt", "--model", "--agent", "--run", "--debug", "--dry-run",
    "--max-iterations", "--max-cost", "--max-time", "--max-wait", "--stuck", "--retries",
    "--iteration-timeout", "--stall-timeout", "--auto", "--ask-timeout", "--check",
    "--check-timeout", "--notify", "--log", "--plain", "--verbose", "--port", "--opencode",
    "--server", "--server-memory",
]
# fmt: on


def test_what_lies_beside_the_program_is_not_imported(bare: World) -> None:
    """It may stand in the project's folder, in which an agent writes what it likes."""
    shutil.copy(OCLOOP, bare.folder / "ocloop.py")
    (bare.folder / "queue.py").write_text("print('owned')")
    child = bare.execute(bare.folder, [sys.executable, "ocloop.py", "--version"])
    assert "owned" not in child.finish(0).output


def test_the_program_and_its_manual(bare: World) -> None:
    """README: `run --help` is the manual with all options; 2 is usage. It stops at once, with 1,
    and the message says what to do."""
    digest = hashlib.sha256(OCLOOP.read_bytes()).hexdigest()[:12]
    said = bare.say(bare.project(), "--version")
    assert said == f"ocloop {ocloop.__version__} (SHA-256 {digest})\n"
    manual = bare.say(bare.project(), "run", "--help", COLUMNS="200")
    no_plan = bare.say(bare.folder, "run", "--opencode", fake_command(), status=1)
    no_program = bare.say(bare.project(), "run", status=1, PATH=str(bare.folder))
    assert all(said.startswith("ocloop: ") for said in (no_plan, no_program))
    for text, *parts in (
        (no_plan, "the plan", "cannot be read", "bootstrap", "--plan"),
        (no_program, "opencode is not there: install OpenCode", "npm install", "npx -y"),
        (bare.say(bare.project(), "--help"), "examples:", "exit statuses:", "bootstrap"),
        (manual, "keys:", "exit statuses:", "Durations", "of an iteration at twice"),
        (bare.say(bare.folder, "bootstrap", "new folder/ünter"), "wrote", "Next:", " run"),
        (bare.say(bare.folder, "bootstrap", "new folder/ünter"), "skipped", "--force"),
        (bare.say(bare.folder / "new folder/ünter", "bootstrap", "-f"), "wrote"),
    ):
        for part in parts:
            assert part in text and "Traceback" not in text
    in_manual = re.findall(r"^  (?:-\w, |-\w \S+, )?(--[\w-]+)", manual, re.MULTILINE)
    assert sorted(in_manual) == sorted(["--help", *OPTIONS])


def test_the_readme_names_no_option_that_is_none() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 12_000
    ours = {*OPTIONS, "--json", "--all", "--force"}
    commands = re.findall(r"ocloop\.py [^`\n]*(?:\\\n[^`\n]*)*", text.decode())
    named = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", " ".join(commands)))
    assert len(named) > 5 and named <= ours | {"--help", "--cached", "--quiet"}, named - ours


def test_an_old_python_gets_a_sentence(bare: World) -> None:
    pretended = f"import runpy, sys\nsys.hexversion = 0x03080000\nrunpy.run_path({str(OCLOOP)!r})"
    argvs = [[sys.executable, "-c", pretended]]
    found = Path.home().glob(".pyenv/versions/3.[678].*/bin/python3")
    argvs += [[str(python), str(OCLOOP), "run"] for python in found]
    for argv in argvs:
        said = bare.execute(bare.project(), argv).finish(1).output
        assert "Traceback" not in said and "3.9 or newer" in said
        if "/3.6." not in argv[0]:  # whose error quotes the line that says so
            assert said.startswith("ocloop: this is Python 3.") and len(said.split("\n")) == 2
    # Nothing else may stand in the file that 3.6 cannot parse: its error would be about that.
    text = OCLOOP.read_text("utf-8")
    assert "annotations  # a syntax error here: run ocloop with Python 3.9 or newer\n" in text
    ast.parse(text, feature_version=(3, 6))
    assert not re.search(r"^\s*(return|yield) [^([{\n]*, \*", text, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", ["run --run", "run --dry-run", "status", "bootstrap", "attach"]
)
def test_a_directory_that_is_gone_gets_a_sentence(bare: World, arguments: str) -> None:
    folder = bare.folder / "gone"
    folder.mkdir()
    program = shlex.join([sys.executable, str(OCLOOP), *arguments.split()])
    said = bare.execute(folder, ["/bin/sh", "-c", f'rmdir "$PWD" && {program}']).finish(1).output
    assert re.fullmatch(r"ocloop: .*director.*\n", said)


def test_a_dry_run_asks_the_server(world: World) -> None:
    """README: --dry-run checks everything, and sends no prompt."""
    plan = "# A\n- [x] One\n- [ ] Two\n  - [~] Inner\n# B\n- [MANUAL] Three\n" + "- [ ] n\n" * 30
    prompt = "---\nmodel: fake/model\n---\nDo {{TASK}} of {{PLAN_FILE}}, {{ITERATION}}.\n"
    commands = ["--check", "true", "--notify", "echo hello"]
    left = r" *\d\d:\d\d:\d\d plan     "
    child = expect(
        world.fake("--dry-run", *commands, project=world.project(plan, prompt=prompt)),
        0,
        "1 of 33 tasks done",
        "1 manual",
        "… and 14 more\n",
        "server   OpenCode ",
        "model    fake/model\n",
        "no problem was found; the server was asked, and no prompt was sent",
    )
    rows = ("# A", "[x] One", "[ ] Two", "  [~] Inner", "# B", "[MANUAL] Three")
    assert re.search("".join(f"{left}{re.escape(row)}\n" for row in rows), child.output)
    assert child.requests("model|providers") and not child.requests("/session/[^/]+")
    assert not child.log_text()
    assert not list(world.folder.rglob("*.json")), "the last run's state stays"


def test_a_dry_run_names_every_problem(world: World) -> None:
    """README: --dry-run checks plan, prompt, OpenCode, commands, log, port and lock."""
    prompt = "Just work on {{PLAN}}.\n"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        wrong = ["--check", "no-such-check", "--notify", "no-such-notify", "--port", port]
        child = world.fake("--dry-run", *wrong, project=world.project(prompt=prompt))
        said = ("no-such-check", "no-such-notify", f"port {port} is taken", "contain {{PLAN_FILE}}")
        odd = "PLAN means nothing here: PLAN_FILE, TASK, ITERATION, CHECK"
        expect(child, 1, *said, odd, "!can be read again")
    loop = world.fake("--plain", answers=["hang"], tasks=1)
    stopped = world.fake("--dry-run", "--check", "no-such-check", start="slow:60")
    loop.wait_said("Task 1")
    name = RunFile(str(loop.project / "PLAN.md")).name
    libraries = Path(loop.env["XDG_STATE_HOME"], "ocloop", name).with_suffix(".libraries")
    second = world.fake("--dry-run", project=loop.project)
    expect(second, 1, f"another loop works on this plan (process {loop.pid})", "!in this folder")
    assert libraries.is_dir(), "OpenCode unpacks into it until its loop ends"
    loop.stop(signal.SIGTERM)
    stopped.wait_event("exec")
    stopped.signal(signal.SIGTERM)
    expect(stopped, 130, "problem  --check: there is no command", "!itself failed")


def test_what_is_said_in_the_evening(world: World) -> None:
    """README: what the configuration will ask is told before the first prompt."""
    config: Json = {"permission": {"bash": {"*": "ask", "ls": "allow"}, "edit": "allow"}}
    if world.generation == 2:
        rules = [("bash", "ask"), ("bash", "allow"), ("edit", "allow")]
        config = {"permissions": [{"action": name, "effect": effect} for name, effect in rules]}
    env = {"OPENCODE_CONFIG_CONTENT": json.dumps(config)}
    asks = "asks a person before bash: asked at night means refused"
    expect(world.fake("--dry-run", env=env), 0, asks)
    expect(world.fake("--plain", env=env), 0, "before bash")
    expect(world.fake("--dry-run", "--auto", env=env), 0, "!before bash")
    leave(world.fake_terminal(tasks=ocloop.STARTER_PLAN), 130, "still the starter")


def test_status_of_all_loops_on_this_machine(world: World) -> None:
    assert world.say(world.folder, "status", "--all") == "no loop has run on this machine\n"
    first = world.fake().finish(0)
    second = world.fake("--plain", answers=["hang"], tasks=3)
    second.wait_session()  # the state file is written on a thread of its own
    heads, *lines = world.say(world.folder, "status", "--all").splitlines()
    assert heads.split() == ["state", "tasks", "cost", "time", "plan"]
    assert re.fullmatch(rf"running +0/3 +\$\S+ +\S+  {second.project}/PLAN.md", lines[0]), lines
    assert re.fullmatch(
        rf"ended 0 +2/2 +\$\S+ +\S+  {first.project}/PLAN.md: the plan is complete", lines[1]
    ), lines
    (first.project / "PLAN.md").unlink()
    second.stop(signal.SIGTERM)
    lines = world.say(world.folder, "status", "--all").splitlines()
    assert lines[1].startswith("ended 130") and "no plan any more" in lines[2]
    found = json.loads(world.say(world.folder, "status", "--all", "--json"))
    assert [one["run"]["status"] for one in found] == [130, 0]
    assert "password" not in found[0]["run"]


def test_status(world: World) -> None:
    """README: `status`, and `attach` from any terminal. State is for you alone, and nothing is
    written into your project but what you name."""
    project = world.project("- [x] Zero\n- [ ] Task 1\n- [BLOCKED: no key] Two\n")
    assert "no loop works on" in world.say(project, "attach", status=1)
    child = world.fake(answers=["sleep:12", "work"], project=project)
    session = child.wait_event("busy")["session"]
    child.wait_session()
    said = world.say(world.folder, "status", "--plan", str(project / "PLAN.md"), status=3)
    task = "task      Task 1\n"
    for part in ("running", f"process {child.pid}", session, task, "http://127.0.0.1:"):
        assert part in said
    state = json.loads(world.say(project, "status", "--json", status=3))
    assert (state["done"], state["total"], state["blocked"], state["running"]) == (1, 3, 1, True)
    assert (state["run"]["session"], state["run"]["state"]) == (session, "running")

    password = child.state()["password"]
    assert password and password not in said + json.dumps(state)
    files = list(Path(child.env["XDG_STATE_HOME"], "ocloop").iterdir())
    assert files and all(path.stat().st_mode & 0o077 == 0 for path in files)
    attached = world.start_terminal(project, "attach", **world.setting())
    attached.wait_for(interface_of(world, session))
    lines = " ".join([*marked(child.mark).values(), *marked(attached.mark).values()])
    assert session in lines and password not in lines, "never on a command line"
    attached.send("\n")
    attached.finish(0)

    child.finish(3)
    state = json.loads(world.say(project, "status", "--json", status=3))
    assert (state["done"], state["complete"], state["running"]) == (2, False, False)
    assert (state["run"]["status"], state["run"]["state"]) == (3, "ended")
    assert "password" not in child.state(), "it is of no use to anybody any more"
    assert "complete but for 1 blocked task" in world.say(project, "status", status=3)
    assert "cannot be read" in world.say(world.folder, "status", status=1)
    assert sorted(path.name for path in project.iterdir()) == [".loop-prompt.md", "PLAN.md"]


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_from_start_to_end_and_its_record(world: World) -> None:
    """README: without a terminal it prints lines and starts at once; one fresh session per task.
    A `.jsonl` log has an entry a line; results and the end have records."""
    answers = ["cost:0.5", "nothing", "work"]
    child = expect(
        world.fake("--check", "true", answers=answers, tasks=2, default_port=True),
        0,
        *("Task 1", "Task 2", "the plan is complete", "2 of 2 tasks done"),
        boxes="xx",
        outcomes="done, nothing settled, done",
        checks="passed, passed, passed",
        progress=[1, 0, 1],
        counted=[(2, 2)],
    )
    assert child.titles() == ["ocloop 1/2: Task 1", "ocloop 2/2: Task 2", "ocloop 2/2: Task 2"]
    assert [note["directory"] for note in child.events("session")] == [str(child.project)] * 3
    for record in child.records():
        assert {"time", "kind", "iteration", "session", "text"} <= set(record), record
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", record["time"])
    first, *others = child.records(record="iteration")
    assert [one["task"] for one in (first, *others)] == ["Task 1", "Task 2", "Task 2"]
    assert first["cost"] == 0.5 and first["tokens"]["input"] > 0 and first["seconds"] >= 0
    (last,) = child.records(record="run")
    assert last["iterations"] == 3 and last["reason"] and last["summary"]
    assert 0.5 < last["cost"] < 0.6


def test_the_log_in_text_and_what_verbose_adds(world: World) -> None:
    """README: --log appends every entry; --verbose adds every event of the server."""
    log = world.folder / "night.log"
    texts = []
    for options in ([], ["--verbose"]):
        world.fake("--log", str(log), *options, tasks=1).finish(0)
        texts.append(log.read_text("utf-8"))
    usual, both = texts
    assert both.startswith(usual)
    assert both.count("the plan is complete") >= 2 and both.count("starting OpenCode") == 2
    line = r"\d{4}-\d\d-\d\dT\S+ \w+ +\S"
    assert all(re.match(line, each) for each in both.split("\n")[:-1])
    said = {1: "session.idle", 2: "session.execution.succeeded"}[world.generation]
    assert said in both and said not in usual


def test_the_prompt_file(world: World) -> None:
    """README: placeholders, read again before every iteration; a block on top is not sent. The
    command line goes before it."""
    top = "---\nmodel: fake/other\nagent: plan\n---\n\n"
    text = "{{ITERATION}}: {{TASK}} of {{PLAN_FILE}}; check: [{{CHECK}}]\n"
    project = world.project(2, prompt=top + text)
    models = ["fake/model", "fake/other"]
    child = world.fake(project=project, models=models).finish(0)
    plan = f"{project}/PLAN.md"
    prompts = [f"{number}: Task {number} of {plan}; check: []" for number in (1, 2)]
    assert child.prompts() == prompts
    first = child.prompt_notes()[0]
    assert (first["model"], first["agent"]) == ("fake/other", "plan")

    (project / "PLAN.md").write_text("- [ ] One\n- [ ] Two\n", "utf-8")
    change = f"echo 'Changed. '{shlex.quote(plan)} > .loop-prompt.md"
    options = ["-m", "fake/model", "-a", "build", "--check", change]
    child = world.fake(*options, project=project, models=models).finish(0)
    first = child.prompt_notes()[0]
    assert (first["model"], first["agent"]) == ("fake/model", "build")
    assert child.prompts()[1] == f"Changed. {plan}"


LINE = "-m fake/model -m fake/other"
TWO_MODELS: Json = {"models": ["fake/model", "fake/other"]}
STORED: Json = {"store": "store"}  # in the project: a server that is started again knows it all
CHOSE: Json = {"model": "", "models": ["opencode/big-pickle"], "price": False}
NOT_STARTED: Json = {"prompts": 0, "counted": [(0, 2)]}

# What is promised; the options, what the agent does (as a rule it works), and what else is given;
# the exit status, what is said (or, after !, not said), and the facts.
# fmt: off
Case = tuple[str, str, str, Json, int, list[str], Json]
RUNS: list[Case] = [
    # README: wrong model, agent or key: it stops at once, and the message says what to do.
    ("a model that is nearly there", "-m fake/modle",
     "", dict(models=["fake/model", "fake/mode-large"]),
     1, ["there is no model fake/modle", "did you mean fake/model"], NOT_STARTED),
    ("a wrong key", "", "error:401", {}, 1, ["opencode auth login"], dict(prompts=1)),
    ("a dry run with a wrong agent", "--dry-run -a biuld", "", {},
     1, ["there is no agent biuld: there are build", "there are problems; the server was"],
     dict(prompts=0)),
    ("a dry run on a dead server", "--dry-run", "", dict(start="exit"),
     1, ["OpenCode ended with exit status 3 while starting", "there are problems; the server was"],
     dict(prompts=0)),
    # README: a model that nobody named and a starter are told before the first prompt.
    ("a model that nobody named", "--dry-run", "", CHOSE,
     0, ["nobody named a model, and OpenCode chose opencode/big-pickle by itself: your code goes "
         "to provider \"opencode\"; name another one with -m"], {}),
    ("a model that somebody named", "--dry-run -m opencode/big-pickle", "", CHOSE,
     0, ["!nobody named"], {}),
    ("a plan that is the starter", "", "", dict(tasks=ocloop.STARTER_PLAN),
     1, ["PLAN.md is still the starter: write your own tasks into it"], dict(prompts=0)),
    ("no login", "", "auth", {}, 1, ["opencode auth login"], dict(prompts=1)),
    # README: any other error is tried again, --retries times in a row.
    ("errors are tried again", "--retries 2",
     "error:400, error:400, work, overflow, retry:0.5, nothing, block, work",
     dict(tasks=5, patch=SHORT_WAITS),
     3, ["attempt 1 failed: Too Many Requests", "the session was compacted"],
     dict(outcomes="failed, failed, done, done, done, nothing settled, blocked, done",
          progress=[0, 0, 1, 1, 1, 0, 1, 1], boxes="xxxbx", waits=2)),
    ("too many errors", "--retries 1", "error:400:The model is overloaded", dict(patch=SHORT_WAITS),
     1, ["2 iterations in a row failed", "The model is overloaded"],
     dict(outcomes="failed, failed")),
    # README: limit or outage: the next model; else waits as announced; stops after --max-wait.
    ("a limit without an end", "--max-wait 3s", "error:429", dict(patch=SHORT_WAITS),
     3, ["--max-wait"], {}),
    ("the next model in line", LINE, "error:429, work", TWO_MODELS,
     0, [],
     dict(outcomes="rate-limited, done, done", models=["fake/model", "fake/other", "fake/other"])),
    # README: nothing settled: tells the agent after --stuck iterations, then stops. To check and
    # un-check, or to reword a task, settles nothing.
    ("nothing is settled", "--stuck 2", "mark, nothing, uncheck, retext", dict(tasks=4),
     3, ["3 iterations in a row settled no task (--stuck)"],
     dict(outcomes="done" + ", nothing settled" * 3, urged=[(3, True)])),
    # README: silence, circles: ends the session.
    ("the same call again and again", "", "loop-tool, work", dict(tasks=1, patch=SHORT_WAITS),
     0, ["it goes in circles: 20 times in a row"], dict(outcomes="failed, done", aborted=True)),
    ("the same ask again and again", "", "ask-forever, work", dict(tasks=1, patch=SHORT_WAITS),
     0, ["it asked 20 times for what was refused"],
     dict(outcomes="failed, done", replies=["reject"] * 20)),
    ("silence", "--stall-timeout 1", "hang, work", dict(tasks=1),
     0, ["nothing happened for 1s"], dict(outcomes="stalled, done")),
    # README: the plan may be away while an agent works.
    ("a plan that is stashed away", "", "stash:8, work", {},
     0, ["can be read again"], dict(outcomes="done, done")),
    ("a plan that is gone", "", "delete", dict(patch=FILES_SOON),
     1, ["PLAN.md cannot be read"], dict(counted=[(0, 2)])),
    # README: when it is complete.
    ("the tag comes late", "", "mark, finish", dict(tasks=1),
     0, ["Everything that could be done is done."], dict(prompts=2)),
    ("--debug takes any plan", "--debug", "finish", dict(tasks="No tasks.\n"),
     0, [], dict(has_tag=True)),
    # README: without a terminal what is asked is refused with a reason, and the agent goes on.
    ("nobody is there to answer", "", "ask, ask-child, question", dict(tasks=3),
     0, ["git push", "nobody is there to answer"],
     dict(boxes="xxx", outcomes="done, done, done", replies=["reject", "reject"], reasons=True)),
    ("--auto", "--auto", "ask, ask-child, question", dict(tasks=3),
     0, ["--auto"], dict(boxes="xxx", replies=["once", "once"])),
    # Parsing is total: huge lines, invalid JSON and UTF-8, unknown events, a person's own messages.
    ("strange events", "", "garbage, typed, bigline:5000000, work", dict(tasks=4),
     0, [], dict(boxes="xxxx", outcomes="done, done, done, done")),
    # README: it stops between two tasks at a limit.
    ("--max-iterations", "--max-iterations 2", "", dict(tasks=4),
     3, ["--max-iterations is reached: 2"], dict(boxes="xx  ")),
    ("complete at the limit", "--max-iterations 2", "", {}, 0, [], dict(boxes="xx")),
    ("--max-cost", "--max-cost 1", "cost:0.60", dict(tasks=4),
     3, ["--max-cost is reached: $1.20"], dict(boxes="xx  ")),
    ("--max-time", "--max-time 1s", "sleep:1", dict(tasks=4),
     3, ["--max-time"], dict(boxes="x   ")),
    # README: --check and --notify.
    ("a check that cannot be run", "--check 'true && no-such-command'", "", {},
     1, ["cannot be run", "no-such-command"], NOT_STARTED),
    ("a task that fits into no environment", "--check true --notify true",
     "", dict(tasks="- [ ] one \0 " + "x" * 200_000 + "\n"),
     0, [], dict(checks="passed")),
    ("a notification that fails", "--notify 'sleep 0.3; exit 3'", "", {},
     0, ["--notify ended with exit status 3"], {}),
    # README: it writes a lock and a state file, else in the temporary folder, else nothing; a full
    # disk, a log or a home that cannot be written to are warnings, and the loop goes on.
    ("a log in no folder", "--log PLAN.md/below.log", "", {},
     1, ["cannot be written (", "name another path with --log"], dict(boxes="  ")),
    ("a log on a full disk", "--log /dev/full", "", {},
     0, ["the log /dev/full cannot be written", "No space left"], dict(complaints=1)),
    ("no home", "", "", dict(env={"HOME": "/dev/null", "XDG_STATE_HOME": ""}),
     0, ["cannot be used: using"], dict(boxes="xx")),
    ("no folder at all", "",
     "", dict(env={"HOME": "/dev/null", "XDG_STATE_HOME": "", "TMPDIR": "/dev/null"}),
     0, ["no second loop on any plan in this folder"], dict(boxes="xx")),
    # README: the server dies, hangs, does not start: every count and every wait has an end.
    ("a server that keeps dying", "--retries 1", "die", dict(again="same", **STORED),
     1, ["the server failed 2 times in a row", "out of memory, as ordered"], dict(starts=2)),
    ("a server that cannot start", "", "", dict(start="exit"),
     1, ["ended with exit status 3 while starting", "it cannot start, as ordered"], dict(starts=3)),
    ("a server that starts at the third try", "", "", dict(starts=["exit", "exit", ""]),
     0, [], dict(boxes="xx")),
    ("a server that says nothing", "", "", dict(start="silent", patch=START_SOON),
     1, ["did not start within 1 s"], {}),
    ("a server that starts slowly", "", "", dict(start="slow:2"), 0, [], dict(boxes="xx")),
    # README: --server-memory: it is replaced between iterations, and at twice that in the midst of
    # one, however slowly it got there. One that has not worked yet and is larger is left alone.
    ("a server that grew", "--server-memory 150",
     "grow:200, sleep:3", dict(tasks=3, patch=MEASURED_OFTEN),
     0, ["MiB (limit 150): replacing it"], dict(replaced=True, outcomes="done, done, done")),
    ("a server that grew, by ps", "--server-memory 150",
     "grow:200, sleep:3", dict(tasks=3, patch=f"{MEASURED_OFTEN}; {WITHOUT_PROC}"),
     0, ["grew to "], {}),
    ("a server that grows without an end", "--server-memory 150",
     "swell:40, work", dict(patch=MEASURED_OFTEN, **STORED),
     0, ["MiB (limit 150)", "MiB (limit 150): replacing it in the midst"],
     dict(replaced=True, outcomes="done, done", sessions=2)),
    ("a server that is large from the start", "--server-memory 60",
     "sleep:5", dict(patch=MEASURED_OFTEN, memory=[200]),
     0, ["MiB before any work: it is replaced at ", "and not at 60 (--server-memory)"],
     dict(replaced=False, outcomes="done, done")),
]

# The second generation never runs a prompt again that was answered, ends a turn without a finish
# reason by itself, and what it does with a broken opencode.json is unknown.
RUNS_1: list[Case] = [
    ("a broken configuration", "", "", dict(config_error=True),
     1, ["opencode.json", "mend it"], NOT_STARTED),
    ("answers without an end", "", "unknown, work", dict(tasks=1, patch=SHORT_WAITS),
     0, ["spins: 3 "], dict(outcomes="failed, done", aborted=True)),
    ("answers to one prompt", "", "again-answers, work", dict(tasks=1, patch=SHORT_WAITS),
     0, ["it answered the same prompt 3 times"], dict(outcomes="failed, done")),
]
# fmt: on


@pytest.mark.parametrize("case", RUNS, ids=[case[0] for case in RUNS])
def test_runs(world: World, case: Case) -> None:
    _, options, answers, how, status, said, facts = case
    given = {**how, "answers": answers.split(", ")} if answers else how
    expect(world.fake(*shlex.split(options), **given), status, *said, **facts)


@pytest.mark.parametrize("world", [1], indirect=True, ids=["v1"])
@pytest.mark.parametrize("case", RUNS_1, ids=[case[0] for case in RUNS_1])
def test_runs_of_the_first_generation(world: World, case: Case) -> None:
    test_runs(world, case)


def test_a_plan_that_is_edited(world: World) -> None:
    """README: edit plan and prompt while it runs. What is no file any more is not waited for."""
    edited = world.fake("--plain", answers=["sleep:2", "work"], tasks=1)
    piped = world.fake(answers=["sleep:3"], patch=FILES_SOON)
    edited.wait_said("Task 1")
    with open(edited.project / "PLAN.md", "a", encoding="utf-8") as file:
        file.write("- [ ] One more\n")
    piped.wait_prompts(1)
    (piped.project / "PLAN.md").unlink()
    os.mkfifo(piped.project / "PLAN.md")
    expect(edited, 0, boxes="xx")
    assert "it is not a file" in piped.finish(1).output
    expect(world.start(piped.project, "run", "--opencode", fake_command()), 1, "it is not a file")


def test_a_flood_of_events(world: World) -> None:
    """100 MB of events are worked through, and memory stays flat."""
    peaks = []
    for number in (100_000, 400_000):
        child = world.fake(answers=[f"flood:{number}", "work"], tasks=1)
        peak = 0
        while child.process.poll() is None:
            peak = max(peak, harness.memory_kib(child.pid, "VmHWM"))
            time.sleep(0.02)
        child.finish(0)
        peaks.append(peak)
    assert peaks[1] < peaks[0] * 1.5, f"peaks in KiB: {peaks}"
    assert peaks[1] < 120_000, f"peaks in KiB: {peaks}"


def test_what_a_check_says_is_told_to_the_next_session(world: World) -> None:
    """README: the exit status and the last 4 KB of the output; not complete before it passes."""
    variables = "plan=$OCLOOP_PLAN task=$OCLOOP_TASK n=$OCLOOP_ITERATION"
    check = f'echo "{variables} $OCLOOP_DONE/$OCLOOP_TOTAL"; pwd; test "$OCLOOP_ITERATION" != 1'
    long = "seq 5000; test $OCLOOP_ITERATION -gt 2"
    early = "echo no such target; test $OCLOOP_ITERATION = 1"  # it fails before the first prompt
    child = world.fake("--check", check)
    late = world.fake("--check", long, tasks=1, answers=["work", "nothing"])
    broken = world.fake("--check", early, tasks=1)
    first, second = expect(child, 0, checks="failed, passed").prompts()
    assert "plan=" not in first
    said = f"plan={child.project}/PLAN.md task=Task 1 n=1 1/2\n{child.project}"
    for part in (check, "exit status 1", said):
        assert part in second
    prompts = expect(late, 0, prompts=3).prompts()
    assert "\n5000" in prompts[1] and len(prompts[1]) < 5000
    assert "no such target" in expect(broken, 0, checks="passed").prompts()[0]


def test_a_check_that_does_not_end(world: World) -> None:
    """README: --check-timeout ends all that it started; an interrupted one failed not."""
    sleepers = "sleep 1000 & setsid sleep 1000 & sleep 1000"
    check = f"if test $OCLOOP_ITERATION = 1; then {sleepers}; fi"
    late = world.fake("--check", check, "--check-timeout", "1s", tasks=2)
    child = world.fake("--check", check, tasks=1)
    term = world.fake_terminal("--run", "--check", check)
    for run in (child, term):
        run.wait_process("sleep 1000")
    child.stop(signal.SIGTERM)
    term.send("x")
    leave(term)
    assert term.checks() == ["interrupted", "passed"]
    assert "--check-timeout" in late.finish(0).prompts()[1]


def test_notify(world: World) -> None:
    facts = "$OCLOOP_EVENT|$OCLOOP_MESSAGE|$OCLOOP_DONE/$OCLOOP_TOTAL|$OCLOOP_PLAN"
    command = ("--notify", f'echo "{facts}" >> notes')
    limit = r"stopped\|ocloop \S+: stopped: --max-iterations is reached: 1 of 1, 1/2, "
    complete = r"complete\|ocloop \S+: complete, 2/2, \$0\.\d+, \d+s\|2/2\|"
    for child, status, expected in (
        (world.fake(*command), 0, complete),
        (world.fake(*command, "--max-iterations", "1"), 3, limit),
        (world.fake(*command, answers=["error:401"]), 1, r"failed\|"),
    ):
        child.finish(status)
        notes = child.project / "notes"
        until(notes.exists, "a notification", 5)
        assert re.match(expected, notes.read_text())
        assert f"|{child.project}/PLAN.md" in notes.read_text()


# ── what happens to the server ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "starts"),
    [("die", 2), ("freeze", 2), ("killed", 2), ("drop", 1), ("noidle", 1), ("silent", 1)],
)
def test_a_server_that_fails_under_way(world: World, answer: str, starts: int) -> None:
    """README: the server dies or hangs: it is started anew, and the iteration goes on.

    A stream that breaks, an idle event that is lost and a prompt that is swallowed are no end
    either: a prompt has ids of its own and can be sent again without running twice."""
    first = "sleep:2" if answer == "killed" else answer
    run = world.fake(answers=[first, "work"], **STORED)
    if answer == "killed":
        run.wait_event("busy")
        run.kill_server()
    expect(run, 0, boxes="xx", outcomes="done, done", sessions=2, starts=starts)
    assert answer != "die" or run.said("out of memory, as ordered")
    # In the second generation a prompt's ids are run once only, even when it was cut.
    if answer in ("die", "freeze", "silent") and world.generation == 1:
        ids = [note["id"] for note in run.prompt_notes()]
        assert len(set(ids)) == 2 and len(ids) >= 3, "a prompt is sent again with its ids"


def test_ports(world: World) -> None:
    """README: --port: 4096, or a free one; when you name one, exactly that."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expect(world.fake("--port", str(port)), 1, f"port {port} is taken", "--port")
    port = free_port()
    named = world.fake("--port", str(port), answers=["hang"])
    first = world.fake(answers=["hang"], default_port=True)
    assert named.wait_event("listening")["port"] == port
    taken_port = first.wait_event("listening")["port"]
    second = expect(world.fake(default_port=True), 0, boxes="xx")
    assert second.events("listening")[0]["port"] != taken_port
    for run in (named, first):
        run.stop(signal.SIGTERM)


def test_a_server_that_runs_already(world: World) -> None:
    """README: --server: a server that runs already is used with its login, and never stopped."""
    log = world.folder / "server.jsonl"
    login: Json = dict(SECRET)
    if world.generation == 1:  # in the second one the user's name is always the same
        login["OPENCODE_SERVER_USERNAME"] = "me"
    url = world.fake_server(answers=["work", "work", "hang"], log=str(log), login=login)
    (server,) = world.helpers
    args = ("run", "--server", url)
    refused = "refuses the password: set OPENCODE_SERVER_PASSWORD"
    for options, said in (
        (["--dry-run"], "no problem was found; the server was asked, and no prompt was sent"),
        ([], "the plan is complete"),
    ):
        assert said in world.say(world.project(2), *args, *options, **login)
        assert refused in world.say(world.project(1), *args, *options, status=1)
    child = world.start(world.project(1), *args, **login)
    child.requests_path = log
    child.wait_prompts(3)
    child.stop(signal.SIGINT)
    sessions = [note["session"] for note in child.events("session")]
    assert set(child.aborts()) == {sessions[-1]}, "only the session of its own is aborted"
    assert not child.requests("/dispose")

    check = "sleep 1000 & setsid sleep 1000 & sleep 1000"
    child = world.start(world.project(), *args, "--check", check, **login)
    child.wait_process("sleep 1000")
    child.stop(signal.SIGKILL)  # the check is what is left to end then
    assert server.poll() is None, "the server is not ours"
    child = world.start(world.project(1), "run", "--server", f"http://127.0.0.1:{free_port()}")
    child.wait_for("waiting for http")  # it is not there yet
    child.stop(signal.SIGTERM)


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM"])
def test_what_a_run_left_at_work_on_a_server_that_is_not_its_own(world: World, end: str) -> None:
    """README: the next run stops it before its own session begins; also what a run could not reach
    when it ended in good order."""
    log = world.folder / "server.jsonl"
    url = world.fake_server(answers=["hang", "work"], log=str(log), login=SECRET)
    project = world.project(1)

    def start() -> ChildProcess:
        child = world.start(project, "run", "--server", url, **SECRET)
        child.requests_path = log
        return child

    def recorded() -> Any:
        said = json.loads(world.say(project, "status", "--json", status=3))
        return (said["run"] or {}).get("session")

    first = start()
    first.wait_prompts(1)
    until(recorded, "the session in the state file", 20)
    left = recorded()
    (server,) = world.helpers
    server.send_signal(signal.SIGSTOP)
    first.stop(getattr(signal, end))
    server.send_signal(signal.SIGCONT)
    told = f"session {left} may be at work still on {url}: stop it there, or run again"
    assert f"to do     {told}" in world.say(project, "status", status=3)
    assert end == "SIGKILL" or told in first.output
    second = expect(start(), 0, "an earlier session was left here: stopping it")
    assert set(second.aborts()) == {left}


def test_many_plans_with_odd_names_and_options(bare: World) -> None:
    """A plan's name stays a name, whatever the options are; what git cannot name is said."""
    top = bare.folder / "repo"
    (top / "plans").mkdir(parents=True)
    odd = ("one", "-r", "$(touch${IFS}owned)", "gr\u00f6\u00dfe")
    for name in (*odd, "two words", "a..b", "c\x1b[2Jd", "e\nf", "~"):
        (top / "plans" / f"{name}.md").write_text("- [x] a\n<plan-complete>b</plan-complete>\n")
    (top / ".loop-prompt.md").write_text("a")
    (top / "json.py").write_text("open('owned', 'w')")  # no library of the table's
    commit_all(bare, top)
    argv = ["sh", str(EXAMPLES / "many.sh"), "plans", "--check", "echo {} >>checked"]
    program = bare.folder / "seen.py"
    program.write_text(
        "import os, sys; open(os.environ['SEEN'], 'a').write(repr(sys.argv[1:]) + '\\n')"
    )
    env = {"SEEN": str(bare.folder / "seen"), "OCLOOP": str(program)}
    nobody = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.useConfigOnly"}
    nobody["GIT_CONFIG_VALUE_0"] = "true"
    expect(bare.execute(top, argv, **env, **nobody), 1, "git does not know who you are")
    many = f"{bare.folder}/repo.many"
    os.chmod(many, 0o777)  # as somebody else may have made it, with an OpenCode plugin in it
    expect(bare.execute(top, argv, **env, **AUTHOR), 1, f"{many} is not yours alone")
    os.chmod(many, 0o755)
    child = expect(
        bare.execute(top, argv, **env, **AUTHOR),
        1,
        f"one: begins, on branch ocloop/one in {many}/one\n",
        f"one: ended with exit status 0, see {many}/one.log\n",
        f"the work is on the branches ocloop/*, the logs are in {many}\n",
        *(
            f"git takes no branch ocloop/{said}: rename that plan"
            for said in ("two words", "a..b", "c?[2Jd", "e?f", "~")
        ),
    )
    runs = [line for line in (bare.folder / "seen").read_text().splitlines() if "--plain" in line]
    words = ["--check", "echo {} >>checked"]
    expected = [repr(["run", "--plain", "--plan", f"./plans/{name}.md", *words]) for name in odd]
    assert sorted(runs) == sorted(expected), child.output
    assert not list(bare.folder.rglob("owned"))
    said = bare.execute(top, [*argv[:2], "-h"]).finish(0).output
    assert said.startswith("Many plans at once") and "[-j N] PLANS" in said
    assert "set -eu" not in said
    Path(many).rename(bare.folder / "before")
    del env["OCLOOP"]
    wrong = bare.execute(top, [*argv[:3], "--max-costs", "3"], **env).finish(2)
    assert "did you mean --max-cost?" in wrong.output
    assert not Path(many).exists(), "said before anything is made"


# ── how a run is ended ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(world: World, number: int) -> None:
    """README: ctrl-c, SIGTERM: session, server and its tools are ended; exit status 130.

    The server and its tools begin with no signal blocked: a tool's terminal can be resized and
    stopped, whatever ocloop holds back for its own threads."""
    child = world.fake(answers=["spawn:hang"])
    starting = world.fake(start="slow:30")
    stubborn = world.fake(stubborn=True, answers=["spawn:hang"])
    term = world.fake_terminal("--run", answers=["spawn:hang"])
    lines = world.fake_terminal("--plain", answers=["hang"])
    ours = {signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM}
    for run in (child, term):
        for note in ("exec", "spawned"):
            assert not harness.blocked_signals(run.wait_event(note)["pid"]) & ours
    starting.wait_event("exec")
    stubborn.wait_event("spawned")
    for run in (child, starting, stubborn):
        run.stop(number)
    assert child.aborts()
    if world.generation == 2:
        cost = child.records(record="run")[0]["cost"]
        assert cost == 0.01, "2.x tells what a step has cost a moment after its interrupt"
    term.wait_for("● running")
    lines.wait_event("busy")
    term.send("\x03")  # asks once, as Q does
    term.wait_for("Q again")
    for run in (term, lines):
        run.send("\x03")
        run.finish(130, timeout=20)
    term.wait_for("0 of 2 tasks done")


@pytest.mark.parametrize("where", ["Talk.hear", "Driver._show"])
def test_a_crash_of_its_own(world: World, where: str) -> None:
    """README: nothing is left behind. It says where, and the terminal is restored."""
    lines = world.fake(answers=["spawn:hang"], patch=BUG.format(where))
    term = world.fake_terminal("--run", answers=["spawn:hang"], patch=BUG.format(where))
    expect(lines, 1, "Traceback", "a bug, as ordered")
    expect(term, 1, "a bug, as ordered")
    shown_after = term.transcript.rpartition(b"\x1b[?1049l")[2]  # the screen has been left
    assert b"Traceback" in shown_after, "its first line may have scrolled away: it is long"


def test_a_second_loop_on_a_plan_is_refused(world: World) -> None:
    """README: a lock per plan: also through another name of it, and when somebody removed the
    state folder. After `kill -9` `status` says so, and the plan is free."""
    first = world.fake(answers=["spawn:hang"])
    first.wait_event("spawned")
    refused = f"another loop works on this plan (process {first.pid})"
    second = expect(world.fake(project=first.project), 1, refused)
    assert not second.notes()
    shutil.copy(first.project / "PLAN.md", first.project / "OTHER.md")
    beside = world.fake("--plan", "OTHER.md", project=first.project)
    said = f"another loop works in this folder, on {first.project}/PLAN.md: they share all files"
    expect(beside, 0, said)
    link = world.folder / "link"
    link.symlink_to(first.project)
    expect(world.start(link, "run", "--opencode", fake_command()), 1, refused)
    folder = Path(first.env["XDG_STATE_HOME"]) / "ocloop"
    shutil.rmtree(folder)
    until(lambda: list(folder.glob("*.lock")) and list(folder.glob("*.json")), "the lock", 30)
    expect(world.fake(project=first.project), 1, refused)
    first.stop(signal.SIGKILL)
    assert "was killed" in world.say(first.project, "status", status=3)
    expect(world.fake(project=first.project), 0, boxes="xx")
    assert "ended" in world.say(first.project, "status")


def test_what_opencode_unpacks_does_not_fill_the_disk(world: World) -> None:
    """README: it is removed as the night goes on, and at every end, also that by `kill -9`, of
    ocloop alone and with its guard; nothing else is."""
    child = world.fake(answers=["sleep:2", "hang"], patch=MAPPED_SOON)
    child.until(lambda: bool(libraries_of(world)), "a library")
    child.until(lambda: child.boxes() == "x ", "the first task")
    child.until(lambda: not libraries_of(world), "that it is removed while the run goes on")
    (folder,) = Path(world.env["XDG_STATE_HOME"], "ocloop").glob("*.libraries")
    kept = [folder / "keep.so", world.folder / "tmp" / ".0123456789abcdef-00000000.so"]
    library = folder / kept[1].name
    for path in (*kept, library):
        path.write_text("", "utf-8")
    child.stop(signal.SIGKILL)
    until(lambda: not library.exists(), "that the guard removes it")
    library.write_text("", "utf-8")
    world.fake(project=child.project).finish(0)
    assert libraries_of(world) == []
    assert all(path.exists() for path in kept)
    own = world.fake(env={"BUN_TMPDIR": str(world.folder)}).finish(0)
    assert len(list(own.project.parent.glob(".*-00000000.so"))) == 1, "a person's own place is kept"


@pytest.mark.parametrize("patch", [WITHOUT_PROC, WITHOUT_PROC_AND_PS], ids=["ps", "no ps"])
def test_without_proc_nothing_is_left_behind(world: World, patch: str) -> None:
    """README, platforms: tools that left their group are found by `ps`. Where there is none, the
    server ends all the same, and what the server itself ends."""
    has_ps = patch == WITHOUT_PROC
    check = "if test $OCLOOP_ITERATION = 1; then setsid sleep 1000 & sleep 1000; fi"
    options = ["--check", check, "--check-timeout", "1s"] if has_ps else []
    whole = world.fake(*options, patch=patch)
    killed = world.fake(answers=["spawn:hang" if has_ps else "hang"], patch=patch)
    ended = world.fake(answers=["spawn:hang"], patch=patch)
    killed.wait_event("spawned" if has_ps else "busy")
    ended.wait_event("spawned")
    killed.stop(signal.SIGKILL)
    ended.stop(signal.SIGTERM)
    expect(whole, 0, boxes="xx")


SHELLS = {
    name: [path, *words]
    for name, *words in (["sh"], ["dash"], ["bash", "--posix"], ["busybox", "sh"])
    if (path := shutil.which(name))
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("proc", ["/proc", "/nowhere"])
def test_the_guard_needs_no_more_than_posix(bare: World, shell: str, proc: str) -> None:
    """README, platforms. One that is dismissed ends nothing."""
    mark = os.urandom(8).hex()
    files = [bare.folder / name for name in (".0a-0000000f.so", ".0a-0000000f.so.txt", "a.so")]
    for path in files:
        path.write_text("", "utf-8")
    theirs = [{"OCLOOP_RUN": value} for value in ("somebody else's", f"{mark}2", f"{mark}.x")]
    theirs += [{"X_OCLOOP_RUN": mark}]
    if proc == "/proc":  # `ps` does not tell where an entry ends
        theirs += [{"X": f"a\nOCLOOP_RUN={mark}\nb"}, {"X": f"a OCLOOP_RUN={mark} b"}]
    ours = [{"OCLOOP_RUN": mark + part} for part in ("", ".check", ".attach")]
    leader, *helpers = [bare.helper(["sleep", "1000"], **env) for env in ({}, *ours, *theirs)]
    if proc == "/proc":
        assert sorted(marked_pids(mark)) == [helpers[0].pid]
    given = (mark, proc, " ".join(ocloop.PS), str(bare.folder), ocloop.LIBRARY)
    argv = [*SHELLS[shell], "-c", ocloop.GUARD, "ocloop-guard", *given]
    for said, is_over in ((b"17\nover\n", True), (f"0\n{leader.pid}\n".encode(), False)):
        subprocess.run(
            argv, input=said, env=bare.env, check=True, timeout=harness.LONG, start_new_session=True
        )
        for helper in (leader, *helpers[:3]):
            if is_over:
                assert helper.poll() is None
            else:
                assert helper.wait(5) != 0
    for helper, env in zip(helpers[3:], theirs):
        assert helper.poll() is None, f"what is not ours is left alone: {env}"
    assert [path.exists() for path in files] == [False, True, True]


def test_a_guard_that_was_killed_is_replaced(world: World) -> None:
    """After `kill -9` a guard ends what is left, and it is there when it is needed."""
    answers = ["sleep:0.3"] * 5 + ["spawn:hang"]
    child = world.fake(answers=answers, tasks=10, patch=MEASURED_OFTEN)
    guard = r".*ocloop-guard"
    first = child.wait_process(guard)
    child.wait_event("busy")
    os.kill(first, signal.SIGKILL)
    child.until(lambda: {*child.processes(guard)} - {first}, "another guard", 30)
    child.wait_event("spawned")
    child.stop(signal.SIGKILL)


def test_hang_ups(world: World) -> None:
    """README: goes on without a terminal; `status` finds it."""
    hup = world.fake_terminal("--run", answers=["sleep:1"], tasks=3)
    gone = world.fake_terminal("--run", answers=["sleep:8", "work"], tasks=2)
    asked = world.fake_terminal("--run", answers=["ask", "work"])
    lines = world.fake_terminal("--plain", answers=["sleep:1"])
    for run, shown in ((hup, "running"), (gone, "running"), (asked, "git push"), (lines, "Task 1")):
        run.wait_for(shown)
    hup.signal(signal.SIGHUP)
    for run in (gone, asked, lines):
        run.hang_up()
    state = json.loads(world.say(gone.project, "status", "--json", status=3))
    assert state["running"] and state["run"]["pid"] == gone.pid
    given = world.fake_terminal("--run", answers=["sleep:6", "work"])
    given.wait_session()
    given.send("t")
    given.wait_for("password: yes")
    given.hang_up()
    for run in (hup, gone, asked, lines, given):
        run.finish(0)
        assert set(run.boxes()) == {"x"}
    assert asked.said("nobody is there to answer")
    assert hup.said("going on without a screen") and given.said("going on without a screen")


def test_ctrl_s_stops_the_screen_and_not_the_run(world: World) -> None:
    term = world.fake_terminal("--run", answers=["sleep:0.3"], tasks=12)
    term.wait_for("● running")
    term.send("\x13")
    before = len(term.prompts())
    term.until(lambda: len(term.prompts()) >= before + 6, "iterations while it is held", 15)
    term.send("\x11")
    leave(term, boxes="x" * 12)


def test_a_terminal_that_nobody_reads(world: World) -> None:
    """A frozen ssh connection: a run goes to its end, a limit is kept, and SIGTERM ends it."""
    answers = ["flood:2000", "ask", "bigline:100000", "sleep:0.2"]
    how: Json = {"answers": answers, "tasks": 16, "reading": False}
    whole = world.fake_terminal("--run", "--auto", **how)
    limited = world.fake_terminal("--run", "--max-iterations", "12", "--auto", **how)
    lines = world.fake_terminal("--plain", "--verbose", **how)
    how["answers"] = [*answers, "spawn:hang"]
    ended = world.fake_terminal("--run", "--auto", **how)
    whole.until(lambda: whole.boxes() == "x" * 16, "the end of the plan")
    limited.wait_said("--max-iterations")
    lines.finish(0)
    assert lines.boxes() == "x" * 16
    ended.wait_event("spawned")
    for run, status in ((whole, 0), (limited, 3), (ended, 130)):
        run.signal(signal.SIGTERM)
        run.finish(status, timeout=20)


def test_a_log_that_hangs(world: World) -> None:
    """A log that takes nothing does not stop the run."""
    paths = [world.folder / "nobody-opens-it", world.folder / "nobody-reads-it"]
    for path in paths:
        os.mkfifo(path)
    reader = os.open(paths[1], os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, 1031, 4096)  # F_SETPIPE_SZ: it is full after some lines
    for path in paths:
        expect(world.fake("--log", str(path), "--verbose", tasks=10), 0, boxes="x" * 10)
    os.close(reader)


# ── the screen and the keys ───────────────────────────────────────────────────────────────────────


def test_keys(world: World) -> None:
    """README: S starts, Space pauses after this iteration, X aborts it, ? helps, Q asks once."""
    answers = ["sleep:2", "sleep:2", "hang", "sleep:1", "hang"]
    term = world.fake_terminal(answers=answers, tasks=6)
    for shown in ("ready", r"0/6 +0%", "S start"):
        term.wait_for(shown)
    assert not term.prompts()
    for key, shown in (
        *(("?", "this help"), ("?", "ready"), ("s", "● running"), (" ", "pausing")),
        *((" ", "● running"), (" ", "‖ paused")),
    ):
        term.send(key)
        term.wait_for(shown)
        assert key == "?" or "this help" not in term.shown()
    term.wait_for(r"1/6 +17%")
    time.sleep(0.5)
    assert len(term.prompts()) == 1
    for width, height in ((40, 12), (20, 4), (200, 50), (80, 24)):
        term.resize(width, height)
        term.wait_for("paused")
        assert term.shown().count("\n") == height - 1
        time.sleep(0.3)
    term.wait_for(r"Q quit")
    term.send(" ")
    term.wait_prompts(3)
    term.send("x")
    term.wait_said("aborted by a person")
    term.wait_prompts(5)
    term.send("q")
    term.wait_for("Q again")
    term.send("z")
    term.wait_gone("Q again")
    assert term.process.poll() is None
    term.quit()
    # The summary stays when the screen is gone.
    expect(term, 130, "3 of 6 tasks done", outcomes="done, done, aborted, done")


def test_tasks_that_are_added_to_a_complete_plan(world: World) -> None:
    """README: S or R, once there is something to do and no tag."""
    term = world.fake_terminal("--run", tasks=1)
    term.wait_for("✔ complete")
    plan = term.project / "PLAN.md"
    for number, key in enumerate("s r"):
        term.send(key)
        term.wait_times("add tasks, and take its", number + 1)
        text = re.sub("<plan-complete>.*</plan-complete>", "", plan.read_text("utf-8"))
        plan.write_text(f"{text}\n- [ ] One more {number}\n", "utf-8")
        term.send(key)
        term.wait_times('"record": "run"', number + 2)
    leave(term, boxes="xxxx", starts=4)


def test_r_goes_on_after_an_error_and_at_a_limit(world: World) -> None:
    """README: wherever the error came from, server and all; a limit is raised."""
    fatal = world.fake_terminal("--run", answers=["error:401", "work"], **STORED)
    no_start = world.fake_terminal("--run", starts=["exit", "exit", "exit", ""])
    no_plan = world.fake_terminal("--run", answers=["delete"], patch=FILES_SOON)
    limited = world.fake_terminal("--run", "--max-iterations", "1", tasks=3)
    left = world.fake_terminal("--run", answers=["error:404"])
    left_limited = world.fake_terminal("--run", "--max-iterations", "1", tasks=3)
    fatal.wait_for("opencode auth login")
    for term in (fatal, no_start, no_plan):
        term.wait_for("✖ error")
    plan = "- [x] Task 1\n\n<plan-complete>By hand</plan-complete>\n"
    (no_plan.project / "PLAN.md").write_text(plan, "utf-8")
    for term in (fatal, no_start, no_plan):
        term.send("r")
        leave(term)
    assert len(fatal.events("listening")) == 2 and len(no_start.events("listening")) == 1
    for number in (1, 2):
        limited.wait_for(rf"paused(.|\n)*--max-iterations is reached: {number}")
        assert len(limited.prompts()) == number
        limited.send("r")
    leave(limited, boxes="xxx")
    leave(left, 1, "✖ error")
    leave(left_limited, 3, "--max-iterations is reached: 1")


def test_rate_limits(world: World) -> None:
    """README: waits until the announced time, or 30 s, then longer and longer; no --retries."""
    answers = ["error:429", "retry-park", "error:429:Slow down", "work"]
    term = world.fake_terminal("--run", "--retries", "1", "--max-wait", "0", answers=answers)
    for wait in ("30s", "23h59m", "2m00s"):
        term.wait_said(f"trying again in {wait}")
        term.wait_for(r"◷ waiting(.|\n)*again at ")
        term.send("r")
    leave(term, outcomes="rate-limited, rate-limited, rate-limited, done, done")
    assert term.said("OpenCode would wait (23h59m|24h)")


def test_what_is_asked_is_answered_with_a_key(world: World) -> None:
    """README: asks you; answered elsewhere is no error."""
    answers = ["ask", "ask-child", "ask", "question", "question", "ask"]
    notify = "echo $OCLOOP_EVENT >> notes"
    term = world.fake_terminal("--run", "--notify", notify, tasks=6, answers=answers)
    wait_asked(term, 1)
    for shown in ("Y once", "refused in "):
        term.wait_for(shown)
    said = world.say(term.project, "status", status=3)
    assert re.search(r"answer what it asks \((bash|shell) git push", said)
    for number, key in enumerate("yan2n", 1):
        wait_asked(term, number)
        term.send(key)
    wait_asked(term, 6)
    allow_elsewhere(world, term.state())
    leave(term, boxes="xxxxxx", replies=["once", "always", "reject", "once"])
    questions = term.replies("question")
    assert len(questions) == 2 and questions[0]["answers"] == [["B"]]
    assert (term.project / "notes").read_text().split()[0] == "asked"


def test_what_nobody_answers_is_refused(world: World) -> None:
    """README: --ask-timeout. Q while the server is being stopped changes nothing."""
    options = ("--run", "--ask-timeout", "2")
    term = world.fake_terminal(*options, answers=["ask", "question"], stubborn=True)
    term.wait_for("refused in 2s")
    term.wait_for("✔ complete")
    term.wait_for("2 of 2 tasks done")
    leave(term, boxes="xx")
    term.wait_for("Everything that could be done is done.")
    assert "ocloop: the plan is complete" in term.everything()
    assert "the plan is complete" in world.say(term.project, "status")
    assert term.said("nobody answered for 2s")


def test_the_session_in_opencodes_own_interface(world: World) -> None:
    """README: T, and back with ctrl-c, which, twice even, does not end the run, but asks; or back
    in its own way; the loop goes on meanwhile."""
    term = world.fake_terminal("--run", answers=["sleep:8", "work"])
    session = term.wait_session()
    interface = interface_of(world, session)
    term.send("t")
    term.wait_for(interface)
    term.send("\x03")
    term.wait_for("● running")
    os.kill(term.pid, signal.SIGINT)
    term.wait_for("Q again")
    term.send("x")  # any other key goes on
    term.wait_gone("Q again")
    term.send("t")
    term.wait_for(interface)
    term.wait_prompts(2)
    term.send("\n")
    term.wait_for("✔ complete")
    assert "password: yes" not in term.shown()
    leave(term)


def test_no_interface_to_give_the_terminal_to(world: World) -> None:
    """README: T: that is said, and the run goes on."""
    url = world.fake_server(answers=["hang"], login=SECRET)
    nowhere = {"PATH": str(world.folder), "HOME": str(world.folder), **SECRET}
    term = world.start_terminal(world.project(1), "run", "--run", "--server", url, **nowhere)
    term.wait_session()
    term.send("t")
    term.wait_for("cannot start opencode")
    term.quit()
    term.finish(130)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 130), (signal.SIGKILL, 137)])
def test_ending_while_the_terminal_is_given_away(world: World, number: int, status: int) -> None:
    """README: what has the terminal goes too, also in a shell's job."""
    command = world.on_fake("--run", answers=["hang"])
    program = shlex.join(command.argv)
    argv = ["/bin/sh", "-c", f"{program}; echo status $?; read _"]
    shell = world.execute_terminal(command.folder, argv, **command.env)
    shell.wait_for("● running")
    shell.wait_session()
    shell.send("t")
    shell.wait_for("password: yes")
    os.kill(int(shell.state()["pid"]), number)
    shell.wait_for(f"status {status}")
    shell.until(lambda: shell.processes() == [shell.pid], "the end of what had the terminal")
    shell.send("\n")
    shell.finish(0)


@pytest.mark.parametrize("is_drawing", [False, True])
def test_stop_and_continue(world: World, is_drawing: bool) -> None:
    """After ctrl-z and `fg` the screen is back, the run goes on. It stops in the midst of a drawing
    too, where ctrl-S has it stay."""
    command = world.on_fake("--run", answers=["sleep:4", "work"])
    env = {**command.env, "PS1": "prompt> "}
    shell = world.execute_terminal(command.folder, ["/bin/sh", "-i"], **env)
    shell.wait_for("prompt>")
    program = shlex.join(command.argv).replace("{log}", str(shell.log))
    shell.send(program + "\n")
    shell.wait_for("● running")
    if is_drawing:
        shell.send("\x13")
        time.sleep(1.5)
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
    expect(shell, 0, boxes="xx")


def test_a_check_that_fails_where_the_ends_of_children_are_ignored(world: World) -> None:
    """Some supervisors start programs so: then every exit status would read as 0."""
    command = world.on_fake("--check", "sleep 0.3; exit 3", "--max-iterations", "1")
    code = "import os, sys, signal as s; s.signal(s.SIGCHLD, s.SIG_IGN); "
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    run = world.execute(command.folder, [sys.executable, "-c", code, *command.argv], **command.env)
    expect(run, 3, "failed with exit status 3")


def test_terminals_that_can_do_less(world: World) -> None:
    """NO_COLOR, TERM, a locale without UTF-8, closed standard streams. README: in the background of
    a shell it prints lines: the terminal would stop it."""
    command = world.on_fake()
    shell = ["/bin/sh", "-c", f"stty tostop; set -m; {shlex.join(command.argv)} & wait $!"]
    background = world.execute_terminal(command.folder, shell, **command.env)
    expect(background, 0, "since it runs in the background")
    for name in ("dumb", "no-such-terminal"):
        expect(world.fake_terminal(tasks=1, name=name), 0, f"plain lines, since TERM={name}")
    simple = {"NO_COLOR": "1", "LC_ALL": "C", "LANG": "C"}
    term = world.fake_terminal("--run", tasks=1, env=simple)
    leave(term)
    assert "────" in term.output and not re.search(r"\x1b\[[\d;]*3[0-7]m", term.output)
    for closed in ("<&-", ">&-", "<&- >&- 2>&-"):
        command = world.on_fake(tasks=1)
        argv = ["/bin/sh", "-c", f"{shlex.join(command.argv)} {closed}"]
        expect(world.execute(command.folder, argv, **command.env), 0, boxes="x")
    plan = "- [x] one\n- [BLOCKED: a → b] two\n\n<plan-complete>✓</plan-complete>\n"
    said = world.say(world.project(plan), "status", status=3, PYTHONIOENCODING="latin-1")
    assert "complete" in said


# ── the real OpenCode ─────────────────────────────────────────────────────────────────────────────
# Driven by the scripted model of examples/, so without a key. What is about the server's process
# has a server of its own; all else shares one, through --server, each test in a directory of its
# own.


def test_real_bootstrap_then_run(bare: World, opencode: str) -> None:
    """README, "Use it": `bootstrap`, tasks of one's own, and `run` works the plan to its end. When
    the server dies, it is started anew, and the iteration goes on in its session."""
    folder = bare.folder / "a dir with spaces & ünïcode"  # and in no git repository
    folder.mkdir()
    bare.say(folder, "bootstrap")
    plan = folder / "PLAN.md"
    starter = ocloop.parse_plan(ocloop.STARTER_PLAN).tasks[0].text
    plan.write_text(plan.read_text("utf-8").replace(starter, "Write the parser"), "utf-8")
    with ScriptedModel(["ok", "slow:60"]) as model:
        child = bare.real("--run", model=model, opencode=opencode, project=folder)
        child.until(lambda: "slow:60" in model.given, "a session at work")
        child.kill_server()
        expect(child, 0, "the plan is complete", "the server ended by itself")
    done = child.boxes().count("x")
    assert set(child.boxes()) <= {"x", "m"} and done >= 2
    assert child.outcomes() == ["done"] * done
    sessions = {record["session"] for record in child.records() if record.get("session")}
    assert len(sessions) == done
    assert (folder / "notes.txt").read_text("utf-8").count("done: ") == done
    assert all(record["cost"] > 0 for record in child.records(record="iteration"))


def test_real_terminal(bare: World, opencode: str) -> None:
    """README, "Keys": started with S, asked and answered, in a subagent's session too."""
    with ScriptedModel("outside,ask,subagent-outside") as model:
        term = bare.real_terminal(model=model, opencode=opencode)
        for shown in ("○ ready", "0/2", "scripted/quiz"):
            term.wait_for(shown)
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
        leave(term, boxes="xx")
        said = json.dumps(model.requests)
    term.wait_for("2 of 2 tasks done")
    assert answers_in(term.project) == ["Vienna", "Brussels"]
    for words in ("approved", "answered: English", "refused: by a person"):
        assert term.said(words)
    assert "localhost" in said, "what was approved was read"


def test_real_demo(bare: World, opencode: str) -> None:
    """README, "Try it": it works a plan and removes what it made."""
    program = bare.folder / "bin" / "opencode"
    program.parent.mkdir()
    program.symlink_to(opencode)
    demo = str(EXAMPLES / "demo.py")
    argv = [sys.executable, demo, "--plain", "--tasks", "2", "--delay", "0"]
    path = f"{program.parent}{os.pathsep}{bare.env['PATH']}"
    end = "the plan is complete (exit status 0), 2 of 2 tasks are done"
    expect(bare.execute(bare.project(), argv, PATH=path), 0, end)
    assert not list((bare.folder / "tmp").glob("ocloop-demo-*")), "the folder is removed"


def test_real_faults_in_one_night(bare: World, server: RealServer) -> None:
    """README: whatever goes wrong at night has an end, and the end is the right one.

    In the plan's order: an answer that is cut off, a subagent, todos and a question in task 1; a
    permission in task 2, which is blocked; 429, 429, 500 and a reset in task 3; answers without a
    finish reason in task 4; an overflow later."""
    first = "length,subagent,todo,ask,ok*5,outside,block,ok,429*2,ok,500,ok,cut"
    faults = f"{first},ok*3,unknown!,ok*5,overflow"
    with ScriptedModel(faults) as model:
        child = bare.real(model=model, server=server, tasks=6).finish(3, timeout=150)
        told = json.dumps(model.requests)
    had = "length subagent todo outside ask block 429 500 cut unknown overflow"
    assert set(had.split()) <= set(model.given)
    assert child.boxes() == "xbxxxx"
    assert set(answers_in(child.project)) >= {"Vienna", "Copenhagen"}
    outcomes = {"cut": 1, "failed": 1, "blocked": 1, "done": 5}
    assert collections.Counter(child.outcomes()) == outcomes
    kinds = {record["kind"] for record in child.records()}
    tools = {"task", "todowrite", "bash", "read", "write", "edit"}
    assert {*tools, "ask", "retry", "text", "iter", "end"} <= kinds
    for words in (
        *("external_directory", "In which language", "nobody is there to answer"),
        *("attempt 1 failed", "attempt 2 failed", "spins: 3 ", "the session was compacted"),
        "its answer was cut off at the model's output limit",
    ):
        assert child.said(words), words
    assert "Nobody is there to answer" in told
    assert "The last session did not come to its end" in told and "undo" not in told
    commands = [record["text"] for record in child.records(kind="bash")]
    assert any("from the subagent" in command for command in commands)
    said = child.output
    assert "blocked: Write the capital of Belgium" in said and "but for 1 blocked task" in said
    (blocked,) = child.records(record="iteration", outcome="blocked")
    assert blocked["refused"] == {"external_directory": 1}
    status = bare.say(child.project, "status", status=3)
    assert re.search("to do     allow .*external_directory.* in opencode.json, or", status), status
    assert "to do     unblock: " in status


def test_real_auto(bare: World, server: RealServer) -> None:
    """README: --auto approves what is not denied, in a subagent's session too, but no circle."""
    asks = {}
    for script in ("outside,subagent-outside", "doom"):
        with ScriptedModel(script) as model:
            child = bare.real("--auto", model=model, server=server, tasks=1)
            expect(child, 0, boxes="x")
            asks[script] = [record["text"] for record in child.records(kind="ask")]
            assert script == "doom" or "localhost" in json.dumps(model.requests)
    usual, doom = asks.values()
    assert sum("approved (--auto)" in text for text in usual) >= 2
    assert not any("refused" in text for text in usual)
    at = next(number for number, text in enumerate(doom) if "doom_loop" in text)
    assert doom[at + 1].startswith("refused")


def test_real_mistakes(bare: World, server: RealServer) -> None:
    """README: wrong model, agent, key or configuration: stops at once and says what to do."""
    with ScriptedModel("401*") as model, ScriptedModel() as unused:
        broken = quiz(bare, 1)
        (broken / "opencode.json").write_text('{"model": "scripted/quiz",\n', "utf-8")
        denied = bare.real(model=model, server=server, tasks=1)
        for words, project, *said in (
            ("-m scripted/quizz", None, "scripted/quizz", "did you mean scripted/quiz?"),
            ("-m script/quiz", None, "script/quiz", "did you mean scripted/quiz?"),
            ("-a biuld", None, "no agent biuld", "there are build"),
            ("", broken, "opencode.json", "mend it"),
        ):
            how: Json = {"model": unused, "server": server, "tasks": 1, "project": project}
            expect(bare.real(*words.split(), **how), 1, "!Traceback", *said, outcomes="")
        expect(denied, 1, "opencode auth login", outcomes="failed")
        assert unused.requests == [] and len(model.given) == 1


# What the model does; the options; status, what is said, how iterations end; at most so many
# requests.
# fmt: off
RealCase = tuple[str, list[str], int, str, str, int]
REAL_ENDS: list[RealCase] = [
    ("hang", ["--iteration-timeout", "50s"], 0, "took longer than 50s", "stalled, done", 30),
    ("ok,hang", ["--stall-timeout", "50s"], 0, "nothing happened for 50s", "stalled, done", 30),
    ("nothing*", ["--stuck", "2"],
     3, "3 iterations in a row", "nothing settled, nothing settled, nothing settled", 30),
    ("complete-early", [], 3, "complete but for 2 pending tasks", "progress", 30),
    ("ok,delete-plan", [], 1, "PLAN.md cannot be read", "nothing settled", 30),
]
REAL_CIRCLES: list[RealCase] = [
    ("small,nothing*", ["--retries", "1"],
     1, "the model's context limit is too small for this task", "failed, failed", 30),
    ("turns:2*", ["--retries", "1"],
     1, "20 times in a row the same calls, the last one bash echo turn", "failed, failed", 120),
    ("subagent-turns:1*", ["--retries", "1"],
     1, "20 times in a row the same calls, the last one bash echo turn 0", "failed, failed", 80),
]
# fmt: on


@pytest.mark.parametrize("cases", [REAL_ENDS, REAL_CIRCLES], ids=["ends", "circles"])
def test_real_models_that_lead_nowhere(
    bare: World, server: RealServer, cases: list[RealCase]
) -> None:
    """Each has its end. They run side by side."""
    models = []
    runs = []
    for script, options, *_ in cases:
        model = ScriptedModel(script.removeprefix("small,")).start()
        models.append(model)
        project = quiz(bare, 2 if "complete" in script else 1)
        config = opencode_config(model.url)
        if script.startswith("small,"):  # as a person may have configured it: full as it begins
            for each in config["provider"]["scripted"]["models"].values():
                each["limit"] = {"context": 33_000, "output": 32_000}
        (project / "opencode.json").write_text(json.dumps(config), "utf-8")
        how: Json = {"model": model, "server": server, "project": project, "patch": FILES_SOON}
        runs.append(bare.real(*options, **how))
    for (script, _, status, said, outcomes, most), model, run in zip(cases, models, runs):
        run.finish(status, timeout=300)
        expect(run, status, said, outcomes=outcomes)
        assert len(model.requests) <= most, script
        model.close()


def test_real_subagent_in_the_background(bare: World, opencode1: str) -> None:
    """README: an iteration is over when the whole family rests."""
    with ScriptedModel("background:12") as model:
        env = {"OPENCODE_EXPERIMENTAL_BACKGROUND_SUBAGENTS": "1"}
        child = bare.real(model=model, opencode=opencode1, tasks=1, **env).finish(0, timeout=120)
    (iteration,) = child.records(record="iteration")
    assert iteration["seconds"] >= 12
    assert [record["text"] for record in child.records(kind="text")].count("It has ended.") == 1


def test_real_data_base_that_somebody_holds(bare: World, opencode1: str) -> None:
    """README: it is tried again for two minutes."""
    with ScriptedModel() as model:
        bare.real(model=model, opencode=opencode1, tasks=1).finish(0, timeout=120)
        (path,) = Path(bare.env["XDG_DATA_HOME"], "opencode").glob("*.db")
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        child = bare.real(model=model, opencode=opencode1, tasks=1)
        time.sleep(40)
        assert child.outcomes() == [] and child.process.poll() is None
        holder.close()
        child.finish(0, timeout=120)


def test_real_waits(bare: World, server: RealServer) -> None:
    """README: OpenCode retries by itself; where it would wait for long, ocloop does."""
    with ScriptedModel("429:3600") as model:
        parked = bare.real(model=model, server=server, tasks=1)
        gone = ScriptedModel().start()
        gone.close()
        child = bare.real(model=gone, server=server, tasks=1)
        child.wait_said("attempt 1 failed")
        port = int(gone.url.split(":")[2].partition("/")[0])
        with ScriptedModel(port=port):
            expect(child, 0, boxes="x", outcomes="done")
        parked.wait_said("OpenCode would wait (59m|1h)")
        parked.wait_said("trying again in (59m|1h)")
        parked.stop(signal.SIGTERM)
        assert parked.outcomes() == ["rate-limited"]
        assert len(model.given) == 1


@pytest.mark.parametrize(
    ("version", "cases"),
    [("1.2.27", ("plain", "permission", "429", "killed")), ("1.18.33", ("plain",))],
)
def test_real_old_and_new_versions(version: str, cases: tuple[str, ...]) -> None:
    """README, platforms: 1.2 and newer; `examples/lab/versions.py` tries more of them."""
    assert try_version(version, cases) == dict.fromkeys(cases, "well")


def test_real_many_at_once(bare: World, opencode: str) -> None:
    """README: examples/many.sh: a worktree, a branch and a loop of its own for each plan, at most N
    side by side, a table at the end, and what is not complete is kept."""
    top = bare.project(prompt=harness.quiz_prompt())
    (top / "plans").mkdir()
    names = ("one", "two", "three")
    plans = {
        name: f"- [ ] Write the capital of Austria into answers/{name}.txt\n" for name in names
    }
    plans["early"] = "- [ ] A\n<plan-complete>x</plan-complete>\n"
    for name, text in plans.items():
        (top / "plans" / f"{name}.md").write_text(text, "utf-8")
    with ScriptedModel() as model:
        (top / "opencode.json").write_text(json.dumps(opencode_config(model.url)), "utf-8")
        git = commit_all(bare, top)
        argv = ["sh", str(EXAMPLES / "many.sh"), "-j", "2", "plans", "--opencode", opencode]
        child = bare.execute(top, argv, **AUTHOR).finish(1, timeout=300)
    kept = Path(f"{top}.many")
    assert re.search(r"early +3 +0/1", child.output) and (kept / "early").exists()
    for name in names:
        assert re.search(rf"{name} +0 +1/1", child.output), child.output
        shown = [*git, "show", f"ocloop/{name}:plans/{name}.md"]
        assert b"- [x]" in subprocess.check_output(shown, env=bare.env)
        assert not (kept / name).exists()


def test_real_stopped_in_a_tool(bare: World, opencode: str) -> None:
    """README: session, server and its tools are ended. OpenCode starts a tool in a session of its
    own."""
    with ScriptedModel(["bash:sleep 1000"] * 4) as model:
        how: Json = {"model": model, "opencode": opencode, "tasks": 1}
        term = bare.real_terminal("--run", **how)
        others = [bare.real("--run", **how) for _ in range(3)]
        for run in (term, *others):
            run.wait_process("sleep 1000", timeout=150)  # four servers start at once
        term.quit()
        for run, number in zip(others, (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)):
            run.stop(number)
        term.finish(130, timeout=20)


# ── the harness itself ────────────────────────────────────────────────────────────────────────────


def test_the_screen_is_read_as_a_terminal_shows_it() -> None:
    """What the tests see on a screen is what a person would see."""
    screen = harness.Screen(10, 3)
    screen.feed("ab\r\n\x1b[1;32mcd\x1b[m\x1b[3;1H語e".encode())
    assert screen.rows() == ["ab", "cd", "語e"]
    style = screen.grid[1][0].style
    assert style.bold and style.colour == 2
    screen.feed(b"\r\n\x1b[?1049")
    assert screen.rows() == ["cd", "語e", ""], "the last line scrolls, half a sequence waits"
    screen.feed(b"h\x1b[2;3Hx\x1b[4b\x1b[2D\x1b[K")
    assert screen.alternate and screen.rows() == ["", "  xxx", ""]


def test_nothing_that_is_started_here_is_missed(bare: World) -> None:
    """What leaves its group and its session still carries the mark, and is found and ended."""
    child = bare.execute(bare.folder, ["/bin/sh", "-c", "setsid sleep 1000 & exit 0"])
    with pytest.raises(AssertionError, match="left behind: .*sleep 1000"):
        child.finish(0, patience=0.2)
    until(lambda: not marked(child.mark), "its end", 5)


def test_no_test_is_lost_when_they_run_side_by_side(bare: World) -> None:
    """Also one that takes its process down has failed, and what failed or was skipped is named."""
    (bare.folder / "test_few.py").write_text(
        "import os, pytest\n"
        "def test_gone(): os._exit(0)\n"
        "def test_well(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_not_here(): pytest.skip('there is no such thing')\n"
    )
    code = "import sys, sidebyside; sys.exit(sidebyside.main('test_few.py', sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(ROOT), *sys.path])
    child = bare.execute(bare.folder, argv, PYTHONPATH=path).finish(1)
    assert child.output.splitlines()[-1] == "1 passed, 2 failed, 1 skipped"
    for part in ("::test_gone\nIts worker", "assert 1 == 2", "::test_not_here: Skipped: there"):
        assert part in child.output
    nothing = bare.execute(bare.folder, [*argv, "-k", "nobody"], PYTHONPATH=path).finish(1)
    assert "there is no such test\n0 passed, 0 failed, 0 skipped" in nothing.output


if __name__ == "__main__":
    if sys.argv[1:] == ["--screens"]:
        write_golden_screens()
    else:
        sys.exit(sidebyside.main(__file__, sys.argv[1:]))
