"""Why cards do not work together as they could: small checks over what was seen of a machine, each with its fix."""
