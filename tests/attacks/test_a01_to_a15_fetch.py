"""Attacks 1 to 15 (docs/SERVING.md): a prompt that makes the server fetch, or open, what it should not."""

import gzip
import io
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import Script, Web, says, web
from PIL import Image
from serving import Answered, Running, ScriptedEngine, api_over, data_url, serving

from qwenvl.chat import Assistant
from qwenvl.serve import fetch
from qwenvl.serve.fetch import REFUSAL, Fetcher, Origin, public
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import RefusedMedia, open_upload, read_source

LIMITS = Limits(image_bytes=200_000, fetch_seconds=20)
ALLOWED = "http://images.example"
PUBLIC, INSIDE = "93.184.216.34", "169.254.169.254"


def image_bytes() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


def fetcher(found: Web, *entries: str, limits: Limits = LIMITS) -> Fetcher:
    origins = map(Origin.parse, entries or (ALLOWED,))
    return Fetcher(origins, limits, resolve=found.resolve, dial=found.dial)


def refused(fetcher: Fetcher, url: str, reason: str) -> None:
    """The one sentence to the client; the reason only in the counts."""
    before = fetcher.refused[reason]
    with pytest.raises(RefusedMedia) as caught:
        read_source(url, LIMITS, fetcher)
    assert str(caught.value) == REFUSAL and fetcher.refused[reason] == before + 1, fetcher.refused


def redirects(*locations: str) -> Script:
    """A server that answers the first requests with redirects to these places, then with an image."""
    left = list(locations)

    def script(connection: socket.socket, head: bytes) -> None:
        if left:
            says(b"", f"Location: {left.pop(0)}", status="302 Found")(connection, head)
        else:
            says(image_bytes())(connection, head)

    return script


def test_an_image_of_a_named_host_is_fetched() -> None:
    """What the refusals below are worth is seen where nothing is wrong: the bytes come, with the Host of the name."""
    with web(says(image_bytes(), "Content-Type: text/html")) as found:
        ours = fetcher(found)
        data = read_source("HTTP://Images.Example/a%20b/cat.png?size=1&x=@y#part", LIMITS, ours)
        assert open_upload(data, LIMITS).image.size == (60, 40) and ours.fetched == 1
        head = found.requests[0].decode()
        assert head.startswith("GET /a%20b/cat.png?size=1&x=@y HTTP/1.1\r\nHost: images.example\r\n")
        assert "Accept-Encoding: identity" in head and found.dialled == [(PUBLIC, 80)]


def test_a01_link_local_url() -> None:
    """CVE-2025-6242 (vLLM), one-api#2387: the metadata service of a cloud in image_url. Without named hosts there is no
    fetcher at all; with some, this is none of them."""
    url = f"http://{INSIDE}/latest/meta-data/iam/"
    with pytest.raises(RefusedMedia, match="fetches nothing but from hosts"):
        read_source(url, LIMITS)
    with web(says(image_bytes())) as found:
        refused(fetcher(found), url, "host")
        assert not found.looked_up and not found.dialled


def test_a02_redirect_to_a_private_address() -> None:
    """lmdeploy#4761, xinference#5533, vllm#55539: the first address is checked, the one after a 302 is not."""
    for place in (
        f"http://{INSIDE}/",
        "http://localhost:80/",
        "http://other.example/",
        "file:///etc/passwd",
        "//other.example/x",
    ):
        with web(redirects(place)) as found:
            refused(
                fetcher(found),
                f"{ALLOWED}/cat.png",
                "host" if "//" in place and "file" not in place else "URL",
            )
            assert len(found.dialled) == 1, place
    with web(redirects("/2", f"{ALLOWED}:80/3", "//images.example/4")) as found:
        assert read_source(f"{ALLOWED}/1", LIMITS, fetcher(found)) == image_bytes()
        assert [head.split()[1] for head in found.requests] == [b"/1", b"/2", b"/3", b"/4"]
    with web(redirects("/2", "/3", "/4", "/5")) as found:
        refused(fetcher(found), f"{ALLOWED}/1", "redirects")
        assert len(found.dialled) == 4


def test_a02_a_redirect_looks_its_name_up_again_and_checks_again() -> None:
    """The same name may lead elsewhere at the second hop."""
    with web(redirects("/2"), {"images.example": [[PUBLIC], ["127.0.0.1"]]}) as found:
        refused(fetcher(found), f"{ALLOWED}/1", "address")
        assert found.dialled == [(PUBLIC, 80)]


