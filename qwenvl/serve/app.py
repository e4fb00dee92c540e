"""The server as an ASGI application: who is asked what, and the door that every request passes.

    request -> door: number, guard, errors, log -> route -> answer
                                                     |-> a few threads that wait for images of named hosts
                                                     |-> two threads: JSON, images, ids
                                                     '-> worker: the engine's thread

The application starts the engine when it is started itself (ASGI lifespan), answers /health at once and /ready once
the model is loaded, and refuses with 503 until then, while it drains, and after the engine has failed.
"""

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Router

from qwenvl.parsing import parse_json
from qwenvl.serve.admission import Admission
from qwenvl.serve.answers import Answer
from qwenvl.serve.auth import Guard, Refused
from qwenvl.serve.bodies import Bodies, ClientGone, Receive, Send
from qwenvl.serve.errors import ApiError, busy, failed, invalid
from qwenvl.serve.exchange import Exchange, send_error
from qwenvl.serve.fields import culprit
from qwenvl.serve.limits import Limits
from qwenvl.serve.logs import Log
from qwenvl.serve.media import Fetched, Fetches, remote_url
from qwenvl.serve.metrics import Metrics
from qwenvl.serve.routes import QUIET, methods_of, of_router, routes
from qwenvl.serve.worker import Job, Steps, Worker
from qwenvl.terminal import printable

if TYPE_CHECKING:  # torch comes with it, and is loaded by the thread that loads the model
    from qwenvl.serve.requests import Preparer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What the server is listed when it starts, beside its model, its guard and its limits."""

    name: str
    """What the model is called."""
    aliases: tuple[str, ...] = ()
    """Other names under which it is asked."""
    rows: int = 16
    """Answers written together."""
    strict: bool = False
    """Refuse keys of requests that are unknown, instead of naming them in the log."""
    guarded: bool = False
    """Whether there are API keys."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What `Api` serves."""

    engine: Steps
    preparer: "Preparer"
    answers: str | None = None
    """How far answers are those of the same requests alone (`generate.promise`); None: nobody tried."""
    because: str | None = None
    """Why not bit by bit."""
    slow: Sequence[str] = ()
    """What makes them slow on this machine, and what helps."""


