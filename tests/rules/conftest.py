import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import pipeline


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A copy of the repository with the tiny study run in it. Read-only: tests that change it copy it first."""
    return pipeline.finished(tmp_path_factory)


@pytest.fixture(scope="module")
def study(finished_run, tmp_path_factory) -> Path:
    """A copy of the finished run to edit; whoever edits it restores it."""
    folder = tmp_path_factory.mktemp("study") / "repository"
    shutil.copytree(finished_run, folder)
    return folder
