"""The Gemma text encoder and the configurators."""
