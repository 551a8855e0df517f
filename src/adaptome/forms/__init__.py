"""What families of methods share: a method is its equation on one of these."""
