"""mergelib: can two fine-tuned models be merged? Metrics, merges and honest forecasts."""

__version__ = "0.1.0"
