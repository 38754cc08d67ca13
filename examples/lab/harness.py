"""What the tests, the soak test, the benchmark, the demonstration and the picture have in common.

A `World` is what surrounds a program: a home of its own, projects, an environment that knows
nothing of the person's and has no way to the network. In it runs a `Child`, whose output goes to a
file, or a `Terminal`, which sits in a pseudo-terminal; a `Screen` is what a person would see there.

Two promises hold for everything that is started here:

- Nothing is left behind. Each child carries a mark in its environment, which all that it starts
  inherits, however it detaches itself; `Child.finish` looks for processes with that mark, and fails
  if there are any.
- No wait is for ever. What does not come raises AssertionError, with all that could be seen
  meanwhile.

Looking for processes needs Linux's /proc; making folders and environments does not. Nothing but the
standard library, so that the demonstration runs on a machine that has Python and no more.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import itertools
import json
import os
import pty
import random
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unicodedata
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripted model is beside it

from scripted_model import opencode_config

if TYPE_CHECKING:
    from scripted_model import ScriptedModel

LAB = Path(__file__).resolve().parent
EXAMPLES = LAB.parent
ROOT = EXAMPLES.parent
OCLOOP = ROOT / "ocloop.py"  # the program in question
FAKE = LAB / "fake_opencode.py"
PACKAGE = "opencode-ai"
VERSION = "1.18.33"  # of the real OpenCode that is fetched where there is none
LONG = 60.0  # seconds that a step may take on a slow machine before it counts as never coming
GENERATIONS = (1, 2)  # of OpenCode's interface: the fake speaks both

Json = dict[str, Any]
Found = TypeVar("Found")

# What a shell starts in the background ignores SIGINT, and hands that down to all that it starts:
# a ctrl-C in an ocloop's first moments would be lost. (A handler is not handed down.)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ── waiting and failing ───────────────────────────────────────────────────────────────────────────


def fail(message: str) -> NoReturn:
    """Say what is wrong, in the way that a test framework and a person both understand."""
    raise AssertionError(message)


def nothing_said() -> str:
    """There is nothing to show about a wait."""
    return ""


AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "t"), ("EMAIL", "t@localhost"))
}


def until(
    condition: Callable[[], Found],
    what: str,
    timeout: float = LONG,
    said: Callable[[], str] = nothing_said,
) -> Found:
    """Wait for something and return it; fail with what was said meanwhile when it does not come."""
    end = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            fail(f"waited {timeout:.0f} s for {what}; there was:\n{said()}")
        time.sleep(0.03)


# ── processes and ports ───────────────────────────────────────────────────────────────────────────


def marked(mark: str) -> dict[int, str]:
    """The processes that carry the mark in their environment: pid -> command line."""
    found = {}
    if not os.path.isdir("/proc"):
        how = ("ps", "-A", "-E", "-ww", "-o", "pid=,command=")  # as macOS spells it
        told = subprocess.run(how, capture_output=True, text=True, check=True).stdout
        lines = re.findall(r"^ *(\d+) (.*)", told, re.MULTILINE)
        return {int(pid): line for pid, line in lines if mark in line}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if mark.encode() in file.read(8 << 20):  # one can look endless
                line = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(name)] = line.decode("utf-8", "replace")
    return found


def kill(pids: Sequence[int]) -> None:
    """SIGKILL to each of them that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def process_status(pid: int, field: str) -> str:
    """A line of /proc/PID/status such as VmRSS or SigBlk, "" when the process is gone."""
    with suppress(OSError):
        text = Path("/proc", str(pid), "status").read_text(encoding="ascii", errors="replace")
        found = re.search(rf"^{field}:\s*(.*)$", text, re.MULTILINE)
        return found.group(1) if found else ""
    return ""


def memory_kib(pid: int, field: str = "VmRSS") -> int:
    """What a process has resident (VmRSS) or had at most (VmHWM), 0 when it is gone."""
    words = process_status(pid, field).split()
    return int(words[0]) if words else 0


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process, all its threads and none of its children; None when it is gone.

    The clock is made as clock_getcpuclockid(3) makes it: it counts nanoseconds, where
    /proc/PID/stat has hundredths of a second.
    """
    with suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)
    return None


def blocked_signals(pid: int) -> set[int]:
    """The signals that a process holds back."""
    mask = int(process_status(pid, "SigBlk") or "0", 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


reserved_ports: list[socket.socket] = []


def free_port() -> int:
    """A port on which nobody listens, and which nobody else is given while this process lives.

    It lies below those that a system hands out for connections (from 32768 on Linux, from 49152
    elsewhere): one of these could be taken before its test has started the server. The tests
    beside this one are kept off by a datagram socket of the same number, which no server misses.
    """
    for _ in range(1000):
        port = random.randrange(15_000, 32_000)
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket() as probe:
            try:
                reservation.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        reserved_ports.append(reservation)
        return port
    raise OSError("none of a thousand ports is free")


def listening(process: subprocess.Popen[bytes]) -> str:
    """The URL on which a server that was just started says that it listens.

    Its output is drained from then on, so that it never waits for a reader.
    """
    lines = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        found = re.search(rb"listening on (http://\S+)", line)
        if found:
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found.group(1).decode()
    fail(f"the server did not start: {lines}")


def end_helper(process: subprocess.Popen[bytes]) -> None:
    """End a process that has a group of its own, and its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def take_terminal() -> None:
    """In a new process: standard input becomes the terminal that controls its session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def first_line(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout
    return child.stdout.readline().decode().strip()


def is_alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody waits for does not, where /proc tells."""
    with suppress(OSError):
        if not os.path.isdir("/proc/self"):
            os.kill(pid, 0)
            return True
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


