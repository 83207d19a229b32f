"""A run as one web page that needs nothing else: no network, no script, no other file.

The Python modules make figures; the HTML, the SVG and the style are in ``templates/``.
"""

from fanout.observe.report.figures import Figures
from fanout.observe.report.gathering import gather
from fanout.observe.report.page import render, write

__all__ = ["Figures", "gather", "render", "write"]
