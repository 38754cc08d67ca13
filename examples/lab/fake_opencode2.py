"""The fake OpenCode 2.x: routes, bodies and events of `opencode serve` 2.1.2."""

from __future__ import annotations

import binascii
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from fake_server import (
    PAGE,
    Answer,
    Ask,
    Json,
    Prompt,
    Reply,
    Request,
    Server,
    Turn,
    chunk,
    encode,
    find_plan,
    frame,
    milliseconds,
    no_tokens,
    unquote,
)

HEARTBEAT = b": heartbeat\n\n"
INTERRUPT = 0.3  # seconds from the answer to an interrupt to the end of the work
ABORTED = {"type": "aborted", "message": "Step interrupted"}
# Events that are kept nowhere have no sequence number.
PASSING = (".delta", ".progress", "usage.updated")
# Events that come from no directory.
NOWHERE = ("session.execution.", "session.usage.")


class Turn2(Turn):
    """One run of a session, in the words of 2.x. A step is a message, from its first word on."""

    server: Server2
    shell = "shell"
    subagent = "subagent"
    path = "path"
    garbage = (
        b'data: {"type": "session.execution.succeeded", \n\n',
        b'data: {"type":"session.execution.succeeded","data":null}\n\n',
        b'data: {"type":"session.execution.failed","data":{"sessionID":7,"error":[]}}\n\n',
        b'data: {"type":"session.tool.called","data":{"sessionID":[],"input":7}}\n\n',
        b'data: {"type":"session.text.delta","data":{"assistantMessageID":{}}}\n\n',
        b'data: {"type":"form.created","data":{"form":"only words"}}\n\n',
        b'event: message\r\ndata: {"type":"of.tomorrow",\r\ndata: "data":{"a":[]}}\r\n\r\n',
    )

    def __init__(self, server: Server, session: Json, prompt: Prompt, plan: str) -> None:
        super().__init__(server, session, prompt, plan)
        self.thought: Json = {}
        self.answered = False

    # Events, and what they tell of.

    def tell(self, kind: str, **data: Any) -> None:
        """An event of this session."""
        self.publish(f"session.{kind}", sessionID=self.id, **data)

    def step(self, kind: str, **data: Any) -> None:
        """An event of the step that runs."""
        self.begin_step()
        self.tell(kind, assistantMessageID=self.message["id"], **data)

    def keep_message(self, message: Json) -> None:
        """A message is new, or changed."""
        self.server.add_message(self.id, message)
        self.server.keep(of=self.id, message=message)

    def begin_step(self) -> None:
        """Begin a message, unless one is open."""
        if not self.message:
            self.message = {
                "id": self.server.new_id("msg"),
                "time": {"created": milliseconds()},
                "type": "assistant",
                "agent": self.prompt.agent,
                "model": model_of(self.prompt.model),
                "content": [],
            }
            self.started()

    def started(self) -> None:
        """The step begins; after a retry it does so again."""
        self.keep_message(self.message)
        self.step(
            "step.started",
            agent=self.message["agent"],
            model=self.message["model"],
            started=self.message["time"]["created"],
        )

    def count(self, kind: str) -> int:
        """How many parts of a kind the message has."""
        return sum(part["type"] == kind for part in self.message["content"])

    def enqueue(self, what: Json) -> None:
        """Something other than a prompt comes into the inbox."""
        self.flush()
        self.server.enqueue(self.id, what)

    def deliver(self) -> None:
        """What waits in the inbox becomes messages."""
        for item in self.server.inboxes[self.id]:
            self.tell("inbox.delivered", inboxID=item["id"])
            message = {"id": item["id"], "time": {"created": milliseconds()}}
            message.update(item["payload"], type=item["type"])
            self.keep_message(message)
        self.server.inboxes[self.id] = []

    def execute(self) -> None:
        """The session becomes active."""
        self.server.status[self.id] = {"type": "running"}
        self.session.pop("outcome", None)
        self.session["time"].pop("idle", None)
        self.tell("execution.started")

    def settle(self, outcome: str, told: bool = True, over: bool = True, **more: Any) -> None:
        """The session is active no more."""
        now = milliseconds()
        error = more.get("error")
        if over:
            self.session["outcome"] = outcome
            self.session["time"]["idle"] = now
            idle = {"id": self.server.new_id("msg"), "time": {"created": now}, "type": "idle"}
            idle["outcome"] = outcome
            if error and not self.server.old:
                idle["error"] = error
            self.keep_message(idle)
        self.leave(f"execution.{outcome}", told, over, **more)

    def leave(self, kind: str, told: bool = True, over: bool = True, **more: Any) -> None:
        """Say how it ended, and be gone from the active sessions."""
        lag = self.server.lag
        if over and not lag:
            self.server.status.pop(self.id, None)
        if told:
            self.tell(kind, **more)
        if over and told:
            self.server.note("idle", session=self.id)
        self.flush()
        if over and lag:
            time.sleep(lag)
            self.server.status.pop(self.id, None)
        self.server.keep(of=self.id, session=self.session)

    # What the answers are made of.

    def begin(self) -> bool:
        self.server.note("busy", session=self.id)
        self.execute()
        error = self.problem()
        if error:
            self.settle("failed", error=error)
            return False
        self.deliver()
        self.flush()
        return True

    def problem(self) -> Json:
        """Why this prompt cannot be delivered, {} when it can."""
        if self.prompt.agent not in self.server.agents:
            return {"type": "unknown", "message": f"Agent not found: {self.prompt.agent}"}
        if self.prompt.model not in self.server.models:
            words = f"Model unavailable: {self.prompt.model}"
            return {"type": "provider.no-route", "message": words}
        return {}

    def think(self, words: str) -> None:
        """Its end comes after the beginning of what follows."""
        self.begin_step()
        now = milliseconds()
        part = {"type": "reasoning", "text": "", "time": {"created": now}}
        self.thought = {"ordinal": self.count("reasoning"), "text": words, "part": part}
        self.message["content"].append(part)
        self.step("reasoning.started", ordinal=self.thought["ordinal"])
        self.step("reasoning.delta", ordinal=self.thought["ordinal"], delta=words)

    def open_text(self) -> None:
        self.begin_step()
        ordinal = self.count("text")
        self.message["content"].append({"type": "text", "text": ""})
        self.step("text.started", ordinal=ordinal)
        if self.thought:
            part = self.thought.pop("part")
            part["text"] = self.thought["text"]
            part["time"]["completed"] = milliseconds()
            self.step("reasoning.ended", **self.thought)
            self.thought = {}

    def delta(self, words: str) -> None:
        self.step("text.delta", ordinal=self.count("text") - 1, delta=words)

    def close_text(self, text: str) -> None:
        parts = [part for part in self.message["content"] if part["type"] == "text"]
        parts[-1]["text"] = text
        self.step("text.ended", ordinal=len(parts) - 1, text=text)

    def streamed(self) -> None:
        """The provider has said all of this step."""
        self.begin_step()
        self.message["time"]["streamed"] = milliseconds()
        self.step("step.streamed")

    def tool(self, name: str, given: Json) -> Json:
        self.begin_step()
        tool: Json = {
            "type": "tool",
            "id": f"call_{self.count('tool')}",
            "name": name,
            "executed": False,
            "state": {"status": "streaming", "input": ""},
            "time": {"created": milliseconds()},
        }
        self.message["content"].append(tool)
        self.step("tool.input.started", id=tool["id"], name=name)
        self.step("tool.input.ended", id=tool["id"], text=encode(given))
        tool["state"] = {"status": "running", "input": given, "metadata": {}}
        tool["time"]["ran"] = milliseconds()
        self.step("tool.called", id=tool["id"], input=given, executed=False)
        self.streamed()
        self.server.keep(of=self.id, message=self.message)
        return tool

    def tool_end(self, tool: Json, output: str) -> None:
        content = [{"type": "text", "text": output}]
        metadata = {**tool["state"]["metadata"], "truncated": False}
        result = {"content": content, "metadata": metadata}
        tool["state"] = {"status": "completed", "input": tool["state"]["input"], **result}
        tool["time"]["completed"] = milliseconds()
        self.step("tool.success", id=tool["id"], **result, executed=False)

    def tool_failed(self, tool: Json, kind: str, message: str) -> None:
        """The tool's error."""
        error = {"type": kind, "message": message}
        tool["state"] = {"status": "error", "input": tool["state"]["input"], "error": error}
        tool["time"]["completed"] = milliseconds()
        self.step("tool.failed", id=tool["id"], error=error, executed=False)

    def tool_rejected(self, tool: Json, message: str) -> None:
        self.tool_failed(tool, "permission.rejected", message)

    def refused(self, tool: Json, kind: str) -> None:
        """A bare refusal is an interruption without an outcome."""
        declined = "The user declined this tool call"
        words = declined if kind == "permission" else "The user dismissed this question"
        self.tool_failed(tool, "aborted", words)
        self.step_failed(ABORTED, finish="tool-calls")
        self.leave("execution.interrupted", reason="shutdown")

    def edited(self) -> None:
        data = {"file": self.plan, "event": "change"}
        event = self.server.event("filesystem.changed", data, self.session["location"])
        self.frames.append(frame(event))

    def usage(self, finish: str, cost: float) -> Json:
        """The figures of a step, also added to the session's."""
        tokens = no_tokens()
        tokens.update(input=80, output=20, cache={"read": 20, "write": 0})
        cost = cost if self.server.price else 0
        total = self.session["tokens"]
        total["input"] += tokens["input"]
        total["output"] += tokens["output"]
        total["cache"]["read"] += tokens["cache"]["read"]
        self.session["cost"] = round(self.session["cost"] + cost, 9)
        return {"rawFinish": finish.replace("-", "_"), "cost": cost, "tokens": tokens}

    def usage_updated(self) -> None:
        """The session's cumulative figures."""
        self.tell("usage.updated", cost=self.session["cost"], tokens=self.session["tokens"])

    def complete(self) -> None:
        """The message is over."""
        self.message["time"]["completed"] = milliseconds()
        self.server.keep(of=self.id, message=self.message)
        self.message = {}

    def step_end(self, finish: str, cost: float) -> None:
        if finish == "stop":
            self.answered = True
            self.streamed()
        figures = {"finish": finish, **self.usage(finish, cost)}
        self.message.update(figures)
        self.step("step.ended", **figures)
        self.complete()
        self.usage_updated()

    def step_failed(self, error: Json, finish: str = "", cost: float = 0) -> None:
        """The step ends with an error; `finish` is what the provider said, if it came so far."""
        figures = self.usage(finish, cost) if finish else {}
        self.begin_step()
        self.message.update(finish="error", error=error, **figures)
        self.message.pop("retry", None)
        self.step("step.failed", error=error, **figures)
        self.complete()
        if finish:
            self.usage_updated()

    def next_step(self, cost: float) -> None:
        self.step_end("tool-calls", cost)

    def end(self, told: bool = True, over: bool = True) -> None:
        self.settle("succeeded", told, over)

    def fail(self, code: int, message: str) -> None:
        error = provider_error(code, message)
        self.step_failed(error)
        self.settle("failed", error=error)

    def retry(self, seconds: float, attempt: int, code: int, message: str) -> None:
        """The attempt that is coming is counted: the first retry is 2."""
        due = milliseconds() + int(seconds * 1000)
        error = provider_error(code, message)
        retry: Json = {"attempt": attempt + 1, "at": due, "error": error}
        self.begin_step()
        self.message["retry"] = retry
        self.step("retry.scheduled", **retry)
        self.server.keep(of=self.id, message=self.message)
        self.wait(seconds)
        del self.message["retry"]
        self.message["time"]["created"] = milliseconds()
        self.started()

    def abort(self) -> None:
        for number, ask in list(self.server.asks.items()):
            if ask.turn is self:
                self.server.asks.pop(number, None)
        finish = ""
        for tool in self.message.get("content", ()):
            if tool["type"] == "tool" and tool["state"]["status"] == "running":
                finish = "tool-calls"  # the provider has said its part, and what it costs
                self.tool_failed(tool, "aborted", "Tool execution interrupted")
        if self.message or not self.answered:
            self.step_failed(ABORTED, finish, 0.01)
        self.settle("interrupted", reason="user")

    def ask(self, kind: str, tool: Json) -> Reply:
        origin = {"messageID": self.message["id"], "id": tool["id"]}
        given = tool["state"]["input"]
        if kind == "permission":
            number = self.server.new_id("per")
            entry: Json = {
                "id": number,
                "sessionID": self.id,
                "action": "shell",
                "resources": [given["command"]],
                "save": [f"{given['command']} *"],
                "metadata": {"command": given["command"]},
                "source": {"type": "tool", **origin},
            }
            self.publish("permission.asked", **entry)
            reply = self.asked(kind, number, entry)
            told = {"sessionID": self.id, "requestID": number, "reply": reply.decision}
            self.publish("permission.replied", **told)
            return reply
        number = self.server.new_id("frm")
        entry = {
            "id": number,
            "sessionID": self.id,
            "title": "Questions",
            "metadata": {"kind": "question", "tool": origin},
            "fields": [field(*one) for one in enumerate(given["questions"])],
        }
        self.publish("form.created", form=entry)
        reply = self.asked(kind, number, entry)
        told = {"id": number, "sessionID": self.id}
        if reply.decision == "answer":
            self.publish("form.replied", **told, answer=self.server.given.get(number))
        else:
            self.publish("form.cancelled", **told)
        return reply

    def child(self, tool: Json) -> Turn:
        session = self.server.new_session(
            {
                "parentID": self.id,
                "agent": "general",
                "title": "Push",
                "location": self.session["location"],
            }
        )
        number = session["id"]
        self.flush()
        self.server.created(session)
        tool["state"]["metadata"] = {"sessionID": number, "status": "running"}
        metadata = tool["state"]["metadata"]
        self.step("tool.progress", id=tool["id"], metadata=metadata)
        self.flush()
        item = self.server.enqueue(number, {"type": "user", "payload": {"text": "Push it."}})
        prompt = Prompt(item["id"], "Push it.", self.prompt.model, "general")
        child = Turn2(self.server, session, prompt, self.plan)
        child.parent = self
        child.wake = self.wake
        child.execute()
        child.deliver()
        return child

    def child_end(self, tool: Json, child: Turn) -> None:
        tool["state"]["metadata"]["status"] = "completed"
        self.tool_end(tool, f'<subagent sessionID="{child.id}">Tried to push.</subagent>')

    def strangers(self, other: str) -> None:
        self.publish("session.created", sessionID=other, location={"directory": "/"})
        error = {"type": "unknown", "message": ""}
        self.publish("session.execution.failed", sessionID=other, error=error)
        self.publish("session.execution.succeeded", sessionID=other)

    # The answers that 2.x has of its own.

    def answer_question(self, argument: str) -> None:
        """A question that is denied when the session is made is none: there is no such tool."""
        rules = self.session.get("permissions") or []
        effects = [rule.get("effect") for rule in rules if rule.get("action") == "question"]
        if effects and effects[-1] == "deny":
            return self.work()
        return super().answer_question(argument)

    def answer_unknown(self, argument: str) -> None:
        """A stream that is cut goes on in a new message, a few times; then the turn fails."""
        words = "The answer ended without a finish reason."
        error = {"type": "provider.invalid-output", "message": words}
        for attempt in (2, 3, 4):
            self.text("hm")
            self.streamed()
            last = self.message
            self.step_failed(error, finish="unknown")
            if attempt < 4:
                due = milliseconds() + 100
                retry: Json = {"attempt": attempt, "at": due, "error": error}
                self.tell("retry.scheduled", assistantMessageID=last["id"], **retry)
                self.wait(0.1)
                self.enqueue(synthetic("Go on."))
                self.deliver()
        self.settle("failed", error=error)

    def answer_overflow(self, argument: str) -> None:
        """Before the step has begun; it is tried again after the compaction."""
        message: Json = {
            "type": "compaction",
            "id": self.server.new_id("msg"),
            "time": {"created": milliseconds()},
            "status": "running",
            "reason": "auto",
        }
        self.keep_message(message)
        self.tell("compaction.started", reason="auto", recent="")
        self.wait(0.2)
        summary = "What was done so far."
        self.tell("compaction.delta", text=summary)
        figures = self.usage("stop", 0.0001)
        del figures["rawFinish"]
        figures["model"] = model_of(self.prompt.model)
        message.update(status="completed", summary=summary, recent="", **figures)
        self.keep_message(message)
        self.usage_updated()
        self.tell("compaction.ended", reason="auto", text=summary, recent="", **figures)
        self.wait(0.2)
        self.work()

    def answer_typed(self, argument: str) -> None:
        """`steer`: a person's message comes while the prompt is at work."""
        tool = self.tool("read", {"path": self.plan})
        self.tool_end(tool, "It was read.")
        self.next_step(0.0001)
        self.type_words()
        self.deliver()
        self.work()

    def type_words(self) -> None:
        """A person types a message of their own."""
        self.enqueue({"type": "user", "payload": {"text": "A word from a person."}})

    def run(self, answer: str) -> None:
        """With `typed` a person was quicker: their message is answered, the session goes idle."""
        if answer == "typed":
            own = self.server.inboxes[self.id]
            self.server.inboxes[self.id] = []
            self.type_words()
            self.execute()
            self.deliver()
            self.server.inboxes[self.id] = own
            self.text("Noted.")
            self.step_end("stop", 0.0001)
            self.end()
            self.answered = False
            self.wake.wait(0.5)
            answer = "work"
        super().run(answer)

    def answer_wake(self, argument: str) -> None:
        """It becomes active again by itself, as when a background shell has ended."""
        self.work()
        self.wake.wait(0.5)
        if self.aborted:
            return
        self.answered = False
        self.enqueue(synthetic("The background shell has ended."))
        self.execute()
        self.deliver()
        self.text("So it has ended.")
        self.wait(1.0)
        self.step_end("stop", 0.0001)
        self.end()

    def answer_nothing_ran(self, argument: str) -> None:
        self.end()

    def answer_nothing_new(self, argument: str) -> None:
        """The same id again, delivered long ago: it runs, and nothing comes of it."""
        self.end()


