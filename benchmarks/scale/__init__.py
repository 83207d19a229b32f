"""A run of very many branches: its processes, and what they take while it goes on."""
