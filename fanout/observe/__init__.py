"""Monitoring of a fleet: its status, its Prometheus metrics, and the health probe of workers."""
