"""How a worker takes messages, settles them, and stops."""
