"""What an analysis returns: tables, plots, cards, and the page that shows them."""
