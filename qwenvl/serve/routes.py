"""Which path is answered by what."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qwenvl import __version__
from qwenvl.serve.bodies import read_body
from qwenvl.serve.errors import ApiError, invalid
from qwenvl.serve.exchange import Exchange
from qwenvl.serve.forms import Chat, Plain
from qwenvl.serve.generation import Generation
from qwenvl.serve.metrics import CONTENT_TYPE
from qwenvl.serve.page import page
from qwenvl.serve.schema import TokenizeRequest, read_tokenize
from qwenvl.serve.sse import encode
from qwenvl.terminal import printable

if TYPE_CHECKING:
    from qwenvl.serve.app import Api

PATHS = ("/", "/health", "/ready", "/metrics", "/version", "/tokenize")
"""Beside those under /v1."""

QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Paths that machines ask every few seconds: they are logged when something is wrong."""

API_PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions")


def routes(api: "Api") -> list[Route]:
    """All of them."""

    def get(path: str, endpoint: Callable[[Request], Any]) -> Route:
        async def answer(request: Request) -> Response:
            return endpoint(request)

        return Route(path, answer, methods=["GET"])

    return [
        get("/", lambda request: page()),
        get("/health", lambda request: _health(api)),
        get("/ready", lambda request: _ready(api)),
        get("/metrics", lambda request: Response(api.metrics.render(), media_type=CONTENT_TYPE)),
        get("/version", lambda request: JSONResponse({"version": __version__, "answers": api.answers})),
        get("/v1/models", lambda request: JSONResponse({"object": "list", "data": _models(api)})),
        get("/v1/models/{name:path}", lambda request: _model(api, request.path_params["name"])),
        Route("/tokenize", _tokenize(api), methods=["POST"]),
        Route("/v1/chat/completions", Generation(api, Chat()), methods=["POST"]),
        Route("/v1/completions", Generation(api, Plain()), methods=["POST"]),
    ]


def _health(api: "Api") -> Response:
    if api.worker.alive:
        return JSONResponse({"status": "ok"})
    raise ApiError(503, "The engine has failed; this server restarts.", code="engine_failed")


def _ready(api: "Api") -> Response:
    api.require_running()
    return JSONResponse({"status": "ready"})


def _models(api: "Api") -> list[dict[str, Any]]:
    window = api.preparer.window if api.worker.ready else None
    return [
        {
            "id": name,
            "object": "model",
            "created": api.created,
            "owned_by": "qwenvl",
            "root": api.config.name,
            "max_model_len": window,
        }
        for name in (api.config.name, *api.config.aliases)
    ]


def _model(api: "Api", name: str) -> Response:
    if not name:
        raise HTTPException(404)
    api.require_model(name)
    return JSONResponse(next(model for model in _models(api) if model["id"] == name))


def _tokenize(api: "Api") -> Any:
    async def tokenize(request: Request) -> Response:
        api.require_open()
        with api.bodies.place() as grow:
            body = await read_body(request.receive, request.scope["headers"], api.limits, grow)
            wanted = await api.in_pool(lambda: read_tokenize(api.parse(body), api.limits))
        api.require_model(wanted.model)
        return Response(await api.in_pool(listed, wanted), media_type="application/json")

    def listed(wanted: TokenizeRequest) -> bytes:
        ids = api.preparer.tokenize(wanted)
        if len(ids) > api.limits.characters:  # a character may be four tokens
            raise invalid(f"The text has more than {api.limits.characters:,} tokens; ask for a part of it.")
        answer = {"count": len(ids), "max_model_len": api.preparer.window, "tokens": ids}
        if wanted.strings:
            tokenizer = api.preparer.tokenizer
            answer["token_strs"] = [tokenizer.token_bytes(each).decode("utf-8", "replace") for each in ids]
        return encode(answer)

    return tokenize


def methods_of(route: Any, scope: Any) -> set[str]:
    """The methods that a route takes, if it is the one of this path."""
    match, _ = route.matches(scope)
    return set(route.methods or ()) if match.value else set()


def of_router(raised: HTTPException, exchange: Exchange) -> ApiError:
    """404 and 405 in OpenAI's shape, with the path that was probably meant."""
    path = printable(exchange.path[:100])
    if raised.status_code == 405:
        allowed = ", ".join(sorted((raised.headers or {}).get("Allow", "").split(", ")))
        return ApiError(
            405,
            f"{path} does not take {exchange.method}; it takes {allowed}.",
            code="method_not_allowed",
            headers={"Allow": allowed},
        )
    hint = _meant(exchange.path)
    ending = f"did you mean {hint}?" if hint else f"there are {', '.join((*PATHS, *API_PATHS))}."
    return ApiError(404, f"There is nothing at {path}; {ending}", code="not_found")


def _meant(path: str) -> str | None:
    """The path that was probably meant: without a slash too many, with one /v1."""
    parts = [part for part in path.split("/") if part]
    while parts[:1] == ["v1"]:
        del parts[0]
    bare = "/" + "/".join(parts)
    return next(
        (known for known in (f"/v1{bare}", bare) if known in (*PATHS, *API_PATHS) and known != path), None
    )
