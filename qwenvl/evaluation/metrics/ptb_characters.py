"""Which characters CoreNLP 3.4.1 takes for letters and symbols (the Unicode of its day), as regex sources.

Measured: every character of the basic plane was put between letters, between digits and alone. Those in none of the
sets are dropped and separate words as a space does; so are all beyond the basic plane (emoji).
"""

_NUMERIC_NOT_DECIMAL = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u09f4-\u09f9\u0b72-\u0b77\u0bf0-\u0bf2\u0c78-\u0c7e\u0d58-\u0d5e\u0d70-\u0d78"
    "\u0f2a-\u0f33\u1369-\u137c\u16ee-\u16f0\u17f0-\u17f9\u19da\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2182"
    "\u2185-\u2189\u2460-\u24ff\u2776-\u2793\u2cfd\u3007\u3021-\u3029\u3038-\u303a\u3192-\u3195\u3220-\u3229"
    "\u3248-\u325f\u3280-\u3289\u32b1-\u32bf\ua6e6-\ua6ef\ua830-\ua835"
)
_NEWER = "\u0860-\u0887\u08ad-\u08c9\u1c80-\u1cbf\ua698-\ua69d\ua794-\ua79f\ua7ab-\ua7f7\uab30-\uabbf"
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed"
    "\u06fd\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955"
    "\u0962\u0963\u0981-\u0983\u09bc\u09be-\u09c4\u09c7-\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c"
    "\u0a3e-\u0a4f\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d48\u0e31"
    "\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)

LETTER = (
    f"(?:[^\\W\\d_{_NUMERIC_NOT_DECIMAL}{_NEWER}\U00010000-\U0010ffff]|[{_MARKS}\u00ad]"
    "|&[aeiouAEIOU](?:acute|grave|uml);)"
)
"""A letter, a combining mark, a soft hyphen (deleted later) or an accented vowel written as an HTML entity."""

SYMBOL = (
    "[!-/:-@\\[-`{-~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b9\u00bf-\u00f7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6"
    "\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8"
    "\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u208e"
    "\u20a4\u2100-\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff65\uffe0\uffe1"
    "\uffe5\uffe6\u201a]"
)
"""A character that is a word by itself (unless it is a letter)."""

SPACE = " \t\u00a0\u2000-\u200a\u3000"
"""Inside brackets: white space within a line."""
