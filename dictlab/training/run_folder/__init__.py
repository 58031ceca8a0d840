"""The folder of a training run: its state, what a state must be like to go on from, metrics, completion."""
