"""Pages against rows: how many tokens the training document of a page has (Box B.1, OCR), and which pages fit.

Training leaves out what is longer than its row and never cuts a document, so a page that is too long is learned by
nobody. Drawn pages can be made to fit; pages of files are counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qwenvl import markup
from qwenvl.data.records import OcrPage, Skipped
from qwenvl.data.synth.pages.page import Page
from qwenvl.data.tasks import example_of
from qwenvl.tokenizer import Tokenizer

ROWS = (1024, 2048)
"""Row lengths that a report speaks of where none was chosen: `recipes/small`, and stages 2 and 3 of the paper."""

FAR = ((999, 999),) * 4
"""Four corners of as many digits as corners have."""


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """Counts tokens as the training does: one vocabulary, one number of visual tokens for each image."""

    tokenizer: Tokenizer
    queries: int = 256
    """Visual tokens per image (paper 2.1)."""
    length: int | None = None
    """Tokens of a row, those of the image included; None where pages may be of any length."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError(f"{self.queries} visual tokens for an image; give 1 or more with --queries.")
        least = self.frame() + self.line("word")
        if self.length is not None and self.length < least:
            raise ValueError(
                f"rows of {self.length} tokens hold no page: an image and one word need {least}; "
                "give a greater --length, or the model's own --queries."
            )

    def page(self, page: Page) -> int:
        """Tokens of the page's training document, exactly."""
        return len(example_of(page.record("page"), self.tokenizer, self.queries))

    def frame(self) -> int:
        """Tokens of a page without a line: image, prompt, end."""
        empty = OcrPage(image=markup.Image("page"), lines=(), source="")
        return len(example_of(empty, self.tokenizer, self.queries))

    def line(self, text: str) -> int:
        """Tokens of a line of text with its quad, wherever it lies: every corner is counted with three digits."""
        segments: list[markup.Segment] = [markup.Ref(f" {text}"), markup.Quad(FAR)]
        return len(markup.render(segments, self.tokenizer, self.queries))


@dataclass(frozen=True)
class Lengths:
    """What a run measured: the tokens of every page it kept."""

    ruler: Ruler
    kept: list[int] = field(default_factory=list)

    def measure(self, pages: Iterable[tuple[str, Page | Skipped]]) -> Iterator[tuple[str, Page | Skipped]]:
        """The same pages; one that is longer than the row becomes a `Skipped`."""
        limit = self.ruler.length
        for key, page in pages:
            if isinstance(page, Page):
                tokens = self.ruler.page(page)
                if limit is not None and tokens > limit:
                    kind, detail = f"longer than {limit} tokens", f"{tokens} tokens"
                    yield key, Skipped(key=key, kind=kind, detail=detail, source=page.source)
                    continue
                self.kept.append(tokens)
            yield key, page

    def counts(self) -> dict[str, int]:
        """For the statistics of a run: the longest page, and how many rows of the usual lengths do not hold."""
        over = {f"over {row}": sum(tokens > row for tokens in self.kept) for row in ROWS}
        return {"queries": self.ruler.queries, "longest": max(self.kept, default=0), **over}

    def report(self) -> str:
        """One sentence for a person; it ends with what to do where pages do not fit."""
        if not self.kept:
            return "no page to measure"
        longest, total = max(self.kept), len(self.kept)
        message = f"the longest page has {longest:,} tokens, {self.ruler.queries} of them its image's"
        if self.ruler.length is not None:
            return f"{message}: all {total:,} fit rows of {self.ruler.length:,}"
        over = [(row, n) for row in ROWS if (n := sum(tokens > row for tokens in self.kept))]
        if not over:
            return f"{message}: all {total:,} fit rows of {ROWS[0]:,}"
        rows = " and ".join(f"{n:,} of {total:,} do not fit rows of {row:,}" for row, n in reversed(over))
        return f"{message}; {rows}: training leaves them out (--length N makes or keeps only pages that fit)"
