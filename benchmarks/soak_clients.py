"""What the clients of a soak do: questions whose answers are known, images that nobody has seen, all kinds of wrong."""

import base64
import functools
import http.client
import io
import json
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pillow

from qwenvl.data.toy.paint import render
from qwenvl.data.toy.questions import described
from qwenvl.data.toy.worlds import scene
from qwenvl.tokenizer import Tokenizer

HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
CHAT = "/v1/chat/completions"
POISON = "<|extra_0|>"
"""The token that the server has made NaN."""

TOGETHER = 8
"""Most new images of one request."""


# === What clients send ===


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
    """One request; `body` is sent as JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def chat(text: str, *images: bytes, **said: Any) -> dict[str, Any]:
    """A question, about images or not."""
    urls = ["data:image/jpeg;base64," + base64.b64encode(image).decode() for image in images]
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}], **said}


def encoded(levels: Any, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    pillow.fromarray(levels).save(file, kind, quality=95)
    return file.getvalue()


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(Path(str(files("qwenvl") / "tiny")))


def huge() -> bytes:
    """A PNG of 60,000 x 60,000 pixels, by its header."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def spoken(events: bytes) -> str:
    """What a stream said, if it is whole."""
    if not events.endswith(b"data: [DONE]\n\n"):
        raise AssertionError("a stream broke off")
    chunks = [json.loads(line[6:]) for line in events.split(b"\n\n") if line.startswith(b"data: {")]
    if failed := [chunk for chunk in chunks if "error" in chunk]:
        raise AssertionError(f"a stream ended with {failed[0]}")
    return "".join(choice["delta"].get("content", "") for c in chunks for choice in c["choices"])


