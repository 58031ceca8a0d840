"""What one dictionary adds to another: novelty, stitching, the path between sizes, Frankenstein dictionaries."""
