"""Reference models in `flax.nnx`: short, numerically robust, written to be read and copied."""

from ._autoencoder import Autoencoder as Autoencoder
from ._classifier import Classifier as Classifier
from ._conv_autoencoder import ConvAutoencoder as ConvAutoencoder
from ._conv_classifier import ConvClassifier as ConvClassifier
from ._norms import BatchNorm as BatchNorm
from ._norms import LayerNorm as LayerNorm
from ._sequence import SequenceClassifier as SequenceClassifier
from ._variational import Variational as Variational
from ._variational import VariationalAutoencoder as VariationalAutoencoder
