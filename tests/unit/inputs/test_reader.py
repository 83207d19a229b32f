"""The function with which workers read documents."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading

import fsspec
import pytest

from fanout import ErrorKind, LLMError, SettingsError
from fanout.core.model_names import READER_MODEL
from fanout.core.redaction import learn
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.inputs import reader
from fanout.inputs.documents import FileSource, copies
from fanout.inputs.documents.shared_parsers import SharedParsers
from fanout.inputs.reader import ReadRequest, read, reading_fields
from fanout.llm.callables import load_callable
from fanout.system.resources import usable_cores

PAGE = "<html><body><h1>Terms</h1><p>Pay</p><h2>Late</h2><p>Pay more</p></body></html>"


def answer(prompt):
    return asyncio.run(read(prompt))


@pytest.fixture
def schemes(monkeypatch):
    """Set the schemes that workers read; None is the default."""

    def allow(value):
        monkeypatch.delenv("FANOUT_READ_SCHEMES", raising=False)
        if value is not None:
            monkeypatch.setenv("FANOUT_READ_SCHEMES", value)
        reader._allowed.cache_clear()

    yield allow
    reader._allowed.cache_clear()


@pytest.fixture(autouse=True)
def any_scheme(schemes):
    schemes("*")


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "terms.html"
    path.write_text(PAGE)
    return path


@pytest.fixture
def memory():
    """A store that fsspec knows, and that is in this process."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/terms.html", PAGE.encode())
    yield fs
    fs.rm("/bucket", recursive=True)


def test_the_name_of_the_model_is_that_of_the_function():
    assert load_callable(READER_MODEL, allowed={READER_MODEL}) is read


def test_a_worker_reads_what_the_client_would(page):
    [document] = FileSource((str(page),), max_bytes=1000).documents()
    found = json.loads(answer(str(page)))
    assert found["text"] == document.text
    assert [tuple(heading) for heading in found["headings"]] == document.headings
    assert [path for _, path in document.headings] == ["Terms", "Terms > Late"]


@pytest.mark.parametrize("form", ["{0}", "file://{0}", '{{"source": "{0}"}}'])
def test_a_prompt_is_a_path_or_a_url_or_a_request(page, form):
    assert "Pay more" in answer(form.format(page))


def test_a_url_is_fetched_from_its_store(memory):
    assert json.loads(answer("memory://bucket/terms.html")) == json.loads(
        answer("memory:///bucket/terms.html")
    )
    assert "Pay more" in answer("memory://bucket/terms.html")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("terms.html", "no absolute path"),
        ("/nowhere/terms.html", "No such file"),
        ("/", "no regular file"),
        ("/dev/zero", "no regular file"),
        ("/proc/self/environ", "no regular file"),
        ("file:///proc/self/environ", "no regular file"),
        ("local:///proc/self/environ", "absolute path"),
        ("/etc/\0x", "cannot read it"),
        ("github://main/x.pdf", "cannot read it"),
        ("simplecache::memory://bucket/terms.html", "chained"),
        ("memory://bucket/nothing.html", "there is no such file"),
        ("nothing://bucket/terms.html", "nothing"),
        ('{"source": 3}', "source"),
        ('{"source": "/x", "fields": {"max_document_mb": 0}}', "max_document_mb"),
    ],
)
def test_what_is_no_document_costs_its_branch_alone_with_the_reason(memory, prompt, words):
    with pytest.raises(LLMError) as caught:
        answer(prompt)
    error = caught.value
    assert words in str(error)
    assert (error.kind, error.stop_after, error.is_own) == (ErrorKind.BAD_REQUEST, 0, True)
    assert "fanout-read-" not in str(error)


def test_a_link_to_a_file_of_the_system_is_refused(tmp_path):
    (tmp_path / "innocent.txt").symlink_to("/proc/self/environ")
    with pytest.raises(LLMError, match="no regular file"):
        answer(str(tmp_path / "innocent.txt"))


