"""Configuration, building, run directories."""
