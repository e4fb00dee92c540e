"""What goes wrong around a request: clients that vanish or dawdle, rows that fail, bytes that are no request."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from holding import reachable
from serving import Running, ScriptedEngine, api_over, read_events, serving, shown, text

from qwenvl.chat import Assistant
from qwenvl.serve import media
from qwenvl.serve.auth import Guard, Keys
from qwenvl.serve.limits import Limits
from qwenvl.serve.recent import RecentImages

Say = Callable[[str], None]
PNG = Callable[..., bytes]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def request(content: Any = "Hello", **said: Any) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": content}], **said}).encode()
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(server: Running) -> socket.socket:
    client = socket.create_connection((server.host, server.port))
    client.settimeout(60)
    return client


def until_idle(server: Running, engine: ScriptedEngine) -> None:
    server.until(lambda: not engine.busy and not server.api.admission.answers and not server.api.worker.rows)


@pytest.mark.parametrize("phase", ["connected", "headers", "body", "queued", "prefill", "writing", "written"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_in_any_phase(
    server: Running, engine: ScriptedEngine, says: Say, phase: str, stream: bool
) -> None:
    says("word " * 50)
    engine.seconds = 0.005
    sent = request(stream=stream, n=engine.rows)
    fillers = []
    with connect(server) as client:
        if phase == "headers":
            client.sendall(sent[:60])
        elif phase == "body":
            client.sendall(sent[:-10])
        elif phase != "connected":
            if phase == "queued":
                fillers = [connect(server)]
                fillers[0].sendall(sent)
                server.until(lambda: len(engine.running) == engine.rows)
            engine.prefill = 1000 if phase == "prefill" else 1
            client.sendall(sent)
            if phase == "queued":
                server.until(lambda: len(engine.waiting) == engine.rows)
            elif phase == "prefill":
                server.until(lambda: bool(engine.running))
            elif phase == "writing":
                server.until(lambda: any(len(row.ids) > 3 for row in list(engine.running.values())))
            else:
                engine.seconds = 0
                assert client.recv(1 << 20)
    for each in fillers:
        each.close()
    until_idle(server, engine)
    engine.seconds, engine.prefill = 0, 1
    assert server.chat(max_tokens=1).status == 200


def test_a_row_that_fails_ends_its_request_and_no_other(
    server: Running, engine: ScriptedEngine, says: Say, assistant: Assistant
) -> None:
    says("word " * 30)
    engine.seconds = 0.002
    poison = assistant.tokenizer.encode("poison")[0]
    engine.broken = lambda prompt: tuple(prompt.ids).count(poison) > 1
    answers: list[Any] = []
    others = [threading.Thread(target=lambda: answers.append(server.chat("fine"))) for _ in range(2)]
    try:
        for each in others:
            each.start()
        engine.broken = lambda prompt: assistant.tokenizer.decode(prompt.ids).count("poison") > 0
        failed = server.chat("poison", n=2)
        streamed = server.events("poison")
    finally:
        for each in others:
            each.join(120)
        engine.broken = lambda prompt: False
    assert failed.status == 500 and failed.error["code"] == "row_failed" and "NaN" in failed.error["message"]
    assert streamed[-1]["error"]["code"] == "row_failed"
    assert [each.status for each in answers] == [200, 200]
    until_idle(server, engine)


@contextmanager
def unread(engine: ScriptedEngine, assistant: Assistant, says: Say, seconds: float) -> Iterator[Running]:
    """A server one of whose clients reads nothing of an answer of a minute; its socket is full."""
    says("word " * 30_000)
    engine.seconds = 0.002
    with (
        serving(
            api_over(engine, assistant, limits=Limits(write_seconds=seconds)), send_buffer=4096
        ) as server,
        socket.socket() as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((server.host, server.port))
        said = {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 2, "max_tokens": 30_000}
        slow.sendall(request(**said))
        yield server


def test_a_client_that_does_not_read_holds_up_nobody(
    engine: ScriptedEngine, assistant: Assistant, says: Say
) -> None:
    """Its tokens wait in its own list, everybody else's go on."""
    with unread(engine, assistant, says, seconds=60) as server:
        waiting = lambda: sum(len(job._written) for job in list(server.api.worker._jobs))  # noqa: E731
        server.until(lambda: server.full == 1)
        says("It is a cat.")
        before = waiting()
        assert server.chat().text == "It is a cat."
        server.until(lambda: waiting() > before and server.full == 1 and server.api.admission.answers == 2)
        assert server.api.metrics.gone._value.get() == 0  # the other one is where it was
    until_idle(server, engine)


