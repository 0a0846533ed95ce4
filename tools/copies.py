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
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
EXEMPT = {"Args", "Agent", "main"}  # of a script without a divider
DIVIDER = b"\n# Plumbing: "
COMMENT = re.compile(rb"#(?! ---)")  # at the beginning of a line, and no region's title
INDENTED_COMMENT = re.compile(rb"[ \t]+#")
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Span(NamedTuple):
    """Where a definition is in the bytes of its script."""

    start: int
    end: int


@dataclass
class Script:
    """A script and the places of the functions and classes that it shares."""

    path: Path
    source: bytes
    has_divider: bool
    spans: dict[str, Span]  # by name

    def code(self, name):
        """Return the bytes of a definition."""
        return self.source[slice(*self.spans[name])]

    def place(self, name):
        """Return "path:line" of a definition."""
        line = self.source.count(b"\n", 0, self.spans[name].start) + 1
        return f"{self.path}:{line}"


def read(path):
    """Return the script in a file."""
    source = path.read_bytes()
    divider = source.find(DIVIDER)
    spans = {}
    for name, span in definitions(path, source).items():
        shared = span.start > divider if divider >= 0 else name not in EXEMPT
        if shared:
            spans[name] = span
    return Script(path, source, divider >= 0, spans)


def definitions(path, source):
    """Return the span of every function and class at the top level, by name."""
    lines = source.splitlines(keepends=True)
    offsets = [0, *accumulate(len(line) for line in lines)]
    spans = {}
    for node in ast.parse(source, str(path)).body:
        if isinstance(node, DEFINITIONS):
            first, last = lines_of(node, lines)
            code = source[offsets[first] : offsets[last]].rstrip(b"\r\n")
            spans[node.name] = Span(offsets[first], offsets[first] + len(code))
    return spans


def lines_of(node, lines):
    """Return the first line of a definition and the one after its last, counted from 0.

    Its decorators and comments belong to it: those above it, and indented ones at its end.
    """
    first = min(part.lineno for part in [node, *node.decorator_list]) - 1
    while first > 0 and COMMENT.match(lines[first - 1]):
        first -= 1
    last = node.end_lineno
    while last < len(lines) and INDENTED_COMMENT.match(lines[last]):
        last += 1
    return first, last


def differences(scripts):
    """Return a line for each name whose code is not the same in all scripts of its kind."""
    lines = []
    for kind in (True, False):
        alike = [script for script in scripts if script.has_divider == kind]
        lines += differences_of_one_kind(alike)
    return lines


def differences_of_one_kind(scripts):
    """Return a line for each name whose code is not the same in all scripts."""
    versions = {}  # by name: {code: places}
    for script in scripts:
        for name in script.spans:
            places = versions.setdefault(name, {})
            places.setdefault(script.code(name), []).append(script.place(name))
    lines = []
    for name, places in versions.items():
        if len(places) > 1:
            groups = [", ".join(same) for same in places.values()]
            lines.append(f"{name} differs: {' | '.join(groups)}")
    return lines


def mend(script, origin):
    """Take over all that a script shares with the origin; the file is replaced at once."""
    source = script.source
    shared = script.spans.keys() & origin.spans.keys()
    for name in sorted(shared, key=script.spans.get, reverse=True):  # the last first
        start, end = script.spans[name]
        source = source[:start] + origin.code(name) + source[end:]
    part = script.path.with_suffix(".part")
    part.write_bytes(source)
    shutil.copymode(script.path, part)
    os.replace(part, script.path)


def scripts_at_root():
    """Return the paths of all scripts, as seen from the working directory."""
    paths = sorted(ROOT.glob("*.py"))
    return [Path(os.path.relpath(path)) for path in paths if path.name != "conftest.py"]


def compare(paths, fix):
    """Return the differences between scripts, having mended them from the one to fix, if any."""
    scripts = [read(path) for path in paths]
    found = differences(scripts)
    if not (found and fix):
        return found
    origin = read(fix)
    for script in scripts:
        is_origin = script.path.resolve() == fix.resolve()
        if script.has_divider == origin.has_divider and not is_origin:
            mend(script, origin)
    return differences([read(path) for path in paths])


def main():
    """Compare scripts, having mended them if asked to; exit with 1 if some differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", type=Path, help="default: all at the root")
    parser.add_argument("--fix", metavar="FILE", type=Path, help="rewrite the others from FILE")
    args = parser.parse_args()
    paths = args.scripts or scripts_at_root()
    if args.fix:
        paths = [*paths, args.fix]
    paths = list({path.resolve(): path for path in paths}.values())  # each once
    try:
        found = compare(paths, args.fix)
    except (OSError, SyntaxError, ValueError) as error:
        parser.exit(2, f"error: {error}: name Python files\n")
    if found:
        print("\n".join(found))
        raise SystemExit(1)
    print(f"same name, same bytes in {', '.join(str(path) for path in paths)}")


if __name__ == "__main__":
    main()
