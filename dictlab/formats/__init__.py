"""Files that hold dictionaries."""
