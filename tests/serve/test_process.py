"""What signals do to a server in a process of its own, and what it does when its engine fails."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Answered, read_events

ROOT = Path(__file__).parents[2]


class Process:
    """`python tests/serving.py SECONDS_A_STEP FAIL_AT DRAIN [STEPS_OF_A_PREFILL]`."""

    def __init__(self, *args: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "serving.py"), *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def begin(self) -> None:
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        while self.ask("GET", "/ready").status != 200:
            time.sleep(0.02)

    def ask(
        self, method: str, path: str, body: Any = None, see: Callable[[bytes], None] = lambda line: None
    ) -> Answered:
        """`see` is shown every line of what is answered, when it is there."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            lines = []
            while line := response.readline():
                see(line)
                lines.append(line)
            return Answered(
                response.status, {k.lower(): v for k, v in response.getheaders()}, b"".join(lines)
            )
        finally:
            connection.close()

    def chat(self, see: Callable[[bytes], None] = lambda line: None, **said: Any) -> Answered:
        body = {"messages": [{"role": "user", "content": "Hello"}], **said}
        return self.ask("POST", "/v1/chat/completions", body, see)

    def hurry(self) -> None:
        """Let running answers come to their end at once."""
        self.process.send_signal(signal.SIGUSR1)

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit status, and the lines of the log."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, [json.loads(line) for line in errors.splitlines()]


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, Process]]:
    """All started at once: each needs half a second to begin."""
    started = {
        "drains": Process(0.05, 0, 120),
        "is cut": Process(0.05, 0, 30),
        "gives up": Process(0.05, 0, 0.3),
        "fails": Process(0.05, 5, 30),
        "is in every phase": Process(0.02, 0, 120, 25),
    }
    yield started
    for each in started.values():
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


LONG = 400
"""Tokens of an answer that goes on while everything is looked at that has to happen meanwhile, 8 to 20 seconds; where
it is to end, `Process.hurry` says so."""


class Asking(threading.Thread):
    """A request whose answer is waited for beside."""

    def __init__(self, process: Process, **said: Any) -> None:
        super().__init__(daemon=True)
        self._process, self._said = process, said
        self.answer: Answered | None = None
        self.writes = threading.Event()
        """Set when a streamed answer has its first words."""
        self.start()

    def run(self) -> None:
        self.answer = self._process.chat(self._see, **self._said)

    def _see(self, line: bytes) -> None:
        if b'"content"' in line and b'"role"' not in line:
            self.writes.set()

    def result(self) -> Answered:
        self.join(120)
        assert self.answer is not None
        return self.answer


def until_running(process: Process, answers: int = 1) -> None:
    while f"num_requests_running {answers:.1f}" not in process.ask("GET", "/metrics").body.decode():
        time.sleep(0.02)


def until_draining(process: Process) -> Answered:
    while (ready := process.ask("GET", "/ready")).status == 200:
        time.sleep(0.01)
    return ready


def test_a_signal_lets_running_answers_end(processes: dict[str, Process]) -> None:
    process = processes["drains"]
    process.begin()
    running = Asking(process, stream=True, max_tokens=LONG)
    until_running(process)
    process.process.send_signal(signal.SIGTERM)
    ready = until_draining(process)
    assert ready.status == 503 and ready.error["code"] == "draining"
    refused = process.chat()
    assert refused.status == 503 and 1 <= int(refused.headers["retry-after"]) <= 120
    assert process.ask("GET", "/health").status == 200
    process.hurry()
    events = read_events(running.result().body)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    status, log = process.end()
    assert status == 0 and [line["event"] for line in log][-1] == "request"
    assert {line["event"] for line in log} == {"request", "draining"}


def test_a_signal_finds_answers_in_every_phase_and_all_of_them_end(processes: dict[str, Process]) -> None:
    """One is streamed, three have no token yet, two wait for a place: what was admitted is answered."""
    process = processes["is in every phase"]
    process.begin()
    streamed = Asking(process, stream=True, max_tokens=LONG)
    until_running(process)
    assert streamed.writes.wait(120)  # its prefill is done
    others = [Asking(process, max_tokens=LONG) for _ in range(5)]
    while "num_requests_waiting 2.0" not in process.ask("GET", "/metrics").body.decode():
        time.sleep(0.01)
    process.process.send_signal(signal.SIGTERM)
    process.hurry()
    assert read_events(streamed.result().body)[-1]["choices"][0]["finish_reason"] == "length"
    for each in others:
        assert each.result().status == 200
        assert each.result().json["choices"][0]["finish_reason"] == "length"
    status, log = process.end()
    assert status == 0 and "cut" not in [line["event"] for line in log]


def test_a_second_signal_cuts_them_off_with_an_error(processes: dict[str, Process]) -> None:
    process = processes["is cut"]
    process.begin()
    streamed, whole = Asking(process, stream=True, max_tokens=LONG), Asking(process, max_tokens=LONG)
    until_running(process, 2)
    assert streamed.writes.wait(120)
    process.process.send_signal(signal.SIGINT)
    until_draining(process)
    process.process.send_signal(signal.SIGINT)
    events = read_events(streamed.result().body)
    assert events[-1]["error"]["code"] == "draining" and events[1]["choices"][0]["delta"]["content"]
    assert whole.result().status == 503 and whole.result().error["code"] == "draining"
    status, log = process.end()
    assert status == 1 and "cut" in [line["event"] for line in log]


def test_a_drain_has_its_time(processes: dict[str, Process]) -> None:
    process = processes["gives up"]
    process.begin()
    running = Asking(process, max_tokens=LONG)
    until_running(process)
    started = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    assert running.result().status == 503
    assert process.end()[0] == 1 and time.monotonic() - started < 60


def test_an_engine_that_fails_ends_everything_with_an_error(processes: dict[str, Process]) -> None:
    process = processes["fails"]
    process.begin()
    streamed, whole = Asking(process, stream=True, max_tokens=LONG), Asking(process, max_tokens=LONG)
    assert read_events(streamed.result().body)[-1]["error"]["type"] == "server_error"
    assert whole.result().status == 500
    health = process.ask("GET", "/health")
    assert health.status == 503 and health.error["code"] == "engine_failed"
    assert process.chat().status == 503
    status, log = process.end()
    (failure,) = [line for line in log if line["level"] == "error"]
    assert status == 1 and failure["kind"] == "RuntimeError" and "serving.py" in failure["where"][-1]
    assert "the script says so" not in json.dumps(log)
