"""Files that others wrote, opened safely: no code is run, and sizes are checked before memory is taken."""
