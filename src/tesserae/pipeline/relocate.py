"""After the clone was moved or copied: the commands of its environment, which name the old place, name this one.

    python -m tesserae.pipeline.relocate .venv

pip writes the interpreter's absolute path into the first lines of every command; `make setup` calls this then.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# either of the two forms that pip writes: the second one where the path is long or has blanks
HEAD = re.compile(rb"\A#!(?:/bin/sh\n'''exec' \"?(?P<quoted>[^\n]*?/bin/python[\d.]*)\"? \"\$0\" \"\$@\"\n' '''\n"
                  rb"|(?P<plain>[^\n]*?/bin/python[\d.]*)\n)")


def relocate(environment: Path) -> int:
    """Let all commands in bin/ start the interpreter of this environment; return how many were changed."""
    changed = 0
    interpreter = bytes(environment.resolve() / "bin" / "python")
    head = b"#!/bin/sh\n'''exec' \"" + re.sub(rb'([$`"\\])', rb"\\\1", interpreter) + b"\" \"$0\" \"$@\"\n' '''\n"
    for path in sorted((environment / "bin").iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if HEAD.match(content) and not content.startswith(head):
            path.write_bytes(HEAD.sub(lambda _: head, content, count=1))
            changed += 1
    return changed


if __name__ == "__main__":
    relocate(Path(sys.argv[1]))
