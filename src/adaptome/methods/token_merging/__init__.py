"""Methods that shorten the sequence by merging tokens."""
