"""From files that land in a folder to cuts that a rank trains on: the ledger orders, Ray Data carries."""
