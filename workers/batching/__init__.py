"""The batch lane of a fleet: one worker process makes batches of gathered calls, and lands results."""
