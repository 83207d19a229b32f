"""Redaction of keys and passwords in messages, records and logs.

The redactor learns secrets from the environment and from the broker's URL, in each encoding in
which they may appear. It recognises other keys by their form. Callers redact a text before they
truncate it, so that no part of a key remains.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote, unquote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["MASK", "Redactor", "learn", "redacted", "secret_values"]

MASK = "[key]"

# Shorter values are words such as "none" or "test": replacing those would garble messages.
_SHORTEST = 8
# The part of a base64 text that depends on the secret alone must be too long to be a word.
_SHORTEST_CORE = 12

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|BASIC_AUTH)$",
    re.IGNORECASE,
)
# Lines of `Name: value`, or the `name=value` list with commas of OpenTelemetry.
_HEADERS_NAME = re.compile(r"(?:^|_)HEADERS$", re.IGNORECASE)
_HEADER_LINE = re.compile(r"[^:=\n,]{1,100}[:=]([^\n]*)")
_OPEN_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "content-type", "user-agent", "connection"}
)
_SCHEME = re.compile(r"(?:bearer|basic|token|apikey)\s+", re.IGNORECASE)

_USERINFO = re.compile(r"(?<=://)([^\s/@:?#]*):([^\s/@?#]+)(?=@)")
# Secret fields of queries and forms: _PARAMETER applies anywhere, _QUERY in URLs only.
_PARAMETER = re.compile(
    r"(?<![A-Za-z0-9])((?:[A-Za-z0-9]{1,30}[-_]){0,4}"
    r"(?:api[-_]?key|access[-_]?token|signature|secret|password|passwd)=)([^\s&#;'\"]+)",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"([?&](?:[A-Za-z0-9]{1,30}[-_]){0,4}(?:key|token|sig|pwd|credential|auth|code)=)"
    r"([^\s&#;'\"]+)",
    re.IGNORECASE,
)
# Secret headers and JSON fields, quoted in any way.
_FIELD_SECRET = re.compile(
    r"((?<![A-Za-z0-9_-])(?:x-api-key|api[-_]?key|x-goog-api-key|x-auth-token"
    r"|ocp-apim-subscription-key|(?:access|refresh|id|auth|session)[-_]token|client[-_]secret"
    r"|secret[-_](?:access[-_])?key|private[-_]key|password|passwd)"
    r"\\?[\"']?[ \t]?[:=][ \t]?\\?[\"']?)([^\s\"',;&}\])\\]{6,})",
    re.IGNORECASE,
)
_FIELD_WORDS = ("key", "token", "secret", "passw")
_CREDENTIALS = re.compile(
    r"(\b(?:proxy-)?authorization\\?[\"']?[ \t]?[:=][ \t]?\\?[\"']?"
    r"(?:(?:bearer|basic|token|apikey)[ \t]+)?|\bbearer[ \t]+)([^\s\"',;}\]\\]{6,})",
    re.IGNORECASE,
)
_BASIC = re.compile(r"(\bbasic[ \t]+)([A-Za-z0-9+/_-]{8,}={0,2})", re.IGNORECASE)

# Keys by their form. OpenAI, Anthropic, OpenRouter, Stripe, Langfuse; Google; AWS; Groq, Hugging
# Face, xAI, Replicate, Perplexity, NVIDIA, Fireworks, Together, Cerebras; GitHub; GitLab; Slack;
# Databricks; LangSmith; npm and PyPI; SendGrid; DigitalOcean; JSON Web Tokens; private keys.
# Each form has the literals that a text must contain: searching for these is a hundred times cheaper.
_FORMS = (
    (("sk-", "pk-", "rk-", "key-"), re.compile(r"\b(?:sk|pk|rk|key|csk)-[\w*-]{6,}")),
    (("k_live_", "k_test_"), re.compile(r"\b[spr]k_(?:live|test)_\w{6,}")),
    (("AIza",), re.compile(r"\bAIza[\w-]{20,}")),
    (("AQ.",), re.compile(r"\bAQ\.[\w-]{20,}")),
    (("ya29.",), re.compile(r"\bya29\.[\w.-]{20,}")),
    (("GOCSPX-",), re.compile(r"\bGOCSPX-[\w-]{16,}")),
    (("AKIA", "ASIA", "ABIA", "ACCA"), re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{12,}")),
    (("gsk", "hf", "xai", "r8", "fw", "tgp_v1", "nvapi", "pplx"),
     re.compile(r"\b(?:gsk|hf|xai|r8|fw|tgp_v1|nvapi|pplx)[_-][\w-]{16,}")),
    (("gh", "github_pat"), re.compile(r"\b(?:gh[opsur]|github_pat)_\w{16,}")),
    (("gl",), re.compile(r"\bgl(?:pat|rt|dt|cbt|ptt|soat)-[\w.-]{16,}")),
    (("xox",), re.compile(r"\bxox[abeprs]-[\w-]{8,}")),
    (("xapp-",), re.compile(r"\bxapp-[\w-]{16,}")),
    (("dapi",), re.compile(r"\bdapi[0-9a-f]{32}")),
    (("ls",), re.compile(r"\bls(?:v2_pt_|v2_sk_|__)\w{24,}")),
    (("npm_", "pypi-", "dop_v1_", "whsec_"),
     re.compile(r"\b(?:npm_|pypi-|dop_v1_|whsec_)[\w-]{16,}")),
    (("SG.",), re.compile(r"\bSG\.[\w-]{16,}\.[\w-]{16,}")),
    (("eyJ",), re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?")),
    (("PRIVATE KEY",),
     re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,40}-----)?")),
)  # fmt: skip


class Redactor:
    """Replaces secrets in texts.

    Args:
        values: Secrets to replace, of any form.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.values = frozenset(value for value in values if len(value) >= _SHORTEST)
        forms = {form for value in self.values for form in _forms(value)}
        # Longest first: one secret may begin with another.
        self._known = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        for value in self._known:
            if value in text:
                text = text.replace(value, MASK)
        lowered = text.lower()
        if "://" in text:
            text = _USERINFO.sub(rf"\1:{MASK}", text)
        if "=" in text:
            text = _PARAMETER.sub(rf"\1{MASK}", text)
            text = _QUERY.sub(rf"\1{MASK}", text)
        if "authorization" in lowered or "bearer" in lowered:
            text = _CREDENTIALS.sub(rf"\1{MASK}", text)
        if "basic" in lowered:
            text = _BASIC.sub(_basic_masked, text)
        if any(word in lowered for word in _FIELD_WORDS):
            text = _FIELD_SECRET.sub(rf"\1{MASK}", text)
        for beginnings, form in _FORMS:
            if any(beginning in text for beginning in beginnings):
                text = form.sub(MASK, text)
        return text


