"""The page at /: one HTML file, sent with a policy that lets nothing run or load but what stands in it."""

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).with_name("page.html")

_INLINE = {
    "script-src": re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL),
    "style-src": re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL),
}


def policy(html: str) -> str:
    """The Content-Security-Policy of a page: own scripts and styles by their digest, own images."""
    rules = ["default-src 'none'"]
    for name, pattern in _INLINE.items():
        digests = [hashlib.sha256(inner.encode()).digest() for inner in pattern.findall(html)]
        allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests] or ["'none'"]
        rules.append(f"{name} {' '.join(allowed)}")
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
