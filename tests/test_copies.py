"""The scripts share code byte for byte and keep to the house rules: layout, style, flags."""

import ast
import io
import itertools
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import foreign

ROOT = Path(__file__).resolve().parents[1]
COPIES = ROOT / "tools" / "copies.py"
TITLES_ABOVE = "arguments", "networks", ("replay buffer", "rollout"), "agent", "training"
DIVIDER = (
    "# Plumbing: each function and class is identical in every script that has it; none is about "
)
FUNCTION, SCREEN, NESTING = 75, 60, 4  # lines of a function, of a screen; blocks within blocks
DENSITY = 10.5  # tokens a line; CleanRL has 7 to 9, sfujim/TD3 10.5
DOCSTRING = range(20, 29)  # lines of a module's docstring
BLOCKS = ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
HARMLESS = ast.Import, ast.ImportFrom, *FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign
# Scripts do not act alike in these
HELP_DIFFERS = {"learning_starts", "eval_every", "eval_episodes"}
SELF_EVIDENT = {"__init__", "__len__", "__enter__"}  # methods that need no docstring
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.name != "conftest.py")
OURS = {"tools", "tests", *(path.stem for path in SCRIPTS)}


def pytest_generate_tests(metafunc):
    """Hold our scripts to all rules, but one named with --script not to those of the house."""
    named = metafunc.config.getoption("--script")
    theirs = [named.resolve()] if foreign(named) else []
    house = [path for path in SCRIPTS if path not in theirs]
    kinds = {"script": theirs or SCRIPTS, "house_script": house}
    for name, paths in kinds.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, paths, ids=lambda path: path.stem)
    if "house_scripts" in metafunc.fixturenames:
        metafunc.parametrize("house_scripts", [house], ids=["all"])


