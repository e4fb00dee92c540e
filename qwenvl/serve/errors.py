"""Errors as OpenAI's clients read them: one JSON shape at every status (docs/SERVING.md, "Errors")."""

import json
from collections.abc import Mapping

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
"""Status -> `type`; below 500 all others are `invalid_request_error`, from 500 `server_error`."""

RETRIED = frozenset({408, 409, 429, 500, 502, 503})
"""What a client may send again; with all other statuses goes `x-should-retry: false`, because it would fail again."""


class ApiError(Exception):
    """A request that gets no answer: `message` is a sentence for the client, `param` the key that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers: dict[str, str] = dict(headers or {})
        if status not in RETRIED:
            self.headers["x-should-retry"] = "false"

    def body(self) -> dict[str, object]:
        """The JSON of the answer, and of the event that ends a stream."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    def encoded(self) -> bytes:
        """`body` as bytes."""
        return json.dumps(self.body(), ensure_ascii=False, separators=(",", ":")).encode()


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request says something that cannot be done."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, *, seconds: int, status: int = 429, code: str = "rate_limit_exceeded") -> ApiError:
    """Not now: try again after so many seconds (clients wait at most 120)."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(min(max(seconds, 1), 120))})


def failed(message: str = "The server failed on this request; its log says why.") -> ApiError:
    """500: our mistake. What the exception says stays in the log."""
    return ApiError(500, message, code="internal_error")
