"""Tables, plots and words of the analysis of pathological errors."""
