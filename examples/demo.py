#!/usr/bin/env python3
"""See ocloop work with one command: no API key, no model, nothing of yours touched.

It makes a project in a temporary folder from PLAN.md and loop-prompt.md beside this file, starts the scripted
model (scripted_model.py) and lets ocloop drive the real OpenCode through the plan. OpenCode gets a home of
its own in that folder, so it sees neither your configuration nor your sessions. At the end the folder is
removed.

OpenCode is taken from the PATH, else from ~/.opencode/bin, else fetched through npx.
"""

from __future__ import annotations

import sys

if sys.hexversion < 0x03090000:
    sys.exit(f"demo.py: this is Python {sys.version.split()[0]}: run it with 3.9 or newer, e.g. python3.12 {sys.argv[0]}")

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from scripted_model import ScriptedModel, opencode_config

HERE = Path(__file__).resolve().parent
OCLOOP = HERE.parent / "ocloop.py"
PACKAGE = "opencode-ai@1.18.33"


class DemoError(Exception):
    """Something that a person can put right; the message says what and how."""


def find_opencode() -> str:
    """The path of an OpenCode program, fetched through npx if there is none."""
    installed = shutil.which("opencode") or shutil.which(str(Path.home() / ".opencode" / "bin" / "opencode"))
    if installed:
        return installed
    npx = shutil.which("npx")
    if not npx:
        raise DemoError(
            "neither opencode nor npx is on the PATH: install OpenCode (https://opencode.ai) or Node.js, "
            "then run this again"
        )
    print(f"no opencode on PATH: taking {PACKAGE} through npx (the first time it fetches some 200 MB) …", flush=True)
    # This call is for npm's progress and errors to be seen. Then the program's own path is asked for, because
    # `npx opencode-ai` would put two processes in front of the server and would look for npm's settings in
    # the demonstration's home.
    if subprocess.run([npx, "-y", PACKAGE, "--version"], check=False).returncode != 0:
        raise DemoError(
            f"`npx -y {PACKAGE} --version` failed, see above: try again, or install OpenCode yourself"
        )
    where = [npx, "-y", "-p", PACKAGE, "-c", "command -v opencode"]
    path = subprocess.run(where, check=False, stdout=subprocess.PIPE, text=True).stdout.strip()
    if not shutil.which(path):
        raise DemoError(f"npx fetched {PACKAGE}, but there is no program in it: install OpenCode yourself")
    return path


def environment(home: Path) -> dict[str, str]:
    """This process's environment, with `home` for all that OpenCode reads and keeps, and no network."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENCODE_")}
    env.update(
        HOME=str(home),
        XDG_CONFIG_HOME=str(home / ".config"),
        XDG_DATA_HOME=str(home / ".local" / "share"),
        XDG_STATE_HOME=str(home / ".local" / "state"),
        XDG_CACHE_HOME=str(home / ".cache"),
        OPENCODE_DISABLE_AUTOUPDATE="1",
        OPENCODE_DISABLE_MODELS_FETCH="1",
        OPENCODE_PURE="1",
        # In a new home OpenCode installs a package for plugins in the background; nobody needs it here.
        npm_config_offline="true",
    )
    # The model is on this machine: a proxy is not to be asked for it.
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, (env.get(name), "127.0.0.1", "localhost")))
    return env


def check_opencode(opencode: str, env: dict[str, str]) -> None:
    """Say which OpenCode is used; DemoError when it does not start with a home of its own."""
    done = subprocess.run([opencode, "--version"], check=False, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"`{opencode} --version` failed: {done.stderr.strip() or done.returncode}")
    print(f"OpenCode {done.stdout.strip()} from {opencode}", flush=True)


def make_project(folder: Path, tasks: int | None, model_url: str) -> None:
    """Write the plan (its first `tasks` tasks), the loop prompt and opencode.json into a new folder."""
    folder.mkdir()
    plan = (HERE / "PLAN.md").read_text(encoding="utf-8")
    ends = [found.end() for found in re.finditer(r"^- \[ \].*\n", plan, re.MULTILINE)]
    if tasks is not None and tasks < len(ends):
        plan = plan[: ends[tasks - 1]]
    (folder / "PLAN.md").write_text(plan, encoding="utf-8")
    shutil.copyfile(HERE / "loop-prompt.md", folder / ".loop-prompt.md")
    config = json.dumps(opencode_config(model_url), indent=2)
    (folder / "opencode.json").write_text(config + "\n", encoding="utf-8")


def run_ocloop(arguments: Sequence[str], folder: Path, env: dict[str, str]) -> int:
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
    print(f"\nThe demonstration is over: {ended} (exit status {status}), {done} of {tasks} tasks are done.")
    answers = sorted((folder / "answers").glob("*.txt"), key=lambda path: path.stat().st_mtime)
    for answer in answers[:3]:
        print(f"  answers/{answer.name}: {answer.read_text(encoding='utf-8').strip()}")
    if len(answers) > 3:
        print(f"  … and {len(answers) - 3} more")


def remove(folder: Path) -> None:
    """Remove the folder; a server that is just going may still write into it for a moment."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    print(f"{folder} could not be removed", file=sys.stderr)


def positive(text: str) -> int:
    """A number of tasks from the command line."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def demonstrate(options: argparse.Namespace) -> int:
    """Set everything up, run ocloop, clear everything away; ocloop's exit status."""
    if not OCLOOP.exists():
        raise DemoError(f"{OCLOOP} is missing: this file belongs into the folder examples beside ocloop.py")
    opencode = find_opencode()
    root = Path(tempfile.mkdtemp(prefix="ocloop-demo-")).resolve()
    try:
        env = environment(root / "home")
        check_opencode(opencode, env)
        with ScriptedModel(delay=options.delay) as model:
            make_project(root / "project", options.tasks, model.url)
            plain = ["--plain"] if options.plain else []
            command = ["run", "--run", "--opencode", shlex.quote(opencode), *plain, *options.extra]
            status = run_ocloop(command, root / "project", env)
        report(root / "project", status)
        return status if status >= 0 else 128 - status
    finally:
        if options.keep:
            print(f"Everything it made is in {root}")
        else:
            remove(root)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- …]",
    )
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the full screen")
    parser.add_argument(
        "--delay", type=float, default=0.03, help="seconds between two words of the model (0.03)"
    )
    parser.add_argument("--tasks", type=positive, metavar="N", help="only the first N of the 27 tasks")
    parser.add_argument("--keep", action="store_true", help="do not remove the temporary folder")
    parser.add_argument("extra", nargs="*", metavar="-- …", help="further options for `ocloop.py run`")
    try:
        return demonstrate(parser.parse_args())
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
