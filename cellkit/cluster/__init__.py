"""Many machines: a cluster is opened once, by a command or a notebook, and every loop over images runs on it.

It may import the ground, to which it belongs: `cellkit.parallel.map_items` asks it whether a cluster is open, and no other file
needs to know of it. `setting` is what a person says of a cluster, `kinds` and `jobs` start one, `opened` holds it while it is
open, `loop` sends work to it and takes results back, `remote` is what runs on a worker.
"""