def test_a_document_that_cannot_be_used_has_the_reason_of_the_parser(tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    with pytest.raises(LLMError) as caught:
        answer(str(tmp_path / "broken.pdf"))
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert "PDF" in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (OSError("connection reset"), ErrorKind.CONNECTION),
        (TimeoutError("the store is slow"), ErrorKind.CONNECTION),
        (RuntimeError("of the store"), ErrorKind.CONNECTION),
        (PermissionError("Forbidden"), ErrorKind.BAD_REQUEST),
        (NotImplementedError("open"), ErrorKind.BAD_REQUEST),
        (type("NoCredentialsError", (Exception,), {})("none"), ErrorKind.AUTH),
    ],
)
def test_a_store_that_fails_is_asked_again_unless_that_is_no_use(memory, monkeypatch, raised, kind):
    def fail(*_args, **_options):
        raise raised

    monkeypatch.setattr(type(memory), "open", fail)
    with pytest.raises(LLMError) as caught:
        answer("memory://bucket/terms.html")
    assert caught.value.kind is kind


def test_the_reasons_of_a_store_hold_no_key(memory, monkeypatch):
    monkeypatch.setenv("STORE_SECRET_KEY", "abcdefgh12345678")

    def fail(*_args, **_options):
        raise OSError("signed with abcdefgh12345678")

    learn()
    monkeypatch.setattr(type(memory), "open", fail)
    with pytest.raises(LLMError) as caught:
        answer("memory://bucket/terms.html")
    assert "abcdefgh12345678" not in str(caught.value)


def test_a_file_is_fetched_up_to_a_size(memory, monkeypatch):
    monkeypatch.setattr(copies, "_MOST_BYTES", 10)
    with pytest.raises(LLMError, match="more than the 10 bytes"):
        answer("memory://bucket/terms.html")


