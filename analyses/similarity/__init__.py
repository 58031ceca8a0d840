"""How alike are dictionaries: by decoder direction, by activations on the same tokens, as whole spaces."""
