"""The fake OpenCode 1.x: routes, bodies and events of `opencode serve` 1.18.33."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from typing import Any

from fake_server import (
    PAGE,
    Answer,
    Json,
    Prompt,
    Reply,
    Request,
    Server,
    Turn,
    encode,
    find_plan,
    frame,
    milliseconds,
    no_tokens,
    unquote,
)

FIVE = re.compile(r"POST /session(/[^/]+/(prompt_async|abort))?|GET /(event|config)")


class Turn1(Turn):
    """One prompt being answered, in the words of 1.x."""

    shell = "bash"
    subagent = "task"
    path = "filePath"
    garbage = (
        b'data: {"type": "session.idle", \n\n',
        b'data: {"type":"session.idle","properties":null}\n\n',
        b'data: {"type":"session.status","properties":{"sessionID":7,"status":[]}}\n\n',
        b'data: {"type":"message.part.updated","properties":{"part":null}}\n\n',
        b'data: {"type":"message.updated","properties":{"info":{"id":[]}}}\n\n',
        b'event: message\r\ndata: {"type":"of.tomorrow",\r\ndata: "properties":{"a":[]}}\r\n\r\n',
        b'data: {"type":"session.error","properties":{"error":"only words"}}\n\n',
    )

    def __init__(
        self, server: Server, session: Json, prompt: Prompt, plan: str, user: Json
    ) -> None:
        super().__init__(server, session, prompt, plan)
        self.user = user
        self.part: Json = {}
        self.retrying = False

    # Events, and what they tell of.

    def set_status(self, kind: str, **more: Any) -> None:
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
        self.publish("message.updated", sessionID=self.id, info=message["info"])
        self.server.keep(of=self.id, message=message)

    def part_updated(self, message: Json, part: Json) -> Json:
        """Add a part to a message, or say that it changed."""
        if not any(part is other for other in message["parts"]):
            part.setdefault("id", self.server.new_id("prt"))
            part.update(messageID=message["info"]["id"], sessionID=self.id)
            message["parts"].append(part)
        self.publish("message.part.updated", sessionID=self.id, part=part, time=milliseconds())
        return part

    def user_message(self, text: str, **part: Any) -> Json:
        """A further user message in this session: a person's, or a compaction's."""
        info = {**self.user["info"], "id": self.server.new_id("msg")}
        info["time"] = {"created": milliseconds()}
        message: Json = {"info": info, "parts": []}
        self.server.messages[self.id].append(message)
        self.message_updated(message)
        self.part_updated(message, {"type": "text", "text": text, **part} if text else part)
        return message

    def begin_message(self, parent: Json, mode: str = "", **more: Any) -> None:
        """Begin an answer to `parent`."""
        user = parent["info"]
        self.message = {
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
                "sessionID": self.id,
            },
            "parts": [],
        }
        self.server.messages[self.id].append(self.message)
        self.message_updated(self.message)
        self.set_status("busy")

    def begin_step(self) -> None:
        """The first part of each answer."""
        if not self.message["parts"]:
            self.part_updated(self.message, {"type": "step-start"})

    def late(self) -> None:
        """What is said of the session and the prompt by the way, also after it went idle."""
        self.session_updated()
        self.message_updated(self.user)

    # What the answers are made of.

    def begin(self) -> bool:
        self.session["agent"] = self.prompt.agent
        self.server.note("busy", session=self.id)
        self.message_updated(self.user)
        for part in self.user["parts"]:
            self.part_updated(self.user, part)
        self.set_status("busy")
        self.begin_message(self.user)
        self.late()
        self.flush()
        return True

    def open_text(self) -> None:
        self.begin_step()
        time_now = {"start": milliseconds()}
        self.part = self.part_updated(self.message, {"type": "text", "text": "", "time": time_now})

    def delta(self, words: str) -> None:
        self.publish(
            "message.part.delta",
            sessionID=self.id,
            messageID=self.part["messageID"],
            partID=self.part["id"],
            field="text",
            delta=words,
        )

    def close_text(self, text: str) -> None:
        self.part["text"] = text
        self.part["time"]["end"] = milliseconds()
        self.part_updated(self.message, self.part)

    def tool(self, name: str, given: Json) -> Json:
        self.begin_step()
        part: Json = {
            "type": "tool",
            "tool": name,
            "callID": self.server.new_id("call"),
            "state": {"status": "pending", "input": {}, "raw": ""},
        }
        self.part_updated(self.message, part)
        part["state"] = {"status": "running", "input": given, "time": {"start": milliseconds()}}
        return self.part_updated(self.message, part)

    def tool_end(self, tool: Json, output: str) -> None:
        given = tool["state"]["input"]
        title = str(given.get("description") or given.get("filePath") or "")
        tool["state"].update(
            status="completed", output=output, title=title, metadata={"truncated": False}
        )
        tool["state"]["time"]["end"] = milliseconds()
        self.part_updated(self.message, tool)

    def tool_failed(self, tool: Json, error: str) -> None:
        """The tool's error."""
        tool["state"].update(status="error", error=error)
        tool["state"]["time"]["end"] = milliseconds()
        self.part_updated(self.message, tool)

    def tool_rejected(self, tool: Json, message: str) -> None:
        words = "The user rejected permission to use this specific tool call"
        self.tool_failed(tool, f"{words} with the following feedback: {message}")

    def refused(self, tool: Json, kind: str) -> None:
        """A bare refusal ends the turn with a finish reason of tool-calls."""
        words = "The user rejected permission to use this specific tool call."
        self.tool_failed(
            tool, words if kind == "permission" else "The user dismissed this question"
        )
        self.step_end("tool-calls", self.cost / 2)
        self.idle()
        self.late()
        self.flush()

    def edited(self) -> None:
        self.publish("file.edited", file=self.plan)

    def step_end(self, finish: str, cost: float) -> None:
        cost = cost if self.server.price else 0
        tokens = no_tokens()
        if finish != "unknown":
            tokens.update(total=120, input=100, output=20)
        part = {"type": "step-finish", "reason": finish, "tokens": tokens, "cost": cost}
        self.part_updated(self.message, part)
        self.message["info"].update(cost=cost, tokens=tokens, finish=finish)
        self.message["info"]["time"]["completed"] = milliseconds()
        self.message_updated(self.message)
        self.session["cost"] = round(self.session["cost"] + cost, 9)
        for key in ("input", "output"):
            self.session["tokens"][key] += tokens[key]

    def next_step(self, cost: float) -> None:
        self.step_end("tool-calls", cost)
        self.set_status("busy")
        self.begin_message(self.user)
        self.late()

    def end(self, told: bool = True, over: bool = True) -> None:
        self.set_status("busy")
        if told and over:
            self.idle()
            self.late()
        elif told:
            self.idle_events(self.id)
        elif over:
            self.server.status.pop(self.id, None)

    def complete(self, **more: Any) -> None:
        """The open message is over without a finish reason."""
        self.message["info"].update(more)
        self.message["info"]["time"]["completed"] = milliseconds()
        self.message_updated(self.message)

    def fail_with(self, error: Json) -> None:
        """The session says so and goes idle, then the message, idle again."""
        self.publish("session.error", sessionID=self.id, error=error)
        self.idle()
        time.sleep(0.05)
        self.complete(error=error)
        self.idle()

    def fail(self, code: int, message: str) -> None:
        data: Json = {"message": message}
        if not code:
            data["providerID"] = self.user["info"]["model"]["providerID"]
            return self.fail_with({"name": "ProviderAuthError", "data": data})
        data.update(
            statusCode=code,
            isRetryable=False,
            responseHeaders={"content-type": "application/json"},
            responseBody=encode({"error": {"message": message, "type": "error"}}),
            metadata={"url": "http://127.0.0.1:9/v1/chat/completions"},
        )
        return self.fail_with({"name": "APIError", "data": data})

    def retry(self, seconds: float, attempt: int, code: int, message: str) -> None:
        self.retrying = True
        due = milliseconds() + int(seconds * 1000)
        self.set_status("retry", attempt=attempt, message=message, next=due)
        self.wait(seconds)
        self.retrying = False
        self.set_status("busy")

    def abort(self) -> None:
        """During a retry the message gets neither a finish nor an error."""
        if "completed" in self.message["info"]["time"]:
            return self.idle()
        if self.retrying:
            self.complete()
            return self.idle()
        for part in self.message["parts"]:
            if part["type"] == "tool" and part["state"]["status"] == "running":
                self.tool_end(part, "(no output)\n\nUser aborted the command")
        return self.fail_with({"name": "MessageAbortedError", "data": {"message": "Aborted"}})

    def ask(self, kind: str, tool: Json) -> Reply:
        number = self.server.new_id("per" if kind == "permission" else "que")
        origin = {"messageID": self.message["info"]["id"], "callID": tool["callID"]}
        entry: Json = {"id": number, "sessionID": self.id, "tool": origin}
        if kind == "permission":
            command = tool["state"]["input"]["command"]
            entry.update(
                permission="bash",
                patterns=[command],
                metadata={"command": command},
                always=[f"{command} *"],
            )
        else:
            entry["questions"] = tool["state"]["input"]["questions"]
        self.publish(f"{kind}.asked", **entry)
        reply = self.asked(kind, number, entry)
        told = {"sessionID": self.id, "requestID": number}
        if kind == "permission":
            self.publish("permission.replied", **told, reply=reply.decision)
        elif reply.decision == "answer":
            self.publish("question.replied", **told, answers=reply.answers)
        else:
            self.publish("question.rejected", **told)
        return reply

    def child(self, tool: Json) -> Turn:
        assert isinstance(self.server, Server1)
        session = self.server.new_session(
            {"title": "Push (@general subagent)", "parentID": self.id},
            self.session["directory"],
        )
        self.publish("session.created", sessionID=session["id"], info=session)
        tool["state"]["metadata"] = {"parentSessionId": self.id, "sessionId": session["id"]}
        self.part_updated(self.message, tool)
        self.flush()
        info = {
            **self.user["info"],
            "id": self.server.new_id("msg"),
            "sessionID": session["id"],
            "agent": "general",
        }
        user: Json = {"info": info, "parts": [{"type": "text", "text": "Push it."}]}
        user["parts"][0].update(
            id=self.server.new_id("prt"), messageID=info["id"], sessionID=session["id"]
        )
        self.server.messages[session["id"]].append(user)
        prompt = Prompt(info["id"], "Push it.", self.prompt.model, "general")
        child = Turn1(self.server, session, prompt, self.plan, user)
        child.parent = self
        child.wake = self.wake
        child.set_status("busy")
        child.begin_message(user)
        return child

    def child_end(self, tool: Json, child: Turn) -> None:
        self.publish("session.updated", sessionID=child.id, info=child.session)
        self.tool_end(tool, "Tried to push.")

    def strangers(self, other: str) -> None:
        self.publish("session.created", sessionID=other, info={"id": other})
        self.publish("session.error", sessionID=other, error={"name": "UnknownError", "data": {}})
        self.idle_events(other)

    # The answers that 1.x has of its own.

    def answer_unknown(self, argument: str) -> None:
        """A hot loop without an end."""
        while True:
            self.text("hm")
            self.step_end("unknown", 0)
            self.begin_message(self.user)
            self.wait(0.05)

    def answer_again_answers(self, argument: str) -> None:
        """The same prompt is answered again and again."""
        while True:
            self.text("All is done.")
            self.step_end("stop", self.cost)
            self.begin_message(self.user)
            self.wait(0.2)

    def answer_overflow(self, argument: str) -> None:
        data = {"message": "The context is too long.", "responseBody": "{}"}
        error = {"name": "ContextOverflowError", "data": data}
        self.publish("session.error", sessionID=self.id, error=error)
        self.complete()
        compaction = self.user_message("", type="compaction", auto=True, overflow=True)
        self.begin_message(compaction, "compaction", summary=True)
        self.wait(0.2)
        self.text("What was done so far.")
        self.step_end("stop", 0.0001)
        metadata = {"compaction_continue": True}
        self.user = self.user_message("Continue.", synthetic=True, metadata=metadata)
        self.publish("session.compacted", sessionID=self.id)
        self.begin_message(self.user)
        self.wait(0.2)
        self.work()

    def answer_typed(self, argument: str) -> None:
        """It is answered and goes idle, then the prompt is."""
        own = self.message
        self.begin_message(self.user_message("A word from a person."))
        self.text("Noted.")
        self.step_end("stop", 0.0001)
        self.message = own
        self.idle()
        self.wait(0.5)
        self.set_status("busy")
        self.work()


