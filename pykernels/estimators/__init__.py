"""Maps, memories and machines that are fitted to data, in scikit-learn's manner."""

from . import _base  # noqa: F401  (first: it tells what is not installed)
from .deep_belief_network import DeepBeliefNetwork
from .extreme_learning import ExtremeLearningClassifier, ExtremeLearningRegressor
from .radial_basis import RadialBasisClassifier, RadialBasisRegressor
from .rbm import RBM
from .som import SOM

__all__ = [
    "SOM", "RBM", "DeepBeliefNetwork",
    "RadialBasisRegressor", "RadialBasisClassifier", "ExtremeLearningRegressor", "ExtremeLearningClassifier",
]  # fmt: skip
