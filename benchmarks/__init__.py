"""Scripts that print the figures of the documents.

Run them from the project's root, as modules: `python -m benchmarks.speed.topk_step`.
"""
