"""What changed between two runs, as far as their folders tell, and how many causes that makes.

Each of these is one change: a setting, a changed function, constant or import of the source, the
package versions together, the device, and another script as a whole.
"""

import ast
import copy
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from run_folders import ASIDE, Run, name_in_docstring, read_run, read_summary, simulator_of

# The task is no setting: its runs are not compared with those of another
TASK = {"env_id", "total_timesteps"}
# Settings that scripts settle by themselves, and on which only rounding depends, or how often a run
# is evaluated: shown, and not counted
SETTLED = {"threads", "compile", "eval_every"}
OLD_NAMES = {"wandb_project"}  # of settings without effect, in runs of earlier scripts
NOT_COUNTED = ASIDE | OLD_NAMES | TASK | SETTLED | {"device"}  # the last is a change by itself
PACKAGES = ("torch", "numpy", "gymnasium")  # besides Python and the simulator
COPY = 0.95  # the share of equal parts from which on a script of another name is a copy


# --- records --------------------------------------------------------------------------------------
@dataclass(eq=False)
class Record:
    """A run with what its folder says of how it came about."""

    folder: Path
    run: Run
    source: bytes  # empty if the folder has no script.py
    versions: dict  # of the packages that matter; empty while the run lives
    machine: str
    planned: int | None = None  # steps, if the run is read up to an earlier one

    @property
    def task(self):
        return Task(self.run.env_id, self.run.steps)


class Task(NamedTuple):
    """An environment and a number of steps: only runs of one task are compared."""

    env_id: str
    steps: int

    def __str__(self):
        return f"{self.env_id}, {self.steps:,} steps"


class Change(NamedTuple):
    """One difference that can be the cause of another score."""

    kind: str  # script, setting, code, versions or device
    name: str  # of the setting or the part of the source
    before: Any
    after: Any

    def __str__(self):
        if self.kind == "code":
            return f"{self.name} {self.after}"
        if self.kind == "script":
            return f"{self.before} -> {self.after}"
        if self.kind == "versions":
            names = self.before
            return ", ".join(f"{name} {self.before[name]} -> {self.after[name]}" for name in names)
        return f"{self.name} {show(self.before)} -> {show(self.after)}"


class Difference(NamedTuple):
    """All in which two runs differ: changes, and remarks on what does not count."""

    changes: list[Change]
    remarks: list[str]


def read_record(folder):
    """Return the record of a run folder; raise OSError, ValueError or the like if it holds none."""
    run = read_run(folder)
    summary = read_summary(folder)
    script = folder / "script.py"
    return Record(
        folder=folder,
        run=run,
        source=script.read_bytes() if script.exists() else b"",
        versions=versions_that_matter(run.config, summary.get("versions", {})),
        machine=summary.get("hardware", "unknown"),
    )


def versions_that_matter(config, versions):
    """Return the versions of packages on which a run depends; of Python, major and minor."""
    found = {}
    for name in (*PACKAGES, simulator_of(config)):
        if name in versions:
            found[name] = str(versions[name]).split("+")[0]  # +cpu: the device tells
    if "python" in versions:
        found["python"] = ".".join(versions["python"].split()[0].split(".")[:2])
    return found


# --- differences ----------------------------------------------------------------------------------
def difference(one, other):
    """Return in what two records differ, apart from their task."""
    is_other_script = differs_in_script(one, other)
    changes = []
    if is_other_script:
        changes.append(Change("script", "the script", one.run.script, other.run.script))
    changes += changed_settings(one, other, is_other_script)
    if not is_other_script:
        changes += changed_code(one.source, other.source)
    changes += changed_versions(one.versions, other.versions)
    before, after = one.run.config.get("device"), other.run.config.get("device")
    if before and after and before != after:
        changes.append(Change("device", "device", before, after))
    return Difference(changes, remarks_on(one, other, is_other_script))


def differs_in_script(one, other):
    """Tell whether the scripts are different ones, and neither is a copy of the other."""
    if one.run.script == other.run.script:
        return False
    if not (one.source and other.source):
        return True
    documented = name_in_docstring(one.source)
    if documented and documented == name_in_docstring(other.source):
        return False
    return share_of_equal_parts(one.source, other.source) < COPY


