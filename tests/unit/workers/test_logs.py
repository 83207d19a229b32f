"""Lines of a worker's log."""

from __future__ import annotations

import io
import json
import logging

import pytest
import redis
from celery import Celery, signals

from fanout.core.errors import LLMError
from fanout.core.ids import ShardId
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.settings import load_settings
from fanout.system.logs import JsonFormatter, RateLimitFilter, about, about_task, path_of
from tests.fakes import RUN, FakeContext
from workers.consumer.task_requests import HandedBackError
from workers.telemetry import logs
from workers.telemetry.reports import _Failures

CANARY = "canary-91c2"


def record(message="hello", *args, name="workers.test", level=logging.INFO, **extra):
    made = logging.LogRecord(name, level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize(
    ("task_id", "where", "path"),
    [
        ("r/0/3/17", {"run_id": "r", "stage": 0, "shard": 3, "position": 17}, "r/0/3/17"),
        ("r/1/2/collect", {"run_id": "r", "stage": 1, "shard": 2}, "r/1/2/collect"),
        ("r/1/seal", {"run_id": "r", "stage": 1}, "r/1/seal"),
    ],
)
def test_the_id_of_a_task_says_what_it_is_about(task_id, where, path):
    found = about_task(task_id)
    assert {name: value for name, value in found.items() if name != "task"} == where
    assert path_of(found) == path


@pytest.mark.parametrize("task_id", ["", "r", "a-uuid-of-somebody", "r/x/y/1", "r/1/2/3/4/5"])
def test_the_id_of_somebody_elses_task_says_nothing(task_id):
    assert about_task(task_id) == {}


def test_a_json_line_has_the_time_in_utc_and_what_it_is_about():
    line = JsonFormatter().format(
        record("%d of %d", 1, 2, **about(ShardId("r", 0, 3)), created=1.5)
    )
    assert json.loads(line) == {
        "ts": "1970-01-01T00:00:01.500Z",
        "level": "INFO",
        "logger": "workers.test",
        "message": "1 of 2",
        "run_id": "r",
        "stage": 0,
        "shard": 3,
    }


def test_a_json_line_of_any_content_is_one_line():
    made = record("a\nb\u2028c")
    try:
        int("two\nlines")
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(made)
    assert len(text.splitlines()) == 1
    line = json.loads(text)
    assert line["message"] == "a\nb\u2028c"
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["traceback"].startswith("Traceback")


def test_what_repeats_passes_once_in_a_while():
    now = [0.0]
    seldom = RateLimitFilter(10, clock=lambda: now[0])
    passed = []
    for second in range(25):
        now[0] = second
        if seldom.filter(record()):
            passed.append(second)
    assert passed == [0, 10, 20]


def test_failures_are_said_once_in_a_while_for_each_run_and_kind(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("workers.telemetry.reports.time.monotonic", lambda: now[0])
    failures = _Failures()
    assert [failures.due("r", "timeout") for _ in range(4)] == [1, 0, 0, 0]
    assert failures.due("r", "auth") == failures.due("s", "timeout") == 1
    now[0] = 61.0
    assert failures.due("r", "timeout") == 4


@pytest.fixture
def set_up(monkeypatch):
    """Set the logs up as Celery does for a worker, on a stream; undone after the test."""
    stream = io.StringIO()
    levels = {name: logging.getLogger(name).level for name in logs._CHATTY}

    def do(log_format, level=logging.INFO):
        monkeypatch.setattr(signals.after_setup_logger, "receivers", [])
        monkeypatch.setattr(signals.after_setup_task_logger, "receivers", [])
        logs.set_up_logs(load_settings(log_format=log_format))
        # One of our own: the true root is the test runner's.
        logger = logging.Logger("as the root", level)  # noqa: LOG001
        logger.addHandler(logging.StreamHandler(stream))
        signals.after_setup_logger.send(
            sender=None, logger=logger, loglevel=level, logfile=None, format="", colorize=False
        )
        return logger, stream

    yield do
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_line_within_a_task_names_it(set_up):
    logger, stream = set_up("text")
    app = Celery("test", set_as_current=False)

    @app.task(name="fanout.branch", shared=False)
    def branch():
        logger.info("within")

    branch.apply(task_id="r/0/3/17")
    logger.info("without")
    logger.handle(record("of Celery", data={"id": "r/0/4/collect"}))
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["[r/0/3/17] within", "without", "[r/0/4/collect] of Celery"]


def test_the_format_is_that_of_the_settings(set_up):
    logger, stream = set_up("json")
    logger.info("x", extra=about("r"))
    assert json.loads(stream.getvalue())["run_id"] == "r"


@pytest.mark.parametrize(("level", "is_quiet"), [(logging.INFO, True), (logging.DEBUG, False)])
def test_celerys_lines_for_each_branch_are_left_to_debug(set_up, level, is_quiet):
    set_up("text", level)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        assert logging.getLogger(name).level == (logging.WARNING if is_quiet else logging.NOTSET)


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, 1), (logging.DEBUG, 2)])
def test_a_branch_that_goes_back_to_its_queue_is_no_fault(set_up, level, lines):
    logger, stream = set_up("text", level)
    for fault in (HandedBackError("back", requeue=True), ValueError("a bug")):
        made = record("%s", fault, name="celery.app.trace")
        made.exc_info = (type(fault), fault, None)
        logger.handle(made)
    assert len([line for line in stream.getvalue().splitlines() if line[0] == "["]) == lines
    assert "HandedBackError" not in stream.getvalue(), "one line says all of it"
    assert "ValueError: a bug" in stream.getvalue()


def test_a_lost_connection_is_one_line(set_up):
    logger, stream = set_up("text")
    lost = redis.ConnectionError("Connection closed.")
    made = record("Couldn't ack %r, reason:%r\n\n", 1, lost, name="celery.worker.request")
    made.exc_info = (type(lost), lost, None)
    logger.handle(made)
    logger.handle(record("f.py:1: CPendingDeprecationWarning: \nIn Celery", name="py.warnings"))
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("Couldn't ack 1, reason:network:ConnectionError (Connection closed.)")


def test_other_faults_keep_their_traceback(set_up):
    logger, stream = set_up("text")
    fault = ValueError("a bug")
    made = record("oh", name="celery.worker.request")
    made.exc_info = (type(fault), fault, None)
    logger.handle(made)
    assert "ValueError: a bug" in stream.getvalue()


def test_a_run_is_a_line_for_each_shard_and_one_at_its_end(caplog):
    caplog.set_level(logging.INFO)
    context = FakeContext(retries={"max_attempts": 1}, prompt=f"{CANARY} {{input}}")
    context.answer = lambda request: (
        LLMError(ErrorKind.TIMEOUT, CANARY) if "bad" in request.prompt else f"answer {CANARY}"
    )
    context.write([CANARY, "bad", "bad too"], max_branches=2)
    context.process()
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    lines = [
        entry.getMessage() for entry in caplog.records if entry.name == "workers.telemetry.reports"
    ]
    shards = [line for line in lines if ", shard " in line]
    assert shards[0].startswith(
        "run r1, shard 0 of stage 0: 2 branches, 1 succeeded, 1 failed (timeout 1), "
    )
    assert len(shards) == 2
    (end,) = [line for line in lines if line.startswith("run r1 ")]
    assert end.startswith(
        "run r1 succeeded: 3 branches, 1 succeeded, 2 failed (timeout 2), 3 calls, "
    )
    assert CANARY not in caplog.text
