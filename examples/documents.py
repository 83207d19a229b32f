"""Ask the same question about each document of a folder: PDF, Word, HTML.

pip install 'fanout-llm[documents]'; python examples/documents.py
"""

import os
from pathlib import Path

from fanout import ParallelCalls

FOLDER = Path(__file__).parent / "documents"
MODEL = os.environ.get("FANOUT_MODEL", "openai/gpt-5-mini")  # with OPENAI_API_KEY

with ParallelCalls(llm=MODEL) as runner:
    result = runner.run(
        inputs=FOLDER,
        split="markdown",
        chunk_tokens=300,
        branch_prompt="Pages {pages}, section {headings} of {document}:\n\n{input}\n\nSum it up in a line.",
        aggregate_prompt="Summaries of one document:\n\n{input}\n\nWhat is the document about?",
        group_by="document",
        progress=True,
    )

for branch in result.branches:
    pages = ",".join(map(str, branch.pages)) or "-"
    print(f"{Path(branch.document).name} pages {pages}: {branch.output or branch.message}")
for document, summary in (result.aggregated or {}).items():
    print(f"{Path(document).name} in all: {summary}")
