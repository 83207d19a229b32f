"""Passages for prompts on real workers: an index that each fetches, and functions."""

from __future__ import annotations

import pytest

from fanout import RunStatus
from fanout.client.client import Client
from fanout.core.errors import InputError, ModelError
from fanout.core.records import ErrorKind
from fanout.core.spec import make_spec
from tests.scripted_provider import ScriptedProvider, openai_reply

HANDBOOK = {
    "leave.md": "# Leave\n\nFull-time staff have 28 days of paid leave a year.",
    "flights.md": "# Flights\n\nThe head of department approves each flight.",
    "de.md": "# Urlaub\n\nDer Jahresurlaub beträgt 28 Tage.",
}
FIND = """
import pathlib
folder = pathlib.Path(__file__).parent

def find(query, k):
    with (folder / "asked").open("a") as file:
        file.write(f"{query} {k}\\n")
    if "refuse" in query:
        raise RuntimeError("the search is down")
    return [{"id": "wiki 7", "text": f"All of {query}", "source": "wiki", "score": 0.5}]

async def slow(query, k):
    import asyncio
    await asyncio.sleep(30)
"""
STEPS = (
    {"name": "topic", "prompt": "TOPIC {input}"},
    {"name": "reply", "prompt": "REPLY {context} Q: {input}", "query": "{topic}", "top_k": 1},
    {"name": "check", "judge": "reply", "criteria": "It is right."},
)


class Provider(ScriptedProvider):
    """Answers with what follows the first word of a prompt."""

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.prompts = []

    def _answer(self, _headers, request):
        if request is None:
            return 200, {"data": []}
        [said] = [one["content"] for one in request["messages"] if one["role"] != "system"]
        self.prompts.append(said)
        if said.startswith("You check"):
            verdict = '{"reasons": "r", "pass": true, "score": 9, "feedback": ""}'
            return 200, openai_reply(verdict)
        return 200, openai_reply(said.partition(" ")[2])


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def handbook(tmp_path):
    folder = tmp_path / "handbook"
    folder.mkdir()
    for name, text in HANDBOOK.items():
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture
def environment(provider, functions, tmp_path, monkeypatch):
    monkeypatch.setenv("FANOUT_CACHE_DIR", str(tmp_path / "client"))
    return {
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "none",
        "PYTHONPATH": functions(FIND),
        "FANOUT_CACHE_DIR": str(tmp_path / "worker"),
    }


def submit(broker_url, texts, **fields):
    fields = {"model": "openai/m", "cache": False, "fence": False, **fields}
    with Client(broker_url) as client:
        return client.submit(make_spec(**fields), texts).run_id


def test_workers_fetch_the_index_and_it_goes_with_its_last_run(
    client, broker_url, start_worker, provider, environment, handbook, tmp_path
):
    start_worker(**environment)
    for _ in range(2):
        provider.prompts = []
        run = client.run(
            submit(broker_url, ["days of leave"], retrieve=handbook, steps=list(STEPS))
        )
        assert run.wait(120).status is RunStatus.SUCCEEDED
        [branch] = run.result().branches
        assert branch.usage.calls == len(provider.prompts) == len(STEPS)
        assert branch.output.startswith("[p3] ")
        assert "28 days of paid leave" in branch.output
        assert "flight" not in branch.output
        # The judge sees the same passages in the task.
        assert provider.prompts[-1].count("28 days of paid leave") == 2
        assert [[use.id for use in one.passages] for one in branch.step_records] == [
            [], ["p3"], [],
        ]  # fmt: skip
    assert len(list((tmp_path / "worker" / "passages").glob("*.passages"))) == 1
    index = [*client._connected().store._redis.keys("*:passages-*-*:runs")]
    assert len(index) == 1
    assert client._connected().store._redis.scard(index[0]) == 2
    for record in list(client.runs()):
        client.run(record.run_id).delete()
    assert client._connected().store._redis.keys("*passages*") == []


def test_a_function_finds_passages_once_for_a_prompt_and_its_failures_are_said(
    client, broker_url, start_worker, provider, environment, functions, tmp_path
):
    folder = tmp_path / "functions"
    start_worker(**environment)
    prompt = {"prompt": "REPLY {context} Q: {input}", "retrieve": "functions_under_test:find"}
    run = client.run(submit(broker_url, ["tea"], query="about {input}", top_k=2, **prompt))
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert (folder / "asked").read_text() == "about tea 2\n"
    assert provider.prompts == ["REPLY [wiki 7] wiki: All of about tea Q: tea"]
    [branch] = run.result().branches
    assert branch.usage.calls == branch.attempts == 1
    [use] = branch.passages
    assert (use.id, use.source, use.score, use.share) == ("wiki 7", "wiki", 0.5, 1.0)

    # Samples of a branch that votes share what was found.
    (folder / "asked").unlink()
    quick = {"max_attempts": 1, "timeout_s": 0.3}
    fields = {**prompt, "samples": 3, "certainty": 0.9}
    run = client.run(submit(broker_url, ["milk", "refuse"], **fields, max_attempts=1))
    run.wait(120)
    milk, refused = run.result().branches
    assert milk.output
    assert milk.passages[0].id == "wiki 7"
    assert (folder / "asked").read_text().splitlines().count("milk 5") == 1
    assert refused.kind is ErrorKind.INTERNAL
    assert refused.message == "retrieval: RuntimeError: the search is down"
    assert refused.attempts == 0
    slow = {**prompt, "retrieve": "functions_under_test:slow"}
    run = client.run(submit(broker_url, ["a"], **slow, **quick))
    run.wait(120)
    [branch] = run.result().branches
    assert branch.kind is ErrorKind.TIMEOUT
    assert branch.message.startswith("retrieval: ")
    # Functions are allowed as models are.
    with pytest.raises(ModelError, match="FANOUT_ALLOWED_CALLABLES"):
        submit(broker_url, ["a"], **{**prompt, "retrieve": "os:system"})
    with pytest.raises(InputError, match=r"^retrieve: .*nowhere"):
        submit(broker_url, ["a"], **{**prompt, "retrieve": "nowhere"})
