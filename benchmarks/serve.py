"""The engine under many requests, and the server around it.

    python benchmarks/serve.py                        all of it, some minutes
    python benchmarks/serve.py --only gap image       parts of it

One thread; processor time (of the server: its process's, all threads). Whatever is compared runs in turn in one run,
and the least of the rounds counts, except gaps, of which the largest counts. One JSON object per line.

    static      answers of mixed lengths in batches of 16 that end together, against rows that come and go   >= 2
    concurrent  16 requests one after another, against together; bfloat16, 12 layers x 1024                 >= 4
    gap         longest wait between two tokens while a request with 16 images is read, against none        <= 3
    image       time to the first token about an image seen for the first time, against again               >= 4
    http        tokens per second of the bare engine, against through HTTP, as a share                      >= 0.9
    start       seconds from starting the server to the first answer                                        <= 3
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from qwenvl.checkpoint.folder import load, resolve
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.engine import Engine, EngineConfig, Settings
from qwenvl.generate.prompts import Prompt
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime

ROWS = 16


def tiny() -> QwenVL:
    return load(resolve("tiny"), Runtime.detect(device="cpu", dtype="float32")).eval()


def large() -> QwenVL:
    """158 million random parameters in bfloat16: reading them is what a step costs."""
    torch.manual_seed(0)
    llm = LLMConfig(vocab_size=4096, hidden=1024, layers=12, heads=8, mlp_width=2816)
    vision = VisionConfig(width=32, layers=1, heads=2, mlp_width=32, image_size=28)
    config = ModelConfig(vision=vision, adapter=AdapterConfig(queries=4, heads=8), llm=llm, imgpad_id=4095)
    return QwenVL(config).to(torch.bfloat16).eval()


def words(model: QwenVL, count: int, seed: int, images: int = 0) -> Prompt:
    """A prompt that nobody has asked before, behind so many images."""
    draw = np.random.default_rng(seed)
    config, side = model.config, model.config.vision.image_size
    pixels = tuple(draw.standard_normal((3, side, side), dtype=np.float32) for _ in range(images))
    slots = (config.imgpad_id,) * (config.adapter.queries * images)
    return Prompt(ids=(*slots, *map(int, draw.integers(0, 256, count))), pixels=pixels)


@dataclass
class Timeline:
    """When each request wrote its tokens, in processor seconds."""

    times: dict[int, list[float]] = field(default_factory=dict)

    def run(self, engine: Engine, until: Callable[[], bool] = lambda: False) -> None:
        """Step until nothing is left to do, or `until`."""
        while engine.busy and not until():
            for token in engine.step():
                self.times.setdefault(token.request, []).append(process_time())

    @property
    def tokens(self) -> int:
        return sum(map(len, self.times.values()))


def answer_all(engine: Engine, asked: Iterable[tuple[Prompt, int]]) -> tuple[float, int]:
    """Processor seconds and tokens of these prompts, each with the length of its answer."""
    start, line = process_time(), Timeline()
    for prompt, new in asked:
        engine.add(prompt, Settings(max_new_tokens=new, min_new_tokens=new))
    line.run(engine)
    return process_time() - start, line.tokens


def least(rounds: int, *runs: Callable[[int], float]) -> list[float]:
    """The least result of each, taken in turn."""
    results = [[run(number) for run in runs] for number in range(rounds)]
    return [min(each) for each in zip(*results, strict=True)]


def static(rounds: int) -> dict[str, Any]:
    """Four batches' worth of answers, most short and a few long."""
    engine = Engine(tiny(), EngineConfig(rows=ROWS, prefix_tokens=0))
    lengths = [int(n) for n in np.random.default_rng(0).geometric(1 / 40, 4 * ROWS).clip(4, 400)]

    def prompts(number: int) -> list[Prompt]:
        return [words(engine.model, 24, 1000 * number + place) for place in range(len(lengths))]

    def batches(number: int) -> float:
        seconds = 0.0
        asked = list(zip(prompts(2 * number), lengths, strict=True))
        for at in range(0, len(asked), ROWS):
            # A static batch computes every row until its longest has ended.
            longest = max(new for _, new in asked[at : at + ROWS])
            seconds += answer_all(engine, [(prompt, longest) for prompt, _ in asked[at : at + ROWS]])[0]
        return seconds

    def coming_and_going(number: int) -> float:
        return answer_all(engine, zip(prompts(2 * number + 1), lengths, strict=True))[0]

    waiting, going = least(rounds, batches, coming_and_going)
    return {"tokens": sum(lengths), "static_s": waiting, "continuous_s": going, "ratio": waiting / going}


