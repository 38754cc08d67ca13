#!/usr/bin/env python3
"""What a loop costs beside the model's own time: `ocloop.py` and any other command, side by side.

There are two tables.

**real**: what matters to a person. A plan of --tasks tasks is worked by the real OpenCode, whose
model is a script that answers at once (scripted_model.py): by ocloop, by a loop in the shell

    until grep -q '<plan-complete>' PLAN.md; do opencode run -- "<the prompt>"; done

by the least that can do it (least.py, which shows what OpenCode and the model need, whatever drives
them), and by what is given with --also, one after the other, --rounds times. For a task it says

    wall        seconds from the start of the program until the plan is complete
    CPU, all    CPU seconds of the program and of everything that it started (OpenCode's servers,
                its tools, shells), each from its start to its end
    CPU, loop   of that, the program's own process: ocloop.py, the shell, …

each the median of the rounds. Every program keeps its own HOME in all rounds, and has worked a plan
of one task there before: the first start of OpenCode in a new home is nobody's.

**fake**: what the loop itself costs, over a fake OpenCode that answers at once (fake_opencode.py,
as the first `opencode` on PATH), in a terminal of 100x30, with a project and a HOME for each run:

    start       start of the program until the first prompt reaches the server, less the time from
                the server's own start until it listens; the median of several starts
    gap         the server says that the session is idle until the next prompt reaches it; the
                median over a run
    CPU         user and system time of the program's own process, without the server, from its
                start to the end of the last iteration
    memory      the most that the program's own process had resident in that run
    events      a flood of text deltas, each in an HTTP chunk of its own as the real server sends
                them: how many are worked through in a second, and the CPU time that one takes,
                from the first delta until the prompt after the flood
    waiting     CPU time while the session is busy and nothing comes
    imports     for comparison: a Python that imports what such a program needs, and ends

    benchmark.py                                                   both
    benchmark.py --only fake --also "pyocloop=pyocloop run --run"  one of them, another program too
    benchmark.py --quick --tasks 3 --rounds 1                      for seeing that it works

A command that is given must start its iterations by itself, and take the first `opencode` on its
PATH; it is ended with the key q, then SIGTERM, then SIGKILL of its process group. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import resource
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import (
    LAB,
    OCLOOP,
    Terminal,
    World,
    cpu_seconds,
    find_opencode,
    marked,
    memory_kib,
    quiz,
    temporary_folder,
)
from scripted_model import ScriptedModel, opencode_config

IMPORTS = "import argparse, curses, json, subprocess, threading, urllib.request"
PROMPT = (
    "Execute the next task from {{PLAN_FILE}}, mark it done; when none is left, append the "
    "completion tag.\n"
)
PATIENCE = 60.0  # seconds without news after which a program counts as stuck
SHELL = """prompt=$(sed "s|{{PLAN_FILE}}|$PWD/PLAN.md|; s|{{[A-Z]*}}||" .loop-prompt.md)
until grep -q '<plan-complete>' PLAN.md; do opencode run -- "$prompt"; done
"""
ENDS_BY_ITSELF = ("least", "shell")  # all others are ended with a key, once the plan is complete

Json = dict[str, Any]


class Failed(Exception):
    """A program did not do what the measure needs; the text says what was seen."""


@dataclasses.dataclass
class Sizes:
    """How much of everything: seconds for `wait`, counts for the rest."""

    starts: int
    iterations: int
    events: int
    wait: float
    per_chunk: int = 1


# ── a program at work ─────────────────────────────────────────────────────────────────────────────


class Run(Terminal):
    """One program at work on one plan, from its start to its end.

    The terminal's contents are thrown away but for the last few: to interpret them would take from
    the program the time that is measured.
    """

    KEPT = 8000

    cpu = 0.0
    memory = 0.0
    log_read = 0

    def take(self, data: bytes) -> None:
        self.transcript = (self.transcript + data)[-self.KEPT :]

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def watch(
        self,
        done: Callable[[], object],
        what: str,
        patience: float = PATIENCE,
        moved: Callable[[], object] | None = None,
    ) -> None:
        """Wait until `done`; Failed when the program ends before, or when for `patience` seconds
        neither the fake's log nor what `moved` tells has changed.
        """
        news = moved or self.size
        seen = news()
        since = time.monotonic()
        while not done():
            self.rest(0.01)
            if news() != seen:
                seen = news()
                since = time.monotonic()
            if self.over and not done():
                raise Failed(f"it ended before {what}\n{self.output[-1500:]}")
            if time.monotonic() - since > patience:
                raise Failed(f"no news in {patience:.0f} s of {what}\n{self.output[-1500:]}")

    def rest(self, seconds: float) -> None:
        """Let it go on for a while, or until it ends, and take the figures."""
        end = time.monotonic() + seconds
        while not self.over:
            self.read_figures()
            left = end - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, 0.01))

    def read_figures(self) -> None:
        """CPU seconds and peak memory so far; a process that is gone keeps its last ones."""
        self.cpu = cpu_seconds(self.pid) or self.cpu
        self.memory = memory_kib(self.pid, "VmHWM") / 1024 or self.memory

    def size(self) -> int:
        """Of the fake's log."""
        return self.requests_path.stat().st_size if self.requests_path.exists() else 0

    def times(self, name: str) -> list[float]:
        """When the fake noted this event."""
        return [float(note["time"]) for note in self.events(name)]

    def end(self) -> None:
        """End the program and what it started, politely at first."""
        steps: list[Callable[[], None]] = [
            lambda: self.send("q"),
            lambda: self.send("q"),
            lambda: self.signal(signal.SIGTERM),
        ]
        for step in steps:
            if self.over:
                break
            with contextlib.suppress(OSError):
                step()
            self.rest(5.0)
        self.close()


