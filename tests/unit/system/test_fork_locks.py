"""Locks that forked children share with their parent."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import threading
import warnings

import pytest

import fanout
import workers
from fanout.system.fork_locks import ForkSafeLock

LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition)


def in_child(function):
    """The result of a function in a forked child: whether it returned what is true."""
    with warnings.catch_warnings():
        # Of the threads of this process, as newer versions of Python warn.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_a_lock_that_a_thread_of_the_parent_has_is_free_in_a_child(is_reentrant):
    lock = ForkSafeLock(is_reentrant=is_reentrant)
    taken, ends = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            ends.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        assert not lock.take()
        assert in_child(lock.take)
        assert not lock.take(), "it is still in use here"
    finally:
        ends.set()
        thread.join()
    assert lock.take()
    lock.give_back()


def test_only_a_reentrant_lock_is_taken_again_by_its_thread():
    with ForkSafeLock() as lock:
        assert not lock.take()
    with ForkSafeLock(is_reentrant=True) as lock:
        assert lock.take()
        lock.give_back()


def is_ours(value):
    return (getattr(type(value), "__module__", "") or "").split(".")[0] in {"fanout", "workers"}


def locks_of(value, name, seen):
    """The locks in an object of fanout and in what it holds, by the path that leads to them."""
    if id(value) in seen or isinstance(value, ForkSafeLock):
        return
    seen.add(id(value))
    if isinstance(value, LOCKS):
        yield name
    elif isinstance(value, type) and is_of_fanout(value):
        for key, each in vars(value).items():
            if not isinstance(each, functools.cached_property):
                yield from locks_of(each, f"{name}.{key}", seen)
    elif is_ours(value):
        for key, each in getattr(value, "__dict__", {}).items():
            yield from locks_of(each, f"{name}.{key}", seen)


def is_of_fanout(cls):
    return cls.__module__.split(".")[0] in {"fanout", "workers"}


def modules():
    for package in (fanout, workers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__") or found.name == "workers.app":
                continue
            yield importlib.import_module(found.name)


def test_each_lock_that_lives_as_long_as_its_process_is_free_in_a_child():
    seen = set()
    assert [
        path
        for module in modules()
        for key, value in vars(module).items()
        for path in locks_of(value, f"{module.__name__}.{key}", seen)
    ] == []
