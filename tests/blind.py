"""Blind bugs: planted by somebody who saw the scripts alone; which of them do the tests see?

python tests/blind.py            try bugs without a verdict on the tests that run by default
python tests/blind.py --again    try survivors on the tests as they are now
python tests/blind.py --report   print what is in results/blind.json

Each is put into a copy of its script, and the tests run on that up to the first failure, as with
`pytest --script=PATH`: first those of mathematics and arguments, which are fast, then the others.
Verdicts go into results/blind.json one by one, so that an interrupted search goes on. A bug whose
text is gone from its script is not tried. That the scripts as they are pass these tests is shown by
.ci/run, on the same commit. Survivors for which a test was written before all tests had been tried
count as not seen.
"""

import argparse
import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutate import kill

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "results" / "blind.json"
TESTS = {
    "test_math test_td3 test_ppo test_dqn test_claims test_bad_input": "not slow",
    "test_runs test_resume test_probes test_envs test_async test_copies": "not slow",
}
SURVIVED = "no test"


def test_that_fails(script, source):
    """Return the first test that fails on a source in the place of a script, or SURVIVED."""
    test = kill(Path(f"{script}.py"), source, TESTS, timeout=1800)
    if test and test.startswith("exit code"):
        sys.exit(f"error: pytest fails on a change of {script}: {test}")
    return test or SURVIVED


def report(bugs):
    """Print how many bugs the tests saw, before and after tests were written for survivors."""
    tried = [bug for bug in bugs if "killed_by" in bug]
    survivors = [bug for bug in tried if bug["killed_by"] == SURVIVED]
    mended = [bug for bug in survivors if bug.get("killed_later", SURVIVED) != SURVIVED]
    seen = len(tried) - len(survivors)
    print(f"{len(bugs)} blind bugs, {len(tried)} tried.")
    print(f"{seen} were seen by the tests as they were: {seen / len(tried):.1%}")
    now = seen + len(mended)
    print(f"{now} are seen by the tests as they are now: {now / len(tried):.1%}")
    print("\nscript | bug | test that sees it, * written since\n---|---|---")
    for bug in bugs:
        test = bug.get("killed_by", "not tried")
        if bug in survivors:
            test = bug.get("killed_later", SURVIVED) + " *"
        print(f"`{bug['script']}` | {bug['name']} | {test}")


def to_try(bugs, again):
    """Return the bugs whose verdict is open, or if asked again those that survived."""
    key = "killed_later" if again else "killed_by"
    found = []
    for bug in bugs:
        survived = bug.get("killed_by") == SURVIVED
        decided = bug.get(key, SURVIVED) != SURVIVED
        source = (ROOT / f"{bug['script']}.py").read_text("utf-8")
        if survived == again and not decided and source.count(bug["old"]) == 1:
            found.append(bug)
    return found


def main():
    """Try the bugs that are to be tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--report", action="store_true", help="print what is in the file")
    parser.add_argument("--jobs", type=int, default=1, help="bugs that are tried at a time")
    args = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # | head ends it without a word
    found = json.loads(FILE.read_text("utf-8"))
    key = "killed_later" if args.again else "killed_by"
    lock = threading.Lock()

    def decide(bug):
        source = (ROOT / f"{bug['script']}.py").read_text("utf-8")
        verdict = test_that_fails(bug["script"], source.replace(bug["old"], bug["new"]))
        with lock:
            bug[key] = verdict
            FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            print(f"{bug['script']}: {bug['name']}: {verdict}", flush=True)

    bugs = [] if args.report else to_try(found["bugs"], args.again)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(decide, bugs))
    report(found["bugs"])


if __name__ == "__main__":
    main()
