"""The checks of ``fanout doctor``: what is wrong with a fleet and its server, and how to fix it.

``facts`` has the records of the facts, ``collect`` gathers them, and ``server``, ``fleet`` and
``machine`` judge them: pure functions from facts to findings. ``examination`` runs all checks.
"""

from fanout.doctor.findings import Finding, State, worst

__all__ = ["Finding", "State", "worst"]
