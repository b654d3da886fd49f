"""Measures what a model can do: generates from held-out prompts and judges every clip by its pixels and sound."""
