"""Pictures of profiles, plans and measurements."""
