"""Rows kept, resumed and compared, and the page that they become."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

pytest.importorskip("rich", reason="benchmarks need the extra 'benchmarks'")
pytest.importorskip("sklearn", reason="benchmarks need the extra 'benchmarks'")

from benchmarks import __main__ as command
from benchmarks import accuracy, optimizers, speed, survival
from benchmarks._compare import compare
from benchmarks._peers import load
from benchmarks._rows import Journal, read_rows
from benchmarks.optimizers import _cost
from benchmarks.report import page

STAMP = {"suite", "device", "machine", "versions", "error"}


@pytest.fixture(scope="module")
def rows():
    """A few of each suite; the accelerators' stand in the checkout."""
    peers = load(["jax", "optax"])[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cost, "COST", ("adam", "skip_nonfinite"))
        guards = optimizers.run(["2 leaves, 10K"], ["adam", "skip_nonfinite"], rounds=2)
    return [
        *survival.run(["clip-bce"], ["naive", "robustops"], levels=[0, 2], steps=40),
        *accuracy.run(["log_cosh", "safe_div"], ["float32"], peers, samples=60),
        *speed.run(["log_cosh"], peers=peers, elements=[512, 1024, 2048], rounds=2),
        *guards,
        *read_rows(KEPT)[:8],
    ]


KEPT = accuracy._cli.RESULTS.parent / "accelerators.json"


def test_rows_of_all_suites_carry_the_same_stamp(rows):
    assert {row["suite"] for row in rows} == set(command.SUITES)
    for row in rows:
        assert STAMP <= set(row)
        assert {"python", "jax", "robustops"} <= set(row["versions"])
        assert {"processor", "cores", "system"} <= set(row["machine"])
    assert json.loads(json.dumps(rows, allow_nan=False))


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
    with pytest.raises(ValueError, match="was made with .* run without --resume"):
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
    for suite in (survival, accuracy, optimizers):
        mine = [row for row in rows if row["suite"] == suite.__name__.split(".")[-1]]
        assert suite._report.sentence(mine).split(":")[0] in text


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
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert not found["wide"], "the page is wider than a phone"
    assert found["back"] == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert done.stdout.count('aria-sort="ascending"') == page(rows, "").count('class="sort"')