# ── the environment ───────────────────────────────────────────────────────────────────────────────

# What must not reach a child: that SIGHUP is ignored, as under nohup; settings of OpenCode and
# ocloop, of npm and Python, and proxies.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
UNWANTED = re.compile(r"(?i)(OPENCODE|OCLOOP|npm_|XDG_|PYTHON).*|.*_proxy")
# What describes a person's terminal and language.
OF_THE_TERMINAL = re.compile(r"LC_.*|LANG|LANGUAGE|TERM|COLORTERM|NO_COLOR|COLUMNS|LINES")
NOWHERE = (
    "http://127.0.0.1:9"  # a proxy that nobody is: what wants to leave this machine fails at once
)


def sealed(home: Path, on_this_terminal: bool = False) -> dict[str, str]:
    """An environment with a home and a temporary folder of its own, and no way to the network.

    A child in a test knows no terminal but the one that it is given; `on_this_terminal` is for one
    that a person looks at, whose terminal and language are kept.
    """
    home.mkdir()
    temporary = home.parent / "tmp"
    temporary.mkdir()
    env = {
        name: value
        for name, value in os.environ.items()
        if not UNWANTED.fullmatch(name)
        and (on_this_terminal or not OF_THE_TERMINAL.fullmatch(name))
    }
    if not on_this_terminal:
        env.update(LANG="C.UTF-8", LC_ALL="C.UTF-8", TERM="dumb")
    env.update(
        HOME=str(home),
        XDG_CONFIG_HOME=str(home / ".config"),
        XDG_DATA_HOME=str(home / ".local" / "share"),
        XDG_STATE_HOME=str(home / ".local" / "state"),
        XDG_CACHE_HOME=str(home / ".cache"),
        TMPDIR=str(temporary),
        PYTHONDONTWRITEBYTECODE="1",
        npm_config_offline="true",  # in a new home OpenCode would install a package for plugins
        OPENCODE_DISABLE_AUTOUPDATE="1",
        OPENCODE_DISABLE_MODELS_FETCH="1",
        OPENCODE_PURE="1",
        HTTP_PROXY=NOWHERE,
        HTTPS_PROXY=NOWHERE,
        http_proxy=NOWHERE,
        https_proxy=NOWHERE,
        NO_PROXY="127.0.0.1,localhost",
        no_proxy="127.0.0.1,localhost",
    )
    return env


