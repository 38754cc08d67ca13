#!/usr/bin/env python3
"""Break ocloop.py in small ways, one at a time, and see whether the tests notice.

    python3 examples/mutate.py                     200 mutants, drawn with seed 1
    python3 examples/mutate.py --seed 7 -n 50      others, and fewer
    python3 examples/mutate.py --jobs 1            on one core
    python3 examples/mutate.py --line 1234         only those of the drawn ones on this line
    python3 examples/mutate.py --list              what would be changed, and nothing is run

A mutant is ocloop.py with one change: a comparison, `and` for `or`, a `not` left out, + for -, a
number, True for False, a key of a dictionary, a text that something is compared with, a condition
turned round, a result not returned, a call left out. The changes are in the machines, in the
reading of plans, in the screen's layout and in the decoders of what OpenCode says. All is done in
copies of the project. A mutant is caught when a test fails or takes far too long; the lines of
those that survive are printed. Exit status 0: enough of them were caught.

It needs pytest. The tests run once to learn which of them execute which statement. Then pytest
collects them once for each job, and for each mutant a fork of that process takes the changed
function and runs the tests that execute the changed statement, quick and special ones first. What
is executed while ocloop.py is imported, like the tables of the machines, needs a pytest of its own,
which runs the tests of that class first and all others after them.
"""

from __future__ import annotations

import argparse
import ast
import copy
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, cast

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PROGRAM = "ocloop.py"
CORE = "not real and not v1 and not v2"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CORE)

# Where changes are made: in all classes and functions from one name to the other.
RANGES = (
    ("Plan", "render_prompt"),  # the reading of plans
    ("Backoff", "word_for"),  # the machines and what they are made of
    ("printable", "activity"),  # view and layout
    ("EventStream", "kind_of_code"),  # the decoders
    ("OpenCode1", "was_refused"),
)

# Time-outs in seconds: of a test, and of all tests of a mutant.
PATIENCE = 10.0
SLOWER = 10.0  # and so many times what the test took without a change
LONGEST = 600.0
MEMORY = 4 << 30  # bytes that a mutant may take; an endless loop would take them all

# What pytest is told where it works for this program.
FOLDER = "MUTATE_FOLDER"
ROLE = "MUTATE_ROLE"  # "learn", "cold" (one mutant that needs all tests), or the number of the job
MUTANT = "MUTANT"  # marks what a mutant started; the environment of a test's child keeps it


# ── the changes ───────────────────────────────────────────────────────────────────────────────────


class Mutant(NamedTuple):
    """A change: the bytes from `start` to `end` become `text`."""

    line: int
    path: str  # Class.method
    statement: int  # its number, -1 where it is executed by the import
    start: int
    end: int
    text: str
    what: str  # for people


class Place(NamedTuple):
    """Where in the program a node is."""

    path: tuple[str, ...]
    statement: int


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPPOSITES = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
SIGNS: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
LOOKUPS = ("get", "pop", "setdefault")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_text(node: ast.AST) -> bool:
    """Whether it is a text as written; adding texts is no arithmetic."""
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    if isinstance(node, ast.IfExp):
        return is_text(node.body) or is_text(node.orelse)
    constant = isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    return constant or isinstance(node, (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple))


def is_falsy(node: ast.AST) -> bool:
    """Whether None in its place would be much the same."""
    if isinstance(node, ast.Constant):
        return not node.value
    return isinstance(node, (ast.List, ast.Tuple, ast.Dict)) and not list(
        ast.iter_child_nodes(node)
    )


