"""The default instructions for prompt enhancement, as text files."""
