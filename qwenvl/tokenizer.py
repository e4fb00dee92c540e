"""Text to ids and back (paper 2.2; the vocabulary of the release): byte-level BPE over `qwen.tiktoken` ranks.

```
ids   0 .. n_ranks-1        byte pairs, from the file
      n_ranks + 0           <|endoftext|>               the paper's <eos>, also the padding
      n_ranks + 1, + 2      <|im_start|> <|im_end|>     ChatML
      n_ranks + 3 .. + 207  <|extra_0|> .. <|extra_204|>
      n_ranks + 208 .. 213  <ref> </ref> <box> </box> <quad> </quad>
      n_ranks + 214 .. 216  <img> </img> <imgpad>
```
Text never becomes markup: `encode` yields ordinary ids only, whatever the text spells. Special ids come from
the objects of `qwenvl.markup`.
"""

import binascii
import functools
import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

VOCABULARY_FILE = "qwen.tiktoken"

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cuts text into pieces that no merge crosses; every digit is a piece of its own."""

SPECIALS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
)
"""Control symbols in the order of their ids, which follow the ranks."""

_LONGEST_RUN = 500_000
_LONG_RUN = re.compile(rf"(\s{{{_LONGEST_RUN}}})")
"""Longer runs of white space are cut: the pattern engine of tiktoken overflows its stack on a million."""


_ORDERED = 2_000


def nfc(text: str) -> str:
    """The NFC form of a text, in a time that grows with its length.

    `unicodedata` sorts the marks on a letter by insertion, ten seconds for a hundred thousand; in long texts they are
    sorted before, in the same (canonical) order, so that the result is the same.
    """
    if text.isascii():
        return text
    if len(text) > _ORDERED:
        text = _marks().sub(lambda run: _sorted(run[0]), text)
    return unicodedata.normalize("NFC", text)


@functools.cache
def _marks() -> re.Pattern[str]:
    """A run of many characters that combine with the one before."""
    marks = "".join(chr(point) for point in range(0x300, 0x110000) if unicodedata.combining(chr(point)))
    return re.compile(f"[{marks}]{{32,}}")


def _sorted(marks: str) -> str:
    apart = "".join(unicodedata.normalize("NFD", mark) for mark in marks)
    return "".join(sorted(apart, key=unicodedata.combining))


class Tokenizer:
    """Byte-level BPE; `ranks` maps the bytes of each token to its id and merge priority (0 merges first).

    Raises ValueError when the ranks are not 0..n-1, each once, or when one of the 256 single bytes is missing
    (then some text could not be encoded).
    """

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        import tiktoken

        _check_ranks(ranks)
        self._encoding = tiktoken.Encoding(
            "qwenvl", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens={}
        )
        self._tokens: list[bytes] = sorted(ranks, key=ranks.__getitem__)
        self.n_ranks = len(self._tokens)
        self.n_vocab = self.n_ranks + len(SPECIALS)
        self.specials: Mapping[str, int] = MappingProxyType(
            {name: self.n_ranks + offset for offset, name in enumerate(SPECIALS)}
        )
        self.special_ids = frozenset(self.specials.values())
        self.endoftext = self.specials["<|endoftext|>"]
        self.im_start = self.specials["<|im_start|>"]
        self.im_end = self.specials["<|im_end|>"]
        self.ref, self.ref_end = self.specials["<ref>"], self.specials["</ref>"]
        self.box, self.box_end = self.specials["<box>"], self.specials["</box>"]
        self.quad, self.quad_end = self.specials["<quad>"], self.specials["</quad>"]
        self.img, self.img_end = self.specials["<img>"], self.specials["</img>"]
        self.imgpad = self.specials["<imgpad>"]

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[dict[bytes, int]]]:
        return Tokenizer, ({token: rank for rank, token in enumerate(self._tokens)},)

    def encode(self, text: str) -> list[int]:
        """Ids of the NFC form of `text`, every one below `n_ranks`: `<img>` in a text is five characters."""
        text = nfc(text)
        if len(text) < _LONGEST_RUN:
            return self._encoding.encode_ordinary(text)
        parts = _LONG_RUN.split(text)
        return [token for part in parts for token in self._encoding.encode_ordinary(part)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, errors: str = "replace") -> str:
        """Text of `ids`; specials are spelled out, or dropped with `skip_special`.

        `errors` is that of `bytes.decode`. Ids from `n_vocab` up (rows that pad the model's vocabulary) are
        treated like undecodable bytes, or dropped with `skip_special`. Raises ValueError for a negative id.
        """
        kept = (token for token in ids if not (skip_special and token >= self.n_ranks))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id, at times a part of a character; 0xFF for ids from `n_vocab` up."""
        if token < 0:
            raise ValueError(f"token id {token} cannot be decoded; ids are 0 to {self.n_vocab - 1}.")
        if token < self.n_ranks:
            return self._tokens[token]
        if token < self.n_vocab:
            return SPECIALS[token - self.n_ranks].encode()
        return b"\xff"

    # === File ===

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The vocabulary in `path`, a file in tiktoken format or the folder that holds `qwen.tiktoken`.

        Raises ValueError when there is no such file or a line of it is not `<base64> <rank>`.
        """
        path = Path(path)
        file = path / VOCABULARY_FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(
                f"no vocabulary at {file}; expected a {VOCABULARY_FILE} file or a folder that holds one."
            )
        return cls(_read_ranks(file))

    def require_own(self, imgpad: int) -> None:
        """Raises ValueError where a model that numbers `<imgpad>` so was made with another vocabulary."""
        if self.imgpad != imgpad:
            raise ValueError(
                f"the vocabulary numbers <imgpad> {self.imgpad} but the model expects {imgpad}; use the "
                f"{VOCABULARY_FILE} that belongs to this checkpoint."
            )

    def save(self, folder: str | Path) -> Path:
        """Writes `qwen.tiktoken` into `folder` (made if missing) and returns its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / VOCABULARY_FILE
        lines = (
            binascii.b2a_base64(token, newline=False) + b" %d\n" % rank
            for rank, token in enumerate(self._tokens)
        )
        file.write_bytes(b"".join(lines))
        return file

    # === Training, for the small presets ===

    @staticmethod
    def train(texts: Iterable[str], merges: int) -> "Tokenizer":
        """A vocabulary of the 256 bytes and up to `merges` pairs, the most frequent first.

        Ties go to the pair whose bytes sort first, so the same texts in any order give the same vocabulary.
        Fewer merges come out when no pair occurs twice. Merges never cross the pieces of `PATTERN`.
        """
        import regex

        if merges < 0:
            raise ValueError(f"merges is {merges}; expected 0 or more.")
        pieces: Counter[str] = Counter()
        for text in texts:
            pieces.update(regex.findall(PATTERN, unicodedata.normalize("NFC", text)))
        ranks = {bytes([value]): value for value in range(256)}
        for token in _most_frequent_pairs(pieces, ranks, merges):
            assert token in ranks
        return Tokenizer(ranks)

    def with_words(self, words: Iterable[str]) -> "Tokenizer":
        """This vocabulary, and behind it what makes one token of each word; all ids but those of specials stay.

        A word is a piece of `PATTERN`, so ` alarm clock` is two. One of several tokens is put together from its left:
        whichever of them merge first, the first two of what is left make a beginning of the word, which is a token.
        """
        import regex

        ranks = {token: rank for rank, token in enumerate(self._tokens)}
        for word in words:
            for piece in regex.findall(PATTERN, nfc(word)):
                parts = [self._tokens[token] for token in self.encode(piece)]
                for stop in range(2, len(parts) + 1):
                    ranks.setdefault(b"".join(parts[:stop]), len(ranks))
        return Tokenizer(ranks)


def _check_ranks(ranks: Mapping[bytes, int]) -> None:
    values = sorted(ranks.values())
    if values != list(range(len(values))):
        wrong = next((place for place, rank in enumerate(values) if rank != place), 0)
        raise ValueError(
            f"the ranks of the vocabulary are not 0 to {len(values) - 1}, each once: found {values[wrong]} "
            f"where {wrong} belongs (a duplicate, or a missing line); fetch the vocabulary file again."
        )
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise ValueError(
            f"the vocabulary lacks {len(missing)} of the 256 single bytes, the first 0x{missing[0]:02x}; "
            "expected all of them, so that any text can be encoded."
        )


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token64, rank = line.split()
            token = binascii.a2b_base64(token64, strict_mode=True)
            value = int(rank)
        except ValueError as error:  # binascii.Error is one
            raise ValueError(
                f"{file} line {number} is {line[:40]!r}; expected `<base64 of the token> <rank>`; "
                "the file is damaged or a Git LFS pointer, fetch it again."
            ) from error
        if token in ranks:
            raise ValueError(
                f"{file} line {number} repeats the token {token!r} of rank {ranks[token]}; "
                "expected every token once, fetch the file again."
            )
        ranks[token] = value
    return ranks


def _most_frequent_pairs(pieces: Mapping[str, int], ranks: dict[bytes, int], merges: int) -> Iterator[bytes]:
    """Adds up to `merges` tokens to `ranks`, yielding each; words are kept merged as an encoder would.

    A heap holds (-count, pair) with stale entries, which are checked against `counts` when they come up.
    """
    words = [[bytes([value]) for value in piece.encode("utf-8", "replace")] for piece in pieces]
    times = list(pieces.values())
    counts: Counter[bytes] = Counter()
    places: defaultdict[bytes, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for left, right in pairwise(word):
            counts[left + right] += times[index]
            places[left + right].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap and merges > 0:
        negative, pair = heapq.heappop(heap)
        if pair in ranks or counts[pair] != -negative or counts[pair] < 2:
            continue
        ranks[pair] = len(ranks)
        merges -= 1
        yield pair
        touched: set[bytes] = set()
        for index in sorted(places.pop(pair)):
            for left, right in pairwise(words[index]):
                counts[left + right] -= times[index]
                touched.add(left + right)
            words[index] = _merge(words[index], ranks)
            for left, right in pairwise(words[index]):
                counts[left + right] += times[index]
                places[left + right].add(index)
                touched.add(left + right)
        for changed in sorted(touched):
            heapq.heappush(heap, (-counts[changed], changed))


def _merge(parts: list[bytes], ranks: Mapping[bytes, int]) -> list[bytes]:
    """`parts` after every merge that `ranks` allows, the lowest rank first, from the left."""
    parts = list(parts)
    while True:
        candidates = [
            (ranks[left + right], place)
            for place, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not candidates:
            return parts
        _, place = min(candidates)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
