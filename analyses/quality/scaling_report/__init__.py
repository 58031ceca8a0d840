"""Tables, plots and words of the analysis of scaling."""