def changed_constant(value: object) -> str | float | None:
    """Another value of the same type; None where there is none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return None


def keys_in(node: ast.AST) -> set[int]:
    """The ids of the nodes in it that are keys or are compared with."""
    found: list[ast.AST | None] = []
    if isinstance(node, ast.Dict):
        found += node.keys
    elif isinstance(node, ast.Subscript):
        found.append(node.slice)
    elif isinstance(node, ast.Compare):
        found += [node.left, *node.comparators]
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOOKUPS
    ):
        found += node.args[:1]
    wider = [
        item
        for one in found
        if isinstance(one, (ast.Tuple, ast.Set, ast.List))
        for item in one.elts
    ]
    return {id(one) for one in (*found, *wider) if one is not None}


def changes_of(node: ast.AST, keys: set[int]) -> Iterator[tuple[ast.AST, ast.AST]]:
    """All changes of one node: what is replaced, and with what."""
    if isinstance(node, ast.Compare):
        for number, op in enumerate(node.ops):
            changed = copy.copy(node)
            changed.ops = [*node.ops]
            changed.ops[number] = COMPARISONS[type(op)]()
            yield node, changed
    elif isinstance(node, ast.BoolOp):
        other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield node, ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS and not is_text(node):
        yield node, ast.BinOp(node.left, SIGNS[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in SIGNS and not is_text(node.value):
        yield node, ast.AugAssign(node.target, SIGNS[type(node.op)](), node.value)
    elif isinstance(node, ast.Constant):
        value = changed_constant(node.value)
        if isinstance(node.value, str) and id(node) in keys:
            value = f"{node.value}-"
        if value is not None:
            yield node, ast.Constant(value)
    elif isinstance(node, ast.Return) and node.value and not is_falsy(node.value):
        yield node.value, ast.Constant(None)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        # A method in which `super` is named has a variable more, without which the changed code
        # would not fit the function.
        names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        yield node, ast.Expr(ast.Name("super")) if "super" in names else ast.Pass()
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield from negations(node.test)
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield from negations(test)


def negations(test: ast.expr) -> Iterator[tuple[ast.AST, ast.AST]]:
    """A condition turned round, where no other change does that."""
    is_one = isinstance(test, ast.Compare) and len(test.ops) == 1
    if is_one and isinstance(test, ast.Compare) and isinstance(test.ops[0], OPPOSITES):
        return
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return
    yield test, ast.UnaryOp(ast.Not(), test)


class Finder:
    """Finds every change that could be made to a program."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.found: list[Mutant] = []
        self.inside: dict[str, set[int]] = {}  # class or function -> its statements
        tree = ast.parse(source)
        self.numbers = {id(node): number for number, node in enumerate(statements(tree))}
        self.starts = [0]
        for line in source.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        for node in chosen(tree):
            self.visit(node, Place((), -1), set())

    def visit(self, node: ast.AST, place: Place, keys: set[int]) -> None:
        """Look at a node and at all below it; assertions are for people and mypy."""
        if isinstance(node, ast.Assert):
            return
        if isinstance(node, ast.stmt) and place.statement >= 0:
            place = Place(place.path, self.numbers[id(node)])
            self.inside.setdefault(place.path[0], set()).add(place.statement)
        for old, new in changes_of(node, keys):
            self.add(old, new, place)
        keys = keys | keys_in(node)
        if isinstance(node, ast.JoinedStr):
            return  # Python before 3.12 does not tell where its parts are
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            self.visit_definition(node, place)
            return
        for name, value in ast.iter_fields(node):
            if name == "annotation":
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child, place, keys)

    def visit_definition(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, place: Place
    ) -> None:
        """Look at what is in a function or a class."""
        path = (*place.path, node.name)
        if isinstance(node, ast.ClassDef):
            inside = Place(path, -1)
        elif place.statement >= 0:
            inside = place  # a function in a function
        else:
            inside = Place(path, 0)
            for default in (*node.args.defaults, *node.args.kw_defaults):
                if default:
                    self.visit(default, Place(path, -1), set())
        for child in node.body:
            self.visit(child, inside, set())

    def add(self, old: ast.AST, new: ast.AST, place: Place) -> None:
        """Note a change."""
        start = self.offset(getattr(old, "lineno", 0), getattr(old, "col_offset", 0))
        end = self.offset(getattr(old, "end_lineno", 0), getattr(old, "end_col_offset", 0))
        lines = self.source.count(b"\n", start, end)
        written = ast.unparse(new)
        # The lines below keep their numbers, by which a function is found again.
        is_statement = isinstance(old, ast.stmt)
        filled = written + "\n" * lines if is_statement else f"({written}{chr(10) * lines})"
        what = f"{short(ast.unparse(old))}  ->  {short(written)}"
        line: int = getattr(old, "lineno", 0)
        path = ".".join(place.path)
        self.found.append(Mutant(line, path, place.statement, start, end, filled, what))

    def offset(self, line: int, column: int) -> int:
        """Where a position is in the bytes of the program."""
        return self.starts[line - 1] + column


