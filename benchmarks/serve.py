"""The engine under many requests, and the server around it.

    python benchmarks/serve.py                        all of it, some minutes
    python benchmarks/serve.py --only gap image       parts of it
    python benchmarks/serve.py --only peer --transformers /work/venvs/tfserve/bin/python

One thread; processor time (of the server: its process's, all threads). Whatever is compared runs in turn in one run,
and the least of the rounds counts, except gaps, of which the largest counts. One JSON object per line.

    static      answers of mixed lengths in batches of 16 that end together, against rows that come and go   >= 2
    concurrent  16 requests one after another, against together; bfloat16, 12 layers x 1024                 >= 4
    gap         longest wait between two tokens while a request with 16 images is read, against none        <= 3
    image       from the bytes of a request to its first token: about an image seen for the first time, against
                again, with the same question and with another one; a drawing in PNG, 448 x 448, and a
                JPEG of 1280 x 960                                                                          >= 4
    http        tokens per second of the bare engine, against through HTTP, as a share; streams and whole   >= 0.9
    peer        8 clients ask about an image each: tokens per second, against `transformers serve`          >= 3
    start       seconds from starting the server to the first answer                                        <= 3

`peer` needs the Python of an environment with transformers[serving]; the model is the same folder, which
`qwenvl.integrations.transformers` makes known there. Answers are whole: its streams need a tokenizer in Rust.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import io
import json
import os
import socket
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
from PIL import Image

from qwenvl.chat import Assistant
from qwenvl.checkpoint.folder import load, resolve
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import scene
from qwenvl.generate.engine import Engine, EngineConfig, Settings
from qwenvl.generate.prompts import Prompt
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import parse_json
from qwenvl.runtime import Runtime
from qwenvl.serve.forms import Chat
from qwenvl.serve.limits import Limits
from qwenvl.serve.requests import Preparer
from qwenvl.tokenizer import Tokenizer

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
    """From the bytes of a request to its first token: an image and a question, the same again, another question."""
    assistant = Assistant(tiny(), Tokenizer.load(resolve("tiny")))
    engine, form = Engine(assistant.model, EngineConfig(rows=ROWS)), Chat()
    preparer = Preparer(assistant=assistant, limits=Limits())

    def first_token(seed: int, question: str, **how: Any) -> tuple[float, float]:
        """Processor seconds: before the engine, and altogether."""
        content = [*about(seed, **how)[:1], {"type": "text", "text": question}]
        message = {"role": "user", "content": content}
        body = json.dumps({"messages": [message], "max_tokens": 1}).encode()
        start = process_time()
        wanted = form.read(parse_json(body, "The body"), preparer.limits, strict=False)
        (row,) = form.prepare(preparer, wanted, b"", None).rows
        prepared = process_time() - start
        engine.add(row.prompt, row.settings)
        Timeline().run(engine)
        return prepared, process_time() - start

    def figures(name: str, base: int, **how: Any) -> dict[str, float]:
        asked = ("Where is the small green triangle?", "What is shown here?", "How many circles are there?")
        first_token(base, asked[1], **how)
        times: list[list[tuple[float, float]]] = [[], [], []]
        for seed in range(base + 1, base + 1 + 8 * rounds):
            for place, question in enumerate((asked[0], asked[0], asked[2])):
                times[place].append(first_token(seed, question, **how))
        found = {}
        for kind, some in zip(("first", "again", "another_question"), times, strict=True):
            prepare, whole = (min(each) * 1e3 for each in zip(*some, strict=True))
            found |= {f"{name}_{kind}_ms": whole, f"{name}_{kind}_before_the_engine_ms": prepare}
        first = found[f"{name}_first_ms"]
        return {
            **found,
            f"{name}_ratio": first / found[f"{name}_again_ms"],
            f"{name}_ratio_another_question": first / found[f"{name}_another_question_ms"],
        }

    photo = figures("photo", 5000, size=(1280, 960), form="JPEG")
    return {**figures("drawing", 1000), **photo}


# === The server ===


class Server:
    """A server of the shipped model with one thread for the model; `command` is listed its port."""

    def __init__(self, command: Callable[[int], list[str]], model: str = "tiny") -> None:
        self.started, self.model = monotonic(), model
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            command(port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
        )

    def ask(self, content: Any, new: int, stream: bool = False) -> int:
        """The completion tokens of an answer: `new`, whichever server it is."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": new,
            "temperature": 0,
            "stream": stream,
        }
        if self.model == "tiny":
            body["min_tokens"] = new
        else:
            body["generation_config"] = json.dumps({"min_new_tokens": new, "max_new_tokens": new})
        if stream:
            body["stream_options"] = {"include_usage": True}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        written = 0
        with urllib.request.urlopen(request, timeout=300) as response:
            for line in response:
                found = line.removeprefix(b"data: ").strip()
                if found.startswith(b"{") and (usage := json.loads(found).get("usage")):
                    written = usage["completion_tokens"]
        assert written == new, (self.model, written)
        return int(written)

    def seconds_a_token(self, contents: list[Any], new: int, stream: bool = False) -> float:
        """Processor seconds of the whole process for a token, one client for each content, all at once."""
        before = self.processor_seconds()
        with concurrent.futures.ThreadPoolExecutor(len(contents)) as clients:
            written = sum(clients.map(lambda content: self.ask(content, new, stream), contents))
        return (self.processor_seconds() - before) / written

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ready(self) -> "Server":
        path = "ready" if self.model == "tiny" else "health"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/{path}", timeout=5):
                return self
            if self.process.poll() is not None:
                raise SystemExit(f"the server of {self.model} ended with {self.process.returncode}")
            sleep(0.02)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def ours() -> Server:
    """`qwenvl serve tiny`."""
    command = [sys.executable, "-m", "qwenvl", "serve", "tiny", "--rows", str(ROWS), "--threads", "1"]
    return Server(lambda port: [*command, "--quiet", "--port", str(port)])


