"""Weights of models: formats, layouts, task vectors, digests of content."""