class Server2(Server):
    """Everything a process of `opencode serve` 2.x knows, and its routes."""

    turn = Turn2
    events_path = "/api/event"
    heartbeat = 15.0
    version = "2.1.2"

    def __init__(self, behaviour: Json) -> None:
        self.catalogue = float(behaviour.get("catalogue", 0))
        self.booting = float(behaviour.get("booting", 0))
        self.lag = float(behaviour.get("lag", 0))
        self.touched = 0.0
        self.inboxes: dict[str, list[Json]] = {}
        self.items: dict[str, Json] = {}
        self.waiting: set[str] = set()
        self.given: dict[str, Json] = {}
        self.closed: dict[str, Json] = {}
        self.numbers: dict[str, Iterator[int]] = {}
        super().__init__(behaviour)

    def event(self, kind: str, data: Json, location: Json | None = None) -> Json:
        number = data.get("sessionID") or data.get("form", {}).get("sessionID")
        session = self.sessions.get(number) if isinstance(number, str) else None
        event: Json = {"id": self.new_id("evt"), "created": milliseconds(), "type": kind}
        if session and not kind.startswith(NOWHERE):
            location = session["location"]
        if location:
            event["location"] = location
        event["data"] = data
        if session and kind.startswith("session.") and not kind.endswith(PASSING):
            numbers = self.numbers.setdefault(session["id"], itertools.count())
            durable = {"aggregateID": session["id"], "seq": next(numbers)}
            event["durable"] = {**durable, "version": 1}
        return event

    def beat(self) -> bytes:
        return chunk(HEARTBEAT)

    def connected(self) -> bytes:
        event = {"id": self.new_id("evt"), "type": "server.connected", "data": {}}
        return chunk(b"data: " + encode(event).encode() + b"\n\n" + HEARTBEAT)

    def tool_environment(self, session: str) -> dict[str, str]:
        return {"OPENCODE": "1", "AGENT": "1", "OPENCODE_SESSION_ID": session}

    def unauthorized(self) -> Answer:
        header = 'www-authenticate: Basic realm="Secure Area"\r\n'
        return Answer(401, error_body("UnauthorizedError", "Authentication required"), header)

    def message_id(self, message: Json) -> str:
        return str(message["id"])

    def restore(self, record: Json) -> None:
        number = record["of"]
        if "deleted" in record:
            self.sessions.pop(number, None)
            return
        super().restore(record)
        inbox = self.inboxes.setdefault(number, [])
        if "item" in record:
            inbox.append(record["item"])
            self.items[record["item"]["id"]] = record["item"]
        elif "message" in record:
            delivered = record["message"]["id"]
            self.inboxes[number] = [item for item in inbox if item["id"] != delivered]

    def is_booting(self) -> bool:
        """Whether it listens, and can do no more yet."""
        return time.monotonic() - self.began < self.booting

    def streams_events(self, request: Request) -> bool:
        accepted = b"text/event-stream" in request.headers.get(b"accept", b"")
        return accepted and super().streams_events(request) and not self.is_booting()

    # The routes.

    def route(self, request: Request) -> Answer:
        if self.is_booting():
            return Answer(503, {"code": "service_starting"}, "retry-after: 1\r\n")
        kind = request.headers.get(b"content-type", b"")
        if request.method == "POST" and request.length and b"application/json" not in kind:
            return Answer(415)
        names = request.path.strip("/").split("/")
        answer = None
        if names[:2] == ["api", "session"]:
            answer = self.session_route(request, names[2:])
        elif request.method == "GET" and names[0] == "api":
            answer = self.list_route(request, "/".join(names[1:]))
        if answer is None:
            answer = Answer(200, PAGE) if request.method == "GET" else Answer(405)
        return answer

    def list_route(self, request: Request, rest: str) -> Answer | None:
        """The routes that only tell."""
        if rest == "info" and not self.old:
            paths = {"tmp": "/tmp/opencode"}
            urls = [f"http://{request.headers.get(b'host', b'').decode()}"]
            info = {"version": self.version, "pid": os.getpid(), "urls": urls, "paths": paths}
            return Answer(200, info)
        if rest == "health" and self.old:
            info = {"healthy": True, "version": self.version, "pid": os.getpid()}
            return Answer(200, info)
        header = request.headers.get(b"x-opencode-directory", b"").decode("utf-8", "replace")
        directory = request.query.get("location[directory]") or unquote(header) or os.getcwd()
        data: Any = None
        if rest == "permission/request":
            data = self.asked_in("permission", directory)
        elif rest == ("form/request" if self.old else "form"):
            if self.question_fails:
                return failed(self.question_fails)
            data = self.asked_in("question", directory)
        elif rest in ("model", "agent", "provider", "model/default"):
            data = self.catalogue_of(rest, directory)
        elif rest == "config":
            return Answer(200, self.config())
        else:
            return None
        if not os.path.isdir(directory):
            return Answer(500)
        return Answer(200, {"location": {"directory": directory}, "data": data})

    def asked_in(self, kind: str, directory: str) -> list[Json]:
        """What the sessions of a directory ask."""
        if not self.asks:
            return []
        place = os.path.realpath(directory)
        known = list(self.sessions.values())
        here = [one["id"] for one in known if os.path.realpath(place_of(one)) == place]
        return [entry for entry in self.asked(kind) if entry["sessionID"] in here]

    def catalogue_of(self, rest: str, directory: str) -> Any:
        """Models, agents, providers; the first request begins to load them."""
        now = time.monotonic()
        if not self.touched:
            self.touched = now
            if self.catalogue:
                later(self.catalogue, lambda: self.loaded(directory))
        empty = now - self.touched < self.catalogue
        if rest == "model/default":
            return None if empty else self.model_entry(self.model or self.models[0])
        if empty:
            return []
        if rest == "model":
            return [self.model_entry(name) for name in self.models]
        if rest == "agent":
            return [*map(agent_entry, self.agents), agent_entry("title")]
        names = dict.fromkeys(name.partition("/")[0] for name in self.models)
        return [{"id": name, "name": name, "activation": "enabled"} for name in names]

    def loaded(self, directory: str) -> None:
        """Say that the lists are there."""
        for kind in ("provider", "model", "agent"):
            event = self.event(f"{kind}.updated", {}, {"directory": directory})
            self.send(frame(event))

    def model_entry(self, name: str) -> Json:
        """A model of /api/model."""
        provider, _, model = name.partition("/")
        cost = {"input": 1, "output": 1, "cache": {"read": 0, "write": 0}}
        return {
            "id": model,
            "modelID": model,
            "providerID": provider,
            "name": model,
            "capabilities": {"tools": True, "input": ["text"], "output": ["text"]},
            "variants": [],
            "time": {"released": 0},
            "cost": [cost] if self.price else [],
            "status": "active",
            "enabled": True,
            "limit": self.limits(),
        }

    def config(self) -> list[Json]:
        """The configuration's documents, lowest first."""
        provider, _, model = self.model.partition("/")
        info = {"model": {"providerID": provider, "model": model}}
        own = json.loads(os.environ.get("OPENCODE_CONFIG_CONTENT") or "{}")
        documents = [info, own] if own else [info]
        return [{"type": "document", "info": document} for document in documents]

    def session_route(self, request: Request, names: list[str]) -> Answer | None:
        """Everything below /api/session; `names` is the rest of the path."""
        method = request.method
        if not names:
            return self.create(request) if method == "POST" else self.list_sessions(request)
        if names == ["active"] and method == "GET":
            return Answer(200, {"data": self.status})
        number, *rest = names
        if number not in self.sessions:
            body = error_body("SessionNotFoundError", f"Session not found: {number}")
            return Answer(404, {**body, "sessionID": number})
        name = rest[0] if rest else ""
        last = rest[-1] if rest else ""
        if name == "permission":
            return self.permission_route(request, number, rest[1:])
        if name == "form":
            return self.form_route(request, number, rest[1:])
        if method == "GET":
            return self.tell_of(request, number, name, last)
        if (method, rest) == ("POST", ["prompt"]):
            return self.prompt(request, number)
        if (method, rest) == ("POST", ["interrupt"]):
            return self.interrupt(request, number)
        if method == "POST" and last in ("model", "agent"):
            self.sessions[number][last] = request.given.get(last)
            self.publish(f"session.{last}.selected", sessionID=number, **request.given)
            return Answer(204)
        if method == "DELETE" and name in ("", "inbox"):
            return self.remove(number, last)
        return None

    def tell_of(self, request: Request, number: str, name: str, last: str) -> Answer | None:
        """What there is to be known of a session."""
        if not name:
            return Answer(200, {"data": self.sessions[number]})
        if name == "inbox":
            return Answer(200, {"data": self.inboxes[number]})
        if name == "message" and last == name:
            return self.page(request, number)
        if name == "message":
            found = [message for message in self.messages[number] if message["id"] == last]
            if found:
                return Answer(200, {"data": found[0]})
            return Answer(404, error_body("MessageNotFoundError", f"Message not found: {last}"))
        return None

    def new_session(self, given: Json) -> Json:
        """Make a session; the caller tells of it."""
        number = given.get("id") or self.new_id("ses")
        now = milliseconds()
        keys = ("parentID", "agent", "model", "title", "permissions", "metadata", "location")
        session: Json = {
            "id": number,
            "projectID": "global",
            "cost": 0,
            "tokens": no_tokens(),
            "time": {"created": now, "updated": now},
            "location": {"directory": os.getcwd()},
            **{key: given[key] for key in keys if given.get(key) is not None},
        }
        self.messages[number] = []
        self.inboxes[number] = []
        self.sessions[number] = session
        self.keep(of=number, session=session)
        return session

    def created(self, session: Json) -> None:
        """Tell of a session."""
        keys = ("projectID", "parentID", "location", "title", "agent", "model", "permissions")
        known = {key: session[key] for key in keys if key in session}
        self.publish("session.created", sessionID=session["id"], version=self.version, **known)

    def create(self, request: Request) -> Answer:
        """Make a session; the same id is the same session. Model and agent are not checked."""
        number = str(request.given.get("id") or "")
        if number and not number.startswith("ses_"):
            return invalid('Expected a string starting with "ses_"')
        if number in self.sessions:
            return Answer(200, {"data": self.sessions[number]})
        session = self.new_session({**request.given, "parentID": None})
        self.note(
            "session",
            time=request.arrived,
            session=session["id"],
            title=session.get("title", ""),
            directory=place_of(session),
        )
        self.created(session)
        return Answer(200, {"data": session})

    def list_sessions(self, request: Request) -> Answer:
        """The sessions, newest first."""
        found = list(self.sessions.values())[::-1]
        directory = request.query.get("directory")
        parent = request.query.get("parentID")
        if directory:
            found = [one for one in found if place_of(one) == directory]
        if parent:
            wanted = None if parent == "null" else parent
            found = [one for one in found if one.get("parentID") == wanted]
        return Answer(200, {"data": found, "cursor": {}})

    def remove(self, number: str, item: str) -> Answer:
        """Delete a session, or what waits in its inbox."""
        if item:
            inbox = self.inboxes[number]
            self.inboxes[number] = [one for one in inbox if one["id"] != item]
            return Answer(204)
        self.stop_turns(number)
        del self.sessions[number]
        self.keep(of=number, deleted=True)
        self.publish("session.deleted", sessionID=number)
        return Answer(204)

    def page(self, request: Request, number: str) -> Answer:
        """Some of the messages, newest first unless the order is asc."""
        query = request.query
        limit, order = query.get("limit") or "50", query.get("order") or "desc"
        if not limit.isdigit() or not 1 <= int(limit) <= 200 or order not in ("asc", "desc"):
            return invalid("Expected a limit from 1 to 200", kind="Query")
        cursor: Json = {}
        if query.get("cursor"):
            if "order" in query:
                words = "Cursor cannot be combined with order"
                return Answer(400, error_body("InvalidCursorError", words))
            try:
                cursor = from_cursor(query["cursor"])
                order = cursor["order"]
            except (ValueError, KeyError, TypeError):
                return Answer(400, error_body("InvalidCursorError", "Invalid cursor"))
        found = list(self.messages[number])
        if order == "desc":
            found.reverse()
        places = [place for place, one in enumerate(found) if one["id"] == cursor.get("id")]
        if cursor and cursor["direction"] == "next":
            found = found[places[0] + 1 :] if places else []
        elif cursor:
            found = found[max(0, places[0] - int(limit)) : places[0]] if places else []
        found = found[: int(limit)]
        ends: Json = {}
        if found:
            ends["previous"] = to_cursor(found[0]["id"], order, "previous")
            ends["next"] = to_cursor(found[-1]["id"], order, "next")
        return Answer(200, {"data": found, "cursor": ends})

    # Prompts.

    def enqueue(self, number: str, what: Json) -> Json:
        """Put something into a session's inbox."""
        item: Json = {
            "id": what.get("id") or self.new_id("msg"),
            "sessionID": number,
            "time": {"created": milliseconds()},
            "type": what["type"],
            "payload": what["payload"],
            "delivery": what.get("delivery") or "steer",
        }
        self.items[item["id"]] = item
        self.inboxes[number].append(item)
        self.keep(of=number, item=item)
        kept = {key: item[key] for key in ("type", "payload", "delivery")}
        self.publish("session.inbox.enqueued", inboxID=item["id"], sessionID=number, item=kept)
        return item

    def prompt(self, request: Request, number: str) -> Answer:
        """Take a prompt. The same id again never runs again once it was delivered."""
        given = request.given
        own, text = given.get("id"), given.get("text")
        if not isinstance(text, str):
            return invalid("Missing key text")
        if own and not str(own).startswith("msg_"):
            return invalid('Expected a string starting with "msg_"')
        item = self.items.get(str(own))
        if item and (item["sessionID"], item["payload"]["text"]) != (number, text):
            words = f"Prompt message ID conflicts with an existing durable record: {own}"
            return Answer(409, {**error_body("ConflictError", words), "resource": own})
        session = self.sessions[number]
        model = session.get("model") or {}
        self.plan = find_plan(text) or self.plan
        if not item:
            payload = {"text": text}
            what = {
                "id": own,
                "type": "user",
                "payload": payload,
                "delivery": given.get("delivery"),
            }
            item = self.enqueue(number, what)
            session["time"]["updated"] = milliseconds()
        self.note(
            "prompt",
            time=request.arrived,
            session=number,
            id=item["id"],
            text=text,
            model=f"{model['providerID']}/{model['id']}" if model else "",
            agent=session.get("agent") or "",
        )
        answer = {"data": item}
        if given.get("resume") is False:
            return Answer(200, answer)
        return Answer(200, answer, after=self.start(number))

    def start(self, number: str) -> Any:
        """Make a session run; returns what begins it, None when nothing does."""
        if any(turn.id == number for turn in list(self.turns)):
            self.waiting.add(number)
            return None
        session, inbox = self.sessions[number], self.inboxes[number]
        chosen = session.get("model")
        model = f"{chosen['providerID']}/{chosen['id']}" if chosen else self.model
        own, text = (inbox[-1]["id"], inbox[-1]["payload"]["text"]) if inbox else ("", "")
        prompt = Prompt(own, text, model, session.get("agent") or "build")
        turn = Turn2(self, session, prompt, self.plan)
        answer = "" if inbox else "nothing-new"
        if not answer and not turn.problem():
            going_on = number in self.prompted and not self.answered(number)
            answer = self.choose(number, own, going_on)
        if answer == "silent":
            return None
        with self.lock:
            self.turns.append(turn)
        self.status[number] = {"type": "running"}
        return threading.Thread(target=turn.run, args=(answer,), daemon=True).start

    def answered(self, number: str) -> bool:
        """Whether the last step of a session came to a good end."""
        for message in reversed(self.messages[number]):
            if message["type"] == "assistant":
                return message.get("finish") in ("stop", "length")
        return False

    def over(self, turn: Turn) -> None:
        super().over(turn)
        if turn.id in self.waiting:
            self.waiting.discard(turn.id)
            begin = self.start(turn.id) if self.inboxes[turn.id] and not turn.aborted else None
            if begin:
                begin()

    def interrupt(self, request: Request, number: str) -> Answer:
        """Answer first; the work ends a moment later."""
        self.note("abort", time=request.arrived, session=number)
        running = [turn for turn in list(self.turns) if turn.id == number]
        if number not in self.status or not running:
            return Answer(200, {"interrupted": False})
        return Answer(200, {"interrupted": True}, after=lambda: later(INTERRUPT, running[0].stop))

    # What is asked.

    def permission_route(self, request: Request, number: str, rest: list[str]) -> Answer | None:
        """The permissions that a session asks for."""
        if not rest and request.method == "GET":
            found = [one for one in self.asked("permission") if one["sessionID"] == number]
            return Answer(200, {"data": found})
        ask = self.asks.get(rest[0]) if rest else None
        if len(rest) == 1 and request.method == "GET" and ask:
            return Answer(200, {"data": ask.entry})
        if len(rest) != 2 or rest[1] != "reply" or request.method != "POST":
            return None
        decision = request.given.get("reply" if self.old else "decision")
        if decision not in ("once", "always", "reject"):
            return invalid('Expected "once", "always" or "reject"')
        reply = Reply(str(decision), str(request.given.get("message") or ""))
        status = self.give(request, "permission", rest[0], reply)
        if status == 200:
            return Answer(204)
        if status != 404:
            return failed(status)
        words = f"Permission request not found: {rest[0]}"
        return Answer(404, {**error_body("PermissionNotFoundError", words), "requestID": rest[0]})

    def form_route(self, request: Request, number: str, rest: list[str]) -> Answer | None:
        """The questions that a session asks."""
        if not rest and request.method == "GET":
            if self.question_fails:
                return failed(self.question_fails)
            found = [one for one in self.asked("question") if one["sessionID"] == number]
            return Answer(200, {"data": found})
        own = rest[0] if rest else ""
        ask = self.asks.get(own)
        if len(rest) == 1 and request.method == "GET" and (ask or own in self.closed):
            pending = {**ask.entry, "state": {"status": "pending"}} if ask else None
            return Answer(200, {"data": pending or self.closed[own]})
        if (request.method, rest[1:]) not in (("POST", ["reply"]), ("DELETE", [])):
            return None
        if own in self.closed:
            return form_error(409, "FormAlreadySettledError", own, "Form already settled")
        if not ask:
            return form_error(404, "FormNotFoundError", own, f"Form not found: {own}")
        return self.settle_form(request, own, ask)

    def settle_form(self, request: Request, own: str, ask: Ask) -> Answer:
        """Answer a form, or refuse it."""
        given = request.given
        if request.method == "DELETE":
            words = given.get("message") or request.query.get("message") or ""
            reply = Reply("dismiss", str(words))
            state: Json = {"status": "cancelled"}
        else:
            answer: Json = given["answer"] if isinstance(given.get("answer"), dict) else {}
            keys = [one["key"] for one in ask.entry["fields"]]
            texts = all(isinstance(value, str) for value in answer.values())
            if not texts or set(answer) != set(keys):
                words = f"Expected an answer to each of {', '.join(keys)}"
                return form_error(400, "FormInvalidAnswerError", own, words)
            reply = Reply("answer", "", [[answer[key]] for key in keys])
            state = {"status": "answered", "answer": answer}
            self.given[own] = answer
        status = self.give(request, "question", own, reply)
        if status != 200:
            return failed(status)
        self.closed[own] = {**ask.entry, "state": state}
        return Answer(204)


