"""The clients that people ask OpenAI's API with, against `qwenvl serve tiny`: each must get the right answer.

    python benchmarks/clients.py [--only openai langchain llama-index lmms-eval] [--place runs/clients] [--write]

Makes an environment per client beside this one, starts a server, and asks it about one drawn photo in every way that a
client has: whole, streamed, asynchronous, many at once. The right answer is the one that a request by hand gets.
`--write` puts the table with the versions into docs/SERVING.md. Exit status 1 if an answer differs. lmms-eval is
installed without its requirements, most of which this does not need.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUESTION = "Where is the small green triangle?"
NEEDED = {
    "openai": ["openai"],
    "langchain": ["langchain-openai"],
    "llama-index": ["llama-index-llms-openai"],
    "lmms-eval": ["openai<3", "loguru", "python-dotenv", "pytz", "evaluate", "accelerate"],
}
"""Client -> what is installed for it."""

BARE = {"lmms-eval": ["lmms-eval"]}
"""What is installed without its requirements."""

Ask = Callable[[str, bytes], dict[str, str]]
"""Address of the server and a photo to: way of asking -> answer."""


def data_url(photo: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(photo).decode()


def messages(photo: bytes) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(photo)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


# === In the client's environment ===


def ask_openai(url: str, photo: bytes) -> dict[str, str]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")
    wanted: dict[str, Any] = {"model": "tiny", "messages": messages(photo)}
    whole = client.chat.completions.create(**wanted)
    stream = client.chat.completions.create(**wanted, stream=True)
    with client.chat.completions.stream(**wanted) as helper:
        helped = helper.get_final_completion()
    parsed = client.chat.completions.parse(**wanted)

    async def asynchronous() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as many:
            answers = await asyncio.gather(*(many.chat.completions.create(**wanted) for _ in range(8)))
        return [answer.choices[0].message.content or "" for answer in answers]

    return {
        "whole": whole.choices[0].message.content or "",
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
        "stream helper": helped.choices[0].message.content or "",
        "parse": parsed.choices[0].message.content or "",
        **{f"asynchronous {n}": text for n, text in enumerate(asyncio.run(asynchronous()))},
    }


def ask_langchain(url: str, photo: bytes) -> dict[str, str]:
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="tiny", base_url=url, api_key="none", temperature=0, max_tokens=64)  # type: ignore
    question = [HumanMessage(content=messages(photo)[0]["content"])]
    data = {"type": "image", "source_type": "base64", "mime_type": "image/jpeg", "data": data_url(photo)[23:]}
    block = [HumanMessage(content=[data, {"type": "text", "text": QUESTION}])]
    found = model.bind(logprobs=True).invoke(question)
    assert found.response_metadata["logprobs"]["content"] and found.usage_metadata["output_tokens"] > 5
    return {
        "invoke": found.text,
        "content block": model.invoke(block).text,
        "stream": "".join(chunk.text for chunk in model.stream(question, stream_usage=True)),
        "asynchronous": asyncio.run(model.ainvoke(question)).text,
        **{f"batch {n}": each.text for n, each in enumerate(model.batch([question] * 8))},
    }


def ask_llama_index(url: str, photo: bytes) -> dict[str, str]:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.openai import OpenAI
    from llama_index.llms.openai.utils import ALL_AVAILABLE_MODELS, CHAT_MODELS

    for known in (ALL_AVAILABLE_MODELS, CHAT_MODELS):
        known["tiny"] = 32_768  # it knows the windows of OpenAI's models only
    model = OpenAI(model="tiny", api_base=url, api_key="none", temperature=0, max_tokens=64)
    question = [ChatMessage(role="user", blocks=[ImageBlock(image=photo), TextBlock(text=QUESTION)])]
    return {
        "chat": model.chat(question).message.content or "",
        "stream": "".join(chunk.delta or "" for chunk in model.stream_chat(question)),
        "asynchronous": asyncio.run(model.achat(question)).message.content or "",
    }


def ask_lmms_eval(url: str, photo: bytes) -> dict[str, str]:
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.openai import OpenAICompatible
    from PIL import Image

    model = OpenAICompatible(model="tiny", base_url=url, api_key="none", timeout=600)
    model.task_dict["drawn"] = {"test": [Image.open(io.BytesIO(photo))] * 16}
    wanted = (QUESTION, {"max_new_tokens": 64, "temperature": 0}, lambda image: [image])
    requests = [
        Instance(
            "generate_until", (*wanted, n, "drawn", "test"), n, {"task": "drawn", "doc_id": n, "repeats": 1}
        )  # type: ignore[arg-type]
        for n in range(16)
    ]
    return {f"request {n}": found.text for n, found in enumerate(model.generate_until(requests))}


CLIENTS: dict[str, tuple[str, Ask]] = {
    "openai": ("openai", ask_openai),
    "langchain": ("langchain-openai", ask_langchain),
    "llama-index": ("llama-index-llms-openai", ask_llama_index),
    "lmms-eval": ("lmms-eval", ask_lmms_eval),
}
"""Client -> its package, how it is asked."""


# === Here ===


@contextmanager
def server() -> Iterator[str]:
    """`qwenvl serve tiny` on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qwenvl", "serve", "tiny", "--port", "0", "--quiet"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = next(line.split(" at ")[1].split()[0] for line in process.stderr if " at http" in line)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


