"""Maps, memories and machines that are fitted to data, in scikit-learn's manner."""

from .som import SOM

__all__ = ["SOM"]