def later(seconds: float, call: Any) -> None:
    """Call something after a while, without waiting for it."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def place_of(session: Json) -> str:
    """The directory of a session."""
    return str(session["location"]["directory"])


def model_of(name: str) -> Json:
    """A model's name as a message has it."""
    provider, _, model = name.partition("/")
    return {"id": model, "providerID": provider}


def agent_entry(name: str) -> Json:
    """An agent of /api/agent."""
    return {
        "id": name,
        "name": name.title(),
        "request": {"settings": {}, "headers": {}, "body": {}},
        "mode": "subagent" if name in ("general", "explore") else "primary",
        "hidden": name == "title",
        "permissions": [],
    }


def field(place: int, question: Json) -> Json:
    """A question as a field of a form."""
    return {
        "key": f"q{place}",
        "title": question["header"],
        "description": question["question"],
        "type": "string",
        "options": [{"value": option["label"], **option} for option in question["options"]],
        "custom": True,
    }


def synthetic(text: str) -> Json:
    """What the server says to the model by itself."""
    return {"type": "synthetic", "payload": {"text": text}}


def provider_error(code: int, message: str) -> Json:
    """The error of a provider's answer with this status; 0 is a login that is missing."""
    kinds = {
        0: "auth",
        401: "auth",
        402: "quota",
        403: "auth",
        404: "no-route",
        429: "rate-limit",
    }
    kind = kinds.get(code) or ("internal" if code >= 500 else "invalid-request")
    error: Json = {"type": f"provider.{kind}", "message": message}
    if code:
        body = encode({"error": {"message": message, "code": code}})
        error.update(status=code, response={"body": body})
    return error


def error_body(tag: str, message: str) -> Json:
    """What a route says that failed."""
    return {"_tag": tag, "message": message}


def invalid(message: str, kind: str = "Payload") -> Answer:
    """The request is not understood."""
    return Answer(400, {**error_body("InvalidRequestError", message), "kind": kind})


def failed(status: int) -> Answer:
    """The route fails, as ordered."""
    return Answer(status, error_body("UnknownError", "It failed, as ordered."))


def form_error(status: int, tag: str, own: str, message: str) -> Answer:
    """A form cannot be answered."""
    return Answer(status, {**error_body(tag, message), "id": own})


def to_cursor(message: str, order: str, direction: str) -> str:
    """A place in the list of messages."""
    text = encode({"id": message, "order": order, "direction": direction})
    data = binascii.b2a_base64(text.encode(), newline=False).decode()
    return data.rstrip("=").replace("+", "-").replace("/", "_")


def from_cursor(text: str) -> Json:
    """What `to_cursor` made."""
    data = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
    cursor = json.loads(binascii.a2b_base64(data))
    if not isinstance(cursor, dict) or cursor.get("direction") not in ("next", "previous"):
        raise ValueError(text)
    return cursor
