"""An HTTP client for one server with little work per call, built on aiohttp.

It sets up everything that calls share, such as headers, certificates and the proxy, only once.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from fanout.core.errors import LLMError, ModelError
from fanout.core.exhaustion import is_exhausted
from fanout.core.records import ErrorKind
from fanout.llm.body_lines import lines_of
from fanout.llm.certificates import trust
from fanout.llm.deadline import Deadline
from fanout.llm.error_kinds import FEW
from fanout.llm.http_errors import redacted_line
from fanout.llm.proxies import proxy_for
from fanout.llm.reply_bodies import error_details, json_of
from fanout.llm.usage import UNKNOWN_USAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from fanout.llm.body_lines import Line
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = ["HttpClient", "HttpReply"]

# As in the provider's own client: a call fails if the server closes an idle connection under it.
_KEEP_ALIVE_S = 5.0
_MAX_REDIRECTS = 20
# Seconds until the next attempt to connect after this process had no free descriptor.
_AGAIN_S = 0.5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# As browsers do, follow these with a GET, also after a POST.
_BECOMES_GET = frozenset({301, 302, 303})
_SUCCESSES = range(200, 300)
_SCHEMES = frozenset({"http", "https"})
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


class HttpReply(msgspec.Struct, frozen=True):
    """A reply of any status: its headers, of any case, and its decompressed body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return self.status in _SUCCESSES

    def json(self) -> Any:
        """Return the JSON of the body. Raises ValueError if it is not JSON."""
        return json_of(self.body, self.headers.get("content-type", ""))

    def error_details(self) -> ErrorDetails:
        """Return the error details in the body."""
        return error_details(self.body, self.headers.get("content-type", ""))


