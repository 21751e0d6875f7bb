"""BERT towers: architecture, weights in and out, tokenizing, texts to vectors."""
