"""Programs: `robustify` repairs a function that nobody edits, `diagnose` explains a failure."""

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
