"""Random bugs: draw changes of operators, constants and signs, and see which the tests kill.

python tests/mutate.py            try 200 changes of sac_continuous.py, into results/mutants.json
python tests/mutate.py --report   print the table of that file again

Changes are drawn in networks, replay buffer, agent and main. Each is tried on test_math.py and
test_probes.py as they run by default and on the quick tests of test_runs.py and test_bad_input.py,
up to the first failure; one that makes a test hang is killed too. What is in the file already is
not tried again.
"""

import argparse
import ast
import copy
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = {"test_math test_probes": "not slow", "test_runs test_bad_input": "quick"}
PLACES = {"mlp", "TwinLinear", "Critic", "Actor", "squash", "ReplayBuffer", "Adam", "Agent", "main"}
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
SWAPS |= {ast.Pow: ast.Mult, ast.Mod: ast.FloorDiv, ast.And: ast.Or, ast.Or: ast.And}
SWAPS |= {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}


def changes(node):
    """Return changed copies of a node; none if it is no operator, number, truth value or sign."""
    kind, value = type(getattr(node, "op", None)), getattr(node, "value", None)
    if isinstance(node, ast.Constant):
        if isinstance(value, bool):
            return [ast.Constant(not value)]
        if isinstance(value, int):
            return [ast.Constant(value + 1), ast.Constant(value - 1)]
        return [ast.Constant(2 * value), ast.Constant(-value)] if isinstance(value, float) else []
    if isinstance(node, ast.UnaryOp) and kind in (ast.USub, ast.Not):
        return [node.operand]
    new = copy.copy(node)
    if kind in SWAPS:
        new.op = SWAPS[kind]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new.ops = [SWAPS[type(node.ops[0])](), *node.ops[1:]]
    else:
        return []
    return [new]


def mutants(source):
    """Return all changes as (line, code before, code after, changed source)."""
    found, module = [], ast.parse(source)
    places = [node for node in module.body if getattr(node, "name", "") in PLACES]
    for holder in (node for place in places for node in ast.walk(place)):
        for field, index, node in parts(holder):
            before = ast.unparse(holder)
            for new in changes(node):
                put(holder, field, index, new)
                texts = (text.splitlines()[0] for text in (before, ast.unparse(holder)))
                found.append((node.lineno, *texts, ast.unparse(module)))
            put(holder, field, index, node)
    return found


def parts(holder):
    """List the nodes that a node holds: (field, index or None, node)."""
    for field, value in ast.iter_fields(holder):
        if isinstance(value, ast.AST):
            yield field, None, value
        elif isinstance(value, list):
            yield from ((field, i, node) for i, node in enumerate(value) if hasattr(node, "lineno"))


def put(holder, field, index, node):
    """Place a node where parts found one."""
    if index is None:
        setattr(holder, field, node)
    else:
        getattr(holder, field)[index] = node


def kill(script, source):
    """Return the test that fails on a changed source, "timeout", or None if none does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, script.name)
        path.write_text(source, "utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["--script", str(path), f"--basetemp={folder}/base"]
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for names, mark in TESTS.items():
            options = {"cwd": ROOT, "env": environ, "capture_output": True, "text": True}
            files = [f"tests/{name}.py" for name in names.split()]
            try:
                done = subprocess.run([*command, "-m", mark, *files], timeout=600, **options)
            except subprocess.TimeoutExpired:
                return f"timeout in {names}"
            if done.returncode:
                failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
                return failed[1] if failed else f"exit code {done.returncode} in {names}"
    return None


def report(found):
    """Print the kill rate and the survivors."""
    killed = [row for row in found if row["killed_by"]]
    print(f"{len(found)} random changes, {len(killed)} killed: {len(killed) / len(found):.1%}\n")
    print("line | before | after | survives\n---|---|---|---")
    for row in found:
        if not row["killed_by"]:
            print(f"{row['line']} | `{row['before']}` | `{row['after']}` | {row.get('why', '')}")


def main():
    """Try the changes that are not in the file yet, one per core at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, default=ROOT / "sac_continuous.py")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, default=ROOT / "results" / "mutants.json")
    parser.add_argument("--report", action="store_true", help="print what is in the file")
    args = parser.parse_args()
    found = json.loads(args.file.read_text("utf-8")) if args.file.exists() else []
    if args.report:
        return report(found)
    source = args.script.read_text("utf-8")
    if test := kill(args.script, ast.unparse(ast.parse(source))):
        parser.exit(2, f"error: the unchanged script fails {test}: mend that first\n")
    drawn = mutants(source)
    print(f"{len(drawn)} changes are possible")
    drawn = random.Random(args.seed).sample(drawn, min(args.count, len(drawn)))
    known = {(row["line"], row["before"], row["after"]) for row in found}

    def attempt(mutant):
        line, before, after, source = mutant
        start = time.monotonic()
        test = kill(args.script, source)
        row = {"line": line, "before": before, "after": after, "killed_by": test}
        found.append(row | {"seconds": round(time.monotonic() - start)})
        args.file.write_text(
            json.dumps(sorted(found, key=lambda row: row["line"]), indent=1) + "\n"
        )
        print(f"{line}: {after}: {test}", flush=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        [*pool.map(attempt, [mutant for mutant in drawn if mutant[:3] not in known])]
    return report(found)


if __name__ == "__main__":
    main()
