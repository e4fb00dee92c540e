"""Attacks 32 to 36 (docs/SERVING.md): connections, keys, browsers, caches, checkpoints; and 41, 42 and 44 of our
own."""

import base64
import io
import json
import os
import pickle
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from serving import Running, ScriptedEngine, api_over, data_url, serving, shown

from qwenvl.chat import Assistant
from qwenvl.checkpoint import folder
from qwenvl.runtime import Runtime
from qwenvl.serve import auth
from qwenvl.serve.auth import Admitted, Guard, Keys, Refused
from qwenvl.serve.limits import Limits

KEY, OTHER = "a-key-for-the-tests", "another-key-for-tests"
LOCAL = [(b"host", b"127.0.0.1:8000")]
JSON = (b"content-type", b"application/json")


# ---- 32 ----


@pytest.fixture(scope="module")
def hasty(assistant: Assistant) -> Iterator[Running]:
    """A server with little patience and few places."""
    limits = Limits(
        header_seconds=0.3, keep_alive_seconds=1, body_seconds=0.4, connections=20, body_bytes=100_000
    )
    ids = assistant.tokenizer.encode("It is a cat.")
    with serving(api_over(ScriptedEngine(lambda prompt, settings: ids), assistant, limits=limits)) as running:
        yield running


def test_a32_many_and_large_headers(raw: Callable[..., bytes]) -> None:
    """CVE-2025-48956 (vLLM), CVE-2025-43859 (h11): headers without end fill the memory. 64 lines of 16 KiB together."""
    for lines in (
        b"".join(b"x-%d: y\r\n" % n for n in range(100)),
        b"x: " + b"y" * 20_000 + b"\r\n",
        b"x" * 20_000 + b": y\r\n",
        b"x:\r\n" * 4_000,
        b"cookie: a\r\n" * 100,
    ):
        assert raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n").startswith(
            b"HTTP/1.1 431 "
        )
    assert raw(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 431 "
    )
    assert raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )


BEHIND = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMUGGLED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        SMUGGLED + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BEHIND,
        SMUGGLED + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}  x",
        SMUGGLED + b"Content-Length: +4\r\n\r\n{}  ",
        SMUGGLED + b"Content-Length: 4, 4\r\n\r\n{}  ",
        SMUGGLED + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n{}",
        SMUGGLED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        SMUGGLED + b"Transfer-Encoding : chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        SMUGGLED + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        SMUGGLED + b"X: a\r\n folded\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /health HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 100, b"hello\r\n\r\n",
    ],
)  # fmt: skip
def test_a32_smuggling(request_: bytes, raw: Callable[..., bytes], server: Running) -> None:
    """Two readings of one request's length: a proxy sees one request, the server two. What is ambiguous, or no
    HTTP/1.1, is refused whole, the connection closed, and what stood behind it never read as a request."""
    answer = raw(request_, seconds=3)
    assert len(re.findall(rb"HTTP/1\.1 [1-5]", answer)) <= 1 and not answer.startswith(b"HTTP/1.1 2"), answer[
        :200
    ]
    assert b"process_cpu" not in answer and b"Traceback" not in answer and b" 500 " not in answer[:20]
    assert server.ask("GET", "/health").status == 200


