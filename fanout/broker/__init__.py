"""Celery and kombu: the application, the publisher, the transport, the result backend."""

# First: it loads redis-py, which Celery would load otherwise.
from fanout.stores import driver as driver
