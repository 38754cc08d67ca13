#!/usr/bin/env python3
"""What a loop costs beside the model's own time: `ocloop.py` and any other command, side by side.

Each program works through plans of its own in a pseudo-terminal of 100x30, in a project and a HOME of its
own, with `fake_opencode.py` (next to this file) as the first `opencode` on its PATH. The fake answers at
once, so what is left is the loop's. Linux only, since it reads /proc; every process it starts is ended.

    benchmark.py                                              ocloop alone
    benchmark.py --also "pyocloop=/path/to/venv/bin/ocloop run --run"
    benchmark.py --quick                                      a short form, for seeing that it works

A command that is given must start its iterations by itself; it is ended with the key q, then SIGTERM, then
SIGKILL of its process group.

The measures:

    start     start of the program until the first prompt reaches the server, less the time from the server's
              own start until it listens; the median of several starts
    gap       the server says that the session is idle until the next prompt reaches it; the median over a run
    CPU       user and system time of the program's own process, without the server, from its start to the
              end of the last iteration
    memory    the most that the program's own process had resident in that run
    events    a flood of text deltas, each in an HTTP chunk of its own as the real server sends them: how many
              are worked through in a second, and the CPU time that one takes, from the first delta until the
              prompt after the flood
    waiting   CPU time while the session is busy and nothing comes
    imports   for comparison: a Python that imports what such a program needs, and ends
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import pty
import select
import shlex
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
IMPORTS = "import argparse, curses, json, subprocess, threading, urllib.request"
PROMPT = (
    "Execute the next task from {{PLAN_FILE}}, mark it done; when none is left, append the completion tag.\n"
)
PATIENCE = 60.0
COLUMNS, ROWS = 100, 30

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


class Run:
    """One program at work on one plan, from its start to its end.

    Single-threaded: whoever waits for something calls `until`, which empties the terminal meanwhile.
    """

    def __init__(self, command: list[str], folder: Path, tasks: int, behaviour: Json) -> None:
        self.folder = folder
        self.log_path = folder / "log.jsonl"
        self.log: list[Json] = []
        self.log_read = 0
        self.screen = b""
        self.cpu = 0.0
        self.memory = 0.0
        self.ended = False
        environment = prepare(folder, tasks, {"log": str(self.log_path), "port": 0, **behaviour})
        self.began = time.time()
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            execute(command, folder / "project", environment)

    def until(self, done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Wait until `done`; Failed when the program ends before, or `patience` seconds pass without news."""
        moved = time.monotonic()
        while not done():
            if self.look(0.01):
                moved = time.monotonic()
            if self.ended and not done():
                raise Failed(f"it ended before {what}\n{self.tail()}")
            if time.monotonic() - moved > patience:
                raise Failed(f"nothing in {patience:.0f} s, waiting for {what}\n{self.tail()}")

    def rest(self, seconds: float) -> None:
        """Let it go on for a while, or until it ends."""
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end:
            self.look(0.01)

    def look(self, seconds: float) -> bool:
        """Empty the terminal for `seconds`, read the log and the figures; True when the log has grown."""
        if not self.ended and select.select([self.terminal], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                self.screen = (self.screen + os.read(self.terminal, 1 << 16))[-8000:]
        self.read_figures()
        if os.waitpid(self.pid, os.WNOHANG)[0] if not self.ended else 0:
            self.ended = True
        return self.read_log()

    def read_log(self) -> bool:
        """Take what the fake has logged since the last time."""
        if not self.log_path.exists() or self.log_path.stat().st_size == self.log_read:
            return False
        with open(self.log_path, "rb") as file:
            file.seek(self.log_read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self.log_read += len(data)
        self.log += [json.loads(line) for line in data.splitlines()]
        return bool(data)

    def read_figures(self) -> None:
        """CPU seconds and peak memory so far; a process that is gone keeps its last ones."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            self.cpu = time.clock_gettime(cpu_clock(self.pid))
            status = Path(f"/proc/{self.pid}/status").read_text()
            self.memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def prompts(self) -> list[float]:
        """When prompts reached the server."""
        return [
            line["time"]
            for line in self.log
            if str(line.get("path", "")).partition("?")[0].endswith("/prompt_async")
        ]

    def events(self, name: str) -> list[float]:
        """When the fake noted this event."""
        return [line["time"] for line in self.log if line.get("event") == name]

    def tail(self) -> str:
        """The last that the program wrote, for a message."""
        return self.screen[-1500:].decode("utf-8", "replace")

    def end(self) -> None:
        """End the program and the servers it started, politely at first."""
        for step in (lambda: os.write(self.terminal, b"q"), lambda: os.kill(self.pid, signal.SIGTERM)):
            if not self.ended:
                with contextlib.suppress(OSError):
                    step()
                self.rest(5.0)
        if not self.ended:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True
        os.close(self.terminal)
        self.read_log()
        for line in self.log:
            if line.get("event") == "exec":
                end_server(line["pid"], self.folder)


def execute(command: list[str], project: Path, environment: dict[str, str]) -> NoReturn:
    """Become the program; called in the new process, which has the terminal."""
    try:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.chdir(project)
        os.execvpe(command[0], command, environment)
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def cpu_clock(pid: int) -> int:
    """The clock of another process's CPU time, as clock_getcpuclockid(3) makes it.

    It counts nanoseconds where /proc/PID/stat has hundredths of a second, and all threads.
    """
    return (~pid << 3) | 2


def end_server(pid: int, folder: Path) -> None:
    """Kill a server that its program left behind; the folder in its environment says that it is ours."""
    with contextlib.suppress(OSError):
        if os.fsencode(folder) in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGKILL)


def prepare(folder: Path, tasks: int, behaviour: Json) -> dict[str, str]:
    """Make the project, the HOME and the `opencode` of a run; returns its environment."""
    project, programs, home = folder / "project", folder / "bin", folder / "home"
    for path in (project, programs, home):
        path.mkdir()
    lines = "".join(f"- [ ] Task {number} of the plan\n" for number in range(1, tasks + 1))
    (project / "PLAN.md").write_text(f"# Plan\n\n## Backlog\n\n{lines}")
    (project / ".loop-prompt.md").write_text(PROMPT)
    # Imported rather than run, so that its bytecode is kept and a start of the server takes little.
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import fake_opencode; fake_opencode.main()"
    python = [sys.executable, "-I", "-S", "-X", f"pycache_prefix={folder.parent / 'bytecode'}", "-c", code]
    script = programs / "opencode"
    script.write_text(f'#!/bin/sh\nexec {" ".join(map(shlex.quote, python))} "$@"\n')
    script.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "OPENCODE_", "PYTHON", "LC_")) and not name.lower().endswith("_proxy")
    }
    return {
        **kept,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "FAKE_OPENCODE": json.dumps(behaviour),
    }


@contextlib.contextmanager
def running(command: list[str], folder: Path, tasks: int, behaviour: Json | None = None) -> Iterator[Run]:
    """A run in a folder of its own, which is ended whatever happens."""
    run = Run(command, Path(tempfile.mkdtemp(prefix="run-", dir=folder)), tasks, behaviour or {})
    try:
        yield run
    finally:
        run.end()


def measure_start(command: list[str], folder: Path) -> float:
    """Milliseconds from the program's start to its first prompt, without the server's own start."""
    with running(command, folder, 1) as run:
        run.until(lambda: bool(run.prompts()), "the first prompt")
        server = run.events("listening")[-1] - run.events("exec")[-1]
        return (run.prompts()[0] - run.began - server) * 1000


def measure_iterations(command: list[str], folder: Path, iterations: int) -> tuple[float, float, float]:
    """The median gap in milliseconds, CPU seconds and MiB of a plan with that many tasks."""
    with running(command, folder, iterations) as run:
        run.until(lambda: len(run.events("idle")) >= iterations, f"the end of {iterations} iterations")
        run.rest(0.3)
        idle, prompts = run.events("idle"), run.prompts()
        gaps = [after - before for before, after in zip(idle, prompts[1:])]
        return statistics.median(gaps) * 1000, run.cpu, run.memory


def measure_flood(command: list[str], folder: Path, events: int, per_chunk: int) -> tuple[float, float]:
    """Events a second, and microseconds of CPU for one."""
    behaviour = {"answers": [f"flood:{events}", "work"], "per_chunk": per_chunk}
    with running(command, folder, 2, behaviour) as run:
        run.until(lambda: bool(run.events("flood")), "the flood")
        cpu = run.cpu
        run.until(lambda: len(run.prompts()) > 1, "the prompt after the flood", patience=600.0)
        seconds = run.prompts()[1] - run.events("flood")[0]
        return events / seconds, (run.cpu - cpu) / events * 1e6


def measure_waiting(command: list[str], folder: Path, seconds: float) -> float:
    """Milliseconds of CPU in that many seconds of waiting, two seconds after the prompt."""
    with running(command, folder, 1, {"answers": [f"sleep:{seconds + 10}"]}) as run:
        run.until(lambda: bool(run.prompts()), "the first prompt")
        run.rest(2.0)
        cpu = run.cpu
        run.rest(seconds)
        if run.ended:
            raise Failed(f"it ended while the session was busy\n{run.tail()}")
        return (run.cpu - cpu) * 1000


def measure(name: str, command: list[str], folder: Path, sizes: Sizes) -> Figures:
    """All measures of one program; what fails is said and left out."""
    figures = Figures()
    with attempt(name, "start"):
        measure_start(command, folder)  # warms what the system and Python cache
        figures.start = statistics.median(measure_start(command, folder) for _ in range(sizes.starts))
    with attempt(name, "iterations"):
        figures.gap, figures.cpu, figures.memory = measure_iterations(command, folder, sizes.iterations)
    with attempt(name, "flood"):
        figures.events, figures.event_cpu = measure_flood(command, folder, sizes.events, sizes.per_chunk)
    with attempt(name, "waiting"):
        figures.waiting = measure_waiting(command, folder, sizes.wait)
    return figures


@contextlib.contextmanager
def attempt(name: str, what: str) -> Iterator[None]:
    """Say what is going on, and go on when it fails."""
    say(f"{name}: {what}")
    try:
        yield
    except Failed as error:
        say(f"{name}: {what}: {error}")


def say(text: str) -> None:
    """Progress goes to stderr, so that the table alone can be sent to a file."""
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


def table(results: dict[str, Figures], sizes: Sizes) -> str:
    """The figures in Markdown, with their ratio to the first column's."""
    titles = {
        "start": ("start, ms", "{:.0f}"),
        "gap": ("gap, ms", "{:.1f}"),
        "cpu": (f"CPU of {sizes.iterations} iterations, s", "{:.2f}"),
        "memory": ("peak memory, MiB", "{:.1f}"),
        "events": ("events worked through per second", "{:,.0f}"),
        "event_cpu": ("CPU per event, µs", "{:.2f}"),
        "waiting": (f"CPU of {sizes.wait:g} s of waiting, ms", "{:.1f}"),
    }
    rows = [["", *results], ["---", *("---:" for _ in results)]]
    for field, (title, form) in titles.items():
        values: list[float | None] = [getattr(figures, field) for figures in results.values()]
        row = [title]
        for place, value in enumerate(values):
            text = "" if value is None else form.format(value)
            if place and value is not None and values[0]:
                text += f" ({value / values[0]:.2f}×)"
            row.append(text)
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> str:
    """What the figures were measured on."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip() + ", "
                break
    return f"{model}{os.cpu_count()} cores, {platform.system()} {platform.release()}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure what a loop costs, over a fake opencode that answers at once.",
        epilog='Example: benchmark.py --also "pyocloop=/path/to/venv/bin/ocloop run --run"',
    )
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="another program")
    parser.add_argument(
        "--ocloop", type=Path, default=HERE.parent / "ocloop.py", help="the ocloop.py to measure"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="the Python that runs it (default: this one)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short form of everything, with rougher figures"
    )
    parser.add_argument("--starts", type=int, help="how many starts to take the median of (default: 7)")
    parser.add_argument("--iterations", type=int, help="tasks in the plan (default: 100)")
    parser.add_argument("--events", type=int, help="deltas in the flood (default: 1000000)")
    parser.add_argument("--per-chunk", type=int, help="deltas in one HTTP chunk of the flood (default: 1)")
    parser.add_argument("--wait", type=float, help="seconds of waiting (default: 60)")
    return parser.parse_args()


def main() -> int:
    """Measure everything, print the table."""
    options = parse_arguments()
    usual = Sizes(3, 20, 100_000, 5.0) if options.quick else Sizes(7, 100, 1_000_000, 60.0)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)}
    sizes = dataclasses.replace(usual, **{name: value for name, value in given.items() if value is not None})
    programs: dict[str, list[str]] = {}
    if options.ocloop.exists():
        programs["ocloop"] = [options.python, str(options.ocloop.resolve()), "run", "--run"]
    else:
        say(f"{options.ocloop}: there is no such file, so it is left out")
    for text in options.also:
        name, _, command = text.partition("=")
        programs[name] = shlex.split(command)
    if not all(programs.values()):
        say("benchmark.py: --also wants NAME=COMMAND")
        return 2

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="loop-benchmark-"))
    try:
        results = {name: measure(name, command, folder, sizes) for name, command in programs.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results["imports"] = measure_imports(options.python, sizes.starts)
    print(f"{machine()}, Python {platform.python_version()}\n\n{table(results, sizes)}")
    return 1 if any(None in dataclasses.astuple(results[name]) for name in programs) else 0


if __name__ == "__main__":
    sys.exit(main())
