"""The job specification: one model behind ``ParallelCalls``, the command line and YAML jobs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from fanout.core.aggregate_fields import AggregateFields
from fanout.core.aggregate_trust import TrustFields
from fanout.core.answer_fields import Choices, Schema, SchemaField
from fanout.core.answer_types import UNTYPED, AnswerTypes, types_of
from fanout.core.comparison_fields import ComparisonFields
from fanout.core.encodable import undecoded_problem
from fanout.core.errors import SpecError
from fanout.core.fence_fields import FenceFields
from fanout.core.field_effects import conflict
from fanout.core.field_names import canonical
from fanout.core.field_words import binary_in, shown
from fanout.core.fold_fields import FoldFields, with_scores
from fanout.core.job_models import JobModels
from fanout.core.labels import Labels, label_problem
from fanout.core.lanes import LaneChoice  # noqa: TC001 - pydantic reads the annotation
from fanout.core.prices import JobPrices, PriceSpec
from fanout.core.records import Variants
from fanout.core.reduce_fields import ReduceFields
from fanout.core.reduces import ReduceKind
from fanout.core.retrieval_fields import RetrieveFields
from fanout.core.spec_errors import spec_error
from fanout.core.spec_fields import (
    NUMBER,
    PART_CONFIG,
    BudgetSpec,
    Fallback,
    JobBudget,
    Models,
    PromptOrder,
    RateSpec,
    RetrySpec,
    as_delimiter,
    as_encoding,
    as_sheet,
    as_tuple,
    checked_condition,
    patient,
    pointed,
    with_models,
)
from fanout.core.split_fields import SplitFields
from fanout.core.steps import StepFields

__all__ = [
    "BudgetSpec",
    "RateSpec",
    "RetrySpec",
    "RunSpec",
    "make_budget",
    "make_spec",
    "stored_spec",
]

ReduceName = Literal["none", ReduceKind]


class RunSpec(
    SchemaField,
    AggregateFields,
    SplitFields,
    StepFields,
    ComparisonFields,
    FoldFields,
    ReduceFields,
    FenceFields,
    RetrieveFields,
    TrustFields,
    JobModels,
):
    """One fan-out / fan-in job.

    Attributes:
        inputs: Files, folders, globs, ``-`` for standard input, or ``run:ID`` for the outputs of
            another run; empty if documents come from memory.
        base_dir: The folder of relative inputs; None is the working directory of the client. A run
            stores it, so that its input can be read again from any directory.
        text_column: The column of rows that holds the text.
        delimiter: The character between the cells of a ``.csv`` file, or ``tab``; None detects it.
        sheet: The sheet of ``.xlsx`` files, by its name or its number from 1; None is the first.
        id_column: The column of rows that names their documents; None names them by their place.
        where: A condition that documents must meet, such as ``stars <= 2 and country = DE``; see
            ``fanout.core.conditions``.
        sample: The size of a random sample of the documents that meet ``where``, in the order of
            the input; ``seed`` (else 0) seeds it.
        limit: The number of documents after which the input ends: the first of the sample, if there
            is one.
        encoding: The encoding of text without a byte order mark, such as ``latin-1``; None is UTF-8.
        parse_timeout_s: Seconds after which a document that is parsed, such as a PDF, or the next row
            of a workbook or database, is given up.
        max_document_mb: The size in megabytes above which a document is refused.
        read_on: Who opens and parses the files of documents: the ``client``, or the ``workers``,
            which need to reach them under the same paths or URLs.
        strict: Refuse an input with a document that cannot be used, or a file of an unknown kind,
            instead of leaving it out.
        model: ``provider/model``, ``local``, ``fake``, or ``package.module:callable``; the first of
            ``models``, if these are given.
        models: Several models, to each of which every prompt goes.
        fallback: The models to ask, in this order, where a model gave no answer for a reason that
            another may not have: see ``fanout.policy.fallback``.
        prompt: The template of each branch; ``{input}`` is the chunk.
        aspects: Named templates in place of ``prompt``; each is applied to every chunk.
        prompt_order: Where the text of a chunk stands in prompts: ``as_written``,
            ``document_first``, or ``auto``: first where several aspects share it and a provider's
            cache makes that cheaper; see ``fanout.inputs.prompt_layout``.
        fence: Whether others' text has fences, see ``fanout.inputs.fences``; None is by the model.
        steps: Several calls in place of ``prompt``, each with its own: see ``fanout.core.steps``.
        output: The step whose answer is the output; None is the last one that ran, judges aside.
        on_rejected: What an answer is that no round passed: ``keep``, or ``fail`` (``invalid_output``).
        retrieve: Where passages for ``{context}`` come from: files, or ``package.module:function``.
        top_k: The most passages of a prompt.
        query: The template of what passages are looked for; None is ``{input}``.
        passage_tokens: The largest passage that files are split into, in tokens.
        passage_column: The column of rows that holds the text of a passage.
        samples: The number of answers for each chunk and aspect.
        certainty: The probability (0.5 to 1) that the majority is the true one, at which a chunk and
            aspect is asked no further: ``samples`` and ``models`` then make one branch, whose output is
            the answer of the majority. None asks for all answers, each in a branch of its own.
        system: The system prompt.
        temperature: Sampling temperature; None uses the provider's default.
        max_tokens: The longest answer of a branch, in tokens; None uses the model's own limit.
        on_truncated: What an answer is that was cut off at its limit of tokens: ``fail``, a failure
            (kind ``truncated``), or ``keep``, an answer, if it is valid as it is.
        seed: Seed of the first answer; answer ``n`` uses ``seed + n``. It also seeds ``sample``.
        stop: Strings that end an answer.
        output_format: ``json`` refuses an answer that is not JSON (kind ``invalid_output``).
        schema: The JSON Schema of an answer, which is then stored as JSON.
        choices: The labels of which an answer is one.
        aggregate_schema: The JSON Schema of an LLM aggregate.
        max_reasks: How often an answer without its shape is sent back with what is wrong.
        labels: The column with the right answer, or a mapping of fields of the answer to columns. The
            result then has an evaluation. No prompt has them unless it names their columns.
        split: How a document becomes chunks; with ``model``, a model proposes its parts, or subtasks.
        split_prompt: What a model is to split documents into, such as ``A part is one decision.``
        split_model: The model that splits documents; None is the (first) model of the job.
        split_gaps: Whether text that is in no part becomes chunks, too (``fill``), or is left out.
        split_max_tokens: The longest answer that splits a document, in tokens; see ``max_tokens``.
        chunk_tokens: The largest chunk, in tokens.
        chunk_overlap_tokens: The overlap of neighbouring chunks, in tokens.
        neighbours: How many chunks before and after its own a prompt has as ``{before}`` and ``{after}``.
        tokenizer: What counts tokens: ``bytes/N``, ``tiktoken``, ``tiktoken:ENCODING``, the path of a
            ``tokenizer.json``, or a name at Hugging Face. None is ``bytes/4``, or what the fleet has
            learnt from the calls of the model; a run stores what that was.
        reduce: How outputs become the aggregate. None is ``llm`` if ``aggregate_prompt`` is given,
            else ``none``.
        reduces: Several reduces, each with a name and fields of its own, in place of ``reduce`` and its
            fields; they may be given as ``reduce``.
        aggregate_prompt: The template of the LLM aggregate; ``{input}`` is the joined outputs.
        fold: How an LLM aggregate is made of answers that do not fit one prompt: by a ``tree`` of calls, or
            by calls that ``refine`` the answer of those before them. With ``cluster``, the first calls of the
            tree see answers that are alike. With ``map_rerank``, answers have scores, and the best one is
            the aggregate, without a call.
        embed: ``package.module:function``, which makes vectors of texts. With ``fold: cluster``, answers are
            alike whose vectors are; None compares their words.
        aggregate_max_tokens: The longest answer of an LLM aggregate, in tokens; see ``max_tokens``.
        group_by: ``document``, ``aspect`` or the name of a column: one aggregate for each value.
        by: What a vote, rank, top, merge or table goes by: fields of answers, columns, or origins; see
            ``fanout.core.answer_parts``.
        measures: What a table has of each group: ``count``, ``share``, ``mean:FIELD`` and so on.
        k: How many answers a ``top`` has (None is 10), or a ``rank`` or ``pairwise`` (None is all).
        criteria: What outputs are compared by, with the reduce ``best`` or ``pairwise``; with ``resolve``,
            what makes two values the same, beside what is usual.
        judge_model: The model that compares them; None is the (first) model of the job.
        max_pairs: The most pairs of values that ``resolve`` asks a model about.
        context_tokens: The model's context window; None takes the known one, or a safe guess.
        min_success: The share of branches (0 to 1) that must succeed. A run in which no branch
            succeeds has failed, even with 0.
        sources: Whether an ``llm`` aggregate cites its sources, by ids that are checked: see
            ``fanout.aggregators.sources``.
        min_group_success: The share of branches (0 to 1) that must be behind an aggregate, that of a
            group or of all. Where fewer are, it says so in place of an answer.
        max_workers: The most branches of this run in flight in the whole fleet; None is no cap.
        priority: The run's share of busy workers: a run of priority 4 gets four times as many of
            their places as one of priority 1. From 0.25 to 16.
        cache: Whether answers are kept, and those of earlier calls are taken, of this or of other
            runs; identical branches in flight then make one call.
        lane: How calls are bought: ``realtime``, ``flex`` (cheaper and slower), ``batch`` (answered
            within a day, at about half the price), or ``auto``: batch, and realtime for what would be
            late for the deadline. A model of ``fallback`` without the lane is asked in realtime.
        timeout_s: Seconds for one call, from its start to the last byte. With the lane ``flex``, the
            default is 900.
        rate: The rate limits of the model for the whole fleet.
        price: The prices of the models, where these are not the known ones; ``*`` is any model.
        budget: What the calls of the run may use together. Those that do not fit are not made: their
            branches fail as ``budget``, and the others are aggregated.
        retries: When a failed call is made again.
        deadline_s: Seconds from the submission after which no branch is begun. The branches left
            fail as ``expired``, and the finished ones are aggregated; one with ``certainty`` that has
            an answer ends with the majority so far. None is no deadline.
    """

    model_config = ConfigDict(**PART_CONFIG, populate_by_name=True)

    inputs: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    base_dir: str | None = None
    text_column: str | None = None
    delimiter: Annotated[str | None, BeforeValidator(as_delimiter)] = None
    sheet: Annotated[str | None, Field(min_length=1), BeforeValidator(as_sheet)] = None
    id_column: Annotated[str | None, Field(min_length=1)] = None
    where: Annotated[str | None, AfterValidator(checked_condition)] = None
    sample: Annotated[int | None, Field(ge=1), NUMBER] = None
    limit: Annotated[int | None, Field(ge=1), NUMBER] = None
    encoding: Annotated[str | None, BeforeValidator(as_encoding)] = None
    parse_timeout_s: Annotated[float, Field(gt=0, le=3_600), NUMBER] = 60.0
    max_document_mb: Annotated[float, Field(gt=0, le=256), NUMBER] = 16.0
    strict: Annotated[bool, Field(strict=True)] = False
    read_on: Literal["client", "workers"] = "client"

    model: Annotated[
        str, Field(min_length=1, max_length=512, validation_alias=AliasChoices("model", "llm"))
    ]
    models: Models = ()
    fallback: Fallback = ()
    prompt: Annotated[
        str | None, Field(validation_alias=AliasChoices("prompt", "branch_prompt"))
    ] = None
    aspects: dict[str, str] = Field(default_factory=dict)
    prompt_order: PromptOrder = "auto"
    samples: Annotated[int, Field(ge=1, le=10_000), NUMBER] = 1
    certainty: Annotated[float | None, Field(gt=0.5, lt=1), NUMBER] = None
    system: str | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2), NUMBER] = None
    max_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    on_truncated: Literal["fail", "keep"] = "fail"
    seed: Annotated[int | None, NUMBER] = None
    stop: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    output_format: Literal["text", "json"] = "text"
    choices: Choices = ()
    aggregate_schema: Schema = None
    max_reasks: Annotated[int, Field(ge=0, le=10), NUMBER] = 2
    labels: Labels = Field(default_factory=dict)

    chunk_tokens: Annotated[int, Field(ge=1), NUMBER] = 1000
    chunk_overlap_tokens: Annotated[int, Field(ge=0), NUMBER] = 0
    tokenizer: Annotated[str | None, Field(min_length=1)] = None

    reduce: ReduceName | None = None
    aggregate_prompt: Annotated[
        str | None, Field(validation_alias=AliasChoices("aggregate_prompt", "aggregate"))
    ] = None
    aggregate_max_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    group_by: Annotated[str | None, Field(min_length=1), AfterValidator(pointed)] = None
    context_tokens: Annotated[int | None, Field(ge=256), NUMBER] = None

    min_success: Annotated[float, Field(ge=0, le=1), NUMBER] = 0.0
    max_workers: Annotated[int | None, Field(ge=1), NUMBER] = None
    priority: Annotated[float, Field(ge=0.25, le=16), NUMBER] = 1.0
    lane: LaneChoice = "realtime"
    timeout_s: Annotated[float, Field(gt=0), NUMBER] = 120.0
    cache: Annotated[bool, Field(strict=True)] = True
    rate: RateSpec = RateSpec()
    price: JobPrices = Field(default_factory=dict)
    budget: JobBudget = BudgetSpec()
    retries: RetrySpec = RetrySpec()
    deadline_s: Annotated[float | None, Field(gt=0), NUMBER] = None

    # Of the process that made the job: a stored one has only the JSON Schemas.
    _types: AnswerTypes = PrivateAttr(UNTYPED)

    @model_validator(mode="wrap")
    @classmethod
    def _with_types(cls, fields: Any, validated: ModelWrapValidatorHandler[Self]) -> Self:
        spec = validated(fields)
        types = types_of(fields, [step.name for step in spec.final_steps])
        if types is not UNTYPED:
            spec._types = types  # noqa: SLF001 - its own
        return spec

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        return with_scores(patient(with_models(canonical(fields))))

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        # Inside a validator, pydantic would wrap a SpecError and lose its field.
        problem = undecoded_problem(self) or conflict(self)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def types(self) -> AnswerTypes:
        """The types of Python that ``schema`` and ``aggregate_schema`` were given as."""
        return self._types

    @property
    def prompts(self) -> dict[str | None, str]:
        """The branch templates by aspect; the single prompt, or that of steps, has the aspect None."""
        if self.prompt or self.steps:
            return {None: self.prompt or ""}
        return {name: template for name, template in self.aspects.items()}  # noqa: C416 - widens

    @property
    def aspect_names(self) -> tuple[str | None, ...]:
        """The aspects in order; ``(None,)`` for a single prompt."""
        return tuple(self.prompts)

    @cached_property
    def variants(self) -> Variants:
        """The branches of each chunk."""
        if self.certainty is not None:
            return Variants(aspects=self.aspect_names, models=self._single_model)
        return Variants(
            aspects=self.aspect_names, models=self.models or (self.model,), samples=self.samples
        )

    @cached_property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of outputs: that of the steps that give them, if they have the same one."""
        if not self.steps:
            return self.schema
        found = [step.answer_schema for step in self.final_steps]
        return found[0] if found and all(one == found[0] for one in found) else None

    @cached_property
    def answer_choices(self) -> tuple[str, ...]:
        """The labels of which outputs are one: those of the steps that give them."""
        if not self.steps:
            return self.choices
        found = [step.choices for step in self.final_steps]
        return tuple(dict.fromkeys(one for some in found for one in some)) if all(found) else ()

    @property
    def label_problem(self) -> str | None:
        """Why the labels do not fit the answers; None if they do."""
        return label_problem(self)

    @property
    def branches_per_chunk(self) -> int:
        """Aspects x models x samples; with ``certainty``, aspects."""
        return self.variants.count


