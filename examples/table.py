"""A table goes in, and comes out with the answers beside its columns: CSV to Parquet.

pip install 'fanout-llm[tables]'; python examples/table.py answers.parquet
"""

import os
import sys
from pathlib import Path

from fanout import ParallelCalls

TABLE = Path(__file__).parent / "amendments.csv"
MODEL = os.environ.get("FANOUT_MODEL", "openai/gpt-5-mini")  # with OPENAI_API_KEY
target = sys.argv[1] if len(sys.argv) > 1 else "answers.parquet"

with ParallelCalls(llm=MODEL) as runner:
    result = runner.run(
        inputs=TABLE,
        branch_prompt=(
            "An amendment to the US constitution, ratified in {ratified}:\n\n{input}\n\n"
            "Whom does it give a right? A few words."
        ),
        progress=True,
    )

result.to_parquet(target, replace=True)
print(result)
print(result.to_arrow().select(["number", "ratified", "output", "error_kind"]).slice(0, 3))
print(f"{target}: {len(result.branches)} rows, {len(result.errors)} failed")
