"""What work will take on this computer, told before it begins: minutes, memory, disk; and what would fit where it does not.

Costs are timed once and kept, the rest is counted; afterwards what it took stands beside it, and corrects the next forecast.
It may import `cells`, `config`, `evaluate`, `fetch`, `microscope`, `models`, `sources` and the ground.
"""
