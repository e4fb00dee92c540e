"""The server over the shipped model and the real engine: what a scripted engine cannot show."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image as pillow
from serving import Running, api_over, serving, shown, text

from qwenvl.chat import Assistant
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import scene
from qwenvl.generate import scheduler
from qwenvl.generate.engine import Engine, EngineConfig
from qwenvl.serve.app import Api, ServeConfig
from qwenvl.serve.auth import Guard
from qwenvl.serve.loading import load
from qwenvl.serve.logs import Log
from qwenvl.serve.start import Start


@pytest.fixture(scope="module")
def real() -> Iterator[Running]:
    assistant = Assistant.load("tiny", device="cpu")  # its own: the engine packs the weights in place
    with serving(api_over(Engine(assistant.model, EngineConfig(rows=4)), assistant)) as running:
        yield running


def photo(number: int) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(render(scene(0, number, "test"), 224)).save(file, "PNG")
    return file.getvalue()


def question(number: int) -> list[Any]:
    return [shown(photo(number)), text("What is this?")]


def content(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content", "") for each in events for choice in each["choices"])


def test_answers_are_those_of_ask_alone_and_among_others(real: Running, assistant: Assistant) -> None:
    """p45, p19: whole, streamed, several and side by side: the same words as `Assistant.ask`."""
    expected = [assistant.ask(photo(number), "What is this?", max_new_tokens=40).text for number in range(6)]
    found: dict[tuple[int, str], str] = {}

    def ask(number: int) -> None:
        found[number, "whole"] = real.chat(question(number), max_tokens=40).text
        found[number, "stream"] = content(real.events(question(number), max_tokens=40))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(240)
    assert found == {(n, way): expected[n] for n in range(6) for way in ("whole", "stream")}
    several = real.chat(question(0), n=3, max_tokens=40).json["choices"]
    assert [each["message"]["content"] for each in several] == [expected[0]] * 3


def test_draws_follow_their_seed(real: Running) -> None:
    """p17: the same seed, the same words, whatever else runs; the choices of n differ."""
    said = {"temperature": 1.5, "max_tokens": 12, "top_p": 1}
    first = real.chat("Tell me something.", seed=7, n=3, **said).json["choices"]
    again = real.chat("Tell me something.", seed=7, n=3, **said).json["choices"]
    texts = [each["message"]["content"] for each in first]
    assert texts == [each["message"]["content"] for each in again] and len(set(texts)) > 1
    assert real.chat("Tell me something.", seed=7, **said).text == texts[0]
    assert real.chat("Tell me something.", seed=8, **said).text != texts[0]


def test_log_probabilities_are_the_model_s(real: Running) -> None:
    """p22: of the likeliest token the first alternative is the token itself, and a bias of -100 bans it."""
    choice = real.chat("Hello", logprobs=True, top_logprobs=3, max_tokens=4).json["choices"][0]
    for token in choice["logprobs"]["content"]:
        best = token["top_logprobs"][0]
        assert (best["token"], best["logprob"]) == (token["token"], token["logprob"]) and token[
            "logprob"
        ] <= 0
        assert len(token["top_logprobs"]) == 3
    first = real.ask("POST", "/tokenize", {"prompt": choice["logprobs"]["content"][0]["token"]}).json[
        "tokens"
    ]
    banned = real.chat("Hello", logit_bias={str(first[0]): -100}, logprobs=True, max_tokens=4)
    assert (
        banned.json["choices"][0]["logprobs"]["content"][0]["token"]
        != choice["logprobs"]["content"][0]["token"]
    )


def test_what_was_read_before_is_not_read_again(real: Running) -> None:
    """p35: the same conversation again comes out of the cache, and usage says so."""
    long = "Please look at this carefully. " * 12
    wanted = [shown(photo(9)), text(long)]
    cold, warm = (real.chat(wanted, max_tokens=4).json["usage"] for _ in range(2))
    assert warm["prompt_tokens"] == cold["prompt_tokens"]
    assert warm["prompt_tokens_details"]["cached_tokens"] > cold["prompt_tokens_details"]["cached_tokens"]
    figures = real.ask("GET", "/metrics").body.decode()
    assert "qwenvl:mm_cache_hits_total" in figures and "qwenvl:kv_cache_usage_perc" in figures


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_the_cache(real: Running, stream: bool) -> None:
    """p47: long before the answers have come to their end."""
    written = real.api.worker.stats.generated_tokens
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Hello"}], "stream": stream, "n": 4, "min_tokens": 2_000,
         "max_tokens": 2_000}
    ).encode()  # fmt: skip
    with socket.create_connection((real.host, real.port)) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        real.until(lambda: real.api.worker.stats.running == 4)
    real.until(lambda: real.api.worker.stats.running == real.api.worker.stats.waiting == 0)
    real.until(lambda: real.api.worker.stats.cache_tokens == 0 and real.api.admission.answers == 0)
    assert real.api.worker.stats.cache_held == 0
    assert real.api.worker.stats.generated_tokens - written < 4 * 2_000


def test_the_log_and_version_tell_how_far_answers_are_those_alone() -> None:
    said = io.StringIO()
    start = Start(checkpoint="tiny", device="cpu", cache_tokens=4096)
    api = Api(
        lambda: load(start),
        ServeConfig(name="tiny"),
        guard=Guard.make(keys=None, loopback=True),
        log=Log(said),
    )
    with serving(api) as running:
        assert running.ask("GET", "/version").json["answers"] == "bit-equal to the request alone"
    (line,) = [each for each in map(json.loads, said.getvalue().splitlines()) if each["event"] == "engine"]
    assert line["answers"] == "bit-equal to the request alone" and line["reason"] is None


def test_who_is_pre_empted_writes_on_as_if_nothing_had_been(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through HTTP: four answers need more of the cache than there is."""
    monkeypatch.setattr(scheduler, "AHEAD", 16)
    config = EngineConfig(rows=4, cache_tokens=256, prefix_tokens=0)
    said = [f"Tell me {number} long tales." for number in range(4)]
    own = Assistant.load("tiny", device="cpu")
    with serving(api_over(Engine(own.model, config), own)) as running, ThreadPoolExecutor(4) as clients:
        long = {"max_tokens": 60, "min_tokens": 60}
        alone = [running.chat(each, **long).text for each in said]
        together = list(clients.map(lambda each: running.chat(each, **long).text, said))
        preempted = running.ask("GET", "/metrics").body.decode()
    assert together == alone and all(alone)
    assert "\nqwenvl:num_preemptions_total 0.0" not in preempted
