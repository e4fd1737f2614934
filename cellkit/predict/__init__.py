"""Any images through any model: a name becomes a model, files become instances.

Everything that changes a prediction is a function from Segmenter to Segmenter. It may import `cells`, `config`, `fetch`,
`formats`, `measure`, `microscope`, `models`, `scores`, `show`, `sources` and the ground.
"""
