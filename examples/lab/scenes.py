"""Screens for the tests: what is shown of a story, in scenes that people know, and of anything.

The golden screens are in screens.txt, for people to look at.
"""

from __future__ import annotations

import os
import random
import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from harness import LAB, cells
from stories import TWO, Json, Story

import ocloop
from ocloop import Ask, Child, Noted, Picture, Plan, Question, Scroll, layout, text_width

# ── what is shown ─────────────────────────────────────────────────────────────────────────────────


def drawn(picture: Picture, width: int, height: int, scroll: Scroll | None = None) -> list[str]:
    rows = layout(picture, width, height, scroll or Scroll())
    return ["".join(text for _rank, _style, text in row) for row in rows]


def header(story: Story, row: int) -> str:
    """A row of the header where there is room for all of it."""
    return drawn(story.picture(), 500, 24)[row]


def timeless(picture: Picture) -> str:
    """All that is shown, without the numbers, which may count on."""
    return re.sub(r"-?[\d.]+", "0", repr({**vars(picture), "journal": None}))


def seen(story: Story, width: int = 80, height: int = 24, scroll: Scroll | None = None) -> str:
    return "\n".join(drawn(story.picture(), width, height, scroll))


SCENERY = """# The plan

## Phase 1: foundations
- [x] Set up the project
- [ ] Write the parser
- [ ] Test the parser on every example of the specification, and on what people really write

## Phase 2: out into the world
- [BLOCKED: no key yet] Deploy it
- [MANUAL] Tell Bob
- [~] Write the documentation
"""


def scenery(**options: Any) -> Story:
    """An iteration that went well, and one under way."""
    limits = {"max_cost": 20.0, "max_time": 8 * 3600.0}
    story = Story(SCENERY, models=("a/b",), **{**limits, **options})
    story.busy()
    story.part("prt_1", "think", text="I have to read the plan first.")
    story.part("prt_2", "tool", tool="read", argument="PLAN.md")
    failed: Json = {"tool": "bash", "argument": "make test", "text": "exit status 2"}
    story.part("prt_3", "tool", "running", tool="bash", argument="make test")
    story.let_pass(72, 6)
    story.part("prt_3", "tool", "failed", **failed)
    story.let_pass(23, 5)
    story.part("prt_4", "tool", tool="todowrite", argument="0/2 write it")
    story.part("prt_5", "tool", tool="edit", argument="parser.py  +120 -3")
    said = "The parser is written:\nit reads **all** of the examples, [x] and [bold] too."
    story.part("prt_6", "text", text=said)
    story.works(0.1234)
    story.busy()
    story.part("prt_7", "tool", "running", tool="task", argument="look around")
    story.tell(Child(story.id, "ses_child"))
    story.part("prt_8", "tool", session="ses_child", tool="grep", argument="def test_ in tests")
    story.message("calls", 0.05)
    story.part("prt_9", "tool", "running", tool="bash", argument="python -m pytest -q")
    story.let_pass(42, 5)
    return story


def scene(name: str) -> Story:
    if name in ("starting", "ready"):
        story = Story(SCENERY, run=False, start=False)
        if name == "starting":
            story.world["start_server"] = None
        story.hear()
        story.let_pass(7)
        return story
    story = scenery(
        max_iterations=2 if name == "paused" else 0, check="make test" if "check" in name else ""
    )
    keys = {"pausing": ["space"], "stopping": ["q", "q"], "help": ["?"], "plan": ["p"]}
    story.press(*keys.get(name, ["q"] if name == "quit" else []))
    if name == "retrying":
        story.world["poll"] = None  # else it would count from the beginning
        story.retries(2, 20.0, "Provider is overloaded")
        story.let_pass(6)
    elif name == "waiting":
        story.fails("rate-limit", "Rate limit reached: try again later")
    elif name in ("paused", "checking", "check failed"):
        if name == "checking":
            story.world["run_check"] = None
        story.check = 2 if name == "check failed" else 0
        story.works(0.0766)
        if name == "check failed":
            story.busy()
        story.let_pass({"checking": 12, "check failed": 3}.get(name, 0))
    elif name in ("plan away", "files trouble", "error"):
        story.plan = None
        if name != "plan away":
            story.ends()
        story.let_pass(70 if name == "error" else 12)
    elif name == "complete":
        story.plan = SCENERY.replace("[ ]", "[x]").replace("[~]", "[x]")
        story.plan += "<plan-complete>The parser works.\nDeploying needs a key.</plan-complete>"
        story.message("answered", 0.25)
        story.ends()
    elif name == "permission":
        story.asks()
        story.asks("per_2")
    elif name == "question":
        asked = Question("In which language?", (("English", "As the plan says"), ("Local", "")))
        ask = Ask("que_1", story.id, "question", "", asked.text, (asked,))
        story.tell(ask)
    return story


# Scene -> the state that a person reads there.
# fmt: off
SCENES = {
    **{name: name for name in (
        "starting", "ready", "running", "retrying", "pausing", "paused", "waiting", "stopping",
        "error")},
    "complete": "stopped",
    **dict.fromkeys(("checking", "check failed", "plan away", "files trouble"), "running"),
    **dict.fromkeys(("permission", "question"), "waits for you"),
    **dict.fromkeys(("help", "plan", "quit"), "running"),
}
# fmt: on
SCREENS = LAB / "screens.txt"
SIZES = ((80, 24), (40, 12))
MORE_SIZES = {
    **dict.fromkeys(("running", "question"), ((120, 40), (20, 5))),
    **dict.fromkeys(("plan", "complete"), ((120, 40),)),
    "permission": ((20, 5),),
}


