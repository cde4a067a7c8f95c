"""The three networks and the tokenizer: one a file, and one frozen config for each."""
