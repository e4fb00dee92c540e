"""The page's Content-Security-Policy: its own script and style by their digests, and nothing from anywhere."""

import base64
import hashlib
import re

from serving import Running

from qwenvl.serve.page import policy


def digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def test_the_page_runs_what_stands_in_it_and_nothing_else(server: Running) -> None:
    answer = server.ask("GET", "/")
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    html = answer.body.decode()
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert rules["script-src"] == digest(script) and rules["style-src"] == digest(style)
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"\s(style|on[a-z]+)=\"", html)  # what such a policy would block
    assert not re.search(r"(src|href)=\"(?!data:)", html)


def test_a_page_without_script_may_run_none() -> None:
    assert "script-src 'none'; style-src 'none'" in policy("<p>nothing</p>")
