"""Keeps a worker and a fleet apart that speak different versions of the wire format.

A worker asks when it connects, before it takes its first message, and from then on every few
seconds, as it may have been cut off while the fleet went over to another version. Every message
says its version too: what slips through is never run by the wrong worker.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE

from fanout.broker import app as broker
from fanout.broker.fleet_version import claim_wire
from fanout.core.errors import BrokerError, WireVersionError
from workers.consumer.consumer import Careful

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

__all__ = ["ChecksWire", "WireCheck"]

# Several beats of the presence.
_TTL_S = 15.0

# Any version that there will be.
_LATEST = 1_000_000
_ID = re.compile(r"[\w/-]{1,100}", re.ASCII)

_log = logging.getLogger(__name__)


class WireCheck:
    """Asks whether a worker speaks its fleet's version, and has it stop where it does not."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._stop: Callable[[], None] | None = None
        self._is_refused = False

    def when_refused(self, stop: Callable[[], None]) -> None:
        """Set what makes the worker stop; called from any thread."""
        self._stop = stop

    def is_spoken(self) -> bool:
        """Say whether the worker may go on. Raises BrokerError."""
        store = self._app.fanout_runtime().watched
        try:
            claim_wire(store, holder=self._app.fanout_holder, ttl_s=_TTL_S)
        except WireVersionError as error:
            self._refuse(error)
            return False
        return True

    def _refuse(self, error: WireVersionError) -> None:
        if not self._is_refused:
            self._is_refused = True
            _log.critical("fanout: %s", error)
            if self._stop is not None:
                self._stop()

    def release(self) -> None:
        """Say that this worker has stopped. Raises BrokerError."""
        self._app.fanout_runtime().watched.release_wire(self._app.fanout_holder)


class ChecksWire(Careful):
    """A consumer that takes no message from a fleet of another version."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check: WireCheck = self.app.fanout_wire
        self._check.when_refused(lambda: self.hub.call_soon(_shut_down))

    def connect(self) -> Any:
        """Connect, and ask before the first message is taken."""
        connection = super().connect()
        try:
            is_spoken = self._check.is_spoken()
        except BrokerError as error:
            # The connection will tell; a server that is full answers no better later on.
            _log.warning("cannot ask which version of the wire format the fleet speaks: %s", error)
        else:
            if not is_spoken:
                connection.close()
                _shut_down()
        return connection

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return what is called with each message."""
        handle = super().create_task_handler(*args, **kwargs)
        self._look_at_storage()

        def on_message(message: Any) -> None:
            # Before it is looked at any closer: another version may look otherwise.
            version = _version(message.headers)
            if version == broker.WIRE_VERSION:
                handle(message)
            else:
                self._on_other_version(message, version)

        return on_message

    def _look_at_storage(self) -> None:
        """See, before the first message, whether the storage is the fleet's."""
        storage = self.app.fanout_runtime().storage
        try:
            storage.look(at_once=True)
        except BrokerError as error:
            _log.warning("cannot ask which storage the fleet uses: %s", error)
        self.task_consumer.channel.qos.is_barred = bool(storage.problem)

    def _on_other_version(self, message: Any, version: int) -> None:
        """Put a message back for the right worker, and stop; or drop one that has none.

        The second was published by a process that the fleet had left behind, for a run that is
        over or that this fleet has in hand: the reaper publishes again what it misses.
        """
        task_id = _shown_id(message.headers)
        if self._check.is_spoken():
            _log.error(
                "dropped message %s of version %s of the wire format, as this fleet speaks %s; "
                "what its run misses is published again", task_id, version, broker.WIRE_VERSION,
            )  # fmt: skip
            message.reject_log_error(_log, self.connection_errors)
        else:
            _log.warning("put back message %s: it is for another version of workers", task_id)
            message.requeue()


def _version(headers: Any) -> int:
    """Return which version a message says it has; one that says none was sent by hand."""
    version = headers.get("wire") if isinstance(headers, dict) else None
    # What is no version is looked at as all else of the message is.
    if type(version) is not int or not 0 <= version <= _LATEST:
        return broker.WIRE_VERSION
    return version


def _shown_id(headers: dict[str, Any]) -> str:
    # A log is no place for what a stranger may have written instead.
    task_id = headers.get("id")
    return task_id if isinstance(task_id, str) and _ID.fullmatch(task_id) else "without a sound id"


def _shut_down() -> None:
    raise WorkerShutdown(EX_FAILURE)
