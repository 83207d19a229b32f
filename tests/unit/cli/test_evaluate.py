from __future__ import annotations

import click
import pytest

from fanout.cli.evaluate import command
from fanout.core.errors import FanoutError, InputError, SpecError

JOB = ("in.csv", "-m", "fake", "-p", "{input}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (JOB, "--label: is required: which column has the right answers?"),
        ((*JOB, "--label", "gld"), "--label: there is no column 'gld'; did you mean gold? known: gold"),
        ((*JOB, "--label", "text"), "--label: 'text' is the column of the text; name another"),
        ((*JOB, "--label", "a", "--label", "b"), "--label: gives the column of the whole answer twice"),
        ((*JOB, "--label", "x=a", "--label", "x=b"), "--label: gives the column of 'x' twice"),
        ((*JOB, "--label", "a="), "--label: must be COLUMN or FIELD=COLUMN (got 'a=')"),
        ((*JOB, "--label", "=a"), "--label: must be COLUMN or FIELD=COLUMN (got '=a')"),
        ((*JOB, "--label", "f=gold"), "--label: answers have no fields, and so no 'f': give"),
        (("a.txt", *JOB[1:], "--label", "gold"), "--label: there is no column 'gold'; known: none"),
        (("a.txt", *JOB[1:], "--label", "gold", "--read-on", "workers"),
         "--label: there is no column 'gold'; known: none"),
        (("in.csv", "--label", "gold"), "prompt: is required"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used_are_refused_before_a_call(
    monkeypatch, tmp_path, arguments, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FANOUT_MODEL", "fake")
    (tmp_path / "in.csv").write_text("text,gold\nx,y\n")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SpecError) as caught:
        command.main(list(arguments), standalone_mode=False)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["nosuchrun", "missing.csv", "no/such/folder", "NOSUCH"])
@pytest.mark.parametrize("options", [(), ("--label", "gold")])
def test_a_name_that_is_neither_a_run_nor_a_file_is_said_to_be_none(name, options):
    with pytest.raises(InputError, match=f"^{name}: there is no such run, and no such file"):
        command.main([name, *options], standalone_mode=False)


@pytest.mark.parametrize("name", ["-", "*.csv", "https://host/a.csv", "run:abc", "missing.yaml"])
def test_what_is_no_name_is_no_missing_run(name):
    with pytest.raises(FanoutError) as caught:
        command.main([name], standalone_mode=False)
    assert "no such run" not in str(caught.value)


@pytest.mark.parametrize("share", ["90", "-1", "x", "nan"])
def test_a_threshold_is_a_share(share):
    with pytest.raises(click.BadParameter) as caught:
        command.main([*JOB, "--label", "gold", "--fail-under", share], standalone_mode=False)
    assert "--fail-under" in caught.value.format_message()
