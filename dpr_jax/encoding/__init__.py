"""The stage that turns the corpus into embeddings."""
