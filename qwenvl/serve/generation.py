"""POST /v1/chat/completions and /v1/completions: one endpoint, which writes an answer whole or as events.

The work races the client's connection, also where nothing is streamed: when the client goes, the rows in the engine go
within a quantum. Errors before the first byte have their own status; later ones are an event of the stream.
"""

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenvl.serve.answers import Answer
from qwenvl.serve.bodies import Receive, Send, read_body, unless_gone
from qwenvl.serve.errors import ApiError, busy, failed
from qwenvl.serve.exchange import Exchange, send_whole
from qwenvl.serve.forms import Form, Writing
from qwenvl.serve.schema import Wanted
from qwenvl.serve.sse import DONE, HEADERS, KEEP_ALIVE, READING, Chunks, encode, event, queued
from qwenvl.serve.worker import Job

if TYPE_CHECKING:
    from qwenvl.serve.app import Api
    from qwenvl.serve.requests import Prepared

SILENCE = 15.0
"""Seconds without an event after which a comment is sent."""

WAITING = 0.5
"""Seconds between two looks at what keeps a stream from its first token; who waits longer is told in comments."""

AT_ONCE = 64
"""Tokens of a request that are made text before others have their turn."""


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """One request on its way."""

    exchange: Exchange
    wanted: Wanted
    prepared: "Prepared"
    job: Job
    answers: list[Answer]
    head: dict[str, Any]
    writing: Writing


