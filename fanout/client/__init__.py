"""The Python API: the client, a run's handle, the whole pattern in one call."""
