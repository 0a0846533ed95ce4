"""Remake the tables in README.md, docs/, results/ and tests/ that our own commands print.

Such a table stands between a line <!-- python tools/speed.py ... --> and a line <!-- end -->. What
the command prints, called in the root folder, belongs between them.

python tools/tables.py            rewrite the tables that are old
python tools/tables.py --check    name the pages whose tables are old, and exit with 1 if there are
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md", "results/*.md", "tests/*.md")
BLOCK = re.compile(r"(<!-- python (.+?) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def printed_by(command):
    """Return what a command prints."""
    words = [sys.executable, *shlex.split(command)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: python {command} failed: {done.stderr.strip()}")
    return done.stdout


def remake(page):
    """Return the text of a page with its tables made anew."""

    def replacement(block):
        first, command, last = block.groups()
        return f"{first}\n{printed_by(command).strip()}\n{last}"

    return BLOCK.sub(replacement, page)


def main():
    """Rewrite or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if old")
    args = parser.parse_args()
    old = False
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            page = path.read_text("utf-8")
            new = remake(page)
            if new == page:
                continue
            old = True
            print(f"{path.relative_to(ROOT)}: {'old' if args.check else 'rewritten'}")
            if not args.check:
                path.write_text(new, "utf-8")
    if old and args.check:
        print("run: python tools/tables.py")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
