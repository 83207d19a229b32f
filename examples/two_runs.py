"""Two runs in a row: the second asks about the answers of the first.

pip install fanout-llm; python examples/two_runs.py
"""

import os
from pathlib import Path

from fanout import ParallelCalls

TABLE = Path(__file__).parent / "amendments.csv"
MODEL = os.environ.get("FANOUT_MODEL", "openai/gpt-5-mini")  # with OPENAI_API_KEY

with ParallelCalls(llm=MODEL) as runner:
    facts = runner.run(
        inputs=TABLE,
        branch_prompt="{input}\n\nSay in one sentence what this amendment changes.",
        progress=True,
    )
    # The answers stay where they are: the second run reads them by the first one's id. The columns
    # of the table are still there, and {input} is the answer.
    topics = runner.run(
        inputs=f"run:{facts.run_id}",
        branch_prompt="Amendment {number} ({ratified}): {input}\n\nName its topic in two words.",
        aggregate_prompt="Topics of amendments:\n\n{input}\n\nWhich three topics come up most?",
        progress=True,
    )

for branch in topics.branches:
    print(branch.columns["number"], branch.columns["ratified"], branch.output or branch.message)
print(topics.aggregated)