class HttpClient:
    """Makes requests to a server, on the loop of its first request.

    Args:
        base_url: The URL of the server; each request includes its query.
        variable: The environment variable of the URL, for messages.
        headers: Sent with each request. A user and a password in the URL replace
            ``authorization``.
        concurrency: Connections that may be open at once.
        max_reply_bytes: The largest body to read.

    Raises:
        ModelError: The URL, the proxy or the certificates are invalid.
    """

    def __init__(
        self,
        base_url: str,
        *,
        variable: str,
        headers: Mapping[str, str],
        concurrency: int,
        max_reply_bytes: int,
    ) -> None:
        base = _parsed(base_url, variable)
        own = CIMultiDict(headers)
        if base.user is not None:
            own["authorization"] = aiohttp.encode_basic_auth(base.user, base.password or "")
        self._base = base.with_user(None)
        self._get_headers = own.copy()
        self._get_headers.pop("content-type", None)
        self._post_headers = own
        self._post_headers.setdefault("content-type", "application/json")
        self._proxy = proxy_for(str(self._base))
        is_tls = "https" in {self._base.scheme, (self._proxy or "").partition(":")[0]}
        # Reading certificates takes time: do it once, and only if they are needed.
        self._trust = trust() if is_tls else True
        self._concurrency = concurrency
        self._max_reply_bytes = max_reply_bytes
        self._session: aiohttp.ClientSession | None = None

    @property
    def shown_url(self) -> str:
        """The server's address for messages, without parts that may be secret."""
        return str(self._base.with_query(None))

    @property
    def path(self) -> str:
        """The path of the base URL."""
        return str(self._base.raw_path)

    @staticmethod
    def quoted(name: str) -> str:
        """Return a name, quoted as one segment of a path."""
        return quote(name, safe=":")

    def url(self, path: str, *, before: str = "") -> URL:
        """Return the address of a path below the base URL, or below ``before`` and its path."""
        raw_path = f"{before}{self._base.raw_path.rstrip('/')}/{path}"
        query = self._base.raw_query_string
        origin = str(self._base.origin())
        return URL(f"{origin}{raw_path}?{query}" if query else origin + raw_path, encoded=True)

    async def get(self, url: URL, *, timeout_s: float) -> HttpReply:
        """Send a GET request. Raises LLMError if there is no reply."""
        limits = aiohttp.ClientTimeout(
            total=None, connect=timeout_s, sock_connect=timeout_s, sock_read=timeout_s
        )
        return await self._request("GET", url, headers=self._get_headers, timeout=limits)

    async def post(
        self, url: URL, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> HttpReply:
        """Send JSON; ``headers`` replace those of the same names.

        Raises LLMError if there is no reply; the caller sets a deadline.
        """
        sent = self._post_headers
        if headers is not None:
            sent = sent.copy()
            sent.update(headers)
        return await self._request("POST", url, headers=sent, data=body, timeout=_NO_TIMEOUT)

    async def delete(self, url: URL, *, timeout_s: float) -> HttpReply:
        """Send a DELETE request. Raises LLMError if there is no reply."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        return await self._request("DELETE", url, headers=self._get_headers, timeout=limits)

    async def upload(
        self,
        url: URL,
        parts: Callable[[], AsyncIterator[bytes]],
        *,
        size: int,
        headers: Mapping[str, str],
    ) -> HttpReply:
        """Send a large body in parts; ``parts`` begins anew each time that it is called.

        Raises LLMError if there is no reply; the caller sets a deadline.
        """
        sent = self._post_headers.copy()
        sent.update(headers)
        sent["content-length"] = str(size)
        return await self._request("POST", url, headers=sent, parts=parts, timeout=_NO_TIMEOUT)

    async def lines(
        self, url: URL, *, stall_s: float, most_bytes: int
    ) -> AsyncIterator[Line | HttpReply]:
        """Yield the lines of a body as they arrive; of an error reply, only the reply.

        Args:
            url: The address.
            stall_s: Seconds within which some of the body has to arrive, and not too slowly; and within
                which an error reply has to end.
            most_bytes: The longest line.

        Raises:
            LLMError: The body does not arrive to its end.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
        session = self._session or self._open()
        for _ in range(_MAX_REDIRECTS):
            try:
                async with session.get(
                    url,
                    proxy=self._proxy,
                    ssl=self._trust,
                    allow_redirects=False,
                    headers=self._get_headers,
                    timeout=limits,
                ) as response:
                    if response.status in _SUCCESSES:
                        read = response.content.readany
                        async for line in lines_of(read, most_bytes=most_bytes, slow_s=stall_s):
                            yield line
                        return
                    with Deadline(stall_s):
                        body = await self._read(response)
                    reply = HttpReply(response.status, response.headers, body)
            except (aiohttp.ClientError, ssl.SSLError, TimeoutError) as error:
                problem = _no_reply(error)
                break
            if reply.status not in _REDIRECTS or "location" not in reply.headers:
                yield reply
                return
            url = _redirected(url, reply)
        else:
            problem = LLMError(ErrorKind.CONNECTION, "the server redirects again and again")
        # Raised outside the handler, without context: aiohttp's errors hold the headers and the key.
        raise problem

    async def _request(self, method: str, url: URL, **options: Any) -> HttpReply:
        redirects = 0
        while redirects <= _MAX_REDIRECTS:
            try:
                reply = await self._reply(method, url, **options)
            except _NotConnectedError:
                # Nothing was sent, so this is no attempt. The caller's deadline bounds the wait.
                await asyncio.sleep(_AGAIN_S)
                continue
            if reply.status not in _REDIRECTS or "location" not in reply.headers:
                return reply
            redirects += 1
            url = _redirected(url, reply)
            if method == "POST" and reply.status in _BECOMES_GET:
                method, options = "GET", {**options, "data": None, "parts": None}
        raise LLMError(ErrorKind.CONNECTION, "the server redirects again and again")

    async def _reply(
        self,
        method: str,
        url: URL,
        parts: Callable[[], AsyncIterator[bytes]] | None = None,
        **options: Any,
    ) -> HttpReply:
        session = self._session or self._open()
        if parts is not None:
            options["data"] = parts()
        try:
            async with session.request(
                method,
                url,
                proxy=self._proxy,
                ssl=self._trust,
                allow_redirects=False,
                **options,
            ) as response:
                content = await self._read(response)
                return HttpReply(response.status, response.headers, content)
        except (aiohttp.ClientError, ssl.SSLError) as error:
            problem = _no_reply(error)
        # Raised outside the handler, without context: aiohttp's errors hold the headers and the key.
        raise problem

    def _open(self) -> aiohttp.ClientSession:
        # No session headers: aiohttp would send them, with the key, to a proxy.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._concurrency, keepalive_timeout=_KEEP_ALIVE_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
        )
        return self._session

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        blocks: list[bytes] = []
        left = self._max_reply_bytes
        while block := await response.content.readany():
            blocks.append(block)
            left -= len(block)
            if left < 0:
                # The rest stays unread, so the connection cannot be reused.
                response.close()
                raise LLMError(
                    ErrorKind.INVALID_OUTPUT,
                    f"the reply is larger than {self._max_reply_bytes / 1e6:,.0f} MB",
                )
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


