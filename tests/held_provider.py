"""A provider on this machine whose calls a test can hold up, to see what a death costs meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from .scripted_provider import ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE_S = 120.0


class HeldProvider(ScriptedProvider):
    """Counts its calls by name, and holds up those that are asked for.

    ``named(request)`` is the name of a call, and ``answered(request)`` its status and body. Checks of
    the model are no calls.

    Attributes:
        calls: How often each call came since the last ``hold``.
        held: The names of the calls that are held up.
    """

    def __init__(
        self, named: Callable[[Any], Any], answered: Callable[[Any], tuple[int, Any]]
    ) -> None:
        super().__init__()
        self.respond = self._respond
        self.calls: Counter[Any] = Counter()
        self.held: list[Any] = []
        self._named, self._answered = named, answered
        self._holds: Callable[[Any], bool] | None = None
        self._goes_on = threading.Event()
        self._lock = threading.Lock()

    def hold(self, holds: Callable[[Any], bool] | None) -> None:
        """Count anew, and hold up the calls for whose names this is true; they are counted by then."""
        with self._lock:
            self.calls.clear()
            self._holds = holds

    def go_on(self) -> None:
        """Answer what is held up."""
        with self._lock:
            before, self._goes_on = self._goes_on, threading.Event()
            self.held.clear()
        before.set()

    def close(self) -> None:
        self.hold(None)
        self.go_on()
        super().close()

    def _respond(self, _headers: dict[str, str], request: Any) -> tuple[int, Any]:
        if request is None:
            return 200, {"data": []}
        name = self._named(request)
        with self._lock:
            self.calls[name] += 1
            is_held = self._holds is not None and self._holds(name)
            if is_held:
                self.held.append(name)
            goes_on = self._goes_on
        if is_held:
            goes_on.wait(_PATIENCE_S)
        return self._answered(request)
