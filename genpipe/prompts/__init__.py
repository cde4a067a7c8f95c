"""From the text of a prompt to what the denoiser attends to."""
