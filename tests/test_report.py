"""Rows kept, resumed and compared, and the page that they become."""

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import pytest

pytest.importorskip("rich", reason="benchmarks need the extra 'benchmarks'")
pytest.importorskip("sklearn", reason="benchmarks need the extra 'benchmarks'")

from benchmarks import __main__ as command
from benchmarks import accuracy, optimizers, speed, survival
from benchmarks._compare import compare
from benchmarks._peers import PEERS
from benchmarks._rows import CHECKOUT, Journal, read_rows
from benchmarks.report import page
from benchmarks.report._plot import legend
from benchmarks.report._style import STYLE

STAMP = {"suite", "device", "machine", "versions", "error"}
RESULTS = CHECKOUT / "benchmarks/results"


def made():
    """Rows as a run of the suites that take longest gives them."""
    once = Journal().once
    quartiles = {"ratio_low": 1.9, "ratio_high": 2.1, "seconds": 1e-3}
    for op, library, ratio in [
        ("log_cosh", "robustops", 2.0), ("log_cosh", "naive", 3.0), ("log_cosh", "optax", 2.5),
        ("safe_div", "robustops", 1.9), ("safe_div", "naive", 2.0), ("safe_div", "jax", 2.0),
    ]:  # fmt: skip
        for elements in (1024, 10240, 102400):
            unit = {"suite": "speed", "op": op, "dtype": "float32", "elements": elements}
            row = {"library": library, "mode": "gradient", "ratio": ratio, **quartiles}
            yield from once(unit | {"rounds": 3}, lambda row=row: [row])
    for arm, ratio in [("adam", 1.0), ("guard", 1.2)]:
        unit = {"suite": "optimizers", "kind": "cost", "tree": "2 leaves, 10K", "donated": True}
        row = {"arm": arm, "form": "update", "ratio": ratio, "compile_ratio": 2.0, **quartiles}
        yield from once(unit | {"rounds": 3}, lambda row=row: [row])
    unit = {"suite": "optimizers", "kind": "behaviour", "arm": "guard", "dtype": "float32"}
    row = {"fault": "nan", "finite": True, "unchanged": True, "learning": True}
    yield from once(unit, lambda: [row])
    for arm, survived in [("naive", False), ("robustops", True)]:
        for level in (0, 2):
            unit = {"suite": "survival", "scenario": "clip-bce", "level": level, "arm": arm}
            row = {
                "survived": survived, "learned": survived, "fair": True, "mark": "fair",
                "note": "", "metric": 0.9 if survived else None, "control": 0.9, "seed": 10,
            }  # fmt: skip
            yield from once(unit, lambda row=row: [row])


@pytest.fixture(scope="module")
def rows():
    kept = [read_rows(RESULTS / f"{name}.json") for name in ("accuracy", "accelerators", "models")]
    return [*made(), *(row for each in kept for row in each[:60])]


def test_a_stopped_run_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    unit = {"suite": "speed", "op": "a"}
    first = journal.once(unit, lambda: [{"ratio": 1.0}, {"ratio": 2.0}])
    path.write_text(path.read_text() + '{"suite": "sp')  # stopped while it wrote
    resumed = Journal(path, resume=True)
    assert resumed.once(unit, lambda: pytest.fail("measured again")) == first
    resumed.once({"suite": "speed", "op": "b"}, lambda: [{"ratio": 3.0}])
    assert [row["ratio"] for row in read_rows(path)] == [1, 2, 3]
    assert Journal(path).kept == []
    assert path.read_text() == ""


def test_a_run_of_other_versions_is_not_resumed(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path).once({"suite": "speed"}, lambda: [{"ratio": 1.0}])
    path.write_text(path.read_text().replace('"jax": "', '"jax": "9'))
    with pytest.raises(ValueError, match=r"was made with .* run without --resume"):
        Journal(path, resume=True)


def test_what_raises_is_a_row():
    def measure():
        raise OverflowError("too large")

    (row,) = Journal().once({"suite": "speed", "op": "a"}, measure)
    assert row["error"] == "OverflowError: too large"
    with pytest.raises(AssertionError, match="a: OverflowError: too large"):
        speed.verify([{**row, "library": "robustops"}], ["safe_log"])


