"""Tools that hold an op to its contract: ulp distance, edge grids, totality and accuracy checks.

For this library's tests and benchmarks, and for your own ops: `check_total(my_op, x)` works on any
function, `check_contract(Op(my_op, ...))` on a record of one. The contract C1 to C7 is written out
in the documentation. `accuracy` and `check_contract` need mpmath: `pip install
'robustops[testing]'`.
"""

from ._accuracy import Accuracy as Accuracy
from ._accuracy import accuracy as accuracy
from ._accuracy import ulp_distance as ulp_distance
from ._contract import check_contract as check_contract
from ._faults import inject_fault as inject_fault
from ._spec import OPS as OPS
from ._spec import Op as Op
from ._total import all_values as all_values
from ._total import check_total as check_total
from ._total import check_zero_absorbs as check_zero_absorbs
from ._total import edge_cases as edge_cases

__all__ = [
    "OPS",
    "Accuracy",
    "Op",
    "accuracy",
    "all_values",
    "check_contract",
    "check_total",
    "check_zero_absorbs",
    "edge_cases",
    "inject_fault",
    "ulp_distance",
]
