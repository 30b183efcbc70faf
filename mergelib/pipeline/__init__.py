"""From a parameter file to tables: every unit of work kept by its key."""
