"""The options of the tests: pytest --script my_algorithm.py tests that file."""

from pathlib import Path

pytest_plugins = ["tests.reference"]


def pytest_addoption(parser):
    parser.addoption("--script", type=Path, help="the script to test; default: all of ours")
    parser.addoption("--add-to-seeds", type=int, default=0, help="added to the seed of every probe")
