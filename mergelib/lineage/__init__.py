"""Does a model come from this base? Symmetries of a transformer, and weights that hide in them."""
