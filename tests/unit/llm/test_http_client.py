"""The HTTP client's connections: reuse, bounds, closing, proxies, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import threading

import httpx2._utils
import pytest
import uvloop

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm import LLMRequest
from fanout.llm.http_client import HttpClient
from fanout.llm.openai import OpenAILLM
from fanout.llm.proxies import proxy_for
from tests.raw_server import RawServer, read_request
from tests.scripted_provider import openai_reply
from tests.tls import TlsFront

KEY = "sk-test-0123456789abcdef"
REQUEST = LLMRequest(prompt="hello")
REPLY = (
    b'HTTP/1.1 200 OK\r\ncontent-length: 45\r\n\r\n{"choices": [{"message": {"content": "hi"}}]}'
)

pytestmark = pytest.mark.usefixtures("no_proxies")


@pytest.fixture
def no_proxies(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on each event loop."""

    def on_loop(coroutine):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return on_loop


@contextlib.asynccontextmanager
async def model(url, **options):
    llm = OpenAILLM("m", base_url=f"{url}/v1", **options)
    try:
        yield llm
    finally:
        await llm.aclose()


async def failure(llm):
    with pytest.raises(LLMError) as caught:
        await llm.complete(REQUEST)
    return caught.value


def test_connections_are_kept_and_bounded(run):
    at_once, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    def talk(connection):
        nonlocal at_once, most
        while read_request(connection):
            with lock:
                at_once += 1
                most = max(most, at_once)
            together.wait(60)
            with lock:
                at_once -= 1
            connection.sendall(REPLY)

    async def main():
        async with model(server.url, concurrency=3) as llm:
            await asyncio.gather(*(llm.complete(REQUEST) for _ in range(9)))

    with RawServer(talk) as server:
        run(main())
        assert (server.connections, most) == (3, 3)


