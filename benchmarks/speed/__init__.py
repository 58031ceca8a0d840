"""Time and memory, beside the obvious way and beside other libraries."""
