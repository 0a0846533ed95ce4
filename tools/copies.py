"""Same name, same bytes: keep the code that the scripts share identical.

A function or class below the divider of two or more scripts, the line "# Plumbing: ...", must be
the same in all of them, with its decorators and the comment directly above it. What is above the
divider may differ. Scripts without a divider are compared among themselves, as a whole but for
Args, Agent and main.

python tools/copies.py                               compare all scripts at the repository's root
python tools/copies.py sac_continuous.py my_sac.py   compare these
python tools/copies.py --fix sac_continuous.py       rewrite the others from sac_continuous.py
"""

import argparse
import ast
import os
import re
import shutil
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXEMPT = {"Args", "Agent", "main"}  # of a script without a divider
DIVIDER = b"# Plumbing: "


def definitions(path):
    """Return a script's bytes and the (start, end) in them of all functions and classes shared."""
    source, found = path.read_bytes(), {}
    lines = source.splitlines(keepends=True)
    offsets = [0, *accumulate(map(len, lines))]
    for node in ast.parse(source, str(path)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min(part.lineno for part in [node, *node.decorator_list]) - 1
            while first and re.match(rb"#(?! ---)", lines[first - 1]):  # not a region's title
                first -= 1
            last = node.end_lineno
            while last < len(lines) and re.match(rb"[ \t]+#", lines[last]):
                last += 1
            code = source[offsets[first] : offsets[last]].rstrip(b"\r\n")
            found[node.name] = offsets[first], offsets[first] + len(code)
    divider = source.find(b"\n" + DIVIDER)
    if divider >= 0:
        return source, {name: span for name, span in found.items() if span[0] > divider}
    return source, {name: span for name, span in found.items() if name not in EXEMPT}


def has_divider(path):
    """Tell whether a script has its plumbing below a divider."""
    return b"\n" + DIVIDER in path.read_bytes()


def differences(paths):
    """Return a line for each name whose code is not the same in all scripts of its kind."""
    kinds = [[path for path in paths if has_divider(path) == kind] for kind in (True, False)]
    return [line for kind in kinds for line in differences_of_one_kind(kind)]


def differences_of_one_kind(paths):
    """Return a line for each name whose code is not the same in all scripts."""
    versions = {}
    for path in paths:
        source, spans = definitions(path)
        for name, (start, end) in spans.items():
            places = versions.setdefault(name, {}).setdefault(source[start:end], [])
            line = source.count(b"\n", 0, start) + 1
            places.append(f"{path}:{line}")
    lines = {name: " | ".join(map(", ".join, same.values())) for name, same in versions.items()}
    return [f"{name} differs: {line}" for name, line in lines.items() if len(versions[name]) > 1]


def mend(path, origin):
    """Take over all that a script shares with the origin; the file is replaced at once."""
    (source, spans), (theirs, wanted) = definitions(path), definitions(origin)
    for name in sorted(spans.keys() & wanted, key=spans.get, reverse=True):
        start, end = spans[name]
        source = source[:start] + theirs[slice(*wanted[name])] + source[end:]
    part = path.with_suffix(".part")
    part.write_bytes(source)
    shutil.copymode(path, part)
    os.replace(part, path)


def main():
    """Compare scripts, having mended them if asked to; exit with 1 if some differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", type=Path, help="default: all at the root")
    parser.add_argument("--fix", metavar="FILE", type=Path, help="rewrite the others from FILE")
    args = parser.parse_args()
    scripts = [path for path in sorted(ROOT.glob("*.py")) if path.name != "conftest.py"]
    paths = args.scripts or [Path(os.path.relpath(path)) for path in scripts]
    paths = {path.resolve(): path for path in [*paths, *filter(None, [args.fix])]}.values()
    try:
        found = differences(paths)
        if found and args.fix:
            others = [path for path in paths if has_divider(path) == has_divider(args.fix)]
            for path in {*others} - {args.fix}:
                mend(path, args.fix)
            found = differences(paths)
    except (OSError, SyntaxError, ValueError) as error:
        parser.exit(2, f"error: {error}: name Python files\n")
    print("\n".join(found) or f"same name, same bytes in {', '.join(map(str, paths))}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
