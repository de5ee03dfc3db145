"""What keeps single contributions from the server: secure aggregation."""
