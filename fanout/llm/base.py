"""The protocol of a model: one coroutine that answers one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from fanout.core.answer_shape import AnswerShape  # noqa: TC001 - msgspec reads the annotation
from fanout.core.errors import LLMError
from fanout.core.exhaustion import is_exhausted
from fanout.core.lanes import Lane  # noqa: TC001 - msgspec reads the annotation
from fanout.core.rate_limits import SeenLimits  # noqa: TC001 - msgspec reads the annotation
from fanout.core.records import ErrorKind, Usage
from fanout.policy.prefixes import PromptCache  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LLM",
    "AnswerReview",
    "LLMReply",
    "LLMRequest",
    "Token",
    "Turn",
    "ends_by_chance",
    "identity_of",
    "unexpected",
]


class Turn(msgspec.Struct, frozen=True):
    """An answer in a conversation, and what is wrong with it."""

    answer: str
    reply: str


class AnswerReview(Protocol):
    """A check of answers that their shape does not make; what is wrong with one costs one call at most."""

    def problem(self, answer: str) -> str | None:
        """Return what is wrong with an answer; None if nothing is."""

    def marked(self, answer: str) -> str:
        """Return an answer with marks at what is wrong with it. Raises WrongShapeError."""


class LLMRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call.

    Attributes:
        prompt: The user's message.
        system: The system prompt, or None.
        temperature: Sampling temperature, or None for the provider's default.
        max_tokens: The longest answer in tokens, or None.
        seed: Sampling seed, or None.
        stop: Strings that end the answer.
        shape: What the answer must be; None is any text.
        turns: What followed in the conversation, first the answer to the prompt.
        lane: How the call is bought.
        cache: What the provider is told of its prompt cache, if anything.
        review: What else the answer is checked for; no matter of adapters.
    """

    prompt: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    shape: AnswerShape | None = None
    turns: tuple[Turn, ...] = ()
    lane: Lane = "realtime"
    cache: PromptCache | None = None
    review: AnswerReview | None = None

    def messages(self, *, in_words: bool, has_system: bool = True) -> list[dict[str, str]]:
        """Return the messages of a chat: ``role`` and ``content``, the system prompt first.

        Args:
            in_words: Whether the system prompt says what the answer must be.
            has_system: Whether the system prompt is a message; else it begins the prompt.
        """
        words = self.shape.in_words if in_words and self.shape is not None else None
        system = "\n\n".join(part for part in (self.system, words) if part)
        messages = [{"role": "system", "content": system}] if system and has_system else []
        prompt = f"{system}\n\n{self.prompt}" if system and not has_system else self.prompt
        messages.append({"role": "user", "content": prompt})
        for answer, reply in self._replies(is_told=in_words):
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": reply})
        return messages

    @property
    def texts(self) -> list[str]:
        """All that the model reads, but for the schema of its answer."""
        texts = [self.prompt, self.system or ""]
        for turn in self.turns:
            texts += (turn.answer, turn.reply)
        return texts

    @property
    def whole_prompt(self) -> str:
        """The conversation as one prompt, for models that take no messages."""
        return self._as_one([self.prompt], is_told=False)

    @property
    def function_prompt(self) -> str:
        """The conversation for a function, which is told a shape that its user has not given.

        What the user has given, the prompt may say, or the function may know.
        """
        if self.shape is None or not self.shape.is_own:
            return self.whole_prompt
        return self._as_one([self.prompt, self.shape.in_words], is_told=True)

    def _as_one(self, parts: list[str], *, is_told: bool) -> str:
        for answer, reply in self._replies(is_told=is_told):
            parts += [f"You answered:\n{answer}", reply]
        return "\n\n".join(parts)

    def _replies(self, *, is_told: bool) -> Iterator[tuple[str, str]]:
        """Yield answers and replies; the first reply says what the answer must be, unless told."""
        for turn in self.turns:
            words = None if is_told or self.shape is None else self.shape.in_words
            yield turn.answer, f"{turn.reply}\n\n{words}" if words else turn.reply
            is_told = True


class Token(msgspec.Struct, frozen=True):
    """One token of an answer, as a server that returns log-probabilities reports it.

    Attributes:
        text: Its UTF-8 bytes, which may be a part of a character.
        logprob: The natural logarithm of its probability.
        others: Tokens that were likely at its place, each with its logarithm; it may be among them.
    """

    text: bytes
    logprob: float
    others: tuple[tuple[bytes, float], ...] = ()


class LLMReply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, and what it consumed.

    Attributes:
        text: The answer.
        usage: What the call consumed.
        model: The model that answered, as the provider calls it, or None.
        response_id: The provider's id of this answer, or None.
        finish_reason: Why the generation ended, in the provider's words, or None.
        tokens: The tokens of the answer with their probabilities, where these were asked for.
        lane: How the provider says that the call was bought; None for as it was asked to.
        limits: The provider's rate limits, as the reply's headers tell them, or None.
    """

    text: str
    usage: Usage = Usage(calls=1)
    model: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None
    tokens: tuple[Token, ...] = ()
    lane: Lane | None = None
    limits: SeenLimits | None = None


@runtime_checkable
class LLM(Protocol):
    """A model that workers can call.

    An instance belongs to one asyncio loop: all its coroutines run there.
    """

    async def check(self) -> None:
        """Check that calls can succeed: credentials are present and the server answers.

        Costs no tokens.

        Raises:
            ModelError: Calls cannot succeed; one line that says what to set.
        """

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Answer one prompt. Makes exactly one call: the caller adds retries and a deadline.

        Raises:
            LLMError: The call failed, with its kind.
        """

    async def aclose(self) -> None:
        """Release connections."""


def unexpected(error: BaseException) -> LLMError:
    """Return the LLMError of any other exception that ended a call."""
    # An exhausted process (memory, descriptors, threads) is temporary, and no fault of the model.
    is_own = is_exhausted(error)
    kind = ErrorKind.CONNECTION if is_own else ErrorKind.INTERNAL
    return LLMError(kind, f"{type(error).__name__}: {_words(error)}", is_own=is_own)


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's exception may raise any other one
        return "its message cannot be read"


def ends_by_chance(llm: LLM, request: LLMRequest) -> bool:
    """Say whether an answer that a model's own limit has cut off may end in time at a second call.

    A small model that samples its answers now and then runs on until its limit.
    """
    told = getattr(llm, "ends_by_chance", None)
    return request.max_tokens is None and told is not None and told(request) is True


def identity_of(llm: LLM) -> str | None:
    """Return what names a model for the answer cache; None if its answers are not kept.

    Two models with the same identity may answer for each other. A function of the user has none: its
    code may change.
    """
    identity = getattr(llm, "identity", None)
    return identity if isinstance(identity, str) else None
