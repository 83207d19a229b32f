"""What the tasks of one worker process share: connections, limits, batches, progress."""
