"""The three networks and the tokenizer: one a file, one frozen config beside each."""
