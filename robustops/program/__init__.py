"""Programs: `robustify` repairs a function that nobody edits, `diagnose` explains a failure.

`certify` proves that there can be none.
"""

from ._certificate import Bound as Bound
from ._certificate import Certificate as Certificate
from ._certificate import Unproved as Unproved
from ._certify import Range as Range
from ._certify import certify as certify
from ._check import check_finite as check_finite
from ._diagnose import diagnose as diagnose
from ._report import Operand as Operand
from ._report import Origin as Origin
from ._report import Report as Report
from ._report import Step as Step
from ._robustify import Change as Change
from ._robustify import Changes as Changes
from ._robustify import report as report
from ._robustify import robustify as robustify