def share_of_equal_parts(source, other):
    """Return how much of two sources is the same, from 0 to 1."""
    parts, others = parts_of(source), parts_of(other)
    names = {*parts, *others}
    equal = [name for name in names if is_same_part(name, parts, others)]
    return len(equal) / max(len(names), 1)


def remarks_on(one, other, is_other_script):
    """Return sentences on what differs without being counted, or cannot be known."""
    remarks = []
    names = [one.run.script, other.run.script]
    if names[0] != names[1] and not is_other_script:
        remarks.append(f"One script is a copy of the other: {names[0]}, {names[1]}.")
    settled = [
        name for name in sorted(SETTLED) if not same(setting(one, name), setting(other, name))
    ]
    for name in settled:
        change = Change("setting", name, setting(one, name), setting(other, name))
        remarks.append(
            f"Not counted, as only rounding or times of evaluation depend on it: {change}."
        )
    if not is_other_script:
        added = added_settings(one, other)
        if added:
            names = ", ".join(added)
            remarks.append(f"Not counted, as only one script has it, at its default: {names}.")
    if not (one.source and other.source):
        remarks.append("Whether the code differs is not known: not all runs have script.py.")
    if not (one.versions and other.versions):
        remarks.append("Whether versions differ is not known: not all runs have a summary.")
    if one.versions and other.versions and one.machine != other.machine:
        remarks.append(f"Not counted: the machine, {one.machine} and {other.machine}.")
    return remarks


# --- settings -------------------------------------------------------------------------------------
def setting(record, name):
    """Return the value of a setting; None also if there is no such setting."""
    return record.run.config.get(name)


def names_of_settings(*records):
    """Return all settings that count, in the order of the scripts."""
    names = {name: None for record in records for name in record.run.config}
    return [name for name in names if name not in NOT_COUNTED]


def has_setting(record, name):
    """Tell whether a script has a setting: config.toml lacks those without a value."""
    return name in record.run.config or name in fields_of(record.source)


def is_default(record, name):
    """Tell whether a setting is known to have its default."""
    defaults = record.run.defaults
    return name in defaults and same(setting(record, name), defaults[name])


def same(one, other):
    """Tell whether two values are the same: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return one == other or str(one) == str(other)  # NaN


def show(value):
    """Write a value of a setting."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def changed_settings(one, other, is_other_script):
    """Return a change for each setting that counts.

    What only one script has, at its default, is part of the code that reads it. What two scripts
    have at their defaults is part of these scripts.
    """
    changes = []
    for name in names_of_settings(one, other):
        owners = [record for record in (one, other) if has_setting(record, name)]
        if same(setting(one, name), setting(other, name)):
            continue
        may_be_code = len(owners) == 1 or is_other_script
        if may_be_code and all(is_default(owner, name) for owner in owners):
            continue
        changes.append(Change("setting", name, setting(one, name), setting(other, name)))
    return changes


def added_settings(one, other):
    """Return the settings that one of two scripts lacks and the other has at its default."""
    found = []
    for name in names_of_settings(one, other):
        owners = [record for record in (one, other) if has_setting(record, name)]
        if len(owners) == 1 and is_default(owners[0], name):
            found.append(name)
    return found


# --- versions -------------------------------------------------------------------------------------
def changed_versions(versions, others):
    """Return one change if any version differs, else none."""
    names = [name for name in versions if name in others and versions[name] != others[name]]
    if not names:
        return []
    before = {name: versions[name] for name in names}
    after = {name: others[name] for name in names}
    return [Change("versions", "versions", before, after)]


# --- source ---------------------------------------------------------------------------------------
class Part(NamedTuple):
    """A function, a method, the head of a class, a constant or an import of a source."""

    code: str  # the syntax tree, without docstrings
    names: frozenset  # that occur in it; ".name" for attributes and methods


class WithoutText(ast.NodeTransformer):
    """Takes docstrings out of a syntax tree, and all other statements that are mere text."""

    def visit_Expr(self, node):
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


