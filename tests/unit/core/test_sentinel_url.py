from __future__ import annotations

import pytest

from fanout.core.errors import SettingsError
from fanout.core.sentinel_url import SentinelUrl, parse_sentinel_url
from fanout.core.settings import load_settings


def test_all_of_a_url_is_read():
    url = (
        "sentinel://me:p%40ss@a:1,[::1]:2,c/3?master=fleet&sentinel_username=s&sentinel_password=t"
    )
    assert parse_sentinel_url(url) == SentinelUrl(
        sentinels=(("a", 1), ("::1", 2), ("c", 26379)),
        master="fleet",
        db=3,
        username="me",
        password="p@ss",
        sentinel_username="s",
        sentinel_password="t",
    )


@pytest.mark.parametrize(
    ("url", "celery"),
    [
        ("sentinel://a:1?master=m", "sentinel://a:1/0"),
        ("sentinel://:p%40%3A@a,b/2?master=m", "sentinel://:p%40%3A@a:26379/2;sentinel://:p%40%3A@b:26379/2"),
        ("sentinel://me@[::1]:1/0?master=m", "sentinel://me@[::1]:1/0"),
    ],
)  # fmt: skip
def test_celery_gets_one_url_for_each_sentinel(url, celery):
    assert parse_sentinel_url(url).for_celery() == celery


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sentinel://:hunter2@a:1/0", "names no master"),
        ("sentinel://:hunter2@a:1/0?master=", "names no master"),
        ("sentinel:///0?master=m", "names no sentinel"),
        ("sentinel://:hunter2@/0?master=m", "names no sentinel"),
        ("sentinel://:hunter2@a:1,,b/0?master=m", "a sentinel '' that is not host:port"),
        ("sentinel://:hunter2@a:one/0?master=m", "a sentinel 'a:one' that is not host:port"),
        ("sentinel://:hunter2@a:1/zero?master=m", "a database 'zero' that is not a number"),
        ("sentinel://:hunter2@a:1/0?master=m&retries=3", "no option 'retries'; there are master"),
    ],
)
def test_a_wrong_url_says_what_is_missing_and_no_password(url, words, monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith("FANOUT_BROKER_URL: ")
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
