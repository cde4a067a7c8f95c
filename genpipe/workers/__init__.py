"""Processes that hold a model and draw batches for others."""
