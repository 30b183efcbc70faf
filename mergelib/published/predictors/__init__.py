"""The published predictors, registered beside the library's own."""
