"""What is written of detections: a picture an image, and one file of all in COCO's form."""

import json
import os

from PIL import Image

from rethink_tf import files
from rethink_tf.report import pictures

FILE = "detections.json"
_QUALITY = 90  # of JPEG


class Outputs:
    """Collects the detections of many images in a folder.

    `detections.json` is a data set in COCO's form: images, categories, and annotations with a
    "score" each. The list of annotations alone is what pycocotools' `loadRes` takes.
    """

    def __init__(self, folder, categories, score):
        """Takes where to write.

        Args:
            folder: str, made where it is missing.
            categories: entries with "id" and "name".
            score: float, of the weakest detections that are drawn.
        """
        self.folder, self._score = folder, score
        self._shown = pictures.drawable_names({each["id"]: each["name"] for each in categories})
        self._colours = pictures.class_colours(self._shown.values())
        self._written = {"images": [], "annotations": [], "categories": categories}
        self.num_drawn = 0

    @property
    def num_images(self):
        """How many images there are so far."""
        return len(self._written["images"])

    @property
    def path(self):
        """The path of the file of all."""
        return os.path.join(self.folder, FILE)

    def draw(self, image, detections):
        """Returns the image uint8 [h, w, 3] with the detections that score enough; counts them."""
        shown = detections.above(self._score)
        self.num_drawn += len(shown)
        return pictures.draw_objects(
            image,
            shown.boxes,
            [self._shown[each] for each in shown.category_ids.tolist()],
            shown.scores,
            shown.masks,
            shown.keypoints,
            colours=self._colours,
        )

    def add(self, name, detections, **further):
        """Adds the detections of an image, all of them.

        Args:
            name: str, the file's, relative to the folder of inputs.
            detections: `Detections`.
            **further: of the entry of the image, such as the frame of a video.
        """
        height, width = detections.size
        entry = {"id": self.num_images + 1, "file_name": name, "height": height, "width": width}
        self._written["images"].append(entry | further)
        for result in detections.to_coco(entry["id"]):
            number = len(self._written["annotations"]) + 1
            area = result["bbox"][2] * result["bbox"][3]
            self._written["annotations"].append({"id": number, "area": area, "iscrowd": 0} | result)

    def save_picture(self, path, image, detections):
        """Draws an image into a JPEG file."""
        drawn = Image.fromarray(self.draw(image, detections))
        files.write_whole(path, pictures.jpeg(drawn, _QUALITY))

    def write(self):
        """Writes the file of all, whole."""
        files.write_whole(self.path, json.dumps(self._written) + "\n")


def picture_names(paths, root):
    """Returns {path: name of its picture}, relative to the folder of outputs.

    Args:
        paths: of the inputs.
        root: the folder that their names are relative to.
    """
    names, taken = {}, {}
    for path in paths:
        relative = os.path.relpath(path, root)
        taken.setdefault(os.path.splitext(relative)[0].lower(), []).append(path)
    for stem, same in taken.items():
        del stem
        for path in same:
            relative = os.path.relpath(path, root)
            # "a.png" and "a.jpg" are two pictures.
            names[path] = (os.path.splitext(relative)[0] if len(same) == 1 else relative) + ".jpg"
    return names
