"""Several machines, by Ray: batches and the server. Nothing else needs it."""
