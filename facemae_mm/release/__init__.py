"""The released set: which face stands where, its files, what it says of itself, and whether that is true."""