def draw_screen(title: str, rows: Sequence[str], width: int) -> str:
    """One screen as it stands in the file, in a box of its size."""
    lines = [f"│{row}{' ' * (width - cells(row))}│" for row in rows]
    return "\n".join([title, f"┌{'─' * width}┐", *lines, f"└{'─' * width}┘", ""])


def screens() -> Iterator[str]:
    """All scenes in their sizes."""
    for name in SCENES:
        picture = scene(name).picture()
        for width, height in (*SIZES, *MORE_SIZES.get(name, ())):
            rows = drawn(picture, width, height)
            yield draw_screen(f"{name} {width}x{height}", rows, width)


def write_golden_screens() -> None:
    """Write them to the file that people look at."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    SCREENS.write_text("\n".join(screens()), "utf-8")
    print(f"wrote {SCREENS}")


# ── any picture ───────────────────────────────────────────────────────────────────────────────────

# fmt: off
NASTY = (
    "\x1b[31mred\x1b[0m", "\x07", "\r", "\n", "\t", "\x00", "\x9b2J", "\x7f", "\x85", "\ud800",
    "\udfff", "\u202e", "\u2066", "\u200f", "\u061c", "\u200b", "\ufeff", "\u2028", "\u2029",
    "e\u0301", "\u0300" * 40, "\u6f22\u5b57" * 9, "\U0001f469\u200d\U0001f467", "[x] [bold]",
    "x" * 300, "word " * 60, " ", "", "\u00ad", "\uffff", "\U0010ffff", "\u1100\u1161", "\xa0",
    "$%s{}\\", "│", "\u2013",
)
# fmt: on
FORBIDDEN = ("Cc", "Cs", "Zl", "Zp")
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def nasty_text(rng: random.Random) -> str:
    return "".join(rng.choice(NASTY) for _ in range(rng.randrange(6)))


def spoiled(value: Any, rng: random.Random) -> Any:
    """The same with other texts and numbers here and there."""
    if isinstance(value, str):
        return rng.choice((value, nasty_text(rng)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return type(value)(rng.choice((value, 0, 7, 10**4, 10**9)))
    if hasattr(value, "_replace"):  # but for the words that choose a sign or a colour
        kept = ("state", "tone", "depth", "line")
        names = [name for name in value._fields if name not in kept]
        return value._replace(**{name: spoiled(getattr(value, name), rng) for name in names})
    return value


def nasty_picture(rng: random.Random, stories: Sequence[Story]) -> Picture:
    def some(things: Sequence[Any], most: int) -> list[Any]:
        return [spoiled(rng.choice(things), rng) for _ in range(rng.randrange(most))]

    picture = rng.choice(stories).picture()
    pieces = [(rng.randrange(4), "", ocloop.one_line(nasty_text(rng))) for _ in range(6)]
    row = [*pieces[rng.randrange(6) :], ocloop.GAP, *pieces[rng.randrange(6) :]]
    tasks = some(picture.tasks, 40)
    plan = Plan([one.task for one in tasks])
    plan.done = plan.blocked = plan.manual = rng.choice((0, 7, 10**9))
    plan.total = 2 * plan.done + rng.choice((0, 5))
    plan.percent = rng.choice((0, 100))
    entries = tuple(
        entry._replace(number=n) for n, entry in enumerate(some(picture.journal, 30), 1)
    )
    vars(picture).update(
        state=rng.choice(list(ocloop.STATES)),
        header=[row, row[::-1], row],
        check=rng.choice(("", "failed")),
        plan=plan,
        tasks=tasks,
        live=some(picture.journal, 5),
        ask=tuple(nasty_text(rng) for _ in range(rng.choice((0, 0, 3, 12)))),
        overlay=rng.choice(("", "", "plan", "help")),
        journal=entries,
    )
    return picture


def check_rows(picture: Picture, width: int, height: int, scroll: Scroll | None = None) -> None:
    rows = drawn(picture, width, height, scroll)
    assert len(rows) == (height if width > 0 else 0)
    for row in rows:
        assert text_width(row) <= width, (width, row)
        bad = [char for char in row if char in BIDI or unicodedata.category(char) in FORBIDDEN]
        assert not bad, (bad, row)


# ── scrolling ─────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """Somebody who looks at the activity of a story with numbered lines."""

    def __init__(self, lines: int, plan: str = TWO, is_plan_read: bool = False) -> None:
        self.story = Story(plan)
        self.story.press(*["p"] * is_plan_read)
        self.scroll = Scroll()
        self.size = (80, 24)
        self.rows: list[str] = []
        self.add(lines)
        self.look()

    def add(self, lines: int) -> None:
        for _ in range(lines):
            self.story.tell(Noted("note", f"<{self.last + 1}>"))

    @property
    def last(self) -> int:
        return self.story.run.journal.count

    def look(self, moved: int = 0) -> list[int]:
        """The numbers of the lines that are shown."""
        self.scroll.away[self.story.run.keys.overlay] += moved
        self.rows = drawn(self.story.picture(), *self.size, scroll=self.scroll)
        return [int(number) for number in re.findall(r"<(\d+)>", "\n".join(self.rows[4:]))]

    @property
    def below(self) -> int:
        """How many lines are below, as the screen says."""
        match = re.search(r"↓ (\d+) more", "\n".join(self.rows))
        return int(match.group(1)) if match else 0
