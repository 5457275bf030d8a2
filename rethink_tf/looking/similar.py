"""Looks for near-duplicates among the images of a run, in as many as asked for."""

import dataclasses

import tqdm

from rethink_tf import console
from rethink_tf.data.records import subsets
from rethink_tf.looking import duplicates


@dataclasses.dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        images: (name of the split, row in its table) of each image that was compared.
        pairs: list of `duplicates.Pair`, those between splits first; they count into images.
        said: a text on what was compared and left out.
        num_between: int, how many pairs are between the splits.
    """

    images: list
    pairs: list
    said: str
    num_between: int

    def between(self, pair):
        """Returns which splits a pair is of, in words."""
        names = [self.images[each][0] for each in (pair.first, pair.second)]
        return f"within {names[0]}" if names[0] == names[1] else " and ".join(sorted(names))


def search(tables, num_images):
    """Compares images of the splits with each other.

    Args:
        tables: {name of the split: `objects.ObjectTable`}, training first.
        num_images: int, of all splits, at most; those of evaluation take up to half of them. Where
            there are more, those of `subsets` are taken. 0 for none.

    Returns:
        `Search`.
    """
    images = _choose(tables, num_images)
    total = sum(len(table.index) for table in tables.values())
    read, unreadable, kept = [], 0, []
    bar = tqdm.tqdm(images, unit="image", desc="duplicates", disable=not console.shows_bars())
    for split, row in bar:
        try:
            read.append(duplicates.make_prints([_open(tables[split], row)]))
        except (ValueError, OSError):
            unreadable += 1
            continue
        kept.append((split, row))
    pairs = duplicates.find_pairs(duplicates.join(read)) if read else []
    # Of images that are trained on and evaluated alike.
    pairs = [each for each in pairs if not _is_same_record(tables, kept, each)]
    is_within = {each: kept[each.first][0] == kept[each.second][0] for each in pairs}
    pairs.sort(key=lambda each: (is_within[each], -each.correlation))
    said = f"{len(kept):,} of {total:,} images were compared."
    if len(images) < total:
        said += f" {total - len(images):,} were left out (--images={num_images})."
    if unreadable:
        said += f" {unreadable:,} do not decode."
    shared = _num_shared(tables)
    if shared:
        said += f" {shared:,} images are trained on and evaluated, the same records."
    return Search(kept, pairs, said, sum(not each for each in is_within.values()))


def _choose(tables, num_images):
    left, found = num_images, []
    names = list(tables)[::-1]
    for position, name in enumerate(names):
        ids = tables[name].index.image_id
        most = left // 2 if position < len(names) - 1 else left
        # What the training images do not need is the others'.
        most = max(most, left - sum(len(tables[each].index) for each in names[position + 1 :]))
        count = min(len(ids), most)
        chosen = set(subsets.select_image_ids(ids, count)) if count else ()
        found += [(name, row) for row, each in enumerate(ids.tolist()) if each in chosen]
        left -= count
    return found


def _open(table, row):
    return duplicates.read_record_image(table.index, row)


def _is_same_record(tables, images, pair):
    places = []
    for split, row in (images[pair.first], images[pair.second]):
        index = tables[split].index
        places.append((index.paths[index.shard[row]], int(index.offset[row])))
    return places[0] == places[1]


def _num_shared(tables):
    first, second = tables.values()
    if first.index.directory != second.index.directory:
        return 0
    return len(set(first.index.image_id.tolist()) & set(second.index.image_id.tolist()))
