"""How good is a dictionary, or a family of them: Pareto fronts, scaling laws, shrinkage, training, verification."""
