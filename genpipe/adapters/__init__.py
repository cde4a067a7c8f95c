"""Pipelines of diffusers, of any family, behind genpipe's interface: diffusers does the model, genpipe all around it."""
