"""The models of the tests of `ModelDict`."""