def short(text: str) -> str:
    """A text for one line of the report."""
    line = " ".join(text.split())
    return line if len(line) <= 110 else f"{line[:53]} … {line[-53:]}"


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements, in an order that is always the same."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.stmt))


def chosen(tree: ast.Module) -> list[ast.stmt]:
    """The classes and functions in which changes are made."""
    found = [node for node in tree.body if isinstance(node, (*FUNCTIONS, ast.ClassDef))]
    names = [node.name for node in found]
    missing = {name for both in RANGES for name in both} - set(names)
    if missing:
        raise SystemExit(f"{PROGRAM} has no {', '.join(sorted(missing))}: put RANGES right")
    wanted: list[ast.stmt] = []
    for first, last in RANGES:
        wanted += found[names.index(first) : names.index(last) + 1]
    return wanted


def with_change(source: bytes, mutant: Mutant) -> bytes:
    """The mutant's program."""
    return source[: mutant.start] + mutant.text.encode() + source[mutant.end :]


# ── which test executes what ──────────────────────────────────────────────────────────────────────

# This is put into the copy of ocloop.py from which is learned who executes what. In pytest's own
# process the plugin below reads `_seen`; a child writes a file, named after the test under way.
NOTING = """
import os as _os
_seen = set()
_is_child = True
try:
    with open({folder!r} + "/current") as _file:
        _test = _file.read()
except OSError:
    _test = ""
def _hit(number):
    if number not in _seen:
        _seen.add(number)
        if _is_child and _test:
            try:
                with open(f"{{{folder!r}}}/hits/{{_test}}-{{_os.getpid()}}", "a") as file:
                    file.write(f"{{number}}\\n")
            except OSError:
                pass
"""


class Noting(ast.NodeTransformer):
    """Puts a call before each statement of the functions."""

    def __init__(self, numbers: dict[int, int]) -> None:
        self.numbers = numbers
        self.depth = 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Statements are in lists."""
        is_function = isinstance(node, FUNCTIONS)
        self.depth += is_function
        super().generic_visit(node)
        for name, value in ast.iter_fields(node):
            if self.depth and isinstance(value, list) and name in ("body", "orelse", "finalbody"):
                setattr(node, name, list(self.noted(value)))
        self.depth -= is_function
        return node

    def noted(self, body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
        """The statements with a call before each; a docstring stays the first."""
        for place, node in enumerate(body):
            value = node.value if isinstance(node, ast.Expr) else None
            is_docstring = place == 0 and isinstance(value, ast.Constant)
            number = self.numbers.get(id(node))
            if number is not None and not is_docstring:
                yield ast.parse(f"_hit({number})").body[0]
            yield node


def with_notes(source: bytes, folder: Path) -> bytes:
    """The program, which says what is executed."""
    tree = ast.parse(source)
    transformer = Noting({id(node): number for number, node in enumerate(statements(tree))})
    for node in chosen(tree):
        transformer.visit(node)
    imports = [
        place
        for place, node in enumerate(tree.body)
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    after = max(imports) + 1
    tree.body[after:after] = ast.parse(NOTING.format(folder=str(folder))).body
    first = source.split(b"\n", 1)[0]
    return first + b"\n" + ast.unparse(ast.fix_missing_locations(tree)).encode() + b"\n"


class Learner:
    """In pytest: which test executes which statement, and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = cast(Any, sys.modules["ocloop"])
        self.program._is_child = False
        self.early = sorted(self.program._seen)  # while the tests were collected
        self.tests: list[str] = []
        self.seen: list[set[int]] = []
        self.seconds: list[float] = []
        self.failed: set[str] = set()
        self.of_fixtures: dict[str, set[int]] = {}

    def during(self, item: pytest.Item) -> Iterator[None]:
        """Around a test."""
        self.program._seen.clear()
        (self.folder / "current").write_text(str(len(self.tests)))
        began = time.monotonic()
        yield
        seen = set(self.program._seen)
        for name in getattr(item, "fixturenames", ()):
            seen |= self.of_fixtures.get(name, set())
        self.tests.append(item.nodeid)
        self.seen.append(seen)
        self.seconds.append(time.monotonic() - began)

    def during_fixture(self, name: str) -> Iterator[None]:
        """Around the making of a fixture that several tests share: all of them execute it."""
        before = set(self.program._seen)
        self.program._seen.clear()
        yield
        self.of_fixtures.setdefault(name, set()).update(self.program._seen)
        self.program._seen.update(before)

    def write(self) -> None:
        """Hand over what was learned."""
        for path in (self.folder / "hits").iterdir():
            test = int(path.name.split("-")[0])
            self.seen[test].update(map(int, path.read_text().split()))
        learned = {
            "early": self.early,
            "tests": self.tests,
            "seen": [sorted(seen) for seen in self.seen],
            "seconds": self.seconds,
            "failed": sorted(self.failed),
        }
        (self.folder / "learned.json").write_text(json.dumps(learned))