def http(rounds: int) -> dict[str, Any]:
    """16 clients at once, 200 tokens each; as many tokens behind prompts as long through the engine alone."""
    engine, new = Engine(tiny(), EngineConfig(rows=ROWS)), 200
    server = ours().ready()

    def through_http(number: int, stream: bool) -> float:
        kind = "stream" if stream else "whole"
        texts = [f"Tell me about {kind} {number} and {place} at length." for place in range(ROWS)]
        return server.seconds_a_token(texts, new, stream)

    def bare(number: int) -> float:
        asked = [(words(engine.model, 70, 100 * number + place), new) for place in range(ROWS)]
        seconds, written = answer_all(engine, asked)
        return seconds / written

    try:
        through_http(-1, True)
        streamed, whole, alone = least(
            rounds,
            lambda number: through_http(number, True),
            lambda number: through_http(number, False),
            bare,
        )
    finally:
        server.close()
    return {
        "stream_tokens_s": 1 / streamed,
        "whole_tokens_s": 1 / whole,
        "engine_tokens_s": 1 / alone,
        "stream_share": alone / streamed,
        "whole_share": alone / whole,
    }


def peer(rounds: int, python: str) -> dict[str, Any]:
    """8 clients at once, whole answers of 64 tokens, each about an image that nobody has seen."""
    folder = str(resolve("tiny"))
    module = "qwenvl.integrations.transformers"
    command = [python, "-m", module, "serve", folder, "--device", "cpu", "--port"]
    servers = [ours().ready(), Server(lambda port: [*command, str(port)], folder).ready()]

    def questions(number: int) -> list[Any]:
        return [about(1000 * number + place) for place in range(8)]

    try:
        for server in servers:
            server.seconds_a_token(questions(0), 4)
        mine, theirs = least(
            rounds,
            lambda number: servers[0].seconds_a_token(questions(number + 1), 64),
            lambda number: servers[1].seconds_a_token(questions(number + 1), 64),
        )
    finally:
        for server in servers:
            server.close()
    return {"qwenvl_tokens_s": 1 / mine, "transformers_tokens_s": 1 / theirs, "ratio": theirs / mine}


def about(seed: int, size: tuple[int, int] = (448, 448), form: str = "PNG") -> list[Any]:
    """A question about a scene of the toy world."""
    file = io.BytesIO()
    Image.fromarray(render(scene(seed, 3, "test"), 448)).resize(size).save(file, form)
    url = f"data:image/{form.lower()};base64," + base64.b64encode(file.getvalue()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    return [image, {"type": "text", "text": "Where is the small green triangle?"}]


def start(rounds: int) -> dict[str, Any]:
    """From the command to a whole answer of one token, by the clock."""
    seconds = []
    for _ in range(rounds):
        server = ours().ready()
        server.ask("What is this?", 1)
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
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "peer"], help="parts (all)")
    parser.add_argument("--transformers", help="the Python of an environment with transformers[serving]")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs (3)")
    args = parser.parse_args()
    if "peer" in (args.only or ()) and not args.transformers:
        parser.error("peer needs --transformers PYTHON, where transformers[serving] is installed.")
    torch.set_num_threads(1)
    print(
        json.dumps({"torch": torch.__version__, "python": sys.version.split()[0], "rows": ROWS}), flush=True
    )
    parts = PARTS
    if args.transformers:
        parts = {**PARTS, "peer": lambda rounds: peer(rounds, args.transformers)}
    for name in args.only or parts:
        figures = {key: round(value, 3) for key, value in parts[name](args.rounds).items()}
        print(json.dumps({"part": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
