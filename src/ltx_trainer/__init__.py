"""Training for the LTX-2 architecture: full, LoRA, IC-LoRA and distillation; and the miniature's world."""
