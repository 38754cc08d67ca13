#!/usr/bin/env python3
"""See ocloop work with one command: no API key, no model, nothing of yours touched.

It makes a project in a temporary folder from PLAN.md and loop-prompt.md beside this file, starts
the scripted model (scripted_model.py) and lets ocloop drive the real OpenCode through the plan.
OpenCode gets a home of its own in that folder, so it sees neither your configuration nor your
sessions. At the end the folder is removed.

OpenCode is taken from the PATH, whatever its version, else from ~/.opencode/bin, else fetched
through npx.
"""

from __future__ import annotations

import sys

if sys.hexversion < 0x03090000:
    here = sys.version.split()[0]
    sys.exit(f"demo.py: this is Python {here}: run it with 3.9 or newer, e.g. python3.12 demo.py")

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent / "lab"))

from harness import (
    OCLOOP,
    PACKAGE,
    VERSION,
    installed_opencode,
    opencode_version,
    quiz_plan,
    quiz_prompt,
    sealed,
    temporary_folder,
)
from scripted_model import ScriptedModel, opencode_config

FETCHED = f"{PACKAGE}@{VERSION}"


class DemoError(Exception):
    """Something that a person can put right; the message says what and how."""


def find_opencode() -> str:
    """The path of an OpenCode program, fetched through npx if there is none."""
    installed = installed_opencode()
    if installed:
        return installed
    npx = shutil.which("npx")
    if not npx:
        raise DemoError(
            "neither opencode nor npx is on the PATH: install OpenCode (https://opencode.ai) or "
            "Node.js, then run this again"
        )
    said = f"no opencode on PATH: taking {FETCHED} through npx (the first time it fetches 200 MB) …"
    print(said, flush=True)
    # This call is for npm's progress and errors to be seen. Then the program's own path is asked
    # for, because `npx opencode-ai` would put two processes in front of the server and would look
    # for npm's settings in the demonstration's home. OpenCode itself is not run before it has that.
    fetch = [npx, "-y", "-p", FETCHED, "-c"]
    if subprocess.run([*fetch, "true"], check=False).returncode != 0:
        raise DemoError(
            f"`npx -y {FETCHED}` failed, see above: try again, or install OpenCode yourself"
        )
    where = [*fetch, "command -v opencode"]
    done = subprocess.run(where, check=False, stdout=subprocess.PIPE, text=True)
    path = done.stdout.strip()
    if not shutil.which(path):
        raise DemoError(f"npx fetched {FETCHED}, but there is no program in it: install OpenCode")
    return path


def say_version(opencode: str, env: Mapping[str, str]) -> None:
    """Say which OpenCode is used; DemoError when it does not start with a home of its own."""
    try:
        version = opencode_version([opencode], env)
    except AssertionError as error:
        raise DemoError(str(error)) from None
    number = re.sub(r"^opencode v?", "", version)
    print(f"OpenCode {number} from {opencode}", flush=True)


def make_project(folder: Path, tasks: int, model_url: str) -> None:
    """Write the plan (its first `tasks` tasks), the loop prompt and opencode.json into a folder."""
    folder.mkdir()
    (folder / "PLAN.md").write_text(quiz_plan(tasks), encoding="utf-8")
    (folder / ".loop-prompt.md").write_text(quiz_prompt(), encoding="utf-8")
    config = json.dumps(opencode_config(model_url), indent=2)
    (folder / "opencode.json").write_text(config + "\n", encoding="utf-8")


def run_ocloop(arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> int:
    """Run ocloop on this terminal until it ends; its exit status."""

    def leave_it(number: int, frame: FrameType | None) -> None:
        """Ctrl-c reaches ocloop through the terminal, and how to end is for ocloop to say."""

    signal.signal(signal.SIGINT, leave_it)
    child = subprocess.Popen([sys.executable, str(OCLOOP), *arguments], cwd=folder, env=env)

    def pass_on(number: int, frame: FrameType | None) -> None:
        """Whoever ends this process means ocloop."""
        child.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    return child.wait()


def report(folder: Path, status: int) -> None:
    """Say in plain words what became of the plan."""
    plan = folder / "PLAN.md"
    text = plan.read_text(encoding="utf-8", errors="replace") if plan.exists() else ""
    done = len(re.findall(r"^- \[x\]", text, re.MULTILINE))
    tasks = len(re.findall(r"^- \[", text, re.MULTILINE))
    ended = {0: "the plan is complete", 130: "it was stopped"}.get(status, "it ended early")
    over = f"{ended} (exit status {status}), {done} of {tasks} tasks are done."
    print(f"\nThe demonstration is over: {over}")
    answers = sorted((folder / "answers").glob("*.txt"), key=lambda path: path.stat().st_mtime)
    for answer in answers[:3]:
        print(f"  answers/{answer.name}: {answer.read_text(encoding='utf-8').strip()}")
    if len(answers) > 3:
        print(f"  … and {len(answers) - 3} more")


def positive(text: str) -> int:
    """A number of tasks from the command line."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def demonstrate(options: argparse.Namespace) -> int:
    """Set everything up, run ocloop, clear everything away; ocloop's exit status."""
    if not OCLOOP.exists():
        where = "this file belongs into the folder examples beside ocloop.py"
        raise DemoError(f"{OCLOOP} is missing: {where}")
    opencode = find_opencode()
    with temporary_folder("ocloop-demo-", keep=options.keep) as root:
        env = sealed(root / "home", on_this_terminal=True)
        say_version(opencode, env)
        with ScriptedModel(delay=options.delay) as model:
            make_project(root / "project", options.tasks, model.url)
            command = ["run", "--run", "--opencode", shlex.quote(opencode)]
            if options.plain:
                command.append("--plain")
            status = run_ocloop([*command, *options.extra], root / "project", env)
        report(root / "project", status)
        if options.keep:
            print(f"Everything it made is in {root}")
    return status if status >= 0 else 128 - status


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- …]",
    )
    parser.add_argument(
        "--plain", action="store_true", help="plain lines instead of the full screen"
    )
    parser.add_argument(
        "--delay",
        type=float,
        default=0.03,
        help="seconds between two words of the model (0.03)",
    )
    parser.add_argument(
        "--tasks",
        type=positive,
        default=0,
        metavar="N",
        help="N tasks instead of the quiz's 27",
    )
    parser.add_argument("--keep", action="store_true", help="do not remove the temporary folder")
    parser.add_argument(
        "extra", nargs="*", metavar="-- …", help="further options for `ocloop.py run`"
    )
    try:
        return demonstrate(parser.parse_args())
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
