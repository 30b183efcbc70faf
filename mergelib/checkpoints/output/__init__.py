"""Checkpoints written: files, shards, and model folders that their libraries load."""