def test_a_file_that_is_no_benchmark_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"suite": "speed"}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2: not a row of JSON"):
        read_rows(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1: not a row of a benchmark"):
        read_rows(path)


def test_compare_tells_what_became_worse(rows):
    assert compare(rows, rows) == []
    after = [dict(row) for row in rows]
    mine = [row for row in after if row.get("library", "robustops") == "robustops"]
    fast = next(r for r in mine if r["suite"] == "speed" and r["mode"] == "gradient")
    fast |= {"ratio": fast["ratio_high"] * 100}
    exact = next(r for r in mine if r["suite"] == "accuracy" and r["value_max"] is not None)
    exact["value_max"] = 1000.0
    lost = next(r for r in mine if r["suite"] == "survival" and r["survived"])
    lost |= {"survived": False, "learned": False}
    broken = next(r for r in mine if r["suite"] == "optimizers" and r["kind"] == "cost")
    broken["error"] = "ValueError: no"
    gone = next(r for r in mine if r["suite"] == "accelerators")
    after.remove(gone)
    theirs = next(r for r in after if r.get("library") == "naive" and r["suite"] == "accuracy")
    theirs["value_max"] = 1e9
    found = {(row["case"].split(":")[0], row["what"]) for row in compare(rows, after)}
    assert found >= {
        ("speed", "ratio"),
        ("accuracy", "value_max"),
        ("survival", "survived"),
        ("optimizers", "row"),
        ("accelerators", "row"),
    }
    assert not any("naive" in row["case"] for row in compare(rows, after) if row["what"] != "row")
    # A ratio that moved by less than three half distances of its quartiles is noise.
    still = dict(rows[0], ratio=1.0, ratio_low=0.8, ratio_high=1.2, suite="speed")
    assert compare([still], [still | {"ratio": 1.5}]) == []
    assert compare([still], [still | {"ratio": 1.7}])[0]["ratio"] == pytest.approx(1.7)


def test_compare_command(rows, tmp_path, capsys):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text("".join(json.dumps(row) + "\n" for row in rows))
    worse = [row | {"value_failed": 7} if row.get("value_failed") == 0 else row for row in rows]
    b.write_text("".join(json.dumps(row) + "\n" for row in worse))
    assert command.main(["compare", str(a), str(a)]) == 0
    assert command.main(["compare", str(a), str(b)]) == 1
    assert re.search(
        r"accuracy: log_cosh float32\s+. value_failed . 0\s+. 7", capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match="2"):
        command.main(["compare", str(a), str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        command.main(["compare", str(a), str(b), "--threshold", "0.5"])


def test_all_runs_every_suite_into_one_file(tmp_path, monkeypatch, capsys):
    asked = {}

    class Suite:
        def __init__(self, name):
            self.name = name.removeprefix("benchmarks.")

        def main(self, argv):
            asked[self.name] = argv
            if self.name == "survival":
                raise ImportError("no flax")
            file = Journal(tmp_path / "rows.jsonl", resume=True)
            file.once({"suite": self.name}, lambda: [{"error": "ValueError: no"}])
            return 0

    monkeypatch.setattr(command, "import_module", Suite)
    argv = ["all", "--quick", "--peers", "jax", "--report", str(tmp_path)]
    assert command.main(argv) == 1
    common = ["--quick", "--json", str(tmp_path / "rows.jsonl"), "--resume"]
    assert asked["optimizers"] == common
    assert asked["speed"] == [*common, "--peers", "jax"]
    assert list(asked) == list(command.SUITES)
    command.main(["all", "--full", "--json", str(tmp_path / "rows.jsonl")])
    assert asked["survival"] == ["--full", *common[1:]]
    assert asked["speed"] == [*"--full --peers jax optax torch".split(), *common[1:]]
    assert asked["models"] == ["--seeds", "2", *common[1:]]
    assert "survival is left out: no flax" in capsys.readouterr().out
    text = (tmp_path / "index.html").read_text()
    assert f"{len(command.SUITES) - 1} rows that are errors" in text
    assert "python -m benchmarks all --quick --peers jax" in text
    with pytest.raises(SystemExit, match="2"):
        command.main(["all", "--resume"])
    assert "--resume needs --json FILE or --report DIR" in capsys.readouterr().err


class _Tags(HTMLParser):
    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_self_contained(rows):
    broken = {
        "suite": "speed",
        "op": "a<b",
        "library": "robustops",
        "error": "E: <i>",
        "device": "x",
    }
    text = page([*rows, broken], "python -m benchmarks all --quick")
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert "http:" not in text
    assert "https:" not in text
    assert not {tag for tag, _ in tags.seen} & {"img", "iframe", "object"}
    ids = {attrs["id"] for _, attrs in tags.seen if "id" in attrs}
    assert {*command.SUITES, "errors", "made"} <= ids
    links = {attrs["href"] for tag, attrs in tags.seen if tag == "a"}
    assert {link.removeprefix("#") for link in links} <= ids
    assert "python -m benchmarks all --quick" in text
    assert "E: &lt;i&gt;" in text
    for suite in (survival, accuracy, speed, optimizers):
        mine = [row for row in rows if row["suite"] == suite.__name__.split(".")[-1]]
        assert escape(suite._report.sentence(mine)) in text


def test_each_library_has_a_colour_of_its_own():
    names = ["robustops", "naive", "double where", *PEERS]
    used = re.findall(r"--c\d", legend(names))
    assert len(set(used)) == len(names)
    assert all(f"{colour}: light-dark(" in STYLE for colour in used)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(rows, scheme, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed: `apt-get install chromium`")
    file = tmp_path / "index.html"
    # A click on the last heading of each table, then what the browser made of the page.
    probe = (
        "<script>document.querySelectorAll('table.sort').forEach(t => "
        "[...t.querySelectorAll('th button')].pop().click());"
        "const wide = document.documentElement.scrollWidth > innerWidth;"
        "const back = getComputedStyle(document.body).backgroundColor;"
        "document.title = JSON.stringify({wide, back});</script>"
    )
    file.write_text(page(rows, "a command") + probe)
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900",
            *dark, "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    found = json.loads(title[1])
    assert not found["wide"], "the page is wider than a phone"
    assert found["back"] == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert done.stdout.count('aria-sort="ascending"') == page(rows, "").count('class="sort"')
