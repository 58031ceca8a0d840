"""dictlab's own file: one `.safetensors`."""