class Api:
    """The application. `load` reads the model; it is called in the thread that will own the engine."""

    def __init__(
        self,
        load: Callable[[], Loaded],
        config: ServeConfig,
        *,
        guard: Guard,
        limits: Limits | None = None,
        log: Log | None = None,
        fetcher: Fetches | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.guard = config, guard
        self.limits, self.log = limits or Limits(), log or Log()
        self._load = load
        self._preparer: Preparer | None = None
        self.answers: str | None = None
        """As in `Loaded`, once the model is loaded."""
        self.worker = Worker(
            self._loaded, on_ready=on_ready, on_failure=lambda error: self.log_failure(None, error)
        )
        self.metrics = Metrics(lambda: self.worker.stats)
        self.bodies = Bodies(self.limits)
        self.admission = Admission(self.limits, rows=config.rows, per_key=config.guarded)
        self.metrics.unfinished.set_function(lambda: self.admission.answers)
        self.draining = False
        self.created = int(time.time())
        self._pool = ThreadPoolExecutor(2, "prepare")
        self._fetcher = fetcher
        self._fetching = ThreadPoolExecutor(self.limits.fetches, "fetch")  # its threads start when it is used
        self._router = Router(routes(self), redirect_slashes=False)

    # === ASGI ===

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._door(scope, receive, send)
        elif (await receive())["type"] == "websocket.connect":
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            if message["type"] == "lifespan.startup":
                self.worker.start()
                await send({"type": "lifespan.startup.complete"})
        await asyncio.to_thread(self.worker.stop)
        for pool in (self._pool, self._fetching):
            pool.shutdown(wait=False, cancel_futures=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _door(self, scope: Any, receive: Receive, send: Send) -> None:
        exchange = Exchange.begin(scope)
        scope["app"] = self  # so that the router raises instead of answering in text
        error: ApiError | None = None
        try:
            answer = self._admit(exchange, scope)
            sending = exchange.sender(send)
            if answer is not None:
                await answer(scope, receive, sending)
            else:
                await self._router(scope, receive, sending)
        except ApiError as raised:
            error = raised
        except HTTPException as raised:
            error = of_router(raised, exchange)
        except ClientGone:
            self._gone(exchange)
            if scope.get("extensions", {}).get("qwenvl.connection", {}).get("slow"):
                exchange.say(slow=True)
        except Exception as raised:
            self.log_failure(exchange, raised)
            error = failed()
        if error is not None:
            await self._refuse(exchange, error, receive, send)
        self._log(exchange)

    def _admit(self, exchange: Exchange, scope: Any) -> Response | None:
        """The answer, where the guard has it already."""
        preflight = self.guard.preflight(scope["headers"]) if exchange.method == "OPTIONS" else None
        if preflight is not None:
            return Response(status_code=204, headers=preflight)
        try:
            exchange.admitted = self.guard.admit(exchange.method, exchange.path, scope["headers"])
        except Refused as refused:
            headers = {**refused.headers, "Connection": "close"}
            raise ApiError(refused.status, refused.message, code=refused.code, headers=headers) from None
        if exchange.method == "OPTIONS" and (allowed := self._methods(scope)):
            return Response(status_code=204, headers={"Allow": allowed})
        return None

    def _methods(self, scope: Any) -> str:
        found = {method for route in self._router.routes for method in methods_of(route, scope)}
        return ", ".join(sorted({*found, "OPTIONS"})) if found else ""

    async def _refuse(self, exchange: Exchange, error: ApiError, receive: Receive, send: Send) -> None:
        exchange.say(code=error.code, param=error.param)  # the sentence may quote what the client sent
        if exchange.status is not None:
            return  # an answer has begun; it breaks off
        self.metrics.refused.labels(str(error.status)).inc()
        await send_error(exchange.sender(send), receive, error)

    def _gone(self, exchange: Exchange) -> None:
        if not exchange.complete:
            self.metrics.gone.inc()
            exchange.say(client_gone=True)

    def _log(self, exchange: Exchange) -> None:
        if exchange.path in QUIET and exchange.said.get("code") in (None, "loading", "draining"):
            return
        self.log.info(
            "request",
            id=exchange.id,
            method=exchange.method,
            path=exchange.path[:200],
            status=exchange.status,
            client=exchange.client,
            seconds=round(time.monotonic() - exchange.started, 4),
            **exchange.said,
        )

    def log_failure(self, exchange: Exchange | None, error: BaseException) -> None:
        """Our mistake, in a request or else in the engine. What the exception says may quote a prompt: only where it
        happened is written."""
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        where = [
            f"{frame.filename.rpartition('/qwenvl/')[2]}:{frame.lineno} {frame.name}" for frame in frames
        ]
        number = "engine" if exchange is None else exchange.id
        self.log.error("failure", id=number, kind=type(error).__name__, where=where)

    # === What endpoints use ===

    @property
    def preparer(self) -> "Preparer":
        """There once the model is loaded."""
        assert self._preparer is not None
        return self._preparer

    def require_running(self) -> None:
        """Raises ApiError 503 while the model is loaded, while the server drains, and after the engine has failed."""
        if not self.worker.alive:
            raise busy(
                "The engine has failed; this server restarts.", seconds=10, status=503, code="engine_failed"
            )
        if self.draining:
            raise busy("This server is shutting down; ask another.", seconds=10, status=503, code="draining")
        if not self.worker.ready:
            raise busy("The model is still being loaded; try again.", seconds=2, status=503, code="loading")

    def require_open(self) -> None:
        """Raises ApiError unless a request may begin now; 429 where all places are taken."""
        self.require_running()
        self.admission.require_place()

    def require_model(self, name: str | None) -> None:
        """Raises ApiError 404 for a model that is not here."""
        if name is not None and name not in (self.config.name, *self.config.aliases):
            raise ApiError(
                404,
                f"There is no model {name[:100]!r} here; ask for {self.config.name!r}.",
                param="model",
                code="model_not_found",
            )

    def parse(self, body: bytes) -> Any:
        """The JSON of a body. Raises ApiError 400."""
        if not body:
            raise invalid("The body is empty; send a JSON object.")
        try:
            return parse_json(body, "The body", limit=self.limits.body_bytes, values=self.limits.values)
        except ValueError as error:
            where = culprit(body)
            raise invalid(
                str(error).replace("The body", printable(where or "The body")[:100], 1), where
            ) from None

    async def in_pool(self, function: Callable[..., T], *args: Any) -> T:
        """What takes its time, in a thread of the pool, so that the event loop does not."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args))

    async def fetched(self, sources: Sequence[object]) -> Fetched | None:
        """The images of one request that are URLs; None where nothing is fetched. One thread at most waits for them.

        Raises ApiError 429 where none was free for as long as a fetch may take.
        """
        urls = [url for url in map(remote_url, sources) if url is not None]
        fetcher, asked = self._fetcher, time.monotonic()
        if fetcher is None or not urls:
            return None

        def fetch() -> Fetched:
            if time.monotonic() - asked > self.limits.fetch_seconds:
                raise busy("Too many images are being fetched; try again later.", seconds=10)
            return Fetched(urls, fetcher)

        return await asyncio.get_running_loop().run_in_executor(self._fetching, fetch)

    def measure(self, exchange: Exchange, job: Job, answers: Sequence[Answer], prompt_tokens: int) -> None:
        """Count what was done for a request, in metrics and log."""
        now, metrics = time.monotonic(), self.metrics
        written = sum(len(answer.tokens) for answer in answers)
        reasons = [answer.finish_reason for answer in answers]
        exchange.say(completion_tokens=written, finish=",".join(reason or "none" for reason in reasons))
        metrics.generation_tokens.inc(written)
        if job.placed is not None:
            metrics.queue.observe(job.placed - job.submitted)
            exchange.say(queued=round(job.placed - job.submitted, 4))
        if job.first_token is not None:
            metrics.prompt_tokens.inc(prompt_tokens)
            metrics.first_token.observe(job.first_token - exchange.started)
            metrics.prefill.observe(job.first_token - (job.placed or job.submitted))
            exchange.say(first_token=round(job.first_token - exchange.started, 4))
        if None in reasons:
            return
        metrics.whole.observe(now - exchange.started)
        metrics.prompt_length.observe(prompt_tokens)
        longest = max(len(answer.tokens) for answer in answers)
        metrics.longest.observe(longest)
        metrics.inference.observe(now - (job.placed or job.submitted))
        if job.first_token is not None:
            metrics.decode.observe(now - job.first_token)
            if longest > 1:
                metrics.between.observe((now - job.first_token) / (longest - 1))
        for answer in answers:
            metrics.answer_length.observe(len(answer.tokens))
            metrics.success.labels(answer.finish_reason).inc()

    def drain(self) -> None:
        """Take nothing new; what runs goes on."""
        self.draining = True
        self.metrics.draining.set(1)

    def _loaded(self) -> Steps:
        loaded = self._load()
        self._preparer, self.answers = loaded.preparer, loaded.answers
        if loaded.answers is not None:
            self.log.info("engine", answers=loaded.answers, reason=loaded.because)
        for each in loaded.slow:
            self.log.info("slow", reason=each)
        return loaded.engine
