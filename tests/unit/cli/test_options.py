"""What is said of options that are wrong, alone or together."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from fanout.cli.main import cli, main
from fanout.core.errors import SpecError


def test_an_aspect_that_is_given_twice_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    job = ["run", str(tmp_path / "a.txt"), "--model", "fake"]
    aspects = ["--aspect", "a={input}", "--aspect", "a=x {input}"]
    done = CliRunner().invoke(cli, [*job, *aspects], standalone_mode=False)
    assert isinstance(done.exception, SpecError)
    assert "--aspect" in str(done.exception)
    assert "twice" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("statuss", "there is no command 'statuss'; did you mean 'status'?"),
        ("--loud", "No such option '--loud'"),
        ("status", "Missing argument 'RUN' (see `fanout status --help`)"),
        ("completion", "Choose from: bash, zsh, fish (see `fanout completion --help`)"),
        ("runs extra", "Got unexpected extra argument (extra) (see `fanout runs --help`)"),
        ("runs --limit x", "Invalid value for '--limit': 'x' is not a valid integer range (see"),
        ("runs --status odd", "Invalid value for '--status': 'odd' is not one of 'enqueuing',"),
        ("run --force", "--force has no effect without --out"),
        ("run a.txt -m fake", "--prompt: is required"),
        (
            "run a.txt -m fake -p {input} --max-workers 0",
            "--max-workers: must be 1 or more (got 0)",
        ),
        ("run a.txt -m fake -p {input} --price input_mtok=0.2", "--price output_mtok: is required"),
        (
            "run a.txt -m fake -p {input} --price input_mtok=-1 --price output_mtok=1",
            "--price input_mtok: must be 0 or more (got -1",
        ),
        (
            "run a.txt -m fake -p {input} --price foo=1",
            "--price foo: there is no such field (known: ",
        ),
        ("run a.txt -p {input} --models fake,fake", "--model: has 'fake' twice"),
        ("run a.txt -m fake -p {input} --fallback a,", "--fallback: must not be empty"),
        ("trial a.txt -m fake -p {input} --sample 0", "--sample: must be a whole number from 1 on"),
        (
            "trial a.txt -m fake -p {input} --sample -3",
            "--sample: must be a whole number from 1 on",
        ),
        (
            "run a.txt -m fake -p {input} --dry-run --out x.csv",
            "--out has no effect with --dry-run: leave one of them out",
        ),
        (
            "run a.txt -m fake -p {input} --dry-run --out x.csv --out-mode 640",
            "has no effect with --dry-run: leave one of them out",
        ),
        (
            "run a.txt -m fake -p {input} --max-attempts 1 --base-wait-s 3",
            "--base-wait-s: has no effect with --max-attempts 1,",
        ),
        (
            "run a.txt -m fake -p {input} --split tokens --chunk-tokens 3 --chunk-overlap-tokens 8",
            "--chunk-overlap-tokens: 8 must be smaller than --chunk-tokens (3)",
        ),
        (
            "run a.txt -m fake -p {input} --aggregate x --reduce none",
            "--reduce: 'none' does not use an aggregate prompt; leave it out, or leave --aggregate",
        ),
        (
            "estimate a.txt -m fake -p {input} --aggregate x",
            "fanout: --aggregate: must contain {input}, where the text goes in",
        ),
        (
            "estimate a.txt -m fake -p {input} --aggregate {input} --context-tokens 300",
            "fanout: --context-tokens: the context window of 300 tokens leaves no room",
        ),
        (
            "run a.txt -m fake -p {input} --fold map_rerank --sources",
            "--sources: has no effect with fold 'map_rerank'; leave one of the two out",
        ),
        (
            "run a.txt -m fake -p {input} --fold map_rerank -k 3",
            "--k: has no effect with fold 'map_rerank'; leave one of the two out",
        ),
    ],
)
def test_wrong_usage_is_one_line_that_names_options_as_they_are_given(
    monkeypatch, capsys, tmp_path, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(sys, "argv", ["fanout", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("fanout: ")
    assert message in said
    assert said.count("\n") == 1
