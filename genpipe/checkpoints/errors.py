"""The one error that reading a checkpoint raises."""


class CheckpointError(ValueError):
    """A checkpoint is not there, not whole, or not one that genpipe can run; the message is one line."""
