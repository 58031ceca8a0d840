"""One module a library whose files are read, and perhaps written: its formulas, its names, its defaults."""
