"""LoRA adapters: read as the low-rank task vectors that they are, put on a base."""
