"""Maps, memories and machines that are fitted to data, in scikit-learn's manner."""
