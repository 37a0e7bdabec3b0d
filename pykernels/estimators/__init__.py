"""Maps, memories and machines that are fitted to data, in scikit-learn's manner."""

from .deep_belief_network import DeepBeliefNetwork
from .rbm import RBM

__all__ = ["DeepBeliefNetwork", "RBM"]
