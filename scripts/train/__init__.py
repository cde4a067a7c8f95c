"""What trains the models that ship."""
