"""The result of all suites as one HTML page that needs nothing else."""

from ._page import page as page
from ._page import write_report as write_report
