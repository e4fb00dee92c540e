"""`qwenvl eval score`: answers from a file, without a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qwenvl.data.datasets.sample import Sample
    from qwenvl.evaluation.card import Card
    from qwenvl.evaluation.predictions import Prediction


def eval_score(
    benchmark: str,
    /,
    *,
    predictions: Path,
    data: Path | None = None,
    answers: Path | None = None,
    images: Path | None = None,
    out: Path | None = None,
    model: str | None = None,
    submission: Path | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    dry_run: Path | None = None,
    replay: Path | None = None,
    prompt_format: Literal["chatml", "raw"] | None = None,
    partial: bool = False,
    json: bool = False,
) -> int:
    """Score a file of predictions: ours (scored.jsonl) or any list of objects with an id and an answer.

    Questions without an answer are counted, never scored; exit status 1 if there are any, unless --partial. TouchStone
    is rated by a judge with the interface of OpenAI (its key in OPENAI_API_KEY) or by recorded replies.

      qwenvl eval score docvqa --predictions answers.json --data val_v1.0.json

    Args:
        benchmark: Its name in docs/EVALUATION.md.
        predictions: JSON lines or a JSON list, one entry per question.
        data: The questions: the original file or folder, or the release's JSON lines; the toy world has none.
        answers: The answers, where they are a file of their own.
        images: Folder of the images; only the report needs them.
        out: Folder for score.json and scored.jsonl.
        model: Name on the score card; by default that of the predictions' folder.
        submission: Write the file for the test server here instead of scoring.
        judge: URL of the judge, up to and with /v1.
        judge_model: Its name there; by default gpt-4.
        dry_run: Write what would be asked of the judge here, and ask nothing.
        replay: The judge's recorded replies; new ones are added when there is a --judge.
        prompt_format: How the questions were asked, where not as the benchmark says: it stands on the card, and the toy
            world's answers are expected in its words.
        partial: Accept questions without an answer.
        json: Print one JSON object.
    """
    from qwenvl.evaluation import card, submissions
    from qwenvl.evaluation.benchmarks import benchmark as row_of
    from qwenvl.evaluation.predictions import read_foreign
    from qwenvl.terminal import printable

    row = row_of(benchmark)
    _require_fitting(
        submission, (out, model, partial, json), row.metric is None, (judge, dry_run, replay), judge_model
    )
    source = row.source(data, answers, images, prompt_format)
    samples = row.read(source)
    found = read_foreign(predictions)
    if submission is not None:
        if row.submit is None:
            raise ValueError(f"{benchmark} has no test server; leave out --submission.")
        submissions.write(row.submit, samples, {name: p.plain for name, p in found.items()}, submission)
        print(printable(submission))
        return 0
    replies: Mapping[tuple[str, int], str] | None = None
    if row.metric is None:
        replies = _scored(samples, found, judge, judge_model or "gpt-4", dry_run, replay)
        if dry_run is not None:
            print(printable(dry_run))
            return 0
    name = model or predictions.resolve().parent.name
    cards, records = card.score(
        row, samples, found, model=name, replies=replies, prompt_format=source.prompt_format
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        card.write(out, cards, records)
    whole = card.to_json(row, samples, found, cards) if json else None
    return print_cards(cards, out, partial=partial, whole=whole)


def _require_fitting(
    submission: Path | None,
    scoring: tuple[object, ...],
    is_judged: bool,
    judging: tuple[str | None, Path | None, Path | None],
    judge_model: str | None,
) -> None:
    """Raises ValueError for options that would do nothing."""
    url, dry_run, _ = judging
    scores = [
        name
        for name, given in zip(("--out", "--model", "--partial", "--json"), scoring, strict=True)
        if given
    ]
    asks = [name for name, given in zip(("--judge", "--dry-run", "--replay"), judging, strict=True) if given]
    asks += ["--judge-model"] * (judge_model is not None)
    if asks and not is_judged:
        raise ValueError(f"{asks[0]} is for TouchStone alone, which a judge rates; leave it out.")
    if submission is not None and (scores or asks):
        raise ValueError(
            f"--submission writes the server's file and scores nothing; leave out {(scores + asks)[0]}."
        )
    if dry_run is not None and (scores or len(asks) > 1):
        others = [name for name in scores + asks if name != "--dry-run"]
        raise ValueError(f"--dry-run writes the prompts and asks nothing; leave out {others[0]}.")
    if judge_model is not None and url is None:
        raise ValueError(
            "--judge-model is the name of a model behind --judge; give its URL too, or leave it out."
        )


def _scored(
    samples: "Sequence[Sample]",
    found: "Mapping[str, Prediction]",
    url: str | None,
    model: str,
    dry_run: Path | None,
    replay: Path | None,
) -> "Mapping[tuple[str, int], str]":
    """Replies of the judge, or of a file; none after a dry run."""
    import os

    from rich.console import Console
    from rich.progress import Progress

    from qwenvl.evaluation import judge
    from qwenvl.parsing import http_url

    asked = list(judge.inquiries(samples, {name: p.plain for name, p in found.items()}))
    if dry_run is not None:
        judge.to_file(asked, dry_run)
        return {}
    if url is None:
        if replay is None:
            raise ValueError(
                "TouchStone needs a judge: --judge URL, --replay FILE, or --dry-run FILE to see the prompts."
            )
        return judge.from_file(replay)
    endpoint = judge.Endpoint(
        url=http_url(url, "--judge"), model=model, key=os.environ.get("OPENAI_API_KEY", "")
    )
    recorded = replay or Path("touchstone-replies.jsonl")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("judge", total=len(asked))
        return judge.replies(asked, endpoint, recorded, lambda done, _: bar.update(line, completed=done))


def print_cards(
    cards: "Sequence[Card]", out: Path | None, *, partial: bool, whole: "Mapping[str, object] | None"
) -> int:
    """Print the cards of a benchmark, or one JSON object, `whole`.

    Exit status 1 if questions are without an answer and that was not asked for.
    """
    from rich.console import Console

    from qwenvl.terminal import printable, printable_json

    console = Console(stderr=True, markup=False, highlight=False)
    if whole is not None:
        print(printable_json(whole))
    else:
        for own in cards:
            print(printable(_line(own)))
            for name, value in own.score.notes.items():
                print(printable(f"  {name} {value:.2f}"))
            for name, (value, count) in own.score.groups.items():
                print(printable(f"  {name or 'other'}: {value:.2f} of {count}"))
        if out is not None:
            print(printable(f"scores and answers in {out}; next: qwenvl eval report {out}"))
    for own in cards:
        score = own.score
        if score.failures:
            console.print(
                f"{own.title}: without anything readable, and so without a point: {score.failures} of {score.n} answers"
            )
        if not score.complete:
            console.print(
                f"{own.title}: {score.n} of {score.expected} questions have a score",
                style=None if partial else "bold red",
            )
    return 0 if partial or all(own.score.complete for own in cards) else 1


def _line(own: "Card") -> str:
    score, against = own.score, ""
    if own.paper is not None:
        against = f"; the paper: {own.paper:g} ({own.difference:+.2f})"
    elif own.published.best is not None:
        against = f"; {own.published.best_name} {own.published.best:g}"
    return f"{own.title}  {own.metric} {score.value:.2f} ({score.low:.2f} .. {score.high:.2f}) of {score.n}{against}"
