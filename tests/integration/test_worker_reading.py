"""Documents that workers read: from S3 and from a shared folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fanout import ErrorKind, InputError, ModelError, RunStatus
from fanout.core.model_names import READER_MODEL

from .conftest import BUCKET, wait_for

FANOUT = str(Path(sys.executable).parent / "fanout")
HTML = "<html><body><h1>Terms</h1><p>Pay {0} dollars.</p></body></html>"


def pdf(*pages):
    """A PDF with a line of text on each page."""
    count = len(pages)
    kids = " ".join(f"{3 + 2 * at} 0 R" for at in range(count))
    font = "<< /Font << /F 2 0 R >> >>"
    parts = [
        f"<< /Type /Catalog /Pages {3 + 2 * count} 0 R >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, text in enumerate(pages):
        drawn = f"BT /F 12 Tf 72 700 Td ({text}) Tj ET"
        parts.append(
            f"<< /Type /Page /Parent {3 + 2 * count} 0 R /MediaBox [0 0 595 842] "
            f"/Resources {font} /Contents {4 + 2 * at} 0 R >>"
        )
        parts.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    parts.append(f"<< /Type /Pages /Kids [{kids}] /Count {count} >>")
    made, offsets = "%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        offsets.append(len(made))
        made += f"{number} 0 obj\n{part}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(parts) + 1
    made += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n"
    return f"{made}<< /Size {size} /Root 1 0 R >>\nstartxref\n{made.index('xref')}\n%%EOF".encode()


FILES = {
    "a.html": HTML.format(10).encode(),
    "b.pdf": pdf("Pay the first half.", "Pay the second half."),
    "c/broken.pdf": b"%PDF-1.7 and nothing else",
    "c/d.txt": b"Pay nothing.",
}
JOB = {"model": "fake?fail_rate=0", "prompt": "On {pages} under {headings}: {input}"}


@pytest.fixture
def reading_worker(start_worker):
    """A worker that may read documents."""
    return start_worker("--concurrency", "8", FANOUT_ALLOWED_CALLABLES=READER_MODEL)


@pytest.fixture
def letters(s3):
    """The URL of a folder in S3, whose credentials are in the environment of what starts later."""
    s3.pipe({f"{BUCKET}/letters/{name}": data for name, data in FILES.items()})
    yield f"s3://{BUCKET}/letters"
    s3.rm(f"{BUCKET}/letters", recursive=True)


def test_workers_read_a_folder_in_s3_and_the_run_has_pages_and_reasons(
    client, letters, start_worker
):
    start_worker("--concurrency", "8", FANOUT_ALLOWED_CALLABLES=READER_MODEL)
    notices, created = [], []
    run = client.submit(
        {**JOB, "inputs": [f"{letters}/"], "read_on": "workers"},
        on_notice=notices.append,
        on_created=created.append,
    )
    assert run.wait(120).status is RunStatus.SUCCEEDED
    outputs = list(run.outcomes(with_text=True))
    assert [one.document for one in outputs] == [f"{letters}/{name}" for name in FILES]
    assert [one.kind for one in outputs] == [None, None, ErrorKind.BAD_REQUEST, None]
    assert [one.pages for one in outputs] == [[], [1, 2], [], []]
    assert outputs[0].headings == "Terms"
    assert "second half" in outputs[1].text
    assert "PDF" in outputs[2].message
    assert outputs[3].text == "Pay nothing."
    # The reading is a run of its own, whose outputs any further run may take.
    assert created == [run.run_id]
    [reading] = [one for one in client.runs() if one.run_id != run.run_id]
    assert run.spec.inputs == (f"run:{reading.run_id}",)
    assert reading.spec.model == READER_MODEL
    assert any(reading.run_id in notice.text for notice in notices)
    again = client.submit({**JOB, "inputs": [f"run:{reading.run_id}"]})
    again.wait(120)
    assert [one.output for one in again.outcomes()] == [one.output for one in outputs]
    assert client.resume(run.run_id).run_id == run.run_id


@pytest.mark.usefixtures("reading_worker")
def test_the_command_reads_a_glob_of_a_shared_folder_by_workers(broker_url, tmp_path):
    folder = tmp_path / "shared"
    (folder / "c").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [FANOUT, "run", "shared/**/*.*", "--read-on", "workers", "--model", "fake",
         "--prompt", "Pages {pages}: {input}", "--broker-url", broker_url, "--out", "results"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "workers read 4 documents" in done.stderr
    outputs = (tmp_path / "results/outputs.jsonl").read_text()
    rows = [json.loads(line) for line in outputs.splitlines()]
    assert [row["document"] for row in rows] == ["shared/a.html", "shared/b.pdf", "shared/c/d.txt"]
    assert rows[1]["pages"] == [1, 2]
    error = json.loads((tmp_path / "results/errors.jsonl").read_text())
    assert error["document"] == "shared/c/broken.pdf"


def test_a_fleet_that_may_not_read_says_what_to_allow(client, start_worker, tmp_path):
    start_worker("--concurrency", "2")
    (tmp_path / "a.txt").write_text("Pay.")
    with pytest.raises(ModelError, match=rf"{READER_MODEL}.*FANOUT_ALLOWED_CALLABLES"):
        client.submit({**JOB, "inputs": [str(tmp_path)], "read_on": "workers"})
    assert list(client.runs()) == []


@pytest.mark.usefixtures("reading_worker")
def test_a_folder_with_a_file_of_rows_is_refused_before_there_is_a_run(client, tmp_path):
    # More than a shard of documents comes before it.
    for number in range(501):
        (tmp_path / f"a{number:03}.txt").write_text("Pay.")
    (tmp_path / "b.csv").write_text("text\nPay.\n")
    with pytest.raises(InputError, match=r"b\.csv: has rows; .* leave read_on out"):
        client.submit({**JOB, "inputs": [str(tmp_path)], "read_on": "workers"})
    assert list(client.runs()) == []


@pytest.mark.usefixtures("reading_worker")
def test_an_input_without_a_document_that_can_be_read_says_why(client, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(FILES["c/broken.pdf"])
    with pytest.raises(InputError, match=r"no document can be used: .*broken\.pdf"):
        client.submit({**JOB, "inputs": [str(tmp_path / "broken.pdf")], "read_on": "workers"})


@pytest.mark.usefixtures("reading_worker")
def test_a_stopped_reading_is_cancelled(client, tmp_path):
    for number in range(500):
        (tmp_path / f"{number:03}.html").write_text(HTML.format(number))
    run = client.submit(
        {**JOB, "inputs": [str(tmp_path / "*.html")], "read_on": "workers"},
        should_stop=lambda: any(one.status().done for one in client.runs()),
    )
    assert run.spec.model == READER_MODEL
    wait_for(lambda: run.status().status is RunStatus.CANCELLED, "the reading is cancelled")
    assert [one.run_id for one in client.runs()] == [run.run_id]


def test_an_embedded_fleet_reads_and_then_calls_the_function_of_its_client(tmp_path):
    from fanout import ParallelCalls

    (tmp_path / "a.html").write_text(HTML.format(10))
    with ParallelCalls(llm=str.upper) as runner:
        result = runner.run(
            inputs=tmp_path / "a.html", branch_prompt="{headings}: {input}", read_on="workers"
        )
    assert [output.split(":")[0] for output in result.outputs] == ["TERMS"]
    assert "PAY 10 DOLLARS" in result.outputs[0]
