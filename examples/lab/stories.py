"""How a test tells a story: a run, and a world that answers each of its requests.

The run knows no processes, no network and no sleeping: the time is an argument. A Story is a run
with a world that answers every request as a well-behaved OpenCode would, at once. A test says what
happens (`busy`, `works`, `tell`), interferes (`world`, `plan`, `activity`), and reads what was
requested (`take`) and where the run stands (`state`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # ocloop is there

import ocloop
from ocloop import (
    Activity,
    Answer,
    Ask,
    Books,
    Broke,
    Entry,
    Fault,
    Key,
    Message,
    Options,
    Part,
    Picture,
    Plan,
    Polled,
    Problem,
    Prompt,
    Question,
    RequestError,
    Result,
    Run,
    ServerDied,
    Setup,
    Spend,
    parse_plan,
)

Json = dict[str, Any]
Way = Callable[[Any], Any]  # from a request to what it is answered with

NOON = 1_800_000_000.0
MAYBE = frozenset(("poll", "read_files", "measure_server", "stop_check"))  # what looking adds
BEGINS = "start_server setup create send"
TWO = "# Part\n- [ ] one\n- [ ] two\n"
NINE = "- [ ] a\n" * 9
DONE = "- [x] one\n<plan-complete>done</plan-complete>"
GONE = "the plan /project/PLAN.md cannot be read (No such file): put it back"
FILES = {"directory": "/project", "plan": "/project/PLAN.md", "prompt": "/project/PROMPT.md"}
NO_ANSWER = "timed out"
ACME = ocloop.Setup(
    model="acme/gone",
    models={"acme/large": 1000, "acme/small": 0},
    agents=("build", "plan"),
    variants={"acme/large": ("low", "medium", "high")},
)
CHECK_STOPPED = ocloop.CheckResult(-15, "", True)
BROKEN_SETUP = "ConfigInvalidError"
RESTS = ("ready", "paused", "complete", "error", "stopping")  # where only a person goes on


class No(NamedTuple):
    """An answer: it was not carried out."""

    problem: str
    code: int = 0  # HTTP's; 0: there was no answer
    name: str = ""  # of the error
    again: bool = True  # trying again can help


# The names of what a request carries.
CARRIES = {
    "start_server": "launch", "stop_server": "session", "create": "prompt",
    "send": "session prompt", "interrupt": "session prompt",
    "poll": "session prompt closer", "reply": "request decision message",
    "run_check": "facts", "notify": "facts",
}  # fmt: skip


class Story:
    """A run, the world around it, and all that was said between them.

    `finds` is what is otherwise than usual when the run begins: a fact of the world, or by the name
    of a request how it is answered.
    """

    def __init__(
        self,
        plan: str | None = TWO,
        now: float = NOON,
        start: bool = True,
        seed: str = "seed0001",
        finds: Json | None = None,
        **options: Any,
    ) -> None:
        self.options = Options(**{**FILES, "run": True, "attended": True, **options})
        self.run = Run(self.options, now, seed)
        self.now = now
        self.plan = plan
        self.prompt: str | None = "Do {{TASK}}{{CHECK}}"
        self.setup = Setup("a/b", {"a/b": 1000, "c/d": 1000}, ("build", "plan"))
        # What a look at the session shows.
        self.activity = "working"
        self.verdict = ""
        self.fault: Fault | None = None
        self.spent: Spend | None = None
        self.children: tuple[str, ...] = ()
        self.asks_open: tuple[Ask, ...] | None = None
        self.unlisted: tuple[str, ...] = ()
        self.retry: Activity | None = None
        self.memory = 0
        self.check = 0  # exit status of the check
        self.sessions = 0
        self.good: dict[str, Way] = {
            "start_server": answers(("http://127.0.0.1:4096", "1.18.33", 1)),
            "measure_server": lambda _: self.memory,
            "setup": lambda _: self.setup,
            "read_files": self.files,
            "create": self.create,
            "poll": self.look,
            "interrupt": self.comes_to_rest,
            "run_check": lambda _: ocloop.CheckResult(self.check, "output of the check"),
            **dict.fromkeys(("send", "reply", "notify", "hand_over"), is_done),
            **dict.fromkeys(("stop_server", "stop_check"), is_done),
        }
        self.world: dict[str, Way | None] = dict(self.good)  # None: it never answers
        for name, value in (finds or {}).items():
            (self.world if value is None or callable(value) else vars(self))[name] = value
        self.requests: list[Any] = []
        self.taken = 0
        self.states = [self.state]
        if start:
            self.hear()

    # How the world answers.

    def files(self, request: Any) -> ocloop.FilesRead:
        problem = "the prompt cannot be read" if self.prompt is None else ""
        return ocloop.FilesRead(self.plan, self.prompt, GONE if self.plan is None else problem)

    def create(self, request: Any) -> str:
        self.sessions += 1
        self.activity = "working"
        self.verdict = ""
        self.fault = None
        self.asks_open = None
        self.children = ()
        return self.id

    def look(self, request: Any) -> Polled:
        is_shown = request.closer or self.activity == "idle"
        verdict = (self.verdict or "undelivered") if is_shown else ""
        return Polled(
            activity="idle" if self.activity == "idle" else "working",
            verdict=verdict,
            fault=self.fault if verdict in ("failed", "cut") else None,
            spent=self.spent,
            children=self.children,
            asks=self.asks_open,
            unlisted=self.unlisted,
            retry=self.retry if self.activity == "retrying" else None,
        )

    def comes_to_rest(self, request: Any) -> None:
        """An interrupt after which the session works no more."""
        self.activity = "idle"

    def mend(self) -> None:
        """The world is well-behaved again."""
        self.world.update(self.good)

    def answer(self, request: Any, value: Any = ...) -> None:
        """Answer a request by hand; without a value, as a well-behaved world would now."""
        self.now += 0.1
        value = self.good[request.name](request) if value is ... else value
        error: Exception | None = None
        if isinstance(value, No):
            error = RequestError(value.code, value.problem, value.name)
            if request.name == "start_server":
                error = Problem(value.problem, again=value.again)
        self.hear(Answer(request.made, None if error else value, error))

    def carry_out(self, requests: Sequence[Any]) -> None:
        self.requests += requests
        for request in requests:
            way = self.world.get(request.name)
            if way:
                self.answer(request, way(request))

    def hear(self, event: Any = None) -> None:
        """The run is told of it, or that time has passed; and what it requests is carried out."""
        requests = []
        for made in self.run.handle(event, self.now):
            fields = zip(CARRIES.get(made.name, "").split(), made.args)
            requests.append(SimpleNamespace(name=made.name, made=made, **dict(fields)))
        if self.run.exit_status is not None and not self.count("exit"):
            requests.append(SimpleNamespace(name="exit", status=self.run.exit_status))
        if self.state != self.states[-1]:
            self.states.append(self.state)
        self.carry_out(requests)

    # What happens.

    def tell(self, *events: Any) -> None:
        """Let events happen, a tenth of a second apart, and their consequences."""
        for event in events:
            self.now += 0.1
            self.hear(event)

    def let_pass(self, seconds: float, step: float = 0.5) -> None:
        until = self.now + seconds
        while self.now < until and not self.exits:
            self.now += min(step, until - self.now)
            self.hear()

    def sleep(self, seconds: float) -> None:
        """The machine sleeps, or its clock is set."""
        self.now += seconds
        self.hear()

    def wait_out(self) -> float:
        """Let the wait for the next attempt pass; returns how long it was, in seconds."""
        seconds = self.wait_left
        self.let_pass(seconds - 1, 5)
        assert self.state == "waiting", self.state
        self.let_pass(2)
        assert self.state == "running", self.state
        return seconds

    def server_dies(self, why: str = "it died") -> None:
        self.tell(ServerDied(self.last("start_server").launch, why))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tell(Key(key))

    # What the server says.

    @property
    def id(self) -> str:
        """The session under way."""
        return f"ses_{self.sessions}"

    def busy(self) -> None:
        self.tell(Activity(self.id, "working"))

    def idle(self) -> None:
        self.activity = "idle"
        self.tell(Activity(self.id, "idle"))

    def retries(self, attempt: int, after: float, message: str = "Too Many Requests") -> None:
        self.tell(Activity(self.id, "retrying", attempt, after, message))

    def message(
        self, ended: str = "", cost: float = 0.0, id: str = "", session: str = "", **more: Any
    ) -> None:
        given: dict[str, Any] = {"model": "a/b", "ended": ended, "is_over": True}
        spend = Spend(cost, 10, 6, 4)
        message = id or f"msg_{self.now}"
        self.tell(Message(session or self.id, message, spend, **{**given, **more}))

    def part(
        self, key: str, kind: str, state: str = "done", session: str = "", **more: Any
    ) -> None:
        self.tell(Part(session or self.id, key, kind, state, **more))

    def asks(self, id: str = "per_1", session: str = "", title: str = "bash") -> None:
        request = permission(id, session or self.id, title)
        self.tell(request)

    def question(self, *labels: str, id: str = "que_1", times: int = 1, session: str = "") -> None:
        asked = Question("Which?", tuple((label, "") for label in labels))
        request = Ask(id, session or self.id, "question", "", "Which?", (asked,) * times)
        self.tell(request)

    # How a session ends.

    def ends(self, verdict: str = "answered", fault: Fault | None = None) -> None:
        """The session comes to rest, and this is how its answer stands."""
        self.verdict = verdict
        self.fault = fault
        self.idle()

    def works(self, cost: float = 0.0, model: str = "a/b") -> None:
        """The agent does the next task and ends its turn."""
        self.busy()
        self.plan = (self.plan or "").replace("[ ]", "[x]", 1)
        self.message("answered", cost, model=model)
        self.ends()

    def idles(self, cost: float = 0.0) -> None:
        """The agent ends its turn, and has settled nothing."""
        self.busy()
        self.message("answered", cost)
        self.ends()

    def fails(
        self,
        kind: str = "provider",
        message: str = "it failed",
        retry_after: float = 0.0,
        cost: float = 0.0,
    ) -> None:
        """An error of the provider's ends the turn."""
        fault = Fault(kind, message, retry_after)
        self.busy()
        if cost:
            self.message("", cost)
        self.tell(Broke(self.id, fault))
        self.ends("failed", fault)

    # What is seen of the run.

    def __getattr__(self, name: str) -> Any:
        """Its own words: status, number, total, model, books, clock."""
        return getattr(self.run, name)

    def picture(self) -> Picture:
        return Picture(self.run)

    @property
    def asks_whether_to_quit(self) -> bool:
        return self.picture().ask_shown == ocloop.QUIT_SHOWN

    @property
    def entries(self) -> list[Entry]:
        return list(self.run.journal.entries)

    @property
    def state(self) -> str:
        """Where the run stands, whatever its session does meanwhile."""
        shown = self.run.shown_state
        return "pausing" if shown == "pausing" else self.run.stage

    @property
    def reason(self) -> str:
        return self.run.reason

    @property
    def wait_left(self) -> float:
        """Seconds until the next attempt."""
        assert self.run.wait_until is not None
        return self.run.wait_until - self.run.now

    @property
    def asked(self) -> list[str]:
        """The ids of what waits for somebody."""
        return list(self.run.talk.asks.open) if self.run.talk else []

    @property
    def abandoned(self) -> str:
        """The one that is stopped when the program leaves, on whoever's server."""
        return self.run.talk.id if self.run.talk else self.run.server.abandoned

    def record(self, status: int | None = None) -> Json:
        """The state file of the run."""
        server = ocloop.Outside(self.options, print)
        return ocloop.as_dict(json.loads(json.dumps(ocloop.record_of(self.run, server, status))))

    # What came of it.

    def take(self, *ignored: str) -> str:
        """The names of the requests since the last take, without `ignored`, or what polling and
        reading add."""
        ignore = ignored or MAYBE
        names = [request.name for request in self.requests[self.taken :]]
        self.taken = len(self.requests)
        return " ".join(name for name in names if name not in ignore)

    def all(self, name: str) -> list[Any]:
        return [request for request in self.requests if request.name == name]

    def count(self, name: str) -> int:
        return len(self.all(name))

    def last(self, name: str) -> Any:
        return self.all(name)[-1]

    @property
    def exits(self) -> list[int]:
        """Its exit status; nothing is requested after that."""
        return [one.status for one in self.requests[-1:] if one.name == "exit"]

    @property
    def text(self) -> str:
        """The journal."""
        return "\n".join(f"{entry.kind}: {entry.text}" for entry in self.entries)

    @property
    def words(self) -> list[str]:
        """What the iterations that are over were called."""
        return [result.word for result in self.books.results]

    @property
    def prompted(self) -> Prompt:
        """The newest prompt."""
        prompt: Prompt = self.last("send").prompt
        return prompt

    @property
    def notified(self) -> str:
        """What --notify was told last."""
        message: str = self.last("notify").facts["OCLOOP_MESSAGE"]
        return message

    @property
    def replied(self) -> list[tuple[str, str]]:
        return [(request.request.id, request.decision) for request in self.all("reply")]

    @property
    def shown(self) -> dict[str, str]:
        """The keys that are offered."""
        return dict(self.picture().keys)


