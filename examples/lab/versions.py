#!/usr/bin/env python3
"""Try ocloop on real OpenCode 1.x of several versions.

    python3 examples/lab/versions.py                     1.2.27, 1.15.13 and 1.18.33
    python3 examples/lab/versions.py 1.3.2 1.17.19       these
    python3 examples/lab/versions.py --case 429 1.2.27   one case only; may be given again

Each version is fetched with npm (about 200 MB, kept in the cache of the tests), has a home of its
own and no way to the network, and works with the scripted model of examples/. A table says how it
went, and what went wrong is told below it. Exit status 0: all is well.

What it takes, as found by trying: Python, Node.js and npm. In a git repository OpenCode 1.0 calls
`rg`, or downloads it; where it can do neither, every prompt dies without a word. So for that case
git has to be on PATH, and ripgrep for those versions.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness import Child, World, fail, find_opencode, quiz, temporary_folder
from scripted_model import ScriptedModel

VERSIONS = ("1.2.27", "1.15.13", "1.18.33")
WELL = "well"
SLOW = 90.0  # seconds that a plan may take
WORDS = (1, 1)  # the first version that takes words with a refusal; before, a refusal ends the turn

# What old versions need where there is no network. They install plugins of their own when they
# start, and without those every request is answered with an error. Newer ones do not mind.
SETTINGS = {"OPENCODE_DISABLE_DEFAULT_PLUGINS": "1"}

# Whatever goes wrong is to show at once: no second try of an iteration.
ARGUMENTS = ("--retries", "1", "--stall-timeout", "30s")


class Real(NamedTuple):
    """An OpenCode: its version in numbers, and its path."""

    version: tuple[int, ...]
    path: str


# ── the cases ─────────────────────────────────────────────────────────────────────────────────────
# Each gets a world and an OpenCode, and raises AssertionError when something is wrong.


def expect(condition: object, what: str, child: Child) -> None:
    """Fail with all that was said when a condition does not hold."""
    if not condition:
        fail(f"{what}\n{child.everything()}")


def expect_done(child: Child, tasks: int, *before: str) -> None:
    """So many tasks were done, each in an iteration of its own, and nothing is left behind.

    `before` is how iterations ended that came before these.
    """
    child.finish(0, timeout=SLOW)
    outcomes = child.outcomes()
    expect(outcomes == [*before, *["done"] * tasks], f"the iterations ended with {outcomes}", child)
    expect(child.boxes() == "x" * tasks, f"the boxes are {child.boxes()!r}", child)
    answers = list((child.project / "answers").glob("*.txt"))
    expect(len(answers) == tasks, f"there are {len(answers)} answers", child)
    costs = [record["cost"] for record in child.records(record="iteration")]
    expect(all(cost > 0 for cost in costs), f"the costs are {costs}", child)


def plain(world: World, opencode: Real) -> None:
    """A plan of two tasks."""
    with ScriptedModel() as model:
        expect_done(world.real(*ARGUMENTS, model=model, opencode=opencode.path), 2)


def in_git(world: World, opencode: Real) -> None:
    """A plan in a git repository, of which OpenCode lists the files and takes snapshots."""
    project = quiz(world, 1)
    make_repository(project, world)
    once = (*ARGUMENTS, "--max-iterations", "1")  # four prompts that die take long enough
    with ScriptedModel() as model:
        child = world.real(*once, model=model, opencode=opencode.path, project=project)
        child.ended(SLOW)
        if "never answered" in child.output and not shutil.which("rg"):
            fail(f"install ripgrep: there is no `rg` on PATH\n{child.output}")
        expect_done(child, 1)


def make_repository(folder: Path, world: World) -> None:
    """Commit what is in a folder: OpenCode takes one without a commit for none."""
    if not shutil.which("git"):
        fail("install git: it is not on PATH")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "All"]):
        subprocess.run(["git", *words], cwd=folder, env=world.env, check=True)


def permission(world: World, opencode: Real) -> None:
    """A permission that is asked without a terminal: refused with words, and the agent goes on.

    Where a refusal takes no words, the next session goes on.
    """
    takes_words = opencode.version >= WORDS
    before = () if takes_words else ("refused",)
    with ScriptedModel("outside") as model:
        child = world.real(*ARGUMENTS, model=model, opencode=opencode.path, tasks=1)
        expect_done(child, 1, *before)
        told = json.dumps(model.requests)
    expect(child.said("external_directory"), "nothing was asked", child)
    expect(child.said("nobody is there to answer"), "it was not refused", child)
    is_told = "Nobody is there to answer" in told
    expect(is_told == takes_words, f"the agent was told why: {is_told}", child)
    expect("localhost" not in told, "what was refused was read all the same", child)


def rate_limit(world: World, opencode: Real) -> None:
    """A rate limit that passes: OpenCode waits, and its waiting is shown."""
    with ScriptedModel("ok,429") as model:
        child = world.real(*ARGUMENTS, model=model, opencode=opencode.path, tasks=1)
        expect_done(child, 1)
        expect("429" in model.given, "the rate limit was never met", child)
    expect(child.said("attempt 1 failed"), "OpenCode's waiting was not shown", child)


def killed(world: World, opencode: Real) -> None:
    """A server killed in the middle of a task: another one is started, and the session goes on."""
    # Before it has read anything: older versions forget with the server which files were read, and
    # refuse an edit. A model would read again, but this one follows its script.
    with ScriptedModel(["slow:60"]) as model:
        child = world.real(*ARGUMENTS, model=model, opencode=opencode.path, tasks=1)
        child.until(lambda: "slow:60" in model.given, "a session at work")
        child.kill_server()
        expect_done(child, 1)
    expect(child.said("the server ended by itself"), "its end was not noticed", child)
    sessions = {record["session"] for record in child.records() if record.get("session")}
    expect(len(sessions) == 1, f"there were {len(sessions)} sessions", child)


CASES: dict[str, Callable[[World, Real], None]] = {
    "plain": plain,
    "in git": in_git,
    "permission": permission,
    "429": rate_limit,
    "killed": killed,
}


# ── trying ────────────────────────────────────────────────────────────────────────────────────────


class Trial(NamedTuple):
    """What became of a case: WELL or what went wrong, and how long it took."""

    said: str
    seconds: float


def try_case(world: World, opencode: Real, case: str) -> Trial:
    """Run one case."""
    began = time.monotonic()
    said = WELL
    try:
        CASES[case](world, opencode)
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        said = str(error) or repr(error)
    return Trial(said, time.monotonic() - began)


def try_cases(version: str, cases: Sequence[str]) -> dict[str, Trial]:
    """Run cases on a version, one after the other in one home."""
    try:
        opencode = Real(tuple(map(int, version.split("."))), find_opencode(version))
    except AssertionError as error:
        return {case: Trial(str(error), 0.0) for case in cases}
    with temporary_folder("ocloop-versions-") as folder, World(folder, env=SETTINGS) as world:
        return {case: try_case(world, opencode, case) for case in cases}


def try_version(version: str, cases: Sequence[str] = tuple(CASES)) -> dict[str, str]:
    """For tests: case -> WELL, or what went wrong."""
    return {case: trial.said for case, trial in try_cases(version, cases).items()}


# ── the command line ──────────────────────────────────────────────────────────────────────────────


def row(cells: Sequence[str]) -> str:
    """A row of the table."""
    return "".join(cell.ljust(14) for cell in cells).rstrip()


def cell(trial: Trial) -> str:
    """A case in the table."""
    word = WELL if trial.said == WELL else "WRONG"
    return f"{word} {trial.seconds:.0f} s"


def version_number(text: str) -> str:
    """A version on the command line."""
    if not re.fullmatch(r"1\.\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version: write it like 1.18.33")
    return text


def main() -> int:
    """Try all of it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", type=version_number, metavar="VERSION")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case")
    options = parser.parse_args()
    cases: list[str] = options.case or list(CASES)
    wrong = []
    print(row(["OpenCode", *cases]), flush=True)
    for version in options.versions or VERSIONS:
        trials = try_cases(version, cases)
        print(row([version, *map(cell, trials.values())]), flush=True)
        for case, trial in trials.items():
            if trial.said != WELL:
                wrong.append(f"{version}, {case}: {trial.said}")
    for said in wrong:
        print(f"\n{said}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
