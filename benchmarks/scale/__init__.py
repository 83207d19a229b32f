"""A run of very many branches: its processes, and samples of their use of resources."""
