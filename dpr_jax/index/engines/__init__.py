"""The search engines: exact, ScaNN and FAISS, each with build, save, load and search."""
