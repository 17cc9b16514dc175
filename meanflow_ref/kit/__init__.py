"""The conformance kit: is somebody's MeanFlow code right, and if not, where."""
