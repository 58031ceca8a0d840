"""Single latents of a larger dictionary put into a smaller one: effects, cosines, cards."""
