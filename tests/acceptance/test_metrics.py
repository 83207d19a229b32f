"""``fanout metrics`` as Prometheus uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fanout import Client
from tests.servers import ServerProcess

pytestmark = pytest.mark.acceptance

FANOUT = Path(sys.executable).with_name("fanout")


@contextmanager
def metrics(url, *options):
    """Run the exporter on a free port; give the URL that it says it is at."""
    process = subprocess.Popen(
        [FANOUT, "metrics", "--port", "0", *options],
        env={**os.environ, "FANOUT_BROKER_URL": url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        rest = process.communicate(timeout=120)[1]
    assert process.returncode == 0, rest


def fetch(url, token=None):
    request = urllib.request.Request(url)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def status_of(url, token=None):
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(url, token)
    caught.value.close()
    return caught.value.code


def value(text, name):
    families = text_string_to_metric_families(text)
    return next(s.value for family in families for s in family.samples if s.name == name)


def test_a_submitted_run_shows(broker_url):
    with Client(broker_url) as client, metrics(broker_url) as url:
        client.submit({"model": "fake", "prompt": "{input}"}, ["a", "b"])
        text = fetch(url)
        assert value(text, "fanout_up") == 1
        assert value(text, "fanout_runs_submitted_total") == 1
        assert value(text, "fanout_workers") == 0
        assert fetch(url.replace("/metrics", "/healthz")) == "OK\n"
        assert status_of(url.replace("/metrics", "/")) == 404


def test_a_token_is_asked_for_where_there_is_one(broker_url, tmp_path):
    file = tmp_path / "token"
    file.write_text("s3same\n")
    with metrics(broker_url, "--token-file", str(file), "--address", "0.0.0.0") as shown:
        url = shown.replace("0.0.0.0", "127.0.0.1")
        assert status_of(url) == 401
        assert status_of(url, "other") == 401
        assert value(fetch(url, "s3same"), "fanout_up") == 1
        # A probe has no token.
        assert fetch(url.replace("/metrics", "/healthz")) == "OK\n"


def test_a_server_that_goes_away_shows_as_down(tmp_path):
    server = ServerProcess(tmp_path)
    try:
        with metrics(server.url) as url:
            assert value(fetch(url), "fanout_up") == 1
            server.kill()
            assert value(fetch(url), "fanout_up") == 0
            assert status_of(url.replace("/metrics", "/healthz")) == 503
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "0.0.0.0"], "--token-file"),
        (["--token-file", "/dev/null"], "/dev/null is empty"),
        (["--address", "192.0.2.1", "--no-auth"], "cannot listen at 192.0.2.1:0"),
    ],
)
def test_what_cannot_be_served_is_reported(broker_url, options, said):
    done = subprocess.run(
        [FANOUT, "metrics", "--port", "0", "--broker-url", broker_url, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
