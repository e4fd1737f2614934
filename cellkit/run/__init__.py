"""The run folder: what a stage read and wrote, whether it still holds, and the runner of the notebooks.

It may import `config` and the ground.
"""