@cache
def parts_of(source):
    """Return the parts of a source by name, such as Critic.forward.

    Comments, docstrings and the order of parts do not count. Fields of Args are settings, no parts.
    """
    try:
        tree = WithoutText().visit(ast.parse(source))
    except (SyntaxError, ValueError):
        return {"script.py": Part(repr(source), frozenset())}
    nodes = defaultdict(list)
    collect(tree.body, "", nodes)
    return {name: part_of(name, found) for name, found in nodes.items()}


def collect(body, prefix, nodes):
    """Sort the statements of a module or class into lists by name."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            head = copy.copy(node)
            head.body = []
            nodes[prefix + node.name].append(head)
            collect(node.body, f"{prefix}{node.name}.", nodes)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                alone = copy.copy(node)
                alone.names = [alias]
                nodes[f"{prefix}import {bound_name(alias)}"].append(alone)
        elif not (prefix == "Args." and isinstance(node, ast.AnnAssign)):
            nodes[prefix + name_of(node)].append(node)


def bound_name(alias):
    """Return the name that an import gives to what it imports."""
    return alias.asname or alias.name.split(".")[0]


def name_of(node):
    """Return the name of a function or constant; of other statements their first line."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name
    if isinstance(node, ast.AnnAssign | ast.AugAssign):
        return ast.unparse(node.target)
    if isinstance(node, ast.Assign):
        return ", ".join(ast.unparse(target) for target in node.targets)
    return ast.unparse(node).splitlines()[0]


def part_of(name, nodes):
    """Return the part that consists of these statements."""
    names = {own_name(name)}
    for node in nodes:
        for child in ast.walk(node):
            if isinstance(child, ast.Name):
                names.add(child.id)
            elif isinstance(child, ast.Attribute):
                names.add(f".{child.attr}")
    return Part("\n".join(ast.dump(node) for node in nodes), frozenset(names))


def own_name(name):
    """Return by what a part is called in code: ".forward" for Critic.forward."""
    holder, dot, last = name.rpartition(".")
    return f".{last}" if dot else name.removeprefix("import ")


def fields_of(source):
    """Return the names of all settings in the class Args of a source."""
    return fields_in(source) if source else frozenset()


@cache
def fields_in(source):
    """Return the annotated names in the class Args of a source."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return frozenset()
    classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    fields = [node for args in classes for node in args.body if isinstance(node, ast.AnnAssign)]
    return frozenset(ast.unparse(field.target) for field in fields)


def hash_of(source):
    """Return the beginning of a hash of what counts in a source."""
    if not source:
        return "unknown"
    lines = sorted(f"{name} {part.code}" for name, part in parts_of(source).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:7]


def is_same_part(name, parts, others):
    """Tell whether two sources have a part, and the same."""
    return name in parts and name in others and parts[name].code == others[name].code


def changed_code(source, other):
    """Return a change for each part that differs; none if a source is not known.

    What was added or removed acts through the code that names it. It counts with that code, unless
    the other source knows its name: then it may take the place of something.
    """
    if not (source and other):
        return []
    parts, others = parts_of(source), parts_of(other)
    words = {}
    for name in dict.fromkeys([*parts, *others]):
        if name not in others:
            words[name] = "removed"
        elif name not in parts:
            words[name] = "added"
        elif not is_same_part(name, parts, others):
            words[name] = "changed"
    changes = []
    for name, word in words.items():
        if word == "added" and is_helper(name, words, others, parts):
            continue
        if word == "removed" and is_helper(name, words, parts, others):
            continue
        changes.append(Change("code", name, None, word))
    return changes


def is_helper(name, words, own, foreign):
    """Tell whether a part of one source acts only through other parts that differ, or is in one."""
    holder = name.rpartition(".")[0]
    if holder in words and words[holder] == words[name]:
        return True  # a method of a class that is as new
    called = own_name(name)
    if any(called in part.names for part in foreign.values()):
        return False
    callers = [one for one in words if one in own and not is_within(one, name)]
    return any(called in own[one].names for one in callers)


def is_within(name, holder):
    """Tell whether a part is another one or belongs to it."""
    return name == holder or name.startswith(f"{holder}.")
