#!/usr/bin/env python3
"""Wear ocloop out: many iterations in one run, and many runs ended at random moments.

    python3 examples/lab/soak.py                             1,000 iterations, 100 ends
    python3 examples/lab/soak.py --iterations 100 --kills 10
    python3 examples/lab/soak.py --generation 2              on OpenCode's second generation

The first part looks at the memory of the loop from iteration 50 on: at the end it must be within
10 %. The second ends a run in a pseudo-terminal with SIGKILL, SIGTERM, SIGINT, a hang-up or Q, at a
random moment between its start and its end, and looks for processes, a lock or a terminal left
behind. The server is the fake one beside this file. Exit status 0: all is well.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from harness import GENERATIONS, Terminal, World, memory_kib, temporary_folder

WAYS = ["SIGKILL", "SIGTERM", "SIGINT", "hang-up", "Q"]
WARM = 50  # iterations after which Python and the loop have what they need
GROWTH = 10.0  # percent that the memory may grow from then on
LATEST = 2.5  # seconds: a run that is ended is this old at most
PATIENCE = 6.0  # seconds after which nothing may be left of a run that has ended


def done(project: Path) -> int:
    """How many tasks of the plan are done."""
    return (project / "PLAN.md").read_text(encoding="utf-8").count("[x]")


def endure(iterations: int, world: World) -> bool:
    """One run of many iterations; says whether its memory stayed as it was."""
    run = world.fake("--run", tasks=iterations)
    early = 0
    late = 0
    while run.process.poll() is None:
        memory = memory_kib(run.pid)
        if not early and done(run.project) >= WARM:
            early = memory
        late = memory or late
        time.sleep(0.05)
    status = run.ended()
    left = run.left_behind(PATIENCE)
    growth = 100 * (late - early) / early if early else 0.0
    worked = done(run.project)
    good = status == 0 and worked == iterations and growth <= GROWTH and not left
    print(
        f"{worked} iterations, exit status {status}, {early} KiB at iteration {WARM}, {late} KiB "
        f"at the end ({growth:+.1f} %): {'well' if good else 'NOT WELL'}",
        flush=True,
    )
    return good


def end(run: Terminal, way: str) -> None:
    """End a run in one of the ways; it may have ended before, or not have begun."""
    with suppress(OSError):
        if way == "hang-up":
            run.hang_up()
        elif way == "Q":
            run.send("q")
            time.sleep(0.3)
            run.send("q")
        elif way == "SIGINT":  # asks once, as Q does
            run.signal(signal.SIGINT)
            time.sleep(0.3)
            run.signal(signal.SIGINT)
        else:
            run.signal(getattr(signal, way))


def wait(run: Terminal, seconds: float) -> bool:
    """Whether it ends within so many seconds."""
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def end_once(world: World, chance: random.Random) -> str:
    """Start a run, end it at a random moment; says what was left behind, "" when nothing was."""
    way = chance.choice(WAYS)
    moment = chance.uniform(0.02, LATEST)
    run = world.fake_terminal("--run", tasks=30, answers=["spawn", "sleep:0.2", "work"], delay=0.02)
    time.sleep(moment)
    end(run, way)
    if way in ("Q", "SIGINT") and not wait(run, 3):
        run.signal(signal.SIGTERM)  # Q came before there was a screen, or another iteration between
        way += ", then SIGTERM"
    what = f"{way} after {moment:.2f} s"
    if not wait(run, 20):
        run.close()
        return f"{what}: still running\n{run.everything()}"
    left = run.left_behind(PATIENCE)
    if left:
        return f"{what}: processes {left} are left"
    killed_in_vain = "SIGKILL" in way or run.hung_up
    if not killed_in_vain and not restored_soon(run):
        return f"{what}: the terminal was not restored: {run.output[-300:]!r}"
    run.hang_up()
    # The plan may have been half-written when its writer was killed.
    (run.project / "PLAN.md").write_text("- [ ] one\n", encoding="utf-8")
    after = world.fake("--dry-run", project=run.project)
    if after.ended():
        return f"{what}: no second run can be started: {after.output[-300:]}"
    return ""


def restored_soon(run: Terminal) -> bool:
    """Whether the terminal is in order, once the reader has caught up."""
    for _attempt in range(20):
        if run.restored():
            return True
        time.sleep(0.1)
    return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Wear ocloop out.")
    parser.add_argument("--iterations", type=int, default=1000, metavar="N")
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument(
        "--generation", type=int, choices=GENERATIONS, default=1, help="of OpenCode's interface"
    )
    options = parser.parse_args()
    chance = random.Random(options.seed)
    problems = []
    with temporary_folder("ocloop-soak-") as folder:
        os.mkdir(folder / "long")
        with World(folder / "long", options.generation) as world:
            good = endure(options.iterations, world)
        for number in range(options.kills):
            own = folder / f"end-{number}"
            own.mkdir()
            with World(own, options.generation) as world:
                problem = end_once(world, chance)
            if problem:
                problems.append(problem)
                print(problem, flush=True)
    print(f"{options.kills} ends, {len(problems)} left something behind")
    return 0 if good and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