def test_a32_slow_headers_and_bodies(hasty: Running) -> None:
    """Slowloris: sockets that say nothing, or a byte now and then, hold a place each. They are closed at a deadline
    that bytes do not move; a body has its own."""
    for start in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
        with (
            socket.create_connection((hasty.host, hasty.port), timeout=60) as connection,
            pytest.raises(OSError),
        ):
            connection.sendall(start)
            for _ in range(
                100
            ):  # ten seconds and more: each byte would move a deadline that counts from the last
                connection.sendall(b"x")
                time.sleep(0.1)
    with socket.create_connection((hasty.host, hasty.port), timeout=60) as connection:
        connection.sendall(SMUGGLED + b"Content-Length: 1000\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a32_more_connections_than_places(assistant: Assistant) -> None:
    """Those above the limit are closed at once; the others are served, and places come back."""
    engine = ScriptedEngine(lambda prompt, settings: [])
    with serving(api_over(engine, assistant, limits=Limits(connections=20, header_seconds=60))) as server:
        idle = [socket.create_connection((server.host, server.port), timeout=60) for _ in range(60)]
        left = list(idle)
        for connection in idle:
            connection.settimeout(0.01)

        def only_places_are_left() -> bool:
            left[:] = [connection for connection in left if not closed(connection)]
            return len(left) <= 20

        server.until(only_places_are_left)
        assert len(left) == 20
        for connection in idle:
            connection.close()
        server.until(lambda: not server._server.server_state.connections)
        assert server.ask("GET", "/health").status == 200


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a32_a_proxy_is_not_trusted(server: Running, engine: ScriptedEngine) -> None:
    """X-Forwarded-For and its kin are what anybody may write."""
    claims = {
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Real-Ip": "::1",
    }
    assert server.ask("GET", "/v1/models", None, claims).status == 200
    assert server.ask("GET", "/v1/models", None, {**claims, "Host": "evil.example"}).status == 421


# ---- 33 ----


@pytest.fixture(scope="module")
def locked(assistant: Assistant) -> Iterator[tuple[Running, ScriptedEngine, io.StringIO]]:
    """A server with two keys, and its log."""
    ids = assistant.tokenizer.encode("It is a cat.")
    engine, log = ScriptedEngine(lambda prompt, settings: ids), io.StringIO()
    guard = Guard.make(keys=Keys([KEY, OTHER]), loopback=True)
    with serving(api_over(engine, assistant, guard=guard, guarded=True, log=log)) as running:
        yield running, engine, log


TWINS = (
    "/invocations", "/v1/models", "/v1//models", "//v1/models", "/v1/models/", "/V1/MODELS", "/%76%31/models",
    "/metrics", "/version",
    "/tokenize", "/docs", "/openapi.json", "/ping", "/health/", "//health", "/health/x", "/health%2f..%2fmetrics",
    "/ready/..",
    "/health?x=/metrics", "/%2e%2e/metrics", "/health;x", "/nowhere", "/.", "/v1", "/static/../metrics", "/health%00",
    "/Health",
)  # fmt: skip


@pytest.mark.parametrize("path", TWINS)
def test_a33_unguarded_twins(path: str, locked: tuple[Running, ScriptedEngine, io.StringIO]) -> None:
    """llama.cpp#24825, vllm's security.md: /v1 is guarded, its twin /invocations is not. The rule is the other way
    round: /, /health and /ready, spelled exactly, are open; all else needs a key, also what does not exist."""
    answer = locked[0].ask("GET", path)
    assert answer.status == (200 if path.startswith("/health?") else 401)
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer" and answer.error["code"] == "invalid_api_key"
    for method in ("POST", "PUT", "DELETE", "PATCH", "HEAD"):
        assert locked[0].ask(method, "/metrics", b"{}" if method == "POST" else None).status == 401


def test_a33_keys_are_compared_as_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2025-59425 (vLLM): `==` on keys stops at the first byte that differs, and its time tells how many were
    right. All keys are compared, each as a digest, whatever was found before."""
    compared: list[tuple[bytes, bytes]] = []
    keys = Keys([KEY, OTHER])

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    for key in (KEY, OTHER, "wrong", "", "é" * 1_000):
        compared.clear()
        assert (keys.identify(key.encode()) is not None) == (key in (KEY, OTHER))
        assert len(compared) == 2 and all(len(each) == 32 for pair in compared for each in pair)
    assert KEY.encode() not in pickle.dumps(vars(keys))


def test_a33_how_a_key_is_sent(locked: tuple[Running, ScriptedEngine, io.StringIO]) -> None:
    ask = locked[0].ask
    for headers in (
        {"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"AUTHORIZATION": f"BEARER   {KEY} "},
        {"api-key": KEY}, {"Api-Key": OTHER}, {"Authorization": "Bearer x", "api-key": KEY},
    ):  # fmt: skip
        assert ask("GET", "/v1/models", None, headers).status == 200, headers
    for headers in (
        {}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY.upper()}"}, {"x-api-key": KEY},
        {"Cookie": f"key={KEY}"},
        {"Authorization": f"Bearer {KEY}", "api-key": OTHER}, {"Authorization": f"Bearer {KEY},{KEY}"},
    ):  # fmt: skip
        assert ask("GET", "/v1/models", None, headers).status == 401, headers
    assert ask("GET", f"/v1/models?api_key={KEY}").status == 401


def test_a33_key_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the laptop\n{KEY}\n\n  {OTHER}  \r\n")
    for mode in (0o644, 0o604, 0o620, 0o666, 0o660):
        file.chmod(mode)
        with pytest.raises(ValueError, match=f"mode {mode:04o}"):
            Keys.read(file)
    for mode in (0o600, 0o400, 0o440):
        file.chmod(mode)
        assert Keys.read(file).identify(OTHER.encode())
    file.chmod(0o600)
    for wrong in ("short", "with a space in it", "schlüssel-schlüssel", "x" * 600, "tab\tbed-tab-tab-tab"):
        file.write_text(f"{KEY}\n{wrong}\n")
        with pytest.raises(ValueError, match="Line 2") as caught:
            Keys.read(file)
        assert wrong not in str(caught.value) and KEY not in str(caught.value)
    file.write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="holds no key"):
        Keys.read(file)
    with pytest.raises(ValueError, match=r"there is no key file .*none; `openssl rand"):
        Keys.read(tmp_path / "none")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ValueError, match="pipe"):
        Keys.read(fifo)


# ---- 34 ----


def test_a34_foreign_host_names(server: Running) -> None:
    """ollama CVE-2024-28224: DNS rebinding of the server itself: a web site's own name suddenly leads to 127.0.0.1,
    and the browser takes its requests for the site's own. Only names of this machine are answered, except probes."""
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "[::2]",
        "a@localhost",
        "localhost:x",
        "localhost, evil.example",
    ):
        assert server.ask("GET", "/v1/models", None, {"Host": host}).status == 421, host
        assert server.ask("GET", "/", None, {"Host": host}).status == 421, host
        assert server.ask("GET", "/health", None, {"Host": host}).status == 200, host
    for host in ("localhost", "LOCALHOST:1234", f"127.0.0.1:{server.port}", "[::1]:8000"):
        assert server.ask("GET", "/v1/models", None, {"Host": host}).status == 200, host