class Server1(Server):
    """Everything a process of `opencode serve` 1.x knows, and its routes."""

    turn = Turn1
    events_path = "/event"
    version = "1.18.33"

    def __init__(self, behaviour: Json) -> None:
        super().__init__(behaviour)
        self.five = behaviour.get("routes") == "five"
        self.config_error = bool(behaviour.get("config_error"))
        self.status_route = bool(behaviour.get("status_route", True))

    def event(self, kind: str, data: Json) -> Json:
        return {"id": self.new_id("evt"), "type": kind, "properties": data}

    def beat(self) -> bytes:
        return frame(self.event("server.heartbeat", {}))

    def connected(self) -> bytes:
        return frame(self.event("server.connected", {}))

    def tool_environment(self, session: str) -> dict[str, str]:
        return {"OPENCODE_PID": str(os.getpid())}

    def unauthorized(self) -> Answer:
        return Answer(401, None, 'www-authenticate: Basic realm="Secure Area"\r\n')

    def message_id(self, message: Json) -> str:
        return str(message["info"]["id"])

    def streams_events(self, request: Request) -> bool:
        return super().streams_events(request) and not self.config_error

    # The routes.

    def route(self, request: Request) -> Answer:
        method, path = request.method, request.path
        header = request.headers.get(b"x-opencode-directory", b"").decode("utf-8", "replace")
        directory = request.query.get("directory") or unquote(header) or os.getcwd()
        names = path.strip("/").split("/")
        if self.five and not FIVE.fullmatch(f"{method} {path}"):
            return not_found("Not found")
        if path == "/global/health":
            return Answer(200, {"healthy": True, "version": self.version})
        if path == "/global/dispose" and method == "POST":
            return self.dispose(request, directory)
        if self.config_error:
            return Answer(400, config_error(directory))
        if names[0] == "session" and (len(names) > 1 or method == "POST"):
            return self.session_route(request, names[1:], directory)
        if names[0] in ("permission", "question") and method == "POST" and len(names) == 3:
            return self.reply(request, names[0], names[1], names[2])
        return self.list_route(path) if method == "GET" else Answer(404)

    def list_route(self, path: str) -> Answer:
        """The routes that only tell. Some of those below /api are there, and prove nothing."""
        if path == "/session":
            return Answer(200, list(self.sessions.values()))
        if path == "/permission":
            return Answer(200, self.asked("permission"))
        if path == "/question":
            failed = server_error() if self.question_fails else self.asked("question")
            return Answer(self.question_fails or 200, failed)
        if path == "/agent":
            return Answer(200, [self.agent(name) for name in self.agents])
        if path == "/config":
            own = json.loads(os.environ.get("OPENCODE_CONFIG_CONTENT") or "{}")
            return Answer(200, {"model": self.model, "agent": {}, "plugin": [], **own})
        if path == "/config/providers":
            return Answer(200, self.providers())
        if path == "/api/health":
            return Answer(200, {"healthy": True})
        if path in ("/api/session", "/api/model", "/api/agent"):
            return Answer(200, {"data": []})
        return Answer(200, {"data": {}} if path == "/api/session/active" else PAGE)

    def agent(self, name: str) -> Json:
        """An agent of /agent."""
        return {"name": name, "mode": "primary", "native": True, "permission": [], "options": {}}

    def providers(self) -> Json:
        """The models that exist, by provider."""
        providers: dict[str, Json] = {}
        price = int(self.price)
        for name in self.models:
            provider, _, model = name.partition("/")
            entry = providers.setdefault(
                provider, {"id": provider, "name": provider, "source": "config", "models": {}}
            )
            entry["models"][model] = {
                "id": model,
                "providerID": provider,
                "name": model,
                "status": "active",
                "cost": {"input": price, "output": price, "cache": {"read": 0, "write": 0}},
                "limit": self.limits(),
            }
        default = {provider: next(iter(entry["models"])) for provider, entry in providers.items()}
        return {"providers": list(providers.values()), "default": default}

    def new_session(self, given: Json, directory: str) -> Json:
        """Make a session; the caller tells of it."""
        number = self.new_id("ses")
        now = milliseconds()
        session: Json = {
            "id": number,
            "version": self.version,
            "projectID": "global",
            "directory": directory,
            "title": "New session",
            "cost": 0,
            "tokens": no_tokens(),
            "time": {"created": now, "updated": now},
            **{key: given[key] for key in ("title", "parentID", "permission") if key in given},
        }
        self.messages[number] = []
        self.sessions[number] = session
        self.keep(of=number, session=session)
        return session

    def session_route(self, request: Request, names: list[str], directory: str) -> Answer:
        """Everything below /session; `names` is the rest of the path."""
        if not names:
            session = self.new_session(request.given, directory)
            number = session["id"]
            self.note(
                "session",
                time=request.arrived,
                session=number,
                title=session["title"],
                directory=directory,
            )
            self.publish("session.created", sessionID=number, info=session)
            return Answer(200, session)
        number, rest = names[0], "/".join(names[1:])
        if number == "status" and self.status_route:
            return Answer(200, self.status)
        if rest == "abort":
            return self.abort(request, number)
        if number not in self.sessions:
            return not_found(f"Session not found: {number}")
        if rest == "prompt_async" and self.old != "1.0.0":
            return self.prompt(request, number)
        if rest == "message" and request.method == "GET":
            return Answer(200, self.messages[number][-int(request.query.get("limit") or 0) :])
        if rest == "children":
            sessions = list(self.sessions.values())
            return Answer(200, [one for one in sessions if one.get("parentID") == number])
        if rest.startswith("permissions/"):
            return self.reply(request, "permission", rest[12:], "reply")
        return Answer(404) if rest else Answer(200, self.sessions[number])

    def prompt(self, request: Request, number: str) -> Answer:
        """Take a prompt; whatever is wrong with it, the answer is 204 and the events tell."""
        given = request.given
        parts = given.get("parts", [])
        text = "\n".join(part.get("text", "") for part in parts)
        self.plan = find_plan(text) or self.plan
        provider, _, model = self.model.partition("/")
        chosen = given.get("model") or {}
        info: Json = {
            "id": given.get("messageID") or self.new_id("msg"),
            "role": "user",
            "sessionID": number,
            "time": {"created": milliseconds()},
            "agent": given.get("agent") or "build",
            "model": chosen or {"providerID": provider, "modelID": model},
        }
        self.note(
            "prompt",
            time=request.arrived,
            session=number,
            id=info["id"],
            text=text,
            model=f"{chosen['providerID']}/{chosen['modelID']}" if chosen else "",
            agent=given.get("agent") or "",
        )
        own = {"messageID": info["id"], "sessionID": number}
        user: Json = {"info": info, "parts": []}
        for part in parts:
            user["parts"].append({**part, "id": part.get("id") or self.new_id("prt"), **own})
        name = f"{info['model']['providerID']}/{info['model']['modelID']}"
        turn = Turn1(
            self,
            self.sessions[number],
            Prompt(info["id"], text, name, info["agent"]),
            self.plan,
            user,
        )
        return Answer(204, after=lambda: self.take(turn))

    def take(self, turn: Turn1) -> None:
        """Answer a prompt, in a thread of its own."""
        prompt = turn.prompt
        if prompt.agent not in self.agents:
            return self.unknown_agent(turn)
        if prompt.model not in self.models:
            return self.unknown_model(turn)
        if any(other.prompt.id == prompt.id for other in list(self.turns)):
            return None
        if self.answered(turn.id, prompt.id):
            return self.nothing_new(turn)
        known = prompt.id in self.prompts
        answer = self.choose(turn.id, prompt.id, going_on=known)
        if not known:
            self.messages[turn.id].append(turn.user)
            self.keep(of=turn.id, message=turn.user)
        if answer != "silent":
            with self.lock:
                self.turns.append(turn)
            threading.Thread(target=turn.run, args=(answer,), daemon=True).start()
        return None

    def answered(self, session: str, prompt: str) -> bool:
        """Whether a prompt has an answer that came to a good end."""
        for message in self.messages[session]:
            info = message["info"]
            finish = info.get("finish")
            if info.get("parentID") == prompt and finish not in (None, "tool-calls", "unknown"):
                return True
        return False

    def nothing_new(self, turn: Turn1) -> None:
        """The same ids again, answered long ago: busy and idle, no second answer."""
        turn.message_updated(turn.user)
        turn.set_status("busy")
        turn.idle()

    def unknown_agent(self, turn: Turn1) -> None:
        """Two errors, no status and no idle ever."""
        known = ", ".join(sorted(self.agents))
        words = f'Agent not found: "{turn.prompt.agent}". Available agents: {known}'
        for message in (words, "UnknownError: UnknownError\n    at <anonymous>"):
            self.publish("session.error", sessionID=turn.id, error=unknown_error(message))

    def unknown_model(self, turn: Turn1) -> None:
        """Busy, an error, idle, a second error; the prompt stays without an answer."""
        self.messages[turn.id].append(turn.user)
        turn.message_updated(turn.user)
        turn.set_status("busy")
        words = f"Model not found: {turn.prompt.model}."
        turn.publish("session.error", sessionID=turn.id, error=unknown_error(words))
        turn.idle()
        words = f"ProviderModelNotFoundError: {words}\n    at <anonymous>"
        turn.publish("session.error", sessionID=turn.id, error=unknown_error(words))
        turn.flush()

    def abort(self, request: Request, number: str) -> Answer:
        """Abort a session and its children; even one that nobody knows is said to go idle."""
        self.note("abort", time=request.arrived, session=number)
        if not self.stop_turns(number):
            self.status.pop(number, None)
            self.publish("session.status", sessionID=number, status={"type": "idle"})
            self.publish("session.idle", sessionID=number)
        return Answer(200, True)

    def reply(self, request: Request, kind: str, number: str, verb: str) -> Answer:
        """Answer a permission or a question, once."""
        given = request.given
        decision = given.get("reply") or given.get("response")
        if kind == "question":
            decision = "dismiss" if verb == "reject" else "answer"
        elif decision not in ("once", "always", "reject"):
            return Answer(400, {"name": "BadRequest", "data": {"message": "Expected once"}})
        reply = Reply(str(decision), str(given.get("message") or ""), given.get("answers"))
        status = self.give(request, kind, number, reply)
        if status == 200:
            return Answer(200, True)
        if status != 404:
            return Answer(status, server_error())
        words = f"{kind.title()} request not found: {number}"
        tag = f"{kind.title()}NotFoundError"
        return Answer(404, {"_tag": tag, "requestID": number, "message": words})

    def dispose(self, request: Request, directory: str) -> Answer:
        """End what runs, the bash tools too, and every event stream."""
        self.note("dispose", time=request.arrived)
        self.stop_turns()
        self.kill_tools()
        self.publish("server.instance.disposed", directory=directory)
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.write(b"0\r\n\r\n")
            stream.end()
        return Answer(200, True)


def unknown_error(message: str) -> Json:
    """The error that has no name of its own."""
    return {"name": "UnknownError", "data": {"message": message}}


def server_error() -> Json:
    """What a route says that fails."""
    return unknown_error("It failed, as ordered.")


def not_found(message: str) -> Answer:
    """The answer for what does not exist."""
    return Answer(404, {"name": "NotFoundError", "data": {"message": message}})


def config_error(directory: str) -> Json:
    """What every route of a directory with a broken opencode.json answers."""
    path = os.path.join(directory, "opencode.json")
    message = "\nCloseBraceExpected at line 3"
    return {"name": "ConfigJsonError", "data": {"path": path, "message": message}}
