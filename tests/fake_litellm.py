"""litellm as an adapter sees it, over scripted answers: the library itself is large and optional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.llm.limit_headers import LimitHeaders
from fanout.llm.litellm import LiteLLM
from fanout.llm.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["litellm_of"]


class _Module:
    def __init__(self, respond: Callable[[Any, Any], tuple[int, Any]]) -> None:
        self._respond = respond

    async def acompletion(self, **options: Any) -> Any:
        status, body = self._respond({}, options)
        if status != 200:
            error = type("BadRequestError", (Exception,), {"status_code": status, "body": body})
            raise error(body["error"]["message"])
        choice, usage = body["choices"][0], body.get("usage")
        made = {"message": type("Message", (), choice["message"]), "finish_reason": "stop"}
        return type("Response", (), {"choices": [type("Choice", (), made)], "usage": usage})


def litellm_of(respond: Callable[[Any, Any], tuple[int, Any]]) -> LiteLLM:
    """Return the adapter over a function of headers and options, which returns status and body."""
    llm = LiteLLM.__new__(LiteLLM)
    llm._limit_headers = LimitHeaders()
    llm._name, llm._refusals, llm._litellm = "x/m", Refusals("x/m"), _Module(respond)
    return llm