@dataclass
class Soak:
    """What the clients share."""

    port: int
    until: float = 0.0
    """When clients stop (`time.monotonic`)."""
    known: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    """Questions and the answers that they have when they are asked alone."""
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    images: int = 0
    """Distinct images that came back with their sizes."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self) -> None:
        """Ask the questions alone."""
        for number in range(12):
            shown = scene(3, number, "test")
            words = f"Where is {described(shown.things[0])}?" if shown.things else "What is this?"
            question = chat(words, encoded(render(shown, 224)), max_tokens=48)
            status, body, _ = ask(self.port, "POST", CHAT, question)
            assert status == 200, body
            self.known.append((question, json.loads(body)["choices"][0]["message"]["content"]))

    def client(self, seed: str) -> None:
        """One client, who does one thing after another."""
        dice = random.Random(seed)
        while time.monotonic() < self.until:
            name = dice.choices(list(ACTIONS), [weight for weight, _ in ACTIONS.values()])[0]
            try:
                ACTIONS[name][1](self, dice)
                self.done[name] += 1
            except Exception as error:
                self.wrong.append(f"{name}: {error!r}")

    def expect(self, found: tuple[int, bytes, dict[str, str]], *statuses: int) -> bool:
        """Whether the status is the first; the others are allowed too, a full queue always is."""
        status, body, headers = found
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 120
            self.done["(queue full)"] += 1
            time.sleep(0.05)
            return False
        assert status in statuses, (status, body[:300])
        assert status == 200 or set(json.loads(body)) == {"error"}
        return status == statuses[0]


# === What clients do ===


def question(soak: Soak, dice: random.Random) -> None:
    wanted, answer = dice.choice(soak.known)
    found = ask(soak.port, "POST", CHAT, wanted)
    if soak.expect(found, 200):
        said = json.loads(found[1])["choices"][0]["message"]["content"]
        assert said == answer, f"mixed up: {said!r} for {answer!r}"


def stream(soak: Soak, dice: random.Random) -> None:
    wanted, answer = dice.choice(soak.known)
    found = ask(soak.port, "POST", CHAT, {**wanted, "stream": True})
    if soak.expect(found, 200):
        assert spoken(found[1]) == answer, "mixed up"


def several(soak: Soak, dice: random.Random) -> None:
    wanted, answer = dice.choice(soak.known)
    found = ask(soak.port, "POST", CHAT, {**wanted, "n": 3, "logprobs": True})
    if soak.expect(found, 200):
        choices = json.loads(found[1])["choices"]
        assert [each["message"]["content"] for each in choices] == [answer] * 3, "mixed up"


def new_images(soak: Soak, dice: random.Random) -> None:
    """Images that nobody has seen; their sizes come back, in their order."""
    largest = 900 if dice.random() < 0.05 else 120
    levels = np.random.default_rng(dice.randrange(1 << 60))
    sizes = [[dice.randint(8, largest), dice.randint(8, largest)] for _ in range(dice.randint(1, TOGETHER))]
    images = [encoded(levels.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
    found = ask(soak.port, "POST", CHAT, chat("What is this?", *images, max_tokens=2))
    if soak.expect(found, 200):
        shown = json.loads(found[1])["choices"][0]["message"]["qwenvl"]["image_sizes"]
        assert shown == sizes, f"mixed up: {shown} for {sizes}"
        with soak.lock:
            soak.images += len(sizes)


def vanish(soak: Soak, dice: random.Random) -> None:
    """Go at any byte, or while waiting, or in the middle of the answer."""
    body = json.dumps(
        {**dice.choice(soak.known)[0], "stream": dice.random() < 0.5, "min_tokens": 40}
    ).encode()
    sent = HEAD.format(CHAT, len(body)).encode() + body
    with socket.create_connection(("127.0.0.1", soak.port), timeout=60) as client:
        phase = dice.choice(["connect", "header", "body", "sent", "queued", "writing"])
        if phase == "connect":
            return
        client.sendall(sent[: {"header": 50, "body": len(sent) - 9}.get(phase, len(sent))])
        if phase == "queued":
            time.sleep(dice.random() * 0.3)
        elif phase == "writing":
            client.recv(500)


def slow(soak: Soak, dice: random.Random) -> None:
    """Read in small bites: every word must come."""
    wanted, answer = dice.choice(soak.known)
    body = json.dumps({**wanted, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", soak.port), timeout=60) as client:
        client.sendall(HEAD.format(CHAT, len(body)).encode() + body)
        data = b""
        while b"0\r\n\r\n" not in data[-8:] and not (b"429" in data[:20] and data.endswith(b"}")):
            piece = client.recv(200)
            assert piece, "a slow stream broke off"
            data += piece
            time.sleep(0.002)
    if b"200 OK" in data[:20]:
        found = re.findall(rb'"delta":\{"content":("(?:[^"\\]|\\.)*")\}', data)
        assert "".join(map(json.loads, found)) == answer, "mixed up"


def malformed(soak: Soak, dice: random.Random) -> None:
    good = json.dumps(dice.choice(soak.known)[0]).encode()
    bad = dice.choice(
        [b"", b"{", good[: dice.randrange(1, len(good) - 1)], dice.randbytes(200), b"[1]", b'{"messages": 7}',
         b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', b"[" * 10_000]
    )  # fmt: skip
    soak.expect(ask(soak.port, "POST", CHAT, bad), 400)


def broken_image(soak: Soak, dice: random.Random) -> None:
    whole = encoded(render(scene(3, 1, "test"), 224))
    bad = dice.choice([huge(), whole[: dice.randrange(10, len(whole) // 2)], dice.randbytes(500), b"GIF89a"])
    soak.expect(ask(soak.port, "POST", CHAT, chat("What?", bad)), 400)


def large_image(soak: Soak, dice: random.Random) -> None:
    levels = np.full((3_000, 4_000, 3), dice.randrange(256), np.uint8)
    soak.expect(ask(soak.port, "POST", CHAT, chat("What?", encoded(levels), max_tokens=2)), 200)


def poison(soak: Soak, dice: random.Random) -> None:
    """A prompt whose probabilities are NaN fails alone."""
    number = tokenizer().specials[POISON]
    found = ask(soak.port, "POST", "/v1/completions", {"prompt": [65, number, 66], "max_tokens": 3})
    soak.expect(found, 500)


def burst(soak: Soak, dice: random.Random) -> None:
    """More than the queue holds, at once."""
    threads = [threading.Thread(target=_try, args=(soak, dice.random())) for _ in range(24)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)


def _try(soak: Soak, seed: float) -> None:
    try:
        question(soak, random.Random(seed))
    except Exception as error:
        soak.wrong.append(f"burst: {error!r}")


ACTIONS: dict[str, tuple[int, Callable[[Soak, random.Random], None]]] = {
    "question": (10, question),
    "stream": (10, stream),
    "several answers": (3, several),
    "new images": (40, new_images),
    "vanish": (12, vanish),
    "slow reader": (3, slow),
    "malformed body": (8, malformed),
    "broken image": (6, broken_image),
    "large image": (1, large_image),
    "poisoned row": (3, poison),
    "burst": (1, burst),
}
"""What a client may do -> how often, how."""
