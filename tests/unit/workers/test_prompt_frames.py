"""What the prompts of a stage have in common."""

from fanout.core.answer_shape import shape_of
from fanout.core.reduces import Reduce
from fanout.core.spec import RunSpec
from fanout.inputs.prompts import Template
from fanout.llm.base import LLMRequest
from workers.context.prompt_frames import frame_of

SPEC = RunSpec(
    model="fake", prompt="Read {input}", system="Be brief", seed=7, max_tokens=9, reduce="none"
)
TEMPLATE = Template.parse("Read {input}")


def framed(spec=SPEC, model="fake", **given):
    given = {"shape": None, **given}
    return frame_of(spec, model, TEMPLATE, **given)


def test_each_sample_has_a_seed_of_its_own():
    frame = framed()
    first, second = (frame.asks("x", sample=sample, shape=None) for sample in (0, 1))
    assert first == LLMRequest(prompt="x", system="Be brief", seed=7, max_tokens=9)
    assert second == LLMRequest(prompt="x", system="Be brief", seed=8, max_tokens=9)


def test_without_a_seed_all_samples_ask_the_same():
    frame = framed(SPEC.model_copy(update={"seed": None}))
    assert frame.asks("x", sample=3, shape=None) == frame.asks("x", sample=0, shape=None)


def test_a_branch_may_have_a_shape_of_its_own():
    common, own = shape_of({"type": "object"}), shape_of({"type": "array"})
    frame = framed(shape=common)
    assert frame.asks("x", sample=0, shape=common).shape is common
    assert frame.asks("x", sample=0, shape=own).shape is own


def test_a_reduce_has_its_own_limit_and_no_passages():
    reduce = Reduce(kind="llm", model="fake", max_tokens=5)
    template = Template.parse("{context}")
    frame = frame_of(SPEC, "fake", template, shape=None, reduce=reduce, retrieves=True)
    assert frame.request.max_tokens == 5
    assert not frame.has_passages


def test_prompts_are_fenced_as_the_model_takes_them():
    values = {"input": "some text"}
    assert framed().rendered(values, {}) == "Read some text"
    assert "<document id=" in framed(model="fake?fence=1").rendered(values, {})
