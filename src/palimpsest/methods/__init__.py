"""Methods: each file is one method's mathematics; what they share lives in `optimise`, `statistics` and `solve`."""
