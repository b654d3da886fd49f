"""Files to tensors and tensors to files."""