def _redirected(url: URL, reply: HttpReply) -> URL:
    """Return the target of a redirect within the same origin: no other server may get the prompt.

    Raises:
        LLMError: The target has another origin.
    """
    location = reply.headers["location"]
    try:
        target = url.join(URL(location))
        is_same_origin = target.scheme in _SCHEMES and target.origin() == url.origin()
        shown = str(target.with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        is_same_origin, shown = False, location.partition("?")[0]
    if is_same_origin:
        return target.with_user(None)
    raise LLMError(
        ErrorKind.BAD_REQUEST,
        f"HTTP {reply.status}: the server redirects to another one, {redacted_line(shown)}, where "
        "no prompt and no key is sent; if it is the right one, set it as the base URL where the "
        "workers run",
        status=reply.status,
        stop_after=FEW,
    )


def _parsed(base_url: str, variable: str) -> URL:
    try:
        url = URL(base_url.strip())
        is_http = url.scheme in _SCHEMES and bool(url.host)
    except ValueError:
        is_http = False
    if not is_http:
        # Text between :// and @ is secret.
        shown = redacted_line(base_url.rpartition("@")[2])
        raise ModelError(
            f"{variable} must be a URL that begins with http:// or https:// (got {shown!r}); "
            "change it where the workers run",
            kind=ErrorKind.CONNECTION,
        )
    return url.with_fragment(None)


_AFTER_SENDING = (
    aiohttp.ClientOSError,
    aiohttp.ClientPayloadError,
    aiohttp.ServerDisconnectedError,
    aiohttp.SocketTimeoutError,
)

_BEFORE_SENDING = aiohttp.ClientConnectorError


class _NotConnectedError(LLMError):
    """This process had no free descriptor for a connection."""


def _no_reply(error: Exception) -> LLMError:
    if isinstance(error, aiohttp.ClientConnectorError) and is_exhausted(error.os_error):
        return _NotConnectedError(ErrorKind.CONNECTION, str(error.os_error))
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return LLMError(ErrorKind.CONNECTION, f"the proxy refuses: HTTP {error.status}")
    if isinstance(error, aiohttp.ClientResponseError):
        words = "what the server sent is not HTTP"
        return LLMError(ErrorKind.SERVER_ERROR, words, usage=UNKNOWN_USAGE)
    is_late = isinstance(error, TimeoutError)
    message = redacted_line(str(error)) or type(error).__name__
    # A provider that has the request may go on with it, and bill it.
    is_sent = isinstance(error, _AFTER_SENDING) and not isinstance(error, _BEFORE_SENDING)
    return LLMError(
        ErrorKind.TIMEOUT if is_late else ErrorKind.CONNECTION,
        message,
        usage=UNKNOWN_USAGE if is_sent else None,
    )
