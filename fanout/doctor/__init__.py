"""What is wrong with a fleet and its server, and what to do: facts, and findings about them.

``facts`` are records of what there is, ``collect`` gathers them, and ``server``, ``fleet`` and
``machine`` judge them: plain functions from facts to findings.
"""

from fanout.doctor.findings import Finding, State, worst

__all__ = ["Finding", "State", "worst"]