def test_a_client_that_does_not_read_is_cancelled(
    engine: ScriptedEngine, assistant: Assistant, says: Say
) -> None:
    """After its time its places are free, long before its words have come to an end."""
    aborted = len(engine.aborted)
    with unread(engine, assistant, says, seconds=0.3) as server:
        server.until(lambda: len(engine.running) == 2)
        rows = list(engine.running)
        until_idle(server, engine)
        assert engine.aborted[aborted:] == rows and server.api.metrics.gone._value.get() == 1


def test_a_slow_reader_gets_every_word(engine: ScriptedEngine, assistant: Assistant, says: Say) -> None:
    says("".join(f"word {n} " for n in range(800)))
    with (
        serving(api_over(engine, assistant, limits=Limits(write_seconds=20))) as server,
        connect(server) as client,
    ):
        client.sendall(request(stream=True, max_tokens=20_000))
        data = b""
        while not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = client.recv(3_000)
            assert piece
            data += piece
            time.sleep(0.0005)
        said = "".join(
            json.loads(line[6:])["choices"][0]["delta"].get("content", "")
            for line in data.decode().splitlines()
            if line.startswith("data: {")
        )
    assert said == "".join(f"word {n} " for n in range(800)).strip()


@pytest.mark.parametrize(
    "sent",
    [b"\x00\xff\x13", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
     HEAD + b"Content-Length: x\r\n\r\n", HEAD + b"Content-Length: -1\r\n\r\n",
     HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_bytes_that_are_no_request(server: Running, sent: bytes) -> None:
    with connect(server) as client:
        client.sendall(sent)
        answer = b""
        while not answer.endswith(b"}"):
            answer += client.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert (
            head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["type"] == "invalid_request_error"
        )
        assert closed(client)


def test_connections_that_say_nothing_or_too_slowly(
    engine: ScriptedEngine, assistant: Assistant, says: Say
) -> None:
    says("It is a cat.")
    limits = Limits(header_seconds=0.3, body_seconds=0.3, keep_alive_seconds=1, connections=10)
    with serving(api_over(engine, assistant, limits=limits)) as server:
        clients = [connect(server) for _ in range(3)]
        clients[1].sendall(HEAD)
        clients[2].sendall(request()[:-5])
        found = b""
        while not found.endswith(b"}"):
            found += clients[2].recv(65536)
        assert found.startswith(b"HTTP/1.1 408 ") and b"body_too_slow" in found
        assert [closed(each) for each in clients[:2]] == [True, True]
        many = [connect(server) for _ in range(10)]
        with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
            server.chat()
        for each in (*clients, *many):
            each.close()
        server.until(lambda: server.chat().status == 200)


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(10) == b""
    except ConnectionResetError:
        return True


def test_broken_images_cost_nobody_else(
    server: Running, engine: ScriptedEngine, png: PNG, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken in (b"", b"x", png()[:60], png()[:-30], b"\x89PNG\r\n\x1a\n" + bytes(100)):
        answer = server.chat([shown(broken), text("What?")])
        assert answer.status == 400 and answer.error["param"] == "messages[0].content[0].image_url"
    blocked, real = threading.Event(), media.open_image

    def slow(*args: Any, **more: Any) -> Any:
        blocked.wait(120)
        return real(*args, **more)

    monkeypatch.setattr(media, "open_image", slow)
    waiting = threading.Thread(target=lambda: server.chat([shown(png(71)), text("What?")]))
    waiting.start()
    assert server.ask("GET", "/health").status == 200 and server.chat().status == 200
    assert waiting.is_alive() and not blocked.is_set()  # they were answered beside it, not behind it
    blocked.set()
    waiting.join(120)


def test_a_decoder_that_raises_is_our_mistake(
    server: Running, png: PNG, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "open_image", lambda *args, **more: 1 / 0)
    answer = server.chat([shown(png(72)), text("What?")])
    assert answer.status == 500 and "ZeroDivision" not in answer.body.decode()
    assert server.chat().status == 200


def test_an_engine_that_cannot_take_a_request_says_why_in_the_log(
    engine: ScriptedEngine, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client hears, "its log says why", is true, and names no word of the request."""
    log = io.StringIO()
    with serving(api_over(engine, assistant, log=log)) as server:
        with monkeypatch.context() as broken:
            broken.setattr(engine, "add", lambda prompt, *args, **more: {}[prompt])
            answer = server.chat("the secret question")
        assert answer.status == 500 and answer.error["code"] == "internal_error"
        assert server.chat().status == 200
    failures = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "failure"]
    assert [(line["kind"], line["id"]) for line in failures] == [("KeyError", "engine")]
    assert any("worker.py" in where for where in failures[0]["where"]) and "secret" not in log.getvalue()


def test_nothing_is_left_of_requests_that_are_over(
    server: Running, engine: ScriptedEngine, png: PNG, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered, refused, given up: what can be reached from the application does not become more."""

    def some(first: int, last: int) -> None:
        for number in range(first, last):
            server.chat([shown(png(number)), text("What?")], stream=number % 2 == 0)
            server.ask("POST", "/v1/chat/completions", b"{")
            with connect(server) as client:
                client.sendall(request(stream=True, user=f"user {number}")[: 40 + 200 * (number % 2)])
        until_idle(server, engine)
        server.until(lambda: server.ask("GET", "/health").status == 200 and not server.api.bodies.held)

    monkeypatch.setattr(server.api.preparer, "_recent", RecentImages(1))
    some(1000, 1015)
    before = reachable(server.api)
    some(1015, 1055)
    more = reachable(server.api) - before
    assert all(number < 10 for number in more.values()), f"forty rounds have left {more}"


def test_an_answer_of_nothing(server: Running, says: Say) -> None:
    says("")
    assert server.chat().text == ""
    assert server.events()[0]["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
    }
    assert read_events(server.chat(stream=True).body)[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_log_holds_nothing_of_what_was_said(
    engine: ScriptedEngine, assistant: Assistant, says: Say, png: PNG
) -> None:
    """No prompt, answer, image or key, whether the request was answered or refused."""
    says("the secret answer")
    log = io.StringIO()
    key = "a-secret-key-for-tests"
    guard = Guard.make(keys=Keys([key]), loopback=True)
    with serving(api_over(engine, assistant, log=log, guard=guard, guarded=True)) as server:
        headers = {"Authorization": f"Bearer {key}"}
        for more in (
            {}, {"stream": True}, {"temperature": "secret"}, {"model": "secret"}, {"stop": ["secret"] * 99}, {"n": 99},
            {"logprobs": True}, {"response_format": {"type": "secret"}},
        ):  # fmt: skip
            body = {
                "messages": [{"role": "user", "content": [shown(png()), text("the secret question")]}],
                **more,
            }
            server.ask("POST", "/v1/chat/completions?secret=1", body, headers)
        body = {"messages": [{"role": "secret", "content": "secret"}]}
        server.ask("POST", "/v1/chat/completions", body, headers)
        server.ask("POST", "/v1/chat/completions", b"secret", headers)
        server.ask("POST", "/v1/chat/completions", b"{}", {"Authorization": "Bearer another-secret-key"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert len(lines) == 11 and {line["event"] for line in lines} == {"request"}
    assert "secret" not in log.getvalue() and "base64" not in log.getvalue()
    assert {line["client"] for line in lines[:10]} != {"anyone"} and lines[0]["completion_tokens"] > 0
