"""Data that models make, or choose, before any training: in parts that a kill cannot tear."""