def run_program(world: World, argv: list[str], project: Path, **env: str) -> Run:
    """Start a program in a terminal, in a project."""
    return Run(world, argv, project, {**world.env, **env})


def first_on_path(world: World, folder: Path) -> dict[str, str]:
    """The PATH on which the programs of this folder are found first."""
    return {"PATH": f"{folder}{os.pathsep}{world.env.get('PATH', os.defpath)}"}


# ── the loop itself, over the fake ────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Figures:
    """What was measured of one program, in the units of the table; None is not measured."""

    start: float | None = None
    gap: float | None = None
    cpu: float | None = None
    memory: float | None = None
    events: float | None = None
    event_cpu: float | None = None
    waiting: float | None = None


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, tasks: int, behaviour: Json | None = None
) -> Iterator[Run]:
    """A run over the fake in a world of its own, which is ended whatever happens."""
    number = len(list(folder.iterdir()))
    own = folder / f"run-{number}"
    own.mkdir()
    with World(own) as world:
        lines = "".join(f"- [ ] Task {at} of the plan\n" for at in range(1, tasks + 1))
        project = world.project(f"# Plan\n\n## Backlog\n\n{lines}", prompt=PROMPT)
        programs = fake_on_path(own, folder / "bytecode")
        log = str(own / "fake.jsonl")
        setting = world.setting(log=log, port=0, **(behaviour or {}))
        env = {**setting, **first_on_path(world, programs)}
        run = run_program(world, command, project, **env)
        run.requests_path = Path(log)
        try:
            yield run
        finally:
            run.end()


def fake_on_path(folder: Path, bytecode: Path) -> Path:
    """A folder with the fake as `opencode`.

    It is imported rather than run, so that its bytecode is kept and a start of it takes little.
    """
    where = repr(str(LAB))
    code = f"import sys; sys.path.insert(0, {where}); import fake_opencode; fake_opencode.main()"
    python = [sys.executable, "-I", "-S", "-X", f"pycache_prefix={bytecode}", "-c", code]
    programs = folder / "bin"
    programs.mkdir()
    script = programs / "opencode"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n', "utf-8")
    script.chmod(0o755)
    return programs


def measure_start(command: list[str], folder: Path) -> float:
    """Milliseconds from the program's start to its first prompt, without the server's own start."""
    with running(command, folder, 1) as run:
        run.watch(lambda: run.times("prompt"), "the first prompt")
        server = run.times("listening")[-1] - run.times("exec")[-1]
        return (run.times("prompt")[0] - run.began - server) * 1000


