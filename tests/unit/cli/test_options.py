"""What the options of a job say together."""

from __future__ import annotations

from click.testing import CliRunner

from fanout.cli.main import cli
from fanout.core.errors import SpecError


def test_an_aspect_that_is_given_twice_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    job = ["run", str(tmp_path / "a.txt"), "--model", "fake"]
    aspects = ["--aspect", "a={input}", "--aspect", "a=x {input}"]
    done = CliRunner().invoke(cli, [*job, *aspects], standalone_mode=False)
    assert isinstance(done.exception, SpecError)
    assert "--aspect" in str(done.exception)
    assert "twice" in str(done.exception)