def test_a34_two_hosts(raw: Callable[..., bytes]) -> None:
    assert (
        b" 400 "
        in raw(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        )[:20]
    )
    assert b" 200 " in raw(b"GET /v1/models HTTP/1.0\r\n\r\n")[:20]  # no browser speaks it


def test_a34_on_the_network() -> None:
    """Without keys only addresses and own names; with keys any name, because a foreign page has no key; with names,
    those."""
    open_ = Guard.make(keys=None, loopback=False, names=("chat.example",))
    guarded = Guard.make(keys=Keys([KEY]), loopback=False)
    named = Guard.make(keys=Keys([KEY]), loopback=False, names=("chat.example",))

    def admits(guard: Guard, host: bytes) -> bool:
        try:
            guard.admit("GET", "/v1/models", [(b"host", host), (b"api-key", KEY.encode())])
        except Refused as refused:
            assert refused.status == 421
            return False
        return True

    hosts = (
        b"192.168.1.7:8000",
        b"[2001:db8::1]",
        b"localhost",
        b"chat.example",
        b"Chat.Example:443",
        b"evil.example",
    )
    assert [admits(open_, host) for host in hosts] == [True, True, True, True, True, False]
    assert [admits(guarded, host) for host in hosts] == [True] * 6
    assert [admits(named, host) for host in hosts] == [True, True, True, True, True, False]
    for wrong in ("https://chat.example", "chat.example:80", "a b", "", "*"):
        with pytest.raises(ValueError, match="no host name"):
            Guard.make(keys=None, loopback=True, names=(wrong,))


