"""A small data set in PASCAL VOC's layout, drawn for tests, which may spoil it."""

import numpy as np
from PIL import Image


class VocSource:
    """Year folders below a folder; images of random pixels, 40 high and 60 wide.

    Attributes:
        root: the folder of the year folders.
    """

    height, width = 40, 60

    def __init__(self, root):
        self.root = root

    def add(self, year, name, objects="", size=None, lists=("train",), pixels=None):
        """Adds an image to lists of a year.

        Args:
            year: folder such as "VOC2007".
            name: of the image.
            objects: XML of its objects, see `voc_object`; bytes or a whole file for a bad one.
            size: XML of its size, or None for the right one.
            lists: names of the lists.
            pixels: uint8 [40, 60, 3], or None for random ones.
        """
        folder = self.root / year
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        if pixels is None:
            rng = np.random.default_rng(len(name) + sum(map(ord, name)))
            pixels = rng.integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        if size is None:
            size = f"<width>{self.width}</width><height>{self.height}</height><depth>3</depth>"
        whole = f"<annotation>\n<size>{size}</size>\n{objects}\n</annotation>\n"
        (folder / "Annotations" / f"{name}.xml").write_text(whole)
        for each in lists:
            with open(folder / "ImageSets" / "Main" / f"{each}.txt", "a") as file:
                file.write(name + "\n")

    def xml(self, year, name):
        """Path of an annotation file."""
        return self.root / year / "Annotations" / f"{name}.xml"

    def convert(self, *sets, output="records", **options):
        """Returns (record directory, manifest); sets such as "VOC2007:train"."""
        from rethink_tf.data.sources import voc

        output = str(self.root / output)
        options = {"num_shards": 1, "num_workers": 0, "progress": False} | options
        sets = [f"{self.root}/{each}" for each in sets]
        return output, voc.convert(sets, output, **options)


def voc_object(name, xmin, ymin, xmax, ymax, difficult=0):
    """XML of one object."""
    box = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in box.items())
    # A part has a name and a box too, which are not the object's.
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return (
        f"<object>{part}<name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox></object>"
    )