def is_done(request: Any) -> None:
    """It was carried out, and there is no more to say."""


def at_work(plan: str = TWO, **options: Any) -> Story:
    """A story whose first session works."""
    story = Story(plan, **options)
    story.busy()
    return story


def answers(value: Any) -> Way:
    return lambda request: value


def fails_with(code: int, problem: str = NO_ANSWER, name: str = "", again: bool = True) -> Way:
    """An answer: the request was not carried out."""
    return answers(No(problem, code, name, again))


def fails_first(times: int, way: Way, then: Way) -> Way:
    """So often one way, then the other."""
    left = [way] * times

    def answer(request: Any) -> Any:
        return left.pop()(request) if left else then(request)

    return answer


def permission(id: str, session: str, title: str = "bash", detail: str = "rm -r x") -> Ask:
    return Ask(id, session, "permission", title, detail, is_circle=title == "doom_loop")


def is_same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Equal, and of the same kinds: two named tuples of different types may be equal."""
    return [(type(one), one) for one in found] == [(type(one), one) for one in expected]


def in_state(state: str, **options: Any) -> Story:
    """A story that is shown in this state."""
    finds: Json = {"start_server": None} if state == "starting" else {}
    options.setdefault("run", state not in ("ready", "starting"))
    story = Story("- [ ] one\n", finds=finds, **options)
    if state in ("pausing", "paused"):
        story.press("space")
    if state in ("paused", "waiting"):
        story.fails()
    elif state == "stopping":
        story.press("q", "q")
    elif state == "complete":
        story.plan = DONE
        story.ends()
    elif state == "error":
        story.fails("auth")
    assert story.state == state, story.state
    return story


STATES = (
    *("starting", "ready", "running", "pausing", "waiting"),
    *("paused", "complete", "error", "stopping"),
)


def waiting_for(what: str, **options: Any) -> Story:
    """A story in which all is well, but that this has not come yet.

    setup, read_files, create, send: the answer; resend: the time to send again; begin: that the
    prompt, which X is to stop, begins to run; interrupt: the answer to X; look: the last one, after
    that; review: the plan after a session; run_check: its end; server: a new one, while one works.
    """
    if what == "run_check":
        options.setdefault("check", "make test")
    finds: Json = {"send": fails_with(0)} if what == "resend" else {}
    if what in ("setup", "read_files", "create", "send"):
        finds[what] = None
    story = Story(finds=finds, **options)
    if what in ("interrupt", "look", "server"):
        story.world[{"look": "poll", "server": "start_server"}.get(what, what)] = None
        story.busy()
    if what in ("review", "run_check"):
        story.world[{"review": "read_files"}.get(what, what)] = None
        story.works()
    elif what in ("begin", "interrupt", "look"):
        story.press("x")
    elif what == "server":
        story.server_dies()
    return story


WAITS = (
    *("setup", "read_files", "create", "send", "resend", "work", "begin"),
    *("interrupt", "look", "review", "run_check", "server"),
)


# ── results, records and further builders ─────────────────────────────────────────────────────────


def calls(story: Story, times: int, call: int = 7, session: str = "") -> None:
    for _ in range(times):
        key = f"prt_{story.now}"
        story.part(key, "tool", session=session, tool="bash", argument="make", call=call)


def in_line(**options: Any) -> Story:
    """A run with two models in line."""
    given = {"models": ("a/b", "c/d"), "attended": False, "stall_timeout": 0}
    return Story(NINE, **{**given, **options})


def keeps_retrying(story: Story, minutes: float) -> None:
    """OpenCode 1 tries for ever, each 30 s, where no time is announced."""
    began = story.now
    attempt = 0
    while story.now - began < minutes * 60 and story.count("create") == 1 and not story.exits:
        attempt += 1
        story.retries(attempt, 30, "Overloaded")
        story.activity = "retrying"
        story.retry = Activity(story.id, "retrying", attempt, 30, "Overloaded")
        story.let_pass(29.9, 5)


def tasks_of(story: Story) -> list[ocloop.TaskView]:
    return story.picture().tasks


def a_result(outcome: str = "done", progress: bool = False, check: str = "", **more: Any) -> Result:
    values: Json = dict.fromkeys(Result._fields, "")
    values.update(task=ocloop.Task("pending", "one"), number=1, outcome=outcome, seconds=60.0)
    values.update(model="a/b", check=check, refused={})
    values.update(spend=Spend(0.5, 10, 5, 4), progress=progress, fault=ocloop.NO_FAULT)
    return Result(**{**values, **more})


def books_of(*results: Result, **options: Any) -> Books:
    books = Books(Options(**options), ocloop.Journal(ocloop.RunClock(NOON)))
    for result in results:
        books.add(result)
    return books


def project_options(folder: Path, **options: Any) -> Options:
    files = {"plan": f"{folder}/PLAN.md", "prompt": f"{folder}/.loop-prompt.md"}
    return Options(**{"directory": str(folder), **files, **options})


def status_text(story: Story, pid: int = 4711, status: int | None = None) -> str:
    """What `status` says of a story; it has ended where an exit status is given."""
    plan = parse_plan(story.plan or "")
    return status_of(story.record(status), "/project/PLAN.md", plan, pid)


def status_of(
    record: Json, path: str = "/p/PLAN.md", plan: Plan | None = None, pid: int = 0
) -> str:
    plan = plan or Plan()
    return "\n".join(ocloop.status_lines(plan, ocloop.status_record(path, plan, pid, record)))


def growing(**more: Any) -> Setup:
    given: Json = {"agents": ("build",), **more}
    return Setup(**{"models": {"a/b": 1000}, **given})
