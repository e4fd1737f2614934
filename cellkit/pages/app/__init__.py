"""The page to try a model on, `cellkit app`: what a browser shows of an image, whose it is, and who may ask.

`views` makes bytes of pictures and cells, `session` is what one page holds, `desk` what all pages share, `server` speaks HTTP.
"""
