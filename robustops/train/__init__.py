"""Training: data, scalers, an audit of the first parameters, and a loop that survives faults."""

from ._batches import Batches as Batches
from ._check import BatchReport as BatchReport
from ._check import Finding as Finding
from ._check import check_batch as check_batch
from ._checkpoints import Checkpoints as Checkpoints
from ._datasets import Dataset as Dataset
from ._datasets import Rows as Rows
from ._datasets import load_breast_cancer as load_breast_cancer
from ._datasets import load_diabetes as load_diabetes
from ._datasets import load_digit_sequences as load_digit_sequences
from ._datasets import load_digits as load_digits
from ._datasets import load_image_patches as load_image_patches
from ._datasets import load_wine as load_wine
from ._fit import Epoch as Epoch
from ._fit import History as History
from ._fit import fit as fit
from ._init import LayerAudit as LayerAudit
from ._init import rescale_init as rescale_init
from ._record import FlightRecorder as FlightRecorder
from ._record import Record as Record
from ._record import load_record as load_record
from ._record import replay as replay
from ._scalers import MinMaxScaler as MinMaxScaler
from ._scalers import RobustScaler as RobustScaler
from ._scalers import StandardScaler as StandardScaler
