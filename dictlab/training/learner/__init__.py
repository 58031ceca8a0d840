"""One dictionary while it is trained: weights, optimizer, initialisation, warm start, state."""
