"""`python -m robustops`: training from the command line, pictures, and the errors of typing."""

import re
import subprocess
import sys

import numpy as np
import pytest

from robustops.__main__ import main
from robustops.train import plot_curves, plot_reconstructions
from robustops.train._command import SUITS, Train, _builder, _load, _loss, nnx

PNG = b"\x89PNG"


def run(capsys, *words):
    status = main(["train", "--no-progress", *map(str, words)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_train_saves_pictures_and_goes_on(tmp_path, capsys):
    """Faults on purpose are refused, recorded and counted; the same command again adds nothing, and
    one with other options is an error that names them."""
    out = tmp_path / "run"
    words = ("--data", "wine", "--epochs", 3, "--fault-every", 2, "--code", 4, "--out", out)
    status, told, _ = run(capsys, *words)
    assert status == 0
    assert "6 steps: 2 refused" in told
    assert re.search(r"test: \d+\.\d% of the variance unexplained \(36 rows\)", told)
    assert {p.name for p in out.iterdir()} == {
        *{"checkpoints", "records", "options.json", "metrics.csv"},
        *{"curves.png", "reconstructions.png"},
    }
    for picture in ("curves.png", "reconstructions.png"):
        assert (out / picture).read_bytes().startswith(PNG)
    assert main(["replay", str(out / "records" / "refused_00000003.npz")]) == 0
    assert "spoilt on the way" in capsys.readouterr().out
    assert run(capsys, *words)[1].split("\n")[1] == told.split("\n")[1]
    status, _, error = run(capsys, *words, "--code", 5)
    assert status == 2
    assert "is of a run with other options (code 4, now 5); choose another --out" in error
    for text in ("{", "3"):
        (out / "options.json").write_text(text)
        status, _, error = run(capsys, *words)
        assert status == 2
        assert re.search(r"run/options\.json, which holds .* is damaged .* remove that file", error)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0), ("batch-size", 0), ("code", 0), ("patience", 0), ("fault-every", -3),
        ("hidden", 0), ("seed", -1), ("learning-rate", -1.0), ("learning-rate", "nan"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    tmp_path, capsys, option, value
):
    status, _, error = run(
        capsys, "--data", "wine", "--out", tmp_path / "run", f"--{option}", value
    )
    assert status == 2
    assert f"--{option} must be" in error
    assert not (tmp_path / "run").exists()


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    status, _, error = run(capsys, "--data", "wine", "--out", tmp_path / "out")
    assert status == 2
    assert "out is a file; name a directory" in error


def test_options_of_a_run_that_never_began_do_not_count(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "options.json").write_text('{"code": 99}')
    words = ("--data", "wine", "--epochs", 1, "--code", 4, "--out", out)
    assert run(capsys, *words)[0] == 0


def test_mistyped_names_list_the_valid_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "--model", "autoencodr")
    told = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().err).split())
    assert "autoencodr" in told
    assert "'conv-classifier', 'rnn', 'gru'" in told
    status, _, error = run(capsys, "--model", "classifier", "--data", "diabetes")
    assert status == 2
    assert "does not suit --data diabetes; it takes digits, breast-cancer, wine, and" in error
    assert main(["train", "--model", "rnn", "--data", "digit-sequences", "--hidden", "8", "9"]) == 2
    assert "--model rnn has one hidden size, got (8, 9)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["trian"])
    assert "choose from" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    told = capsys.readouterr().out
    for model in SUITS:
        assert model in told
    assert "--learning-rate" in told
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert "train" in told
    assert "replay" in told


@pytest.mark.parametrize("model", SUITS)
def test_every_model_suits_its_data(model):
    """Each pair of model and data set makes a loss of one value a row or cell, shapes only."""
    for data in SUITS[model]:
        options = Train(model=model, data=data)  # pyright: ignore[reportArgumentType]
        rows = _load(options)
        build = _builder(options, rows)

        def loss(build=build, rows=rows):
            made = build(rngs=nnx.Rngs(0))
            return _loss(made)(made(rows.train.inputs[:5]), rows.train.targets[:5])

        assert nnx.eval_shape(loss).shape[0] == 5
    """Curves with refused and clipped steps, in any format; reconstructions."""


def test_pictures(tmp_path):
    """Curves with refused and clipped steps, in any format; reconstructions."""
    file = tmp_path / "m.csv"
    file.write_text("step,epoch,loss,grad_norm,skipped,clipped,scale,validation_loss\n")
    with pytest.raises(ValueError, match=r"m\.csv has no rows"):
        plot_curves(file, tmp_path / "c.svg")
    with file.open("a") as more:
        more.write("1,1,2.0,0.5,0,0,1.0,\n2,1,nan,nan,1,0,1.0,\n3,1,1.0,3.0,0,1,1.0,1.5\n")
    plot_curves(file, tmp_path / "c.svg")
    assert "<svg" in (tmp_path / "c.svg").read_text()
    for shape in ((12, 64), (3, 8, 8, 1), (12, 13)):
        x = np.random.default_rng(0).normal(size=shape)
        plot_reconstructions(x, 0.9 * x, tmp_path / "r.png")
        assert (tmp_path / "r.png").read_bytes().startswith(PNG)
        (tmp_path / "r.png").unlink()
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 5\) differ"):
        plot_reconstructions(np.ones((3, 4)), np.ones((3, 5)), tmp_path / "r.png")


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['tyro', 'matplotlib', 'orbax']));"
        "import robustops.train as t\n"
        "from robustops.__main__ import main\n"
        "for make in (lambda: t.Checkpoints('c'), lambda: t.plot_curves('m', 'c'),"
        " lambda: main(['train'])):\n"
        "    try: make()\n"
        "    except ImportError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = told.stdout.splitlines()
    assert len(lines) == 3
    assert all("pip install 'robustops[train]'" in line for line in lines)
