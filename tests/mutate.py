"""Random bugs: draw changes of operators, constants and signs, and see which the tests kill.

python tests/mutate.py            try 200 changes of sac_continuous.py, into results/mutants.json
python tests/mutate.py --again    try survivors that are bugs on the tests as they are now
python tests/mutate.py --report   print the table of that file

Changes are drawn from the networks to the agent and in main and check; --unlike OTHER leaves out
lines that script OTHER has as well. Each is tried on the tests of mathematics and test_probes.py
as they run by default and on the quick tests of test_runs.py and test_bad_input.py, up to the
first failure; one that makes a test hang is killed too. What is in the file is not tried twice, so
that an interrupted search goes on. A survivor that is no bug gets a "why" there by hand.
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATH = "test_math test_td3 test_ppo test_probes"
TESTS = {MATH: "not slow", "test_runs test_bad_input": "quick"}
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


def mutants(source, other=""):
    """Return all changes as (line, column, code before, code after, changed source)."""
    found, module, lines = [], ast.parse(source), source.splitlines()
    titles = {line.split()[2]: i for i, line in enumerate(lines, 1) if line.startswith("# --- ")}
    first = titles["networks"]
    last = titles.get("training", titles.get("plumbing"))  # where the agent ends
    loop = [node for node in module.body if getattr(node, "name", "") in ("main", "check")]
    places = [node for node in module.body if first < node.lineno < last] + loop
    for holder in (node for place in places for node in ast.walk(place)):
        for field, index, node in parts(holder):
            if lines[getattr(node, "lineno", 1) - 1] in other.splitlines():
                continue
            alone = isinstance(node, ast.stmt)  # shown without what it stands in
            before = ast.unparse(node if alone else holder)
            for new in changes(node):
                put(holder, field, index, new)
                after = ast.unparse(new if alone else holder)
                texts = (text.splitlines()[0] for text in (before, after))
                found.append((node.lineno, node.col_offset, *texts, ast.unparse(module)))
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


def kill(script, source, tests=TESTS, timeout=300):
    """Return the test that fails on a changed source, "timeout", or None if none does.

    Tests are names of files and, for each group of them, a mark; a group has that many seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, script.name)
        path.write_text(source, "utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider"]
        command += [f"--script={path}", f"--basetemp={folder}/base"]
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for names, mark in tests.items():
            options = {"cwd": ROOT, "env": environ, "capture_output": True, "text": True}
            files = [f"tests/{name}.py" for name in names.split()]
            try:
                done = subprocess.run([*command, "-m", mark, *files], timeout=timeout, **options)
            except subprocess.TimeoutExpired:
                return f"timeout in {names}"
            if done.returncode:
                failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
                return failed[1] if failed else f"exit code {done.returncode} in {names}"
    return None


def report(found):
    """Print the kill rates and the survivors, those that are bugs first."""
    left = [row for row in found["rows"] if not row["killed_by"]]
    later = [row for row in left if row.get("killed_later")]
    known = [row for row in left if row.get("why") and row not in later]
    number, killed = len(found["rows"]), len(found["rows"]) - len(left)
    print(f"{number} random changes of {found['possible']}, {killed} killed: {killed / number:.1%}")
    print(f"{len(later)} more are killed by tests written since")
    rate = (killed + len(later)) / (number - len(known))
    print(f"{len(known)} are no bugs; of all others {rate:.1%} are killed now")
    print("\nline | before | after | survives, or killed since\n---|---|---|---")
    for row in sorted(left, key=lambda row: ("why" in row, row["line"])):
        said = row.get("killed_later") or row.get("why", "")
        print(f"{row['line']} | `{row['before']}` | `{row['after']}` | {said}")


def main():
    """Try the changes that are not in the file yet, or the survivors, one per core at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, default=ROOT / "sac_continuous.py")
    parser.add_argument("--unlike", type=Path, help="leave out lines that this script has, too")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, default=ROOT / "results" / "mutants.json")
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--report", action="store_true", help="print what is in the file")
    args = parser.parse_args()
    found = json.loads(args.file.read_text("utf-8")) if args.file.exists() else {"rows": []}
    if args.report:
        return report(found)
    source = args.script.read_text("utf-8")
    digest = hashlib.sha256(source.encode()).hexdigest()
    if found.setdefault("script", digest) != digest:
        parser.exit(2, f"error: {args.file} is of another version of the script: name a new one\n")
    if test := kill(args.script, ast.unparse(ast.parse(source))):
        parser.exit(2, f"error: the unchanged script fails {test}: mend that first\n")
    every = mutants(source, args.unlike.read_text("utf-8") if args.unlike else "")
    numbers = random.Random(args.seed).sample(range(len(every)), min(args.count, len(every)))
    tried = {row["number"]: row for row in found["rows"]}
    again = [i for i, row in tried.items() if not row["killed_by"] and "why" not in row]
    todo = again if args.again else [i for i in numbers if i not in tried]
    found |= {"possible": len(every), "seed": args.seed}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tests = pool.map(lambda i: kill(args.script, every[i][-1]), todo)
        for i, test in zip(todo, tests, strict=True):
            line, column, before, after, _ = every[i]
            row = {"number": i, "line": line, "column": column, "before": before, "after": after}
            if args.again:
                tried[i]["killed_later"] = test
            else:
                found["rows"].append(row | {"killed_by": test})
            args.file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            print(f"{line}: {after}: {test}", flush=True)
    return report(found)


if __name__ == "__main__":
    main()
