"""Runs under seeded faults: is any branch lost when a process dies?"""
