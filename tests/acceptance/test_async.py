"""Runs from an event loop: they never block it, and end with their task."""

from __future__ import annotations

import subprocess
import sys
import textwrap

START = """
    import asyncio, threading
    from fanout import InputError, ParallelCalls, PromptError, RunStatus

    async def poll(is_true):
        while not is_true():
            await asyncio.sleep(0.01)
"""


def test_a_run_is_awaited_streamed_and_cancelled_while_the_loop_goes_on(script):
    """The model and the input wait for the loop: each check hangs if the loop is blocked."""
    out = script(
        START
        + """
    gate, entered = threading.Event(), threading.Event()

    def model(prompt):
        entered.set()
        if "wait" in prompt:
            gate.wait(120)
        return prompt.upper()

    async def words():
        for word in ("a", "b"):
            await asyncio.sleep(0)
            yield word

    async def use(runner):
        threads, statuses = set(), []

        def on_progress(status):
            threads.add(threading.current_thread())
            statuses.append(status.status)

        task = asyncio.create_task(
            runner.arun({"one": "wait", "two": "x"}, "{input}", on_progress=on_progress)
        )
        await poll(entered.is_set)
        gate.set()
        result = await task
        assert result.outputs == ["WAIT", "X"]
        assert [one.document for one in result.branches] == ["one", "two"]
        assert threads == {threading.main_thread()} and statuses[-1] == "succeeded"
        assert (await runner.arun(words(), "{input}")).outputs == ["A", "B"]

        # Many at once on one runner.
        results = await asyncio.gather(
            *(runner.arun([f"{n}", "x"], "{input}", reduce="concat") for n in range(20))
        )
        assert [one.outputs for one in results] == [[str(n), "X"] for n in range(20)]

        # Errors are those of run.
        for chunks, prompt, error in (
            ([], "{input}", InputError), (["a"], "{no}", PromptError), (iter([]), "{input}", InputError),
        ):
            for call in (runner.arun(chunks, prompt), anext(runner.astream(chunks, prompt))):
                try:
                    await call
                except error:
                    continue
                raise AssertionError(f"no {error}")

        def broken():
            yield "a"
            raise ZeroDivisionError("mine")

        try:
            await runner.arun(broken(), "{input}")
        except ZeroDivisionError as error:
            assert str(error) == "mine"
        else:
            raise AssertionError("no error")

        # The first branches come while the input is still being read, in a thread.
        got_one = threading.Event()

        def many():
            for number in range(1200):
                if number == 1100:
                    assert got_one.wait(120)
                yield f"{number}"

        seen = []
        async for output in runner.astream(many(), "{input}"):
            got_one.set()
            seen.append(output.index)
        missing, twice = {*range(1200)} - {*seen}, len(seen) - len({*seen})
        assert not missing and not twice, (sorted(missing)[:20], twice)

        # Cancelling the task cancels the run, and so does leaving the loop.
        gate.clear(), entered.clear()
        task = asyncio.create_task(runner.arun(["wait"] * 3, "{input}"))
        await poll(entered.is_set)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        else:
            raise AssertionError("it was not cancelled")
        latest = await asyncio.to_thread(lambda: next(runner.client.runs()).status())
        assert latest.status is RunStatus.CANCELLED, latest
        assert latest.done == latest.total == 3

        stream = runner.astream(["x", *["wait"] * 3], "{input}")
        async for output in stream:
            break
        await stream.aclose()
        gate.set()
        latest = await asyncio.to_thread(lambda: next(runner.client.runs()).status())
        assert latest.status is RunStatus.CANCELLED, latest

        # A handle of a run: follow it, or cancel it with the task.
        run = await asyncio.to_thread(
            runner.client.submit, {"model": runner._models[0], "prompt": "{input}"}, ["a", "b"]
        )
        assert {one.output async for one in run.astream()} == {"A", "B"}
        assert (await run.await_(120)).status == "succeeded"
        gate.clear(), entered.clear()
        run = await asyncio.to_thread(
            runner.client.submit, {"model": runner._models[0], "prompt": "{input}"}, ["wait"]
        )
        await poll(entered.is_set)
        for fields, expected in (({}, "running"), ({"cancels": True}, "cancelled")):
            following = asyncio.ensure_future(anext(run.astream(**fields)))
            # It begins, and waits for its first look at the run.
            await asyncio.sleep(0)
            following.cancel()
            await asyncio.wait([following])
            assert (await asyncio.to_thread(run.status)).status == expected
        gate.set()

    async def main():
        async with ParallelCalls(llm=model, max_workers=8) as runner:
            await use(runner)
        print("done")

    asyncio.run(main())
    with ParallelCalls(llm=model) as runner:
        try:
            runner.run(words(), "{input}")
        except InputError as error:
            print(error)
"""
    )
    assert out == "done\nchunks is an async iterator, which only arun and astream take\n"


def test_ctrl_c_cancels_an_awaited_run_and_progress_is_shown_on_stderr(here):
    source = (
        START
        + """
    import os, signal
    gate, entered = threading.Event(), threading.Event()

    def model(prompt):
        entered.set()
        gate.wait(120) if "wait" in prompt else None
        return prompt

    async def main(runner):
        print(await runner.arun(["a"], "{input}", progress=True))
        task = asyncio.create_task(runner.arun(["wait"], "{input}"))
        await poll(entered.is_set)
        entered.clear()
        task = asyncio.create_task(runner.arun(["wait"], "{input}"))
        await poll(entered.is_set)
        os.kill(os.getpid(), signal.SIGINT)
        await task

    with ParallelCalls(llm=model, max_workers=4) as runner:
        try:
            asyncio.run(main(runner))
        except KeyboardInterrupt:
            print(*(run.status().status for run in runner.client.runs()))
        gate.set()
"""
    )
    (here / "script.py").write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("<Result run_id=")
    assert last == "cancelled cancelled succeeded"
    assert "ended 1/1" in done.stderr
    assert "succeeded: 1 of 1 branch (100.0%)" in done.stderr


def test_ctrl_c_while_the_input_is_read_cancels_the_run(script):
    out = script("""
        import os, signal
        from fanout import ParallelCalls

        def chunks():
            for number in range(2000):
                if number == 1500:
                    os.kill(os.getpid(), signal.SIGINT)
                yield f"{number}"

        with ParallelCalls(llm=lambda prompt: prompt) as runner:
            try:
                runner.run(chunks(), "{input}")
            except KeyboardInterrupt:
                [run] = runner.client.runs()
                print(run.wait(120).status)
    """)
    assert out == "cancelled\n"
