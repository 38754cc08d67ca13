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

from ocloop import Ask, OpenCode2, Options, Polled, Prompt, Question, Spend

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
    return a_dialect(Said(says)).poll("ses_1", PROMPT, 0, closer)


# ── 2: messages ───────────────────────────────────────────────────────────────────────────────────

FIRST = "msg_0123456789abseedseed000007"
SECOND = "msg_0123456789abseedseed000z01"
THIRD = "msg_0123456789abseedseed000z02"
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
    polled = made.poll("ses_A", PROMPT_2, attempt, closer)
    return made.poll("ses_A", PROMPT_2, attempt, closer) if polled.is_unsure else polled


def model_2(name: str, **more: Any) -> Json:
    provider, _, id = name.partition("/")
    found = {"id": id, "modelID": id, "providerID": provider, "cost": []}
    return {**found, "limit": {"context": 200000}, "variants": [{"id": "low"}], **more}


def agent_2(name: str, **more: Any) -> Json:
    return {"id": name, "name": name.title(), "mode": "primary", "hidden": False, **more}


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
STRICT = {**FORM, "fields": [{**field, "custom": False} for field in FORM["fields"]]}
ELICITED = {  # by an MCP server
    "id": "frm_2", "sessionID": "global", "title": "Deploy?",
    "fields": [{"key": "sure", "type": "string",
                "options": [{"value": "y", "label": "yes"}, {"value": "n", "label": "no"}]},
               {"key": "note", "type": "string", "hidden": True}],
}
# fmt: on
