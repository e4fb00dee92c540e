"""TouchStone's judge (paper 4.5, Table 7): a language model rates an answer beside a reference, twice.

The judge is any OpenAI-compatible endpoint. `to_file` writes what would be asked (dry run), `from_file` reads replies
that were recorded; both hold one JSON object per line: id, place, prompt and, when answered, reply. In the second
round the two answers change places.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import field, load_lines
from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.metrics.touchstone import Reply
from qwenvl.evaluation.predictions import appending
from qwenvl.parsing import MAX_LINE, parse_json
from qwenvl.terminal import printable

PASSING = frozenset({408, 409, 425, 429})
"""Refusals that another attempt may not meet: too slow, too soon, too many."""

PLACES = (1, 2)
"""Where the model's answer stands: Assistant 1 in the first round, Assistant 2 in the second."""

INSTRUCTION = """\
Two assistants answered a question about an image that you cannot see; its detailed description stands above. \
Rate the helpfulness, relevance, accuracy and comprehensiveness of both answers. Each assistant receives an overall \
score on a scale of 1 to 10, where a higher score means a better answer. \
First output a single line containing only two values, the scores for Assistant 1 and Assistant 2, separated by a \
space. Do not let the order of the answers influence you."""


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """One thing to ask the judge."""

    id: str
    place: int
    """The model's place in the prompt."""
    prompt: str


def inquiries(samples: Sequence[Sample], answers: Mapping[str, str]) -> Iterator[Inquiry]:
    """Both rounds for each question that has an answer."""
    for sample in samples:
        if not answers.get(sample.id, "").strip():
            continue
        for place in PLACES:
            pair = [answers[sample.id].strip(), sample.answers[0]]
            first, second = pair if place == 1 else pair[::-1]
            yield Inquiry(
                id=sample.id,
                place=place,
                prompt=f"[Detailed Image Description]\n{sample.context}\n\n[Question]\n{sample.text}\n\n"
                f"[The Start of Assistant 1's Answer]\n{first}\n[The End of Assistant 1's Answer]\n\n"
                f"[The Start of Assistant 2's Answer]\n{second}\n[The End of Assistant 2's Answer]\n\n"
                f"[System]\n{INSTRUCTION}",
            )


def to_file(asked: Sequence[Inquiry], path: Path) -> None:
    """The inquiries as JSON lines, without replies."""
    lines = [json.dumps(inquiry.__dict__, ensure_ascii=False) + "\n" for inquiry in asked]
    path.write_text("".join(lines), encoding="utf-8")


def from_file(path: Path) -> dict[tuple[str, int], str]:
    """Recorded replies by question and place."""
    replies: dict[tuple[str, int], str] = {}
    for number, record in enumerate(load_lines(path), start=1):
        where = f"{path} line {number}"
        key = str(field(record, "id", where)), field(record, "place", where)
        if key[1] not in PLACES or key in replies:
            raise ValueError(
                f"{where}: question {key[0]} place {key[1]} is unknown or there twice; places are 1 and 2."
            )
        if record.get("reply") is not None:
            replies[key] = str(record["reply"])
    return replies


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server."""

    url: str
    """Up to and with `/v1`."""
    model: str = "gpt-4"
    key: str = ""
    timeout: float = 60
    """Seconds for one reply."""
    attempts: int = 2

    def reply(self, prompt: str) -> str | None:
        """The judge's words, or None if it does not answer in time, twice.

        Raises ValueError where the server refuses every question alike: a key, an address or a model that it rejects.
        """
        body = {
            "model": self.model, "temperature": 0, "stop": "\n", "messages": [{"role": "user", "content": prompt}]
        }  # fmt: skip
        for _ in range(self.attempts):
            try:
                return str(self._post(body)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                if 400 <= error.code < 500 and error.code not in PASSING:
                    raise ValueError(self._refusal(error)) from None
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError):
                continue
            except (KeyError, IndexError, TypeError, ValueError):
                return None
        return None

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """What the server says, and what to look at; each question would be answered the same."""
        fix = {
            401: "give its key in OPENAI_API_KEY",
            403: "give a key in OPENAI_API_KEY that may use the model",
            404: f"give --judge up to and with /v1, and a --judge-model that it has, not {self.model!r}",
        }.get(error.code, f"check --judge and --judge-model {self.model!r}")
        return printable(f"the judge at {self.url} refuses ({error.code} {error.reason}); {fix}.")

    def _post(self, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return parse_json(response.read(MAX_LINE), self.url)


def replies(
    asked: Sequence[Inquiry],
    endpoint: Endpoint,
    recorded: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, int], str]:
    """Ask what `recorded` does not hold yet, and record every reply there as it comes; a silent judge leaves a gap.

    A line that a killed run left half written is asked for again. Raises ValueError while another run records there.
    """
    with appending(recorded) as file:
        known = from_file(recorded)
        for number, inquiry in enumerate(asked, start=1):
            key = inquiry.id, inquiry.place
            if key not in known and (said := endpoint.reply(inquiry.prompt)) is not None:
                known[key] = said
                line = json.dumps({**inquiry.__dict__, "reply": said}, ensure_ascii=False) + "\n"
                file.write(line.encode())
                file.flush()
            if progress is not None:
                progress(number, len(asked))
    return known


def verdicts(asked: Sequence[Inquiry], said: Mapping[tuple[str, int], str]) -> list[Reply | None]:
    """The judge's reply to each inquiry, None where there is none."""
    pairs = [(inquiry.place, said.get((inquiry.id, inquiry.place))) for inquiry in asked]
    return [None if text is None else Reply(text, place) for place, text in pairs]
