"""Hot neurons on a device, cold neurons on the CPU: one model, computed by both at once."""
