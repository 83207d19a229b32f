"""Selects the proxy of a server from the environment: once, not per call."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from fanout.core.errors import ModelError
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["proxy_for"]

_PORTS = {"http": 80, "https": 443}
# A single address counts as a network; an address with a port does not.
_NETWORK = re.compile(r"(\d+\.[\d.]+|[0-9a-f]*+:[0-9a-f.]*+:[0-9a-f:.]*+|\[[0-9a-f:.]+\])(/\d+)?")


def proxy_for(url: str, proxies: Mapping[str, str] | None = None) -> str | None:
    """Return the URL of the proxy for a server, or None for a direct connection.

    Args:
        url: The URL of the server.
        proxies: By scheme (``http``, ``https``, ``all``), and ``no`` for servers with a direct
            connection; if None, from ``HTTP_PROXY`` and the like.

    Raises:
        ModelError: The scheme of the proxy is not supported.
    """
    known = getproxies() if proxies is None else proxies
    server = urlsplit(url)
    proxy = known.get(server.scheme) or known.get("all")
    if not proxy or any(_names(entry, url) for entry in known.get("no", "").split(",")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = urlsplit(proxy).scheme
    if scheme not in _PORTS:
        raise ModelError(
            f"a proxy must be http:// or https:// (got {scheme}://); change HTTPS_PROXY, "
            "HTTP_PROXY or ALL_PROXY where the workers run, or list the server in NO_PROXY",
            kind=ErrorKind.CONNECTION,
        )
    return proxy


def _names(entry: str, url: str) -> bool:
    """Say whether an entry of ``NO_PROXY`` names the server of a URL."""
    server = urlsplit(url)
    host, port = server.hostname or "", server.port or _PORTS[server.scheme]
    scheme, is_url, rest = entry.strip().lower().rpartition("://")
    if scheme not in {"", "all", server.scheme}:
        return False
    if rest == "*" or _NETWORK.fullmatch(rest):
        return rest == "*" or _is_in(host, rest)
    return _names_host(rest, host, port, is_exact=bool(is_url))


def _names_host(entry: str, host: str, port: int, *, is_exact: bool) -> bool:
    try:
        named = urlsplit(f"//{entry}")
        name, only_port = named.hostname or "", named.port
    except ValueError:
        return False
    if named.path or only_port not in {None, port}:
        return False
    if name.startswith(("*.", ".")):
        return host.endswith(name.removeprefix("*"))
    # As in curl, a host name includes its subdomains; a URL does not.
    is_above = bool(name) and not is_exact and name != "localhost" and host.endswith(f".{name}")
    return host == name or is_above


def _is_in(host: str, network: str) -> bool:
    try:
        bare = network.replace("[", "").replace("]", "")
        return ipaddress.ip_address(host) in ipaddress.ip_network(bare, strict=False)
    except ValueError:
        return False
