"""A server on a port of this machine, over the shipped model or over an engine that follows a script.

Run as a program it is such a server in a process of its own, without torch: what signals do is tried on it.
"""

import asyncio
import base64
import http.client
import json
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvicorn

from qwenvl.serve.app import Api, Loaded, ServeConfig
from qwenvl.serve.auth import Guard
from qwenvl.serve.connections import protocol
from qwenvl.serve.limits import Limits
from qwenvl.serve.logs import Log
from qwenvl.serve.media import Fetches
from qwenvl.serve.server import listen, run
from qwenvl.serve.worker import Row

if TYPE_CHECKING:
    from qwenvl.chat import Assistant

Script = Callable[[Any, Any], list[int]]
"""Prompt and settings to the ids of the answer; the scripted engine adds the stop."""


@dataclass(frozen=True)
class Written:
    """A token as the engine gives it."""

    request: int
    id: int
    logprob: float = -0.5
    top: tuple[tuple[int, float], ...] = ()
    end: str | None = None
    error: str | None = None
    cached: int = 0


@dataclass
class ScriptedEngine:
    """Writes what `script` says, a token of each row a step; fails where it is told to."""

    script: Script
    rows: int = 4
    seconds: float = 0.0
    """How long a step takes."""
    prefill: int = 1
    """Steps before a row's first token."""
    fail_at: int | None = None
    """The step that raises."""
    broken: Callable[[Any], bool] = lambda prompt: False
    """Whether a row's probabilities are not numbers."""
    waiting: list[int] = field(default_factory=list)
    running: dict[int, Any] = field(default_factory=dict)
    asked: dict[int, Any] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    """What was asked of it: prompt, settings, grammar, salt."""
    steps: int = 0
    added: int = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, prompt: Any, settings: Any = None, grammar: Any = None, *, salt: bytes = b"") -> int:
        number, self.added = self.added, self.added + 1
        self.asked[number] = (prompt, settings, self.script(prompt, settings))
        self.history.append(SimpleNamespace(prompt=prompt, settings=settings, grammar=grammar, salt=salt))
        self.waiting.append(number)
        return number

    def abort(self, request: int) -> None:
        self.aborted.append(request)
        self.running.pop(request, None)
        self.asked.pop(request, None)
        if request in self.waiting:
            self.waiting.remove(request)

    def step(self) -> list[Written]:
        self.steps += 1
        if self.fail_at is not None and self.steps >= self.fail_at:
            raise RuntimeError("the script says so")
        if self.seconds:
            time.sleep(self.seconds)
        while self.waiting and len(self.running) < self.rows:
            self.running[self.waiting.pop(0)] = SimpleNamespace(ids=[], prefill=self.prefill)
        written = []
        for number, row in list(self.running.items()):
            row.prefill -= 1
            if row.prefill >= 0:
                continue
            written.append(self._write(number, row))
            if written[-1].end is not None:
                del self.running[number], self.asked[number]
        return written

    def _write(self, number: int, row: Any) -> Written:
        prompt, settings, script = self.asked[number]
        if self.broken(prompt):
            return Written(number, -1, end="error", error="this row's probabilities are not numbers (NaN).")
        done = len(row.ids) >= len(script)
        row.ids.append(settings.stop[0][0] if done else script[len(row.ids)])
        stopped = done or (settings.stop_when is not None and settings.stop_when(row.ids))
        end = "stop" if stopped else "length" if len(row.ids) >= settings.max_new_tokens else None
        top = tuple((k, -1.0 - k) for k in range(getattr(settings, "top_logprobs", 0)))
        return Written(number, row.ids[-1], top=top, end=end, cached=3)

    def queue(self) -> list[int]:
        return list(self.waiting)

    def stats(self) -> Any:
        return SimpleNamespace(
            running=len(self.running), waiting=len(self.waiting), cache_tokens=0, cache_capacity=1, cache_held=0,
            prefix_bytes=0, visual_bytes=0, prefix_queries=0, prefix_hits=0, visual_queries=0, visual_hits=0,
            preemptions=0,
        )  # fmt: skip


