"""What a worker tells of its work: logs, task events, spans, Flower."""
