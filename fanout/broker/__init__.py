"""Celery and kombu: the application, the publisher, the transport, the result backend."""

# First: it loads redis-py, which Celery would load otherwise.
from fanout.stores import driver as driver  # isort: split

# Here, under the lock of this package: both replace their modules while they are loaded, and a thread
# that imports names from them meanwhile finds none.
import celery as celery
import kombu as kombu