def _basic_masked(found: re.Match[str]) -> str:
    """Mask Basic credentials, but not the two words ``Basic authentication``."""
    return f"{found[1]}{MASK}" if ":" in _decoded(found[2]) else found[0]


def _decoded(encoded: str) -> str:
    padded = encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4)
    try:
        return base64.b64decode(padded, altchars=b"-_" if set("-_") & set(padded) else None).decode(
            "utf-8", "replace"
        )
    except (binascii.Error, ValueError):
        return ""


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms of a secret: plain, quoted for a URL or JSON, and in base64."""
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    yield from {secret, *quoted, json.dumps(secret)[1:-1]}
    data = secret.encode("utf-8", "replace")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            core = _core(encode(b"\0" * before + data).decode(), before, len(data))
            if len(core) >= _SHORTEST_CORE:
                yield core


def _core(encoded: str, before: int, size: int) -> str:
    """Return the base64 characters that depend on a secret alone, ``before`` bytes into a text.

    A character encodes six bits; the characters at the edges share bits with the neighbouring bytes.
    """
    first = -(-8 * before // 6)
    return encoded[first : 8 * (before + size) // 6]


def secret_values(environment: Mapping[str, str]) -> set[str]:
    """Return the secrets among variables: by their names, in headers, and in URLs."""
    found: set[str] = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name):
            found.add(value)
        if _HEADERS_NAME.search(name):
            found |= set(_header_secrets(value))
        if "://" in value:
            found |= _url_secrets(value)
    return found


def _header_secrets(headers: str) -> Iterator[str]:
    """Yield the values of headers, and what of them follows a scheme."""
    # Commas separate fields in OpenTelemetry's form only: an HTTP header value may have commas.
    is_http = ":" in headers.split("\n", 1)[0].split("=", 1)[0]
    for line in headers.split("\n") if is_http else headers.split(","):
        found = _HEADER_LINE.match(line)
        name = re.split("[:=]", line, maxsplit=1)[0].strip().lower()
        if found is None or name in _OPEN_HEADERS:
            continue
        value = found[1].strip() if is_http else unquote(found[1].strip())
        yield value
        bare = _SCHEME.sub("", value, count=1)
        yield bare
        user, colon, password = _decoded(bare).partition(":")
        if colon and user.isprintable() and password.isprintable():
            yield password


def _url_secrets(url: str) -> set[str]:
    secrets = set()
    for match in _USERINFO.finditer(url):
        secrets |= {match[2], unquote(match[2])}
        user, password = unquote(match[1]), unquote(match[2])
        # The form in which a client sends it as Basic credentials.
        secrets.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    for match in (*_PARAMETER.finditer(url), *_QUERY.finditer(url)):
        # Servers and clients use the unquoted value.
        secrets |= {match[2], unquote_plus(match[2]), unquote(match[2])}
    return secrets


_redactor = Redactor()


def learn(*urls: str | None) -> None:
    """Learn the secrets of this process from its environment, and from these URLs.

    Called when a worker or a client starts, and when a model is made. Learned secrets stay.
    """
    global _redactor  # noqa: PLW0603 - replaced as a whole, so that readers need no lock
    found = secret_values(os.environ).union(*(_url_secrets(url) for url in urls if url))
    if not {value for value in found if len(value) >= _SHORTEST} <= _redactor.values:
        _redactor = Redactor(found | _redactor.values)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without the secrets of this process, and without ``secrets``."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return _redactor(text)
