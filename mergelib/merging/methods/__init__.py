"""The merging methods, one file each."""
