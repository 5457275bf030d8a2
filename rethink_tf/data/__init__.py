"""From a user's files to batches: sources, records, input.

`sources` reads and checks a data set (COCO, VOC, drawn shapes) and writes it as records; `records`
is what lies on the disk then, with its index and manifest; `input` reads them, in the order of a
run, and makes batches as `schema` says, the only thing that travels from data to model. A room
imports from those before it alone: records, input, sources (which try the decoder of training on
every image that they write).
"""
