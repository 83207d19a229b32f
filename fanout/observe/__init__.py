"""What can be seen of a fleet and its runs: figures, metrics, health."""
