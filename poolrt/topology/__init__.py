"""What is there: cards, the links between them, and the ways bytes can take."""
