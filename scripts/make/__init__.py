"""What makes the images that ship."""
