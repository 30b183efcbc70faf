"""The image encoder: backbones, zero-shot heads, fine-tuning, accuracy."""
