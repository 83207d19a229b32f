"""What a run is told about time is by the server's clock."""

from __future__ import annotations

import time

from fanout import Client


def test_the_deadline_of_a_run_is_the_servers(monkeypatch, broker_url, start_worker):
    start_worker()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 600)
    with Client(broker_url) as client:
        run = client.submit({"model": "fake", "prompt": "{input}", "deadline_s": 60}, ["a", "b"])
        assert run.wait(120).succeeded == 2
        assert 0 <= run.status().elapsed_s < 300
