"""The decoder: what every backend's parts are put together into."""