class Running:
    """A server in a thread of its own; `url` ends with /v1."""

    def __init__(self, api: Api, send_buffer: int | None = None) -> None:
        self.api = api
        sock = listen("127.0.0.1", 0)
        if send_buffer is not None:  # connections have that of their listener
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.host, self.port = sock.getsockname()
        self.url = f"http://{self.host}:{self.port}/v1"
        config = uvicorn.Config(
            api, http=protocol(api.limits), ws="none", lifespan="on", log_config=None, log_level="critical",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[sock])), daemon=True
        )

    def start(self) -> "Running":
        self._thread.start()
        self.until(lambda: self.api.worker.ready or self.api.worker.death is not None)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(120)
        if self._thread.is_alive():
            frames = sys._current_frames()
            stand = [
                "".join(traceback.format_stack(frames[each.ident]))
                for each in threading.enumerate()
                if each.ident in frames
            ]
            raise AssertionError("the server did not end; its threads stand at:\n" + "\n".join(stand))

    @property
    def full(self) -> int:
        """Connections whose clients leave so much unread that nothing more can be sent."""
        return sum(each.flow.write_paused for each in list(self._server.server_state.connections))

    def until(self, there: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, "this did not come true in time"
            time.sleep(0.005)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> "Answered":
        """One request on a connection of its own; a `body` that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            return Answered(
                response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def chat(self, content: Any = "Hello", **said: Any) -> "Answered":
        """One question."""
        return self.ask(
            "POST",
            "/v1/chat/completions",
            {"model": self.api.config.name, "messages": [{"role": "user", "content": content}], **said},
        )

    def events(self, content: Any = "Hello", **said: Any) -> list[Any]:
        """The events of a stream, by a reader that takes nothing but `data: JSON` and the end."""
        return read_events(self.chat(content, stream=True, **said).body)


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, after a look at its shape."""
        assert self.json.keys() == {"error"}, self.json
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"][-1] in ".)?", error
        return error

    @property
    def text(self) -> str:
        return self.json["choices"][0]["message"]["content"]


def read_events(body: bytes) -> list[Any]:
    """Events of a stream that is whole: comments aside, the last is [DONE]."""
    *blocks, rest = body.split(b"\n\n")
    assert rest == b""
    events = [block for block in blocks if not block.startswith(b":")]
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in events), body
    assert events[-1] == b"data: [DONE]"
    return [json.loads(block.removeprefix(b"data: ")) for block in events[:-1]]


def api_over(
    engine: Any,
    assistant: "Assistant",
    *,
    limits: Limits | None = None,
    guard: Guard | None = None,
    fetcher: Fetches | None = None,
    raw_orientation: bool = False,
    context: int | None = None,
    log: Any = None,
    **config: Any,
) -> Api:
    """The application over an engine that is there already."""
    from qwenvl.serve.requests import Preparer

    limits = limits or Limits()
    preparer = Preparer(assistant=assistant, limits=limits, raw_orientation=raw_orientation, context=context)
    return Api(
        lambda: Loaded(engine=engine, preparer=preparer),
        ServeConfig(name="tiny", **{"rows": getattr(engine, "rows", 16), **config}),
        guard=guard or Guard.make(keys=None, loopback=True),
        limits=limits,
        log=Log(log, quiet=log is None),
        fetcher=fetcher,
    )


@contextmanager
def serving(api: Api, send_buffer: int | None = None) -> Iterator[Running]:
    """`send_buffer`: bytes that a client may leave unread in the system's hands."""
    running = Running(api, send_buffer).start()
    try:
        yield running
    finally:
        running.stop()


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def shown(image: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image), "detail": "high"}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


# === In a process of its own ===


class Letters:
    """A vocabulary of 256 bytes, and a preparer that opens nothing: whatever is asked, the answer is long."""

    fingerprint, window = "fp_letters", 4096
    box = box_end = quad = quad_end = -1

    @property
    def tokenizer(self) -> "Letters":
        return self

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def chat(self, request: Any, salt: bytes, fetched: Any) -> Any:
        settings = SimpleNamespace(stop=((0,),), max_new_tokens=request.max_tokens or 100, stop_when=None)
        row = Row(prompt=SimpleNamespace(ids=(1, 2, 3)), settings=settings)
        return SimpleNamespace(
            rows=(row,), prompt_tokens=3, image_tokens=0, seed=0, sizes=(), turned=(), stop=(), ends=((0,),), echoed=(),
        )  # fmt: skip


class ForTwo(ScriptedEngine):
    """Fails when it has taken its steps with two requests at hand: the second may come as late as it likes."""

    def step(self) -> list[Written]:
        if len(self.asked) < 2:
            self.steps = 0
        return super().step()


def program(seconds: float, fail_at: int | None, drain: float, prefill: int) -> int:
    """Serve until a signal; the port is the first line of the output. After SIGUSR1 steps take no time."""
    engine = ForTwo(
        lambda prompt, settings: list(b"word " * 100), seconds=seconds, fail_at=fail_at, prefill=prefill
    )
    api = Api(
        lambda: Loaded(engine=engine, preparer=Letters()),  # type: ignore[arg-type]
        ServeConfig(name="letters"),
        guard=Guard.make(keys=None, loopback=True),
    )
    signal.signal(signal.SIGUSR1, lambda *_: setattr(engine, "seconds", 0.0))
    sock = listen("127.0.0.1", 0)
    print(sock.getsockname()[1], flush=True)
    return run(api, sock, drain=drain)


if __name__ == "__main__":
    import sys

    step, fail, patience, *begin = sys.argv[1:]
    sys.exit(program(float(step), int(fail) or None, float(patience), int(begin[0]) if begin else 1))