# ── mutants in forks of pytest ────────────────────────────────────────────────────────────────────


class Forker:
    """In pytest: runs the tests on each mutant of this job in a fork of this process."""

    def __init__(self, session: pytest.Session, folder: Path, job: str) -> None:
        self.items = {item.nodeid: item for item in session.items}
        self.folder = folder
        self.work = json.loads((folder / f"work-{job}.json").read_text())
        self.source = Path(PROGRAM).read_bytes()
        self.failed = ""  # the first test that failed, in a fork
        self.is_fork = False

    def run_all(self) -> None:
        """One mutant after the other; a line in the file of results for each."""
        for work in self.work:
            mutant = Mutant(*work["mutant"])
            said = self.folder / f"said-{work['number']}"
            began = time.monotonic()
            pid = os.fork()
            if not pid:
                self.in_fork(mutant, work, said)
            status = self.outcome(pid, sum(work["seconds"]))
            end_marked(f"{self.folder}/{work['number']}")
            by = said.read_text() if said.exists() else ""
            caught = "" if status == 0 else by or "time-out"
            if status == 3:
                raise SystemExit(f"mutant {work['number']}: {by}")
            note_result(self.folder, work["number"], caught, time.monotonic() - began)
        Path(PROGRAM).write_bytes(self.source)

    def outcome(self, pid: int, seconds: float) -> int:
        """Wait for a fork; returns 0 when the mutant survived."""
        until = time.monotonic() + min(LONGEST, 60 + SLOWER * seconds)
        while time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                return status >> 8 or status & 0x7F
            time.sleep(0.02)
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return 1

    def in_fork(self, mutant: Mutant, work: dict[str, Any], said: Path) -> None:
        """Become the mutant, run the tests and end."""
        status = 3
        try:
            os.setsid()
            os.environ[MUTANT] = f"{self.folder}/{work['number']}"
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            self.is_fork = True
            program = with_change(self.source, mutant)
            Path(PROGRAM).write_bytes(program)  # for the children of tests
            take_code(sys.modules["ocloop"], mutant, program)
            self.run_tests(work)
            if self.failed:
                said.write_text(self.failed)
            status = 1 if self.failed else 0
        except BaseException as error:  # whatever it is must not go on as the parent
            said.write_text(repr(error))
        finally:
            os._exit(status)

    def run_tests(self, work: dict[str, Any]) -> None:
        """Run tests until one fails."""
        tests = [self.items[name] for name in work["tests"] if name in self.items]
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            for place, item in enumerate(tests):
                limit = PATIENCE + SLOWER * work["seconds"][place]
                faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)
                following = tests[place + 1] if place + 1 < len(tests) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    break
            faulthandler.cancel_dump_traceback_later()


