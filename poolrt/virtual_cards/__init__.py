"""Cards without hardware: a torch device type `vcard` whose cards are host memory with a capacity each."""
