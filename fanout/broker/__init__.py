"""Celery and kombu: the application, the publisher, the transport, the result backend."""