def concurrent_requests(rounds: int) -> dict[str, Any]:
    """Short prompts, 32 tokens each: the step is what counts."""
    engine = Engine(large(), EngineConfig(rows=ROWS, prefix_tokens=0))
    new = 32

    def alone(number: int) -> float:
        return sum(
            answer_all(engine, [(words(engine.model, 16, 1000 * number + place), new)])[0]
            for place in range(ROWS)
        )

    def together(number: int) -> float:
        asked = [(words(engine.model, 16, 1000 * number + 500 + place), new) for place in range(ROWS)]
        return answer_all(engine, asked)[0]

    one, all_of_them = least(rounds, alone, together)
    return {"alone_s": one, "together_s": all_of_them, "ratio": one / all_of_them}


def gap(rounds: int) -> dict[str, Any]:
    """The longest pause of one running answer, the median of the rounds."""
    engine = Engine(tiny(), EngineConfig(rows=ROWS))

    def longest(number: int, images: int) -> float:
        line = Timeline()
        running = engine.add(
            words(engine.model, 40, 7000 + number), Settings(max_new_tokens=400, min_new_tokens=400)
        )
        line.run(engine, lambda: len(line.times.get(running, [])) >= 20)
        if images:
            engine.add(
                words(engine.model, 20, 9000 + number, images), Settings(max_new_tokens=4, min_new_tokens=4)
            )
        line.run(engine)
        times = line.times[running][20:]
        return max(after - before for before, after in pairwise(times))

    longest(0, 16)
    pauses = [(longest(2 * n + 1, 0), longest(2 * n + 2, 16)) for n in range(rounds)]
    quiet, loaded = (float(np.median(each)) for each in zip(*pauses, strict=True))
    return {"unloaded_ms": quiet * 1e3, "loaded_ms": loaded * 1e3, "ratio": loaded / quiet}


def image(rounds: int) -> dict[str, Any]:
    """One image and one question, then the same again."""
    engine = Engine(tiny(), EngineConfig(rows=ROWS))

    def first_token(prompt: Prompt) -> float:
        start = process_time()
        engine.add(prompt, Settings(max_new_tokens=1))
        Timeline().run(engine)
        return process_time() - start

    first_token(words(engine.model, 20, 1, 1))
    seen: dict[int, Prompt] = {}

    def new(number: int) -> float:
        seen[number] = words(engine.model, 20, 100 + number, 1)
        return first_token(seen[number])

    cold, warm = least(4 * rounds, new, lambda number: first_token(seen[number]))
    return {"first_ms": cold * 1e3, "again_ms": warm * 1e3, "ratio": cold / warm}


# === The server ===


class Server:
    """`qwenvl serve tiny` with one thread for its engine."""

    def __init__(self) -> None:
        self.started = monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-m", "qwenvl", "serve", "tiny", "--port", "0", "--rows", str(ROWS)]
        self.process = subprocess.Popen(
            [*command, "--threads", "1", "--quiet"], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.url = next(
            word for line in self.process.stderr for word in line.split() if word.startswith("http")
        )

    def ask(self, text: str, new: int, stream: bool) -> int:
        """The completion tokens of an answer."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": new,
            "temperature": 0,
            "stream": stream,
            "min_tokens": new,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        written = 0
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                found = line.removeprefix(b"data: ").strip()
                if found.startswith(b"{") and (usage := json.loads(found).get("usage")):
                    written = usage["completion_tokens"]
        return int(written)

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ready(self) -> None:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return
            sleep(0.02)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def http(rounds: int) -> dict[str, Any]:
    """16 clients at once, streams, 200 tokens each; as many tokens behind prompts as long through the engine alone."""
    engine, new = Engine(tiny(), EngineConfig(rows=ROWS)), 200
    server = Server()
    server.ready()
    pool = concurrent.futures.ThreadPoolExecutor(ROWS)

    def through_http(number: int) -> float:
        before = server.processor_seconds()
        texts = [f"Tell me about {number} and {place} at length." for place in range(ROWS)]
        written = sum(pool.map(lambda text: server.ask(text, new, True), texts))
        return (server.processor_seconds() - before) / max(written, 1)

    def bare(number: int) -> float:
        asked = [(words(engine.model, 70, 100 * number + place), new) for place in range(ROWS)]
        seconds, written = answer_all(engine, asked)
        return seconds / written

    try:
        through_http(-1)
        served, alone = least(rounds, through_http, bare)
    finally:
        server.close()
    return {"http_tokens_s": 1 / served, "engine_tokens_s": 1 / alone, "share": alone / served}


def start(rounds: int) -> dict[str, Any]:
    """From the command to a whole answer of one token, by the clock."""
    seconds = []
    for _ in range(rounds):
        server = Server()
        server.ready()
        server.ask("What is this?", 1, False)
        seconds.append(monotonic() - server.started)
        server.close()
    return {"seconds": min(seconds)}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "static": static,
    "concurrent": concurrent_requests,
    "gap": gap,
    "image": image,
    "http": http,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs (3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        json.dumps({"torch": torch.__version__, "python": sys.version.split()[0], "rows": ROWS}), flush=True
    )
    for name in args.only:
        figures = {key: round(value, 3) for key, value in PARTS[name](args.rounds).items()}
        print(json.dumps({"part": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
