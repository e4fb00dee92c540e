"""`qwenvl serve` as it is typed: the shipped model answers, and what cannot be served is said in a sentence."""

import base64
import dataclasses
import inspect
import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from PIL import Image as pillow

from qwenvl.chat import Assistant
from qwenvl.cli.serve import serve
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import scene
from qwenvl.generate.choosing import TOP_LOGPROBS
from qwenvl.generate.text import STOP_LENGTH, STOP_STRINGS
from qwenvl.serve.limits import MOST, Limits
from qwenvl.serve.metrics import Metrics
from qwenvl.serve.schema import IGNORED

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "SERVING.md").read_text("utf-8")


def test_the_shipped_model_answers_a_stream_with_boxes(assistant: Assistant) -> None:
    """The words and boxes are those of `ask`."""
    image = pillow.fromarray(render(scene(0, 3, "test"), 448))
    file = io.BytesIO()
    image.save(file, "PNG")
    question = "Where is the small green triangle?"
    expected = assistant.ask(image, question, grounded=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "qwenvl", "serve", "tiny", "--port", "0", "--device", "cpu", "--threads", "1"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = next(found[1] for line in process.stderr if (found := re.search(r"(http\S+/v1) \(API\)", line)))
        with openai.OpenAI(base_url=url, api_key="none") as client:
            shown = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            pieces, boxes = [], []
            for chunk in client.chat.completions.create(
                model="tiny",
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": shown}},
                            {"type": "text", "text": question},
                        ],
                    }
                ],
                stream=True,
                extra_body={"qwenvl": {"grounded": True}},
            ):
                delta = chunk.choices[0].delta
                pieces.append(delta.content or "")
                boxes += (delta.model_extra or {}).get("qwenvl", {}).get("boxes", [])
        assert "".join(pieces) == expected.text and sum(map(bool, pieces)) > 1
        (box,) = expected.boxes
        assert boxes[0]["label"] == "the small green triangle"
        assert boxes[0]["pixels"] == pytest.approx(list(box.to_pixels(448, 448)), abs=0.01)
        assert boxes[0]["score"] == pytest.approx(box.score, abs=1e-3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["tiny", "--port", "70000"], "--port is 70000; expected 0 to 65535."),
        (["tiny", "--rows", "0"], "--rows is 0"),
        (["tiny", "--queue", "0"], "queue is 0"),
        (["tiny", "--stops", "17"], "stops is 17; the engine can do 16 at most"),
        (["tiny", "--stop-characters", "257"], "the engine can do 256 at most"),
        (["tiny", "--top-logprobs", "21"], "the engine can do 20 at most"),
        (["tiny", "--keys", "/nonexistent/keys"], "/nonexistent/keys"),
        (["tiny", "--cors", "*"], "CORS for *"),
        (["tiny", "--allow-media-host", "http://a/b"], "is not HOST[:PORT]"),
        (["tiny", "--host", "300.1.1.1"], "300.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_read(
    capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    from qwenvl.cli import main

    assert main(["serve", *args]) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1, errors


def test_limits_of_the_engine_are_the_engine_s() -> None:
    assert {"stops": STOP_STRINGS, "stop_characters": STOP_LENGTH, "top_logprobs": TOP_LOGPROBS} == MOST


def test_a_model_that_is_none_and_a_port_that_is_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from qwenvl.cli import main

    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("qwenvl: error: ") and str(tmp_path) in last
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "tiny", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"qwenvl: error: another program listens at 127.0.0.1:{port}; stop it, or give another --port "
        "(0 finds a free one).\n"
    )


def test_the_guide_names_every_option_and_metric_and_ignored_key() -> None:
    options = {
        *(name for name, p in inspect.signature(serve).parameters.items() if p.kind is p.KEYWORD_ONLY),
        *(field.name for field in dataclasses.fields(Limits)),
    } - {"limits"}
    missing = [name for name in options if f"`--{name.replace('_', '-')}" not in DOCUMENT]
    assert missing == []
    assert [name for name in IGNORED if f"`{name}`" not in DOCUMENT] == []
    metrics = [metric.name.removeprefix("qwenvl:") for metric in Metrics(lambda: None).registry.collect()]
    assert [name for name in metrics if f"`{name}" not in DOCUMENT] == [] and len(metrics) > 12


def test_examples_say_what_the_program_says() -> None:
    deploy = ROOT / "deploy"
    unit = (deploy / "qwenvl.service").read_text()
    pod = (deploy / "kubernetes" / "qwenvl.yaml").read_text()
    named = set(re.findall(r"--[a-z][a-z-]+", unit + pod)) - {"--now", "--from-file"}
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    assert named <= options | {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Limits)}
    assert "path: /ready" in pod and "path: /health" in pod
    compile((deploy / "ray" / "app.py").read_text(), "app.py", "exec")
    assert os.access(deploy / "Dockerfile", os.R_OK)
