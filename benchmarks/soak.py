"""A server under clients that do everything wrong, for half an hour: nothing may crash, leak or be mixed up.

    python benchmarks/soak.py [--seconds 1800] [--clients 8] [--seed 0] [--json]

`qwenvl serve tiny` runs in a process of its own, one row of its embedding made NaN so that a prompt can poison itself.
Clients ask questions whose answers are known, and images whose sizes are theirs alone; beside that they vanish in every
phase, read slowly, send malformed bodies, broken and huge images, fill the queue and poison rows. Afterwards the
engine must be empty, every answer have been right, and the memory flat: the plateau of the last quarter at most 5 %
above that of the second, judged in runs of `SETTLED` seconds or more: a shorter one is over before its caches are
full and the allocator has settled. Then a server whose engine raises must end every request with an error and itself
with 1.
Exit status 1 if anything of this failed.
"""

import argparse
import base64
import dataclasses
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pillow

from qwenvl.data.toy.paint import render
from qwenvl.data.toy.questions import described
from qwenvl.data.toy.worlds import scene

ROOT = Path(__file__).parents[1]
HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
CHAT = "/v1/chat/completions"
POISON = "<|extra_0|>"


# === The server, in its own process ===


def serve(fail_at: int) -> int:
    """`qwenvl serve tiny` with a token that makes its row NaN, and an engine that raises at a step (0: never)."""
    import torch

    from qwenvl.generate.engine import Engine, EngineConfig
    from qwenvl.serve import loading
    from qwenvl.serve.limits import Limits
    from qwenvl.serve.recent import RecentImages
    from qwenvl.serve.start import Start

    load = loading.load

    def poisoned(*args: Any) -> Any:
        loaded = load(*args)
        assistant = loaded.preparer.assistant
        # Caches that are full within seconds: what grows then is a leak.
        loaded.preparer._recent = RecentImages(1 << 20)
        small = EngineConfig(rows=8, cache_tokens=8192, prefix_tokens=1024, visual_bytes=1 << 20)
        loaded = dataclasses.replace(loaded, engine=Engine(assistant.model, small))
        with torch.no_grad():
            assistant.model.llm.embed.weight[assistant.tokenizer.specials[POISON]] = float("nan")
        if fail_at:
            step, counted = loaded.engine.step, iter(range(1, 1 << 40))

            def failing() -> Any:
                if next(counted) >= fail_at:
                    raise RuntimeError("as planned")
                return step()

            loaded.engine.step = failing  # type: ignore[method-assign]
        return loaded

    loading.load = poisoned  # type: ignore[assignment]
    limits = Limits(queue=12, write_seconds=3, header_seconds=5, body_seconds=5)
    return Start(
        checkpoint="tiny", device="cpu", port=0, rows=8, threads=1, drain=5, quiet=True, limits=limits
    ).run()


