"""Policies as pure functions of values: retries, outages, admission, healing and packing. No I/O."""
