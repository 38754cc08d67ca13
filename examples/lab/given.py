"""What the tests are given: folders, files, servers and worlds of their own. A plugin of pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import GENERATIONS, RealServer, World, find_opencode, installed_opencode
from wire import Wire

import ocloop
from ocloop import RunFile

Patch = pytest.MonkeyPatch
Printed = pytest.CaptureFixture[str]
Say = Callable[..., str]


@pytest.fixture(autouse=True)
def utc(monkeypatch: Patch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: Patch) -> Path:
    home = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return home


@pytest.fixture
def run_file(tmp_path: Path, state_home: Path) -> RunFile:
    return RunFile(str(tmp_path / "PLAN.md"))


@pytest.fixture
def say(state_home: Path, capsys: Printed) -> Say:
    """Runs a command in this process, and returns all that it printed."""

    def run(*words: str, status: int = 0) -> str:
        assert ocloop.main(list(words)) == status
        return "".join(capsys.readouterr())

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "PLAN.md").write_text("- [ ] one\n- [x] two\n")
    (folder / ".loop-prompt.md").write_text("---\nmodel: a/b\n---\nWork on {{PLAN_FILE}}\n")
    return folder


@pytest.fixture
def of_others(monkeypatch: Patch) -> Callable[..., None]:
    """Makes paths belong to another user from then on."""

    def change(*paths: Path) -> None:
        for name in ("stat", "lstat"):
            look = getattr(os, name)

            def looks(path: Any, look: Any = look, **how: Any) -> os.stat_result:
                found = look(path, **how)
                is_theirs = not isinstance(path, int) and Path(path) in paths
                return os.stat_result((*found[:4], 4242, *found[5:])) if is_theirs else found

            monkeypatch.setattr(os, name, looks)

    return change


# ── wires and processes ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def one_wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.server.shutdown()
    wire.server.server_close()


@pytest.fixture
def wire(one_wire: Wire) -> Wire:
    one_wire.forget()
    return one_wire


NO_PROC = "/nonexistent/proc"


@pytest.fixture(params=["proc", "ps"])
def seam(request: pytest.FixtureRequest, monkeypatch: Patch) -> str:
    if request.param == "ps":
        monkeypatch.setattr(ocloop, "PROC", NO_PROC)
        if not ocloop.list_processes():
            pytest.skip("there is no `ps` here that takes these options")
    elif not os.path.isdir("/proc/self"):
        pytest.skip("there is no /proc here")
    return str(request.param)


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts shell commands in groups of their own; what is left of them in the end is killed."""
    children: list[subprocess.Popen[bytes]] = []

    def start(command: str, mark: str = "", **how: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **({ocloop.MARK: mark} if mark else {})}
        how.setdefault("stdout", subprocess.PIPE)
        child = ocloop.spawn(["/bin/sh", "-c", command], env=environment, **how)
        children.append(child)
        return child

    yield start
    for child in children:
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout:
            child.stdout.close()


# ── worlds ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=GENERATIONS, ids=[f"v{number}" for number in GENERATIONS])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """For a test on the fake OpenCode: it is run once on each generation of its interface."""
    with World(tmp_path, int(request.param)) as made:
        yield made


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[World]:
    """For a test in which no server is started, or the real one: generations make no difference."""
    with World(tmp_path) as made:
        yield made


# ── the real OpenCode ─────────────────────────────────────────────────────────────────────────────


def has_second_generation() -> bool:
    """Whether a real OpenCode 2 is installed here: the tests run on it, too, then."""
    found = installed_opencode()
    if not found:
        return False
    said = subprocess.run([found, "--version"], check=False, capture_output=True, text=True)
    return "2." in said.stdout.split(" v")[-1][:3]


@pytest.fixture(scope="session")
def opencode1() -> str:
    """The path of the real OpenCode 1."""
    return find_opencode(harness.VERSION if has_second_generation() else "")


@pytest.fixture(scope="session", params=[1, 2] if has_second_generation() else [1])
def opencode(request: pytest.FixtureRequest, opencode1: str) -> str:
    """The path of each real OpenCode that is here."""
    return opencode1 if request.param == 1 else os.path.abspath(installed_opencode())


@pytest.fixture(scope="session")
def server(opencode1: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Used by many runs of ocloop, none of which may stop it."""
    folder = tmp_path_factory.mktemp("server")
    real = RealServer(opencode1, harness.sealed(folder / "home"), folder)
    yield real
    running = real.process.poll() is None
    harness.end_helper(real.process)
    assert running, "somebody stopped the shared server"
