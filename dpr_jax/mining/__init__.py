"""Hard negatives for the training and development questions."""