@contextlib.contextmanager
def temporary_folder(prefix: str, keep: bool = False) -> Iterator[Path]:
    """A folder that is removed in the end, even if a server that is going still writes to it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    try:
        yield folder
    finally:
        for _attempt in range(0 if keep else 20):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)
        else:
            if not keep:
                print(f"{folder} could not be removed", file=sys.stderr)


# ── a terminal's screen ───────────────────────────────────────────────────────────────────────────


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) - sum(bool(unicodedata.combining(char)) for char in text) + wide


class Style(NamedTuple):
    """How a character looks; a colour is a number of the palette of 256, None the usual one."""

    colour: int | None = None
    background: int | None = None
    bold: bool = False
    dim: bool = False
    reverse: bool = False


class Cell(NamedTuple):
    """One place of the screen; the second place of a wide character has no character."""

    char: str = " "
    style: Style = Style()


class Screen:
    """As much of a terminal as ncurses makes use of: a grid, and the sequences that change it."""

    SEQUENCE = re.compile(
        r"\x1b\[([?>]?)([\d;]*)([@-~])"  # a control sequence: private mark, numbers, final letter
        r"|\x1b\]([^\x07\x1b]*)(?:\x07|\x1b\\)"  # an operating system command: the title
        r"|\x1b[()][0-9A-Z]"  # a character set
        r"|\x1b([=>78MDEc])"  # a plain escape
        r"|([\x00-\x1a\x1c-\x1f\x7f])"  # a control character
        r"|([^\x00-\x1f\x7f]+)"  # what is to be seen
    )
    LONGEST_SEQUENCE = 200  # characters: what is still open after so many is no sequence

    def __init__(self, width: int, height: int) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""  # the beginning of a sequence whose end is still to come
        self.title = ""
        self.alternate = False
        self.style = Style()
        self.last = " "
        self.saved = (0, 0)
        self.x = 0
        self.y = 0
        self.grid: list[list[Cell]] = []
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Lines are cut or filled up, as a terminal does."""
        self.width = width
        self.height = height
        self.grid = [(row + self.blank())[:width] for row in self.grid[:height]]
        self.grid += [self.blank() for _ in range(height - len(self.grid))]
        self.top = 0
        self.bottom = height - 1
        self.x = min(self.x, width - 1)
        self.y = min(self.y, height - 1)

    def blank(self, count: int = -1) -> list[Cell]:
        """So many empty cells, a row of them as a rule."""
        return [Cell()] * (self.width if count < 0 else count)

    def rows(self) -> list[str]:
        """What can be read, without blanks at the ends of rows."""
        return ["".join(cell.char for cell in row).rstrip() for row in self.grid]

    def text(self) -> str:
        """The rows in one string."""
        return "\n".join(self.rows())

    def feed(self, data: bytes) -> None:
        """Take what a program wrote."""
        text = self.rest + self.decoder.decode(data)
        at = 0
        while at < len(text):
            found = self.SEQUENCE.match(text, at)
            if found:
                self.obey(*found.groups())
                at = found.end()
            elif text[at] == "\x1b" and len(text) - at < self.LONGEST_SEQUENCE:
                break  # the rest of a sequence is still to come
            else:
                at += 1
        self.rest = text[at:]

    def obey(
        self,
        private: str | None,
        numbers: str | None,
        final: str | None,
        title: str | None,
        escape: str | None,
        control: str | None,
        plain: str | None,
    ) -> None:
        """One match of SEQUENCE."""
        if plain:
            self.write(plain)
        elif control:
            self.control(control)
        elif final:
            self.sequence(private or "", [int(n or 0) for n in (numbers or "").split(";")], final)
        elif title is not None:
            self.title = title.partition(";")[2]
        elif escape == "M":
            self.up()
        elif escape == "7":
            self.saved = (self.x, self.y)
        elif escape == "8":
            self.x, self.y = self.saved

    def write(self, text: str) -> None:
        """Characters, each at the cursor's place."""
        for char in text:
            if unicodedata.combining(char):
                continue
            wide = cells(char)
            if self.x + wide > self.width:
                self.x = 0
                self.down()
            self.grid[self.y][self.x] = Cell(char, self.style)
            if wide == 2 and self.x + 1 < self.width:  # else it is a screen of one column
                self.grid[self.y][self.x + 1] = Cell("", self.style)
            self.x += wide
            self.last = char

    def control(self, control: str) -> None:
        """A control character."""
        if control == "\r":
            self.x = 0
        elif control == "\n":
            self.down()
        elif control == "\b":
            self.x = max(0, min(self.x, self.width - 1) - 1)
        elif control == "\t":
            self.x = min(self.width - 1, self.x // 8 * 8 + 8)

    def down(self) -> None:
        """To the next row; at the end of the region its rows move up."""
        if self.y == self.bottom:
            self.scroll(1, self.top)
        else:
            self.y = min(self.y + 1, self.height - 1)

    def up(self) -> None:
        """To the row before; at the beginning of the region its rows move down."""
        if self.y == self.top:
            self.scroll(-1, self.top)
        else:
            self.y = max(self.y - 1, 0)

    def scroll(self, lines: int, top: int) -> None:
        """Move what lies between `top` and the region's bottom up, or down where it is negative."""
        for _ in range(min(abs(lines), self.height)):
            del self.grid[top if lines > 0 else self.bottom]
            self.grid.insert(self.bottom if lines > 0 else top, self.blank())

    def sequence(self, private: str, numbers: list[int], final: str) -> None:
        """A control sequence; an unknown one does nothing."""
        count = numbers[0] or 1
        second = numbers[1] if len(numbers) > 1 else 0
        self.x = min(self.x, self.width - 1)
        if private == "?" and final in "hl":
            if 1049 in numbers or 47 in numbers:
                self.alternate = final == "h"
                self.grid = [self.blank() for _ in range(self.height)]
        elif private:
            pass
        elif final == "m":
            self.style = restyled(self.style, numbers)
        elif final in "Hf":
            self.y = min(count, self.height) - 1
            self.x = min(second or 1, self.width) - 1
        elif final in "G`":
            self.x = min(count, self.width) - 1
        elif final == "d":
            self.y = min(count, self.height) - 1
        elif final in "AB":
            self.y += count if final == "B" else -count
            self.y = max(0, min(self.height - 1, self.y))
        elif final in "CD":
            self.x += count if final == "C" else -count
            self.x = max(0, min(self.width - 1, self.x))
        elif final in "JK":
            self.erase(numbers[0], final == "J")
        elif final in "XP@":
            self.edit_row(count, final)
        elif final in "LM":
            self.scroll(count if final == "M" else -count, self.y)
        elif final in "ST":
            self.scroll(count if final == "S" else -count, self.top)
        elif final == "b":
            self.write(self.last * count)
        elif final == "r":
            self.top = count - 1
            self.bottom = (second or self.height) - 1
            self.x = self.y = 0

    def erase(self, part: int, rows_too: bool) -> None:
        """Blank what follows the cursor (0), what is before it (1), or both (2)."""
        row = self.grid[self.y]
        first = 0 if part else self.x
        last = self.x + 1 if part == 1 else self.width
        row[first:last] = self.blank(last - first)
        if rows_too:
            others = {0: range(self.y + 1, self.height), 1: range(self.y)}
            for y in others.get(part, range(self.height)):
                self.grid[y] = self.blank()

    def edit_row(self, count: int, how: str) -> None:
        """Blank (X), take out (P) or put in (@) cells at the cursor."""
        row = self.grid[self.y]
        if how == "X":
            count = min(count, self.width - self.x)
            row[self.x : self.x + count] = self.blank(count)
        elif how == "P":
            del row[self.x : self.x + count]
            row += self.blank(self.width - len(row))
        else:
            row[self.x : self.x] = self.blank(count)
            del row[self.width :]


def restyled(style: Style, numbers: list[int]) -> Style:
    """The style after `ESC [ numbers m`."""
    left = list(numbers)
    while left:
        number = left.pop(0)
        if number == 0:
            style = Style()
        elif number == 1:
            style = style._replace(bold=True)
        elif number == 2:
            style = style._replace(dim=True)
        elif number == 7:
            style = style._replace(reverse=True)
        elif number == 22:
            style = style._replace(bold=False, dim=False)
        elif number == 27:
            style = style._replace(reverse=False)
        elif 30 <= number <= 37:
            style = style._replace(colour=number - 30)
        elif 90 <= number <= 97:
            style = style._replace(colour=number - 90 + 8)
        elif number == 39:
            style = style._replace(colour=None)
        elif 40 <= number <= 47:
            style = style._replace(background=number - 40)
        elif number == 49:
            style = style._replace(background=None)
        elif number in (38, 48) and left[:1] == [5] and len(left) > 1:
            if number == 38:
                style = style._replace(colour=left[1])
            else:
                style = style._replace(background=left[1])
            left = left[2:]
    return style


# ── children ──────────────────────────────────────────────────────────────────────────────────────


class Child:
    """A running program, ocloop as a rule. Its output goes to a file.

    `finish` is how a test ends it. In an argument, `{log}` is the path of its log.
    """

    def __init__(
        self, world: World, argv: Sequence[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.world = world
        self.project = folder
        number = world.take_number()
        self.path = world.folder / f"output-{number}.txt"
        self.log = world.folder / f"log-{number}.jsonl"
        self.requests_path = Path(env.get(REQUESTS, world.folder / f"requests-{number}.jsonl"))
        identity = uuid.uuid4().hex
        self.mark = f"{MARK}={identity}"
        self.env = {**env, MARK: identity}
        self.argv = [part.replace("{log}", str(self.log)) for part in argv]
        self.began = time.time()
        world.children.append(self)
        self.process = self.spawn()

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it."""
        with open(self.path, "wb") as file:
            return subprocess.Popen(
                self.argv,
                cwd=self.project,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """All that it wrote."""
        return self.path.read_text("utf-8", "replace")

    def shown(self) -> str:
        """What a person would see now."""
        return self.output

    def everything(self) -> str:
        """For the message of a failure."""
        return f"{self.shown()}\n--- log:\n{self.log_text()[-6000:]}"

    # Waiting.

    def until(self, condition: Callable[[], Found], what: str, timeout: float = LONG) -> Found:
        """Wait for something that cannot come any more once the program has ended."""

        def look() -> Found:
            ended = self.process.poll() is not None
            found = condition()
            if ended and not found:
                time.sleep(0.3)  # the reader of a terminal may be a little behind
                found = condition()
                if not found:
                    status = self.process.poll()
                    fail(f"it ended with {status} before {what}:\n{self.everything()}")
            return found

        return until(look, what, timeout, self.everything)

    def wait_for(self, pattern: str, timeout: float = LONG) -> str:
        """Wait until what is shown has a match, and return it."""
        found = self.until(lambda: re.search(pattern, self.shown()), repr(pattern), timeout)
        assert found
        return found.group()

    def wait_gone(self, pattern: str, timeout: float = LONG) -> None:
        """Wait until what is shown has no match any more."""
        self.until(lambda: not re.search(pattern, self.shown()), f"the end of {pattern!r}", timeout)

    def wait_said(self, pattern: str, timeout: float = LONG) -> None:
        """Wait until an entry of the log matches."""
        self.until(lambda: self.said(pattern), f"{pattern!r} in the log", timeout)

    def wait_times(self, text: str, times: int) -> None:
        """Wait until the log says so so often: a screen still shows the time before."""
        self.until(lambda: self.log_text().count(text) >= times, f"{times} times {text!r}")

    def wait_event(self, name: str, timeout: float = LONG) -> Json:
        """Wait until the fake OpenCode noted such an event; the first of them."""
        return self.until(lambda: self.events(name), f"the event {name!r}", timeout)[0]

    def wait_prompts(self, count: int, timeout: float = LONG) -> None:
        """Wait until at least so many prompts were sent."""
        self.until(lambda: len(self.prompts()) >= count, f"{count} prompts", timeout)

    def wait_session(self, timeout: float = LONG) -> str:
        """Wait until the state file names a session."""
        return str(self.until(lambda: self.state().get("session"), "a session", timeout))

    def wait_process(self, pattern: str, timeout: float = LONG) -> int:
        """Wait until a process of its has a command line that matches from its start."""
        return self.until(lambda: self.processes(pattern), f"a process {pattern!r}", timeout)[0]

    def processes(self, pattern: str = "") -> list[int]:
        """The processes of its whose command line matches from its start."""
        found = re.compile(pattern, re.DOTALL)  # a script on a command line has many lines
        return [pid for pid, line in marked(self.mark).items() if found.match(line)]

    # Ending.

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill_server(self) -> None:
        """SIGKILL to the server, wrapper and all, as the kernel does when memory runs out."""
        kill(self.until(lambda: self.processes(".* serve "), "a server"))

    def ended(self, timeout: float = LONG) -> int:
        """Wait for the end; the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            fail(f"it did not end within {timeout:.0f} s:\n{self.everything()}")

    def left_behind(self, patience: float) -> dict[int, str]:
        """After the end: which processes are still there after so many seconds. They are killed."""
        self.world.finished.add(self.mark)
        end = time.monotonic() + patience
        while marked(self.mark) and time.monotonic() < end:
            time.sleep(0.05)
        left = marked(self.mark)
        kill([*left])
        return left

    def finish(self, status: int, timeout: float = LONG, patience: float = 2.0) -> Child:
        """Wait for the end: with this exit status, and nothing is left `patience` seconds later."""
        got = self.ended(timeout)
        left = self.left_behind(patience)
        if got != status:
            fail(f"it ended with {got}, not with {status}:\n{self.everything()}")
        if left:
            fail(f"left behind: {left}\n{self.everything()}")
        return self

    def stop(self, number: int) -> Child:
        """End it with a signal; after SIGKILL it is the guard that ends the rest."""
        self.signal(number)
        status = -number if number == signal.SIGKILL else 130
        return self.finish(status, timeout=20, patience=5.0 if status < 0 else 2.0)

    def close(self) -> None:
        """End what is still there, whatever it is: for a test that failed."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(4)
        if self.mark not in self.world.finished:
            kill([*marked(self.mark)])
        if self.process.poll() is None:
            self.process.wait(5)

    # The plan, and what a run leaves in files.

    @property
    def plan(self) -> str:
        return (self.project / "PLAN.md").read_text("utf-8")

    def boxes(self) -> str:
        """The boxes of the plan: "x" for done, " " for pending, else the mark's first letter."""
        marks = re.findall(r"^- \[([^\]]*)", self.plan, re.MULTILINE)
        return "".join(found[:1].lower() for found in marks)

    def log_text(self) -> str:
        return self.log.read_text("utf-8") if self.log.exists() else ""

    def records(self, **wanted: Any) -> list[Json]:
        """The entries of the log that have all these values."""
        found = [json.loads(line) for line in self.log_text().split("\n")[:-1]]
        return [one for one in found if all(one.get(key) == wanted[key] for key in wanted)]

    def said(self, pattern: str) -> bool:
        """Whether an entry of the log matches."""
        return any(re.search(pattern, str(record.get("text"))) for record in self.records())

    def outcomes(self) -> list[str]:
        """How the iterations ended, one after the other."""
        return [str(record["outcome"]) for record in self.records(record="iteration")]

    def checks(self) -> list[str]:
        """What became of the checks, one after the other."""
        return [str(record["check"]) for record in self.records(record="iteration")]

    def state(self) -> Json:
        """The state file of the run."""
        for path in Path(self.env["XDG_STATE_HOME"], "ocloop").glob("*.json"):
            record: Json = json.loads(path.read_text("utf-8"))
            if Path(record["plan"]).parent == self.project:
                return record
        return {}

    # What the fake OpenCode noted. Requests are in the words of its generation, events in neutral
    # ones.

    def notes(self) -> list[Json]:
        """Everything."""
        if not self.requests_path.exists():
            return []
        text = self.requests_path.read_text("utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def requests(self, path: str = "", method: str = "") -> list[Json]:
        """Requests whose path has a match."""
        return [
            note
            for note in self.notes()
            if "path" in note and method in note["method"] and re.search(path, note["path"])
        ]

    def events(self, name: str) -> list[Json]:
        """The events of this name."""
        return [note for note in self.notes() if note.get("event") == name]

    def prompt_notes(self) -> list[Json]:
        """The prompts that were sent: session, id, text, model (PROVIDER/MODEL or ""), agent."""
        return self.events("prompt")

    def prompts(self) -> list[str]:
        """The texts of the prompts that were sent."""
        return [str(note["text"]) for note in self.prompt_notes()]

    def titles(self) -> list[str]:
        """The titles of the sessions that were made."""
        return [str(note["title"]) for note in self.events("session")]

    def replies(self, kind: str = "") -> list[Json]:
        """The replies that were taken: kind, id, decision, message, answers."""
        taken = [note for note in self.events("reply") if note["code"] == 200]
        return [note for note in taken if not kind or note["kind"] == kind]

    def aborts(self) -> list[str]:
        """The sessions that were aborted."""
        return [str(note["session"]) for note in self.events("abort")]


class Terminal(Child):
    """A program in a pseudo-terminal. What counts is what stands on the screen."""

    def __init__(
        self,
        world: World,
        argv: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        width: int = 100,
        height: int = 30,
        name: str = "xterm-256color",
        reading: bool = True,
    ) -> None:
        self.screen = Screen(width, height)
        self.lock = threading.Lock()
        self.transcript = b""
        self.hung_up = False
        self.reading = threading.Event()
        if reading:
            self.reading.set()
        super().__init__(world, argv, folder, {**env, "TERM": name})

    def spawn(self) -> subprocess.Popen[bytes]:
        self.master, slave = pty.openpty()
        self.set_size(self.screen.width, self.screen.height)
        process = subprocess.Popen(
            self.argv,
            cwd=self.project,
            env=self.env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 (it makes one system call)
        )
        os.close(slave)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        return process

    def read(self) -> None:
        """In a thread: take what the program writes, for as long as somebody reads."""
        while not self.hung_up:
            if not self.reading.wait(0.1):
                continue
            try:
                if not select.select([self.master], [], [], 0.1)[0]:
                    continue
                data = os.read(self.master, 1 << 16)
            except OSError:
                return
            self.take(data)

    def take(self, data: bytes) -> None:
        """Show what the program wrote."""
        with self.lock:
            self.transcript += data
            self.screen.feed(data)

    def set_size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def resize(self, width: int, height: int) -> None:
        """Another size, as when a person pulls at the window."""
        with self.lock:
            self.screen.resize(width, height)
        self.set_size(width, height)

    def send(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def quit(self) -> None:
        """Q, and Q again: what a person does to leave a run in the middle of an iteration."""
        self.send("q")
        self.wait_for("Q again")
        self.send("q")

    @property
    def output(self) -> str:
        return self.transcript.decode("utf-8", "replace")

    @property
    def bells(self) -> int:
        """How often it has rung; the sign that ends a title does not count."""
        return re.sub(r"\x1b\][^\x07]*\x07", "", self.output).count("\x07")

    def shown(self) -> str:
        with self.lock:
            return self.screen.text()

    def hang_up(self) -> None:
        """The terminal goes away, as when a connection breaks."""
        if not self.hung_up:
            self.hung_up = True
            self.thread.join()  # it would keep the terminal open
            os.close(self.master)

    def restored(self) -> bool:
        """Whether the terminal is as it was found: usual screen, echo, whole lines, a cursor."""
        flags = termios.tcgetattr(self.master)[3]
        usual = flags & termios.ECHO and flags & termios.ICANON
        cursor = self.output.rfind("\x1b[?25h") >= self.output.rfind("\x1b[?25l")
        return bool(usual and cursor and not self.screen.alternate)

    def finish(self, status: int, timeout: float = LONG, patience: float = 2.0) -> Child:
        """As of any child, and the terminal is restored if somebody reads it."""
        super().finish(status, timeout, patience)
        if self.reading.is_set() and not self.hung_up:
            until(self.restored, "a restored terminal", 5, lambda: repr(self.output[-300:]))
        return self

    def close(self) -> None:
        super().close()
        self.hang_up()


# ── a world ───────────────────────────────────────────────────────────────────────────────────────

MARK = "OCLOOP_TEST"  # the variable whose value tells the processes of one child from all others
REQUESTS = (
    "OCLOOP_TEST_REQUESTS"  # names the file in which the fake of a child notes what it is told
)


class Command(NamedTuple):
    """What to start, where, and with what in its environment."""

    folder: Path
    argv: list[str]
    env: dict[str, str]


class World:
    """A home, projects and an environment, and the children that live there.

    `generation` is that of the fake OpenCode. Every way to start something has two names: the plain
    one gives a Child, the one that ends in `_terminal` a Terminal.
    """

    def __init__(
        self, folder: Path, generation: int = 1, env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.generation = generation
        self.children: list[Child] = []
        self.finished: set[str] = set()  # marks of children that were looked after to their end
        self.helpers: list[subprocess.Popen[bytes]] = []
        self.numbers = itertools.count()
        self.env = {**sealed(folder / "home"), **(env or {})}

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started here."""
        for child in self.children:
            child.close()
        for process in self.helpers:
            end_helper(process)

    def take_number(self) -> int:
        """A number that nothing else in this world has."""
        return next(self.numbers)

    def project(
        self, tasks: int | str = 2, name: str = "", prompt: str = "Work on {{PLAN_FILE}}.\n"
    ) -> Path:
        """A folder with a plan (of so many tasks, or this text) and a prompt."""
        folder = self.folder / (name or f"project-{self.take_number()}")
        folder.mkdir()
        text = tasks
        if isinstance(tasks, int):
            lines = "".join(f"- [ ] Task {number}\n" for number in range(1, tasks + 1))
            text = f"# Plan\n\n## Phase one\n\n{lines}"
        (folder / "PLAN.md").write_text(str(text), "utf-8")
        (folder / ".loop-prompt.md").write_text(prompt, "utf-8")
        return folder

    # Any program.

    def execute(self, folder: Path, argv: Sequence[str], **env: str) -> Child:
        """Start a program."""
        return Child(self, argv, folder, {**self.env, **env})

    def execute_terminal(self, folder: Path, argv: Sequence[str], **env: str) -> Terminal:
        """Start a program in a terminal."""
        return Terminal(self, argv, folder, {**self.env, **env})

    def helper(self, argv: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start something that is no child and carries no mark; it is ended with this world."""
        process = subprocess.Popen(
            argv,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.helpers.append(process)
        return process

    # ocloop.

    def start(self, folder: Path, *args: str, **env: str) -> Child:
        """Start ocloop with these arguments."""
        return self.execute(folder, [sys.executable, str(OCLOOP), *args], **env)

    def start_terminal(self, folder: Path, *args: str, **env: str) -> Terminal:
        """Start ocloop with these arguments in a terminal."""
        return self.execute_terminal(folder, [sys.executable, str(OCLOOP), *args], **env)

    def say(self, folder: Path, *args: str, status: int = 0, **env: str) -> str:
        """Run ocloop to its end, expect this exit status, return its output."""
        return self.start(folder, *args, **env).finish(status).output

    # ocloop on the fake OpenCode.

    def setting(self, **behaviour: Any) -> dict[str, str]:
        """The environment that makes the fake behave like that, in this world's generation."""
        return {"FAKE_OPENCODE": json.dumps({"generation": self.generation, **behaviour})}

    def on_fake(
        self,
        *args: str,
        answers: Sequence[str] = ("work",),
        project: Path | None = None,
        tasks: int | str = 2,
        env: Mapping[str, str] | None = None,
        patch: str = "",
        default_port: bool = False,
        **behaviour: Any,
    ) -> Command:
        """What starts `ocloop run` on the fake; `patch` is Python to run before, as for a crash."""
        argv = [*patched(patch), "run"]
        if "--log" not in args:
            argv += ["--log", "{log}"]
        if not default_port and not {"-p", "--port"} & set(args):
            argv += ["--port", str(free_port())]
        if "--opencode" not in args:
            argv += ["--opencode", fake_command()]
        requests = str(self.folder / f"requests-{self.take_number()}.jsonl")
        setting = self.setting(answers=list(answers), log=requests, **behaviour)
        folder = project or self.project(tasks)
        return Command(folder, [*argv, *args], {REQUESTS: requests, **setting, **(env or {})})

    def fake(self, *args: str, **how: Any) -> Child:
        """Start `ocloop run` on the fake; `how` is what `on_fake` takes."""
        command = self.on_fake(*args, **how)
        return self.execute(command.folder, command.argv, **command.env)

    def fake_terminal(
        self, *args: str, reading: bool = True, name: str = "xterm-256color", **how: Any
    ) -> Terminal:
        """Start `ocloop run` on the fake in a terminal of that name, which somebody reads."""
        command = self.on_fake(*args, **how)
        env = {**self.env, **command.env}
        return Terminal(self, command.argv, command.folder, env, name=name, reading=reading)

    def fake_server(self, login: Mapping[str, str] | None = None, **behaviour: Any) -> str:
        """Start a fake server that is not ocloop's; its URL."""
        where = ["--hostname=127.0.0.1", f"--port={free_port()}"]
        command = [sys.executable, str(FAKE), "serve", *where]
        return listening(self.helper(command, **self.setting(**behaviour), **(login or {})))

    # ocloop on the real OpenCode.

    def on_real(
        self,
        *args: str,
        model: ScriptedModel,
        opencode: str = "",
        server: RealServer | None = None,
        project: Path | None = None,
        tasks: int = 2,
        patch: str = "",
        **env: str,
    ) -> Command:
        """What starts `ocloop run` on the real OpenCode: on a server of its own, or on `server`."""
        folder = project or quiz(self, tasks)
        if not (folder / "opencode.json").exists():
            (folder / "opencode.json").write_text(json.dumps(opencode_config(model.url)), "utf-8")
        where = ["--opencode", shlex.quote(opencode), "--port", str(free_port())]
        if server:
            where = ["--server", server.url]
            env["OPENCODE_SERVER_PASSWORD"] = server.password
        argv = [*patched(patch), "run", "--log", "{log}", *where, *args]
        return Command(folder, argv, env)

    def real(self, *args: str, **how: Any) -> Child:
        """Start `ocloop run` on the real OpenCode; `how` is what `on_real` takes."""
        command = self.on_real(*args, **how)
        return self.execute(command.folder, command.argv, **command.env)

    def real_terminal(self, *args: str, **how: Any) -> Terminal:
        """The same in a terminal."""
        command = self.on_real(*args, **how)
        return self.execute_terminal(command.folder, command.argv, **command.env)


def patched(patch: str) -> list[str]:
    """What starts ocloop, after this Python has changed something inside of it."""
    if not patch:
        return [sys.executable, str(OCLOOP)]
    before = f"import sys\nsys.path.insert(0, {str(OCLOOP.parent)!r})\nimport ocloop\n"
    return [sys.executable, "-c", f"{before}{patch}\nsys.exit(ocloop.main(sys.argv[1:]))"]


def fake_command() -> str:
    """How to start the fake, for `--opencode`."""
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE))}"


# ── the quiz and the real OpenCode ────────────────────────────────────────────────────────────────


def quiz_plan(tasks: int = 0) -> str:
    """The example's plan: all of it, or as many tasks; more than it has are asked a second time."""
    plan = (EXAMPLES / "PLAN.md").read_text("utf-8")
    ends = [found.end() for found in re.finditer(r"^- \[ \] .*\n", plan, re.MULTILINE)]
    if tasks and tasks <= len(ends):
        return plan[: ends[tasks - 1]]
    lines = re.findall(r"^- \[ \] .*\n", plan, re.MULTILINE)
    for number in range(len(ends), tasks):
        again = f"-{number // len(ends) + 1}.txt"
        plan += lines[number % len(ends)].replace(".txt", again)
    return plan


def quiz_prompt() -> str:
    """The example's prompt."""
    return (EXAMPLES / "loop-prompt.md").read_text("utf-8")


def quiz(world: World, tasks: int = 0, name: str = "") -> Path:
    """A project with the first tasks of the example's plan and its prompt."""
    return world.project(quiz_plan(tasks), name, quiz_prompt())


def installed_opencode() -> str:
    """The OpenCode of this machine, of any version: on PATH or in its usual place, else ""."""
    usual = Path.home() / ".opencode" / "bin" / "opencode"
    return shutil.which("opencode") or shutil.which(str(usual)) or ""


def find_opencode(version: str = "") -> str:
    """The real OpenCode: named, installed, or fetched with npm and kept in a cache.

    Of the version that is asked for it is always the fetched one.
    """
    found = os.environ.get("OCLOOP_TEST_OPENCODE") or installed_opencode()
    if found and not version:
        return os.path.abspath(found)
    version = version or VERSION
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ocloop-test" / version
    program = folder / "node_modules" / ".bin" / "opencode"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the suite may get here at once
        if not (folder / "installed").exists():
            install_opencode(folder, program, version)
            (folder / "installed").touch()
    return str(program)


def install_opencode(folder: Path, program: Path, version: str) -> None:
    """Fetch this version of OpenCode with npm."""
    npm = shutil.which("npm")
    if not npm:
        fail("no opencode and no npm on PATH: install one of them, or set OCLOOP_TEST_OPENCODE")
    done = subprocess.run(
        [npm, "install", "--prefix", str(folder), f"{PACKAGE}@{version}"],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode or not program.exists():
        said = done.stdout
        fail(f"npm could not install {PACKAGE}@{version}: set OCLOOP_TEST_OPENCODE\n{said}")


def opencode_version(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What `opencode --version` says: "1.18.33", "opencode v2.0.22"."""
    done = subprocess.run(
        [*command, "--version"], check=False, env=dict(env), capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip() or done.returncode
        fail(f"`{shlex.join(command)} --version` failed: {said}")
    return done.stdout.strip()


class RealServer:
    """An `opencode serve` that is not ocloop's."""

    def __init__(self, opencode: str, env: Mapping[str, str], folder: Path) -> None:
        self.password = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [opencode, "serve", "--hostname=127.0.0.1", f"--port={free_port()}"],
            cwd=folder,
            env={**env, "OPENCODE_SERVER_PASSWORD": self.password},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.url = listening(self.process)


# ── what a test asks of a run ─────────────────────────────────────────────────────────────────────

# What can be asked about a run that has ended.
FACTS: dict[str, Callable[[Child], Any]] = {
    "boxes": lambda run: run.boxes(),
    "outcomes": lambda run: ", ".join(run.outcomes()),
    "checks": lambda run: ", ".join(run.checks()),
    "progress": lambda run: [int(one["progress"]) for one in run.records(record="iteration")],
    "counted": lambda run: [(one["done"], one["total"]) for one in run.records(record="run")],
    "waits": lambda run: run.log_text().count("trying again in 1s"),
    "complaints": lambda run: run.output.count("/dev/full cannot be written"),
    "has_tag": lambda run: "<plan-complete>" in run.plan,
    "prompts": lambda run: len(run.prompts()),
    "models": lambda run: [note["model"] for note in run.prompt_notes()],
    # Which prompts say that nothing is settled, and whether they say how to block a task.
    "urged": lambda run: [
        (number, "BLOCKED" in text)
        for number, text in enumerate(run.prompts())
        if "settled nothing" in text
    ],
    "sessions": lambda run: len(run.titles()),
    "aborted": lambda run: bool(run.aborts()),
    "replies": lambda run: [reply["decision"] for reply in run.replies("permission")],
    "reasons": lambda run: all(reply["message"] for reply in run.replies("permission")),
    "starts": lambda run: len(run.events("exec")),
    "replaced": lambda run: len(run.events("exec")) > 1,
}


def expect(run: Child, status: int, *said: str, **facts: Any) -> Child:
    """A run ends with this status, says these words, leaves nothing behind, and that is so."""
    run.finish(status, timeout=120)
    for words in said:
        if words.startswith("!"):
            assert words[1:] not in run.shown(), f"{words!r}:\n{run.everything()}"
        else:
            run.wait_for(re.escape(words))  # the reader of a terminal may be a little behind
    assert {name: FACTS[name](run) for name in facts} == facts, run.everything()
    assert "\x1b" not in run.shown()
    assert all(record["status"] == status for record in run.records(record="run")[-1:])
    return run


def leave(term: Terminal, status: int = 0, shown: str = "✔ complete", **facts: Any) -> Child:
    """Wait for this on the screen, press Q, and expect the end."""
    term.wait_for(shown)
    term.send("q")
    return expect(term, status, **facts)


def wait_asked(term: Terminal, number: int) -> None:
    """Wait for so many things to have been asked, and for the last one on the screen."""
    # It rings once that very ask is on the screen; a key before would be meant for another one.
    term.until(lambda: term.bells >= number, f"the bell for ask number {number}")
    term.wait_for(r"waits for you(.|\n)*(git push(.|\n)*Y once|Which way(.|\n)*2 B)")


def allow_elsewhere(world: World, state: Json) -> None:
    """Allow what is asked once, as another program on this machine would."""
    login = f"{state.get('username') or 'opencode'}:{state['password']}"
    headers = {"Authorization": "Basic " + b64encode(login.encode()).decode()}
    headers["Content-Type"] = "application/json"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path: str, body: Json | None = None) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(state["server"] + path, data, headers)
        with opener.open(request, timeout=10) as response:
            return json.loads(response.read() or b"null")

    if world.generation == 1:
        number = ask("/permission")[0]["id"]
        ask(f"/permission/{number}/reply", {"reply": "once"})
    else:
        asked = ask("/api/permission/request")["data"][0]
        path = f"/api/session/{asked['sessionID']}/permission/{asked['id']}/reply"
        ask(path, {"decision": "once"})


def interface_of(world: World, session: str) -> str:
    """What the fake's interface shows when it was started for a session, with its password.

    The words of its command line may be broken anywhere: the screen is narrow."""
    option = {1: "attach http://127.0.0.1:", 2: "--server http://127.0.0.1:"}[world.generation]
    words = (option, f"--session {session}", "password: yes")
    return r"(.|\n)*".join(r"\n?".join(map(re.escape, text)) for text in words)


def libraries_of(world: World) -> list[str]:
    """What lies where OpenCode unpacks its libraries, less what this test has put there."""
    folders = Path(world.env["XDG_STATE_HOME"], "ocloop").glob("*.libraries")
    return [path.name for folder in folders for path in folder.iterdir() if path.name != "keep.so"]


def commit_all(world: World, folder: Path) -> list[str]:
    """Make a repository of a folder; how git is called in it."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "begin"]):
        subprocess.run([*git, *words], check=True, env=world.env)
    return git


def answers_in(project: Path) -> list[str]:
    """The answers of a quiz."""
    return [path.read_text("utf-8").strip() for path in sorted((project / "answers").glob("*.txt"))]
