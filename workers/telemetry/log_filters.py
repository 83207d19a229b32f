"""What a worker's log may say: no keys, no contents, and no line without an end.

Celery's own lines name tasks, and what they raised. The clients of providers log whole requests,
with the prompt, where their logging is on: these records are dropped at every level.
"""

from __future__ import annotations

import logging

from fanout.core.redaction import redacted

__all__ = ["LogGuard", "guard", "quiet_clients"]

_MAX_MESSAGE = 2_000
_MAX_TRACEBACK = 20_000

# Below a warning these say what they send and receive.
_CLIENTS = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "asyncio")
# litellm says it in its errors as well; what they mean is in the branch's outcome.
_MUTE = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "litellm")


class LogGuard(logging.Filter):
    """A filter of handlers: redacts what is logged, bounds it, and drops what clients log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is logged; what it says is made safe."""
        if not _is_wanted(record):
            return False
        record.msg, record.args = _bounded(redacted(record.getMessage()), _MAX_MESSAGE), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_type = record.exc_info[0].__name__
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = _bounded(redacted(record.exc_text), _MAX_TRACEBACK)
        # Formatters take the text where there is one.
        record.exc_info = None
        return True


def _is_wanted(record: logging.LogRecord) -> bool:
    package = record.name.partition(".")[0]
    if package in _MUTE:
        return False
    return package not in _CLIENTS or record.levelno >= logging.WARNING


def _bounded(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def guard(logger: logging.Logger) -> None:
    """Guard all handlers of a logger, and of what logs what becomes of prefork children."""
    for handler in (*logger.handlers, *logging.getLogger("multiprocessing").handlers):
        if not any(isinstance(each, LogGuard) for each in handler.filters):
            handler.addFilter(LogGuard())
    quiet_clients()


def quiet_clients() -> None:
    """Spare the clients of providers the work of lines that are left out."""
    for name in _CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _MUTE:
        # Some have handlers of their own, which no filter of ours sees.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
