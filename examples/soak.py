#!/usr/bin/env python3
"""Wear ocloop out: many iterations in one run, and many runs ended at random moments.

    python3 examples/soak.py                             1,000 iterations, 100 ends
    python3 examples/soak.py --iterations 100 --kills 10

The first part looks at the memory of the loop from iteration 50 on: at the end it must be within 10 %. The
second ends a run in a pseudo-terminal with SIGKILL, SIGTERM, SIGINT, a hang-up or Q, at a random moment
between its start and its end, and looks for processes, a lock or a terminal left behind. The server is the
fake one of this folder. Exit status 0: all is well.
"""
from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
OCLOOP = HERE.parent / "ocloop.py"
WAYS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGTERM", "SIGKILL", "q")


class Project:
    """A folder with a plan, an own HOME, and the fake server as `opencode`; a mark finds its processes."""

    def __init__(self, tasks: int, fake: dict[str, object]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ocloop-soak-"))
        self.mark = "OCLOOP_SOAK=" + uuid.uuid4().hex
        lines = "".join(f"- [ ] Task {number}\n" for number in range(tasks))
        (self.folder / "PLAN.md").write_text("# Soak\n\n" + lines, encoding="utf-8")
        (self.folder / ".loop-prompt.md").write_text("Work on {{PLAN_FILE}}\n", encoding="utf-8")
        (self.folder / "bin").mkdir()
        wrapper = self.folder / "bin" / "opencode"
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_opencode.py"}" "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
        name, _, value = self.mark.partition("=")
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if key in os.environ}
        self.environment = {**kept, "HOME": str(self.folder), "TERM": "xterm-256color", name: value,
                            "PATH": f"{self.folder / 'bin'}:{kept.get('PATH', os.defpath)}",
                            "FAKE_OPENCODE": json.dumps(fake)}
        self.command = [sys.executable, str(OCLOOP), "run", "--run"]

    def processes(self) -> list[int]:
        """Who still carries the mark, this program aside."""
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and self.mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def done(self) -> int:
        return (self.folder / "PLAN.md").read_text(encoding="utf-8").count("[x]")

    def remove(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def resident(pid: int) -> int:
    """Resident KiB of a process, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        return int(text.partition("VmRSS:")[2].split()[0])
    except (OSError, IndexError):
        return 0


def endure(iterations: int) -> bool:
    """One run of many iterations; says whether its memory stayed as it was."""
    project = Project(iterations, {"answers": ["work"]})
    early = late = 0
    try:
        with open(project.folder / "out.txt", "wb") as out:
            run = subprocess.Popen(project.command, cwd=project.folder, env=project.environment, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=subprocess.STDOUT)
            while run.poll() is None:
                done, memory = project.done(), resident(run.pid)
                if done >= 50 and not early:
                    early = memory
                late = memory or late
                time.sleep(0.05)
        growth = 100 * (late - early) / early if early else 0.0
        good = run.returncode == 0 and project.done() == iterations and (not early or growth <= 10)
        print(f"{project.done()} iterations, exit status {run.returncode}, {early} KiB at iteration 50, {late} KiB at "
              f"the end ({growth:+.1f} %): {'well' if good else 'NOT WELL'}")
        return good
    finally:
        project.remove()


def drain(master: int, seconds: float) -> bytes:
    """What the terminal shows in that time."""
    shown, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([master], [], [], 0.05)[0]:
            try:
                shown += os.read(master, 1 << 16)
            except OSError:
                break
    return shown


def end_once(random_numbers: random.Random) -> str:
    """Start a run, end it at a random moment; says what was left behind, "" when nothing was."""
    fake = {"answers": ["spawn", "sleep:0.2", "work"], "delay": 0.02}
    project = Project(30, fake)
    way, moment = random_numbers.choice(WAYS), random_numbers.uniform(0.02, 2.5)
    try:
        pid, master = pty.fork()
        if pid == 0:
            os.chdir(project.folder)
            os.execvpe(project.command[0], project.command, project.environment)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        shown = drain(master, moment)
        try:
            if way == "q":
                os.write(master, b"q")
                shown += drain(master, 0.3)
                os.write(master, b"q")
            else:
                os.kill(pid, getattr(signal, way))
        except OSError:
            pass
        ended, until = 0, time.monotonic() + 15
        while not ended and time.monotonic() < until:
            shown += drain(master, 0.1)
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if not ended and way == "q" and time.monotonic() > until - 12:
                os.kill(pid, signal.SIGTERM)            # q before there was a screen
                way = "q, then SIGTERM"
        if not ended:
            return f"{way} after {moment:.2f} s: still running"
        until = time.monotonic() + 6
        while project.processes() and time.monotonic() < until:
            time.sleep(0.1)
        left = project.processes()
        os.close(master)
        if left:
            return f"{way} after {moment:.2f} s: processes {left} are left"
        if way != "SIGKILL" and b"\x1b[?1049h" in shown and b"\x1b[?1049l" not in shown:
            return f"{way} after {moment:.2f} s: the terminal was not restored"
        (project.folder / "PLAN.md").write_text("- [ ] one\n", encoding="utf-8")     # it may have been killed writing it
        check = subprocess.run([*project.command[:2], "run", "--dry-run"], cwd=project.folder, env=project.environment,
                               capture_output=True, text=True, check=False)
        return "" if check.returncode == 0 else f"{way} after {moment:.2f} s: {check.stdout[-300:]}{check.stderr}"
    finally:
        project.remove()


def main() -> int:
    parser = argparse.ArgumentParser(description="Wear ocloop out.")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    good = endure(options.iterations)
    random_numbers = random.Random(options.seed)
    problems = [problem for problem in (end_once(random_numbers) for _ in range(options.kills)) if problem]
    print("\n".join([*problems, f"{options.kills} ends, {len(problems)} left something behind"]))
    return 0 if good and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
