"""Simulated worlds, and what interrupts a run in them.

Agents that work for some seconds, ask for something, settle a task and end their turn; and a server
that answers each kind of request in one fixed way. Two agents at work at once, a prompt after the
end, or an id that stands for two prompts: each is an error wherever it happens.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stories import BROKEN_SETUP, NO_ANSWER, NOON, RESTS, Json, No, Story, permission

from ocloop import (
    Activity,
    Ask,
    Broke,
    Child,
    Fault,
    Message,
    Polled,
    Question,
    ScreenLost,
    Spend,
    StreamOpened,
)

STEP = 9.0  # seconds between two turns at the most; more than ten would be time away
ENDLESS = 1e12
LATE = 601.0  # nobody waits so long for an answer
# Two simulated hours: one in which a provider may be waited for (max_wait), one for all the rest:
# three iterations in a row that fail (--retries 2), each with what its requests may take.
WITHIN = 2 * 3600.0
WAYS = ("400", "404", "500", "final", "never", "late", "slow", "twice")
REQUESTS = [*Story().good]
# A check may take any time: --check-timeout ends it, outside of the core.
MISBEHAVIOURS = [
    (name, way) for name in REQUESTS for way in WAYS if (name, way) != ("run_check", "never")
]
ON_THE_SERVER = ("setup", "create", "send", "poll", "interrupt", "reply")


class Agent(NamedTuple):
    """The truth about a session that was prompted."""

    session: str
    prompt: str  # its id
    begins: float  # before, an interrupt does nothing
    until: float  # it works so long, unless somebody stops it
    asks: Ask | None = None  # what it waits for, until somebody answers
    fault: Fault | None = None  # how its turn ends, when not well
    is_ended_by_refusal: bool = False
    child: str = ""


class Simulation(Story):
    """A server and its agents, in simulated time; `ways` says how which request is answered."""

    def __init__(
        self,
        ways: dict[str, str] | None = None,
        since: int = 1,  # the ways hold from so many requests of that name on,
        times: int = 10**9,  # so many times
        mute: bool = False,  # nothing is heard on the stream
        does: Sequence[str] = (),  # what the agents do, one after the other; then they just work
        works_for: float = 20.0,
        grows: float = 0.0,  # the first server, so many MiB a second
        **options: Any,
    ) -> None:
        self.ways = ways or {}
        self.since = since
        self.times = times
        self.mute = mute
        self.does = list(does)
        self.works_for = works_for
        self.grows = grows
        self.agents: dict[str, Agent] = {}
        # Prompts whose turn has ended, by their id, and how.
        self.finished: dict[str, tuple[str, Fault | None]] = {}
        self.prompts: dict[str, Any] = {}  # by the id of the message
        self.costs: dict[str, float] = {}  # what was told of the session under way
        self.counts: collections.Counter[str] = collections.Counter()
        self.posted: list[tuple[float, int, bool, Callable[[], None]]] = []
        self.happened = 0
        self.launches = 0
        given: Json = {
            "attended": False, "auto": True, "check": "make", "notify": "mail",
            "retries": 2, "stuck": 2, "max_wait": 3600.0, "ask_timeout": 30.0,
            "stall_timeout": 60.0, "iteration_timeout": 0.0,
        }  # fmt: skip
        super().__init__(**{**given, **options})

    # What the world does with requests.

    def carry_out(self, requests: Sequence[Any]) -> None:
        """Nothing is prompted at rest, and an id stands for one prompt in one session."""
        for request in requests:
            name = request.name
            assert not self.exits, name
            self.requests.append(request)
            self.counts[name] += 1
            if name in ("create", "send"):
                assert self.state in ("running", "pausing"), f"{name} while {self.state}"
            if name == "send":
                known = self.prompts.setdefault(request.prompt.message_id, request)
                again = request.prompt._replace(attempt=known.prompt.attempt)
                assert (known.session, known.prompt) == (request.session, again)
            is_hit = 0 <= self.counts[name] - self.since < self.times
            if name != "exit":
                self.treat(name, request, self.ways.get(name, "right") if is_hit else "right")

    def treat(self, name: str, request: Any, way: str) -> None:
        if way == "404":
            self.agents.pop(getattr(request, "session", ""), None)  # it is gone
        refused = {"final": No("it is no use", 400, BROKEN_SETUP, again=False)}
        refused.update({code: No(f"HTTP {code}", int(code)) for code in ("400", "404", "500")})
        value = refused[way] if way in refused else self.good[name](request)
        if way == "lost":  # it arrived, its answer did not
            value = No(NO_ANSWER)
        launch = self.launches
        delays = {"never": (), "late": (LATE,), "slow": (7.0,), "lost": (5.0,), "twice": (0.1, 3.1)}
        for delay in delays.get(way, (0.1,)):
            self.post(delay, lambda: self.reply_from(launch, name, request, value), True)

    def reply_from(self, launch: int, name: str, request: Any, value: Any) -> None:
        if name in ON_THE_SERVER and launch != self.launches:
            value = No("it went down with its server")
        if name == "poll" and not isinstance(value, No):
            self.note_cost(request.session, value.spent.cost)
        self.answer(request, value)

    def note_cost(self, session: str, cost: float) -> None:
        if session == self.id:
            self.costs[session] = max(cost, self.costs.get(session, 0.0))

    def post(self, delay: float, happens: Callable[[], None], is_answer: bool = False) -> None:
        self.posted.append((self.now + delay, len(self.posted) + self.happened, is_answer, happens))

    def say(self, delay: float, event: Any) -> None:
        """Let it be heard on the stream, later."""

        def happens() -> None:
            if isinstance(event, Message):
                self.note_cost(event.session, event.spend.cost)
            self.tell(event)

        if not self.mute:
            self.post(delay, happens)

    def start_anew(self, request: Any = None) -> Any:
        """The server ends, with whoever works there."""
        self.agents.clear()
        self.launches += 1
        return ("http://127.0.0.1:4096", "1.18.33", 1)

    def create(self, request: Any) -> str:
        self.good.update(start_server=self.start_anew, stop_server=self.start_anew)
        self.good.update(reply=self.take_reply, measure_server=self.measure, send=self.accept)
        self.sessions += 1
        return self.id

    def accept(self, request: Any) -> None:
        session = request.session
        if session in self.agents or request.prompt.message_id in self.finished:
            return  # the same ids: nothing is run twice
        assert not self.agents, f"{self.told}: {[*self.agents]} at work beside {session}"
        does = self.does.pop(0) if self.does else ""
        prompt = request.prompt.message_id
        agent = Agent(session, prompt, self.now + 1.5, self.now + self.works_for)
        self.say(1.5, Activity(session, "working"))
        self.say(1.8, Message(session, f"msg_{session}", Spend(0.1)))
        if does == "subagent":
            agent = agent._replace(child=f"{session}_child")
            self.say(1.9, Child(session, agent.child))
        if does in ("ask", "two asks", "question", "subagent"):
            asks = permission(f"per_{session}", agent.child or session)
            if does == "question":
                question = (Question("Which?", (("red", ""),)),)
                asks = Ask(f"que_{session}", session, "question", "", "?", question)
            self.say(2.0, asks)
            is_ended = does == "two asks"
            agent = agent._replace(asks=asks, until=ENDLESS, is_ended_by_refusal=is_ended)
        if does == "limit":
            fault = Fault("rate-limit", "Too Many Requests")
            agent = agent._replace(fault=fault, until=self.now + 4)
        if does == "retry":
            self.say(2.0, Activity(session, "retrying", 1, 8.0, "busy"))
            self.say(10.0, Activity(session, "working"))
        self.agents[session] = agent

    def take_reply(self, request: Any) -> None:
        for agent in list(self.agents.values()):
            if agent.asks and agent.asks.id == request.request.id:
                is_ended = agent.is_ended_by_refusal and request.decision == "reject"
                until = self.now + (0.5 if is_ended else self.works_for)
                self.agents[agent.session] = agent._replace(
                    asks=None, until=until, is_ended_by_refusal=is_ended
                )

    def measure(self, request: Any) -> int:
        return int((self.now - NOON) * self.grows) if self.launches == 0 else 0

    def comes_to_rest(self, request: Any) -> None:
        agent = self.agents.get(request.session)
        if agent and self.now >= agent.begins:
            del self.agents[agent.session]

    def look(self, request: Any) -> Polled:
        agent = self.agents.get(request.session)
        if agent and self.now >= agent.begins:
            return Polled(
                "working",
                "unfinished" if request.closer else "",
                spent=Spend(0.1),
                asks=(agent.asks,) if agent.asks else (),
                children=(agent.child,) if agent.child else (),
            )
        verdict, fault = self.finished.get(request.prompt.message_id, ("undelivered", None))
        return Polled("idle", verdict, fault, spent=Spend(0.1))

    # Time.

    def turn(self) -> None:
        """To the next thing that happens, or a step further."""
        due = min(self.posted, default=None, key=lambda item: item[:2])
        ends = min((agent.until for agent in self.agents.values()), default=ENDLESS)
        self.now = max(self.now, min(self.now + STEP, due[0] if due else ENDLESS, ends))
        for agent in list(self.agents.values()):
            if self.now >= agent.until:
                self.finish(agent)
        if due and due[0] <= self.now:
            self.posted.remove(due)
            self.happened += 1
            due[3]()
        self.hear()

    def finish(self, agent: Agent) -> None:
        del self.agents[agent.session]
        if agent.fault:
            self.finished[agent.prompt] = ("failed", agent.fault)
            self.say(0.1, Broke(agent.session, agent.fault))
        elif agent.is_ended_by_refusal:
            self.finished[agent.prompt] = ("refused", None)
        else:
            self.finished[agent.prompt] = ("answered", None)
            self.plan = (self.plan or "").replace("[ ]", "[x]", 1)
            if "[ ]" not in self.plan and "<plan" not in self.plan:
                self.plan += "<plan-complete>all of it</plan-complete>\n"
        self.say(0.2, Activity(agent.session, "idle"))

    @property
    def rests(self) -> bool:
        return bool(self.exits) or self.state in RESTS

    @property
    def told(self) -> str:
        return f"{self.ways} while {self.state}, {self.reason}"


def drive(world: Simulation, within: float = WITHIN) -> Simulation:
    """Until the run rests or ends, which it must, without burning meanwhile."""
    began = world.now
    before = sum(world.counts.values())
    while not world.rests:
        world.turn()
        assert world.now - began <= within, f"{world.told}: no end after {world.now - began:.0f} s"
    requested = sum(world.counts.values()) - before
    assert requested <= 60 + (world.now - began), f"{world.told}: it burns: {world.counts}"
    return world


# ── interrupted everywhere ────────────────────────────────────────────────────────────────────────
# Short stories, each once more with an interruption after each thing that happens in it.

SHORT: dict[str, Json] = {
    "two tasks with a check": {"does": ()},
    "a permission": {"does": ("ask",), "auto": False},
    "a question": {"does": ("question",)},
    "a rate limit": {"does": ("limit",)},
    "a subagent that asks": {"does": ("subagent",), "auto": False},
    "a retry": {"does": ("retry",), "stall_timeout": 0.0},
    "two asks": {"does": ("two asks",), "auto": False},
    "a server that grows": {"grows": 110.0, "server_memory": 1000, "works_for": 40.0},
}


def lose_stream(world: Simulation) -> None:
    """What happens meanwhile is not repeated when it is back."""
    world.posted = [one for one in world.posted if one[2]]
    world.tell(StreamOpened())


def kill_server(world: Simulation) -> None:
    world.start_anew()
    world.server_dies()


INTERRUPTIONS: dict[str, Callable[[Simulation], None]] = {
    "Q": lambda world: world.press("q", "q"),
    "X": lambda world: world.press("x"),
    "space": lambda world: world.press("space"),
    "death": kill_server,
    "screen": lambda world: world.tell(ScreenLost("gone")),
    "stream": lose_stream,
}


def replay(story: str, after: int = -1, happens: str = "") -> Simulation:
    """A short story, with an interruption after so many things that happen in it."""
    world = Simulation(attended=True, **SHORT[story])
    while not world.rests:
        if world.happened == after:
            INTERRUPTIONS[happens](world)
            break
        world.turn()
    return drive(world)


def note_end_of(world: Simulation) -> None:
    """Nobody is left at work, but for the one that the program itself stops when it leaves."""
    left = set(world.agents)
    assert left <= ({world.abandoned} if world.exits else set()), world.told
    assert abs(world.total.cost - sum(world.costs.values())) < 1e-6, "all costs are counted"
