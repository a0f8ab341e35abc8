"""How fast a model runs and how well it predicts."""