def measure_iterations(
    command: list[str], folder: Path, iterations: int
) -> tuple[float, float, float]:
    """The median gap in milliseconds, CPU seconds and MiB of a plan with that many tasks."""
    with running(command, folder, iterations) as run:
        run.watch(
            lambda: len(run.times("idle")) >= iterations, f"the end of {iterations} iterations"
        )
        run.rest(0.3)
        gaps = [after - idle for idle, after in zip(run.times("idle"), run.times("prompt")[1:])]
        return statistics.median(gaps) * 1000, run.cpu, run.memory


def measure_flood(
    command: list[str], folder: Path, events: int, per_chunk: int
) -> tuple[float, float]:
    """Events a second, and microseconds of CPU for one."""
    behaviour = {"answers": [f"flood:{events}", "work"], "per_chunk": per_chunk}
    with running(command, folder, 2, behaviour) as run:
        run.watch(lambda: run.times("flood"), "the flood")
        cpu = run.cpu
        run.watch(lambda: len(run.times("prompt")) > 1, "the prompt after the flood", 600.0)
        seconds = run.times("prompt")[1] - run.times("flood")[0]
        return events / seconds, (run.cpu - cpu) / events * 1e6


def measure_waiting(command: list[str], folder: Path, seconds: float) -> float:
    """Milliseconds of CPU in that many seconds of waiting, two seconds after the prompt."""
    with running(command, folder, 1, {"answers": [f"sleep:{seconds + 10}"]}) as run:
        run.watch(lambda: run.times("prompt"), "the first prompt")
        run.rest(2.0)
        cpu = run.cpu
        run.rest(seconds)
        if run.over:
            raise Failed(f"it ended while the session was busy\n{run.output[-1500:]}")
        return (run.cpu - cpu) * 1000


def measure(name: str, command: list[str], folder: Path, sizes: Sizes) -> Figures:
    """All measures of one program; what fails is said and left out."""
    figures = Figures()
    with attempt(name, "start"):
        measure_start(command, folder)  # warms what the system and Python cache
        starts = [measure_start(command, folder) for _ in range(sizes.starts)]
        figures.start = statistics.median(starts)
    with attempt(name, "iterations"):
        measured = measure_iterations(command, folder, sizes.iterations)
        figures.gap, figures.cpu, figures.memory = measured
    with attempt(name, "flood"):
        flood = measure_flood(command, folder, sizes.events, sizes.per_chunk)
        figures.events, figures.event_cpu = flood
    with attempt(name, "waiting"):
        figures.waiting = measure_waiting(command, folder, sizes.wait)
    return figures


@contextlib.contextmanager
def attempt(name: str, what: str) -> Iterator[None]:
    """Say what is going on, and go on when it fails."""
    say(f"{name}: {what}")
    try:
        yield
    except (Failed, AssertionError) as error:
        say(f"{name}: {what}: {error}")


def say(text: str) -> None:
    """Progress goes to stderr, so that the tables alone can be sent to a file."""
    sys.stderr.write(text + "\n")


def measure_imports(python: str, starts: int) -> Figures:
    """The floor: time, CPU and memory of a Python that imports what such a program needs."""
    times, cpu, memory = [], [], []
    for _ in range(max(starts, 5)):
        began = time.monotonic()
        pid = os.posix_spawn(python, [python, "-c", IMPORTS], os.environ)
        _, _, usage = os.wait4(pid, 0)
        times.append((time.monotonic() - began) * 1000)
        cpu.append(usage.ru_utime + usage.ru_stime)
        memory.append(usage.ru_maxrss / 1024)
    return Figures(start=statistics.median(times), cpu=statistics.median(cpu), memory=max(memory))


# ── what a person has of it, over the real OpenCode ───────────────────────────────────────────────


@dataclasses.dataclass
class Round:
    """Seconds of one plan."""

    wall: float
    all_cpu: float
    loop_cpu: float


def adopt_orphans() -> None:
    """Let every process that loses its parent become a child of this one, so that none escapes
    the sum of CPU times: a server may leave a tool behind, and a loop a server.
    """
    set_child_subreaper = 36
    if ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0):
        raise Failed("this system cannot count the CPU time of orphans")


