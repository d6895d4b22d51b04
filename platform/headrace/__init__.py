"""Headrace keeps a recommender's recall model fresh: shards stream in, versions out, and replicas go on answering."""

__version__ = "0.1.0"
