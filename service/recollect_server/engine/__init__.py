"""Search and attention on a device: the only package that knows FAISS."""
