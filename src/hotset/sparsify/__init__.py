"""What to skip: predictors and thresholds, and the trials that choose them."""