def copies(*arguments):
    """Run tools/copies.py and return its exit code and what it prints."""
    command = [sys.executable, COPIES, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def tree(path):
    """Parse a script."""
    return ast.parse(path.read_text("utf-8"))


def functions(node):
    """List all functions within a node."""
    return [child for child in ast.walk(node) if isinstance(child, FUNCTIONS)]


def depth(node):
    """Count the blocks that are nested in a node; elif is as deep as its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        chained = isinstance(node, ast.If) and [child] == node.orelse
        chained = chained and child.col_offset == node.col_offset
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not chained))
    return deepest


def fields(path):
    """List the fields of Args as (name, annotation, default, trailing comment)."""
    source = path.read_text("utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    (args,) = [n for n in tree(path).body if isinstance(n, ast.ClassDef) and n.name == "Args"]
    found = []
    for node in args.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            assert isinstance(node, ast.AnnAssign), f"{ast.unparse(node)} has no annotation"
            kind, default = ast.unparse(node.annotation), default_of(node)
            found.append((node.target.id, kind, default, comments.get(node.end_lineno, "")))
    return found


def default_of(node):
    """Evaluate the default of a field, or return ... where it has none, or makes one each time."""
    try:
        return ast.literal_eval(node.value) if node.value else ...
    except ValueError:
        return ...


def fits(kind, default):
    """Tell whether a default, where there is one, is of the annotated type."""
    if default is ...:
        return True
    if kind.endswith(" | None"):
        return default is None or fits(kind.removesuffix(" | None"), default)
    if kind.startswith("Literal["):
        return default in ast.literal_eval(kind.removeprefix("Literal"))
    return type(default).__name__ == kind


def reads(path):
    """Collect the names that are read from Args outside of check, which uses nothing."""
    module = tree(path)
    (args,) = [n for n in module.body if isinstance(n, ast.ClassDef) and n.name == "Args"]
    args.body = [n for n in args.body if getattr(n, "name", "") != "check"]
    own, found = {id(node) for node in ast.walk(args)}, set()
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder, name = node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            holder, name = node.args[0], ast.unparse(node.args[1]).strip("'")
        else:
            continue
        holder = ast.unparse(holder)
        if re.search(r"(^|\.)args$|^tyro\.cli\(", holder) or (id(node) in own and holder == "self"):
            found.add(name)
    return found


# --- the tool -------------------------------------------------------------------------------------
ONE = """import os

# Why double:
# because.
@str
@repr
def double(x):
    return 2 * x
    # the end


# --- agent ---
def same():
    pass


class Args:
    a = 1
"""
OTHER = ONE.replace("2 * x", "x + x").replace("--- agent", "--- networks").replace("a = 1", "b = 2")


@pytest.fixture
def pair(tmp_path):
    """Write two scripts that differ in double, in a title and in Args."""
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "other.py").write_text(OTHER)
    return tmp_path / "one.py", tmp_path / "other.py"


def test_house_scripts_share_code(house_scripts):
    code, text = copies(*house_scripts)
    assert code == 0, text


def test_default_is_all_scripts_at_the_root():
    assert all(path.name in copies()[1] for path in SCRIPTS)


def test_difference_is_named(pair):
    code, text = copies(*pair)
    assert (code, text) == (1, f"double differs: {pair[0]}:3 | {pair[1]}:3\n")


def test_fix_mends_the_others_only(pair):
    pair[1].chmod(0o755)
    before, place = pair[1].read_text(), pair[0].stat().st_ino
    code, text = copies("--fix", *pair)
    assert code == 0 and text.startswith("same name, same bytes in ")
    assert pair[0].read_text() == ONE and pair[0].stat().st_ino == place
    assert pair[1].read_text() == before.replace("x + x", "2 * x")
    assert pair[1].stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in pair[0].parent.iterdir()) == ["one.py", "other.py"]


@pytest.mark.parametrize("old", ["# Why double:", "# because.", "@str", "@repr", "# the end"])
def test_comments_and_decorators_count(pair, old):
    pair[1].write_text(ONE.replace(old, old + "  # changed"))
    code, text = copies(*pair)
    assert code == 1 and text.startswith("double differs: ")
    assert copies("--fix", *pair)[0] == 0 and pair[1].read_text() == ONE


def test_end_of_file_is_no_difference(pair):
    pair[0].write_text("def double(x):\n    return 2 * x")
    pair[1].write_text("def double(x):\n    return 2 * x\n\n\na = 1\n")
    assert copies(*pair)[0] == 0


def test_fix_keeps_what_only_one_script_has(pair):
    pair[0].write_text(ONE + "\n\ndef mine():\n    pass")
    pair[1].write_text('"""\ndef same():\n    pass\n"""\n' + OTHER.replace("pass", "return 1"))
    assert copies("--fix", *pair)[0] == 0
    expected = OTHER.replace("x + x", "2 * x")
    assert pair[1].read_text() == '"""\ndef same():\n    pass\n"""\n' + expected


def test_fix_says_what_it_can_not_mend(pair, tmp_path):
    for name, body in {"third.py": "1", "fourth.py": "2"}.items():
        (tmp_path / name).write_text(f"def only_here():\n    return {body}\n")
    code, text = copies("--fix", *pair, tmp_path / "third.py", tmp_path / "fourth.py")
    assert code == 1 and text.startswith("only_here differs: ") and "double" not in text


@pytest.mark.parametrize("bad", ["def (:\n", "a\0b", None])
def test_bad_input_is_refused(pair, bad):
    if bad is None:
        pair[1].unlink()
    else:
        pair[1].write_text(bad)
    code, text = copies("--fix", *pair)
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1
    assert "other.py" in text or bad == "a\0b"


# --- layout and sizes -----------------------------------------------------------------------------
def test_the_algorithm_comes_first_and_plumbing_below_a_divider(house_script):
    above, below = house_script.read_text("utf-8").split(DIVIDER)
    titles = re.findall("^# --- (.+?) -+$", above, re.MULTILINE)
    pairs = zip(titles, TITLES_ABOVE, strict=True)
    assert all(title in ([known] if isinstance(known, str) else known) for title, known in pairs)
    assert re.findall(r"^class Agent|^def main", above, re.MULTILINE) == ["class Agent", "def main"]
    assert not re.findall(r"^class Agent|^def main", below, re.MULTILINE)


def test_the_update_and_the_loop_fit_on_a_screen_each(house_script):
    for function in functions(tree(house_script)):
        if function.name in {"main"} or function.name.startswith("update"):
            assert function.end_lineno - function.lineno + 1 <= SCREEN, function.name


def density(path):
    """Return the tokens a line of code has, docstrings aside, and the lines of tuple statements."""
    source, module = path.read_text("utf-8"), tree(path)
    documented, lines, tokens = set(), set(), 0
    for node in ast.walk(module):
        kinds = ast.Module, ast.ClassDef, *FUNCTIONS
        if isinstance(node, kinds) and ast.get_docstring(node):
            documented |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    code = {tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in code and token.start[0] not in documented:
            tokens += 1
            lines.add(token.start[0])
    statements = [node for node in ast.walk(module) if isinstance(node, ast.Expr)]
    tuples = [node.lineno for node in statements if isinstance(node.value, ast.Tuple)]
    return tokens / len(lines), tuples


def test_one_statement_a_line(house_script):
    found, tuples = density(house_script)
    assert found <= DENSITY and not tuples


def test_inline_metadata_is_that_of_the_requirements(house_script):
    """uv run reads it: the same pins, and every package that the script imports."""
    source = house_script.read_text("utf-8")
    (block,) = re.findall(r"(?ms)^# /// script\n(.+?)^# ///$", source)
    metadata = tomllib.loads("".join(line[2:] or "\n" for line in block.splitlines(keepends=True)))
    assert metadata["requires-python"] == ">=3.11,<3.14"
    required = (ROOT / "requirements.txt").read_text("utf-8").split()
    assert {*metadata["dependencies"]} <= {*required}
    packages = {re.split(r"[\[=]", one)[0] for one in metadata["dependencies"]}
    names = packages_distributions()
    for node in ast.walk(tree(house_script)):
        found = [node.module] if isinstance(node, ast.ImportFrom) else []
        found = [name.name for name in node.names] if isinstance(node, ast.Import) else found
        for module in {name.split(".")[0] for name in found} - sys.stdlib_module_names:
            assert packages & {*names[module]}, f"{module} is imported and not required"


def test_functions_are_short_and_flat(house_script):
    for function in functions(tree(house_script)):
        first = min(node.lineno for node in [function, *function.decorator_list])
        size, nested = function.end_lineno - first + 1, depth(function)
        assert size <= FUNCTION and nested <= NESTING, (function.name, size, nested)


def test_docstrings(house_script):
    module = tree(house_script)
    text = module.body[0]
    assert ast.get_docstring(module) and text.end_lineno - text.lineno + 1 in DOCSTRING
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    for node in [child for parent in [module, *classes] for child in parent.body]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            public = not node.name.startswith("_") or node.name.endswith("__")
            needed = public and node.name not in SELF_EVIDENT
            assert not needed or ast.get_docstring(node), f"{node.name} has no docstring"


def test_ruff(house_script):
    if not find_spec("ruff"):
        pytest.skip("ruff is not installed")
    for command in ["format", "--check"], ["check"]:
        command = [sys.executable, "-m", "ruff", *command, "--no-cache", house_script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_left_to_do(house_script):
    assert not re.findall(r"\b(TODO|FIXME|XXX)\b", house_script.read_text("utf-8"))


def test_no_dropout_or_batch_norm(house_script):
    """They would need train() and eval() in the right places."""
    names = {
        getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree(house_script))
    }
    assert not [name for name in names if re.search("(?i)dropout|batch_?norm", str(name))]


def help_of(name, comment):
    """Return a flag's help without the number of an equation, and nothing where it may differ."""
    return "" if name in HELP_DIFFERS else re.sub(r"\(\d+\) ", "", comment)


def test_shared_flags_agree(house_scripts):
    """Type and help, and order are the same in all scripts."""
    flags = [{f[0]: (f[1], help_of(f[0], f[3])) for f in fields(p)} for p in house_scripts]
    pairs = zip(house_scripts, flags, strict=True)
    for (_, one), (_, other) in itertools.combinations(pairs, 2):
        ours = [(name, what) for name, what in one.items() if name in other]
        assert ours == [(name, what) for name, what in other.items() if name in one]


# --- what holds for scripts of a user's own -------------------------------------------------------
def test_nothing_runs_at_import(script):
    docstring, *body, last = tree(script).body
    assert isinstance(docstring.value, ast.Constant)
    assert not [ast.unparse(node) for node in body if not isinstance(node, HARMLESS)]
    assert ast.unparse(last).startswith("if __name__ == '__main__':")


def test_imports_nothing_of_the_repository(script):
    for node in ast.walk(tree(script)):
        if isinstance(node, ast.Import):
            assert not OURS & {name.name.split(".")[0] for name in node.names}, ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module.split(".")[0] not in OURS, ast.unparse(node)


def test_flags_have_help_and_fitting_defaults(script):
    assert fields(script)
    for name, kind, default, comment in fields(script):
        assert len(comment) > 4, f"{name} has no trailing comment as help"
        assert fits(kind, default), f"{name}: {kind} = {default!r}"


def test_every_flag_is_read(script):
    unread = {name for name, *_ in fields(script)} - reads(script)
    assert not unread, f"changing these changes nothing: {unread}"
