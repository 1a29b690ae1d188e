"""Methods: one mathematics each; what they share lives in `locating`, `training`, `statistics` and `solve`."""