def test_a03_dns_rebinding() -> None:
    """LlamaFactory#10646, deepeval#3012: a name is public when it is checked and private when it is dialled. It is
    looked up once, and the address that was checked is the one that is dialled."""
    with web(says(image_bytes()), {"images.example": [[PUBLIC], ["127.0.0.1"]]}) as found:
        assert read_source(f"{ALLOWED}/cat.png", LIMITS, fetcher(found)) == image_bytes()
        assert found.looked_up == ["images.example"] and found.dialled == [(PUBLIC, 80)]


def test_a04_mixed_answers() -> None:
    """vllm#57825: one of several addresses of a name is private."""
    for answers in ([PUBLIC, "10.0.0.1"], ["::1", PUBLIC], [PUBLIC, "not an address"], []):
        with web(says(image_bytes()), {"images.example": [answers]}) as found:
            refused(fetcher(found), f"{ALLOWED}/cat.png", "address")
            assert not found.dialled


PRIVATE = (
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "3fff::1", "5f00::1", "100::1",
)  # fmt: skip

EMBEDDED = (
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2001:0:4136:e378:8000:63bf:80ff:fffe", "64:ff9b:1::7f00:1", "2002:7f00:1::",
    "2002:a9fe:a9fe::1", "fec0::1", "feff::1", "::ffff:100.64.0.1", "2001:20::1", "2001:2::1",
)  # fmt: skip


@pytest.mark.parametrize(
    "spelled", ["2130706433", "0177.0.0.1", "0x7f000001", "0x7f.1", "127.1", "0", "127.0.0.1"]
)
def test_a05_spellings_of_an_address(spelled: str) -> None:
    """llama_index#21671: decimal, octal and hexadecimal addresses, which a filter of names lets pass. Even a host that
    an operator named so is only reached at an address that is public."""
    with web(says(image_bytes())) as found:
        refused(fetcher(found), f"http://{spelled}/", "host")
    named = Fetcher(
        [Origin.parse(f"http://{spelled}")], LIMITS, dial=found.dial
    )  # the resolver of the system
    refused(named, f"http://{spelled}/", "address")
    assert not found.dialled


@pytest.mark.parametrize("address", [*PRIVATE, *EMBEDDED])
def test_a06_addresses_that_are_not_public(address: str) -> None:
    """llama_index#21671, and a gap of mistral.rs: IPv4 inside IPv6 (mapped, NAT64, 6to4, Teredo), site-local, and what
    Python's is_global says otherwise of in some versions."""
    assert not public(address)
    with web(says(image_bytes()), {"images.example": [[address]]}) as found:
        refused(fetcher(found), f"{ALLOWED}/cat.png", "address")
        assert not found.dialled


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "1.1.1.1",
        "100.63.255.255",
        "172.32.0.1",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_a06_addresses_that_are_public(address: str) -> None:
    """The check must not refuse the internet: a test of refusals alone would be passed by `return False`."""
    assert public(address)


DIFFERENTIAL = (
    "http://127.0.0.1\\@images.example/", "http://images.example\\@127.0.0.1/", "http://user@images.example/",
    "http://user:pass@images.example/", "http://images.example@127.0.0.1/", "http://images.example:80@127.0.0.1/",
    "http://images.example./", "http://images..example/", "http://.images.example/", "http://images.example:/x",
    "http://images.example:99999/", "http://images.example:0/", "http://images.example :80/",
    "http:///images.example/", "http://images.example/a b", "http://images.example/\r\nX: y",
    "http://images.example/\x00", "http://images.example/\tx", "http://images.example\t/", "http://[::1]/",
    "http://[::ffff:127.0.0.1]:80/", "http://images.example%2f@127.0.0.1/", "http://images。example/",
    "http://ｉmages.example/", "http://images.example\u200b/", "http://image\u017f.example/",
    "http://\u212amages.example/", "http://images.exampl\u0435/", "http://①②⑦.⓪.⓪.①/",
    "http://images.example/\u0130", "http://im_ages.example/", "http://-images.example/",
    "http://images.example/" + "a" * 3000,
)  # fmt: skip


@pytest.mark.parametrize("url", DIFFERENTIAL)
def test_a07_parser_differential(url: str) -> None:
    """GLM-V#264 and #273, CVE-2026-24779 (vLLM): two parsers read two hosts in one URL. Ours is one pattern for ASCII
    without user names, and what is dialled is put together from its parts."""
    with web(says(image_bytes())) as found:
        refused(fetcher(found, ALLOWED, "http://127.0.0.1"), url, "URL")
        assert not found.looked_up and not found.dialled


