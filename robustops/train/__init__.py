"""Training: data and scalers, an audit of initial parameters, a guarded loop that survives faults."""

from ._batches import Batches as Batches
from ._checkpoints import Checkpoints as Checkpoints
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
