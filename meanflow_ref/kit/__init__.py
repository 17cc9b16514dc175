"""The conformance kit: measures somebody's code from outside, and names what is wrong with it."""
