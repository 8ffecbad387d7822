"""What is trained on a finished store: datasets for PyTorch over its rows."""
