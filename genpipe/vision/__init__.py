"""The vision companion: conv blocks, and the networks that look at pictures."""
