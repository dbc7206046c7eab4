"""The frozen part: weights, layout and tokenizer of a backbone."""
