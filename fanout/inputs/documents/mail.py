"""Mail whose only text is HTML: kreuzberg runs its words together."""

from __future__ import annotations

import email
from email import policy

__all__ = ["html_mail"]

_HEADERS = ("Subject", "From", "To", "Cc", "Date")


def html_mail(data: bytes) -> tuple[str, str] | None:
    """Return the headers and the page of a mail without plain text; None if it has such a text.

    Raises:
        Exception: It is no mail that Python can parse.
    """
    mail = email.message_from_bytes(data, policy=policy.default)
    body = mail.get_body(("plain", "html"))
    if body is None or body.get_content_type() != "text/html":
        return None
    head = [f"{name}: {mail[name]}" for name in _HEADERS if mail[name]]
    return "\n".join(head), str(body.get_content())
