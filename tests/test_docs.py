"""The documentation names everything public, and what it shows runs."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from robustops._spec import OPS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
MODULES = ["losses", "optim", "models", "train", "testing"]
SETUP = [
    "pip install -e '.[benchmarks]' && python -m benchmarks",
    "pip install -e '.[test]' && pytest",
]
# What is not Python: shell commands and output, and directives of Sphinx.
OTHER = {
    "",
    "sh",
    "text",
    "{eval-rst}",
    "{toctree}",
    "{op-table}",
    "{op}",
    "{accelerators-table}",
    "{accuracy-table}",
    "{exhaustive-table}",
    "{models-table}",
}


def blocks(page: Path) -> list[tuple[str, int, str]]:
    """The fenced blocks of a page: first word after the fence, line of the fence, content.

    What the block before printed, "text output" after the fence, is "output".
    """
    text = page.read_text()
    found = re.finditer(r"^```(\S*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        ("output" if m[2] == " output" else m[1], text.count("\n", 0, m.start()) + 1, m[3])
        for m in found
    ]


def in_blocks(printed: str, page: Path) -> str:
    """Lines of the page as program.py and a line of the block that they are in."""
    starts = [line for language, line, _ in blocks(page) if language == "python"]

    def place(found: re.Match) -> str:
        line = int(found[1])
        return f"program.py:{line - max(start for start in starts if start < line)}"

    return re.sub(rf"[^\s]*{re.escape(page.name)}:(\d+)", place, printed)


def public(name: str) -> set[str]:
    """Dotted names of what a module defines or re-exports from this package."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", "").startswith("robustops")
    ]
    return {f"{name}.{key}" for key in names}


def entries() -> list[str]:
    """The dotted names that the pages document from their docstrings."""
    text = "\n".join(page.read_text() for page in PAGES)
    return re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\(\))?$", text, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry(module):
    listed = entries()
    assert len(listed) == len(set(listed))
    expected = public(f"robustops.{module}")
    assert expected
    assert {name for name in listed if name.startswith(f"robustops.{module}.")} == expected


def test_every_op_has_an_entry():
    listed = re.findall(r"^```\{op\} (\w+)$", (ROOT / "docs/ops.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(OPS)
    others = {name for name in entries() if name.count(".") == 1}
    assert public("robustops") == {f"robustops.{name}" for name in OPS} | others


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_python_blocks_run(page, capsys):
    """Each page top to bottom in one namespace; blocks with prompts must print what is shown."""
    namespace: dict = {"__name__": "__main__"}
    printed = ""
    for language, line, source in blocks(page):
        if language == "output":
            assert in_blocks(printed, page).strip() == source.strip(), f"{page.name}:{line}"
            continue
        assert language == "python" or language in OTHER, f"{page.name}:{line}: {language!r}"
        if language != "python":
            continue
        if source.startswith(">>>"):
            session = doctest.DocTestParser().get_doctest(
                source, namespace, page.name, str(page), line
            )
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(session, clear_globs=False)
            namespace.update(session.globs)
            assert runner.failures == 0, capsys.readouterr().out
        else:
            # Blank lines before the source, so that a traceback names the line of the page.
            capsys.readouterr()
            exec(compile("\n" * line + source, str(page), "exec"), namespace)
            printed = capsys.readouterr().out


@pytest.mark.parametrize("page", [README, ROOT / "docs/index.md"], ids=lambda page: page.name)
def test_quick_start_has_two_setup_commands(page):
    shell = "".join(text for language, _, text in blocks(page) if language in ("", "sh"))
    assert [line for line in shell.splitlines() if line.startswith("pip install")] == SETUP


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_links_to_files_resolve(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    for target in targets:
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?(\w+)>?`", text):
        assert (page.parent / f"{target}.md").exists(), target