def test_a07_what_only_a_browser_takes_for_a_url() -> None:
    with web(says(image_bytes())) as found:
        for url in (
            "http:images.example/",
            "http:/images.example/",
            "https:\\\\images.example/",
            "//images.example/",
        ):
            with pytest.raises(RefusedMedia):
                read_source(url, LIMITS, fetcher(found))
        assert not found.dialled


def test_a08_a_public_name_of_a_private_address() -> None:
    """swarms#1714: 127-0-0-1.sslip.io is a fine name. Addresses are looked at, not names."""
    with web(says(image_bytes()), {"127-0-0-1.sslip.io": [["127.0.0.1"]]}) as found:
        refused(fetcher(found, "http://127-0-0-1.sslip.io"), "http://127-0-0-1.sslip.io/", "address")
        assert not found.dialled


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd", "/etc/passwd", "etc/passwd", "//host/x", "\\\\host\\share\\x.png", "C:\\x.png", "~/x.png",
        "FILE:/etc/passwd", "",
    ],
)  # fmt: skip
def test_a09_paths(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastChat#3873, transformers' load_image: a string that names a file is opened. The answer is the same whether the
    file is there or not."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(image_bytes())
    monkeypatch.chdir(tmp_path)
    with web(says(image_bytes())) as found:
        for ours in (None, fetcher(found)):
            with pytest.raises(RefusedMedia, match="opens no files"):
                read_source(source, LIMITS, ours)
    with pytest.raises(RefusedMedia, match="opens no files"):
        read_source(str(tmp_path / "etc/passwd"), LIMITS)
    for other in (None, 7, b"data:,", ["/etc/passwd"], {"path": "/etc/passwd"}, Path("/etc/passwd")):
        with pytest.raises(RefusedMedia, match="given as a string"):
            read_source(other, LIMITS)


@pytest.mark.parametrize(
    "scheme", ["ftp", "gopher", "jar:http", "dict", "ldap", "blob:https", "view-source:http", "ws"]
)
def test_a10_schemes(scheme: str) -> None:
    """llama_index#21671: ftp, gopher, jar. https (http for hosts named so) and data are all that there is."""
    with web(says(image_bytes())) as found:
        with pytest.raises(RefusedMedia):
            read_source(f"{scheme}://images.example/cat.png", LIMITS, fetcher(found))
        with pytest.raises(RefusedMedia, match=r"no comma|not in base64"):
            read_source(f"data:{scheme}://images.example/cat.png", LIMITS, fetcher(found))
        refused(fetcher(found, "images.example"), f"{ALLOWED}/cat.png", "host")  # named for https only
        assert not found.dialled


def test_a11_ports() -> None:
    """vllm#55539: an allowed host has other services on other ports."""
    with web(says(image_bytes())) as found:
        for port in (22, 443, 6379, 8080):
            refused(fetcher(found), f"{ALLOWED}:{port}/", "host")
        ours = fetcher(found, "http://images.example:8080")
        refused(ours, f"{ALLOWED}/", "host")
        assert read_source(f"{ALLOWED}:8080/", LIMITS, ours) == image_bytes()
        assert found.dialled == [(PUBLIC, 8080)] and b"Host: images.example:8080\r\n" in found.requests[0]


def test_a12_proxies_and_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2024-47081 (requests): credentials of .netrc, and whatever a proxy variable says, travel along."""
    (tmp_path / ".netrc").write_text("machine images.example login me password secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with web(says(image_bytes())) as found:
        assert read_source(f"{ALLOWED}/cat.png", LIMITS, fetcher(found)) == image_bytes()
        assert found.dialled == [(PUBLIC, 80)]
        assert not re.search(rb"authorization|cookie|secret", found.requests[0], re.IGNORECASE)


def trickle(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    for _ in range(600):  # half a minute
        connection.sendall(b"x")
        time.sleep(0.05)


def slow_headers(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(600):
        connection.sendall(b"X-%d: y\r\n" % number)
        time.sleep(0.05)


def continues(connection: socket.socket, head: bytes) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def endless(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(bytes(65536))


def chunks(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"ff" + b";" * 60_000 + b"\r\n" + bytes(255) + b"\r\n")


def silent(connection: socket.socket, head: bytes) -> None:
    time.sleep(1)


def cut(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")


@pytest.mark.parametrize("script", [trickle, slow_headers, continues, endless, chunks, silent, cut])
def test_a13_endless_and_slow_bodies(script: Script) -> None:
    """mistral.rs' limits, vLLM's security.md: a body, a head or a chunk's extension that never ends, or comes byte by
    byte so that no single read times out."""
    limits = Limits(image_bytes=50_000, fetch_seconds=0.6)
    with web(script) as found:
        ours, start = fetcher(found, limits=limits), time.monotonic()
        with pytest.raises(RefusedMedia, match=re.escape(REFUSAL)):
            ours.fetch(f"{ALLOWED}/cat.png")
        assert time.monotonic() - start < 15


def test_a13_a_name_whose_look_up_never_ends() -> None:
    with web(says(image_bytes())) as found:
        ours = Fetcher(
            [Origin.parse(ALLOWED)],
            Limits(fetch_seconds=0.3),
            resolve=lambda *_: time.sleep(1) or [PUBLIC],
            dial=found.dial,
        )
        refused(ours, f"{ALLOWED}/cat.png", "time")


def test_a13_a_body_is_at_most_as_large_as_an_image_may_be() -> None:
    with web(says(bytes(LIMITS.image_bytes))) as found:
        assert len(fetcher(found).fetch(f"{ALLOWED}/x")) == LIMITS.image_bytes
    for announced in (True, False):
        body = bytes(LIMITS.image_bytes + 1)
        script = says(body) if announced else lambda c, _: c.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)  # noqa: B023
        with web(script) as found:
            refused(fetcher(found), f"{ALLOWED}/x", "bytes")


def test_a14_compressed_body() -> None:
    """urllib3 PYSEC-2026-1994 and -1996: a gzip bomb in the answer. None is asked for and none is unpacked."""
    bomb = gzip.compress(bytes(10_000_000))
    for encoding in ("gzip", "br", "deflate", "identity, gzip", "GZIP"):
        with web(says(bomb, f"Content-Encoding: {encoding}")) as found:
            refused(fetcher(found), f"{ALLOWED}/cat.png", "encoding")
    with (
        web(says(bomb)) as found,
        pytest.raises(RefusedMedia, match="no image"),
    ):  # not said: it is what it is
        open_upload(fetcher(found).fetch(f"{ALLOWED}/cat.png"), LIMITS)


def test_a15_no_oracle_and_no_amplification() -> None:
    """vllm-mlx#488: error texts that differ map the network inside. One sentence for all, and a count of fetches."""
    said = set()
    for script in (
        says(b"", status="404 Not Found"),
        says(b"", status="500 Oops"),
        cut,
        says(b"x", status="206 Partial Content"),
    ):
        with web(script) as found, pytest.raises(RefusedMedia) as caught:
            fetcher(found).fetch(f"{ALLOWED}/cat.png")
        said.add(str(caught.value))
    with web(says(b"")) as found:
        nobody = fetcher(found)
        found.port = 1
        refused(nobody, f"{ALLOWED}/cat.png", "connection")
    assert said == {REFUSAL} and not re.search(r"\d+\.\d+|example\b.*example|errno", REFUSAL)


def test_a15_fetches_at_once_are_few() -> None:
    """A request with 16 URLs in each of a hundred requests is no flood for somebody else: `Limits.fetches` at once."""
    with web(silent) as found:
        ours = fetcher(found, limits=Limits(fetches=1, fetch_seconds=0.1))
        assert ours._free.acquire(timeout=1)  # somebody else's fetch
        with pytest.raises(RefusedMedia):
            ours.fetch(f"{ALLOWED}/cat.png")
        assert ours.refused == {"busy": 1} and not found.dialled


def test_named_hosts_are_hosts() -> None:
    assert Origin.parse("images.example") == Origin("https", "images.example", 443)
    assert Origin.parse("HTTP://Images.Example:8080/") == Origin("http", "images.example", 8080)
    assert Origin.parse("xn--mller-kva.example").host == "xn--mller-kva.example"
    for wrong in (
        "",
        "*",
        "*.example",
        "images.example/path",
        "ftp://images.example",
        "müller.example",
        "a:b",
        "a:0",
        "me@a",
        "a b",
        "[::1]",
    ):
        with pytest.raises(ValueError, match="media host"):
            Origin.parse(wrong)
    with pytest.raises(ValueError, match="needs the hosts"):
        Fetcher([], LIMITS)


def test_tls_is_for_the_name_not_for_the_address() -> None:
    """The certificate is checked against the name that was allowed, whatever address was dialled: a server that has
    none is refused, and its name is what it was asked for."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)

    def script(connection: socket.socket, head: bytes) -> None:
        raise AssertionError("a request in the clear")

    with web(script) as found:
        listener = socket.create_server(("127.0.0.1", 0))
        found.port = listener.getsockname()[1]

        def shake() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()

        thread = threading.Thread(target=shake)
        thread.start()
        refused(fetcher(found, "images.example"), "https://images.example/cat.png", "connection")
        thread.join()
        listener.close()
    assert asked == ["images.example"] and found.dialled == [(PUBLIC, 443)]
    assert fetch._PORTS["https"] == 443


def test_tls_with_a_trusted_certificate() -> None:
    """An image comes through TLS from a host whose authority is trusted; for another name the same certificate is
    refused, and so it is by who does not know the authority."""
    here = Path(__file__).parent
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(here / "tls_images_example.pem")
    trusting = ssl.create_default_context(cafile=here / "tls_authority.pem")
    names = {"images.example": [[PUBLIC]], "other.example": [[PUBLIC]]}

    def fetching(found: Web, context: ssl.SSLContext) -> Fetcher:
        origins = map(Origin.parse, names)
        return Fetcher(origins, LIMITS, resolve=found.resolve, dial=found.dial, context=context)

    with web(says(image_bytes()), names, server) as found:
        ours = fetching(found, trusting)
        assert ours.fetch("https://images.example/cat.png") == image_bytes() and ours.fetched == 1
        assert found.requests[0].startswith(b"GET /cat.png HTTP/1.1\r\nHost: images.example\r\n")
        refused(ours, "https://other.example/cat.png", "connection")
        refused(fetching(found, ssl.create_default_context()), "https://images.example/cat.png", "connection")
    assert len(found.requests) == 1 and found.dialled == [(PUBLIC, 443)] * 3


def test_a13_slow_hosts_hold_up_who_fetches_and_nobody_else(
    assistant: Assistant, engine: ScriptedEngine
) -> None:
    """Fetching has threads of its own, a request at most one: while all of them wait, sent images are opened."""
    held, waiting = threading.Event(), []

    class Slow:
        def fetch(self, url: str) -> bytes:
            waiting.append(url)
            held.wait(30)
            return image_bytes()

    def asked(running: Running, number: int) -> Answered:
        parts = [
            {"type": "image_url", "image_url": {"url": f"{ALLOWED}/{number}/{place}"}} for place in range(3)
        ]
        return running.chat(parts)

    limits = Limits(fetches=2)
    with (
        serving(api_over(engine, assistant, fetcher=Slow(), limits=limits)) as running,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = [clients.submit(asked, running, number) for number in range(8)]
        running.until(lambda: len(waiting) == 2)
        try:
            sent = {"type": "image_url", "image_url": {"url": data_url(image_bytes())}}
            assert running.chat([sent]).text == "It is a cat." and len(waiting) == 2
        finally:
            held.set()
        assert {each.result().text for each in answers} == {"It is a cat."} and len(waiting) == 24
    held.clear()
    impatient = Limits(fetches=1, fetch_seconds=0.05)
    with (
        serving(api_over(engine, assistant, fetcher=Slow(), limits=impatient)) as running,
        ThreadPoolExecutor(2) as clients,
    ):
        answers = [clients.submit(asked, running, number) for number in range(2)]
        running.until(lambda: len(waiting) == 25 and running.api._fetching._work_queue.qsize() == 1)
        time.sleep(0.06)
        held.set()
        assert sorted(each.result().status for each in answers) == [200, 429]


def test_a15_the_same_through_the_server(assistant: Assistant) -> None:
    """From image_url to the engine: a named host's image arrives, every refusal is the one sentence at 400, and the
    redirect to a cloud's metadata is among them."""
    ids = assistant.tokenizer.encode("It is a cat.")
    engine = ScriptedEngine(lambda prompt, settings: ids)

    def asked(running: Running, url: str) -> Answered:
        return running.chat([{"type": "image_url", "image_url": {"url": url}}])

    with web(redirects(f"http://{INSIDE}/latest/meta-data/")) as found:
        with serving(api_over(engine, assistant, fetcher=fetcher(found), limits=LIMITS)) as running:
            for url in (
                f"{ALLOWED}/moved",
                f"http://{INSIDE}/",
                "http://images.example:22/",
                "https://images.example/",
            ):
                answer = asked(running, url)
                assert answer.status == 400 and answer.error["message"] == REFUSAL
            assert not engine.history
            assert asked(running, f"{ALLOWED}/cat.png").text == "It is a cat."
            assert len(engine.history[-1].prompt.pixels) == 1
        assert found.dialled == [(PUBLIC, 80)] * 2
    with serving(api_over(engine, assistant)) as running:
        answer = asked(running, f"{ALLOWED}/cat.png")
        assert answer.status == 400 and "fetches nothing but from hosts" in answer.error["message"]