def take_code(module: ModuleType, mutant: Mutant, program: bytes) -> None:
    """Give the function in memory the mutant's code; whoever has the function has the new one."""
    function = function_of(module, mutant.path)
    if not function:
        raise LookupError(f"no function {mutant.path}")
    found = code_of(compile(program, str(Path(PROGRAM).resolve()), "exec"), function.__code__)
    function.__code__ = found


def function_of(module: ModuleType, path: str) -> FunctionType | None:
    """The function of a path like Class.method, without what decorators put around it."""
    found: Any = module
    for name in path.split("."):
        found = vars(found).get(name)
    while not isinstance(found, FunctionType) or hasattr(found, "__wrapped__"):
        for name in ("__wrapped__", "__func__", "fget"):
            if hasattr(found, name):
                found = getattr(found, name)
                break
        else:
            return None
    return found


def code_of(code: CodeType, like: CodeType) -> CodeType:
    """The code in a program that is in the place of another."""
    for found in all_codes(code):
        if (found.co_name, found.co_firstlineno) == (like.co_name, like.co_firstlineno):
            return found
    raise LookupError(f"no code of {like.co_name}")


def all_codes(code: CodeType) -> Iterator[CodeType]:
    """A code and all in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from all_codes(constant)


def end_marked(mark: str) -> None:
    """End what a mutant's tests have left behind."""
    wanted = f"{MUTANT}={mark}\0".encode()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if wanted in Path("/proc", name, "environ").read_bytes():
                    os.kill(int(name), signal.SIGKILL)


def note_result(folder: Path, number: int, caught: str, seconds: float) -> None:
    """Say what became of a mutant."""
    with open(folder / "results", "a", encoding="utf-8") as file:
        file.write(json.dumps([number, caught, seconds]) + "\n")


# ── the plugin ────────────────────────────────────────────────────────────────────────────────────
# pytest loads this file with `-p mutate`, in the copies only.