def test_a34_web_pages_elsewhere(server: Running, engine: ScriptedEngine) -> None:
    """llama.cpp#25655, OpenHands#1219: a page on another site drives the server on your laptop. What a browser sends
    without asking first (a form, text/plain) is refused, and what it asks first is not allowed."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "text/json",
        "application/jsonx",
    ):
        answer = server.ask("POST", "/v1/chat/completions", body, {"Content-Type": kind})
        assert answer.status == 415 and not engine.history
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": f"http://127.0.0.1:{server.port}.evil.example"},
    ):  # fmt: skip
        assert server.ask("POST", "/v1/chat/completions", body, headers).status == 403 and not engine.history
        preflight = server.ask(
            "OPTIONS", "/v1/chat/completions", None, {**headers, "Access-Control-Request-Method": "POST"}
        )
        answers = (preflight, server.ask("GET", "/v1/models", None, headers))
        assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)
    own = {
        "Origin": f"http://127.0.0.1:{server.port}",
        "Sec-Fetch-Site": "same-origin",
        "Content-Type": "Application/JSON; charset=utf-8",
    }
    assert server.ask("POST", "/v1/chat/completions", body, own).status == 200


def test_a34_origins_that_were_named(assistant: Assistant) -> None:
    """Those, and no credentials: nothing is allowed to `*` while a browser sends what it keeps for this server."""
    guard = Guard.make(keys=None, loopback=True, origins=("https://Chat.example",))
    answer = guard.admit("POST", "/v1/completions", [*LOCAL, (b"origin", b"https://chat.example"), JSON])
    assert (
        answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        and answer.headers["Vary"] == "Origin"
    )
    assert not any("credentials" in name.lower() for name in answer.headers)
    asked = [(b"origin", b"https://chat.example"), (b"access-control-request-method", b"POST")]
    wanted = (b"access-control-request-headers", b"authorization, x-stainless-os,evil\r\nx: y")
    allowed = guard.preflight([*asked, wanted])
    assert allowed and allowed["Access-Control-Allow-Headers"] == "authorization, x-stainless-os"
    assert guard.preflight([(b"origin", b"https://evil.example"), asked[1]]) is None
    for origin in (
        b"https://chat.example.evil.example",
        b"http://chat.example",
        b"https://chat.example:444",
        b"null",
    ):
        with pytest.raises(Refused, match="another origin"):
            guard.admit("POST", "/v1/completions", [*LOCAL, (b"origin", origin), JSON])
    with pytest.raises(ValueError, match="every web site"):
        Guard.make(keys=None, loopback=True, origins=("*",))
    anyone = Guard.make(keys=Keys([KEY]), loopback=True, origins=("*",))
    sent = [*LOCAL, (b"origin", b"https://a.example"), JSON, (b"api-key", KEY.encode())]
    assert anyone.admit("POST", "/v1/completions", sent).headers["Access-Control-Allow-Origin"] == "*"


# ---- 35 ----


def test_a35_caches_of_keys_are_apart(locked: tuple[Running, ScriptedEngine, io.StringIO]) -> None:
    """CVE-2025-46570: an answer that comes faster tells that somebody asked the same before. The key's identity is
    the salt of both caches; it is not the key, and what the log calls a client is neither."""
    running, engine, _ = locked
    engine.history.clear()
    for key in (KEY, OTHER, KEY):
        headers = {"Authorization": f"Bearer {key}"}
        assert (
            running.ask(
                "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, headers
            ).status
            == 200
        )
    one, two, again = (each.salt for each in engine.history)
    assert one == again != two and len(one) == 16
    assert Admitted(one).client != Admitted(two).client and KEY.encode() not in one
    assert one.hex() not in Admitted(one).client and Admitted().client == "anyone"


def test_a35_images_that_differ_are_two(server: Running, engine: ScriptedEngine) -> None:
    """CVE-2025-46722 (vLLM), vllm-mlx#126: the hash of an image left out its shape, or read only its first bytes, and
    another user's invoice was answered. Equal bytes of another shape, or a last pixel that differs, are other pixels
    here."""
    levels = bytes(range(240)) * 2
    wide, tall = Image.frombytes("L", (24, 20), levels), Image.frombytes("L", (20, 24), levels)
    last = Image.frombytes("L", (24, 20), levels[:-1] + b"\0")
    palette = wide.convert("P")
    palette.putpalette([255 - n // 3 for n in range(768)])
    content = []
    for image in (wide, tall, last, palette, wide):
        file = io.BytesIO()
        image.save(file, "PNG")
        content.append(shown(file.getvalue()))
    assert server.chat(content).status == 200
    pixels = [each.tobytes() for each in engine.history[-1].prompt.pixels]
    assert len(set(pixels)) == 4 and pixels[0] == pixels[4]


# ---- 36 ----


class Runs:
    """What unpickling would run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_a36_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    """CVE-2025-62164, CVE-2025-66448 (vLLM), GGUF loaders of lmstudio#2289: weights that are a program. safetensors, or
    `weights_only`; the code beside an official checkpoint is not even looked at."""
    trace = tmp_path / "trace"
    model = tmp_path / "model"
    model.mkdir()
    shipped = folder.resolve("tiny")
    for name in ("config.json", "generation_config.json", "qwen.tiktoken"):
        (model / name).write_bytes((shipped / name).read_bytes())
    said = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(said))
    (model / "modeling_qwen.py").write_text(f"open({str(trace)!r}, 'w')")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Runs(trace)}, 2))
    with pytest.raises(ValueError):
        folder.load(model, Runtime.detect(device="cpu"))
    torch.save({"w": Runs(trace)}, model / "pytorch_model.bin", pickle_protocol=2)
    with pytest.raises(ValueError):
        folder.load(model, Runtime.detect(device="cpu"))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Runs(trace)))
    assert trace.exists()  # the trap works


