"""Hostile inputs for every command and public function: what may not happen, and whether it does."""