def children_cpu() -> float:
    """CPU seconds of all that this process started, directly or not, and that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def reap(mark: str) -> None:
    """Wait until nothing carries the mark any more, and take what was adopted meanwhile."""
    end = time.monotonic() + 10
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def work_plan(
    world: World, command: list[str], tasks: int, env: Mapping[str, str], stop: str
) -> Round:
    """Let a program work a plan of that many tasks; `stop` is the key that ends it, if any."""
    with ScriptedModel() as model:
        project = quiz(world, tasks)
        config = json.dumps(opencode_config(model.url))
        (project / "opencode.json").write_text(config, "utf-8")
        plan = project / "PLAN.md"
        before = children_cpu()
        began = time.monotonic()
        run = run_program(world, command, project, **env)

        def complete() -> bool:
            return "<plan-complete>" in plan.read_text("utf-8", "replace")

        try:
            run.watch(complete, "the completion tag", moved=lambda: plan.stat().st_mtime_ns)
            wall = time.monotonic() - began
            run.rest(3.0)  # the last session says that it is done
            if stop:
                run.end()
            else:
                run.ended()
        finally:
            run.close()
            reap(run.mark)
        return Round(wall, children_cpu() - before, run.cpu)


def compare(
    programs: Mapping[str, list[str]], opencode: str, folder: Path, tasks: int, rounds: int
) -> dict[str, list[Round]]:
    """The rounds of each program, in turn."""
    adopt_orphans()
    worlds: dict[str, World] = {}
    results: dict[str, list[Round]] = {name: [] for name in programs}
    with contextlib.ExitStack() as stack:
        for name in programs:
            own = folder / name
            (own / "bin").mkdir(parents=True)
            (own / "bin" / "opencode").symlink_to(opencode)
            worlds[name] = stack.enter_context(World(own))
        for number in range(rounds + 1):
            for name, command in programs.items():
                world = worlds[name]
                env = first_on_path(world, world.folder / "bin")
                stop = "" if name in ENDS_BY_ITSELF else "q"
                what = f"round {number} of {rounds}" if number else "a task to warm up"
                with attempt(name, what):
                    done = work_plan(world, command, tasks if number else 1, env, stop)
                    if number:
                        results[name].append(done)
                        say(f"{name}: {done.wall:.1f} s, CPU {done.all_cpu:.1f} s")
    return results


# ── the tables ────────────────────────────────────────────────────────────────────────────────────


def table(head: list[str], rows: list[tuple[str, str, list[float | None]]]) -> str:
    """Rows of title, format and values in Markdown, with their ratio to the first column's."""
    lines = [["", *head], ["---", *("---:" for _ in head)]]
    for title, form, values in rows:
        line = [title]
        for place, value in enumerate(values):
            text = "" if value is None else form.format(value)
            if place and value is not None and values[0]:
                text += f" ({value / values[0]:.2f}×)"
            line.append(text)
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fake_table(results: Mapping[str, Figures], sizes: Sizes) -> str:
    """What the loop itself costs."""
    titles = {
        "start": ("start, ms", "{:.0f}"),
        "gap": ("gap, ms", "{:.1f}"),
        "cpu": (f"CPU of {sizes.iterations} iterations, s", "{:.2f}"),
        "memory": ("peak memory, MiB", "{:.1f}"),
        "events": ("events worked through per second", "{:,.0f}"),
        "event_cpu": ("CPU per event, µs", "{:.2f}"),
        "waiting": (f"CPU of {sizes.wait:g} s of waiting, ms", "{:.1f}"),
    }
    rows = [
        (title, form, [getattr(figures, field) for figures in results.values()])
        for field, (title, form) in titles.items()
    ]
    return table([*results], rows)


def real_table(results: Mapping[str, list[Round]], tasks: int) -> str:
    """What a task costs."""
    titles = {
        "wall": "wall, s per task",
        "all_cpu": "CPU of everything, s per task",
        "loop_cpu": "CPU of the loop itself, s per task",
    }
    rows: list[tuple[str, str, list[float | None]]] = []
    for field, title in titles.items():
        values: list[float | None] = []
        for done in results.values():
            times = [getattr(one, field) / tasks for one in done]
            values.append(statistics.median(times) if times else None)
        rows.append((title, "{:.3f}", values))
    return table([*results], rows)


