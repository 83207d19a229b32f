"""Enqueues runs, heals them, and writes their results."""
