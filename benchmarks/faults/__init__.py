"""Runs under seeded faults: is any branch lost, whatever dies?"""
