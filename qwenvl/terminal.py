"""What comes from outside, made fit for a terminal: nothing in it moves the cursor, colours, or reverses the line."""

import re

# Control characters (C0, DEL, C1), halves of surrogate pairs, line and paragraph separators, and the invisible
# format characters, among them those that turn the direction of writing. The two joiners stay: scripts and emoji
# are written with them.
_CONTROL = (
    "\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
_LINE = re.compile(f"[{_CONTROL}]")
_LINES = re.compile(f"(?![\n\t])[{_CONTROL}]")


def printable(text: object, *, lines: bool = False) -> str:
    r"""`text` with control and escape characters written as escapes (`\x1b`, `\u202e`); the rest as it is.

    With `lines` line ends and tabs stay: for an answer of a model, not for a name or a caption in a table.
    """
    return (_LINES if lines else _LINE).sub(lambda found: ascii(found[0])[1:-1], str(text))
