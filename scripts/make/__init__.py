"""What makes the pictures that ship."""
