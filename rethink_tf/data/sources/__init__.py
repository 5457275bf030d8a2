"""Data sets as users have them, brought into COCO's form, checked, and written as records.

`coco` and `voc` read annotations, `shapes` draws a data set. `coco_checks` decides before any pixel
is read what is kept, clipped or left out (`box_forms` finds boxes that are not COCO's;
`run_lengths` reads masks). `writing` then has processes read the images
(`image_files`) and draw the masks (`coco_images`), tries the decoder of training on each
(`decode_check`), and writes the record directory with its `manifests`.
"""
