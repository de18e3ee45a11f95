"""Runs what stands in a page of the documentation, in its order: commands, then Python from block to block."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.end_to_end.conftest import Workspace

ROOT = Path(__file__).parents[2]
SETTING = re.compile(r"(\w+)=(.*)", re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """Words of each command of a block in the shell's language, without comments and expansions."""
    lines = block.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


class Reader:
    """A reader who works through pages from top to bottom, and does nothing twice.

    Args:
        workspace: whose root is the reader's folder.
        elsewhere: the first words of commands that are not run here, each for a reason that the test states.
        before: called with the words of a command before it runs, and may change them.
    """

    def __init__(
        self,
        workspace: Workspace,
        elsewhere: Sequence[str] = (),
        before: Callable[[list[str]], list[str]] = lambda words: words,
    ) -> None:
        self.workspace = workspace
        self.elsewhere = elsewhere
        self.before = before
        self.done: list[list[str]] = []
        self.variables = {"PWD": str(workspace.root)}

    def read(self, name: str) -> str:
        """What the page's commands print; each has to end without an error."""
        script: list[str] = []
        printed = []
        for language, content in blocks(ROOT / name):
            if language == "bash":
                printed += [self._run(words) for words in commands(content)]
            elif language == "python":
                script.append(content)
        if script:
            exported = f"import os\n\nos.environ.update({self.variables!r})\n"
            printed.append(self.workspace.run_code("\n".join([exported, *script])))
        return "\n".join(printed)

    def _run(self, words: list[str]) -> str:
        words = [self._expanded(word) for word in words]
        if words[0] == "export":
            self.variables |= dict(match.groups() for word in words[1:] if (match := SETTING.fullmatch(word)))
            return ""
        if words[0] in self.elsewhere or words in self.done:
            return ""
        self.done.append(words)
        files = [sorted(glob.glob(word, root_dir=self.workspace.root)) or [word] for word in self.before(words)]
        return self._knowing_exports().run(*(word for found in files for word in found))

    def _knowing_exports(self) -> Workspace:
        """With those alone that commands look at: a fork server serves in one environment."""
        ours = {name: value for name, value in self.variables.items() if name.startswith(("nnUNet_", "AUTOSAM2_"))}
        return replace(self.workspace, environment={**self.workspace.environment, **ours})

    def _expanded(self, word: str) -> str:
        """With the values of variables, as the shell would have it."""
        return re.sub(r"\$\{?(\w+)\}?", lambda match: {**os.environ, **self.variables}[match[1]], word)
