#!/usr/bin/env python3
"""Draw examples/screen.svg for the README: ocloop in the middle of the quiz, 100 by 28 cells.

It is a photograph: the real loop and the real OpenCode work the quiz with the scripted model, in a
pseudo-terminal, and what stands on the screen in the twelfth task is drawn. That takes a minute:

    python3 examples/lab/picture.py
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from harness import (
    EXAMPLES,
    OCLOOP,
    Cell,
    Style,
    Terminal,
    World,
    cells,
    find_opencode,
    quiz,
    temporary_folder,
)
from scripted_model import ScriptedModel, opencode_config

WIDTH = 100
HEIGHT = 28
DONE = 11  # tasks, when the picture is taken
ENTRIES = 6  # of the activity of the next one
DELAY = 0.03  # seconds between two words of the model: as quick as a person reads

# The drawing, in pixels.
CELL = 8.43
LINE = 19
LEFT = 16
TOP = 54
PALETTE = {1: "#e06c75", 2: "#7ec699", 3: "#e5c07b", 4: "#61afef", 5: "#c678dd", 6: "#56b6c2"}
PLAIN = "#d7dae0"
DIM = "#7f848e"
BACKGROUND = "#21252b"


def photograph(opencode: str, folder: Path) -> list[list[Cell]]:
    """What stands on the screen in the middle of the quiz."""
    with World(folder) as world, ScriptedModel(delay=DELAY) as model:
        project = quiz(world, name="quiz")
        config = json.dumps(opencode_config(model.url))
        (project / "opencode.json").write_text(config, "utf-8")
        command = ["run", "--run", "--log", "{log}", "--opencode", shlex.quote(opencode)]
        argv = [sys.executable, str(OCLOOP), *command]
        run = Terminal(world, argv, project, world.env, WIDTH, HEIGHT)
        run.until(lambda: in_the_middle(run), "the middle of the quiz", timeout=300)
        with run.lock:
            taken = [list(row) for row in run.screen.grid]
        run.quit()
        run.finish(130)
    return taken


def in_the_middle(run: Terminal) -> bool:
    """Whether so many iterations are over, and something has happened in the next one."""
    records = run.records()
    ends = [place for place, record in enumerate(records) if record.get("record") == "iteration"]
    return len(ends) >= DONE and len(records) - ends[DONE - 1] > ENTRIES


def spans(row: list[Cell]) -> list[tuple[int, Style, str]]:
    """Neighbours of one style: where they begin, how they look, what they say."""
    found: list[tuple[int, Style, str]] = []
    for x, cell in enumerate(row):
        if found and found[-1][1] == cell.style:
            at, style, text = found[-1]
            found[-1] = (at, style, text + cell.char)
        else:
            found.append((x, cell.style, cell.char))
    return found


def colours(style: Style) -> tuple[str, str]:
    """Of the letters and of the ground, "" where there is none."""
    letters = PALETTE.get((style.colour or 0) % 8, PLAIN)
    if style.dim or style.colour == 8:
        letters = DIM
    ground = PALETTE.get((style.background or 0) % 8, "")
    return (ground or BACKGROUND, letters) if style.reverse else (letters, ground)


def draw_span(x: int, y: int, style: Style, text: str) -> str:
    """One span as SVG: its ground, if it has one, and its letters, stretched over their cells."""
    letters, ground = colours(style)
    left = LEFT + x * CELL
    bottom = TOP + y * LINE
    width = cells(text) * CELL
    drawn = ""
    if ground:
        place = f'x="{left:.1f}" y="{bottom - 14}" width="{width:.1f}" height="{LINE}"'
        drawn += f'<rect {place} fill="{ground}"/>'
    shown = text.strip()
    if shown:
        left += cells(text[: len(text) - len(text.lstrip())]) * CELL
        weight = ' font-weight="bold"' if style.bold else ""
        length = f'textLength="{cells(shown) * CELL:.1f}"'
        place = f'x="{left:.1f}" y="{bottom}"'
        drawn += f'<text {place} fill="{letters}"{weight} {length}>{escape(shown)}</text>'
    return drawn


def draw(grid: list[list[Cell]]) -> str:
    """A screen as an SVG, in a window with three buttons."""
    drawn = [
        draw_span(x, y, style, text) for y, row in enumerate(grid) for x, style, text in spans(row)
    ]
    width = round(2 * LEFT + WIDTH * CELL)
    height = TOP + HEIGHT * LINE
    buttons = "".join(
        f'<circle cx="{20 + number * 18}" cy="18" r="6" fill="{PALETTE[colour]}"/>'
        for number, colour in enumerate((1, 3, 2))
    )
    font = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14"'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} xml:space="preserve">',
            f'<rect width="100%" height="100%" rx="9" fill="{BACKGROUND}"/>',
            buttons,
            *filter(None, drawn),
            "</svg>\n",
        ]
    )


def main() -> None:
    """Take the picture."""
    with temporary_folder("ocloop-picture-") as folder:
        grid = photograph(find_opencode(), folder)
    target = EXAMPLES / "screen.svg"
    target.write_text(draw(grid), "utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
