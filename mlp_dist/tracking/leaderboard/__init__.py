"""Runs beside each other, the best first: as lines for a terminal, as CSV, as a page."""
