"""The text: the standard library of the Python that runs, and the side of the split on which each file lies.

A top-level module or package is wholly training or wholly validation text, its
tests go with it (`test/test_json` with `json`), and of files with equal bytes one
is kept.  The split is by a hash of the name, so that a later evaluation on another
machine holds out the same modules.  Nothing is copied; files are read where they lie.
"""

import hashlib
import sysconfig
from pathlib import Path

SKIPPED = ("site-packages", "ensurepip", "__pycache__")  # other people's, vendored, compiled
LONGEST = 400_000  # characters taken of one file: generated tables should not outweigh programs


def group_of(relative):
    """The module or package that a file of the standard library belongs to."""
    parts = relative.parts
    name = parts[0]
    if name == "test" and len(parts) > 1:
        name = parts[1].removesuffix(".py")
        name = name.removeprefix("test_") if name.startswith("test_") else "test_" + name
    return name.removesuffix(".py").lstrip("_")


def held_out(group):
    """One group in sixteen, by a hash of its name: the same on every machine."""
    return int(hashlib.sha1(group.encode()).hexdigest(), 16) % 16 == 0


def documents():
    """(side, group, text) of every file, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if any(part in SKIPPED for part in relative.parts) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha1(text.encode()).digest()
        if len(text) < 200 or digest in seen:
            continue
        seen.add(digest)
        group = group_of(relative)
        yield ("validation" if held_out(group) else "train"), group, text[:LONGEST]
