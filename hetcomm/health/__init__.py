"""Who is alive, suspected, stopped, has left or is dead; what makes it so, and who looks."""
