"""Reference models in `flax.nnx`: short, numerically robust, written to be read and copied."""

from ._autoencoder import Autoencoder as Autoencoder
from ._classifier import Classifier as Classifier
from ._sequence import SequenceClassifier as SequenceClassifier
