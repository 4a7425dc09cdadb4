"""README's tables beside the peers, from the kept results: `python docs/_ext/comparison.py`."""

from pathlib import Path

from op_record import rows
from results import error, kept

README = Path(__file__).parents[2] / "README.md"
LIBRARIES = ("robustops", "jax", "optax", "tfp", "torch", "keras")
CASES = (
    "softmax_cross_entropy_with_integer_labels",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss(gamma=2)",
    "softmax",
    "logsumexp",
    "log1mexp",
    "logsubexp",
    "log_cosh",
    "safe_norm",
    "safe_std",
    "cosine_similarity",
)
BEGIN, END = "<!-- from accuracy.json -->\n", "<!-- end -->\n"


def figure(value: float | None) -> str:
    """An error in two digits."""
    return "" if value is None else f"{value:.2g}".replace("e+0", "e").replace("e+", "e")


def tables() -> str:
    """What each library gave on all that it has, and the largest errors of some functions."""
    found = [row for row in kept("accuracy") if row["dtype"] == "float32" and not row["error"]]
    totals = []
    for library in LIBRARIES:
        theirs = [row for row in found if row["library"] == library]
        failed = sum(max(r["value_failed"] or 0, r["derivative_failed"] or 0) for r in theirs)
        totals.append(
            (
                f"**{library}**" if library == "robustops" else library,
                str(len(theirs)),
                f"{failed:,} of {sum(row['compared'] for row in theirs):,}",
                *(
                    figure(max((row[key] for row in theirs if row[key] is not None), default=None))
                    for key in ("value_max", "derivative_max")
                ),
            )
        )
    by_case = {(row["op"], row["library"]): row for row in found}
    cases = (
        (f"`{case}`", *(_pair(by_case.get((case, library))) for library in LIBRARIES))
        for case in CASES
    )
    heading = ("", "functions", "points not finite", "largest error, value", "derivative")
    return f"{rows(heading, totals)}\n\n{rows(('', *LIBRARIES), cases)}\n"


def _pair(row) -> str:
    return " / ".join(filter(None, (error(row, "value"), error(row, "derivative"))))


def updated(text: str) -> str:
    """The text with the present tables between the two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{tables()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
