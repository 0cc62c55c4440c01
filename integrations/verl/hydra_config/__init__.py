"""Hydra configs that take precedence over verl's of the same name, and include them."""
