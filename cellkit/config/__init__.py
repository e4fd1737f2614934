"""The configuration: one frozen class for each section of the YAML, read with clear errors.

It may import `cells`, `microscope`, `models` and the ground.
"""
