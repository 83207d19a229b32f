"""A run as one web page that needs nothing else: no network, no script, no other file.

The Python modules make figures; the HTML, the SVG and the style are in ``templates/``.
"""

from fanout.report.figures import Figures
from fanout.report.gathering import gather
from fanout.report.page import render, write

__all__ = ["Figures", "gather", "render", "write"]
