"""Decisions as pure functions of values: retries, outages, admission, healing, packing."""
