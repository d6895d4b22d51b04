"""Durable storage on any pyarrow file system: put whole or not at all, content-addressed parts, markers last."""
