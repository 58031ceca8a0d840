"""How well a dictionary reconstructs, and what happens to the model when it is spliced in."""
