"""Fixtures shared by the tests of the data sources.

TensorFlow is imported where it is used: test files that do without it stay quick.
"""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api


class CocoSource:
    """A small COCO data set on the disk; a test may spoil it before it converts it.

    Images 1 to 4 of random pixels. 1: a polygon and a crowd (uncompressed RLE), 2: a compressed
    RLE without "area" and "iscrowd", 3: nothing, 4: a polygon. Entries are not in order of id.

    Attributes:
        dataset: what will be written to `path`; a str is written as it is.
        folder: of the images.
        blob: the mask of annotations 12 and 13.
    """

    height, width = 20, 30

    def __init__(self, folder):
        self.root = folder
        self.folder = folder / "images"
        self.path = folder / "instances.json"
        self.blob = np.zeros((self.height, self.width), np.uint8)
        self.blob[3:9, 4:14] = 1
        self.blob[5, 6] = 0
        self.dataset = self._dataset()
        self.folder.mkdir()
        for image_id in range(1, 5):
            Image.fromarray(self.pixels(image_id)).save(self.folder / f"{image_id}.png")

    def pixels(self, image_id):
        rng = np.random.default_rng(image_id)
        return rng.integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)

    def add(self, **changes):
        """Appends annotation 99, a good one except for the changes."""
        good = copy.deepcopy(self.dataset["annotations"][0])
        self.dataset["annotations"].append(good | {"id": 99} | changes)

    def write(self):
        content = self.dataset if isinstance(self.dataset, str) else json.dumps(self.dataset)
        self.path.write_text(content)

    def convert(self, output="records", num_shards=2, **options):
        """Returns (record directory, manifest)."""
        from rethink_tf.data.sources import coco

        self.write()
        output = str(self.root / output)
        options = {"num_workers": 0, "progress": False} | options
        return output, coco.convert(str(self.folder), str(self.path), output, num_shards, **options)

    @staticmethod
    def rle(mask, compressed):
        """COCO's RLE of uint8 [height, width]; the uncompressed one is counted here."""
        if compressed:
            encoded = mask_api.encode(np.asfortranarray(mask, np.uint8))
            return {"size": encoded["size"], "counts": encoded["counts"].decode()}
        runs, last = [0], 0
        for value in mask.T.reshape(-1):
            if value != last:
                runs.append(0)
                last = value
            runs[-1] += 1
        return {"size": list(mask.shape), "counts": runs}

    def _dataset(self):
        square = [[2, 3, 12, 3, 12, 9, 2, 9]]
        square_box, blob_box = [2, 3, 10, 6], [4, 3, 10, 6]
        return {
            "images": [
                {"id": k, "file_name": f"{k}.png", "height": self.height, "width": self.width}
                for k in (4, 2, 1, 3)
            ],
            "categories": [{"id": 20, "name": "cat"}, {"id": 3, "name": "ant"}],
            "annotations": [
                {"id": 11, "image_id": 1, "category_id": 3, "bbox": square_box, "area": 60.5,
                 "iscrowd": 0, "segmentation": square},
                {"id": 12, "image_id": 1, "category_id": 20, "bbox": blob_box, "area": 59,
                 "iscrowd": 1, "segmentation": self.rle(self.blob, compressed=False)},
                {"id": 13, "image_id": 2, "category_id": 20, "bbox": blob_box,
                 "segmentation": self.rle(self.blob, compressed=True)},
                {"id": 14, "image_id": 4, "category_id": 3, "bbox": square_box, "area": 60,
                 "iscrowd": 0, "segmentation": square},
            ],
        }  # fmt: skip


@pytest.fixture
def coco_source(tmp_path):
    return CocoSource(tmp_path)