# The fields with fields of their own.
_PARTS: dict[str, type[BaseModel]] = {
    "retries": RetrySpec,
    "rate": RateSpec,
    "budget": BudgetSpec,
    "price": PriceSpec,
}


def make_spec(**fields: Any) -> RunSpec:
    """Return the validated spec; fields that are None take their defaults.

    Raises:
        SpecError: A field is wrong; the message has its name, its value and the allowed values.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    binary = binary_in(given)
    if binary is not None:
        field, value = binary
        raise SpecError(f"must be text, not bytes (got {shown(value)})", field=field)
    try:
        return RunSpec.model_validate(given)
    except ValidationError as error:
        raise spec_error(error, RunSpec, _PARTS, given=given) from None


def make_budget(given: BudgetSpec | Mapping[str, Any]) -> BudgetSpec:
    """Return a validated budget. Raises SpecError, as of the field ``budget`` of a job."""
    try:
        return BudgetSpec.model_validate(given)
    except ValidationError as error:
        raise spec_error(error, RunSpec, _PARTS, part="budget") from None


def stored_spec(data: str | bytes) -> RunSpec:
    """Return the spec of a run from its JSON in the store, with no field marked as given.

    The JSON has all fields. So a run that is submitted again is not refused for those without effect.
    """
    spec = RunSpec.model_validate_json(data)
    spec.model_fields_set.clear()
    return spec
