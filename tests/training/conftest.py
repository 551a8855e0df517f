"""The server that killable runs fork from needs the library's folder and the tests' on its path."""

import os
from pathlib import Path

import pytest

import adaptome


@pytest.fixture(scope="session", autouse=True)
def importable_in_the_server():
    folders = [str(Path(__file__).parents[2]), str(Path(adaptome.__file__).parents[1])]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
