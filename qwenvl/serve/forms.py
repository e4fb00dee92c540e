"""The two forms in which answers are asked for and given: chat completions and plain completions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qwenvl.serve.answers import Answer, boxes, chat_logprobs, plain_logprobs
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import Fetches
from qwenvl.serve.schema import ChatRequest, CompletionRequest, read_chat, read_completion
from qwenvl.serve.sse import Chunks
from qwenvl.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwenvl.serve.requests import Prepared, Preparer


@runtime_checkable
class Form(Protocol):
    """One of the two; `object` and `chunk` are what answers and events call themselves."""

    prefix: str
    object: str
    chunk: str
    strip: bool

    def read(self, data: Any, limits: Limits, *, strict: bool) -> Any:
        """The typed request. Raises ApiError 400."""
        ...

    def sources(self, request: Any) -> list[Any]:
        """What stands for the images of a request."""
        ...

    def prepare(self, preparer: "Preparer", request: Any, salt: bytes, fetched: Fetches | None) -> "Prepared":
        """The request, ready for the engine. Raises ApiError 400."""
        ...

    def begin(self, chunks: Chunks, prepared: "Prepared") -> bytes:
        """What a stream begins with."""
        ...

    def piece(self, chunks: Chunks, index: int, answer: Answer, writing: "Writing") -> bytes:
        """What became sure of choice `index`; nothing, where nothing did."""
        text = answer.piece()
        if not text and answer.finish_reason is None:
            return b""
        logprobs = self.logprobs(index, answer, writing)
        return self.event(chunks, index, text, logprobs) if text or any((logprobs or {}).values()) else b""

    def end(self, chunks: Chunks, index: int, answer: Answer, writing: "Writing") -> bytes:
        """What ends choice `index`."""
        ...

    def event(self, chunks: Chunks, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        """An event with more of the text of choice `index`."""
        ...

    def logprobs(self, index: int, answer: Answer, writing: "Writing") -> dict[str, Any] | None:
        """Log-probabilities of the tokens reached since the last call; None where none were asked for."""
        ...

    def choice(self, index: int, answer: Answer, writing: "Writing") -> dict[str, Any]:
        """A whole choice."""
        ...


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What both forms need of a request while its answer is written."""

    tokenizer: Tokenizer
    prepared: "Prepared"
    top_logprobs: int | None

    def extra(self, answer: Answer) -> dict[str, Any]:
        """What stands under `qwenvl`: boxes as data, and what a client cannot know otherwise."""
        prepared = self.prepared
        return {
            **boxes(answer.segments(), prepared.sizes),
            "image_sizes": [list(size) for size in prepared.sizes],
            "turned": list(prepared.turned),
            "seed": prepared.seed,
        }


class Chat(Form):
    """POST /v1/chat/completions."""

    prefix, object, chunk, strip = "chatcmpl", "chat.completion", "chat.completion.chunk", True

    def read(self, data: Any, limits: Limits, *, strict: bool) -> ChatRequest:
        """See `Form`."""
        return read_chat(data, limits, strict=strict)

    def sources(self, request: ChatRequest) -> list[Any]:
        """See `Form`."""
        return [
            part.url for message in request.messages for part in message.parts if not isinstance(part, str)
        ]

    def prepare(
        self, preparer: "Preparer", request: ChatRequest, salt: bytes, fetched: Fetches | None
    ) -> "Prepared":
        """See `Form`."""
        return preparer.chat(request, salt, fetched)

    def begin(self, chunks: Chunks, prepared: "Prepared") -> bytes:
        """See `Form`."""
        roles = [chunks.delta(i, {"role": "assistant", "content": ""}) for i in range(len(prepared.rows))]
        return b"".join(roles)

    def event(self, chunks: Chunks, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        """See `Form`."""
        return chunks.delta(index, {"content": text}, logprobs)

    def end(self, chunks: Chunks, index: int, answer: Answer, writing: Writing) -> bytes:
        """See `Form`."""
        extra = chunks.delta(index, {"qwenvl": writing.extra(answer)})
        return extra + chunks.delta(index, {}, None, answer.finish_reason)

    def choice(self, index: int, answer: Answer, writing: Writing) -> dict[str, Any]:
        """See `Form`."""
        message = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "qwenvl": writing.extra(answer),
        }
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs(index, answer, writing),
            "finish_reason": answer.finish_reason,
        }

    def logprobs(self, index: int, answer: Answer, writing: Writing) -> dict[str, Any] | None:
        """See `Form`."""
        if writing.top_logprobs is None:
            return None
        listed = chat_logprobs(answer.reached()[0], writing.top_logprobs, writing.tokenizer)
        return {"content": listed, "refusal": None}


class Plain(Form):
    """POST /v1/completions: the text goes on where the prompt ends, white space and all."""

    prefix, object, chunk, strip = "cmpl", "text_completion", "text_completion", False

    def read(self, data: Any, limits: Limits, *, strict: bool) -> CompletionRequest:
        """See `Form`."""
        return read_completion(data, limits, strict=strict)

    def sources(self, request: CompletionRequest) -> list[Any]:
        """See `Form`."""
        return []

    def prepare(
        self, preparer: "Preparer", request: CompletionRequest, salt: bytes, fetched: Fetches | None
    ) -> "Prepared":
        """See `Form`."""
        return preparer.completion(request)

    def begin(self, chunks: Chunks, prepared: "Prepared") -> bytes:
        """See `Form`."""
        return b"".join(chunks.text(i, text) for i, text in enumerate(prepared.echoed))

    def event(self, chunks: Chunks, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        """See `Form`."""
        return chunks.text(index, text, logprobs)

    def end(self, chunks: Chunks, index: int, answer: Answer, writing: Writing) -> bytes:
        """See `Form`."""
        return chunks.text(index, "", None, answer.finish_reason)

    def choice(self, index: int, answer: Answer, writing: Writing) -> dict[str, Any]:
        """See `Form`."""
        echoed = writing.prepared.echoed[index] if writing.prepared.echoed else ""
        return {
            "index": index,
            "text": echoed + answer.text,
            "logprobs": self.logprobs(index, answer, writing),
            "finish_reason": answer.finish_reason,
        }

    def logprobs(self, index: int, answer: Answer, writing: Writing) -> dict[str, Any] | None:
        """See `Form`."""
        if writing.top_logprobs is None:
            return None
        tokens, places = answer.reached()
        return plain_logprobs(tokens, places, writing.top_logprobs, writing.tokenizer)
