"""The library, used from scripts as a user would write them."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXAMPLE = """
    from fanout import ParallelCalls

    resume_texts = ["Ann, 10 years of Python", "Bob, 2 years of Java", "Cid, a baker"]
    {before}
    runner = ParallelCalls(llm={llm}, max_workers=4)
    result = runner.run(
        chunks=resume_texts,
        branch_prompt="Score this resume (0-10) with a justification:\\n\\n{{input}}",
        aggregate_prompt="Rank these candidates and recommend the top 2:\\n\\n{{input}}",
    )
    assert len(result.outputs) == 3, result.outputs
    assert all(isinstance(output, str) and output for output in result.outputs), result.errors
    assert isinstance(result.aggregated, str) and result.aggregated, result.reduce_errors
    assert result.errors == []
    assert result.usage.calls == 4
    assert (result.status, result.coverage) == ("succeeded", 1.0)
    assert len(result.run_id) == 8
    print(result.outputs[0], "|", result.aggregated)
"""


def test_the_example_works_with_a_function(script):
    out = script(EXAMPLE.format(llm="lambda prompt: prompt.upper()", before=""))
    assert out.startswith("SCORE THIS RESUME")
    assert "RANK THESE CANDIDATES" in out


def test_the_example_works_with_an_async_function(script):
    before = "async def model(prompt): return prompt[:5]"
    assert script(EXAMPLE.format(llm="model", before=before)) == "Score | Rank \n"


def test_the_example_works_with_a_model_string(script):
    assert script(EXAMPLE.format(llm="'fake'", before="")).startswith("fake answer")


@pytest.mark.timeout(510)
def test_the_example_works_with_the_local_model(script):
    # An answer of a small model may ramble on by chance, and is asked for once more.
    example = EXAMPLE.replace("usage.calls == 4", "usage.calls in range(4, 9)")
    assert script(example.format(llm="'local'", before=""), timeout_s=500)


def test_a_function_is_found_by_its_dotted_path(script, here):
    (here / "mine.py").write_text("def model(prompt):\n    return 'mine'\n")
    out = script(EXAMPLE.format(llm="'mine:model'", before=""))
    assert out == "mine | mine\n"


def test_a_worker_at_work_has_loaded_no_providers_client_and_no_monitor(script, here):
    (here / "mine.py").write_text(
        "def model(prompt):\n    import sys\n    return ' '.join(sys.modules)\n"
    )
    out = script("""
        from fanout import ParallelCalls

        with ParallelCalls(llm="mine:model") as runner:
            result = runner.run(["a"], "{input}")
        print(*result.outputs)
    """)
    modules = set(out.split())
    assert {"workers.tasks", "fanout.llm.calls"} <= modules
    # redis-py looks for OpenTelemetry by itself.
    allowed = subprocess.run(
        [sys.executable, "-c", "import redis, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    packages = {module.partition(".")[0] for module in modules.difference(allowed)}
    clients = {"aiohttp", "anthropic", "httpx", "httpx2", "litellm", "openai", "xllamacpp"}
    assert not packages & {*clients, "flower", "opentelemetry", "tornado", "numpy"}


def test_it_works_under_a_running_event_loop_in_a_thread_and_twice(script):
    """A notebook cell runs under an event loop."""
    out = script("""
        import asyncio, threading
        from fanout import ParallelCalls

        def once(label):
            runner = ParallelCalls(llm=lambda prompt: f"{label} {prompt}", max_workers=2)
            print(runner.run(["x", "y"], "{input}").outputs)
            print(runner.run(["z"], "{input}").outputs)
            runner.close()

        async def cell():
            once("loop")

        asyncio.run(cell())
        thread = threading.Thread(target=once, args=("thread",))
        thread.start()
        thread.join()
        once("main")
    """)
    assert out.splitlines() == [
        line
        for label in ("loop", "thread", "main")
        for line in (f"['{label} x', '{label} y']", f"['{label} z']")
    ]


def test_two_runners_with_functions_work_at_the_same_time(script):
    out = script("""
        import threading
        from fanout import ParallelCalls

        meet = threading.Barrier(2, timeout=120)

        def use(name):
            def model(prompt):
                meet.wait()
                return name + prompt
            with ParallelCalls(llm=model, max_workers=1) as runner:
                results[name] = runner.run(["1", "2"], "{input}").outputs

        results = {}
        threads = [threading.Thread(target=use, args=(name,)) for name in "ab"]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(results["a"], results["b"])
    """)
    assert out == "['a1', 'a2'] ['b1', 'b2']\n"


def test_a_later_run_of_a_runner_may_have_the_first_function(script):
    out = script("""
        from fanout import ParallelCalls

        def vectors(texts):
            return [[1.0, float(len(text) % 2)] for text in texts]

        with ParallelCalls(llm="fake", max_workers=2) as runner:
            first = runner.run(["a"], "J {input}")
            fields = {"aggregate_prompt": "S {input}", "fold": "cluster", "embed": vectors}
            second = runner.run(list("abc"), "J {input}", **fields)
            third = runner.run(["a"], "J {input}")
            print(second.status, bool(second.aggregated), first.outputs == third.outputs)
            print([runner.client.run(one.run_id).status().done for one in (first, second, third)])
    """)
    assert out == "succeeded True True\n[1, 3, 1]\n"


@pytest.mark.parametrize("forks_embedded", [False])
def test_one_runner_may_be_used_by_several_threads(script):
    source = """
        import psutil, threading
        from fanout import ParallelCalls

        results = {}
        with ParallelCalls(llm="fake", max_workers=4) as runner:
            def use(name):
                results[name] = runner.run([name] * 20, "{input}").coverage
            threads = [threading.Thread(target=use, args=(name,)) for name in "abc"]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            print(results == dict.fromkeys("abc", 1.0), len(psutil.Process().children()))
    """
    assert script(source) == "True 1\n"


def test_what_looks_at_a_fleet_that_another_thread_has_closed_is_told_so(script):
    source = """
        from fanout import EmbeddedError
        from fanout.client.embedded.fleet import EmbeddedFleet, InProcessFleet

        for start in (InProcessFleet.acquire, EmbeddedFleet):
            fleet = start(concurrency=1)
            fleet.check()
            fleet.close()
            try:
                fleet.check()
            except EmbeddedError as error:
                print(error)
    """
    assert script(source) == "the embedded worker has stopped: its client was closed\n" * 2


def test_failures_are_records_in_input_order(script):
    """A fifth of a thousand branches fail, and the aggregate is made once of the others."""
    out = script("""
        from fanout import ParallelCalls

        with ParallelCalls(llm="fake?fail_rate=0.2") as runner:
            result = runner.run(
                [f"document {i}" for i in range(1000)],
                "{input}",
                reduce="vote",
                retries={"max_attempts": 2, "base_wait_s": 0},
            )
        missing = [i for i, output in enumerate(result.outputs) if output is None]
        assert len(result.outputs) == 1000
        assert [error.index for error in result.errors] == missing
        assert all(error.kind == "server_error" for error in result.errors)
        assert all(error.attempts == 2 and error.message for error in result.errors)
        assert sum(result.aggregated["votes"].values()) == 1000 - len(missing)
        assert 150 < len(missing) < 250
        print(result.status)
    """)
    assert out == "succeeded\n"


def test_a_callable_that_workers_cannot_import_is_refused_with_a_fleet(script, server):
    out = script(f"""
        from fanout import ParallelCalls, SpecError
        try:
            ParallelCalls(llm=lambda prompt: prompt, broker_url="redis://127.0.0.1:{server.port}/0")
        except SpecError as error:
            print(error)
    """)
    assert "llm: <lambda> cannot be imported by workers on other machines" in out


def test_a_program_s_own_celery_application_stays_the_default(script):
    out = script("""
        from celery import Celery, current_app
        mine = Celery("mine")
        from fanout import ParallelCalls
        with ParallelCalls(llm=lambda prompt: prompt) as runner:
            runner.run(["x"], "{input}")
            print(current_app.main)
    """)
    assert out == "mine\n"


def test_a_run_can_be_followed_by_its_client(script):
    out = script("""
        from fanout import Client, RunSpec
        with Client() as client:
            run = client.submit(RunSpec(model="fake", prompt="{input}"), ["a", "b"])
            print(run.wait(120).status, [one.output is not None for one in run.outcomes()])
            print([one.run_id for one in client.runs()] == [run.run_id])
    """)
    assert out == "succeeded [True, True]\nTrue\n"
