"""The three networks and the tokenizer: one per file, and one frozen config for each."""
