"""One tensor to all cards, or one from all of them: planned as steps over links, and carried out."""
