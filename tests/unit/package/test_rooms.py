"""The rooms of the house: a newcomer finds code by the names of folders."""

from __future__ import annotations

from pathlib import Path

import fanout
import workers

TESTS = Path(__file__).parents[1]


def entries(folder):
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


def test_the_top_of_the_package_holds_rooms_alone():
    files = {name for name in entries(Path(fanout.__file__).parent) if "." in name}
    assert files == {"__init__.py", "py.typed"}


def test_the_top_of_the_workers_is_the_celery_application():
    files = {name for name in entries(Path(workers.__file__).parent) if name.endswith(".py")}
    assert files == {
        "__init__.py", "__main__.py", "app.py", "config.py", "in_process.py", "options.py",
        "tasks.py",
    }  # fmt: skip


def test_each_room_says_what_it_is_for():
    for package in (fanout, workers):
        for init in Path(package.__file__).parent.rglob("__init__.py"):
            assert init.read_text().startswith('"""'), init


def test_unit_tests_mirror_the_rooms():
    rooms = entries(Path(fanout.__file__).parent) | {"workers"}
    others = {"package", "benchmarks", "ops"}
    folders = {name for name in entries(TESTS) if "." not in name}
    assert folders <= rooms | others
