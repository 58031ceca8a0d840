"""What several analyses share: opening their inputs, the token sample, nearest neighbours, chance levels, plots."""
