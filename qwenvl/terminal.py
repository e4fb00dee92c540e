"""What comes from outside, made fit for a terminal: nothing in it moves the cursor, colours, or reverses the line."""

import json
import math
import re
from typing import Any

# Control characters (C0, DEL, C1), halves of surrogate pairs, line and paragraph separators, and the invisible
# format characters, among them those that turn the direction of writing. The two joiners stay: scripts and emoji
# are written with them.
_CONTROL = (
    "\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_LINE = re.compile(f"[{_CONTROL}]")
_LINES = re.compile(f"(?![\n\t])[{_CONTROL}]")


def printable(text: object, *, lines: bool = False) -> str:
    r"""`text` with control and escape characters written as escapes (`\x1b`, `\u202e`); the rest as it is.

    With `lines` line ends and tabs stay: for an answer of a model, not for a name or a caption in a table.
    """
    return (_LINES if lines else _LINE).sub(lambda found: ascii(found[0])[1:-1], str(text))


def printable_json(value: Any) -> str:
    r"""One line of JSON for a terminal or a pipe: control characters as escapes (`\u009b`), NaN and infinities null."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(value), ensure_ascii=False)
    return _LINE.sub(lambda found: json.dumps(found[0])[1:-1], line)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
