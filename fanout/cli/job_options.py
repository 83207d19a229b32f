"""The options that describe a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from fanout.cli.completion import complete_files
from fanout.core.fold_fields import FoldName
from fanout.core.lanes import LaneChoice
from fanout.core.spec import ReduceName
from fanout.core.spec_fields import PromptOrder
from fanout.core.split_fields import SplitGaps, SplitName

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["job_options"]

# The type of an option's value by its metavar; any other is text.
_TYPES = {"N": int, "T": float, "SHARE": float, "SECONDS": float}


def _option(names: str, metavar: str, text: str, **more: Any) -> Callable[..., Any]:
    given = {"metavar": metavar, "type": _TYPES.get(metavar), "help": text, **more}
    return click.option(*names.split(), **given)


_OPTIONS = [
    _option("--model --models -m model", "M",
            "openai/NAME, anthropic/NAME, gemini/NAME, litellm/NAME, local, fake, or "
            "package.module:function; several are each asked [default: $FANOUT_MODEL]",
            multiple=True),
    _option("--fallback", "M",
            "A model to ask where the first gives no answer that another may give; several in turn.",
            multiple=True),
    _option("--prompt -p", "P", "What to ask of each chunk; {input} is it."),
    _option("--aspect --aspects aspects", "NAME=P",
            "A named prompt; give several to ask several questions of each chunk.", multiple=True),
    _option("--output", "STEP",
            "The step whose answer is the output, of a job with steps. [default: the last that ran]"),
    click.option("--on-rejected", type=click.Choice(["keep", "fail"]),
                 help="What an answer is that a judge did not pass. [default: keep]"),
    _option("--retrieve", "PATH",
            "Where the passages of {context} come from: files, a folder, a table, or "
            "package.module:function. [default: none]"),
    _option("--top-k", "N", "The most passages of a prompt. [default: 5]"),
    _option("--query", "P", "What passages are looked for. [default: {input}]"),
    _option("--passage-tokens", "N", "The largest passage of a file, in tokens. [default: 200]"),
    _option("--passage-column", "NAME",
            "The column of rows that is the text of a passage. [default: text]"),
    _option("--samples", "N", "Answers for each chunk and prompt. [default: 1]"),
    _option("--certainty", "SHARE",
            "Ask one after another, until the majority is so certain, 0.5 to 1. [default: ask all]"),
    _option("--aggregate --aggregate-prompt aggregate_prompt", "P",
            "What to ask of all the answers; {input} is them."),
    click.option("--reduce", type=click.Choice(get_args(ReduceName)),
                 help="How the answers become one. [default: llm with --aggregate, else none]"),
    click.option("--fold", type=click.Choice(get_args(FoldName)),
                 help="How --aggregate folds more answers than fit one prompt. [default: tree]"),
    _option("--embed", "F",
            "package.module:function that makes vectors of texts, for --fold cluster. [default: words]"),
    _option("--group-by", "BY",
            "document, aspect, model or a column: an aggregate for each. [default: one]"),
    _option("--by", "A,B,...",
            "What to vote on, rank by, merge, or count in a table: fields of answers, or columns."),
    _option("--measures --measure measures", "A,B,...",
            "What a table has: count, share, mean:FIELD, min:, max:, sum:. [default: count]"),
    _option("--k -k", "N",
            "How many answers to rank. [default: 10 with top, all with rank and pairwise]"),
    _option("--criteria", "C",
            "What makes an answer better, for --reduce best and pairwise; give several.",
            multiple=True),
    _option("--judge-model", "M",
            "The model that compares answers, for --reduce best and pairwise. [default: the first]"),
    _option("--max-pairs", "N",
            "The most pairs of values that --reduce resolve asks about. [default: 10000]"),
    _option("--system", "P", "The system prompt. [default: none]"),
    _option("--temperature", "T", "Sampling temperature, 0 to 2. [default: the model's]"),
    _option("--max-tokens", "N",
            "The longest answer of a branch, in tokens. [default: the model's]"),
    _option("--aggregate-max-tokens", "N",
            "The longest aggregate, in tokens. [default: the model's]"),
    click.option("--on-truncated", type=click.Choice(["fail", "keep"]),
                 help="Whether an answer that was cut off counts. [default: fail]"),
    _option("--seed", "N", "Sampling seed. [default: none]"),
    _option("--stop", "S", "A string that ends an answer; give several.", multiple=True),
    click.option("--output-format", type=click.Choice(["text", "json"]),
                 help="json refuses answers that are not JSON. [default: text]"),
    _option("--schema", "FILE", "The JSON Schema of an answer. [default: any text]"),
    _option("--choices", "A,B,...", "The labels of which an answer is one. [default: any text]"),
    _option("--aggregate-schema", "FILE", "The JSON Schema of the aggregate. [default: any text]"),
    _option("--max-reasks", "N",
            "How often a wrong answer is sent back with what is wrong. [default: 2]"),
    _option("--label --labels labels", "COLUMN",
            "The column with the right answer, or FIELD=COLUMN; give several for several fields. "
            "[default: none]", multiple=True),
    _option("--context-tokens", "N",
            "The model's context window, in tokens. [default: as it is known]"),
    click.option("--split", type=click.Choice(get_args(SplitName)),
                 help="How documents become chunks. [default: none]"),
    _option("--chunk-tokens", "N", "The largest chunk, in tokens. [default: 1000]"),
    _option("--chunk-overlap-tokens", "N",
            "What neighbouring chunks share, in tokens. [default: 0]"),
    _option("--split-prompt", "TEXT",
            "With --split model: what documents are split into. [default: any parts]"),
    _option("--split-model", "MODEL", "The model that splits documents. [default: the model]"),
    click.option("--split-gaps", type=click.Choice(get_args(SplitGaps)),
                 help="What becomes of text that is in no part. [default: fill]"),
    _option("--split-max-tokens", "N",
            "The longest answer that splits a document, in tokens. [default: the model's]"),
    _option("--neighbours", "N",
            "How many chunks {before} and {after} its own a prompt has. [default: 0]"),
    _option("--tokenizer", "NAME",
            "What counts tokens: bytes/N, tiktoken[:ENCODING], a tokenizer.json, or a name at "
            "Hugging Face. [default: bytes/4, or as learnt from the model's calls]"),
    _option("--base-dir", "DIR",
            "The folder that relative INPUTs are in. [default: the working directory]"),
    _option("--text-column", "NAME",
            "The column of rows with the text. [default: text]"),
    _option("--delimiter", "C",
            "What is between the cells of a .csv, or tab. [default: found out]"),
    _option("--sheet", "NAME",
            "The sheet of .xlsx files, by name or number. [default: the first]"),
    _option("--id-column", "NAME",
            "The column that documents are called by. [default: their place in the input]"),
    _option("--where", "CONDITION",
            "Take documents that meet it: 'stars <= 2 and country in (DE, AT)'. [default: all]"),
    _option("--sample", "N", "Of these, take a random sample, seeded by --seed. [default: all]"),
    _option("--limit", "N", "Of these, take the first only. [default: all]"),
    _option("--encoding", "NAME",
            "The encoding of text and tables, such as latin-1. [default: utf-8]"),
    _option("--parse-timeout --parse-timeout-s parse_timeout_s", "S",
            "Seconds to give a PDF, Word or other document. [default: 60]", type=float),
    click.option("--read-on", type=click.Choice(["client", "workers"]),
                 help="Who reads the documents; workers need to reach them. [default: client]"),
    click.option("--strict", is_flag=True, default=None,
                 help="Refuse an input of which anything would be left out."),
    _option("--max-document-mb", "N",
            "Refuse documents of more megabytes. [default: 16]", type=float),
    _option("--max-workers", "N",
            "The most calls in flight, in the whole fleet. [default: no limit]"),
    _option("--priority", "N", "The run's share of busy workers, 0.25 to 16. [default: 1]",
            type=float),
    _option("--rpm --requests-per-minute requests_per_minute", "N",
            "The most calls a minute, in the whole fleet. [default: no limit]", type=float),
    _option("--tpm --tokens-per-minute tokens_per_minute", "N",
            "The most tokens a minute, in the whole fleet. [default: no limit]", type=float),
    click.option("--prompt-order", type=click.Choice(get_args(PromptOrder)),
                 help="Where the text stands in prompts; auto is first where several aspects share "
                 "it and the provider's cache makes that cheaper. [default: auto]"),
    click.option("--fence/--no-fence", default=None,
                 help="Whether texts in prompts have fences. [default: but for functions and fake]"),
    click.option("--lane", type=click.Choice(get_args(LaneChoice)),
                 help="How calls are bought; auto is batch until a call would miss the deadline. "
                 "[default: realtime]"),
    _option("--price", "PART=USD",
            "The price of the models, in dollars per million tokens: input_mtok=, output_mtok=, "
            "cached_input_mtok=, cache_write_mtok=; give several. [default: as it is known]",
            multiple=True),
    _option("--budget-usd", "N",
            "The most US dollars that the run may spend. [default: no limit]", type=float),
    _option("--budget-calls", "N", "The most calls that it may make. [default: no limit]"),
    _option("--budget-tokens", "N",
            "The most tokens that it may use, of prompts and answers. [default: no limit]"),
    _option("--timeout --timeout-s timeout_s", "SECONDS",
            "The longest a call may take. [default: 120, with --lane flex 900]"),
    click.option("--no-cache", "cache", flag_value=False, default=None,
                 help="Make every call, and keep no answer. [default: the same question is asked once]"),
    _option("--deadline --deadline-s deadline_s", "SECONDS",
            "Begin no call after that, and aggregate what there is. [default: never]"),
    _option("--max-attempts", "N",
            "How many calls of a branch may fail for reasons of its own, not while the model is down "
            "or asks to wait; 1 is a single call. [default: 5]"),
    _option("--max-elapsed-s", "SECONDS",
            "The longest that a branch may take in all. [default: as in docs/jobs.md]"),
    _option("--base-wait-s", "SECONDS",
            "The first wait before a call is made again; each doubles. [default: 0.5]"),
    _option("--max-wait-s", "SECONDS",
            "The longest single wait before a call is made again. [default: 60]"),
    _option("--min-success", "SHARE",
            "The share of branches, 0 to 1, that must succeed. [default: 0]"),
    click.option("--sources", is_flag=True, default=None,
                 help="Have the aggregate cite its sources by ids that are checked."),
    _option("--min-group-success", "SHARE",
            "The share of its branches, 0 to 1, that must be behind an aggregate. [default: 0]"),
]  # fmt: skip


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that describe a job."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return click.argument(
        "inputs", nargs=-1, metavar="[JOB.yaml] [INPUT]...", shell_complete=complete_files
    )(command)
