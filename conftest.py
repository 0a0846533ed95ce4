"""The options of the tests: pytest --script my_algorithm.py tests that file."""

from pathlib import Path


def pytest_addoption(parser):
    script = Path(__file__).parent / "sac_continuous.py"
    parser.addoption("--script", type=Path, default=script, help="the script to test")
    parser.addoption("--add-to-seeds", type=int, default=0, help="added to the seed of every probe")