class Server:
    """The process and where it listens."""

    def __init__(self, fail_at: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(fail_at)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stderr is not None
        self.errors: list[str] = []
        for line in self.process.stderr:
            self.errors.append(line)
            if found := re.search(r" at http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"the server did not start: {''.join(self.errors[-3:])}")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.errors += self.process.stderr

    def memory(self) -> float:
        """Resident megabytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def figures(self) -> dict[str, float]:
        """What /metrics says."""
        text = ask(self, "GET", "/metrics")[1].decode()
        return {m[1]: float(m[2]) for m in re.finditer(r"^qwenvl:(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}

    def stop(self) -> int:
        """End it; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


# === What clients send ===


def ask(server: Server, method: str, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
    """One request; `body` is sent as JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def chat(text: str, image: bytes | None = None, **said: Any) -> dict[str, Any]:
    """A question, about an image or not."""
    url = image and "data:image/jpeg;base64," + base64.b64encode(image).decode()
    shown = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    return {"messages": [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}], **said}


def encoded(levels: Any, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    pillow.fromarray(levels).save(file, kind, quality=95)
    return file.getvalue()


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

    server: Server
    until: float
    known: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    """Questions and the answers that they have when they are asked alone."""
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sizes: int = 0
    first_special: int = field(default_factory=lambda: _first_special())

    def learn(self) -> None:
        """Ask the questions alone."""
        for number in range(12):
            shown = scene(3, number, "test")
            words = f"Where is {described(shown.things[0])}?" if shown.things else "What is this?"
            question = chat(words, encoded(render(shown, 224)), max_tokens=48)
            status, body, _ = ask(self.server, "POST", CHAT, question)
            assert status == 200, body
            self.known.append((question, json.loads(body)["choices"][0]["message"]["content"]))

    def client(self, number: int, seed: int) -> None:
        """One client, who does one thing after another."""
        dice = random.Random(f"{seed} {number}")
        while time.monotonic() < self.until:
            name = dice.choices(list(ACTIONS), [weight for weight, _ in ACTIONS.values()])[0]
            try:
                ACTIONS[name][1](self, dice)
                self.done[name] += 1
            except (ConnectionError, http.client.HTTPException, TimeoutError) as error:
                self.wrong.append(f"{name}: {error!r}")
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
    found = ask(soak.server, "POST", CHAT, wanted)
    if soak.expect(found, 200):
        said = json.loads(found[1])["choices"][0]["message"]["content"]
        assert said == answer, f"mixed up: {said!r} for {answer!r}"


def stream(soak: Soak, dice: random.Random) -> None:
    wanted, answer = dice.choice(soak.known)
    found = ask(soak.server, "POST", CHAT, {**wanted, "stream": True})
    if soak.expect(found, 200):
        assert spoken(found[1]) == answer, "mixed up"


def several(soak: Soak, dice: random.Random) -> None:
    wanted, answer = dice.choice(soak.known)
    found = ask(soak.server, "POST", CHAT, {**wanted, "n": 3, "logprobs": True})
    if soak.expect(found, 200):
        choices = json.loads(found[1])["choices"]
        assert [each["message"]["content"] for each in choices] == [answer] * 3, "mixed up"


def new_image(soak: Soak, dice: random.Random) -> None:
    """An image that nobody has seen; its size comes back."""
    width, height = dice.randint(20, 900), dice.randint(20, 900)
    levels = np.random.default_rng(dice.randrange(1 << 60)).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    found = ask(soak.server, "POST", CHAT, chat("What is this?", encoded(levels), max_tokens=4))
    if soak.expect(found, 200):
        soak.sizes += 1
        sizes = json.loads(found[1])["choices"][0]["message"]["qwenvl"]["image_sizes"]
        assert sizes == [[width, height]], "mixed up"


def vanish(soak: Soak, dice: random.Random) -> None:
    """Go at any byte, or while waiting, or in the middle of the answer."""
    body = json.dumps(
        {**dice.choice(soak.known)[0], "stream": dice.random() < 0.5, "min_tokens": 40}
    ).encode()
    sent = HEAD.format(CHAT, len(body)).encode() + body
    with socket.create_connection(("127.0.0.1", soak.server.port), timeout=60) as client:
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
    with socket.create_connection(("127.0.0.1", soak.server.port), timeout=60) as client:
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
    soak.expect(ask(soak.server, "POST", CHAT, bad), 400)


def broken_image(soak: Soak, dice: random.Random) -> None:
    whole = encoded(render(scene(3, 1, "test"), 224))
    bad = dice.choice([huge(), whole[: dice.randrange(10, len(whole) // 2)], dice.randbytes(500), b"GIF89a"])
    soak.expect(ask(soak.server, "POST", CHAT, chat("What?", bad)), 400)


def large_image(soak: Soak, dice: random.Random) -> None:
    levels = np.full((3_000, 4_000, 3), dice.randrange(256), np.uint8)
    soak.expect(ask(soak.server, "POST", CHAT, chat("What?", encoded(levels), max_tokens=2)), 200)


def poison(soak: Soak, dice: random.Random) -> None:
    """A prompt whose probabilities are NaN fails alone."""
    from qwenvl.tokenizer import SPECIALS

    number = soak.first_special + SPECIALS.index(POISON)
    found = ask(soak.server, "POST", "/v1/completions", {"prompt": [65, number, 66], "max_tokens": 3})
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
    "new image": (20, new_image),
    "vanish": (12, vanish),
    "slow reader": (3, slow),
    "malformed body": (8, malformed),
    "broken image": (6, broken_image),
    "large image": (1, large_image),
    "poisoned row": (3, poison),
    "burst": (1, burst),
}
"""What a client may do -> how often, how."""


# === The whole ===


def soaked(server: Server, seconds: float, clients: int, seed: int) -> tuple[Soak, list[float]]:
    """The clients' work, and the server's memory sampled beside it."""
    soak = Soak(server, time.monotonic() + 3600)
    soak.learn()
    soak.until = time.monotonic() + seconds
    threads = [threading.Thread(target=soak.client, args=(n, seed)) for n in range(clients)]
    for each in threads:
        each.start()
    memory = []
    while any(each.is_alive() for each in threads):
        if server.process.poll() is not None:
            soak.wrong.append(f"the server ended: {''.join(server.errors[-5:])}")
            break
        memory.append(server.memory())
        time.sleep(seconds / 200)
    for each in threads:
        each.join(150)
    return soak, memory


def _first_special() -> int:
    from importlib.resources import files

    from qwenvl.tokenizer import Tokenizer

    return Tokenizer.load(Path(str(files("qwenvl") / "tiny"))).n_ranks


def empty(server: Server) -> list[str]:
    """What is still held ten seconds after the last client went."""
    names = ("num_requests_running", "num_requests_waiting", "requests_unfinished", "connections_open")
    for _ in range(100):
        figures = server.figures()
        if all(figures[name] <= (name == "connections_open") for name in names):
            return []
        time.sleep(0.1)
    return [f"{name} is {figures[name]:g}" for name in names if figures[name]]


def failing() -> list[str]:
    """A server whose engine raises: what went wrong."""
    server = Server(fail_at=30)
    found: list[Any] = []
    wanted = chat("Tell me everything.", min_tokens=400, max_tokens=400)
    asked = [{**wanted, "stream": True}, wanted]
    threads = [
        threading.Thread(target=lambda body=body: found.append(ask(server, "POST", CHAT, body)))
        for body in asked
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    try:
        status: int | None = server.process.wait(60)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        server.process.kill()
    found_wrong = [
        status == 1 or f"it ended with {status}",
        len(found) == 2 or "a request was never answered",
    ]
    found_wrong += [b'"error"' in body or f"an answer without error: {body[-200:]!r}" for _, body, _ in found]
    return [each for each in found_wrong if isinstance(each, str)]


SETTLED = 300
"""Seconds of a run from which on its memory is judged."""


def main() -> int:
    """Run, print what was done, and whether it held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        return serve(args.serve)
    server = Server()
    try:
        soak, memory = soaked(server, args.seconds, args.clients, args.seed)
        problems = list(soak.wrong) if server.process.poll() is not None else [*soak.wrong, *empty(server)]
        status = server.stop()
    finally:
        server.process.kill()
    problems += [] if status == 0 else [f"the server ended with {status}"]
    quarters = np.array_split(np.array(memory), 4)
    plateau, last = float(np.median(quarters[1])), float(np.median(quarters[3]))
    if args.seconds >= SETTLED and last > plateau * 1.05:
        problems.append(f"memory grew from {plateau:.0f} to {last:.0f} MB")
    problems += [f"a failing engine: {each}" for each in failing()]
    result = {
        "seconds": args.seconds, "done": dict(soak.done), "distinct_images": soak.sizes,
        "memory_mb": [round(plateau), round(last)], "problems": problems,
    }  # fmt: skip
    print(
        json.dumps(result) if args.json else "\n".join(f"{name:16} {value}" for name, value in result.items())
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