def photo() -> bytes:
    """A scene of the toy world, as a photo."""
    from PIL import Image

    from qwenvl.data.toy.paint import render
    from qwenvl.data.toy.worlds import scene

    file = io.BytesIO()
    Image.fromarray(render(scene(0, 3, "test"), 448)).save(file, "JPEG", quality=95)
    return file.getvalue()


def expected(url: str, image: bytes, *, text_first: bool = False) -> str:
    """What the server says when it is asked by hand."""
    asked = messages(image)
    if text_first:
        asked[0]["content"].reverse()
    body = json.dumps({"messages": asked, "max_tokens": 64}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def tried(name: str, place: Path, url: str, image: bytes) -> tuple[str, str, str]:
    """Client and version, ways of asking, result."""
    from compat import environment

    python = environment(place / name, NEEDED[name])
    if name in BARE:
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, *BARE[name]], check=True)
    child = subprocess.run(
        [python, __file__, "--child", name, url], input=base64.b64encode(image), capture_output=True, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if child.returncode:
        print(child.stderr.decode()[-3000:], file=sys.stderr)
        return name, "", "failed"
    said = json.loads(child.stdout.splitlines()[-1])
    right = expected(url, image, text_first=name == "lmms-eval")
    wrong = {way: text for way, text in said["answers"].items() if text != right}
    ways = ", ".join(dict.fromkeys(way.rstrip("0123456789 ") for way in said["answers"]))
    result = (
        f"{len(said['answers'])} of {len(said['answers'])} answers equal" if not wrong else f"wrong: {wrong}"
    )
    return f"{said['package']} {said['version']}", ways, result


def main() -> int:
    """Ask, print the table, write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--place", type=Path, default=ROOT / "runs" / "clients")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        package, ask = CLIENTS[args.child[0]]
        answers = ask(args.child[1], base64.b64decode(sys.stdin.buffer.read()))
        print(json.dumps({"package": package, "version": version(package), "answers": answers}))
        return 0
    from tables import put, table  # beside this file; not in the client's environment

    image = photo()
    with server() as url:
        started = time.monotonic()
        rows = [tried(name, args.place.absolute(), url, image) for name in args.only]
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    found = table(("client", "asked", "result"), rows)
    print(found)
    if args.write:
        put(found, ROOT / "docs" / "SERVING.md", "benchmarks/clients.py")
    return int(any("equal" not in result for *_, result in rows))


if __name__ == "__main__":
    sys.exit(main())