def test_a_call_that_is_cancelled_closes_its_connection(run):
    came, gone = threading.Event(), threading.Event()

    def talk(connection):
        read_request(connection)
        # Send half a reply, so that the call is still reading the body.
        connection.sendall(REPLY[:-9])
        came.set()
        assert read_request(connection) == b""
        gone.set()

    async def main():
        async with model(server.url, concurrency=1) as llm:
            call = asyncio.create_task(llm.complete(REQUEST))
            assert await asyncio.to_thread(came.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(gone.wait, 10)

    with RawServer(talk) as server:
        run(main())


def test_a_kept_connection_that_was_closed_is_an_error_or_not_used_and_never_a_second_call(run):
    requests = []

    def talk(connection):
        requests.append(read_request(connection))
        connection.sendall(REPLY)
        # Returning closes the connection silently, like a server after its idle timeout.

    async def main():
        async with model(server.url) as llm:
            for _ in range(20):
                with contextlib.suppress(LLMError):
                    await llm.complete(REQUEST)

    with RawServer(talk) as server:
        run(main())
    assert len(list(filter(None, requests))) <= 20


def test_a_body_without_an_end_is_not_read_to_its_end(run):
    sent, gone = 0, threading.Event()

    def talk(connection):
        nonlocal sent
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            while True:
                connection.sendall(block)
                sent += len(block)
        finally:
            gone.set()

    async def main():
        async with model(server.url, max_output_kb=1) as llm:
            error = await failure(llm)
            assert error.kind is ErrorKind.INVALID_OUTPUT
            assert str(error) == "the reply is larger than 8 MB"
            assert await asyncio.to_thread(gone.wait, 10)

    with RawServer(talk) as server:
        run(main())
    # Plus the data in the system's buffers.
    assert 8e6 < sent < 40e6


def test_the_bound_follows_the_answers_that_are_allowed(provider):
    provider.body = openai_reply("x" * 9_000_000)

    async def main(max_output_kb):
        async with model(provider.url, max_output_kb=max_output_kb) as llm:
            return await llm.complete(REQUEST)

    with pytest.raises(LLMError, match="larger than 8 MB"):
        asyncio.run(main(1))
    assert len(asyncio.run(main(1_024)).text) == 9_000_000


def test_a_large_prompt_gets_there(run, provider):
    provider.body = openai_reply()
    prompt = "é" * 400_000

    async def main():
        async with model(provider.url) as llm:
            await llm.complete(LLMRequest(prompt=prompt))

    run(main())
    assert provider.requests[-1][2]["messages"][0]["content"] == prompt


def test_certificates_are_those_of_the_environment(run, provider, tmp_path, monkeypatch):
    provider.body = openai_reply()

    async def main():
        async with model(f"https://127.0.0.1:{front.port}") as llm:
            return (await llm.complete(REQUEST)).text

    with TlsFront(tmp_path / "tls", int(provider.url.rpartition(":")[2])) as front:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        with pytest.raises(LLMError, match="certificate verify failed") as caught:
            run(main())
        assert caught.value.kind is ErrorKind.CONNECTION
        with monkeypatch.context() as elsewhere:
            # A Python whose OpenSSL looks for certificates in another place.
            elsewhere.setattr(ssl.SSLContext, "load_default_certs", lambda _context: None)
            files = (str(tmp_path / "none"), str(front.ca))
            elsewhere.setattr("fanout.llm.certificates._CA_FILES", files)
            assert run(main()) == "hi"
        monkeypatch.setenv("SSL_CERT_FILE", str(front.ca))
        assert run(main()) == "hi"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(
        ModelError, match=r"^SSL_CERT_FILE: no certificates can be read there: No s"
    ):
        OpenAILLM("m", base_url="https://127.0.0.1")


def test_a_proxy_is_asked_for_the_server_and_gets_its_own_password(run, provider, monkeypatch):
    provider.body = openai_reply("through")
    monkeypatch.setenv("HTTP_PROXY", provider.url.replace("//", "//me:pass@"))

    async def main():
        async with model("http://model.example") as llm:
            return [(await llm.complete(REQUEST)).text for _ in range(3)]

    assert run(main()) == ["through"] * 3
    for path, headers, _ in provider.requests:
        assert path == "http://model.example/v1/chat/completions"
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["proxy-authorization"] == "Basic bWU6cGFzcw=="


@pytest.mark.parametrize("status", ["200 OK", "407 Who are you"])
def test_a_proxy_of_a_secure_server_sees_no_key(run, monkeypatch, status):
    heads = []

    def talk(connection):
        heads.append(read_request(connection))
        connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        heads.append(connection.recv(65_536))

    async def main():
        async with model("https://model.example") as llm:
            return await failure(llm)

    with RawServer(talk) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:pass@"))
        error = run(main())
        assert error.kind is ErrorKind.CONNECTION
        assert heads[0].startswith(b"CONNECT model.example:443 ")
        assert b"roxy-Authorization: Basic bWU6cGFzcw==" in heads[0]
        assert KEY.encode() not in b"".join(heads)
        assert (error.__cause__, error.__context__) == (None, None)


def reference_proxy(url):
    """The proxy that the SDK's transport selects in the same environment."""
    patterns = {
        httpx2._utils.URLPattern(key): proxy
        for key, proxy in httpx2._utils.get_environment_proxies().items()
    }
    found = httpx2.URL(url)
    return next((patterns[each] for each in sorted(patterns) if each.matches(found)), None)


HOSTS = ("model.example", "a.model.example", "b.a.model.example", "amodel.example", "localhost",
         "127.0.0.1", "10.1.2.3", "[::1]", "[2001:db8::7]")  # fmt: skip
ENTRIES = ("model.example", ".model.example", "*.model.example", "MODEL.example", "example",
           "localhost", "127.0.0.1", "10.0.0.0/8", "10.1.2.3/32", "::1", "[::1]", "2001:db8::/32",
           "http://model.example", "https://a.model.example", "all://model.example", "example:8443",
           "*.example:8443", "model.example/x", "10.0.0.0/99", "a b", "*", "",
           "http://localhost", "127.0.0.1:8443", "[::1]:8443")  # fmt: skip


def test_the_proxy_is_the_one_that_the_sdk_takes(monkeypatch):
    rand = random.Random(7)
    met = set()
    for _ in range(1_500):
        chosen = {
            "http_proxy": rand.choice(["", "http://h:1", "h:1"]),
            "https_proxy": rand.choice(["", "http://s:2", "https://s:2"]),
            "all_proxy": rand.choice(["", "", "http://a:3"]),
            "no_proxy": ",".join(rand.sample(ENTRIES, rand.randrange(3))),
        }
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        port = rand.choice(["", ":80", ":443", ":8443"])
        url = f"{rand.choice(['http', 'https'])}://{rand.choice(HOSTS)}{port}/v1"
        expected = reference_proxy(url)
        assert proxy_for(url) == expected, (url, chosen)
        met.add(expected)
    assert met == {None, "http://h:1", "http://s:2", "https://s:2", "http://a:3"}


def test_a_port_of_no_proxy_may_be_the_one_that_goes_without_saying():
    # Here the SDK's transport would use the proxy.
    proxies = {"https": "http://s:2", "no": "model.example:443"}
    assert proxy_for("https://model.example/v1", proxies) is None
    assert proxy_for("https://model.example:8443/v1", proxies) == "http://s:2"


def test_a_check_gives_up(run, monkeypatch):
    monkeypatch.setattr("fanout.llm.http_model._REQUEST_S", 0.1)

    def talk(connection):
        read_request(connection)
        connection.recv(1)

    async def main():
        async with model(server.url) as llm:
            with pytest.raises(ModelError, match="no server answers at http") as caught:
                await llm.check()
            assert caught.value.kind is ErrorKind.CONNECTION

    with RawServer(talk) as server:
        run(main())


def test_no_error_leads_to_the_key(run):
    def talk(connection):
        read_request(connection)
        connection.sendall(b"HTTP/1.1 what?\r\n\r\n")

    async def main():
        async with model(server.url) as llm:
            return await failure(llm)

    with RawServer(talk) as server:
        error = run(main())
    assert (error.kind, str(error)) == (ErrorKind.SERVER_ERROR, "what the server sent is not HTTP")
    # aiohttp's error contains the headers of the request.
    assert (error.__cause__, error.__context__) == (None, None)


def test_a_client_that_was_never_used_has_nothing_to_close():
    client = HttpClient(
        "http://127.0.0.1:9", variable="X", headers={}, concurrency=1, max_reply_bytes=1
    )
    asyncio.run(client.aclose())
    assert re.fullmatch(r"http://127\.0\.0\.1:9/a/b", str(client.url("a/b")))
