"""`python -m robustops train ...` and `python -m robustops replay FILE`."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m robustops",
        description="Train a reference model on real data, or explain a step that was refused.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "train",
        add_help=False,
        help="train a model on a data set; `train --help` lists models, data and options",
    )
    replay = commands.add_parser(
        "replay",
        help="say which line made a refused step NaN or infinite",
        description="Runs diagnose on a record of robustops.train.FlightRecorder and prints what it"
        " finds. The record names the model and the loss, and holds no code.",
    )
    replay.add_argument("file", metavar="FILE", help="a file refused_*.npz of the flight recorder")
    replay.add_argument(
        "--trust",
        action="store_true",
        help="import and call what the record names, also if it is not from robustops, optax.losses"
        " or jax; only for records of your own",
    )
    if argv[:1] == ["train"]:
        from robustops.train._command import main as train

        return train(argv[1:])
    given = parser.parse_args(argv)
    from robustops.train._record import explain

    try:
        text, replayed = explain(given.file, given.trust)
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m robustops replay: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if replayed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
