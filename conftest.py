"""The options of the tests: pytest --script my_algorithm.py tests that file."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.reference"]


@pytest.hookimpl(trylast=True)  # pytest has sorted by fixtures
def pytest_collection_modifyitems(items):
    """Let the longest tests begin first."""
    items.sort(key=lambda item: item.path.name != "test_learning.py")


def pytest_addoption(parser):
    parser.addoption("--script", type=Path, help="the script to test; default: all of ours")
    parser.addoption("--add-to-seeds", type=int, default=0, help="added to the seed of every probe")
    parser.addoption("--probe-steps", type=float, default=1, help="times the steps of every probe")
