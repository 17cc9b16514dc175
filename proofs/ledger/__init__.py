"""The ledger of claims: five public documents on MeanFlow, row by row, one file a document.

Each row is a function that settles it; :mod:`proofs.claims` collects and runs them. Importing these files imports
neither torch nor numpy: a function that needs them imports :mod:`.measure` itself.
"""
