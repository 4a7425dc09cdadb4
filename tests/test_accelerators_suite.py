"""The accelerators benchmark: what it reads off a program, what it kept, what it refuses."""

from pathlib import Path

import pytest

from benchmarks import accelerators
from benchmarks.__main__ import main
from benchmarks._rows import read_rows
from benchmarks.accelerators import _cases, _hlo, _measure
from benchmarks.accelerators._reasons import REASONS
from benchmarks.accelerators._targets import TARGETS, Target

KEPT = read_rows(Path(accelerators.__file__).parents[1] / "results/accelerators.json")
OURS = [row for row in KEPT if row["library"] == "robustops"]

HLO = """
HloModule m

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%p)
}

%dear (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %c = f32[8]{0} copy(%q)
  ROOT %d = f32[8]{0} copy(%c)
}

%cheap (r: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} parameter(0)
}

ENTRY %main (x: f32[8], i: s32[]) -> (f32[8], bf16[8]) {
  %x = f32[8]{0} parameter(0)
  %i = s32[] parameter(1)
  %a = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %v = f32[8]{0:S(1)} fusion(%x), kind=kLoop, calls=%fused
  %k = f32[8]{0} conditional(%i, %a, %a), branch_computations={%cheap, %dear}
  %b = bf16[8]{0} convert(%k)
  ROOT %t = (f32[8]{0}, bf16[8]{0}) tuple(%k, %b)
}
"""


def test_traffic_is_what_the_kernels_read_and_write():
    # a 32 + 32, v 32 (its result stays on the chip), the dear branch 2 (32 + 32), b 32 + 16
    assert _hlo.traffic(HLO) == (5, 64 + 32 + 128 + 48)


def test_loop_counts_its_trips():
    hlo = """
%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %c = f32[4]{0} copy(%p)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %w = f32[4]{0} while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501
    assert _hlo.traffic(hlo) == (3, 3 * 32)


def test_a_slice_reads_of_its_source_what_it_holds():
    hlo = """HloModule x
ENTRY %main (p: f32[2000,2000]) -> f32[504,2000] {
  %p = f32[2000,2000]{1,0:T(8,128)} parameter(0)
  %s = ((f32[2000,2000]{1,0:T(8,128)}), f32[504,2000]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:504], [0:2000]}
  %t = ((f32[2000,2000]{1,0:T(8,128)}), f32[8,2000]{1,0:T(8,128)}, s32[]{:S(2)}) slice-start(%p), slice={[0:8], [0:2000]}
  ROOT %d = f32[504,2000]{1,0:T(8,128)S(1)} slice-done(%s)
}
"""  # noqa: E501
    assert _hlo.traffic(hlo) == (2, 504 * 2000 * 4 + 2 * 8 * 2000 * 4)


def test_kept_rows_cover_the_cases_on_both_targets():
    for target in TARGETS:
        with_ratio = [row for row in KEPT if row["target"] == target and row.get("bytes_ratio")]
        assert {row["case"] for row in with_ratio} == set(_cases.names())
        assert len({row["case"] for row in with_ratio if row["library"] == "robustops"}) >= 60
    assert all(row["kernels"] > 0 and row["bytes"] > 0 for row in KEPT if not row["error"])


def test_kept_rows_above_the_limit_have_a_reason():
    accelerators.verify(KEPT)


def test_no_reason_is_stale():
    heavy = {row["case"] for row in OURS if row["bytes_ratio"] > _measure.LIMIT}
    assert set(REASONS) & {row["case"] for row in OURS} <= heavy


def test_a_heavy_row_without_a_reason_is_named():
    row = next(row for row in OURS if (row["case"], row["mode"]) == ("safe_log", "value"))
    with pytest.raises(AssertionError, match=rf"safe_log value on {row['target']}: 1\.500"):
        accelerators.verify([row | {"bytes_ratio": 1.5}])


def test_a_missing_compiler_is_a_message(monkeypatch, capsys):
    absent = Target("tpu", "v5e:2x2", ("no-such-wheel",), {})
    monkeypatch.setitem(TARGETS, "tpu-v5e", absent)
    monkeypatch.setitem(TARGETS, "h100", absent)
    assert main(["accelerators", "--quick"]) == 0
    message = "tpu-v5e is left out: no-such-wheel is not installed; run `pip install -e"
    assert message in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"tpu-v5e: no-such-wheel is not installed"):
        accelerators.run(["safe_log"], ["tpu-v5e"])


def test_unknown_names_are_refused(capsys):
    with pytest.raises(ValueError, match=r"unknown op 'safe_lg'; choose from: .*safe_log"):
        accelerators.run(["safe_lg"])
    with pytest.raises(SystemExit):
        main(["accelerators", "--targets", "h200"])
    assert "unknown target 'h200'; choose from: tpu-v5e, h100" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_figures_are_those_of_a_hand_count(target, tmp_path):
    problem = TARGETS[target].problem()
    if problem:
        pytest.skip(problem)
    rows = accelerators.run(["safe_log"], [target], state=tmp_path / "state.jsonl")
    value, gradient = (row for row in rows if row["library"] == "robustops")
    size = 4 * _cases.ELEMENTS
    assert value["bytes"] == pytest.approx(2 * size, rel=0.01)
    assert gradient["bytes"] == pytest.approx(2 * size, rel=0.01)
    assert (tmp_path / "state.jsonl").read_text().count("\n") == 4


def test_a_compiler_works_ahead_and_answers_for_the_case_asked(monkeypatch, tmp_path):
    echo = "import sys\nfor line in sys.stdin: print([len(line.strip())], flush=True)"
    start, started = _measure.subprocess.Popen, []
    popen = lambda argv, **how: started.append(argv) or start([argv[0], "-c", echo], **how)
    monkeypatch.setattr(_measure.subprocess, "Popen", popen)
    compiler = _measure._Compiler("h100", tmp_path / "state")
    for case in ("a", "bb", "bb", "ccc"):
        compiler.ask(case)
    assert compiler.answer("bb") == [2]
    compiler.ask("bb")  # is not compiled again
    assert compiler.answer("ccc") == [3]
    compiler.ask("dddd")
    assert compiler.answer("dddd") == [4]
    assert len(started) == 1
    compiler.ask("eeeee")
    compiler.close()  # does not wait for what nobody wants


def test_a_compiler_that_ends_says_why_and_starts_again(monkeypatch, tmp_path):
    start = _measure.subprocess.Popen
    popen = lambda argv, **how: start([argv[0], "-c", "raise SystemExit('no memory')"], **how)
    monkeypatch.setattr(_measure.subprocess, "Popen", popen)
    compiler = _measure._Compiler("h100", tmp_path / "state")
    for _ in range(2):
        compiler.ask("a")
        with pytest.raises(RuntimeError, match="the compiler for h100 ended: no memory"):
            compiler.answer("a")
    compiler.close()
