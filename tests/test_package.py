"""What a release promises: one version, and the files that go with it."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import robustops

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_stands_in_one_place():
    assert robustops.__version__ == version("robustops") == PROJECT["version"]
    written = [
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("*.*"), *ROOT.glob("docs/*.md"), *ROOT.rglob("robustops/**/*.py")]
        if path.is_file() and f'"{PROJECT["version"]}"' in path.read_text(errors="ignore")
    ]
    assert written == ["pyproject.toml"]
    changes = (ROOT / "CHANGELOG.md").read_text().splitlines()
    newest = next(line for line in changes if line.startswith("## "))
    assert newest.split()[1] == PROJECT["version"]


def test_a_release_has_its_files():
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"):
        assert (ROOT / name).stat().st_size > 0, name
    assert (Path(robustops.__file__).parent / "py.typed").exists()
