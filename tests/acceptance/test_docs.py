"""Every example in the documentation is run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from fanout.cli.options import job_spec
from fanout.core.settings import load_settings
from tests.scripted_provider import anthropic_reply, openai_reply

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    for page in PAGES:
        found = re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
        )
        for number, source in enumerate(found, 1):
            yield pytest.param(source, id=f"{page.name}-{number}")


def commands():
    for parameter in blocks("sh"):
        text = parameter.values[0].replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith(("fanout run", "fanout eval")):
                words = shlex.split(line, comments=True)
                yield pytest.param(words[1:], id=f"{parameter.id}-{words[2]}")


def job_file():
    """The job of jobs.md."""
    return next(one.values[0] for one in blocks("yaml") if one.id.startswith("jobs.md"))


def steps_file():
    """The job with steps of jobs.md."""
    return next(one.values[0] for one in blocks("yaml") if "\nsteps:" in one.values[0])


@pytest.fixture
def files(here, provider, monkeypatch):
    """The files that the examples name, and providers that answer them."""
    (here / "reviews.csv").write_text(
        "review,text,product,id,stars,sentiment\n"
        "fine,fine,bread,1,2,positive\nbad,bad,salt,2,1,negative\n"
    )
    (here / "contracts").mkdir()
    (here / "contracts" / "one.md").write_text("# Parties\n\nAnn and Bob\n\n# Term\n\nA year\n")
    (here / "examples").symlink_to(ROOT / "examples")
    (here / "job.yaml").write_text(job_file())
    (here / "letters").mkdir()
    (here / "letters" / "one.txt").write_text("Pay 7 by May")
    (here / "letters.yaml").write_text(steps_file())
    provider.bodies = {
        "/v1/chat/completions": openai_reply("positive"),
        "/v1/messages": anthropic_reply("a year"),
    }
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    return here


@pytest.mark.parametrize("source", list(blocks("python")))
def test_python_examples_run(source, script):
    """With a fake in place of the local model, which test_library.py has answer one of them."""
    assert script(source.replace('llm="local"', 'llm="fake"'))


@pytest.fixture
def inputs(words, files, request):
    """What a command reads that is in no file here."""
    if any(word.startswith("s3://") for word in words):
        bucket = request.getfixturevalue("s3")
        bucket.mkdir("contracts")
        bucket.put(str(files / "contracts/one.md"), "contracts/2026/one.md")
    if any(word.startswith("run:") for word in words):
        job = ("run", "contracts", "--model", "fake", "--prompt", "{input}")
        assert request.getfixturevalue("fanout")(*job).status == 0


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize("words", list(commands()))
def test_commands_run(words, files, fanout):
    done = fanout(*words)
    assert done.status == 0, done.stderr
    assert done.stdout or "--out" in words
    if "--out" in words:
        out = files / words[words.index("--out") + 1]
        assert out.is_file() or (out / "run.json").exists()


@pytest.mark.parametrize("source", list(blocks("yaml")))
def test_job_files_are_valid(source, files):
    (files / "example.yaml").write_text(source)
    spec = job_spec(("example.yaml",), {}, load_settings())
    assert spec.prompts, "a job asks something"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_run(path, here, fanout):
    """With a fake in place of their model: what a model answers is not ours to test."""
    shutil.copytree(path.parent, here / "examples")
    shutil.copytree(ROOT / "docs", here / "docs")
    done = fanout("run", f"examples/{path.name}", "--model", "fake?context_tokens=2048")
    assert done.status == 0, done.stderr
    branches = re.search(r"([\d,]+) of ([\d,]+) branches", done.stderr)
    assert branches, done.stderr
    assert branches[1] == branches[2] != "0"
    assert done.stdout.strip()


def test_every_field_of_a_job_is_documented():
    from fanout.core.spec import RunSpec
    from fanout.core.spec_fields import RetrySpec

    text = (ROOT / "docs" / "jobs.md").read_text()
    for name in [*RunSpec.model_fields, *RetrySpec.model_fields]:
        assert f"`{name}`" in text, name


def test_every_setting_is_documented():
    from fanout.core.settings import Settings

    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in Settings.model_fields:
        assert f"`FANOUT_{name.upper()}`" in text


def test_every_kind_of_error_and_status_is_documented():
    from fanout import ErrorKind

    text = (ROOT / "docs" / "jobs.md").read_text()
    assert [kind for kind in ErrorKind if f"| `{kind.value}` |" not in text] == []


def test_the_changelog_knows_this_version():
    from importlib.metadata import version

    assert f"## {version('fanout-llm')}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_examples_say_where_their_documents_are_from():
    text = (ROOT / "examples" / "README.md").read_text()
    assert "public domain" in text
    for path in (ROOT / "examples").iterdir():
        if path.name not in {"README.md", "next.txt", "__pycache__"}:
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text
    for job in (ROOT / "examples").glob("*.yaml"):
        for pattern in yaml.safe_load(job.read_text())["inputs"]:
            assert list(job.parent.glob(pattern))
