"""The forms in which a CPU runs the networks fastest, and the table that chooses among them."""
