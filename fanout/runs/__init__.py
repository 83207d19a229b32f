"""What a run is made to do, and what it gave: enqueue it, heal it, write its results."""
