"""A run as one web page that needs nothing else: no network, no script, no other file."""

from fanout.report.figures import Figures, gather
from fanout.report.page import render, write

__all__ = ["Figures", "gather", "render", "write"]
