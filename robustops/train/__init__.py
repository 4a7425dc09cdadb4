"""Training: data and scalers, an audit of the initial parameters, and a short guarded loop."""

from ._batches import Batches as Batches
from ._fit import History as History
from ._fit import fit as fit
from ._init import LayerAudit as LayerAudit
from ._init import rescale_init as rescale_init
from ._scalers import MinMaxScaler as MinMaxScaler
from ._scalers import RobustScaler as RobustScaler
from ._scalers import StandardScaler as StandardScaler
