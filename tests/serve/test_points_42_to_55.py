"""The OpenAI surface that clients use, points 42 to 55: streams at work, browsers, spellings of images, old clients."""

import base64
import io
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow
from serving import Running, ScriptedEngine, api_over, read_events, serving, shown, text

from qwenvl.chat import Assistant
from qwenvl.serve import generation, worker
from qwenvl.serve.auth import Guard, Keys

Say = Callable[[str], None]
Asked = Callable[[], str]
PNG = Callable[..., bytes]
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"messages": [{"role": "user", "content": "Hello"}]}'


def texts(events: list[Any]) -> list[str]:
    """What each choice said."""
    said: dict[int, str] = {}
    for each in events:
        for choice in each["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + choice["delta"].get("content", "")
    return [said[index] for index in sorted(said)]


def received(server: Running, sent: bytes, answers: int = 1) -> bytes:
    """What comes back on one connection, until so many answers are there."""
    with socket.create_connection((server.host, server.port)) as client:
        client.settimeout(60)
        client.sendall(sent)
        data = b""
        while data.count(b"HTTP/1.1 200") < answers or not data.endswith(b"}"):
            piece = client.recv(65536)
            assert piece, data
            data += piece
        return data


def test_p42_a_comment_while_nothing_is_said(
    server: Running, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SILENCE", 0.05)
    engine.prefill, engine.seconds = 30, 0.01
    body = server.chat(stream=True).body
    assert body.count(b": keep-alive\n\n") >= 2
    assert texts(read_events(body)) == ["It is a cat."]


def test_p42_who_waits_is_told_its_place(
    server: Running, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients' eight rows for four places, and the third client behind them; the page shows these comments."""
    monkeypatch.setattr(generation, "WAITING", 0.01)
    monkeypatch.setattr(worker, "STATS_EVERY", 0.0)
    engine.prefill, engine.seconds = 20, 0.005
    before = server.ask("GET", "/metrics").body.decode()
    others = [threading.Thread(target=lambda: server.chat(n=4)) for _ in range(2)]
    for each in others:
        each.start()
    server.until(lambda: len(engine.waiting) == 4)
    body = server.chat(stream=True).body
    for each in others:
        each.join(120)
    comments = [line for line in body.split(b"\n\n") if line.startswith(b":")]
    assert comments == [b": queued 5", b": queued 1", b": reading"]
    assert texts(read_events(body)) == ["It is a cat."]
    after = server.ask("GET", "/metrics").body.decode()
    waited, read = (
        figure(after, f"request_{name}_time_seconds_sum") - figure(before, f"request_{name}_time_seconds_sum")
        for name in ("queue", "prefill")
    )
    assert waited > 0.3 and read > 0.3  # at least 20 steps of 5 ms: none, one and two times; three times


def figure(metrics: str, name: str) -> float:
    return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"qwenvl:{name} "))


def test_p43_no_delta_without_text(
    server: Running, engine: ScriptedEngine, says: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    says("  日本  and more  \n")
    monkeypatch.setattr(worker, "FRAME", 0.0)
    engine.seconds = 0.002  # so that tokens come one by one
    events = server.events()
    deltas = [each["choices"][0]["delta"].get("content") for each in events[1:-2]]
    assert all(deltas) and "".join(deltas) == "日本  and more" and len(deltas) > 2
    assert all("\ufffd" not in delta for delta in deltas)


def test_p44_choices_come_side_by_side(server: Running, engine: ScriptedEngine, assistant: Assistant) -> None:
    engine.script = lambda prompt, settings: assistant.tokenizer.encode(f"number {prompt.seed} " * 10)
    engine.seconds = 0.002
    events = server.events(n=3, temperature=1, seed=1)
    assert texts(events) == [(f"number {k} " * 10).strip() for k in range(3)]
    order = [each["choices"][0]["index"] for each in events]
    assert order[:3] == [0, 1, 2] and order != sorted(order)
    assert [each["choices"][0]["finish_reason"] for each in events].count("stop") == 3


@pytest.mark.parametrize(
    "said", ["  It is.  ", "日本語🙂 ok", "a\n\n b\t", "One. Two. Three", "", "   ", "é" * 30]
)
def test_p45_a_stream_says_what_the_whole_says(
    server: Running, engine: ScriptedEngine, says: Say, said: str
) -> None:
    says(said)
    engine.seconds = 0.001
    for more in ({}, {"stop": ["Tw", "ok"]}, {"max_tokens": 4}, {"stop": ["ree", "🙂"], "max_tokens": 50}):
        whole, events = server.chat(**more).json["choices"][0], server.events(**more)
        assert texts(events) == [whole["message"]["content"]]
        assert events[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    plain = {"prompt": "x", "stream": True}
    streamed = read_events(server.ask("POST", "/v1/completions", plain).body)
    assert "".join(each["choices"][0]["text"] for each in streamed) == said


def test_p46_log_probabilities_of_a_delta(server: Running, engine: ScriptedEngine, says: Say) -> None:
    says("日本 is far")
    engine.seconds = 0.001
    more = {"logprobs": True, "top_logprobs": 1}
    listed = []
    for each in server.events(**more):
        choice = each["choices"][0]
        if content := choice["delta"].get("content"):
            spelled = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
            assert spelled.decode() == content
            listed += choice["logprobs"]["content"]
    assert listed == server.chat(**more).json["choices"][0]["logprobs"]["content"]


@pytest.mark.parametrize("stream", [True, False])
def test_p47_a_client_that_goes_frees_its_place(
    server: Running, engine: ScriptedEngine, says: Say, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Within a quantum, however much is still to be written: here five minutes of words."""
    says("word " * 30_000)
    engine.seconds = 0.01
    cancelled, aborted = [], []  # steps of the engine until then
    cancel, abort = server.api.worker.cancel, engine.abort
    monkeypatch.setattr(
        server.api.worker, "cancel", lambda job: (cancel(job), cancelled.append(engine.steps))
    )
    monkeypatch.setattr(engine, "abort", lambda row: (aborted.append(engine.steps), abort(row)))
    said = {
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": stream,
        "n": 2,
        "max_tokens": 30_000,
    }
    body = json.dumps(said).encode()
    gone = server.api.metrics.gone._value.get()
    with socket.create_connection((server.host, server.port)) as client:
        client.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.until(lambda: len(engine.running) == 2)
    server.until(lambda: not engine.busy)
    server.until(lambda: server.api.admission.answers == 0 and server.api.worker.rows == 0)
    assert server.api.metrics.gone._value.get() == gone + 1
    assert len(cancelled) == 1 and len(aborted) == 2
    assert max(aborted) <= cancelled[0] + 1


def test_p48_models_for_browsers(server: Running, engine: ScriptedEngine, assistant: Assistant) -> None:
    listed = server.ask("GET", "/v1/models")
    head = server.ask("HEAD", "/v1/models")
    assert head.status == 200 and head.body == b"" and head.headers["content-length"] == str(len(listed.body))
    options = server.ask("OPTIONS", "/v1/models")
    assert options.status == 204 and options.headers["allow"] == "GET, HEAD, OPTIONS"
    question = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    for answer in (server.ask("OPTIONS", "/v1/chat/completions", None, question), listed):
        assert not any(name.startswith("access-control") for name in answer.headers)
    guard = Guard.make(keys=None, loopback=True, origins=["https://chat.example"])
    with serving(api_over(engine, assistant, guard=guard)) as open_server:
        answer = open_server.ask("OPTIONS", "/v1/chat/completions", None, question)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert "access-control-allow-credentials" not in answer.headers
        answer = open_server.ask("POST", "/v1/chat/completions", BODY, {"Origin": "https://chat.example"})
        assert (
            answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://chat.example"
        )
        assert (
            open_server.ask("POST", "/v1/chat/completions", BODY, {"Origin": "https://x.example"}).status
            == 403
        )


def test_p49_where_a_key_may_stand(engine: ScriptedEngine, assistant: Assistant) -> None:
    key = "a-key-for-the-tests"
    with serving(api_over(engine, assistant, guard=Guard.make(keys=Keys([key]), loopback=True))) as server:
        for name, value in (
            ("Authorization", f"Bearer {key}"),
            ("authorization", f"bearer {key}"),
            ("AUTHORIZATION", f"BEARER  {key} "),
            ("api-key", key),
            ("Api-Key", key),
        ):
            assert server.ask("GET", "/v1/models", None, {name: value}).status == 200, name
        salts = {each.salt for each in engine.history}
        assert server.ask("POST", "/v1/chat/completions", BODY, {"api-key": key}).status == 200
        assert {each.salt for each in engine.history} - salts - {b""}


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/models/", "/v1/models"), ("/v1/v1/models", "/v1/models"), ("/models", "/v1/models"),
        ("/v1/chat/completions/", "/v1/chat/completions"), ("/chat/completions", "/v1/chat/completions"),
        ("//v1/models", "/v1/models"), ("/v1/health", "/health"), ("/health/", "/health"),
    ],
)  # fmt: skip
def test_p50_paths_a_little_wrong(server: Running, path: str, meant: str) -> None:
    method = "POST" if "chat" in path else "GET"
    answer = server.ask(method, path, {} if method == "POST" else None)
    assert answer.status == 404 and f"did you mean {meant}?" in answer.error["message"]


def test_p51_null_is_absent(server: Running, engine: ScriptedEngine) -> None:
    server.chat()
    usual = engine.history[-1].settings
    names = ("stream", "stop", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "logprobs", "seed",
             "top_logprobs", "logit_bias", "response_format", "tools", "tool_choice", "functions", "stream_options",
             "frequency_penalty", "presence_penalty", "model", "qwenvl", "audio", "modalities")  # fmt: skip
    answer = server.ask(
        "POST",
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], **dict.fromkeys(names)},
    )
    assert answer.status == 200 and answer.json["object"] == "chat.completion"
    given = engine.history[-1].settings
    assert (given.max_new_tokens, given.sampling, given.stop) == (
        usual.max_new_tokens,
        usual.sampling,
        usual.stop,
    )


def test_p52_spellings_of_data_urls(server: Running, engine: ScriptedEngine, png: PNG) -> None:
    image = png(3)
    server.chat([shown(image)])
    (pixels,) = engine.history[-1].prompt.pixels
    plain = base64.b64encode(image).decode()
    wrapped = "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76))
    for url in (
        f"data:image/png;charset=utf-8;base64,{plain}",
        f"DATA:IMAGE/PNG;BASE64,{plain}",
        f"data:image/jpg;base64,{plain}",
        f"data:;base64,{plain}",
        f"  data:image/png;base64,{wrapped}\r\n",
        f"data:image/png;base64,{plain.rstrip('=')}",
        "data:image/png;base64," + plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "data:image/png;base64," + base64.urlsafe_b64encode(image).decode(),
    ):
        answer = server.chat([{"type": "image_url", "image_url": {"url": url}}])
        assert answer.status == 200, (url[:60], answer.body)
        assert (engine.history[-1].prompt.pixels[0] == pixels).all()
    for url in (
        "data:image/png,x",
        "data:image/png;base64,",
        "data:image/png;base64,!!",
        "/etc/passwd",
        "file:///x",
    ):
        answer = server.chat([{"type": "image_url", "image_url": {"url": url}}])
        assert answer.status == 400 and answer.error["param"] == "messages[0].content[0].image_url", url
        assert answer.error["code"] == "invalid_image"


def encoded(image: pillow.Image, kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("I;16", "PNG"),
     ("1", "PNG"), ("P", "GIF"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "BMP")],
)  # fmt: skip
def test_p53_kinds_of_images(server: Running, engine: ScriptedEngine, mode: str, kind: str) -> None:
    image = pillow.new("RGB", (20, 10), (200, 30, 30)).convert("L" if mode == "I;16" else mode)
    image = pillow.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image
    answer = server.chat([shown(encoded(image, kind)), text("What?")])
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["qwenvl"]["image_sizes"] == [[20, 10]]


def test_p53_photos_stand_upright_and_boxes_are_in_their_pixels(
    engine: ScriptedEngine, assistant: Assistant, says: Say
) -> None:
    says("<ref>the cat</ref><box>(100,200),(500,600)</box> and <box>(0,0),(999,999)</box>")
    levels = np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    exif = pillow.Exif()
    exif[0x0112] = 6
    photo, stored = (encoded(pillow.fromarray(levels), "PNG", **more) for more in ({"exif": exif}, {}))
    turned = encoded(pillow.fromarray(np.rot90(levels, -1)), "PNG")
    pixels = {}
    for raw in (False, True):
        with serving(api_over(engine, assistant, raw_orientation=raw)) as server:
            for name, image in (("photo", photo), ("stored", stored), ("turned", turned)):
                answer = server.chat([shown(image), text("Where?")])
                pixels[raw, name] = engine.history[-1].prompt.pixels[0]
                if name == "photo":
                    listed = answer.json["choices"][0]["message"]["qwenvl"]
                    width, height = (400, 200) if raw else (200, 400)
                    assert listed["image_sizes"] == [[width, height]] and listed["turned"] == [not raw]
                    assert listed["boxes"][0] == {
                        "label": "the cat", "x1": 100, "y1": 200, "x2": 500, "y2": 600, "image": 0,
                        "pixels": [width * 0.1, height * 0.2, width * 0.5, height * 0.6], "score": None,
                    }  # fmt: skip
                    assert listed["boxes"][1]["label"] is None
    assert (pixels[False, "photo"] == pixels[False, "turned"]).all()
    assert (pixels[True, "photo"] == pixels[True, "stored"]).all()


def test_p54_text_with_windows_line_ends(server: Running, asked: Asked) -> None:
    server.chat("One\r\ntwo\r\n")
    assert "user\nOne\r\ntwo\r\n<|im_end|>" in asked()


def test_p54_curl_asks_before_it_sends(server: Running) -> None:
    with socket.create_connection((server.host, server.port)) as client:
        client.settimeout(60)
        client.sendall(f"{HEAD}Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_p55_old_and_eager_clients(server: Running) -> None:
    request = f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    old = request.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: localhost\r\n", b"")
    answer = received(server, old)
    assert b"connection: close" in answer.lower() and b"It is a cat." in answer
    several = received(server, request * 3, answers=3)
    assert several.count(b"HTTP/1.1 200 OK") == 3 and several.count(b"It is a cat.") == 3
    with socket.create_connection((server.host, server.port)) as client:
        client.settimeout(60)
        for _ in range(3):
            client.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK")


def test_many_clients_get_their_own_answers(
    server: Running, engine: ScriptedEngine, assistant: Assistant
) -> None:
    tokenizer = assistant.tokenizer

    def repeat(prompt: Any, settings: Any) -> list[int]:
        question = tokenizer.decode(prompt.ids).rpartition("user\n")[2].partition("<|im_end|>")[0]
        return tokenizer.encode(f"You said: {question}")

    engine.script, engine.seconds = repeat, 0.001
    wrong: list[str] = []

    def ask(number: int) -> None:
        said = server.events(f"question {number}") if number % 2 else None
        found = texts(said)[0] if said else server.chat(f"question {number}").text
        if found != f"You said: question {number}":
            wrong.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == [] and not engine.busy