@pytest.mark.parametrize("key", ["prompt_embeds", "image_embeds", "inputs_embeds"])
def test_a36_no_embeddings_in_requests(
    key: str, server: Running, engine: ScriptedEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    poison = base64.b64encode(pickle.dumps(Runs(trace))).decode()
    server.chat(**{key: poison})
    assert server.chat([{"type": key, key: poison}]).status == 400
    assert server.ask("POST", "/v1/completions", {"prompt": "x", key: poison}).status in (200, 400)
    assert not trace.exists()


# ---- of our own ----


def test_a41_request_ids_and_paths_in_the_log(locked: tuple[Running, ScriptedEngine, io.StringIO]) -> None:
    """A number, a path or an unknown key of the client's with line ends in it writes lines of its own into the log, or
    headers into the answer. Numbers are plain or replaced; a line of the log is JSON in ASCII. Nor does it hold a
    prompt, an image or a key."""
    running, _, log = locked
    key = {"Authorization": f"Bearer {KEY}"}
    for number in ("a b", "x" * 129, "é", "a\tb", '"', "a;b"):
        answer = running.ask("GET", "/v1/models", None, {**key, "x-request-id": number.encode("latin-1")})
        assert answer.headers["x-request-id"].startswith("req_")
    assert (
        running.ask("GET", "/v1/models", None, {**key, "x-request-id": "ok-1.2_3"}).headers["x-request-id"]
        == "ok-1.2_3"
    )
    answer = running.ask("GET", "/a%0d%0aX-Evil:%20yes%1b%5b2J" + "b" * 5_000, None, key)
    assert answer.status == 404 and "x-evil" not in answer.headers and "\x1b" not in answer.error["message"]
    secret, image = "a secret question", io.BytesIO()
    Image.new("RGB", (20, 20)).save(image, "PNG")
    content = [{"type": "text", "text": secret}, shown(image.getvalue())]
    said = {"messages": [{"role": "user", "content": content}], "un\nknown\x1b": 1, "user": secret}
    assert running.ask("POST", "/v1/chat/completions", said, key).status == 200
    running.ask(
        "POST",
        "/v1/chat/completions",
        {**said, "temperature": secret},
        {"Authorization": "Bearer not-a-key-" + secret[:8]},
    )
    written = log.getvalue()
    lines = written.splitlines()
    assert written.isascii() and all(isinstance(json.loads(line), dict) for line in lines)
    assert max(map(len, lines)) < 3_000
    for hidden in (secret, KEY, OTHER, "not-a-key", data_url(image.getvalue())[30:60], "It is a cat"):
        assert hidden not in written


def test_a42_methods_and_targets(raw: Callable[..., bytes]) -> None:
    """A proxy's methods and targets: CONNECT, TRACE, an absolute URL. None is taken for a request to somewhere else."""
    for head in (
        b"CONNECT evil.example:443 HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"GET http://evil.example/v1/models HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
    ):
        answer = raw(head + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n", seconds=3)
        assert b"evil.example" not in answer or b"HTTP/1.1 4" in answer[:12]
        assert b" 500 " not in answer[:20] and b"Traceback" not in answer


def test_a44_bodies_held_back_a_byte_before_their_end(assistant: Assistant) -> None:
    """512 connections with 32 MB each are 16 GB before anything has been checked. All bodies share a number of bytes;
    small ones are always taken, and what a client leaves behind is given back."""
    limits = Limits(bodies_bytes=4 << 20, body_seconds=20)
    ids = assistant.tokenizer.encode("It is a cat.")
    with serving(api_over(ScriptedEngine(lambda prompt, settings: ids), assistant, limits=limits)) as server:
        head = SMUGGLED + b"Content-Length: 3000000\r\n\r\n"
        first = socket.create_connection((server.host, server.port), timeout=60)
        first.sendall(head + b" " * 2_999_999)
        server.until(lambda: server.api.bodies.held == 2_999_999)
        refused = server.ask("POST", "/v1/completions", b" " * 3_000_000)
        assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1 and refused.error["code"]
        assert server.chat("x" * 500_000).error["code"] == "context_length_exceeded"  # taken, and read
        assert server.chat().text == "It is a cat."
        first.close()
        server.until(lambda: server.api.bodies.held == 0)
        assert server.ask("POST", "/v1/completions", b" " * 3_000_000).status == 400


def test_the_table_of_the_documents_is_whole() -> None:
    """docs/SERVING.md lists every attack that is tested here, and none that is not."""
    root = Path(__file__).parents[2]
    page = (root / "docs/SERVING.md").read_text("utf-8").partition("## Security")[2].partition("\n## ")[0]
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.M)}
    sources = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tested = {int(number) for number in re.findall(r"^def test_a(\d\d)_", sources, re.M)}
    assert listed == tested == set(range(1, 47))
