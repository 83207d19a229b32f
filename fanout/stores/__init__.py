"""The run store: inputs, outcomes and the state of runs."""

from fanout.stores import driver as driver
from fanout.stores.connection import connect
from fanout.stores.redis import RedisStore

__all__ = ["RedisStore", "connect"]