def machine() -> str:
    """What the figures were measured on."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip() + ", "
                break
    system = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    return f"{model}{system}, Python {platform.python_version()}"


# ── the command line ──────────────────────────────────────────────────────────────────────────────


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=("fake", "real"), help="one of the two tables")
    add("--also", action="append", default=[], metavar="NAME=COMMAND", help="another program")
    add("--ocloop", type=Path, default=OCLOOP, help="the ocloop.py to measure")
    add("--python", default=sys.executable, help="the Python that runs it (default: this one)")
    real = parser.add_argument_group("the real OpenCode").add_argument
    real("--tasks", type=int, default=30, metavar="N", help="tasks in the plan (default: 30)")
    real("--rounds", type=int, default=3, metavar="N", help="plans of each program (default: 3)")
    real("--opencode", default="", metavar="PATH", help="default: as the tests find it")
    fake = parser.add_argument_group("the fake OpenCode").add_argument
    fake("--quick", action="store_true", help="a short form of everything, with rougher figures")
    fake("--starts", type=int, help="how many starts to take the median of (default: 7)")
    fake("--iterations", type=int, help="tasks in the plan (default: 100)")
    fake("--events", type=int, help="deltas in the flood (default: 1000000)")
    fake("--per-chunk", type=int, help="deltas in one HTTP chunk of the flood (default: 1)")
    fake("--wait", type=float, help="seconds of waiting (default: 60)")
    return parser.parse_args()


def measure_fake(options: argparse.Namespace, programs: dict[str, list[str]], folder: Path) -> bool:
    """Print what the loop itself costs; whether everything was measured."""
    usual = Sizes(7, 100, 1_000_000, 60.0)
    if options.quick:
        usual = Sizes(3, 20, 100_000, 5.0)
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Sizes)
        if getattr(options, field.name) is not None
    }
    sizes = dataclasses.replace(usual, **given)
    results = {name: measure(name, command, folder, sizes) for name, command in programs.items()}
    whole = not any(None in dataclasses.astuple(figures) for figures in results.values())
    results["imports"] = measure_imports(options.python, sizes.starts)
    print(f"The loop itself, over a fake OpenCode:\n\n{fake_table(results, sizes)}\n")
    return whole


def measure_real(options: argparse.Namespace, programs: dict[str, list[str]], folder: Path) -> bool:
    """Print what a task costs; whether everything was measured."""
    opencode = os.path.abspath(options.opencode or find_opencode())
    (name, *others) = programs
    least = [options.python, str(LAB / "least.py")]
    shell = ["/bin/sh", "-c", SHELL]
    compared = {name: programs[name], "least": least, "shell": shell}
    compared.update({other: programs[other] for other in others})
    results = compare(compared, opencode, folder, options.tasks, options.rounds)
    what = f"{options.tasks} tasks, the median of {options.rounds} rounds"
    print(f"{what}, over the real OpenCode:\n\n{real_table(results, options.tasks)}\n")
    return all(len(rounds) == options.rounds for rounds in results.values())


def main() -> int:
    """Measure everything, print the tables."""
    options = parse_arguments()
    if not options.ocloop.exists():
        say(f"benchmark.py: {options.ocloop}: there is no such file")
        return 2
    ocloop = [options.python, str(options.ocloop.resolve()), "run", "--run"]
    programs: dict[str, list[str]] = {"ocloop": ocloop}
    for text in options.also:
        name, _, command = text.partition("=")
        programs[name] = shlex.split(command)
    if not all(programs.values()):
        say("benchmark.py: --also wants NAME=COMMAND")
        return 2

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    print(f"{machine()}\n")
    whole = True
    with temporary_folder("loop-benchmark-") as folder:
        for name, measured in (("fake", measure_fake), ("real", measure_real)):
            if options.only in (None, name):
                own = folder / name
                own.mkdir()
                whole = measured(options, programs, own) and whole
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
