"""The URL of a broker that Redis Sentinel monitors: its sentinels, and its name there.

``sentinel://[user:password@]host:26379[,host2:26379...]/DB?master=NAME``. The credentials are those
of the server; the sentinels' own are ``&sentinel_username=`` and ``&sentinel_password=``.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

__all__ = ["SCHEME", "SentinelUrl", "parse_sentinel_url", "secrets_of"]

SCHEME = "sentinel://"
_PORT = 26379
_OPTIONS = ("master", "sentinel_username", "sentinel_password")


class SentinelUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A server behind Redis Sentinel.

    ``sentinels`` are their hosts and ports, and ``master`` is the name of the server there.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    db: int = 0
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def for_celery(self) -> str:
        """Return one URL for each sentinel, separated by semicolons, as Celery and kombu expect."""
        user = quote(self.username or "", safe="")
        secret = "" if self.password is None else f":{quote(self.password, safe='')}"
        at = "@" if user or secret else ""
        return ";".join(
            f"{SCHEME}{user}{secret}{at}{_bracketed(host)}:{port}/{self.db}"
            for host, port in self.sentinels
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Parse a ``sentinel://`` URL.

    Raises:
        ValueError: The URL is not valid; the message says what is missing, and quotes no password.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options = dict(parse_qsl(parts.query))
    if not hosts:
        raise ValueError("names no sentinel: sentinel://host:26379/0?master=NAME")
    if "master" not in options:
        raise ValueError("names no master: end it with ?master=NAME, as in the sentinels' config")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"has no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
    return SentinelUrl(
        sentinels=tuple(_host_and_port(host) for host in hosts.split(",")),
        db=_database(parts.path.strip("/")),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **options,
    )


def _host_and_port(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ValueError(f"names a sentinel {text!r} that is not host:port")
    return host, port or _PORT


def _database(path: str) -> int:
    if path and not path.isdecimal():
        raise ValueError(f"names a database {path!r} that is not a number")
    return int(path or 0)


def secrets_of(url: str) -> frozenset[str]:
    """Return the passwords in a broker's URL of any scheme, plain and quoted."""
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    options = dict(parse_qsl(parts.query))
    quoted = {credentials.partition(":")[2]}
    plain = {options.get("password", ""), options.get("sentinel_password", "")}
    plain |= {unquote(each) for each in quoted}
    return frozenset((quoted | plain | {quote(each, safe="") for each in plain}) - {""})
