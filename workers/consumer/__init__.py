"""The consumer of a worker: takes messages, settles them and shuts down."""
