"""Deadlines of calls end what those of asyncio would."""

from __future__ import annotations

import asyncio

import pytest

from fanout.llm.deadline import Deadline


class AsAsyncio:
    """asyncio's own, in the form of ours."""

    def __init__(self, seconds):
        self._timeout = asyncio.timeout(seconds)

    def __enter__(self):
        with pytest.raises(StopIteration):
            self._timeout.__aenter__().send(None)

    def __exit__(self, *raised):
        try:
            self._timeout.__aexit__(*raised).send(None)
        except StopIteration as ended:
            return ended.value


async def within(deadline, *, seconds, takes_s, raises=False, is_cancelled=False):
    """How a task ends that waits within a deadline, and what it is left with."""
    ends = []

    async def wait():
        try:
            with deadline(seconds):
                await asyncio.sleep(takes_s)
                assert not raises
        except BaseException as error:
            ends.append(type(error).__name__)
            ends.append(type(error.__cause__).__name__)
            raise
        finally:
            ends.append(asyncio.current_task().cancelling())

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    if is_cancelled:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return *ends, task.cancelled()


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"seconds": 60, "takes_s": 0}, (0, False)),
        ({"seconds": 0.01, "takes_s": 60}, ("TimeoutError", "CancelledError", 0, False)),
        ({"seconds": 0, "takes_s": 60}, ("TimeoutError", "CancelledError", 0, False)),
        (
            {"seconds": 60, "takes_s": 60, "is_cancelled": True},
            ("CancelledError", "NoneType", 1, True),
        ),
        ({"seconds": 60, "takes_s": 0, "raises": True}, ("AssertionError", "NoneType", 0, False)),
    ],
)
def test_a_deadline_ends_what_asyncios_would(given, ends):
    assert asyncio.run(within(AsAsyncio, **given)) == ends
    assert asyncio.run(within(Deadline, **given)) == ends


def test_a_deadline_leaves_to_others_what_they_cancel_as_well():
    async def main():
        async def wait():
            with Deadline(0.01):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    asyncio.current_task().cancel()
                    raise

        task = asyncio.get_running_loop().create_task(wait())
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert asyncio.run(main())
