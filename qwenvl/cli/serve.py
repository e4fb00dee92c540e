"""`qwenvl serve`: a model behind OpenAI's API, and a page to try it."""

from pathlib import Path
from typing import Annotated

import tyro

from qwenvl.serve.limits import Limits

DEFAULTS = Limits()


def serve(
    checkpoint: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    alias: tuple[str, ...] = (),
    keys: Path | None = None,
    allow_host: tuple[str, ...] = (),
    allow_media_host: tuple[str, ...] = (),
    cors: tuple[str, ...] = (),
    raw_orientation: bool = False,
    strict: bool = False,
    rows: int = 16,
    context: int | None = None,
    cache_tokens: int | None = None,
    prefix_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    drain: float = 30.0,
    quiet: bool = False,
    limits: Annotated[Limits, tyro.conf.arg(name="")] = DEFAULTS,
) -> int:
    """Serve a model: OpenAI's chat and completions API under /v1, a page at /, metrics at /metrics.

    Images come as data URLs; nothing is fetched but from hosts that --allow-media-host names. The log is JSON on
    standard error and holds no prompt. Ctrl-C or SIGTERM lets running answers end.

        qwenvl serve tiny

    Args:
        checkpoint: The model: a folder (ours or official), a hub id, or `tiny`.
        host: Address to listen on; 0.0.0.0 is every network, which wants --keys.
        port: Port to listen on; 0 finds a free one.
        name: What clients call the model; the folder's name otherwise.
        alias: Other names for it.
        keys: File of API keys, one a line; without it whoever reaches the port may ask.
        allow_host: Host names under which this server answers, beside its own.
        allow_media_host: Hosts from which images may be fetched, [http://]HOST[:PORT]; none otherwise.
        cors: Origins of web pages elsewhere that may ask, https://chat.example; * for all needs --keys.
        raw_orientation: Read images as stored, as the official code does, instead of upright as their EXIF asks.
        strict: Refuse unknown keys of requests instead of naming them in the log.
        rows: Answers written together.
        context: Most tokens of prompt and answer together; what the model reads at most otherwise.
        cache_tokens: Tokens of all rows together that the cache holds; what half of the free memory holds otherwise.
        prefix_tokens: Tokens of prompts kept for others that begin alike, 0 for none; a quarter of the cache otherwise,
            one longest row at most.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
        threads: Threads of the engine on a CPU; as many as there are cores otherwise.
        drain: Seconds that running answers have to end after a signal.
        quiet: Log errors only.
        limits: What one request, key and connection may ask for.
    """
    from qwenvl.serve.start import Start

    return Start(
        checkpoint=checkpoint,
        host=host,
        port=port,
        name=name,
        aliases=alias,
        keys=keys,
        names=allow_host,
        media_hosts=allow_media_host,
        origins=cors,
        raw_orientation=raw_orientation,
        strict=strict,
        rows=rows,
        context=context,
        cache_tokens=cache_tokens,
        prefix_tokens=prefix_tokens,
        device=device,
        dtype=dtype,
        threads=threads,
        drain=drain,
        quiet=quiet,
        limits=limits,
    ).run()
