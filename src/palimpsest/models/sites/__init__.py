"""Sites: where the families of models keep their parts, as data, and proved by a pass over the model itself."""
