"""Models that are fitted rather than trained."""

from .hopfield import Hopfield
from .modern_hopfield import ModernHopfield

__all__ = ["Hopfield", "ModernHopfield"]
