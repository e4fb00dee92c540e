"""The page at /: one HTML file, sent with a policy that lets nothing run or load but what stands in it."""

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).with_name("page.html")

_INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)


def policy(html: str) -> str:
    """The Content-Security-Policy of a page: own scripts and styles by their digest, own images."""
    none = "'none'"
    rules = [f"default-src {none}"]
    for kind in ("script", "style"):
        inner = [text for each, text in _INLINE.findall(html) if each == kind]
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inner]
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
        rules.append(f"{kind}-src {allowed or none}")
    rules += ["img-src data: blob:", "media-src blob:", "connect-src 'self'", "base-uri 'none'"]
    return "; ".join([*rules, "form-action 'none'", "frame-ancestors 'none'"])


@functools.cache
def _read() -> tuple[bytes, str]:
    html = FILE.read_text("utf-8")
    return html.encode(), policy(html)


def page() -> Response:
    """The page."""
    body, rules = _read()
    headers = {
        "Content-Security-Policy": rules,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "Permissions-Policy": "camera=(self)",
    }
    return Response(body, headers=headers, media_type="text/html")
