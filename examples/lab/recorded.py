"""What OpenCode says, as recorded with 1.18.33 and 2.0.20, cut down to what matters.

Ids and times are shortened. What ends in `_2` is of the second generation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # ocloop is there

from wire import Said, a_dialect

import ocloop
from ocloop import (
    Activity,
    Alive,
    Answered,
    Ask,
    Broke,
    Child,
    Delta,
    Edited,
    Fault,
    Message,
    OpenCode2,
    Options,
    Part,
    Polled,
    Prompt,
    Question,
    Spend,
)

Json = dict[str, Any]

# ── 1: events ─────────────────────────────────────────────────────────────────────────────────────

UNAUTHORIZED = {"name": "APIError", "data": {"message": "no key", "statusCode": 401}}
ABORTED = {"name": "MessageAbortedError", "data": {"message": "Aborted"}}
OVERFLOW = {"name": "ContextOverflowError", "data": {"message": "too long"}}
TOKENS = {"input": 10, "output": 5, "reasoning": 1, "cache": {"read": 4, "write": 0}}


def event(type: str, /, **properties: Any) -> Json:
    return {"type": type, "properties": properties}


def part_event(**part: Any) -> Json:
    given = {"id": "prt_1", "messageID": "msg_1", "sessionID": "ses_1", **part}
    return event("message.part.updated", part=given)


def tool_event(tool: str, **state: Any) -> Json:
    return part_event(type="tool", tool=tool, state=state)


def message_event(**info: Any) -> Json:
    given = {"id": "msg_1", "sessionID": "ses_1", "role": "assistant", "parentID": "msg_0", **info}
    return event("message.updated", info=given)


# ── 1: messages ───────────────────────────────────────────────────────────────────────────────────


def user(id: str, *parts: Json) -> Json:
    return {
        "info": {"id": id, "role": "user", "time": {"created": 1}},
        "parts": list(parts) or [{"type": "text", "text": "Do it"}],
    }


def assistant(parent: str, finish: str = "", error: Any = None, completed: bool = True) -> Json:
    info: Json = {"id": "msg_a", "role": "assistant", "parentID": parent, "time": {"created": 1}}
    info["time"].update({"completed": 2} if completed else {})
    info.update({"finish": finish} if finish else {})
    info.update({"error": error} if error else {})
    return {"info": info, "parts": []}


def wrapped(message: str) -> Json:
    return {"name": "UnknownError", "data": {"message": message}}


def api_error(code: Any, **data: Any) -> Json:
    return {"name": "APIError", "data": {"message": "it failed", "statusCode": code, **data}}


def provider(**models: Any) -> Json:
    return {"id": "acme", "models": models}


COMPACTION = user("msg_c", {"type": "compaction", "auto": True})
GO_ON = user(
    "msg_g", {"type": "text", "synthetic": True, "text": "Continue if you have next steps"}
)

# ── 1: how a session stands ───────────────────────────────────────────────────────────────────────

PROMPT = Prompt("Do it", "ocloop 1/2: it", "acme/large/v2", "build", "msg_0", "prt_0")
CHILD_1 = {"id": "ses_2", "parentID": "ses_1", "cost": 0.25, "tokens": {"input": 1}}
ANSWERED = [user("msg_0"), assistant("msg_0", "stop")]
ASKED_1 = {"id": "per_1", "sessionID": "ses_1", "permission": "bash", "patterns": ["ls"]}
ASKED_2 = {"id": "que_1", "sessionID": "ses_1", "questions": [{"question": "Which?"}]}
REQUEST_1 = Ask("per_1", "ses_1", "permission", "bash", "ls")
REQUEST_2 = Ask("que_1", "ses_1", "question", "", "Which?", (Question("Which?"),))


def whole_server(**more: Any) -> Json:
    """What a server says of a session that works and has a subagent."""
    return {
        "GET /session/status": {"ses_1": {"type": "busy"}},
        "GET /session/ses_1/message": ANSWERED,
        "GET /session/ses_1": {"id": "ses_1", "cost": 0.5, "tokens": TOKENS},
        "GET /session/ses_1/children": [CHILD_1],
        "GET /session/ses_2/children": [],
        "GET /permission": [ASKED_1],
        "GET /question": [ASKED_2],
        **more,
    }


def polled(says: Json, closer: bool = False) -> Polled:
    return a_dialect(Said(says)).poll("ses_1", PROMPT, closer)


# ── 2: messages ───────────────────────────────────────────────────────────────────────────────────

FIRST = "msg_0123456789abseedseed000700"
SECOND = "msg_0123456789abseedseed000701"
THIRD = "msg_0123456789abseedseed000702"
PROMPT_2 = Prompt("Do it", "ocloop 1/1: it", message_id=FIRST, part_id="prt_1")
ZERO = {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}}
USED = {"input": 600, "output": 40, "reasoning": 10, "cache": {"read": 400, "write": 0}}
SPENT_2 = Spend(0.5, 600, 50, 400)
SYNTHETIC = {"id": "msg_9", "time": {"created": 40}, "text": "It ended.", "type": "synthetic"}
INTERRUPTED = {"type": "aborted", "message": "Step interrupted"}
NOT_NOW = {"type": "permission.rejected", "message": "not now"}
AUTH = {
    "type": "provider.auth",
    "message": "Invalid API key provided",
    "status": 200,
    "response": {"body": '{"error":{"message":"Invalid API key provided","code":401}}'},
}


def dialect_2(says: Json, **options: Any) -> tuple[OpenCode2, Said]:
    client = Said(says)
    return OpenCode2(client, Options(directory="/w", **options)), client


def user_2(id: str) -> Json:
    return {"id": id, "time": {"created": 5}, "text": "Do it", "type": "user"}


def step(finish: str = "", **more: Any) -> Json:
    times: Json = {"created": 6, "streamed": 19}
    found: Json = {"id": "msg_2", "type": "assistant", "agent": "build", "content": []}
    if finish:
        times["completed"] = 23
        found.update(finish=finish, cost=0, tokens=ZERO)
    found.update(model={"id": "m1", "providerID": "sim"}, time=times)
    return {**found, **more}


def idle(outcome: str, **more: Any) -> Json:
    return {"id": "msg_4", "time": {"created": 34}, "type": "idle", "outcome": outcome, **more}


def tool(error: Json | None = None) -> Json:
    state: Json = {"status": "completed", "input": {}, "content": [], "metadata": {}}
    if error:
        state = {"status": "error", "input": {}, "error": error}
    return {"type": "tool", "id": "call_1", "name": "question", "executed": False, "state": state}


def saying(message: str) -> Json:
    return tool({"type": "aborted", "message": message})


# ── 2: a server ───────────────────────────────────────────────────────────────────────────────────


def stand_in(messages: list[Json], **more: Any) -> Json:
    """A server with one session, its messages oldest first."""
    session: Json = {"id": "ses_A", "cost": 0.5, "tokens": USED, "location": {"directory": "/w"}}
    session.update(more.pop("session", {}))
    return {
        "GET /api/session/ses_A": {"data": session},
        "GET /api/session": {"data": more.pop("children", []), "cursor": {}},
        "GET /api/session/active": more.pop("active", {"data": {}}),
        "GET /api/session/ses_A/message": pages(messages),
        "GET /api/permission/request": {"data": more.pop("permissions", [])},
        "GET /api/form": {"data": more.pop("forms", [])},
        **more,
    }


def pages(messages: list[Json]) -> Callable[[str], Json]:
    """The message list, newest first, which names a next page even on its last one."""

    def answer(path: str) -> Json:
        query = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
        at = int(query.get("cursor", 0))
        size = int(query["limit"])
        page = messages[::-1][at : at + size]
        return {"data": page, "cursor": {"previous": "0", "next": str(at + size)}}

    return answer


def look(says: Json, attempt: int = 0, closer: bool = False, **options: Any) -> Polled:
    """How the session stands, as the run comes to know it: rest has to be seen twice."""
    made, _ = dialect_2(says, **options)
    prompt = PROMPT_2._replace(attempt=attempt)
    polled = made.poll("ses_A", prompt, closer)
    return made.poll("ses_A", prompt, closer) if polled.is_unsure else polled


def model_2(name: str, **more: Any) -> Json:
    provider, _, id = name.partition("/")
    found = {"id": id, "modelID": id, "providerID": provider, "cost": []}
    return {**found, "limit": {"context": 200000}, "variants": [{"id": "low"}], **more}


def agent_2(name: str, **more: Any) -> Json:
    return {"id": name, "name": name.title(), "mode": "primary", "hidden": False, **more}


AGENTS_2 = [
    agent_2("build"),
    agent_2("mine", model={"providerID": "sim", "id": "m2"}),
    agent_2("title", hidden=True),
]


def document(**info: Any) -> Json:
    return {"type": "document", "info": info}


def catalogue(models: Any, agents: Any, *documents: Json) -> Json:
    return {
        "GET /api/config": [{"type": "directory", "path": "/home/overlay"}, *documents],
        "GET /api/model": {"location": {"directory": "/w"}, "data": models},
        "GET /api/agent": {"location": {"directory": "/w"}, "data": agents},
    }


def child_2(id: str, parent: str, **more: Any) -> Json:
    return {"id": id, "parentID": parent, "cost": 0.25, "tokens": USED, **more}


def told(type: str, data: Any, at: int = 1_000, **more: Any) -> Json:
    return {"id": "evt_1", "created": at, "type": type, "data": data, **more}


# ── 2: what is asked ──────────────────────────────────────────────────────────────────────────────

# fmt: off
HERE = {"sessionID": "ses_A"}
IN_A = {**HERE, "assistantMessageID": "msg_2"}
PERMISSION: Json = {
    "id": "per_1", "sessionID": "ses_A", "action": "edit", "resources": ["notes.txt"],
    "metadata": {"files": [{"file": "notes.txt", "patch": "", "additions": 2, "deletions": 0}]},
    "save": ["*"], "source": {"type": "tool", "messageID": "msg_2", "id": "call_s06_write"},
}  # fmt: skip
FORM: Json = {
    "id": "frm_1",
    "sessionID": "ses_A",
    "title": "Questions",
    "metadata": {"kind": "question", "tool": {"messageID": "msg_2", "id": "call_s05"}},
    "fields": [
        {"key": "q0", "title": "Color", "description": "Pick a color?", "type": "string",
         "options": [{"value": "r", "label": "Red", "description": "warm"},
                     {"value": "b", "label": "Blue"}], "custom": True},
        {"key": "q1", "title": "Sizes", "description": "Pick sizes?", "type": "multiselect",
         "options": [{"value": "S", "label": "S"}, {"value": "M", "label": "M"}], "custom": True},
    ],
}
# fmt: on


# ── 1: what events mean ───────────────────────────────────────────────────────────────────────────

SPENT = Spend(0.5, 10, 6, 4)
LISTING = ocloop.call_id("bash", {"command": "ls"})


def said_part(kind: str, state: str, **more: Any) -> Part:
    return Part("ses_1", "prt_1", kind, state, **more)


# fmt: off
DECODED: list[tuple[Json, list[Any]]] = [
    (event("session.created", info={"id": "ses_2", "parentID": "ses_1"}),
     [Child("ses_1", "ses_2")]),
    (event("session.created", info={"id": "ses_2"}), [Child("", "ses_2")]),
    (event("session.updated", info={"id": "ses_2"}), [Alive("ses_2")]),
    (event("session.idle", sessionID="ses_1"), [Activity("ses_1", "idle")]),
    (event("session.status", sessionID="ses_1", status={"type": "busy"}),
     [Activity("ses_1", "working")]),
    (event("session.status", sessionID="ses_1", status={"type": "idle"}),
     [Activity("ses_1", "idle")]),
    (event("session.status", sessionID="ses_1", status={"type": "news"}), [Alive("ses_1")]),
    (event("session.error", sessionID="ses_1", error=UNAUTHORIZED),
     [Broke("ses_1", Fault("auth", "no key"))]),
    (event("session.error", sessionID="ses_1"), [Alive("ses_1")]),
    (event("session.error", error=UNAUTHORIZED), []),
    (event("session.compacted", sessionID="ses_1"), [Activity("ses_1", "compacted")]),
    (event("file.edited", file="/project/PLAN.md"), [Edited("/project/PLAN.md")]),
    (event("message.part.delta", sessionID="ses_1", partID="prt_1", delta="The"),
     [Delta("ses_1", "prt_1", "The")]),
    *[(event(kind, sessionID="ses_1", requestID="que_1", **more),
       [Answered("ses_1", "que_1", is_refused)])
      for kind, more, is_refused in (
        ("permission.replied", {"reply": "once"}, False), ("question.replied", {}, False),
        ("permission.replied", {"reply": "reject"}, True), ("question.rejected", {}, True))],
    (event("permission.asked", sessionID="ses_1", id="per_1", permission="bash", patterns=["rm *"],
     metadata={"command": "rm -r x"}),
     [Ask("per_1", "ses_1", "permission", "bash", "rm *, rm -r x")]),
    (event("question.asked", sessionID="ses_1", id="que_1", questions=[
     {"question": "Which?", "options": [{"label": "red", "description": "warm"}, {"label": "b"}]}]),
     [Ask("que_1", "ses_1", "question", "", "Which?", (
     Question("Which?", (("red", "warm"), ("b", ""))),))]),
    *[(event(kind, sessionID="ses_1"), [Alive("ses_1")]) for kind in (
      "session.status", "permission.asked", "question.asked", "todo.updated", "never.heard.of")],
    (message_event(), [Message("ses_1", "msg_1", Spend(), parent="msg_0")]),
    (message_event(cost=0.5, tokens=TOKENS, providerID="a", modelID="b/c", agent="build",
     finish="stop", time={"completed": 2}),
     [Message("ses_1", "msg_1", SPENT, "a/b/c", "build", "msg_0", "answered", True)]),
    (message_event(agent="plan", finish="stop"),
     [Message("ses_1", "msg_1", Spend(), agent="plan", parent="msg_0")]),
    *[(message_event(finish=finish, time={"completed": 2}, **more),
       [Message("ses_1", "msg_1", Spend(), parent="msg_0", ended=ended, is_over=True)])
      for finish, ended, more in (("tool-calls", "calls", {}), ("unknown", "nowhere", {}),
                                  ("stop", "", {"summary": True}))],
    (part_event(type="text", text="I be"), [said_part("text", "running", text="I be")]),
    (part_event(type="text", text="I begin.", time={"start": 1, "end": 2}),
     [said_part("text", "done", text="I begin.")]),
    (part_event(type="text", text="Continue", synthetic=True, time={"end": 2}),
     [Alive("ses_1")]),
    (part_event(type="reasoning", text="Hm"), [said_part("think", "running", text="Hm")]),
    (part_event(type="step-start"), [Alive("ses_1")]),
    (tool_event("bash", status="pending", input={}), [said_part("tool", "running", tool="bash")]),
    (tool_event("lsp", status="running", input={"line": 3}, title="parser.py:3"),
     [said_part("tool", "running", tool="lsp", argument="parser.py:3")]),
    (tool_event("bash", status="completed", input={"command": "ls"}, time={"start": 0,
     "end": 1500}),
     [said_part("tool", "done", tool="bash", argument="ls", call=LISTING)]),
    (tool_event("bash", status="error", input={"command": "ls"}, error="exit status 2"),
     [said_part("tool", "failed", tool="bash", argument="ls", call=LISTING, text="exit status 2")]),
    (tool_event("edit", status="running", input={"filePath": "/project/a"},
     metadata={"filediff": {"additions": 3, "deletions": 1}}),
     [said_part("tool", "running", tool="edit", argument="a  +3 -1")]),
    (event("server.connected"), []), ({"type": "session.idle"}, []), ({}, []),
    ({"type": None, "properties": None}, []),
]
# fmt: on

# ── 2: what messages mean ─────────────────────────────────────────────────────────────────────────

NO_KEY = Fault("auth", "Invalid API key provided")
STOP = step("stop")
CALLS = step("tool-calls")
CUT = step("error", error=INTERRUPTED)
DONE_2 = idle("succeeded")
STOPPED = idle("interrupted")
CUT_BY = ("cut", ocloop.INTERRUPTED)

# The messages after our own prompt, how its answer stands, and why it failed.
# fmt: off
FILTERED = Fault("provider", "the provider's content filter ended it")
VERDICTS_2: dict[str, tuple[list[Json], str, Fault | None]] = {
    "answered": ([CALLS, STOP, DONE_2], "answered", None),
    "filtered": ([step("content-filter"), DONE_2], "failed", FILTERED),
    "too long": ([step("length"), DONE_2], "failed", Fault("length", ocloop.CUT_OFF)),
    "no idle": ([STOP], "answered", None),
    "many idles": ([STOP, DONE_2, DONE_2], "answered", None),
    "an error that was overcome": ([step("error", error=AUTH), STOP], "answered", None),
    "a provider's error": ([step("error", error=AUTH), idle("failed")], "failed", NO_KEY),
    "why stands with the end": ([CALLS, idle("failed", error=AUTH)], "failed", NO_KEY),
    "nobody says why": ([step("error"), idle("failed")], "failed", None),
    "failed before the first step": ([idle("failed")], "failed", None),
    "so, and why": ([idle("failed", error=AUTH)], "failed", NO_KEY),
    "aborted": ([CUT, STOPPED], *CUT_BY),
    "aborted before the first step": ([STOPPED], *CUT_BY),
    "aborted in a tool": ([CALLS, STOPPED], *CUT_BY),
    "aborted, and nobody tells the end": ([CUT], *CUT_BY),
    "cut, without a word": ([CALLS], "cut", None),
    "cut by a stream's end": ([step("unknown")], "cut", None),
    "settled by a later prompt": ([step("", time={"completed": 1})], "cut", None),
    "dismissed": ([{**CUT, "content": [saying("The user dismissed this question")]}],
                  "refused", None),
    "declined": ([{**CUT, "content": [saying("The user declined this tool call")]}],
                 "refused", None),
    "rejected": ([{**CUT, "content": [tool(NOT_NOW)]}], "refused", None),
    "a refusal, then an abort": ([{**CUT, "content": [tool(NOT_NOW)]}, STOPPED], *CUT_BY),
    "refused, and on": ([step("tool-calls", content=[tool(NOT_NOW)]), STOP], "answered", None),
    "its server died": ([step(content=[tool()])], "unfinished", None),
    "and the same id again": ([step(), DONE_2], "unfinished", None),
    "nothing yet": ([], "unfinished", None),
    "nothing ran": ([DONE_2], "nothing-ran", None),
    "it woke": ([STOP, DONE_2, SYNTHETIC, STOP], "answered", None),
    "a stream that went on": ([step("unknown"), SYNTHETIC, STOP], "answered", None),
    "steered": ([CALLS, user_2("msg_p"), STOP], "answered", None),
    "delivered with another": ([user_2("msg_p"), STOP], "answered", None),
    "a person goes on": ([CALLS, STOPPED, user_2("msg_p"), STOP, DONE_2], "answered", None),
    "garbage": ([{"type": "assistant", "time": 7, "content": 7, "error": []}], "unfinished", None),
}
# fmt: on

# ── 2: what events mean ───────────────────────────────────────────────────────────────────────────

QUESTIONS = (
    Question("Pick a color?", (("Red", "warm"), ("Blue", ""))),
    Question("Pick sizes?", (("S", ""), ("M", ""))),
)
LASTS = "*, in this project from now on"
ASKED_PERMISSION = Ask("per_1", "ses_A", "permission", "edit", "notes.txt  +2 -0", always=LASTS)
ASKED_FORM = Ask("frm_1", "ses_A", "question", "", "Pick a color? / Pick sizes?", QUESTIONS)
ALIVE_A = Alive("ses_A")
THOUGHT = ("ses_A", "msg_2 think 0", "think")
TEXT_2 = ("ses_A", "msg_2 text 0", "text")
SHELL = ("ses_A", "msg_2 tool call_1", "tool")
LISTED = ocloop.call_id("shell", {"command": "ls -l"})
BY = {"agent": "build", "model": {"id": "m1", "providerID": "sim", "variant": "high"}}
WORK = Activity("ses_A", "working")
SPENT_0 = Message("ses_A", "msg_2", Spend(), is_over=True)
BROKE = Broke("ses_A", NO_KEY)
IDLE_A = Activity("ses_A", "idle")
WAITS_4 = Activity("ses_A", "retrying", 1, 4.0, "slow down")
SLOW_DOWN = {"type": "provider.rate-limit", "message": "slow down", "status": 200}
GIT_PUSH = {**PERMISSION, "action": "shell", "resources": ["git push"],
            "metadata": {"command": "git push origin"}}  # fmt: skip
DOOM = ASKED_PERMISSION._replace(title="doom_loop", is_circle=True)

# fmt: off
# A turn with a tool. A thought ends after what follows it has begun.
TURN: list[tuple[str, Json, int, list[Any]]] = [
    ("created", {"location": {"directory": "/w"}, "title": "T"}, 1000, [Child("", "ses_A")]),
    ("inbox.enqueued", {"inboxID": FIRST, "item": {"type": "user"}}, 1000, [ALIVE_A]),
    ("execution.started", {}, 1000, [WORK]),
    ("instructions.updated", {"delta": {}}, 1000, [ALIVE_A]),
    ("inbox.delivered", {"inboxID": FIRST}, 1000, [ALIVE_A]),
    ("step.started", BY, 1000,
     [WORK, Message("ses_A", "msg_2", Spend(), model="sim/m1", agent="build")]),
    ("reasoning.started", {"ordinal": 0, "state": {}}, 1000, [Part(*THOUGHT, "running")]),
    ("reasoning.delta", {"ordinal": 0, "delta": "Let me "}, 1000,
     [Delta("ses_A", "msg_2 think 0", "Let me ")]),
    ("text.started", {"ordinal": 0}, 1000, [Part(*TEXT_2, "running")]),
    ("text.delta", {"ordinal": 0, "delta": "I will"}, 1000,
     [Delta("ses_A", "msg_2 text 0", "I will")]),
    ("tool.input.started", {"id": "call_1", "name": "shell"}, 1000,
     [Part(*SHELL, "running", tool="shell")]),
    ("reasoning.ended", {"ordinal": 0, "text": "Let me think."}, 1000,
     [Part(*THOUGHT, "done", text="Let me think.")]),
    ("tool.input.ended", {"id": "call_1", "text": "{}"}, 1000,
     [Part(*SHELL, "running", tool="shell")]),
    ("tool.called", {"id": "call_1", "input": {"command": "ls -l"}}, 2000,
     [Part(*SHELL, "running", tool="shell", argument="ls -l", call=LISTED)]),
    ("text.ended", {"ordinal": 0, "text": "I will probe."}, 2000,
     [Part(*TEXT_2, "done", text="I will probe.")]),
    ("step.streamed", {}, 2000, [ALIVE_A]),
    ("tool.progress", {"id": "call_1", "metadata": {}}, 2000,
     [Part(*SHELL, "running", tool="shell", argument="ls -l", call=LISTED)]),
    ("tool.success", {"id": "call_1", "content": []}, 4500,
     [Part(*SHELL, "done", tool="shell", argument="ls -l", call=LISTED)]),
    ("step.ended", {"finish": "tool-calls", "cost": 0.5, "tokens": USED}, 4500,
     [Message("ses_A", "msg_2", SPENT_2, ended="calls", is_over=True)]),
    ("usage.updated", {"cost": 0.5, "tokens": USED}, 4500, [ALIVE_A]),
    ("execution.succeeded", {}, 4500, [Activity("ses_A", "idle")]),
]
# Single events.
DECODED_2: list[tuple[str, Json, list[Any]]] = [
    ("session.created", {"sessionID": "ses_B", "parentID": "ses_A"}, [Child("ses_A", "ses_B")]),
    ("session.execution.failed", {"error": AUTH}, [BROKE, IDLE_A]),
    ("session.execution.interrupted", {"reason": "user"}, [IDLE_A]),
    ("session.execution.settled", {}, [IDLE_A]),
    ("session.step.failed", {"error": AUTH}, [SPENT_0, BROKE]),
    ("session.step.failed", {"error": INTERRUPTED, "cost": 0.5, "tokens": USED},
     [Message("ses_A", "msg_2", SPENT_2, is_over=True),
      Broke("ses_A", Fault("aborted", "Step interrupted"))]),
    ("session.step.ended", {"finish": "stop"}, [SPENT_0._replace(ended="answered")]),
    ("session.step.ended", {"finish": "length"}, [SPENT_0._replace(ended="answered")]),
    ("session.step.ended", {"finish": "unknown"}, [SPENT_0._replace(ended="nowhere")]),
    ("session.retry.scheduled", {"attempt": 2, "at": 1004_000, "error": SLOW_DOWN}, [WAITS_4]),
    ("session.compaction.started", {"reason": "auto"}, [Alive("ses_A")]),
    ("session.compaction.delta", {"text": "…"}, [Alive("ses_A")]),
    ("session.compaction.ended", {"reason": "auto", "text": "…"}, [Activity("ses_A", "compacted")]),
    ("session.inbox.enqueued", {"item": {"type": "synthetic"}}, [Activity("ses_A", "woke")]),
    ("session.inbox.enqueued", {"item": {"type": "user"}}, [Alive("ses_A")]),
    # The end of a tool of which nobody knows the beginning, as after a crash.
    ("session.tool.success", {"id": "c", "content": []}, [Alive("ses_A")]),
    ("session.tool.failed", {"id": "c", "error": NOT_NOW}, [Alive("ses_A")]),
    ("permission.asked", PERMISSION, [ASKED_PERMISSION]),
    ("permission.asked", {**PERMISSION, "action": "doom_loop"}, [DOOM]),
    ("permission.asked", GIT_PUSH,
     [ASKED_PERMISSION._replace(title="shell", detail="git push origin")]),
    ("permission.replied", {"requestID": "per_1"}, [Answered("ses_A", "per_1")]),
    ("form.created", {"form": FORM}, [ASKED_FORM]),
    ("form.replied", {"id": "frm_1"}, [Answered("ses_A", "frm_1")]),
    ("form.cancelled", {"id": "frm_1"}, [Answered("ses_A", "frm_1", True)]),
    ("filesystem.changed", {"file": "/x/a.txt", "event": "change"}, [Edited("/x/a.txt")]),
    ("filesystem.changed", {"file": "a.txt", "event": "change"}, [Edited("/w/a.txt")]),
    ("session.of.tomorrow", {"title": "T"}, [Alive("ses_A")]),
]
# fmt: on

# ── 1: what messages and errors mean ──────────────────────────────────────────────────────────────

ASKED = user("msg_1")
TYPED = user("msg_2")
STOPPED_1 = assistant("msg_1", "stop")
CALLS_1 = assistant("msg_1", "tool-calls")
WORKS_1 = assistant("msg_1", completed=False)
REJECTED = {"name": "X", "data": {"message": "The user rejected permission to use this tool"}}
NO_KEY_1 = Fault("auth", "no key")
TOO_LONG_1 = Fault("length", ocloop.CUT_OFF)
STACK = "\n      at getModel (/$bunfs/root/opencode:1:2)\n    at async x (y)"

# The messages, how the answer stands, and why it failed.
# fmt: off
VERDICTS_1: list[tuple[list[Json], str, Fault | None]] = [
    ([], "undelivered", None),
    ([ASKED], "undelivered", None),
    ([ASKED, CALLS_1, STOPPED_1], "answered", None),
    ([ASKED, assistant("msg_1", "length")], "failed", TOO_LONG_1),
    ([ASKED, assistant("msg_1", "content-filter")], "failed", FILTERED),
    ([ASKED, assistant("msg_1", "of tomorrow")], "answered", None),
    ([ASKED, STOPPED_1, assistant("msg_1", "tool-calls", completed=False)], "unfinished", None),
    ([ASKED, WORKS_1], "unfinished", None),
    ([ASKED, assistant("msg_1", error=UNAUTHORIZED)], "failed", NO_KEY_1),
    ([ASKED, assistant("msg_1", error=UNAUTHORIZED), STOPPED_1], "answered", None),
    ([ASKED, assistant("msg_1", error=ABORTED)], "cut", Fault("aborted", "Aborted")),
    ([ASKED, assistant("msg_1", error=REJECTED)], "refused", None),
    ([ASKED, assistant("msg_1")], "cut", None),
    ([ASKED, assistant("msg_1", "unknown")], "cut", None),
    ([ASKED, CALLS_1], "refused", None),
    ([ASKED, STOPPED_1, TYPED, assistant("msg_2", error=UNAUTHORIZED)], "failed", NO_KEY_1),
    ([TYPED, assistant("msg_2", "stop"), ASKED], "undelivered", None),
    ([ASKED, TYPED, assistant("msg_2", "stop")], "undelivered", None),
    ([ASKED, assistant("msg_1", error=OVERFLOW), COMPACTION, assistant("msg_c", "stop"), GO_ON,
      assistant("msg_g", "tool-calls"), assistant("msg_g", "stop")], "answered", None),
    ([*[COMPACTION] * 17, assistant("msg_c", "stop"), GO_ON, assistant("msg_g", completed=False)],
     "unfinished", None),
    ([TYPED, assistant("msg_2", "stop")], "undelivered", None),
    ([{}, {"info": None}, {"info": {"role": ["x"]}}], "undelivered", None),
]
FAULTS_1: list[tuple[Any, Fault | None]] = [
    (None, None), ("text", None), ({}, None), ([], None), ({"name": ""}, None),
    (ABORTED, Fault("aborted", "Aborted")), (OVERFLOW, Fault("overflow", "too long")),
    (UNAUTHORIZED, Fault("auth", "no key")),
    *[(api_error(429, responseHeaders={"retry-after": said}),
       Fault("rate-limit", "it failed", seconds))
      for said, seconds in (
        ("120", 120.0), ("1.5", 1.5), (7, 7.0), ("", 0.0), (None, 0.0), ("soon", 0.0), ("-5", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ([], 0.0), ("nan", 0.0), ("9" * 400, 0.0),
        ("1795974000", 0.0))],
    *[(api_error(code), Fault(kind, "it failed")) for kind, codes in (
        ("rate-limit", [429]), ("outage", [529, 500, 502, 503]), ("auth", [401, 403]),
        ("balance", [402]), ("no-model", [404]), ("provider", [400, 422, 0])) for code in codes],
    (api_error(None, isRetryable=True), Fault("outage", "it failed")),
    (api_error(None, isRetryable=False), Fault("provider", "it failed")),
    (api_error(400, isRetryable=True), Fault("provider", "it failed")),
    (api_error("429"), Fault("provider", "it failed")),
    *[(wrapped(message + STACK), Fault(kind, said)) for message, kind, said in (
        ("ProviderModelNotFoundError: acme/nope", "no-model", "acme/nope"),
        ("ProviderInitError: acme", "no-model", "acme"), ("AgentNotFoundError: x", "no-agent", "x"),
        *[(message, "unknown", message) for message in (
            "TypeError: undefined is not a function",
            "the model says: ProviderAuthError: 429 unauthorized")])],
    ({"name": "X", "data": {"message": "ProviderAuthError: y"}},
     Fault("unknown", "ProviderAuthError: y")),
    ({"name": "ProviderAuthError"}, Fault("auth", "ProviderAuthError")),
    ({"name": "ProviderModelNotFoundError", "data": {"providerID": "a"}},
     Fault("no-model", "ProviderModelNotFoundError")),
    ({"name": "X", "data": "text"}, Fault("unknown", "X")),
]
# fmt: on

# ── 2: attempts and errors ────────────────────────────────────────────────────────────────────────

NO_ROUTE = {"type": "provider.no-route", "message": "Model unavailable: sim/m9"}

# All of the messages, what the session says of its newest run, which attempt is looked for.
# fmt: off
ATTEMPTS_2: list[tuple[list[Json], str, int, str, Fault | None]] = [
    ([], "", 0, "undelivered", None),
    ([user_2("msg_p"), STOP, DONE_2], "", 0, "undelivered", None),
    ([STOP] * 60, "", 0, "undelivered", None),
    ([idle("failed", error=NO_ROUTE)], "failed", 0, "failed",
     Fault("no-model", "Model unavailable: sim/m9")),
    ([idle("failed")], "failed", 0, "failed", None),  # before 2.1 the stream alone tells why
    ([user_2("msg_0"), STOP, idle("failed", error=AUTH)], "failed", 0, "failed", NO_KEY),
    ([user_2(FIRST)], "failed", 0, "failed", None),  # delivered, and nothing came of it
    ([user_2(FIRST), STOP, DONE_2], "failed", 0, "answered", None),
    ([user_2(FIRST), STOP, DONE_2], "failed", 1, "failed", None),
    ([user_2(FIRST), step(), user_2(SECOND), STOP, DONE_2], "", 1, "answered", None),
    ([user_2(FIRST), step(), user_2(SECOND), STOP, DONE_2], "", 2, "answered", None),
    ([user_2(FIRST), step()], "", 1, "unfinished", None),
    ([user_2(FIRST), STOP, user_2(SECOND), step()], "", 1, "unfinished", None),
    ([user_2(FIRST), *[CALLS] * 380, STOP, DONE_2], "", 0, "answered", None),
]
FAULTS_2: list[tuple[Json, Fault]] = [
    *[({"type": f"provider.{type}", "message": "oh", "status": 200}, Fault(kind, "oh"))
      for type, kind in (
        ("rate-limit", "rate-limit"), ("quota", "balance"), ("auth", "auth"), ("timeout", "outage"),
        ("no-route", "no-model"), ("internal", "outage"), ("transport", "outage"),
        ("content-filter", "provider"), ("unknown", "provider"))],
    *[({"type": "provider.invalid-request", "message": "oh", "status": code}, Fault(kind, "oh"))
      for code, kind in ((400, "provider"), (402, "balance"), (404, "no-model"))],
    *[({"type": "unknown", "message": said}, Fault(kind, said)) for said, kind in (
        ("Model unavailable: p/m", "no-model"), ("Variant unavailable: high", "no-model"),
        ("Agent not found: mine", "no-agent"), ("something", "unknown"))],
    ({"type": "provider.unknown", "message": "Model unavailable: p/m"},
     Fault("provider", "Model unavailable: p/m")),
    (INTERRUPTED, Fault("aborted", "Step interrupted")),
    ({"type": "of.tomorrow", "message": "something"}, Fault("unknown", "something")),
    *[({"type": "provider.internal", "message": "m", **more}, Fault("outage", "m", wait))
      for more, wait in (
        ({}, 0.0), ({"status": 503}, 0.0), ({"retryAfterMs": 90_500}, 90.5),
        ({"retryAfterMs": -1}, 0.0))],
]
# fmt: on

# What OpenCode prints of a broken configuration.
CONFIGURATION = """/project/opencode.json
--- JSONC Input ---
{ "apiKey": "sk-SECRET",,, }
--- Errors ---
PropertyNameExpected at line 3, column 23
   Line 3: { "apiKey": "sk-SECRET",,, }
                                ^
--- End ---"""
