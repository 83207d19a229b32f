"""The telemetry of a worker: logs, task events, spans, Flower."""