@pytest.fixture
def service():
    """A service of the network that only this machine should reach; yields its address and requests."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = b"AccessKeyId: internal"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that the class calls

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize(
    "form",
    [
        "http://{0}/latest/meta-data",
        "HTTP://{0}/latest/meta-data",
        "https://{0}/a.txt",
        "ftp://{0}/a.txt",
        "sftp://{0}/a.txt",
        "smb://{0}/a/b.txt",
        "webhdfs://{0}/a.txt",
        "webdav://{0}/a.txt",
        "github://org:repo@main/a.txt",
        "hf://datasets/a/b.txt",
        "data:/text",
        "local:///etc/hostname",
        "memory://bucket/terms.html",
    ],
)
def test_a_url_of_any_host_is_refused_unless_the_settings_list_its_scheme(service, schemes, form):
    address, asked = service
    schemes(None)
    with pytest.raises(LLMError, match=r"do not read .*FANOUT_READ_SCHEMES") as caught:
        answer(form.format(address))
    error = caught.value
    assert (error.kind, error.stop_after, error.is_own) == (ErrorKind.BAD_REQUEST, 0, True)
    assert asked == []


def test_the_settings_list_what_workers_read(service, schemes, page):
    address, asked = service
    schemes("http, s3")
    assert json.loads(answer(f"http://{address}/a.txt"))["text"] == "AccessKeyId: internal"
    assert asked
    for form in ("{0}", "file://{0}"):
        with pytest.raises(LLMError, match=r"do not read files: .* lists only http, s3"):
            answer(form.format(page))
    schemes(None)
    assert load_settings().read_schemes[0] == "file"
    assert {"s3", "gs", "abfs"} < set(load_settings().read_schemes)
    schemes("http://x")
    with pytest.raises(SettingsError, match="FANOUT_READ_SCHEMES: 'http://x' is not the scheme"):
        load_settings()


@pytest.mark.parametrize("stem", ["n" * 300, "ä" * 200, "漢" * 255])
def test_a_key_that_is_too_long_for_a_file_is_read_and_keeps_its_kind(memory, stem):
    memory.pipe(f"/bucket/{stem}.html", PAGE.encode())
    found = json.loads(answer(f"memory://bucket/{stem}.html"))
    assert found == json.loads(answer("memory://bucket/terms.html"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://b/a/c.pdf", "c.pdf"),
        ("s3://b/..", "document"),
        ("s3://b/" + "n" * 300 + ".tar.gz", "n" * 252 + ".gz"),
        ("s3://b/" + "ä" * 200 + ".pdf", "ä" * 125 + ".pdf"),
        ("s3://b/a." + "n" * 300, "a." + "n" * 253),
    ],
)
def test_the_name_of_a_copy_fits_in_a_folder(path, name):
    assert copies.file_name(path) == name


def test_a_request_holds_the_fields_of_the_job_that_say_how_to_read():
    fields = {"max_document_mb": 2.0, "encoding": "cp1252", "parse_timeout_s": 5.0}
    spec = make_spec(model="fake", prompt="{input}", **fields)
    assert reading_fields(spec) == fields
    request = ReadRequest(source="/a", fields=reading_fields(spec))
    assert json.loads(request.to_prompt()) == {"source": "/a", "fields": fields}


def test_the_limits_of_the_request_hold(page):
    request = ReadRequest(source=str(page), fields={"max_document_mb": 0.00001})
    with pytest.raises(LLMError, match="may have"):
        answer(request.to_prompt())


def test_a_cancelled_call_leaves_the_queue(monkeypatch):
    most = usable_cores() + 1
    began, may_end = [], threading.Event()
    lock, are_busy = threading.Lock(), threading.Event()

    def blocked(prompt):
        with lock:
            began.append(prompt)
            if len(began) == most:
                are_busy.set()
        assert may_end.wait(90)
        return prompt

    monkeypatch.setattr(reader, "_read", blocked)

    async def main():
        first = [asyncio.create_task(read(str(at))) for at in range(most)]
        try:
            await asyncio.to_thread(are_busy.wait, 30)
            cancelled, last = (asyncio.create_task(read(name)) for name in ("cancelled", "last"))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        finally:
            may_end.set()
        return await asyncio.gather(*first, last)

    assert asyncio.run(main())[-1] == "last"
    assert sorted(began) == sorted([*map(str, range(most)), "last"])


def test_many_documents_are_read_at_once(page, monkeypatch):
    most, inside = 0, 0
    lock = threading.Lock()
    real = reader._read

    def counted(prompt):
        nonlocal most, inside
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return real(prompt)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(reader, "_read", counted)

    async def main():
        return await asyncio.gather(*(read(str(page)) for _ in range(30)))

    assert len(set(asyncio.run(main()))) == 1
    assert most <= usable_cores() + 1


class Parser:
    """What is lent, with how it ended."""

    def __init__(self):
        self.is_closed = threading.Event()

    def close(self):
        self.is_closed.set()


def test_parsers_are_lent_again_and_end_when_nobody_has_used_them_for_a_while(monkeypatch):
    parsers = SharedParsers(Parser, idle_s=600)
    with parsers.lent() as first, parsers.lent() as second:
        assert first is not second
    with parsers.lent() as again:
        assert again in {first, second}
        assert not first.is_closed.is_set()
    monkeypatch.setattr(parsers, "_idle_s", 0.01)
    with parsers.lent():
        pass
    assert first.is_closed.wait(60)
    assert second.is_closed.wait(60)
    with parsers.lent() as later:
        assert later not in {first, second}


def test_a_parser_that_raised_is_not_lent_again():
    parsers = SharedParsers(Parser, idle_s=60)
    with pytest.raises(ValueError, match="broke"), parsers.lent() as first:
        raise ValueError("it broke")
    assert first.is_closed.is_set()
    with parsers.lent() as second:
        assert second is not first
