"""TouchStone: two rounds, replies that are no ratings, a judge that is silent, dry run and replay."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwenvl.evaluation import card, judge
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.predictions import Prediction

REPLIES = {1: "8 5", 2: "4 7\nboth are fine", 3: "I cannot rate this."}


class ScoreItems(BaseHTTPRequestHandler):
    """Rates by the place of `a wall`; question 3 gets no rating, question 4 no sense at all."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        first = (
            prompt.index("a wall\n[The End of Assistant 1")
            if "a wall\n[The End of Assistant 1" in prompt
            else -1
        )
        text = "8 5" if first >= 0 else "4 7"
        if "Number 1" in prompt and getattr(self.server, "slow"):  # noqa: B009
            time.sleep(1.5)
        if "Number 3" in prompt:
            text = "I cannot rate this."
        reply: object = {"choices": [{"message": {"content": text}}]}
        if "Number 4" in prompt:
            reply = {"error": "overloaded"}
        data = json.dumps(reply).encode()
        self.send_response(getattr(self.server, "status"))  # noqa: B009
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), ScoreItems)
    server.slow, server.status = False, 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


@pytest.fixture
def asked(small: Callable) -> tuple[list, dict[str, str]]:
    made = small("touchstone-en")
    rows = made.source.data.read_text().splitlines()
    made.source.data.write_text(
        "\n".join([rows[0], *(r.replace("Tell me.", f"Number {r[0]}?") for r in rows[1:])]) + "\n"
    )
    return benchmark("touchstone-en").read(made.source), {**made.said, "0": "  "}


def test_both_rounds_of_every_answer_are_asked(asked: tuple[list, dict[str, str]]) -> None:
    inquiries = list(judge.inquiries(*asked))
    assert [(i.id, i.place) for i in inquiries] == [(str(k), place) for k in range(1, 5) for place in (1, 2)]
    first, second = inquiries[:2]
    assert first.prompt.index("a wall\n") < first.prompt.index("It is a wall.")
    assert second.prompt.index("It is a wall.") < second.prompt.rindex("a wall\n[The End")
    assert "[Detailed Image Description]\nA red wall." in first.prompt and "only two values" in first.prompt


def test_ratings_are_averaged_and_everything_else_counted(
    asked: tuple[list, dict[str, str]], url: str, tmp_path: Path
) -> None:
    samples, said = asked
    inquiries = list(judge.inquiries(samples, said))
    endpoint, recorded = judge.Endpoint(url=url, timeout=120), tmp_path / "replies.jsonl"
    replies = judge.replies(inquiries, endpoint, recorded)
    predictions = {name: Prediction(id=name, plain=text) for name, text in said.items()}
    row = benchmark("touchstone-en")
    (result,), _ = card.score(row, samples, predictions, model="chat", replies=replies)
    # questions 1 and 2 are rated 8 and 7; 3 is no rating twice, 4 no answer twice, 0 was empty and not asked
    assert result.score.value == 750.0
    assert (result.score.n, result.score.expected, result.score.failures) == (2, 5, 4)
    (again,), _ = card.score(row, samples, predictions, model="chat", replies=judge.from_file(recorded))
    assert again.score == result.score


def test_a_judge_that_takes_too_long_is_counted_and_asked_again_later(
    asked: tuple[list, dict[str, str]], server: Any, url: str, tmp_path: Path
) -> None:
    samples, said = asked
    inquiries = [inquiry for inquiry in judge.inquiries(samples, said) if inquiry.id in ("1", "2")]
    server.slow, recorded = True, tmp_path / "replies.jsonl"
    quick = judge.Endpoint(url=url, timeout=0.3, attempts=1)
    replies = judge.replies(inquiries, quick, recorded)
    assert set(replies) <= {("2", 1), ("2", 2)}
    server.slow = False
    patient = judge.Endpoint(url=url, timeout=120)
    assert set(judge.replies(inquiries, patient, recorded)) == {(k, place) for k in "12" for place in (1, 2)}


def test_replies_go_on_behind_a_line_that_a_killed_run_left_half_written(
    asked: tuple[list, dict[str, str]], url: str, tmp_path: Path
) -> None:
    samples, said = asked
    inquiries = [inquiry for inquiry in judge.inquiries(samples, said) if inquiry.id in ("1", "2")]
    endpoint, recorded = judge.Endpoint(url=url, timeout=120), tmp_path / "replies.jsonl"
    whole = judge.replies(inquiries, endpoint, recorded)
    lines = recorded.read_bytes()
    recorded.write_bytes(lines[:-20])
    assert judge.replies(inquiries, endpoint, recorded) == whole
    assert recorded.read_bytes() == lines


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"refuses \(401 .*OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (404, "--judge-model"),
        (400, "--judge"),
    ],
)
def test_a_judge_that_refuses_ends_the_run_with_a_sentence(
    asked: tuple[list, dict[str, str]], server: Any, url: str, tmp_path: Path, status: int, said: str
) -> None:
    """Every question would be refused alike: it was asked for all of them twice, and scored as without an answer."""
    server.status, recorded = status, tmp_path / "replies.jsonl"
    with pytest.raises(ValueError, match=said):
        judge.replies(list(judge.inquiries(*asked)), judge.Endpoint(url=url, timeout=120), recorded)
    server.status = 200
    assert judge.replies(list(judge.inquiries(*asked)), judge.Endpoint(url=url, timeout=120), recorded)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_judge_that_is_busy_leaves_a_gap(
    asked: tuple[list, dict[str, str]], server: Any, url: str, tmp_path: Path, status: int
) -> None:
    server.status = status
    inquiries = list(judge.inquiries(*asked))[:1]
    assert judge.replies(inquiries, judge.Endpoint(url=url, timeout=120), tmp_path / "r.jsonl") == {}


def test_a_silent_judge_leaves_a_gap(asked: tuple[list, dict[str, str]], tmp_path: Path) -> None:
    endpoint = judge.Endpoint(url="http://127.0.0.1:9/v1", timeout=1)
    assert judge.replies(list(judge.inquiries(*asked)), endpoint, tmp_path / "r.jsonl") == {}
    samples, said = asked
    predictions = {name: Prediction(id=name, plain=text) for name, text in said.items()}
    with pytest.raises(ValueError, match="no question has an answer"):
        card.score(benchmark("touchstone-en"), samples, predictions, model="chat", replies={})


def test_a_dry_run_can_be_filled_in_and_replayed(asked: tuple[list, dict[str, str]], tmp_path: Path) -> None:
    inquiries = list(judge.inquiries(*asked))
    judge.to_file(inquiries, tmp_path / "dry.jsonl")
    assert judge.from_file(tmp_path / "dry.jsonl") == {}
    records = [json.loads(line) for line in (tmp_path / "dry.jsonl").read_text().splitlines()]
    filled = "".join(json.dumps({**record, "reply": "9 9"}) + "\n" for record in records)
    (tmp_path / "filled.jsonl").write_text(filled)
    assert set(judge.from_file(tmp_path / "filled.jsonl").values()) == {"9 9"}
    (tmp_path / "twice.jsonl").write_text(filled + filled)
    with pytest.raises(ValueError, match="there twice"):
        judge.from_file(tmp_path / "twice.jsonl")
