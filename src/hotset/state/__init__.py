"""What a sequence remembers: keys and values, and how much room they take."""
