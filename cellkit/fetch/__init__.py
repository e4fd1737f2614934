"""From the network or carried by hand: what can be fetched, verified downloads, archives checked member by member.

It may import `models` and the ground.
"""
