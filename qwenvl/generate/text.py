"""Ids of an answer to its text, as they come: bytes to characters, stop strings, and the space around it.

```
ids          .. 184 | 160 231 | 97 | <|im_end|>
held back    ids that may begin a stop sequence; bytes of a character still open; text that may begin a stop string;
             white space, which is dropped where nothing follows
shown        everything else: never taken back, and all of it together is the text of the whole answer
```
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from qwenvl.tokenizer import Tokenizer

Sequential = TypeVar("Sequential", str, list[int])

STOP_STRINGS = 16
"""Most stop strings of an answer."""

STOP_LENGTH = 256
"""Most characters of a stop string."""


class TextDecoder:
    """The text of one answer, piece by piece.

    The pieces that `push` and `finish` return are together `text`, however the ids are cut into pushes: the answer
    without the stop sequence at its end, before the first stop string, and, if `strip`, without the white space around
    it. Bytes that are no UTF-8 become U+FFFD, those of an unfinished character only at the end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_ids: Sequence[Sequence[int]] = (),
        stop: Any = (),
        strip: bool = True,
    ) -> None:
        self.tokenizer, self.strip = tokenizer, strip
        self._stop_ids = [list(sequence) for sequence in stop_ids if sequence]
        self._of_stops = {token for sequence in self._stop_ids for token in sequence}
        self._stop = checked_stop(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        """Held back: they may begin, or are, a stop sequence."""
        self._held = ""
        """Held back: it may begin a stop string, or is white space that may be the last."""
        self._pieces: list[str] = []
        self.stopped = False
        """Whether a stop string was met; what is pushed afterwards is not read."""

    @property
    def text(self) -> str:
        """All that was returned so far."""
        return "".join(self._pieces)

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids make certain, often empty."""
        sure: list[int] = []
        for token in ids:
            self._ids.append(token)
            begun = 0
            if token in self._of_stops:
                begun = max(_overlap(self._ids, sequence) for sequence in self._stop_ids)
            sure += self._ids[: len(self._ids) - begun]
            del self._ids[: len(self._ids) - begun]
        if sure and not self.stopped:
            self._read(b"".join(map(self.tokenizer.token_bytes, sure)))
        return self._show(last=False)

    def finish(self) -> str:
        """The rest, when no more ids come."""
        ended = max((len(s) for s in self._stop_ids if self._ids[-len(s) :] == s), default=0)
        left = self._ids[: len(self._ids) - ended]
        self._ids = []
        if not self.stopped:
            self._read(b"".join(map(self.tokenizer.token_bytes, left)), last=True)
        return self._show(last=True)

    def _read(self, spelled: bytes, last: bool = False) -> None:
        """Take bytes in, up to the first stop string among them."""
        self._held += self._decoder.decode(spelled, last)
        end = first_stop(self._held, self._stop)
        if end is not None:
            self._held, self.stopped = self._held[:end], True

    def _show(self, last: bool) -> str:
        """Let go of what can no longer change."""
        sure = self._held
        if not self.stopped and not last:
            begun = max((_overlap(sure, string) for string in self._stop), default=0)
            sure = sure[: len(sure) - begun]
        if self.strip:
            sure = sure.rstrip()
        self._held = "" if last else self._held[len(sure) :]
        if self.strip and not self._pieces:
            sure = sure.lstrip()
        if sure:
            self._pieces.append(sure)
        return sure


class StopStrings:
    """Whether the newest token of an answer completes one of these strings, wherever in it they begin and end.

    It looks at bytes: UTF-8 is found in bytes exactly where its characters are found in the text. Stateless, so that
    any number of answers may share it.
    """

    def __init__(self, strings: Any, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._wanted = [string.encode() for string in checked_stop(strings)]
        self._longest = max(map(len, self._wanted), default=0)

    def __call__(self, ids: Sequence[int]) -> bool:
        if not ids or not self._wanted:
            return False
        tail, needed = b"", self._longest - 1 + len(self.tokenizer.token_bytes(ids[-1]))
        for token in reversed(ids):
            tail = self.tokenizer.token_bytes(token) + tail
            if len(tail) >= needed:
                break
        return any(string in tail for string in self._wanted)


def checked_stop(strings: Any) -> tuple[str, ...]:
    """The stop strings as they are. Raises ValueError for too many, and for one that is empty, too long or no text."""
    if not isinstance(strings, list | tuple) or not all(isinstance(each, str) and each for each in strings):
        raise ValueError(f"stop is {strings!r:.80}; expected strings, none of them empty, such as ['\\n'].")
    if len(strings) > STOP_STRINGS:
        raise ValueError(f"stop has {len(strings)} strings; at most {STOP_STRINGS} are looked for.")
    for string in strings:
        if len(string) > STOP_LENGTH:
            raise ValueError(
                f"stop holds a string of {len(string)} characters; at most {STOP_LENGTH} are looked for."
            )
        if any(character == "\ufffd" or "\ud800" <= character <= "\udfff" for character in string):
            raise ValueError(
                f"stop holds {string!a:.80}; U+FFFD and halves of surrogate pairs stand for no text, leave them out."
            )
    return tuple(strings)


def first_stop(text: str, strings: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, reading from the left; of several the longest."""
    found = [(at + len(string), at) for string in strings if (at := text.find(string)) >= 0]
    return min(found)[1] if found else None


def _overlap(text: Sequential, sequence: Sequential) -> int:
    """Length of the longest end of `text` that begins `sequence`."""
    longest = min(len(text), len(sequence))
    return next((n for n in range(longest, 0, -1) if text[-n:] == sequence[:n]), 0)
