"""How decoder directions lie: cosines, densities, maps."""
