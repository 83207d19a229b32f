"""Scripts are functions of a server, or scripts where it knows no functions."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pkgutil

import pytest
import redis
from redis.exceptions import NoPermissionError

from fanout.broker.server_setup import all_scripts, count_missing, load_functions
from fanout.stores import redis as stores
from fanout.stores.functions import (
    FunctionsClient,
    FunctionsMissingError,
    ServerFunction,
    _name,
    library,
)
from tests.fakes import fake_redis

ADD = """
local function add(by) return redis.call('INCRBY', KEYS[1], by) end
return {add(ARGV[1]), #KEYS, #ARGV}
"""


@pytest.fixture
def client(broker_url):
    with FunctionsClient.from_url(broker_url) as client:
        yield client
        client.function_flush()
        client.acl_deluser("limited")


def limited(broker_url, client, *rules):
    """A client whose user may do so much and no more."""
    rules = ("reset", "on", ">secret", "~*", "+incrby", *rules)
    client.execute_command("ACL", "SETUSER", "limited", *rules)
    return FunctionsClient.from_url(broker_url.replace("//", "//limited:secret@"))


def test_it_is_loaded_where_it_is_missing_and_keeps_what_a_script_gives(client):
    add = client.register_script(ADD)
    assert isinstance(add, ServerFunction)
    assert add(keys=["n"], args=[2]) == [2, 1, 1]
    client.function_flush()
    assert add(keys=["n"], args=[3]) == [5, 1, 1]
    client.function_flush()
    for pipe in (client.pipeline(), client.pipeline(transaction=False)):
        with pipe:
            pipe.set("m", 1)
            add(keys=["n"], args=[1], client=pipe)
            assert pipe.execute()[-1][1:] == [1, 1]
    stats = client.info("commandstats")
    assert stats["cmdstat_fcall"]["calls"] > 0


def test_who_may_not_load_it_is_told_who_does_and_may_call_it_then(broker_url, client):
    with limited(broker_url, client, "+fcall", "+fcall_ro") as user:
        add = user.register_script(ADD)
        with pytest.raises(FunctionsMissingError, match="fanout setup-server"):
            add(keys=["n"], args=[1])
        with user.pipeline() as pipe, pytest.raises(FunctionsMissingError):
            add(keys=["n"], args=[1], client=pipe)
        client.execute_command("FUNCTION", "LOAD", library(ADD))
        assert add(keys=["n"], args=[1]) == [1, 1, 1]
        # With the rights of its caller.
        forbidden = "return redis.call('DEL', KEYS[1])"
        client.execute_command("FUNCTION", "LOAD", library(forbidden))
        with pytest.raises(redis.ResponseError, match="permission"):
            user.register_script(forbidden)(keys=["n"])


def test_users_of_a_version_before_functions_send_the_script(broker_url, client):
    with limited(broker_url, client, "+eval", "+evalsha", "+script|load") as user:
        assert user.register_script(ADD)(keys=["n"], args=[1]) == [1, 1, 1]
    with limited(broker_url, client) as user:
        # For now, as it may be: nothing is remembered of it.
        add = user.register_script(ADD)
        with pytest.raises(NoPermissionError, match="fcall"):
            add(keys=["n"], args=[1])
        client.execute_command("FUNCTION", "LOAD", library(ADD))
        client.execute_command("ACL", "SETUSER", "limited", "+fcall")
        assert add(keys=["n"], args=[1]) == [2, 1, 1]


def test_a_transaction_with_a_script_is_not_refused_where_there_are_no_functions(
    broker_url, client
):
    rules = ("+eval", "+evalsha", "+script|load", "+multi", "+exec", "+set")
    client.script_flush()
    with limited(broker_url, client, *rules) as user:
        add = user.register_script(ADD)
        with user.pipeline() as pipe:
            pipe.set("m", 1)
            add.add_to(pipe, ["n"], [1])
            answers = pipe.execute(raise_on_error=False)
        assert answers[0] is True
        assert ServerFunction.was_missing(answers[1])
        assert add(keys=["n"], args=[1]) == [1, 1, 1]


def test_a_server_that_knows_no_functions_is_sent_the_script():
    client = fake_redis()
    add = ServerFunction(client, ADD)
    assert add(keys=["n"], args=[1]) == [1, 1, 1]
    with client.pipeline() as pipe:
        add(keys=["n"], args=[1], client=pipe)
        assert pipe.execute() == [[2, 1, 1]]


def test_every_script_is_a_function_that_the_server_takes(client):
    scripts = all_scripts()
    for found in pkgutil.iter_modules(stores.__path__):
        if found.name.endswith("_scripts"):
            module = importlib.import_module(f"{stores.__name__}.{found.name}")
            values = [getattr(module, name) for name in module.__all__]
            sources = {value for value in values if isinstance(value, str)}
            assert sources
            assert sources <= set(scripts), f"setup-server loads those of {found.name}"
    assert len(set(scripts)) == len(scripts)
    # Those of other tests on this server go with it.
    client.function_flush()
    assert count_missing(client) == len(scripts)
    assert load_functions(client) == len(scripts) == load_functions(client)
    assert count_missing(client) == 0


# What a user with rights to the keys can give, or have written there.
ABSURD = ("1e15", "inf", "nan", "-1e15", "0")
FIELDS = ("written", "opened", "turns", "in_play", "base_stage", "stage", "paused", "0")


@pytest.mark.parametrize("argument", ABSURD)
def test_no_arguments_and_no_records_make_a_script_long(broker_url, client, argument):
    """A script that runs holds up everybody, and one that has written cannot be stopped."""
    load_functions(client)
    keys = [f"k{i}" for i in range(8)]
    with redis.Redis.from_url(broker_url, socket_timeout=10, retry=None) as impatient:
        for source in all_scripts():
            name = _name(source)
            for given, written in itertools.product((argument, "0", "1e15"), ABSURD):
                impatient.delete(*keys)
                for key in keys:
                    impatient.hset(key, mapping=dict.fromkeys(FIELDS, written) | {"opened": "0"})
                for key in (keys, keys[:1]):
                    with contextlib.suppress(redis.ResponseError):
                        impatient.fcall(name, len(key), *key, *[given] * 9)
        impatient.delete(*keys)
        assert impatient.ping(), "no script runs on"
