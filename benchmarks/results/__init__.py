"""What the shipped dictionaries show: the tables and figures of docs/results."""
