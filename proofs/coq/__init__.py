"""The part of the proofs that is analysis, in Coq: ``MeanFlow.v`` and its check."""
