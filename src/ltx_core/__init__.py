"""The LTX-2 model as mathematics: tensors in, tensors out."""
