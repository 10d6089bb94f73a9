"""The report's own process: behind everything else, and never the run's trouble."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from report import background
from report.background import reported


def test_it_takes_only_idle_processor_time(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = background._start
    monkeypatch.setattr(background, "_start", lambda run: started.append(start(run)) or started[0])
    with reported(copied):
        policy, limit = -1, time.monotonic() + 20
        while policy != os.SCHED_IDLE and time.monotonic() < limit:
            policy = os.sched_getscheduler(started[0].pid)
            time.sleep(0.01)
        assert policy == os.SCHED_IDLE
        assert os.getpriority(os.PRIO_PROCESS, started[0].pid) == 19
        assert os.getpgid(started[0].pid) != os.getpgid(0), "a Ctrl-C does not reach it"
    assert started[0].wait(60) == 0


def test_a_failed_run_does_not_wait_for_its_last_report(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = background._start
    monkeypatch.setattr(background, "_start", lambda run: started.append(start(run)) or started[0])
    before = (copied / "report.html").stat().st_mtime_ns

    def fail() -> None:
        with reported(copied):
            os.kill(started[0].pid, signal.SIGSTOP)
            raise ValueError("a mistake")

    begun = time.monotonic()
    with pytest.raises(ValueError, match="a mistake"):
        fail()
    assert time.monotonic() - begun < 1
    os.kill(started[0].pid, signal.SIGCONT)
    assert started[0].wait(60) == 0
    assert (copied / "report.html").stat().st_mtime_ns > before, "it follows"


def test_a_report_that_cannot_start_costs_the_run_a_line(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with caplog.at_level(logging.WARNING), reported(copied):
        pass
    assert "no report is written beside the run: [Errno 12]" in caplog.text


def test_without_a_folder_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with reported(None):
        pass
