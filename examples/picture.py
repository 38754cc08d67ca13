#!/usr/bin/env python3
"""Draw examples/screen.svg for the README: the screen of ocloop in the middle of the quiz, 100 columns by 28 rows.

The rows come from ocloop's own `layout`, fed by a `Loop` that is told a night's first events, so the picture
is made anew in a second whenever the screen changes:

    python3 examples/picture.py
"""
from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import ocloop

WIDTH, HEIGHT = 100, 28
CELL, LINE = 8.43, 19
COLOURS = {"good": "#7ec699", "bad": "#e06c75", "warn": "#e5c07b", "accent": "#61afef", "bar": "#7ec699",
           "dim": "#7f848e", "": "#d7dae0"}
DONE = 11
CAPITALS = {"luxembourg": "Luxembourg", "netherlands": "Amsterdam"}       # of the iterations that can be seen


class Story:
    """Tells a loop what happens, with a clock of its own."""

    def __init__(self, plan: str) -> None:
        self.now = 1767225600.0 + 79331
        options = ocloop.Options(directory="/home/you/quiz", plan="/home/you/quiz/PLAN.md", interactive=True, run=True)
        self.loop = ocloop.Loop(options, self.now)
        self.loop.start()
        self.plan = plan
        self.reads = 0

    def tell(self, event: ocloop.Event, seconds: float = 0.0) -> None:
        self.now += seconds
        self.loop.handle(event, self.now)

    def read_plan(self) -> None:
        self.tell(ocloop.FilesRead(self.loop.read_number, self.plan, "Work on {{PLAN_FILE}}", ""))

    def event(self, kind: str, seconds: float, **properties: Any) -> None:
        self.tell(ocloop.ServerEvent(kind, {"sessionID": self.session, **properties}), seconds)

    @property
    def session(self) -> str:
        return f"ses_{self.loop.iterations}"

    def part(self, name: str, seconds: float, **part: Any) -> None:
        self.event("message.part.updated", seconds, part={"id": f"{self.session}{name}", "messageID": "m", **part})

    def tool(self, tool: str, seconds: float, given: dict[str, Any], **state: Any) -> None:
        times = {"start": self.now * 1000, "end": (self.now + seconds) * 1000}
        self.part(f"{tool}{seconds}", seconds, type="tool", tool=tool,
                  state={"status": "completed", "input": given, "time": times, **state})

    def begin(self) -> str:
        self.tell(ocloop.SessionCreated(self.loop.iterations, f"ses_{self.loop.iterations}"), 0.1)
        self.tell(ocloop.PromptAccepted(self.session), 0.1)
        found = re.search(r"- \[ \] (.*answers/(\w+)\.txt)", self.plan)
        assert found
        self.event("message.updated", 2, info={
            "id": "m" + self.session, "role": "assistant", "providerID": "anthropic", "modelID": "claude-sonnet-4-5",
            "agent": "build", "cost": 0.0231, "tokens": {"input": 1874, "output": 412, "cache": {"read": 21480}}})
        self.part("think", 3, type="reasoning", text="The first pending task of the plan is the next one of phase 1.", time={"end": 1})
        self.tool("read", 0.4, {"filePath": "/home/you/quiz/PLAN.md"})
        return str(found.group(2))

    def iterate(self) -> None:
        country = self.begin()
        line = re.search(rf"- \[ \] .*answers/{country}\.txt", self.plan)
        assert line
        capital = CAPITALS.get(country, country.title())
        self.part("text", 4, type="text", text=f"The capital is {capital}.", time={"end": 1})
        self.tool("write", 0.6, {"filePath": f"/home/you/quiz/answers/{country}.txt"})
        self.tool("bash", 1.4, {"command": f"cat answers/{country}.txt && python3 check.py {country}"})
        self.plan = self.plan.replace(line.group(), line.group().replace("[ ]", "[x]"), 1)
        self.tool("edit", 0.3, {"filePath": "/home/you/quiz/PLAN.md"},
                  metadata={"filediff": {"additions": 1, "deletions": 1}})
        self.event("session.idle", 1)
        self.tell(ocloop.Polled(self.session, "idle", {}, messages=[
            {"id": "a", "role": "assistant", "parent": self.loop.it.prompt.message_id, "completed": True, "finish": "stop",
             "error": None, "continues": False}]))
        self.tell(ocloop.Measured(self.session, 0.0231, 412))
        self.read_plan()


def draw(rows: list[ocloop.Row]) -> str:
    """Rows of styled spans as an SVG, a <tspan> for each span, placed by cells."""
    lines = []
    for y, row in enumerate(rows):
        x = 0
        for style, text in row:
            names = style.split()
            colour = next((COLOURS[name] for name in names if name in COLOURS), COLOURS[""])
            weight = ' font-weight="bold"' if "bold" in names else ""
            if text.strip():
                lines.append(f'<text x="{16 + x * CELL:.1f}" y="{54 + y * LINE}" fill="{colour}"{weight} '
                             f'textLength="{ocloop.text_width(text) * CELL:.1f}">{escape(text)}</text>')
            x += ocloop.text_width(text)
    width, height = round(32 + WIDTH * CELL), 54 + HEIGHT * LINE
    dots = "".join(f'<circle cx="{20 + n * 18}" cy="18" r="6" fill="{colour}"/>'
                   for n, colour in enumerate(("#e06c75", "#e5c07b", "#7ec699")))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" '
            f'xml:space="preserve">\n<rect width="100%" height="100%" rx="9" fill="#21252b"/>\n{dots}\n'
            + "\n".join(lines) + "\n</svg>\n")


def main() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    story = Story((HERE / "PLAN.md").read_text(encoding="utf-8"))
    story.tell(ocloop.ServerReady(1, "http://127.0.0.1:4096", "1.18.33"), 4)
    story.tell(ocloop.SetupChecked("", {"anthropic/claude-sonnet-4-5": 200000}, ["build"]), 0.4)
    story.read_plan()
    for _ in range(DONE):
        story.iterate()
    story.begin()
    story.part("text", 3, type="text", text="I write it into the answers, next to the others, and check it", time={})
    picture = ocloop.view(story.loop, story.now)
    rows = ocloop.layout(picture, WIDTH, HEIGHT)
    target = HERE / "screen.svg"
    target.write_text(draw(rows), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
