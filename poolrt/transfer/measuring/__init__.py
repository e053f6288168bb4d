"""What copies between cards are: timed, proven, kept in a file, and turned into routes that are trusted."""
