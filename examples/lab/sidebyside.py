"""Tests side by side.

Half of a test's time is waiting, so a few workers for each core share the tests. They are forked
once pytest has collected, and go on as pytest does, through all tests, but leave out what another
one has begun. The real OpenCode needs a core for itself: only as many workers as there are cores
begin its tests.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import temporary_folder

CORES = os.cpu_count() or 1
SAY_EVERY = 10.0  # seconds between two lines that say how far it is


class SideBySide:
    """A plugin of pytest whose workers share the tests; it says what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # what is begun has an entry here, the workers' files lie below
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.number = -1  # of this worker; the first process is none
        self.numbers = itertools.count()  # of the tests, as they come
        self.out = self.told = -1  # where a worker writes: to the terminal, to the first process

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be loaded is told as a test that failed."""
        if report.failed:
            self.fail(f"{report.nodeid}\n{report.longreprtext}")

    def fail(self, text: str) -> None:
        self.counts["failed"] += 1
        print(f"FAILED {text}", flush=True)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """First what takes longest: the real OpenCode, then the file from its end."""
        items.sort(key=lambda item: "test_real" in item.name)
        items.reverse()

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Fork the workers, and tell how far they are until the last one has ended."""
        if session.config.option.collectonly:
            return None  # pytest itself knows what to do
        left = dict(enumerate(session.items))
        reader, self.told = os.pipe()
        sys.stdout.flush()
        workers = []
        for number in range(min(4 * CORES, len(left))):
            worker = os.fork()
            if not worker:
                self.become_worker(number)
                return None  # pytest goes on
            workers.append(worker)
        os.close(self.told)
        began = said = time.monotonic()
        try:
            for line in os.fdopen(reader):
                at, result = line.split()
                del left[int(at)]
                self.counts[result] += 1
                now = time.monotonic()
                if now - said > SAY_EVERY:
                    said = now
                    done = f"{len(session.items) - len(left)} of {len(session.items)} tests"
                    last = ", ".join(item.name for item in left.values() if len(left) < 9)
                    print(f"{now - began:4.0f} s: {done}, {self.counts['failed']} failed; {last}")
                    sys.stdout.flush()
        finally:
            ends = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
        for item in left.values() if not session.config.option.maxfail else ():
            self.fail(f"{item.nodeid}\nIts worker ended before it did.")
        if any(end > 1 for end in ends):
            self.fail("what the tests of a worker had in common: something went wrong at its end")
        session.testsfailed = self.counts["failed"]
        return True

    # In a worker.

    def become_worker(self, number: int) -> None:
        self.number = number
        folder = self.folder / f"worker-{number}"
        folder.mkdir()
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)  # where tmp_path makes its folders
        self.out = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Leave a test out, or begin it."""
        self.at = next(self.numbers)
        self.result = "passed"
        if "test_real" in item.name and self.number >= CORES:
            return True
        if item.config.option.maxfail and (self.folder / "failed").exists():  # -x
            return True
        try:
            (self.folder / str(self.at)).touch(exist_ok=False)
        except FileExistsError:
            return True
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say why a test failed or was skipped."""
        if report.failed:
            self.result = "failed"
            (self.folder / "failed").touch()
            text = f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext}\n"
            text += "".join(f"--- {title}\n{said}\n" for title, said in report.sections)
            os.write(self.out, text.encode())
        elif report.skipped and self.result == "passed":
            self.result = "skipped"
            assert isinstance(report.longrepr, tuple)
            os.write(self.out, f"skipped {report.nodeid}: {report.longrepr[2]}\n".encode())

    def pytest_runtest_logfinish(self) -> None:
        os.write(self.told, f"{self.at} {self.result}\n".encode())


def main(file: str, arguments: Sequence[str]) -> int:
    """Run the tests of this file side by side; further arguments are for pytest."""
    # pytest says nothing, and has no file that the workers would share.
    argv = ["-qq", "--no-summary", "--capture=sys", "-p", "no:cacheprovider", file, *arguments]
    with temporary_folder("ocloop-test-") as folder:
        tests = SideBySide(folder)
        status: int = pytest.ExitCode.INTERNAL_ERROR
        try:
            status = pytest.main(argv, plugins=[tests])
        finally:
            if tests.number >= 0:
                os._exit(status)
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        print("there is no such test")
    print(", ".join(f"{count} {result}" for result, count in tests.counts.items()))
    return int(status != pytest.ExitCode.OK)