STATE: dict[str, Learner | Forker] = {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of one mutant are put in order."""
    if os.environ[ROLE] == "cold":
        names = json.loads(Path(os.environ[FOLDER], "order.json").read_text())
        order = {name: number for number, name in enumerate(names)}
        items.sort(key=lambda item: order.get(item.nodeid, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """The tests are collected."""
    folder = Path(os.environ[FOLDER])
    role = os.environ[ROLE]
    if role == "learn":
        STATE["is"] = Learner(folder)
    if role in ("learn", "cold"):
        return None
    forker = STATE["is"] = Forker(session, folder, role)
    forker.run_all()
    return True


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test runs."""
    state = STATE.get("is")
    if isinstance(state, Learner):
        yield from state.during(item)
    else:
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """A fixture is made."""
    state = STATE.get("is")
    if isinstance(state, Learner) and fixturedef.scope != "function":
        yield from state.during_fixture(fixturedef.argname)
    else:
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test has ended."""
    state = STATE.get("is")
    if isinstance(state, Learner) and report.failed:
        state.failed.add(report.nodeid)
    elif isinstance(state, Forker) and state.is_fork and report.failed:
        state.failed = state.failed or report.nodeid


def pytest_sessionfinish() -> None:
    """All tests have run."""
    state = STATE.get("is")
    if isinstance(state, Learner):
        state.write()


# ── the program ───────────────────────────────────────────────────────────────────────────────────


class Learned(NamedTuple):
    """What the tests do without a change."""

    early: set[int]  # statements that are executed while tests are collected
    tests: list[str]
    seen: list[set[int]]
    seconds: list[float]

    def tests_of(self, statement: int) -> list[int]:
        """The numbers of the tests that execute a statement, quick and special ones first."""
        of_all = self.in_order({statement})
        is_early = statement in self.early
        return [number for number in of_all if is_early or statement in self.seen[number]]

    def in_order(self, statements: set[int]) -> list[int]:
        """The numbers of all tests; first those that execute one of these statements."""

        def rank(number: int) -> tuple[bool, float, int]:
            seen = self.seen[number]
            return seen.isdisjoint(statements), round(self.seconds[number], 1), len(seen)

        return sorted(range(len(self.tests)), key=rank)


class Verdict(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    caught: str  # by what; "" when it survived
    tests: int  # how many execute the changed statement
    seconds: float


def copy_project(folder: Path) -> Path:
    """A copy to work in."""
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    return Path(shutil.copytree(PROJECT, folder, ignore=ignored))


def environment(copied: Path, folder: Path, role: str) -> dict[str, str]:
    """For pytest in a copy."""
    temporary = folder / f"tmp-{role}"
    temporary.mkdir(exist_ok=True)
    return {
        **os.environ,
        "PYTHONPATH": str(copied / "examples"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
        FOLDER: str(folder),
        ROLE: role,
    }


def learn(source: bytes, folder: Path) -> Learned:
    """Run all tests once."""
    copied = copy_project(folder / "learn")
    (folder / "hits").mkdir()
    (copied / PROGRAM).write_bytes(with_notes(source, folder))
    argv = [sys.executable, *PYTEST, "-p", "mutate"]
    ran = subprocess.run(
        argv, cwd=copied, env=environment(copied, folder, "learn"), capture_output=True, check=False
    )
    if not (folder / "learned.json").exists():
        raise SystemExit(f"pytest does not work here:\n{ran.stdout.decode()}{ran.stderr.decode()}")
    learned = json.loads((folder / "learned.json").read_text())
    if learned["failed"]:
        check_tests(copied, source, learned["failed"], environment(copied, folder, "learn"))
    return Learned(
        set(learned["early"]),
        learned["tests"],
        [set(seen) for seen in learned["seen"]],
        learned["seconds"],
    )


def check_tests(copied: Path, source: bytes, tests: list[str], env: dict[str, str]) -> None:
    """A test may mind the notes, but has to pass without them."""
    (copied / PROGRAM).write_bytes(source)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(argv, cwd=copied, env=env, capture_output=True, check=False)
    if ran.returncode:
        raise SystemExit(f"tests fail without any change:\n{ran.stdout.decode()}")


def run_warm(
    mutants: dict[int, Mutant],
    tests: dict[int, list[int]],
    learned: Learned,
    jobs: int,
    folder: Path,
    told: Callable[[int, str, float], None],
) -> None:
    """Run the mutants whose change is in a function."""
    left = sorted(mutants)
    running = []
    for job in range(jobs):
        work = [
            {
                "number": number,
                "mutant": mutants[number],
                "tests": [learned.tests[test] for test in tests[number]],
                "seconds": [learned.seconds[test] for test in tests[number]],
            }
            for number in left[job::jobs]
        ]
        (folder / f"work-{job}.json").write_text(json.dumps(work))
        copied = copy_project(folder / f"job-{job}")
        output = open(folder / f"output-{job}", "wb")  # noqa: SIM115
        argv = [sys.executable, *PYTEST, "-p", "mutate"]
        env = environment(copied, folder, str(job))
        running.append(subprocess.Popen(argv, cwd=copied, env=env, stdout=output, stderr=output))
        output.close()
    heard = 0
    results = folder / "results"
    results.touch()
    try:
        is_over = False
        while not is_over:
            is_over = all(process.poll() is not None for process in running)
            lines = results.read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines[heard:]:
                told(*json.loads(line))
            heard = len(lines)
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if heard < len(left):
        said = "".join((folder / f"output-{job}").read_text()[-3000:] for job in range(jobs))
        raise SystemExit(f"pytest ended before all mutants were tried:\n{said}")


def run_cold(mutant: Mutant, source: bytes, tests: Sequence[str], folder: Path) -> str:
    """Run all tests on a mutant whose change is executed by the import; says who caught it."""
    (folder / "order.json").write_text(json.dumps(tests))
    copied = folder / "cold"
    if not copied.exists():
        copy_project(copied)
    (copied / PROGRAM).write_bytes(with_change(source, mutant))
    argv = [sys.executable, *PYTEST, "-x", "-p", "mutate"]
    env = {**environment(copied, folder, "cold"), MUTANT: f"{folder}/cold"}
    process = subprocess.Popen(
        argv, cwd=copied, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output = process.communicate(timeout=LONGEST)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        output = "time-out"
    finally:
        process.kill()
        process.communicate()
        end_marked(f"{folder}/cold")
    if process.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return failed.group(1) if failed else output[-300:]


def run(
    finder: Finder, mutants: dict[int, Mutant], jobs: int, verbose: bool, folder: Path
) -> list[Verdict]:
    """Run them all; returns what became of them."""
    source = finder.source
    began = time.monotonic()
    learned = learn(source, folder)
    print(f"{len(learned.tests)} tests learned in {time.monotonic() - began:.0f} s", flush=True)
    verdicts: list[Verdict] = []
    tests = {number: learned.tests_of(mutant.statement) for number, mutant in mutants.items()}

    def told(number: int, caught: str, seconds: float) -> None:
        verdict = Verdict(mutants[number], caught, len(tests[number]), seconds)
        verdicts.append(verdict)
        if verbose or not caught:
            print_verdict(source, number, verdict)

    warm = {}
    for number, mutant in mutants.items():
        if mutant.statement < 0:
            continue
        if tests[number]:
            warm[number] = mutant
        else:
            told(number, "", 0.0)
    run_warm(warm, tests, learned, jobs, folder, told)
    for number, mutant in mutants.items():
        if mutant.statement < 0:
            near = finder.inside.get(mutant.path.split(".")[0], set())
            tests[number] = learned.in_order(near)
            begun = time.monotonic()
            names = [learned.tests[test] for test in tests[number]]
            caught = run_cold(mutant, source, names, folder)
            told(number, caught, time.monotonic() - begun)
    return verdicts


def print_verdict(source: bytes, number: int, verdict: Verdict) -> None:
    """A mutant for people: where it is, its line, and its change."""
    mutant = verdict.mutant
    line = source.split(b"\n")[mutant.line - 1].decode().strip()
    word = f"caught by {verdict.caught}" if verdict.caught else "SURVIVED"
    print(f"\n{number}  {PROGRAM}:{mutant.line} {mutant.path}: {word}")
    print(f"    {line}")
    print(f"    {mutant.what}")
    print(f"    {verdict.tests} tests execute it, {verdict.seconds:.1f} s", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--mutants", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("--least", type=float, default=92.0, metavar="PERCENT", help="to be caught")
    parser.add_argument("--line", type=int, action="append", metavar="N")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--verbose", action="store_true", help="print the caught ones as well")
    options = parser.parse_args()
    source = (PROJECT / PROGRAM).read_bytes()
    finder = Finder(source)
    found = finder.found
    drawn = random.Random(options.seed).sample(found, min(options.mutants, len(found)))
    drawn.sort(key=lambda mutant: mutant.start)
    mutants = {
        number: mutant
        for number, mutant in enumerate(drawn, 1)
        if not options.line or mutant.line in options.line
    }
    print(f"{len(mutants)} mutants of {len(found)} that are possible, seed {options.seed}")
    if options.list:
        for number, mutant in mutants.items():
            print(f"{number}  {PROGRAM}:{mutant.line} {mutant.path}: {mutant.what}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as name:
        verdicts = run(finder, mutants, options.jobs, options.verbose, Path(name).resolve())
    return summary(verdicts, options.least)


def summary(verdicts: Sequence[Verdict], least: float) -> int:
    """The last line, and the exit status."""
    caught = sum(bool(verdict.caught) for verdict in verdicts)
    late = sum(verdict.caught == "time-out" for verdict in verdicts)
    share = 100 * caught / max(1, len(verdicts))
    is_enough = share >= least
    print(
        f"\n{len(verdicts)} mutants: {caught} caught ({share:.1f} %), {late} of them by a time-out,"
        f" {len(verdicts) - caught} survived: {'well' if is_enough else 'NOT WELL'}"
    )
    return 0 if is_enough else 1


if __name__ == "__main__":
    sys.exit(main())
