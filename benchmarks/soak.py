"""A server under clients that do everything wrong, for half an hour: nothing may crash, leak or be mixed up.

    python benchmarks/soak.py [--seconds 1800] [--images 10000] [--clients 8] [--seed 0] [--leak BYTES] [--json]

`soak_server.py` runs in a process of its own. Clients (`soak_clients.py`) ask questions whose answers are known, and
images whose sizes are theirs alone; beside that they vanish in every phase, read slowly, send malformed bodies, broken
and huge images, fill the queue and poison rows. They work in rounds, until the time is over, so many distinct images
have been answered, and everything that is often done was done. After every round the engine must be empty and every
page returned, every cache within its bytes; over all rounds the memory must be flat (`soak_memory.py` says what that
means). Then a server whose engine raises must end every request with an error and itself with 1.
Exit status 1 if anything of this failed. With `--leak` the server keeps so many bytes of every image, to see that they
are noticed.
"""

import argparse
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from soak_clients import ACTIONS, CHAT, POISON, Soak, ask, chat
from soak_memory import AMOUNTS, IMAGES, Round, growth, kept, resident

ROOT = Path(__file__).parents[1]

CACHE = 1 << 20
"""Bytes of visual tokens, and of images opened lately, that the server keeps."""

ROUNDS, LEAST = 60, 4
"""Rounds of a run; fewer where it is short or the machine slow, but so many."""

OFTEN = {name for name, (weight, _) in ACTIONS.items() if weight >= 8}
"""What every run has done when it ends."""

EMPTY = {
    "num_requests_running": 0, "num_requests_waiting": 0, "requests_unfinished": 0, "kv_cache_usage_perc": 0,
    "kv_cache_held_tokens": 0, "connections_open": 1,
}  # fmt: skip
"""Figures of /metrics -> the most that they are when nobody asks: one connection asks for the figures."""


class Server:
    """The process and where it listens."""

    def __init__(self, *options: str) -> None:
        script = Path(__file__).with_name("soak_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--cache", str(CACHE), *options],
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
        self._held: queue.Queue[dict[str, float]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("held "):
                self._held.put(json.loads(line[5:]))
            else:
                self.errors.append(line)

    def held(self) -> dict[str, float]:
        """What it says that it holds."""
        self.process.send_signal(signal.SIGUSR1)
        return self._held.get(timeout=60)

    def figures(self) -> dict[str, float]:
        """What /metrics says."""
        text = ask(self.port, "GET", "/metrics")[1].decode()
        return {m[1]: float(m[2]) for m in re.finditer(r"^qwenvl:(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}

    def left(self) -> list[str]:
        """What is still held some seconds after the last client went."""
        for _ in range(150):
            figures = self.figures()
            over = [f"{name} is {figures[name]:g}" for name, most in EMPTY.items() if figures[name] > most]
            if not over:
                break
            time.sleep(0.1)
        if (kept := figures["mm_cache_bytes"]) > CACHE:
            over.append(f"mm_cache_bytes is {kept:g} of {CACHE}")
        return over

    def complaints(self) -> list[str]:
        """What its log says went wrong since the last call; nothing should."""
        found, self.errors = self.errors, []
        return [line.strip() for line in found if '"event": "failure"' in line]

    def stop(self) -> int:
        """End it; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


# === The whole ===


def soaked(server: Server, soak: Soak, args: argparse.Namespace) -> list[Round]:
    """The clients' work, round by round, and what the server holds after each."""
    rounds: list[Round] = []
    began, patience = time.monotonic(), max(2 * args.seconds, 300)
    while (
        (past := time.monotonic() - began) < args.seconds
        or soak.images < args.images
        or len(rounds) < LEAST
        or not soak.done.keys() >= OFTEN
    ):
        if past > patience:
            soak.wrong.append(f"only {soak.images} distinct images in {past:.0f} seconds: {dict(soak.done)}")
            break
        soak.until = time.monotonic() + args.seconds / ROUNDS * (1 if args.seconds > 300 else 4)
        busy = worked(server, soak, args)
        if server.process.poll() is not None:
            soak.wrong.append(f"the server ended: {''.join(server.errors[-5:])}")
            break
        soak.wrong += server.left() + server.complaints()
        held = server.held()
        if held["recent_bytes"] > CACHE:
            soak.wrong.append(f"images opened lately take {held['recent_bytes']:g} bytes of {CACHE}")
        rounds.append(Round(images=soak.images, held=held))
        shown = {name: round(value / 1e6, 2) if value > 1e6 else value for name, value in held.items()}
        print(
            f"{past:7.0f} s {soak.images:6} images, busy {busy / 1e6:.0f} MB, {shown}",
            file=sys.stderr,
            flush=True,
        )
    return rounds


def worked(server: Server, soak: Soak, args: argparse.Namespace) -> float:
    """One round; the median of the server's resident memory meanwhile."""
    seed = f"{args.seed} {time.monotonic()}"
    threads = [threading.Thread(target=soak.client, args=(f"{seed} {n}",)) for n in range(args.clients)]
    for each in threads:
        each.start()
    memory = [0]
    while any(each.is_alive() for each in threads) and server.process.poll() is None:
        memory.append(resident(server.process.pid))
        time.sleep(0.2)
    for each in threads:
        each.join(300)
    return median(memory)


def failing() -> list[str]:
    """A server whose engine raises: what went wrong."""
    server = Server("--fail-at", "30")
    found: list[Any] = []
    wanted = chat("Tell me everything.", min_tokens=400, max_tokens=400)
    asked = [{**wanted, "stream": True}, wanted]
    threads = [
        threading.Thread(target=lambda body=body: found.append(ask(server.port, "POST", CHAT, body)))
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


def main() -> int:
    """Run, print what was done, and whether it held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    server = Server("--poison", POISON, "--leak", str(args.leak))
    soak = Soak(server.port)
    try:
        soak.learn()
        began = time.monotonic()
        rounds = soaked(server, soak, args)
        seconds = time.monotonic() - began
        status = server.process.poll() if server.process.poll() is not None else server.stop()
    finally:
        server.process.kill()
    problems = [*soak.wrong, *([] if status == 0 else [f"the server ended with {status}"])]
    problems += kept(rounds) if rounds else ["no round was ended"]
    problems += [f"a failing engine: {each}" for each in failing()]
    result = {
        "seconds": round(seconds), "done": dict(soak.done), "distinct_images": soak.images, "rounds": len(rounds),
        "growth": {name: round(growth(rounds, name), 4) for name in AMOUNTS}, "problems": problems,
    }  # fmt: skip
    print(
        json.dumps(result) if args.json else "\n".join(f"{name:16} {value}" for name, value in result.items())
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
