"""Who fires: watches a model read text and keeps what was seen."""
