"""The report of a run: one self-contained HTML page, without network, scripts or other files.

The Python modules compute the figures; the HTML, the SVG and the style are in ``templates/``.
"""

from fanout.report.figures import Figures
from fanout.report.gathering import gather
from fanout.report.page import render, write

__all__ = ["Figures", "gather", "render", "write"]
