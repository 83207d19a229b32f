"""The parts of billing_provider.py: what providers charge, their prompt caches, and their two APIs."""
