"""The published work: its released tables in this library's schemas, and its predictors."""
