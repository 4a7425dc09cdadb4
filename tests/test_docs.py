"""The documentation names everything public, and what it shows runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import optax
import pytest

import robustops
from robustops._spec import OPS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
MODULES = [m.name for m in pkgutil.iter_modules(robustops.__path__) if m.name[0] != "_"]
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
    "{api-table}",
    "{include}",
    "{literalinclude}",
    "{loss-table}",
    "{models-table}",
    "{raw}",
}


def named(page: Path) -> str:
    """A page by its path, for test ids."""
    return str(page.relative_to(ROOT if page == README else DOCS))


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
        for key in dir(module)
        if key[0] != "_" and getattr(getattr(module, key), "__module__", "").startswith("robustops")
    ]
    # What the package has at its top is documented there.
    above = None if module is robustops else robustops
    return {
        f"{name}.{key}" for key in names if getattr(above, key, None) is not getattr(module, key)
    }


def entries() -> list[str]:
    """The dotted names that the pages document from their docstrings."""
    text = "\n".join(page.read_text() for page in PAGES)
    return re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\(\))?$", text, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry(module):
    listed = entries()
    assert len(listed) == len(set(listed))
    expected = public(f"robustops.{module}")
    assert expected or module == "ops"
    assert {name for name in listed if name.startswith(f"robustops.{module}.")} == expected


def test_every_op_has_an_entry():
    listed = re.findall(r"^```\{op\} (\w+)$", (ROOT / "docs/ops.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(OPS)
    others = {name for name in entries() if name.count(".") == 1}
    assert public("robustops") == {f"robustops.{name}" for name in OPS} | others


def test_the_reference_lists_every_module():
    """The tables of the page are made from the modules, so naming those is naming everything."""
    listed = re.findall(r"^```\{api-table\} ([\w.]+)$", (DOCS / "api.md").read_text(), re.M)
    assert sorted(listed) == sorted(
        ["robustops", *(f"robustops.{module}" for module in MODULES if module != "ops")]
    )


@pytest.mark.parametrize("page", [README, *PAGES], ids=named)
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


QUESTIONS = {
    "validation-loss-is-nan-from-the-first-step",
    "training-and-validation-are-nan-in-an-autoencoder",
    "nan-though-all-data-are-in-range",
    "nan-in-the-backward-pass-only",
    "float16",
    "masked-attention",
    "a-recurrent-network",
    "many-devices",
}


def test_each_question_fails_without_and_works_with_its_repair():
    """Each section asserts a failure, shows the diagnosis, and asserts that the repair is clean.

    That what is asserted and printed holds is `test_python_blocks_run`.
    """
    text = (DOCS / "why-nan.md").read_text()
    sections = {
        title.lower().replace(" ", "-"): body
        for title, body in re.findall(
            r"^## ([^\n]+)$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
        )
    }
    assert set(sections) == QUESTIONS
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) == QUESTIONS
    for question, body in sections.items():
        failing, printed, repair, *_ = re.findall(r"^```[^\n]+\n(.*?)^```$", body, re.M | re.DOTALL)
        assert re.search(r"^assert .*(isnan|isinf|not jnp.isfinite)", failing, re.M), question
        assert re.search(r"^print\(ro.diagnose\(", failing, re.M), question
        assert printed.startswith("diagnose: "), question
        assert re.search(r"^assert .*ro.diagnose\(.*\).ok$", repair, re.M), question


def test_names_of_the_migration_page_exist():
    """Each name of the second column is found, in `robustops` or in the module it begins with."""
    text = (DOCS / "migrating.md").read_text()
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("|")]
    names = {name for cell in cells for name in re.findall(r"`([a-z_][\w.]*)(?=[`(])", cell)}
    assert len(names) > 40
    for name in names:
        module, _, _ = name.rpartition(".")
        assert f"robustops.{name}" in public(f"robustops.{module}".rstrip(".")), name
    for name in set(re.findall(r"\boptax\.(\w+)", text)):
        assert hasattr(optax, name), name


def test_readme_compares_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    pytest.importorskip("sphinx", reason="the tables are made by extensions of sphinx")
    text, update = README.read_text(), importlib.import_module("comparison").updated
    assert text == update(text), "run `python docs/_ext/comparison.py`"


@pytest.mark.parametrize("page", [README, ROOT / "docs/index.md"], ids=named)
def test_quick_start_has_two_setup_commands(page):
    shell = "".join(text for language, _, text in blocks(page) if language in ("", "sh"))
    assert [line for line in shell.splitlines() if line.startswith("pip install")] == SETUP


@pytest.mark.parametrize("page", [README, *PAGES], ids=named)
def test_links_to_files_resolve(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    for target in targets:
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([\w/.-]+)>?`", text):
        assert (page.parent / f"{target}.md").exists(), target
