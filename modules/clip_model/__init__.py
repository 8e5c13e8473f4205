"""Clip models: image UNets whose batch is a clip, with attention across its frames and temporal modules."""