class Generation:
    """The endpoint, for one of the two forms."""

    def __init__(self, api: "Api", form: Form) -> None:
        self.api, self.form = api, form

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        api, exchange = self.api, Exchange.of(scope)
        api.require_open()
        with api.bodies.place() as grow:
            wanted = await api.in_pool(
                self._read, await read_body(receive, scope["headers"], api.limits, grow)
            )
            api.require_model(wanted.model)
            exchange.say(stream=wanted.stream, n=wanted.n)
            if wanted.unknown:
                exchange.say(unknown_keys=[name[:60] for name in wanted.unknown])
            with api.admission.admit(exchange.client, wanted):
                await unless_gone(receive, self._answer(exchange, wanted, send))

    def _read(self, body: bytes) -> Any:
        return self.form.read(self.api.parse(body), self.api.limits, strict=self.api.config.strict)

    async def _answer(self, exchange: Exchange, wanted: Wanted, send: Send) -> None:
        api = self.api
        with api.metrics.prepare.time():
            fetched = await api.fetched(self.form.sources(wanted))
            prepared = await api.in_pool(self.form.prepare, api.preparer, wanted, exchange.salt, fetched)
        exchange.say(prompt_tokens=prepared.prompt_tokens, images=len(prepared.sizes))
        job = Job(rows=prepared.rows, salt=exchange.salt, whole=not wanted.stream)
        tokenizer = api.preparer.tokenizer
        ask = _Ask(
            exchange=exchange,
            wanted=wanted,
            prepared=prepared,
            job=job,
            answers=[
                Answer(tokenizer, ends=prepared.ends, stop=prepared.stop, strip=self.form.strip)
                for _ in prepared.rows
            ],
            head={
                "id": f"{self.form.prefix}-{secrets.token_hex(12)}",
                "object": self.form.chunk if wanted.stream else self.form.object,
                "created": int(time.time()),
                "model": api.config.name,
                "system_fingerprint": api.preparer.fingerprint,
            },
            writing=Writing(tokenizer=tokenizer, prepared=prepared, top_logprobs=wanted.top_logprobs),
        )
        api.worker.submit(job)
        try:
            await (self._stream if wanted.stream else self._whole)(ask, send)
        finally:
            api.worker.cancel(job)
            api.measure(ask.exchange, job, ask.answers, prepared.prompt_tokens)

    async def _whole(self, ask: _Ask, send: Send) -> None:
        while any(answer.finish_reason is None for answer in ask.answers):
            _, error = self._feed(ask, await ask.job.take(self._patience(ask.job), AT_ONCE))
            if error is not None:
                raise error
        large = (
            ask.wanted.top_logprobs is not None
        )  # log-probabilities of a long answer are megabytes of JSON
        body = await self.api.in_pool(self._encoded, ask) if large else self._encoded(ask)
        await send_whole(send, body, [("content-type", "application/json")])

    def _encoded(self, ask: _Ask) -> bytes:
        choices = [self.form.choice(i, answer, ask.writing) for i, answer in enumerate(ask.answers)]
        return encode({**ask.head, "choices": choices, "usage": usage(ask.answers, ask.prepared)})

    async def _stream(self, ask: _Ask, send: Send) -> None:
        await ask.job.accepted(SILENCE)
        chunks = Chunks(ask.head, include_usage=ask.wanted.include_usage)
        headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await _event(send, self.form.begin(chunks, ask.prepared))
            await self._events(ask, chunks, send)
            last = chunks.usage(usage(ask.answers, ask.prepared)) if ask.wanted.include_usage else b""
        except ApiError as error:
            ask.exchange.say(code=error.code)
            last = event(error.body())
        except Exception as error:
            self.api.log_failure(ask.exchange, error)
            last = event(failed().body())
        await send({"type": "http.response.body", "body": last + DONE, "more_body": False})

    async def _events(self, ask: _Ask, chunks: Chunks, send: Send) -> None:
        said, last, job = time.monotonic(), b"", ask.job
        while any(answer.finish_reason is None for answer in ask.answers):
            pause = WAITING if job.first_token is None else SILENCE
            written = await job.take(min(self._patience(job), pause, SILENCE), AT_ONCE)
            fed, error = self._feed(ask, written)
            out = bytearray()
            for index in fed:
                answer = ask.answers[index]
                out += self.form.piece(chunks, index, answer, ask.writing)
                if answer.finish_reason is not None:
                    out += self.form.end(chunks, index, answer, ask.writing)
            if not out and (phase := _phase(job)) != last:
                out += phase
                last = phase
            elif not out and time.monotonic() - said >= SILENCE:
                out += KEEP_ALIVE
            if out:
                await _event(send, bytes(out))
                said = time.monotonic()
            if error is not None:
                raise error

    def _feed(self, ask: _Ask, written: list[tuple[int, Any]]) -> tuple[list[int], ApiError | None]:
        """Tokens to their answers, up to one that says that its row has failed: who was fed, the error to end with."""
        tokens: dict[int, list[Any]] = {}
        error = None
        for index, token in written:
            if token.end == "error":
                error = ApiError(500, token.error or "This answer has failed.", code="row_failed")
                break
            tokens.setdefault(index, []).append(token)
        for index, some in tokens.items():
            ask.answers[index].feed(some)
        return list(tokens), error

    def _patience(self, job: Job) -> float:
        """Seconds that a job may still be waited for. Raises ApiError where there are none."""
        limits, age = self.api.limits, time.monotonic() - job.submitted
        left = limits.request_seconds - age
        if left <= 0:
            raise ApiError(
                504,
                f"The answer was not complete after {limits.request_seconds:g} seconds, the limit here.",
                code="timeout",
            )
        if job.first_token is None:
            left = min(left, limits.queue_seconds - age)
            if left <= 0:
                raise busy(
                    f"No place was free for {limits.queue_seconds:g} seconds; try again later.",
                    seconds=self.api.admission.wait(),
                    status=503,
                    code="overloaded",
                )
        return left


def _phase(job: Job) -> bytes:
    """What a job waits for, as a comment; nothing where it is written already, or not known yet."""
    if job.first_token is not None:
        return b""
    if job.ahead is not None:
        return queued(job.ahead + 1)
    return READING if job.placed is not None else b""


async def _event(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def usage(answers: list[Answer], prepared: "Prepared") -> dict[str, Any]:
    """Tokens of the prompt (each image is its visual tokens and the two symbols around them) and of all answers."""
    written = sum(len(answer.tokens) for answer in answers)
    return {
        "prompt_tokens": prepared.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prepared.prompt_tokens + written,
        "prompt_tokens_details": {
            "cached_tokens": min(max(answer.cached for answer in answers), prepared.prompt_tokens),
            "image_tokens": prepared.image_tokens,
        },
    }
