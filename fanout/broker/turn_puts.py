"""How messages of branches get into the turns and the backlog of their run."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from fanout.core.errors import BrokerError
from fanout.core.queue_names import TURNS_OF_A_RUN, backlogs_of
from fanout.stores.functions import ServerFunction
from fanout.stores.redis.turn_scripts import PUT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TurnPuts"]


class TurnPuts:
    """The part of a channel that puts messages of branches.

    Attributes:
        max_message_bytes: The size of the largest message.
        run_keys: What comes before the id of a run in the key of its record.
    """

    conn_or_acquire: Callable[..., Any]

    max_message_bytes = 0
    run_keys = ""

    def put_all(self, queue: str, run_id: str, messages: list[bytes], *, are_nodes: bool) -> None:
        """Put encoded messages of a run into its turns and its backlog, in one step.

        Publishes none if the run is deleted: no worker would take its backlog.

        Args:
            queue: The queue of branches.
            run_id: The run.
            messages: 500 at most.
            are_nodes: Whether they are of nodes of a reduce, which are taken before branches.

        Raises:
            BrokerError: A message is too large.
        """
        for message in messages:
            self.require_size(len(message))
        with self.conn_or_acquire() as client:
            # Nodes are few, and keep their order: the script puts its messages behind all others.
            count = len(messages) if are_nodes else TURNS_OF_A_RUN
            first, rest = messages[:count], messages[count:]
            run_key = f"{self.run_keys}{run_id}"
            backlog = backlogs_of(run_id)[are_nodes]
            args: list[Any] = [TURNS_OF_A_RUN, run_id, run_key, int(are_nodes), len(rest), *first]
            if not (rest and self._put_both(client, queue, backlog, rest, args)):
                self._put_in_turn(keys=[queue], args=args, client=client)

    def _put_both(
        self, client: Any, queue: str, backlog: str, rest: list[bytes], args: list[Any]
    ) -> bool:
        """Put messages into a run's backlog and turns; return False if only the backlog was done."""
        with client.pipeline() as pipe:
            pipe.lpush(backlog, *rest)
            self._put_in_turn.add_to(pipe, [queue], args)
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not ServerFunction.was_missing(answer):
                raise answer
        return not ServerFunction.was_missing(answers[-1])

    @cached_property
    def _put_in_turn(self) -> ServerFunction:
        with self.conn_or_acquire() as client:
            return ServerFunction(client, PUT)

    def require_size(self, size: int) -> None:
        """Raise BrokerError if a message of so many bytes is too large."""
        if size > self.max_message_bytes:
            raise BrokerError(
                f"a message of {size / 1000:,.0f} kB is larger than FANOUT_MAX_MESSAGE_KB allows "
                f"({self.max_message_bytes // 1000:,})"
            )
