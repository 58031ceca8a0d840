"""A Hugging Face causal language model: its sites, reading and replacing activations, altered forwards."""
